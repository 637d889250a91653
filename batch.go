package kgroup

// Batches: what a handler of several messages at once is, how they are made up, and what
// becomes of them. A crew (crew.go) makes them up; messages that have failed in one are
// handled alone from then on, as if there were no batches (attempt.go).

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// A Batch says that the messages of a topic are handled several at once.
type Batch struct {
	// Handler handles the batches. It takes the place of Topic.Handler.
	Handler BatchHandler

	// Size is how many messages a batch has at most. Zero: 100. At most 10,000; negative is a
	// mistake.
	Size int

	// Wait is how long a batch waits for more messages, from its first one on, at least 1 ms.
	// Zero: 100 ms. Negative: it does not wait.
	Wait time.Duration
}

// A BatchHandler handles several messages of one partition at once, as a database does
// that is told to insert a thousand rows.
//
// HandleBatch returning nil settles all of them. A [*BatchError] says which have failed;
// the others are settled. Any other error, or a panic, concerns all: the same batch is
// handled again after a backoff (see [Retry]). Before a message is given up or held,
// though, it is handled in a batch of its own: messages that a BatchError names from their
// next attempt on, all of a batch when one attempt is left (without Topic.DeadLetter, when
// the backoff has reached Retry.MaxBackoff), or when the error is [Permanent]. So a bad
// message takes no other one with it.
//
// The messages are in the order of their offsets. With Topic.Workers more than one, batches
// of a partition are handled side by side, and a batch may leave out messages whose keys are
// in another one. Apart from that, what [Handler] says of Handle is true of HandleBatch. The
// slice may be kept, and changed; a BatchError has the indexes that it had before.
type BatchHandler interface {
	HandleBatch(ctx context.Context, msgs []Message) error
}

// BatchHandlerFunc makes a [BatchHandler] of a function.
type BatchHandlerFunc func(ctx context.Context, msgs []Message) error

// HandleBatch calls f.
func (f BatchHandlerFunc) HandleBatch(ctx context.Context, msgs []Message) error { return f(ctx, msgs) }

// A BatchError is returned by a [BatchHandler] of which some messages have failed. The others
// are settled, also those of the same key that stand behind one that has failed: who keeps
// order names them, too, which costs them an attempt (with Retry.MaxAttempts 1 they become
// dead letters). It may be wrapped, but not joined with other errors: then all have
// failed.
type BatchError struct {
	// Failed has an error for each of them, by its index in the batch: one that may be
	// [Permanent], or say when to come again ([RetryAfter]). A BatchError without any, or
	// with an index that is none, concerns all messages.
	Failed map[int]error
}

func (e *BatchError) Error() string {
	if e == nil || len(e.Failed) == 0 {
		return "batch failed, and no message is named"
	}
	first := slices.Min(slices.Collect(maps.Keys(e.Failed)))
	return fmt.Sprintf("%d of the batch failed, the first of them %d: %v", len(e.Failed), first, e.Failed[first])
}

// Unwrap returns the errors of the messages, by index.
func (e *BatchError) Unwrap() []error {
	if e == nil {
		return nil
	}
	var errs []error
	for _, i := range slices.Sorted(maps.Keys(e.Failed)) {
		errs = append(errs, e.Failed[i])
	}
	return errs
}

// failedOf is what err says of single messages of a batch of n; nil: nothing.
func failedOf(err error, n int) map[int]error {
	named := batchErrorOf(err)
	if named == nil || len(named.Failed) == 0 {
		return nil
	}
	for i := range named.Failed {
		if i < 0 || i >= n {
			return nil
		}
	}
	return named.Failed
}

// batchErrorOf is the BatchError that err is, or wraps. Beside another error it does not say
// all there is to say, nor does it in a panic.
func batchErrorOf(err error) *BatchError {
	for err != nil {
		switch e := err.(type) { //nolint:errorlint // see above
		case *BatchError:
			return e
		case *timeoutError:
			err = e.err
		case *PanicError:
			return nil
		default:
			err = errors.Unwrap(err)
		}
	}
	return nil
}

// TypedBatch makes a [BatchHandler] of a function that takes decoded values, values[i] being
// that of msgs[i]. Messages that decode refuses with a [Permanent] error fail; handle gets the
// others. Any other error of decode concerns the whole batch, because messages must not
// overtake one that is decoded later. (One that is held, because there is no Topic.DeadLetter,
// has been overtaken by those behind it in its batch.) The indexes of a [*BatchError] that
// handle returns are those of its own slices.
func TypedBatch[T any](decode func(ctx context.Context, msg Message) (T, error), handle func(ctx context.Context, values []T, msgs []Message) error) BatchHandler {
	if decode == nil || handle == nil {
		return BatchHandlerFunc(nil) // New finds it
	}
	return BatchHandlerFunc(func(ctx context.Context, msgs []Message) error {
		values, kept, at := make([]T, 0, len(msgs)), make([]Message, 0, len(msgs)), make([]int, 0, len(msgs))
		failed := map[int]error{}
		for i, msg := range msgs {
			value, err := decode(ctx, msg)
			switch {
			case err == nil:
			case isPermanent(err):
				failed[i] = err
				continue
			default:
				return err
			}
			values, kept, at = append(values, value), append(kept, msg), append(at, i)
		}
		if len(kept) > 0 {
			if err := handle(ctx, values, kept); err != nil {
				named := failedOf(err, len(kept))
				if named == nil {
					return err
				}
				for i, err := range named {
					failed[at[i]] = err
				}
			}
		}
		if len(failed) == 0 {
			return nil
		}
		return &BatchError{Failed: failed}
	})
}

// maxBatch is far below what may be delivered ahead.
const maxBatch = 10000

// call is what handles a single message.
func (t *Topic) call() HandlerFunc {
	if t.Batch.Handler != nil {
		return alone(t.Batch.Handler)
	}
	return asFunc(t.Handler)
}

// inHand is how many messages of a partition are handled at once.
func (t *Topic) inHand() int {
	if t.Batch.Handler != nil {
		return t.Workers * t.Batch.Size
	}
	return t.Workers
}

// handlerType is the name of the type of what handles the messages.
func (t *Topic) handlerType() string {
	if t.Batch.Handler != nil {
		return fmt.Sprintf("%T", t.Batch.Handler)
	}
	return fmt.Sprintf("%T", t.Handler)
}

// alone handles a message in a batch of its own.
func alone(h BatchHandler) HandlerFunc {
	return func(ctx context.Context, msg Message) error {
		err := h.HandleBatch(ctx, []Message{msg})
		if failed := failedOf(err, 1); failed != nil {
			return cmp.Or(failed[0], errNoReason)
		}
		return err
	}
}

// errNoReason is the error of a message that a BatchError names with a nil.
var errNoReason = errors.New("named by a BatchError, without an error")

// collect makes up a batch, and waits for it to become full. It is called with mu, and lets
// go of it meanwhile.
func (c *crew) collect(h *hand) bool {
	if c.collector != nil {
		return false
	}
	c.collector = h
	defer func() { c.collector = nil }()
	c.gather()
	if len(h.tasks) == 0 {
		return false
	}
	h.at = progress{attempt: 1}
	wait := time.NewTimer(max(0, c.batch.Wait))
	defer wait.Stop()
collecting:
	for c.hasRoom() && !c.over() {
		switch {
		case c.fill(h):
		case c.batch.Wait < 0, !c.filling && !c.takes(): // it would wait for nothing
			break collecting
		case c.takes() && !c.lane.queue.listen(): // it has come just now
		case !c.waitForMore(wait):
			break collecting
		}
	}
	return true
}

// waitForMore reports false if the time is up.
func (c *crew) waitForMore(wait *time.Timer) bool {
	c.mu.Unlock()
	defer c.mu.Lock()
	select {
	case <-c.lane.queue.wake:
	case <-c.full:
	case <-c.lane.sealed:
	case <-wait.C:
		return false
	}
	return true
}

// hasRoom reports whether the batch that is made up takes another message.
func (c *crew) hasRoom() bool { return len(c.collector.tasks) < c.batch.Size }

// gather puts what is ready into the batch that is made up, and what stands behind it.
func (c *crew) gather() {
	if c.collector == nil {
		return
	}
	var behind tasks // of what is in the batch: it may follow
	for c.hasRoom() && c.ready.len()+behind.len() > 0 {
		from := &c.ready
		if c.ready.len() == 0 || behind.len() > 0 && behind.first().offset < c.ready.first().offset {
			from = &behind
		}
		t := from.pop()
		c.give(c.collector, t)
		if t.next != nil && !t.next.alone {
			behind.push(t.next)
		}
	}
	if !c.hasRoom() {
		signal(c.full)
	}
}

// together handles a batch. When it returns true, what is not settled of it is to be handled
// alone; false, the lane is at its end.
func (c *crew) together(h *hand) bool {
	l := c.lane
	slices.SortFunc(h.tasks, func(a, b *task) int { return cmp.Compare(a.offset, b.offset) })
	for !h.split && !h.tasks[0].done {
		switch {
		case c.over():
			return false
		case l.quarantine.lasts() && l.quarantine.suspects(l, h.tasks[0].offset):
			h.split = true
			continue
		}
		msgs := h.messages()
		first := msgs[0] // the handler may change the slice
		err, guarded := errGoexit, true
		if !h.at.attempting {
			if guarded = h.guarded(); guarded && !h.begin(first.Offset) {
				return false
			}
			h.at.attempting = true
			err = h.tryTogether(msgs)
		}
		h.at.attempting = false
		failed := failedOf(err, len(msgs))
		if err != nil && h.holds != 0 {
			l.quarantine.leave(h)
		}
		if err != nil && failed == nil {
			if !h.failTogether(first, err) {
				return false
			}
			continue
		}
		h.settleTogether(failed, guarded)
	}
	return true
}

// messages are those of the batch.
func (h *hand) messages() []Message {
	msgs := make([]Message, len(h.tasks))
	for i, t := range h.tasks {
		h.read(t.record, &msgs[i])
		msgs[i].Attempt = h.at.attempt
	}
	return msgs
}

// tryTogether makes one attempt with a batch.
func (h *hand) tryTogether(msgs []Message) error {
	call := func(ctx context.Context, _ Message) error { return h.crew.batch.Handler.HandleBatch(ctx, msgs) }
	return h.handle(call, &msgs[0])
}

// settleTogether settles a batch, but for the messages that have failed in it.
func (h *hand) settleTogether(failed map[int]error, guarded bool) {
	good := len(h.tasks) - len(failed)
	for i, t := range h.tasks {
		if err, named := failed[i]; named {
			h.split = true
			t.past = &progress{attempt: h.at.attempt, given: cmp.Or(err, errNoReason), beside: good > 0}
		} else {
			t.done = true
		}
	}
	h.crew.settle(h)
	if h.quarantine != nil {
		h.quarantine.keepUp(h)
		for _, t := range h.tasks {
			if t.done {
				h.quarantine.settled(h.lane, t.offset)
			}
		}
	}
	switch {
	case good == 0:
		h.unblock()
	case guarded, h.blocked.Load() != nil:
		h.succeed(good)
	}
}

// maxNoted is how many messages of a batch that has failed the next owner is told of: about
// as many as fit into a commit.
const maxNoted = 200

// failTogether decides what follows an attempt with a batch of which nobody knows which
// messages are to blame, and waits until the next one is due. It reports false if the lane is
// at its end.
func (h *hand) failTogether(first Message, err error) bool {
	if h.ctx.Err() != nil || h.closed.Load() {
		return false
	}
	if h.at.failed.IsZero() {
		h.at.failed = time.Now()
	}
	permanent := isPermanent(err)
	r := h.topic.Retry
	n := h.at.attempt
	counts := h.counts(first.Offset, len(h.tasks), err, permanent)
	if !counts && !h.onTrial(n, permanent) {
		h.at.uncounted++
		return h.pause(first, err)
	}
	noted := n
	if r.MaxAttempts > 0 {
		noted = min(n, r.MaxAttempts-1) // all of them would condemn it
	}
	if noted > 0 {
		for _, t := range h.tasks[:min(len(h.tasks), maxNoted)] {
			h.failed(t.offset, noted)
		}
	}
	if permanent || !counts || h.topic.spent(n+1) || r.exhausted(n) {
		h.split = true
		for _, t := range h.tasks {
			t.past = &progress{attempt: noted + 1}
		}
		h.log.Warn("batch failed: its messages are handled one at a time", "offset", first.Offset, "messages", len(h.tasks), "attempt", n, "error", err)
		h.unblock()
		return true
	}
	h.at.attempt++
	return h.backoff(first, err, retry)
}
