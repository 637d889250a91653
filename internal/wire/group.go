package wire

// A group connection: reads along, waits for each answer as long as its request
// deserves, and changes no byte but those of JoinGroup, for which see join.go. What
// a frame says is read in decode.go.

import (
	"cmp"
	"context"
	"encoding/binary"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// headerSize is the size of an answer's header: the size of what follows the
	// first four bytes, and the correlation id of the request.
	headerSize = 8

	// maxAnswer bounds the answers that are held back to be read. The largest are a
	// leader's JoinGroup (the metadata of all members) and the offsets of a member
	// with thousands of partitions, each with its metadata. Larger ones pass
	// unobserved. For the moment of reading, a frame that lies about its array sizes
	// costs up to about 100 times its size, and only after all of it has arrived.
	maxAnswer = 16 << 20

	// maxPending bounds the requests that are remembered. sarama sends five
	// (Net.MaxOpenRequests) before it waits for an answer.
	maxPending = 1000
)

// groupConn is a connection that carries the group protocol. It may be written to
// by several goroutines, and read by one.
//
// It relies on what sarama and Kafka do: each Write is one whole request, and
// answers come in the order of the requests. A connection that does otherwise goes
// blind for the rest of its life: after a Write that is no whole frame, requests
// are no longer observed (those before it still are answered); after an answer
// that fits no request, nothing is. The bytes pass in any case, and sarama judges
// them. What comes before all this may be an exchange of another kind, which passes
// unobserved: see [Limits.ExchangeUntil].
type groupConn struct {
	net.Conn // its SetDeadline and SetWriteDeadline are used as they are
	observer Observer
	limits   Limits

	writing sync.Mutex // held during a Write: requests are remembered in the order they are sent in

	mu       sync.Mutex
	pending  []*request // sent and not answered yet, oldest first
	answered time.Time  // when the last answer was complete
	asked    time.Time  // the read deadline that sarama wants
	blind    bool       // no more requests are remembered
	exchange string     // the client id that ends the exchange under way; empty: there is none
	dead     error      // why the connection was broken, if it was by us

	// For the reader alone. A frame begins in held. Once it was observed, or proves
	// not to be worth it, held becomes ready, and the rest passes straight through.
	held    []byte
	ready   []byte
	err     error    // to be returned after ready
	passing int      // bytes missing from the frame after ready
	current *request // what the passing frame answers
}

func newGroupConn(c net.Conn, o Observer, limits Limits) *groupConn {
	return &groupConn{Conn: c, observer: o, limits: limits, exchange: limits.ExchangeUntil}
}

// Write tells the observer what p asks for, and writes it.
func (c *groupConn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	r, frame := c.expect(p)
	n, err := c.send(r, frame)
	if n == len(frame) {
		return len(p), err
	}
	return min(n, len(p)-1), err
}

// send writes the frame of r, which may be nil, with c.writing held.
func (c *groupConn) send(r *request, frame []byte) (int, error) {
	n, err := c.Conn.Write(frame)
	if r != nil && n < len(frame) {
		c.retract(r, n)
	}
	return n, err
}

// expect remembers the request in p before it is written: its answer may arrive
// before Write returns. It returns the frame to be written, and no request if there
// is none to remember.
func (c *groupConn) expect(p []byte) (*request, []byte) {
	if len(p) == 0 || c.isBlind() || c.exchanges(p) {
		return nil, p
	}
	r, body, ok := parseRequest(p, time.Now())
	frame := p
	if ok {
		frame = r.tellSent(c.observer, p, body, c.limits)
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok || len(c.pending) == maxPending {
		c.blind = true
	}
	if c.blind {
		return nil, p
	}
	c.pending = append(c.pending, r)
	c.await(r)
	return r, frame
}

// exchanges reports whether p belongs to the exchange that the connection begins with.
func (c *groupConn) exchanges(p []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exchange != "" && isRequestOf(p, c.exchange) {
		c.exchange = ""
	}
	return c.exchange != ""
}

// await begins to wait for the answer to r, with mu held.
func (c *groupConn) await(r *request) {
	c.arm()
	if c.limits.Vouch == nil || !r.waitsForOthers() {
		return
	}
	ctx, answered := context.WithCancel(context.Background())
	r.answered = answered
	go func() { // ends with ctx, which ends with the request or the connection
		if err := c.limits.Vouch(ctx); err != nil && ctx.Err() == nil {
			c.kill(err)
		}
	}()
}

// kill breaks the connection.
func (c *groupConn) kill(why error) {
	c.mu.Lock()
	c.dead = why
	c.mu.Unlock()
	_ = c.Conn.Close() // sarama will close it once more, and be told
}

// Close closes the connection.
func (c *groupConn) Close() error {
	c.forget()
	return c.Conn.Close()
}

// retract forgets a request that was not written whole: no answer will come. If a
// part of it went out, the server takes what follows for the rest of it.
func (c *groupConn) retract(r *request, written int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blind = c.blind || written > 0
	c.drop(r)
	c.arm()
}

// Read hands out what has been observed, and what is not observed as it comes.
func (c *groupConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		switch {
		case len(c.ready) > 0:
			n := copy(p, c.ready)
			if c.ready = c.ready[n:]; len(c.ready) == 0 {
				c.ready = nil // it may have been large
			}
			return n, nil
		case c.err != nil:
			err := c.err
			c.err = nil
			return 0, err
		case c.passing > 0:
			n, err := c.read(p[:min(len(p), c.passing)])
			if c.passing -= n; c.passing == 0 {
				c.complete(c.current)
			}
			return n, err
		case c.sees():
			c.receive()
		default:
			return c.skip(p)
		}
	}
}

// skip reads what is not observed. If a Read in the exchange has lasted until after
// its end, nobody knows what the bytes belong to. (sarama writes its first request
// when it has read all that it wants.)
func (c *groupConn) skip(p []byte) (int, error) {
	before := c.inExchange()
	n, err := c.read(p)
	if n > 0 && before && !c.inExchange() {
		c.forget()
	}
	return n, err
}

// read is the connection's own, but for the reason of an error.
func (c *groupConn) read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		err = cmp.Or(c.dead, err)
	}
	return n, err
}

// receive takes the beginning of an answer, or all of it if it is to be observed.
func (c *groupConn) receive() {
	if err := c.fill(headerSize); err != nil {
		if len(c.held) > 0 {
			c.forget() // the end of the stream, or nearly: its frames are lost
		}
		c.release(err)
		return
	}
	size := int32(binary.BigEndian.Uint32(c.held))
	correlation := int32(binary.BigEndian.Uint32(c.held[4:]))
	r := c.oldest()
	if r == nil || r.correlation != correlation || size < headerSize-4 {
		c.forget()
		c.release(nil)
		return
	}

	body := int(size) - (headerSize - 4)
	switch {
	case r.observed && size <= maxAnswer:
		if err := c.fill(headerSize + body); err != nil {
			c.broken(r, headerSize+body-len(c.held), err)
			return
		}
		answer := r.tellAnswered(c.observer, c.held[headerSize:])
		if r.join != nil {
			joined, _ := answer.(*kmsg.JoinGroupResponse) // nil if it does not read
			if c.joinAgain(r, joined) {
				return
			}
			c.held = r.downgrade(c.held, joined)
		}
		body = 0
	case r.join != nil: // too large to be held, not too large to be translated
		if err := c.fill(headerSize + throttleSize); err != nil {
			c.broken(r, 0, err)
			return
		}
		body -= throttleSize
		c.held = r.cutThrottle(c.held)
	}
	c.pass(r, body)
	c.release(nil)
}

// broken deals with an answer to r whose rest has not come. Even after a timeout
// nobody reads on: what there is is handed out, unobserved. Of an answer that would
// have had to be translated nothing is.
func (c *groupConn) broken(r *request, missing int, err error) {
	if r.join != nil {
		c.held = nil
		c.forget()
	} else {
		c.pass(r, missing)
	}
	c.release(err)
}

// joinAgain sends the JoinGroup r again if its answer gives the member an id to join
// with, and reports whether it did. sarama does not learn of it, and waits for the
// answer to the second one.
//
// That answer comes after those to requests that were sent meanwhile, and sarama
// takes answers in the order of its requests only. So if there are any, it gets to
// see the refusal; sarama-cluster will join again, and that goes out with the id.
func (c *groupConn) joinAgain(r *request, answer *kmsg.JoinGroupResponse) bool {
	id, given := r.givenID(answer)
	if !given {
		return false
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	again := r.withID(id)
	if !c.replace(r, again) {
		return false
	}
	c.observer.JoinSent(id)
	if c.limits.Other > 0 { // sarama sets a deadline only for what it writes itself
		_ = c.SetWriteDeadline(time.Now().Add(c.limits.Other)) // fails when closed, as Write will
	}
	_, err := c.send(again, again.join.frame())
	c.held = nil
	c.release(err)
	return true
}

// replace puts a request that is about to be written in the place of one that was
// answered, if nothing was written after that one.
func (c *groupConn) replace(answered, r *request) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blind || len(c.pending) != 1 || c.pending[0] != answered {
		return false
	}
	answered.end() // nobody needs to vouch for it any more
	r.sent = time.Now()
	c.answered = r.sent
	c.pending[0] = r
	c.await(r)
	return true
}

// fill receives until size bytes are held. Its memory grows with what has arrived,
// not with what was announced.
func (c *groupConn) fill(size int) error {
	for len(c.held) < size {
		if len(c.held) == cap(c.held) {
			c.held = slices.Grow(c.held, min(size-len(c.held), max(len(c.held), 512)))
		}
		n, err := c.read(c.held[len(c.held):min(size, cap(c.held))])
		c.held = c.held[:len(c.held)+n]
		if err != nil && len(c.held) < size {
			return err
		}
	}
	return nil
}

// release hands the held bytes to the reader, and err after them.
func (c *groupConn) release(err error) { c.ready, c.held, c.err = c.held, nil, err }

// pass lets the missing bytes of the answer to r through; with none it is complete.
func (c *groupConn) pass(r *request, missing int) {
	c.current, c.passing = r, missing
	if missing == 0 {
		c.complete(r)
	}
}

// complete is called at the end of an answer: the clock of the next one begins.
func (c *groupConn) complete(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered = time.Now()
	c.drop(r)
	c.arm()
}

// drop is called with mu held, as arm is.
func (c *groupConn) drop(r *request) {
	r.end()
	c.pending = slices.DeleteFunc(c.pending, func(p *request) bool { return p == r })
}

func (c *groupConn) oldest() *request {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) == 0 {
		return nil
	}
	return c.pending[0]
}

func (c *groupConn) isBlind() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.blind
}

func (c *groupConn) inExchange() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exchange != ""
}

// sees reports whether the next bytes may belong to an answer that we can name.
func (c *groupConn) sees() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exchange == "" && (!c.blind || len(c.pending) > 0)
}

// forget makes the connection blind in both directions.
func (c *groupConn) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.pending {
		r.end()
	}
	c.blind, c.pending = true, nil
	c.arm()
}

// SetReadDeadline is called by sarama before every read, with the same timeout for
// all answers. It counts only while no request is pending.
func (c *groupConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = t
	return c.Conn.SetReadDeadline(c.deadline())
}

// arm sets the read deadline anew after a change, also for a Read under way.
func (c *groupConn) arm() {
	_ = c.Conn.SetReadDeadline(c.deadline()) // fails when closed, as the next Read will
}

// deadline is that of the oldest pending request. It counts from the answer before
// it if that came after the request was sent: a heartbeat behind a JoinGroup is not
// late because the JoinGroup is slow.
func (c *groupConn) deadline() time.Time {
	if len(c.pending) == 0 {
		return c.asked
	}
	oldest := c.pending[0]
	limit := oldest.limit(c.limits)
	if limit <= 0 {
		return c.asked
	}
	if c.answered.After(oldest.sent) {
		return c.answered.Add(limit)
	}
	return oldest.sent.Add(limit)
}
