//go:build kafka

package kafka

// A client that is not ours connects in every way that a secured cluster offers.

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/kgroup-go/kgroup/e2e/certs"
)

// securedVersions is one of each kind in the full run: KRaft, the first long-lived
// release with it, ZooKeeper, and what came before half of what is tested here.
func securedVersions() []string {
	if os.Getenv("KGROUP_FULL") == "" {
		return []string{"4.4.0"}
	}
	return []string{"4.4.0", "3.9.1", "2.8.2", "1.1.1"}
}

func TestSecurity(t *testing.T) {
	for _, version := range securedVersions() {
		t.Run(version, func(t *testing.T) {
			ctx := deadline(t, 3*time.Minute)
			security := &Security{Users: map[string]string{"alice": "alice-secret", "bob": "bob-secret"}, Reauth: 5 * time.Second}
			if releases[version].early {
				security.Reauth = 0
			}
			s := &secured{ctx, startCluster(t, ctx, Options{Version: version, Security: security})}
			t.Run("tls", s.testTLS)
			t.Run("sasl", s.testSASL)
			t.Run("principals", s.testPrincipals)
			if !releases[version].early {
				t.Run("users come and go", s.testUsers)
				t.Run("session lifetime", s.testLifetime)
			}
			t.Run("certificate replaced", s.testCertificateReplaced)
			require.NoError(t, s.c.Stop())
		})
	}
}

type secured struct {
	ctx context.Context
	c   *Cluster
}

// mechanisms are all those that the version has, as one user.
func (s *secured) mechanisms(user, password string) []sasl.Mechanism {
	all := []sasl.Mechanism{
		plain.Auth{User: user, Pass: password}.AsMechanism(),
		scram.Auth{User: user, Pass: password}.AsSha256Mechanism(),
		scram.Auth{User: user, Pass: password}.AsSha512Mechanism(),
	}
	if !s.c.rel.early {
		all = append(all, oauth.Auth{Token: UnsecuredToken(user, time.Minute)}.AsMechanism())
	}
	return all
}

func (s *secured) listeners() map[string][]kgo.Opt {
	tls := kgo.DialTLSConfig(&tls.Config{RootCAs: s.c.CA().Pool()})
	all := map[string][]kgo.Opt{SASLPlaintext: nil, SASLSSL: {tls}}
	if s.c.opts.Security.Reauth > 0 {
		all[Reauth] = []kgo.Opt{tls}
	}
	return all
}

// ask connects, once, and says how it went.
func (s *secured) ask(t *testing.T, listener string, opts ...kgo.Opt) error {
	t.Helper()
	a, err := NewAdmin(s.c.ListenerAddrs(listener), append(opts, kgo.RequestRetries(0))...)
	require.NoError(t, err)
	defer a.Close()
	_, err = a.Coordinator(s.ctx, "team")
	return err
}

func (s *secured) client(t *testing.T, name string) tls.Certificate {
	t.Helper()
	cert, err := s.c.CA().Issue(certs.Template{Name: name})
	require.NoError(t, err)
	return cert.TLS()
}

func (s *secured) testTLS(t *testing.T) {
	pool := s.c.CA().Pool()
	stranger, err := certs.NewAuthority("e2e")
	require.NoError(t, err)
	unsigned, err := stranger.Issue(certs.Template{Name: "billing"})
	require.NoError(t, err)
	// In which words a broker refuses a client depends on its version: up to 2.8 they
	// arrive so that they cannot be read ("bad record MAC", "unexpected message").
	const refused = "tls: "
	for _, test := range []struct {
		name, listener string
		config         *tls.Config
		want           string // of the error
	}{
		{"no client certificate asked for", SSL, &tls.Config{RootCAs: pool}, ""},
		{"client certificate", MTLS, &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{s.client(t, "billing")}}, ""},
		{"no client certificate", MTLS, &tls.Config{RootCAs: pool}, refused},
		{"client certificate of another authority", MTLS, &tls.Config{RootCAs: pool,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				cert := unsigned.TLS() // whatever the broker says that it accepts
				return &cert, nil
			}}, refused},
		{"broker of another authority", SSL, &tls.Config{RootCAs: stranger.Pool()}, "x509: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := s.ask(t, test.listener, kgo.DialTLSConfig(test.config))
			if test.want == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, test.want)
			}
		})
	}
}

func (s *secured) testSASL(t *testing.T) {
	for listener, opts := range s.listeners() {
		for _, m := range s.mechanisms("alice", "alice-secret") {
			t.Run(listener+" "+m.Name(), func(t *testing.T) {
				require.NoError(t, s.ask(t, listener, append(opts, kgo.SASL(m))...))
			})
		}
		for _, m := range s.mechanisms("alice", "wrong") {
			if m.Name() == "OAUTHBEARER" {
				m = oauth.Auth{Token: UnsecuredToken("alice", -time.Hour)}.AsMechanism()
			}
			t.Run(listener+" "+m.Name()+" refused", func(t *testing.T) {
				err := s.ask(t, listener, append(opts, kgo.SASL(m))...)
				require.Error(t, err)
				if m.Name() != "OAUTHBEARER" { // says it in its own words
					require.ErrorIs(t, err, kerr.SaslAuthenticationFailed)
				}
			})
		}
	}
}

// A topic and a group are read by none but whom they are restricted to: this is how a
// scenario proves who a client was.
func (s *secured) testPrincipals(t *testing.T) {
	super := admin(t, s.c)
	require.NoError(t, super.CreateTopic(s.ctx, "restricted", 1, 1, nil))
	require.NoError(t, super.Produce(s.ctx, kgo.NoCompression(), record("restricted")))
	certificate := kgo.DialTLSConfig(&tls.Config{RootCAs: s.c.CA().Pool(), Certificates: []tls.Certificate{s.client(t, "billing")}})

	// read is how a client fares that consumes in a group.
	read := func(listener string, opts ...kgo.Opt) error {
		ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
		defer cancel()
		cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(s.c.ListenerAddrs(listener)...), kgo.DisableAutoCommit(),
			kgo.ConsumerGroup("restricted"), kgo.ConsumeTopics("restricted"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
		require.NoError(t, err)
		defer cl.Close()
		return cl.PollFetches(ctx).Err()
	}
	everybody := map[string]func() error{
		"User:ANONYMOUS":  func() error { return read(plaintext) }, // first, or the super user would wait for nobody's sake
		"User:CN=billing": func() error { return read(MTLS, certificate) },
	}
	for _, m := range s.mechanisms("alice", "alice-secret") {
		everybody["User:alice "+m.Name()] = func() error { return read(SASLPlaintext, kgo.SASL(m)) }
	}
	for _, m := range s.mechanisms("bob", "bob-secret") {
		everybody["User:bob "+m.Name()] = func() error { return read(SASLPlaintext, kgo.SASL(m)) }
	}
	expect := func(want error, who ...string) {
		t.Helper()
		for _, name := range who {
			if read := everybody[name]; read != nil {
				require.ErrorIs(t, read(), want, name)
			}
		}
	}
	alice := []string{"User:alice PLAIN", "User:alice SCRAM-SHA-256", "User:alice SCRAM-SHA-512", "User:alice OAUTHBEARER"}
	bob := []string{"User:bob PLAIN"}

	require.NoError(t, super.RestrictTopic(s.ctx, "restricted", "User:alice"))
	expect(nil, append(alice, anonymous)...)
	expect(kerr.TopicAuthorizationFailed, append(bob, "User:CN=billing")...)

	require.NoError(t, super.RestrictTopic(s.ctx, "restricted", "User:CN=billing", "User:bob"))
	expect(nil, append(bob, "User:CN=billing")...)
	expect(kerr.TopicAuthorizationFailed, alice[0])

	require.NoError(t, super.RestrictTopic(s.ctx, "restricted"))
	expect(nil, alice[0], bob[0], "User:CN=billing")

	require.NoError(t, super.RestrictWriters(s.ctx, "restricted", "User:bob"))
	expect(kerr.TopicAuthorizationFailed, alice[0], "User:CN=billing") // nor may they read
	require.NoError(t, super.RestrictWriters(s.ctx, "restricted"))
	expect(nil, alice[0], bob[0])

	require.NoError(t, super.RestrictGroup(s.ctx, "restricted", "User:bob"))
	expect(nil, bob...)
	expect(kerr.GroupAuthorizationFailed, alice[0])
	require.NoError(t, super.RestrictGroup(s.ctx, "restricted"))
	expect(nil, alice[0])
}

func (s *secured) testCertificateReplaced(t *testing.T) {
	n := s.c.Node(1)
	other, err := s.c.CA().Issue(certs.Template{Name: "elsewhere", Hosts: []string{"broker.test"}})
	require.NoError(t, err)
	require.NoError(t, n.SetCertificate(other))
	require.NoError(t, n.Terminate())
	require.NoError(t, n.Start(s.ctx))
	require.ErrorContains(t, s.ask(t, SSL, kgo.DialTLSConfig(&tls.Config{RootCAs: s.c.CA().Pool()})), "x509: ")
	require.NoError(t, s.ask(t, SSL, kgo.DialTLSConfig(&tls.Config{RootCAs: s.c.CA().Pool(), ServerName: "broker.test"})))
}

func (s *secured) testUsers(t *testing.T) {
	try := func(password string) error {
		for _, m := range s.mechanisms("carol", password)[1:3] {
			if err := s.ask(t, SASLPlaintext, kgo.SASL(m)); err != nil {
				return err
			}
		}
		return nil
	}
	require.ErrorIs(t, try("first"), kerr.SaslAuthenticationFailed)
	require.NoError(t, s.c.SetPassword(s.ctx, "carol", "first"))
	require.NoError(t, try("first"))
	require.NoError(t, s.c.SetPassword(s.ctx, "carol", "second"))
	require.ErrorIs(t, try("first"), kerr.SaslAuthenticationFailed)
	require.NoError(t, try("second"))
	require.NoError(t, s.c.RemoveUser(s.ctx, "carol"))
	require.ErrorIs(t, try("second"), kerr.SaslAuthenticationFailed)
}

// Only one listener ends sessions.
func (s *secured) testLifetime(t *testing.T) {
	config := &tls.Config{RootCAs: s.c.CA().Pool()}
	secure, err := (&tls.Dialer{Config: config}).DialContext(s.ctx, "tcp", s.c.ListenerAddrs(Reauth)[0])
	require.NoError(t, err)
	defer secure.Close()
	assert.Equal(t, s.c.opts.Security.Reauth, lifetime(t, secure))

	unsecured, err := net.Dial("tcp", s.c.ListenerAddrs(SASLPlaintext)[0])
	require.NoError(t, err)
	defer unsecured.Close()
	assert.Zero(t, lifetime(t, unsecured))
}

// lifetime is how long a session of alice lasts that begins now.
func lifetime(t *testing.T, c net.Conn) time.Duration {
	t.Helper()
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Version, handshake.Mechanism = 1, "PLAIN"
	require.Zero(t, ask(t, c, handshake).(*kmsg.SASLHandshakeResponse).ErrorCode)
	authenticate := kmsg.NewPtrSASLAuthenticateRequest()
	authenticate.Version, authenticate.SASLAuthBytes = 1, []byte("\x00alice\x00alice-secret")
	answer := ask(t, c, authenticate).(*kmsg.SASLAuthenticateResponse)
	require.Zero(t, answer.ErrorCode)
	return time.Duration(answer.SessionLifetimeMillis) * time.Millisecond
}

func ask(t *testing.T, c net.Conn, req kmsg.Request) kmsg.Response {
	t.Helper()
	_, err := c.Write(kmsg.NewRequestFormatter().AppendRequest(nil, req, 1))
	require.NoError(t, err)
	head := make([]byte, 8) // size, correlation id
	_, err = io.ReadFull(c, head)
	require.NoError(t, err)
	body := make([]byte, binary.BigEndian.Uint32(head)-4)
	_, err = io.ReadFull(c, body)
	require.NoError(t, err)
	answer := req.ResponseKind()
	answer.SetVersion(req.GetVersion())
	require.NoError(t, answer.ReadFrom(body))
	return answer
}
