package main

// What the program shows without a cluster: orders become letters because of a mistake
// in a service, which is mended; then they are replayed, and handled.

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/examples/internal/sandbox"
)

// An Order is the value of a message of the topic "orders".
type Order struct {
	ID    int `json:"id"`
	Cents int `json:"cents"`
}

func demonstrate(ctx context.Context, _ []string, c console) (err error) {
	kafka, err := sandbox.Start(ctx, "redrive", sandbox.Topics{"orders": 2, "orders.dlq": 2})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kafka.Close(ctx)) }()
	err = kafka.Produce(ctx, "orders", Order{ID: 1, Cents: 1999}, Order{ID: 2, Cents: 0}, Order{ID: 3, Cents: 0}, Order{ID: 4, Cents: 450})
	if err != nil {
		return err
	}
	c.say("-- a service that cannot handle free orders")
	if err := serve(ctx, c, kafka, 4, func(_ context.Context, o Order, _ kgroup.Message) error {
		if o.Cents == 0 {
			return kgroup.Permanent(errors.New("divided by zero"))
		}
		return nil
	}); err != nil {
		return err
	}
	redrive := func(args ...string) error {
		c.say("%s", strings.Join(append([]string{"-- redrive"}, args...), " "))
		return run(ctx, append([]string{"-brokers", kafka.Brokers[0], "-topic", kafka.Topic("orders.dlq")}, args...), c)
	}
	if err := errors.Join(redrive(), redrive("-replay")); err != nil {
		return err
	}
	c.say("-- the service, mended")
	if err := serve(ctx, c, kafka, 2, func(_ context.Context, o Order, msg kgroup.Message) error {
		letter, _, _ := strings.Cut(text(msg, letterHeader), "@")
		c.say("order %d is free; it was the letter %s", o.ID, letter)
		return nil
	}); err != nil {
		return err
	}
	return redrive("-replay")
}

// serve handles so many orders, or makes letters of them.
func serve(ctx context.Context, c console, kafka *sandbox.Kafka, orders int64, handle func(context.Context, Order, kgroup.Message) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var settled atomic.Int64
	settle := func() {
		if settled.Add(1) == orders {
			stop()
		}
	}
	consumer, err := kgroup.New(kgroup.Config{
		Brokers: kafka.Brokers,
		Group:   kafka.Group("billing"),
		Topics: kgroup.Topics{kafka.Topic("orders"): {
			Handler: kgroup.JSON(func(ctx context.Context, o Order, msg kgroup.Message) error {
				err := handle(ctx, o, msg)
				if err == nil {
					settle()
				}
				return err
			}),
			DeadLetter: kafka.Topic("orders.dlq"),
		}},
		Logger: slog.New(slog.DiscardHandler), // the hook says it
		Hooks: kgroup.Hooks{DeadLetter: func(err *kgroup.HandlerError) {
			c.say("a letter: %v", err)
			settle()
		}},
	})
	if err != nil {
		return err
	}
	return consumer.Run(ctx)
}
