package kgroup_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/kgroup-go/kgroup"
)

// declined is an error of the service's own.
type declined struct{ reason string }

func (e *declined) Error() string { return "declined: " + e.reason }

// Which errors are the message's fault is decided in one place: such a message becomes a
// dead letter at once, or is held where the topic has none. All others are tried again.
func ExampleMiddleware_permanent() {
	judge := func(next kgroup.Handler) kgroup.Handler {
		return kgroup.HandlerFunc(func(ctx context.Context, msg kgroup.Message) error {
			err := next.Handle(ctx, msg)
			if fault := (*declined)(nil); errors.As(err, &fault) {
				fmt.Println("permanent:", err)
				return kgroup.Permanent(err)
			}
			return err
		})
	}
	handler := kgroup.Chain(kgroup.HandlerFunc(func(context.Context, kgroup.Message) error {
		return fmt.Errorf("charge A-7: %w", &declined{"card has expired"})
	}), judge)

	err := handler.Handle(context.Background(), kgroup.Message{})
	fmt.Println(errors.As(err, new(*declined))) // it is still the same error
	// Output:
	// permanent: charge A-7: declined: card has expired
	// true
}
