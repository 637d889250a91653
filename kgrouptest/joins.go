package kgrouptest

// Members that wait in JoinGroup. Here kfake differs from Kafka in three ways that
// consumer groups notice, each put right:
//
//   - JoinGroup v0 carries no rebalance timeout; Kafka takes the session timeout.
//     kfake takes -1, and throws out who has not answered at once.
//   - A member is safe from its session timeout while it waits. kfake lets it run
//     out, removes the member, and never answers it: with a rebalance timeout longer
//     than the session, one slow member costs all others their place.
//   - A member that leaves gets its waiting JoinGroup answered with
//     UNKNOWN_MEMBER_ID. kfake never answers it, so that a client which leaves in the
//     middle of a rebalance hangs until its read timeout.
//
// The last two need to know who waits. That is seen on the connections, which show
// each JoinGroup and LeaveGroup and their answers.

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// rebalanceTimeoutOfV0 is a kfake control that changes the request and lets it pass.
func rebalanceTimeoutOfV0(kreq kmsg.Request) (kmsg.Response, error, bool) { //nolint:revive // kfake's signature
	if req := kreq.(*kmsg.JoinGroupRequest); req.Version == 0 {
		req.RebalanceTimeoutMillis = req.SessionTimeoutMillis
	}
	return nil, nil, false
}

// joins are the JoinGroup requests that wait for an answer, of members that have
// an id already. One that has none yet has no session that could run out, and
// nobody could ask it to leave.
type joins struct {
	broker *Broker

	mu      sync.Mutex
	closed  bool
	waiting map[member]*join
	beating sync.WaitGroup
}

type member struct{ group, id string }

type join struct {
	member
	conn    *conn
	corr    int32 // the request's correlation id
	version int16
	session time.Duration
	ended   chan struct{}
}

func (j *joins) begin(w *join) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return
	}
	if earlier := j.waiting[w.member]; earlier != nil {
		close(earlier.ended)
	}
	if j.waiting == nil {
		j.waiting = make(map[member]*join)
	}
	j.waiting[w.member] = w
	j.beating.Go(func() { j.broker.keepSession(w) })
}

// end forgets w. It returns false if that has happened already.
func (j *joins) end(w *join) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.waiting[w.member] != w {
		return false
	}
	delete(j.waiting, w.member)
	close(w.ended)
	return true
}

func (j *joins) close() {
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	j.beating.Wait() // the Broker's context has been cancelled
}

// left answers the JoinGroup of a member that has left meanwhile.
func (j *joins) left(m member) {
	j.mu.Lock()
	w := j.waiting[m]
	j.mu.Unlock()
	if w == nil || !j.end(w) {
		return
	}
	resp := kmsg.NewPtrJoinGroupResponse()
	resp.Version = w.version
	resp.ErrorCode = kerr.UnknownMemberID.Code
	w.conn.answer(w.corr, resp)
}

// keepSession sends the heartbeats that kfake wants of a member while it waits.
func (b *Broker) keepSession(w *join) {
	client, err := b.client()
	if err != nil {
		return
	}
	defer client.Close()
	tick := time.NewTicker(max(w.session/3, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-w.ended:
			return
		case <-b.ctx.Done():
			return
		case <-tick.C:
		}
		info := b.cluster.GroupInfo(w.group)
		if info == nil {
			return
		}
		req := kmsg.NewPtrHeartbeatRequest()
		req.Group, req.MemberID, req.Generation = w.group, w.id, info.Epoch
		_, _ = req.RequestWith(b.ctx, client) // nobody to tell: the member learns its fate from its JoinGroup
	}
}

// conn is one connection of a client to a node, in plain text.
type conn struct {
	net.Conn
	joins  *joins
	in     requests
	closed func()

	mu      sync.Mutex
	joining map[int32]*join                   // by correlation id
	leaving map[int32]*kmsg.LeaveGroupRequest // by correlation id
	spent   bool
}

func newConn(raw net.Conn, joins *joins) *conn {
	return &conn{
		Conn:    raw,
		joins:   joins,
		joining: make(map[int32]*join),
		leaving: make(map[int32]*kmsg.LeaveGroupRequest),
	}
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

// request is called with each JoinGroup and LeaveGroup, before kfake sees the end
// of it.
func (c *conn) request(kreq kmsg.Request, corr int32) {
	switch req := kreq.(type) {
	case *kmsg.JoinGroupRequest:
		if req.MemberID == "" {
			return
		}
		w := &join{
			member:  member{req.Group, req.MemberID},
			conn:    c,
			corr:    corr,
			version: req.Version,
			session: time.Duration(req.SessionTimeoutMillis) * time.Millisecond,
			ended:   make(chan struct{}),
		}
		c.mu.Lock()
		c.joining[corr] = w
		c.mu.Unlock()
		c.joins.begin(w)
	case *kmsg.LeaveGroupRequest:
		c.mu.Lock()
		c.leaving[corr] = req
		c.mu.Unlock()
	}
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
	joined, left := c.joining[corr], c.leaving[corr]
	delete(c.joining, corr)
	delete(c.leaving, corr)
	c.mu.Unlock()
	if joined != nil {
		c.joins.end(joined)
	}
	if left != nil {
		for _, id := range whoLeft(left, p[8:]) {
			c.joins.left(member{left.Group, id})
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

func (c *conn) Close() error {
	c.closed()
	c.mu.Lock()
	waiting := c.joining
	c.joining = make(map[int32]*join)
	c.mu.Unlock()
	for _, w := range waiting {
		c.joins.end(w)
	}
	return c.Conn.Close()
}

// requests finds the JoinGroup and LeaveGroup requests in a stream, whose frames
// are: length (4 bytes), key (2), version (2), correlation id (4), client id, body.
type requests struct {
	frame []byte // the one begun; of other requests only the first 8 bytes
	left  int    // bytes missing to its end, once its first 8 bytes are known
}

func (r *requests) feed(p []byte, found func(req kmsg.Request, corr int32)) {
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

func (r *requests) wanted() bool {
	key := kmsg.Key(binary.BigEndian.Uint16(r.frame[4:]))
	return key == kmsg.JoinGroup || key == kmsg.LeaveGroup
}

func (r *requests) parse(found func(req kmsg.Request, corr int32)) {
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
