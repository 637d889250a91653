package kafka

// What a scenario does beside the consumer under test, and how it learns what
// really happened. It speaks through franz-go and takes plain addresses: the
// brokers may be a Cluster, an embedded one, or somebody else's.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Offsets are offsets by topic and partition.
type Offsets map[string]map[int32]int64

// An Admin is an independent client of a Kafka cluster. It may be used by many
// goroutines at once. Close it.
type Admin struct {
	addrs []string
	opts  []kgo.Opt
	cl    *kgo.Client
	adm   *kadm.Client

	mu        sync.Mutex
	producers map[kgo.CompressionCodec]*kgo.Client
}

// NewAdmin returns a client of the cluster with these addresses. Options are for
// brokers that want TLS or SASL. Nothing is dialed yet.
func NewAdmin(addrs []string, opts ...kgo.Opt) (*Admin, error) {
	a := &Admin{addrs: slices.Clone(addrs), opts: slices.Clone(opts), producers: map[kgo.CompressionCodec]*kgo.Client{}}
	cl, err := a.client()
	if err != nil {
		return nil, err
	}
	a.cl, a.adm = cl, kadm.NewClient(cl)
	return a, nil
}

func (a *Admin) client(more ...kgo.Opt) (*kgo.Client, error) {
	opts := []kgo.Opt{
		kgo.SeedBrokers(a.addrs...),
		// A broker that is dead or paused must cost a try, not the test.
		kgo.DialTimeout(2 * time.Second), kgo.RequestTimeoutOverhead(5 * time.Second),
		kgo.MetadataMinAge(10 * time.Millisecond),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0),
	}
	cl, err := kgo.NewClient(append(append(opts, a.opts...), more...)...)
	if err != nil {
		return nil, fmt.Errorf("client of %v: %w", a.addrs, err)
	}
	return cl, nil
}

// Close ends the connections.
func (a *Admin) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.producers {
		p.Close()
	}
	clear(a.producers)
	a.cl.Close()
}

// CreateTopic makes a topic and returns when every broker knows all its partitions
// with their leaders. Replicas -1 means one on every broker. Config holds topic
// settings such as "cleanup.policy"; it may be nil.
func (a *Admin) CreateTopic(ctx context.Context, topic string, partitions int32, replicas int16, config map[string]string) error {
	set := make(map[string]*string, len(config))
	for k, v := range config {
		set[k] = &v
	}
	if replicas < 0 {
		md, err := a.adm.BrokerMetadata(ctx)
		if err != nil {
			return fmt.Errorf("create topic %s: %w", topic, err)
		}
		replicas = int16(len(md.Brokers))
	}
	if _, err := a.adm.CreateTopic(ctx, partitions, replicas, set, topic); err != nil {
		return fmt.Errorf("create topic %s: %w", topic, err)
	}
	return a.awaitPartitions(ctx, topic, partitions)
}

// GrowTopic raises the number of partitions, and returns when every broker knows.
func (a *Admin) GrowTopic(ctx context.Context, topic string, partitions int32) error {
	resp, err := a.adm.UpdatePartitions(ctx, int(partitions), topic)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		return fmt.Errorf("grow topic %s to %d partitions: %w", topic, partitions, err)
	}
	return a.awaitPartitions(ctx, topic, partitions)
}

// ConfigureTopic replaces the settings of a topic. It does not wait until every broker
// knows.
func (a *Admin) ConfigureTopic(ctx context.Context, topic string, settings map[string]string) error {
	var all []kadm.AlterConfig
	for key, value := range settings {
		all = append(all, kadm.AlterConfig{Name: key, Value: &value})
	}
	resp, err := a.adm.AlterTopicConfigsState(ctx, all, topic) // not the incremental one, which came with Kafka 2.3
	for _, r := range resp {
		err = errors.Join(err, r.Err)
	}
	if err != nil {
		return fmt.Errorf("configure topic %s: %w", topic, err)
	}
	return nil
}

// DeleteTopic removes a topic and returns when no broker knows it any more.
func (a *Admin) DeleteTopic(ctx context.Context, topic string) error {
	if _, err := a.adm.DeleteTopic(ctx, topic); err != nil {
		return fmt.Errorf("delete topic %s: %w", topic, err)
	}
	return a.awaitTopic(ctx, topic, "to be gone", func(t kmsg.MetadataResponseTopic) error {
		if !errors.Is(kerr.ErrorForCode(t.ErrorCode), kerr.UnknownTopicOrPartition) {
			return errors.New("a broker still knows it")
		}
		return nil
	})
}

func (a *Admin) awaitPartitions(ctx context.Context, topic string, partitions int32) error {
	return a.awaitTopic(ctx, topic, fmt.Sprintf("to have %d partitions", partitions), func(t kmsg.MetadataResponseTopic) error {
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
			return err
		}
		if len(t.Partitions) != int(partitions) {
			return fmt.Errorf("a broker knows %d partitions", len(t.Partitions))
		}
		for _, p := range t.Partitions {
			if p.Leader < 0 {
				return fmt.Errorf("partition %d has no leader", p.Partition)
			}
		}
		return nil
	})
}

// awaitTopic asks every broker of the cluster: a change of metadata reaches them
// one after the other, and the consumer under test may ask any.
func (a *Admin) awaitTopic(ctx context.Context, topic, what string, ready func(kmsg.MetadataResponseTopic) error) error {
	return poll(ctx, "topic "+topic+" "+what, func(ctx context.Context) error {
		brokers, err := a.adm.BrokerMetadata(ctx)
		if err != nil {
			return err
		}
		for _, id := range brokers.Brokers.NodeIDs() {
			req := kmsg.NewPtrMetadataRequest()
			req.Topics = []kmsg.MetadataRequestTopic{{Topic: &topic}}
			resp, err := req.RequestWith(ctx, a.cl.Broker(int(id)))
			if err != nil {
				return fmt.Errorf("ask broker %d: %w", id, err)
			}
			for _, t := range resp.Topics {
				if err := ready(t); err != nil {
					return fmt.Errorf("broker %d: %w", id, err)
				}
			}
		}
		return nil
	})
}

// Leader returns the id of the broker that leads a partition.
func (a *Admin) Leader(ctx context.Context, topic string, partition int32) (int32, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{{Topic: &topic}}
	resp, err := req.RequestWith(ctx, a.cl)
	if err != nil {
		return 0, fmt.Errorf("leader of %s/%d: %w", topic, partition, err)
	}
	for _, t := range resp.Topics {
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
			return 0, fmt.Errorf("leader of %s/%d: %w", topic, partition, err)
		}
		for _, p := range t.Partitions {
			if p.Partition == partition && p.Leader >= 0 {
				return p.Leader, nil
			}
		}
	}
	return 0, fmt.Errorf("leader of %s/%d: it has none", topic, partition)
}

// Range returns the first offset of every partition of a topic that still exists,
// and the offset after its last. The end counts what open transactions wrote, and
// the markers that end transactions.
func (a *Admin) Range(ctx context.Context, topic string) (first, end map[int32]int64, err error) {
	if first, err = listed(a.adm.ListStartOffsets(ctx, topic)); err == nil {
		end, err = listed(a.adm.ListEndOffsets(ctx, topic))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("offsets of %s: %w", topic, err)
	}
	return first, end, nil
}

func listed(offsets kadm.ListedOffsets, err error) (map[int32]int64, error) {
	if err == nil {
		err = offsets.Error()
	}
	m := map[int32]int64{}
	offsets.Each(func(o kadm.ListedOffset) { m[o.Partition] = o.Offset })
	return m, err
}

// DeleteRecords removes the records of a partition that are before an offset, as
// retention does.
func (a *Admin) DeleteRecords(ctx context.Context, topic string, partition int32, before int64) error {
	var offsets kadm.Offsets
	offsets.AddOffset(topic, partition, before, -1)
	resp, err := a.adm.DeleteRecords(ctx, offsets)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		return fmt.Errorf("delete records of %s/%d before %d: %w", topic, partition, before, err)
	}
	return nil
}

// A Committed offset of a group, as the broker keeps it.
type Committed struct {
	Offset   int64
	Metadata string
}

// CommittedOffsets returns the offsets that a group has committed, and nothing for
// partitions without one.
func (a *Admin) CommittedOffsets(ctx context.Context, group string) (Offsets, error) {
	all, err := a.CommittedMetadata(ctx, group)
	if err != nil {
		return nil, err
	}
	offsets := Offsets{}
	for topic, partitions := range all {
		offsets[topic] = map[int32]int64{}
		for p, c := range partitions {
			offsets[topic][p] = c.Offset
		}
	}
	return offsets, nil
}

// CommittedMetadata is CommittedOffsets with the metadata beside each offset.
func (a *Admin) CommittedMetadata(ctx context.Context, group string) (map[string]map[int32]Committed, error) {
	resp, err := a.adm.FetchOffsets(ctx, group)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("committed offsets of group %s: %w", group, err)
	}
	all := map[string]map[int32]Committed{}
	resp.Each(func(o kadm.OffsetResponse) {
		if o.At < 0 {
			return
		}
		if all[o.Topic] == nil {
			all[o.Topic] = map[int32]Committed{}
		}
		all[o.Topic][o.Partition] = Committed{Offset: o.At, Metadata: o.Metadata}
	})
	return all, nil
}

// CommitOffsets sets the offsets of a group that has no members.
func (a *Admin) CommitOffsets(ctx context.Context, group string, offsets map[string]map[int32]Committed) error {
	var set kadm.Offsets
	for topic, partitions := range offsets {
		for p, c := range partitions {
			set.Add(kadm.Offset{Topic: topic, Partition: p, At: c.Offset, LeaderEpoch: -1, Metadata: c.Metadata})
		}
	}
	resp, err := a.adm.CommitOffsets(ctx, group, set)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		return fmt.Errorf("commit offsets of group %s: %w", group, err)
	}
	return nil
}

// A Group is what the broker knows of a consumer group.
type Group struct {
	// State is Kafka's word: Empty, PreparingRebalance, CompletingRebalance,
	// Stable or Dead. A group that has never existed is Dead.
	State       string
	Protocol    string // the assignment strategy, empty while there is none
	Coordinator int32
	Members     []Member // sorted by id
}

// A Member is one member of a [Group].
type Member struct {
	ID, ClientID, Host string
	Assigned           map[string][]int32 // sorted partitions by topic
}

// DescribeGroup returns the state and members of a group.
func (a *Admin) DescribeGroup(ctx context.Context, group string) (Group, error) {
	resp, err := a.adm.DescribeGroups(ctx, group)
	if err == nil {
		err = resp.Error()
	}
	// Since Kafka 4 a group that is not there is an error, but no failure.
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return Group{}, fmt.Errorf("describe group %s: %w", group, err)
	}
	d := resp[group]
	g := Group{State: d.State, Protocol: d.Protocol, Coordinator: d.Coordinator.NodeID}
	for _, m := range d.Members {
		member := Member{ID: m.MemberID, ClientID: m.ClientID, Host: m.ClientHost, Assigned: map[string][]int32{}}
		if assigned, ok := m.Assigned.AsConsumer(); ok {
			for _, t := range assigned.Topics {
				member.Assigned[t.Topic] = slices.Sorted(slices.Values(t.Partitions))
			}
		}
		g.Members = append(g.Members, member)
	}
	slices.SortFunc(g.Members, func(x, y Member) int { return cmp.Compare(x.ID, y.ID) })
	return g, nil
}

// Coordinator returns the id of the broker that coordinates a group.
func (a *Admin) Coordinator(ctx context.Context, group string) (int32, error) {
	resp := a.adm.FindGroupCoordinators(ctx, group)
	if err := resp.Error(); err != nil {
		return 0, fmt.Errorf("coordinator of group %s: %w", group, err)
	}
	return resp[group].NodeID, nil
}

// Produce writes records to the partitions they name, compressed with codec, and
// waits until all in-sync replicas have them. Afterwards each record holds its
// offset.
func (a *Admin) Produce(ctx context.Context, codec kgo.CompressionCodec, records ...*kgo.Record) error {
	p, err := a.producer(codec)
	if err != nil {
		return err
	}
	return produce(ctx, p, records)
}

func produce(ctx context.Context, p *kgo.Client, records []*kgo.Record) error {
	if err := p.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return fmt.Errorf("produce %d records: %w", len(records), err)
	}
	return nil
}

func (a *Admin) producer(codec kgo.CompressionCodec) (*kgo.Client, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.producers[codec]
	if p == nil {
		var err error
		if p, err = a.client(kgo.ProducerBatchCompression(codec)); err != nil {
			return nil, err
		}
		a.producers[codec] = p
	}
	return p, nil
}

// A Transaction is a producer's open transaction. End it with one of Commit, Abort
// and Abandon.
type Transaction struct {
	id string
	p  *kgo.Client
}

// Begin opens a transaction of the producer with that transactional id, fencing
// off an older one, and writes records in it.
func (a *Admin) Begin(ctx context.Context, id string, records ...*kgo.Record) (*Transaction, error) {
	p, err := a.client(kgo.TransactionalID(id))
	if err != nil {
		return nil, err
	}
	t := &Transaction{id: id, p: p}
	if err := p.BeginTransaction(); err != nil {
		p.Close()
		return nil, fmt.Errorf("begin transaction %s: %w", id, err)
	}
	if err := t.Produce(ctx, records...); err != nil {
		p.Close()
		return nil, err
	}
	return t, nil
}

// Produce writes more records in the transaction.
func (t *Transaction) Produce(ctx context.Context, records ...*kgo.Record) error {
	if err := produce(ctx, t.p, records); err != nil {
		return fmt.Errorf("transaction %s: %w", t.id, err)
	}
	return nil
}

// Commit ends the transaction; its records are now visible.
func (t *Transaction) Commit(ctx context.Context) error { return t.end(ctx, "commit", kgo.TryCommit) }

// Abort ends the transaction; its records will never be visible to a consumer that
// reads committed records only.
func (t *Transaction) Abort(ctx context.Context) error { return t.end(ctx, "abort", kgo.TryAbort) }

func (t *Transaction) end(ctx context.Context, verb string, how kgo.TransactionEndTry) error {
	defer t.p.Close()
	if err := t.p.EndTransaction(ctx, how); err != nil {
		return fmt.Errorf("%s transaction %s: %w", verb, t.id, err)
	}
	return nil
}

// Abandon drops the connection and leaves the transaction open, as a producer that
// crashes does. Consumers of committed records wait at its first record until the
// broker gives it up (a minute), or somebody begins another with the same id.
func (t *Transaction) Abandon() { t.p.Close() }

// Each calls f for every partition, sorted.
func (o Offsets) Each(f func(topic string, partition int32, offset int64)) {
	for _, topic := range slices.Sorted(maps.Keys(o)) {
		for _, p := range slices.Sorted(maps.Keys(o[topic])) {
			f(topic, p, o[topic][p])
		}
	}
}
