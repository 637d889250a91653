//go:build unix

package main

// watermill-kafka on watermill's router, with one handler.

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/ThreeDotsLabs/watermill"
	wmkafka "github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
)

func joinWatermill(ctx context.Context, j job, m *meter) (leave func() error, err error) {
	cfg, err := j.sarama(wmkafka.DefaultSaramaSubscriberConfig())
	if err != nil {
		return nil, err
	}
	logger := watermill.NewSlogLogger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	subscriber, err := wmkafka.NewSubscriber(wmkafka.SubscriberConfig{
		Brokers:               j.Brokers,
		Unmarshaler:           wmkafka.DefaultMarshaler{},
		OverwriteSaramaConfig: cfg,
		ConsumerGroup:         j.Group,
	}, logger)
	if err != nil {
		return nil, err
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return nil, errors.Join(err, subscriber.Close())
	}
	router.AddConsumerHandler("bench", j.Topic.Name, subscriber, func(msg *message.Message) error { //nolint:contextcheck // it comes with the message
		partition, _ := wmkafka.MessagePartitionFromCtx(msg.Context())
		key, _ := wmkafka.MessageKeyFromCtx(msg.Context())
		m.handle(partition, key, msg.Payload)
		return nil
	})
	return running(ctx, router.Run), nil // it closes the subscriber
}
