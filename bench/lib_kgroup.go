//go:build unix

package main

// kgroup with its defaults.

import (
	"context"
	"log/slog"
	"os"

	"github.com/kgroup-go/kgroup"
)

func joinKgroup(ctx context.Context, j job, m *meter) (leave func() error, err error) {
	cfg := j.config(func(_ context.Context, msg kgroup.Message) error {
		m.handle(msg.Partition, msg.Key, msg.Value)
		return nil
	})
	if j.Workers > 0 {
		t := cfg.Topics[j.Topic.Name]
		t.Workers = j.Workers
		cfg.Topics[j.Topic.Name] = t
	}
	c, err := j.consumer(cfg)
	if err != nil {
		return nil, err
	}
	return running(ctx, c.Run), nil
}

// running runs a loop until it is told to leave.
func running(ctx context.Context, loop func(context.Context) error) (leave func() error) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- loop(ctx) }()
	return func() error {
		cancel()
		return <-ended
	}
}

// config is what kgroup and the bare loop begin with. TLS is not in it: each side has it
// as its users do, kgroup in Config.TLS and the bare loop in sarama's Net.TLS, and what
// that costs counts.
func (j job) config(handle kgroup.HandlerFunc) kgroup.Config {
	t := kgroup.Topic{Handler: handle}
	if j.Letters != "" {
		t.DeadLetter, t.Retry.MaxAttempts = j.Letters, 5 // and with them the breaker
	}
	return kgroup.Config{
		Brokers: j.Brokers,
		Group:   j.Group,
		Mode:    j.Mode,

		SessionTimeout: j.Session,
		Topics:         kgroup.Topics{j.Topic.Name: t},
		Logger:         slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

func (j job) consumer(cfg kgroup.Config) (*kgroup.Consumer, error) {
	if j.CA != "" {
		var err error
		if cfg.TLS, err = kgroup.LoadTLS(kgroup.TLSFiles{CA: j.CA}); err != nil {
			return nil, err
		}
	}
	return kgroup.New(cfg)
}

func nothing(context.Context, kgroup.Message) error { return nil }
