package e2e

// Handlers that fail, that do not return, that are slow.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup"
)

// A message is handled again until its handler returns nil, and the later ones of
// its partition wait.
func retries(e *env) {
	topic := e.topic(2)
	e.produce(topic, 40)
	var mu sync.Mutex
	attempts := map[int64][]int{} // of partition 1
	e.start("a", kgroup.Topics{topic: {
		Handler: kgroup.HandlerFunc(func(_ context.Context, msg kgroup.Message) error {
			if msg.Partition == 0 {
				return nil
			}
			mu.Lock()
			attempts[msg.Offset] = append(attempts[msg.Offset], msg.Attempt)
			mu.Unlock()
			switch {
			case msg.Offset == 5 && msg.Attempt <= 2:
				return errors.New("not yet")
			case msg.Offset == 10 && msg.Attempt <= 2:
				panic("not yet")
			default:
				return nil
			}
		}),
		Retry: kgroup.Retry{MinBackoff: time.Millisecond, MaxBackoff: 100 * time.Millisecond},
	}})
	e.awaitCommitted()
	mu.Lock()
	defer mu.Unlock()
	for offset := range int64(20) {
		want := []int{1}
		if offset == 5 || offset == 10 {
			want = []int{1, 2, 3}
		}
		assert.Equal(e.t, want, attempts[offset], "attempts at %d", offset)
	}
}

// A partition is taken from a member whose handler ignores its cancelled context.
// The next owner handles the message; when the partition comes back, nothing of it
// is handled here before that handler has returned.
func orphan(e *env) {
	topic := e.topic(1)
	release := make(chan struct{})
	stuck := make(chan context.Context, 1)
	var late atomic.Int64
	b := e.start("b", on(topic, func(ctx context.Context, msg kgroup.Message) error {
		if msg.Offset == 10 {
			stuck <- ctx
			<-release
			return nil
		}
		select {
		case <-release:
		default:
			late.Add(1)
		}
		return nil
	}), func(c *kgroup.Config) {
		c.RebalanceTimeout = 6 * time.Second // the group waits so long for it
		c.Hooks.Lost = func(topic string, p int32, _ int64, _ error) { e.history.Outlived("b", topic, p) }
	})
	e.produce(topic, 20)
	ctx := receive(e, "the handler that gets stuck", stuck)
	before := late.Load()

	a := e.start("a", on(topic, quick)) // comes first in the alphabet, and gets the partition
	a.handled(10)
	require.ErrorIs(e.t, context.Cause(ctx), kgroup.ErrPartitionLost)
	assert.Equal(e.t, []string{topic + "/0"}, b.consumer.Health().Stuck)
	a.stop()
	b.owns(1)

	e.produce(topic, 20)
	e.until("b to have fetched what is new", func() error {
		if at := b.consumer.Health().Lanes[0].Position; at < 40 {
			return fmt.Errorf("it is at %d", at)
		}
		return nil
	})
	assert.Error(e.t, b.consumer.Health().Err())
	assert.Equal(e.t, before, late.Load(), "messages handled beside the handler that had not returned")
	close(release)
	e.awaitCommitted()
}

// A lane that cannot keep up shares its broker with a quick one. With Partitions the
// quick one does not notice; with Multiplex it waits, and Health says for whom.
func slowLane(e *env) {
	slow, fast := e.topic(1), e.topic(1)
	e.produce(slow, 3000)
	var hurry atomic.Bool
	var mu sync.Mutex
	var worst time.Duration
	a := e.start("a", kgroup.Topics{
		slow: {Queue: 16, Handler: kgroup.HandlerFunc(func(ctx context.Context, _ kgroup.Message) error {
			if hurry.Load() {
				return nil
			}
			return work(ctx, 10*time.Millisecond)
		})},
		fast: {Handler: kgroup.HandlerFunc(func(_ context.Context, msg kgroup.Message) error {
			mu.Lock()
			defer mu.Unlock()
			worst = max(worst, time.Since(msg.Timestamp))
			return nil
		})},
	})
	a.handled(1)
	if e.mode == kgroup.Multiplex {
		e.until("Health to name the slow lane", func() error {
			if p := a.consumer.Health().Holding; p != slow+"/0" {
				return fmt.Errorf("it names %q", p)
			}
			return nil
		})
	} else {
		load := e.load(fast, 100)
		load.stop(100)
		e.awaitCommitted(fast)
		// Without back-pressure it has to wait until all that was fetched of the slow one
		// has been taken, which is but for what the queues hold.
		assert.Less(e.t, e.committed(slow)[0], int64(1500), "the quick lane has waited for the slow one")
		mu.Lock()
		e.t.Logf("worst delay in the quick lane: %v", worst.Round(time.Millisecond)) // see bench
		mu.Unlock()
	}
	hurry.Store(true)
	e.produce(fast, 100)
	e.awaitCommitted()
	assert.EqualValues(e.t, 1, a.rebalances.Load(), "assignments")
}

// committed are the offsets that the group has committed of a topic.
func (e *env) committed(topic string) map[int32]int64 {
	e.t.Helper()
	all, err := e.admin.CommittedOffsets(e.ctx, e.group)
	require.NoError(e.t, err)
	return all[topic]
}

// Handlers that were quick for thousands of messages, and so were called where they
// were polled, then take their time, one of them over a rebalance. The other lane goes
// on, in Multiplex mode too.
func turnsSlow(e *env) {
	slow, fast := e.topic(1), e.topic(1)
	const before = 20000
	e.produce(slow, before+100)
	e.produce(fast, before)
	began := make(chan struct{})
	var mu sync.Mutex
	var worst time.Duration
	e.start("a", kgroup.Topics{
		slow: {Handler: kgroup.HandlerFunc(func(ctx context.Context, msg kgroup.Message) error {
			switch {
			case msg.Offset == before:
				close(began)
				return work(ctx, 3*time.Second)
			case msg.Offset > before:
				return work(ctx, 10*time.Millisecond)
			default:
				return nil
			}
		})},
		fast: {Handler: kgroup.HandlerFunc(func(_ context.Context, msg kgroup.Message) error {
			if msg.Offset >= before {
				mu.Lock()
				defer mu.Unlock()
				worst = max(worst, time.Since(msg.Timestamp))
			}
			return nil
		})},
	})
	receive(e, "the handler that turns slow", began)
	load := e.load(fast, 100)
	load.stop(100)
	e.awaitCommitted(fast)
	mu.Lock()
	assert.Less(e.t, worst, 2*time.Second, "the quick lane has waited for the slow handler")
	mu.Unlock()
	e.start("b", kgroup.Topics{slow: {Handler: kgroup.HandlerFunc(quick)}, fast: {Handler: kgroup.HandlerFunc(quick)}})
	e.awaitMembers("a", "b")
	e.awaitCommitted()
}
