// Package sandbox gives an example a Kafka cluster to play in, so that its main.go
// shows kgroup and not plumbing: the embedded broker of kgrouptest or, if the
// environment variable KAFKA_BROKERS names one ("host:port,host:port"), a real
// cluster, which is left as it was found.
package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/kgroup-go/kgroup/kgrouptest"
)

// patience bounds what is done beside the example itself: making topics, producing
// the samples, cleaning up. A cluster that is not there costs no more than that.
const patience = 10 * time.Second

// Topics are the topics of an example: their names, and how many partitions.
type Topics map[string]int

// Kafka is the cluster of one example.
type Kafka struct {
	// Brokers are its addresses, for kgroup.Config.
	Brokers []string

	embedded *kgrouptest.Broker // nil on a real cluster
	client   *kgo.Client
	admin    *kadm.Client
	prefix   string // of every name, on a cluster that others use too
	topics   Topics
	created  []string

	mu       sync.Mutex
	groups   []string
	produced map[string]map[int32]int64 // topic, partition: the offset after the last message
}

// Start makes the topics of the example in the cluster of KAFKA_BROKERS or, if that
// is not set, in a new embedded broker. The caller must call [Kafka.Close].
func Start(ctx context.Context, example string, topics Topics) (*Kafka, error) {
	k := &Kafka{topics: topics, produced: make(map[string]map[int32]int64)}
	if env := os.Getenv("KAFKA_BROKERS"); env != "" {
		k.Brokers = strings.Split(env, ",")
		k.prefix = "kgroup-example-" + example + "-" + strings.ToLower(rand.Text()[:8]) + "-"
	} else {
		broker, err := kgrouptest.New(kgrouptest.Config{})
		if err != nil {
			return nil, err
		}
		k.embedded, k.Brokers = broker, broker.Addrs()
	}
	if err := k.start(ctx); err != nil {
		return nil, fmt.Errorf("prepare %s: %w", strings.Join(k.Brokers, ","), errors.Join(err, k.Close(ctx)))
	}
	return k, nil
}

func (k *Kafka) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var err error
	k.client, err = kgo.NewClient(
		kgo.SeedBrokers(k.Brokers...),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.DisableClientMetrics(),
	)
	if err != nil {
		return err
	}
	k.admin = kadm.NewClient(k.client)
	for _, name := range slices.Sorted(maps.Keys(k.topics)) {
		// -1: replicated as the cluster's own default says.
		if _, err := k.admin.CreateTopic(ctx, int32(k.topics[name]), -1, nil, k.Topic(name)); err != nil {
			return fmt.Errorf("create topic %s: %w", k.Topic(name), err)
		}
		k.created = append(k.created, k.Topic(name))
	}
	return nil
}

// Topic is what the topic is called in this cluster: its own name on the embedded
// broker, "kgroup-example-<example>-<random>-<name>" elsewhere.
func (k *Kafka) Topic(name string) string { return k.prefix + name }

// Group is what a consumer group is called in this cluster; [Kafka.Close] removes
// it.
func (k *Kafka) Group(name string) string {
	group := k.prefix + name
	k.mu.Lock()
	defer k.mu.Unlock()
	if !slices.Contains(k.groups, group) {
		k.groups = append(k.groups, group)
	}
	return group
}

// Produce writes values, as JSON, to a topic of [Start] and returns when they are
// there. Value i goes to partition i modulo the number of partitions.
func (k *Kafka) Produce(ctx context.Context, topic string, values ...any) error {
	partitions := k.topics[topic]
	if partitions == 0 {
		return fmt.Errorf("produce: %q is not a topic of this example", topic)
	}
	records := make([]*kgo.Record, len(values))
	for i, value := range values {
		text, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("produce: %w", err)
		}
		records[i] = &kgo.Record{Topic: k.Topic(topic), Partition: int32(i % partitions), Value: text}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := k.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return fmt.Errorf("produce to %s: %w", k.Topic(topic), err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	ends := k.produced[k.Topic(topic)]
	if ends == nil {
		ends = make(map[int32]int64)
		k.produced[k.Topic(topic)] = ends
	}
	for _, r := range records {
		ends[r.Partition] = max(ends[r.Partition], r.Offset+1)
	}
	return nil
}

// WhenCommitted is for kgroup's Hooks.Commit. It calls done, once, when every message
// produced so far has been committed, which is where an example ends and a service
// would go on.
func (k *Kafka) WhenCommitted(done func()) func(offsets map[string]map[int32]int64, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	left := make(map[string]map[int32]int64)
	for topic, ends := range k.produced {
		left[topic] = maps.Clone(ends)
	}
	var mu sync.Mutex // members of one group share the hook
	var once sync.Once
	return func(offsets map[string]map[int32]int64, err error) {
		if err != nil {
			return
		}
		mu.Lock()
		for topic, partitions := range offsets {
			maps.DeleteFunc(left[topic], func(partition int32, end int64) bool { return partitions[partition] >= end })
			if len(left[topic]) == 0 {
				delete(left, topic)
			}
		}
		all := len(left) == 0
		mu.Unlock()
		if all {
			once.Do(done)
		}
	}
}

// Committed asks the cluster what a group has committed of a topic, by partition.
func (k *Kafka) Committed(ctx context.Context, group, topic string) (map[int32]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	responses, err := k.admin.FetchOffsets(ctx, k.Group(group))
	if err != nil {
		return nil, fmt.Errorf("ask for the offsets of %s: %w", k.Group(group), err)
	}
	committed := make(map[int32]int64)
	for partition, response := range responses[k.Topic(topic)] {
		if response.Err != nil {
			return nil, fmt.Errorf("ask for the offsets of %s: %w", k.Group(group), response.Err)
		}
		committed[partition] = response.At
	}
	return committed, nil
}

// Close removes what the example has made, also when ctx is cancelled: an example that
// was interrupted cleans up too.
func (k *Kafka) Close(ctx context.Context) error {
	var err error
	if k.embedded == nil && k.admin != nil {
		err = k.remove(context.WithoutCancel(ctx))
	}
	if k.client != nil {
		k.client.Close()
	}
	if k.embedded != nil {
		k.embedded.Close()
	}
	return err
}

// remove takes topics and groups out of a cluster that lives on.
func (k *Kafka) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var errs []error
	for _, topic := range k.created {
		if _, err := k.admin.DeleteTopic(ctx, topic); err != nil {
			errs = append(errs, fmt.Errorf("topic %s is left behind: %w", topic, err))
		}
	}
	for _, group := range k.groups {
		if err := k.removeGroup(ctx, group); err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			errs = append(errs, fmt.Errorf("group %s is left behind: %w", group, err))
		}
	}
	return errors.Join(errs...)
}

// removeGroup waits until the group has no members: one that was killed stays in it
// for the rest of its session.
func (k *Kafka) removeGroup(ctx context.Context, group string) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := k.admin.DeleteGroup(ctx, group)
		if !errors.Is(err, kerr.NonEmptyGroup) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}
