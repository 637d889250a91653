package kgroup

// One message of a lane: its attempts, until it is settled, or there is a verdict. What
// follows a single attempt is decided in settle.go; what its failure says about others,
// in breaker.go; what becomes of a message that has used up its attempts, in
// deadletter.go.

import (
	"errors"
	"fmt"
	"time"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// A progress is how far a lane is with its message. It outlives a goroutine that the
// handler or a hook has ended.
type progress struct {
	attempt    int       // the one it is at, or would be; 0: none yet
	attempting bool      // it is under way,
	as         admission // by leave of the breaker,
	began      time.Time // since then; zero: nothing had failed lately
	failed     time.Time // the first one
	uncounted  int       // failures that did not count
	verdict    error     // the message is not handled any more, because of this
}

// finish handles one message until it is settled. It reports false if the lane is
// at its end.
func (l *lane) finish(record engine.Record) bool {
	if l.closed.Load() {
		return false
	}
	var msg Message
	l.read(record, &msg)
	if l.at.attempt == 0 {
		l.at.attempt = 1
		l.frontier.deliver(msg.Offset)
		if l.inherits && l.inherit(msg.Offset, &l.at) {
			l.pass(msg.Offset)
			return true
		}
	}
	for l.at.verdict == nil {
		msg.Attempt = l.at.attempt
		err, guarded := errGoexit, true
		if !l.at.attempting {
			if guarded = l.breaker.mode.Load() != calm || l.quarantine != nil; guarded && !l.begin(msg.Offset) {
				return false
			}
			l.at.attempting = true
			err = l.try(&msg)
		}
		l.at.attempting = false
		if err == nil {
			l.settle(msg.Offset)
			if guarded || l.blocked.Load() != nil {
				l.succeed()
			}
			return true
		}
		if l.holds != 0 {
			l.quarantine.leave(l)
		}
		if !l.fail(msg, err) {
			return false
		}
	}
	return l.condemn(msg)
}

// begin waits until an attempt may begin, where something has failed lately, or somebody
// has died. It reports false if the lane is sealed meanwhile.
func (l *lane) begin(offset int64) bool {
	l.at.as, l.at.began = normal, time.Time{}
	if mode := l.breaker.mode.Load(); mode != calm {
		if mode == open {
			if l.at.as = l.breaker.admit(l.sealed); l.at.as == refused || isClosed(l.sealed) {
				return false
			}
		}
		l.at.began = time.Now()
	}
	return l.quarantine == nil || l.quarantine.enter(l, offset)
}

// succeed says what the success of a message, which is settled, means to others.
func (l *lane) succeed() {
	as, began := l.at.as, l.at.began
	l.at = progress{}
	if l.holds != 0 {
		l.quarantine.leave(l)
	}
	if l.breaker.mode.Load() != calm {
		l.breaker.succeeded(as, began)
	}
	l.unblock()
}

// try makes one attempt, and now and then takes its time.
func (l *lane) try(msg *Message) error {
	if l.topic.Timeout > 0 {
		return l.tryInTime(msg)
	}
	if !l.direct.timed() {
		return handle(l.ctx, l.call, msg)
	}
	began := time.Now()
	err := handle(l.ctx, l.call, msg)
	l.direct.took(time.Since(began))
	return err
}

func (l *lane) tryInTime(msg *Message) error {
	ctx := newAttemptContext(l.ctx, l.topic.Timeout)
	defer ctx.end()
	err := handle(ctx, l.call, msg)
	if err != nil && l.ctx.Err() == nil && ctx.Err() != nil {
		err = fmt.Errorf("%w after %v: %w", ErrHandlerTimeout, l.topic.Timeout, err)
	}
	return err
}

// fail decides what follows an attempt that has failed, and waits until the next one
// is due, or there is a verdict. It reports false if the lane is at its end.
func (l *lane) fail(msg Message, err error) bool {
	ended := l.ctx.Err() != nil || l.closed.Load() // a handler may have seen the shutdown before it was cancelled
	o := l.topic.settle(err, msg.Attempt, ended)
	if o == abandon {
		return false
	}
	if l.at.failed.IsZero() {
		l.at.failed = time.Now()
	}
	var counts bool
	permanent := isPermanent(err)
	if permanent {
		counts = l.breaker.evaded(l.at.as)
	} else {
		counts = l.breaker.failed(l.partition, msg.Offset, err)
	}
	switch {
	case !counts && (permanent || l.at.as != asProbe || !l.topic.spent(msg.Attempt+l.at.uncounted) || !l.breaker.trial()):
		l.at.uncounted++
		return l.pause(msg, err)
	case !counts:
		o = bury // on trial
	case o == bury && !permanent && l.breaker.doubtful(l.partition, msg.Offset, l.at.failed) && !l.breaker.trial():
		l.at.uncounted++
		return l.backoff(msg, err, retry) // with this attempt once more
	}
	if o == bury {
		l.at.verdict = err
		l.failed(msg.Offset, max(msg.Attempt, l.topic.Retry.MaxAttempts))
		return true
	}
	l.failed(msg.Offset, msg.Attempt)
	l.at.attempt++
	return l.backoff(msg, err, o)
}

// errGoexit is the error of an attempt that neither returned nor panicked.
var errGoexit = errors.New("handler ended its goroutine (runtime.Goexit, or FailNow of a test)")

// backoff says what happened and waits until the next attempt is due. It reports
// false if the lane was sealed: a drain or a shutdown ends a backoff at once.
func (l *lane) backoff(msg Message, err error, o outcome) bool {
	wait := l.topic.Retry.backoff(o, msg.Attempt, err)
	if _, told := retryAfter(err); !told && o == retry && l.breaker.doubtful(l.partition, msg.Offset, l.at.failed) {
		wait = max(wait, l.breaker.pace())
	}
	l.block(handlerError(msg, err), o == hold, wait)
	return l.sleep(wait)
}

// pause says what happened while the breaker is open: that is what is waited for, unless
// the error knows better.
func (l *lane) pause(msg Message, err error) bool {
	wait, _ := retryAfter(err)
	l.block(handlerError(msg, err), false, max(wait, l.topic.Breaker.Probe))
	return l.sleep(wait)
}

// sleep reports false if the lane was sealed when d has passed, or before.
func (l *lane) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.sealed:
	}
	return !isClosed(l.sealed)
}

func handlerError(msg Message, err error) *HandlerError {
	return &HandlerError{Topic: msg.Topic, Partition: msg.Partition, Offset: msg.Offset, Attempts: msg.Attempt, Err: err}
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

// blocked says what keeps a lane from going on.
type blocked struct {
	err      *HandlerError
	since    time.Time
	held     bool   // reported
	panicked string // the panic whose stack has been logged
}
