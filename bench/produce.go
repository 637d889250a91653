//go:build unix

package main

// A topic that is written to while a contender runs.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/kgroup-go/kgroup/e2e/kafka"
)

// whileProducing creates a topic, writes a message to it at each interval, to one
// partition after the other, until f returns, and deletes the topic.
func whileProducing(ctx context.Context, b *broker, t topic, every time.Duration, f func(context.Context) error) (err error) {
	admin, err := kafka.NewAdmin(nil, b.fill...)
	if err != nil {
		return err
	}
	defer admin.Close()
	if err := admin.CreateTopic(ctx, t.Name, int32(t.Partitions), 1, nil); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, admin.DeleteTopic(context.WithoutCancel(ctx), t.Name)) }()
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0),
		kgo.RecordDeliveryTimeout(time.Minute),
	}, b.fill...)...)
	if err != nil {
		return err
	}
	defer client.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	stop := running(ctx, func(ctx context.Context) error { return produce(ctx, client, t, every, cancel) })
	err = f(ctx)
	if ctx.Err() != nil {
		err = errors.Join(err, context.Cause(ctx))
	}
	return errors.Join(err, stop())
}

// produce writes until ctx ends. A tick that came late is made up for. What cannot be
// written is given to failed.
func produce(ctx context.Context, client *kgo.Client, t topic, every time.Duration, failed context.CancelCauseFunc) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	began := time.Now()
	var n uint64
	for {
		select {
		case <-ctx.Done():
			return client.Flush(context.WithoutCancel(ctx))
		case <-ticker.C:
		}
		for due := uint64(time.Since(began) / every); n < due; n++ {
			r := &kgo.Record{Topic: t.Name, Partition: int32(n % uint64(t.Partitions)), Value: stamp(n, time.Now())}
			client.Produce(context.WithoutCancel(ctx), r, func(_ *kgo.Record, err error) {
				if err != nil {
					failed(fmt.Errorf("write to %s: %w", t.Name, err))
				}
			})
		}
	}
}
