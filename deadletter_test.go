package kgroup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// withLetters gives the topics a dead-letter topic and three attempts, without a breaker.
func withLetters(cfg *Config) {
	for name, topic := range cfg.Topics {
		topic.DeadLetter = name + ".dlq"
		topic.Retry = Retry{MinBackoff: 100 * time.Millisecond, MaxBackoff: 800 * time.Millisecond, MaxAttempts: 3}
		topic.Breaker.MinAttempts = -1
		cfg.Topics[name] = topic
	}
}

// failAt makes the handler fail at one offset of orders/0.
func failAt(offset int64, err error) func(context.Context, Message) error {
	return func(_ context.Context, msg Message) error {
		if msg.Topic == "orders" && msg.Offset == offset {
			return err
		}
		return nil
	}
}

// onPublish makes publishing do f.
func (e *fakeEngine) onPublish(f func(ctx context.Context, letter engine.Letter) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.publish = f
}

// written are the letters that the brokers have, as "orders.dlq/0=value".
func (e *fakeEngine) written() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var lines []string
	for _, letter := range e.letters {
		lines = append(lines, fmt.Sprintf("%v=%s", letter.Partition, letter.Value))
	}
	return lines
}

func TestSpentAttemptsMakeADeadLetter(t *testing.T) {
	withRig(t, withLetters, func(t *testing.T, r *rig) {
		r.on = failAt(6, errHandler)
		r.engine.assign(at(orders0, 5))
		r.engine.deliver(orders0, 5, 6, 7)
		r.after(2 * time.Second)
		assert.Equal(t, "5#1 6#1 6#2 6#3 7#1", r.handled(orders0))
		assert.Equal(t, []string{"orders.dlq/0=6"}, r.engine.written())
		assert.Equal(t, []string{"dead letter orders/0@6#3: bank is closed"}, r.history.all("dead letter"))
		assert.Len(t, r.logs.with("level=WARN", "dead letter", "offset=6", "attempts=3", "orders.dlq"), 1)
		assert.EqualValues(t, 8, r.engine.acknowledged(orders0))
		assert.Equal(t, "kgroup/1 o=1", r.engine.metadata(orders0), "nothing is left of it")
		assert.Empty(t, r.history.all("blocked"))
		require.NoError(t, r.consumer.Health().Err())
	})
}

func TestPermanentErrorMakesADeadLetterAtOnce(t *testing.T) {
	withRig(t, withLetters, func(t *testing.T, r *rig) {
		r.on = failAt(5, fmt.Errorf("decode: %w", Permanent(errHandler)))
		r.engine.assign(at(orders0, 5))
		r.engine.deliver(orders0, 5, 6)
		synctest.Wait()
		assert.Equal(t, "5#1 6#1", r.handled(orders0))
		assert.Equal(t, []string{"orders.dlq/0=5"}, r.engine.written())
	})
}

// While the letter cannot be written nothing is lost and nothing marked: the message is
// held, what is behind it waits, and it goes on by itself. The handler is not asked again.
func TestDeadLetterTopicThatCannotBeWritten(t *testing.T) {
	withRig(t, withLetters, func(t *testing.T, r *rig) {
		r.on = failAt(6, errHandler)
		tries := 0
		r.engine.onPublish(func(context.Context, engine.Letter) error {
			tries++
			return errors.New("no leader")
		})
		r.engine.assign(at(orders0, 5))
		r.engine.deliver(orders0, 5, 6, 7)
		r.after(time.Minute)
		assert.Equal(t, "5#1 6#1 6#2 6#3", r.handled(orders0))
		assert.InDelta(t, 75, tries, 5, "backoff of up to 100, 200 and 400 ms, and then 800 ms")
		assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
		require.Len(t, r.history.all("blocked"), 1)
		for _, words := range []string{"orders.dlq", "no leader", errHandler.Error()} {
			assert.Contains(t, r.history.all("blocked")[0], words)
			require.ErrorContains(t, r.consumer.Health().Err(), words)
		}
		require.ErrorIs(t, r.consumer.Health().Err(), errHandler)

		r.engine.onPublish(nil)
		r.after(2 * time.Second)
		assert.Equal(t, "5#1 6#1 6#2 6#3 7#1", r.handled(orders0))
		assert.Equal(t, []string{"orders.dlq/0=6"}, r.engine.written())
		assert.Len(t, r.history.all("unblocked orders/0@6"), 1)
		assert.EqualValues(t, 8, r.engine.acknowledged(orders0))
		require.NoError(t, r.consumer.Health().Err())
	})
}

// A letter that is being written is awaited, and the message settled.
func TestLetterUnderWayIsAwaited(t *testing.T) {
	for name, end := range map[string]func(r *rig){
		"rebalance": func(r *rig) { r.engine.rebalance(time.Minute, time.Minute) },
		"shutdown":  func(r *rig) { _, _ = r.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			withRig(t, withLetters, func(t *testing.T, r *rig) {
				r.on = failAt(5, Permanent(errHandler))
				r.engine.onPublish(func(context.Context, engine.Letter) error {
					time.Sleep(3 * time.Second)
					return nil
				})
				r.engine.assign(at(orders0, 5))
				r.engine.deliver(orders0, 5, 6)
				r.after(time.Second)
				began := time.Now()
				end(r)
				assert.Equal(t, 2*time.Second, time.Since(began))
				assert.Equal(t, "5#1", r.handled(orders0))
				assert.Equal(t, []string{"orders.dlq/0=5"}, r.engine.written())
				assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
				assert.Equal(t, "", r.engine.metadata(orders0))
			})
		})
	}
}

// What the brokers take too long for is left to the next owner, as a handler is.
func TestLetterThatTakesTooLong(t *testing.T) {
	withRig(t, withLetters, func(t *testing.T, r *rig) {
		r.on = failAt(5, Permanent(errHandler))
		r.engine.onPublish(func(ctx context.Context, _ engine.Letter) error {
			<-ctx.Done()
			return context.Cause(ctx)
		})
		r.receives(orders0, 5)
		assert.Equal(t, 8*time.Second, r.drains(8*time.Second, 10*time.Second))
		assert.EqualValues(t, 5, r.engine.acknowledged(orders0))
		assert.Empty(t, r.history.all("dead letter"))
	})
}

// A rebalance or a shutdown ends an attempt, a backoff, or the wait for another try to
// write, and is none of them. The next owner goes on where this one was, and does not ask
// the handler again for a message that has had its attempts.
func TestAttemptsSurviveARebalance(t *testing.T) {
	next := func(r *rig) engine.Claim {
		claim := at(orders0, r.engine.acknowledged(orders0))
		claim.Metadata = r.engine.metadata(orders0)
		return claim
	}
	t.Run("in a backoff", func(t *testing.T) {
		withRig(t, withLetters, func(t *testing.T, r *rig) {
			r.on = failAt(5, errHandler)
			r.receives(orders0, 5)
			for owner := range 2 {
				synctest.Wait()
				assert.Zero(t, r.drains(time.Minute, time.Minute), "owner %d", owner)
				r.engine.assign(next(r))
				r.engine.deliver(orders0, 5)
			}
			synctest.Wait()
			assert.Equal(t, "5#1 5#2 5#3", r.handled(orders0))
			assert.Equal(t, []string{"orders.dlq/0=5"}, r.engine.written())
		})
	})
	t.Run("in an attempt that is cancelled", func(t *testing.T) {
		withRig(t, withLetters, func(t *testing.T, r *rig) {
			r.on = func(ctx context.Context, _ Message) error { <-ctx.Done(); return Permanent(ctx.Err()) }
			r.receives(orders0, 5)
			for range 5 {
				synctest.Wait()
				r.engine.rebalance(time.Second, 2*time.Second)
				assert.Equal(t, "", r.engine.metadata(orders0), "that was no attempt")
				r.engine.assign(next(r))
				r.engine.deliver(orders0, 5)
			}
			synctest.Wait()
			assert.Equal(t, "5#1 5#1 5#1 5#1 5#1 5#1", r.handled(orders0))
			assert.Empty(t, r.engine.written())
		})
	})
	t.Run("waiting to write again", func(t *testing.T) {
		withRig(t, withLetters, func(t *testing.T, r *rig) {
			r.on = failAt(5, errHandler)
			r.engine.onPublish(func(context.Context, engine.Letter) error { return errTransient })
			r.receives(orders0, 5)
			r.after(10 * time.Second)
			assert.Zero(t, r.drains(time.Minute, time.Minute))
			assert.Equal(t, "kgroup/1 f=5 a=5:3", r.engine.metadata(orders0))
			r.engine.onPublish(nil)
			r.engine.assign(next(r))
			r.engine.deliver(orders0, 5, 6)
			synctest.Wait()
			assert.Equal(t, "5#1 5#2 5#3 6#1", r.handled(orders0))
			assert.Equal(t, []string{"orders.dlq/0=5"}, r.engine.written())
			assert.Contains(t, r.history.all("dead letter orders/0@5#3")[0], "3 attempts have failed")
		})
	})
	t.Run("of another offset", func(t *testing.T) {
		withRig(t, withLetters, func(t *testing.T, r *rig) {
			claim := at(orders0, 5)
			claim.Metadata = "kgroup/1 a=7:2"
			r.on = failAt(7, errHandler)
			r.engine.assign(claim)
			r.engine.deliver(orders0, 5, 7, 8)
			synctest.Wait()
			assert.Equal(t, "5#1 7#3 8#1", r.handled(orders0))
			assert.Equal(t, []string{"orders.dlq/0=7"}, r.engine.written())
		})
	})
	t.Run("a loss, as far as they were committed", func(t *testing.T) {
		withRig(t, withLetters, func(t *testing.T, r *rig) {
			r.on = failAt(5, RetryAfter(errHandler, 700*time.Millisecond))
			r.engine.assign(at(orders0, 5))
			r.engine.deliver(orders0, 5)
			r.after(1100 * time.Millisecond) // two attempts, and a commit
			r.engine.lose(errLost)
			assert.Equal(t, "kgroup/1 o=1 f=5 a=5:2", r.engine.metadata(orders0))
		})
	})
}

// A handler may see the shutdown before its context is cancelled, in a context of its own.
func TestErrorAfterTheSealIsNoAttempt(t *testing.T) {
	withRig(t, withLetters, func(t *testing.T, r *rig) {
		r.on = func(context.Context, Message) error {
			time.Sleep(5 * time.Second)
			return Permanent(errHandler)
		}
		r.receives(orders0, 5)
		assert.Equal(t, 5*time.Second, r.drains(time.Minute, time.Minute))
		assert.Empty(t, r.engine.written())
		assert.Equal(t, "", r.engine.metadata(orders0))
		assert.Empty(t, r.logs.with("attempt failed"))
	})
}

// Nor does an attempt begin after the seal, however short the backoff.
func TestNoAttemptBeginsAfterTheSeal(t *testing.T) {
	withRig(t, withLetters, func(t *testing.T, r *rig) {
		r.on = func(context.Context, Message) error {
			time.Sleep(time.Second)
			return RetryAfter(errHandler, 0)
		}
		for range 20 {
			r.receives(orders0, 5)
			began := len(r.history.all("handle"))
			r.engine.rebalance(time.Minute, time.Minute)
			assert.Len(t, r.history.all("handle"), began)
		}
	})
}

// A dead-letter topic that comes later must not take what no new version was asked for.
func TestDeadLetterTopicThatComesLater(t *testing.T) {
	withRig(t, withLetters, func(t *testing.T, r *rig) {
		r.engine.assign(found(orders0, 5, "kgroup/1 f=5 a=5:40"))
		r.engine.deliver(orders0, 5)
		synctest.Wait()
		assert.Equal(t, "5#41", r.handled(orders0))
		assert.Empty(t, r.engine.written())
	})
}

// Without a dead-letter topic the attempts go on counting too.
func TestAttemptsOfAHeldMessageSurvive(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.on = failAt(5, Permanent(errHandler))
		r.receives(orders0, 5)
		r.after(65 * time.Second) // three attempts
		r.engine.rebalance(time.Minute, time.Minute)
		claim := at(orders0, 5)
		claim.Metadata = r.engine.metadata(orders0)
		assert.Equal(t, "kgroup/1 f=5 a=5:3", claim.Metadata)
		r.engine.assign(claim)
		r.engine.deliver(orders0, 5)
		synctest.Wait()
		assert.Equal(t, "5#1 5#2 5#3 5#4", r.handled(orders0))
	})
}

// A letter may be too large with its headers: first the words go, then it is held.
func TestLetterThatIsTooLarge(t *testing.T) {
	tooLarge := fmt.Errorf("max.message.bytes: %w", engine.ErrTooLarge)
	t.Run("with the error's words", func(t *testing.T) {
		withRig(t, withLetters, func(t *testing.T, r *rig) {
			r.on = failAt(5, Permanent(errHandler))
			r.engine.onPublish(func(_ context.Context, letter engine.Letter) error {
				if _, ok := header(letter, "kgroup-error"); ok {
					return tooLarge
				}
				return nil
			})
			r.engine.assign(at(orders0, 5))
			r.engine.deliver(orders0, 5, 6)
			synctest.Wait()
			assert.Equal(t, []string{"orders.dlq/0=5"}, r.engine.written())
			origin, _ := header(r.engine.letters[0], "kgroup-origin-offset")
			assert.Equal(t, "5", origin)
			assert.Equal(t, "5#1 6#1", r.handled(orders0))
		})
	})
	t.Run("in any case", func(t *testing.T) {
		withRig(t, withLetters, func(t *testing.T, r *rig) {
			r.on = failAt(5, Permanent(errHandler))
			r.engine.onPublish(func(context.Context, engine.Letter) error { return tooLarge })
			r.engine.assign(at(orders0, 5))
			r.engine.deliver(orders0, 5, 6)
			synctest.Wait()
			assert.Len(t, r.history.all("blocked", "max.message.bytes"), 1, "at once: no try soon will help")
			r.after(time.Minute)
			assert.Equal(t, "5#1", r.handled(orders0))
			r.engine.onPublish(nil) // somebody has raised it
			r.after(time.Second)
			assert.Equal(t, "5#1 6#1", r.handled(orders0))
		})
	})
}

// A hook may end its goroutine: the message is settled by then, or goes on being written,
// and is not handled again.
func TestGoexitInHooksOfDeadLetters(t *testing.T) {
	t.Run("DeadLetter", func(t *testing.T) {
		exits := func(cfg *Config) {
			withLetters(cfg)
			cfg.Hooks.DeadLetter = func(*HandlerError) { runtime.Goexit() }
		}
		withRig(t, exits, func(t *testing.T, r *rig) {
			r.on = failAt(5, Permanent(errHandler))
			r.engine.assign(at(orders0, 5))
			r.engine.deliver(orders0, 5, 6)
			r.after(time.Second)
			assert.Equal(t, "5#1 6#1", r.handled(orders0))
			assert.Equal(t, []string{"orders.dlq/0=5"}, r.engine.written())
		})
	})
	t.Run("Blocked", func(t *testing.T) {
		exits := func(cfg *Config) {
			withLetters(cfg)
			cfg.Hooks.Blocked = func(*HandlerError) { runtime.Goexit() }
		}
		withRig(t, exits, func(t *testing.T, r *rig) {
			r.on = failAt(5, Permanent(errHandler))
			tries := 0
			r.engine.onPublish(func(context.Context, engine.Letter) error {
				if tries++; tries < 10 {
					return errTransient
				}
				return nil
			})
			r.engine.assign(at(orders0, 5))
			r.engine.deliver(orders0, 5, 6)
			r.after(10 * time.Second)
			assert.Equal(t, "5#1 6#1", r.handled(orders0))
			assert.Equal(t, []string{"orders.dlq/0=5"}, r.engine.written())
		})
	})
}

func header(letter engine.Letter, key string) (value string, ok bool) {
	for _, h := range letter.Headers {
		if h.Key == key {
			return string(h.Value), true
		}
	}
	return "", false
}

// What is written of a message, in each style.
func TestLetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it is 2000-01-01 00:00 UTC
		msg := Message{
			Topic: "orders", Partition: 3, Offset: 1 << 33, Key: []byte("k"), Value: []byte("v"), Attempt: 5,
			Timestamp: time.Date(1999, 12, 31, 23, 0, 0, 7e6, time.FixedZone("", 3600)),
			Headers:   []Header{{"trace", []byte("1")}, {"kgroup-attempts", []byte("9")}, {"trace", nil}},
		}
		h := &hand{
			lane: &lane{group: "billing", topic: Topic{Handler: HandlerFunc(nil), DeadLetter: "orders.dlq"}},
			at:   progress{verdict: Permanent(fmt.Errorf("x: %w", errHandler))},
		}
		letter := h.letter(msg, true)
		assert.Equal(t, engine.Letter{
			Partition: engine.Partition{Topic: "orders.dlq", Number: 3}, Key: msg.Key, Value: msg.Value, Timestamp: msg.Timestamp,
			Headers: []engine.Header{
				{Key: "trace", Value: []byte("1")}, {Key: "trace"},
				{Key: "kgroup-origin-topic", Value: []byte("orders")},
				{Key: "kgroup-origin-partition", Value: []byte("3")},
				{Key: "kgroup-origin-offset", Value: []byte("8589934592")},
				{Key: "kgroup-origin-timestamp", Value: []byte("1999-12-31T22:00:00.007Z")},
				{Key: "kgroup-group", Value: []byte("billing")},
				{Key: "kgroup-attempts", Value: []byte("5")},
				{Key: "kgroup-failed-at", Value: []byte("2000-01-01T00:00:00.000Z")},
				{Key: "kgroup-error", Value: []byte("x: bank is closed")},
			},
		}, letter)

		h.topic.DeadLetterHeaders = SpringHeaders
		h.at.verdict = &PanicError{Value: "oops", Stack: []byte("goroutine 1")}
		assert.Equal(t, []engine.Header{
			{Key: "trace", Value: []byte("1")}, {Key: "kgroup-attempts", Value: []byte("9")}, {Key: "trace"},
			{Key: "kafka_dlt-original-topic", Value: []byte("orders")},
			{Key: "kafka_dlt-original-partition", Value: []byte{0, 0, 0, 3}},
			{Key: "kafka_dlt-original-offset", Value: []byte{0, 0, 0, 2, 0, 0, 0, 0}},
			{Key: "kafka_dlt-original-timestamp", Value: binary.BigEndian.AppendUint64(nil, 946677600007)},
			{Key: "kafka_dlt-original-timestamp-type", Value: []byte("CreateTime")},
			{Key: "kafka_dlt-original-consumer-group", Value: []byte("billing")},
			{Key: "kafka_dlt-exception-fqcn", Value: []byte("*kgroup.PanicError")},
			{Key: "kafka_dlt-exception-message", Value: []byte("handler panicked: oops")},
			{Key: "kafka_dlt-exception-stacktrace", Value: []byte("goroutine 1")},
		}, h.letter(msg, true).Headers)

		h.topic.DeadLetterHeaders = ConnectHeaders
		h.at.verdict = RetryAfter(errHandler, time.Second)
		assert.Equal(t, []engine.Header{
			{Key: "trace", Value: []byte("1")}, {Key: "kgroup-attempts", Value: []byte("9")}, {Key: "trace"},
			{Key: "__connect.errors.topic", Value: []byte("orders")},
			{Key: "__connect.errors.partition", Value: []byte("3")},
			{Key: "__connect.errors.offset", Value: []byte("8589934592")},
			{Key: "__connect.errors.connector.name", Value: []byte("billing")},
			{Key: "__connect.errors.task.id", Value: []byte("0")},
			{Key: "__connect.errors.stage", Value: []byte("TASK_PUT")},
			{Key: "__connect.errors.class.name", Value: []byte("kgroup.HandlerFunc")},
			{Key: "__connect.errors.exception.class.name", Value: []byte("*errors.errorString")},
			{Key: "__connect.errors.exception.message", Value: []byte("bank is closed")},
			{Key: "__connect.errors.exception.stacktrace", Value: []byte("bank is closed")},
		}, h.letter(msg, true).Headers)

		for _, style := range []DeadLetterHeaders{KgroupHeaders, SpringHeaders, ConnectHeaders} {
			h.topic.DeadLetterHeaders = style
			for _, h := range h.letter(msg, false).Headers {
				assert.NotContains(t, string(h.Value), "closed", h.Key)
			}
			h.at.verdict = errors.New(strings.Repeat("ü", maxErrorText))
			for _, h := range h.letter(msg, true).Headers {
				assert.LessOrEqual(t, len(h.Value), maxErrorText, h.Key)
				if strings.Contains(h.Key, "message") {
					assert.True(t, utf8.Valid(h.Value), h.Key)
				}
			}
			h.at.verdict = errHandler
		}
	})
}

// A record without key and value makes a letter without.
func TestLetterOfATombstone(t *testing.T) {
	h := &hand{lane: &lane{topic: Topic{DeadLetter: "orders.dlq"}}, at: progress{verdict: errHandler}}
	letter := h.letter(Message{Offset: math.MaxInt64}, true)
	assert.Nil(t, letter.Key)
	assert.Nil(t, letter.Value)
}

func TestTimeout(t *testing.T) {
	timed := func(cfg *Config) {
		withLetters(cfg)
		for name, topic := range cfg.Topics {
			topic.Timeout = 5 * time.Second
			cfg.Topics[name] = topic
		}
	}
	t.Run("its error is a failed attempt", func(t *testing.T) {
		withRig(t, timed, func(t *testing.T, r *rig) {
			var causes []error
			r.on = func(ctx context.Context, msg Message) error {
				if msg.Offset == 5 {
					<-ctx.Done()
					causes = append(causes, context.Cause(ctx))
					return ctx.Err()
				}
				return nil
			}
			r.engine.assign(at(orders0, 5))
			r.engine.deliver(orders0, 5, 6)
			r.after(20 * time.Second)
			assert.Equal(t, "5#1 5#2 5#3 6#1", r.handled(orders0))
			for _, cause := range causes {
				require.ErrorIs(t, cause, ErrHandlerTimeout)
			}
			require.Len(t, r.history.all("dead letter"), 1)
			assert.Contains(t, r.history.all("dead letter")[0], "handler timeout after 5s: context deadline exceeded")
		})
	})
	t.Run("a nil is a nil, however late, and it is never called twice at once", func(t *testing.T) {
		withRig(t, timed, func(t *testing.T, r *rig) {
			r.on = func(context.Context, Message) error {
				time.Sleep(time.Minute) // whatever its context says
				return nil
			}
			r.engine.assign(at(orders0, 5))
			r.engine.deliver(orders0, 5, 6)
			r.after(59 * time.Second)
			assert.Equal(t, "5#1", r.handled(orders0))
			r.after(2 * time.Second)
			assert.Equal(t, "5#1 6#1", r.handled(orders0))
			assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
			r.after(time.Hour)
		})
	})
	t.Run("the shutdown's cancellation is not the timeout's", func(t *testing.T) {
		withRig(t, func(cfg *Config) { timed(cfg); cfg.ShutdownTimeout = time.Second }, func(t *testing.T, r *rig) {
			var cause error
			r.on = func(ctx context.Context, _ Message) error {
				<-ctx.Done()
				cause = context.Cause(ctx)
				return ctx.Err()
			}
			r.receives(orders0, 5)
			_, err := r.stop()
			require.NoError(t, err)
			require.ErrorIs(t, cause, ErrShutdownTimeout)
			assert.Equal(t, "", r.engine.metadata(orders0), "no attempt")
		})
	})
	t.Run("an attempt in time is not cancelled by it", func(t *testing.T) {
		withRig(t, timed, func(t *testing.T, r *rig) {
			r.on = func(ctx context.Context, _ Message) error {
				if d, ok := ctx.Deadline(); !ok || time.Until(d) != 5*time.Second {
					return Permanent(fmt.Errorf("its deadline is in %v", time.Until(d)))
				}
				time.Sleep(4 * time.Second)
				return ctx.Err()
			}
			r.engine.assign(at(orders0, 5))
			r.engine.deliver(orders0, 5, 6, 7)
			r.after(13 * time.Second)
			assert.Equal(t, "5#1 6#1 7#1", r.handled(orders0))
			assert.Empty(t, r.engine.written())
		})
	})
}

// Who says when to come again is waited for, but not in a drain.
func TestRetryAfterIsWaitedFor(t *testing.T) {
	withRig(t, withLetters, func(t *testing.T, r *rig) {
		r.on = failAt(5, RetryAfter(errHandler, time.Hour))
		r.engine.assign(at(orders0, 5))
		r.engine.deliver(orders0, 5, 6)
		r.after(59 * time.Minute)
		assert.Equal(t, "5#1", r.handled(orders0))
		r.after(2 * time.Minute)
		assert.Equal(t, "5#1 5#2", r.handled(orders0))
		assert.Zero(t, r.drains(time.Minute, time.Minute))
		assert.Equal(t, "kgroup/1 f=5 a=5:2", r.engine.metadata(orders0))
	})
}
