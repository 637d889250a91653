package kgroup

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// workers gives both topics of a rig so many.
func workers(n int) func(*Config) {
	return func(cfg *Config) {
		for name, topic := range cfg.Topics {
			topic.Workers = n
			cfg.Topics[name] = topic
		}
	}
}

// changes makes one of several.
func changes(all ...func(*Config)) func(*Config) {
	return func(cfg *Config) {
		for _, change := range all {
			change(cfg)
		}
	}
}

// keyed delivers messages from an offset on, one for each character, which is its key; a
// space is none.
func (e *fakeEngine) keyed(p engine.Partition, offset int64, keys string) (full bool) {
	var records []engine.Record
	for i, key := range []byte(keys) {
		r := &fakeRecord{offset: offset + int64(i), value: []byte(strconv.FormatInt(offset+int64(i), 10))}
		if key != ' ' {
			r.key = []byte{key}
		}
		records = append(records, r)
	}
	return e.lane(p).Deliver(records)
}

// gates keep the handlers of messages waiting until they are told to go on.
type gates struct {
	r  *rig
	mu sync.Mutex
	of map[int64]gate
	// errs is what handlers return, by offset.
	errs map[int64]error
}

// gated makes every message wait at a gate of its own.
func (r *rig) gated() *gates {
	g := &gates{r: r, of: map[int64]gate{}, errs: map[int64]error{}}
	r.on = func(_ context.Context, msg Message) error {
		g.at(msg.Offset).wait()
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.errs[msg.Offset]
	}
	return g
}

func (g *gates) at(offset int64) gate {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.of[offset]; !ok {
		g.of[offset] = g.r.gate()
	}
	return g.of[offset]
}

// open lets messages go on.
func (g *gates) open(offsets ...int64) {
	for _, offset := range offsets {
		g.at(offset).open()
	}
	synctest.Wait()
}

// sorted is [rig.handled], by offset: which hand is first is chance.
func (r *rig) sorted(p engine.Partition) string {
	attempts := strings.Fields(r.handled(p))
	slices.Sort(attempts)
	return strings.Join(attempts, " ")
}

func TestWorkersHandleAtOnceWhatHasAnotherKey(t *testing.T) {
	withRig(t, workers(4), func(t *testing.T, r *rig) {
		g := r.gated()
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "aabacd  ")
		synctest.Wait()
		assert.Equal(t, "0#1 2#1 4#1 5#1", r.sorted(orders0))
		g.open(5)
		assert.Equal(t, "0#1 2#1 4#1 5#1 6#1", r.sorted(orders0), "1 and 3 wait for their key")
		g.open(0)
		assert.Equal(t, "0#1 1#1 2#1 4#1 5#1 6#1", r.sorted(orders0), "the oldest comes first")
		g.open(4)
		assert.Equal(t, "0#1 1#1 2#1 4#1 5#1 6#1 7#1", r.sorted(orders0))
		g.open(1, 2, 3, 6, 7)
		assert.Equal(t, "0#1 1#1 2#1 3#1 4#1 5#1 6#1 7#1", r.sorted(orders0))
		r.after(time.Second)
		assert.EqualValues(t, 8, r.engine.acknowledged(orders0))
	})
}

func TestFrontierWaitsForTheSlowest(t *testing.T) {
	withRig(t, workers(4), func(t *testing.T, r *rig) {
		g := r.gated()
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abcdef")
		g.open(0, 2, 3, 4, 5)
		r.after(2 * time.Second)
		assert.EqualValues(t, 1, r.engine.acknowledged(orders0))
		h := r.consumer.Health().Lanes[0]
		assert.EqualValues(t, 1, h.Frontier)
		assert.EqualValues(t, 6, h.Position)
		g.open(1)
		r.after(2 * time.Second)
		assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
	})
}

// What waits for its next attempt, or is held, is in nobody's way.
func TestWorkersGoOnBesideWhatFails(t *testing.T) {
	withRig(t, workers(2), func(t *testing.T, r *rig) {
		r.on = func(_ context.Context, msg Message) error {
			if key := string(msg.Key); key == "a" || key == "c" { // as many as there are workers
				return Permanent(errHandler)
			}
			return nil
		}
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abacad"+strings.Repeat("b", 100))
		r.after(time.Second)
		assert.Len(t, r.history.all("returned orders/0@", "<nil>"), 102)
		assert.Len(t, r.history.all("blocked"), 2)
		assert.EqualValues(t, 0, r.consumer.Health().Lanes[0].Blocked.Offset)
		require.Error(t, r.consumer.Health().Err())
	})
}

// So many keys fail that nobody could go on if they kept their places.
func TestRetriesOfManyKeys(t *testing.T) {
	withRig(t, workers(3), func(t *testing.T, r *rig) {
		var running, most int
		var mu sync.Mutex
		r.on = func(_ context.Context, msg Message) error {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			running--
			mu.Unlock()
			if msg.Attempt < 4 {
				return errHandler
			}
			return nil
		}
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz")
		r.after(time.Minute)
		assert.Len(t, r.history.all("returned orders/0@", "#4: <nil>"), 52)
		assert.Equal(t, 3, most, "at once")
		assert.EqualValues(t, 52, r.engine.acknowledged(orders0))
	})
}

func TestDrainOfWorkers(t *testing.T) {
	withRig(t, workers(3), func(t *testing.T, r *rig) {
		g := r.gated()
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abcdabcd")
		synctest.Wait()
		drained := begin(func() { r.drains(time.Minute, time.Minute) })
		g.open(2)
		assert.False(t, isClosed(drained))
		g.open(0, 1)
		<-drained
		assert.Equal(t, "0#1 1#1 2#1", r.sorted(orders0), "nothing begins in a drain")
		assert.EqualValues(t, 3, r.engine.acknowledged(orders0))
	})
}

// A drain ends backoffs, also when there is no place for them to come back to.
func TestDrainWhileManyWait(t *testing.T) {
	withRig(t, workers(2), func(t *testing.T, r *rig) {
		r.on = func(context.Context, Message) error { return RetryAfter(errHandler, time.Hour) }
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abcdefgh")
		r.after(time.Second)
		assert.Len(t, strings.Fields(r.handled(orders0)), 8)
		assert.Zero(t, r.drains(time.Minute, time.Minute))
	})
}

func TestLossWithWorkers(t *testing.T) {
	withRig(t, workers(3), func(t *testing.T, r *rig) {
		var causes []error
		var mu sync.Mutex
		r.on = func(ctx context.Context, _ Message) error {
			<-ctx.Done()
			mu.Lock()
			defer mu.Unlock()
			causes = append(causes, context.Cause(ctx))
			return nil
		}
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abcd")
		synctest.Wait()
		r.loses()
		require.Len(t, causes, 3)
		for _, cause := range causes {
			require.ErrorIs(t, cause, ErrPartitionLost)
		}
		assert.EqualValues(t, -1, r.engine.acknowledged(orders0))
	})
}

// One of several handlers ignores its cancelled context: the partition waits for it.
func TestOrphanAmongWorkers(t *testing.T) {
	withRig(t, workers(3), func(t *testing.T, r *rig) {
		g := r.gated()
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abc")
		g.open(0, 2)
		r.drains(time.Second, 2*time.Second)
		assert.EqualValues(t, 1, r.engine.acknowledged(orders0))
		r.engine.assign(at(orders0, 1))
		r.engine.keyed(orders0, 1, "bc")
		r.after(time.Minute)
		assert.Equal(t, []string{"orders/0"}, r.consumer.Health().Stuck)
		assert.Equal(t, "0#1 1#1 2#1", r.sorted(orders0))
		g.open(1)
		r.after(time.Second)
		assert.Equal(t, "0#1 1#1 1#1 2#1 2#1", r.sorted(orders0))
	})
}

func TestGoexitAmongWorkers(t *testing.T) {
	withRig(t, workers(3), func(t *testing.T, r *rig) {
		r.on = func(_ context.Context, msg Message) error {
			if msg.Attempt < 3 {
				runtime.Goexit()
			}
			return nil
		}
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abcabc")
		r.after(time.Second)
		assert.Len(t, r.history.all("returned"), 18)
		r.after(time.Second)
		assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
	})
}

// A hook that ends its goroutine does not make a settled message be handled again.
func TestGoexitInAHookAmongWorkers(t *testing.T) {
	change := func(cfg *Config) {
		workers(3)(cfg)
		withLetters(cfg)
		cfg.Hooks.DeadLetter = func(*HandlerError) { runtime.Goexit() }
	}
	withRig(t, change, func(t *testing.T, r *rig) {
		r.on = func(context.Context, Message) error { return Permanent(errHandler) }
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abcabc")
		r.after(time.Second)
		assert.Len(t, r.history.all("handle"), 6)
		assert.Len(t, r.engine.written(), 6)
		r.after(time.Second)
		assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
	})
}

func TestKey(t *testing.T) {
	change := func(cfg *Config) {
		workers(3)(cfg)
		topic := cfg.Topics["orders"]
		topic.Key = func(msg Message) []byte {
			if msg.Offset == 5 {
				panic("what is this?")
			}
			if msg.Offset%2 == 0 {
				return []byte("even")
			}
			return nil
		}
		topic.DeadLetter = "orders.dlq"
		cfg.Topics["orders"] = topic
	}
	withRig(t, change, func(t *testing.T, r *rig) {
		g := r.gated()
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "aaaaaa")
		synctest.Wait()
		assert.Equal(t, "0#1 1#1 3#1", r.sorted(orders0))
		g.open(0, 1, 2, 3, 4)
		assert.Equal(t, "0#1 1#1 2#1 3#1 4#1", r.sorted(orders0), "the key of 5 is not known")
		r.after(time.Minute)
		assert.Equal(t, []string{"orders.dlq/0=5"}, r.engine.written())
		text, _ := header(r.engine.letters[0], "kgroup-error")
		assert.Contains(t, text, "what is this?")
	})
}

// Handlers that take no time are called by one hand; if one takes its time after all, it
// keeps only its key.
func TestQuickHandlerAmongWorkers(t *testing.T) {
	withRig(t, workers(8), func(t *testing.T, r *rig) {
		slow := r.gate()
		r.on = func(_ context.Context, msg Message) error {
			if msg.Offset == 2000 {
				slow.wait()
			}
			return nil
		}
		r.engine.assign(at(orders0, 0))
		for offset := range int64(4000) {
			r.engine.keyed(orders0, offset, string(rune('A'+offset%50)))
			if offset%32 == 0 {
				synctest.Wait()
			}
		}
		r.after(100 * time.Millisecond)
		assert.Less(t, len(r.history.all("returned")), 4000)
		assert.Greater(t, len(r.history.all("returned")), 3900, "all but a fiftieth")
		slow.open()
		r.after(time.Second)
		assert.Len(t, r.history.all("handle"), 4000)
		assert.EqualValues(t, 4000, r.engine.acknowledged(orders0))
	})
}

// The formula: Workers goroutines, and one for each message that waits for a retry; of
// messages, Workers and Queue, and what was delivered in one piece.
func TestWorkersAreBounded(t *testing.T) {
	const n, queue = 8, 32
	change := func(cfg *Config) {
		workers(n)(cfg)
		topic := cfg.Topics["orders"]
		topic.Queue = queue
		cfg.Topics["orders"] = topic
	}
	withRig(t, change, func(t *testing.T, r *rig) {
		before := runtime.NumGoroutine()
		r.on = func(context.Context, Message) error { return RetryAfter(errHandler, time.Hour) }
		r.engine.assign(at(orders0, 0))
		offset := int64(0)
		full := false
		for range 1000 {
			if full = r.engine.keyed(orders0, offset, string(rune('a'+offset))); full {
				break
			}
			offset++
			synctest.Wait()
		}
		assert.True(t, full)
		assert.LessOrEqual(t, offset, int64(queue+n))
		assert.LessOrEqual(t, runtime.NumGoroutine()-before, queue+n)
	})
}

// Those of batches that are handled alone wait with a goroutine each, too.
func TestHandsOfBatchesAreBounded(t *testing.T) {
	const size, queue = 100, 64
	topic := Topic{Workers: 2, Queue: queue, Batch: Batch{Size: size, Wait: time.Second}}
	withBatches(t, topic, func(t *testing.T, r *rig, b *batcher) {
		before := runtime.NumGoroutine()
		var works atomic.Bool
		b.on = func(_ context.Context, msgs []Message) error {
			if works.Load() {
				return nil
			}
			failed := map[int]error{}
			for i := range msgs {
				failed[i] = RetryAfter(errHandler, time.Hour)
			}
			return &BatchError{Failed: failed}
		}
		r.engine.assign(at(orders0, 0))
		for offset := range int64(2 * size) {
			r.engine.lane(orders0).Deliver([]engine.Record{&fakeRecord{offset: offset, key: []byte(strconv.FormatInt(offset, 10))}})
			synctest.Wait()
		}
		r.after(10 * time.Minute)
		assert.Greater(t, runtime.NumGoroutine()-before, size/2, "the messages of a batch wait")
		assert.LessOrEqual(t, runtime.NumGoroutine()-before, 2*size+queue/2+2)
		works.Store(true)
		r.after(2 * time.Hour)
		assert.EqualValues(t, 2*size, r.engine.acknowledged(orders0))
	})
}

// A key that waits keeps no other from going on, until half of Queue waits for it.
func TestOneBlockedKeyOfMany(t *testing.T) {
	withRig(t, workers(4), func(t *testing.T, r *rig) {
		g := r.gate()
		r.on = func(_ context.Context, msg Message) error {
			if string(msg.Key) == "0" {
				g.wait()
			}
			return nil
		}
		r.engine.assign(at(orders0, 0))
		full := false
		delivered := int64(0)
		for ; !full && delivered < 200_000; delivered++ {
			key := strconv.FormatInt(delivered%1000, 10)
			full = r.engine.lane(orders0).Deliver([]engine.Record{&fakeRecord{offset: delivered, key: []byte(key)}})
			synctest.Wait()
		}
		assert.True(t, full)
		assert.Greater(t, delivered, int64(8*aheadBytes))
		assert.Less(t, delivered, int64(8*aheadBytes+defaultQueue))
		g.open()
		synctest.Wait()
		assert.True(t, isClosed(r.engine.lane(orders0).Room()) || len(r.engine.lane(orders0).Room()) == 1)
	})
}

func TestCommitEveryMessageWithWorkers(t *testing.T) {
	change := changes(workers(4), committing(CommitEveryMessage))
	withRig(t, change, func(t *testing.T, r *rig) {
		g := r.gated()
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abcda")
		g.open(1, 2, 3)
		assert.Equal(t, "0#1 1#1 2#1 3#1", r.sorted(orders0))
		assert.EqualValues(t, 0, max(0, r.engine.acknowledged(orders0)))
		g.open(0)
		assert.EqualValues(t, 4, r.engine.acknowledged(orders0))
		assert.Equal(t, "0#1 1#1 2#1 3#1 4#1", r.sorted(orders0))
		g.open(4)
		assert.EqualValues(t, 5, r.engine.acknowledged(orders0))
	})
}

// Random keys, times, failures and rebalances: order by key, nothing lost, nothing repeated.
func TestWorkersSimulation(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 6))
			n := 1 + random.IntN(8)
			batches := random.IntN(2) == 0
			s := &crewJury{random: random, most: max(n, 1), settled: map[int64]bool{}, running: map[string]bool{}, last: map[string]int64{}}
			change := func(cfg *Config) {
				topic := Topic{Workers: max(2, n), Queue: 2 + random.IntN(60), Retry: Retry{MaxAttempts: 100}}
				s.most = topic.Workers
				if batches {
					topic.Batch = Batch{Handler: BatchHandlerFunc(s.handleBatch), Size: 1 + random.IntN(20), Wait: time.Duration(1+random.IntN(20)) * time.Millisecond}
					topic.Workers = n
					s.most = n
					s.one = n == 1
				} else {
					topic.Handler = HandlerFunc(s.handle)
				}
				cfg.Topics = Topics{"orders": topic}
			}
			withRig(t, change, func(t *testing.T, r *rig) {
				s.partition(t, r)
			})
			assert.Empty(t, s.verdicts)
		})
	}
}

// A crewJury judges what a crew does.
type crewJury struct {
	mu       sync.Mutex
	random   *rand.Rand
	one      bool // all messages count as of one key
	most     int
	at       int
	settled  map[int64]bool
	running  map[string]bool
	last     map[string]int64
	verdicts []string
}

func (s *crewJury) judge(ok bool, format string, args ...any) {
	if !ok && len(s.verdicts) < 5 {
		s.verdicts = append(s.verdicts, fmt.Sprintf(format, args...))
	}
}

func (s *crewJury) key(msg Message) string {
	if s.one {
		return "all"
	}
	return string(msg.Key)
}

// begin is called with mu, and so is end.
func (s *crewJury) begin(msgs []Message) {
	s.at++
	s.judge(s.at <= s.most, "%d at once", s.at)
	for i, msg := range msgs {
		s.judge(i == 0 || msgs[i-1].Offset < msg.Offset, "a batch is not in order: %d before %d", msgs[max(0, i-1)].Offset, msg.Offset)
		s.judge(!s.settled[msg.Offset], "%d is repeated", msg.Offset)
		if key := s.key(msg); key != "" {
			s.judge(!s.running[key] || i > 0, "two at once of key %s, at %d", key, msg.Offset)
			s.judge(s.last[key] <= msg.Offset, "%d of key %s begins after %d was settled", msg.Offset, key, s.last[key])
		}
	}
	for _, msg := range msgs {
		if key := s.key(msg); key != "" {
			s.running[key] = true
		}
	}
}

func (s *crewJury) end(msgs []Message) {
	s.at--
	for _, msg := range msgs {
		delete(s.running, s.key(msg))
	}
}

func (s *crewJury) settle(msg Message) {
	s.settled[msg.Offset] = true
	if key := s.key(msg); key != "" {
		s.last[key] = max(s.last[key], msg.Offset)
	}
}

func (s *crewJury) handle(ctx context.Context, msg Message) error {
	return s.handleBatch(ctx, []Message{msg})
}

func (s *crewJury) handleBatch(_ context.Context, msgs []Message) error {
	s.mu.Lock()
	s.begin(msgs)
	d, chance := time.Duration(s.random.IntN(20))*time.Millisecond, s.random.Float64()
	s.mu.Unlock()
	time.Sleep(d)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(msgs)
	switch {
	case chance < 0.02:
		runtime.Goexit()
	case chance < 0.05:
		panic("oops")
	case chance < 0.1:
		return errHandler
	case chance < 0.2 && len(msgs) > 1:
		// Of a key, what stands behind a failure has not been done.
		failed, keys := map[int]error{}, map[string]bool{}
		for i, msg := range msgs {
			if key := s.key(msg); s.random.IntN(3) == 0 || key != "" && keys[key] {
				failed[i], keys[key] = errHandler, true
			} else {
				s.settle(msg)
			}
		}
		if len(failed) == 0 {
			return nil
		}
		return fmt.Errorf("rows: %w", &BatchError{Failed: failed})
	}
	for _, msg := range msgs {
		s.settle(msg)
	}
	return nil
}

// partition lets a partition of 1,000 messages be handled, in several generations.
func (s *crewJury) partition(t *testing.T, r *rig) {
	t.Helper()
	const total = 1000
	var keys [total]string
	for i := range keys {
		if k := s.random.IntN(12); k > 0 {
			keys[i] = strconv.Itoa(k)
		}
	}
	begins := int64(0)
	for generation := range 8 {
		r.engine.assign(engine.Claim{Partition: orders0, Offset: begins, Committed: true, Metadata: r.engine.metadata(orders0)})
		lane := r.engine.lane(orders0)
		full := false
		for offset := begins; offset < total; offset++ {
			for full {
				select {
				case <-lane.Room():
					full = false
				case <-time.After(time.Duration(s.number(200)) * time.Millisecond):
				}
				if generation < 7 && s.number(10) == 0 {
					break
				}
			}
			if full {
				break
			}
			record := &fakeRecord{offset: offset}
			if keys[offset] != "" {
				record.key = []byte(keys[offset])
			}
			full = lane.Deliver([]engine.Record{record})
			if s.number(5) == 0 {
				time.Sleep(time.Duration(s.number(5)) * time.Millisecond)
			}
		}
		if generation == 7 {
			r.after(20 * time.Minute)
		}
		r.drains(time.Hour, 2*time.Hour)
		begins = max(begins, r.engine.acknowledged(orders0))
		s.mu.Lock()
		for offset := range begins {
			s.judge(s.settled[offset], "%d is committed, and %d is not settled", begins, offset)
		}
		s.mu.Unlock()
	}
	assert.EqualValues(t, total, begins)
	assert.Len(t, s.settled, total, "all but: %v", slices.Sorted(maps.Keys(s.settled)))
}

func (s *crewJury) number(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.random.IntN(n)
}

// After a death, the messages that the dead owner may have had in its hands are handled one
// at a time, also where several are handled at once otherwise; then they are again.
func TestSuspectsOfWorkers(t *testing.T) {
	change := changes(withQueue, workers(3))
	withRig(t, change, func(t *testing.T, r *rig) {
		var mu sync.Mutex
		running, alone, together := 0, 0, 0
		r.on = func(context.Context, Message) error {
			mu.Lock()
			running++
			if running == 1 {
				alone++
			} else {
				together++
			}
			mu.Unlock()
			time.Sleep(10 * time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			running--
			return nil
		}
		r.engine.assign(found(orders0, 5, "kgroup/1 o=2"))
		r.engine.keyed(orders0, 5, "abcdefgh"+"ijklmnop")
		r.after(59 * time.Millisecond)
		mu.Lock()
		assert.Equal(t, 6, alone, "Queue, and what three workers have in their hands besides the first")
		assert.Zero(t, together)
		mu.Unlock()
		r.after(time.Second)
		assert.Len(t, r.history.all("returned"), 16)
		mu.Lock()
		defer mu.Unlock()
		assert.Greater(t, together, 5)
	})
}

// Where somebody has died, no more is settled and not committed than the next owner will
// suspect, if all die. While a commit takes its time, the other hands wait, too.
func TestWorkersWaitForCommitsAfterADeath(t *testing.T) {
	const n, queue, total = 16, 32, 600
	change := changes(workers(n), onOrders(func(topic *Topic) { topic.Queue = queue }))
	withRig(t, change, func(t *testing.T, r *rig) {
		r.engine.assign(found(orders0, 0, "kgroup/1 o=2"))
		r.engine.answer(slow(300 * time.Millisecond))
		l := r.engine.lane(orders0).(*lane)
		var most, settled uint64
		offset := int64(0)
		for full := false; settled < total; r.after(10 * time.Millisecond) {
			for !full && offset < total {
				full = l.Deliver([]engine.Record{&fakeRecord{offset: offset, key: []byte(strconv.FormatInt(offset, 10))}})
				offset++
				synctest.Wait()
			}
			select {
			case <-l.Room():
				full = false
			default:
			}
			l.crew.mu.Lock()
			settled = l.crew.settled
			l.crew.mu.Unlock()
			most = max(most, settled-l.saved.Load().settled)
		}
		assert.LessOrEqual(t, most, uint64(queue+n))
		assert.Greater(t, most, uint64(queue/2), "they do not wait for each message")

		// What cannot be committed is not asked for again with each message.
		r.engine.answer(func(*fakeCommit) error { return errTransient })
		before := r.engine.commitCount()
		for range total {
			l.Deliver([]engine.Record{&fakeRecord{offset: offset, key: []byte(strconv.FormatInt(offset, 10))}})
			offset++
			synctest.Wait()
		}
		r.after(10 * time.Second)
		l.crew.mu.Lock()
		assert.EqualValues(t, offset, l.crew.settled)
		l.crew.mu.Unlock()
		assert.Less(t, r.engine.commitCount()-before, 2*total/queue+n)
	})
}

// A deadly message among others that are handled at once is found.
func TestDeadlyMessageOfWorkers(t *testing.T) {
	change := changes(withQueue, workers(4))
	claim := at(orders0, 0)
	handled := map[int64]int{}
	for start := 1; start <= 5; start++ {
		withRig(t, change, func(t *testing.T, r *rig) {
			var mu sync.Mutex
			dead := false
			r.on = func(ctx context.Context, msg Message) error {
				mu.Lock()
				defer mu.Unlock()
				if dead {
					return errHandler
				}
				if msg.Offset == 3 {
					dead = true
					offset, metadata, _ := strings.Cut(r.engine.said(orders0), " ")
					claim.Metadata = strings.Replace(metadata, "o=1", "o=2", 1) // another process
					claim.Offset, _ = strconv.ParseInt(offset, 10, 64)
					mu.Unlock()
					<-ctx.Done()
					mu.Lock()
					return ctx.Err()
				}
				handled[msg.Offset]++
				return nil
			}
			now := claim
			r.engine.assign(now)
			r.engine.keyed(orders0, now.Offset, "abcdabcdabcd"[now.Offset:])
			r.after(300 * time.Millisecond)
			mu.Lock()
			assert.Equal(t, start < 5, dead, "start %d", start)
			mu.Unlock()
			if dead {
				r.engine.lose(errLost) // what a rig does at its end must not commit anything
				return
			}
			assert.Equal(t, []string{"orders.dlq/0=3"}, r.engine.written())
		})
	}
	assert.Len(t, handled, 11, "all others: %v", handled)
}

// One that is held does not end the search: the next one may be deadly too, and is handled
// although the first one stays where it is.
func TestSuspectsBehindADeadlyMessageThatIsHeld(t *testing.T) {
	change := func(cfg *Config) {
		withQueue(cfg)
		workers(3)(cfg)
		for name, topic := range cfg.Topics {
			topic.DeadLetter = ""
			cfg.Topics[name] = topic
		}
	}
	withRig(t, change, func(t *testing.T, r *rig) {
		said := map[int64]string{}
		r.on = func(_ context.Context, msg Message) error {
			said[msg.Offset] = r.engine.said(orders0)
			return nil
		}
		r.engine.assign(found(orders0, 5, "kgroup/1 o=2 s=5:3"))
		r.engine.keyed(orders0, 5, "abcd")
		r.after(time.Second)
		assert.Equal(t, "6#1 7#1 8#1", r.sorted(orders0))
		for _, offset := range []int64{6, 7, 8} {
			assert.Contains(t, said[offset], fmt.Sprintf(" s=5:3,%d:1", offset), "written down before it is handled")
		}
	})
}

// What is settled beyond the frontier is not handled again by the next owner, whatever it
// is; who crashes after it says so too.
func TestNextOwnerSkipsWhatIsSettled(t *testing.T) {
	var claim engine.Claim
	withRig(t, workers(4), func(t *testing.T, r *rig) {
		g := r.gated()
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abcdefgh")
		g.open(1, 3, 4, 5)
		r.after(2 * time.Second)
		claim = found(orders0, r.engine.acknowledged(orders0), r.engine.metadata(orders0))
		assert.EqualValues(t, 0, claim.Offset)
		r.engine.lose(errLost)
	})
	for _, change := range []func(*Config){nil, workers(2)} {
		withRig(t, change, func(t *testing.T, r *rig) {
			r.engine.assign(claim)
			r.engine.keyed(orders0, 0, "abcdefgh")
			r.after(10 * time.Second)
			assert.Equal(t, "0#1 2#1 6#1 7#1", r.sorted(orders0))
			assert.EqualValues(t, 8, r.engine.acknowledged(orders0))
		})
	}
}

// The partition has lost its end: what is there now are other messages.
func TestNextOwnerSkipsNothingBeyondTheEnd(t *testing.T) {
	claim := found(orders0, 5, "kgroup/1 f=5 a=6:3 r="+ranges{{7, 10}}.encode(5, maxRanges))
	claim.HasEnd = true
	for end, want := range map[int64]string{10: "10#1 5#1 6#4", 9: "10#1 5#1 6#1 7#1 8#1 9#1"} {
		claim.End = end
		withRig(t, workers(4), func(t *testing.T, r *rig) {
			r.engine.assign(claim)
			r.engine.keyed(orders0, 5, "abcdef")
			r.after(10 * time.Second)
			assert.Equal(t, want, r.sorted(orders0))
			assert.EqualValues(t, 11, r.engine.acknowledged(orders0))
			assert.Len(t, r.history.all("error", "ends at 9"), int(10-end))
		})
	}
}

// Under CommitEveryMessage each worker waits for the answer, also if the frontier stands.
func TestCommitEveryMessageBeyondTheFrontier(t *testing.T) {
	change := changes(workers(2), committing(CommitEveryMessage))
	withRig(t, change, func(t *testing.T, r *rig) {
		g := r.gated()
		r.engine.assign(at(orders0, 0))
		r.engine.answer(slow(time.Second))
		r.engine.keyed(orders0, 0, "abcd")
		g.open(1, 2, 3)
		assert.Equal(t, "0#1 1#1", r.sorted(orders0))
		r.after(time.Second)
		assert.Equal(t, "0#1 1#1 2#1", r.sorted(orders0))
		assert.Equal(t, "kgroup/1 o=1 f=0 r="+ranges{{1, 2}}.encode(0, maxRanges), r.engine.metadata(orders0))
	})
}

// Nobody is called while a letter is written, but for other keys.
func TestLettersOfWorkers(t *testing.T) {
	change := changes(workers(2), withLetters)
	withRig(t, change, func(t *testing.T, r *rig) {
		writing := r.gate()
		r.engine.onPublish(func(context.Context, engine.Letter) error { writing.wait(); return nil })
		r.on = failAt(0, Permanent(errHandler))
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abaccb")
		synctest.Wait()
		assert.Equal(t, "0#1 1#1 3#1 4#1 5#1", r.sorted(orders0))
		writing.open()
		r.after(time.Second)
		assert.Equal(t, "0#1 1#1 2#1 3#1 4#1 5#1", r.sorted(orders0))
		assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
	})
}

// workingLane is a lane of orders/0 at work, and what seals it.
func workingLane(t *testing.T, topic Topic) (*lane, context.CancelFunc) {
	a := newAssignment(t.Context(), Config{}, newMatcher(Topics{"orders": topic.withDefaults()}), newFakeEngine(), slog.New(slog.DiscardHandler), make(chan struct{}))
	ctx, seal := context.WithCancel(t.Context())
	l := a.newLane(ctx, &generation{}, at(orders0, 0))
	go l.work()
	return l, seal
}

// A lane is sealed some time before it is closed. Its hands do not go round until then.
func TestHandsEndWithTheSeal(t *testing.T) {
	handle := func(context.Context, []Message) error { time.Sleep(time.Second); return nil }
	for name, topic := range map[string]Topic{
		"workers": {Workers: 4, Handler: alone(BatchHandlerFunc(handle))},
		"batches": {Workers: 4, Batch: Batch{Handler: BatchHandlerFunc(handle), Size: 100, Wait: time.Hour}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, seal := workingLane(t, topic)
				for offset := range int64(10) {
					l.Deliver([]engine.Record{&fakeRecord{offset: offset}})
				}
				time.Sleep(time.Minute)
				seal()
				time.Sleep(time.Second)
				assert.True(t, isClosed(l.done))
				l.close()
			})
		})
	}
}

// Deliveries and hands that come to rest meet at every moment; outside of a bubble, where
// they really do.
func TestHandsHearOfEveryMessage(t *testing.T) {
	const total = 100_000
	var handled atomic.Int64
	all := make(chan struct{})
	topic := Topic{Workers: 16, Handler: HandlerFunc(func(context.Context, Message) error {
		if handled.Add(1) == total {
			close(all)
		}
		return nil
	})}
	l, seal := workingLane(t, topic)
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	stuck := func() { require.Failf(t, "hands sleep", "%d of %d handled", handled.Load(), total) }
	for offset := range int64(total) {
		if l.Deliver([]engine.Record{&fakeRecord{offset: offset, key: []byte{byte(offset % 100)}}}) {
			select {
			case <-l.Room():
			case <-limit.C:
				stuck()
			}
		}
	}
	select {
	case <-all:
	case <-limit.C:
		stuck()
	}
	l.close()
	seal()
	<-l.done
}

// CommitEveryMessage, where nobody knew the offset at the start: what is settled behind the
// first message cannot be committed, and is not waited for.
func TestCommitEveryMessageOfAGuess(t *testing.T) {
	change := changes(workers(2), committing(CommitEveryMessage))
	withRig(t, change, func(t *testing.T, r *rig) {
		r.on = failAt(0, RetryAfter(errHandler, 100*time.Hour))
		r.engine.assign(engine.Claim{Partition: orders0, Guess: true})
		r.engine.keyed(orders0, 0, "abcdef")
		r.after(time.Hour)
		assert.Equal(t, "0#1 1#1 2#1 3#1 4#1 5#1", r.sorted(orders0))
	})
}

// Before the breaker is sure, an outage sees one attempt a second and worker.
func TestPaceOfAnOutageWithWorkers(t *testing.T) {
	withRig(t, changes(workers(8), onOrders(func(t *Topic) { t.DeadLetter = "orders.dlq" })), func(t *testing.T, r *rig) {
		r.on = func(context.Context, Message) error { return errHandler }
		r.engine.assign(at(orders0, 0))
		for offset := range int64(200) {
			r.engine.keyed(orders0, offset, string(rune('A'+offset%100)))
		}
		r.after(4900 * time.Millisecond)
		assert.LessOrEqual(t, len(r.history.all("handle")), 8*6)
	})
}

// A topic is made again while it is consumed, with a message of the old one at work: the new
// messages have nothing to do with the old ones.
func TestOffsetsBeginAnewWithWorkers(t *testing.T) {
	withRig(t, workers(3), func(t *testing.T, r *rig) {
		g := r.gated()
		r.engine.assign(at(orders0, 50))
		r.engine.keyed(orders0, 50, "abcdef")
		g.open(51, 52, 53, 54, 55)
		r.after(time.Second)
		r.engine.keyed(orders0, 0, "bcdefg")
		g.open(0, 2, 3, 4, 5)
		r.after(2 * time.Second)
		assert.Equal(t, "1 kgroup/1 o=1 f=1 r="+ranges{{2, 6}}.encode(1, maxRanges), r.engine.said(orders0))
		g.open(50)
		r.after(2 * time.Second)
		assert.Equal(t, "1 kgroup/1 o=1 f=1 r="+ranges{{2, 6}}.encode(1, maxRanges), r.engine.said(orders0), "50 is of another topic")
		g.open(1)
		r.after(2 * time.Second)
		assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
	})
}
