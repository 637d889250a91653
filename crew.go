package kgroup

// Several messages of a lane at once: Topic.Workers of them, never two of one key. What is
// in the queue becomes tasks. Those of one key stand in a line, of which the first is ready
// or in somebody's hands; a hand that is free takes the oldest task that is ready. So keys
// are not tied to hands, and a slow one keeps nobody else waiting. crew_wakes.go says which
// hands are at work; tasks.go has the lines; batch.go what is different with batches.

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// A crew are the hands of a lane that handles several messages at once, or in batches.
type crew struct {
	lane    *lane
	workers int // hands at work at once
	limit   int // tasks that may wait: half of Topic.Queue, the other half is in the queue
	batch   Batch
	key     func(Message) []byte
	seed    maphash.Seed
	bell    chan struct{} // wakes a hand that is parked

	// Of the quarantine's keepUp: who makes a commit, and up to where one has failed.
	recording chan struct{}
	unsaid    atomic.Uint64

	mu      sync.Mutex
	alive   int // goroutines
	hands   map[*hand]struct{}
	lines   lines
	ready   tasks
	again   tasks   // ready, but not for a batch with others
	taken   []*task // from the queue, and not in a line yet
	filling bool    // a hand asks for their keys
	last    int64   // the offset delivered last
	epoch   int     // counts how often offsets have begun anew
	settled uint64  // how many have been

	frontier frontier
	ahead    *runAhead

	waiting   int // tasks in nobody's hands
	active    int // hands that have a task, or look for one
	parked    int // that wait for one
	resting   int // that wait for something else, with their task
	returning []chan struct{}
	collector *hand         // makes up a batch
	full      chan struct{} // tells it that others have

	pace  pace
	alarm *time.Timer // while one hand does everything because that is quicker
	armed bool
	beat  uint64 // counts tasks that were picked,
	heard uint64 // up to when the alarm went off last
}

// newCrew returns nil for a lane that handles one message at a time.
func newCrew(l *lane) *crew {
	t := l.topic
	if t.Workers <= 1 && t.Batch.Handler == nil {
		return nil
	}
	c := &crew{
		lane: l, workers: t.Workers, batch: t.Batch, key: t.Key,
		limit: max(1, t.Queue-t.Queue/2),
		bell:  make(chan struct{}, 1),
		full:  make(chan struct{}, 1),
		seed:  maphash.MakeSeed(),
		hands: map[*hand]struct{}{},
		lines: lines{of: map[uint64]*line{}},
		last:  -1,

		recording: make(chan struct{}, 1),

		frontier: frontier{next: -1},
		ahead:    newRunAhead(l.start, l.note.Load().settled),
	}
	c.pace.start()
	return c
}

// begin lets the first hand begin. It calls others when there is something for them to do.
func (c *crew) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hire()
}

// hire makes another hand. It is called with mu, as are all below that do not take it.
func (c *crew) hire() {
	h := &hand{lane: c.lane}
	c.hands[h] = struct{}{}
	c.alive++
	c.active++
	go c.work(h)
}

// work is the goroutine of a hand.
func (c *crew) work(h *hand) {
	ended := false
	defer func() {
		if !ended { // the handler, Topic.Key or a hook called runtime.Goexit
			c.mu.Lock()
			c.ring()
			c.mu.Unlock()
			go c.work(h)
		}
	}()
	for len(h.tasks) == 0 || c.carryOut(h) {
		if !c.next(h) {
			break
		}
	}
	ended = true
	c.leave(h)
}

// leave ends a hand, and with the last one the lane.
func (c *crew) leave(h *hand) {
	defer func() {
		c.mu.Lock()
		delete(c.hands, h)
		c.alive--
		last := c.alive == 0
		c.mu.Unlock()
		if last {
			close(c.lane.done)
		}
	}()
	h.unblock()
}

// carryOut handles what the hand has taken. It reports false if the lane is at its end.
func (c *crew) carryOut(h *hand) bool {
	t := h.tasks[0]
	switch {
	case c.batch.Handler != nil && !t.alone:
		if !c.together(h) {
			return false
		}
	case t.done: // and then a hook has ended the goroutine
	case !h.finish(t.record):
		return false
	}
	if l := c.lane; l.everyMessage != nil {
		settled := c.settle(h)
		l.everyMessage(l, func() bool { return l.saved.Load().settled >= settled })
	}
	return true
}

// next takes back what the hand has done, and gives it something else to do, or waits for
// that. It reports false if the hand is not needed any more.
func (c *crew) next(h *hand) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.takeBack(h)
	for !c.over() {
		switch {
		case c.active > c.workers:
			c.active--
		case c.giveWay():
		default:
			c.fillUp(h)
			if c.pick(h) {
				c.beat++
				c.ring()
				return true
			}
			if c.ready.len() == 0 && c.takes() && !c.lane.queue.listen() {
				continue // it has come just now
			}
			if !c.giveWay() { // keys were asked for meanwhile
				c.active--
			}
		}
		if len(c.hands)-c.resting > c.workers { // one too many
			delete(c.hands, h)
			return false
		}
		c.park()
	}
	return false
}

// fillUp fills until there is something for another hand, too: it is not called otherwise.
func (c *crew) fillUp(h *hand) {
	for c.ready.len()+c.again.len() < 2 {
		if !c.fill(h) {
			return
		}
	}
}

// takes reports whether more messages are taken from the queue now.
func (c *crew) takes() bool {
	return !c.filling && len(c.taken) == 0 && c.waiting+c.resting < c.limit
}

// fill takes messages from the queue, as many as may wait and as far as delivery may run
// ahead, and lets them stand in their lines. It reports whether any did. While it asks for
// keys it lets go of mu.
func (c *crew) fill(h *hand) bool {
	if c.takes() {
		records := c.lane.queue.takeNow(c.limit-c.waiting-c.resting, c.parked > 0 && !c.pace.quick.Load())
		for i, r := range records {
			c.taken = append(c.taken, c.lines.newTask(r))
			records[i] = nil
		}
		c.waiting += len(records)
	}
	if c.key != nil && c.workers > 1 && !c.filling {
		for _, t := range c.taken {
			if !t.asked {
				c.unlocked(func() { c.ask(h, t) })
			}
		}
	}
	n := 0
	for !c.filling && n < len(c.taken) && c.ahead.admits(c.taken[n].offset) {
		c.admit(c.taken[n])
		n++
	}
	if n > 0 {
		c.taken = append(c.taken[:0], c.taken[n:]...)
		c.gather()
	}
	return n > 0
}

// startOver forgets what was delivered: the partition was made again, or cut off, and
// offsets begin anew. What is in somebody's hands has no offset any more.
func (c *crew) startOver(offset int64) {
	c.epoch++
	c.frontier = frontier{next: offset}
	c.ahead = newRunAhead(offset, nil)
	c.lane.settled.Store(offset)
}

// unlocked calls f without the lock. Nobody else fills meanwhile.
func (c *crew) unlocked(f func()) {
	c.filling = true
	c.mu.Unlock()
	defer func() { // also if f ends the goroutine
		c.mu.Lock()
		c.filling = false
	}()
	f()
}

// ask asks Topic.Key for the key of a message.
func (c *crew) ask(h *hand, t *task) {
	t.asked = true
	t.past = &progress{attempt: 1, broken: errGoexit}
	var msg Message
	h.read(t.record, &msg)
	msg.Attempt = 1
	stand := func(_ context.Context, msg Message) error {
		c.stand(t, c.key(msg))
		return nil
	}
	if t.past.broken = handle(h.ctx, stand, &msg); t.past.broken == nil {
		t.past = nil
	}
}

// stand says in which line a task is to stand.
func (c *crew) stand(t *task, key []byte) {
	if key != nil {
		t.key, t.keyed = maphash.Bytes(c.seed, key), true
	}
}

// admit delivers a task: it stands in its line.
func (c *crew) admit(t *task) {
	l := c.lane
	if l.inherits && t.offset < l.start || t.offset <= c.last {
		c.unlocked(func() { l.disown(t.offset) }) // which logs
		l.inherits = false
		c.startOver(t.offset)
	}
	c.last, t.epoch = t.offset, c.epoch
	t.number = c.frontier.deliver(t.offset)
	c.ahead.deliver(t.offset)
	if l.inherits {
		past := progress{attempt: 1}
		if t.past != nil {
			past = *t.past
		}
		if l.inherit(t.offset, &past) {
			t.done = true
			c.pass(t)
			c.advance()
			c.waiting--
			c.lines.recycle(t)
			return
		}
		if past.attempt > 1 || past.verdict != nil {
			t.past = &past
		}
	}
	t.alone = t.past != nil
	switch {
	case c.workers == 1: // all in one
		t.keyed = true
	case c.key == nil:
		key, _, _ := t.record.Payload()
		c.stand(t, key)
	}
	switch before := c.lines.add(t); {
	case before == nil:
		c.offer(t)
	case !t.alone && c.collector != nil && before.by == c.collector && c.hasRoom():
		c.give(c.collector, t)
	}
}

// offer makes a task ready.
func (c *crew) offer(t *task) {
	t.out = true
	if t.alone {
		c.again.push(t)
	} else {
		c.ready.push(t)
	}
}

// give puts a task into a hand.
func (c *crew) give(h *hand, t *task) {
	t.out, t.by = true, h
	h.tasks = append(h.tasks, t)
	c.waiting--
}

// pick gives the hand the oldest task that is ready, or a batch.
func (c *crew) pick(h *hand) bool {
	switch {
	case c.again.len() > 0:
		c.give(h, c.again.pop())
	case c.batch.Handler != nil:
		return c.collect(h)
	case c.ready.len() > 0:
		c.give(h, c.ready.pop())
	default:
		return false
	}
	h.at = progress{attempt: 1}
	if past := h.tasks[0].past; past != nil {
		h.at = *past
	}
	return true
}

// settle moves the frontier over what the hand has done, before next does, and returns how
// much has been settled by now.
func (c *crew) settle(h *hand) (settled uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pass(h.tasks...)
	c.advance()
	return c.settled
}

// pass moves the frontier over tasks that are done. It is followed by advance.
func (c *crew) pass(tasks ...*task) {
	for _, t := range tasks {
		if t.done && !t.passed {
			t.passed = true
			c.settled++
			if t.epoch == c.epoch {
				c.frontier.settle(t.number)
			}
		}
	}
}

// advance publishes the frontier, and what owners before have settled behind it.
func (c *crew) advance() {
	next := c.frontier.next
	if next < 0 {
		return // the first is not settled yet
	}
	next = c.lane.note.Load().settled.past(next)
	c.lane.settled.Store(next)
	c.ahead.pass(next)
}

// takeBack lets those go on that stand behind what the hand has done. What it has not done
// is to be handled alone.
func (c *crew) takeBack(h *hand) {
	if len(h.tasks) == 0 {
		return
	}
	c.pass(h.tasks...)
	c.advance()
	for _, t := range h.tasks {
		if t.done {
			c.lines.remove(t)
			continue
		}
		t.alone, t.out, t.by = true, false, nil
		c.waiting++
	}
	for _, t := range h.tasks {
		if first := t.first(); first != nil && !first.out {
			c.offer(first)
		}
	}
	c.gather()
	for i, t := range h.tasks {
		if t.done {
			c.lines.recycle(t)
		}
		h.tasks[i] = nil
	}
	h.tasks, h.split = h.tasks[:0], false
}

// blocking is the first message that is held, or else the first of those that fail.
func (c *crew) blocking() *blocked {
	c.mu.Lock()
	defer c.mu.Unlock()
	var first *blocked
	for h := range c.hands {
		b := h.blocked.Load()
		switch {
		case b == nil:
		case first == nil, b.held && !first.held, b.held == first.held && b.err.Offset < first.err.Offset:
			first = b
		}
	}
	return first
}

// took notes what an attempt took, for all hands.
func (c *crew) took(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pace.took(d)
}
