package kgroup

// That no hand of a crew sleeps while there is something for it to do.

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// onOrders changes the topic orders.
func onOrders(change func(t *Topic)) func(*Config) {
	return func(cfg *Config) {
		topic := cfg.Topics["orders"]
		change(&topic)
		cfg.Topics["orders"] = topic
	}
}

// A handler that was quick blocks, while messages come one at a time: the alarm finds that it
// is slow, and others must hear of the messages after it.
func TestQuickHandlerBlocksWhileOthersSleep(t *testing.T) {
	withRig(t, workers(8), func(t *testing.T, r *rig) {
		slow := r.gate()
		r.on = func(_ context.Context, msg Message) error {
			if string(msg.Key) == "!" {
				slow.wait()
			}
			return nil
		}
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abcdefghijklmnop") // several hands are made
		synctest.Wait()
		offset := int64(16)
		for ; offset < 3000; offset++ {
			r.engine.keyed(orders0, offset, string(rune('A'+offset%20)))
			synctest.Wait()
		}
		r.engine.keyed(orders0, offset, "!")
		r.after(time.Second)
		for i := range int64(50) {
			r.engine.keyed(orders0, offset+1+i, string(rune('A'+i%20)))
			r.after(time.Second)
		}
		assert.Len(t, r.history.all("returned"), 3050, "all but the one that blocks")
		slow.open()
	})
}

// A task that is picked makes room for one more message to wait.
func TestLastPlaceOfTheLimit(t *testing.T) {
	withRig(t, changes(workers(2), onOrders(func(t *Topic) { t.Queue = 6 })), func(t *testing.T, r *rig) {
		g := r.gated()
		g.errs[0] = RetryAfter(errHandler, 10*time.Hour)
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abc")
		g.open(0, 1, 2)
		r.after(time.Second) // a rests, two hands are parked
		r.engine.keyed(orders0, 3, "abc")
		r.after(time.Hour)
		assert.Equal(t, "0#1 1#1 2#1 4#1 5#1", r.sorted(orders0), "two workers, two free keys")
		g.open(4, 5)
	})
}

// However small Queue is, a burst is handled by all workers.
func TestSmallQueueOfWorkers(t *testing.T) {
	withRig(t, changes(workers(8), onOrders(func(t *Topic) { t.Queue = 2 })), func(t *testing.T, r *rig) {
		var running, most atomic.Int32
		r.on = func(context.Context, Message) error {
			n := running.Add(1)
			most.Store(max(most.Load(), n))
			time.Sleep(time.Second)
			running.Add(-1)
			return nil
		}
		r.engine.assign(at(orders0, 0))
		for burst := range int64(2) {
			most.Store(0)
			r.engine.keyed(orders0, 8*burst, "abcdefgh")
			r.after(3 * time.Second)
			assert.EqualValues(t, 8, most.Load())
		}
	})
}

// A message that comes back from its backoff makes room, too.
func TestRetryMakesRoom(t *testing.T) {
	withRig(t, changes(workers(2), onOrders(func(t *Topic) { t.Queue = 4 })), func(t *testing.T, r *rig) {
		slow := r.gate()
		r.on = func(_ context.Context, msg Message) error {
			switch {
			case msg.Offset == 0 && msg.Attempt == 1:
				return RetryAfter(errHandler, time.Minute)
			case msg.Offset == 0:
				slow.wait()
			case msg.Offset == 1:
				return RetryAfter(errHandler, 100*time.Hour)
			}
			return nil
		}
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "ab")
		r.after(time.Second)
		r.engine.keyed(orders0, 2, "c")
		r.after(time.Second)
		assert.Equal(t, "0#1 1#1", r.sorted(orders0), "half of Queue waits")
		r.after(time.Hour)
		assert.Equal(t, "0#1 0#2 1#1 2#1", r.sorted(orders0), "one waits, one is handled, and there are two workers")
		slow.open()
	})
}

// A hand wants its place back while another one asks for keys, and then finds nothing to do.
func TestRetryDuringASlowKey(t *testing.T) {
	change := func(t *Topic) {
		t.Key = func(msg Message) []byte {
			if msg.Offset == 3 {
				time.Sleep(2 * time.Minute) // longer than the backoff below
			}
			return msg.Key
		}
	}
	withRig(t, changes(workers(2), onOrders(change)), func(t *testing.T, r *rig) {
		slow := r.gate()
		r.on = func(_ context.Context, msg Message) error {
			switch {
			case msg.Offset == 0 && msg.Attempt == 1:
				return RetryAfter(errHandler, time.Minute)
			case msg.Offset == 1:
				slow.wait()
			}
			return nil
		}
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "a")
		r.after(time.Second)
		r.engine.keyed(orders0, 1, "b")
		r.after(time.Second)
		r.engine.keyed(orders0, 2, "b") // it waits for its key
		r.engine.keyed(orders0, 3, "b") // and so does this one, whose key takes its time
		r.after(time.Hour)
		assert.Equal(t, "0#1 0#2 1#1", r.sorted(orders0), "both workers are at work")
		slow.open()
	})
}

func TestGoexitInKey(t *testing.T) {
	change := func(t *Topic) {
		t.Key = func(msg Message) []byte {
			if msg.Offset == 1 {
				runtime.Goexit()
			}
			return msg.Key
		}
		t.DeadLetter = "orders.dlq"
	}
	withRig(t, changes(workers(2), onOrders(change)), func(t *testing.T, r *rig) {
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abcaa")
		r.after(time.Minute)
		assert.Equal(t, "0#1 2#1 3#1 4#1", r.sorted(orders0))
		assert.Equal(t, []string{"orders.dlq/0=1"}, r.engine.written())
		r.drains(time.Second, time.Second)
		assert.EqualValues(t, 5, r.engine.acknowledged(orders0))
	})
}

// What comes after an attempt of a backoff that a drain has ended is nothing.
func TestDrainWhileAHandWaitsForItsPlace(t *testing.T) {
	withRig(t, workers(1+1), func(t *testing.T, r *rig) {
		g := r.gated()
		g.errs[0] = RetryAfter(errHandler, time.Second)
		r.engine.assign(at(orders0, 0))
		r.engine.keyed(orders0, 0, "abc")
		g.open(0) // it rests; 1 and 2 have the places
		r.after(time.Minute)
		drained := begin(func() { r.drains(time.Hour, time.Hour) })
		g.open(1, 2)
		<-drained
		assert.Equal(t, "0#1 1#1 2#1", r.sorted(orders0))
	})
}

// At rest, when every handler waits at its gate: nobody is free while there is something to do,
// and nobody counts who is not there.
func TestNobodyIsFreeForNothing(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 3))
			n := 2 + random.IntN(5)
			change := func(t *Topic) {
				t.Queue = 1 + random.IntN(20)
				if random.IntN(2) == 0 {
					t.Key = func(msg Message) []byte { return msg.Key }
				}
			}
			withRig(t, changes(workers(n), onOrders(change)), func(t *testing.T, r *rig) {
				d := &doorman{r: r, random: random, gates: map[int64]gate{}, errs: map[int64]error{}}
				r.on = d.handle
				r.engine.assign(at(orders0, 0))
				d.crew = r.consumer.assignment.current.lanes[0].crew
				for range 300 {
					d.step()
					require.Empty(t, d.wrong())
				}
				d.openAll()
			})
		})
	}
}

// A doorman lets messages come, and handlers return, at random.
type doorman struct {
	r      *rig
	crew   *crew
	random *rand.Rand
	offset int64
	full   bool

	mu    sync.Mutex
	gates map[int64]gate
	errs  map[int64]error
	open  []int64 // handlers at work
	over  bool
}

func (d *doorman) handle(_ context.Context, msg Message) error {
	d.mu.Lock()
	if d.over {
		d.mu.Unlock()
		return nil
	}
	g := d.r.gate()
	d.gates[msg.Offset] = g
	d.open = append(d.open, msg.Offset)
	d.mu.Unlock()
	g.wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.errs[msg.Offset]
}

func (d *doorman) step() {
	switch k := d.random.IntN(5); {
	case k < 2 && !d.full:
		keys := ""
		for range 1 + d.random.IntN(4) {
			keys += string("abcdefgh "[d.random.IntN(9)])
		}
		d.full = d.r.engine.keyed(orders0, d.offset, keys)
		d.offset += int64(len(keys))
	case k < 4:
		d.letGo()
	default:
		time.Sleep(time.Duration(d.random.IntN(10)) * time.Second)
	}
	time.Sleep(10 * time.Millisecond)
	synctest.Wait()
	select {
	case <-d.r.engine.lane(orders0).Room():
		d.full = false
	default:
	}
}

// letGo lets one of the handlers return.
func (d *doorman) letGo() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.open) == 0 {
		return
	}
	i := d.random.IntN(len(d.open))
	offset := d.open[i]
	d.open = append(d.open[:i], d.open[i+1:]...)
	d.errs[offset] = nil
	if d.random.IntN(3) == 0 {
		d.errs[offset] = RetryAfter(errHandler, time.Duration(d.random.IntN(20))*time.Second)
	}
	d.gates[offset].open()
}

func (d *doorman) openAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	for _, g := range d.gates {
		g.open()
	}
}

// wrong is what must not be at rest; empty: all is well.
func (d *doorman) wrong() string {
	c := d.crew
	c.mu.Lock()
	defer c.mu.Unlock()
	d.mu.Lock()
	running, queued := len(d.open), c.lane.queue.len()
	d.mu.Unlock()
	var what string
	switch {
	case c.active != running:
		what = "active is wrong"
	case c.active > c.workers:
		what = "too many are at work"
	case c.alive > 2*c.workers+c.resting:
		what = "too many hands"
	case c.active == c.workers:
	case len(c.returning) > 0:
		what = "somebody wants to come back"
	case c.ready.len()+c.again.len() > 0:
		what = "somebody is ready"
	case c.takes() && queued > 0:
		what = "there is something in the queue"
	}
	if what == "" {
		return ""
	}
	return fmt.Sprintf("%s: %d of %d at work, active %d, %d queued, %d waiting, %d resting, limit %d, %d parked", what, running, c.workers, c.active, queued, c.waiting, c.resting, c.limit, c.parked)
}
