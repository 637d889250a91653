package kgroup

// Writing dead letters, with an idempotent producer that is made when the first one is
// written.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/Shopify/sarama"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// letters writes dead letters, one at a time: of several in one request, sarama 1.33
// answers only one when the request has failed too often; and after a refusal it may
// give one letter the sequence number of another, which a broker takes for the same,
// and does not write. Its connections are the group's.
type letters struct {
	group *group
	turn  chan struct{} // held by who writes, and guards the rest

	client   sarama.Client
	producer sarama.SyncProducer // nil: to be made
	warned   map[string]bool     // topics known to have timestamps of their own
}

// Publish implements [engine.Engine].
func (g *group) Publish(ctx context.Context, letter engine.Letter) error {
	select {
	case g.letters.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if !g.begin() {
		<-g.letters.turn
		return engine.ErrGone
	}
	sent := make(chan error, 1)
	go func() { // sarama does not listen to a context
		defer g.routines.Done()
		defer func() { <-g.letters.turn }()
		sent <- g.letters.send(letter)
	}()
	select {
	case err := <-sent:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// send writes a letter.
func (w *letters) send(letter engine.Letter) error {
	if err := w.open(); err != nil {
		return w.explain(err)
	}
	partitions, err := w.client.Partitions(letter.Topic)
	if err != nil {
		return w.explain(err)
	}
	message := &sarama.ProducerMessage{Topic: letter.Topic, Partition: choosePartition(letter, int32(len(partitions))), Timestamp: letter.Timestamp}
	if letter.Key != nil {
		message.Key = sarama.ByteEncoder(letter.Key)
	}
	if letter.Value != nil {
		message.Value = sarama.ByteEncoder(letter.Value)
	}
	for _, h := range letter.Headers {
		message.Headers = append(message.Headers, sarama.RecordHeader{Key: []byte(h.Key), Value: h.Value})
	}
	if _, _, err := w.producer.SendMessage(message); err != nil {
		w.close() // its sequence numbers may not be the brokers'
		return w.explain(err)
	}
	if !message.Timestamp.Equal(letter.Timestamp) && !letter.Timestamp.IsZero() && !w.warned[letter.Topic] {
		w.warned[letter.Topic] = true
		w.group.log.Warn("the dead-letter topic does not keep the messages' timestamps (message.timestamp.type=LogAppendTime)", "topic", letter.Topic)
	}
	return nil
}

// open makes the producer, if need be.
func (w *letters) open() error {
	if w.producer != nil {
		return nil
	}
	client, err := sarama.NewClient(w.group.config.Brokers, w.group.letterConfig())
	if err != nil {
		return err
	}
	producer, err := sarama.NewSyncProducerFromClient(producerClient{client})
	if err != nil {
		_ = client.Close()
		client.Config().MetricRegistry.UnregisterAll()
		return fmt.Errorf("begin an idempotent producer: %w", err)
	}
	w.client, w.producer = client, producer
	return nil
}

// A producerClient says when the brokers have given no producer id: sarama 1.33 does not
// look, and writes without one.
type producerClient struct{ sarama.Client }

func (c producerClient) InitProducerID() (*sarama.InitProducerIDResponse, error) {
	answer, err := c.Client.InitProducerID()
	if err == nil && answer.Err != sarama.ErrNoError {
		return nil, answer.Err
	}
	return answer, err
}

// close ends the producer. Nobody writes.
func (w *letters) close() {
	if w.producer == nil {
		return
	}
	_ = w.producer.Close()
	_ = w.client.Close()
	w.client.Config().MetricRegistry.UnregisterAll() // go-metrics would keep its meters
	w.client, w.producer = nil, nil
}

// explain adds what to check.
func (w *letters) explain(err error) error {
	switch {
	case errors.Is(err, sarama.ErrMessageSizeTooLarge), errors.Is(err, sarama.ErrMessageSetSizeTooLarge):
		return fmt.Errorf("%w (max.message.bytes): %w", engine.ErrTooLarge, err)
	case errors.Is(err, sarama.ErrTopicAuthorizationFailed):
		return fmt.Errorf("%w (the ACLs must allow this user to write to the topic)", err)
	case errors.Is(err, sarama.ErrClusterAuthorizationFailed):
		return fmt.Errorf("%w (before Kafka 2.8, the ACLs must allow this user IdempotentWrite on the cluster)", err)
	}
	return w.group.advise(err)
}

// choosePartition is the letter's own partition, or that of Java's producer for its key.
// Letters without a key stay in the order of their partition.
func choosePartition(letter engine.Letter, count int32) int32 {
	switch {
	case letter.Number < count:
		return letter.Number
	case letter.Key == nil:
		return letter.Number % count
	default:
		return int32(murmur2(letter.Key)&0x7fffffff) % count
	}
}

// murmur2 is the hash of Java's producer (org.apache.kafka.common.utils.Utils).
func murmur2(data []byte) uint32 {
	const m, r = 0x5bd1e995, 24
	h := 0x9747b28c ^ uint32(len(data))
	for ; len(data) >= 4; data = data[4:] {
		k := uint32(data[0]) | uint32(data[1])<<8 | uint32(data[2])<<16 | uint32(data[3])<<24
		k *= m
		k ^= k >> r
		k *= m
		h *= m
		h ^= k
	}
	for i := len(data) - 1; i >= 0; i-- {
		h ^= uint32(data[i]) << (8 * i)
		if i == 0 {
			h *= m
		}
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}

// letterConfig is the producer's: idempotent, and so with one request under way.
func (g *group) letterConfig() *sarama.Config {
	fresh := sarama.NewConfig()
	config := *g.dataConfig
	config.MetricRegistry = fresh.MetricRegistry
	config.Metadata = fresh.Metadata
	config.Metadata.Full = false
	config.Metadata.AllowAutoTopicCreation = false
	config.Metadata.Retry.Max = 1
	config.Net.MaxOpenRequests = 1
	config.Net.ReadTimeout = letterTimeout + 5*time.Second
	config.Producer = fresh.Producer
	config.Producer.Idempotent = true
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Timeout = letterTimeout
	config.Producer.Partitioner = sarama.NewManualPartitioner
	// Messages that came compressed may be too large if they are not.
	config.Producer.Compression = sarama.CompressionGZIP
	config.Producer.MaxMessageBytes = int(sarama.MaxRequestSize) - 1<<20 // the brokers say what is too large
	config.Producer.Retry.Max = 5
	config.Producer.Retry.Backoff = 200 * time.Millisecond
	config.Producer.Return.Successes = true
	return &config
}

// letterTimeout is how long the brokers may wait for the replicas of a letter.
const letterTimeout = 10 * time.Second
