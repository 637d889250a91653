package kgrouptest

// The broker as a whole: what it is made of, and its life from Start to Close.
// Records are in record.go, groups in group.go, the network in listener.go.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// patience bounds every request a Broker makes of its own cluster. Only a fault
// that never answers makes it wait so long.
const patience = 30 * time.Second

// ErrClosed is returned by the methods of a Broker after Close.
var ErrClosed = errors.New("kgrouptest: broker closed")

// TB is what [Start] needs of a *testing.T, *testing.B or *testing.F. It is here
// so that programs which use [New] do not link package testing.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Cleanup(fn func())
}

// A Topic is created by [Start], [New] or [Broker.CreateTopic].
type Topic struct {
	Name       string
	Partitions int               // zero: 1
	Configs    map[string]string // Kafka's topic settings, such as cleanup.policy or max.message.bytes
}

// A User may log in to a broker that asks for SASL. It may do everything.
type User struct {
	Name, Password string
	Mechanism      string // "PLAIN" (default), "SCRAM-SHA-256" or "SCRAM-SHA-512"
}

// Config is a broker with more to it than topics. Its zero value is one node
// without topics, TLS or SASL.
type Config struct {
	Topics  []Topic
	Brokers int         // nodes, numbered from 0; zero: 1
	TLS     *tls.Config // of the server; nil: plain text
	Users   []User      // who may log in; none: no SASL

	// Options are given to kfake, such as kfake.MaxVersions to be an older Kafka,
	// or kfake.BrokerConfigs. kfake.TLS and kfake.ListenFn have no effect.
	Options []kfake.Opt
}

// Broker is a running cluster of one or more nodes.
type Broker struct {
	cluster *kfake.Cluster
	users   []User
	tls     *tls.Config
	waiting waiting
	keyless spreader

	ctx    context.Context // ends with Close: the Broker's own requests
	cancel context.CancelFunc

	mu     sync.RWMutex // held for reading by every call that needs the cluster
	closed bool

	nodesMu sync.Mutex
	nodes   []*listener // by node id
}

// Start runs a broker of one node with the given topics until the test ends.
// It fails the test if it cannot. For more than topics, see [New].
func Start(tb TB, topics ...Topic) *Broker {
	tb.Helper()
	b, err := New(Config{Topics: topics})
	if err != nil {
		tb.Fatalf("%v", err)
		return nil
	}
	tb.Cleanup(b.Close)
	return b
}

// New starts a broker. It runs until Close.
func New(cfg Config) (*Broker, error) {
	b := &Broker{users: slices.Clone(cfg.Users), tls: cfg.TLS}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.waiting.broker = b

	opts := []kfake.Opt{
		kfake.NumBrokers(max(1, cfg.Brokers)),
		kfake.GroupMinSessionTimeout(shortestSession), // Kafka's 6 s would make tests of lost sessions slow
	}
	if len(cfg.Users) > 0 {
		opts = append(opts, kfake.EnableSASL())
	}
	for i, u := range b.users {
		if u.Mechanism == "" {
			b.users[i].Mechanism = "PLAIN"
		}
		opts = append(opts, kfake.Superuser(b.users[i].Mechanism, u.Name, u.Password))
	}
	opts = append(opts, cfg.Options...)
	opts = append(opts, kfake.TLS(nil), kfake.ListenFn(b.listen))

	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		b.cancel()
		return nil, fmt.Errorf("kgrouptest: start: %w", err)
	}
	b.cluster = cluster
	cluster.ControlKey(int16(kmsg.JoinGroup), rebalanceTimeoutOfV0)
	for _, topic := range cfg.Topics {
		if err := b.CreateTopic(topic); err != nil {
			b.Close()
			return nil, err
		}
	}
	return b, nil
}

// Close ends the broker: connections break, ports are free, data are gone.
// Closing again does nothing.
func (b *Broker) Close() {
	b.cancel() // before the lock: whoever holds it may be waiting for an answer
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.closed = true
	b.waiting.close()
	b.cluster.Close()
	for _, node := range b.listeners() {
		node.wait()
	}
}

// use runs fn while the cluster is sure to live: kfake's methods hang for ever on
// a closed one.
func (b *Broker) use(fn func() error) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.closed {
		return ErrClosed
	}
	return fn()
}

// Cluster is the fake cluster underneath, to inject faults and to move leaders and
// coordinators. Do not close it, and do not use it after Close: its methods would
// hang.
//
// Its faults and controls see the requests of this package too: Produce and
// Metadata of [Broker.Produce], Fetch of [Broker.Messages] and
// [Broker.WaitCommitted], and a Heartbeat of version 4 each 50 ms for a member
// that waits in JoinGroup or SyncGroup.
func (b *Broker) Cluster() *kfake.Cluster { return b.cluster }

// Addrs are the addresses of the nodes, host:port, in the order of their ids.
// They stay the same, stopped or not.
func (b *Broker) Addrs() []string {
	var addrs []string
	for _, node := range b.listeners() {
		addrs = append(addrs, node.Addr().String())
	}
	return addrs
}

// legalName is Kafka's rule; kfake takes any name.
var legalName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

// CreateTopic creates a topic that does not exist yet.
func (b *Broker) CreateTopic(topic Topic) error {
	if !legalName.MatchString(topic.Name) {
		return fmt.Errorf("kgrouptest: create topic %q: a name is 1 to 249 letters, digits, dots, underscores and hyphens", topic.Name)
	}
	if topic.Partitions < 0 {
		return fmt.Errorf("kgrouptest: create topic %s: %d partitions", topic.Name, topic.Partitions)
	}
	return b.use(func() error {
		err := b.cluster.CreateTopic(topic.Name, int32(max(1, topic.Partitions)), topic.Configs)
		if err != nil {
			return fmt.Errorf("kgrouptest: create topic %s: %w", topic.Name, err)
		}
		return nil
	})
}

// DeleteTopic deletes a topic, its records, and what groups have committed of it.
func (b *Broker) DeleteTopic(topic string) error {
	return b.use(func() error {
		if err := b.cluster.DeleteTopic(topic); err != nil {
			return fmt.Errorf("kgrouptest: delete topic %s: %w", topic, err)
		}
		b.keyless.forget(topic)
		return nil
	})
}

// Grow raises the number of partitions of a topic to partitions. As in Kafka,
// records with a key may land elsewhere from then on.
func (b *Broker) Grow(topic string, partitions int) error {
	return b.use(func() error {
		if err := b.grow(topic, int32(partitions)); err != nil {
			return fmt.Errorf("kgrouptest: grow %s to %d partitions: %w", topic, partitions, err)
		}
		return nil
	})
}

func (b *Broker) grow(topic string, partitions int32) error {
	client, err := b.client()
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()

	wanted := kmsg.NewCreatePartitionsRequestTopic()
	wanted.Topic, wanted.Count = topic, partitions
	req := kmsg.NewPtrCreatePartitionsRequest()
	req.Topics = append(req.Topics, wanted)
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return err
	}
	for _, t := range resp.Topics {
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
			return err
		}
	}
	return nil
}

// client connects by the back door. Each call of the Broker gets its own: it
// starts without metadata of a topic that has grown, or been created anew, since.
func (b *Broker) client(opts ...kgo.Opt) (*kgo.Client, error) {
	own := []kgo.Opt{
		kgo.SeedBrokers(b.Addrs()...),
		kgo.Dialer(b.dial),
		kgo.DisableClientMetrics(),
		kgo.ClientID("kgrouptest"),
	}
	if len(b.users) > 0 {
		own = append(own, kgo.SASL(b.users[0].mechanism()))
	}
	return kgo.NewClient(append(own, opts...)...)
}

func (u User) mechanism() sasl.Mechanism {
	switch u.Mechanism {
	case "SCRAM-SHA-256":
		return scram.Auth{User: u.Name, Pass: u.Password}.AsSha256Mechanism()
	case "SCRAM-SHA-512":
		return scram.Auth{User: u.Name, Pass: u.Password}.AsSha512Mechanism()
	default:
		return plain.Auth{User: u.Name, Pass: u.Password}.AsMechanism()
	}
}

// Stop refuses connections to the given nodes, to all of them if none is given,
// and breaks those there are. To clients this is a crash. The cluster itself is
// behind a closed door: groups go on, so that sessions expire and rebalance
// timeouts run out, and no other node becomes leader or coordinator of what a
// stopped node has. Stop panics if there is no such node.
func (b *Broker) Stop(nodes ...int32) {
	for _, node := range b.chosen(nodes) {
		node.stop()
	}
}

// Restart undoes Stop: the given nodes, all of them if none is given, listen
// again, at the same addresses and with the data they had. It fails if some other
// program has taken a port meanwhile; on a closed Broker it returns [ErrClosed].
func (b *Broker) Restart(nodes ...int32) error {
	return b.use(func() error {
		for _, node := range b.chosen(nodes) {
			if err := node.start(); err != nil {
				return fmt.Errorf("kgrouptest: restart: %w", err)
			}
		}
		return nil
	})
}

// Disconnect breaks the connections to the given nodes, to all of them if none is
// given. Clients can connect again at once. A connection on which the broker has not
// answered anything yet may survive.
func (b *Broker) Disconnect(nodes ...int32) {
	for _, node := range b.chosen(nodes) {
		node.disconnect()
	}
}

func (b *Broker) chosen(ids []int32) []*listener {
	nodes := b.listeners()
	if len(ids) == 0 {
		return nodes
	}
	chosen := make(map[int32]*listener, len(ids))
	for _, id := range ids {
		if id < 0 || int(id) >= len(nodes) {
			panic(fmt.Sprintf("kgrouptest: no node %d: there are %d", id, len(nodes)))
		}
		chosen[id] = nodes[id]
	}
	return slices.Collect(maps.Values(chosen))
}

func (b *Broker) listeners() []*listener {
	b.nodesMu.Lock()
	defer b.nodesMu.Unlock()
	return slices.Clone(b.nodes)
}

// listen is called by kfake for each node.
func (b *Broker) listen(_, address string) (net.Listener, error) {
	l, err := newListener(address, b.tls, &b.waiting)
	if err != nil {
		return nil, err
	}
	b.nodesMu.Lock()
	defer b.nodesMu.Unlock()
	b.nodes = append(b.nodes, l)
	return l, nil
}

// dial is the back door of the node at address.
func (b *Broker) dial(ctx context.Context, _, address string) (net.Conn, error) {
	for _, node := range b.listeners() {
		if node.Addr().String() == address {
			return node.dial(ctx)
		}
	}
	return nil, fmt.Errorf("no node at %s", address)
}
