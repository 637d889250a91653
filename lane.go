package kgroup

// A lane is one partition while this member owns it: its queue, its worker, its
// frontier. The engine delivers into it; the worker takes a message, handles it
// until it is settled, and moves the frontier. When the generation is sealed the
// worker ends after the message it is at.

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kgroup-go/kgroup/internal/engine"
)

type lane struct {
	partition engine.Partition
	topic     Topic
	env       envelope
	start     int64
	queue     queue

	// ctx is the handlers' context. Cancelling it ends attempts; sealed ends the lane.
	ctx    context.Context
	cancel context.CancelCauseFunc
	sealed <-chan struct{}
	after  <-chan struct{} // the worker does not start before it is closed: see orphans in assignment.go
	done   chan struct{}   // closed when the worker has returned

	// The worker's: what it has taken, the attempt it is at, and whether that attempt
	// is under way. They outlive a worker whose handler ended its goroutine.
	batch      []engine.Record
	attempt    int
	attempting bool
	frontier   frontier

	// settled publishes the frontier to the committer; -1: nothing to commit.
	settled   atomic.Int64
	committed atomic.Int64
	// everyMessage, if not nil, waits until the frontier has been committed.
	everyMessage func(*lane)

	blocked atomic.Pointer[blocked]
	headers map[string]string // header keys seen, so that they are not allocated each time
	log     *slog.Logger
	hooks   *Hooks
}

// blocked says what keeps a lane from going on.
type blocked struct {
	err   *HandlerError
	since time.Time
	held  bool // reported
}

// work is the lane's worker.
func (l *lane) work() {
	ended := false
	defer func() {
		if !ended { // the handler called runtime.Goexit, as t.FailNow does
			go l.work()
			return
		}
		l.unblock()
		close(l.done)
	}()
	select {
	case <-l.after:
	case <-l.sealed:
		ended = true
		return
	}
	for !ended {
		if len(l.batch) == 0 {
			l.batch = l.queue.take(l.sealed)
			ended = l.batch == nil
			continue
		}
		if !l.finish(l.batch[0]) {
			ended = true
			continue
		}
		l.batch[0] = nil
		l.batch = l.batch[1:]
	}
}

// finish handles one message until it is settled. It reports false if the lane is
// at its end.
func (l *lane) finish(record engine.Record) bool {
	if isClosed(l.sealed) {
		return false
	}
	msg := l.message(record)
	if !l.attempting {
		l.attempt = 1
		l.frontier.deliver(msg.Offset)
	}
	for {
		msg.Attempt = l.attempt
		err := errGoexit
		if !l.attempting {
			l.attempting = true
			err = handle(l.ctx, l.topic.Handler, msg)
		}
		l.attempting = false
		o := l.topic.Retry.settle(err, msg.Attempt, l.ctx.Err() != nil)
		switch o {
		case done:
			l.settle(msg.Offset)
			return true
		case abandon:
			return false
		case retry, hold:
			if !l.backoff(msg, err, o) {
				return false
			}
			l.attempt++
		}
	}
}

// errGoexit is the error of an attempt that neither returned nor panicked.
var errGoexit = errors.New("handler ended its goroutine (runtime.Goexit, or FailNow of a test)")

// settle moves the frontier over a message.
func (l *lane) settle(offset int64) {
	if l.blocked.Load() != nil {
		l.unblock()
	}
	l.frontier.settle(offset)
	l.settled.Store(l.frontier.next)
	if l.everyMessage != nil {
		l.everyMessage(l)
	}
}

// backoff says what happened and waits until the next attempt is due. It reports
// false if the lane was sealed: a drain or a shutdown ends a backoff at once.
func (l *lane) backoff(msg Message, err error, o outcome) bool {
	wait := l.topic.Retry.backoff(o, msg.Attempt)
	l.block(&HandlerError{Topic: msg.Topic, Partition: msg.Partition, Offset: msg.Offset, Attempts: msg.Attempt, Err: err}, o == hold, wait)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.sealed:
		return false
	}
}

// block makes a failed attempt visible: a warning, and an error once when the
// message is held.
func (l *lane) block(err *HandlerError, held bool, wait time.Duration) {
	b := &blocked{err: err, since: time.Now(), held: held}
	if old := l.blocked.Load(); old != nil {
		b.since, b.held = old.since, held || old.held
		held = held && !old.held
	}
	l.blocked.Store(b)
	attrs := []any{"offset", err.Offset, "attempt", err.Attempts, "error", err.Err, "backoff", wait}
	if p, ok := err.Err.(*PanicError); ok { //nolint:errorlint // only a panic of this attempt has a stack worth showing
		attrs = append(attrs, "stack", string(p.Stack))
	}
	if !held {
		l.log.Warn("attempt failed", attrs...)
		return
	}
	l.log.Error("message held: its partition does not go on", attrs...)
	if l.hooks.Blocked != nil {
		l.hooks.Blocked(err)
	}
}

func (l *lane) unblock() {
	b := l.blocked.Swap(nil)
	if b != nil && b.held && l.hooks.Unblocked != nil {
		l.hooks.Unblocked(b.err.Topic, b.err.Partition, b.err.Offset)
	}
}

// message takes a record apart.
func (l *lane) message(r engine.Record) Message {
	msg := Message{
		Topic:     l.partition.Topic,
		Partition: l.partition.Number,
		Offset:    r.Offset(),
		Key:       r.Key(),
		Value:     r.Value(),
		Timestamp: r.Timestamp(),
		Attempt:   1,
	}
	if n := r.Headers(); n > 0 {
		msg.Headers = make([]Header, n)
		for i := range msg.Headers {
			key, value := r.Header(i)
			msg.Headers[i] = Header{Key: l.intern(key), Value: value}
		}
	}
	return msg
}

// maxHeaderKeys bounds the keys a lane remembers: a topic that makes up new ones
// pays for them by itself.
const maxHeaderKeys = 256

func (l *lane) intern(key []byte) string {
	if s, ok := l.headers[string(key)]; ok {
		return s
	}
	s := string(key)
	if l.headers == nil {
		l.headers = map[string]string{}
	}
	if len(l.headers) < maxHeaderKeys {
		l.headers[s] = s
	}
	return s
}

// due is what is to be committed for the lane, if there is anything.
func (l *lane) due(all bool) (engine.Offset, bool) {
	settled := l.settled.Load()
	if settled < 0 || settled == l.committed.Load() && !all {
		return engine.Offset{}, false
	}
	return engine.Offset{Partition: l.partition, Offset: settled, Metadata: l.env.String()}, true
}

// position is the frontier as people see it: where the lane began, until something
// was settled.
func (l *lane) position() int64 { return max(l.settled.Load(), l.start) }

// Deliver, Room and Len make the lane an [engine.Lane].
func (l *lane) Deliver(records []engine.Record) (full bool) { return l.queue.put(records) }
func (l *lane) Room() <-chan struct{}                       { return l.queue.room }
func (l *lane) Len() int                                    { return l.queue.len() }

// A queue holds the messages of a lane that the engine has delivered and the worker
// has not taken. It is filled by one goroutine and emptied by another.
type queue struct {
	limit int
	wake  chan struct{} // the worker waits on it while the queue is empty
	room  chan struct{}

	mu     sync.Mutex
	ring   []engine.Record
	head   int
	size   int
	full   bool // put has reported it, room not yet
	idle   bool // the worker waits
	closed bool
	last   int64 // offset of the last message delivered; -1: none

	batch []engine.Record // the worker's, reused
}

// batchSize is how many messages the worker takes at once. They count as queued
// until they are handed to the handler, hence the subtraction in newQueue.
const batchSize = 32

func newQueue(limit int) queue {
	batch := max(1, min(batchSize, limit/4))
	return queue{
		limit: max(1, limit-batch),
		wake:  make(chan struct{}, 1),
		room:  make(chan struct{}, 1),
		batch: make([]engine.Record, batch),
		last:  -1,
	}
}

func (q *queue) put(records []engine.Record) (full bool) {
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
		q.wake <- struct{}{} // never blocks: one token for each time idle was set
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
		q.mu.Lock()
		if n := min(q.size, len(q.batch)); n > 0 && !q.closed {
			batch := q.batch[:n]
			for i := range batch {
				at := (q.head + i) & (len(q.ring) - 1)
				batch[i], q.ring[at] = q.ring[at], nil
			}
			q.head = (q.head + n) & (len(q.ring) - 1)
			q.size -= n
			signal := q.full && q.size < q.limit
			if signal {
				q.full = false
			}
			q.mu.Unlock()
			if signal {
				q.signalRoom()
			}
			return batch
		}
		q.idle = true
		q.mu.Unlock()
		select {
		case <-q.wake:
		case <-sealed:
			return nil
		}
	}
}

// close throws away what is queued and whatever comes.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.ring, q.head, q.size = nil, 0, 0
	q.mu.Unlock()
	q.signalRoom()
}

func (q *queue) signalRoom() {
	select {
	case q.room <- struct{}{}:
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

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
