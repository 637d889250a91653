package kgroup

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
)

func TestHealthState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		want := func(state State, since time.Duration) {
			t.Helper()
			h := r.consumer.Health()
			assert.Equal(t, state, h.State)
			assert.Equal(t, since, h.Since.Sub(r.start), "since")
			switch state {
			case Idle, Stopped:
				require.ErrorIs(t, h.Err(), ErrNotRunning)
			default:
				require.NoError(t, h.Err())
			}
		}
		h := r.consumer.Health()
		assert.Equal(t, Health{State: Idle}, h)
		require.ErrorIs(t, h.Err(), ErrNotRunning)

		r.run(t.Context())
		r.after(time.Second)
		want(Starting, 0)
		r.engine.assign(at(orders0, 5))
		r.after(time.Second)
		want(Consuming, time.Second)

		r.on = takes(5 * time.Second)
		r.engine.deliver(orders0, 5)
		synctest.Wait()
		drained := begin(func() { r.engine.rebalance(time.Minute, time.Minute) })
		r.after(time.Second)
		want(Rebalancing, 2*time.Second)
		<-drained
		r.after(time.Second)
		want(Rebalancing, 2*time.Second)
		r.engine.assign()
		want(Consuming, 8*time.Second)

		r.engine.rebalance(time.Minute, time.Minute)
		r.receives(orders0, 6)
		r.cancel()
		r.after(time.Second)
		want(Stopping, 8*time.Second)
		<-r.done
		r.after(time.Second)
		want(Stopped, 13*time.Second)
		assert.Empty(t, r.consumer.Health().Lanes)
	})
}

// A member that has lost its session owns nothing until it has joined again.
func TestHealthAfterALoss(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.engine.assign(at(orders0, 5))
		r.after(time.Second)
		r.loses()
		h := r.consumer.Health()
		assert.Equal(t, Rebalancing, h.State)
		assert.Equal(t, time.Second, h.Since.Sub(r.start))
		assert.Empty(t, h.Lanes)
		assert.Empty(t, h.Stuck)
		require.NoError(t, h.Err())
	})
}

func TestHealthLanes(t *testing.T) {
	withRig(t, committing(-1), func(t *testing.T, r *rig) {
		work := r.gate()
		r.on = func(_ context.Context, msg Message) error {
			if msg.Offset == 7 {
				work.wait()
			}
			return nil
		}
		r.engine.marks = map[engine.Partition]int64{orders0: 100}
		r.engine.assign(at(refunds0, 3), at(orders1, 0), at(orders0, 5))
		r.engine.deliver(orders0, 5, 6)
		synctest.Wait()
		require.NoError(t, r.consumer.Commit(t.Context()))
		r.engine.deliver(orders0, 7, 10)
		r.engine.deliver(orders1, 1, 2)
		synctest.Wait()
		h := r.consumer.Health()
		assert.Equal(t, []LaneHealth{
			{Topic: "orders", Partition: 0, Position: 11, Frontier: 7, Committed: 7, HighWatermark: 100},
			{Topic: "orders", Partition: 1, Position: 3, Frontier: 3, Committed: 0, HighWatermark: -1},
			{Topic: "refunds", Partition: 0, Position: 3, Frontier: 3, Committed: 3, HighWatermark: -1},
		}, h.Lanes, "sorted")
	})
}

func TestHealthOfALaneThatHasCommittedNothing(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.engine.assign(engine.Claim{Partition: orders0, Offset: 5, Guess: true})
		assert.Equal(t, []LaneHealth{{Topic: "orders", Position: 5, Frontier: 5, Committed: -1, HighWatermark: -1}}, r.consumer.Health().Lanes)
	})
}

func TestHealthBlocked(t *testing.T) {
	for name, test := range map[string]struct {
		retry   Retry
		err     error
		healthy time.Duration // for so long; negative: not at all
	}{
		"an error that retries may cure": {Retry{MinBackoff: 100 * time.Millisecond, MaxBackoff: time.Hour}, errHandler, 30*time.Second - 1},
		"permanent":                      {Retry{MinBackoff: time.Second, MaxBackoff: time.Minute}, Permanent(errHandler), -1},
		"held after the first attempt":   {Retry{MinBackoff: time.Second, MaxBackoff: time.Second}, errHandler, -1},
	} {
		t.Run(name, func(t *testing.T) {
			withRig(t, withRetry(test.retry), func(t *testing.T, r *rig) {
				work := r.gate()
				r.on = func(_ context.Context, msg Message) error {
					select {
					case <-work.opened:
						return nil
					default:
						return test.err
					}
				}
				r.engine.assign(at(orders0, 5), at(refunds0, 0))
				r.after(time.Second)
				r.engine.deliver(orders0, 5)
				synctest.Wait()
				began := time.Now()
				if test.healthy > 0 {
					r.after(test.healthy)
					require.NoError(t, r.consumer.Health().Err())
					r.after(2)
				}
				h := r.consumer.Health()
				lane := h.Lanes[0]
				assert.Equal(t, began, lane.BlockedSince, "since the first failure")
				require.Error(t, h.Err())
				require.ErrorIs(t, h.Err(), errHandler)
				var failed *HandlerError
				require.ErrorAs(t, h.Err(), &failed)
				assert.EqualValues(t, 5, failed.Offset)
				assert.Equal(t, lane.Blocked, failed)
				assert.Nil(t, h.Lanes[1].Blocked)

				work.open()
				r.after(2 * time.Hour)
				h = r.consumer.Health()
				require.NoError(t, h.Err())
				assert.Nil(t, h.Lanes[0].Blocked)
				assert.Zero(t, h.Lanes[0].BlockedSince)
			})
		})
	}
}

// The hook has said that the message is held, and nobody has said that it is not any
// more, whatever the last attempt's error was.
func TestHealthOfAHeldMessageThatFailsOtherwise(t *testing.T) {
	withRig(t, withRetry(Retry{MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Second}), func(t *testing.T, r *rig) {
		r.on = func(_ context.Context, msg Message) error {
			if msg.Attempt == 1 {
				return Permanent(errHandler)
			}
			return errHandler
		}
		r.engine.assign(at(orders0, 5))
		r.engine.deliver(orders0, 5)
		r.after(10 * time.Second)
		require.Contains(t, r.handled(orders0), "5#2")
		require.Len(t, r.history.all("blocked"), 1)
		require.Error(t, r.consumer.Health().Err())
	})
}

// Symptom: a partition stood still for ever, and its probe said that all was well. Cause:
// with CommitEveryMessage a refused commit keeps the next message waiting, and the
// refusal was told once, to a hook and the log.
func TestHealthOfCommitsThatFail(t *testing.T) {
	for name, test := range map[string]struct {
		interval time.Duration
		answer   func(*fakeCommit) error
		cause    error
	}{
		"refused, every message": {CommitEveryMessage, refusing(errRefused, orders0), errRefused},
		"refused":                {0, refusing(errRefused, orders0), errRefused},
		"failed":                 {0, func(*fakeCommit) error { return errTransient }, errTransient},
	} {
		t.Run(name, func(t *testing.T) {
			withRig(t, committing(test.interval), func(t *testing.T, r *rig) {
				r.engine.answer(test.answer)
				r.engine.assign(at(orders0, 5), at(refunds0, 0))
				r.engine.deliver(orders0, 5)
				r.after(25 * time.Second)
				require.NoError(t, r.consumer.Health().Err(), "the next attempt may work")
				lane := r.consumer.Health().Lanes[0]
				require.ErrorIs(t, lane.CommitError, test.cause)
				assert.LessOrEqual(t, lane.CommitErrorSince.Sub(r.start), time.Second, "since the first failure")
				r.after(10 * time.Second)
				require.ErrorIs(t, r.consumer.Health().Err(), test.cause)
				require.ErrorContains(t, r.consumer.Health().Err(), "orders/0")
				require.NoError(t, r.consumer.Health().Lanes[1].CommitError)

				r.engine.answer(nil)
				r.after(2 * time.Second)
				require.NoError(t, r.consumer.Health().Err())
				assert.Zero(t, r.consumer.Health().Lanes[0].CommitErrorSince)
			})
		})
	}
}

// A partition that comes back begins anew, and so does what is said of it.
func TestHealthForgetsCommitsOfAnEarlierGeneration(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.engine.answer(refusing(errRefused, orders0))
		r.engine.assign(at(orders0, 5))
		r.engine.deliver(orders0, 5)
		r.after(time.Minute)
		require.Error(t, r.consumer.Health().Err())
		r.engine.rebalance(time.Second, time.Second)
		r.engine.assign(at(orders0, 5), at(refunds0, 0))
		require.NoError(t, r.consumer.Health().Err())
		r.engine.deliver(refunds0, 0)
		r.after(time.Second)
		assert.Empty(t, r.consumer.assignment.committer.failing, "it pins what the lane had taken")
	})
}

func TestHealthStuck(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		stuck := r.hangs()
		r.engine.assign(at(refunds0, 5), at(orders1, 5), at(orders0, 0))
		r.engine.deliver(refunds0, 5)
		r.engine.deliver(orders1, 5)
		synctest.Wait()
		r.engine.rebalance(time.Second, 2*time.Second)
		h := r.consumer.Health()
		assert.Equal(t, []string{"orders/1", "refunds/0"}, h.Stuck)
		require.ErrorContains(t, h.Err(), "orders/1")
		require.ErrorContains(t, h.Err(), "refunds/0")
		stuck.open()
		synctest.Wait()
		h = r.consumer.Health()
		assert.Empty(t, h.Stuck)
		require.NoError(t, h.Err())
	})
}

func TestHealthHolding(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		assert.Empty(t, r.consumer.Health().Holding)
		r.engine.holds = func() (engine.Partition, bool) { return refunds0, true }
		assert.Equal(t, "refunds/0", r.consumer.Health().Holding)
	})
}

func TestStateString(t *testing.T) {
	assert.Equal(t, "idle", Idle.String())
	assert.Equal(t, "stopped", Stopped.String())
	assert.Equal(t, "State(6)", (Stopped + 1).String())
}

// A cluster that is away is no reason for alarm at once, and one for ever.
func TestHealthOfARebalanceThatDoesNotEnd(t *testing.T) {
	withRig(t, func(cfg *Config) { cfg.RebalanceTimeout = 2 * time.Minute }, func(t *testing.T, r *rig) {
		r.engine.assign(at(orders0, 5))
		r.engine.lose(errLost)
		r.after(129 * time.Second) // another member's handler may take so long
		require.NoError(t, r.consumer.Health().Err())
		r.after(2 * time.Second)
		require.ErrorContains(t, r.consumer.Health().Err(), "rebalancing since")
		r.engine.waits = true
		require.NoError(t, r.consumer.Health().Err(), "it is another member that does not come")
		r.engine.waits = false
		r.engine.assign(at(orders0, 5))
		require.NoError(t, r.consumer.Health().Err())
	})
}
