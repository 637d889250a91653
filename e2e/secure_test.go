package e2e

// How members connect to brokers that want TLS and SASL, and what may stand between
// them and the brokers.

import (
	"context"
	"crypto"
	"crypto/tls"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/e2e/certs"
	"github.com/kgroup-go/kgroup/e2e/faults"
	"github.com/kgroup-go/kgroup/e2e/kafka"
)

// secured brokers have the listeners of kafka.Security. So have all that the suite
// starts, but for the embedded one.
type secured interface {
	ListenerAddrs(name string) []string
	CA() *certs.Authority
	SetPassword(ctx context.Context, user, password string) error
	RemoveUser(ctx context.Context, user string) error
}

const (
	saslUser     = "alice"
	saslPassword = "alice-secret"

	// sessionLifetime is that on the listener kafka.Reauth.
	sessionLifetime = 5 * time.Second

	// plainOnly is a SASL listener without TLS that offers nothing but PLAIN.
	plainOnly = "PLAIN_ONLY"
)

func (e *env) secured() secured {
	e.t.Helper()
	s, ok := e.brokers.(secured)
	require.True(e.t, ok, "the scenario is for secured brokers")
	return s
}

// An identity is a way to connect, and who a member is to the brokers then.
type identity struct {
	listener  string
	auth      kgroup.Auth
	principal string
}

var (
	byCertificate = identity{kafka.MTLS, nil, "User:CN=billing"}
	byNothing     = identity{kafka.SSL, nil, "User:ANONYMOUS"}
	byPlain       = identity{kafka.SASLSSL, kgroup.Plain(saslUser, saslPassword), "User:" + saslUser}
	byScram256    = identity{kafka.SASLSSL, kgroup.Scram(crypto.SHA256, saslUser, saslPassword), "User:" + saslUser}
	byScram512    = identity{kafka.SASLSSL, kgroup.Scram(crypto.SHA512, saslUser, saslPassword), "User:" + saslUser}
	byToken       = identity{kafka.SASLSSL, kgroup.OAuthBearer(func(context.Context) (string, map[string]string, error) {
		return kafka.UnsecuredToken(saslUser, time.Minute), nil, nil
	}), "User:" + saslUser}
)

// at is the same identity on another listener.
func (id identity) at(listener string) identity {
	id.listener = listener
	return id
}

func (id identity) encrypted() bool {
	return !slices.Contains([]string{kafka.SASLPlaintext, plainOnly}, id.listener)
}

// as has a member connect as id.
func (e *env) as(id identity) func(*kgroup.Config) {
	e.t.Helper()
	var config *tls.Config
	if id.encrypted() {
		files := kgroup.TLSFiles{CA: e.clientFiles(e.t.TempDir(), "unused").CA}
		if id == byCertificate {
			files = e.clientFiles(e.t.TempDir(), strings.TrimPrefix(id.principal, "User:CN="))
		}
		var err error
		config, err = kgroup.LoadTLS(files)
		require.NoError(e.t, err)
	}
	addrs := e.secured().ListenerAddrs(id.listener)
	return func(c *kgroup.Config) { c.Brokers, c.TLS, c.Auth = addrs, config, id.auth }
}

// clientFiles writes a certificate of that name into a folder, with its key and the
// CA of the brokers. What is there is replaced.
func (e *env) clientFiles(dir, name string) kgroup.TLSFiles {
	e.t.Helper()
	ca := e.secured().CA()
	return writeFiles(e.t, dir, ca, issue(e.t, ca, certs.Template{Name: name}))
}

func writeFiles(t *testing.T, dir string, ca *certs.Authority, c certs.Certificate) kgroup.TLSFiles {
	t.Helper()
	files, err := certs.WriteFiles(dir, ca, c)
	require.NoError(t, err)
	return kgroup.TLSFiles(files)
}

func authority(t *testing.T) *certs.Authority {
	t.Helper()
	ca, err := certs.NewAuthority("e2e")
	require.NoError(t, err)
	return ca
}

func issue(t *testing.T, ca *certs.Authority, tmpl certs.Template) certs.Certificate {
	t.Helper()
	c, err := ca.Issue(tmpl)
	require.NoError(t, err)
	return c
}

// server are the settings of a TLS server that presents c.
func server(c certs.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c.TLS()}}
}

// restrict lets nobody but id read a topic.
func (e *env) restrict(topic string, id identity) {
	e.t.Helper()
	require.NoError(e.t, e.admin.RestrictTopic(e.ctx, topic, id.principal))
}

// reports are what a member says went wrong.
type reports struct {
	mu   sync.Mutex
	errs []error
	more chan struct{} // holds one if there is a new one
}

// watch has a member report.
func (r *reports) watch(c *kgroup.Config) {
	r.more = make(chan struct{}, 1)
	c.Hooks.Error = r.add
	c.Hooks.RebalanceFailed = r.add
}

func (r *reports) add(err error) {
	r.mu.Lock()
	r.errs = append(r.errs, err)
	r.mu.Unlock()
	select {
	case r.more <- struct{}{}:
	default:
	}
}

func (r *reports) all() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.errs)
}

// await waits for a report, beyond the first n, that has one of the given texts.
func (r *reports) await(e *env, n int, texts ...string) {
	e.t.Helper()
	for {
		for _, err := range r.all()[n:] {
			if slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(err.Error(), text) }) {
				return
			}
		}
		select {
		case <-r.more:
		case <-e.ctx.Done():
			require.FailNow(e.t, "waited for a report of "+strings.Join(texts, " or "), "%v\n%v\n%s", context.Cause(e.ctx), r.all()[n:], e.state())
		}
	}
}

// A front stands before every broker of a cluster, and is what it is told to be.
type front struct {
	e       *env
	mu      sync.Mutex
	be      func(addr string) faults.Handler
	servers map[string]*faults.Server // by the address of the broker behind it
}

// front makes one.
func (e *env) front(be func(addr string) faults.Handler) *front {
	f := &front{e: e, be: be, servers: map[string]*faults.Server{}}
	e.t.Cleanup(f.close)
	return f
}

// dial is for Config.Dial.
func (f *front) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	f.mu.Lock()
	s := f.servers[addr]
	if s == nil {
		var err error
		if s, err = faults.Serve(f.be(addr)); err != nil { //nolint:contextcheck // it outlives the dial
			f.mu.Unlock()
			return nil, err
		}
		f.servers[addr] = s
	}
	f.mu.Unlock()
	return s.Dial(ctx, network, addr)
}

// become breaks all connections. Those that are made then meet something else.
func (f *front) become(be func(addr string) faults.Handler) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.be = be
	for addr, s := range f.servers {
		s.Become(be(addr))
	}
}

func (f *front) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.servers {
		s.Close()
	}
	clear(f.servers)
}
