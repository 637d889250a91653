package kgrouptest_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/kgroup-go/kgroup/kgrouptest"
)

func TestRecordsComeBackWhole(t *testing.T) {
	b := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders"})
	at := time.UnixMilli(1_700_000_000_123)
	headers := []kgrouptest.Header{{Key: "trace", Value: []byte("1")}, {Key: "trace", Value: []byte("2")}, {Key: "null"}}
	begin := time.Now().Truncate(time.Millisecond)
	require.NoError(t, b.Produce("orders",
		kgrouptest.Record{Key: []byte("k"), Value: []byte("v"), Headers: headers, Timestamp: at},
		kgrouptest.Record{Key: []byte{}, Value: nil},
	))
	messages, err := b.Messages("orders")
	require.NoError(t, err)
	require.Len(t, messages, 2)
	assert.Equal(t, kgrouptest.Message{Key: []byte("k"), Value: []byte("v"), Headers: headers, Timestamp: at}, messages[0])
	assert.EqualValues(t, 1, messages[1].Offset)
	assert.NotNil(t, messages[1].Key)
	assert.Nil(t, messages[1].Value)
	assert.WithinRange(t, messages[1].Timestamp, begin, time.Now())
}

func TestWhichPartition(t *testing.T) {
	b := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders", Partitions: 7})
	// Hashes from the tests of Kafka's Java client: murmur2("21") = -973932308,
	// murmur2("foobar") = -790332482; made positive, modulo 7.
	require.NoError(t, b.Produce("orders",
		kgrouptest.Record{Key: []byte("21"), Value: []byte("key 21")},
		kgrouptest.Record{Key: []byte("foobar"), Value: []byte("key foobar")},
		kgrouptest.Record{Key: []byte("21"), Value: []byte("key 21, but on 5")}.On(5),
		kgrouptest.Record{Value: []byte("first")},
		kgrouptest.Record{Value: []byte("on 0")}.On(0),
	))
	require.NoError(t, b.Produce("orders", values("second", "third")...))
	assert.Equal(t, map[int32][]string{
		0: {"key foobar", "first", "on 0"},
		1: {"second"},
		2: {"third"},
		3: {"key 21"},
		5: {"key 21, but on 5"},
	}, texts(t, b, "orders"))

	for _, partition := range []int32{-1, 7} {
		err := b.Produce("orders", kgrouptest.Record{}.On(partition))
		require.ErrorIs(t, err, kerr.UnknownTopicOrPartition)
		require.ErrorContains(t, err, fmt.Sprintf("produce to orders: record 0: partition %d of 7", partition))
	}
}

func TestCodecs(t *testing.T) {
	b := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders"})
	codecs := []kgrouptest.Codec{kgrouptest.Uncompressed, kgrouptest.Gzip, kgrouptest.Snappy, kgrouptest.LZ4, kgrouptest.Zstd}
	squeezable := make([]byte, 1000) // what grows in compression is sent as it is
	for _, codec := range codecs {
		require.NoError(t, b.ProduceWith(kgrouptest.How{Codec: codec}, "orders", kgrouptest.Record{Value: squeezable}, kgrouptest.Record{Value: squeezable}))
	}
	messages, err := b.Messages("orders")
	require.NoError(t, err)
	require.Len(t, messages, 2*len(codecs))
	for _, m := range messages {
		assert.Equal(t, squeezable, m.Value)
	}

	var onTheWire []uint8 // Kafka's numbers: 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd
	client := consume(t, b, kgo.ConsumeTopics("orders"))
	for ctx := within(t); len(onTheWire) < 2*len(codecs); {
		fetches := client.PollFetches(ctx)
		require.NoError(t, ctx.Err())
		for r := range fetches.RecordsAll() {
			onTheWire = append(onTheWire, r.Attrs.CompressionType())
		}
	}
	assert.Equal(t, []uint8{0, 0, 1, 1, 2, 2, 3, 3, 4, 4}, onTheWire)
}

func TestTransactions(t *testing.T) {
	b := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders"})
	require.NoError(t, b.ProduceWith(kgrouptest.How{Transaction: kgrouptest.Commit}, "orders", values("a", "b")...))
	require.NoError(t, b.ProduceWith(kgrouptest.How{Transaction: kgrouptest.Abort}, "orders", values("x")...))
	require.NoError(t, b.Produce("orders", values("c")...))
	require.NoError(t, b.ProduceWith(kgrouptest.How{Transaction: kgrouptest.Abort}, "orders", values("y")...))

	messages, err := b.Messages("orders")
	require.NoError(t, err)
	require.Equal(t, map[int32][]string{0: {"a", "b", "c"}}, texts(t, b, "orders"))
	assert.EqualValues(t, 5, messages[2].Offset, "after two records, a marker, the aborted record and its marker")
	assert.EqualValues(t, 8, b.Cluster().PartitionInfo("orders", 0).HighWatermark)

	client := consume(t, b, kgo.ConsumeTopics("orders")) // reads uncommitted
	var seen []string
	for range 5 {
		seen = append(seen, next(t, client))
	}
	assert.Equal(t, []string{"a", "b", "x", "c", "y"}, seen)
}

// More than one batch, and more than one fetch.
func TestManyRecords(t *testing.T) {
	b := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders", Partitions: 2})
	records := make([]kgrouptest.Record, 60_000)
	for i := range records {
		records[i].Value = fmt.Appendf(nil, "%0100d", i)
	}
	require.NoError(t, b.Produce("orders", records...))
	messages, err := b.Messages("orders")
	require.NoError(t, err)
	require.Len(t, messages, len(records))
	for i, m := range messages {
		partition, offset := i/30_000, i%30_000
		require.Equal(t, int32(partition), m.Partition)
		require.Equal(t, int64(offset), m.Offset)
		require.Equal(t, records[2*offset+partition].Value, m.Value)
	}
}

func TestLargeRecord(t *testing.T) {
	b := kgrouptest.Start(t,
		kgrouptest.Topic{Name: "plain"},
		kgrouptest.Topic{Name: "large", Configs: map[string]string{"max.message.bytes": "4000000"}})
	large := kgrouptest.Record{Value: make([]byte, 3_000_000)}
	require.ErrorIs(t, b.Produce("plain", large), kerr.MessageTooLarge)
	require.NoError(t, b.Produce("large", large, large))
	messages, err := b.Messages("large")
	require.NoError(t, err)
	require.Len(t, messages, 2)
	assert.Len(t, messages[1].Value, 3_000_000)
}

func TestMessagesOfNoTopic(t *testing.T) {
	b := kgrouptest.Start(t)
	_, err := b.Messages("orders")
	require.ErrorIs(t, err, kerr.UnknownTopicOrPartition)
}

func TestMessagesBegins(t *testing.T) {
	b := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders"})
	require.NoError(t, b.Produce("orders", values("a", "b")...))
	require.NoError(t, b.Produce("orders", values("c")...))
	require.NoError(t, b.Cluster().DeleteRecords("orders", 0, 1))
	assert.Equal(t, map[int32][]string{0: {"b", "c"}}, texts(t, b, "orders"), "from the log start, in the middle of a batch")
}

// onceThenSilence says that it was reached, and answers nothing from the first
// Produce on.
func onceThenSilence(reached chan<- struct{}) func(kmsg.Request) (kmsg.Response, error, bool) {
	return func(req kmsg.Request) (kmsg.Response, error, bool) {
		if kmsg.Key(req.Key()) != kmsg.Produce {
			return nil, nil, false
		}
		close(reached)
		return nil, nil, true
	}
}
