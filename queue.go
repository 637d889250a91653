package kgroup

// A lane's queue, between the goroutine that dispatches and the lane's worker.

import (
	"runtime"
	"sync"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// A queue holds the messages of a lane that the engine has delivered and the worker
// has not taken. It is filled by one goroutine and emptied by another.
type queue struct {
	limit int
	// yield makes a worker that has been woken let others run first. Where messages
	// come one at a time, it then finds several, and is woken less often: that halves
	// what waking costs.
	yield bool
	wake  chan struct{} // the worker waits on it while the queue is empty
	room  chan struct{}

	// turn is whose turn it is to handle. The worker gives it back while it waits.
	turn turn
	// bypassed belongs to who fills the queue: nothing was put since the worker was
	// seen waiting.
	bypassed bool

	mu     sync.Mutex
	ring   []engine.Record
	head   int
	size   int
	full   bool // put has reported it, room not yet
	idle   bool // the worker waits
	closed bool
	last   int64 // offset of the last message delivered; -1: none

	batch []engine.Record // of whose turn it is, reused
}

// batchSize is how many messages are taken at once. They count as queued until they
// are handed to the handler, hence the subtraction in newQueue.
const batchSize = 32

func newQueue(limit int) *queue {
	batch := max(1, min(batchSize, limit/4))
	q := &queue{
		limit: max(1, limit-batch),
		wake:  make(chan struct{}, 1),
		room:  make(chan struct{}, 1),
		batch: make([]engine.Record, batch),
		last:  -1,
	}
	q.turn.start()
	return q
}

// bypass gives the turn to who fills the queue, if there is nothing in it and the
// worker waits.
func (q *queue) bypass() bool {
	if !q.bypassed {
		q.mu.Lock()
		q.bypassed = q.idle && q.size == 0 && !q.closed
		q.mu.Unlock()
	}
	if q.bypassed && q.turn.enter() {
		return true // and from here on another goroutine may fill the queue
	}
	q.bypassed = false
	return false
}

func (q *queue) put(records []engine.Record) (full bool) {
	q.bypassed = false
	q.mu.Lock()
	if q.closed || len(records) == 0 {
		full = q.full && !q.closed
		q.mu.Unlock()
		return full
	}
	q.grow(len(records))
	for _, r := range records {
		q.ring[(q.head+q.size)&(len(q.ring)-1)] = r
		q.size++
	}
	q.last = records[len(records)-1].Offset()
	q.full = q.size >= q.limit
	full = q.full
	wake := q.idle
	q.idle = false
	q.mu.Unlock()
	if wake {
		signal(q.wake)
	}
	return full
}

// grow makes room for n more; the ring's size is a power of two. It grows beyond
// the limit only by what was fetched in one piece and cannot be given back.
func (q *queue) grow(n int) {
	if q.size+n <= len(q.ring) {
		return
	}
	length := max(16, len(q.ring))
	for length < q.size+n {
		length *= 2
	}
	ring := make([]engine.Record, length)
	for i := range q.size {
		ring[i] = q.ring[(q.head+i)&(len(q.ring)-1)]
	}
	q.ring, q.head = ring, 0
}

// take returns the oldest messages, at least one, waiting for it if need be, or nil
// when the lane is sealed. What it returned before is void.
func (q *queue) take(sealed <-chan struct{}) []engine.Record {
	for {
		if batch := q.takeNow(len(q.batch), false); len(batch) > 0 {
			return batch
		}
		if q.listen() && !q.wait(sealed) {
			return nil
		}
	}
}

// takeNow returns the oldest messages, n at most, if there are any. What it returned before
// is void. listens says that somebody waits on wake for those that come when it is empty.
func (q *queue) takeNow(n int, listens bool) []engine.Record {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return nil
	}
	batch := q.batch[:min(q.size, len(q.batch), n)]
	for i := range batch {
		at := (q.head + i) & (len(q.ring) - 1)
		batch[i], q.ring[at] = q.ring[at], nil
	}
	if len(batch) > 0 {
		q.head = (q.head + len(batch)) & (len(q.ring) - 1)
		q.size -= len(batch)
	}
	q.idle = q.idle || listens && q.size == 0
	room := q.full && q.size < q.limit
	if room {
		q.full = false
	}
	q.mu.Unlock()
	if room {
		signal(q.room)
	}
	return batch
}

// listen reports whether the queue is empty. Then who waits on wake is told when it is not.
func (q *queue) listen() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	empty := q.size == 0 || q.closed
	q.idle = q.idle || empty
	return empty
}

// wait waits for something to be queued. Meanwhile it may be somebody else's turn.
func (q *queue) wait(sealed <-chan struct{}) bool {
	q.turn.release()
	defer q.turn.acquire()
	select {
	case <-q.wake:
		if q.yield {
			runtime.Gosched()
		}
		return true
	case <-sealed:
		return false
	}
}

// close throws away what is queued and whatever comes.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.ring, q.head, q.size = nil, 0, 0
	q.mu.Unlock()
	signal(q.room)
}

// signal puts a value into a channel that has place for one, unless there is one that nobody
// has needed yet.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.size
}

// end is the offset after the last message delivered, or start.
func (q *queue) end(start int64) int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.last < 0 {
		return start
	}
	return q.last + 1
}
