package kgroup

// The user's side: what a handler is, and what it gets to see. A lane (lane.go)
// calls handle for each attempt; the attempt's result goes on to settle.go.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// A Handler handles the messages of one topic.
//
// Handle is called once per attempt. Returning nil settles the message: its
// offset is marked, and with the next commit it is never delivered to this group
// again. There is no other way to acknowledge a message, so do not return nil
// before the work is done; a goroutine left behind by Handle is not waited for.
//
// Returning an error, or panicking, keeps the message: Handle is called again
// after a backoff (see [Retry]), and the later messages of the partition, or with
// Topic.Workers of the same key, wait, so that order is kept. After Retry.MaxAttempts, or an error wrapped by [Permanent],
// which says that trying soon is useless, it goes to Topic.DeadLetter. Without that
// topic it is held: reported as blocked, and tried again every Retry.MaxBackoff,
// because only a change outside can help. To drop a message, log it and return nil.
//
// Within one partition Handle is called for one message after the other, in
// offset order; with Topic.Workers, for several at once, and in order for those of
// the same key. Partitions are handled side by side: a Handler that serves more
// than one, or has Workers, must be safe for concurrent use. It must not wait for another message's
// handling: after a crash, some are handled while nothing else is.
//
// The context carries the values of the context given to Run, but not its
// cancellation: a handler at work when the service stops is left to finish. It is
// cancelled with [ErrPartitionLost] when the partition belongs to somebody else,
// and with [ErrShutdownTimeout] near the end of Config.ShutdownTimeout
// ([context.Cause] with [errors.Is] tells which). What Handle returns after that is no attempt: an
// error does not count, but a nil still settles the message if the partition is
// still ours. (With [ErrHandlerTimeout], after Topic.Timeout, it is one.) A handler
// that ignores its cancelled context cannot be stopped; its message stays
// uncommitted, and its partition is not handled again in this process until it has
// returned.
//
// The message is a value and may be kept. Key, Value and Headers share memory
// with the whole fetch response they arrived in (a megabyte or more): clone what
// is kept for long, and do not modify them.
type Handler interface {
	Handle(ctx context.Context, msg Message) error
}

// HandlerFunc makes a [Handler] of a function.
type HandlerFunc func(ctx context.Context, msg Message) error

// Handle calls f.
func (f HandlerFunc) Handle(ctx context.Context, msg Message) error { return f(ctx, msg) }

// asFunc is what calls h. A HandlerFunc is called without the detour: messages are
// large, and each call copies one.
func asFunc(h Handler) HandlerFunc {
	if f, ok := h.(HandlerFunc); ok || h == nil {
		return f
	}
	return h.Handle
}

// A Message is one record of a topic, in the state of one attempt to handle it.
type Message struct {
	Topic     string
	Partition int32
	Offset    int64

	// Key and Value are nil when the record has none; a record with a key and no
	// value is a tombstone in a compacted topic.
	Key, Value []byte
	Headers    []Header

	// Timestamp is the producer's or, with message.timestamp.type=LogAppendTime,
	// the broker's.
	Timestamp time.Time

	// Attempt counts the calls of the handler for this message, from 1, those in earlier
	// owners of the partition included if they were committed. Calls that do not count
	// have the number of the next one: those that were cancelled, that failed while a
	// drain waited for them, or while the topic's Breaker was open or could not tell.
	Attempt int
}

// A Header is one record header. Keys may repeat.
type Header struct {
	Key   string
	Value []byte
}

// Header returns the value of the last header with that key, and whether there is
// one. (Of repeated keys the last counts, as in Kafka's own clients.)
func (m Message) Header(key string) (value []byte, ok bool) {
	for _, h := range slices.Backward(m.Headers) {
		if h.Key == key {
			return h.Value, true
		}
	}
	return nil, false
}

// A Middleware wraps a handler in another one, for logging, timeouts, tracing.
type Middleware func(Handler) Handler

// Chain wraps h in the middlewares. The first is the outermost: it sees the
// message first and the error last.
func Chain(h Handler, mw ...Middleware) Handler {
	for _, wrap := range slices.Backward(mw) {
		h = wrap(h)
	}
	return h
}

// Typed makes a [Handler] of a function that takes a decoded value. An error of
// decode is an error of the attempt: decode decides itself whether it is
// [Permanent] (a schema registry that is down is not a bad message).
func Typed[T any](decode func(ctx context.Context, msg Message) (T, error), handle func(ctx context.Context, value T, msg Message) error) Handler {
	if decode == nil || handle == nil {
		return HandlerFunc(nil) // New finds it
	}
	return HandlerFunc(func(ctx context.Context, msg Message) error {
		value, err := decode(ctx, msg)
		if err != nil {
			return err
		}
		return handle(ctx, value, msg)
	})
}

// JSON makes a [Handler] of a function that takes the message's value decoded
// from JSON. A value that does not decode is [Permanent] and is reported with
// topic, partition and offset, never with its content. For a record without a
// value (a tombstone) handle gets the zero T and msg.Value == nil.
func JSON[T any](handle func(ctx context.Context, value T, msg Message) error) Handler {
	return Typed(decodeJSON[T], handle)
}

func decodeJSON[T any](_ context.Context, msg Message) (value T, err error) {
	if msg.Value == nil {
		return value, nil
	}
	if err := json.Unmarshal(msg.Value, &value); err != nil {
		return value, Permanent(fmt.Errorf("decode JSON of %s/%d at %d: %w", msg.Topic, msg.Partition, msg.Offset, &jsonError{err}))
	}
	return value, nil
}

// A jsonError says what is wrong without a word of the value, which the errors of
// encoding/json quote: it ends up in logs.
type jsonError struct{ err error }

func (e *jsonError) Error() string {
	var syntax *json.SyntaxError
	var mismatch *json.UnmarshalTypeError
	switch {
	case errors.As(e.err, &syntax):
		return fmt.Sprintf("not JSON at byte %d", syntax.Offset)
	case errors.As(e.err, &mismatch):
		kind, _, _ := strings.Cut(mismatch.Value, " ")
		return fmt.Sprintf("a JSON %s at byte %d does not fit %s %s", kind, mismatch.Offset, mismatch.Field, mismatch.Type)
	default:
		return fmt.Sprintf("refused by %T", e.err)
	}
}

func (e *jsonError) Unwrap() error { return e.err }

// handle makes one attempt. It is the only place that recovers: all of a user's
// code that decides about a message runs below it. (A pointer, because a Message is
// large: the handler's own copy is enough.)
func handle(ctx context.Context, call HandlerFunc, msg *Message) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return call(ctx, *msg)
}
