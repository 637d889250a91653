package kgrouptest_test

// The pair that this broker is for: sarama-cluster v2.1.15 on sarama v1.33.0, bare,
// in the mode in which it speaks JoinGroup v0, OffsetCommit v2 and Fetch v10.

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/kgrouptest"
)

// log is what all members have seen, by partition, in the order of arrival.
type log struct {
	mu   sync.Mutex
	seen map[int32][]string
}

func (l *log) add(m *sarama.ConsumerMessage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen == nil {
		l.seen = make(map[int32][]string)
	}
	l.seen[m.Partition] = append(l.seen[m.Partition], string(m.Value))
}

// saramaMember joins the group "billing" and marks each message of "orders" as soon
// as it has seen it. The returned function makes it leave.
func saramaMember(t *testing.T, b *kgrouptest.Broker, seen *log) (leave func()) {
	t.Helper()
	cfg := cluster.NewConfig()
	cfg.Version = sarama.V2_1_0_0
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	cfg.Consumer.Offsets.CommitInterval = 100 * time.Millisecond // zero, sarama's default, makes sarama-cluster panic
	cfg.Consumer.IsolationLevel = sarama.ReadCommitted
	cfg.Consumer.MaxWaitTime = 100 * time.Millisecond
	cfg.Consumer.Return.Errors = true
	cfg.Consumer.Retry.Backoff = 100 * time.Millisecond
	cfg.Group.Heartbeat.Interval = 100 * time.Millisecond
	cfg.Group.Session.Timeout = 3 * time.Second
	cfg.Metadata.Retry.Backoff = 100 * time.Millisecond
	cfg.Metadata.AllowAutoTopicCreation = false
	consumer, err := cluster.NewConsumer(b.Addrs(), "billing", []string{"orders"}, cfg)
	require.NoError(t, err)

	var readers sync.WaitGroup
	readers.Go(func() {
		for m := range consumer.Messages() {
			seen.add(m)
			consumer.MarkOffset(m, "")
		}
	})
	readers.Go(func() {
		for err := range consumer.Errors() {
			t.Logf("sarama-cluster: %v", err)
		}
	})
	leave = sync.OnceFunc(func() {
		assert.NoError(t, consumer.Close())
		readers.Wait()
	})
	t.Cleanup(leave)
	return leave
}

func waitStable(t *testing.T, b *kgrouptest.Broker, members int) kgrouptest.Group {
	t.Helper()
	group, err := b.WaitGroup(within(t), "billing", kgrouptest.Stable(members))
	require.NoError(t, err)
	return group
}

func TestSaramaClusterRebalances(t *testing.T) {
	b := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders", Partitions: 4})
	var want []string
	produce := func(n int) {
		t.Helper()
		for range n {
			want = append(want, fmt.Sprint(len(want)))
			require.NoError(t, b.Produce("orders", values(want[len(want)-1])...))
		}
	}
	var seen log
	produce(20)
	first := saramaMember(t, b, &seen)
	require.Equal(t, map[string][]int32{"orders": {0, 1, 2, 3}}, waitStable(t, b, 1).Members[0].Assigned)
	require.NoError(t, b.WaitCommitted(within(t), "billing", "orders"))

	second := saramaMember(t, b, &seen)
	produce(20)
	group := waitStable(t, b, 2)
	require.Len(t, group.Members[0].Assigned["orders"], 2, "%s", group)
	require.Len(t, group.Members[1].Assigned["orders"], 2, "%s", group)
	require.NoError(t, b.WaitCommitted(within(t), "billing", "orders"))

	first()
	produce(20)
	require.Len(t, waitStable(t, b, 1).Members[0].Assigned["orders"], 4)
	require.NoError(t, b.WaitCommitted(within(t), "billing", "orders"))
	second()
	assert.Equal(t, "Empty", b.Group("billing").State, "no ghost member")
	assert.Equal(t, map[int32]int64{0: 15, 1: 15, 2: 15, 3: 15}, b.Committed("billing", "orders"))

	var all []string
	for _, values := range seen.seen {
		all = append(all, values...)
	}
	slices.Sort(all)
	slices.Sort(want)
	assert.Equal(t, want, slices.Compact(all), "bare sarama-cluster may repeat, but not lose")
}

// Codecs and transactions in what sarama 1.33 decodes.
func TestSaramaReadsWhatWasProduced(t *testing.T) {
	b := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders"})
	var want []string
	for codec := kgrouptest.Uncompressed; codec <= kgrouptest.Zstd; codec++ {
		for _, end := range []kgrouptest.Transaction{kgrouptest.NoTransaction, kgrouptest.Abort, kgrouptest.Commit} {
			squeezable := fmt.Sprintf("%500d.%d", codec, end)
			require.NoError(t, b.ProduceWith(kgrouptest.How{Codec: codec, Transaction: end}, "orders", values(squeezable, squeezable)...))
			if end != kgrouptest.Abort {
				want = append(want, squeezable, squeezable)
			}
		}
	}
	var seen log
	leave := saramaMember(t, b, &seen)
	require.NoError(t, b.WaitCommitted(within(t), "billing", "orders"))
	leave()
	assert.Equal(t, map[int32][]string{0: want}, seen.seen)
}

func TestSaramaClusterSurvivesARestart(t *testing.T) {
	b := start(t, kgrouptest.Config{Brokers: 3, Topics: []kgrouptest.Topic{{Name: "orders", Partitions: 3}}})
	require.NoError(t, b.Produce("orders", values("a", "b", "c")...))
	var seen log
	leave := saramaMember(t, b, &seen)
	require.NoError(t, b.WaitCommitted(within(t), "billing", "orders"))
	before := waitStable(t, b, 1)

	b.Stop()
	_, err := b.WaitGroup(within(t), "billing", func(g kgrouptest.Group) bool { return g.State == "Empty" })
	require.NoError(t, err, "sessions expire behind the closed door")
	require.NoError(t, b.Produce("orders", values("d", "e", "f")...))
	require.NoError(t, b.Restart())
	require.NoError(t, b.WaitCommitted(within(t), "billing", "orders"))
	assert.Greater(t, waitStable(t, b, 1).Generation, before.Generation)
	leave()
	assert.Equal(t, map[int32][]string{0: {"a", "d"}, 1: {"b", "e"}, 2: {"c", "f"}}, seen.seen)
}
