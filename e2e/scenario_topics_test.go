package e2e

// Topics that grow, that are missing, that go away.

import (
	"errors"

	"github.com/stretchr/testify/assert"

	"github.com/kgroup-go/kgroup"
)

// A topic gets more partitions while two members run. It is consumed by both, or by
// one of them only: by the one that computes the assignments, or by the other.
func grows(whose string) func(*env) {
	return func(e *env) {
		both, own := e.topic(2), e.topic(1)
		topics := map[bool]kgroup.Topics{
			true:  {both: {Handler: kgroup.HandlerFunc(quick)}, own: {Handler: kgroup.HandlerFunc(quick)}},
			false: {both: {Handler: kgroup.HandlerFunc(quick)}},
		}
		leader := e.start("leader", topics[whose == "leader"])
		leader.ready() // the first member of a group leads it
		follower := e.start("follower", topics[whose == "follower"])
		e.awaitMembers("follower", "leader")
		owner := map[string]*member{"leader": leader, "follower": follower}[whose]
		owner.owns(2)
		e.produce(own, 10)
		e.awaitCommitted()

		e.grow(own, 4)
		e.grow(both, 4)
		e.produce(own, 40)
		e.produce(both, 40)
		e.awaitCommitted()
		owner.owns(6)
	}
}

// A sarama-cluster member asks for a topic that does not exist. The group goes on
// all the same, as long as a kgroup member computes its assignments.
func missingTopic(e *env) {
	topic := e.topic(4)
	a := e.start("a", on(topic, quick))
	a.ready()
	load := e.load(topic, 100)
	raw := e.startRaw("raw", topic, topic+"-missing")
	e.awaitMembers("a", "raw")
	a.owns(2)
	a.handles(50)
	raw.stop()
	e.awaitMembers("a")
	a.owns(4)
	load.stop(100)
	e.awaitCommitted()
}

// One of two topics is deleted while both are consumed. The other goes on.
func deletedTopic(e *env) {
	kept, doomed := e.topic(2), e.topic(2)
	e.produce(kept, 20)
	e.produce(doomed, 20)
	a := e.start("a", kgroup.Topics{
		kept:   {Handler: kgroup.HandlerFunc(quick)},
		doomed: {Handler: kgroup.HandlerFunc(quick)},
	})
	e.awaitCommitted()
	for p := range int32(2) {
		e.history.NotOwed(doomed, p, 10)
	}
	load := e.load(kept, 100)
	assert.NoError(e.t, e.admin.DeleteTopic(e.ctx, doomed))
	e.until("the deleted topic to be given up", func() error {
		for _, l := range a.consumer.Health().Lanes {
			if l.Topic == doomed {
				return errors.New("it is still owned")
			}
		}
		return nil
	})
	a.handles(50)
	load.stop(100)
	e.awaitCommitted(kept)
	a.owns(2)
	assert.NoError(e.t, a.consumer.Health().Err())
}
