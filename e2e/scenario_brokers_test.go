package e2e

// Brokers and connections fail.

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/e2e/faults"
)

// All brokers crash and come back under load. The session may be lost meanwhile.
func brokersCrash(e *env) {
	topic := e.topic(4)
	a := e.start("a", on(topic, quick))
	load := e.load(topic, 100)
	a.handles(50)
	e.history.SessionLost("a")
	e.crash()
	require.NoError(e.t, work(e.ctx, time.Second))
	e.revive()
	a.handles(50)
	a.owns(4)
	e.history.SessionBack("a")
	load.stop(100)
	e.awaitCommitted()
}

// The broker that coordinates the group is restarted, as in a rolling upgrade. No
// session is lost by that, and nothing repeated.
func coordinatorRestarts(e *env) {
	coordinatorGoes(e, e.terminate)
}

// The broker that coordinates the group crashes, and nobody takes its place until the
// time for a drain is over. What was settled before is committed all the same.
func coordinatorCrashes(e *env) {
	coordinatorGoes(e, func(node int32) { e.crash(node) }, func(c *kgroup.Config) { c.RebalanceTimeout = 3 * time.Second })
}

func coordinatorGoes(e *env, away func(node int32), change ...func(*kgroup.Config)) {
	topic := e.topic(4)
	change = append(change, longSession)
	a, b := e.start("a", on(topic, quick), change...), e.start("b", on(topic, quick), change...)
	e.awaitMembers("a", "b")
	load := e.load(topic, 100)
	a.handles(20)
	b.handles(20)
	node := e.coordinator()
	away(node)
	require.NoError(e.t, work(e.ctx, time.Second))
	e.revive(node)
	a.handles(50)
	b.handles(50)
	load.stop(100)
	e.awaitCommitted()
}

// For a while the group cannot be committed. Commit waits, and is done afterwards.
func coordinatorUnavailable(e *env) {
	topic := e.topic(4)
	a := e.start("a", on(topic, quick))
	load := e.load(topic, 100)
	a.handles(20)
	resume := e.suspend()
	committed := make(chan error, 1)
	go func() { committed <- a.consumer.Commit(e.ctx) }()
	require.NoError(e.t, work(e.ctx, 2*time.Second))
	resume()
	require.NoError(e.t, receive(e, "Commit to return", committed))
	a.handles(50)
	load.stop(100)
	e.awaitCommitted()
}

// noticing is how long it may take until a member says that a broker hangs.
const noticing = 15 * time.Second

// A broker hangs: its connections stay open, and nothing answers. A member notices on
// both kinds of connections, though RebalanceTimeout lets it wait for minutes, and goes
// on with the others.
func brokerHangs(e *env) {
	topic := e.topic(6)
	noticed := make(chan error, 100)
	a := e.start("a", on(topic, quick), longSession, patient, reporting(func(err error) {
		select {
		case noticed <- err:
		default: // said often enough
		}
	}))
	load := e.load(topic, 100)
	a.handles(50)
	leader, _ := e.leaderBesideCoordinator(topic)
	for _, node := range []int32{leader, e.coordinator()} {
		for len(noticed) > 0 {
			<-noticed //nolint:errcheck // of what was before
		}
		resume := e.suspendNode(node)
		began := time.Now()
		for {
			err := receive(e, "the broker that hangs to be noticed", noticed).Error()
			e.t.Logf("after %v: %v", time.Since(began), err)
			// Other brokers may say that they cannot reach that one either.
			if fetch := strings.HasPrefix(err, "fetch "); fetch == (node == leader) && strings.Contains(err, "timeout") {
				break
			}
		}
		assert.Less(e.t, time.Since(began), noticing+slack)
		a.handles(50)
		resume()
		a.owns(6)
	}
	load.stop(100)
	e.awaitCommitted()
}

// The same while a member waits for another one that drains: by itself the wait says
// nothing about the broker.
func brokerHangsInJoinGroup(e *env) {
	topic := e.topic(4)
	e.produce(topic, 40)
	hold := newBrake()
	e.start("a", on(topic, hold.handle), longSession, patient)
	hold.awaitHandlers(e, 4)
	noticed := make(chan error, 1)
	e.start("b", on(topic, quick), longSession, patient, reporting(func(err error) {
		select {
		case noticed <- err:
		default:
		}
	}))
	e.until("the group to wait for a", func() error {
		g, err := e.admin.DescribeGroup(e.ctx, e.group)
		if err == nil && (g.State != "PreparingRebalance" || len(g.Members) != 2) {
			err = fmt.Errorf("it is %s, of %d", g.State, len(g.Members))
		}
		return err
	})
	resume := e.suspend()
	began := time.Now()
	err := receive(e, "the broker that hangs to be noticed", noticed)
	assert.Less(e.t, time.Since(began), noticing+slack)
	e.t.Logf("after %v: %v", time.Since(began), err)
	hold.release()
	resume()
	e.awaitMembers("a", "b")
	e.awaitCommitted()
}

func patient(c *kgroup.Config) { c.RebalanceTimeout = 5 * time.Minute }

// reporting has a member tell every error that it survives.
func reporting(report func(error)) func(*kgroup.Config) {
	return func(c *kgroup.Config) { c.Hooks.Error, c.Hooks.RebalanceFailed = report, report }
}

// A partition whose only broker is down does not keep a member from the others, and
// is read when its broker is back.
func deadPartition(e *env) {
	topic := e.topicWith(6, 1)
	e.produce(topic, 60)
	dead, partitions := e.leaderBesideCoordinator(topic)
	e.crash(dead)
	a := e.start("a", on(topic, quick))
	a.ready()
	a.handled(int64(60 - 10*len(partitions)))
	assert.EqualValues(e.t, 1, a.rebalances.Load(), "assignments")
	e.revive(dead)
	e.awaitCommitted()
}

// leaderBesideCoordinator is a broker that leads some partitions of a topic, and
// does not coordinate the group.
func (e *env) leaderBesideCoordinator(topic string) (node int32, led []int32) {
	e.t.Helper()
	coordinator := e.coordinator()
	leads := map[int32][]int32{}
	for p := range e.partitions[topic] {
		leader, err := e.admin.Leader(e.ctx, topic, p)
		require.NoError(e.t, err)
		leads[leader] = append(leads[leader], p)
	}
	for node, led := range leads {
		if node != coordinator {
			return node, led
		}
	}
	require.FailNow(e.t, "the coordinator leads every partition", "%v", leads)
	return 0, nil
}

// A member is cut off from the brokers for longer than its session, in the middle of
// a message. Its handler is told, another member takes over, and it comes back.
func sessionLost(e *env) {
	topic := e.topic(2)
	var cable faults.Link
	told := make(chan error, 1)
	stuck := make(chan struct{}, 2)
	a := e.start("a", on(topic, func(ctx context.Context, msg kgroup.Message) error {
		if msg.Offset != 10 || msg.Attempt > 1 {
			return nil
		}
		stuck <- struct{}{}
		<-ctx.Done()
		select {
		case told <- context.Cause(ctx):
		default:
		}
		return context.Cause(ctx)
	}), func(c *kgroup.Config) { c.Dial = cable.Dial })
	e.produce(topic, 40)
	for range 2 {
		receive(e, "a handler in each partition", stuck)
	}
	e.history.SessionLost("a")
	cable.Cut()
	b := e.start("b", on(topic, quick))
	require.ErrorIs(e.t, receive(e, "the handler to be cancelled", told), kgroup.ErrPartitionLost)
	b.owns(2)
	e.produce(topic, 20)
	e.awaitCommitted()
	cable.Mend()
	e.awaitMembers("a", "b")
	a.owns(1)
	e.history.SessionBack("a")
	e.produce(topic, 20)
	e.awaitCommitted()
}
