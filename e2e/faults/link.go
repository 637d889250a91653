package faults

// A network that can be cut: connections stay open, and nothing passes. Servers that
// misbehave are in server.go.

import (
	"context"
	"net"
	"sync"
)

// A Link makes connections, for kgroup's Config.Dial. Its zero value is a whole one.
type Link struct {
	mu    sync.Mutex
	whole chan struct{} // closed when the cut is mended; nil: there is none
}

// Cut lets nothing pass until [Link.Mend], and no connection be made.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.whole = make(chan struct{})
}

// Mend ends a cut. What was under way during it arrives now, as with TCP.
func (l *Link) Mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.whole)
	l.whole = nil
}

// pass waits while the link is cut, until ctx ends.
func (l *Link) pass(ctx context.Context) error {
	l.mu.Lock()
	whole := l.whole
	l.mu.Unlock()
	if whole == nil {
		return nil
	}
	select {
	case <-whole:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Dial connects to addr through the link.
func (l *Link) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := l.pass(ctx); err != nil {
		return nil, err
	}
	broker, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	open, cancel := context.WithCancel(context.WithoutCancel(ctx))
	near, far := net.Pipe()
	go l.relay(open, broker, far)
	go l.relay(open, far, broker)
	return &linked{near, cancel}, nil
}

// relay copies until either end is closed.
func (l *Link) relay(open context.Context, to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || l.pass(open) != nil {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// linked is a connection through a link.
type linked struct {
	net.Conn
	cancel context.CancelFunc
}

func (c *linked) Close() error {
	c.cancel()
	return c.Conn.Close()
}
