package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// failed is a failed dial to b:1: its error says all of want, no secret, and once
// only where it happened.
func failed(t *testing.T, n *Network, err error, fatal bool, want ...string) {
	t.Helper()
	require.Error(t, err)
	var known *ConnectError
	require.ErrorAs(t, err, &known)
	for _, part := range append(want, known.Step+" "+known.Addr+": ") {
		assert.Equal(t, 1, strings.Count(err.Error(), part), "%q in %q", part, err)
	}
	assert.NotContains(t, err.Error(), secret)
	assert.NotContains(t, err.Error(), "\n")
	assert.Equal(t, fatal, IsFatal(err), "fatal: %v", err)
	assert.Zero(t, n.Open(), "left open after %v", err)
}

func TestAuthenticates(t *testing.T) {
	tests := []struct {
		name   string
		broker *fakeBroker
		answer func(n int, key kmsg.Key, correlation int32) ([]byte, bool)
	}{
		{"SaslAuthenticate v1", &fakeBroker{}, nil},
		{"v0 is the newest", &fakeBroker{saslOnly: 2, lifetime: time.Hour}, nil},
		{"a broker that does not say what it serves", &fakeBroker{lifetime: time.Hour}, func(n int, key kmsg.Key, correlation int32) ([]byte, bool) {
			return answerFrame(&kmsg.ApiVersionsResponse{ErrorCode: 35}, correlation), key == kmsg.ApiVersions
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tt.broker.answer = tt.answer
				n := NewNetwork(tt.broker.dial, time.Second, Security{SASL: plainText(secret)})
				defer n.Close()
				c, err := n.Data().Dial("tcp", "b:1")
				require.NoError(t, err)
				assert.IsType(t, &conn{}, c, "without a lifetime nothing counts the frames")
				echo(t, c, 7, "hello")
				assert.Equal(t, []kmsg.Key{kmsg.ApiVersions, kmsg.SASLHandshake, kmsg.SASLAuthenticate, kmsg.Metadata}, tt.broker.asked)
				require.NoError(t, c.Close())
				assert.Zero(t, n.Open())
			})
		})
	}
}

// A mechanism that takes two rounds, over TLS, with answers in pieces.
func TestAuthenticatesInRoundsOverTLS(t *testing.T) {
	ca := newAuthority(t)
	server := &tls.Config{Certificates: []tls.Certificate{ca.sign(t, time.Now().AddDate(1, 0, 0), "127.0.0.1")}}
	broker := &fakeBroker{answer: func(n int, key kmsg.Key, correlation int32) ([]byte, bool) {
		if key != kmsg.SASLAuthenticate {
			return nil, false
		}
		challenge := []byte{'0' + byte(n)}
		return answerFrame(&kmsg.SASLAuthenticateResponse{Version: 1, SASLAuthBytes: challenge, SessionLifetimeMillis: int64(n) * 1000}, correlation), true
	}}
	addr := listen(t, func(c net.Conn) { broker.serve(tls.Server(c, server)) })

	var challenges []string
	n := NewNetwork(nil, 10*time.Second, Security{
		TLS: &tls.Config{RootCAs: ca.pool()},
		SASL: mechanism{next: func(challenge []byte) ([]byte, bool, error) {
			challenges = append(challenges, string(challenge))
			return []byte("again"), len(challenges) == 2, nil
		}},
	})
	defer n.Close()
	c, err := n.Data().Dial("tcp", addr)
	require.NoError(t, err)
	assert.Equal(t, []string{"2", "3"}, challenges)
	require.IsType(t, &renewed{}, c)
	assert.Equal(t, 3*time.Second, c.(*renewed).current.session.lifetime, "of the last answer")
	echo(t, c, 7, "hello")
	require.NoError(t, c.Close())
	assert.Zero(t, n.Open())
}

// What may go wrong between the dial and the first request, with a broker at the
// other end of a pipe.
func TestAuthenticationFails(t *testing.T) {
	// at replaces the n-th answer of the broker; nil hangs up.
	at := func(n int, frame []byte) *fakeBroker {
		return &fakeBroker{answer: func(i int, _ kmsg.Key, _ int32) ([]byte, bool) { return frame, i == n }}
	}
	refusing := func(err error) Mechanism {
		return mechanism{next: func([]byte) ([]byte, bool, error) { return nil, false, err }}
	}
	starting := func(start func(context.Context) (Exchange, error)) Mechanism { return mechanism{start: start} }
	versions := func(pairs ...any) []byte { return answerFrame(served(pairs...), 1) }
	mechanisms := func(code int16, offered ...string) []byte {
		return answerFrame(&kmsg.SASLHandshakeResponse{Version: 1, ErrorCode: code, SupportedMechanisms: offered}, 2)
	}
	said := func(code int16, text string) []byte {
		return answerFrame(&kmsg.SASLAuthenticateResponse{Version: 1, ErrorCode: code, ErrorMessage: &text}, 3)
	}

	tests := []struct {
		name   string
		broker *fakeBroker
		sasl   Mechanism // nil: PLAIN with the right password
		fatal  bool
		want   []string
	}{
		{"wrong password", &fakeBroker{wrong: "x"}, nil, true, []string{"authenticate to b:1: it refuses PLAIN: Authentication failed: Invalid username or password (SASL_AUTHENTICATION_FAILED, code 58)", "are the credentials right"}},
		{"refused without a reason", at(2, answerFrame(&kmsg.SASLAuthenticateResponse{Version: 1, ErrorCode: 58}, 3)), nil, true, []string{"SASL_AUTHENTICATION_FAILED, code 58"}},
		{"another error", at(2, said(-1, "oops")), nil, false, []string{"oops (error, code -1)"}},
		{"a broker that talks", at(2, said(58, "a\nb"+strings.Repeat("é", 1000))), nil, true, []string{"a b"}},
		{"unknown mechanism", at(1, mechanisms(33, "GSSAPI", "SCRAM-SHA-256")), nil, true, []string{"SASL handshake with b:1: it does not offer PLAIN, only GSSAPI, SCRAM-SHA-256", "sasl.enabled.mechanisms"}},
		{"unknown mechanism, none named", at(1, mechanisms(33)), nil, true, []string{"only others"}},
		{"no SASL listener", at(1, mechanisms(34)), nil, true, []string{"it does not authenticate with SASL", "is this the port of a SASL listener?"}},
		{"another error of the handshake", at(1, mechanisms(-1)), nil, false, []string{"it refuses PLAIN: error, code -1"}},
		{"too old", at(0, versions(kmsg.SASLHandshake, 0)), nil, true, []string{"does not serve SaslHandshake v1 and SaslAuthenticate"}},
		{"too old for SaslAuthenticate", at(0, versions(kmsg.SASLHandshake, 1)), nil, true, []string{"does not serve SaslHandshake v1 and SaslAuthenticate"}},

		{"hangs up at once", at(0, nil), nil, false, []string{"first answer of b:1: EOF", "does this listener expect TLS?"}},
		{"hangs up in the handshake", at(1, nil), nil, false, []string{"SASL handshake with b:1: EOF", "its log says why"}},
		{"hangs up while authenticating", at(2, nil), nil, false, []string{"authenticate to b:1: EOF", "its log says why"}},
		{"hangs up within a frame", at(2, said(0, "")[:6]), nil, false, []string{"authenticate to b:1: unexpected EOF"}},

		{"speaks HTTP", at(0, []byte("HTTP/1.1 400 Bad Request\r\n\r\n")), nil, true, []string{"first answer of b:1: it speaks HTTP", "is this the port of a Kafka listener?"}},
		{"expects TLS", at(0, []byte{0x15, 3, 3, 0, 2, 2, 80}), nil, true, []string{"first answer of b:1: a TLS alert", "expects TLS"}},
		{"an absurd size at first", at(0, []byte{0x7f, 0xff, 0xff, 0xff, 0}), nil, true, []string{"announces 2147483647 bytes"}},
		{"a negative size at first", at(0, []byte{0xff, 0xff, 0xff, 0xff, 0}), nil, true, []string{"announces -1 bytes"}},
		{"an absurd size", at(1, []byte{0, 1, 0, 1, 0, 0, 0, 2}), nil, true, []string{"SASL handshake with b:1: it announces 65537 bytes"}},
		{"a size of nothing", at(2, []byte{0, 0, 0, 3, 0, 0, 0}), nil, true, []string{"announces 3 bytes"}},
		{"a negative size", at(2, []byte{0x80, 0, 0, 0, 0}), nil, true, []string{"announces -2147483648 bytes"}},
		{"another request's answer", at(1, answerFrame(&kmsg.SASLHandshakeResponse{Version: 1}, 9)), nil, true, []string{"it answers request 9 instead of 2"}},
		{"nonsense", at(1, frame(2, []byte{0, 0, 0x7f, 0xff, 0xff, 0xff})), nil, true, []string{"an answer that cannot be read"}},

		{"a mechanism that cannot start", &fakeBroker{}, starting(func(context.Context) (Exchange, error) { return nil, errors.New("token endpoint: 503") }), true,
			[]string{"authenticate to b:1: PLAIN: get the credentials: token endpoint: 503"}},
		{"a mechanism that starts nothing", &fakeBroker{}, starting(func(context.Context) (Exchange, error) { return nil, nil }), true,
			[]string{"authenticate to b:1: PLAIN: the mechanism has started no exchange"}},
		{"a mechanism whose own call times out", &fakeBroker{}, starting(func(context.Context) (Exchange, error) { return nil, context.DeadlineExceeded }), false,
			[]string{"get the credentials: context deadline exceeded", "who is slow"}},
		{"a mechanism that does not trust the broker", &fakeBroker{}, refusing(errors.New("wrong server signature")), true,
			[]string{"authenticate to b:1: PLAIN: wrong server signature"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if tt.sasl == nil {
					tt.sasl = plainText(secret)
				}
				n := NewNetwork(tt.broker.dial, time.Minute, Security{SASL: tt.sasl})
				start := time.Now()
				_, err := n.Data().Dial("tcp", "b:1")
				failed(t, n, err, tt.fatal, tt.want...)
				assert.LessOrEqual(t, len(err.Error()), 500)
				assert.Equal(t, start, time.Now(), "nothing waited for")
			})
		})
	}
}

// Whatever does not end ends with the timeout, and says which step it was. What
// ignores its context is let go of, and leaves nothing behind when it does end.
func TestSilence(t *testing.T) {
	// silentFrom is a broker that takes its n-th request and never answers.
	silentFrom := func(n int) *fakeBroker {
		return &fakeBroker{answer: func(i int, _ kmsg.Key, _ int32) ([]byte, bool) {
			if i == n {
				time.Sleep(time.Hour)
			}
			return nil, i == n
		}}
	}
	// slow is a mechanism that needs an hour.
	slow := func(heedful bool) Mechanism {
		return mechanism{start: func(ctx context.Context) (Exchange, error) {
			if heedful {
				<-ctx.Done()
				return nil, errors.New("gave up")
			}
			time.Sleep(time.Hour)
			return plainText(secret), nil
		}}
	}
	plain := Security{SASL: plainText(secret)}
	tests := []struct {
		name     string
		broker   *fakeBroker
		security Security
		want     []string
	}{
		{"in TLS", silentFrom(0), Security{TLS: &tls.Config{}}, []string{"TLS handshake with b:1: ", "does it speak TLS?"}},
		{"when asked what it serves", silentFrom(0), plain, []string{"SASL handshake with b:1: ", "is it a Kafka listener, and one without TLS?"}},
		{"when asked for the mechanism", silentFrom(1), plain, []string{"SASL handshake with b:1: "}},
		{"when authenticating", silentFrom(2), plain, []string{"authenticate to b:1: ", "who is slow"}},
		{"a broker that never has enough", &fakeBroker{answer: func(_ int, key kmsg.Key, correlation int32) ([]byte, bool) {
			time.Sleep(time.Second)
			return answerFrame(&kmsg.SASLAuthenticateResponse{Version: 1}, correlation), key == kmsg.SASLAuthenticate
		}}, Security{SASL: mechanism{next: func([]byte) ([]byte, bool, error) { return []byte("go on"), false, nil }}}, []string{"authenticate to b:1: "}},
		{"a mechanism that heeds its context", &fakeBroker{}, Security{SASL: slow(true)}, []string{"authenticate to b:1: ", "who is slow"}},
		{"a mechanism that ignores it", &fakeBroker{}, Security{SASL: slow(false)}, []string{"authenticate to b:1: "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := NewNetwork(tt.broker.dial, 10*time.Second, tt.security)
				start := time.Now()
				_, err := n.Data().Dial("tcp", "b:1")
				require.ErrorIs(t, err, context.DeadlineExceeded)
				assert.Equal(t, 10*time.Second, time.Since(start))
				synctest.Wait()
				failed(t, n, err, false, tt.want...)
				time.Sleep(2 * time.Hour) // what was let go of ends
			})
			synctest.Test(t, func(t *testing.T) {
				n := NewNetwork(tt.broker.dial, 10*time.Hour, tt.security)
				time.AfterFunc(3*time.Second, n.Close)
				start := time.Now()
				_, err := n.Data().Dial("tcp", "b:1")
				require.ErrorIs(t, err, net.ErrClosed)
				assert.Equal(t, 3*time.Second, time.Since(start), "cut by Close")
				synctest.Wait()
				failed(t, n, err, false)
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

// Dial funcs and mechanisms that never let go do not pile up.
func TestAttemptsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stuck atomic.Int64
		release := make(chan struct{})
		n := NewNetwork(func(context.Context, string, string) (net.Conn, error) {
			stuck.Add(1)
			<-release
			return nil, errors.New("late")
		}, time.Second, Security{})
		for range maxAttempts {
			_, err := n.Data().Dial("tcp", "b:1")
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
		start := time.Now()
		_, err := n.Data().Dial("tcp", "b:1")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "dial b:1: 100 attempts before it do not end")
		assert.Equal(t, time.Second, time.Since(start))
		assert.EqualValues(t, maxAttempts, stuck.Load())

		close(release)
		synctest.Wait()
		_, err = n.Data().Dial("tcp", "b:1")
		require.ErrorContains(t, err, "late")
	})
}

// Certificates, with crypto/tls at both ends of a real connection.
func TestTLS(t *testing.T) {
	const here = "127.0.0.1"
	ca, other := newAuthority(t), newAuthority(t)
	later, past := time.Now().AddDate(1, 0, 0), time.Now().Add(-time.Hour)
	good := ca.sign(t, later, here)
	server := func(cert tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{cert}} }
	// wants is a broker that wants a client certificate of ca.
	wants := func(version uint16) *tls.Config {
		cfg := server(good)
		cfg.ClientAuth, cfg.ClientCAs, cfg.MaxVersion = tls.RequireAndVerifyClientCert, ca.pool(), version
		return cfg
	}
	trusting := &tls.Config{RootCAs: ca.pool()}
	with := func(cert tls.Certificate) *tls.Config {
		// Even a certificate that the broker has not asked for is presented.
		return &tls.Config{RootCAs: ca.pool(), GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}
	}
	old := server(good)
	old.MaxVersion = tls.VersionTLS11

	tests := []struct {
		name   string
		server *tls.Config
		client *tls.Config
		want   []string // none: it works
	}{
		{"trusted", server(good), trusting, nil},
		{"by another name, which is expected", server(ca.sign(t, later, "broker.example")), &tls.Config{RootCAs: ca.pool(), ServerName: "broker.example"}, nil},
		{"client certificate", wants(tls.VersionTLS13), with(ca.sign(t, later)), nil},
		{"CA that did not sign the broker", server(other.sign(t, later, here)), trusting, []string{"TLS handshake with", "unknown authority", "RootCAs"}},
		{"for another host", server(ca.sign(t, later, "broker.example")), trusting, []string{"TLS handshake with", "cannot validate certificate", "advertised.listeners"}},
		{"expired", server(ca.sign(t, past, here)), trusting, []string{"TLS handshake with", "expired", "clock"}},
		{"no version in common", old, trusting, []string{"TLS handshake with"}},
		{"no client certificate", wants(tls.VersionTLS13), trusting, []string{"first answer of", "certificate required", "set Certificates in Config.TLS"}},
		{"no client certificate, TLS 1.2", wants(tls.VersionTLS12), trusting, []string{"TLS handshake with", "requires a client certificate"}},
		{"client certificate of another CA", wants(tls.VersionTLS13), with(other.sign(t, later)), []string{"first answer of", "or refuses this one"}},
		{"client certificate of another CA, TLS 1.2", wants(tls.VersionTLS12), with(other.sign(t, later)), []string{"TLS handshake with", "or refuses this one"}},
		{"expired client certificate", wants(tls.VersionTLS13), with(ca.sign(t, past)), []string{"first answer of", "or refuses this one"}},
		{"client certificate that cannot be had", wants(tls.VersionTLS13), &tls.Config{RootCAs: ca.pool(), GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return nil, errors.New("read client.pem: permission denied")
		}}, []string{"TLS handshake with", "read client.pem"}},
	}
	for _, tt := range tests {
		for _, sasl := range []Mechanism{nil, plainText(secret)} {
			name := tt.name
			if sasl != nil {
				name += ", then SASL"
			}
			t.Run(name, func(t *testing.T) {
				broker := &fakeBroker{}
				addr := listen(t, func(c net.Conn) { broker.serve(tls.Server(c, tt.server)) })
				n := NewNetwork(nil, 10*time.Second, Security{TLS: tt.client, SASL: sasl})
				defer n.Close()
				err := roundTrip(n, addr)
				if tt.want == nil {
					require.NoError(t, err)
					return
				}
				failed(t, n, err, true, tt.want...)
				assert.Empty(t, broker.asked)
			})
		}
		assert.Equal(t, "", trusting.ServerName, "the config is the user's")
	}
}

// roundTrip connects and asks one request, as the first thing that the root package
// does. It leaves nothing open.
func roundTrip(n *Network, addr string) error {
	c, err := n.Data().Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write(echoRequest(1, "hello")); err != nil {
		return err
	}
	_, err = readAnswer(c)
	return err
}

// A client that speaks TLS to a port that does not, and the reverse.
func TestWrongPort(t *testing.T) {
	ca := newAuthority(t)
	cert := &tls.Config{Certificates: []tls.Certificate{ca.sign(t, time.Now().AddDate(1, 0, 0), "127.0.0.1")}}
	client := &tls.Config{RootCAs: ca.pool()}
	says := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1))
			_, _ = io.WriteString(c, text)
			_, _ = io.Copy(io.Discard, c)
		}
	}
	hangUp := func(c net.Conn) { _, _ = c.Read(make([]byte, 4096)) }
	// What Java says to a client that does not speak TLS, before it hangs up.
	speakTLS := func(c net.Conn) { hangUp(c); _, _ = c.Write([]byte{0x15, 3, 3, 0, 2, 2, 80}) }
	// What Kafka before 3.0 does with a client certificate that it refuses.
	garble := func(c net.Conn) {
		_ = tls.Server(c, cert).HandshakeContext(t.Context())
		_, _ = c.Write(append([]byte{0x17, 3, 3, 0, 32}, make([]byte, 32)...))
		hangUp(c)
	}
	const http = "HTTP/1.1 400 Bad Request\r\n\r\n"

	tests := []struct {
		name     string
		server   func(net.Conn)
		security Security
		fatal    bool
		want     []string
	}{
		{"TLS to Kafka's plaintext", hangUp, Security{TLS: client}, false, []string{"TLS handshake with", "is this a plaintext listener?"}},
		{"TLS to some plaintext", says("220 mail.example ESMTP\r\n"), Security{TLS: client}, true, []string{"TLS handshake with", "does not look like a TLS handshake", "does not speak TLS"}},
		{"TLS to HTTP", says(http), Security{TLS: client}, true, []string{"TLS handshake with", "it speaks HTTP"}},
		{"an old Kafka that wants a client certificate", garble, Security{TLS: client}, true, []string{"first answer of", "bad record MAC", "brokers before Kafka 3"}},
		{"plaintext to TLS", speakTLS, Security{}, true, []string{"first answer of", "this listener expects TLS"}},
		{"SASL to TLS", speakTLS, Security{SASL: plainText(secret)}, true, []string{"first answer of", "this listener expects TLS"}},
		{"plaintext to TLS that says nothing", hangUp, Security{}, false, []string{"first answer of", "does this listener expect TLS?"}},
		{"plaintext to HTTP", says(http), Security{}, true, []string{"first answer of", "it speaks HTTP"}},
		{"SASL to HTTP", says(http), Security{SASL: plainText(secret)}, true, []string{"first answer of", "it speaks HTTP"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := listen(t, tt.server)
			n := NewNetwork(nil, 10*time.Second, tt.security)
			defer n.Close()
			failed(t, n, roundTrip(n, addr), tt.fatal, tt.want...)
		})
	}
}

// The first answer is looked at in whatever pieces it comes, reaches the reader
// unchanged, and later ones are not looked at.
func TestFirstAnswer(t *testing.T) {
	tests := []struct {
		name string
		in   []byte
		want string // in the error; empty: what came in
	}{
		{"Kafka", frame(1, []byte("hello")), ""},
		{"a large answer", []byte{0x06, 0x40, 0, 0, 0, 0, 0, 1}, ""},
		{"the shortest", frame(1, nil), ""},
		{"later bytes", append(frame(1, []byte("hello")), "HTTP/1.1"...), ""},
		{"TLS alert", []byte{0x15, 3, 1, 0, 2, 2, 40}, "a TLS alert"},
		{"HTTP", []byte("HTTP/1.0 400"), "speaks HTTP"},
		{"negative", []byte{0xff, 0, 0, 0, 1}, "announces -16777216 bytes"},
		{"too short", []byte{0, 0, 0, 3, 1}, "announces 3 bytes"},
		{"nothing", nil, "does this listener expect TLS?"},
	}
	for _, tt := range tests {
		for _, cuts := range [][]byte{nil, {0}, {2, 0}} {
			s := &script{in: tt.in, cuts: cuts}
			n := NewNetwork(func(context.Context, string, string) (net.Conn, error) { return s, nil }, time.Minute, Security{})
			c, err := n.Data().Dial("tcp", "b:1")
			require.NoError(t, err)
			got, err := io.ReadAll(c)
			if tt.want == "" {
				require.NoError(t, err, tt.name)
				assert.Equal(t, string(tt.in), string(got), tt.name)
				continue
			}
			require.ErrorContains(t, err, "first answer of b:1: ", tt.name)
			require.ErrorContains(t, err, tt.want, tt.name)
			assert.Less(t, len(got), 4, "%s: nothing that could be taken for a frame", tt.name)
			assert.Equal(t, tt.in != nil, IsFatal(err), tt.name)
		}
	}
}

// A port that accepts and stays silent shows at the first answer; a broker that does
// so later is no question of the port.
func TestSilentPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{answer: func(n int, _ kmsg.Key, _ int32) ([]byte, bool) {
			if n == 1 {
				time.Sleep(time.Hour)
			}
			return nil, n == 1
		}}
		n := NewNetwork(broker.dial, time.Minute, Security{})
		defer n.Close()
		silent, err := n.Data().Dial("tcp", "b:1")
		require.NoError(t, err)
		require.NoError(t, silent.SetReadDeadline(time.Now().Add(time.Second)))
		_, err = silent.Read(make([]byte, 8))
		require.ErrorContains(t, err, "first answer of b:1: ")
		require.ErrorContains(t, err, "is it a Kafka listener, and one without TLS?")
		var timeout net.Error
		require.ErrorAs(t, err, &timeout)
		assert.True(t, timeout.Timeout())
		assert.False(t, IsFatal(err))

		require.NoError(t, silent.SetReadDeadline(time.Time{}))
		echo(t, silent, 1, "late, but there")
		require.NoError(t, silent.SetReadDeadline(time.Now().Add(time.Second)))
		_, err = silent.Write(echoRequest(2, "hello"))
		require.NoError(t, err)
		_, err = silent.Read(make([]byte, 8))
		assert.NotContains(t, err.Error(), "first answer")
		time.Sleep(2 * time.Hour)
	})
}

// IsFatal finds what a person must mend wherever it is in a tree of errors.
func TestIsFatal(t *testing.T) {
	unreachable := failure(stepDial, "b:1", false, io.EOF)
	wrong := failure(stepAuth, "b:2", false, refusal("", "wrong password"))
	assert.False(t, IsFatal(nil))
	assert.False(t, IsFatal(errors.New("x")))
	assert.False(t, IsFatal(unreachable))
	assert.True(t, IsFatal(errors.Join(unreachable, wrong)))
}

// Close does not wait until a broker that hangs has taken TLS's goodbye.
func TestCloseCutsTLS(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.sign(t, time.Now().AddDate(1, 0, 0), "b")
	synctest.Test(t, func(t *testing.T) {
		server := &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true}
		n := NewNetwork(func(ctx context.Context, _, _ string) (net.Conn, error) {
			near, far := net.Pipe()
			go func() { _ = tls.Server(far, server).HandshakeContext(context.WithoutCancel(ctx)) }() // and then nothing
			return near, nil
		}, time.Minute, Security{TLS: &tls.Config{RootCAs: ca.pool(), Time: func() time.Time { return time.Unix(1e9, 0) }}})
		var conns []net.Conn
		for range 3 {
			c, err := n.Data().Dial("tcp", "b:1")
			require.NoError(t, err)
			conns = append(conns, c)
		}
		go func() { _ = conns[0].Close() }() // it waits
		synctest.Wait()
		start := time.Now()
		n.Close()
		assert.Equal(t, start, time.Now(), "Close takes no time")
		assert.Zero(t, n.Open())
		require.NoError(t, conns[1].Close())
		_, err := conns[2].Read(make([]byte, 1))
		require.ErrorIs(t, err, io.ErrClosedPipe)
	})
}
