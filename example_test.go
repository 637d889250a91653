package kgroup_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/kgroup-go/kgroup"
)

type payment struct {
	Order  string
	Amount int
}

func ExampleJSON() {
	charge := func(_ context.Context, p payment, msg kgroup.Message) error {
		if msg.Value == nil { // a tombstone: the key was deleted
			fmt.Printf("forget %s\n", msg.Key)
			return nil
		}
		fmt.Printf("charge %d for %s\n", p.Amount, p.Order)
		return nil
	}
	handler := kgroup.JSON(charge)

	// A Consumer makes these calls. Anything can: a handler needs no broker.
	ctx := context.Background()
	_ = handler.Handle(ctx, kgroup.Message{Value: []byte(`{"Order": "A-7", "Amount": 12}`)})
	_ = handler.Handle(ctx, kgroup.Message{Key: []byte("A-7")})
	err := handler.Handle(ctx, kgroup.Message{Topic: "payments", Partition: 3, Offset: 42, Value: []byte("A-8, 15")})
	fmt.Println(err != nil)
	// Output:
	// charge 12 for A-7
	// forget A-7
	// true
}

// A decoder of one's own says which of its errors are the message's fault.
func ExampleTyped() {
	decode := func(_ context.Context, msg kgroup.Message) (int, error) {
		n, err := strconv.Atoi(string(msg.Value))
		if err != nil {
			return 0, kgroup.Permanent(errors.New("not a number")) // it will not become one
		}
		return n, nil
	}
	handler := kgroup.Typed(decode, func(_ context.Context, n int, msg kgroup.Message) error {
		fmt.Println("count", n)
		return nil
	})

	ctx := context.Background()
	fmt.Println(handler.Handle(ctx, kgroup.Message{Value: []byte("12")}))
	fmt.Println(handler.Handle(ctx, kgroup.Message{Value: []byte("twelve")}))
	// Output:
	// count 12
	// <nil>
	// not a number
}

// The first middleware is the outermost. This one drops what nobody can handle:
// returning nil is how a message is given up.
func ExampleChain() {
	logged := func(next kgroup.Handler) kgroup.Handler {
		return kgroup.HandlerFunc(func(ctx context.Context, msg kgroup.Message) error {
			err := next.Handle(ctx, msg)
			fmt.Printf("%s/%d at %d: %v\n", msg.Topic, msg.Partition, msg.Offset, err)
			return err
		})
	}
	errUnknown := errors.New("unknown customer")
	dropUnknown := func(next kgroup.Handler) kgroup.Handler {
		return kgroup.HandlerFunc(func(ctx context.Context, msg kgroup.Message) error {
			if err := next.Handle(ctx, msg); !errors.Is(err, errUnknown) {
				return err
			}
			fmt.Println("dropped")
			return nil
		})
	}
	handler := kgroup.Chain(kgroup.HandlerFunc(func(context.Context, kgroup.Message) error {
		return errUnknown
	}), logged, dropUnknown)

	_ = handler.Handle(context.Background(), kgroup.Message{Topic: "orders", Partition: 1, Offset: 7})
	// Output:
	// dropped
	// orders/1 at 7: <nil>
}

// Trying such a message again soon is useless: it is held, reported, and tried at a
// steady pace until somebody has mended what is wrong.
func ExamplePermanent() {
	errClosed := errors.New("account is closed")
	err := fmt.Errorf("charge A-7: %w", kgroup.Permanent(errClosed))
	fmt.Println(err)
	fmt.Println(errors.Is(err, errClosed))
	fmt.Println(kgroup.Permanent(nil))
	// Output:
	// charge A-7: account is closed
	// true
	// <nil>
}

func ExampleHandlerFunc() {
	handler := kgroup.HandlerFunc(func(_ context.Context, msg kgroup.Message) error {
		trace, _ := msg.Header("trace")
		fmt.Printf("%s = %s (trace %s, attempt %d)\n", msg.Key, msg.Value, trace, msg.Attempt)
		return nil // settled: it is not delivered again
	})

	_ = handler.Handle(context.Background(), kgroup.Message{
		Key:     []byte("A-7"),
		Value:   []byte("shipped"),
		Headers: []kgroup.Header{{Key: "trace", Value: []byte("9f2c")}},
		Attempt: 1,
	})
	// Output:
	// A-7 = shipped (trace 9f2c, attempt 1)
}

// Every mistake is reported at once, each with the field it is in.
func ExampleConfig_Validate() {
	err := kgroup.Config{
		Brokers:         []string{"kafka-1"},
		Topics:          kgroup.Topics{"orders": {}},
		ShutdownTimeout: 25,
	}.Validate()
	for _, err := range err.(interface{ Unwrap() []error }).Unwrap() {
		var mistake *kgroup.ConfigError
		if errors.As(err, &mistake) {
			fmt.Println(mistake.Field)
		}
	}
	// Output:
	// Brokers[0]
	// Group
	// Topics["orders"].Handler
	// ShutdownTimeout
}
