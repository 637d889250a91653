package kgroup

// Whether a broker is alive while a JoinGroup or SyncGroup waits there. Its answer
// comes when the slowest member has drained, which RebalanceTimeout allows to take
// minutes: by that alone a broker that hangs would be noticed as late.

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/kgroup-go/kgroup/internal/wire"
)

// lastWord is how long a JoinGroup that was taken back is waited for.
const lastWord = 500 * time.Millisecond

// pulseInterval is how often a broker is asked while a request waits there. With the
// time that is given to an answer, 10 s at most, a broker that hangs is noticed
// within 13 s.
const pulseInterval = 3 * time.Second

// A groupDialer makes group connections on which the broker is vouched for.
type groupDialer struct{ group *group }

// Dial implements sarama's proxy.Dialer.
func (d groupDialer) Dial(network, addr string) (net.Conn, error) {
	limits := d.group.limits()
	limits.Vouch = func(ctx context.Context) error { return d.group.vouch(ctx, addr) }
	return d.group.network.Group(d.group.member, limits).Dial(network, addr)
}

// String is what sarama logs at each connection.
func (groupDialer) String() string { return "kgroup" }

// vouch asks the broker at addr again and again, until ctx ends, on another
// connection: answers on one come in the order of the requests. It returns an error
// when none of its answers has come for pulseInterval and what an answer may take, and
// when the request that it vouches for was taken back and is not answered.
func (g *group) vouch(ctx context.Context, addr string) error {
	if !g.begin() {
		return nil
	}
	defer g.routines.Done()
	p := pulse{network: g.network, addr: addr, clientID: g.cluster.ClientID, greets: g.kerberos}
	defer p.close()
	patience := pulseInterval + g.limits().Other
	ticker := time.NewTicker(pulseInterval)
	defer ticker.Stop()
	for alive := time.Now(); ; {
		select {
		case <-ticker.C:
		case <-g.taken:
			select {
			case <-time.After(lastWord):
				return errStopping
			case <-ctx.Done():
				return nil
			}
		case <-ctx.Done():
			return nil
		}
		err := p.beat(ctx, alive.Add(patience))
		silent := time.Since(alive)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			alive = time.Now()
		case silent+pulseInterval > patience: // the next answer would come too late
			return fmt.Errorf("while the other members were waited for, broker %s has shown no sign of life for %v: %w", addr, silent.Round(100*time.Millisecond), err)
		}
	}
}

// A pulse is the connection that a broker is asked on. It is made with the first
// question, because most answers come before that.
type pulse struct {
	network        *wire.Network
	addr, clientID string
	greets         bool // it answers while a connection is made, and nothing after that: sarama would have to authenticate
	conn           net.Conn
}

// beat asks once. Dialing is bounded by ConnectTimeout, the rest by until.
func (p *pulse) beat(ctx context.Context, until time.Time) error {
	if p.conn == nil {
		conn, err := p.network.Data().Dial("tcp", p.addr)
		if err != nil {
			return err
		}
		p.conn = conn
	}
	if p.greets {
		p.close()
		return nil
	}
	conn := p.conn
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // the question is not worth waiting for any more
	err := conn.SetDeadline(until)
	if err == nil {
		err = wire.Ping(conn, p.clientID)
	}
	if err != nil {
		p.close()
	}
	return err
}

func (p *pulse) close() {
	if p.conn != nil {
		_ = p.conn.Close() // it has been asked for the last time
		p.conn = nil
	}
}
