//go:build unix

package main

// franz-go with the commits that its documentation recommends most: its own.

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"
)

func joinFranz(ctx context.Context, j job, m *meter) (leave func() error, err error) {
	session, heartbeat := j.timeouts()
	opts := []kgo.Opt{
		kgo.SeedBrokers(j.Brokers...),
		kgo.ConsumerGroup(j.Group),
		kgo.ConsumeTopics(j.Topic.Name),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.AutoCommitInterval(commitInterval),
		kgo.SessionTimeout(session),
		kgo.HeartbeatInterval(heartbeat),
	}
	if j.CA != "" {
		trust, err := trusting(j.CA)
		if err != nil {
			return nil, err
		}
		opts = append(opts, kgo.DialTLSConfig(trust))
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, err
	}
	end := running(ctx, func(ctx context.Context) error {
		for ctx.Err() == nil {
			fetches := client.PollFetches(ctx)
			fetches.EachError(func(_ string, _ int32, err error) {
				if ctx.Err() == nil {
					complain(err)
				}
			})
			fetches.EachPartition(func(p kgo.FetchTopicPartition) {
				for _, r := range p.Records {
					m.handle(p.Partition, r.Key, r.Value)
				}
			})
		}
		return nil
	})
	return func() error {
		defer client.Close()
		if err := end(); err != nil {
			return err
		}
		// "When your client shuts down, you should issue one final synchronous commit":
		// its last poll is not committed otherwise.
		return client.CommitUncommittedOffsets(context.WithoutCancel(ctx))
	}, nil
}
