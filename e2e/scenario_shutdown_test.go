package e2e

// Run's context is cancelled at a bad moment.

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup"
)

// leaving is how long a member without work may take to leave, whatever the others
// do; slack is for a machine that has other things to do.
const (
	leaving = 2 * time.Second
	slack   = 2 * time.Second
)

// Handlers at work are waited for, and what they have done is committed.
func shutdownInFlight(e *env) {
	const busy = 700 * time.Millisecond
	topic := e.topic(4)
	e.produce(topic, 40)
	var started atomic.Int64
	a := e.start("a", on(topic, func(ctx context.Context, _ kgroup.Message) error {
		started.Add(1)
		return work(ctx, busy)
	}))
	e.reaches(4, "handlers at work", &started)
	took := a.stop()
	assert.Less(e.t, took, busy+leaving+slack)
	assert.Equal(e.t, started.Load(), a.settled.Load(), "handlers that returned nil")
	e.start("b", on(topic, quick))
	e.awaitCommitted()
}

// A message that cannot be handled yet is left to the next owner of its partition:
// nobody waits for its backoff.
func shutdownInBackoff(e *env) {
	topic := e.topic(1)
	e.produce(topic, 10)
	broken := errors.New("the database is down")
	a := e.start("a", kgroup.Topics{topic: {
		Handler: kgroup.HandlerFunc(func(_ context.Context, msg kgroup.Message) error {
			if msg.Offset == 5 {
				return kgroup.Permanent(broken)
			}
			return nil
		}),
		Retry: kgroup.Retry{MaxBackoff: time.Minute},
	}})
	e.until("a message to be held", func() error {
		if got := a.consumer.Health().Err(); !errors.Is(got, broken) {
			return fmt.Errorf("the member says %w", got)
		}
		return nil
	})
	assert.Less(e.t, a.stop(), leaving+slack)
	e.start("b", on(topic, quick))
	e.awaitCommitted()
}

// A member is stopped while its JoinGroup waits for the drain of another one. It
// leaves at once, and the group does not keep partitions for it.
func shutdownWhileOthersDrain(e *env) {
	topic := e.topic(4)
	hold := newBrake()
	e.start("a", on(topic, hold.handle), longSession)
	b := e.start("b", on(topic, quick), longSession)
	e.awaitMembers("a", "b")
	b.owns(2)
	e.produce(topic, 40)
	hold.awaitHandlers(e, 2)
	e.start("c", on(topic, quick), longSession) // begins a rebalance, in which a drains
	e.until("b to have given up its partitions", func() error {
		if h := b.consumer.Health(); h.State != kgroup.Rebalancing || len(h.Lanes) > 0 {
			return fmt.Errorf("it is %v, with %d partitions", h.State, len(h.Lanes))
		}
		return nil
	})
	took := b.stop()
	e.t.Logf("leaving took %v", took)
	assert.Less(e.t, took, leaving+slack)
	hold.release()
	began := time.Now()
	e.awaitMembers("a", "c")
	assert.Less(e.t, time.Since(began), 10*time.Second, "the group waits for a member that is gone")
	e.awaitCommitted()
}

// The same for a member that joins for the first time: it was given its id before the
// wait, so it can take its JoinGroup back.
func shutdownOfNewcomer(e *env) {
	topic := e.topic(4)
	e.produce(topic, 40)
	hold := newBrake()
	a := e.start("a", on(topic, hold.handle), longSession)
	hold.awaitHandlers(e, 4)
	b := e.start("b", on(topic, quick), longSession)
	e.until("the group to wait for a", func() error {
		g, err := e.admin.DescribeGroup(e.ctx, e.group)
		if err == nil && (g.State != "PreparingRebalance" || len(g.Members) != 2) {
			err = fmt.Errorf("it is %s, of %d", g.State, len(g.Members))
		}
		return err
	})
	took := b.stop()
	e.t.Logf("leaving took %v", took)
	assert.Less(e.t, took, leaving+slack)
	g, err := e.admin.DescribeGroup(e.ctx, e.group)
	require.NoError(e.t, err)
	assert.Len(e.t, g.Members, 1, "a ghost is left")
	hold.release()
	began := time.Now()
	e.awaitMembers("a")
	assert.Less(e.t, time.Since(began), 10*time.Second, "the group waits for a member that is gone")
	a.owns(4)
	e.awaitCommitted()
}

// A handler that ignores its cancelled context is named by the error of Run, which
// returns in time without it.
func shutdownTimeout(e *env) {
	topic := e.topic(1)
	e.produce(topic, 10)
	release := make(chan struct{})
	cancelled := make(chan error, 1)
	a := e.start("a", on(topic, func(ctx context.Context, msg kgroup.Message) error {
		if msg.Offset < 5 {
			return nil
		}
		<-ctx.Done()
		cancelled <- context.Cause(ctx)
		<-release
		return nil
	}), func(c *kgroup.Config) { c.ShutdownTimeout = 2 * time.Second })
	a.handled(5)
	took, err := a.end()
	assert.Less(e.t, took, 2*time.Second+slack)
	require.ErrorContains(e.t, err, topic+"/0")
	require.ErrorIs(e.t, receive(e, "the cause", cancelled), kgroup.ErrShutdownTimeout)
	e.history.Outlived("a", topic, 0)
	e.start("b", on(topic, quick))
	e.awaitCommitted()
	close(release)
}
