//go:build unix

package main

// The consumer group of IBM's sarama, as in its example: a goroutine per partition.

import (
	"context"
	"errors"
	"sync"

	"github.com/IBM/sarama"
)

func joinSarama(ctx context.Context, j job, m *meter) (leave func() error, err error) {
	cfg, err := j.sarama(sarama.NewConfig())
	if err != nil {
		return nil, err
	}
	group, err := sarama.NewConsumerGroup(j.Brokers, j.Group, cfg)
	if err != nil {
		return nil, err
	}
	var errs sync.WaitGroup
	errs.Go(func() {
		for err := range group.Errors() {
			complain(err)
		}
	})
	end := running(ctx, func(ctx context.Context) error {
		for ctx.Err() == nil {
			if err := group.Consume(ctx, []string{j.Topic.Name}, claims{m}); err != nil && ctx.Err() == nil {
				return err
			}
		}
		return nil
	})
	return func() error {
		err := end()
		err = errors.Join(err, group.Close())
		errs.Wait()
		return err
	}, nil
}

// sarama changes what all contenders have in common, and where a new group begins.
func (j job) sarama(cfg *sarama.Config) (*sarama.Config, error) {
	cfg.Consumer.Return.Errors = true
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	cfg.Consumer.Offsets.AutoCommit.Interval = commitInterval
	cfg.Consumer.Group.Session.Timeout, cfg.Consumer.Group.Heartbeat.Interval = j.timeouts()
	var err error
	if j.CA != "" {
		cfg.Net.TLS.Enable = true
		cfg.Net.TLS.Config, err = trusting(j.CA)
	}
	return cfg, err
}

// claims is sarama's handler.
type claims struct{ m *meter }

func (claims) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (claims) Cleanup(sarama.ConsumerGroupSession) error { return nil }

func (c claims) ConsumeClaim(s sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for msg := range claim.Messages() {
		c.m.handle(msg.Partition, msg.Key, msg.Value)
		s.MarkMessage(msg, "")
	}
	return nil
}
