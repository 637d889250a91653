package kgroup

// The engine under test: a group with a client that answers what a test says, or one that
// runs on a fakeKafka.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A stubClient is a sarama.Client that answers what a test says.
type stubClient struct {
	sarama.Client
	topics             func() ([]string, error)
	partitions         func(topic string) ([]int32, error)
	refresh            func(topics ...string) error
	refreshCoordinator func() error
	coordinator        func() (*sarama.Broker, error)
	leader             func(topic string, partition int32) (*sarama.Broker, error)
	brokers            func() []*sarama.Broker
	offset             func(topic string, partition int32, at int64) (int64, error)
}

func (c *stubClient) Topics() ([]string, error)                        { return c.topics() }
func (c *stubClient) Partitions(topic string) ([]int32, error)         { return c.partitions(topic) }
func (c *stubClient) RefreshMetadata(topics ...string) error           { return c.refresh(topics...) }
func (c *stubClient) RefreshCoordinator(string) error                  { return c.refreshCoordinator() }
func (c *stubClient) Coordinator(string) (*sarama.Broker, error)       { return c.coordinator() }
func (c *stubClient) Brokers() []*sarama.Broker                        { return c.brokers() }
func (c *stubClient) Leader(t string, p int32) (*sarama.Broker, error) { return c.leader(t, p) }
func (c *stubClient) Close() error                                     { return nil }
func (c *stubClient) GetOffset(topic string, partition int32, at int64) (int64, error) {
	return c.offset(topic, partition, at)
}

var errUnreachable = errors.New("connection refused")

// newTestGroup makes a group as New does, and ends what the test leaves.
func newTestGroup(t *testing.T, change func(*Config)) (*group, *fakeSession) {
	t.Helper()
	cfg := Config{
		Brokers: []string{"one:9092"},
		Group:   "billing",
		Topics:  Topics{"orders": {Handler: HandlerFunc(nop)}, "refunds": {Handler: HandlerFunc(nop)}},
		Dial:    func(context.Context, string, string) (net.Conn, error) { return nil, errUnreachable },
	}
	if change != nil {
		change(&cfg)
	}
	require.NoError(t, cfg.Validate())
	cfg = cfg.withDefaults()
	built, err := cfg.engineConfig()
	require.NoError(t, err)
	g := newGroup(cfg, newMatcher(cfg.Topics), built, slog.New(slog.DiscardHandler))
	g.consumer = &cluster.Consumer{} // its channels never have anything
	s := &fakeSession{}
	g.session = s
	t.Cleanup(func() {
		if g.stop == nil || g.leaving.Load() {
			g.end()
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		_ = g.Leave(ctx) // the test has failed
	})
	return g, s
}

// stubbed gives g a client that answers what the test says, and a coordinator.
func stubbed(g *group) *stubClient {
	stub := &stubClient{
		refreshCoordinator: func() error { return nil },
		coordinator:        func() (*sarama.Broker, error) { return sarama.NewBroker("one:9092"), nil },
		refresh:            func(...string) error { return nil },
	}
	g.inner = stub
	g.levers = newLevers(stub, g)
	return stub
}

// onEngine starts the engine on a cluster with two partitions of orders, and leaves
// the group when body has returned.
func onEngine(t *testing.T, mode Mode, change func(*fakeKafka, *Config, *fakeSession), body func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka)) {
	t.Helper()
	onPrepared(t, mode, change, func(*group) {}, body)
}

// onPrepared is onEngine with a last change to the group before it starts.
func onPrepared(t *testing.T, mode Mode, change func(*fakeKafka, *Config, *fakeSession), prepare func(*group), body func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka)) {
	t.Helper()
	inBubble(t, func(t *testing.T) {
		kafka := newKafka("one:9092", "two:9092")
		kafka.partition(orders0, 0)
		kafka.partition(orders1, 0)
		session := &fakeSession{}
		g, _ := newTestGroup(t, func(cfg *Config) {
			cfg.Brokers, cfg.Dial, cfg.Mode = kafka.addrs, kafka.dial, mode
			cfg.Topics = Topics{"orders": {Handler: HandlerFunc(nop)}}
			if change != nil {
				change(kafka, cfg, session)
			}
		})
		prepare(g)
		require.NoError(t, g.Start(t.Context(), session))
		body(t, g, session, kafka)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		require.NoError(t, g.Leave(ctx))
		assert.LessOrEqual(t, time.Since(began), time.Second)
		assert.Zero(t, g.network.Open())
		assert.Empty(t, kafka.member, "it has left the group")
	})
}

// inEachMode runs a test with each way to get messages out of the engine.
func inEachMode(t *testing.T, test func(t *testing.T, mode Mode)) {
	t.Helper()
	for _, mode := range []Mode{Multiplex, Partitions} {
		t.Run(mode.String(), func(t *testing.T) { test(t, mode) })
	}
}

// eventually lets virtual time pass until something has happened.
func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for range 1000 {
		synctest.Wait()
		if happened() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	require.Fail(t, "never", what)
}

func opensGeneration(t *testing.T, s *fakeSession, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("generation %d: %v", n, s.history.all()), func() bool { return s.generations() == n })
}
