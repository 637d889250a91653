// Package wire makes the connections to the brokers: dialing, TLS and SASL, and what
// the group protocol says on them.
//
// sarama takes its connections from here through Net.Proxy.Dialer. Data
// connections carry frames that nobody looks at. The connection for the group
// protocol is read along in both directions (group.go), because sarama-cluster
// tells neither its member id nor its generation nor how its heartbeats are
// answered; what was read goes to an [Observer] as plain values (decode.go).
package wire

// Connections: how they are made, and that all of them can be cut. How they are
// secured is in secure.go, how their authentication is renewed in renew.go, and what
// a group connection does with its bytes in group.go.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// maxAttempts bounds the attempts under way. One ends when its dial func and its
// mechanism let go of it, which may be long after its caller has given up.
const maxAttempts = 100

// A Network makes connections and remembers them until they are closed. Cutting
// them is the only thing that ends every wait inside sarama, whatever it waits for.
type Network struct {
	// Report, if it is not nil, is told what concerns no caller: that the
	// authentication of a connection could not be renewed. It is called by several
	// goroutines, and Close waits for it, so it must not call Close. Set it before
	// the first dial.
	Report func(error)

	dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	timeout  time.Duration
	security Security
	attempts chan struct{} // holds one for each attempt under way

	// ctx is the parent of every dial: sarama dials without one.
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu       sync.Mutex
	conns    map[*conn]struct{}
	renewals sync.WaitGroup // raised with mu held, and not after ctx has ended
}

// NewNetwork returns a Network that connects with dial, or when dial is nil with a
// [net.Dialer] and its keep-alive, and secures the connection as security says.
// timeout bounds all of that and must be positive.
func NewNetwork(dial func(ctx context.Context, network, addr string) (net.Conn, error), timeout time.Duration, security Security) *Network {
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	return &Network{
		dial: dial, timeout: timeout, security: security, attempts: make(chan struct{}, maxAttempts),
		ctx: ctx, cancel: cancel, conns: make(map[*conn]struct{}),
	}
}

// Data returns a dialer of connections whose bytes nobody looks at, but for the
// first five of the first answer.
func (n *Network) Data() Dialer {
	return Dialer{network: n, wrap: func(c net.Conn) net.Conn { return c }}
}

// Group returns a dialer of connections that carry the group protocol: o is told
// what passes, and answers are waited for as long as limits say.
func (n *Network) Group(o Observer, limits Limits) Dialer {
	return Dialer{network: n, wrap: func(c net.Conn) net.Conn { return newGroupConn(c, o, limits) }}
}

// Close closes every connection, cancels the attempts under way, and refuses new
// ones: their error wraps [net.ErrClosed]. It may be called more than once.
func (n *Network) Close() {
	n.cancel(net.ErrClosed)
	n.mu.Lock()
	open := slices.Collect(maps.Keys(n.conns))
	n.mu.Unlock()
	for _, c := range open {
		c.cut()
	}
	n.renewals.Wait()
}

// Open returns the number of connections that are not closed yet. One whose
// authentication is being renewed counts twice for a moment.
func (n *Network) Open() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.conns)
}

// A Dialer makes connections of one kind. It fits sarama's Net.Proxy.Dialer.
type Dialer struct {
	network *Network
	wrap    func(net.Conn) net.Conn
}

// Dial connects to addr within the timeout of the [Network]. Its error is a
// [ConnectError], and so is that of the connection's first Read if what is there is
// no Kafka.
func (d Dialer) Dial(network, addr string) (net.Conn, error) {
	began := time.Now()
	c, err := d.network.connect(d.network.ctx, network, addr)
	switch {
	case err != nil:
		return nil, err
	case d.network.security.Above != "":
		// For the exchange that follows, sarama sets no deadline. For all that comes
		// after it, it does.
		_ = c.SetDeadline(began.Add(d.network.timeout)) // fails when closed, as the exchange will
		return d.wrap(c), nil
	case c.session.lifetime > 0:
		return d.wrap(renewing(c, network)), nil
	default:
		return d.wrap(c), nil
	}
}

// String is there because sarama logs its dialer at every connect: without it the
// log would show whatever is reachable from here.
func (Dialer) String() string { return "kgroup" }

// An attempt is a connection in the making.
type attempt struct {
	network string
	addr    string
	secured bool         // it speaks TLS, or is to
	step    atomic.Value // what is being done, a string: told when there is no more time
}

func (a *attempt) failed(err error) *ConnectError {
	step, _ := a.step.Load().(string)
	return failure(step, a.addr, a.secured, err)
}

// connect returns when there is a connection, or the timeout has passed, or the
// parent or the network has ended, also if the dial func or the mechanism ignores
// its context. Its goroutine ends with them, and cuts a connection that comes too
// late.
func (n *Network) connect(parent context.Context, network, addr string) (*conn, error) {
	ctx, cancel := context.WithTimeout(parent, n.timeout)
	defer cancel()
	a := &attempt{network: network, addr: addr, secured: n.security.TLS != nil}
	a.step.Store(stepDial)
	if ctx.Err() != nil {
		return nil, a.failed(context.Cause(ctx))
	}
	select {
	case n.attempts <- struct{}{}:
	case <-ctx.Done():
		return nil, a.failed(fmt.Errorf("%d attempts before it do not end; does Config.Dial, or the source of the credentials, heed its context? %w", maxAttempts, context.Cause(ctx)))
	}

	type result struct {
		conn *conn
		err  error
	}
	results := make(chan result)
	go func() {
		defer func() { <-n.attempts }()
		c, err := n.establish(ctx, a)
		select {
		case results <- result{c, err}:
		case <-ctx.Done():
			if err == nil {
				c.cut() // nobody has seen it
			}
		}
	}()

	select {
	case r := <-results:
		return r.conn, r.err
	case <-ctx.Done():
		// Heard before the step under way gives up because of it: its own error would
		// not say why.
		return nil, a.failed(context.Cause(ctx))
	}
}

// establish takes all the steps to a connection that is ready for requests. The
// connection is remembered right after the dial, so that Close also cuts the steps
// that follow it.
func (n *Network) establish(ctx context.Context, a *attempt) (*conn, error) {
	raw, err := n.dial(ctx, a.network, a.addr)
	switch {
	case err != nil:
		return nil, a.failed(err)
	case raw == nil:
		return nil, a.failed(errors.New("the dial func returned neither a connection nor an error"))
	}
	c, err := n.remember(raw, a.addr)
	if err != nil {
		return nil, a.failed(err)
	}
	if err := c.secure(ctx, n.security, a); err != nil {
		c.cut()
		return nil, a.failed(err)
	}
	return c, nil
}

func (n *Network) remember(raw net.Conn, addr string) (*conn, error) {
	c := &conn{Conn: raw, raw: raw, network: n, addr: addr}
	n.mu.Lock()
	// Close cancels before it takes the lock: either it finds c, or we find it closed.
	closed := n.ctx.Err() != nil
	if !closed {
		n.conns[c] = struct{}{}
	}
	n.mu.Unlock()
	if closed {
		_ = raw.Close() // nobody has seen it
		return nil, net.ErrClosed
	}
	return c, nil
}

// renewal reports whether a renewal may begin; then n.renewals.Done ends it.
func (n *Network) renewal() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		return false
	}
	n.renewals.Add(1)
	return true
}

// conn is a connection that the network remembers until it is closed. It may be
// read by one goroutine.
type conn struct {
	net.Conn          // raw, or TLS on top of it
	raw      net.Conn // what was dialled
	network  *Network
	addr     string
	session  session

	begun [first]byte // of the first answer; for the reader alone
	heard atomic.Int32

	once sync.Once
	err  error
}

func (c *conn) secured() bool { return c.Conn != c.raw }

// Read looks at the beginning of the first answer, which shows what the broker does
// not say in any other way: that its port expects TLS or is none of Kafka, or (in
// TLS 1.3) that it refuses the client's certificate.
func (c *conn) Read(p []byte) (int, error) {
	if c.heard.Load() == first {
		return c.Conn.Read(p)
	}
	n, err := c.Conn.Read(p)
	heard := int(c.heard.Load())
	heard += copy(c.begun[heard:], p[:n])
	c.heard.Store(int32(heard))
	if foreign := notKafka(c.begun[:heard]); foreign != nil {
		return 0, failure(stepFirst, c.addr, c.secured(), foreign)
	}
	return n, c.explain(err)
}

// Write is that of the connection below. Its error is explained if the broker has
// never said anything: it may have hung up before the first request.
func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.explain(err)
}

func (c *conn) explain(err error) error {
	if err == nil || c.heard.Load() == first || errors.Is(err, net.ErrClosed) {
		return err
	}
	return failure(stepFirst, c.addr, c.secured(), err)
}

// Close closes the connection. Every call returns the same error: the network may
// have cut a connection before sarama closes it, which is no failure of either.
func (c *conn) Close() error {
	c.once.Do(func() { c.closed(c.Conn.Close()) })
	return c.err
}

// cut closes the connection without a word. Close says goodbye in TLS, and waits up
// to 5 s until a broker that hangs has taken it.
func (c *conn) cut() {
	err := c.raw.Close()
	c.once.Do(func() { c.closed(err) })
}

func (c *conn) closed(err error) {
	c.err = err
	c.network.mu.Lock()
	delete(c.network.conns, c)
	c.network.mu.Unlock()
}
