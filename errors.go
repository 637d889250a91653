package kgroup

// Every error that kgroup makes and a caller may want to tell apart.

import (
	"errors"
	"fmt"
	"time"
)

var (
	// ErrAlreadyRun is returned by a second call of Run: a Consumer runs once.
	ErrAlreadyRun = errors.New("kgroup: consumer has already run")

	// ErrNotRunning is returned by Commit and by Health.Err before Run has started and
	// after it has ended.
	ErrNotRunning = errors.New("kgroup: consumer is not running")

	// ErrPartitionLost is the cause of a handler's cancelled context when its
	// partition belongs to somebody else, or must be given up at once so that it can:
	// the session was lost, or a rebalance waits for this member and its time is up.
	ErrPartitionLost = errors.New("kgroup: partition lost")

	// ErrShutdownTimeout is the cause of a handler's cancelled context when
	// Config.ShutdownTimeout leaves no more time to wait for it.
	ErrShutdownTimeout = errors.New("kgroup: shutdown timeout")

	// ErrHandlerTimeout is the cause of a handler's cancelled context when the attempt has
	// taken longer than Topic.Timeout.
	ErrHandlerTimeout = errors.New("kgroup: handler timeout")
)

// A ConfigError names a field of the [Config] and what is wrong with it.
type ConfigError struct {
	Field string // as in Go: Topics["orders"].Handler
	Err   error
}

func (e *ConfigError) Error() string { return "kgroup: config: " + e.Field + ": " + e.Err.Error() }

// Unwrap returns e.Err.
func (e *ConfigError) Unwrap() error { return e.Err }

// A HandlerError says that handling a message has failed, and how often.
// Hooks.Blocked gets it, and Health shows it.
type HandlerError struct {
	Topic     string
	Partition int32
	Offset    int64
	Attempts  int
	Err       error // what the last attempt returned, or a *PanicError
}

func (e *HandlerError) Error() string {
	return fmt.Sprintf("kgroup: handle %s/%d at %d: attempt %d: %v", e.Topic, e.Partition, e.Offset, e.Attempts, e.Err)
}

// Unwrap returns e.Err.
func (e *HandlerError) Unwrap() error { return e.Err }

// A PanicError is the error of an attempt whose handler panicked.
type PanicError struct {
	Value any
	Stack []byte // of the goroutine that panicked
}

func (e *PanicError) Error() string { return fmt.Sprintf("handler panicked: %v", e.Value) }

// Unwrap returns the value the handler panicked with, if that is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// Permanent marks err as one that trying again soon cannot cure. See [Handler].
// Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

// RetryAfter marks err as one after which the next attempt should wait for d, in place
// of the backoff that [Retry] says: because whoever refused has said when to come again.
// A d of zero or less means at once. The attempt counts. RetryAfter(nil, d) is nil.
func RetryAfter(err error, d time.Duration) error {
	if err == nil {
		return nil
	}
	return &retryAfterError{err, max(0, d)}
}

type retryAfterError struct {
	err error
	d   time.Duration
}

func (e *retryAfterError) Error() string { return e.err.Error() }
func (e *retryAfterError) Unwrap() error { return e.err }

// retryAfter is the time that an error wrapped by [RetryAfter] says.
func retryAfter(err error) (d time.Duration, ok bool) {
	var after *retryAfterError
	if ok = errors.As(err, &after); ok {
		d = after.d
	}
	return d, ok
}

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

func isPermanent(err error) bool {
	var p *permanentError
	return errors.As(err, &p)
}
