package wire

// Who we are: what a SASL mechanism has to say. How it is said on a connection is
// in network.go, whom we trust in tls.go.

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/xdg-go/scram"
)

// Security says how connections are secured. The zero value is plaintext without
// authentication.
type Security struct {
	// TLS is cloned for each connection; an empty ServerName becomes the host that
	// is dialled. See [Security.ClientTLS].
	TLS  *tls.Config
	SASL Mechanism

	// Above, if it is not empty, is the mechanism in which whoever uses the connection
	// authenticates by itself, in bare tokens before its first request, as sarama does
	// with Kerberos. Here it is only asked for. SASL must be nil then.
	Above string
}

// A Mechanism is a SASL mechanism together with whose credentials it presents. It
// may be started by several goroutines at once.
type Mechanism interface {
	// Name is what SaslHandshake asks for, like "SCRAM-SHA-256".
	Name() string

	// Start begins an exchange for one connection. Credentials that may change are
	// asked for here. It must give up when ctx ends.
	Start(ctx context.Context) (Exchange, error)
}

// An Exchange is one authentication under way.
type Exchange interface {
	// First is the client's first message.
	First() []byte

	// Next answers what the broker said. done reports that nothing more is to be
	// sent; then answer is empty. An error means that the broker must not be trusted,
	// or has refused in the mechanism's own words.
	Next(challenge []byte) (answer []byte, done bool, err error)
}

// Credentials returns a user and a password, as Config.Auth has them.
type Credentials func(ctx context.Context) (user, password string, err error)

// Token returns a bearer token and the extensions that go with it, as Config.Auth
// has them.
type Token func(ctx context.Context) (token string, extensions map[string]string, err error)

// Plain returns SASL/PLAIN (RFC 4616).
func Plain(credentials Credentials) Mechanism {
	ask := credentials.asker()
	return &saslMechanism{"PLAIN", func(ctx context.Context) (Exchange, error) {
		c, err := ask(ctx)
		if err != nil {
			return nil, err
		}
		return plainExchange("\x00" + c.user + "\x00" + c.password), nil
	}}
}

// Scram returns SASL/SCRAM (RFC 5802) with SHA-256 or SHA-512.
func Scram(hash crypto.Hash, credentials Credentials) Mechanism {
	ask := credentials.asker()
	return &saslMechanism{"SCRAM-" + hash.String(), func(ctx context.Context) (Exchange, error) {
		c, err := ask(ctx)
		if err != nil {
			return nil, err
		}
		return newScram(hash, c.user, c.password)
	}}
}

// OAuthBearer returns SASL/OAUTHBEARER (RFC 7628) with Kafka's extensions (KIP-342).
func OAuthBearer(token Token) Mechanism {
	type answer struct {
		token      string
		extensions map[string]string
	}
	ask := asker("token function", func(ctx context.Context) (a answer, err error) {
		a.token, a.extensions, err = token(ctx)
		return a, err
	}, func(a answer) error { return checkToken(a.token, a.extensions) })
	return &saslMechanism{"OAUTHBEARER", func(ctx context.Context) (Exchange, error) {
		a, err := ask(ctx)
		if err != nil {
			return nil, err
		}
		return newBearer(a.token, a.extensions), nil
	}}
}

// A saslMechanism hides in a func whatever is secret: printing, encoding or dumping it
// shows an address.
type saslMechanism struct {
	name  string
	start func(ctx context.Context) (Exchange, error)
}

func (m *saslMechanism) Name() string { return m.name }

func (m *saslMechanism) Start(ctx context.Context) (Exchange, error) { return m.start(ctx) }

// credential is what [Credentials] returned.
type credential struct{ user, password string }

func (f Credentials) asker() func(context.Context) (credential, error) {
	return asker("credentials function", func(ctx context.Context) (c credential, err error) {
		c.user, c.password, err = f(ctx)
		return c, err
	}, func(c credential) error { return CheckCredentials(c.user, c.password) })
}

// CheckCredentials says what no broker could accept. It never quotes the password.
func CheckCredentials(user, password string) error {
	for _, s := range []struct{ name, value string }{{"user", user}, {"password", password}} {
		switch {
		case s.value == "":
			return fmt.Errorf("the %s is empty", s.name)
		case strings.ContainsAny(s.value[len(s.value)-1:], "\r\n"):
			return fmt.Errorf("the %s ends with a line break; cut it off after reading a file", s.name)
		case strings.Contains(s.value, "\x00"):
			return fmt.Errorf("the %s contains a zero byte", s.name)
		case !utf8.ValidString(s.value):
			return fmt.Errorf("the %s is not UTF-8", s.name)
		}
	}
	return nil
}

// atOnce is how many calls of one function of the user may be at work.
const atOnce = 8

// asker returns what calls f, which belongs to the user and may ignore its context:
// the caller waits no longer than its own context, and no more than atOnce calls are
// ever under way, so that one which never returns costs no more than their
// goroutines, however often a connection is tried again.
func asker[T any](what string, f func(context.Context) (T, error), check func(T) error) func(context.Context) (T, error) {
	type result struct {
		value T
		err   error
	}
	free := make(chan struct{}, atOnce)
	return func(ctx context.Context) (T, error) {
		var none T
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return none, fmt.Errorf("the %s is at work for %d other connections and has not returned: %w", what, atOnce, context.Cause(ctx))
		}
		results := make(chan result, 1)
		go func() {
			defer func() { <-free }()
			value, err := f(ctx)
			results <- result{value, err}
		}()
		select {
		case r := <-results:
			if r.err != nil {
				return none, fmt.Errorf("the %s failed: %w", what, r.err)
			}
			if err := check(r.value); err != nil {
				return none, fmt.Errorf("what the %s returned cannot be used: %w", what, err)
			}
			return r.value, nil
		case <-ctx.Done():
			return none, fmt.Errorf("the %s has not returned: %w", what, context.Cause(ctx))
		}
	}
}

// plainExchange is the one message of PLAIN.
type plainExchange string

func (x plainExchange) First() []byte { return []byte(x) }

func (x plainExchange) Next([]byte) ([]byte, bool, error) { return nil, true, nil }

// maxIterations bounds what a broker may make us compute, to about a second. Kafka
// itself stores passwords with 16,384 iterations at most.
const maxIterations = 1 << 20

type scramExchange struct {
	conversation *scram.ClientConversation
	first        []byte
}

// newScram takes user and password as they are: Kafka's brokers do not apply
// SASLprep, so that a password which it would change could never be right.
func newScram(hash crypto.Hash, user, password string) (*scramExchange, error) {
	client, err := scram.HashGeneratorFcn(hash.New).NewClientUnprepped(user, password, "")
	if err != nil {
		return nil, errors.New("begin SCRAM: user or password cannot be used") // err may quote them
	}
	return beginScram(client)
}

func beginScram(client *scram.Client) (*scramExchange, error) {
	conversation := client.NewConversation()
	first, err := conversation.Step("")
	if err != nil {
		return nil, fmt.Errorf("begin SCRAM: %w", err)
	}
	return &scramExchange{conversation, []byte(first)}, nil
}

func (x *scramExchange) First() []byte { return x.first }

func (x *scramExchange) Next(challenge []byte) (answer []byte, done bool, err error) {
	if n := iterations(string(challenge)); n > maxIterations {
		return nil, false, fmt.Errorf("the broker demands %d SCRAM iterations; more than %d are not computed", n, maxIterations)
	}
	said, err := x.conversation.Step(string(challenge))
	switch {
	case err == nil:
		return []byte(said), x.conversation.Done(), nil
	case strings.HasPrefix(string(challenge), "e="):
		return nil, false, fmt.Errorf("the broker refuses: %s", printable(string(challenge[len("e="):])))
	case x.conversation.Done():
		return nil, false, errors.New("the broker could not prove that it knows this user's password: it is not the one it claims to be, and must not be trusted")
	default:
		return nil, false, fmt.Errorf("the broker's SCRAM message cannot be used: %s", printable(err.Error()))
	}
}

// iterations finds the iteration count in a server-first-message; 0 if there is none
// that can be read.
func iterations(message string) int {
	for field := range strings.SplitSeq(message, ",") {
		if digits, ok := strings.CutPrefix(field, "i="); ok {
			n, _ := strconv.Atoi(digits) // too many digits: the greatest int
			return n
		}
	}
	return 0
}

// What RFC 7628 allows in a message.
var (
	tokenText      = regexp.MustCompile(`\A[\x21-\x7e]+\z`)
	extensionKey   = regexp.MustCompile(`\A[A-Za-z]+\z`)
	extensionValue = regexp.MustCompile(`\A[\x21-\x7e \t\r\n]+\z`)
)

// checkToken says what would not arrive as it was meant. It never quotes the token,
// nor the value of an extension.
func checkToken(token string, extensions map[string]string) error {
	switch {
	case token == "":
		return errors.New("the token is empty")
	case !tokenText.MatchString(token):
		return errors.New("the token has white space in it, or what is not ASCII; cut off what surrounds it")
	}
	for _, key := range slices.Sorted(maps.Keys(extensions)) {
		switch {
		case key == "auth":
			return errors.New(`an extension cannot be called "auth"; that is where the token goes`)
		case !extensionKey.MatchString(key):
			return fmt.Errorf("the extension %q is not made of letters A to Z", key)
		case !extensionValue.MatchString(extensions[key]):
			return fmt.Errorf("the value of the extension %q is empty, or has characters that are not printable ASCII", key)
		}
	}
	return nil
}

// bearerRefused is the one thing that a client may say to a refusal.
const bearerRefused = "\x01"

type bearerExchange struct {
	first   []byte
	secret  string
	refused string
}

func newBearer(token string, extensions map[string]string) *bearerExchange {
	const separator = "\x01"
	first := "n,," + separator + "auth=Bearer " + token + separator
	for _, key := range slices.Sorted(maps.Keys(extensions)) {
		first += key + "=" + extensions[key] + separator
	}
	return &bearerExchange{first: []byte(first + separator), secret: token}
}

func (x *bearerExchange) First() []byte { return x.first }

// Next is done when the broker has nothing to say. What it says instead is a JSON
// document about its refusal. It wants an answer before it ends the exchange with an
// error, which repeats that document; for a broker that does not end it, we do.
func (x *bearerExchange) Next(challenge []byte) (answer []byte, done bool, err error) {
	switch {
	case x.refused != "":
		return nil, false, fmt.Errorf("the broker refuses the token: %s", x.refused)
	case len(challenge) == 0:
		return nil, true, nil
	}
	x.refused = printable(strings.ReplaceAll(string(challenge), x.secret, "…"))
	return []byte(bearerRefused), false, nil
}

// printable makes one short line of what a broker says about its refusal.
func printable(s string) string {
	const most = 300
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if runes := []rune(s); len(runes) > most {
		s = string(runes[:most]) + "…"
	}
	return s
}
