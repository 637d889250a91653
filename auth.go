package kgroup

// Who we are: the credentials that each connection presents with SASL. What the
// mechanisms say is in internal/wire; TLS, also as a way to say who we are, in
// tlsfiles.go.

import (
	"context"
	"crypto"
	"crypto/tls"
	"fmt"
	"log/slog"

	"github.com/kgroup-go/kgroup/internal/wire"
)

// An Auth is a SASL mechanism and whose credentials it presents: one of [Plain],
// [Scram] and [OAuthBearer], or their variants that ask a function. Nothing else
// implements it.
//
// It may be used in several Configs. However it is printed, encoded, logged or
// dumped, alone or inside of something else, it shows its mechanism and its user at
// most, never a password or a token.
type Auth interface {
	// String returns the mechanism and, where it does not change, the user:
	// "SCRAM-SHA-512 as alice".
	String() string

	// sasl returns the mechanism, or what is wrong with what it was made of.
	sasl() (wire.Mechanism, error)
}

// Plain authenticates with SASL/PLAIN, which sends the password itself: use it with
// Config.TLS only. User and password must not be empty, and are used as they are.
func Plain(user, password string) Auth {
	return fixedAuth(wire.Plain(fixed(user, password)), user, password)
}

// PlainFunc is [Plain] with a user and a password that may change.
//
// credentials is called for each new connection, so that what was rotated is used
// from the next connection on; what costs time it should keep. It may be called by
// several goroutines at once, 8 at most, and must return when ctx ends, which is
// when the connection is given up: after ConnectTimeout at the latest. An error, an
// empty user or an empty password fails that attempt to connect: before the first
// assignment it ends Run, after it the attempt is repeated with a backoff, and
// reported. The error is logged, so it should not contain a secret. A panic is not
// recovered.
func PlainFunc(credentials func(ctx context.Context) (user, password string, err error)) Auth {
	return askingAuth(wire.Plain(credentials), credentials == nil)
}

// Scram authenticates with SASL/SCRAM and hash, which is crypto.SHA256 or
// crypto.SHA512: whichever the user was created for on the brokers. The password is
// not sent, and a broker that does not know it is refused. User and password must
// not be empty, and are used as they are: like Kafka, Scram does not apply SASLprep.
func Scram(hash crypto.Hash, user, password string) Auth {
	if err := checkHash(hash); err != nil {
		return &auth{err: err}
	}
	return fixedAuth(wire.Scram(hash, fixed(user, password)), user, password)
}

// ScramFunc is [Scram] with a user and a password that may change. When credentials
// is called, and what it must do, is the same as for [PlainFunc].
func ScramFunc(hash crypto.Hash, credentials func(ctx context.Context) (user, password string, err error)) Auth {
	if err := checkHash(hash); err != nil {
		return &auth{err: err}
	}
	return askingAuth(wire.Scram(hash, credentials), credentials == nil)
}

// OAuthBearer authenticates with SASL/OAUTHBEARER (RFC 7628), which sends the token
// itself: use it with Config.TLS only.
//
// token returns a bearer token, without surrounding white space, and the extensions
// that go with it (KIP-342: names of letters, never "auth"; values of printable
// ASCII), or nil. When it is called, and what it must do, is the same as for
// [PlainFunc]. The token has to be valid at that moment; how long it stays so is
// between its issuer and the brokers, which end a session with the token or ask for
// another one before (KIP-368), and then token is called again.
func OAuthBearer(token func(ctx context.Context) (token string, extensions map[string]string, err error)) Auth {
	return askingAuth(wire.OAuthBearer(token), token == nil)
}

// auth is the only Auth. Being used by its pointer keeps fmt away from its fields
// where it cannot call String: in unexported fields of the user's own types. None of
// them holds a secret all the same: those are in funcs, which no dumper looks into.
type auth struct {
	mechanism wire.Mechanism
	user      string // empty: a function says who
	err       error  // what Validate has to say
}

func fixed(user, password string) wire.Credentials {
	return func(context.Context) (string, string, error) { return user, password, nil }
}

func fixedAuth(m wire.Mechanism, user, password string) *auth {
	a := &auth{mechanism: m, user: user}
	if err := wire.CheckCredentials(user, password); err != nil {
		a.err = fmt.Errorf("%s: %w", m.Name(), err)
	}
	return a
}

func askingAuth(m wire.Mechanism, missing bool) *auth {
	a := &auth{mechanism: m}
	if missing {
		a.err = fmt.Errorf("%s: the function is nil", m.Name())
	}
	return a
}

func checkHash(hash crypto.Hash) error {
	if hash != crypto.SHA256 && hash != crypto.SHA512 {
		return fmt.Errorf("SCRAM with %v: Kafka has SCRAM-SHA-256 and SCRAM-SHA-512 only; use crypto.SHA256 or crypto.SHA512", hash)
	}
	return nil
}

func (a *auth) sasl() (wire.Mechanism, error) { return a.mechanism, a.err }

func (a *auth) String() string {
	switch {
	case a == nil || a.mechanism == nil:
		return "SASL"
	case a.user == "":
		return a.mechanism.Name()
	default:
		return a.mechanism.Name() + " as " + a.user
	}
}

// LogValue implements [slog.LogValuer].
func (a *auth) LogValue() slog.Value { return slog.StringValue(a.String()) }

// MarshalText implements [encoding.TextMarshaler], for JSON and others.
func (a *auth) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// security is what the wire is told of TLS and Auth, of a c that is valid.
func (c Config) security() wire.Security {
	s := wire.Security{TLS: hideKeys(c.TLS)}
	if c.Auth != nil {
		s.SASL, _ = c.Auth.sasl() // Validate has returned its error
	}
	return s
}

// hideKeys returns a copy of t that presents the same client certificates, and that
// shows no private key, whichever dumper comes by: they are in a func.
func hideKeys(t *tls.Config) *tls.Config {
	t = t.Clone()
	if t == nil || len(t.Certificates) == 0 {
		return t
	}
	certificates := t.Certificates
	t.Certificates = nil
	if t.GetClientCertificate == nil { // else they are not used
		t.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			for i := range certificates {
				if asked.SupportsCertificate(&certificates[i]) == nil {
					return &certificates[i], nil
				}
			}
			return new(tls.Certificate), nil // none, as crypto/tls has it
		}
	}
	return t
}

// Format implements [fmt.Formatter]: a Config is printed like any struct, but a private
// key in TLS is not shown. (For a verb that does not fit, %s say, fmt follows pointers.)
func (c Config) Format(f fmt.State, verb rune) {
	type config Config // which has no methods
	c.TLS = hideKeys(c.TLS)
	fmt.Fprintf(f, fmt.FormatString(f, verb), config(c)) //nolint:errcheck // f is where an error would be told
}

// security checks TLS and Auth.
func (m *mistakes) security(c Config) {
	if t := c.TLS; t != nil {
		if t.MaxVersion != 0 && t.MaxVersion < t.MinVersion {
			m.add("TLS.MaxVersion", "is lower than MinVersion; leave both to the default")
		}
		for i, certificate := range t.Certificates {
			if len(certificate.Certificate) == 0 || certificate.PrivateKey == nil {
				m.add(fmt.Sprintf("TLS.Certificates[%d]", i), "has no certificate or no private key; make it with tls.LoadX509KeyPair, or all of TLS with kgroup.LoadTLS")
			}
		}
	}
	switch {
	case c.Auth == nil:
	case isNil(c.Auth):
		m.add("Auth", "is a nil %T; leave it out, or use Plain, Scram or OAuthBearer", c.Auth)
	default:
		if _, err := c.Auth.sasl(); err != nil {
			m.add("Auth", "%w", err)
		}
	}
}

// warnInsecure tells the log, once at the start, how TLS and Auth give away what they
// are there for. Both cases are allowed, because a test may want them.
func (c Config) warnInsecure(log *slog.Logger) {
	if t := c.TLS; t != nil && t.InsecureSkipVerify && t.VerifyConnection == nil && t.VerifyPeerCertificate == nil {
		log.Warn("brokers are not verified: anybody on the network can pose as one",
			"hint", "leave out TLS.InsecureSkipVerify, and name the authority that has signed the brokers' certificates (LoadTLS)")
	}
	if c.Auth == nil || c.TLS != nil || c.Dial != nil { // a dial func may encrypt
		return
	}
	if name := c.security().SASL.Name(); name == "PLAIN" || name == "OAUTHBEARER" {
		log.Warn("the password or token is sent unencrypted: anybody on the network can read it", "auth", c.Auth.String(), "hint", "set Config.TLS")
	}
}
