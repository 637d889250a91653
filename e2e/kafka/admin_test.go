package kafka

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestAdmin(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(3))
	require.NoError(t, err)
	defer cluster.Close()
	testAdmin(t, cluster.ListenAddrs(), 1)
}

// A change of metadata reaches the brokers one after the other; a consumer that is
// started at once may ask the last of them.
func TestAdminWaitsForEveryBroker(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(3), kfake.SeedTopics(1, "grows"))
	require.NoError(t, err)
	defer cluster.Close()
	stale := 4 // answers; more than one round
	cluster.ControlKey(int16(kmsg.Metadata), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		req := r.(*kmsg.MetadataRequest)
		if len(req.Topics) == 0 || stale == 0 || cluster.CurrentNode() != 2 {
			return nil, nil, false
		}
		stale--
		resp := req.ResponseKind().(*kmsg.MetadataResponse)
		resp.Topics = []kmsg.MetadataResponseTopic{{Topic: req.Topics[0].Topic, TopicID: req.Topics[0].TopicID, Partitions: []kmsg.MetadataResponseTopicPartition{{}}}}
		return resp, nil, true
	})
	a, err := NewAdmin(cluster.ListenAddrs())
	require.NoError(t, err)
	defer a.Close()
	require.NoError(t, a.GrowTopic(deadline(t, time.Minute), "grows", 3))
	assert.Zero(t, stale)
}

// testAdmin is what an Admin must do on any brokers; with real ones it is run from
// cluster_test.go.
func testAdmin(t *testing.T, addrs []string, replicas int16) {
	ctx := deadline(t, time.Minute)
	a, err := NewAdmin(addrs)
	require.NoError(t, err)
	defer a.Close()

	t.Run("topics", func(t *testing.T) {
		require.NoError(t, a.CreateTopic(ctx, "grows", 1, replicas, map[string]string{"retention.ms": "60000"}))
		require.ErrorContains(t, a.CreateTopic(ctx, "grows", 1, replicas, nil), "create topic grows: ")
		require.NoError(t, a.GrowTopic(ctx, "grows", 3))
		leader, err := a.Leader(ctx, "grows", 2)
		require.NoError(t, err)
		assert.GreaterOrEqual(t, leader, int32(0))
		_, err = a.Leader(ctx, "grows", 3)
		require.EqualError(t, err, "leader of grows/3: it has none")
		require.NoError(t, a.ConfigureTopic(ctx, "grows", map[string]string{"max.message.bytes": "100"}))
		require.NoError(t, poll(ctx, "the setting to count", func(context.Context) error {
			if a.Produce(ctx, kgo.NoCompression(), &kgo.Record{Topic: "grows", Value: make([]byte, 1000)}) == nil {
				return errors.New("it does not")
			}
			return nil
		}))
		require.ErrorContains(t, a.ConfigureTopic(ctx, "nowhere", nil), "configure topic nowhere: ")
		require.NoError(t, a.DeleteTopic(ctx, "grows"))
		_, err = a.Leader(ctx, "grows", 0)
		require.ErrorContains(t, err, "leader of grows/0: UNKNOWN_TOPIC_OR_PARTITION")
	})

	t.Run("records", func(t *testing.T) {
		require.NoError(t, a.CreateTopic(ctx, "records", 2, -1, nil))
		codecs := []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression()}
		var want []*kgo.Record
		for i, codec := range codecs {
			r := &kgo.Record{
				Topic: "records", Partition: 1,
				Key: []byte("key"), Value: fmt.Append(nil, "value ", i), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte("1")}},
			}
			require.NoError(t, a.Produce(ctx, codec, r))
			assert.Equal(t, int64(i), r.Offset)
			want = append(want, r)
		}
		got := read(t, ctx, addrs, "records", 1, len(want))
		for i := range want {
			assert.Equal(t, want[i].Value, got[i].Value)
			assert.Equal(t, want[i].Headers, got[i].Headers)
		}
		require.NoError(t, a.DeleteRecords(ctx, "records", 1, 2))
		first, end, err := a.Range(ctx, "records")
		require.NoError(t, err)
		assert.Equal(t, map[int32]int64{0: 0, 1: 2}, first)
		assert.Equal(t, map[int32]int64{0: 0, 1: 4}, end)
	})

	t.Run("transactions", func(t *testing.T) {
		require.NoError(t, a.CreateTopic(ctx, "ledger", 1, replicas, nil))
		record := func(v string) *kgo.Record { return &kgo.Record{Topic: "ledger", Value: []byte(v)} }
		committed, err := a.Begin(ctx, "tx", record("committed"))
		require.NoError(t, err)
		require.NoError(t, committed.Produce(ctx, record("too")))
		require.NoError(t, committed.Commit(ctx))
		aborted, err := a.Begin(ctx, "tx", record("aborted"))
		require.NoError(t, err)
		require.NoError(t, aborted.Abort(ctx))
		require.NoError(t, a.Produce(ctx, kgo.NoCompression(), record("plain")))
		open, err := a.Begin(ctx, "tx", record("open"))
		require.NoError(t, err)
		open.Abandon()
		require.NoError(t, a.Produce(ctx, kgo.NoCompression(), record("held back")))

		assert.Equal(t, []string{"committed", "too", "plain"}, values(read(t, ctx, addrs, "ledger", 0, 3)))

		next, err := a.Begin(ctx, "tx", record("next")) // ends the open one
		require.NoError(t, err)
		require.NoError(t, next.Commit(ctx))
		assert.Equal(t, []string{"committed", "too", "plain", "held back", "next"}, values(read(t, ctx, addrs, "ledger", 0, 5)))
	})

	t.Run("groups", func(t *testing.T) {
		require.NoError(t, a.CreateTopic(ctx, "work", 2, replicas, nil))
		g, err := a.DescribeGroup(ctx, "team")
		require.NoError(t, err)
		assert.Equal(t, "Dead", g.State)

		set := map[string]map[int32]Committed{"work": {1: {Offset: 7, Metadata: "note"}}}
		require.NoError(t, a.CommitOffsets(ctx, "team", set))
		got, err := a.CommittedMetadata(ctx, "team")
		require.NoError(t, err)
		assert.Equal(t, set, got)
		offsets, err := a.CommittedOffsets(ctx, "team")
		require.NoError(t, err)
		assert.Equal(t, Offsets{"work": {1: 7}}, offsets)

		member, err := kgo.NewClient(kgo.SeedBrokers(addrs...), kgo.ClientID("worker"), kgo.ConsumerGroup("team"), kgo.ConsumeTopics("work"), kgo.DisableAutoCommit(), kgo.Balancers(kgo.RangeBalancer()))
		require.NoError(t, err)
		defer member.Close()
		require.NoError(t, poll(ctx, "the member to join", func(context.Context) error {
			if g, err = a.DescribeGroup(ctx, "team"); err != nil {
				return err
			}
			if g.State != "Stable" {
				return fmt.Errorf("the group is %s", g.State)
			}
			return nil
		}))
		require.Len(t, g.Members, 1)
		assert.Equal(t, "range", g.Protocol)
		assert.Equal(t, "worker", g.Members[0].ClientID)
		assert.NotEmpty(t, g.Members[0].ID)
		assert.Equal(t, map[string][]int32{"work": {0, 1}}, g.Members[0].Assigned)
		coordinator, err := a.Coordinator(ctx, "team")
		require.NoError(t, err)
		assert.Equal(t, g.Coordinator, coordinator)
	})
}

func read(t *testing.T, ctx context.Context, addrs []string, topic string, partition int32, n int) []*kgo.Record {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(addrs...), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().AtStart()}}))
	require.NoError(t, err)
	defer cl.Close()
	var got []*kgo.Record
	for len(got) < n {
		fetches := cl.PollFetches(ctx)
		require.NoError(t, fetches.Err(), "after %d of %d records", len(got), n)
		got = append(got, fetches.Records()...)
	}
	return got
}

func values(records []*kgo.Record) []string {
	var vs []string
	for _, r := range records {
		vs = append(vs, string(r.Value))
	}
	return vs
}
