//go:build unix

package main

// segmentio's kafka-go: one goroutine for all partitions, and commits that are made
// "periodically … for improved performance".

import (
	"context"
	"errors"
	"time"

	"github.com/segmentio/kafka-go"
)

func joinKafkaGo(ctx context.Context, j job, m *meter) (leave func() error, err error) {
	dialer := &kafka.Dialer{Timeout: 10 * time.Second, DualStack: true} // its DefaultDialer
	if j.CA != "" {
		if dialer.TLS, err = trusting(j.CA); err != nil {
			return nil, err
		}
	}
	session, heartbeat := j.timeouts()
	r := kafka.NewReader(kafka.ReaderConfig{
		Brokers:           j.Brokers,
		GroupID:           j.Group,
		Topic:             j.Topic.Name,
		StartOffset:       kafka.FirstOffset,
		Dialer:            dialer,
		QueueCapacity:     kafkaGoQueue,
		MaxBytes:          10e6, // as in its README
		CommitInterval:    commitInterval,
		SessionTimeout:    session,
		HeartbeatInterval: heartbeat,
		ErrorLogger:       kafka.LoggerFunc(func(string, ...any) {}),
	})
	end := running(ctx, func(ctx context.Context) error {
		for {
			msg, err := r.FetchMessage(ctx)
			if err != nil {
				return err
			}
			m.handle(int32(msg.Partition), msg.Key, msg.Value)
			if err := r.CommitMessages(ctx, msg); err != nil {
				return err
			}
		}
	})
	return func() error {
		err := end()
		if errors.Is(err, context.Canceled) {
			err = nil
		}
		return errors.Join(err, r.Close())
	}, nil
}

// kafkaGoQueue is more than the default of 100, with which it read half as much; 10000
// was no better.
const kafkaGoQueue = 1000
