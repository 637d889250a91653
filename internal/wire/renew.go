package wire

// Re-authentication (KIP-368): a broker that limits sessions closes a connection at
// the first request after its session has ended. So a fresh connection is made in
// time, and takes the place of the old one under whoever uses it at a moment when no
// answer is pending. That is the same for every mechanism, and takes a rotated
// password, token or certificate along. Frames are counted to know that moment,
// nothing is decoded. Connections whose session does not end are not wrapped.

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// renewFrom and renewUntil are the parts of a session between which its renewal
	// begins: at random, or all connections of a process would renew at once.
	renewFrom, renewUntil = 0.80, 0.85

	// holdFrom is the part of a session after which a Write waits until nothing is
	// pending, and holdFor how long before the end that is at most: a session of hours
	// has hours to find a moment by itself.
	holdFrom = 0.95
	holdFor  = 2 * time.Second

	// lastFrom and lastFor are the same for a Write that can only wait for the next
	// connection to be made: what reaches the broker before the end is answered.
	lastFrom = 0.99
	lastFor  = time.Second

	// A renewal that fails is tried again after a random part of a wait that doubles.
	minRenewBackoff = 100 * time.Millisecond
	maxRenewBackoff = 10 * time.Second
)

// renewed is a connection whose authenticated session ends: the connection below is
// replaced before. Like the one below, it may be written to by several goroutines
// and read by one.
//
// It relies on what sarama and Kafka do: each request has one answer, and answers
// come whole and in order. A request without an answer (a Produce with acks 0) makes
// the connection look busy for ever: it is not replaced, and dies with its session.
type renewed struct {
	dialled string // the network, for the dial func
	network *Network
	addr    string

	// ctx ends with the connection and with the network.
	ctx    context.Context
	cancel context.CancelFunc

	writing sync.Mutex    // held during a Write and what it waits for
	changed chan struct{} // holds one after a change of what a waiting Write looks at

	mu      sync.Mutex
	current *conn
	next    *conn       // fresh, and waits for the moment; nil: none
	timer   *time.Timer // the renewal of the freshest
	closed  bool
	trying  bool // next is being made, or a better one
	sending bool // a Write is under way
	pending int  // answers
	out, in frameCount
	readBy  time.Time // the deadlines asked for
	writeBy time.Time
}

func renewing(c *conn, dialled string) *renewed {
	r := &renewed{dialled: dialled, network: c.network, addr: c.addr, changed: make(chan struct{}, 1), current: c}
	r.ctx, r.cancel = context.WithCancel(c.network.ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.schedule(c.session)
	return r
}

// schedule is called with mu held.
func (r *renewed) schedule(s session) {
	if s.lifetime == 0 {
		return
	}
	part := renewFrom + (renewUntil-renewFrom)*rand.Float64()
	r.timer = time.AfterFunc(time.Until(s.after(part)), r.renew)
}

// renew makes a fresh connection, however many attempts that takes: also after the
// end of the session, because nobody need have noticed.
func (r *renewed) renew() {
	if !r.network.renewal() {
		return
	}
	defer r.network.renewals.Done()
	for wait := minRenewBackoff; ; wait = min(2*wait, maxRenewBackoff) {
		r.try(true)
		c, err := r.network.connect(r.ctx, r.dialled, r.addr)
		if err == nil {
			r.offer(c)
			return
		}
		r.try(false)
		if r.ctx.Err() != nil {
			return
		}
		pause, end := rand.N(wait), r.end()
		if left := time.Until(end); left > 0 {
			pause = min(pause, max(minRenewBackoff, left/4)) // several times yet, however short the session
		}
		r.report(err, end)
		select {
		case <-time.After(pause):
		case <-r.ctx.Done():
			return
		}
	}
}

// try says whether an attempt is under way that a Write may wait for.
func (r *renewed) try(under bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trying = under
	r.wake()
}

// end is until when the broker takes requests.
func (r *renewed) end() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current.session.end()
}

// report says the same each time while nothing changes: whoever logs it can tell that it
// is known.
func (r *renewed) report(err error, end time.Time) {
	switch report := r.network.Report; {
	case report == nil:
	case time.Now().Before(end):
		report(fmt.Errorf("renew the connection to %s, whose session ends at %s: %w", r.addr, end.UTC().Format("15:04:05Z"), err))
	default:
		report(fmt.Errorf("renew the connection to %s, whose session has ended: %w", r.addr, err))
	}
}

// offer takes a fresh connection. One that has waited so long that it had to be
// renewed itself (a JoinGroup may be pending for longer than a session) is dropped.
func (r *renewed) offer(c *conn) {
	r.mu.Lock()
	unused := r.next
	r.next, r.trying = c, false
	if r.closed {
		unused, r.next = c, nil
	} else {
		r.schedule(c.session)
	}
	old := r.change()
	r.mu.Unlock()
	cut(unused, old)
}

// change puts the next connection in the place of the current one if there is
// nothing under way on it, and returns the old one, which is to be cut. It is called
// with mu held, whenever one of these may have come true.
func (r *renewed) change() (old *conn) {
	if r.next == nil || r.sending || r.pending != 0 || !r.in.between() || !r.out.between() {
		return nil
	}
	old, r.current, r.next = r.current, r.next, nil
	_ = r.current.SetReadDeadline(r.readBy) // it fails when closed, as the next Read will
	_ = r.current.SetWriteDeadline(r.writeBy)
	r.wake()
	return old
}

func cut(conns ...*conn) {
	for _, c := range conns {
		if c != nil {
			c.cut()
		}
	}
}

// wake makes a Write that waits look again.
func (r *renewed) wake() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Write writes to the current connection, whose session it does not let end.
func (r *renewed) Write(p []byte) (int, error) {
	r.writing.Lock()
	defer r.writing.Unlock()
	if err := r.hold(); err != nil {
		return 0, err
	}
	c, before := r.send(p)
	n, err := c.Write(p)
	r.sent(n == 0, before)
	return n, err
}

// hold returns when the session is good for one more request, or when there is no
// point in waiting any longer: then the request fails, and sarama connects anew. An
// error means that nothing is to be written: the deadline has passed, or Close ended
// the wait.
func (r *renewed) hold() error {
	began := time.Now()
	for {
		until, deadline := r.holdUntil(began)
		wait := time.Until(until)
		switch {
		case wait > 0:
		case deadline:
			return os.ErrDeadlineExceeded
		default:
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-r.changed:
		case <-timer.C:
		case <-r.ctx.Done():
			return net.ErrClosed
		}
		timer.Stop()
	}
}

// holdUntil is when a Write that began to wait then has waited enough, and whether
// that is its deadline: zero if there is nothing to wait for. When a fresh connection
// is there, only pending answers are in the way, and any request after the end would
// cost them. Before, the end is only worth waiting for while it is being made.
func (r *renewed) holdUntil(began time.Time) (until time.Time, deadline bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.current.session
	from := s.last(lastFrom, lastFor)
	if r.next != nil {
		from = s.last(holdFrom, holdFor)
	}
	if s.lifetime == 0 || time.Now().Before(from) || r.next == nil && !r.trying {
		return time.Time{}, false
	}
	until = began.Add(r.network.timeout)
	if !r.writeBy.IsZero() && r.writeBy.Before(until) {
		return r.writeBy, true
	}
	return until, false
}

// send counts p before it is written: its answer may arrive before Write returns.
func (r *renewed) send(p []byte) (c *conn, before frameCount) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before = r.out
	r.pending += r.out.pass(p)
	r.sending = true
	return r.current, before
}

// sent takes back what has not been written at all. After less than a whole frame
// the connection is of no use, and is not changed any more.
func (r *renewed) sent(nothing bool, before frameCount) {
	r.mu.Lock()
	r.sending = false
	if nothing {
		r.pending -= r.out.ended - before.ended
		r.out = before
	}
	old := r.change()
	r.mu.Unlock()
	cut(old)
}

// Read reads from the current connection, and goes on with the next if it is
// replaced meanwhile.
func (r *renewed) Read(p []byte) (int, error) {
	for {
		c := r.reading()
		n, err := c.Read(p)
		old, ours := r.received(c, p[:n])
		if !ours {
			continue // no answer was pending on c: it has only told its end
		}
		if old != nil {
			old.cut()
			err = nil // it may have told its end with its last bytes
		}
		return n, err
	}
}

func (r *renewed) reading() *conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}

// received counts what was read from c, unless c has been replaced.
func (r *renewed) received(c *conn, p []byte) (old *conn, ours bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c != r.current {
		return nil, false
	}
	r.pending -= r.in.pass(p)
	return r.change(), true
}

// SetDeadline holds for the next connection too, as the other two do.
func (r *renewed) SetDeadline(t time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.readBy, r.writeBy = t, t
	r.wake()
	return r.current.SetDeadline(t)
}

// SetReadDeadline is [renewed.SetDeadline] for reading.
func (r *renewed) SetReadDeadline(t time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.readBy = t
	return r.current.SetReadDeadline(t)
}

// SetWriteDeadline is [renewed.SetDeadline] for writing.
func (r *renewed) SetWriteDeadline(t time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writeBy = t
	r.wake()
	return r.current.SetWriteDeadline(t)
}

// LocalAddr is that of the current connection, as RemoteAddr is.
func (r *renewed) LocalAddr() net.Addr { return r.reading().LocalAddr() }

// RemoteAddr is that of the broker.
func (r *renewed) RemoteAddr() net.Addr { return r.reading().RemoteAddr() }

// Close closes the connection and ends its renewal.
func (r *renewed) Close() error {
	r.cancel()
	r.mu.Lock()
	r.closed = true
	if r.timer != nil {
		r.timer.Stop()
	}
	current, next := r.current, r.next
	r.next = nil
	r.mu.Unlock()
	cut(next)
	return current.Close()
}

func (s session) end() time.Time { return s.born.Add(s.lifetime) }

// after is when that part of the session is over.
func (s session) after(part float64) time.Time {
	return s.born.Add(time.Duration(part * float64(s.lifetime)))
}

// last is when that part of the session is over, but no earlier than that long before
// its end.
func (s session) last(part float64, most time.Duration) time.Time {
	if begins := s.end().Add(-most); begins.After(s.after(part)) {
		return begins
	}
	return s.after(part)
}

// A frameCount counts the frames of a stream, whatever the pieces it comes in. Each begins
// with the size of the rest, in four bytes.
type frameCount struct {
	size  [4]byte
	have  int   // bytes of size that have passed
	rest  int64 // bytes of the frame that have not; counts once size is there
	ended int   // frames that have passed whole
}

// pass returns how many frames end in p.
func (f *frameCount) pass(p []byte) (ended int) {
	before := f.ended
	for len(p) > 0 {
		if f.have < len(f.size) {
			n := copy(f.size[f.have:], p)
			f.have += n
			p = p[n:]
			f.rest = int64(binary.BigEndian.Uint32(f.size[:]))
		}
		if f.have == len(f.size) {
			n := min(f.rest, int64(len(p)))
			f.rest -= n
			p = p[n:]
			if f.rest == 0 {
				f.have = 0
				f.ended++
			}
		}
	}
	return f.ended - before
}

// between reports whether the stream is between two frames.
func (f *frameCount) between() bool { return f.have == 0 }
