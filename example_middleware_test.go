package kgroup_test

// Middlewares to copy. Each is a few lines, for one thing that kgroup leaves to the
// service. Examples that need more than a function are in files of their own, which
// their readers see whole.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/kgroup-go/kgroup"
)

// A limit for each attempt, of some handlers or of a part of one. (For all of a topic
// there is Topic.Timeout.) The handler must look at its context, as everything that does
// I/O does; the error that it returns is a failed attempt like any other.
func ExampleMiddleware_timeout() {
	timeout := func(d time.Duration) kgroup.Middleware {
		return func(next kgroup.Handler) kgroup.Handler {
			return kgroup.HandlerFunc(func(ctx context.Context, msg kgroup.Message) error {
				ctx, cancel := context.WithTimeoutCause(ctx, d, fmt.Errorf("not handled within %v", d))
				defer cancel()
				return next.Handle(ctx, msg)
			})
		}
	}
	handler := kgroup.Chain(kgroup.HandlerFunc(func(ctx context.Context, _ kgroup.Message) error {
		<-ctx.Done() // a database that does not answer
		return context.Cause(ctx)
	}), timeout(10*time.Millisecond))

	fmt.Println(handler.Handle(context.Background(), kgroup.Message{}))
	// Output:
	// not handled within 10ms
}

// Where a message is, and what became of it, but never its key, value or headers: logs are
// read by more people than topics are. (An error can quote what it could not understand;
// then log its type.) kgroup itself logs attempts that fail.
func ExampleMiddleware_log() {
	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: withoutTime}))
	logged := func(next kgroup.Handler) kgroup.Handler {
		return kgroup.HandlerFunc(func(ctx context.Context, msg kgroup.Message) error {
			began := time.Now()
			err := next.Handle(ctx, msg)
			logger.InfoContext(ctx, "handled", "topic", msg.Topic, "partition", msg.Partition, "offset", msg.Offset, "attempt", msg.Attempt,
				"bytes", len(msg.Value), "took", time.Since(began), "error", err)
			return err
		})
	}
	handler := kgroup.Chain(kgroup.HandlerFunc(func(context.Context, kgroup.Message) error {
		return errors.New("no connection")
	}), logged)

	_ = handler.Handle(context.Background(), kgroup.Message{Topic: "orders", Partition: 1, Offset: 7, Attempt: 2, Value: []byte("secret")})
	// Output:
	// level=INFO msg=handled topic=orders partition=1 offset=7 attempt=2 bytes=6 error="no connection"
}

// withoutTime leaves out what differs from run to run.
func withoutTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey || a.Key == "took" {
		return slog.Attr{}
	}
	return a
}

// Returning nil is how a message is given up. The log line is all that is left of it, so
// it says where the message was; until the topic's retention ends it can be read there.
func ExampleMiddleware_drop() {
	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: withoutTime}))
	errUnknown := errors.New("unknown customer")
	drop := func(next kgroup.Handler) kgroup.Handler {
		return kgroup.HandlerFunc(func(ctx context.Context, msg kgroup.Message) error {
			err := next.Handle(ctx, msg)
			if !errors.Is(err, errUnknown) {
				return err
			}
			logger.ErrorContext(ctx, "message dropped", "topic", msg.Topic, "partition", msg.Partition, "offset", msg.Offset, "error", err)
			return nil
		})
	}
	handler := kgroup.Chain(kgroup.HandlerFunc(func(context.Context, kgroup.Message) error {
		return errUnknown
	}), drop)

	fmt.Println(handler.Handle(context.Background(), kgroup.Message{Topic: "orders", Partition: 1, Offset: 7}))
	// Output:
	// level=ERROR msg="message dropped" topic=orders partition=1 offset=7 error="unknown customer"
	// <nil>
}
