package kgroup

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/kgroup-go/kgroup/internal/engine"
	"github.com/kgroup-go/kgroup/internal/wire"
)

// knownTopics makes the stub answer from a table of topics and how many partitions
// each has.
func knownTopics(t *testing.T, stub *stubClient, topics map[string]int) {
	t.Helper()
	stub.topics = func() ([]string, error) {
		var names []string
		for name := range topics {
			names = append(names, name)
		}
		return names, nil
	}
	stub.partitions = func(topic string) ([]int32, error) {
		assert.Contains(t, topics, topic, "sarama would ask the cluster now, with retries, and the whole group waits")
		var numbers []int32
		for i := range topics[topic] {
			numbers = append(numbers, int32(i))
		}
		return numbers, nil
	}
}

// An unknown topic was an error between JoinGroup and SyncGroup, which stopped the
// whole group for ever because of one member's typing mistake (D8).
func TestPartitionsOfAnUnknownTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newTestGroup(t, nil)
		stub := stubbed(g)
		topics := map[string]int{"orders": 2}
		knownTopics(t, stub, topics)
		var asked []string
		answer := make(chan struct{})
		stub.refresh = func(names ...string) error {
			<-answer
			asked = append(asked, names...)
			return sarama.ErrUnknownTopicOrPartition
		}
		partitions := func(topic string) (numbers []int32, synchronous bool) {
			var err error
			done := begin(func() { numbers, err = g.levers.Partitions(topic) })
			select {
			case <-done:
			default:
				synchronous = true
				answer <- struct{}{}
				<-done
			}
			require.NoError(t, err)
			return numbers, synchronous
		}

		numbers, synchronous := partitions("orders")
		assert.Equal(t, []int32{0, 1}, numbers)
		assert.False(t, synchronous, "answered from what is known")

		numbers, synchronous = partitions("typo")
		assert.Empty(t, numbers)
		assert.True(t, synchronous, "it may have been created a moment ago")
		assert.Equal(t, []string{"typo"}, asked)

		g.levers.reset()
		numbers, synchronous = partitions("typo")
		assert.Empty(t, numbers)
		assert.False(t, synchronous, "the whole group waits, also in later rebalances")
		answer <- struct{}{}
		synctest.Wait()
		assert.Equal(t, []string{"typo", "typo"}, asked, "asked in the background")

		topics["typo"] = 1
		numbers, _ = partitions("typo")
		assert.Equal(t, []int32{0}, numbers)
		delete(topics, "typo")
		_, synchronous = partitions("typo")
		assert.True(t, synchronous, "missing anew")
	})
}

func TestPartitionsAfterTheClientWasClosed(t *testing.T) {
	g, _ := newTestGroup(t, nil)
	stub := stubbed(g)
	knownTopics(t, stub, map[string]int{"orders": 2})
	stub.partitions = func(string) ([]int32, error) { return nil, sarama.ErrClosedClient }
	_, err := g.levers.Partitions("orders")
	assert.ErrorIs(t, err, sarama.ErrClosedClient)

	stub.partitions = func(string) ([]int32, error) { return nil, errTransient }
	numbers, err := g.levers.Partitions("orders")
	require.NoError(t, err)
	assert.Empty(t, numbers)
}

// The engine sorts what it gets, and Partitions of sarama's returns its cache.
func TestPartitionsMayBeChangedByTheCaller(t *testing.T) {
	g, _ := newTestGroup(t, nil)
	stub := stubbed(g)
	cache := []int32{0, 1}
	knownTopics(t, stub, map[string]int{"orders": 2})
	stub.partitions = func(string) ([]int32, error) { return cache, nil }
	numbers, err := g.levers.Partitions("orders")
	require.NoError(t, err)
	numbers[0] = 7
	assert.Equal(t, []int32{0, 1}, cache)
}

// opened is a group with an open generation, led by this member, that consumes
// orders (2 partitions) and refunds, which does not exist.
func opened(t *testing.T) (*group, map[string]int) {
	t.Helper()
	g, _ := newTestGroup(t, nil)
	topics := map[string]int{"orders": 2}
	knownTopics(t, stubbed(g), topics)
	joins(g.member, member7)
	for _, topic := range []string{"orders", "refunds"} {
		_, err := g.levers.Partitions(topic)
		require.NoError(t, err)
	}
	g.gen = &term{number: 1, member: member7}
	return g, topics
}

// looks asks as the engine's topic watcher does, so many times, and returns which of
// its looks would make it rejoin.
func looks(t *testing.T, g *group, times int) []int {
	t.Helper()
	var rejoins []int
	for i := range times {
		_, err := g.levers.Topics()
		if err != nil {
			require.ErrorIs(t, err, errRejoin)
			rejoins = append(rejoins, i+1)
		}
	}
	return rejoins
}

// The engine does not notice that a topic has grown, and the new partitions are not
// consumed (D11). An error of Topics makes it rejoin.
func TestTopicsHaveChanged(t *testing.T) {
	tests := []struct {
		name   string
		change func(topics map[string]int)
		want   []int // the looks that make the engine rejoin
	}{
		{"nothing", func(map[string]int) {}, nil},
		{"grown", func(topics map[string]int) { topics["orders"] = 3 }, []int{1}},
		{"appeared", func(topics map[string]int) { topics["refunds"] = 1 }, []int{1}},
		{"both", func(topics map[string]int) { topics["orders"], topics["refunds"] = 3, 1 }, []int{1}},
		{"missing twice", func(topics map[string]int) { delete(topics, "orders") }, []int{2}},
		{"recreated with fewer partitions", func(topics map[string]int) { topics["orders"] = 1 }, []int{2}},
		{"another topic", func(topics map[string]int) { topics["invoices"] = 8 }, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			g, topics := opened(t)
			require.Empty(t, looks(t, g, 3), "before the change")
			test.change(topics)
			assert.Equal(t, test.want, looks(t, g, 4))
		})
	}
}

func TestTopicMissingNowAndThen(t *testing.T) {
	g, topics := opened(t)
	for range 3 {
		delete(topics, "orders")
		assert.Empty(t, looks(t, g, 1), "a broker that has just started knows less than it should")
		topics["orders"] = 2
		assert.Empty(t, looks(t, g, 1))
	}
}

// Only an open generation of the member that computed the assignment is to rejoin.
func TestTopicsHaveChangedForSomebodyElse(t *testing.T) {
	tests := map[string]func(*group){
		"no generation": func(g *group) { g.gen = nil },
		"not the leader": func(g *group) {
			g.member.JoinSent("m-1")
			g.member.JoinAnswered(wire.JoinAnswer{Member: member8})
			g.member.SyncAnswered(member8, 0)
		},
		"rejoining already":       func(g *group) { g.member.JoinSent("m-1") },
		"its opening is given up": func(g *group) { g.endSlot() },
		// A rebalance whose coordinator was not found has sealed it: it is over.
		"sealed": func(g *group) {
			g.endSlot()
			g.sealed(newRoutes())
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			g, topics := opened(t)
			topics["orders"] = 3
			change(g)
			assert.Empty(t, looks(t, g, 3))
		})
	}
}

func TestRefreshMetadata(t *testing.T) {
	g, _ := newTestGroup(t, nil)
	stub := stubbed(g)
	tests := []struct{ got, want error }{
		{nil, nil},
		{sarama.ErrUnknownTopicOrPartition, nil},
		{sarama.ErrTopicAuthorizationFailed, nil},
		{sarama.ErrOutOfBrokers, nil},
		{sarama.ErrClosedClient, sarama.ErrClosedClient},
	}
	for _, test := range tests {
		var asked []string
		stub.refresh = func(topics ...string) error {
			asked = topics
			return test.got
		}
		assert.ErrorIs(t, g.levers.RefreshMetadata("orders", "refunds"), test.want)
		assert.Equal(t, []string{"orders", "refunds"}, asked)
	}
}

// A partition without a leader made the member leave the group, again and again (D9).
func TestLeaderFallsBackToAConnectedBroker(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		kafka := newKafka("one:9092", "two:9092")
		g, _ := newTestGroup(t, func(cfg *Config) { cfg.Dial = kafka.dial })
		stub := stubbed(g)
		idle, connected := sarama.NewBroker("one:9092"), sarama.NewBroker("two:9092")
		require.NoError(t, connected.Open(g.dataConfig))
		defer connected.Close()
		stub.brokers = func() []*sarama.Broker { return []*sarama.Broker{idle, connected} }

		stub.leader = func(string, int32) (*sarama.Broker, error) { return idle, nil }
		leader, err := g.levers.Leader("orders", 0)
		require.NoError(t, err)
		assert.Same(t, idle, leader)

		stub.leader = func(string, int32) (*sarama.Broker, error) { return nil, sarama.ErrLeaderNotAvailable }
		leader, err = g.levers.Leader("orders", 0)
		require.NoError(t, err)
		assert.Same(t, connected, leader)

		stub.brokers = func() []*sarama.Broker { return []*sarama.Broker{idle} }
		_, err = g.levers.Leader("orders", 0)
		require.ErrorIs(t, err, sarama.ErrLeaderNotAvailable)

		stub.leader = func(string, int32) (*sarama.Broker, error) { return nil, sarama.ErrClosedClient }
		_, err = g.levers.Leader("orders", 0)
		require.ErrorIs(t, err, sarama.ErrClosedClient)
	})
}

// offsets answers GetOffset for every partition: newest and oldest.
type offsets struct {
	newest, oldest int64
	newestErr      error
	oldestErr      error
}

func (o offsets) of(_ string, _ int32, at int64) (int64, error) {
	if at == sarama.OffsetNewest {
		return o.newest, o.newestErr
	}
	return o.oldest, o.oldestErr
}

// begins opens a partition as the engine does (sarama's chooseStartingOffset and
// sarama-cluster's newPartitionConsumer) and returns the offset that it fetches from.
func begins(t *testing.T, g *group, p engine.Partition) int64 {
	t.Helper()
	want := int64(sarama.OffsetOldest)
	if o, has := g.member.committed(p); has {
		want = o.Offset
	}
	for {
		newest, err := g.levers.GetOffset(p.Topic, p.Number, sarama.OffsetNewest)
		require.NoError(t, err)
		oldest, err := g.levers.GetOffset(p.Topic, p.Number, sarama.OffsetOldest)
		require.NoError(t, err)
		switch {
		case want == sarama.OffsetOldest:
			return oldest
		case oldest <= want && want <= newest:
			return want
		}
		want = sarama.OffsetOldest // out of range
	}
}

// leaderOf makes Leader answer a broker that can be asked.
func leaderOf(t *testing.T, g *group, addr string) func(string, int32) (*sarama.Broker, error) {
	t.Helper()
	broker := sarama.NewBroker(addr)
	t.Cleanup(func() { _ = broker.Close() })
	return func(string, int32) (*sarama.Broker, error) {
		if err := broker.Open(g.dataConfig); err != nil && !errors.Is(err, sarama.ErrAlreadyConnected) {
			return nil, err
		}
		return broker, nil
	}
}

// The table "Where a partition begins" of docs/DESIGN.md.
func TestWhereAPartitionBegins(t *testing.T) {
	const none = -1
	found := offsets{newest: 100, oldest: 40}
	tests := []struct {
		name      string
		start     Start
		committed int64 // of orders/0
		metadata  string
		others    map[engine.Partition]string // metadata of what is committed for other partitions
		broker    offsets
		want      engine.Claim
		engine    int64 // where it fetches from, if not at want.Offset
		reports   []string
	}{
		{
			name: "committed", committed: 70, metadata: "kgroup/1 n=2", broker: found,
			want: engine.Claim{Offset: 70, Committed: true, Metadata: "kgroup/1 n=2", HasEnd: true, End: 100},
		},
		{name: "committed at the oldest", committed: 40, broker: found, want: engine.Claim{Offset: 40, Committed: true, HasEnd: true, End: 100}},
		{name: "committed at the end", committed: 100, broker: found, want: engine.Claim{Offset: 100, Committed: true, HasEnd: true, End: 100}},
		{name: "committed, whatever Start says", start: Newest, committed: 70, broker: found, want: engine.Claim{Offset: 70, Committed: true, HasEnd: true, End: 100}},
		{
			name: "gone", committed: 30, metadata: "kgroup/1 n=2 f=30 a=31:1,50:2 r=" + ranges{{35, 45}, {60, 65}}.encode(30, maxRanges), broker: found,
			want: engine.Claim{
				Offset: 40, HasEnd: true, End: 100,
				Metadata: "kgroup/1 n=2 f=40 a=50:2 r=" + ranges{{40, 45}, {60, 65}}.encode(40, maxRanges),
			},
			reports: []string{"error: orders/0: the committed offset 30 is gone, and so are 10 messages: going on at the oldest, 40"},
		},
		{
			name: "gone, whatever Start says", start: Newest, committed: 30, metadata: "of another client", broker: found,
			want:    engine.Claim{Offset: 40, HasEnd: true, End: 100},
			reports: []string{"error: orders/0: the committed offset 30 is gone, and so are 10 messages: going on at the oldest, 40"},
		},
		{
			name: "beyond the end", committed: 101, broker: found,
			want:    engine.Claim{Offset: 40},
			reports: []string{"error: orders/0: the committed offset 101 lies beyond the end of the partition, 100 (was it truncated, or the topic recreated?): going on at the oldest message, 40"},
		},
		{
			// What a Kafka before 2.2 tells after a crash, and where the log really ends.
			name: "beyond the end that the leader has told", committed: 70, broker: offsets{newest: 0, oldest: 0},
			want: engine.Claim{Offset: 70, Committed: true, HasEnd: true, End: 70},
		},
		{
			name: "speaks of messages beyond the end that the leader has told", committed: 70, metadata: "kgroup/1 f=70 a=80:1",
			broker: offsets{newest: 0, oldest: 0},
			want:   engine.Claim{Offset: 70, Committed: true, Metadata: "kgroup/1 f=70 a=80:1", HasEnd: true, End: 81},
		},
		{
			name: "speaks of messages beyond the end", committed: 70, metadata: "kgroup/1 f=70 a=120:1", broker: found,
			want: engine.Claim{Offset: 70, Committed: true, Metadata: "kgroup/1 f=70 a=120:1", HasEnd: true, End: 100},
		},
		{name: "none", committed: none, broker: found, want: engine.Claim{Offset: 40}},
		{name: "none in an empty partition", committed: none, broker: offsets{}, want: engine.Claim{Offset: 0}},
		{
			name: "newest", start: Newest, committed: none, broker: found,
			want: engine.Claim{Offset: 100, Fresh: true, Metadata: "kgroup/1 n=2"},
		},
		{
			name: "newest, began before", start: Newest, committed: none, broker: found,
			others: map[engine.Partition]string{orders1: "kgroup/1 n=1"},
			want:   engine.Claim{Offset: 100, Fresh: true, Metadata: "kgroup/1 n=1"},
		},
		{
			name: "newest, with the offsets of another client", start: Newest, committed: none, broker: found,
			others: map[engine.Partition]string{orders1: "checkpoint-7"},
			want:   engine.Claim{Offset: 40},
		},
		{
			name: "newest, another topic has offsets", start: Newest, committed: none, broker: found,
			others: map[engine.Partition]string{refunds0: ""},
			want:   engine.Claim{Offset: 100, Fresh: true, Metadata: "kgroup/1 n=2"},
		},
		{
			name: "committed, no leader", committed: 70, metadata: "kgroup/1 n=2",
			broker:  offsets{newestErr: sarama.ErrLeaderNotAvailable, oldestErr: sarama.ErrLeaderNotAvailable},
			want:    engine.Claim{Offset: 70, Committed: true, Metadata: "kgroup/1 n=2"},
			reports: []string{"error: look up the offsets of orders/0: " + sarama.ErrLeaderNotAvailable.Error()},
		},
		{
			name: "committed, the leader is lost between the questions", committed: 70,
			broker:  offsets{newest: 100, oldestErr: sarama.ErrLeaderNotAvailable},
			want:    engine.Claim{Offset: 70, Committed: true},
			reports: []string{"error: look up the offsets of orders/0: " + sarama.ErrLeaderNotAvailable.Error()},
		},
		{
			name: "committed beyond the end, and then no leader", committed: 170,
			broker:  offsets{newest: 100, oldestErr: sarama.ErrLeaderNotAvailable},
			want:    engine.Claim{Offset: 170, Committed: true},
			reports: []string{"error: look up the offsets of orders/0: " + sarama.ErrLeaderNotAvailable.Error()},
		},
		{
			name: "none, no leader", committed: none,
			broker: offsets{newestErr: sarama.ErrLeaderNotAvailable, oldestErr: sarama.ErrLeaderNotAvailable},
			want:   engine.Claim{Offset: 0, Guess: true},
			reports: []string{
				"error: look up the offsets of orders/0: " + sarama.ErrLeaderNotAvailable.Error(),
				"error: look up the offsets of orders/0: " + sarama.ErrLeaderNotAvailable.Error(),
			},
		},
		{
			name: "none, no leader, newest", start: Newest, committed: none,
			broker:  offsets{newestErr: sarama.ErrLeaderNotAvailable, oldest: 40},
			want:    engine.Claim{Offset: 40, Guess: true},
			reports: []string{"error: look up the offsets of orders/0: " + sarama.ErrLeaderNotAvailable.Error()},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				kafka := newKafka("one:9092")
				g, s := newTestGroup(t, func(cfg *Config) { cfg.Start, cfg.Dial = test.start, kafka.dial })
				stub := stubbed(g)
				knownTopics(t, stub, map[string]int{"orders": 2, "refunds": 1})
				stub.offset = test.broker.of
				kafka.partition(orders0, 40, make([]string, 60)...)
				stub.leader = leaderOf(t, g, "one:9092")
				for p, metadata := range test.others {
					kafka.commit(p, 5, metadata)
				}
				joins(g.member, member7)
				g.member.OffsetsFetched([]wire.Offset{{Topic: "orders", Partition: 0, Offset: test.committed, Metadata: test.metadata}})

				at := begins(t, g, orders0)
				claims := g.levers.claims(map[string][]int32{"orders": {0}})
				test.want.Partition = orders0
				assert.Equal(t, []engine.Claim{test.want}, claims)
				assert.Equal(t, test.want.Offset, at, "where the engine begins")
				assert.Equal(t, test.reports, s.history.all("error"))
			})
		})
	}
}

// A partition that was added under Start: Newest is read from its beginning, also in
// the very process that began the group.
func TestPartitionAddedUnderNewest(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		kafka := newKafka("one:9092")
		g, _ := newTestGroup(t, func(cfg *Config) { cfg.Start, cfg.Dial = Newest, kafka.dial })
		stub := stubbed(g)
		topics := map[string]int{"orders": 1}
		knownTopics(t, stub, topics)
		stub.offset = offsets{newest: 100, oldest: 40}.of
		joins(g.member, member7)
		assert.EqualValues(t, 100, begins(t, g, orders0))
		g.levers.began([]engine.Offset{{Partition: orders0, Offset: 100}}, map[engine.Partition]error{orders0: errTransient})
		g.levers.reset()
		assert.EqualValues(t, 100, begins(t, g, orders0), "that commit was refused: nothing has begun")

		g.levers.began([]engine.Offset{{Partition: orders0, Offset: 100}}, nil)
		topics["orders"] = 2
		g.levers.reset()
		joins(g.member, member8)
		assert.EqualValues(t, 40, begins(t, g, orders1), "even if its commit is gone")

		kafka.commit(orders0, 100, "kgroup/1 n=1")
		g.levers.reset()
		joins(g.member, member7)
		g.member.OffsetsFetched([]wire.Offset{{Topic: "orders", Partition: 0, Offset: 100, Metadata: "kgroup/1 n=1"}})
		assert.EqualValues(t, 100, begins(t, g, orders0))
		assert.EqualValues(t, 40, begins(t, g, orders1))
		claims := g.levers.claims(map[string][]int32{"orders": {0, 1}})
		assert.Equal(t, []engine.Claim{
			{Partition: orders0, Offset: 100, Committed: true, Metadata: "kgroup/1 n=1", HasEnd: true, End: 100},
			{Partition: orders1, Offset: 40},
		}, claims)
	})
}

// The offsets of a topic are asked for once in an assignment, however many of its
// partitions begin there at the same time; and if they cannot be learnt, none begins.
func TestNewestAsksOnceForATopic(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		kafka := newKafka("one:9092")
		g, _ := newTestGroup(t, func(cfg *Config) { cfg.Start, cfg.Dial = Newest, kafka.dial })
		stub := stubbed(g)
		knownTopics(t, stub, map[string]int{"orders": 8})
		stub.offset = offsets{newest: 100, oldest: 40}.of
		joins(g.member, member7)

		kafka.on(kmsg.OffsetFetch, func(c *call) kmsg.Response {
			answer := kafka.offsetFetch(c.request.(*kmsg.OffsetFetchRequest))
			answer.Topics[0].Partitions[7].ErrorCode = int16(sarama.ErrOffsetsLoadInProgress)
			return answer
		})
		_, err := g.levers.GetOffset("orders", 0, sarama.OffsetOldest)
		require.ErrorIs(t, err, sarama.ErrOffsetsLoadInProgress)
		require.ErrorContains(t, err, "offsets of topic orders")

		kafka.on(kmsg.OffsetFetch, nil)
		kafka.forget()
		var wg sync.WaitGroup
		for i := range int32(8) {
			wg.Go(func() {
				_, _ = g.levers.GetOffset("orders", i, sarama.OffsetNewest)
				at, err := g.levers.GetOffset("orders", i, sarama.OffsetOldest)
				assert.NoError(t, err)
				assert.EqualValues(t, 100, at)
			})
		}
		wg.Wait()
		assert.Equal(t, 1, kafka.count(kmsg.OffsetFetch))
	})
}

// An answer of 16 MB and more passes the group connection unseen. The engine then wants
// to begin at an offset that we do not know of, and the newest would be beyond it.
func TestNewestDoesNotSkipWhatWasCommittedUnseen(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		kafka := newKafka("one:9092")
		g, _ := newTestGroup(t, func(cfg *Config) { cfg.Start, cfg.Dial = Newest, kafka.dial })
		stub := stubbed(g)
		knownTopics(t, stub, map[string]int{"orders": 1})
		stub.offset = offsets{newest: 100, oldest: 40}.of
		joins(g.member, member7)
		kafka.commit(orders0, 70, "kgroup/1 n=1")
		_, seen := g.member.committed(orders0)
		require.False(t, seen)
		assert.EqualValues(t, 40, begins(t, g, orders0), "the range that the engine is told")
		assert.Equal(t, []engine.Claim{{Partition: orders0, Offset: 70, Committed: true, Metadata: "kgroup/1 n=1", HasEnd: true, End: 100}}, g.levers.claims(map[string][]int32{"orders": {0}}))
	})
}

// The end of a partition that is written to moves between the engine's questions. It
// asks twice if the committed offset is out of range, and begins at the oldest message
// whatever the second answers are; then the claim must not say otherwise.
func TestEndMovesOverTheCommittedOffset(t *testing.T) {
	g, s := newTestGroup(t, nil)
	stub := stubbed(g)
	newest := int64(148)
	stub.offset = func(_ string, _ int32, at int64) (int64, error) {
		if at == sarama.OffsetNewest {
			newest += 2
			return newest - 2, nil
		}
		return 0, nil
	}
	stub.leader = func(string, int32) (*sarama.Broker, error) { return nil, sarama.ErrLeaderNotAvailable }
	joins(g.member, member7)
	g.member.OffsetsFetched([]wire.Offset{{Topic: "orders", Partition: 0, Offset: 150}})
	require.EqualValues(t, 0, begins(t, g, orders0))
	claims := g.levers.claims(map[string][]int32{"orders": {0}})
	assert.Equal(t, []engine.Claim{{Partition: orders0, Offset: 0}}, claims)
	assert.Len(t, s.history.all("error", "150"), 1, "150 messages are handled again, and nobody said so")
}

// All partitions of the member wait for the answer, so a broker that hangs is not
// waited for when the partition can begin without it.
func TestBrokerThatDoesNotTellOffsets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newTestGroup(t, nil)
		stub := stubbed(g)
		release := make(chan struct{})
		var questions atomic.Int32
		stub.offset = func(string, int32, int64) (int64, error) {
			questions.Add(1)
			<-release
			return 100, nil
		}
		joins(g.member, member7)
		g.member.OffsetsFetched([]wire.Offset{{Topic: "orders", Partition: 0, Offset: 70}})
		began := time.Now()
		assert.EqualValues(t, 70, begins(t, g, orders0))
		assert.Equal(t, askPatience, time.Since(began))
		assert.EqualValues(t, 1, questions.Load(), "it is not asked again")
		assert.Len(t, s.history.all("error", "orders/0", errUnanswered.Error()), 1)
		assert.True(t, g.levers.unreachable(orders0), "so its end is not known")

		began = time.Now()
		without := begin(func() { begins(t, g, orders1) })
		time.Sleep(time.Minute)
		synctest.Wait()
		assert.False(t, isClosed(without), "without a committed offset it cannot begin")
		close(release)
		<-without
		assert.Equal(t, time.Minute, time.Since(began))
		assert.False(t, g.levers.unreachable(orders1))
	})
}

func TestGetOffsetAfterTheClientWasClosed(t *testing.T) {
	g, s := newTestGroup(t, nil)
	stub := stubbed(g)
	stub.offset = offsets{newestErr: sarama.ErrClosedClient}.of
	_, err := g.levers.GetOffset("orders", 0, sarama.OffsetNewest)
	require.ErrorIs(t, err, sarama.ErrClosedClient)
	assert.Len(t, s.history.all("error"), 1)
}

func TestClaimsAreSorted(t *testing.T) {
	g, _ := newTestGroup(t, nil)
	stubbed(g)
	var got []engine.Partition
	for _, c := range g.levers.claims(map[string][]int32{"refunds": {0}, "orders": {0, 1}}) {
		got = append(got, c.Partition)
	}
	assert.Equal(t, []engine.Partition{orders0, orders1, refunds0}, got)
	assert.Empty(t, g.levers.claims(nil))
}
