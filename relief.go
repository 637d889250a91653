package kgroup

// Watching the goroutines that poll. One that handles a message itself (turn.go)
// does not poll meanwhile. When its handler takes its time after all, another
// goroutine polls in its place; it goes on as the lane's worker and then ends.

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kgroup-go/kgroup/internal/engine"
)

const (
	// reliefTick is how often it is looked whether handlers return.
	reliefTick = 5 * time.Millisecond
	// reliefQuiet is how many looks a lane that is handled by its worker, or has nothing
	// to do, is still watched.
	reliefQuiet = 20
)

// A relief watches lanes whose messages are handled by who polls them. While there
// are none it sleeps.
type relief struct {
	wake chan struct{}
	mu   sync.Mutex
	next []*lane // to be watched from now on
}

// A watch is what is remembered of a lane from one look to the next.
type watch struct {
	lane  *lane
	turn  uint64
	at    int64
	looks int // in which nothing has changed
}

func newRelief() *relief { return &relief{wake: make(chan struct{}, 1)} }

// watch begins to watch a lane. It is called by who polls, within its turn.
func (r *relief) watch(l *lane) {
	l.direct.watched.Store(true)
	r.mu.Lock()
	r.next = append(r.next, l)
	r.mu.Unlock()
	signal(r.wake)
}

func (r *relief) run(ctx context.Context) {
	ticker := time.NewTicker(reliefTick)
	defer ticker.Stop()
	var watches []*watch
	for {
		if len(watches) == 0 {
			ticker.Stop()
			select {
			case <-r.wake:
			case <-ctx.Done():
				return
			}
			ticker.Reset(reliefTick)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		r.mu.Lock()
		for _, l := range r.next {
			watches = append(watches, &watch{lane: l})
		}
		r.next = r.next[:0]
		r.mu.Unlock()
		kept := watches[:0]
		for _, w := range watches {
			if w.look() {
				kept = append(kept, w)
			}
		}
		clear(watches[len(kept):])
		watches = kept
	}
}

// look relieves who polls if it has been at the same message for the lane's
// patience. It reports false if the lane need not be watched any more.
func (w *watch) look() bool {
	l := w.lane
	turn, at := l.queue.turn.state.Load(), l.settled.Load()
	if turn != w.turn || at != w.at {
		w.turn, w.at, w.looks = turn, at, 0
		return true
	}
	w.looks++
	switch {
	case turn&polling == 0:
		if w.looks < reliefQuiet {
			return true
		}
		l.direct.watched.Store(false)
		// Whoever has taken a turn since the look above may not have seen that.
		if l.queue.turn.state.Load()&polling != 0 && l.direct.watched.CompareAndSwap(false, true) {
			return true
		}
		return false
	case time.Duration(w.looks)*reliefTick >= l.direct.patience && l.queue.turn.relieve(turn):
		l.direct.relieve()
	}
	return true
}

// direct says whether a lane's messages may be handled by who polls.
type direct struct {
	relieve  func() // makes another goroutine poll; nil: nobody can, so that it may not
	patience time.Duration
	relief   *relief
	watched  atomic.Bool
	pace     // of whose turn it is
}

// A pace is what is known of how long a handler takes, by one message in every sampled.
type pace struct {
	quick atomic.Bool // it is known to return soon
	rest  int         // messages before it may count as quick
	mean  time.Duration
}

const (
	sampled = 64
	// quickHandler is what a quick handler takes on average. Handing a message over
	// costs about half of it; what takes longer is better handled by the workers, side by
	// side.
	quickHandler = time.Microsecond
	// restAtFirst and restRelieved are how many messages a handler has to show that it is
	// quick with, at first and after it was not.
	restAtFirst  = 512
	restRelieved = 16384
)

// start is before the first message.
func (p *pace) start() { p.rest, p.mean = restAtFirst, quickHandler }

// took notes what an attempt took. One that was interrupted counts little: it says
// nothing about the handler.
func (p *pace) took(t time.Duration) {
	p.mean += (min(t, 4*quickHandler) - p.mean) / 8
	p.rest = max(0, p.rest-sampled)
	if quick := p.rest == 0 && p.mean <= quickHandler; quick != p.quick.Load() {
		p.quick.Store(quick)
	}
}

// slow notes that a handler has taken its time.
func (p *pace) slow() {
	p.rest = restRelieved
	p.quick.Store(false)
}

// took notes what one of the hand's attempts took.
func (h *hand) took(t time.Duration) {
	switch {
	case h.crew != nil:
		h.crew.took(t)
	case h.direct.relieve != nil:
		h.direct.took(t)
	}
}

// Handle implements [engine.Lane].
func (l *lane) Handle(first engine.Record, more func(batch []engine.Record) int) engine.Handled {
	if !l.direct.quick.Load() || !l.queue.bypass() {
		return engine.Declined
	}
	if !l.direct.watched.Load() {
		l.direct.relief.watch(l)
	}
	ended := false
	defer func() {
		if !ended { // the handler or a hook called runtime.Goexit
			if l.queue.turn.abandon() {
				l.direct.relieve()
			}
			go l.carryOn()
		}
	}()
	l.queue.batch[0] = first
	for n := 1; n > 0; {
		l.batch = l.queue.batch[:n]
		if !l.finishBatch() || more == nil || !l.direct.quick.Load() || !l.queue.turn.next() {
			break
		}
		n = more(l.queue.batch)
		l.queue.turn.got()
	}
	ended = true
	return l.leave()
}

// carryOn goes on for a poller whose goroutine was ended by a handler or a hook.
func (l *lane) carryOn() {
	ended := false
	defer func() {
		if !ended {
			go l.carryOn()
		}
	}()
	l.finishBatch()
	ended = true
	l.leave()
}

// leave ends the turn of who polls.
func (l *lane) leave() engine.Handled {
	if l.queue.turn.called() {
		l.direct.slow()
	}
	if l.queue.turn.leave() {
		return engine.Relieved
	}
	return engine.Done
}
