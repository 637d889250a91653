// Package wire makes the connections to the brokers: dialing, and what the group
// protocol says on them.
//
// sarama takes its connections from here through Net.Proxy.Dialer. Data
// connections carry frames that nobody looks at. The connection for the group
// protocol is read along in both directions (group.go), because sarama-cluster
// tells neither its member id nor its generation nor how its heartbeats are
// answered; what was read goes to an [Observer] as plain values (decode.go).
package wire

// Connections: how they are made, and that all of them can be cut. What a group
// connection does with its bytes is in group.go.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"
)

// A Network makes connections and remembers them until they are closed. Cutting
// them is the only thing that ends every wait inside sarama, whatever it waits for.
type Network struct {
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	timeout time.Duration

	// ctx is the parent of every dial: sarama dials without one.
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	conns map[*conn]struct{}
}

// NewNetwork returns a Network that connects with dial, or when dial is nil with a
// [net.Dialer] and its keep-alive. timeout bounds one attempt and must be positive.
func NewNetwork(dial func(ctx context.Context, network, addr string) (net.Conn, error), timeout time.Duration) *Network {
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	return &Network{dial: dial, timeout: timeout, ctx: ctx, cancel: cancel, conns: make(map[*conn]struct{})}
}

// Data returns a dialer of connections whose bytes nobody looks at.
func (n *Network) Data() Dialer {
	return Dialer{network: n, wrap: func(c net.Conn) net.Conn { return c }}
}

// Group returns a dialer of connections that carry the group protocol: o is told
// what passes, and answers are waited for as long as limits say.
func (n *Network) Group(o Observer, limits Limits) Dialer {
	return Dialer{network: n, wrap: func(c net.Conn) net.Conn { return newGroupConn(c, o, limits) }}
}

// Close closes every connection, cancels the dials under way, and refuses new
// ones: their error is [net.ErrClosed]. It may be called more than once.
func (n *Network) Close() {
	n.cancel(net.ErrClosed)
	n.mu.Lock()
	open := slices.Collect(maps.Keys(n.conns))
	n.mu.Unlock()
	for _, c := range open {
		_ = c.Close() // what it says concerns whoever uses the connection
	}
}

// Open returns the number of connections that are not closed yet.
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

// Dial connects to addr within the timeout of the [Network].
func (d Dialer) Dial(network, addr string) (net.Conn, error) {
	c, err := d.network.connect(network, addr)
	if err != nil {
		return nil, err
	}
	return d.wrap(c), nil
}

// String is there because sarama logs its dialer at every connect: without it the
// log would show whatever is reachable from here.
func (Dialer) String() string { return "kgroup" }

// connect returns when there is a connection, or the timeout has passed, or the
// network was closed, also if the dial func ignores its context. Its goroutine
// ends with the dial func, and closes a connection that comes too late.
func (n *Network) connect(network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(n.ctx, n.timeout)
	defer cancel()
	if ctx.Err() != nil {
		return nil, dialError(addr, context.Cause(ctx))
	}

	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	go func() {
		c, err := n.establish(ctx, network, addr)
		select {
		case results <- result{c, err}:
		case <-ctx.Done():
			if err == nil {
				_ = c.Close() // nobody has seen it
			}
		}
	}()

	select {
	case r := <-results:
		return r.conn, r.err
	case <-ctx.Done():
		// Heard before the dial func gives up because of it: its own error would not
		// say why.
		return nil, dialError(addr, context.Cause(ctx))
	}
}

func dialError(addr string, err error) error { return fmt.Errorf("dial %s: %w", addr, err) }

// establish takes all the steps to a connection that is ready for requests. The
// connection is remembered right after the dial, so that Close also cuts the steps
// that follow it.
func (n *Network) establish(ctx context.Context, network, addr string) (net.Conn, error) {
	raw, err := n.dial(ctx, network, addr)
	switch {
	case err != nil:
		return nil, err // net's errors name the address
	case raw == nil:
		return nil, dialError(addr, errors.New("the dial func returned neither a connection nor an error"))
	}
	return n.remember(raw)
}

func (n *Network) remember(raw net.Conn) (net.Conn, error) {
	c := &conn{Conn: raw, network: n}
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

// conn is a connection that the network remembers until it is closed.
type conn struct {
	net.Conn
	network *Network
	once    sync.Once
	err     error
}

// Close closes the connection. Every call returns the same error: the network may
// close a connection before sarama does, which is no failure of either.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.err = c.Conn.Close()
		c.network.mu.Lock()
		delete(c.network.conns, c)
		c.network.mu.Unlock()
	})
	return c.err
}
