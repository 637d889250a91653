package e2e

// Processes that die: of a message, or because somebody kills them.

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/e2e/history"
)

// mortal children do not let the group wait longer for the dead than need be, and have a
// topic for dead letters, if any. The embedded broker is in this process, and a session
// shorter than usual might be lost when that is busy; brokers of others take none.
func (e *env) mortal(dlq string) func(*childSpec) {
	_, busy := e.brokers.(embedded)
	_, others := e.brokers.(foreign)
	return func(s *childSpec) {
		s.DeadLetter = dlq
		if !busy && !others {
			s.Session = 3 * time.Second
		}
	}
}

// restarts is how often the process of a deadly message is started at most: the first death
// says that there is one, and the last start makes a dead letter of it.
const restarts = deaths + 2

// One message ends each process that handles it, and the process is started again. Soon
// the message becomes a dead letter; its neighbours are handled, all of them.
func deadlyMessage(before int, crew crew) func(*env) {
	return func(e *env) {
		topic := e.topic(4)
		dlq := e.deadLetters(4)
		e.deadlyAmongOthers(topic, before)
		starts := 0
		for {
			starts++
			c := e.startChild(fmt.Sprint("start-", starts), topic, e.mortal(dlq), by(crew))
			if !c.dies(e.uncommitted()) {
				c.stop()
				break
			}
			require.Less(e.t, starts, restarts, "starts")
		}
		e.t.Logf("it was a dead letter at start %d", starts)
		letters := e.read(dlq)
		require.Len(e.t, letters, 1)
		assert.Contains(e.t, header(letters[0], "kgroup-error"), "died")
	}
}

// deadlyAmongOthers produces 20 messages to each of four partitions. One of them is deadly,
// after so many others in its partition.
func (e *env) deadlyAmongOthers(topic string, before int) {
	e.t.Helper()
	records := e.records(topic, 80)
	for _, r := range records {
		if r.Partition == sick {
			if before == 0 {
				r.Value = []byte(deadly)
			}
			before--
		}
	}
	e.send(records...)
}

// The same without a dead-letter topic: the message is held, and the process lives on,
// and handles the other partitions.
func deadlyMessageHeld(e *env) {
	const at = 10
	topic := e.topic(4)
	e.deadlyAmongOthers(topic, at)
	starts := 0
	var c *child
	for {
		starts++
		c = e.startChild(fmt.Sprint("start-", starts), topic, e.mortal(""))
		if !c.dies(func() error { return c.blockedAt(topic, sick, at) }) {
			break
		}
		require.Less(e.t, starts, restarts, "starts")
	}
	e.t.Logf("it was held at start %d", starts)
	e.sendTo(topic, 0, "after it")
	e.sendTo(topic, 2, "after it")
	e.until("the other partitions to be committed", func() error {
		for p, committed := range e.committed(topic) {
			if end := e.ends[topic][p]; p != sick && committed < end {
				return fmt.Errorf("%d is committed up to %d, and ends at %d", p, committed, end)
			}
		}
		return nil
	})
	c.stop()
	assert.EqualValues(e.t, at, e.committed(topic)[sick], "committed of its partition")
	e.rules.AllHandled = false // not what is behind it
}

// blockedAt says that the child has not yet said that a message is held.
func (c *child) blockedAt(topic string, p int32, offset int64) error {
	events, err := history.Read(c.spec.History)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(events, func(e history.Event) bool {
		return e.Kind == history.Blocked && e.Topic == topic && e.Partition == p && e.Offset == offset
	}) {
		return errors.New("no message is held")
	}
	return nil
}

// Members that work well are killed with SIGKILL again and again, under load. No message
// is to blame for that.
func killedAgainAndAgain(e *env) {
	kills, total, rate := 3, 1000, 200
	if e.full {
		kills, total, rate = 10, 20_000, 500
	}
	topic, dlq := e.topic(8), e.deadLetters(8)
	start := func(name string) *child {
		return e.startChild(name, topic, e.mortal(dlq))
	}
	load := e.load(topic, rate)
	stays, victim := start("stays"), start("victim-0")
	for i := range kills {
		victim.handles(20)
		require.NoError(e.t, work(e.ctx, e.random.upTo(time.Second)))
		victim.kill()
		victim = start(fmt.Sprint("victim-", i+1))
	}
	victim.handles(20)
	load.stop(total)
	e.awaitCommitted()
	stays.stop()
	victim.stop()
	assert.Empty(e.t, e.read(dlq), "dead letters")
}

// The only member of a group is killed each time soon after it has begun, while it looks
// for a deadly message.
func killedWhileLooking(e *env) {
	kills := 3
	if e.full {
		kills = 10
	}
	topic, dlq := e.topic(4), e.deadLetters(4)
	e.produce(topic, 2000)
	for i := range kills {
		c := e.startChild(fmt.Sprint("victim-", i), topic, e.mortal(dlq))
		c.handles(10 + int(e.random.below(40)))
		c.kill()
	}
	e.start("last", kgroup.Topics{topic: {Handler: kgroup.HandlerFunc(quick), DeadLetter: dlq}}, func(c *kgroup.Config) { c.CommitInterval = 50 * time.Millisecond })
	e.awaitCommitted()
	assert.Empty(e.t, e.read(dlq), "dead letters")
}
