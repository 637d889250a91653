package kgroup

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// A mailbox is what a fakeKafka has been told to write.
type mailbox struct {
	mu        sync.Mutex
	producers int64
	letters   []written
	answers   []sarama.KError // to the next requests; then they are taken
	slow      time.Duration
	stamps    int64         // LogAppendTime in ms; 0: CreateTime
	refuses   sarama.KError // producers
}

type written struct {
	letter   engine.Letter
	producer int64
	sequence int32
	acks     int16
}

// mail makes kafka take letters.
func mail(kafka *fakeKafka) *mailbox {
	m := &mailbox{}
	kafka.on(kmsg.InitProducerID, func(*call) kmsg.Response {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.producers++
		answer := kmsg.NewPtrInitProducerIDResponse()
		answer.ProducerID, answer.ErrorCode = m.producers, int16(m.refuses)
		return answer
	})
	kafka.on(kmsg.Produce, m.take)
	return m
}

func (m *mailbox) take(c *call) kmsg.Response {
	m.mu.Lock()
	defer m.mu.Unlock()
	time.Sleep(m.slow)
	request := c.request.(*kmsg.ProduceRequest)
	answer := kmsg.NewPtrProduceResponse()
	for _, topic := range request.Topics {
		t := kmsg.NewProduceResponseTopic()
		t.Topic = topic.Topic
		for _, partition := range topic.Partitions {
			p := kmsg.NewProduceResponseTopicPartition()
			p.Partition, p.LogAppendTime = partition.Partition, -1
			if m.stamps != 0 {
				p.LogAppendTime = m.stamps
			}
			if len(m.answers) > 0 {
				p.ErrorCode, m.answers = int16(m.answers[0]), m.answers[1:]
			}
			if p.ErrorCode == 0 {
				m.letters = append(m.letters, unseal(engine.Partition{Topic: topic.Topic, Number: partition.Partition}, partition.Records, request.Acks)...)
			}
			t.Partitions = append(t.Partitions, p)
		}
		answer.Topics = append(answer.Topics, t)
	}
	return answer
}

// unseal takes a batch apart.
func unseal(p engine.Partition, records []byte, acks int16) []written {
	var batch kmsg.RecordBatch
	must(batch.ReadFrom(records))
	r, err := gzip.NewReader(bytes.NewReader(batch.Records))
	must(err)
	plain, err := io.ReadAll(r)
	must(err)
	var all []written
	for i := range batch.NumRecords {
		size, prefix := binary.Varint(plain)
		var record kmsg.Record
		must(record.ReadFrom(plain[:prefix+int(size)]))
		plain = plain[prefix+int(size):]
		w := written{producer: batch.ProducerID, sequence: batch.FirstSequence + i, acks: acks, letter: engine.Letter{
			Partition: p, Key: record.Key, Value: record.Value, Timestamp: time.UnixMilli(batch.FirstTimestamp + record.TimestampDelta64),
		}}
		for _, h := range record.Headers {
			w.letter.Headers = append(w.letter.Headers, engine.Header{Key: h.Key, Value: h.Value})
		}
		all = append(all, w)
	}
	return all
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (m *mailbox) all() []written {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]written(nil), m.letters...)
}

func (m *mailbox) answer(codes ...sarama.KError) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answers = codes
}

// withMail starts the engine on a cluster with a dead-letter topic of two partitions.
func withMail(t *testing.T, body func(t *testing.T, g *group, m *mailbox)) {
	t.Helper()
	var m *mailbox
	prepare := func(kafka *fakeKafka, cfg *Config, _ *fakeSession) {
		kafka.partition(engine.Partition{Topic: "orders.dlq", Number: 0}, 0)
		kafka.partition(engine.Partition{Topic: "orders.dlq", Number: 1}, 0)
		cfg.Topics = Topics{"orders": {Handler: HandlerFunc(nop), DeadLetter: "orders.dlq"}}
		m = mail(kafka)
	}
	onEngine(t, Multiplex, prepare, func(t *testing.T, g *group, s *fakeSession, _ *fakeKafka) {
		opensGeneration(t, s, 1)
		body(t, g, m)
	})
}

func letterTo(partition int32) engine.Letter {
	return engine.Letter{
		Partition: engine.Partition{Topic: "orders.dlq", Number: partition},
		Key:       []byte("k"), Value: []byte("v"), Timestamp: time.UnixMilli(946677600007),
		Headers: []engine.Header{{Key: "kgroup-error", Value: []byte("x")}, {Key: "trace"}},
	}
}

func TestPublish(t *testing.T) {
	withMail(t, func(t *testing.T, g *group, m *mailbox) {
		require.NoError(t, g.Publish(t.Context(), letterTo(1)))
		require.NoError(t, g.Publish(t.Context(), engine.Letter{Partition: engine.Partition{Topic: "orders.dlq", Number: 7}, Timestamp: time.UnixMilli(5)}))
		require.NoError(t, g.Publish(t.Context(), letterTo(1)))
		all := m.all()
		require.Len(t, all, 3)
		assert.Equal(t, written{letterTo(1), 1, 0, -1}, all[0], "acks of all in-sync replicas, and a producer id")
		assert.Equal(t, engine.Partition{Topic: "orders.dlq", Number: 1}, all[1].letter.Partition)
		assert.Nil(t, all[1].letter.Key)
		assert.Nil(t, all[1].letter.Value)
		assert.Equal(t, written{letterTo(1), 1, 2, -1}, all[2], "one after the other")
	})
}

// What a broker says for the moment is tried again with the same sequence number, so that it
// cannot be there twice.
func TestPublishIsIdempotent(t *testing.T) {
	withMail(t, func(t *testing.T, g *group, m *mailbox) {
		m.answer(sarama.ErrNotLeaderForPartition, sarama.ErrNotEnoughReplicas)
		require.NoError(t, g.Publish(t.Context(), letterTo(0)))
		require.Len(t, m.all(), 1)
		assert.Equal(t, written{letterTo(0), 1, 0, -1}, m.all()[0])
	})
}

func TestPublishFails(t *testing.T) {
	t.Run("too large, and the next is not", func(t *testing.T) {
		withMail(t, func(t *testing.T, g *group, m *mailbox) {
			for _, code := range []sarama.KError{sarama.ErrMessageSizeTooLarge, sarama.ErrMessageSetSizeTooLarge} {
				m.answer(code)
				err := g.Publish(t.Context(), letterTo(0))
				require.ErrorIs(t, err, engine.ErrTooLarge)
				require.ErrorIs(t, err, code)
				require.NoError(t, g.Publish(t.Context(), letterTo(0)))
			}
			assert.Len(t, m.all(), 2)
		})
	})
	t.Run("not allowed, and then it is", func(t *testing.T) {
		withMail(t, func(t *testing.T, g *group, m *mailbox) {
			m.answer(sarama.ErrTopicAuthorizationFailed)
			require.ErrorContains(t, g.Publish(t.Context(), letterTo(0)), "ACLs must allow this user to write")
			require.NoError(t, g.Publish(t.Context(), letterTo(0)))
		})
	})
	t.Run("the producer is not the brokers' any more", func(t *testing.T) {
		withMail(t, func(t *testing.T, g *group, m *mailbox) {
			require.NoError(t, g.Publish(t.Context(), letterTo(0)))
			m.answer(sarama.ErrOutOfOrderSequenceNumber)
			require.ErrorIs(t, g.Publish(t.Context(), letterTo(0)), sarama.ErrOutOfOrderSequenceNumber)
			require.NoError(t, g.Publish(t.Context(), letterTo(0)))
			all := m.all()
			require.Len(t, all, 2)
			assert.EqualValues(t, 2, all[1].producer, "another one")
		})
	})
	t.Run("it takes longer than the caller waits", func(t *testing.T) {
		withMail(t, func(t *testing.T, g *group, m *mailbox) {
			m.slow = 5 * time.Second
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			require.ErrorIs(t, g.Publish(ctx, letterTo(0)), context.DeadlineExceeded)
			assert.Equal(t, time.Second, time.Since(began))
			time.Sleep(5 * time.Second)
			assert.Len(t, m.all(), 1, "nobody could know")
		})
	})
	t.Run("the topic is gone", func(t *testing.T) {
		withMail(t, func(t *testing.T, g *group, _ *mailbox) {
			letter := letterTo(0)
			letter.Topic = "orders.gone"
			require.ErrorIs(t, g.Publish(t.Context(), letter), sarama.ErrUnknownTopicOrPartition)
		})
	})
}

// Several lanes write at once, while the producer is given up now and then.
func TestPublishSideBySide(t *testing.T) {
	withMail(t, func(t *testing.T, g *group, m *mailbox) {
		m.answer(0, 0, sarama.ErrOutOfOrderSequenceNumber, 0, sarama.ErrUnknownProducerID, 0, 0, sarama.ErrInvalidProducerEpoch)
		var wg sync.WaitGroup
		var mu sync.Mutex
		failed := 0
		for lane := range 8 {
			wg.Go(func() {
				for range 10 {
					for g.Publish(t.Context(), letterTo(int32(lane%2))) != nil {
						mu.Lock()
						failed++
						mu.Unlock()
						time.Sleep(100 * time.Millisecond)
					}
				}
			})
		}
		wg.Wait()
		assert.GreaterOrEqual(t, len(m.all()), 80)
		assert.Positive(t, failed)
	})
}

// One letter at a time: see the comment of letters.
func TestPublishIsOneAtATime(t *testing.T) {
	withMail(t, func(t *testing.T, g *group, m *mailbox) {
		m.slow = time.Second
		var wg sync.WaitGroup
		began := time.Now()
		for range 5 {
			wg.Go(func() { assert.NoError(t, g.Publish(t.Context(), letterTo(0))) })
		}
		wg.Wait()
		assert.Equal(t, 5*time.Second, time.Since(began))
		assert.Len(t, m.all(), 5)
	})
}

// sarama would write without a producer id.
func TestPublishWithoutAProducerID(t *testing.T) {
	withMail(t, func(t *testing.T, g *group, m *mailbox) {
		m.refuses = sarama.ErrClusterAuthorizationFailed
		require.ErrorContains(t, g.Publish(t.Context(), letterTo(0)), "IdempotentWrite")
		assert.Empty(t, m.all())
		m.refuses = sarama.ErrNoError
		require.NoError(t, g.Publish(t.Context(), letterTo(0)))
	})
}

// go-metrics keeps a meter that is not unregistered, for ever.
func TestProducersLeaveNoMeters(t *testing.T) {
	withMail(t, func(t *testing.T, g *group, m *mailbox) {
		require.NoError(t, g.Publish(t.Context(), letterTo(0)))
		registry := g.letters.client.Config().MetricRegistry
		m.answer(sarama.ErrInvalidTimestamp)
		require.Error(t, g.Publish(t.Context(), letterTo(0)))
		registry.Each(func(name string, _ any) { assert.Fail(t, "is left", name) })
	})
}

// The end of the engine does not wait for a broker that does not answer, and nothing
// is left of the producer.
func TestEndDuringAPublish(t *testing.T) {
	withMail(t, func(t *testing.T, g *group, m *mailbox) {
		require.NoError(t, g.Publish(t.Context(), letterTo(0)))
		m.slow = time.Hour
		published := begin(func() { _ = g.Publish(context.WithoutCancel(t.Context()), letterTo(0)) })
		time.Sleep(time.Second)
		select {
		case <-published:
			require.Fail(t, "it has an answer")
		default:
		}
		t.Cleanup(func() { time.Sleep(time.Hour) })
	})
}

func TestPublishAfterTheEnd(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, _ := newTestGroup(t, nil)
		g.end()
		require.ErrorIs(t, g.Publish(t.Context(), letterTo(0)), engine.ErrGone)
	})
}

// A topic that sets its own timestamps is warned of, once.
func TestLogAppendTimeIsWarnedOf(t *testing.T) {
	withMail(t, func(t *testing.T, g *group, m *mailbox) {
		logs := &logs{}
		g.log = slog.New(slog.NewTextHandler(logs, nil))
		require.NoError(t, g.Publish(t.Context(), letterTo(0)))
		assert.Empty(t, logs.with("LogAppendTime"))
		m.stamps = 946677600008
		require.NoError(t, g.Publish(t.Context(), letterTo(0)))
		require.NoError(t, g.Publish(t.Context(), letterTo(0)))
		assert.Len(t, logs.with("level=WARN", "LogAppendTime", "topic=orders.dlq"), 1)
	})
}

// The start finds a dead-letter topic that does not exist, as it does one to read.
func TestDeadLetterTopicMustExist(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		kafka := newKafka("one:9092")
		kafka.partition(orders0, 0)
		kafka.partition(engine.Partition{Topic: "orders.dlq"}, 0)
		for name, want := range map[string]string{
			"orders.dql": `kgroup: dead-letter topic "orders.dql" does not exist; did you mean "orders.dlq"?`,
			"orders.dlq": "",
		} {
			g, s := newTestGroup(t, func(cfg *Config) {
				cfg.Topics = Topics{"orders": {Handler: HandlerFunc(nop), DeadLetter: name}}
				cfg.Dial = kafka.dial
			})
			g.session = s
			err := g.preflight(t.Context())
			g.network.Close()
			if want == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, want)
			}
			synctest.Wait()
		}
	})
}

// The vectors are those of org.apache.kafka.common.utils.UtilsTest.
func TestMurmur2(t *testing.T) {
	for data, want := range map[string]int32{
		"21":                         -973932308,
		"foobar":                     -790332482,
		"a-little-bit-long-string":   -985981536,
		"a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		assert.Equal(t, want, int32(murmur2([]byte(data))), data)
	}
}

func TestChoosePartition(t *testing.T) {
	for _, test := range []struct {
		number, count, want int32
		key                 []byte
	}{
		{number: 0, count: 1, key: []byte("21"), want: 0},
		{number: 7, count: 8, key: []byte("21"), want: 7},
		{number: 7, count: 7, want: 0}, // without a key, in the order of its partition
		{number: 7, count: 5, key: []byte("21"), want: (-973932308 & 0x7fffffff) % 5},
		{number: 7, count: 5, key: []byte{}, want: int32(murmur2(nil)&0x7fffffff) % 5},
	} {
		assert.Equal(t, test.want, choosePartition(engine.Letter{Partition: engine.Partition{Number: test.number}, Key: test.key}, test.count))
	}
}
