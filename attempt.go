package kgroup

// One message of a lane: its attempts, until it is settled, or there is a verdict. What
// follows a single attempt is decided in settle.go; what its failure says about others,
// in breaker.go; what becomes of a message that has used up its attempts, in
// deadletter.go.

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// A hand handles the messages of a lane, one at a time. A lane has one, which is that of
// whose turn it is; with several workers each goroutine has its own (crew.go). It outlives
// a goroutine that the handler or a hook has ended.
type hand struct {
	*lane
	at      progress
	holds   int64 // of the quarantine's gate
	blocked atomic.Pointer[blocked]
	headers map[string]string // header keys seen, so that they are not allocated each time
	calls   int

	// Of a crew: what it has taken, and whether it gives it up as a batch.
	tasks []*task
	split bool
}

// A progress is how far a hand is with its message.
type progress struct {
	attempt    int       // the one it is at, or would be; 0: none yet
	attempting bool      // it is under way,
	as         admission // by leave of the breaker,
	began      time.Time // since then; zero: nothing had failed lately
	failed     time.Time // the first one
	uncounted  int       // failures that did not count
	given      error     // what came of an attempt that was made together with others,
	beside     bool      // of which some did not fail: there was no outage
	broken     error     // its key is not known: what comes of all attempts
	verdict    error     // the message is not handled any more, because of this
}

// finish handles one message until it is settled. It reports false if the lane is
// at its end.
func (h *hand) finish(record engine.Record) bool {
	if h.closed.Load() {
		return false
	}
	var msg Message // as read does it, but to write through a pointer costs write barriers
	var headers int
	msg.Key, msg.Value, headers = record.Payload()
	msg.Topic, msg.Partition = h.partition.Topic, h.partition.Number
	msg.Offset, msg.Timestamp = record.Offset(), record.Timestamp()
	if headers > 0 {
		msg.Headers = h.readHeaders(record, headers)
	}
	if h.at.attempt == 0 { // a crew's has been
		h.at.attempt = 1
		if h.inherits && msg.Offset < h.start {
			h.disown(msg.Offset)
			h.inherits = false
		}
		if h.inherits && h.inherit(msg.Offset, &h.at) {
			h.pass(msg.Offset)
			return true
		}
	}
	for h.at.verdict == nil {
		msg.Attempt = h.at.attempt
		err, guarded := errGoexit, true
		switch {
		case h.at.attempting: // and a goroutine was ended
		case h.at.given != nil:
			err, h.at.given = h.at.given, nil
		default:
			if guarded = h.guarded(); guarded && !h.begin(msg.Offset) {
				return false
			}
			h.at.attempting = true
			err = h.attempt(&msg)
		}
		h.at.attempting = false
		if err == nil {
			hooks := guarded || h.blocked.Load() != nil
			h.settle(msg.Offset, hooks)
			if hooks {
				h.succeed(1)
			}
			return true
		}
		if h.holds != 0 {
			h.quarantine.leave(h)
		}
		if !h.fail(msg, err) {
			return false
		}
	}
	return h.condemn(msg)
}

// guarded reports whether an attempt has to begin, and others hear of its success.
func (h *hand) guarded() bool { return h.breaker.mode.Load() != calm || h.quarantine != nil }

// begin waits until an attempt may begin, where something has failed lately, or somebody
// has died. It reports false if the lane is sealed meanwhile.
func (h *hand) begin(offset int64) bool {
	h.at.as, h.at.began = normal, time.Time{}
	if mode := h.breaker.mode.Load(); mode != calm {
		if mode == open {
			if h.at.as = h.breaker.admit(h.sealed); h.at.as == refused || isClosed(h.sealed) {
				return false
			}
		}
		h.at.began = time.Now()
	}
	return h.quarantine == nil || h.quarantine.enter(h, offset)
}

// succeed says what the success of n messages, which are settled, means to others.
func (h *hand) succeed(n int) {
	as, began := h.at.as, h.at.began
	h.at = progress{}
	if h.holds != 0 {
		h.quarantine.leave(h)
	}
	if h.breaker.mode.Load() != calm {
		h.breaker.succeeded(as, began, n)
	}
	h.unblock()
}

// attempt makes one attempt, and now and then takes its time.
func (h *hand) attempt(msg *Message) error {
	if h.at.broken != nil {
		return h.at.broken
	}
	h.calls++
	if h.calls%sampled != 0 {
		return h.handle(h.call, msg)
	}
	began := time.Now()
	err := h.handle(h.call, msg)
	h.took(time.Since(began))
	return err
}

// handle makes a call that ends after Topic.Timeout.
func (h *hand) handle(call HandlerFunc, msg *Message) error {
	if h.topic.Timeout <= 0 {
		return handle(h.ctx, call, msg)
	}
	ctx := newAttemptContext(h.ctx, h.topic.Timeout)
	defer ctx.end()
	err := handle(ctx, call, msg)
	if err != nil && h.ctx.Err() == nil && ctx.Err() != nil {
		err = &timeoutError{h.topic.Timeout, err}
	}
	return err
}

// fail decides what follows an attempt that has failed, and waits until the next one
// is due, or there is a verdict. It reports false if the lane is at its end.
func (h *hand) fail(msg Message, err error) bool {
	ended := h.ctx.Err() != nil || h.closed.Load() // a handler may have seen the shutdown before it was cancelled
	o := h.topic.settle(err, msg.Attempt, ended)
	if o == abandon {
		return false
	}
	if h.at.failed.IsZero() {
		h.at.failed = time.Now()
	}
	permanent := isPermanent(err)
	counts := h.counts(msg.Offset, 1, err, permanent)
	switch {
	case !counts && !h.onTrial(msg.Attempt, permanent):
		h.at.uncounted++
		return h.pause(msg, err)
	case !counts:
		o = bury // on trial
	case o == bury && !permanent && h.doubtful(msg.Offset) && !h.breaker.trial():
		h.at.uncounted++
		return h.backoff(msg, err, retry) // with this attempt once more
	}
	if o == bury {
		h.at.verdict = err
		h.failed(msg.Offset, max(msg.Attempt, h.topic.Retry.MaxAttempts))
		return true
	}
	h.failed(msg.Offset, msg.Attempt)
	h.at.attempt++
	return h.backoff(msg, err, o)
}

// doubtful reports whether a message may not be to blame for its failures.
func (h *hand) doubtful(offset int64) bool {
	return !h.at.beside && h.breaker.doubtful(h.partition, offset, h.at.failed)
}

// counts tells the breaker of an attempt with n messages that has failed, and reports whether
// it counts.
func (h *hand) counts(offset int64, n int, err error, permanent bool) bool {
	if permanent {
		return h.breaker.evaded(h.at.as)
	}
	return h.breaker.failed(h.partition, offset, n, err)
}

// onTrial reports whether a failure that does not count is to be the last all the same: the
// topic has been paused for too long.
func (h *hand) onTrial(attempt int, permanent bool) bool {
	return !permanent && h.at.as == asProbe && h.topic.spent(attempt+h.at.uncounted) && h.breaker.trial()
}

// errGoexit is the error of an attempt that neither returned nor panicked.
var errGoexit = errors.New("handler ended its goroutine (runtime.Goexit, or FailNow of a test)")

// backoff says what happened and waits until the next attempt is due. It reports
// false if the lane was sealed: a drain or a shutdown ends a backoff at once.
func (h *hand) backoff(msg Message, err error, o outcome) bool {
	wait := h.topic.Retry.backoff(o, msg.Attempt, err)
	_, told := retryAfter(err)
	doubt := !told && o == retry && h.doubtful(msg.Offset)
	if doubt {
		wait = max(wait, h.breaker.pace())
	}
	h.block(handlerError(msg, err), o == hold, wait)
	if doubt { // others would only fail in its place
		h.stay(wait)
		return !isClosed(h.sealed)
	}
	return h.sleep(wait)
}

// pause says what happened while the breaker is open: that is what is waited for, unless
// the error knows better.
func (h *hand) pause(msg Message, err error) bool {
	wait, _ := retryAfter(err)
	h.block(handlerError(msg, err), false, max(wait, h.topic.Breaker.Probe))
	return h.sleep(wait)
}

// sleep waits, while others of a crew go on. It reports false if the lane was sealed when d
// has passed, or before.
func (h *hand) sleep(d time.Duration) bool {
	h.rest()
	h.stay(d)
	h.resume() // which may take its time
	return !isClosed(h.sealed)
}

// stay waits, and keeps its place.
func (h *hand) stay(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-h.sealed:
	}
}

func handlerError(msg Message, err error) *HandlerError {
	return &HandlerError{Topic: msg.Topic, Partition: msg.Partition, Offset: msg.Offset, Attempts: msg.Attempt, Err: err}
}

// block makes a failed attempt visible: a warning, and an error once when the
// message is held. A message may fail for hours: the stack of a panic is logged once,
// when the panic is another one, and when the message is held.
func (h *hand) block(err *HandlerError, held bool, wait time.Duration) {
	b := &blocked{err: err, since: time.Now(), held: held}
	if old := h.blocked.Load(); old != nil {
		b.since, b.held, b.panicked = old.since, held || old.held, old.panicked
		held = held && !old.held
	}
	attrs := []any{"offset", err.Offset, "attempt", err.Attempts, "error", err.Err, "backoff", wait}
	if p, ok := err.Err.(*PanicError); ok && (held || p.Error() != b.panicked) { //nolint:errorlint // only a panic of this attempt has a stack worth showing
		attrs = append(attrs, "stack", string(p.Stack))
		b.panicked = p.Error()
	}
	h.blocked.Store(b)
	if !held {
		h.log.Warn("attempt failed", attrs...)
		return
	}
	h.log.Error("message held: what must be handled after it waits", attrs...)
	if h.hooks.Blocked != nil {
		h.tell(func() { h.hooks.Blocked(err) })
	}
}

func (h *hand) unblock() {
	b := h.blocked.Swap(nil)
	if b != nil && b.held && h.hooks.Unblocked != nil {
		h.tell(func() { h.hooks.Unblocked(b.err.Topic, b.err.Partition, b.err.Offset) })
	}
}

// blocked says what keeps a lane from going on.
type blocked struct {
	err      *HandlerError
	since    time.Time
	held     bool   // reported
	panicked string // the panic whose stack has been logged
}
