package kgroup

// Dispatching in Multiplex mode: the messages of all partitions come on one
// channel, which group.loop reads while a generation is open.

import (
	"fmt"

	"github.com/Shopify/sarama"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// routes are the lanes that the dispatcher delivers to.
type routes struct {
	open   bool
	topics map[string][]*route // by partition
	topic  string              // the last one, and its routes
	last   []*route
	one    [1]engine.Record // what is being delivered
}

type route struct {
	partition engine.Partition
	lane      engine.Lane
}

func newRoutes() *routes { return &routes{topics: map[string][]*route{}} }

func (r *routes) add(p engine.Partition, lane engine.Lane) {
	list := r.topics[p.Topic]
	for len(list) <= int(p.Number) {
		list = append(list, nil)
	}
	list[p.Number] = &route{partition: p, lane: lane}
	r.topics[p.Topic] = list
}

func (r *routes) clear() {
	*r = routes{topics: map[string][]*route{}}
}

// find returns the route of a message. The engine's messages share their topic's
// string, so the comparison costs next to nothing.
func (r *routes) find(m *sarama.ConsumerMessage) *route {
	if m.Topic != r.topic || r.last == nil {
		r.topic, r.last = m.Topic, r.topics[m.Topic]
	}
	if int(m.Partition) >= len(r.last) {
		return nil
	}
	return r.last[m.Partition]
}

// poll takes one message, or a seal. Nothing else can come while a generation is
// open: the engine passes the drain point before it sends a notification, and
// closes its messages before anything else. (Each further channel in this select
// costs a tenth of the throughput, and so does taking several messages at a time:
// the engine's goroutines then park for each of them.)
func (g *group) poll(routes *routes) {
	select {
	case m, ok := <-g.consumer.Messages():
		if !ok {
			routes.open = false
			return
		}
		g.dispatch(routes, m)
	case ack := <-g.seals:
		g.sealed(routes)
		close(ack)
	}
}

// dispatch delivers a message to its lane, and waits while that is full: the engine
// offers no way to stop one partition, so all others wait too. A seal ends it.
func (g *group) dispatch(routes *routes, m *sarama.ConsumerMessage) {
	r := routes.find(m)
	if r == nil {
		g.session.Error(fmt.Errorf("message of %s/%d at %d was delivered without an assignment; it is not handled, and not committed", m.Topic, m.Partition, m.Offset))
		return
	}
	routes.one[0] = record{m}
	if full := r.lane.Deliver(routes.one[:]); !full {
		return
	}
	g.held.Store(&r.partition)
	defer g.held.Store(nil)
	select {
	case <-r.lane.Room():
	case ack := <-g.seals:
		g.sealed(routes)
		close(ack)
	}
}

// Held implements [engine.Engine].
func (g *group) Held() (engine.Partition, bool) {
	if p := g.held.Load(); p != nil {
		return *p, true
	}
	return engine.Partition{}, false
}
