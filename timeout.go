package kgroup

// The context of an attempt that may take no longer than Topic.Timeout. Most handlers return
// before they have waited for anything, so a timer for each of them, and its place among
// the lane's contexts, would be made for nothing: both are made when somebody asks.

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// A timeoutError is what an attempt returned after its time was over.
type timeoutError struct {
	after time.Duration
	err   error
}

func (e *timeoutError) Error() string {
	return fmt.Sprintf("%v after %v: %v", ErrHandlerTimeout, e.after, e.err)
}

func (e *timeoutError) Unwrap() []error { return []error{ErrHandlerTimeout, e.err} }

// An attemptContext is context.WithDeadlineCause(parent, deadline, ErrHandlerTimeout), made
// when it is needed. Until then it says itself whether it is over. It belongs to one attempt:
// the handler may have given it to others, who ask when that has ended.
//
// There is one difference: if nobody asks between the deadline and a cancellation of
// the parent, it says that it was cancelled.
type attemptContext struct {
	parent   context.Context // of the lane: it has no deadline of its own
	deadline time.Time

	mu    sync.Mutex // for who changes the state
	state atomic.Int32
	// Once it is made:
	made   context.Context
	cancel context.CancelFunc
}

// The states of an attemptContext.
const (
	notMade int32 = iota
	endedBefore
	isMade
)

func newAttemptContext(parent context.Context, timeout time.Duration) *attemptContext {
	return &attemptContext{parent: parent, deadline: time.Now().Add(timeout)}
}

// end cancels the context. The attempt has ended.
func (c *attemptContext) end() {
	_ = c.Err() // if it is over, that is why, whoever asks later
	c.mu.Lock()
	made := c.state.Load() == isMade
	if !made {
		c.state.Store(endedBefore)
	}
	c.mu.Unlock()
	if made {
		c.cancel()
	}
}

func (c *attemptContext) Deadline() (time.Time, bool) { return c.deadline, true }

func (c *attemptContext) Done() <-chan struct{} { return c.make().Done() }

func (c *attemptContext) Err() error {
	if c.state.Load() == notMade && c.parent.Err() == nil && time.Now().Before(c.deadline) {
		return nil
	}
	return c.make().Err()
}

// Value has to answer for package context too, which asks a context in this way for its part
// in cancelling. It asks for Done before, or for an Err that is not nil.
func (c *attemptContext) Value(key any) any {
	if c.state.Load() == notMade {
		return c.parent.Value(key)
	}
	return c.make().Value(key)
}

// String is what the ordinary one says: without it, printing would read what others write.
func (c *attemptContext) String() string {
	return fmt.Sprintf("%v.WithDeadline(%v [%v])", c.parent, c.deadline, time.Until(c.deadline))
}

// make returns the ordinary context that all is left to from now on.
func (c *attemptContext) make() context.Context {
	if c.state.Load() == isMade {
		return c.made
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state.Load() {
	case isMade:
		return c.made
	case endedBefore: // what has become of the parent since does not matter
		c.made, c.cancel = context.WithCancel(context.WithoutCancel(c.parent))
		c.cancel()
	default:
		c.made, c.cancel = context.WithDeadlineCause(c.parent, c.deadline, ErrHandlerTimeout)
	}
	c.state.Store(isMade)
	return c.made
}
