package kgrouptest

// Where clients connect. kfake gets one listener per node. Ours can be stopped and
// started on the same port, which kfake notices only by broken connections, and it
// has a back door for the Broker's own requests. Group requests that pass by are
// shown to waiting.go.

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Ports are taken from below the range the kernel gives to outgoing connections
// (from 32768 on Linux, from 49152 elsewhere). A port of that range can be gone
// when a stopped node wants it back, and a client that keeps dialing one on which
// nobody listens sometimes reaches itself (TCP's simultaneous open).
const (
	lowestPort  = 20000
	highestPort = 32767
)

type listener struct {
	addr     net.Addr
	tls      *tls.Config
	waiting  *waiting
	accepted chan net.Conn // what Accept returns, from the network or the back door
	done     chan struct{} // closed by Close

	mu     sync.Mutex
	closed bool
	open   net.Listener // nil while stopped
	conns  map[*conn]struct{}
	loops  sync.WaitGroup
}

func newListener(address string, config *tls.Config, waiting *waiting) (*listener, error) {
	open, err := listenAnywhere(address)
	if err != nil {
		return nil, err
	}
	l := &listener{
		addr:     open.Addr(),
		tls:      config,
		waiting:  waiting,
		accepted: make(chan net.Conn),
		done:     make(chan struct{}),
		conns:    make(map[*conn]struct{}),
	}
	l.serve(open)
	return l, nil
}

// listenAnywhere listens on address; if that leaves the port open, on one of the
// safe range.
func listenAnywhere(address string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if port != "0" {
		return listenOn(address)
	}
	for range 100 {
		port := lowestPort + rand.IntN(highestPort-lowestPort+1)
		if open, err := listenOn(net.JoinHostPort(host, fmt.Sprint(port))); err == nil {
			return open, nil
		}
	}
	return listenOn(address)
}

func listenOn(address string) (net.Listener, error) {
	return new(net.ListenConfig).Listen(context.Background(), "tcp", address)
}

// serve is called with the lock held, or before anybody else knows l.
func (l *listener) serve(open net.Listener) {
	l.open = open
	l.loops.Go(func() {
		for {
			tcp, err := open.Accept()
			if err != nil {
				return // stopped or closed
			}
			l.admit(open, tcp)
		}
	})
}

func (l *listener) admit(open net.Listener, tcp net.Conn) {
	c := &conn{
		Conn:    tcp,
		tcp:     tcp,
		waiting: l.waiting,
		pending: make(map[int32]*request),
		leaving: make(map[int32]*kmsg.LeaveGroupRequest),
	}
	if l.tls != nil {
		c.Conn = tls.Server(tcp, l.tls)
	}
	c.closed = func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.conns, c)
	}
	l.mu.Lock()
	current := l.open == open // else stopped between Accept and here
	if current {
		l.conns[c] = struct{}{}
	}
	l.mu.Unlock()
	if !current {
		_ = tcp.Close()
		return
	}
	select {
	case l.accepted <- c:
	case <-l.done:
		_ = c.Close()
	}
}

// Accept is kfake's end.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Addr is the address clients dial, also while nobody listens there.
func (l *listener) Addr() net.Addr { return l.addr }

// dial is the back door: it is open also while the listener is stopped.
func (l *listener) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.accepted <- backDoor{theirs}:
		return ours, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// backDoor is a pipe with an address, which kfake's access rules want to parse.
type backDoor struct{ net.Conn }

func (backDoor) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

func (l *listener) stop() {
	l.mu.Lock()
	if l.open != nil {
		_ = l.open.Close()
		l.open = nil
	}
	l.mu.Unlock()
	l.disconnect()
}

func (l *listener) start() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open != nil || l.closed {
		return nil
	}
	open, err := listenOn(l.addr.String())
	if err != nil {
		return err
	}
	l.serve(open)
	return nil
}

func (l *listener) disconnect() {
	l.mu.Lock()
	var conns []*conn
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	for _, c := range conns {
		_ = c.Close() // takes the lock
	}
}

// Close is called by kfake when the cluster closes or the node is removed.
func (l *listener) Close() error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.done)
	}
	l.mu.Unlock()
	l.stop()
	return nil
}

// wait returns when nothing of a closed listener runs any more.
func (l *listener) wait() { l.loops.Wait() }
