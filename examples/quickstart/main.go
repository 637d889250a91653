// Quickstart is a whole service: two topics, a handler for each, and a clean end on
// Ctrl-C. An offset is committed only after its handler has returned nil.
//
//	go run ./examples/quickstart
//
// It brings its own broker and sample orders, and ends by itself when all of them
// have been handled. KAFKA_BROKERS=host:port runs it on a cluster of yours.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/examples/internal/sandbox"
)

// An Order is the value of a message of the topic "orders".
type Order struct {
	ID       int    `json:"id"`
	Customer string `json:"customer"`
	Cents    int    `json:"cents"`
}

// A Refund is the value of a message of the topic "refunds".
type Refund struct {
	Order int `json:"order"`
	Cents int `json:"cents"`
}

func charge(_ context.Context, order Order, _ kgroup.Message) error {
	fmt.Printf("charged %s %d cents for order %d\n", order.Customer, order.Cents, order.ID)
	return nil // an error would have it handled again, and hold up its partition until then
}

func refund(_ context.Context, refund Refund, _ kgroup.Message) error {
	fmt.Printf("refunded %d cents of order %d\n", refund.Cents, refund.Order)
	return nil
}

func run() (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	kafka, err := sandbox.Start(ctx, "quickstart", sandbox.Topics{"orders": 2, "refunds": 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kafka.Close(ctx)) }()
	if err := produceSamples(ctx, kafka); err != nil {
		return err
	}

	consumer, err := kgroup.New(kgroup.Config{
		Brokers: kafka.Brokers,
		Group:   kafka.Group("billing"),
		Topics: kgroup.Topics{
			kafka.Topic("orders"):  {Handler: kgroup.JSON(charge)},
			kafka.Topic("refunds"): {Handler: kgroup.JSON(refund)},
		},
		Hooks: kgroup.Hooks{Commit: kafka.WhenCommitted(stop)}, // a service has no end of its own
	})
	if err != nil {
		return err
	}
	return consumer.Run(ctx)
}

func produceSamples(ctx context.Context, kafka *sandbox.Kafka) error {
	return errors.Join(
		kafka.Produce(ctx, "orders",
			Order{ID: 1, Customer: "ada", Cents: 1999},
			Order{ID: 2, Customer: "grace", Cents: 450},
			Order{ID: 3, Customer: "ada", Cents: 1250},
			Order{ID: 4, Customer: "edsger", Cents: 99900},
			Order{ID: 5, Customer: "grace", Cents: 700},
		),
		kafka.Produce(ctx, "refunds",
			Refund{Order: 2, Cents: 450},
			Refund{Order: 4, Cents: 9900},
		),
	)
}

func main() {
	slog.SetLogLoggerLevel(slog.LevelWarn) // kgroup tells at Info when it joins, rebalances and stops
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("stopped: everything that was handled has been committed")
}
