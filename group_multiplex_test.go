package kgroup

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
)

func polled(p engine.Partition, offset int64) *sarama.ConsumerMessage {
	return &sarama.ConsumerMessage{Topic: p.Topic, Partition: p.Number, Offset: offset}
}

// aDispatcher is a group whose engine has nothing more at hand, and routes to lanes of
// orders/0 (which is full with six messages), orders/1 and refunds/0.
func aDispatcher(t *testing.T) (*group, *fakeSession, *routes, map[engine.Partition]*fakeLane) {
	t.Helper()
	g, s := newTestGroup(t, nil)
	lanes := map[engine.Partition]*fakeLane{orders0: newFakeLane(8), orders1: newFakeLane(0), refunds0: newFakeLane(0)}
	routes := newRoutes()
	for p, lane := range lanes {
		routes.add(p, lane)
	}
	routes.open = true
	return g, s, routes, lanes
}

func TestDispatchKeepsTheOrderOfEachLane(t *testing.T) {
	g, s, routes, lanes := aDispatcher(t)
	for offset := range int64(5) {
		for _, p := range []engine.Partition{orders0, refunds0, orders1} {
			g.dispatch(routes, polled(p, 2*offset))
		}
	}
	g.dispatch(routes, polled(orders1, 10))
	for p, want := range map[engine.Partition][]int64{
		orders0:  {0, 2, 4, 6, 8},
		orders1:  {0, 2, 4, 6, 8, 10},
		refunds0: {0, 2, 4, 6, 8},
	} {
		assert.Equal(t, want, lanes[p].offsets(), p)
	}
	g.dispatch(routes, polled(orders1, 11))
	assert.Equal(t, []int64{0, 2, 4, 6, 8, 10, 11}, lanes[orders1].offsets())
	assert.Equal(t, []int64{0, 2, 4, 6, 8}, lanes[orders0].offsets())
	assert.Empty(t, s.history.all())
}

// A message that nobody waits for must not vanish in silence, nor go to a wrong lane.
func TestMessageWithoutALane(t *testing.T) {
	g, s, routes, lanes := aDispatcher(t)
	strays := []engine.Partition{
		{Topic: "orders", Number: 2},
		{Topic: "orders", Number: 1 << 20},
		{Topic: "refunds", Number: 1},
		{Topic: "invoices"},
	}
	for i, p := range strays {
		g.dispatch(routes, polled(p, 42))
		assert.Len(t, s.history.all(fmt.Sprintf("error: message of %v at 42 was delivered without an assignment", p)), 1)
		assert.Len(t, s.history.all(), i+1)
		g.dispatch(routes, polled(orders1, int64(i)))
	}
	assert.Equal(t, []int64{0, 1, 2, 3}, lanes[orders1].offsets())
	assert.Empty(t, lanes[orders0].offsets())
	assert.Empty(t, lanes[refunds0].offsets())

	routes.clear()
	g.dispatch(routes, polled(orders1, 4))
	assert.Len(t, s.history.all("error: message of orders/1 at 4"), 1, "its lane is of another generation")
}

// waitingForRoom is a dispatcher that waits for orders/0.
func waitingForRoom(t *testing.T) (*group, *fakeSession, *routes, map[engine.Partition]*fakeLane, <-chan struct{}) {
	t.Helper()
	g, s, routes, lanes := aDispatcher(t)
	_, held := g.Held()
	require.False(t, held)
	for offset := range int64(5) {
		g.dispatch(routes, polled(orders0, offset))
	}
	dispatched := begin(func() { g.dispatch(routes, polled(orders0, 5)) })
	time.Sleep(time.Hour)
	synctest.Wait()
	require.False(t, isClosed(dispatched))
	p, held := g.Held()
	require.True(t, held)
	assert.Equal(t, orders0, p)
	assert.Len(t, lanes[orders0].offsets(), 6)
	return g, s, routes, lanes, dispatched
}

func TestFullLaneHoldsUpTheDispatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s, _, lanes, dispatched := waitingForRoom(t)
		require.Len(t, lanes[orders0].take(nil), 2)
		<-dispatched
		_, held := g.Held()
		assert.False(t, held)
		assert.Empty(t, s.history.all())
	})
}

// A rebalance must not wait for a handler that fills its queue up: the group would. What
// the dispatcher holds is dropped, and read again by the partition's next owner.
func TestSealEndsTheWaitForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s, routes, _, dispatched := waitingForRoom(t)
		g.gen = &term{number: 1}
		ack := make(chan struct{})
		g.seals <- ack
		<-ack
		assert.Equal(t, []string{"seal 1"}, s.history.all())
		<-dispatched
		_, held := g.Held()
		assert.False(t, held)
		assert.False(t, routes.open)

		next := newFakeLane(0)
		routes.add(orders1, next)
		g.dispatch(routes, polled(orders1, 7))
		assert.Equal(t, []int64{7}, next.offsets())
	})
}

// The lanes of a lost generation are closed, without a seal by the dispatcher.
func TestLossEndsTheWaitForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, _, lanes, dispatched := waitingForRoom(t)
		for _, lane := range lanes {
			lane.close()
		}
		<-dispatched
	})
}

// The same on the engine, whose main loop calls for the seal.
func TestRebalanceWhileTheDispatcherWaits(t *testing.T) {
	small := func(_ *fakeKafka, _ *Config, s *fakeSession) { s.queue = 8 }
	onEngine(t, Multiplex, small, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
		opensGeneration(t, s, 1)
		values := make([]string, 500)
		kafka.produce(orders0, values...)
		eventually(t, "a full lane", func() bool { _, held := g.Held(); return held })
		kafka.rebalance()
		opensGeneration(t, s, 2)
		eventually(t, "a full lane", func() bool { _, held := g.Held(); return held })
		offsets := s.lane(orders0).offsets()
		assert.LessOrEqual(t, len(offsets), 6, "the queue")
		for i, offset := range offsets {
			assert.EqualValues(t, i, offset)
		}
		assert.Empty(t, s.history.all("error"))
		for _, lane := range s.lanes { // as the session does when it is drained for good
			lane.close()
		}
	})
}
