package e2e

// What cannot be handled, and the dead letters that come of it.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/e2e/faults"
	"github.com/kgroup-go/kgroup/e2e/history"
)

// A record whose value begins with bad can be handled by nobody: its dead letter is owed.
const bad = "bad"

// sick is the partition with such a message, where there is one.
const sick = 1

var errBad = errors.New("nobody can handle this")

func isBad(value []byte) bool { return bytes.HasPrefix(value, []byte(bad)) }

// refusing handlers refuse bad messages: every second one for good, the others each time
// anew.
func refusing(h kgroup.HandlerFunc) kgroup.HandlerFunc {
	return func(ctx context.Context, msg kgroup.Message) error {
		if err := h(ctx, msg); err != nil || !isBad(msg.Value) {
			return err
		}
		if msg.Offset%2 == 0 {
			return kgroup.Permanent(errBad)
		}
		return errBad
	}
}

// deadLetters makes a topic for dead letters. What lies in it in the end is judged.
func (e *env) deadLetters(partitions int32) string {
	e.t.Helper()
	return e.deadLettersWith(partitions, -1, nil)
}

func (e *env) deadLettersWith(partitions int32, replicas int16, settings map[string]string) string {
	e.t.Helper()
	topic := e.topicSet(partitions, replicas, settings)
	e.letters = append(e.letters, topic)
	return topic
}

// sendTo produces one record to a partition.
func (e *env) sendTo(topic string, p int32, value string) *kgo.Record {
	e.t.Helper()
	r := &kgo.Record{Topic: topic, Partition: p, Key: fmt.Appendf(nil, "key-%d", p), Value: []byte(value)}
	e.send(r)
	return r
}

// read reads a whole topic, with a plain sarama consumer.
func (e *env) read(topic string) []*sarama.ConsumerMessage {
	e.t.Helper()
	config := sarama.NewConfig()
	config.Version = sarama.V1_0_0_0 // what every broker of the suite speaks
	consumer, err := sarama.NewConsumer(e.brokers.Addrs(), config)
	require.NoError(e.t, err)
	defer consumer.Close()
	first, ends, err := e.admin.Range(e.ctx, topic)
	require.NoError(e.t, err)
	readers := map[int32]sarama.PartitionConsumer{} // all at once: closing one waits for a fetch
	for p, end := range ends {
		if first[p] < end {
			readers[p], err = consumer.ConsumePartition(topic, p, first[p])
			require.NoError(e.t, err)
		}
	}
	defer func() {
		for _, r := range readers {
			r.AsyncClose()
		}
		for _, r := range readers {
			for range r.Messages() { // closed when its fetch has ended
			}
		}
	}()
	var all []*sarama.ConsumerMessage
	for _, p := range slices.Sorted(maps.Keys(readers)) {
		for at := first[p]; at < ends[p]; {
			msg := receive(e, fmt.Sprintf("%s/%d up to %d", topic, p, ends[p]), readers[p].Messages())
			all = append(all, msg)
			at = msg.Offset + 1
		}
	}
	return all
}

// tellLetters tells the history of the dead letters that there are.
func (e *env) tellLetters() {
	e.t.Helper()
	for _, topic := range e.letters {
		for _, msg := range e.read(topic) {
			of := originOf(e, msg)
			e.history.Letter(of.Topic, of.Partition, of.Offset, msg.Key, history.Place{Topic: topic, Partition: msg.Partition, Offset: msg.Offset})
		}
	}
	e.rules.Letters = len(e.letters) > 0
}

// originOf is the place of the message that a letter is of, whatever its headers' style.
func originOf(e *env, msg *sarama.ConsumerMessage) history.Place {
	e.t.Helper()
	headers := map[string][]byte{}
	for _, h := range msg.Headers {
		headers[string(h.Key)] = h.Value
	}
	if topic, ok := headers["kafka_dlt-original-topic"]; ok {
		return history.Place{
			Topic:     string(topic),
			Partition: int32(binary.BigEndian.Uint32(headers["kafka_dlt-original-partition"])),
			Offset:    int64(binary.BigEndian.Uint64(headers["kafka_dlt-original-offset"])),
		}
	}
	prefix := "kgroup-origin-"
	if _, ok := headers["__connect.errors.topic"]; ok {
		prefix = "__connect.errors."
	}
	partition, err := strconv.ParseInt(string(headers[prefix+"partition"]), 10, 32)
	require.NoError(e.t, err)
	offset, err := strconv.ParseInt(string(headers[prefix+"offset"]), 10, 64)
	require.NoError(e.t, err)
	return history.Place{Topic: string(headers[prefix+"topic"]), Partition: int32(partition), Offset: offset}
}

// header is the value of a letter's header.
func header(msg *sarama.ConsumerMessage, key string) string {
	for _, h := range msg.Headers {
		if string(h.Key) == key {
			return string(h.Value)
		}
	}
	return ""
}

// A censor stands between a member and the brokers, and keeps its dead letters until they
// are released. (Nothing else that a member sends is a Produce request.)
type censor struct {
	front    *front
	writing  chan struct{} // has one when something is kept
	released chan struct{}
	release  func()
}

func (e *env) censor() *censor {
	c := &censor{writing: make(chan struct{}, 1), released: make(chan struct{})}
	c.release = sync.OnceFunc(func() { close(c.released) })
	c.front = e.front(func(addr string) faults.Handler {
		return faults.Until(addr, kmsg.Produce, func(ctx context.Context, conn net.Conn) {
			select {
			case c.writing <- struct{}{}:
			default:
			}
			select {
			case <-c.released:
				faults.Relay(addr)(ctx, conn)
			case <-ctx.Done():
			}
		})
	})
	return c
}

// watch has a member's connections pass the censor.
func (c *censor) watch(cfg *kgroup.Config) { cfg.Dial = c.front.dial }
