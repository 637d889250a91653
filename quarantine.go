package kgroup

// After a death. A message whose handling kills the process would kill every owner of
// its partition, one after the other. So who finds that the last owner has not drained
// handles the messages that it may have had in its hands one at a time, while nothing
// else is handled in this process, and writes down each before it begins. Only a death
// at such a message counts against it (metadata.go).

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// errDeadly is the verdict on a message that was alone at too many deaths.
var errDeadly = errors.New("the process has died while it handled this message and nothing else")

// A quarantine lasts from the opening of a generation in which a partition was found
// open until the suspects of all its lanes are settled.
type quarantine struct {
	sealed  context.Context   //nolint:containedctx // a generation's
	record  func(*lane) *note // commits what the lane has noted, and returns what the brokers know of it
	marks   func() map[engine.Partition]int64
	orphans []*lane // of generations before

	gate *semaphore.Weighted // held by all who handle; by one alone for a suspect
	over atomic.Bool

	mu    sync.Mutex
	lanes map[*lane]*suspicion
}

// A suspicion is what is known of a lane that may have a deadly message.
type suspicion struct {
	end     int64 // of the partition, when it was first known; -1: not yet. The last owner has seen nothing beyond.
	settled int64 // when it was last looked at
	idle    int   // looks since that has changed
}

const (
	// everything is more than all lanes together: who holds it is alone.
	everything = 1 << 30

	// quarantineTick is how often it is looked for lanes that have nothing to suspect, and
	// quarantineIdle how many looks without a message say so: fetches are answered sooner.
	quarantineTick = 250 * time.Millisecond
	quarantineIdle = 20
)

// newQuarantine returns the quarantine of a generation, nil if none of its lanes has
// suspects.
func newQuarantine(sealed context.Context, lanes, orphans []*lane, record func(*lane) *note, marks func() map[engine.Partition]int64) *quarantine {
	q := &quarantine{
		sealed: sealed, record: record, marks: marks, orphans: orphans,
		gate:  semaphore.NewWeighted(everything),
		lanes: map[*lane]*suspicion{},
	}
	for _, l := range lanes {
		if l.note.Load().suspects > 0 {
			q.lanes[l] = &suspicion{end: -1, settled: -1}
		}
	}
	if len(q.lanes) == 0 {
		return nil
	}
	return q
}

// lasts reports whether it is still on. A nil quarantine is not.
func (q *quarantine) lasts() bool { return q != nil && !q.over.Load() }

// enter waits until the hand may make an attempt with its message at offset: with others
// that are not suspected, or alone. It reports false if the lane is sealed meanwhile.
func (q *quarantine) enter(h *hand, offset int64) bool {
	if h.holds != 0 { // a hook has ended the goroutine
		q.release(h)
	}
	if !q.lasts() {
		return true
	}
	if !q.suspects(h.lane, offset) {
		return q.take(h, 1)
	}
	for _, orphan := range q.orphans { // they hold nothing of the gate
		select {
		case <-orphan.done:
		case <-q.sealed.Done():
			return false
		}
	}
	for q.take(h, everything) {
		if q.write(h, offset) {
			return true
		}
		if !h.sleep(time.Second) {
			break
		}
	}
	return false
}

// write writes down that the hand, which is alone, begins with the message at offset. If it
// cannot, others go on: a death would not be known.
func (q *quarantine) write(h *hand, offset int64) (written bool) {
	defer func() {
		if !written { // or a hook has ended the goroutine
			h.noted(func(n *note) { n.inFlight = -1 })
			q.release(h)
		}
	}()
	h.noted(func(n *note) { n.inFlight = offset })
	return q.record(h.lane).inFlight == offset
}

// leave lets others go on after an attempt. What was written down of it is taken back
// before: a death from now on is not its.
func (q *quarantine) leave(h *hand) {
	defer q.release(h) // also if a hook ends the goroutine
	if h.holds == everything {
		h.noted(func(n *note) { n.inFlight = -1 })
		q.record(h.lane)
	}
}

func (q *quarantine) take(h *hand, share int64) bool {
	if q.gate.Acquire(q.sealed, share) != nil {
		return false
	}
	h.holds = share
	return true
}

func (q *quarantine) release(h *hand) {
	share := h.holds
	h.holds = 0
	q.gate.Release(share)
}

// suspects reports whether the lane's message at offset may have killed its last owner.
func (q *quarantine) suspects(l *lane, offset int64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.lanes[l]
	if s == nil || s.end < 0 || offset < s.end {
		return s != nil
	}
	if l.settled.Load() >= s.end || l.crew == nil { // else some before it may wait here yet
		q.clear(l)
	}
	return false
}

// settled counts a message that has killed nobody.
func (q *quarantine) settled(l *lane, offset int64) {
	if l.note.Load().suspects == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if s := q.lanes[l]; s == nil || s.end >= 0 && offset >= s.end {
		return
	}
	l.noted(func(n *note) { n.suspects-- })
	if l.note.Load().suspects == 0 {
		q.clear(l)
	}
}

// keepUp commits, in a lane that was found open, when as many messages have been settled since
// the last commit as there may be: a deadly one is among the suspects of the next owner. All
// hands wait for it, unless it fails.
func (q *quarantine) keepUp(h *hand) {
	if !h.foundOpen() || h.holds == everything {
		return
	}
	most := int64(h.topic.Queue)
	c := h.crew
	if c == nil {
		if h.unrecorded++; h.unrecorded >= most {
			q.record(h.lane)
			h.unrecorded = 0
		}
		return
	}
	settled := c.settle(h)
	owed := func() int64 { return int64(settled) - int64(max(h.saved.Load().settled, c.unsaid.Load())) }
	if owed() < most {
		return
	}
	c.recording <- struct{}{}
	defer func() { <-c.recording }()
	if owed() < most { // another hand has seen to it
		return
	}
	q.record(h.lane)
	if h.saved.Load().settled < settled {
		c.unsaid.Store(settled)
	}
}

// acquit takes a lane out that does not go on.
func (q *quarantine) acquit(l *lane) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.clear(l)
}

// clear is called with mu.
func (q *quarantine) clear(l *lane) {
	delete(q.lanes, l)
	l.noted(func(n *note) { n.suspects = 0 })
	if len(q.lanes) == 0 {
		q.over.Store(true)
	}
}

// watch clears lanes that have nothing to suspect, until the quarantine is over.
func (q *quarantine) watch() {
	ticker := time.NewTicker(quarantineTick)
	defer ticker.Stop()
	for q.lasts() {
		select {
		case <-ticker.C:
			q.look()
		case <-q.sealed.Done():
			return
		}
	}
}

func (q *quarantine) look() {
	marks := q.marks()
	q.mu.Lock()
	defer q.mu.Unlock()
	for l, s := range q.lanes {
		if end, known := marks[l.partition]; s.end < 0 && known {
			s.end = end
		}
		settled := l.settled.Load()
		if s.end < 0 || settled != s.settled || l.queue.end(l.start) > settled {
			s.settled, s.idle = settled, 0
		}
		s.idle++
		if s.end >= 0 && settled >= s.end || s.idle > quarantineIdle {
			q.clear(l)
		}
	}
}
