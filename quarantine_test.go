package kgroup

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// found claims a partition with what its last owner has left behind.
func found(p engine.Partition, offset int64, metadata string) engine.Claim {
	claim := at(p, offset)
	claim.Metadata = metadata
	return claim
}

// said is what the brokers know of a partition at this moment.
func (e *fakeEngine) said(p engine.Partition) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	o, opening := e.openings[p]
	if !opening {
		o = e.committed[p]
	}
	return fmt.Sprintf("%d %s", o.Offset, o.Metadata)
}

// The mark is there before the first message, which may be a deadly one; a drain takes it
// back, and a loss leaves it.
func TestOpenLanesAreMarked(t *testing.T) {
	for name, test := range map[string]struct {
		interval time.Duration
		end      func(r *rig)
		opened   string
		left     string
	}{
		"rebalance":   {0, func(r *rig) { r.engine.rebalance(time.Minute, time.Minute) }, "5 kgroup/1 o=1", "6 "},
		"shutdown":    {0, func(r *rig) { _, _ = r.stop() }, "5 kgroup/1 o=1", "6 "},
		"loss":        {0, func(r *rig) { r.engine.lose(errLost) }, "5 kgroup/1 o=1", "6 kgroup/1 o=1"},
		"every":       {CommitEveryMessage, func(r *rig) { r.engine.lose(errLost) }, "5 kgroup/1 o=1", "6 kgroup/1 o=1"},
		"own commits": {-1, func(r *rig) { r.engine.rebalance(time.Minute, time.Minute) }, "0 ", "6 "},
		"given up":    {0, func(r *rig) { r.hangs(); r.engine.deliver(orders0, 6); r.engine.rebalance(time.Second, 2*time.Second) }, "5 kgroup/1 o=1", "6 "},
	} {
		t.Run(name, func(t *testing.T) {
			withRig(t, committing(test.interval), func(t *testing.T, r *rig) {
				var first string
				r.on = func(context.Context, Message) error {
					first = r.engine.said(orders0)
					return nil
				}
				r.receives(orders0, 5)
				r.after(1100 * time.Millisecond)
				assert.Equal(t, test.opened, first)
				test.end(r)
				assert.Equal(t, test.left, r.engine.said(orders0))
			})
		})
	}
}

// The opening commit is made once: the brokers may be slow, and the work is not to wait.
func TestOpeningIsNotWaitedFor(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.engine.failOpening = true
		r.receives(orders0, 5)
		assert.Equal(t, "5#1", r.handled(orders0))
		assert.Len(t, r.history.all("error: commit: broker is restarting"), 1)
		r.after(time.Second)
		assert.Equal(t, "6 kgroup/1 o=1", r.engine.said(orders0), "the next one says so")
	})
}

// withQueue gives the topics queues of four.
func withQueue(cfg *Config) {
	withLetters(cfg)
	for name, topic := range cfg.Topics {
		topic.Queue = 4
		cfg.Topics[name] = topic
	}
}

// A suspect is handled while nothing else is, and was written down before.
func TestSuspectsAreHandledAlone(t *testing.T) {
	withRig(t, withQueue, func(t *testing.T, r *rig) {
		var running, most atomic.Int32
		r.on = func(_ context.Context, msg Message) error {
			n := running.Add(1)
			defer running.Add(-1)
			most.Store(max(most.Load(), n))
			time.Sleep(100 * time.Millisecond)
			if msg.Topic == "orders" && msg.Offset < 9 {
				assert.EqualValues(t, 1, n)
				assert.EqualValues(t, 1, running.Load())
				p := engine.Partition{Topic: msg.Topic, Number: msg.Partition}
				assert.Equal(t, fmt.Sprintf("%d kgroup/1 o=1 q=%d f=%[1]d s=%[1]d:1", msg.Offset, 9-msg.Offset), r.engine.said(p))
			}
			return nil
		}
		r.engine.assign(found(orders0, 5, "kgroup/1 o=2"), found(orders1, 5, "kgroup/1 o=2 q=1"), at(refunds0, 0))
		r.engine.deliver(orders0, 5, 6, 7, 8, 9, 10)
		r.engine.deliver(orders1, 5, 6, 7, 8, 9, 10)
		r.engine.deliver(refunds0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
		assert.Len(t, r.logs.with("level=WARN", "one at a time", "partitions=2"), 1)
		r.after(time.Second)
		assert.NotEmpty(t, r.handled(refunds0), "the others have their turns")
		r.after(3 * time.Second)
		assert.Equal(t, "5#1 6#1 7#1 8#1 9#1 10#1", r.handled(orders0))
		assert.Equal(t, "5#1 6#1 7#1 8#1 9#1 10#1", r.handled(orders1))
		assert.Len(t, r.history.all("handle refunds/0"), 10)
		assert.EqualValues(t, 3, most.Load(), "afterwards they are handled side by side")
		assert.Equal(t, "11 kgroup/1 o=1", r.engine.said(orders0))
	})
}

// A message that kills whoever handles it is a dead letter at the fifth start, with three
// attempts; those around it are handled. A start ends in the middle of the deadly handler:
// the next one finds what the brokers know at that moment.
func TestDeadlyMessage(t *testing.T) {
	claims := []engine.Claim{at(orders0, 5), at(refunds0, 0)}
	handled := map[string]bool{}
	for start := 1; start <= 5; start++ {
		withRig(t, withQueue, func(t *testing.T, r *rig) {
			dead := false
			r.on = func(ctx context.Context, msg Message) error {
				if msg.Topic == "orders" && msg.Offset == 7 {
					dead = true
					for i, c := range claims {
						offset, metadata, _ := strings.Cut(r.engine.said(c.Partition), " ")
						claims[i].Metadata = strings.Replace(metadata, "o=1", "o=2", 1) // another process
						claims[i].Offset, _ = strconv.ParseInt(offset, 10, 64)
					}
					<-ctx.Done()
					return ctx.Err()
				}
				handled[fmt.Sprintf("%s/%d", msg.Topic, msg.Offset)] = true
				return nil
			}
			deliver := func(c engine.Claim, end int64) {
				for offset := c.Offset; offset < end; offset++ {
					r.engine.deliver(c.Partition, offset)
				}
			}
			now := slices.Clone(claims)
			r.engine.assign(now...)
			deliver(now[1], 4)
			synctest.Wait()
			deliver(now[0], 10)
			r.after(100 * time.Millisecond)
			assert.Equal(t, start < 5, dead, "start %d", start)
			if dead {
				assert.Empty(t, r.engine.written(), "start %d", start)
				r.engine.lose(errLost) // what a rig does at its end must not commit anything
				return
			}
			assert.Equal(t, []string{"orders.dlq/0=7"}, r.engine.written())
			text, _ := header(r.engine.letters[0], "kgroup-error")
			assert.Contains(t, text, "died")
			attempts, _ := header(r.engine.letters[0], "kgroup-attempts")
			assert.Equal(t, "3", attempts, "deaths")
		})
	}
	assert.Len(t, handled, 8, "all others: %v", handled)
}

// A process dies right after a suspect was handled, by somebody else's doing: that is not
// the suspect's death, whether it has succeeded or failed.
func TestDeathAfterASuspect(t *testing.T) {
	for name, err := range map[string]error{"succeeded": nil, "failed": RetryAfter(errHandler, time.Hour)} {
		t.Run(name, func(t *testing.T) {
			withRig(t, withQueue, func(t *testing.T, r *rig) {
				r.on = failAt(5, err)
				var beside string
				on := r.on
				r.on = func(ctx context.Context, msg Message) error {
					if msg.Topic == "refunds" {
						beside = r.engine.said(orders0)
					}
					return on(ctx, msg)
				}
				r.engine.assign(found(orders0, 5, "kgroup/1 o=2"), at(refunds0, 0))
				r.engine.deliver(orders0, 5)
				synctest.Wait()
				r.engine.deliver(refunds0, 0)
				synctest.Wait()
				assert.NotEmpty(t, beside)
				assert.NotContains(t, beside, " s=")
			})
		})
	}
}

// A handler of an assignment before, that has not returned, may die too: a suspect waits
// for it.
func TestSuspectWaitsForOrphans(t *testing.T) {
	withRig(t, withQueue, func(t *testing.T, r *rig) {
		gate := r.gate()
		r.on = func(_ context.Context, msg Message) error {
			if msg.Topic == "refunds" {
				gate.wait()
			}
			return nil
		}
		r.receives(refunds0, 0)
		r.engine.rebalance(time.Second, 2*time.Second)
		r.engine.assign(found(orders0, 5, "kgroup/1 o=2"))
		r.engine.deliver(orders0, 5)
		r.after(time.Minute)
		assert.Empty(t, r.handled(orders0))
		gate.open()
		synctest.Wait()
		assert.Equal(t, "5#1", r.handled(orders0))
	})
}

// Suspects that wait for their turn are suspects, however long that takes.
func TestSuspectsThatWaitForOthers(t *testing.T) {
	withRig(t, withLetters, func(t *testing.T, r *rig) {
		r.engine.marks = map[engine.Partition]int64{}
		var claims []engine.Claim
		for _, p := range eight("orders") {
			claims = append(claims, found(p, 0, "kgroup/1 o=2"))
			r.engine.marks[p] = 10
		}
		var running, most atomic.Int32
		r.on = func(context.Context, Message) error {
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			time.Sleep(time.Second)
			return nil
		}
		r.engine.assign(claims...)
		for _, p := range eight("orders") {
			r.engine.deliver(p, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
		}
		r.after(79 * time.Second)
		assert.EqualValues(t, 1, most.Load())
		r.after(2 * time.Second)
		assert.False(t, r.quarantined())
	})
}

// Who has lost a session and gets its partition back lives: nobody has died of it.
func TestOwnLossIsNoDeath(t *testing.T) {
	withRig(t, withQueue, func(t *testing.T, r *rig) {
		r.engine.assign(found(orders0, 5, "kgroup/1 o=1 s=5:3"))
		assert.False(t, r.quarantined())
		r.engine.deliver(orders0, 5)
		synctest.Wait()
		assert.Equal(t, "5#1", r.handled(orders0), "alone when the session was lost, but no death")
	})
}

// A generation that is over before it was opened leaves no mark.
func TestOpeningIsTakenBack(t *testing.T) {
	withRig(t, func(cfg *Config) {
		cfg.Hooks.Assign = func(string, int32, int64) { time.Sleep(time.Second) }
	}, func(t *testing.T, r *rig) {
		opened := begin(func() { r.engine.assign(at(orders0, 5)) })
		assert.Equal(t, "5 kgroup/1 o=1", r.engine.said(orders0))
		r.engine.endSlot()
		<-opened
		assert.Equal(t, "5 ", r.engine.said(orders0))
	})
}

// Of an opening whose answer was lost nobody knows what the brokers have: the drain says
// that it is over in any case.
func TestOpeningWhoseAnswerIsLost(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.engine.failOpening = true
		r.engine.assign(at(orders0, 5))
		before := r.engine.commitCount()
		r.engine.rebalance(time.Minute, time.Minute)
		assert.Equal(t, before+1, r.engine.commitCount())
		assert.Equal(t, "5 ", r.engine.said(orders0))
	})
}

// A topic that is quicker than its queue: the deadly message is further from what was
// committed. It is found all the same, one start later.
func TestDeadlyMessageOfAQuickTopic(t *testing.T) {
	claim := at(orders0, 0)
	for start := 1; ; start++ {
		require.LessOrEqual(t, start, 6)
		dead := false
		withRig(t, withQueue, func(t *testing.T, r *rig) {
			r.on = func(ctx context.Context, msg Message) error {
				time.Sleep(time.Millisecond)
				if msg.Offset == 300 {
					dead = true
					offset, metadata, _ := strings.Cut(r.engine.said(orders0), " ")
					claim.Metadata = strings.Replace(metadata, "o=1", "o=2", 1)
					claim.Offset, _ = strconv.ParseInt(offset, 10, 64)
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			}
			now := claim
			r.engine.assign(now)
			for offset := now.Offset; offset < 310; offset++ {
				r.engine.deliver(orders0, offset)
			}
			r.after(900 * time.Millisecond)
			if dead {
				r.engine.lose(errLost)
			}
		})
		if !dead {
			return
		}
	}
}

// Deaths count only where a message was alone, and is still the one.
func TestDeathsOfOtherMessages(t *testing.T) {
	withRig(t, withQueue, func(t *testing.T, r *rig) {
		r.engine.assign(found(orders0, 6, "kgroup/1 o=2 q=3 s=5:3"))
		r.engine.deliver(orders0, 6, 7)
		r.after(time.Second)
		assert.Equal(t, "6#1 7#1", r.handled(orders0))
		assert.Empty(t, r.engine.written())
	})
}

// Without a dead-letter topic a deadly message is held, and never called again; it stays so
// in the next owner. More attempts, with a mended handler, let it be tried.
func TestDeadlyMessageIsHeld(t *testing.T) {
	attempts := func(n int) func(*Config) {
		return func(cfg *Config) {
			cfg.Topics["orders"] = Topic{Handler: cfg.Topics["orders"].Handler, Queue: 4, Retry: Retry{MaxAttempts: n}}
		}
	}
	withRig(t, attempts(3), func(t *testing.T, r *rig) {
		r.engine.assign(found(orders0, 5, "kgroup/1 o=2 q=4 s=5:3"), at(refunds0, 0))
		r.engine.deliver(orders0, 5, 6)
		r.engine.deliver(refunds0, 0, 1)
		r.after(time.Hour)
		assert.Empty(t, r.handled(orders0))
		assert.Equal(t, "0#1 1#1", r.handled(refunds0))
		require.Len(t, r.history.all("blocked orders/0@5", "process has died", "3 times"), 1)
		require.ErrorContains(t, r.consumer.Health().Err(), "died")
		assert.Zero(t, r.drains(time.Minute, time.Minute))
		assert.Equal(t, "kgroup/1 f=5 s=5:3", r.engine.metadata(orders0))
	})
	withRig(t, attempts(4), func(t *testing.T, r *rig) {
		r.engine.assign(found(orders0, 5, "kgroup/1 s=5:3"))
		r.engine.deliver(orders0, 5, 6)
		r.after(2 * time.Second)
		assert.Equal(t, "5#1 6#1", r.handled(orders0))
		assert.Equal(t, "7 kgroup/1 o=1", r.engine.said(orders0))
	})
}

// A drain in the middle is no death: what is left to be suspected of goes to the next owner.
func TestDrainDuringAQuarantine(t *testing.T) {
	withRig(t, withQueue, func(t *testing.T, r *rig) {
		r.on = func(context.Context, Message) error { time.Sleep(time.Second); return nil }
		r.engine.assign(found(orders0, 5, "kgroup/1 o=2 q=1 s=5:2"), found(orders1, 0, "kgroup/1 o=2"))
		r.engine.deliver(orders0, 5, 6, 7)
		r.engine.deliver(orders1, 0, 1, 2)
		r.after(500 * time.Millisecond)
		assert.LessOrEqual(t, r.drains(time.Minute, time.Minute), 500*time.Millisecond, "who waits for his turn ends at once")
		both := []string{r.engine.said(orders0), r.engine.said(orders1)}
		assert.Contains(t, [][]string{
			{"6 kgroup/1 q=3", "0 kgroup/1 q=4"},
			{"5 kgroup/1 q=4 f=5 s=5:2", "1 kgroup/1 q=3"},
		}, both)
	})
}

// A handler that outlives the drain has killed nobody.
func TestOrphanOfAQuarantineIsNoDeath(t *testing.T) {
	withRig(t, withQueue, func(t *testing.T, r *rig) {
		gate := r.hangs()
		r.engine.assign(found(orders0, 5, "kgroup/1 o=2 q=4 s=5:2"))
		r.engine.deliver(orders0, 5)
		synctest.Wait()
		assert.Equal(t, "5 kgroup/1 o=1 q=4 f=5 s=5:3", r.engine.said(orders0))
		r.engine.rebalance(time.Second, 2*time.Second)
		assert.Equal(t, "5 kgroup/1 q=4 f=5 s=5:2", r.engine.said(orders0))
		gate.open()
	})
}

// An attempt that fails leaves the others their turn while it waits for the next one.
func TestSuspectInABackoff(t *testing.T) {
	withRig(t, withQueue, func(t *testing.T, r *rig) {
		r.on = failAt(5, RetryAfter(errHandler, time.Hour))
		r.engine.assign(found(orders0, 5, "kgroup/1 o=2"), at(refunds0, 0))
		r.engine.deliver(orders0, 5)
		r.engine.deliver(refunds0, 0, 1)
		r.after(time.Second)
		assert.Equal(t, "5#1", r.handled(orders0))
		assert.Equal(t, "0#1 1#1", r.handled(refunds0))
		assert.Equal(t, "5 kgroup/1 o=1 q=4 f=5 a=5:1", r.engine.said(orders0), "it is not in anybody's hands now")
	})
}

// The handler of a suspect may end its goroutine.
func TestGoexitOfASuspect(t *testing.T) {
	withRig(t, withQueue, func(t *testing.T, r *rig) {
		r.on = func(_ context.Context, msg Message) error {
			if msg.Topic == "orders" && msg.Attempt == 1 {
				runtime.Goexit()
			}
			return nil
		}
		r.engine.assign(found(orders0, 5, "kgroup/1 o=2"), at(refunds0, 0))
		r.engine.deliver(orders0, 5)
		r.engine.deliver(refunds0, 0, 1)
		r.after(time.Second)
		assert.Equal(t, "5#1 5#2", r.handled(orders0))
		assert.Equal(t, "0#1 1#1", r.handled(refunds0))
	})
}

// While it cannot be written down, a suspect waits, and only that.
func TestSuspectThatCannotBeWrittenDown(t *testing.T) {
	withRig(t, withQueue, func(t *testing.T, r *rig) {
		r.engine.answer(refusing(errRefused, orders0))
		r.engine.assign(found(orders0, 5, "kgroup/1 o=2"), at(refunds0, 0))
		r.engine.deliver(orders0, 5)
		r.engine.deliver(refunds0, 0, 1)
		r.after(10 * time.Second)
		assert.Empty(t, r.handled(orders0))
		assert.Equal(t, "0#1 1#1", r.handled(refunds0))
		assert.Len(t, r.history.all("error: commit orders/0"), 1)
		r.engine.answer(nil)
		r.after(2 * time.Second)
		assert.Equal(t, "5#1", r.handled(orders0))
	})
}

// Suspicion ends where the last owner cannot have been: at the end that the partition has
// when it is first known, and where no message comes.
func TestEndOfSuspicion(t *testing.T) {
	t.Run("at the end of the partition", func(t *testing.T) {
		withRig(t, withQueue, func(t *testing.T, r *rig) {
			r.engine.marks = map[engine.Partition]int64{orders0: 6}
			r.engine.assign(found(orders0, 5, "kgroup/1 o=2"))
			r.after(quarantineTick)
			r.engine.deliver(orders0, 5)
			r.after(time.Second)
			assert.Equal(t, "6 kgroup/1 o=1", r.engine.said(orders0))
			assert.False(t, r.quarantined())
		})
	})
	t.Run("nothing was in the last owner's hands", func(t *testing.T) {
		withRig(t, withQueue, func(t *testing.T, r *rig) {
			r.engine.marks = map[engine.Partition]int64{orders0: 5}
			r.engine.assign(found(orders0, 5, "kgroup/1 o=2"))
			r.after(quarantineTick)
			assert.False(t, r.quarantined())
		})
	})
	t.Run("no message comes", func(t *testing.T) {
		withRig(t, withQueue, func(t *testing.T, r *rig) {
			r.engine.marks = map[engine.Partition]int64{orders0: 7} // 5 and 6 are markers of a transaction
			r.engine.assign(found(orders0, 5, "kgroup/1 o=2"))
			r.after(time.Second)
			assert.True(t, r.quarantined())
			r.after(quarantineIdle * quarantineTick)
			assert.False(t, r.quarantined())
			assert.Zero(t, r.drains(time.Minute, time.Minute))
			assert.Equal(t, "5 ", r.engine.said(orders0), "the next owner need not suspect anything")
		})
	})
	t.Run("not while nothing was fetched", func(t *testing.T) {
		withRig(t, withQueue, func(t *testing.T, r *rig) {
			r.engine.assign(found(orders0, 5, "kgroup/1 o=2"))
			r.after(time.Hour)
			assert.True(t, r.quarantined())
		})
	})
	t.Run("not while one is handled", func(t *testing.T) {
		withRig(t, withQueue, func(t *testing.T, r *rig) {
			r.engine.marks = map[engine.Partition]int64{orders0: 7}
			r.on = takes(time.Minute)
			r.engine.assign(found(orders0, 5, "kgroup/1 o=2"))
			r.engine.deliver(orders0, 5)
			r.after(50 * time.Second)
			assert.True(t, r.quarantined())
		})
	})
}

func (r *rig) quarantined() bool {
	a := r.consumer.assignment
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.current.lanes {
		if l.quarantine.lasts() {
			return true
		}
	}
	return false
}

// A group whose commits are its own business has no marks, and no quarantine.
func TestNoQuarantineWithOwnCommits(t *testing.T) {
	withRig(t, committing(-1), func(t *testing.T, r *rig) {
		r.engine.assign(found(orders0, 5, "kgroup/1 o=2"))
		assert.False(t, r.quarantined())
		r.engine.deliver(orders0, 5)
		r.after(time.Hour)
		assert.Equal(t, "5#1", r.handled(orders0))
		assert.Zero(t, r.engine.commitCount())
		synctest.Wait()
	})
}

// starts starts a process again and again, which dies whenever it handles one of the deadly
// messages. It returns at which start it did not die any more.
func starts(t *testing.T, change func(*Config), keys string, deadly []int64, on func(*rig, Message) error) int {
	t.Helper()
	claim := at(orders0, 0)
	for start := 1; start <= 20; start++ {
		dead := false
		withRig(t, change, func(t *testing.T, r *rig) {
			var mu sync.Mutex
			r.on = func(ctx context.Context, msg Message) error {
				mu.Lock()
				if !dead && slices.Contains(deadly, msg.Offset) {
					dead = true
					offset, metadata, _ := strings.Cut(r.engine.said(orders0), " ")
					claim.Metadata = strings.Replace(metadata, "o=1", "o=2", 1) // another process
					claim.Offset, _ = strconv.ParseInt(offset, 10, 64)
				}
				dies := dead
				mu.Unlock()
				if dies {
					<-ctx.Done()
					return ctx.Err()
				}
				return on(r, msg)
			}
			now := claim
			r.engine.assign(now)
			r.engine.keyed(orders0, now.Offset, keys[now.Offset:])
			r.after(time.Minute)
			r.engine.lose(errLost)
		})
		if !dead {
			return start
		}
	}
	return 0
}

// What stands in front of a deadly message does not let its deaths be forgotten.
func TestDeadlyMessageBehindOthers(t *testing.T) {
	held := changes(withQueue, workers(4), onOrders(func(t *Topic) { t.DeadLetter = "" }))
	permanent := func(r *rig, msg Message) error {
		r.engine.onPublish(func(context.Context, engine.Letter) error { time.Sleep(50 * time.Millisecond); return nil })
		if msg.Offset == 0 {
			return Permanent(errHandler)
		}
		return nil
	}
	for name, test := range map[string]struct {
		change func(*Config)
		deadly []int64
		on     func(*rig, Message) error
		most   int
	}{
		"one that fails": {held, []int64{1}, func(_ *rig, msg Message) error {
			if msg.Offset == 0 {
				return RetryAfter(errHandler, time.Hour) // what it needs is down
			}
			return nil
		}, 5},
		"one that becomes a letter":                  {changes(withQueue, workers(4)), []int64{1}, permanent, 5},
		"one that becomes a letter, with one worker": {withQueue, []int64{1}, permanent, 5},
		"another deadly one":                         {held, []int64{0, 1}, func(*rig, Message) error { return nil }, 9},
	} {
		t.Run(name, func(t *testing.T) {
			start := starts(t, test.change, "abcd", test.deadly, test.on)
			assert.NotZero(t, start)
			assert.LessOrEqual(t, start, test.most)
		})
	}
}

// A letter that is acknowledged while a suspect of another key is written down moves the
// frontier. The suspect is written down all the same, and crossed out before others go on.
func TestSuspectIsWrittenDownBesideALetter(t *testing.T) {
	change := changes(withQueue, workers(4))
	withRig(t, change, func(t *testing.T, r *rig) {
		var known atomic.Int32
		r.on = func(_ context.Context, msg Message) error {
			if msg.Topic == "refunds" {
				if strings.Contains(r.engine.said(orders0), " s=") {
					known.Add(1)
				}
				time.Sleep(time.Millisecond)
			}
			if msg.Topic == "orders" && msg.Offset == 0 {
				return Permanent(errHandler)
			}
			return nil
		}
		r.engine.onPublish(func(context.Context, engine.Letter) error { time.Sleep(5 * time.Millisecond); return nil })
		r.engine.answer(slow(10 * time.Millisecond))
		r.engine.assign(found(orders0, 0, "kgroup/1 o=2"), at(refunds0, 0), found(orders1, 0, "kgroup/1 o=2"))
		r.engine.keyed(orders0, 0, "ab")
		synctest.Wait()
		r.engine.keyed(refunds0, 0, "abcdefgh")
		r.after(500 * time.Millisecond)
		assert.Equal(t, "0#1 1#1", r.sorted(orders0), "1 need not wait")
		assert.Zero(t, known.Load(), "refunds handled while a suspect of orders counts as alone")
	})
}

func TestGoexitInTheCommitHookOfASuspect(t *testing.T) {
	n := 0
	change := func(cfg *Config) {
		withQueue(cfg)
		cfg.Hooks.Commit = func(map[string]map[int32]int64, error) {
			if n++; n == 3 || n == 4 {
				runtime.Goexit()
			}
		}
	}
	withRig(t, change, func(t *testing.T, r *rig) {
		r.engine.assign(found(orders0, 5, "kgroup/1 o=2"))
		r.engine.deliver(orders0, 5, 6, 7, 8, 9, 10)
		r.after(time.Hour)
		assert.Equal(t, "5#1 6#1 7#1 8#1 9#1 10#1", r.handled(orders0))
	})
}
