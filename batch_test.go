package kgroup

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// A batcher is the batch handler of a rig: its history has a line for each batch, with the
// offsets in it.
type batcher struct {
	r  *rig
	on func(ctx context.Context, msgs []Message) error
}

func (b *batcher) HandleBatch(ctx context.Context, msgs []Message) (err error) {
	var offsets []string
	for _, msg := range msgs {
		offsets = append(offsets, strconv.FormatInt(msg.Offset, 10))
	}
	name := fmt.Sprintf("%s#%d", strings.Join(offsets, ","), msgs[0].Attempt)
	b.r.history.add("batch %s", name)
	defer func() { b.r.history.add("batch returned %s: %v", name, err) }()
	if b.on == nil {
		return nil
	}
	return b.on(ctx, msgs)
}

// batches are those of the history.
func (b *batcher) batches() []string {
	var all []string
	for _, line := range b.r.history.all("batch ") {
		if name, ok := strings.CutPrefix(line, "batch "); ok && !strings.HasPrefix(name, "returned") {
			all = append(all, name)
		}
	}
	return all
}

// failsWith makes a handler that fails when the message at offset is in its batch.
func failsWith(offset int64, err error) func(context.Context, []Message) error {
	return func(_ context.Context, msgs []Message) error {
		if slices.ContainsFunc(msgs, func(msg Message) bool { return msg.Offset == offset }) {
			return err
		}
		return nil
	}
}

// withBatches is withRig with a topic orders that is handled in batches.
func withBatches(t *testing.T, topic Topic, body func(t *testing.T, r *rig, b *batcher)) {
	t.Helper()
	b := &batcher{}
	topic.Batch.Handler = b
	withRig(t, func(cfg *Config) { cfg.Topics = Topics{"orders": topic} }, func(t *testing.T, r *rig) {
		b.r = r
		body(t, r, b)
	})
}

func TestBatchesBySizeAndTime(t *testing.T) {
	withBatches(t, Topic{Batch: Batch{Size: 4, Wait: time.Second}}, func(t *testing.T, r *rig, b *batcher) {
		r.receives(orders0, 0, 1, 2, 3, 4, 5)
		assert.Equal(t, []string{"0,1,2,3#1"}, b.batches())
		r.after(900 * time.Millisecond)
		r.engine.deliver(orders0, 6)
		synctest.Wait()
		assert.Len(t, b.batches(), 1)
		r.after(100 * time.Millisecond)
		assert.Equal(t, []string{"0,1,2,3#1", "4,5,6#1"}, b.batches())
		r.after(time.Second)
		assert.EqualValues(t, 7, r.engine.acknowledged(orders0))
	})
}

func TestBatchesThatDoNotWait(t *testing.T) {
	withBatches(t, Topic{Batch: Batch{Size: 3, Wait: -1}}, func(t *testing.T, r *rig, b *batcher) {
		g := r.gate()
		b.on = func(context.Context, []Message) error { g.wait(); return nil }
		r.receives(orders0, 0)
		r.engine.deliver(orders0, 1, 2, 3, 4)
		synctest.Wait()
		assert.Equal(t, []string{"0#1"}, b.batches(), "one at once")
		g.open()
		synctest.Wait()
		assert.Equal(t, []string{"0#1", "1,2,3#1", "4#1"}, b.batches())
	})
}

// A key is in one batch at a time; a batch may have several messages of it.
func TestBatchesByKey(t *testing.T) {
	withBatches(t, Topic{Workers: 3, Batch: Batch{Size: 4, Wait: time.Second}}, func(t *testing.T, r *rig, b *batcher) {
		g := r.gate()
		b.on = func(context.Context, []Message) error { g.wait(); return nil }
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "aabc"+"adde"+"bfgf"+"h")
		r.after(2 * time.Second)
		assert.Equal(t, []string{"0,1,2,3#1", "5,6,7,9#1", "10,12#1"}, b.batches(), "4, 8 and 11 have keys of others")
	})
}

func TestBatchErrorNamesWhatHasFailed(t *testing.T) {
	topic := Topic{Batch: Batch{Size: 5, Wait: time.Second}, DeadLetter: "orders.dlq", Retry: Retry{MaxAttempts: 3}}
	withBatches(t, topic, func(t *testing.T, r *rig, b *batcher) {
		b.on = func(_ context.Context, msgs []Message) error {
			failed := map[int]error{}
			for i, msg := range msgs {
				switch {
				case msg.Offset == 1:
					failed[i] = errHandler
				case msg.Offset == 3 && msg.Attempt == 1:
					failed[i] = nil
				}
			}
			if len(failed) == 0 {
				return nil
			}
			return fmt.Errorf("rows: %w", &BatchError{Failed: failed})
		}
		r.receives(orders0, 0, 1, 2, 3, 4, 5, 6)
		r.after(10 * time.Second)
		assert.Equal(t, []string{"0,1,2,3,4#1", "1#2", "1#3", "3#2", "5,6#1"}, b.batches())
		assert.Equal(t, []string{"orders.dlq/0=1"}, r.engine.written())
		attempts, _ := header(r.engine.letters[0], "kgroup-attempts")
		assert.Equal(t, "3", attempts)
		assert.EqualValues(t, 7, r.engine.acknowledged(orders0))
	})
}

// An error that names none concerns all: they stay together, until each shows by itself
// whether it is to blame.
func TestBatchThatFails(t *testing.T) {
	topic := Topic{Batch: Batch{Size: 3, Wait: time.Second}, DeadLetter: "orders.dlq", Retry: Retry{MaxAttempts: 3}}
	for name, err := range map[string]error{
		"error":       errHandler,
		"none named":  &BatchError{},
		"bad index":   &BatchError{Failed: map[int]error{7: errHandler}},
		"wrapped nil": fmt.Errorf("x: %w", (*BatchError)(nil)),
		// What stands beside it is not about the messages that it names.
		"joined": errors.Join(&BatchError{Failed: map[int]error{1: errHandler}}, errTransient),
		"both":   fmt.Errorf("%w, %w", errTransient, &BatchError{Failed: map[int]error{1: errHandler}}),
		"panic":  thrownError{&BatchError{Failed: map[int]error{1: errHandler}}},
	} {
		t.Run(name, func(t *testing.T) {
			withBatches(t, topic, func(t *testing.T, r *rig, b *batcher) {
				b.on = throws(failsWith(1, err))
				r.receives(orders0, 0, 1, 2)
				r.after(10 * time.Second)
				assert.Equal(t, []string{"0,1,2#1", "0,1,2#2", "0#3", "1#3", "2#3"}, b.batches())
				assert.Equal(t, []string{"orders.dlq/0=1"}, r.engine.written())
				assert.EqualValues(t, 3, r.engine.acknowledged(orders0))
			})
		})
	}
}

// thrownError is not returned, but thrown.
type thrownError struct{ error }

func throws(handle func(context.Context, []Message) error) func(context.Context, []Message) error {
	return func(ctx context.Context, msgs []Message) error {
		err := handle(ctx, msgs)
		if thrown, ok := err.(thrownError); ok { //nolint:errorlint // as it was made
			panic(thrown.error)
		}
		return err
	}
}

// What a handler does with the slice is its own business.
func TestBatchThatIsChanged(t *testing.T) {
	topic := Topic{Batch: Batch{Size: 3, Wait: time.Second}, Retry: Retry{MinBackoff: time.Second, MaxBackoff: time.Second}}
	withBatches(t, topic, func(t *testing.T, r *rig, b *batcher) {
		b.on = func(_ context.Context, msgs []Message) error {
			clear(msgs)
			return errHandler
		}
		r.receives(orders0, 7, 8, 9)
		r.after(500 * time.Millisecond)
		assert.Len(t, r.logs.with("batch failed", "offset=7", "attempt=1"), 1)
		r.after(time.Minute)
		require.Len(t, r.history.all("blocked"), 1)
		assert.Contains(t, r.history.all("blocked")[0], "orders/0@7#")
	})
}

func TestBatchThatFailsForGood(t *testing.T) {
	withBatches(t, Topic{Batch: Batch{Size: 3, Wait: time.Second}, DeadLetter: "orders.dlq"}, func(t *testing.T, r *rig, b *batcher) {
		b.on = failsWith(1, Permanent(errHandler))
		r.receives(orders0, 0, 1, 2)
		r.after(time.Second)
		assert.Equal(t, []string{"0,1,2#1", "0#2", "1#2", "2#2"}, b.batches())
		assert.Equal(t, []string{"orders.dlq/0=1"}, r.engine.written())
	})
}

// Without a dead-letter topic the bad one is held, and what was in a batch with it is not,
// but for what comes after it in order.
func TestBatchIsHeld(t *testing.T) {
	topic := Topic{Batch: Batch{Size: 3, Wait: time.Second}, Retry: Retry{MinBackoff: time.Second, MaxBackoff: 4 * time.Second}}
	withBatches(t, topic, func(t *testing.T, r *rig, b *batcher) {
		b.on = failsWith(1, errHandler)
		r.receives(orders0, 0, 1, 2)
		r.after(time.Minute)
		assert.EqualValues(t, 1, r.engine.acknowledged(orders0))
		require.Len(t, r.history.all("blocked"), 1)
		assert.Contains(t, r.history.all("blocked")[0], "orders/0@1#")
		r.drains(time.Second, time.Second)
	})
}

func TestBatchPanicsOrEndsItsGoroutine(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("oops") }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			withBatches(t, Topic{Batch: Batch{Size: 3, Wait: time.Second}}, func(t *testing.T, r *rig, b *batcher) {
				b.on = func(_ context.Context, msgs []Message) error {
					if msgs[0].Attempt == 1 {
						end()
					}
					return nil
				}
				r.receives(orders0, 0, 1, 2)
				r.after(time.Second)
				assert.Equal(t, []string{"0,1,2#1", "0,1,2#2"}, b.batches())
				r.after(time.Second)
				assert.EqualValues(t, 3, r.engine.acknowledged(orders0))
			})
		})
	}
}

// A batch that is being made up is dropped by a drain; one that is handled is waited for.
func TestDrainOfBatches(t *testing.T) {
	withBatches(t, Topic{Batch: Batch{Size: 3, Wait: time.Hour}}, func(t *testing.T, r *rig, b *batcher) {
		g := r.gate()
		b.on = func(context.Context, []Message) error { g.wait(); return nil }
		r.receives(orders0, 0, 1, 2, 3)
		drained := begin(func() { r.drains(time.Minute, time.Minute) })
		assert.False(t, isClosed(drained))
		g.open()
		<-drained
		assert.Equal(t, []string{"0,1,2#1"}, b.batches())
		assert.EqualValues(t, 3, r.engine.acknowledged(orders0))
	})
	withBatches(t, Topic{Batch: Batch{Size: 3, Wait: time.Hour}}, func(t *testing.T, r *rig, b *batcher) {
		r.receives(orders0, 0, 1)
		assert.Zero(t, r.drains(time.Minute, time.Minute))
		assert.Empty(t, b.batches())
	})
}

// While a backoff lasts, or a shutdown comes, no attempt is made.
func TestShutdownBetweenAttemptsOfABatch(t *testing.T) {
	withBatches(t, Topic{Batch: Batch{Size: 2, Wait: time.Second}, DeadLetter: "orders.dlq"}, func(t *testing.T, r *rig, b *batcher) {
		b.on = func(context.Context, []Message) error { return RetryAfter(errHandler, time.Hour) }
		r.receives(orders0, 0, 1)
		r.after(time.Second)
		took, err := r.stop()
		require.NoError(t, err)
		assert.Zero(t, took)
		assert.Len(t, b.batches(), 1)
		assert.Empty(t, r.engine.written())
		assert.Equal(t, "kgroup/1 f=0 a=0:1,1:1", r.engine.metadata(orders0))
	})
}

// Messages with a past do not go into a batch with others.
func TestBatchesOfANextOwner(t *testing.T) {
	withBatches(t, Topic{Batch: Batch{Size: 3, Wait: time.Second}, DeadLetter: "orders.dlq"}, func(t *testing.T, r *rig, b *batcher) {
		claim := at(orders0, 0)
		claim.Metadata = "kgroup/1 a=1:2,2:5 r=" + ranges{{3, 5}}.encode(0, maxRanges)
		r.engine.assign(claim)
		r.engine.deliver(orders0, 0, 1, 2, 3, 4, 5)
		r.after(5 * time.Second)
		assert.Equal(t, []string{"0#1", "1#3", "5#1"}, b.batches())
		assert.Equal(t, []string{"orders.dlq/0=2"}, r.engine.written())
		assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
	})
}

// An outage pauses a topic that is handled in batches, too.
func TestBreakerOfBatches(t *testing.T) {
	topic := Topic{Workers: 8, Batch: Batch{Size: 2, Wait: time.Millisecond}, DeadLetter: "orders.dlq"}
	withBatches(t, topic, func(t *testing.T, r *rig, b *batcher) {
		var down atomic.Bool
		down.Store(true)
		b.on = func(context.Context, []Message) error {
			if down.Load() {
				return errHandler
			}
			return nil
		}
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abcdefghijklmnopqrstuvwxyz")
		r.after(time.Minute)
		assert.Equal(t, []string{"orders"}, r.consumer.Health().Paused)
		down.Store(false)
		r.after(time.Minute)
		assert.Empty(t, r.consumer.Health().Paused)
		assert.Empty(t, r.engine.written())
		assert.EqualValues(t, 26, r.engine.acknowledged(orders0))
	})
}

func TestTimeoutOfABatch(t *testing.T) {
	topic := Topic{Batch: Batch{Size: 2, Wait: time.Second}, Timeout: time.Second}
	withBatches(t, topic, func(t *testing.T, r *rig, b *batcher) {
		b.on = func(ctx context.Context, msgs []Message) error {
			if msgs[0].Attempt > 1 {
				return nil
			}
			<-ctx.Done()
			return context.Cause(ctx)
		}
		r.receives(orders0, 0, 1)
		r.after(10 * time.Second)
		assert.Equal(t, []string{"0,1#1", "0,1#2"}, b.batches())
		require.Len(t, r.logs.with("handler timeout after 1s"), 1)
	})
	withBatches(t, topic, func(t *testing.T, r *rig, b *batcher) {
		b.on = func(ctx context.Context, msgs []Message) error {
			if msgs[0].Attempt > 1 {
				return nil
			}
			<-ctx.Done()
			return &BatchError{Failed: map[int]error{1: errHandler}}
		}
		r.receives(orders0, 0, 1)
		r.after(10 * time.Second)
		assert.Equal(t, []string{"0,1#1", "1#2"}, b.batches(), "the first was in time")
	})
}

func TestBatchError(t *testing.T) {
	err := &BatchError{Failed: map[int]error{4: errHandler, 2: Permanent(errTransient)}}
	assert.EqualError(t, err, "2 of the batch failed, the first of them 2: broker is restarting")
	require.ErrorIs(t, err, errHandler)
	require.ErrorIs(t, err, errTransient)
	assert.EqualError(t, &BatchError{}, "batch failed, and no message is named")
}

func TestTypedBatch(t *testing.T) {
	decode := func(_ context.Context, msg Message) (int, error) {
		if string(msg.Value) == "later" {
			return 0, errTransient
		}
		n, err := strconv.Atoi(string(msg.Value))
		return n, Permanent(err)
	}
	batch := func(values ...string) []Message {
		var msgs []Message
		for i, value := range values {
			msgs = append(msgs, Message{Offset: int64(i), Value: []byte(value)})
		}
		return msgs
	}
	var got []int
	h := TypedBatch(decode, func(_ context.Context, values []int, msgs []Message) error {
		got = values
		failed := map[int]error{}
		for i, v := range values {
			if v < 0 {
				failed[i] = fmt.Errorf("at %d", msgs[i].Offset)
			}
			if v == 99 {
				return errHandler
			}
		}
		if len(failed) > 0 {
			return &BatchError{Failed: failed}
		}
		return nil
	})
	ctx := t.Context()
	require.NoError(t, h.HandleBatch(ctx, batch("1", "2")))
	assert.Equal(t, []int{1, 2}, got)

	var named *BatchError
	require.ErrorAs(t, h.HandleBatch(ctx, batch("1", "x", "-2", "3")), &named)
	assert.Equal(t, []int{1, -2, 3}, got)
	assert.Len(t, named.Failed, 2)
	require.ErrorIs(t, named.Failed[1], strconv.ErrSyntax)
	require.EqualError(t, named.Failed[2], "at 2")

	require.ErrorIs(t, h.HandleBatch(ctx, batch("x", "99")), errHandler, "concerns all")
	assert.False(t, errors.As(h.HandleBatch(ctx, batch("x", "99")), &named) && len(named.Failed) == 1)

	got = nil
	err := h.HandleBatch(ctx, batch("1", "later", "x", "2"))
	require.ErrorIs(t, err, errTransient)
	assert.Nil(t, failedOf(err, 4), "2 must not overtake what is decoded later")
	assert.Nil(t, got)

	require.ErrorAs(t, h.HandleBatch(ctx, batch("x")), &named)
	assert.Nil(t, got, "nothing to handle")
}

// With one attempt a message, a next owner must not believe that each message of a batch has
// failed by itself.
func TestBatchOfOneAttempt(t *testing.T) {
	topic := Topic{Batch: Batch{Size: 3, Wait: time.Second}, DeadLetter: "orders.dlq", Retry: Retry{MaxAttempts: 1}}
	var claim engine.Claim
	withBatches(t, topic, func(t *testing.T, r *rig, b *batcher) {
		g := r.gate()
		b.on = func(_ context.Context, msgs []Message) error {
			if len(msgs) == 3 {
				return errHandler // because of 1
			}
			g.wait() // 0, alone
			return nil
		}
		r.receives(orders0, 0, 1, 2)
		r.after(2 * time.Second)
		assert.Equal(t, []string{"0,1,2#1", "0#1"}, b.batches())
		claim = at(orders0, 0)
		claim.Metadata = strings.Replace(r.engine.metadata(orders0), "o=1 ", "", 1) // let it be a drain
		r.engine.lose(errLost)
		g.open()
	})
	withBatches(t, topic, func(t *testing.T, r *rig, b *batcher) {
		b.on = failsWith(1, errHandler)
		r.engine.assign(claim)
		r.engine.deliver(orders0, 0, 1, 2)
		r.after(time.Minute)
		assert.Equal(t, []string{"orders.dlq/0=1"}, r.engine.written())
	})
}

// Batches with a bad message each, whose handler is slow to fail, look like an outage: a
// trial ends that for batches, too.
func TestBadBatchesUnderABreaker(t *testing.T) {
	topic := Topic{Workers: 8, Batch: Batch{Size: 2, Wait: time.Millisecond}, DeadLetter: "orders.dlq"}
	withBatches(t, topic, func(t *testing.T, r *rig, b *batcher) {
		b.on = func(_ context.Context, msgs []Message) error {
			time.Sleep(2 * time.Second)
			for _, msg := range msgs {
				if msg.Offset%2 == 0 {
					return errHandler
				}
			}
			return nil
		}
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abcdefghijklmnopqrstuvwxyz")
		r.after(time.Hour)
		assert.NotEmpty(t, r.engine.written())
		assert.Positive(t, r.engine.acknowledged(orders0))
	})
}

// A few bad messages in every batch are no outage, also if all partitions come to one at the
// same time: what was in a batch with them has worked.
func TestBatchesWithFewBadMessages(t *testing.T) {
	const partitions, total, size = 4, 1000, 100
	topic := Topic{Batch: Batch{Size: size, Wait: time.Second}, Queue: 2 * size, DeadLetter: "orders.dlq"}
	withBatches(t, topic, func(t *testing.T, r *rig, b *batcher) {
		b.on = func(_ context.Context, msgs []Message) error {
			time.Sleep(time.Millisecond)
			failed := map[int]error{}
			for i, msg := range msgs {
				if msg.Offset%size == 5 {
					failed[i] = errHandler
				}
			}
			if len(failed) == 0 {
				return nil
			}
			return &BatchError{Failed: failed}
		}
		var claims []engine.Claim
		for i := range int32(partitions) {
			claims = append(claims, at(engine.Partition{Topic: "orders", Number: i}, 0))
		}
		r.engine.assign(claims...)
		for _, claim := range claims {
			for offset := range int64(total) {
				r.engine.lane(claim.Partition).Deliver([]engine.Record{&fakeRecord{offset: offset}})
			}
		}
		r.after(2 * time.Minute)
		assert.Len(t, r.engine.written(), partitions*total/size)
		assert.Empty(t, r.logs.with("most attempts fail"))
	})
}

// Messages whose keys become free while a batch is made up go into it.
func TestBatchIsFilledByThoseThatBecomeFree(t *testing.T) {
	withBatches(t, Topic{Workers: 2, Batch: Batch{Size: 4, Wait: time.Hour}}, func(t *testing.T, r *rig, b *batcher) {
		g := r.gate()
		b.on = func(context.Context, []Message) error { g.wait(); return nil }
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "aaaa"+"bc"+"aa")
		synctest.Wait()
		assert.Equal(t, []string{"0,1,2,3#1"}, b.batches())
		g.open()
		r.after(time.Second)
		assert.Equal(t, []string{"0,1,2,3#1", "4,5,6,7#1"}, b.batches())
	})
}

// In a compacted topic offsets may be so far apart that a batch cannot become full.
func TestBatchThatCannotBecomeLarger(t *testing.T) {
	withBatches(t, Topic{Queue: 10000, Batch: Batch{Size: 1000, Wait: time.Hour}}, func(t *testing.T, r *rig, b *batcher) {
		r.engine.assign(at(orders0, 0))
		for i := range int64(5000) {
			r.engine.deliver(orders0, 20*i)
		}
		r.after(time.Minute)
		assert.Greater(t, len(b.batches()), 4)
	})
}

// A message that is held after a crash, in a topic of its own, is no reason for others to do
// without batches.
func TestBatchesBesideAHeldSuspect(t *testing.T) {
	b := &batcher{}
	change := func(t *Topic) { t.Handler, t.Batch = nil, Batch{Handler: b, Size: 4, Wait: time.Second} }
	withRig(t, onOrders(change), func(t *testing.T, r *rig) {
		b.r = r
		r.on = func(context.Context, Message) error { return Permanent(errHandler) }
		r.engine.assign(at(orders0, 0), found(refunds0, 0, "kgroup/1 o=2"))
		r.engine.deliver(refunds0, 0)
		r.after(time.Hour)
		r.engine.deliver(orders0, 0, 1, 2, 3)
		r.after(time.Minute)
		assert.Equal(t, []string{"0,1,2,3#1"}, b.batches())
	})
}
