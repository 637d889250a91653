//go:build unix

package main

// A member that joins and leaves a contender's group again and again.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/e2e/kafka"
)

// shortHeartbeat is kgroup's with the shortest session that it takes.
const shortHeartbeat = 300 * time.Millisecond

// whileDisturbing runs a contender whose group is rebalanced, twice by each member that
// comes and goes, and tells it when there have been as many as counts says.
func whileDisturbing(ctx context.Context, b *broker, j job, counts []int, run runner) error {
	admin, err := kafka.NewAdmin(nil, b.fill...)
	if err != nil {
		return err
	}
	defer admin.Close()
	stdin, tell := io.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var disturbed error
	var disturber sync.WaitGroup
	disturber.Go(func() {
		disturbed = disturb(ctx, admin, j, counts, tell)
		tell.Close()
		if disturbed != nil {
			cancel()
		}
	})
	err = run(ctx, stdin)
	cancel()
	stdin.Close() // nobody reads it any more
	disturber.Wait()
	if disturbed != nil {
		return errors.Join(disturbed, err)
	}
	return err
}

func disturb(ctx context.Context, admin *kafka.Admin, j job, counts []int, tell io.Writer) error {
	if err := alone(ctx, admin, j); err != nil {
		return fmt.Errorf("before the first rebalance: %w", err)
	}
	n := 0
	for _, count := range counts {
		for ; n < count; n += 2 {
			if err := comeAndGo(ctx, j); err != nil {
				return fmt.Errorf("after %d rebalances: %w", n, err)
			}
			if err := alone(ctx, admin, j); err != nil {
				return fmt.Errorf("after %d rebalances: %w", n+1, err)
			}
		}
		if _, err := fmt.Fprintln(tell, n); err != nil {
			return err
		}
		// The contender looks at itself meanwhile.
		if err := pause(ctx, 2*time.Second); err != nil {
			return err
		}
	}
	return nil
}

// changeWithin is how long a rebalance may take.
const changeWithin = 30 * time.Second

// comeAndGo joins the group and leaves it when it has partitions. It is kgroup, because
// sarama-cluster cannot read what newer clients say when they join.
func comeAndGo(ctx context.Context, j job) error {
	ctx, cancel := context.WithTimeoutCause(ctx, changeWithin, fmt.Errorf("no partitions within %v", changeWithin))
	defer cancel()
	assigned := make(chan struct{}, 1)
	cfg := j.config(nothing)
	cfg.Logger = slog.New(slog.DiscardHandler) // it goes in the middle of everything
	cfg.Hooks.RebalanceCompleted = func(r kgroup.Rebalance) {
		if len(r.Current) > 0 {
			select {
			case assigned <- struct{}{}:
			default:
			}
		}
	}
	c, err := j.consumer(cfg)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	select {
	case <-assigned:
		cancel()
		return <-ended
	case err := <-ended:
		return errors.Join(context.Cause(ctx), err)
	}
}

// alone waits until the contender has all partitions.
func alone(ctx context.Context, admin *kafka.Admin, j job) error {
	var last error
	ok, err := until(ctx, changeWithin, func() bool {
		g, err := admin.DescribeGroup(ctx, j.Group)
		last = err
		return err == nil && g.State == "Stable" && len(g.Members) == 1 && len(g.Members[0].Assigned[j.Topic.Name]) == j.Topic.Partitions
	})
	if !ok {
		return errors.Join(fmt.Errorf("the contender does not have all partitions within %v", changeWithin), err, last)
	}
	return nil
}
