package kgrouptest

// Records: written for the service under test, and read back to see what it wrote.

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A Record is to be produced. With a key it goes to the partition that Java
// clients choose for the key; without, records go to partitions 0, 1, 2 … in
// turn; [Record.On] names one.
type Record struct {
	Key, Value []byte // nil is Kafka's null
	Headers    []Header
	Timestamp  time.Time // in milliseconds on the wire; zero: now

	on *int32
}

// Header is one header of a record or message. A name may occur more than once.
type Header struct {
	Key   string
	Value []byte
}

// On is the same record for one partition, whatever its key.
func (r Record) On(partition int32) Record {
	r.on = &partition
	return r
}

// A Message is a record as the topic has it.
type Message struct {
	Partition  int32
	Offset     int64
	Key, Value []byte
	Headers    []Header
	Timestamp  time.Time
}

// Codec is how the records of one call are compressed.
type Codec int

// The codecs of Kafka.
const (
	Uncompressed Codec = iota
	Gzip
	Snappy
	LZ4
	Zstd
)

// Transaction is what becomes of a transaction.
type Transaction int

// The outcomes of a transaction.
const (
	NoTransaction Transaction = iota
	Commit
	Abort // the records stay in the log, and only a consumer that reads uncommitted sees them
)

// How says how [Broker.ProduceWith] produces. Its zero value is what
// [Broker.Produce] does.
type How struct {
	Codec       Codec
	Transaction Transaction // the end of a transaction takes an offset of its own, in each partition
}

// Produce appends records to a topic, in the given order within each partition, and
// returns when they are there. It does not retry: it returns any error, also one
// that was injected as a fault. Records before the failed one may have been
// written.
func (b *Broker) Produce(topic string, records ...Record) error {
	return b.ProduceWith(How{}, topic, records...)
}

// ProduceWith is [Broker.Produce] with compression or in a transaction. The records
// of one call share batches, of up to a megabyte or the topic's max.message.bytes;
// how many to a batch is not defined.
func (b *Broker) ProduceWith(how How, topic string, records ...Record) error {
	return b.use(func() error {
		if err := b.produce(how, topic, records); err != nil {
			return fmt.Errorf("kgrouptest: produce to %s: %w", topic, err)
		}
		return nil
	})
}

var transactions atomic.Int64 // for ids of their own: one id twice would fence the first

func (b *Broker) produce(how How, topic string, records []Record) error {
	info, partitions := b.cluster.TopicInfo(topic), len(b.cluster.PartitionInfos(topic))
	if info == nil || partitions == 0 {
		return kerr.UnknownTopicOrPartition
	}
	out := make([]*kgo.Record, len(records))
	for i, r := range records {
		partition, err := b.choose(topic, partitions, r)
		if err != nil {
			return fmt.Errorf("record %d: %w", i, err)
		}
		out[i] = &kgo.Record{Topic: topic, Partition: partition, Key: r.Key, Value: r.Value, Timestamp: r.Timestamp}
		for _, h := range r.Headers {
			out[i].Headers = append(out[i].Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
		}
	}

	opts := []kgo.Opt{
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(how.Codec.codec()),
		kgo.ProducerBatchMaxBytes(batchLimit(info)),
		kgo.RecordRetries(0),
	}
	if how.Transaction == NoTransaction {
		opts = append(opts, kgo.DisableIdempotentWrite())
	} else {
		opts = append(opts, kgo.TransactionalID("kgrouptest-"+strconv.FormatInt(transactions.Add(1), 10)))
	}
	client, err := b.client(opts...)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()

	if how.Transaction == NoTransaction {
		return send(ctx, client, out)
	}
	if err := client.BeginTransaction(); err != nil {
		return err
	}
	if err := send(ctx, client, out); err != nil {
		_ = client.EndTransaction(ctx, kgo.TryAbort)
		return err
	}
	return client.EndTransaction(ctx, kgo.TransactionEndTry(how.Transaction == Commit))
}

// batchLimit is the topic's max.message.bytes, if it is a size the client can do.
func batchLimit(topic *kfake.TopicInfo) int32 {
	const standard, smallest, largest = 1_000_012, 512, 64 << 20
	if set := topic.Configs["max.message.bytes"]; set != nil {
		if n, err := strconv.Atoi(*set); err == nil {
			return int32(min(max(n, smallest), largest))
		}
	}
	return standard
}

// send returns the first error in the order of the records.
func send(ctx context.Context, client *kgo.Client, records []*kgo.Record) error {
	errs := make([]error, len(records))
	for i, r := range records {
		client.Produce(ctx, r, func(_ *kgo.Record, err error) { errs[i] = err })
	}
	if err := client.Flush(ctx); err != nil {
		return err
	}
	for i, err := range errs {
		if err != nil {
			return fmt.Errorf("record %d: %w", i, err)
		}
	}
	return nil
}

func (b *Broker) choose(topic string, partitions int, r Record) (int32, error) {
	switch {
	case r.on != nil:
		if *r.on < 0 || int(*r.on) >= partitions {
			return 0, fmt.Errorf("partition %d of %d: %w", *r.on, partitions, kerr.UnknownTopicOrPartition)
		}
		return *r.on, nil
	case r.Key != nil:
		byKey := kgo.StickyKeyPartitioner(nil).ForTopic(topic)
		return int32(byKey.Partition(&kgo.Record{Key: r.Key}, partitions)), nil
	default:
		return int32(b.keyless.next(topic) % partitions), nil
	}
}

// spreader counts the records of each topic that left the choice to us.
type spreader struct {
	mu    sync.Mutex
	count map[string]int
}

func (s *spreader) next(topic string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count == nil {
		s.count = make(map[string]int)
	}
	n := s.count[topic]
	s.count[topic]++
	return n
}

func (s *spreader) forget(topic string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.count, topic)
}

func (c Codec) codec() kgo.CompressionCodec {
	switch c {
	case Gzip:
		return kgo.GzipCompression()
	case Snappy:
		return kgo.SnappyCompression()
	case LZ4:
		return kgo.Lz4Compression()
	case Zstd:
		return kgo.ZstdCompression()
	default:
		return kgo.NoCompression()
	}
}

// Messages are all messages of a topic that a consumer which reads committed
// would see, ordered by partition and offset.
func (b *Broker) Messages(topic string) ([]Message, error) {
	var messages []Message
	err := b.use(func() error {
		var err error
		if messages, err = b.messages(topic); err != nil {
			return fmt.Errorf("kgrouptest: read %s: %w", topic, err)
		}
		return nil
	})
	return messages, err
}

func (b *Broker) messages(topic string) ([]Message, error) {
	info := b.cluster.TopicInfo(topic)
	if info == nil {
		return nil, kerr.UnknownTopicOrPartition
	}
	client, err := b.client()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()

	var messages []Message
	for _, p := range b.cluster.PartitionInfos(topic) {
		for offset := p.LogStartOffset; offset < p.LastStableOffset; {
			fetched, next, err := fetch(ctx, client, info, p, offset)
			if err != nil {
				return nil, fmt.Errorf("partition %d at %d: %w", p.Partition, offset, err)
			}
			messages = append(messages, fetched...)
			offset = next
		}
	}
	return messages, nil
}

// fetch reads one response's worth of a partition and returns where to go on.
func fetch(ctx context.Context, client *kgo.Client, topic *kfake.TopicInfo, p *kfake.PartitionInfo, offset int64) ([]Message, int64, error) {
	part := kmsg.NewFetchRequestTopicPartition()
	part.Partition, part.FetchOffset, part.PartitionMaxBytes = p.Partition, offset, 1<<20
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID = topic.Topic, topic.TopicID
	t.Partitions = append(t.Partitions, part)
	req := kmsg.NewPtrFetchRequest()
	req.MaxBytes, req.IsolationLevel = 1<<20, 1
	req.Topics = append(req.Topics, t)

	kresp, err := client.Broker(int(p.Leader)).Request(ctx, req)
	if err != nil {
		return nil, 0, err
	}
	resp := kresp.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, 0, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return nil, 0, fmt.Errorf("asked for one partition, got %d topics", len(resp.Topics))
	}
	fetched, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		Offset:         offset,
		IsolationLevel: kgo.ReadCommitted(),
		Topic:          topic.Topic,
		Partition:      p.Partition,
	}, &resp.Topics[0].Partitions[0], kgo.DefaultDecompressor(), nil)
	if fetched.Err != nil {
		return nil, 0, fetched.Err
	}
	if next <= offset {
		return nil, 0, fmt.Errorf("nothing there, but the log goes on to %d", p.LastStableOffset)
	}
	messages := make([]Message, len(fetched.Records))
	for i, r := range fetched.Records {
		messages[i] = Message{Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value, Timestamp: r.Timestamp}
		for _, h := range r.Headers {
			messages[i].Headers = append(messages[i].Headers, Header{Key: h.Key, Value: h.Value})
		}
	}
	return messages, next, nil
}
