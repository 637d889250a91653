package kgroup

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// guarded is withLetters with the default breaker.
func guarded(cfg *Config) {
	withLetters(cfg)
	for name, topic := range cfg.Topics {
		topic.Breaker, topic.Retry.MaxAttempts = Breaker{}, 5
		cfg.Topics[name] = topic
	}
}

// eight are the partitions of a topic.
func eight(topic string) []engine.Partition {
	partitions := make([]engine.Partition, 8)
	for i := range partitions {
		partitions[i] = engine.Partition{Topic: topic, Number: int32(i)}
	}
	return partitions
}

// owns gives the consumer partitions whose committed offset is 0, and n messages each.
func (r *rig) owns(partitions []engine.Partition, n int) {
	claims := make([]engine.Claim, len(partitions))
	for i, p := range partitions {
		claims[i] = at(p, 0)
	}
	r.engine.assign(claims...)
	offsets := make([]int64, n)
	for i := range offsets {
		offsets[i] = int64(i)
	}
	for _, p := range partitions {
		r.engine.deliver(p, offsets...)
	}
}

// An outage of what the handlers need makes no dead letters, and hardly any attempts;
// then all goes on, and no message has lost an attempt to it.
func TestOutageIsNotPoison(t *testing.T) {
	many := func(cfg *Config) { // more than they have made when it opens, so that those that follow would show
		guarded(cfg)
		for name, topic := range cfg.Topics {
			topic.Retry.MaxAttempts = 50
			cfg.Topics[name] = topic
		}
	}
	withRig(t, many, func(t *testing.T, r *rig) {
		var dead atomic.Bool
		dead.Store(true)
		r.on = func(_ context.Context, msg Message) error {
			if dead.Load() && msg.Topic == "orders" {
				return errHandler
			}
			return nil
		}
		r.owns(eight("orders"), 10)
		r.after(7 * time.Second)
		require.Len(t, r.history.all("breaker orders true: bank is closed"), 1)
		assert.Equal(t, []string{"orders"}, r.consumer.Health().Paused)
		assert.Len(t, r.logs.with("level=ERROR", "topic=orders", "paused"), 1)
		attempts := len(r.history.all("handle orders"))
		assert.LessOrEqual(t, attempts, 8*40, "in the seconds before it was sure")

		r.history.clear()
		r.after(53 * time.Second)
		assert.Len(t, r.history.all("handle orders"), 53, "one a second")
		for _, p := range eight("orders") {
			probes := r.history.all("handle " + p.String() + "@")
			assert.InDelta(t, 53.0/8, len(probes), 1, "another partition each time")
			assert.Len(t, slices.Compact(probes), 1, "no attempt counts")
		}
		require.Error(t, r.consumer.Health().Err(), "it has lasted for 30 s")

		dead.Store(false)
		r.history.clear()
		r.after(2 * time.Second)
		assert.Len(t, r.history.all("breaker orders false"), 1)
		assert.Len(t, r.history.all("returned", "<nil>"), 80)
		assert.Empty(t, r.engine.written())
		assert.Empty(t, r.consumer.Health().Paused)
		require.NoError(t, r.consumer.Health().Err())
	})
}

// Bad messages among good ones open nothing, also where partitions are at a bad one most of
// the time: what has worked meanwhile tells.
func TestPoisonIsNotAnOutage(t *testing.T) {
	for name, err := range map[string]error{"transient": errHandler, "permanent": Permanent(errHandler)} {
		t.Run(name, func(t *testing.T) {
			withRig(t, guarded, func(t *testing.T, r *rig) {
				r.on = func(_ context.Context, msg Message) error {
					time.Sleep(time.Millisecond)
					if msg.Offset%10 == int64(msg.Partition) {
						return err
					}
					return nil
				}
				r.owns(eight("orders"), 100)
				r.after(time.Minute)
				assert.Empty(t, r.history.all("breaker"))
				assert.Len(t, r.engine.written(), 80)
				for _, p := range eight("orders") {
					assert.EqualValues(t, 100, r.engine.acknowledged(p))
				}
			})
		})
	}
}

// Bad messages at the head of all partitions look like an outage. But nothing stops for
// ever: after a long time one is condemned on trial, and what is behind it works.
func TestPoisonAtTheHeadOfAllPartitions(t *testing.T) {
	for name, retry := range map[string]Retry{
		"in doubt":             {MinBackoff: 100 * time.Millisecond, MaxBackoff: 30 * time.Second, MaxAttempts: 5},
		"with an open breaker": {MinBackoff: time.Second, MaxBackoff: time.Second, MaxAttempts: 50},
	} {
		t.Run(name, func(t *testing.T) {
			patient := func(cfg *Config) {
				guarded(cfg)
				for name, topic := range cfg.Topics {
					topic.Retry = retry
					cfg.Topics[name] = topic
				}
			}
			withRig(t, patient, func(t *testing.T, r *rig) {
				r.on = func(_ context.Context, msg Message) error {
					if msg.Offset == 0 {
						return errHandler
					}
					return nil
				}
				r.owns(eight("orders"), 10)
				r.after(99 * time.Second)
				assert.Empty(t, r.engine.written(), "not before")
				r.after(20 * time.Minute)
				assert.Empty(t, r.consumer.Health().Paused)
				assert.Len(t, r.engine.written(), 8)
				for _, p := range eight("orders") {
					assert.EqualValues(t, 10, r.engine.acknowledged(p))
				}
			})
		})
	}
}

// The trials of a long outage are few.
func TestLongOutage(t *testing.T) {
	for name, handler := range map[string]func(ctx context.Context) error{
		"fails at once": func(context.Context) error { return errHandler },
		"hangs":         func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		for _, partitions := range []int{1, 2, 8} {
			t.Run(fmt.Sprintf("%s, %d partitions", name, partitions), func(t *testing.T) {
				timed := func(cfg *Config) {
					guarded(cfg)
					for name, topic := range cfg.Topics {
						topic.Timeout = 15 * time.Second
						topic.Retry.MaxBackoff = 30 * time.Second
						cfg.Topics[name] = topic
					}
				}
				withRig(t, timed, func(t *testing.T, r *rig) {
					r.on = func(ctx context.Context, _ Message) error { return handler(ctx) }
					r.owns(eight("orders")[:partitions], 100)
					r.after(90 * time.Second)
					most := 0
					if partitions == 1 {
						most = 1 // which could be a bad message
					}
					assert.LessOrEqual(t, len(r.engine.written()), most)
					r.after(20 * time.Minute)
					assert.LessOrEqual(t, len(r.engine.written()), most+3, "after 100 s, 200 s and 400 s")
				})
			})
		}
	}
}

// A topic with nothing but Permanent errors is not paused.
func TestPermanentErrorsDoNotOpenTheBreaker(t *testing.T) {
	withRig(t, guarded, func(t *testing.T, r *rig) {
		r.on = func(context.Context, Message) error { return Permanent(errHandler) }
		r.owns(eight("orders"), 100)
		synctest.Wait()
		assert.Empty(t, r.history.all("breaker"))
		assert.Len(t, r.engine.written(), 800)
	})
}

// The message of the only partition with any traffic is bad: it becomes a dead letter, for
// a breaker that could not tell would hold it for ever.
func TestSinglePoisonIsADeadLetter(t *testing.T) {
	withRig(t, guarded, func(t *testing.T, r *rig) {
		r.on = failAt(0, errHandler)
		r.owns(eight("orders")[:1], 2)
		r.after(time.Minute)
		assert.Equal(t, []string{"orders.dlq/0=0"}, r.engine.written())
	})
}

// When all partitions fail and none has failed often enough to be sure, nothing becomes a
// dead letter yet.
func TestNoDeadLettersInDoubt(t *testing.T) {
	few := func(cfg *Config) {
		guarded(cfg)
		for name, topic := range cfg.Topics {
			topic.Retry.MaxAttempts = 1
			cfg.Topics[name] = topic
		}
	}
	withRig(t, few, func(t *testing.T, r *rig) {
		r.on = func(context.Context, Message) error {
			time.Sleep(10 * time.Millisecond)
			return errHandler
		}
		r.owns(eight("orders"), 10)
		r.after(time.Minute)
		assert.LessOrEqual(t, len(r.engine.written()), 1, "the very first failure looks like a bad message")
	})
}

// The pause ends with a drain at once, and goes on with the next assignment.
func TestBreakerOutlivesARebalance(t *testing.T) {
	withRig(t, guarded, func(t *testing.T, r *rig) {
		var mended atomic.Bool
		r.on = func(context.Context, Message) error {
			if mended.Load() {
				return nil
			}
			return errHandler
		}
		r.owns(eight("orders"), 10)
		r.after(10 * time.Second)
		require.Equal(t, []string{"orders"}, r.consumer.Health().Paused)
		for range 3 {
			assert.Zero(t, r.drains(time.Minute, time.Minute))
			r.after(5 * time.Second)
			r.history.clear()
			r.owns(eight("orders"), 10)
			r.after(4500 * time.Millisecond)
			assert.InDelta(t, 5, len(r.history.all("handle")), 1, "one at once, that was due, and one a second")
		}
		assert.Len(t, r.history.all("breaker"), 0)
		mended.Store(true)
		r.after(2 * time.Second)
		assert.Empty(t, r.consumer.Health().Paused)
		assert.Empty(t, r.engine.written())
	})
}

// Other topics go on.
func TestBreakerIsOneTopics(t *testing.T) {
	withRig(t, guarded, func(t *testing.T, r *rig) {
		r.on = func(_ context.Context, msg Message) error {
			if msg.Topic == "orders" {
				return errHandler
			}
			return nil
		}
		r.owns(append(eight("orders"), refunds0), 10)
		r.after(time.Minute)
		assert.Len(t, r.history.all("handle refunds/0"), 10)
		assert.Equal(t, []string{"orders"}, r.consumer.Health().Paused)
	})
}

// Behind an outage that is over lie only messages that are bad for good: their errors say
// nothing about an outage, and nobody else would ever close the breaker.
func TestBreakerDoesNotStayOpenForBadMessages(t *testing.T) {
	withRig(t, guarded, func(t *testing.T, r *rig) {
		var dead atomic.Bool
		dead.Store(true)
		r.on = func(context.Context, Message) error {
			if dead.Load() {
				return errHandler
			}
			return Permanent(errHandler)
		}
		r.owns(eight("orders"), 1)
		r.after(10 * time.Second)
		require.Equal(t, []string{"orders"}, r.consumer.Health().Paused)
		dead.Store(false)
		r.after(5 * time.Second)
		assert.Empty(t, r.engine.written(), "not while it is open")
		r.after(5 * time.Second)
		assert.Len(t, r.engine.written(), 8)
		assert.Empty(t, r.consumer.Health().Paused)
	})
}

// A probe that hangs does not keep the others from finding out.
func TestProbeThatHangs(t *testing.T) {
	withRig(t, guarded, func(t *testing.T, r *rig) {
		var outage atomic.Int32
		gate := r.gate()
		r.on = func(context.Context, Message) error {
			switch outage.Load() {
			case 0:
				return errHandler
			case 1:
				outage.Store(2)
				gate.wait()
			}
			return nil
		}
		r.owns(eight("orders"), 1)
		r.after(10 * time.Second)
		outage.Store(1)
		r.after(2 * time.Second)
		assert.Empty(t, r.consumer.Health().Paused)
		assert.Len(t, r.history.all("returned", "<nil>"), 7)
		gate.open()
	})
}

func TestBreakerOff(t *testing.T) {
	withRig(t, withLetters, func(t *testing.T, r *rig) {
		r.on = func(context.Context, Message) error { return errHandler }
		r.owns(eight("orders"), 10)
		r.after(time.Minute)
		assert.Empty(t, r.history.all("breaker"))
		assert.Len(t, r.engine.written(), 80)
	})
}

// A breaker may be had without dead letters too.
func TestBreakerWithoutDeadLetters(t *testing.T) {
	set := func(cfg *Config) {
		cfg.Topics["orders"] = Topic{Handler: cfg.Topics["orders"].Handler, Breaker: Breaker{MinAttempts: 3, Window: 2 * time.Second, Probe: time.Minute}}
	}
	withRig(t, set, func(t *testing.T, r *rig) {
		r.on = func(context.Context, Message) error { return errHandler }
		r.owns(eight("orders"), 10)
		r.after(59 * time.Second)
		assert.Len(t, r.history.all("breaker orders true"), 1)
		attempts := len(r.history.all("handle"))
		assert.LessOrEqual(t, attempts, 8*7, "in the first second")
		r.after(59 * time.Second)
		assert.Len(t, r.history.all("handle"), attempts+1)
	})
}

// Who says when to come again is believed while the breaker is open, too.
func TestRetryAfterWhileTheBreakerIsOpen(t *testing.T) {
	four := func(cfg *Config) {
		cfg.Topics["orders"] = Topic{Handler: cfg.Topics["orders"].Handler, Breaker: Breaker{MinAttempts: 4}}
	}
	withRig(t, four, func(t *testing.T, r *rig) {
		r.on = func(context.Context, Message) error { return RetryAfter(errHandler, 30*time.Second) }
		r.owns(eight("orders"), 10)
		r.after(5 * time.Minute)
		for _, p := range eight("orders") {
			assert.InDelta(t, 10, len(r.history.all("handle "+p.String()+"@")), 1)
		}
	})
}

// testBreaker is a breaker of 4 attempts in 10 s, of which half must fail.
func testBreaker() *breaker {
	return newBreaker("orders", Breaker{MinAttempts: 4, FailureRatio: 0.5, Window: 10 * time.Second, Probe: time.Second}, slog.New(slog.DiscardHandler), nil)
}

func openBreaker(t *testing.T) *breaker {
	t.Helper()
	b := testBreaker()
	for range 4 {
		b.failed(orders0, 0, 1, errHandler)
	}
	time.Sleep(5 * time.Second)
	b.failed(orders0, 0, 1, errHandler)
	require.True(t, b.isOpen())
	return b
}

// When it opens: + is a success, - a failure, p a Permanent error, and a dot one second.
func TestWhenABreakerOpens(t *testing.T) {
	for _, test := range []struct {
		attempts string
		opens    bool
	}{
		{"---", false},
		{"-.....---", true},
		{"-....---", false}, // all of them within half of the window
		{"----.....-", true},
		{"-++.....-", true},      // half
		{"-.....+++-", false},    // less
		{"+++++-.....+--", true}, // nothing is counted before the first failure
		{"-+++.....-+-+", false},
		{"-.....pppppp--", false}, // too few that count
		{"---........-", true},
		{"---..........-", false}, // the first ones are too long ago
		{"---...........-", false},
		{"-.....-.....-.....-", false},
		{"-++++++++++++++.....----", false},
		{"-++++++++++++++............-.....---", true},
	} {
		t.Run(test.attempts, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := testBreaker()
				for i, c := range test.attempts {
					last := i == len(test.attempts)-1
					switch c {
					case '+':
						b.succeeded(normal, time.Now(), 1)
					case '-':
						assert.Equal(t, last && test.opens, !b.failed(orders0, 0, 1, errHandler), "it counts unless it opens")
					case 'p':
						assert.True(t, b.evaded(normal))
					case '.':
						time.Sleep(time.Second)
					}
					assert.Equal(t, last && test.opens, b.isOpen(), "after %d", i+1)
				}
				if b.isOpen() {
					b.mu.Lock()
					b.close()
					b.mu.Unlock()
				}
			})
		})
	}
}

// Once a window has passed without a failure, nothing is counted any more.
func TestBreakerCalmsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testBreaker()
		b.failed(orders0, 0, 1, errHandler)
		require.Equal(t, counting, b.mode.Load())
		time.Sleep(9 * time.Second)
		b.succeeded(normal, time.Now(), 1)
		require.Equal(t, counting, b.mode.Load())
		time.Sleep(2 * time.Second)
		b.succeeded(normal, time.Now(), 1)
		assert.Equal(t, calm, b.mode.Load())
	})
}

// What began before it opened, and ends after, changes nothing.
func TestAttemptsUnderWayWhenABreakerOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBreaker(t)
		assert.False(t, b.failed(orders1, 0, 1, errHandler))
		assert.False(t, b.evaded(normal))
		b.succeeded(normal, time.Now(), 1)
		require.True(t, b.isOpen())

		sealed := make(chan struct{})
		close(sealed)
		assert.Equal(t, refused, b.admit(sealed))
		assert.Empty(t, b.waiting)
		time.Sleep(90 * time.Second) // a probe is due
		assert.Equal(t, asProbe, b.admit(make(chan struct{})))
		b.succeeded(asProbe, time.Now(), 1)
		assert.False(t, b.isOpen())
		b.succeeded(asProbe, time.Now(), 1) // a second one, that hung
		assert.False(t, b.failed(orders0, 0, 1, errHandler) && b.isOpen())
	})
}

// Whoever waits when it is closed goes on, also if it is opened again at once.
func TestWaitingLanesGoOnWhenABreakerCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 200 {
			b := openBreaker(t)
			var admitted []<-chan struct{}
			never := make(chan struct{})
			for range 5 {
				admitted = append(admitted, beginNow(func() { b.admit(never) }))
			}
			b.mu.Lock()
			b.close()
			b.mu.Unlock()
			for _, a := range admitted {
				<-a
			}
		}
	})
}

// beginNow is begin without waiting: what is begun may be anywhere.
func beginNow(f func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	return done
}

func TestBreakerConfig(t *testing.T) {
	orders := func(topic Topic) Topic { return topic.withDefaults() }
	assert.Equal(t, Breaker{}, orders(Topic{}).Breaker)
	assert.False(t, orders(Topic{}).Breaker.enabled())
	assert.Equal(t, Breaker{MinAttempts: 20, FailureRatio: 0.5, Window: 10 * time.Second, Probe: time.Second}, orders(Topic{DeadLetter: "x"}).Breaker)
	assert.True(t, orders(Topic{Breaker: Breaker{Probe: time.Minute}}).Breaker.enabled())
	assert.False(t, orders(Topic{DeadLetter: "x", Breaker: Breaker{MinAttempts: -1}}).Breaker.enabled())
	assert.True(t, strings.HasPrefix(fmt.Sprint(DeadLetterHeaders(7)), "DeadLetterHeaders(7"))
}

// Before the breaker is sure, it is as if it were: a lane tries once a second. But a message
// that fails alone is tried as often as Retry says.
func TestPaceOfAnOutageAtItsBeginning(t *testing.T) {
	withRig(t, guarded, func(t *testing.T, r *rig) {
		r.on = func(context.Context, Message) error { return errHandler }
		r.owns([]engine.Partition{{Topic: "orders"}}, 1)
		r.after(time.Second)
		assert.Greater(t, len(r.history.all("handle")), 2)
	})
	withRig(t, guarded, func(t *testing.T, r *rig) {
		r.on = func(context.Context, Message) error { return errHandler }
		r.owns(eight("orders"), 10)
		r.after(4 * time.Second)
		assert.Empty(t, r.history.all("breaker"))
		for _, p := range eight("orders") {
			assert.LessOrEqual(t, len(r.history.all("handle "+p.String()+"@")), 6, "four seconds, the first, and that of the lane that was first")
		}
	})
}
