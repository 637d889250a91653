package kgrouptest_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/kgroup-go/kgroup/kgrouptest"
)

func TestStartEndsWithTheTest(t *testing.T) {
	var addr string
	t.Run("inner", func(t *testing.T) {
		b := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders", Partitions: 3}, kgrouptest.Topic{Name: "single"})
		addr = b.Addrs()[0]
		assert.Len(t, b.Cluster().PartitionInfos("orders"), 3)
		assert.Len(t, b.Cluster().PartitionInfos("single"), 1)
		dial(t, addr)
	})
	requireRefused(t, addr)
}

// fakeTB is a test that fails.
type fakeTB struct {
	fatal    string
	cleanups []func()
}

func (f *fakeTB) Helper()                        {}
func (f *fakeTB) Fatalf(format string, _ ...any) { f.fatal = format }
func (f *fakeTB) Cleanup(fn func())              { f.cleanups = append(f.cleanups, fn) }

func TestStartFailsTheTest(t *testing.T) {
	var tb fakeTB
	b := kgrouptest.Start(&tb, kgrouptest.Topic{Name: "orders"}, kgrouptest.Topic{Name: "orders"})
	assert.Nil(t, b)
	assert.NotEmpty(t, tb.fatal)
	assert.Empty(t, tb.cleanups)
}

func TestNewRefusesBadTopics(t *testing.T) {
	for name, topic := range map[string]kgrouptest.Topic{
		"no name":             {},
		"bad name":            {Name: "a/b"},
		"negative partitions": {Name: "orders", Partitions: -1},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := kgrouptest.New(kgrouptest.Config{Topics: []kgrouptest.Topic{topic}})
			require.ErrorContains(t, err, "kgrouptest: create topic")
		})
	}
}

func TestNewRefusesWhatCannotStart(t *testing.T) {
	other := kgrouptest.Start(t)
	_, port, err := net.SplitHostPort(other.Addrs()[0])
	require.NoError(t, err)
	taken, err := strconv.Atoi(port)
	require.NoError(t, err)
	for name, cfg := range map[string]kgrouptest.Config{
		"unknown mechanism": {Users: []kgrouptest.User{{Name: "ann", Password: "secret", Mechanism: "GSSAPI"}}},
		"port in use":       {Options: []kfake.Opt{kfake.Ports(0, taken)}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := kgrouptest.New(cfg)
			require.ErrorContains(t, err, "kgrouptest: start: ")
		})
	}
}

// A client that dials a port of the range of outgoing connections, on which nobody
// listens, sometimes gets a connection to itself.
func TestPortsAreNoClients(t *testing.T) {
	b := start(t, kgrouptest.Config{Brokers: 20})
	for _, addr := range b.Addrs() {
		host, port, err := net.SplitHostPort(addr)
		require.NoError(t, err)
		number, err := strconv.Atoi(port)
		require.NoError(t, err)
		assert.Equal(t, "127.0.0.1", host)
		assert.Less(t, number, 32768)
	}
}

func TestAddedNode(t *testing.T) {
	b := kgrouptest.Start(t)
	id, port, err := b.Cluster().AddNode(-1, 0)
	require.NoError(t, err)
	require.Len(t, b.Addrs(), 2)
	assert.Equal(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), b.Addrs()[id])
	b.Stop(id)
	requireRefused(t, b.Addrs()[id])
	dial(t, b.Addrs()[0])
}

func TestTopicConfigs(t *testing.T) {
	b := kgrouptest.Start(t, kgrouptest.Topic{Name: "small", Configs: map[string]string{"max.message.bytes": "100"}})
	require.NoError(t, b.Produce("small", kgrouptest.Record{Value: make([]byte, 10)}))
	require.ErrorIs(t, b.Produce("small", kgrouptest.Record{Value: make([]byte, 200)}), kerr.MessageTooLarge)
}

func TestCreateGrowDelete(t *testing.T) {
	b := kgrouptest.Start(t)
	require.ErrorIs(t, b.Produce("orders", values("a")...), kerr.UnknownTopicOrPartition)
	require.ErrorIs(t, b.Grow("orders", 2), kerr.UnknownTopicOrPartition)
	require.ErrorIs(t, b.DeleteTopic("orders"), kerr.UnknownTopicOrPartition)

	require.NoError(t, b.CreateTopic(kgrouptest.Topic{Name: "orders", Partitions: 2}))
	require.ErrorIs(t, b.CreateTopic(kgrouptest.Topic{Name: "orders"}), kerr.TopicAlreadyExists)
	require.NoError(t, b.Produce("orders", values("a", "b", "c")...))

	require.NoError(t, b.Grow("orders", 4))
	require.ErrorIs(t, b.Grow("orders", 3), kerr.InvalidPartitions)
	require.NoError(t, b.Produce("orders", values("d", "e")...))
	assert.Equal(t, map[int32][]string{0: {"a", "c", "e"}, 1: {"b"}, 3: {"d"}}, texts(t, b, "orders"))

	require.NoError(t, b.DeleteTopic("orders"))
	require.NoError(t, b.CreateTopic(kgrouptest.Topic{Name: "orders", Partitions: 2}))
	require.NoError(t, b.Produce("orders", values("new")...))
	assert.Equal(t, map[int32][]string{0: {"new"}}, texts(t, b, "orders"), "a topic created anew starts anew")
}

func TestStopAndRestart(t *testing.T) {
	b := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders"})
	addr := b.Addrs()[0]
	require.NoError(t, b.Produce("orders", values("before")...))
	client := consume(t, b, kgo.ConsumeTopics("orders"))
	require.Equal(t, "before", next(t, client))
	open := connect(t, b)
	open.ask(kmsg.NewPtrApiVersionsRequest())

	b.Stop()
	b.Stop()
	requireBroken(t, open.conn)
	requireRefused(t, addr)
	assert.Equal(t, []string{addr}, b.Addrs())
	require.NoError(t, b.Produce("orders", values("meanwhile")...), "the Broker's own methods need no network")

	require.NoError(t, b.Restart())
	require.NoError(t, b.Restart())
	assert.Equal(t, "meanwhile", next(t, client), "the same client, at the same address")
	assert.Equal(t, map[int32][]string{0: {"before", "meanwhile"}}, texts(t, b, "orders"))
}

func TestStopOneNode(t *testing.T) {
	b := start(t, kgrouptest.Config{Brokers: 3})
	require.Len(t, b.Addrs(), 3)
	b.Stop(1)
	dial(t, b.Addrs()[0])
	requireRefused(t, b.Addrs()[1])
	dial(t, b.Addrs()[2])
	b.Stop(1, 2)
	requireRefused(t, b.Addrs()[2])
	require.NoError(t, b.Restart(1))
	dial(t, b.Addrs()[1])
	requireRefused(t, b.Addrs()[2])
	assert.PanicsWithValue(t, "kgrouptest: no node 3: there are 3", func() { b.Stop(3) })
}

// A port taken while the node was stopped is an error, not a node somewhere else.
func TestRestartWithoutItsPort(t *testing.T) {
	b := kgrouptest.Start(t)
	b.Stop()
	thief, err := new(net.ListenConfig).Listen(t.Context(), "tcp", b.Addrs()[0])
	require.NoError(t, err)
	require.ErrorIs(t, b.Restart(), syscall.EADDRINUSE)
	require.NoError(t, thief.Close())
	require.NoError(t, b.Restart())
	dial(t, b.Addrs()[0])
}

func TestDisconnect(t *testing.T) {
	b := start(t, kgrouptest.Config{Brokers: 2})
	here, there := connect(t, b), &wire{t: t, conn: dial(t, b.Addrs()[1])}
	here.ask(kmsg.NewPtrApiVersionsRequest())
	there.ask(kmsg.NewPtrApiVersionsRequest())
	b.Disconnect(1)
	requireBroken(t, there.conn)
	dial(t, b.Addrs()[1])
	here.ask(kmsg.NewPtrApiVersionsRequest())
	b.Disconnect()
	requireBroken(t, here.conn)
}

func TestClosed(t *testing.T) {
	b := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders"})
	open := dial(t, b.Addrs()[0])
	b.Close()
	b.Close()
	requireBroken(t, open)
	requireRefused(t, b.Addrs()[0])
	require.ErrorIs(t, b.Produce("orders", values("a")...), kgrouptest.ErrClosed)
	require.ErrorIs(t, b.CreateTopic(kgrouptest.Topic{Name: "new"}), kgrouptest.ErrClosed)
	require.ErrorIs(t, b.DeleteTopic("orders"), kgrouptest.ErrClosed)
	require.ErrorIs(t, b.Grow("orders", 3), kgrouptest.ErrClosed)
	require.ErrorIs(t, b.Restart(), kgrouptest.ErrClosed)
	_, err := b.Messages("orders")
	require.ErrorIs(t, err, kgrouptest.ErrClosed)
	require.ErrorIs(t, b.WaitCommitted(t.Context(), "billing", "orders"), kgrouptest.ErrClosed)
	assert.Equal(t, "Dead", b.Group("billing").State)
	assert.Empty(t, b.Committed("billing", "orders"))
	b.Stop()
	b.Disconnect()
}

// A call that a fault keeps waiting must not keep Close waiting too.
func TestCloseEndsCallsInFlight(t *testing.T) {
	b := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders"})
	reached := make(chan struct{})
	b.Cluster().Control(onceThenSilence(reached))
	failed := make(chan error, 1)
	go func() { failed <- b.Produce("orders", values("a")...) }()
	<-reached
	begin := time.Now()
	b.Close()
	require.Error(t, <-failed)
	assert.Less(t, time.Since(begin), 5*time.Second)
}

func TestFaultsReachProduce(t *testing.T) {
	b := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders"})
	b.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "orders", Partitions: []int32{0}, Err: kerr.NotEnoughReplicas})
	require.ErrorIs(t, b.Produce("orders", values("a")...), kerr.NotEnoughReplicas)
	require.NoError(t, b.Produce("orders", values("b")...))
	assert.Equal(t, map[int32][]string{0: {"b"}}, texts(t, b, "orders"), "no retry behind our back")
}

func TestTLSAndSASL(t *testing.T) {
	server, pool := certificate(t)
	for name, mechanism := range map[string]sasl.Mechanism{
		"":              plain.Auth{User: "ann", Pass: "secret"}.AsMechanism(),
		"PLAIN":         plain.Auth{User: "ann", Pass: "secret"}.AsMechanism(),
		"SCRAM-SHA-256": scram.Auth{User: "ann", Pass: "secret"}.AsSha256Mechanism(),
		"SCRAM-SHA-512": scram.Auth{User: "ann", Pass: "secret"}.AsSha512Mechanism(),
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t, kgrouptest.Config{
				Topics: []kgrouptest.Topic{{Name: "orders"}},
				TLS:    server,
				Users:  []kgrouptest.User{{Name: "ann", Password: "secret", Mechanism: name}},
			})
			require.NoError(t, b.Produce("orders", values("a")...))
			assert.Equal(t, map[int32][]string{0: {"a"}}, texts(t, b, "orders"))

			trusting := kgo.DialTLSConfig(&tls.Config{RootCAs: pool})
			client := consume(t, b, kgo.ConsumeTopics("orders"), trusting, kgo.SASL(mechanism))
			assert.Equal(t, "a", next(t, client))

			stranger := consume(t, b, trusting, kgo.SASL(plain.Auth{User: "ann", Pass: "wrong"}.AsMechanism()))
			require.Error(t, stranger.Ping(within(t)))
		})
	}
}

func TestConcurrentUse(t *testing.T) {
	b := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders", Partitions: 2})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 5 {
				assert.NoError(t, b.Produce("orders", values("a", "b")...))
				_, err := b.Messages("orders")
				assert.NoError(t, err)
				b.Committed("billing", "orders")
				b.Group("billing")
				b.Disconnect()
				b.Stop()
				assert.NoError(t, b.Restart())
			}
		})
	}
	all.Wait()
	messages, err := b.Messages("orders")
	require.NoError(t, err)
	assert.Len(t, messages, 40)
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func requireRefused(t *testing.T, addr string) {
	t.Helper()
	_, err := new(net.Dialer).DialContext(within(t), "tcp", addr)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

// requireBroken fails if the other end does not hang up.
func requireBroken(t *testing.T, c net.Conn) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err := c.Read(make([]byte, 1))
	require.Truef(t, errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET), "want EOF or reset, got %v", err)
}

func consume(t *testing.T, b *kgrouptest.Broker, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(b.Addrs()...),
		kgo.FetchMaxWait(100 * time.Millisecond),
		kgo.MetadataMinAge(100 * time.Millisecond),
	}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

// next is the value of the next record the client polls.
func next(t *testing.T, client *kgo.Client) string {
	t.Helper()
	ctx := within(t)
	for {
		fetches := client.PollRecords(ctx, 1)
		require.NoError(t, ctx.Err(), "no record")
		for r := range fetches.RecordsAll() {
			return string(r.Value)
		}
	}
}

// certificate is a server's for 127.0.0.1, and the pool to trust it with.
func certificate(t *testing.T) (*tls.Config, *x509.CertPool) {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	return &tls.Config{Certificates: server.TLS.Certificates}, pool
}
