package kgroup

// A lane is one partition while this member owns it: its queue, its worker, its
// frontier. The engine delivers into it; the worker takes a message, handles it
// until it is settled, and moves the frontier. When the generation is sealed the
// worker ends after the message it is at.

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/kgroup-go/kgroup/internal/engine"
)

type lane struct {
	partition engine.Partition
	topic     Topic
	call      HandlerFunc // topic.Handler's
	env       envelope
	start     int64
	queue     *queue

	// ctx is the handlers' context. Cancelling it ends attempts; sealed ends the lane.
	ctx    context.Context
	cancel context.CancelCauseFunc
	sealed <-chan struct{}
	closed atomic.Bool     // before sealed is closed: what the worker looks at for each message
	after  <-chan struct{} // the worker does not start before it is closed: see orphans in assignment.go
	done   chan struct{}   // closed when the worker has returned

	// Of whose turn it is (turn.go): what it has taken, whether the first message of that
	// is settled, the attempt it is at with it (0: none yet), and whether that attempt is
	// under way. They outlive a goroutine that a handler or a hook has ended.
	batch      []engine.Record
	passed     bool
	attempt    int
	attempting bool
	frontier   frontier

	direct direct

	// settled publishes the frontier to the committer; -1: nothing to commit.
	settled   atomic.Int64
	committed atomic.Int64
	// everyMessage, if not nil, waits until the frontier has been committed.
	everyMessage func(*lane)

	blocked atomic.Pointer[blocked]
	headers map[string]string // header keys seen, so that they are not allocated each time
	log     *slog.Logger
	hooks   *Hooks
	telling chan struct{} // holds a value while a hook is called, for any lane of the partition
}

// blocked says what keeps a lane from going on.
type blocked struct {
	err      *HandlerError
	since    time.Time
	held     bool   // reported
	panicked string // the panic whose stack has been logged
}

// work is the lane's worker.
func (l *lane) work() {
	ended := false
	defer func() {
		if !ended { // the handler or a hook called runtime.Goexit, as t.FailNow does
			go l.work()
			return
		}
		defer close(l.done) // also if the hook does
		l.unblock()
	}()
	select {
	case <-l.after:
	case <-l.sealed:
		ended = true
		return
	}
	for l.finishBatch() {
		if l.batch = l.queue.take(l.sealed); l.batch == nil {
			break
		}
	}
	ended = true
}

// finishBatch handles what has been taken, and goes on with it where a goroutine was
// ended. It reports false if the lane is at its end.
func (l *lane) finishBatch() bool {
	for {
		if l.passed {
			l.batch[0] = nil
			l.batch, l.passed = l.batch[1:], false
		}
		if l.everyMessage != nil && l.committed.Load() < l.settled.Load() {
			l.everyMessage(l)
		}
		if len(l.batch) == 0 {
			return true
		}
		if !l.finish(l.batch[0]) {
			return false
		}
	}
}

// finish handles one message until it is settled. It reports false if the lane is
// at its end.
func (l *lane) finish(record engine.Record) bool {
	if l.closed.Load() {
		return false
	}
	var msg Message
	l.read(record, &msg)
	if l.attempt == 0 {
		l.attempt = 1
		l.frontier.deliver(msg.Offset)
	}
	for {
		msg.Attempt = l.attempt
		err := errGoexit
		if !l.attempting {
			l.attempting = true
			err = l.try(&msg)
		}
		l.attempting = false
		if err == nil { // settle would say so too, but it wants to know more
			l.settle(msg.Offset)
			return true
		}
		switch o := l.topic.Retry.settle(err, msg.Attempt, l.ctx.Err() != nil); o {
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

// try makes one attempt, and now and then takes its time.
func (l *lane) try(msg *Message) error {
	if !l.direct.timed() {
		return handle(l.ctx, l.call, msg)
	}
	began := time.Now()
	err := handle(l.ctx, l.call, msg)
	l.direct.took(time.Since(began))
	return err
}

// errGoexit is the error of an attempt that neither returned nor panicked.
var errGoexit = errors.New("handler ended its goroutine (runtime.Goexit, or FailNow of a test)")

// settle moves the frontier over a message, before a hook that may not return hears
// of it: a message that is settled is not handled again.
func (l *lane) settle(offset int64) {
	l.passed, l.attempt = true, 0
	l.frontier.settle(offset)
	l.settled.Store(l.frontier.next)
	if l.blocked.Load() != nil {
		l.unblock()
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
// message is held. A message may fail for hours: the stack of a panic is logged once,
// when the panic is another one, and when the message is held.
func (l *lane) block(err *HandlerError, held bool, wait time.Duration) {
	b := &blocked{err: err, since: time.Now(), held: held}
	if old := l.blocked.Load(); old != nil {
		b.since, b.held, b.panicked = old.since, held || old.held, old.panicked
		held = held && !old.held
	}
	attrs := []any{"offset", err.Offset, "attempt", err.Attempts, "error", err.Err, "backoff", wait}
	if p, ok := err.Err.(*PanicError); ok && (held || p.Error() != b.panicked) { //nolint:errorlint // only a panic of this attempt has a stack worth showing
		attrs = append(attrs, "stack", string(p.Stack))
		b.panicked = p.Error()
	}
	l.blocked.Store(b)
	if !held {
		l.log.Warn("attempt failed", attrs...)
		return
	}
	l.log.Error("message held: its partition does not go on", attrs...)
	if l.hooks.Blocked != nil {
		l.tell(func() { l.hooks.Blocked(err) })
	}
}

func (l *lane) unblock() {
	b := l.blocked.Swap(nil)
	if b != nil && b.held && l.hooks.Unblocked != nil {
		l.tell(func() { l.hooks.Unblocked(b.err.Topic, b.err.Partition, b.err.Offset) })
	}
}

// tell calls a hook, never two at once for one partition: its loss is told by another
// goroutine than its worker's, and an orphan may outlive several lanes.
func (l *lane) tell(hook func()) {
	l.telling <- struct{}{}
	defer func() { <-l.telling }()
	hook()
}

// read takes a record apart.
func (l *lane) read(r engine.Record, msg *Message) {
	var headers int
	msg.Key, msg.Value, headers = r.Payload()
	msg.Topic, msg.Partition = l.partition.Topic, l.partition.Number
	msg.Offset, msg.Timestamp = r.Offset(), r.Timestamp()
	if headers == 0 {
		return
	}
	msg.Headers = make([]Header, headers)
	for i := range msg.Headers {
		key, value := r.Header(i)
		msg.Headers[i] = Header{Key: l.intern(key), Value: value}
	}
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

// atWork reports whether its worker has begun and not ended. One that waits for an
// orphan has not begun.
func (l *lane) atWork() bool { return isClosed(l.after) && !isClosed(l.done) }

// close seals the lane, but for the sealed channel: that is the generation's.
func (l *lane) close() {
	l.closed.Store(true)
	l.queue.close()
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

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
