package kgroup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// quick is a Retry whose backoff reaches its end with the fourth attempt.
var quick = Retry{MinBackoff: 100 * time.Millisecond, MaxBackoff: 800 * time.Millisecond}

func withRetry(retry Retry) func(*Config) {
	return func(cfg *Config) {
		for name, topic := range cfg.Topics {
			topic.Retry = retry
			cfg.Topics[name] = topic
		}
	}
}

func TestRetryKeepsOrder(t *testing.T) {
	withRig(t, withRetry(quick), func(t *testing.T, r *rig) {
		failures := 3
		r.on = func(_ context.Context, msg Message) error {
			if msg.Topic == "orders" && msg.Offset == 6 && msg.Attempt <= failures {
				return errHandler
			}
			return nil
		}
		r.engine.assign(at(orders0, 5), at(refunds0, 0))
		r.engine.deliver(orders0, 5, 6, 7)
		synctest.Wait()
		assert.Equal(t, "5#1 6#1", r.handled(orders0))
		r.engine.deliver(refunds0, 0, 1)
		synctest.Wait()
		assert.Equal(t, "0#1 1#1", r.handled(refunds0), "another lane goes on meanwhile")

		r.after(700 * time.Millisecond) // 100, 200 and 400 ms at most
		assert.Equal(t, "5#1 6#1 6#2 6#3 6#4 7#1", r.handled(orders0))
		assert.Empty(t, r.history.all("blocked"), "its backoff has not reached its end")
	})
}

// Backoffs are drawn up to their ceiling, and after it a message is tried at a steady
// pace and reported, once.
func TestEndlessRetryIsReported(t *testing.T) {
	withRig(t, withRetry(quick), func(t *testing.T, r *rig) {
		var attempts []time.Time
		r.on = func(context.Context, Message) error {
			attempts = append(attempts, time.Now())
			return errHandler
		}
		r.engine.assign(at(orders0, 5))
		r.engine.deliver(orders0, 5)
		r.after(10 * time.Second)
		require.Greater(t, len(attempts), 10)
		for i, ceiling := range []time.Duration{100, 200, 400} {
			assert.LessOrEqual(t, attempts[i+1].Sub(attempts[i]), ceiling*time.Millisecond)
		}
		for i := 4; i < len(attempts); i++ {
			assert.Equal(t, 800*time.Millisecond, attempts[i].Sub(attempts[i-1]))
		}
		assert.Equal(t, []string{"blocked orders/0@5#4: bank is closed"}, r.history.all("blocked"))
		assert.Len(t, r.logs.with("level=ERROR", "message held", "partition=0", "offset=5", "attempt=4"), 1)
		assert.Len(t, r.logs.with("level=WARN", "attempt failed"), len(attempts)-1)
	})
}

func TestPermanentIsHeld(t *testing.T) {
	withRig(t, withRetry(Retry{MaxBackoff: 30 * time.Second}), func(t *testing.T, r *rig) {
		var mended atomic.Bool
		r.on = func(_ context.Context, msg Message) error {
			if msg.Offset == 5 && !mended.Load() {
				return Permanent(errHandler)
			}
			return nil
		}
		r.engine.assign(at(orders0, 5))
		r.engine.deliver(orders0, 5, 6)
		r.after(95 * time.Second)
		assert.Equal(t, "5#1 5#2 5#3 5#4", r.handled(orders0), "every MaxBackoff")
		assert.Equal(t, []string{"blocked orders/0@5#1: bank is closed"}, r.history.all("blocked"))
		assert.Len(t, r.logs.with("level=ERROR"), 1)
		assert.EqualValues(t, 5, r.engine.acknowledged(orders0))

		mended.Store(true)
		r.after(30 * time.Second)
		assert.Equal(t, "5#1 5#2 5#3 5#4 5#5 6#1", r.handled(orders0))
		assert.Equal(t, []string{"unblocked orders/0@5"}, r.history.all("unblocked"))
		r.after(time.Second)
		assert.EqualValues(t, 7, r.engine.acknowledged(orders0))
	})
}

func TestHeldMessageIsGivenUp(t *testing.T) {
	for name, end := range map[string]func(r *rig){
		"rebalance": func(r *rig) { r.engine.rebalance(time.Minute, time.Minute) },
		"loss":      func(r *rig) { r.engine.lose(errors.New("session")) },
		"shutdown":  func(r *rig) { _, _ = r.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			withRig(t, nil, func(t *testing.T, r *rig) {
				r.on = func(context.Context, Message) error { return Permanent(errHandler) }
				r.engine.assign(at(orders0, 5))
				r.engine.deliver(orders0, 5)
				r.after(time.Second)
				require.Len(t, r.history.all("blocked"), 1)
				began := time.Now()
				end(r)
				synctest.Wait()
				assert.Zero(t, time.Since(began), "it ends the backoff")
				assert.Equal(t, "5#1", r.handled(orders0), "without another attempt")
				assert.Equal(t, []string{"unblocked orders/0@5"}, r.history.all("unblocked"))
				assert.EqualValues(t, 5, r.engine.acknowledged(orders0))
			})
		})
	}
}

func TestPanicIsAFailedAttempt(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.on = func(_ context.Context, msg Message) error {
			if msg.Attempt == 1 {
				panic("no such account")
			}
			return nil
		}
		r.engine.assign(at(orders0, 5))
		r.engine.deliver(orders0, 5, 6)
		r.after(time.Second)
		assert.Equal(t, "5#1 5#2 6#1 6#2", r.handled(orders0))
		lines := r.logs.with("attempt failed", "no such account", "offset=5")
		require.Len(t, lines, 1)
		assert.Contains(t, lines[0], "lane_test.go", "the stack says where")
	})
}

// t.FailNow and t.Skip end their goroutine, here the lane's worker. Without care the
// partition would stand still for ever.
func TestGoexitIsAFailedAttempt(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.on = func(_ context.Context, msg Message) error {
			if msg.Offset == 6 && msg.Attempt <= 2 {
				runtime.Goexit()
			}
			return nil
		}
		r.engine.assign(at(orders0, 5))
		r.engine.deliver(orders0, 5, 6, 7)
		r.after(2 * time.Second)
		assert.Equal(t, "5#1 6#1 6#2 6#3 7#1", r.handled(orders0))
		assert.EqualValues(t, 8, r.engine.acknowledged(orders0))
		assert.Len(t, r.logs.with("attempt failed", "runtime.Goexit"), 2)
	})
}

func TestGoexitDuringADrain(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.on = func(context.Context, Message) error {
			time.Sleep(time.Second)
			runtime.Goexit()
			return nil
		}
		r.engine.assign(at(orders0, 5))
		r.engine.deliver(orders0, 5, 6)
		synctest.Wait()
		began := time.Now()
		r.engine.rebalance(time.Minute, time.Minute)
		assert.Equal(t, time.Second, time.Since(began))
		assert.Equal(t, "5#1", r.handled(orders0))
		assert.Len(t, r.history.all("revoke orders/0@5"), 1)
		assert.EqualValues(t, 5, r.engine.acknowledged(orders0))
	})
}

func TestMessageHasWhatTheRecordHas(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		var got Message
		r.on = func(_ context.Context, msg Message) error {
			got = msg
			return nil
		}
		r.engine.assign(at(refunds0, 5))
		sent := time.Now().Add(-time.Hour)
		r.engine.lane(refunds0).Deliver([]engine.Record{&fakeRecord{
			offset: 5, key: []byte("k"), value: []byte("v"), timestamp: sent,
			headers: []Header{{"trace", []byte("1")}, {"trace", []byte("2")}},
		}})
		synctest.Wait()
		assert.Equal(t, Message{
			Topic: "refunds", Partition: 0, Offset: 5, Key: []byte("k"), Value: []byte("v"), Timestamp: sent, Attempt: 1,
			Headers: []Header{{"trace", []byte("1")}, {"trace", []byte("2")}},
		}, got)
	})
}

// A topic that makes up header keys (an id in each) must not fill the memory.
func TestHeaderKeysRememberedAreBounded(t *testing.T) {
	h := &hand{}
	for i := range 10 * maxHeaderKeys {
		key := fmt.Sprintf("key-%d", i)
		require.Equal(t, key, h.intern([]byte(key)))
	}
	assert.Len(t, h.headers, maxHeaderKeys)
}

// Allocations are counted, not timed, so they are a matter for a test.
func TestAllocationsPerMessage(t *testing.T) {
	for name, test := range map[string]struct {
		headers []Header
		most    float64
	}{
		"no headers":  {nil, 0},
		"two headers": {[]Header{{"trace", []byte("1")}, {"kind", []byte("2")}}, 1}, // the slice
	} {
		t.Run(name, func(t *testing.T) {
			l := testLane(HandlerFunc(func(context.Context, Message) error { return nil }))
			record := &allocRecord{fakeRecord: fakeRecord{value: []byte("v"), headers: test.headers}}
			for i := range test.headers {
				record.keys = append(record.keys, []byte(test.headers[i].Key))
			}
			finished := true
			got := testing.AllocsPerRun(1000, func() {
				record.offset++
				finished = finished && l.hand.finish(record)
			})
			require.True(t, finished)
			assert.LessOrEqual(t, got, test.most)
		})
	}
}

// allocRecord gives its headers away without an allocation of its own.
type allocRecord struct {
	fakeRecord
	keys [][]byte
}

func (r *allocRecord) Header(i int) (key, value []byte) { return r.keys[i], r.headers[i].Value }

// testLane is a lane of orders/0 without a worker.
func testLane(h Handler) *lane { return testLaneOf(Topic{Handler: h}) }

func testLaneOf(topic Topic) *lane {
	a := newAssignment(context.Background(), Config{}, newMatcher(Topics{"orders": topic.withDefaults()}), newFakeEngine(), Config{}.withDefaults().Logger, make(chan struct{}))
	return a.newLane(context.Background(), &generation{}, at(orders0, 0))
}

// A record pins the whole fetch response it came in.
func TestSettledRecordsAreNotKept(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.engine.assign(at(orders0, 0))
		// While the last is at work, all before it can go.
		last := r.gate()
		r.on = func(_ context.Context, msg Message) error {
			if msg.Offset == 99 {
				last.wait()
			}
			return nil
		}
		var pointers []weak.Pointer[fakeRecord]
		func() {
			var records []engine.Record
			for i := range int64(100) {
				record := &fakeRecord{offset: i}
				records = append(records, record)
				pointers = append(pointers, weak.Make(record))
			}
			r.engine.lane(orders0).Deliver(records)
			clear(records)
		}()
		synctest.Wait()
		runtime.GC()
		assert.Len(t, r.history.all("handle"), 100)
		kept := slices.DeleteFunc(pointers, func(p weak.Pointer[fakeRecord]) bool { return p.Value() == nil })
		assert.LessOrEqual(t, len(kept), 1)
		last.open()
	})
}

func TestQueueBound(t *testing.T) {
	for _, limit := range []int{1, 2, 3, 7, 16, 100, 256, 10000} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			q := newQueue(limit)
			n := 0
			for full := false; !full; n++ {
				full = q.put(someRecords(int64(n), 1))
			}
			assert.Equal(t, n, q.len())
			waiting := len(q.batch) - 1 // what the worker has taken beside the one it is at
			assert.LessOrEqual(t, n+waiting, limit)
			assert.Greater(t, n+waiting, limit*3/4-1, "most of it can be used")
		})
	}
}

func TestQueueRoom(t *testing.T) {
	q := newQueue(4)
	open := make(chan struct{})
	require.True(t, q.put(someRecords(0, 3)))
	require.True(t, q.put(someRecords(3, 2)), "it is still full, and takes all the same")
	assert.Equal(t, 5, q.len())
	for left := 4; left >= q.limit; left-- {
		q.take(open)
		assert.Equal(t, left, q.len())
		assert.Empty(t, q.room, "it is still full")
	}
	q.take(open)
	require.Len(t, q.room, 1)
	<-q.room
	q.take(open)
	assert.Empty(t, q.room, "once")
	assert.EqualValues(t, 5, q.end(0))
}

// The engine delivers for all partitions: it must not wait for the worker of one.
func TestQueueTakesWithoutWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(100)
		taken := begin(func() { q.take(make(chan struct{})) })
		require.False(t, isClosed(taken))
		for i := range int64(50) {
			q.put(someRecords(i, 1))
			synctest.Wait()
		}
		require.True(t, isClosed(taken))
		assert.Equal(t, 49, q.len())
	})
}

func TestClosedQueue(t *testing.T) {
	q := newQueue(2)
	sealed := make(chan struct{})
	require.True(t, q.put(someRecords(0, 2)))
	close(sealed)
	q.close()
	require.Len(t, q.room, 1, "whoever waits for room is told")
	assert.Zero(t, q.len())
	assert.False(t, q.put(someRecords(2, 2)), "nobody is to wait")
	assert.False(t, q.put(nil))
	assert.Zero(t, q.len())
	assert.Nil(t, q.take(sealed))
}

func TestQueueKeepsOrderWhileItGrows(t *testing.T) {
	q := newQueue(1000)
	open := make(chan struct{})
	var want, got int64
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		for range random.IntN(3) {
			n := random.IntN(40)
			q.put(someRecords(want, n))
			want += int64(n)
		}
		for range random.IntN(4) {
			if q.len() == 0 {
				break
			}
			for _, r := range q.take(open) {
				require.Equal(t, got, r.Offset())
				got++
			}
		}
	}
	require.Equal(t, int(want-got), q.len())
	require.Greater(t, len(q.ring), 16, "it has grown")
}

// Both sides wait for each other in turn, as often as can be: a wake-up that gets
// lost stops the test.
func TestQueueWakesUp(t *testing.T) {
	for _, limit := range []int{1, 4, 33} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			const total = 50000
			q := newQueue(limit)
			sealed := make(chan struct{})
			var producer sync.WaitGroup
			producer.Go(func() {
				random := rand.New(rand.NewPCG(3, 4))
				for next := int64(0); next < total; {
					n := min(1+random.Int64N(5), total-next)
					if q.put(someRecords(next, int(n))) {
						<-q.room
					}
					next += n
				}
			})
			for next := int64(0); next < total; {
				for _, r := range q.take(sealed) {
					if r.Offset() != next {
						t.Fatalf("took %d, want %d", r.Offset(), next)
					}
					next++
				}
			}
			producer.Wait()
			close(sealed)
			assert.Nil(t, q.take(sealed))
		})
	}
}

func someRecords(from int64, n int) []engine.Record {
	records := make([]engine.Record, n)
	for i := range records {
		records[i] = &fakeRecord{offset: from + int64(i)}
	}
	return records
}

// The engine that is told a lane is full must be told of its room, also by a seal.
func TestFullLane(t *testing.T) {
	small := func(cfg *Config) {
		topic := cfg.Topics["orders"]
		topic.Queue = 2
		cfg.Topics["orders"] = topic
	}
	withRig(t, small, func(t *testing.T, r *rig) {
		first, second := r.gate(), r.gate()
		r.on = func(_ context.Context, msg Message) error {
			if msg.Offset == 0 {
				first.wait()
			} else {
				second.wait()
			}
			return nil
		}
		r.engine.assign(at(orders0, 0))
		lane := r.engine.lane(orders0)
		require.True(t, r.engine.deliver(orders0, 0))
		<-lane.Room() // the handler has it
		require.True(t, r.engine.deliver(orders0, 1))
		room := begin(func() { <-lane.Room() })
		require.False(t, isClosed(room))
		first.open()
		synctest.Wait()
		require.True(t, isClosed(room))

		require.True(t, r.engine.deliver(orders0, 2))
		room = begin(func() { <-lane.Room() })
		require.False(t, isClosed(room))
		drained := begin(func() { r.engine.rebalance(time.Minute, time.Minute) })
		require.True(t, isClosed(room))
		require.False(t, r.engine.deliver(orders0, 3), "thrown away")
		assert.Zero(t, lane.Len())
		second.open()
		<-drained
		assert.Equal(t, "0#1 1#1", r.handled(orders0))
		assert.EqualValues(t, 2, r.engine.acknowledged(orders0))
	})
}

// The handler's context: it has the values of Run's and not its end.
func TestHandlerContext(t *testing.T) {
	type key struct{}
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.run(context.WithValue(t.Context(), key{}, "tenant-7"))
		var value any
		var during, after error
		r.on = func(ctx context.Context, _ Message) error {
			value = ctx.Value(key{})
			time.Sleep(5 * time.Second)
			during = ctx.Err()
			context.AfterFunc(ctx, func() { after = context.Cause(ctx) })
			return nil
		}
		r.engine.assign(at(orders0, 5))
		r.engine.deliver(orders0, 5)
		r.after(time.Second)
		took, err := r.stop()
		synctest.Wait()
		require.NoError(t, err)
		assert.Equal(t, 4*time.Second, took)
		assert.Equal(t, "tenant-7", value)
		require.NoError(t, during, "not the cancellation of Run's context")
		assert.Equal(t, ErrPartitionLost, after, "what a handler leaves behind is told that its partition is gone")
	})
}

// A held message of one partition is no reason for the logs to show its content.
func TestContentIsNotLogged(t *testing.T) {
	withRig(t, withRetry(quick), func(t *testing.T, r *rig) {
		r.on = func(_ context.Context, msg Message) error {
			switch msg.Attempt {
			case 1:
				return errHandler
			case 2:
				panic("no such account")
			}
			return Permanent(errHandler)
		}
		r.engine.assign(at(orders0, 5))
		r.engine.lane(orders0).Deliver([]engine.Record{&fakeRecord{
			offset: 5, key: []byte("top-secret"), value: []byte("top-secret"), headers: []Header{{"top-secret", []byte("top-secret")}},
		}})
		r.after(time.Minute)
		require.NotEmpty(t, r.history.all("blocked"))
		for _, line := range r.logs.with() {
			assert.False(t, strings.Contains(line, "top-secret"), line)
		}
	})
}
