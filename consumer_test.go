package kgroup

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
)

func TestRunOnlyOnce(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		require.ErrorIs(t, r.consumer.Run(t.Context()), ErrAlreadyRun)
		_, err := r.stop()
		require.NoError(t, err)
		require.ErrorIs(t, r.consumer.Run(t.Context()), ErrAlreadyRun)
	})
}

func TestRunCancelledBeforeTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.NoError(t, r.consumer.Run(ctx))
		assert.False(t, isClosed(r.engine.joined), "the engine was not started")
		assert.Equal(t, Stopped, r.consumer.Health().State)
	})
}

func TestRunEndsWhenTheStartFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.engine.startErr = errors.New("no such topic")
		require.Equal(t, r.engine.startErr, r.consumer.Run(t.Context()))
		assert.Equal(t, Stopped, r.consumer.Health().State)
		assert.Empty(t, r.logs.with("no such topic"), "an error that leaves Run is not logged as well")
	})
	t.Run("because it was cancelled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			r.engine.startErr = errors.New("connections were cut")
			ctx, cancel := context.WithCancel(t.Context())
			r.consumer.engine = func(*Consumer) engine.Engine {
				return &cancellingEngine{r.engine, cancel}
			}
			require.NoError(t, r.consumer.Run(ctx))
		})
	})
}

// A cancellingEngine is cancelled while it starts.
type cancellingEngine struct {
	*fakeEngine
	cancel context.CancelFunc
}

func (e *cancellingEngine) Start(ctx context.Context, s engine.Session) error {
	e.cancel()
	return e.fakeEngine.Start(ctx, s)
}

func TestRunEndsWhenTheGroupRefuses(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		refused := errors.New("this user may not read the group")
		r.engine.refusal <- refused
		<-r.done
		assert.Equal(t, refused, r.err)
		assert.False(t, r.engine.left.IsZero(), "what was started was ended")
	})
}

func TestCommitInterval(t *testing.T) {
	for name, test := range map[string]struct {
		interval time.Duration
		want     []string
	}{
		"zero":     {0, []string{"[1s] orders/0@6", "[3s] orders/0@7"}},
		"positive": {2 * time.Second, []string{"[2s] orders/0@6", "[4s] orders/0@7"}},
		"every":    {CommitEveryMessage, []string{"[0s] orders/0@6", "[2.5s] orders/0@7"}},
		"negative": {-1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			withRig(t, committing(test.interval), func(t *testing.T, r *rig) {
				r.on = func(_ context.Context, msg Message) error {
					if msg.Offset == 6 {
						time.Sleep(2500 * time.Millisecond)
					}
					return nil
				}
				r.engine.assign(at(orders0, 5))
				r.engine.deliver(orders0, 5, 6)
				r.after(time.Hour - time.Millisecond)
				assert.Equal(t, test.want, r.engine.attempts(r.start))
				assert.Equal(t, "5#1 6#1", r.handled(orders0))
				_, err := r.stop()
				require.NoError(t, err)
				assert.EqualValues(t, 7, r.engine.acknowledged(orders0), "the shutdown commits in any case")
			})
		})
	}
}

// Before Kafka 2.1 the offsets of an idle partition expire after a day.
func TestUnmovedOffsetsAreCommittedEveryHour(t *testing.T) {
	for name, test := range map[string]struct {
		interval time.Duration
		want     int
	}{
		"zero": {0, 3}, "positive": {7 * time.Minute, 3}, "every": {CommitEveryMessage, 3}, "negative": {-1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			withRig(t, committing(test.interval), func(t *testing.T, r *rig) {
				r.engine.assign(at(orders0, 5), engine.Claim{Partition: refunds0}, engine.Claim{Partition: engine.Partition{Topic: "refunds", Number: 1}, Guess: true})
				r.after(3*time.Hour + 30*time.Minute)
				commits := r.engine.attempts(r.start)
				require.Len(t, commits, test.want)
				for _, c := range commits {
					assert.Contains(t, c, " orders/0@5 refunds/0@0")
					assert.NotContains(t, c, "refunds/1", "where it begins is not known")
				}
			})
		})
	}
}

func TestNothingIsCommittedBeforeNil(t *testing.T) {
	withRig(t, committing(100*time.Millisecond), func(t *testing.T, r *rig) {
		r.on = func(_ context.Context, msg Message) error {
			time.Sleep(time.Second)
			if msg.Attempt < 3 {
				return errHandler
			}
			return nil
		}
		r.engine.assign(at(orders0, 5))
		r.engine.deliver(orders0, 5, 6, 7)
		r.after(20 * time.Second)
		settled := int64(5)
		for _, line := range r.history.all() {
			switch line {
			case "returned orders/0@5#3: <nil>", "returned orders/0@6#3: <nil>", "returned orders/0@7#3: <nil>":
				settled++
			case "commit orders/0@6", "commit orders/0@7", "commit orders/0@8":
				require.Equal(t, "commit orders/0@"+string(rune('0'+settled)), line)
			}
		}
		require.EqualValues(t, 8, r.engine.acknowledged(orders0))
	})
}

func TestCommitEveryMessage(t *testing.T) {
	every := committing(CommitEveryMessage)

	t.Run("the next message waits for the answer", func(t *testing.T) {
		withRig(t, every, func(t *testing.T, r *rig) {
			r.engine.answer(slow(3 * time.Second))
			r.engine.assign(at(orders0, 5))
			r.engine.deliver(orders0, 5, 6)
			r.after(2999 * time.Millisecond)
			assert.Equal(t, "5#1", r.handled(orders0))
			r.after(time.Millisecond)
			assert.Equal(t, "5#1 6#1", r.handled(orders0))
		})
	})

	t.Run("a failed commit is made again", func(t *testing.T) {
		withRig(t, every, func(t *testing.T, r *rig) {
			r.engine.answer(failing(errTransient, errTransient, errTransient))
			r.engine.assign(at(orders0, 5))
			r.engine.deliver(orders0, 5, 6)
			r.after(49 * time.Millisecond)
			assert.Equal(t, "5#1", r.handled(orders0))
			r.after(10 * time.Second)
			assert.Equal(t, "5#1 6#1", r.handled(orders0))
			assert.Equal(t, []string{
				"[0s] orders/0@6: broker is restarting",
				"[50ms] orders/0@6: broker is restarting",
				"[150ms] orders/0@6: broker is restarting",
				"[350ms] orders/0@6",
				"[350ms] orders/0@7",
			}, r.engine.attempts(r.start))
		})
	})

	// The partition stands still meanwhile, and nobody could see why.
	t.Run("a commit that goes on failing is reported", func(t *testing.T) {
		withRig(t, every, func(t *testing.T, r *rig) {
			r.engine.answer(func(*fakeCommit) error { return errTransient })
			r.engine.assign(at(orders0, 5))
			r.engine.deliver(orders0, 5, 6)
			r.after(time.Minute)
			assert.Equal(t, "5#1", r.handled(orders0))
			assert.NotEmpty(t, r.history.all("error: ", errTransient.Error()))
			r.engine.answer(nil)
		})
	})

	t.Run("a refusal of another partition is no reason to wait", func(t *testing.T) {
		withRig(t, every, func(t *testing.T, r *rig) {
			r.engine.answer(refusing(errRefused, refunds0))
			r.engine.assign(at(orders0, 0), at(refunds0, 0))
			r.engine.deliver(refunds0, 0)
			synctest.Wait()
			r.engine.deliver(orders0, 0, 1, 2, 3)
			r.after(time.Millisecond)
			assert.Equal(t, "0#1 1#1 2#1 3#1", r.handled(orders0))
		})
	})

	t.Run("a seal ends the wait for a refusal", func(t *testing.T) {
		withRig(t, every, func(t *testing.T, r *rig) {
			r.engine.answer(refusing(errRefused, orders0))
			r.engine.assign(at(orders0, 5))
			r.engine.deliver(orders0, 5, 6)
			r.after(100 * time.Millisecond)
			assert.Zero(t, r.drains(time.Minute, time.Minute))
			assert.Equal(t, "5#1", r.handled(orders0))
		})
	})

	// Symptom: several messages that were not committed, now and then. Cause: between the
	// end of a generation's context and its seal the wait had ended, and the worker went on.
	t.Run("nothing is handled between the end of the wait and the seal", func(t *testing.T) {
		withRig(t, every, func(t *testing.T, r *rig) {
			r.engine.answer(slow(time.Hour))
			r.engine.assign(at(orders0, 5))
			r.engine.deliver(orders0, 5, 6, 7)
			synctest.Wait()
			r.engine.endSlot()
			r.after(time.Second)
			assert.Equal(t, "5#1", r.handled(orders0))
			r.engine.answer(nil)
			r.engine.rebalance(time.Minute, time.Minute)
			assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
		})
	})

	t.Run("a seal ends the wait, and the drain commits", func(t *testing.T) {
		withRig(t, every, func(t *testing.T, r *rig) {
			r.engine.answer(failing(errTransient, errTransient, errTransient, errTransient, errTransient, errTransient))
			r.engine.assign(at(orders0, 5))
			r.engine.deliver(orders0, 5, 6)
			r.after(1600 * time.Millisecond) // 6 attempts; the next is due at 2.55 s
			require.Equal(t, 6, r.engine.commitCount())
			assert.Zero(t, r.drains(time.Minute, time.Minute))
			assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
			assert.Equal(t, "5#1", r.handled(orders0))
		})
	})
}

// Two messages are delivered; the first is at work, or both are settled, when Run's
// context is cancelled.
func TestShutdown(t *testing.T) {
	work := func(d time.Duration) func(context.Context, Message) error {
		return func(ctx context.Context, _ Message) error {
			select {
			case <-time.After(d):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	inTime := -time.Second // somewhere in ShutdownTimeout
	for name, test := range map[string]struct {
		timeout   time.Duration // zero: the default, 25 s
		on        func(context.Context, Message) error
		answer    func(*fakeCommit) error
		leaving   func(context.Context) error
		took      time.Duration
		handled   string
		committed int64
		failure   []string // what Run's error contains; nil: there is none
	}{
		"a handler at work finishes": {
			on: work(10 * time.Second), took: 10 * time.Second, handled: "5#1", committed: 6,
		},
		"it is cancelled after ShutdownTimeout less 5 s": {
			on: work(time.Hour), took: 20 * time.Second, handled: "5#1", committed: 5,
		},
		"it is cancelled after ShutdownTimeout less a fifth": {
			timeout: 10 * time.Second, on: work(time.Hour), took: 8 * time.Second, handled: "5#1", committed: 5,
		},
		"it is cancelled after ShutdownTimeout less 500 ms": {
			timeout: time.Second, on: work(time.Hour), took: 500 * time.Millisecond, handled: "5#1", committed: 5,
		},
		"its nil counts after the cancellation too": {
			on: func(ctx context.Context, _ Message) error {
				<-ctx.Done()
				if !errors.Is(context.Cause(ctx), ErrShutdownTimeout) {
					return context.Cause(ctx)
				}
				return nil
			},
			took: 20 * time.Second, handled: "5#1", committed: 6,
		},
		"a held message is left to the next owner": {
			on:      func(context.Context, Message) error { return Permanent(errHandler) },
			handled: "5#1", committed: 5,
		},
		"a commit that fails is made again": {
			on: work(0), answer: failing(errTransient, errTransient, errTransient),
			took: 350 * time.Millisecond, handled: "5#1 6#1", committed: 7,
		},
		"the last commit fails": {
			on: work(0), answer: func(*fakeCommit) error { return errTransient },
			took: inTime, handled: "5#1 6#1", committed: -1, failure: []string{"commit", "broker is restarting"},
		},
		"the last commit is refused": {
			on: work(0), answer: refusing(errRefused, orders0),
			handled: "5#1 6#1", committed: -1, failure: []string{"commit", "orders/0", "not allowed"},
		},
		"leaving fails": {
			on: work(0),
			leaving: func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			},
			took: 25 * time.Second, handled: "5#1 6#1", committed: 7,
		},
	} {
		t.Run(name, func(t *testing.T) {
			withRig(t, func(cfg *Config) { cfg.ShutdownTimeout = test.timeout }, func(t *testing.T, r *rig) {
				r.on, r.engine.leaving = test.on, test.leaving
				r.engine.answer(test.answer)
				r.engine.assign(at(orders0, 5))
				r.after(100 * time.Millisecond) // the first commit interval is over after 1 s
				r.engine.deliver(orders0, 5, 6)
				synctest.Wait()
				took, err := r.stop()
				if test.took != inTime {
					assert.Equal(t, test.took, took)
				}
				assert.LessOrEqual(t, took, r.consumer.config.ShutdownTimeout)
				if test.failure == nil {
					require.NoError(t, err)
				}
				for _, want := range test.failure {
					require.ErrorContains(t, err, want)
				}
				assert.Equal(t, test.handled, r.handled(orders0))
				assert.Equal(t, test.committed, r.engine.acknowledged(orders0))
				assert.False(t, r.engine.left.IsZero(), "it leaves in any case")
			})
		})
	}
}

func TestShutdownWithAHandlerThatIgnoresIt(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		stuck := r.gate()
		r.on = func(_ context.Context, msg Message) error {
			if msg.Topic == "orders" && msg.Offset == 7 {
				stuck.wait()
			}
			return nil
		}
		r.engine.assign(at(orders0, 5), at(orders1, 0), at(refunds0, 0))
		r.engine.deliver(orders0, 5, 6, 7, 8)
		r.engine.deliver(refunds0, 0)
		synctest.Wait()
		took, err := r.stop()
		assert.LessOrEqual(t, took, 25*time.Second)
		require.ErrorContains(t, err, "orders/0")
		require.ErrorContains(t, err, "offset 7")
		assert.NotContains(t, err.Error(), "orders/1")
		assert.NotContains(t, err.Error(), "refunds")
		assert.EqualValues(t, 7, r.engine.acknowledged(orders0))
		assert.EqualValues(t, 1, r.engine.acknowledged(refunds0))
		assert.Equal(t, []string{"lost orders/0@7: " + ErrShutdownTimeout.Error()}, r.history.all("lost"))
		assert.Equal(t, "5#1 6#1 7#1", r.handled(orders0))
	})
}

// An orphan of an earlier generation is named too, though its partition may long be
// another member's.
func TestShutdownWithAnOrphan(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.hangs()
		r.receives(orders0, 5)
		r.engine.lose(errLost)
		r.engine.assign(at(refunds0, 0))
		took, err := r.stop()
		require.ErrorContains(t, err, "orders/0")
		assert.LessOrEqual(t, took, 25*time.Second)
	})
}

// Handlers that return after they were given up, while the last commit is still under
// way, were named as not having returned; which of them was a matter of chance.
func TestShutdownNamesOnlyHandlersThatHaveNotReturned(t *testing.T) {
	withRig(t, committing(-1), func(t *testing.T, r *rig) {
		r.on = func(_ context.Context, msg Message) error {
			if msg.Topic == "orders" {
				time.Sleep(22500 * time.Millisecond)
			}
			return nil
		}
		claims := []engine.Claim{at(refunds0, 0)}
		for i := range int32(30) {
			claims = append(claims, at(engine.Partition{Topic: "orders", Number: i}, 0))
		}
		r.engine.assign(claims...)
		for _, c := range claims {
			r.engine.deliver(c.Partition, 0)
		}
		synctest.Wait()
		r.engine.answer(slow(800 * time.Millisecond))
		took, err := r.stop()
		require.NoError(t, err)
		require.Greater(t, took, 22500*time.Millisecond, "they had returned by then")
		require.Len(t, r.history.all("lost orders"), 30)
	})
}

// Everything goes wrong at once, and Run returns all the same.
func TestShutdownTimeoutIsKept(t *testing.T) {
	for _, timeout := range []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 8 * time.Second, 25 * time.Second, time.Minute} {
		for name, answer := range map[string]func(*fakeCommit) error{
			"commits fail": func(*fakeCommit) error { return errTransient },
			"commits hang": slow(time.Hour),
		} {
			t.Run(timeout.String()+" "+name, func(t *testing.T) {
				withRig(t, func(cfg *Config) { cfg.ShutdownTimeout = timeout }, func(t *testing.T, r *rig) {
					stuck := r.gate()
					r.on = func(_ context.Context, msg Message) error {
						if msg.Offset == 6 {
							stuck.wait()
						}
						return nil
					}
					r.engine.answer(answer)
					r.engine.leaving = func(ctx context.Context) error {
						<-ctx.Done()
						return ctx.Err()
					}
					r.engine.assign(at(orders0, 5))
					r.after(100 * time.Millisecond)
					r.engine.deliver(orders0, 5, 6)
					synctest.Wait()
					took, err := r.stop()
					require.Error(t, err)
					assert.LessOrEqual(t, took, timeout)
				})
			})
		}
	}
}

func TestShutdownDuringARebalance(t *testing.T) {
	t.Run("while the drain waits for a handler", func(t *testing.T) {
		withRig(t, nil, func(t *testing.T, r *rig) {
			r.on = takes(5500 * time.Millisecond)
			r.receives(orders0, 5, 6)
			drained := begin(func() { r.engine.rebalance(30*time.Second, time.Minute) })
			r.after(time.Second)
			took, err := r.stop()
			require.NoError(t, err)
			assert.Equal(t, 4500*time.Millisecond, took)
			synctest.Wait()
			assert.True(t, isClosed(drained))
			assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
			assert.Len(t, r.history.all("revoke"), 1, "one of them drains, the other waits for it")
			assert.Equal(t, "5#1", r.handled(orders0))
		})
	})

	t.Run("while the drain commits", func(t *testing.T) {
		withRig(t, nil, func(t *testing.T, r *rig) {
			r.engine.answer(func(*fakeCommit) error { return errTransient })
			r.receives(orders0, 5)
			drained := begin(func() { r.engine.rebalance(30*time.Minute, time.Hour) })
			r.after(time.Second)
			took, err := r.stop()
			require.ErrorContains(t, err, "commit")
			assert.LessOrEqual(t, took, 25*time.Second)
			r.engine.lose(errors.New("left"))
			r.engine.answer(nil)
			<-drained
		})
	})

	t.Run("between two generations", func(t *testing.T) {
		withRig(t, nil, func(t *testing.T, r *rig) {
			r.receives(orders0, 5)
			r.engine.rebalance(time.Minute, time.Minute)
			took, err := r.stop()
			require.NoError(t, err)
			assert.Zero(t, took)
			assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
		})
	})

	t.Run("while a generation is opened", func(t *testing.T) {
		withRig(t, nil, func(t *testing.T, r *rig) {
			r.engine.answer(slow(10 * time.Second))
			opened := begin(func() { r.engine.assign(fresh(orders0, 5)) })
			_, err := r.stop()
			require.NoError(t, err)
			<-opened
			assert.Nil(t, r.engine.lane(orders0))
			assert.Empty(t, r.history.all("assign"))
		})
	})

	t.Run("before an assignment that comes too late", func(t *testing.T) {
		withRig(t, nil, func(t *testing.T, r *rig) {
			r.engine.leaving = func(context.Context) error {
				r.engine.assign(at(orders0, 5))
				return nil
			}
			_, err := r.stop()
			require.NoError(t, err)
			assert.Nil(t, r.engine.lane(orders0))
			assert.Equal(t, len(r.history.all("assign")), len(r.history.all("revoke")), "what is assigned is revoked")
		})
	})
}

// Both want to drain; whoever comes second waits. Both orders, and at the same moment.
func TestShutdownRacesWithADrain(t *testing.T) {
	for range 50 {
		withRig(t, nil, func(t *testing.T, r *rig) {
			r.on = takes(100 * time.Millisecond)
			r.engine.assign(at(orders0, 5), at(refunds0, 0))
			r.engine.deliver(orders0, 5, 6)
			r.engine.deliver(refunds0, 0)
			synctest.Wait()
			go r.cancel()
			r.engine.rebalance(time.Minute, time.Minute)
			_, err := r.stop()
			require.NoError(t, err)
			require.Len(t, r.history.all("revoke"), 2)
			require.EqualValues(t, 6, r.engine.acknowledged(orders0))
			require.EqualValues(t, 1, r.engine.acknowledged(refunds0))
		})
	}
}

func TestLostDuringTheShutdown(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.on = func(ctx context.Context, _ Message) error {
			<-ctx.Done()
			return ctx.Err()
		}
		r.receives(orders0, 5)
		r.cancel()
		time.Sleep(time.Second)
		r.engine.lose(errLost)
		took, err := r.stop()
		assert.Zero(t, took)
		require.ErrorIs(t, err, ErrPartitionLost)
		assert.Len(t, r.history.all("lost orders/0@5"), 1)
		assert.EqualValues(t, -1, r.engine.acknowledged(orders0))
	})
}

func TestCommitOutsideRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		require.ErrorIs(t, r.consumer.Commit(t.Context()), ErrNotRunning)
		r.run(t.Context())
		_, _ = r.stop()
		require.ErrorIs(t, r.consumer.Commit(t.Context()), ErrNotRunning)
	})
}

func TestCommit(t *testing.T) {
	never := committing(-1)

	t.Run("commits what is settled in every partition", func(t *testing.T) {
		withRig(t, never, func(t *testing.T, r *rig) {
			r.engine.assign(at(orders0, 5), at(orders1, 0), at(refunds0, 0))
			r.engine.deliver(orders0, 5, 6)
			r.engine.deliver(refunds0, 0)
			synctest.Wait()
			r.engine.answer(slow(2 * time.Second))
			require.NoError(t, r.consumer.Commit(t.Context()))
			assert.Equal(t, 2*time.Second, time.Since(r.start), "it returns when the broker has answered")
			assert.Equal(t, []string{"[0s] orders/0@7 refunds/0@1"}, r.engine.attempts(r.start))
			require.NoError(t, r.consumer.Commit(t.Context()))
			assert.Equal(t, 1, r.engine.commitCount(), "there is nothing left")
		})
	})

	t.Run("from a handler", func(t *testing.T) {
		withRig(t, never, func(t *testing.T, r *rig) {
			var err error
			r.on = func(ctx context.Context, msg Message) error {
				if msg.Offset == 6 {
					err = r.consumer.Commit(ctx)
				}
				return nil
			}
			r.receives(orders0, 5, 6)
			require.NoError(t, err)
			assert.Equal(t, []string{"[0s] orders/0@6"}, r.engine.attempts(r.start), "its own message is not part of it")
		})
	})

	t.Run("from a handler that is drained", func(t *testing.T) {
		withRig(t, never, func(t *testing.T, r *rig) {
			var err error
			r.on = func(ctx context.Context, msg Message) error {
				if msg.Offset == 6 {
					time.Sleep(time.Second)
					err = r.consumer.Commit(ctx)
				}
				return nil
			}
			r.receives(orders0, 5, 6)
			began := time.Now()
			r.engine.rebalance(time.Minute, time.Minute)
			require.NoError(t, err)
			assert.Equal(t, time.Second, time.Since(began))
			assert.EqualValues(t, 7, r.engine.acknowledged(orders0))
		})
	})

	t.Run("tries again", func(t *testing.T) {
		withRig(t, never, func(t *testing.T, r *rig) {
			r.engine.answer(failing(errTransient, errTransient))
			r.receives(orders0, 5)
			require.NoError(t, r.consumer.Commit(t.Context()))
			assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
		})
	})

	t.Run("until its context ends", func(t *testing.T) {
		withRig(t, never, func(t *testing.T, r *rig) {
			r.engine.answer(func(*fakeCommit) error { return errTransient })
			r.receives(orders0, 5)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			require.Error(t, r.consumer.Commit(ctx))
			assert.Equal(t, 10*time.Second, time.Since(r.start))
			r.engine.answer(nil)
		})
	})

	t.Run("says what was refused", func(t *testing.T) {
		withRig(t, never, func(t *testing.T, r *rig) {
			r.engine.answer(refusing(errRefused, orders0))
			r.engine.assign(at(orders0, 5), at(refunds0, 0))
			r.engine.deliver(orders0, 5)
			r.engine.deliver(refunds0, 0)
			synctest.Wait()
			err := r.consumer.Commit(t.Context())
			require.ErrorIs(t, err, errRefused)
			require.ErrorContains(t, err, "orders/0")
			assert.Zero(t, time.Since(r.start), "trying again is useless")
			assert.EqualValues(t, 1, r.engine.acknowledged(refunds0))
			r.engine.answer(nil)
		})
	})

	t.Run("waits for the first assignment", func(t *testing.T) {
		withRig(t, never, func(t *testing.T, r *rig) {
			var err error
			committed := begin(func() { err = r.consumer.Commit(t.Context()) })
			r.after(time.Minute)
			require.False(t, isClosed(committed))
			r.engine.assign()
			synctest.Wait()
			require.True(t, isClosed(committed))
			require.NoError(t, err)
		})
	})

	t.Run("waits for the first assignment, unless its context ends", func(t *testing.T) {
		withRig(t, never, func(t *testing.T, r *rig) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			require.ErrorIs(t, r.consumer.Commit(ctx), context.DeadlineExceeded)
			assert.Equal(t, 10*time.Second, time.Since(r.start))
		})
	})

	t.Run("waits for the first assignment, unless Run ends", func(t *testing.T) {
		withRig(t, never, func(t *testing.T, r *rig) {
			var err error
			committed := begin(func() { err = r.consumer.Commit(t.Context()) })
			_, _ = r.stop()
			<-committed
			require.ErrorIs(t, err, ErrNotRunning)
		})
	})

	t.Run("waits for the outcome of a rebalance", func(t *testing.T) {
		withRig(t, never, func(t *testing.T, r *rig) {
			r.on = takes(5 * time.Second)
			r.receives(orders0, 5)
			drained := begin(func() { r.engine.rebalance(time.Minute, time.Minute) })
			<-drained
			var err error
			committed := begin(func() { err = r.consumer.Commit(t.Context()) })
			r.engine.assign(at(orders0, 6))
			synctest.Wait()
			require.True(t, isClosed(committed))
			require.NoError(t, err)
			assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
		})
	})

	t.Run("fails with the rebalance", func(t *testing.T) {
		withRig(t, never, func(t *testing.T, r *rig) {
			r.engine.answer(func(*fakeCommit) error { return errTransient })
			r.receives(orders0, 5)
			var during, after error
			committed := begin(func() { during = r.consumer.Commit(t.Context()) })
			r.after(time.Second)
			r.engine.rebalance(5*time.Second, 10*time.Second)
			<-committed
			require.Error(t, during)
			after = r.consumer.Commit(t.Context())
			require.ErrorIs(t, after, errTransient)
			require.Len(t, r.history.all("error: ", "last commit", errTransient.Error()), 1, "and it is reported")
		})
	})

	t.Run("fails when the partitions are lost", func(t *testing.T) {
		withRig(t, never, func(t *testing.T, r *rig) {
			r.engine.answer(slow(5 * time.Second))
			r.receives(orders0, 5)
			var err error
			committed := begin(func() { err = r.consumer.Commit(t.Context()) })
			r.engine.lose(errLost)
			<-committed
			require.ErrorIs(t, err, ErrPartitionLost)
		})
	})
}

func TestDrainCommitsUntilItsDeadline(t *testing.T) {
	withRig(t, committing(-1), func(t *testing.T, r *rig) {
		r.engine.answer(failing(errTransient, errTransient, errTransient, errTransient, errTransient))
		r.receives(orders0, 5)
		r.engine.rebalance(5*time.Second, 10*time.Second)
		assert.Equal(t, 1550*time.Millisecond, time.Since(r.start))
		assert.EqualValues(t, 6, r.engine.acknowledged(orders0))

		r.engine.answer(func(*fakeCommit) error { return errTransient })
		r.receives(orders0, 6)
		assert.Equal(t, 10*time.Second, r.drains(5*time.Second, 10*time.Second))
		assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
		assert.Len(t, r.history.all("error: ", "last commit", errTransient.Error()), 1)
	})
}

// Symptom: a coordinator that was away for longer than a drain made every message
// repeat that was settled since the last commit. Cause: the drain gave up at its
// deadline, although nobody can join without the coordinator either.
func TestDrainWaitsForACoordinatorThatIsAway(t *testing.T) {
	withRig(t, committing(-1), func(t *testing.T, r *rig) {
		back := time.Now().Add(15 * time.Second)
		r.engine.answer(func(*fakeCommit) error {
			if time.Now().Before(back) {
				return fmt.Errorf("%w: connection refused", engine.ErrUnreachable)
			}
			return nil
		})
		r.receives(orders0, 5)
		r.engine.rebalance(5*time.Second, 10*time.Second)
		assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
		assert.Less(t, time.Since(back), time.Second)
	})
}

// Symptom: a message was handled twice although its handler had returned in time. Cause:
// the coordinator took longer for the last commit than what was left of the drain; the
// answer was not waited for, and this member joined again from the offset before.
func TestDrainWaitsForACoordinatorThatIsSlow(t *testing.T) {
	withRig(t, committing(-1), func(t *testing.T, r *rig) {
		r.on = takes(9 * time.Second)
		first := true
		r.engine.answer(func(c *fakeCommit) error {
			if first { // the request hangs; it is cut off, and made again
				first = false
				return slow(5 * time.Second)(c)
			}
			return nil
		})
		r.receives(orders0, 5)
		r.engine.rebalance(8*time.Second, 10*time.Second)
		assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
		assert.Empty(t, r.history.all("error: "))
	})
}
