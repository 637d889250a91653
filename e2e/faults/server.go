// Package faults has servers that a client should never meet, and must survive: that
// stay silent, hang up, or say what no broker says, each at a step of one's choice;
// and a [Link] that can be cut. They are on loopback, and may stand in front of a
// real broker or an embedded one.
package faults

// A server is where connections come in; what happens to them is in handlers.go.

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// A Handler does something to a connection, which is closed when it returns. When ctx
// ends the connection is closed under it.
type Handler func(ctx context.Context, c net.Conn)

// A Server accepts connections on a port of 127.0.0.1.
type Server struct {
	listener net.Listener
	running  sync.WaitGroup

	mu       sync.Mutex
	handler  Handler
	ctx      context.Context // of the connections that are open
	cancel   context.CancelFunc
	accepted int
	arrived  chan struct{} // closed, and replaced, with each connection
}

// Serve starts a server, whose connections go to h. End it with [Server.Close].
func Serve(h Handler) (*Server, error) {
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("serve faults: %w", err)
	}
	s := &Server{listener: listener, handler: h, arrived: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.running.Go(s.accept)
	return s, nil
}

// Addr is host:port of the server.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Dial connects to the server, whatever addr is: for kgroup's Config.Dial, so that a
// client who has learnt the addresses of the brokers behind it does not go there.
func (s *Server) Dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, s.Addr())
}

// Become breaks the connections that are open, and lets h have those that come.
func (s *Server) Become(h Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancel()
	s.handler = h
	s.ctx, s.cancel = context.WithCancel(context.Background())
}

// Await returns when n connections have come in all, or ctx has ended.
func (s *Server) Await(ctx context.Context, n int) error {
	for {
		s.mu.Lock()
		accepted, arrived := s.accepted, s.arrived
		s.mu.Unlock()
		if accepted >= n {
			return nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d connections have come: %w", accepted, n, context.Cause(ctx))
		}
	}
}

// Accepted is how many connections have come so far.
func (s *Server) Accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

// Close ends the server and every connection, and waits until the handlers have
// returned.
func (s *Server) Close() {
	s.listener.Close()
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	s.running.Wait()
}

func (s *Server) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return // closed
		}
		s.mu.Lock()
		s.accepted++
		close(s.arrived)
		s.arrived = make(chan struct{})
		ctx, handler := s.ctx, s.handler
		s.mu.Unlock()
		s.running.Go(func() { handle(ctx, c, handler) })
	}
}

func handle(ctx context.Context, c net.Conn, h Handler) {
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer c.Close()
	h(ctx, c)
}
