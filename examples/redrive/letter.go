package main

// A letter: what its headers say, and what is written for it.

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/kgroup-go/kgroup"
)

// What a replayed message has beside the letter's headers, as text.
const (
	countHeader  = "kgroup-redrives"      // how often it has been replayed
	letterHeader = "kgroup-redriven-from" // the letter: topic/partition/offset@milliseconds
)

// A letter is a message of the dead-letter topic.
type letter struct {
	msg    kgroup.Message
	origin origin
	reason string
	sent   time.Time // when the message was; without a header that says so, the letter's timestamp
	failed time.Time // when it became a letter; likewise

	redrives  int
	countless bool // the header with the count is no number
}

// An origin is where a letter comes from, as far as that is known.
type origin struct {
	topic     string
	partition int32 // -1: not known
	offset    int64 // likewise
}

// A style is how the headers of letters are written.
type style struct {
	topic, partition, offset, sent, failed, reason string

	number func([]byte) (int64, bool)
	time   func([]byte) (time.Time, bool)
}

// styles are kgroup's DeadLetterHeaders. Where one has no name, it does not say.
var styles = map[kgroup.DeadLetterHeaders]style{
	kgroup.KgroupHeaders: {
		topic: "kgroup-origin-topic", partition: "kgroup-origin-partition", offset: "kgroup-origin-offset",
		sent: "kgroup-origin-timestamp", failed: "kgroup-failed-at", reason: "kgroup-error",
		number: decimal, time: rfc3339,
	},
	kgroup.SpringHeaders: {
		topic: "kafka_dlt-original-topic", partition: "kafka_dlt-original-partition", offset: "kafka_dlt-original-offset",
		sent: "kafka_dlt-original-timestamp", reason: "kafka_dlt-exception-message",
		number: bigEndian, time: milliseconds,
	},
	kgroup.ConnectHeaders: {
		topic: "__connect.errors.topic", partition: "__connect.errors.partition", offset: "__connect.errors.offset",
		reason: "__connect.errors.exception.message",
		number: decimal,
	},
}

// readLetter never fails: a header that is missing or damaged says nothing.
func readLetter(msg kgroup.Message) letter {
	l := letter{msg: msg, origin: origin{partition: -1, offset: -1}, sent: msg.Timestamp, failed: msg.Timestamp}
	if count, ok := msg.Header(countHeader); ok {
		n, isNumber := decimal(count)
		l.redrives, l.countless = int(n), !isNumber || n < 0
	}
	s, ok := styleOf(msg)
	if !ok {
		return l
	}
	l.origin.topic = text(msg, s.topic)
	l.reason = text(msg, s.reason)
	if n, ok := read(msg, s.partition, s.number); ok && n >= 0 && n <= 1<<31-1 {
		l.origin.partition = int32(n)
	}
	if n, ok := read(msg, s.offset, s.number); ok && n >= 0 {
		l.origin.offset = n
	}
	if t, ok := read(msg, s.sent, s.time); ok {
		l.sent = t
	}
	if t, ok := read(msg, s.failed, s.time); ok {
		l.failed = t
	}
	return l
}

// styleOf is that of the last header which names a topic: a message may have been the
// letter of several services, and each adds its headers at the end.
func styleOf(msg kgroup.Message) (style, bool) {
	for _, h := range slices.Backward(msg.Headers) {
		for _, s := range styles {
			if h.Key == s.topic && len(h.Value) > 0 {
				return s, true
			}
		}
	}
	return style{}, false
}

func text(msg kgroup.Message, header string) string {
	value, _ := msg.Header(header)
	return string(value)
}

func read[T any](msg kgroup.Message, header string, parse func([]byte) (T, bool)) (value T, ok bool) {
	raw, ok := msg.Header(header)
	if !ok || header == "" {
		return value, false
	}
	return parse(raw)
}

func decimal(value []byte) (int64, bool) {
	n, err := strconv.ParseInt(string(value), 10, 64)
	return n, err == nil
}

func bigEndian(value []byte) (int64, bool) {
	switch len(value) {
	case 4:
		return int64(int32(binary.BigEndian.Uint32(value))), true
	case 8:
		return int64(binary.BigEndian.Uint64(value)), true
	default:
		return 0, false
	}
}

func rfc3339(value []byte) (time.Time, bool) {
	t, err := time.Parse(time.RFC3339, string(value))
	return t, err == nil
}

func milliseconds(value []byte) (time.Time, bool) {
	n, ok := bigEndian(value)
	return time.UnixMilli(n), ok
}

// name is how letterHeader names it. No topic has a slash in its name. The timestamp is for
// a dead-letter topic that was deleted and made anew: its offsets begin again.
func (l letter) name() string {
	return fmt.Sprintf("%s/%d/%d@%d", l.msg.Topic, l.msg.Partition, l.msg.Offset, l.msg.Timestamp.UnixMilli())
}

// A target is where a letter is written to.
type target struct {
	topic     string
	partition int32
}

func (t target) String() string { return fmt.Sprintf("%s/%d", t.topic, t.partition) }

// partitionIn is the partition for a letter in a topic of so many: the one that it was
// in, if there is such a one, or that of Java's producer for its key. Letters without a
// key stay together, in order.
func (l letter) partitionIn(topic string, count int32) int32 {
	number := l.origin.partition
	if number < 0 {
		number = l.msg.Partition
	}
	switch {
	case number < count:
		return number
	case l.msg.Key == nil:
		return number % count
	default:
		byKey := kgo.StickyKeyPartitioner(nil).ForTopic(topic)
		return int32(byKey.Partition(&kgo.Record{Key: l.msg.Key}, int(count)))
	}
}

// record is what is written for it.
func (l letter) record(to target) *kgo.Record {
	r := &kgo.Record{
		Topic: to.topic, Partition: to.partition,
		Key: l.msg.Key, Value: l.msg.Value, Timestamp: l.msg.Timestamp,
	}
	for _, h := range l.msg.Headers {
		if h.Key != countHeader && h.Key != letterHeader {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
		}
	}
	r.Headers = append(r.Headers,
		kgo.RecordHeader{Key: countHeader, Value: strconv.AppendInt(nil, int64(l.redrives)+1, 10)},
		kgo.RecordHeader{Key: letterHeader, Value: []byte(l.name())})
	return r
}
