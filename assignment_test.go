package kgroup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
)

func TestDrainWaitsForTheHandlerAtWork(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.on = func(ctx context.Context, _ Message) error {
			time.Sleep(2500 * time.Millisecond)
			return ctx.Err()
		}
		r.receives(orders0, 5, 6, 7)
		r.history.clear()
		assert.Equal(t, 2500*time.Millisecond, r.drains(10*time.Second, 20*time.Second))
		assert.Equal(t, []string{
			"rebalance started map[orders:[0]]",
			"returned orders/0@5#1: <nil>",
			"revoke orders/0@6",
			"commit orders/0@6",
			"answered map[orders:map[0:6]]: <nil>",
		}, r.history.all(), "the queued messages were dropped, and the commit was made while the partition was ours")

		r.history.clear()
		r.receives(orders0, 6)
		assert.Equal(t, []string{
			"rebalance completed map[orders:[0]] map[orders:[0]] map[orders:[0]]",
			"assign orders/0@6",
			"handle orders/0@6#1",
		}, r.history.all())
	})
}

func TestDrainEndsABackoff(t *testing.T) {
	withRig(t, withRetry(Retry{MinBackoff: time.Hour, MaxBackoff: 2 * time.Hour}), func(t *testing.T, r *rig) {
		r.on = func(_ context.Context, msg Message) error {
			if msg.Offset == 6 {
				return errHandler
			}
			return nil
		}
		r.receives(orders0, 5, 6, 7)
		assert.Zero(t, r.drains(10*time.Second, 20*time.Second))
		assert.Equal(t, "5#1 6#1", r.handled(orders0), "without another attempt")
		assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
	})
}

// A nil counts as long as the lane is ours, however late and whatever was cancelled.
func TestNilAfterCancellationSettles(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.on = func(ctx context.Context, _ Message) error {
			<-ctx.Done()
			time.Sleep(time.Second)
			r.history.add("cause: %v", context.Cause(ctx))
			return nil
		}
		r.receives(orders0, 5, 6)
		assert.Equal(t, 9*time.Second, r.drains(8*time.Second, 10*time.Second), "cancelled at 8 s")
		assert.Equal(t, []string{"cause: " + ErrPartitionLost.Error()}, r.history.all("cause"))
		assert.Equal(t, "5#1", r.handled(orders0))
		assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
		assert.Equal(t, []string{"revoke orders/0@6"}, r.history.all("revoke"))
	})
}

// An error after the cancellation says nothing about the message: it is no attempt,
// no retry and no warning.
func TestErrorAfterCancellationIsNoAttempt(t *testing.T) {
	withRig(t, withRetry(Retry{MinBackoff: time.Second, MaxBackoff: time.Second}), func(t *testing.T, r *rig) {
		r.on = func(ctx context.Context, _ Message) error {
			<-ctx.Done()
			return Permanent(ctx.Err())
		}
		r.receives(orders0, 5)
		assert.Equal(t, 8*time.Second, r.drains(8*time.Second, 10*time.Second))
		assert.Equal(t, "5#1", r.handled(orders0))
		assert.Empty(t, r.history.all("blocked"))
		assert.Empty(t, r.logs.with("attempt failed"))
		assert.EqualValues(t, 5, r.engine.acknowledged(orders0))
		assert.Len(t, r.history.all("revoke orders/0@5"), 1)
	})
}

// A handler that ignores its cancelled context is given up; its partition waits for
// it, in this process, through every later generation.
func TestOrphan(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		stuck := r.gate()
		r.on = func(_ context.Context, msg Message) error {
			if msg.Topic == "orders" && msg.Offset == 6 {
				stuck.wait()
			}
			return nil
		}
		r.engine.assign(at(orders0, 5), at(refunds0, 0))
		r.engine.deliver(orders0, 5, 6, 7)
		r.engine.deliver(refunds0, 0)
		synctest.Wait()
		assert.Equal(t, 10*time.Second, r.drains(8*time.Second, 10*time.Second))
		assert.Equal(t, []string{"lost orders/0@6: " + ErrPartitionLost.Error()}, r.history.all("lost"))
		assert.Equal(t, []string{"revoke refunds/0@1"}, r.history.all("revoke"), "Lost instead of Revoke")
		assert.Len(t, r.logs.with("level=ERROR", "handler has not returned", "partition=0"), 1)
		assert.EqualValues(t, 6, r.engine.acknowledged(orders0), "what was settled before is committed")
		assert.Equal(t, []string{"orders/0"}, r.consumer.Health().Stuck)

		for range 2 {
			r.engine.assign(at(orders0, 6), at(refunds0, 1))
			r.engine.deliver(orders0, 6, 7)
			r.engine.deliver(refunds0, 1)
			r.after(time.Minute)
			assert.Equal(t, "5#1 6#1", r.handled(orders0))
			assert.Equal(t, []string{"orders/0"}, r.consumer.Health().Stuck)
			assert.Zero(t, r.drains(8*time.Second, 10*time.Second), "a lane that has not begun is drained at once")
		}
		assert.Equal(t, "0#1 1#1 1#1", r.handled(refunds0), "the other partition goes on")

		r.receives(orders0, 6, 7)
		r.history.clear()
		stuck.open()
		synctest.Wait()
		assert.Equal(t, []string{"handle orders/0@6#1", "handle orders/0@7#1"}, r.history.all("handle"), "again, because its nil came too late")
		assert.Equal(t, "returned orders/0@6#1: <nil>", r.history.all()[0], "after the first handler has returned")
		assert.Empty(t, r.consumer.Health().Stuck)
		r.after(time.Second)
		assert.EqualValues(t, 8, r.engine.acknowledged(orders0))
	})
}

// Two handlers of one process on one message: seen when a lane that waited for an
// orphan was lost itself and took the orphan's place.
func TestOrphanOutlivesTheLossOfALaneThatWaitsForIt(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.hangs()
		for range 20 { // which goroutine comes first is not certain
			r.receives(orders0, 5)
			require.Equal(t, "5#1", r.handled(orders0))
			r.loses()
			require.Equal(t, []string{"orders/0"}, r.consumer.Health().Stuck)
		}
	})
}

// An orphan that has ended must not be remembered until its partition comes back,
// which may be never: it pins what it had taken from its queue.
func TestOrphanThatHasReturnedIsForgotten(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		stuck := r.hangs()
		r.receives(orders0, 5)
		r.engine.lose(errLost)
		stuck.open()
		synctest.Wait()
		r.engine.assign(at(refunds0, 0))
		a := r.consumer.assignment
		a.mu.Lock()
		defer a.mu.Unlock()
		assert.Empty(t, a.orphans)
	})
}

func TestLost(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.on = func(ctx context.Context, msg Message) error {
			if msg.Offset == 5 {
				return nil
			}
			<-ctx.Done()
			r.history.add("cause: %v", context.Cause(ctx))
			return nil
		}
		r.receives(orders0, 5, 6, 7)
		began := time.Now()
		r.engine.lose(errors.New("unknown member"))
		synctest.Wait()
		assert.Zero(t, time.Since(began))
		require.Len(t, r.history.all("cause"), 1)
		assert.Contains(t, r.history.all("cause")[0], ErrPartitionLost.Error())
		assert.Contains(t, r.history.all("cause")[0], "unknown member")
		assert.Equal(t, "5#1 6#1", r.handled(orders0))
		require.Len(t, r.history.all("lost orders/0@", "unknown member"), 1)

		r.engine.rebalance(time.Minute, time.Minute) // what an engine does next
		r.after(10 * time.Second)
		assert.Empty(t, r.history.all("revoke"))
		assert.Zero(t, r.engine.commitCount(), "nothing is committed any more")
	})
}

func TestLostHandlerKnowsTheCause(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		gone := errors.New("unknown member")
		var cause error
		r.on = func(ctx context.Context, _ Message) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return nil
		}
		r.receives(orders0, 5)
		r.engine.lose(gone)
		synctest.Wait()
		require.ErrorIs(t, cause, ErrPartitionLost)
		require.ErrorIs(t, cause, gone)
	})
}

// A lane without work has no handler that could have failed to return. An error in
// the log for each of a hundred partitions sends somebody to look for one.
func TestLostIdleLanesAreNotCalledStuck(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		var claims []engine.Claim
		for i := range int32(50) {
			claims = append(claims, at(engine.Partition{Topic: "orders", Number: i}, 0))
		}
		r.engine.assign(claims...)
		r.engine.lose(errLost)
		assert.Empty(t, r.logs.with("handler has not returned"))
		assert.Len(t, r.history.all("lost"), 50)
	})
}

func TestLostDuringADrain(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.on = func(ctx context.Context, msg Message) error {
			if msg.Offset == 5 {
				return nil
			}
			<-ctx.Done()
			r.history.add("cancelled after %v: %v", time.Since(r.start), context.Cause(ctx))
			return ctx.Err()
		}
		r.receives(orders0, 5, 6)
		drained := begin(func() { r.engine.rebalance(30*time.Second, time.Minute) })
		time.Sleep(500 * time.Millisecond)
		r.loses()
		require.True(t, isClosed(drained), "it is not waited for")
		assert.Len(t, r.history.all("cancelled after 500ms", ErrPartitionLost.Error()), 1)
		assert.Len(t, r.history.all("lost orders/0@6"), 1)
		assert.Empty(t, r.history.all("revoke"))
		assert.Zero(t, r.engine.commitCount())
	})
}

// Whoever drains must not wait for a handler when there is nothing left to commit.
func TestLostDuringADrainWithAStuckHandler(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.hangs()
		r.receives(orders0, 5)
		drained := begin(func() { r.engine.rebalance(30*time.Second, time.Minute) })
		r.loses()
		require.True(t, isClosed(drained))
		assert.Equal(t, []string{"orders/0"}, r.consumer.Health().Stuck)
	})
}

func TestLostWhileTheGenerationIsOpened(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.engine.answer(slow(10 * time.Second))
		opened := begin(func() { r.engine.assign(fresh(orders0, 5)) })
		r.after(time.Second)
		require.False(t, isClosed(opened))
		r.loses()
		require.True(t, isClosed(opened))
		assert.Nil(t, r.engine.lane(orders0))
		assert.Empty(t, r.history.all("assign"))
		assert.Empty(t, r.history.all("lost"), "what was never assigned cannot be lost")
		assert.False(t, isClosed(r.consumer.Ready()))

		r.engine.answer(nil)
		r.engine.assign(fresh(orders0, 7))
		r.engine.deliver(orders0, 7)
		synctest.Wait()
		assert.Equal(t, "7#1", r.handled(orders0))
	})
}

// The Assign hook may take its time. If the generation is over by then, it is told.
func TestLostInTheAssignHook(t *testing.T) {
	var r *rig
	withRig(t, func(cfg *Config) {
		cfg.Hooks.Assign = func(string, int32, int64) { r.engine.lose(errLost) }
	}, func(t *testing.T, started *rig) {
		r = started
		r.engine.assign(at(orders0, 5))
		synctest.Wait()
		assert.Len(t, r.history.all("assign"), 1)
		assert.Len(t, slices.Concat(r.history.all("revoke"), r.history.all("lost orders")), 1)
		assert.Nil(t, r.engine.lane(orders0))
		assert.Empty(t, r.consumer.Health().Lanes)
	})
}

func TestStartNewestIsCommittedFirst(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.engine.answer(failing(errTransient, errTransient))
		claim := fresh(orders0, 5)
		claim.Metadata = envelope{initial: 3}.encode(0)
		r.engine.assign(claim, at(refunds0, 0))
		r.engine.deliver(orders0, 5)
		synctest.Wait()
		assert.Equal(t, []string{
			"rebalance completed map[orders:[0] refunds:[0]] map[orders:[0] refunds:[0]] map[]",
			"answered map[orders:map[0:5] refunds:map[0:0]]: broker is restarting",
			"answered map[orders:map[0:5] refunds:map[0:0]]: broker is restarting",
			"commit orders/0@5",
			"commit refunds/0@0",
			"answered map[orders:map[0:5] refunds:map[0:0]]: <nil>",
			"assign orders/0@5",
			"assign refunds/0@0",
			"handle orders/0@5#1",
			"returned orders/0@5#1: <nil>",
		}, slices.DeleteFunc(r.history.all(), func(line string) bool { return strings.HasPrefix(line, "error: ") }))
		assert.Equal(t, "kgroup/1 n=3 o=1", r.engine.metadata(orders0))
		r.after(time.Second)
		assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
		assert.Equal(t, "kgroup/1 n=3 o=1", r.engine.metadata(orders0), "every commit carries it on")
	})
}

func TestStartNewestRefused(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.engine.answer(refusing(errRefused, orders0))
		r.engine.assign(fresh(orders0, 5), fresh(refunds0, 7))
		r.engine.deliver(refunds0, 7)
		synctest.Wait()
		assert.Equal(t, "7#1", r.handled(refunds0), "the other partition goes on")
		assert.Len(t, r.history.all("error", "orders/0", "not allowed"), 1)
	})
}

// While a position cannot be committed nothing is handled, in no partition. That must
// not be a secret.
func TestStartNewestThatCannotBeCommittedIsReported(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.engine.answer(func(*fakeCommit) error { return errTransient })
		opened := begin(func() { r.engine.assign(fresh(orders0, 5)) })
		r.after(time.Minute)
		require.False(t, isClosed(opened))
		assert.NotEmpty(t, r.history.all("error", errTransient.Error()))
		r.engine.lose(errLost)
		<-opened
	})
}

func TestTwoPatternsMatchOneTopic(t *testing.T) {
	both := func(cfg *Config) {
		h := cfg.Topics["orders"].Handler
		// Validate finds what it can prove; of these it cannot say which topics exist.
		cfg.Topics = Topics{"refunds": {Handler: h}}
	}
	withRig(t, both, func(t *testing.T, r *rig) {
		h := HandlerFunc(r.handle)
		r.consumer.assignment.topics = newMatcher(Topics{"^ord": {Handler: h}, "^.*ers$": {Handler: h}, "refunds": Topic{Handler: h}.withDefaults()})
		r.engine.assign(at(orders0, 5), at(refunds0, 0))
		require.False(t, r.engine.deliver(orders0, 5, 6), "a full queue makes all others wait, in Multiplex mode")
		r.engine.deliver(refunds0, 0, 1)
		r.after(100 * time.Second)
		assert.Empty(t, r.handled(orders0))
		assert.Equal(t, "0#1 1#1", r.handled(refunds0))
		require.Len(t, r.history.all("blocked"), 1)
		assert.Contains(t, r.history.all("blocked")[0], `Topics["^ord"]`)
		assert.EqualValues(t, 5, r.engine.acknowledged(orders0))
		require.Error(t, r.consumer.Health().Err())
	})
}

// An assignment may name a topic that no entry of Topics matches: the group's leader
// computes it, and it may be another program. It was tried without a pause, for ever.
func TestAssignedTopicWithoutAHandler(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		foreign := engine.Partition{Topic: "payments"}
		lane := r.consumer.assignment.newLane(t.Context(), &generation{}, at(foreign, 5))
		require.NotNil(t, lane.topic.Handler)
		require.NotZero(t, lane.topic.Retry.MaxBackoff)
		r.engine.assign(at(foreign, 5), at(refunds0, 0))
		r.engine.deliver(foreign, 5)
		r.engine.deliver(refunds0, 0, 1)
		synctest.Wait()
		assert.Equal(t, "0#1 1#1", r.handled(refunds0))
		require.Len(t, r.history.all("blocked"), 1)
		assert.Contains(t, r.history.all("blocked")[0], "payments")
		assert.NotContains(t, r.history.all("blocked")[0], "panic")
		r.after(time.Minute)
		assert.LessOrEqual(t, len(r.logs.with("attempt failed")), 60, "it is not tried without a pause")
		assert.EqualValues(t, 5, r.engine.acknowledged(foreign))
	})
}

func TestReady(t *testing.T) {
	for name, claims := range map[string][]engine.Claim{
		"with partitions":    {at(orders0, 5)},
		"without partitions": nil,
	} {
		t.Run(name, func(t *testing.T) {
			withRig(t, nil, func(t *testing.T, r *rig) {
				require.False(t, isClosed(r.consumer.Ready()))
				r.engine.assign(claims...)
				require.True(t, isClosed(r.consumer.Ready()))
				r.engine.rebalance(time.Second, time.Second)
				r.engine.assign(claims...) // closing it twice would panic
			})
		})
	}
}

// The session is called with numbers of generations that have ended, and of some that
// were never opened.
func TestCallsForAnotherGenerationDoNothing(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.on = func(ctx context.Context, _ Message) error {
			time.Sleep(time.Second)
			return ctx.Err()
		}
		s := r.engine.session
		s.Seal(0)
		s.Revoke(0, time.Now(), time.Now())
		s.Lost(0, errors.New("old"))
		r.receives(orders0, 5, 6)
		for _, number := range []int64{0, 2} {
			s.Seal(number)
			s.Revoke(number, time.Now(), time.Now())
			s.Lost(number, errors.New("old"))
		}
		r.after(3 * time.Second)
		assert.Equal(t, "5#1 6#1", r.handled(orders0))
		assert.Empty(t, r.history.all("lost orders"))
		assert.EqualValues(t, 7, r.engine.acknowledged(orders0))
	})
}

// A broker that is down says the same several times a second.
func TestRepeatedErrorsAreLoggedOnceIn10s(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		for range 300 {
			r.engine.session.Error(errTransient)
			time.Sleep(100 * time.Millisecond)
		}
		assert.Len(t, r.history.all("error: "+errTransient.Error()), 300, "the hook gets every one")
		assert.Len(t, r.logs.with(errTransient.Error()), 3)
		for i := range 1000 {
			r.engine.session.Error(fmt.Errorf("error %d", i))
		}
		assert.LessOrEqual(t, len(r.consumer.assignment.said), 101, "what was said is forgotten in time")
	})
}

// Two handlers of one process on one message, and an Assign that came before the Lost
// of the generation before: seen when a Lost hook took longer than joining again, and
// the partitions behind it were not known to be orphans yet.
func TestNextGenerationWaitsUntilTheLastOneIsLost(t *testing.T) {
	var told chan struct{}
	slowly := func(cfg *Config) {
		told = make(chan struct{})
		cfg.Hooks.Lost = func(topic string, _ int32, _ int64, _ error) {
			if topic == "orders" {
				<-told
			}
		}
	}
	withRig(t, slowly, func(t *testing.T, r *rig) {
		stuck := r.gate()
		r.on = func(context.Context, Message) error {
			stuck.wait()
			return nil
		}
		r.engine.assign(at(orders0, 5), at(refunds0, 0))
		r.engine.deliver(refunds0, 0)
		synctest.Wait()
		lost := begin(func() { r.engine.lose(errors.New("session")) })
		r.after(time.Second)
		require.False(t, isClosed(lost), "the hook of orders/0 takes its time")
		r.engine.rebalance(time.Second, 2*time.Second)
		r.history.clear()
		assigned := begin(func() {
			r.engine.assign(at(refunds0, 0))
			r.engine.deliver(refunds0, 0)
		})
		r.after(time.Minute)
		require.False(t, isClosed(assigned))
		assert.Empty(t, r.history.all(), "nothing is told, nor handled")
		close(told)
		<-assigned
		<-lost
		r.after(time.Minute)
		assert.Empty(t, r.history.all("handle refunds/0"), "the first handler has not returned")
		told := r.history.all("refunds/0@0")
		require.Len(t, told, 2)
		assert.Contains(t, told[0], "lost")
		assert.Contains(t, told[1], "assign")
		stuck.open()
		synctest.Wait()
		assert.Len(t, r.history.all("handle refunds/0"), 1)
	})
}

// A Lost hook that never returns keeps this member from opening anything, but not from
// leaving.
func TestOpeningThatWaitsForALostHookIsGivenUp(t *testing.T) {
	told := make(chan struct{})
	hangs := func(cfg *Config) {
		told = make(chan struct{})
		cfg.Hooks.Lost = func(string, int32, int64, error) { <-told }
	}
	withRig(t, hangs, func(t *testing.T, r *rig) {
		r.engine.assign(at(orders0, 5))
		lost := begin(func() { r.engine.lose(errors.New("session")) })
		opened := begin(func() { r.engine.assign(at(orders0, 5)) })
		require.False(t, isClosed(opened))
		r.engine.endSlot()
		synctest.Wait()
		require.True(t, isClosed(opened))
		assert.Nil(t, r.engine.lane(orders0))
		close(told)
		<-lost
	})
}

// A drain that begins when its time is up (the coordinator was away) cancels handlers at
// once. One that looks at its context is waited for, and an idle lane is drained.
func TestDrainThatBeginsTooLate(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		orders2 := engine.Partition{Topic: "orders", Number: 2}
		gate := r.gate()
		r.on = func(ctx context.Context, msg Message) error {
			if msg.Partition == 2 {
				gate.wait()
			}
			<-ctx.Done()
			return nil
		}
		r.engine.assign(at(orders0, 0), at(orders1, 0), at(orders2, 0))
		r.engine.deliver(orders1, 0)
		r.engine.deliver(orders2, 0)
		synctest.Wait()
		began := time.Now()
		r.engine.rebalance(-2*time.Second, -time.Second)
		assert.Equal(t, lostGrace, time.Since(began))
		assert.Equal(t, []string{"revoke orders/0@0", "revoke orders/1@1"}, r.history.all("revoke"))
		assert.Len(t, r.history.all("lost"), 1)
		assert.EqualValues(t, 1, r.engine.acknowledged(orders1))
		gate.open()
	})
}
