package e2e

// What records may be like.

import (
	"context"
	"fmt"
	"sync"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/e2e/kafka"
)

// Records of an aborted transaction are never handled. Those of an open one are not
// handled yet, nor is what comes after them in their partition.
func transactions(e *env) {
	topic, other := e.topic(1), e.topic(1)
	begin := func(id string) (*kafka.Transaction, []*kgo.Record) {
		rs := e.records(topic, 5)
		tx, err := e.admin.Begin(e.ctx, e.group+id, rs...)
		require.NoError(e.t, err)
		return tx, rs
	}
	aborted, _ := begin("aborted")
	require.NoError(e.t, aborted.Abort(e.ctx))
	committed, rs := begin("committed")
	require.NoError(e.t, committed.Commit(e.ctx))
	e.produced(rs...)
	open, inside := begin("open")
	after := e.records(topic, 5)
	require.NoError(e.t, e.admin.Produce(e.ctx, kgo.NoCompression(), after...))

	var mu sync.Mutex
	handled := map[int64]bool{}
	e.start("a", kgroup.Topics{
		topic: {Handler: kgroup.HandlerFunc(func(_ context.Context, msg kgroup.Message) error {
			mu.Lock()
			defer mu.Unlock()
			handled[msg.Offset] = true
			return nil
		})},
		other: {Handler: kgroup.HandlerFunc(quick)},
	})
	e.awaitCommitted(topic)
	e.produce(other, 10) // handled later than what might come of the open transaction
	e.awaitCommitted(other)
	mu.Lock()
	assert.Len(e.t, handled, 5, "only what was committed is handled while a transaction is open")
	mu.Unlock()

	require.NoError(e.t, open.Commit(e.ctx))
	e.produced(inside...)
	e.produced(after...)
	e.awaitCommitted()
}

// Every codec that producers may compress with.
func codecs(e *env) {
	topic := e.topic(1)
	var want []string
	for name, codec := range map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	} {
		rs := e.records(topic, 50) // one batch
		for i, r := range rs {
			r.Value = fmt.Appendf(nil, "%s %d", name, i)
			want = append(want, string(r.Value))
		}
		require.NoError(e.t, e.admin.Produce(e.ctx, codec, rs...))
		e.produced(rs...)
	}
	var mu sync.Mutex
	var got []string
	e.start("a", on(topic, func(_ context.Context, msg kgroup.Message) error {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, string(msg.Value))
		return nil
	}))
	e.awaitCommitted()
	mu.Lock()
	defer mu.Unlock()
	assert.Equal(e.t, want, got)
}

// What a record does not have is nil, and what is empty is not.
func bareRecords(e *env) {
	topic := e.topic(1)
	kv := func(key, value []byte, headers ...kgo.RecordHeader) *kgo.Record {
		return &kgo.Record{Topic: topic, Key: key, Value: value, Headers: headers}
	}
	e.send(
		kv(nil, nil),
		kv([]byte("key"), nil),
		kv(nil, []byte("value")),
		kv([]byte{}, []byte{}),
		kv(nil, nil, kgo.RecordHeader{Key: "h"}, kgo.RecordHeader{Key: "h", Value: []byte("2")}, kgo.RecordHeader{Key: "", Value: []byte{}}),
	)
	var mu sync.Mutex
	var got []kgroup.Message
	e.start("a", on(topic, func(_ context.Context, msg kgroup.Message) error {
		mu.Lock()
		defer mu.Unlock()
		msg.Topic, msg.Offset, msg.Timestamp, msg.Attempt = "", 0, msg.Timestamp.Truncate(-1), 0
		got = append(got, msg)
		return nil
	}))
	e.awaitCommitted()
	mu.Lock()
	defer mu.Unlock()
	for i := range got {
		got[i].Timestamp = kgroup.Message{}.Timestamp
	}
	assert.Equal(e.t, []kgroup.Message{
		{},
		{Key: []byte("key")},
		{Value: []byte("value")},
		{Key: []byte{}, Value: []byte{}},
		{Headers: []kgroup.Header{{Key: "h"}, {Key: "h", Value: []byte("2")}, {Key: "", Value: []byte{}}}},
	}, got)
}
