package kgroup

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// A poller polls one partition as an engine does: it has the lane handle what it gets
// on its own goroutine, and delivers what the lane declines.
type poller struct {
	rig       *rig
	partition engine.Partition
	offsets   chan int64
	polling   atomic.Int64 // goroutines that have not been relieved
	reliefs   atomic.Int64
	direct    atomic.Int64 // calls in which the lane has handled something on a goroutine of the poller
	more      func([]engine.Record) int
}

const pollerPatience = 40 * time.Millisecond

// poll assigns orders/0 from offset 0 and starts to poll it.
func poll(r *rig) *poller {
	p := &poller{rig: r, partition: orders0, offsets: make(chan int64)}
	claim := at(orders0, 0)
	claim.Relieve, claim.Patience = p.relieve, pollerPatience
	r.engine.assign(claim)
	go p.run()
	return p
}

func (p *poller) run() {
	p.polling.Add(1)
	defer p.polling.Add(-1)
	var one [1]engine.Record
	for offset := range p.offsets {
		one[0] = &fakeRecord{offset: offset}
		switch p.rig.engine.lane(p.partition).Handle(one[0], p.more) {
		case engine.Declined:
			p.rig.engine.lane(p.partition).Deliver(one[:])
		case engine.Done:
			p.direct.Add(1)
		case engine.Relieved:
			p.direct.Add(1)
			return
		}
	}
}

func (p *poller) relieve() {
	p.reliefs.Add(1)
	go p.run()
}

// quick polls messages until the handler is known to be quick, and returns the next
// offset. The handler must not take any time.
func (p *poller) quick() (next int64) {
	p.rig.t.Helper()
	for p.direct.Load() == 0 {
		p.offsets <- next
		next++
		synctest.Wait()
		require.Less(p.rig.t, next, int64(10*restAtFirst), "a quick handler is called by who polls")
	}
	p.rig.history.clear()
	return next
}

func TestQuickHandlerIsCalledByWhoPolls(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		p := poll(r)
		next := p.quick()
		assert.GreaterOrEqual(t, next, int64(restAtFirst), "not before it has shown it")
		before := p.direct.Load()
		p.offsets <- next
		p.offsets <- next + 1
		p.offsets <- next + 2
		synctest.Wait()
		assert.Equal(t, before+3, p.direct.Load())
		assert.Equal(t, fmt.Sprintf("%d#1 %d#1 %d#1", next, next+1, next+2), r.handled(orders0))
		r.after(time.Second)
		assert.Equal(t, next+3, r.engine.acknowledged(orders0))
		close(p.offsets)
	})
}

// The messages that come while a handler keeps who polls are polled by another
// goroutine, and handled after it, in order; the message is not handled twice.
func TestWhoPollsIsRelieved(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		p := poll(r)
		next := p.quick()
		gate := r.gate()
		r.on = func(_ context.Context, msg Message) error {
			if msg.Offset == next {
				gate.wait()
			}
			return nil
		}
		began := time.Now()
		p.offsets <- next
		p.offsets <- next + 1 // taken when another goroutine polls
		assert.LessOrEqual(t, time.Since(began), pollerPatience+2*reliefTick)
		p.offsets <- next + 2
		synctest.Wait()
		assert.EqualValues(t, 1, p.reliefs.Load())
		assert.Equal(t, fmt.Sprintf("%d#1", next), r.handled(orders0))
		r.after(time.Minute)
		assert.EqualValues(t, 1, p.reliefs.Load(), "once for one message")
		assert.Equal(t, next, r.engine.acknowledged(orders0))

		gate.open()
		synctest.Wait()
		assert.Equal(t, fmt.Sprintf("%d#1 %d#1 %d#1", next, next+1, next+2), r.handled(orders0))
		assert.EqualValues(t, 1, p.polling.Load(), "who was relieved is gone")
		direct := p.direct.Load()
		p.offsets <- next + 3
		synctest.Wait()
		assert.Equal(t, direct, p.direct.Load(), "the handler is not quick any more")
		r.after(time.Second)
		assert.Equal(t, next+4, r.engine.acknowledged(orders0))
		close(p.offsets)
	})
}

// Who polls may be kept between two messages too: its processor is busy with others.
// Nobody may poll in its place then, for it is about to take the next one itself, and
// what somebody else took before would be overtaken, and passed by the frontier.
func TestWhoPollsIsNotRelievedBetweenMessages(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		p := poll(r)
		next := p.quick()
		gate := r.gate()
		r.on = func(_ context.Context, msg Message) error {
			if msg.Offset == next+2 {
				gate.wait()
			}
			return nil
		}
		p.more = func(batch []engine.Record) int {
			time.Sleep(10 * pollerPatience)
			offset, ok := <-p.offsets
			if !ok {
				return 0
			}
			batch[0] = &fakeRecord{offset: offset}
			return 1
		}
		p.offsets <- next
		p.offsets <- next + 1
		p.offsets <- next + 2
		assert.Zero(t, p.reliefs.Load())
		p.offsets <- next + 3 // taken when the handler of the one before has kept it for long
		synctest.Wait()
		assert.EqualValues(t, 1, p.reliefs.Load())
		assert.Equal(t, fmt.Sprintf("%d#1 %d#1 %d#1", next, next+1, next+2), r.handled(orders0))
		r.after(time.Minute)
		assert.Equal(t, next+2, r.engine.acknowledged(orders0))
		gate.open()
		synctest.Wait()
		assert.Equal(t, fmt.Sprintf("%d#1 %d#1 %d#1 %d#1", next, next+1, next+2, next+3), r.handled(orders0))
		assert.EqualValues(t, 1, p.polling.Load(), "who was relieved is gone")
		close(p.offsets)
	})
}

// A backoff keeps who polls as a slow handler does.
func TestWhoPollsIsRelievedOfABackoff(t *testing.T) {
	withRig(t, withRetry(quick), func(t *testing.T, r *rig) {
		p := poll(r)
		next := p.quick()
		r.on = func(_ context.Context, msg Message) error {
			if msg.Offset == next && msg.Attempt < 8 {
				return errHandler
			}
			return nil
		}
		p.offsets <- next
		p.offsets <- next + 1
		r.after(10 * time.Second)
		assert.EqualValues(t, 1, p.reliefs.Load())
		assert.Equal(t, fmt.Sprintf("%d#1 %[1]d#2 %[1]d#3 %[1]d#4 %[1]d#5 %[1]d#6 %[1]d#7 %[1]d#8 %d#1", next, next+1), r.handled(orders0))
		close(p.offsets)
	})
}

// A drain waits for a handler that who polls has called, as for any other.
func TestDrainWaitsForWhoPolls(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		p := poll(r)
		next := p.quick()
		r.on = func(context.Context, Message) error {
			time.Sleep(5 * time.Second)
			return nil
		}
		began := time.Now()
		p.offsets <- next
		p.offsets <- next + 1 // queued, and dropped by the drain
		r.after(time.Second)
		r.engine.rebalance(10*time.Second, 20*time.Second)
		assert.Equal(t, 5*time.Second, time.Since(began))
		assert.Equal(t, next+1, r.engine.acknowledged(orders0))
		assert.Equal(t, fmt.Sprintf("%d#1", next), r.handled(orders0))
		assert.Equal(t, []string{fmt.Sprintf("revoke orders/0@%d", next+1)}, r.history.all("revoke"))
		close(p.offsets)
	})
}

// Nothing is handled by who polls once the lane is sealed, and an idle lane is drained
// at once although who polls would be the one to handle.
func TestSealedLaneTakesNothingFromWhoPolls(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		p := poll(r)
		next := p.quick()
		lane := r.engine.lane(orders0)
		began := time.Now()
		r.engine.rebalance(10*time.Second, 20*time.Second)
		assert.Zero(t, time.Since(began))
		assert.Equal(t, engine.Declined, lane.Handle(&fakeRecord{offset: next}, nil))
		assert.False(t, lane.Deliver([]engine.Record{&fakeRecord{offset: next}}))
		assert.Zero(t, lane.Len())
		synctest.Wait()
		assert.Empty(t, r.handled(orders0))
		close(p.offsets)
	})
}

// The loss of a session cancels a handler that who polls has called. One that ignores
// it keeps its partition, and is not awaited; who polled is gone when it returns.
func TestOrphanOfWhoPolls(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		p := poll(r)
		next := p.quick()
		gate := r.gate()
		contexts := make(chan context.Context, 2)
		r.on = func(ctx context.Context, msg Message) error {
			if msg.Offset == next {
				contexts <- ctx
				gate.wait()
			}
			return nil
		}
		p.offsets <- next
		r.after(time.Second)
		r.engine.lose(errTransient)
		require.ErrorIs(t, context.Cause(<-contexts), ErrPartitionLost)
		assert.Equal(t, []string{"orders/0"}, r.consumer.Health().Stuck)

		r.engine.assign(at(orders0, next))
		r.engine.deliver(orders0, next, next+1)
		r.after(time.Second)
		assert.Equal(t, fmt.Sprintf("%d#1", next), r.handled(orders0))
		gate.open()
		synctest.Wait()
		assert.Equal(t, fmt.Sprintf("%d#1 %[1]d#1 %d#1", next, next+1), r.handled(orders0))
		assert.Empty(t, r.consumer.Health().Stuck)
		assert.EqualValues(t, 1, p.polling.Load())
		close(p.offsets)
	})
}

// A handler may end the goroutine that polls (a test's FailNow does). Another one
// polls, and the message is handled again like after any other failure.
func TestHandlerEndsWhoPolls(t *testing.T) {
	withRig(t, withRetry(quick), func(t *testing.T, r *rig) {
		p := poll(r)
		next := p.quick()
		r.on = func(_ context.Context, msg Message) error {
			if msg.Offset == next && msg.Attempt < 3 {
				runtime.Goexit()
			}
			return nil
		}
		p.offsets <- next
		p.offsets <- next + 1
		r.after(time.Second)
		assert.EqualValues(t, 1, p.reliefs.Load())
		assert.EqualValues(t, 1, p.polling.Load())
		assert.Equal(t, fmt.Sprintf("%d#1 %[1]d#2 %[1]d#3 %d#1", next, next+1), r.handled(orders0))
		assert.Equal(t, next+2, r.engine.acknowledged(orders0))
		close(p.offsets)
	})
}

// So may a hook: what is settled is not handled again.
func TestHookEndsWhoPolls(t *testing.T) {
	ends := func(cfg *Config) {
		withRetry(Retry{MinBackoff: 100 * time.Millisecond, MaxBackoff: 100 * time.Millisecond})(cfg)
		cfg.Hooks.Unblocked = func(string, int32, int64) { runtime.Goexit() }
	}
	withRig(t, ends, func(t *testing.T, r *rig) {
		p := poll(r)
		next := p.quick()
		r.on = func(_ context.Context, msg Message) error {
			if msg.Offset == next && msg.Attempt == 1 {
				return errHandler
			}
			return nil
		}
		p.offsets <- next
		p.offsets <- next + 1
		r.after(time.Second)
		assert.Len(t, r.history.all("unblocked"), 1)
		assert.EqualValues(t, 1, p.polling.Load())
		assert.Equal(t, fmt.Sprintf("%d#1 %[1]d#2 %d#1", next, next+1), r.handled(orders0))
		close(p.offsets)
	})
}

// follow makes the poller have what follows offset at hand, once, when it asks for more.
func (p *poller) follow(offset int64, count int) {
	p.more = func(batch []engine.Record) int {
		p.more = nil
		return copy(batch, someRecords(offset+1, count))
	}
}

// What who polls has at hand is taken at once, and handled in its turn: also when it is
// relieved of the first of it, and before what came later.
func TestWhoPollsFinishesWhatItHasTaken(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		p := poll(r)
		next := p.quick()
		gate := r.gate()
		r.on = func(_ context.Context, msg Message) error {
			if msg.Offset == next+1 {
				gate.wait()
			}
			return nil
		}
		p.follow(next, 3)
		p.offsets <- next
		p.offsets <- next + 4
		synctest.Wait()
		assert.EqualValues(t, 1, p.reliefs.Load())
		r.after(time.Second)
		assert.Equal(t, next+1, r.engine.acknowledged(orders0))
		gate.open()
		synctest.Wait()
		assert.Equal(t, fmt.Sprintf("%d#1 %d#1 %d#1 %d#1 %d#1", next, next+1, next+2, next+3, next+4), r.handled(orders0))
		assert.EqualValues(t, 1, p.polling.Load())
		r.after(time.Second)
		assert.Equal(t, next+5, r.engine.acknowledged(orders0))
		close(p.offsets)
	})
}

// The end of its goroutine costs nothing of what who polls has taken.
func TestEndOfWhoPollsKeepsWhatItHasTaken(t *testing.T) {
	withRig(t, withRetry(quick), func(t *testing.T, r *rig) {
		p := poll(r)
		next := p.quick()
		r.on = func(_ context.Context, msg Message) error {
			if (msg.Offset == next+1 || msg.Offset == next+3) && msg.Attempt == 1 {
				runtime.Goexit()
			}
			return nil
		}
		p.follow(next, 3)
		p.offsets <- next
		p.offsets <- next + 4
		r.after(time.Second)
		assert.Equal(t, fmt.Sprintf("%d#1 %d#1 %[2]d#2 %d#1 %d#1 %[4]d#2 %d#1", next, next+1, next+2, next+3, next+4), r.handled(orders0))
		assert.EqualValues(t, 1, p.polling.Load())
		assert.Equal(t, next+5, r.engine.acknowledged(orders0))
		close(p.offsets)
	})
}

// A drain waits for the message that who polls is at, and drops what it has taken beyond it.
func TestDrainDropsWhatWhoPollsHasTaken(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		p := poll(r)
		next := p.quick()
		r.on = func(_ context.Context, msg Message) error {
			if msg.Offset == next+1 {
				time.Sleep(5 * time.Second)
			}
			return nil
		}
		p.follow(next, 3)
		began := time.Now()
		p.offsets <- next
		r.after(time.Second)
		r.engine.rebalance(10*time.Second, 20*time.Second)
		assert.Equal(t, 5*time.Second, time.Since(began))
		assert.Equal(t, fmt.Sprintf("%d#1 %d#1", next, next+1), r.handled(orders0))
		assert.Equal(t, next+2, r.engine.acknowledged(orders0))
		close(p.offsets)
	})
}

// CommitEveryMessage waits for the broker after each message: never where it is polled.
func TestCommitEveryMessageIsNotHandledByWhoPolls(t *testing.T) {
	withRig(t, func(cfg *Config) { cfg.CommitInterval = CommitEveryMessage }, func(t *testing.T, r *rig) {
		p := poll(r)
		for offset := range int64(3 * restAtFirst) {
			p.offsets <- offset
			synctest.Wait()
		}
		assert.Zero(t, p.direct.Load())
		assert.EqualValues(t, 3*restAtFirst, r.engine.acknowledged(orders0))
		close(p.offsets)
	})
}

// A message must not overtake one that is queued, also while the worker has not woken up.
func TestQueueIsNotBypassedWhileItHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 200 {
			q := newQueue(16)
			sealed := make(chan struct{})
			worker := begin(func() { // takes one, and waits for the next
				q.take(sealed)
				q.take(sealed)
			})
			require.True(t, q.bypass())
			require.False(t, q.bypass(), "it is somebody's turn")
			require.False(t, q.turn.leave())
			q.put(someRecords(0, 1))
			if q.bypass() {
				require.Zero(t, q.len(), "overtaken")
				q.turn.leave()
			}
			synctest.Wait()
			require.True(t, q.bypass(), "it waits again")
			q.turn.leave()
			close(sealed)
			<-worker
			require.False(t, q.bypass(), "its turn never ends")
		}
	})
}

func TestPaceOfAHandler(t *testing.T) {
	samples := func(d *pace, n int, took time.Duration) {
		for range n {
			d.took(took)
		}
	}
	d := new(pace)
	d.start()
	samples(d, restAtFirst/sampled-1, 0)
	assert.False(t, d.quick.Load(), "too early to say")
	samples(d, 1, 0)
	assert.True(t, d.quick.Load())
	samples(d, 1, time.Hour)
	assert.True(t, d.quick.Load(), "an interruption says nothing")
	samples(d, 20, 2*quickHandler)
	assert.False(t, d.quick.Load())
	samples(d, 20, quickHandler/2)
	assert.True(t, d.quick.Load())
	d.slow()
	assert.False(t, d.quick.Load())
	samples(d, restRelieved/sampled-1, 0)
	assert.False(t, d.quick.Load())
	samples(d, 1, 0)
	assert.True(t, d.quick.Load())
}

// Whoever has a turn is alone, whatever the others do at the same time, and a worker
// that waits gets it. Run it with -race: what the turn guards is not synchronized.
func TestTurn(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU())) // see race_test.go
	const rounds = 20000
	var tu turn
	tu.start()
	tu.release()
	guarded, done := 0, make(chan struct{})
	var worked, polled int
	var reliefs atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for range rounds {
			tu.acquire()
			guarded++
			worked++
			tu.release()
			runtime.Gosched()
		}
		close(done)
	})
	wg.Go(func() { // who polls, and its reliefs
		for !isClosed(done) {
			if !tu.enter() {
				runtime.Gosched()
				continue
			}
			guarded++
			polled++
			for rand.IntN(8) == 0 && tu.next() {
				runtime.Gosched()
				tu.got()
				guarded++
				polled++
			}
			if tu.leave() {
				reliefs.Add(-1)
			}
		}
	})
	wg.Go(func() { // who watches
		for !isClosed(done) {
			if tu.relieve(tu.state.Load()) {
				reliefs.Add(1)
			}
			runtime.Gosched()
		}
	})
	wg.Wait()
	assert.Equal(t, rounds, worked)
	assert.Equal(t, worked+polled, guarded)
	assert.Zero(t, reliefs.Load(), "each relief was noticed, once")
	assert.Zero(t, tu.state.Load()&(taken|polling|between|wanted|relieved))
}
