package kgrouptest

// Members that wait in JoinGroup or SyncGroup. Here kfake differs from Kafka in
// four ways that consumer groups notice, each put right:
//
//   - JoinGroup v0 carries no rebalance timeout; Kafka takes the session timeout.
//     kfake takes -1, and throws out who has not come back at once.
//   - A member is safe from its session timeout while it waits. kfake lets it run
//     out, removes the member, and never answers it: with a rebalance timeout longer
//     than the session, one slow member costs all others their place.
//   - A member that leaves gets its waiting JoinGroup answered with
//     UNKNOWN_MEMBER_ID. kfake never answers it, so that a client which leaves in the
//     middle of a rebalance hangs until its read timeout.
//   - A new member whose connection breaks while it waits loses its session. kfake
//     begins none, and the group waits for the member in each rebalance, for ever.
//
// The last three need to know who waits. That is seen on the connections, which show
// each of these requests and their answers.

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The shortest session a member may ask for, and how often one is prolonged for a
// member that waits.
const (
	shortestSession = 300 * time.Millisecond
	prolongInterval = shortestSession / 6
)

// rebalanceTimeoutOfV0 is a kfake control that changes the request and lets it pass.
func rebalanceTimeoutOfV0(kreq kmsg.Request) (kmsg.Response, error, bool) { //nolint:revive // kfake's signature
	if req := kreq.(*kmsg.JoinGroupRequest); req.Version == 0 {
		req.RebalanceTimeoutMillis = req.SessionTimeoutMillis
	}
	return nil, nil, false
}

// waiting are the requests that wait for an answer, of members that have an id
// already. One that has none yet has no session that could run out, and nobody
// could ask it to leave.
type waiting struct {
	broker *Broker

	mu       sync.Mutex
	closed   bool
	requests map[member]*request
	beating  sync.WaitGroup
}

type member struct{ group, id string }

// request is a JoinGroup or SyncGroup that has not been answered.
type request struct {
	member
	kind  kmsg.Request
	conn  *conn
	corr  int32 // correlation id
	ended chan struct{}
}

func (w *waiting) begin(r *request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	if earlier := w.requests[r.member]; earlier != nil {
		close(earlier.ended)
	}
	if w.requests == nil {
		w.requests = make(map[member]*request)
	}
	w.requests[r.member] = r
	w.beating.Go(func() { w.broker.keepSession(r) })
}

// end forgets r. It returns false if that has happened already.
func (w *waiting) end(r *request) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.requests[r.member] != r {
		return false
	}
	delete(w.requests, r.member)
	close(r.ended)
	return true
}

// broken makes sure that a member has a session that runs out: kfake begins the
// first one with the answer to JoinGroup, which this member will not get.
func (w *waiting) broken(r *request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.beating.Go(func() { w.broker.heartbeat(r.member) })
	}
}

func (w *waiting) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.beating.Wait() // the Broker's context has been cancelled
}

// left answers the JoinGroup of a member that has left meanwhile.
func (w *waiting) left(m member) {
	w.mu.Lock()
	r := w.requests[m]
	w.mu.Unlock()
	if r == nil || !w.end(r) {
		return
	}
	if resp, ok := r.kind.ResponseKind().(*kmsg.JoinGroupResponse); ok {
		resp.ErrorCode = kerr.UnknownMemberID.Code
		r.conn.answer(r.corr, resp)
	}
}

// keepSession sends the heartbeats that kfake wants of a member while it waits.
func (b *Broker) keepSession(r *request) {
	tick := time.NewTicker(prolongInterval)
	defer tick.Stop()
	for {
		select {
		case <-r.ended: // most are, before the first tick
			return
		case <-b.ctx.Done():
			return
		case <-tick.C:
			b.heartbeat(r.member)
		}
	}
}

// heartbeat tells nobody of errors: the member learns its fate from its own request.
func (b *Broker) heartbeat(m member) {
	info := b.cluster.GroupInfo(m.group)
	client, err := b.client()
	if err != nil || info == nil {
		return
	}
	defer client.Close()
	req := kmsg.NewPtrHeartbeatRequest()
	req.Group, req.MemberID, req.Generation = m.group, m.id, info.Epoch
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	_, _ = req.RequestWith(ctx, client)
}

// conn is one connection of a client to a node, in plain text.
type conn struct {
	net.Conn
	tcp     net.Conn // below TLS
	waiting *waiting
	in      groupRequests
	closed  func()

	mu      sync.Mutex
	pending map[int32]*request                // by correlation id
	leaving map[int32]*kmsg.LeaveGroupRequest // by correlation id
	spent   bool
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	spent := c.spent
	c.mu.Unlock()
	if spent {
		return 0, io.EOF
	}
	c.in.feed(p[:n], c.request)
	return n, err
}

// request is called with each request that groupRequests finds, before kfake sees
// the end of it.
func (c *conn) request(kreq kmsg.Request, corr int32) {
	switch req := kreq.(type) {
	case *kmsg.JoinGroupRequest:
		c.await(member{req.Group, req.MemberID}, kreq, corr)
	case *kmsg.SyncGroupRequest:
		c.await(member{req.Group, req.MemberID}, kreq, corr)
	case *kmsg.LeaveGroupRequest:
		c.mu.Lock()
		defer c.mu.Unlock()
		c.leaving[corr] = req
	}
}

func (c *conn) await(m member, kind kmsg.Request, corr int32) {
	if m.id == "" {
		return
	}
	r := &request{member: m, kind: kind, conn: c, corr: corr, ended: make(chan struct{})}
	c.mu.Lock()
	c.pending[corr] = r
	c.mu.Unlock()
	c.waiting.begin(r)
}

// Write is called by kfake with one whole response.
func (c *conn) Write(p []byte) (int, error) {
	if len(p) >= 8 {
		c.response(p)
	}
	return c.Conn.Write(p)
}

func (c *conn) response(p []byte) {
	corr := int32(binary.BigEndian.Uint32(p[4:]))
	c.mu.Lock()
	answered, left := c.pending[corr], c.leaving[corr]
	delete(c.pending, corr)
	delete(c.leaving, corr)
	c.mu.Unlock()
	if answered != nil {
		c.waiting.end(answered)
	}
	if left != nil {
		for _, id := range whoLeft(left, p[8:]) {
			c.waiting.left(member{left.Group, id})
		}
	}
}

func whoLeft(req *kmsg.LeaveGroupRequest, body []byte) []string {
	resp := req.ResponseKind().(*kmsg.LeaveGroupResponse)
	if resp.IsFlexible() && len(body) > 0 {
		body = body[1:] // the header's empty tag section
	}
	if err := resp.ReadFrom(body); err != nil || resp.ErrorCode != 0 {
		return nil
	}
	if req.Version < 3 {
		return []string{req.MemberID}
	}
	var ids []string
	for _, m := range resp.Members {
		if m.ErrorCode == 0 {
			ids = append(ids, m.MemberID)
		}
	}
	return ids
}

// answer writes a response in kfake's place. kfake still owes its own and takes no
// further request from the connection, which therefore ends with the next one.
func (c *conn) answer(corr int32, resp kmsg.Response) {
	c.mu.Lock()
	c.spent = true
	c.mu.Unlock()
	p := make([]byte, 8, 64)
	if resp.IsFlexible() {
		p = append(p, 0) // no tags in the header
	}
	p = resp.AppendTo(p)
	binary.BigEndian.PutUint32(p, uint32(len(p)-4))
	binary.BigEndian.PutUint32(p[4:], uint32(corr))
	_, _ = c.Conn.Write(p)
}

// Close breaks the connection as a crash does. A goodbye of TLS would wait for a
// client that does not read.
func (c *conn) Close() error {
	c.closed()
	c.mu.Lock()
	pending := c.pending
	c.pending = make(map[int32]*request)
	c.mu.Unlock()
	for _, r := range pending {
		if c.waiting.end(r) {
			c.waiting.broken(r)
		}
	}
	return c.tcp.Close()
}

// groupRequests finds JoinGroup, SyncGroup and LeaveGroup in a stream, whose frames
// are: length (4 bytes), key (2), version (2), correlation id (4), client id, body.
type groupRequests struct {
	frame []byte // the one begun; of other requests only the first 8 bytes
	left  int    // bytes missing to its end, once its first 8 bytes are known
}

func (r *groupRequests) feed(p []byte, found func(req kmsg.Request, corr int32)) {
	const head = 8
	for len(p) > 0 {
		if len(r.frame) < head {
			n := min(head-len(r.frame), len(p))
			r.frame, p = append(r.frame, p[:n]...), p[n:]
			if len(r.frame) < head {
				return
			}
			r.left = int(binary.BigEndian.Uint32(r.frame)) - 4
		}
		n := max(0, min(r.left, len(p)))
		if r.wanted() {
			r.frame = append(r.frame, p[:n]...)
		}
		r.left, p = r.left-n, p[n:]
		if r.left <= 0 {
			if r.wanted() {
				r.parse(found)
			}
			r.frame = r.frame[:0]
		}
	}
}

func (r *groupRequests) wanted() bool {
	key := kmsg.Key(binary.BigEndian.Uint16(r.frame[4:]))
	return key == kmsg.JoinGroup || key == kmsg.SyncGroup || key == kmsg.LeaveGroup
}

func (r *groupRequests) parse(found func(req kmsg.Request, corr int32)) {
	in := kbin.Reader{Src: r.frame[4:]}
	req := kmsg.RequestForKey(in.Int16())
	req.SetVersion(in.Int16())
	corr := in.Int32()
	in.NullableString() // client id
	if req.IsFlexible() {
		kmsg.SkipTags(&in)
	}
	// The request keeps slices of what it was read from, and the frame is used again.
	if req.ReadFrom(append([]byte(nil), in.Src...)) == nil {
		found(req, corr)
	}
}
