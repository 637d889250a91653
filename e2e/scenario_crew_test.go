package e2e

// Several messages of a partition at once: what is settled beyond its frontier outlives
// who settled it, and says nothing about messages that have its offsets later.

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/e2e/history"
	"github.com/kgroup-go/kgroup/e2e/kafka"
)

// One message takes for ever, and no other waits for it, until as many have been delivered
// behind it as may be. Then the process is killed. Only that message is handled again, and
// what had not been handled.
func slowAmongQuick(e *env) {
	const at = 10
	total, lasts, again := 20_000, time.Hour, time.Duration(1)
	if e.full {
		total, lasts, again = 100_000, 30*time.Second, 30*time.Second
	}
	e.keys, e.rules.Quiet = manyKeys, true
	topic := e.topic(1)
	e.produce(topic, at)
	one := e.sendTo(topic, 0, slow)
	e.produce(topic, total-at-1)
	slowly := func(d time.Duration) func(*childSpec) {
		return func(s *childSpec) { s.Crew.Workers, s.Slow, s.Quick = 16, d, true }
	}

	began := time.Now()
	first := e.startChild("first", topic, e.mortal(""), slowly(lasts))
	first.handles(at)
	first.rests(2 * time.Second)
	if e.full {
		require.NoError(e.t, work(e.ctx, 10*time.Second-time.Since(began)))
	}
	first.kill()
	committed := e.metadata(topic)[0]
	assert.Equal(e.t, one.Offset, committed.Offset, "committed")
	assert.Contains(e.t, committed.Metadata, " r=", "what is settled beyond it")

	last := e.startChild("last", topic, e.mortal(""), slowly(again))
	e.awaitCommitted()
	last.stop()
	before, after := first.begun(), last.begun()
	e.t.Logf("%d messages were begun before the death, and %d after it", len(before), len(after))
	assert.Greater(e.t, len(before), 13_000, "messages that were begun before the death: as many as ranges are sure to have room for")
	for offset := range after {
		assert.True(e.t, offset == one.Offset || !before[offset], "%d is handled again", offset)
	}
	assert.True(e.t, after[one.Offset], "the slow message is handled again")
}

// rests waits until the child has begun and ended nothing for so long.
func (c *child) rests(d time.Duration) {
	c.e.t.Helper()
	size, since := int64(-1), time.Now()
	c.e.until(c.spec.Name+" to have nothing to do", func() error {
		info, err := os.Stat(c.spec.History)
		if err != nil {
			return err
		}
		if info.Size() != size {
			size, since = info.Size(), time.Now()
		}
		if quiet := time.Since(since); quiet < d {
			return fmt.Errorf("it has had nothing for %v", quiet)
		}
		return nil
	})
}

// begun are the offsets that the child has begun, of whatever partition.
func (c *child) begun() map[int64]bool {
	c.e.t.Helper()
	events, err := history.Read(c.spec.History)
	require.NoError(c.e.t, err)
	offsets := map[int64]bool{}
	for _, event := range events {
		if event.Kind == history.Begin {
			offsets[event.Offset] = true
		}
	}
	return offsets
}

// metadata is what the group has committed of a topic.
func (e *env) metadata(topic string) map[int32]kafka.Committed {
	e.t.Helper()
	all, err := e.admin.CommittedMetadata(e.ctx, e.group)
	require.NoError(e.t, err)
	return all[topic]
}

// The partition with such a message goes over to another member. The message is handled
// once if it ends while the group waits for that, and else again; the others once.
func slowMovesOn(ends bool) func(*env) {
	return func(e *env) {
		const at, total = 10, 2000
		e.keys = manyKeys
		topic := e.topic(1)
		e.produce(topic, at)
		one := e.sendTo(topic, 0, slow)
		e.produce(topic, total-at-1)
		var calls atomic.Int64
		rebalance, release := make(chan struct{}, 1), make(chan struct{})
		topics := kgroup.Topics{topic: crew{Workers: 16}.topic(func(ctx context.Context, msg kgroup.Message) error {
			if msg.Offset != one.Offset || calls.Add(1) > 1 {
				return nil
			}
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})}
		b := e.start("b", topics, func(c *kgroup.Config) {
			c.RebalanceTimeout = 8 * time.Second
			c.Hooks.RebalanceStarted = func(owned map[string][]int32) {
				if len(owned) > 0 {
					rebalance <- struct{}{}
				}
			}
		})
		b.handled(total - 1)
		a := e.start("a", topics) // comes first in the alphabet, and gets the partition
		receive(e, "the rebalance", rebalance)
		want := int64(2)
		if ends {
			want = 1
			close(release)
		}
		a.owns(1)
		e.produce(topic, 100)
		e.awaitCommitted()
		assert.Equal(e.t, want, calls.Load(), "attempts of the slow message")
		assert.Equal(e.t, 100+want-1, a.settled.Load(), "messages handled by the new owner")
	}
}

// A topic is deleted and made again, with more messages than were committed, or with
// fewer. What was said of the old ones, that they are settled beyond the committed offset,
// is not said of the new. Brokers forget it with the topic; where they do not, or where a
// partition has lost its end, nothing is believed that is said of messages beyond the end.
func madeAgain(n int, kept bool) func(*env) {
	return func(e *env) {
		topic, _ := e.settledBeyond()
		old := e.metadata(topic)
		require.NoError(e.t, e.admin.DeleteTopic(e.ctx, topic))
		e.until("the topic to be made again", func() error { // ZooKeeper's brokers take their time
			return e.admin.CreateTopic(e.ctx, topic, 1, -1, nil)
		})
		e.admin.Close() // its producer knows the old one
		e.connect()
		if kept {
			require.NoError(e.t, e.admin.CommitOffsets(e.ctx, e.group, map[string]map[int32]kafka.Committed{topic: old}))
		} else {
			assert.Empty(e.t, e.metadata(topic), "committed after the topic was made again")
		}
		e.anew(topic)
		e.send(e.records(topic, n)...)
		from := int64(0)
		if kept && n >= heldAt {
			from = heldAt // the committed offset counts
			e.history.NotOwed(topic, 0, from)
		}
		a := e.start("a", kgroup.Topics{topic: crew{Workers: 16}.topic(quick)})
		a.handled(int64(n) - from)
		e.produce(topic, 200)
		e.awaitCommitted()
	}
}

// The committed offset is set by somebody else while there is no member: back, forth, or
// to where it is. What is not before it is handled, all of it; also when what was said beside
// the old one is copied, as MirrorMaker 2 does it (sync.group.offsets.enabled).
func offsetsReset(to int64, moved bool) func(*env) {
	return func(e *env) {
		topic, records := e.settledBeyond()
		metadata := ""
		if moved {
			metadata = e.metadata(topic)[0].Metadata
		}
		require.NoError(e.t, e.admin.CommitOffsets(e.ctx, e.group, map[string]map[int32]kafka.Committed{topic: {0: {Offset: to, Metadata: metadata}}}))
		e.anew(topic)
		e.produced(records...)
		e.history.NotOwed(topic, 0, to)
		a := e.start("a", kgroup.Topics{topic: crew{Workers: 16}.topic(quick)})
		a.handled(int64(len(records)) - to)
		e.produce(topic, 10)
		e.awaitCommitted()
	}
}

// Retention removes a message that is held, and some behind it. What is left of those that
// were settled is not repeated.
func logStartPasses(e *env) {
	topic, _ := e.settledBeyond()
	const start = 120
	require.NoError(e.t, e.admin.DeleteRecords(e.ctx, topic, 0, start))
	e.history.NotOwed(topic, 0, start)
	b := e.start("b", kgroup.Topics{topic: crew{Workers: 16}.topic(quick)})
	e.produce(topic, 10)
	b.handled(10)
	e.awaitCommitted()
	assert.EqualValues(e.t, 10, b.settled.Load(), "messages handled by b")
}

// heldAt is the offset of the message in settledBeyond that is not handled.
const heldAt = 50

// settledBeyond has a member handle all messages of a topic with one partition but for one,
// and leave. So it has committed that they are settled beyond that.
func (e *env) settledBeyond() (topic string, records []*kgo.Record) {
	e.t.Helper()
	e.keys = manyKeys
	topic = e.topic(1)
	records = e.records(topic, 200)
	records[heldAt].Key = nil
	e.send(records...)
	a := e.start("a", kgroup.Topics{topic: crew{Workers: 16}.topic(func(ctx context.Context, msg kgroup.Message) error {
		if msg.Offset == heldAt {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		return nil
	})}, func(c *kgroup.Config) { c.ShutdownTimeout = 2 * time.Second })
	a.handled(int64(len(records)) - 1)
	a.stop()
	e.awaitMembers()
	committed := e.metadata(topic)[0]
	require.EqualValues(e.t, heldAt, committed.Offset, "committed")
	require.True(e.t, strings.Contains(committed.Metadata, " r="), "metadata: %q", committed.Metadata)
	return topic, records
}

// anew forgets what has happened so far, and holds it against what is promised.
func (e *env) anew(topic string) {
	e.t.Helper()
	report := history.Check(e.history.Events(), history.Rules{Workers: e.rules.Workers})
	history.Require(e.t, report)
	e.history = history.New()
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.ends, topic)
}
