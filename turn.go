package kgroup

// Whose turn it is to handle the messages of a lane. Usually its worker's. But
// handing a message over to another goroutine costs more than a quick handler does:
// so while nothing is queued, the goroutine that polls may handle a message itself.

import "sync/atomic"

// A turn is the right to handle a lane's messages. One goroutine has it at a time:
// the worker, or the goroutine that polls, while the worker waits for a message.
// What belongs to whoever handles (the frontier, the attempt) passes with it.
type turn struct {
	state  atomic.Uint64
	passed chan struct{} // the turn, given to a worker that waits for it
}

// The bits of a turn's state. Above them it counts the turns of pollers, so that
// one can be told from the next.
const (
	taken    uint64 = 1 << iota // somebody has it,
	polling                     // and it is who polls,
	between                     // who is about to take the next message,
	wanted                      // for whom the worker waits,
	relieved                    // or another goroutine polls by now: see relief.go
	nextTurn
)

// start gives the turn to the worker, before anybody else can know it.
func (t *turn) start() {
	t.passed = make(chan struct{}, 1)
	t.state.Store(taken)
}

// enter takes the turn for who polls, if nobody has it.
func (t *turn) enter() bool {
	s := t.state.Load()
	return s&taken == 0 && t.state.CompareAndSwap(s, s|taken|polling)
}

// called reports whether who polls should give the turn back.
func (t *turn) called() bool { return t.state.Load()&(wanted|relieved) != 0 }

// next begins to take the next message, and reports false if who polls should give the
// turn back instead. Until got, nobody begins to poll in its place: there would be two
// who take messages, and one might overtake the other.
func (t *turn) next() bool { return t.state.Add(between)&(wanted|relieved) == 0 }

// got says that the next message has been taken.
func (t *turn) got() { t.state.Add(^(between - 1)) }

// leave gives the turn of who polls back, and reports whether another goroutine has
// begun to poll meanwhile.
func (t *turn) leave() bool {
	for {
		s := t.state.Load()
		next := s&^(taken|polling|between|wanted|relieved) + nextTurn
		if s&wanted != 0 {
			next |= taken
		}
		if t.state.CompareAndSwap(s, next) {
			if s&wanted != 0 {
				t.passed <- struct{}{}
			}
			return s&relieved != 0
		}
	}
}

// relieve notes that another goroutine polls from now on, unless who polls has left
// the turn that was seen, is between two messages, or has been relieved already.
func (t *turn) relieve(seen uint64) bool {
	return seen&(polling|between|relieved) == polling && t.state.CompareAndSwap(seen, seen|relieved)
}

// abandon is [turn.relieve] for the turn of a goroutine that has ended, whatever state
// it is in. It reports false if another goroutine polls already.
func (t *turn) abandon() bool {
	for {
		s := t.state.Load()
		if s&relieved != 0 {
			return false
		}
		if t.state.CompareAndSwap(s, s&^between|relieved) {
			return true
		}
	}
}

// acquire takes the turn for the worker, and waits for who polls to leave it.
func (t *turn) acquire() {
	for {
		s := t.state.Load()
		if s&taken == 0 {
			if t.state.CompareAndSwap(s, s|taken) {
				return
			}
		} else if t.state.CompareAndSwap(s, s|wanted) {
			<-t.passed
			return
		}
	}
}

// release gives the worker's turn back.
func (t *turn) release() { t.state.Store(t.state.Load() &^ taken) } // nobody else changes what the worker has
