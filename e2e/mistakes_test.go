package e2e

// Mistakes in what a consumer is told about its connections, and servers that are no
// brokers: each ends Run at its start, soon, with an error that says what is wrong and
// what to look at. Those whose error is in a broker's own words are a scenario of
// scenario_security_test.go; what happens after a good start is in
// scenario_connections_test.go.

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/e2e/certs"
	"github.com/kgroup-go/kgroup/e2e/faults"
	"github.com/kgroup-go/kgroup/kgrouptest"
)

const (
	connecting = 2 * time.Second  // ConnectTimeout
	answering  = 10 * time.Second // how long an answer is waited for
)

// A mistake is one that a person makes who sets up a consumer.
type mistake struct {
	name   string
	make   func(*kgroup.Config)
	want   string        // of the error, a regular expression
	within time.Duration // zero: an attempt to connect
}

// check runs a consumer with the mistake.
func (m mistake) check(t *testing.T, cfg kgroup.Config) {
	t.Helper()
	var log buffer
	cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg.ConnectTimeout = connecting
	m.make(&cfg)
	c, err := kgroup.New(cfg)
	require.NoError(t, err)
	limit := max(m.within, connecting) + slack
	ctx, cancel := context.WithTimeout(t.Context(), limit+answering)
	defer cancel()
	began := time.Now()
	err = c.Run(ctx)
	took := time.Since(began)
	t.Logf("after %v: %v", took.Round(time.Millisecond), err)
	require.Error(t, err)
	assert.Regexp(t, "(?i)"+m.want, err.Error())
	assert.Less(t, took, limit)
	for _, text := range []string{fmt.Sprintf("%v %+v %#v", err, err, err), log.String(), fmt.Sprintf("%v %+v %#v", cfg.Auth, cfg.Auth, cfg.Auth)} {
		assert.NotRegexp(t, secrets, text)
	}
}

// secrets is what every password has in it, and every token.
var secrets = regexp.MustCompile(`-secret|eyJ`)

// A buffer may be written to by many.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestMistakes(t *testing.T) {
	topic := kgrouptest.Topic{Name: "orders"}
	plain := brokerWith(t, kgrouptest.Config{Topics: []kgrouptest.Topic{topic}})
	login := brokerWith(t, kgrouptest.Config{
		Topics: []kgrouptest.Topic{topic},
		Users:  []kgrouptest.User{{Name: saslUser, Password: saslPassword}, {Name: saslUser, Password: saslPassword, Mechanism: "SCRAM-SHA-512"}},
	})
	old := brokerWith(t, kgrouptest.Config{Options: []kfake.Opt{kfake.MaxVersions(kversion.V0_10_2())}})
	ours, theirs := authority(t), authority(t)
	trusted := &tls.Config{RootCAs: ours.Pool()}

	// to is where the consumer connects.
	to := func(h faults.Handler, more ...func(*kgroup.Config)) func(*kgroup.Config) {
		return func(c *kgroup.Config) {
			s, err := faults.Serve(h)
			require.NoError(t, err)
			t.Cleanup(s.Close)
			c.Brokers, c.Dial = []string{s.Addr()}, s.Dial
			for _, f := range more {
				f(c)
			}
		}
	}
	secure := func(c *kgroup.Config) { c.TLS = trusted }
	as := func(auth kgroup.Auth) func(*kgroup.Config) { return func(c *kgroup.Config) { c.Auth = auth } }
	byPassword := as(kgroup.Plain(saslUser, saslPassword))
	token := func(f func(ctx context.Context) (string, error)) func(*kgroup.Config) {
		return as(kgroup.OAuthBearer(func(ctx context.Context) (string, map[string]string, error) {
			token, err := f(ctx)
			return token, nil, err
		}))
	}
	// bearer is a broker that knows any mechanism. It does not come to know more.
	agreed := kmsg.NewPtrSASLHandshakeResponse()
	agreed.Version = 1
	bearer := faults.Until(login, kmsg.SASLHandshake, faults.Answer(agreed, faults.Silent))
	presents := func(ca *certs.Authority, tmpl certs.Template) faults.Handler {
		return faults.TLS(server(issue(t, ca, tmpl)), faults.Relay(plain))
	}

	mistakes := []mistake{
		{"unknown mechanism", to(faults.Relay(login), token(func(context.Context) (string, error) { return "a-secret", nil })), "OAUTHBEARER.*SCRAM-SHA-512", 0},
		{"SASL where there is none", to(faults.Relay(plain), byPassword), "SASL", 0},
		{"no SASL where there is", to(faults.Relay(login)), "SASL", 0},

		{"a CA that did not sign", to(presents(theirs, here), secure), "signed by unknown authority.*CA", 0},
		{"a certificate for another host", to(presents(ours, elsewhere), secure), "certificate for 127.0.0.1.*certificate", 0},
		{"a certificate that has expired", to(presents(ours, expired()), secure), "expired", 0},
		{"TLS to a plaintext port", to(faults.Relay(plain), secure), "plaintext", 0},
		{"plaintext to a TLS port", to(presents(ours, here)), "TLS", 0},

		{"silent in TCP", to(faults.Silent), "silent|timeout", answering},
		{"silent in TLS", to(faults.Silent, secure), "TLS handshake.*silent", 0},
		{"silent in SASL, at once", to(faults.Silent, byPassword), "SASL.*silent", 0},
		{"silent in SASL, after the handshake", to(faults.Until(login, kmsg.SASLAuthenticate, faults.Silent), byPassword), "authenticate.*broker", 0},
		{"silent in TLS and SASL", to(faults.TLS(server(issue(t, ours, here)), faults.Silent), secure, byPassword), "SASL.*silent", 0},

		{"HTTP", to(faults.HTTP), "HTTP", 0},
		{"HTTP, with TLS", to(faults.HTTP, secure), "HTTP", 0},
		{"HTTP, with SASL", to(faults.HTTP, byPassword), "HTTP|Kafka listener", 0},
		{"a frame that does not end", to(faults.Frame(1<<31 - 1)), "2147483647 bytes", 0},
		{"a frame that does not end, with SASL", to(faults.Frame(1<<31-1), byPassword), "2147483647 bytes", 0},
		{"a frame of less than nothing", to(faults.Frame(1 << 31)), "-2147483648 bytes", 0},
		{"an empty frame", to(faults.Frame(0)), " 0 bytes", 0},

		{"a token function that fails", to(bearer, token(func(context.Context) (string, error) { return "", errors.New("the issuer is down") })), "the issuer is down", 0},
		{"a token function that blocks", to(bearer, token(func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() })), "credentials", 0},
		{"a token function that blocks and does not care", to(bearer, token(func(context.Context) (string, error) { <-t.Context().Done(); return "", nil })), "credentials", 0},
		{"a token function that returns nothing", to(bearer, token(func(context.Context) (string, error) { return "", nil })), "token.*empty|empty.*token", 0},

		{"one broker that is too old", func(c *kgroup.Config) { c.Brokers = []string{plain, old} }, old + ".*older", 0},
	}
	for _, step := range []struct {
		name string
		h    faults.Handler
		more []func(*kgroup.Config)
	}{
		{"accept", faults.HangUp, nil},
		{"ClientHello", faults.HangUpOnce, []func(*kgroup.Config){secure}},
		{"TLS handshake", faults.TLS(server(issue(t, ours, here)), faults.HangUp), []func(*kgroup.Config){secure}},
		{"SaslHandshake", faults.Until(login, kmsg.SASLHandshake, faults.HangUp), []func(*kgroup.Config){byPassword}},
		{"SaslAuthenticate", faults.Until(login, kmsg.SASLAuthenticate, faults.HangUp), []func(*kgroup.Config){byPassword}},
		{"ApiVersions", faults.Until(plain, kmsg.ApiVersions, faults.HangUp), nil},
		{"Metadata", faults.Until(plain, kmsg.Metadata, faults.HangUp), nil},
		{"FindCoordinator", faults.Until(plain, kmsg.FindCoordinator, faults.HangUp), nil},
	} {
		mistakes = append(mistakes, mistake{"hangs up at " + step.name, to(step.h, step.more...), "EOF|closed|reset", answering})
	}
	for _, m := range mistakes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			m.check(t, kgroup.Config{Group: "billing", Topics: on(topic.Name, quick)})
		})
	}
}

// brokerWith is the address of an embedded broker.
func brokerWith(t *testing.T, cfg kgrouptest.Config) (addr string) {
	t.Helper()
	b, err := kgrouptest.New(cfg)
	require.NoError(t, err)
	t.Cleanup(b.Close)
	return b.Addrs()[0]
}
