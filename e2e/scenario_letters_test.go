package e2e

// Dead letters: what they look like, and dead-letter topics that cannot be written.

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/kgroup-go/kgroup"
)

// lettersTo are topics whose bad messages are refused once, and go to dlq. What cannot be
// written there is tried again twice a second.
func lettersTo(dlq string, topic string) kgroup.Topics {
	return kgroup.Topics{topic: {
		Handler:    refusing(quick),
		DeadLetter: dlq,
		Retry:      kgroup.Retry{MinBackoff: 500 * time.Millisecond, MaxBackoff: 500 * time.Millisecond, MaxAttempts: 1},
	}}
}

// unwritable produces a bad message whose letter cannot be written, and says so. It waits,
// and all behind it in its partition; the others go on, nothing is marked, until mend.
func (e *env) unwritable(m *member, topic string, p int32, one *kgo.Record, says string, mend func()) {
	e.t.Helper()
	lasts := 4 * time.Second
	if e.full {
		lasts = time.Minute
	}
	e.send(one)
	e.sendTo(topic, p, "behind it")
	notMarked := func() {
		e.t.Helper()
		require.LessOrEqual(e.t, e.committed(topic)[p], one.Offset, "committed while the dead letter cannot be written")
	}
	e.until("Health to say that the dead letter cannot be written", func() error {
		notMarked()
		for _, l := range m.consumer.Health().Lanes {
			if l.Topic == topic && l.Partition == p && l.Blocked != nil && strings.Contains(l.Blocked.Error(), says) {
				return nil
			}
		}
		return fmt.Errorf("it says %+v", m.consumer.Health().Lanes)
	})
	e.t.Logf("Health: %v", m.consumer.Health().Err())
	require.ErrorIs(e.t, m.consumer.Health().Err(), errBad)
	rebalances := m.rebalances.Load()
	for began := time.Now(); time.Since(began) < lasts; {
		notMarked()
		require.NoError(e.t, work(e.ctx, 100*time.Millisecond))
	}
	assert.Equal(e.t, one.Offset, e.committed(topic)[p], "committed")
	require.Error(e.t, m.consumer.Health().Err())
	assert.Equal(e.t, rebalances, m.rebalances.Load(), "assignments")
	mend()
	mended := time.Now()
	e.awaitCommitted(topic)
	e.t.Logf("%v after it was mended all was committed", time.Since(mended))
	require.NoError(e.t, m.consumer.Health().Err())
}

func badRecord(topic string, p int32) *kgo.Record {
	return &kgo.Record{Topic: topic, Partition: p, Key: []byte("key"), Value: []byte(bad)}
}

// The only broker that has the dead-letter topic is down for a while.
func lettersWithoutLeader(e *env) {
	topic := e.topic(6)
	var dlq string
	dead := e.coordinator()
	for dead == e.coordinator() { // brokers take turns with topics
		dlq = e.topicWith(1, 1)
		var err error
		dead, err = e.admin.Leader(e.ctx, dlq, 0)
		require.NoError(e.t, err)
	}
	e.letters = append(e.letters, dlq)
	var p int32 // is led by another one
	for leader := dead; leader == dead; p++ {
		var err error
		leader, err = e.admin.Leader(e.ctx, topic, p)
		require.NoError(e.t, err)
	}
	p--
	a := e.start("a", lettersTo(dlq, topic), longSession)
	e.produce(topic, 60)
	e.awaitCommitted()
	e.crash(dead)
	e.unwritable(a, topic, p, badRecord(topic, p), dlq, func() { e.revive(dead) })
}

// A dead letter is larger than its topic allows. If that is because of the error's text,
// it goes without; if not, it waits until the topic allows more.
func lettersTooLarge(e *env) {
	topic := e.topic(2)
	dlq := e.deadLettersWith(2, -1, map[string]string{"max.message.bytes": "2000"})
	long := base64.StdEncoding.EncodeToString(e.noise(1000))
	topics := kgroup.Topics{topic: {
		Handler: kgroup.HandlerFunc(func(_ context.Context, msg kgroup.Message) error {
			if isBad(msg.Value) {
				return kgroup.Permanent(fmt.Errorf("%w: %s", errBad, long))
			}
			return nil
		}),
		DeadLetter: dlq,
		Retry:      kgroup.Retry{MinBackoff: 500 * time.Millisecond, MaxBackoff: 500 * time.Millisecond},
	}}
	a := e.start("a", topics)
	e.produce(topic, 10)
	large := badRecord(topic, 0)
	large.Value = append([]byte(bad), e.noise(1200)...)
	e.send(large)
	e.awaitCommitted()
	letters := e.read(dlq)
	require.Len(e.t, letters, 1)
	assert.Equal(e.t, large.Value, letters[0].Value)
	assert.Empty(e.t, header(letters[0], "kgroup-error"), "the error's text")
	assert.Equal(e.t, topic, header(letters[0], "kgroup-origin-topic"))

	larger := badRecord(topic, 1)
	larger.Value = append([]byte(bad), e.noise(3000)...)
	e.unwritable(a, topic, 1, larger, "max.message.bytes", func() {
		require.NoError(e.t, e.admin.ConfigureTopic(e.ctx, dlq, map[string]string{"max.message.bytes": "10000"}))
	})
	assert.Len(e.t, e.read(dlq), 2)
}

// noise cannot be compressed.
func (e *env) noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(e.random.below(256))
	}
	return b
}

// A member may not write to the dead-letter topic any more, before its first letter and
// after it; and then it may again.
func lettersForbidden(e *env) {
	topic, dlq := e.topic(2), e.deadLetters(2)
	a := e.start("a", lettersTo(dlq, topic), longSession, e.as(byScram512))
	e.produce(topic, 20)
	e.awaitCommitted()
	for range 2 {
		require.NoError(e.t, e.admin.RestrictWriters(e.ctx, dlq, "User:nobody"))
		e.unwritable(a, topic, 0, badRecord(topic, 0), "ACL", func() {
			require.NoError(e.t, e.admin.RestrictWriters(e.ctx, dlq, byScram512.principal))
		})
	}
}

// A dead letter is what the documentation says: the message as it was, in the partition of
// the same number or, where there is none, that of its key, with headers that say more.
func lettersAsDocumented(e *env) {
	same, more, fewer := e.topic(3), e.topic(3), e.topic(8)
	dlqs := map[string]string{same: e.deadLetters(3), more: e.deadLetters(5), fewer: e.deadLetters(3)}
	styles := map[string]kgroup.DeadLetterHeaders{same: kgroup.KgroupHeaders, more: kgroup.SpringHeaders, fewer: kgroup.ConnectHeaders}
	topics := kgroup.Topics{}
	var records []*kgo.Record
	for _, topic := range []string{same, more, fewer} {
		topics[topic] = kgroup.Topic{
			Handler: kgroup.HandlerFunc(func(_ context.Context, msg kgroup.Message) error {
				if panics(msg.Partition, msg.Offset) {
					panic("no way")
				}
				return kgroup.Permanent(errBad)
			}),
			DeadLetter:        dlqs[topic],
			DeadLetterHeaders: styles[topic],
			Retry:             kgroup.Retry{MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond, MaxAttempts: 2},
		}
		for p := range e.partitions[topic] {
			records = append(records,
				&kgo.Record{Topic: topic, Partition: p, Key: fmt.Appendf(nil, "customer %d", p), Value: []byte("value"), Headers: []kgo.RecordHeader{{Key: "trace", Value: []byte("1")}, {Key: "trace", Value: []byte("2")}, {Key: "empty", Value: []byte{}}}},
				&kgo.Record{Topic: topic, Partition: p, Value: []byte("value without a key")},
				&kgo.Record{Topic: topic, Partition: p, Key: fmt.Appendf(nil, "tombstone %d", p)},
			)
		}
	}
	began := time.Now()
	for i, r := range records { // not what a producer or broker would choose
		r.Timestamp = began.Add(-time.Hour).Add(time.Duration(i) * time.Second).Truncate(time.Millisecond)
	}
	e.send(records...)
	for _, r := range records {
		e.history.Bad(r.Topic, r.Partition, r.Offset)
	}
	e.start("a", topics)
	e.awaitCommitted()
	for topic, dlq := range dlqs {
		letters := e.read(dlq)
		sent := slices.DeleteFunc(slices.Clone(records), func(r *kgo.Record) bool { return r.Topic != topic })
		require.Len(e.t, letters, len(sent))
		for _, letter := range letters {
			of := originOf(e, letter)
			i := slices.IndexFunc(sent, func(r *kgo.Record) bool {
				return r.Topic == of.Topic && r.Partition == of.Partition && r.Offset == of.Offset
			})
			require.GreaterOrEqual(e.t, i, 0, "a letter of %v", of)
			checkLetter(e, letter, sent[i], styles[topic], began)
		}
	}
}

// panics is one message of a topic, which is tried again: were it several, it might be an
// outage.
func panics(p int32, offset int64) bool { return p == 0 && offset == 1 }

// checkLetter compares a letter with its message.
func checkLetter(e *env, letter *sarama.ConsumerMessage, r *kgo.Record, style kgroup.DeadLetterHeaders, began time.Time) {
	e.t.Helper()
	assert.Equal(e.t, r.Key, letter.Key)
	assert.Equal(e.t, r.Value, letter.Value)
	assert.True(e.t, r.Timestamp.Equal(letter.Timestamp), "timestamp %v, want %v", letter.Timestamp, r.Timestamp)
	if count := e.partitions[letter.Topic]; r.Partition < count {
		assert.Equal(e.t, r.Partition, letter.Partition, "partition")
	} else if r.Key != nil {
		// Another implementation of what Java's producer does.
		want := kgo.StickyKeyPartitioner(nil).ForTopic(letter.Topic).Partition(r, int(count))
		assert.EqualValues(e.t, want, letter.Partition, "partition for the key %q", r.Key)
	}
	n := len(r.Headers)
	require.GreaterOrEqual(e.t, len(letter.Headers), n)
	for i, h := range r.Headers {
		assert.Equal(e.t, h.Key, string(letter.Headers[i].Key))
		assert.Equal(e.t, h.Value, letter.Headers[i].Value)
	}
	added := map[string]string{}
	for _, h := range letter.Headers[n:] {
		assert.NotContains(e.t, added, string(h.Key))
		added[string(h.Key)] = string(h.Value)
	}
	text, class, attempts := errBad.Error(), fmt.Sprintf("%T", errBad), "1"
	if panics(r.Partition, r.Offset) {
		text, class, attempts = "handler panicked: no way", "*kgroup.PanicError", "2"
	}
	stack := func(key string) {
		if panics(r.Partition, r.Offset) {
			assert.Contains(e.t, added[key], "goroutine")
		} else {
			assert.Equal(e.t, text, added[key])
		}
		delete(added, key)
	}
	partition, offset := strconv.Itoa(int(r.Partition)), strconv.FormatInt(r.Offset, 10)
	switch style {
	case kgroup.KgroupHeaders:
		failed, err := time.Parse(time.RFC3339, added["kgroup-failed-at"])
		require.NoError(e.t, err)
		assert.WithinRange(e.t, failed, began.Add(-time.Millisecond), time.Now())
		delete(added, "kgroup-failed-at")
		assert.Equal(e.t, map[string]string{
			"kgroup-origin-topic": r.Topic, "kgroup-origin-partition": partition, "kgroup-origin-offset": offset,
			"kgroup-origin-timestamp": r.Timestamp.UTC().Format("2006-01-02T15:04:05.000Z"),
			"kgroup-group":            e.group, "kgroup-attempts": attempts, "kgroup-error": text,
		}, added)
	case kgroup.SpringHeaders:
		stack("kafka_dlt-exception-stacktrace")
		assert.Equal(e.t, map[string]string{
			"kafka_dlt-original-topic":          r.Topic,
			"kafka_dlt-original-partition":      string(binary.BigEndian.AppendUint32(nil, uint32(r.Partition))),
			"kafka_dlt-original-offset":         string(binary.BigEndian.AppendUint64(nil, uint64(r.Offset))),
			"kafka_dlt-original-timestamp":      string(binary.BigEndian.AppendUint64(nil, uint64(r.Timestamp.UnixMilli()))),
			"kafka_dlt-original-timestamp-type": "CreateTime",
			"kafka_dlt-original-consumer-group": e.group,
			"kafka_dlt-exception-fqcn":          class,
			"kafka_dlt-exception-message":       text,
		}, added)
	case kgroup.ConnectHeaders:
		stack("__connect.errors.exception.stacktrace")
		assert.NotEmpty(e.t, added["__connect.errors.class.name"])
		delete(added, "__connect.errors.class.name")
		assert.Equal(e.t, map[string]string{
			"__connect.errors.topic": r.Topic, "__connect.errors.partition": partition, "__connect.errors.offset": offset,
			"__connect.errors.connector.name": e.group, "__connect.errors.task.id": "0", "__connect.errors.stage": "TASK_PUT",
			"__connect.errors.exception.class.name": class, "__connect.errors.exception.message": text,
		}, added)
	}
}

// The dead-letter topic gives letters timestamps of its own. That is said once.
func lettersStamped(e *env) {
	topic := e.topic(1)
	dlq := e.deadLettersWith(1, -1, map[string]string{"message.timestamp.type": "LogAppendTime"})
	old := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
	for range 3 {
		r := badRecord(topic, 0)
		r.Timestamp = old
		e.send(r)
	}
	var log buffer
	e.start("a", lettersTo(dlq, topic), func(c *kgroup.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	e.awaitCommitted()
	for _, letter := range e.read(dlq) {
		assert.Greater(e.t, letter.Timestamp.Sub(old), 30*time.Minute, "its timestamp is the topic's")
		assert.Equal(e.t, old.UTC().Format("2006-01-02T15:04:05.000Z"), header(letter, "kgroup-origin-timestamp"))
	}
	assert.Equal(e.t, 1, strings.Count(log.String(), "LogAppendTime"), "warnings:\n%s", &log)
}

// A dead-letter topic that does not exist ends Run, and the error has the name that may
// be meant.
func lettersNowhere(e *env) {
	topic := e.topic(1)
	dlq := e.deadLetters(1)
	wrong := dlq + "x"
	e.t.Run("at the start", func(t *testing.T) {
		m := mistake{"", func(*kgroup.Config) {}, fmt.Sprintf("dead-letter topic %q does not exist; did you mean %q", wrong, dlq), answering}
		m.check(t, kgroup.Config{Brokers: e.brokers.Addrs(), Group: e.group, Topics: lettersTo(wrong, topic), Mode: e.mode})
	})
	e.produce(topic, 10)
	e.start("a", lettersTo(dlq, topic))
	e.awaitCommitted()
}

// A pattern that would match its own dead-letter topic, and that of another entry, does
// not: nobody handles a letter.
func lettersAndPatterns(e *env) {
	topic, named := e.topic(2), e.topic(2)
	topics := lettersTo(e.deadLetters(2), "^"+e.group+"-")
	topics[named] = lettersTo(e.deadLetters(2), named)[named]
	e.start("a", topics).owns(4)
	for p := range int32(2) {
		e.sendTo(topic, p, bad)
		e.sendTo(named, p, bad)
	}
	e.awaitCommitted()
	b := e.start("b", topics) // all topics are looked at once more
	b.owns(2)
	e.produce(topic, 10)
	e.produce(named, 10)
	e.awaitCommitted()
	for _, dlq := range e.letters {
		assert.Empty(e.t, e.committed(dlq), "committed of a dead-letter topic")
		assert.Len(e.t, e.read(dlq), 2)
	}
}
