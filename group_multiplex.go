package kgroup

// Dispatching in Multiplex mode: the messages of all partitions come on one
// channel, which group.loop reads while a generation is open.

import (
	"fmt"
	"unsafe"

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

// pollPatience is how long a handler may keep the goroutine that polls, and so all
// partitions of this member, before another goroutine polls.
const pollPatience = 2 * reliefTick

// poll takes one message, or learns of a seal. Nothing else can come while a
// generation is open: the engine passes the drain point before it sends a
// notification, and closes its messages before anything else. It reports true if
// another goroutine polls by now.
//
// A seal is announced on the channel of the messages itself, by a nil: a select on
// two channels costs a twentieth of the throughput. So does taking several messages at
// a time, because the engine's goroutines then park for each of them.
func (g *group) poll(d *desk) (relieved bool) {
	m, ok := <-g.consumer.Messages()
	switch {
	case !ok:
		d.routes.open = false
	case m == nil:
		ack := <-g.seals
		g.sealed(d.routes)
		close(ack)
	default:
		return g.dispatch(d.routes, m)
	}
	return false
}

// bell is the channel of the engine's messages, to announce a seal on. The engine
// shows it for receiving only, which is a matter of types: the channel is the same.
// It must not be used once the engine is being closed, which closes the channel.
func (g *group) bell() chan<- *sarama.ConsumerMessage {
	messages := g.consumer.Messages()
	return *(*chan *sarama.ConsumerMessage)(unsafe.Pointer(&messages))
}

// dispatch has a message handled: here and now if that is quick, else by its lane's
// worker. It waits while the lane is full: the engine offers no way to stop one
// partition, so all others wait too. A seal ends it.
func (g *group) dispatch(routes *routes, m *sarama.ConsumerMessage) (relieved bool) {
	r := routes.find(m)
	if r == nil {
		g.session.Error(fmt.Errorf("message of %s/%d at %d was delivered without an assignment; it is not handled, and not committed", m.Topic, m.Partition, m.Offset))
		return false
	}
	if handled := r.lane.Handle(record{m}, nil); handled != engine.Declined {
		return handled == engine.Relieved
	}
	routes.one[0] = record{m}
	if full := r.lane.Deliver(routes.one[:]); !full {
		return false
	}
	g.held.Store(&r.partition)
	defer g.held.Store(nil)
	select {
	case <-r.lane.Room():
	case ack := <-g.seals:
		g.sealed(routes)
		close(ack)
	}
	return false
}

// Held implements [engine.Engine].
func (g *group) Held() (engine.Partition, bool) {
	if p := g.held.Load(); p != nil {
		return *p, true
	}
	return engine.Partition{}, false
}
