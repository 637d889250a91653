package kgroup

// Dispatching in Multiplex mode: the messages of all partitions come on one
// channel, which group.loop reads.

import (
	"fmt"
	"runtime"

	"github.com/Shopify/sarama"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// routes are the lanes that the dispatcher delivers to, in Multiplex mode. What it
// has polled is held here until the engine has nothing more at hand: waking a lane's
// worker for each message would cost more than the message.
type routes struct {
	open   bool
	topics map[string][]*route // by partition
	topic  string              // the last one, and its routes
	last   []*route
	filled []*route
	held   int
}

type route struct {
	partition engine.Partition
	lane      engine.Lane
	records   []engine.Record
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

// maxHeld is how many messages the dispatcher polls before it delivers them.
const maxHeld = 64

// dispatch delivers a message, and with it those that the engine has at hand.
func (g *group) dispatch(routes *routes, m *sarama.ConsumerMessage) {
	g.hold(routes, m)
	for yielded := false; routes.held < maxHeld; {
		select {
		case m, ok := <-g.consumer.Messages():
			if !ok {
				routes.open = false
				return
			}
			g.hold(routes, m)
			yielded = false
			continue
		default:
		}
		if yielded {
			break
		}
		runtime.Gosched() // lets those of the engine's goroutines run that have a message to send
		yielded = true
	}
	for _, r := range routes.filled {
		full := r.lane.Deliver(r.records)
		clear(r.records)
		r.records = r.records[:0]
		if full && !g.waitForRoom(routes, r) {
			return
		}
	}
	routes.filled, routes.held = routes.filled[:0], 0
}

// hold keeps a polled message for its lane.
func (g *group) hold(routes *routes, m *sarama.ConsumerMessage) {
	r := routes.find(m)
	if r == nil {
		g.session.Error(fmt.Errorf("message of %s/%d at %d was delivered without an assignment; it is not handled, and not committed", m.Topic, m.Partition, m.Offset))
		return
	}
	if len(r.records) == 0 {
		routes.filled = append(routes.filled, r)
	}
	r.records = append(r.records, record{m})
	routes.held++
}

// waitForRoom waits until a full lane has room, and keeps all others waiting: the
// engine offers no way to stop one partition. A seal ends it; it reports false then.
func (g *group) waitForRoom(routes *routes, r *route) bool {
	g.held.Store(&r.partition)
	defer g.held.Store(nil)
	select {
	case <-r.lane.Room():
		return true
	case ack := <-g.seals:
		g.sealed(routes)
		close(ack)
		return false
	}
}

// Held implements [engine.Engine].
func (g *group) Held() (engine.Partition, bool) {
	if p := g.held.Load(); p != nil {
		return *p, true
	}
	return engine.Partition{}, false
}
