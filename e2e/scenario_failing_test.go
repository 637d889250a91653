package e2e

// Handlers that fail: for one message, for all of them, until Run is to end. What becomes
// of the dead letters is in scenario_letters_test.go, of processes that die in
// scenario_deaths_test.go.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup"
)

// One message in a hundred is bad, while members come and go in good order. Every good
// one is handled, and every bad one becomes one dead letter.
func oneInAHundred(c crew) func(*env) {
	return func(e *env) {
		rounds, total, rate, between := 4, 2000, 400, time.Second
		if e.full {
			rounds, total, rate, between = 20, 100_000, 1000, 5*time.Second
		}
		if c.Workers > 1 {
			e.keys = manyKeys
		}
		e.badEvery = 100
		handled := c.topic(refusing(c.takes(e.random)))
		handled.DeadLetter = e.deadLetters(8)
		handled.Retry = kgroup.Retry{MinBackoff: 10 * time.Millisecond, MaxBackoff: 100 * time.Millisecond, MaxAttempts: 3}
		topics := kgroup.Topics{e.topic(8): handled}
		var members []*member
		for i := range 3 {
			members = append(members, e.start(fmt.Sprint("m", i), topics))
		}
		e.awaitMembers("m0", "m1", "m2")
		load := e.load(only(topics), rate)
		for i := range rounds {
			require.NoError(e.t, work(e.ctx, between))
			members[i%3].stop()
			members[i%3] = e.start(fmt.Sprint("m", i+3), topics)
			members[i%3].handles(20)
		}
		load.stop(total)
		e.badEvery = 0
		e.load(only(topics), 40).stop(80) // were nothing handled that came after the last bad ones have failed, it might be an outage
		e.awaitCommitted()
	}
}

// only is the one topic that is consumed.
func only(topics kgroup.Topics) string {
	for topic := range topics {
		return topic
	}
	return ""
}

// A message fails each time, and its retries would take longer than any member owns its
// partition. It becomes a dead letter after so many attempts in all.
func retriesOutlastOwners(e *env) {
	const attempts, at = 5, 3
	topic := e.topic(2)
	dlq := e.deadLetters(2)
	e.produce(topic, 2*at)
	var mu sync.Mutex
	var made []int
	tried := make(chan struct{}, 2*attempts)
	topics := kgroup.Topics{topic: {
		Handler: kgroup.HandlerFunc(func(_ context.Context, msg kgroup.Message) error {
			if !isBad(msg.Value) {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			made = append(made, msg.Attempt)
			tried <- struct{}{}
			return kgroup.RetryAfter(errBad, time.Hour)
		}),
		DeadLetter: dlq,
		Retry:      kgroup.Retry{MaxAttempts: attempts},
	}}
	a := e.start("a", topics)
	a.owns(2)
	e.sendTo(topic, 1, bad)
	e.produce(topic, 10)
	var b *member
	for i := 1; i < attempts; i++ {
		receive(e, fmt.Sprint("attempt ", i), tried)
		if b == nil {
			b = e.start(fmt.Sprint("b", i), topics) // gets the second partition
		} else {
			b.stop()
			b = nil
		}
	}
	e.awaitCommitted()
	mu.Lock()
	assert.Equal(e.t, []int{1, 2, 3, 4, 5}, made, "attempts")
	mu.Unlock()
	letters := e.read(dlq)
	require.Len(e.t, letters, 1)
	assert.Equal(e.t, "5", header(letters[0], "kgroup-attempts"))
}

// The message of a shutdown scenario: the sixth of its partition, which is the only one.
const theOne = 5

// stopsAt runs a member until the moment in which a scenario wants to stop it: something
// happens to the one message.
func (e *env) stopsAt(moment <-chan struct{}, value string, topics kgroup.Topics, change ...func(*kgroup.Config)) *member {
	e.t.Helper()
	topic := only(topics)
	e.produce(topic, theOne)
	e.sendTo(topic, 0, value)
	e.produce(topic, 4)
	a := e.start("a", topics, change...)
	receive(e, "the moment to stop", moment)
	return a
}

// settledUpTo asserts how far the group has come in a topic of one partition.
func (e *env) settledUpTo(topic string, want int64) {
	e.t.Helper()
	assert.Equal(e.t, map[int32]int64{0: want}, e.committed(topic), "committed")
}

// Run's context is cancelled while a handler is at work that returns an error when its
// own is: that says nothing about the message, whose only attempt is not used up.
func shutdownInAttempt(e *env) {
	topic, dlq := e.topic(1), e.deadLetters(1)
	began, attempts := make(chan struct{}, 1), make(chan int, 1)
	topics := func(handle func(context.Context) error) kgroup.Topics {
		return kgroup.Topics{topic: {
			Handler: kgroup.HandlerFunc(func(ctx context.Context, msg kgroup.Message) error {
				if msg.Offset != theOne {
					return nil
				}
				attempts <- msg.Attempt
				return handle(ctx)
			}),
			DeadLetter: dlq,
			Retry:      kgroup.Retry{MaxAttempts: 1},
		}}
	}
	a := e.stopsAt(began, "good", topics(func(ctx context.Context) error {
		began <- struct{}{}
		<-ctx.Done()
		return kgroup.Permanent(context.Cause(ctx))
	}))
	require.Equal(e.t, 1, <-attempts)
	a.stop()
	e.settledUpTo(topic, theOne)
	e.start("b", topics(func(context.Context) error { return nil }))
	assert.Equal(e.t, 1, receive(e, "the message to be handled after the restart", attempts), "its attempt")
	e.awaitCommitted()
}

// Run's context is cancelled while a message waits for its next attempt. Nobody waits
// for that; the next owner makes it.
func shutdownBetweenAttempts(e *env) {
	topic, dlq := e.topic(1), e.deadLetters(1)
	failed, attempts := make(chan struct{}, 1), make(chan int, 1)
	topics := func(handle func() error) kgroup.Topics {
		return kgroup.Topics{topic: {
			Handler: kgroup.HandlerFunc(func(_ context.Context, msg kgroup.Message) error {
				if msg.Offset != theOne {
					return nil
				}
				attempts <- msg.Attempt
				return handle()
			}),
			DeadLetter: dlq,
			Retry:      kgroup.Retry{MaxAttempts: 2},
		}}
	}
	a := e.stopsAt(failed, "good", topics(func() error {
		failed <- struct{}{}
		return kgroup.RetryAfter(errBad, time.Hour)
	}))
	require.Equal(e.t, 1, <-attempts)
	e.until("the attempt to have failed", func() error { // else the shutdown may be there before its end
		if lanes := a.consumer.Health().Lanes; len(lanes) != 1 || lanes[0].Blocked == nil {
			return errors.New("it has not")
		}
		return nil
	})
	assert.Less(e.t, a.stop(), leaving+slack)
	e.settledUpTo(topic, theOne)
	e.start("b", topics(func() error { return nil }))
	assert.Equal(e.t, 2, receive(e, "the message to be handled after the restart", attempts), "its attempt")
	e.awaitCommitted()
}

// Run's context is cancelled while a dead letter is on its way. It is waited for, and the
// message is settled: the next owner does not see it.
func shutdownInPublish(e *env) {
	topics, calls := e.oneAttempt()
	c := e.censor()
	a := e.stopsAt(c.writing, bad, topics, c.watch)
	a.cancel()
	e.until("the member to stop", func() error {
		if s := a.consumer.Health().State; s != kgroup.Stopping {
			return fmt.Errorf("it is %v", s)
		}
		return nil
	})
	require.NoError(e.t, work(e.ctx, 500*time.Millisecond))
	require.False(e.t, a.ended(), "Run has not waited for the dead letter")
	c.release()
	assert.Less(e.t, a.stop(), leaving+slack)
	e.settledUpTo(only(topics), theOne+1)
	e.start("b", topics)
	e.awaitCommitted()
	assert.EqualValues(e.t, 1, calls.Load(), "attempts")
}

// The same, and the brokers do not answer for as long as Run may take. The message is left
// to the next owner, which writes the letter without calling the handler again.
func shutdownInPublishForTooLong(e *env) {
	topics, calls := e.oneAttempt()
	c := e.censor()
	a := e.stopsAt(c.writing, bad, topics, c.watch)
	a.stop()
	e.settledUpTo(only(topics), theOne)
	e.start("b", topics)
	e.awaitCommitted()
	assert.EqualValues(e.t, 1, calls.Load(), "attempts")
}

// Each partition comes to a bad message at the same time, as if there were an outage, and
// the member is stopped while their dead letters cannot be written. What is behind them is
// handled once, and not before they are settled.
func badInEveryPartition(e *env) {
	const partitions = 8
	topic, dlq := e.topic(partitions), e.deadLetters(partitions)
	e.produce(topic, partitions)
	for p := range int32(partitions) {
		e.sendTo(topic, p, bad) // at an odd offset: refused each time
	}
	e.produce(topic, 5*partitions)
	topics := kgroup.Topics{topic: {
		Handler:    refusing(quick),
		DeadLetter: dlq,
		Retry:      kgroup.Retry{MinBackoff: 10 * time.Millisecond, MaxBackoff: 20 * time.Millisecond, MaxAttempts: 3},
		Breaker:    kgroup.Breaker{Window: 300 * time.Millisecond, Probe: 100 * time.Millisecond},
	}}
	c := e.censor()
	a := e.start("a", topics, c.watch)
	receive(e, "a dead letter to be written", c.writing)
	a.stop()
	e.start("b", topics)
	e.awaitCommitted()
}

// oneAttempt is a topic of one partition, in which a bad message becomes a dead letter
// after its first attempt.
func (e *env) oneAttempt() (topics kgroup.Topics, calls *atomic.Int64) {
	calls = new(atomic.Int64)
	return kgroup.Topics{e.topic(1): {
		Handler: kgroup.HandlerFunc(func(_ context.Context, msg kgroup.Message) error {
			if !isBad(msg.Value) {
				return nil
			}
			calls.Add(1)
			return errBad
		}),
		DeadLetter: e.deadLetters(1),
		Retry:      kgroup.Retry{MaxAttempts: 1},
	}}, calls
}

// Everything that the handlers need is down for a while, under load. That is nobody's
// fault: there are no dead letters, the member stays, and it tries now and then.
func outage(e *env) {
	const rate, partitions = 1000, 8
	lasts := 12 * time.Second
	if e.full {
		lasts = time.Minute
	}
	topic, dlq := e.topic(partitions), e.deadLetters(partitions)
	var down atomic.Bool
	var tried [partitions]atomic.Int64
	var opened, closed, letters atomic.Int64
	a := e.start("a", kgroup.Topics{topic: {
		Handler: kgroup.HandlerFunc(func(_ context.Context, msg kgroup.Message) error {
			if !down.Load() {
				return nil
			}
			tried[msg.Partition].Add(1)
			return errors.New("the database is down")
		}),
		DeadLetter: dlq,
	}}, func(c *kgroup.Config) {
		c.Hooks.DeadLetter = func(*kgroup.HandlerError) { letters.Add(1) }
		c.Hooks.Breaker = func(_ string, open bool, _ error) {
			if open {
				opened.Add(1)
			} else {
				closed.Add(1)
			}
		}
	})
	load := e.load(topic, rate)
	a.handles(rate / 2)
	down.Store(true)
	began := time.Now()
	e.until("the topic to be paused", func() error {
		if paused := a.consumer.Health().Paused; !slices.Equal(paused, []string{topic}) {
			return fmt.Errorf("%v are", paused)
		}
		return nil
	})
	e.t.Logf("the topic was paused after %v", time.Since(began))
	require.NoError(e.t, work(e.ctx, lasts-time.Since(began)))
	// One a second, the first, and that of the lane whose failure came before all others.
	most := int64(time.Since(began)/time.Second) + 2
	sum := int64(0)
	for p := range tried {
		n := tried[p].Load()
		assert.LessOrEqual(e.t, n, most, "attempts of partition %d in %v", p, lasts)
		sum += n
	}
	e.t.Logf("%d attempts in %v, %d partitions", sum, lasts, partitions)
	assert.Positive(e.t, sum, "attempts: nobody has looked whether it is over")
	assert.EqualValues(e.t, 1, opened.Load(), "how often the topic was paused")
	assert.Zero(e.t, closed.Load(), "how often it went on")
	down.Store(false)
	load.stop(rate * int(lasts/time.Second))
	e.awaitCommitted()
	assert.EqualValues(e.t, 1, a.rebalances.Load(), "assignments")
	assert.EqualValues(e.t, 1, closed.Load(), "how often the topic went on")
	assert.Zero(e.t, letters.Load(), "dead letters")
}

// One of eight partitions has a message that nobody can handle, and there is no topic for
// it. With Partitions the other seven keep their rate; with Multiplex they wait when its
// queue is full, and Health says for whom. When it can be handled, all go on.
func heldLane(e *env) {
	const partitions, rate = 8, 800
	lasts := 3 * time.Second
	if e.full {
		lasts = time.Minute
	}
	topic := e.topic(partitions)
	var mended atomic.Bool
	var others atomic.Int64
	blocked := make(chan *kgroup.HandlerError, 1)
	unblocked := make(chan int64, 1)
	a := e.start("a", kgroup.Topics{topic: {
		Queue: 64,
		Handler: kgroup.HandlerFunc(func(ctx context.Context, msg kgroup.Message) error {
			if string(msg.Value) == "the one" && !mended.Load() {
				return kgroup.Permanent(errBad)
			}
			if msg.Partition != sick {
				others.Add(1)
			}
			return work(ctx, 100*time.Microsecond)
		}),
		Retry: kgroup.Retry{MaxBackoff: 500 * time.Millisecond},
	}}, func(c *kgroup.Config) {
		c.Hooks.Blocked = func(err *kgroup.HandlerError) { blocked <- err }
		c.Hooks.Unblocked = func(_ string, _ int32, offset int64) { unblocked <- offset }
	})
	load := e.load(topic, rate)
	a.handles(rate)
	// The pace of the load is that of the machine: what counts is how much of it is handled.
	pace := func() (perSecond, share float64) {
		handled, sent, began := others.Load(), load.count(), time.Now()
		require.NoError(e.t, work(e.ctx, lasts))
		handled, sent = others.Load()-handled, load.count()-sent
		return float64(handled) / time.Since(began).Seconds(), float64(handled) / (float64(sent) * (partitions - 1) / partitions)
	}
	rateBefore, before := pace()
	one := e.sendTo(topic, sick, "the one")
	err := receive(e, "the message to be held", blocked)
	assert.Equal(e.t, one.Offset, err.Offset)
	require.ErrorIs(e.t, a.consumer.Health().Err(), errBad)
	behind := e.records(topic, 3000) // more than any buffer on the way takes
	for _, r := range behind {
		r.Partition = sick
	}
	e.send(behind...)
	if e.mode == kgroup.Multiplex {
		e.until("Health to name the lane", func() error {
			if p := a.consumer.Health().Holding; p != fmt.Sprintf("%s/%d", topic, sick) {
				return fmt.Errorf("it names %q", p)
			}
			return nil
		})
	} else {
		rateDuring, during := pace()
		e.t.Logf("seven partitions handle %.0f messages a second before one is held (%.2f of what comes), and %.0f while it is (%.2f)", rateBefore, before, rateDuring, during)
		assert.Greater(e.t, during, 0.9*before, "part of the messages of the other partitions that is handled; before it was %.2f", before)
	}
	e.until("all before the message to be committed, and no more", func() error {
		if at := e.committed(topic)[sick]; at != one.Offset {
			return fmt.Errorf("%d is, and it is at %d", at, one.Offset)
		}
		return nil
	})
	mended.Store(true)
	assert.Equal(e.t, one.Offset, receive(e, "the message to be handled", unblocked))
	load.stop(rate)
	e.awaitCommitted()
	assert.EqualValues(e.t, 1, a.rebalances.Load(), "assignments")
}
