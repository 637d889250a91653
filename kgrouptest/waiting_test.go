package kgrouptest_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/kgroup-go/kgroup/kgrouptest"
)

// These tests speak the group protocol by hand, each member on a connection of its
// own, to have requests wait as long as they like.

// A rebalance waits for the member that has not come back yet. With kfake alone it
// does not when the request is of version 0, and throws the first member out.
func TestJoinGroupV0Waits(t *testing.T) {
	b := kgrouptest.Start(t)
	first, second := connect(t, b), connect(t, b)
	joined := first.join(0, "", time.Minute, 0)
	second.send(joinGroup(0, "", time.Minute, 0))
	waitRebalance(t, b, 2)

	first.send(joinGroup(0, joined.MemberID, time.Minute, 0))
	again, other := first.joined(), second.joined()
	assert.Zero(t, again.ErrorCode)
	assert.Equal(t, joined.MemberID, again.MemberID)
	assert.Zero(t, other.ErrorCode)
	assert.EqualValues(t, 2, other.Generation)
}

// A member waits in JoinGroup for another that takes longer than the session, but
// sends heartbeats. With kfake alone the one that waits loses its session, and never
// gets an answer.
func TestWaitingMemberKeepsItsSession(t *testing.T) {
	t.Parallel()
	const session, rebalance = time.Second, time.Minute
	b := kgrouptest.Start(t)
	quick, slow, third := connect(t, b), connect(t, b), connect(t, b)
	q := quick.join(2, "", session, rebalance)
	slow.wait(b, joinGroup(2, "", session, rebalance))
	quick.send(joinGroup(2, q.MemberID, session, rebalance))
	q, s := quick.joined(), slow.joined()
	require.EqualValues(t, 2, s.Generation)

	third.send(joinGroup(2, "", session, rebalance))
	waitRebalance(t, b, 3)
	quick.send(joinGroup(2, q.MemberID, session, rebalance))
	pace := time.NewTicker(session / 6)
	defer pace.Stop()
	for begin := time.Now(); time.Since(begin) < 2*session; <-pace.C {
		beat := kmsg.NewPtrHeartbeatRequest()
		beat.Group, beat.MemberID, beat.Generation = "billing", s.MemberID, s.Generation
		resp := slow.ask(beat).(*kmsg.HeartbeatResponse)
		require.Equal(t, kerr.RebalanceInProgress.Code, resp.ErrorCode)
	}
	require.Len(t, b.Group("billing").Members, 3)

	slow.send(joinGroup(2, s.MemberID, session, rebalance))
	for _, member := range []*wire{quick, slow, third} {
		resp := member.joined()
		assert.Zero(t, resp.ErrorCode)
		assert.EqualValues(t, 3, resp.Generation)
	}
	_, err := b.WaitGroup(within(t), "billing", func(g kgrouptest.Group) bool { return len(g.Members) == 0 })
	require.NoError(t, err, "who has been answered keeps its session itself")
}

// The same for a follower that waits in SyncGroup for a leader who takes longer
// than the session to assign partitions.
func TestWaitingFollowerKeepsItsSession(t *testing.T) {
	t.Parallel()
	const session = time.Second
	b := kgrouptest.Start(t)
	leader, follower := connect(t, b), connect(t, b)
	l := leader.join(2, "", time.Minute, time.Minute)
	follower.wait(b, joinGroup(2, "", session, time.Minute))
	leader.send(joinGroup(2, l.MemberID, time.Minute, time.Minute))
	l, f := leader.joined(), follower.joined()
	require.Equal(t, l.LeaderID, l.MemberID)

	sync := kmsg.NewPtrSyncGroupRequest()
	sync.Group, sync.MemberID, sync.Generation = "billing", f.MemberID, f.Generation
	follower.send(sync)
	// That nothing happens cannot be waited for: give it two sessions.
	until, cancel := context.WithTimeout(t.Context(), 2*session)
	defer cancel()
	_, err := b.WaitGroup(until, "billing", func(g kgrouptest.Group) bool { return len(g.Members) < 2 })
	require.ErrorIs(t, err, context.DeadlineExceeded)

	sync.MemberID = l.MemberID
	sync.GroupAssignment = []kmsg.SyncGroupRequestGroupAssignment{{MemberID: f.MemberID, MemberAssignment: []byte("yours")}}
	assert.Zero(t, leader.ask(sync).(*kmsg.SyncGroupResponse).ErrorCode)
	resp := follower.receive().(*kmsg.SyncGroupResponse)
	assert.Zero(t, resp.ErrorCode)
	assert.Equal(t, "yours", string(resp.MemberAssignment))
}

// But who has died while waiting does not stay for ever.
func TestDeadWaitingMemberLosesItsSession(t *testing.T) {
	t.Parallel()
	const session, long = time.Second, time.Minute
	b := kgrouptest.Start(t)
	first, second, third := connect(t, b), connect(t, b), connect(t, b)
	f := first.join(2, "", session, long)
	second.wait(b, joinGroup(2, "", long, long))
	first.send(joinGroup(2, f.MemberID, session, long))
	f, s := first.joined(), second.joined()
	third.send(joinGroup(2, "", long, long))
	waitRebalance(t, b, 3)
	first.wait(b, joinGroup(2, f.MemberID, session, long))

	require.NoError(t, first.conn.Close())
	waitRebalance(t, b, 2)
	second.send(joinGroup(2, s.MemberID, long, long))
	resp := second.joined()
	assert.Zero(t, resp.ErrorCode)
	assert.EqualValues(t, 3, resp.Generation)
}

// A member leaves on one connection while its JoinGroup waits on another, as a
// client does that is shut down in the middle of a rebalance. With kfake alone the
// JoinGroup is never answered.
func TestLeaveAnswersTheWaitingJoin(t *testing.T) {
	for _, version := range []struct{ join, leave int16 }{{0, 0}, {2, 1}, {4, 2}, {5, 3}, {9, 5}} {
		t.Run(fmt.Sprintf("join v%d leave v%d", version.join, version.leave), func(t *testing.T) {
			b := kgrouptest.Start(t)
			leaving, staying, third, beside := connect(t, b), connect(t, b), connect(t, b), connect(t, b)
			l := leaving.join(version.join, "", time.Minute, time.Minute)
			staying.wait(b, joinGroup(0, "", time.Minute, time.Minute))
			leaving.send(joinGroup(version.join, l.MemberID, time.Minute, time.Minute))
			l, s := leaving.joined(), staying.joined()
			third.send(joinGroup(0, "", time.Minute, time.Minute))
			waitRebalance(t, b, 3)
			leaving.wait(b, joinGroup(version.join, l.MemberID, time.Minute, time.Minute))

			for _, refused := range []kfake.Fault{{Group: "billing"}, {Resource: l.MemberID}} { // as a whole, and the one member
				refused.Keys = []kmsg.Key{kmsg.LeaveGroup}
				b.Cluster().Fault(refused)
				require.NotZero(t, beside.leave(version.leave, l.MemberID))
				requireSilent(t, leaving.conn)
			}
			require.Zero(t, beside.leave(version.leave, l.MemberID))
			resp := leaving.joined()
			assert.Equal(t, kerr.UnknownMemberID.Code, resp.ErrorCode)
			leaving.send(kmsg.NewPtrApiVersionsRequest())
			requireBroken(t, leaving.conn) // kfake still owes its own answer

			staying.send(joinGroup(0, s.MemberID, time.Minute, time.Minute))
			assert.EqualValues(t, 3, staying.joined().Generation, "the others go on without it")
			assert.Len(t, b.Group("billing").Members, 2)
		})
	}
}

// A new member is given its id before it waits (JoinGroup v4), so it can leave while
// its first JoinGroup waits for another member; or before it has sent that.
func TestNewMemberLeaves(t *testing.T) {
	b := kgrouptest.Start(t)
	staying, leaving, beside := connect(t, b), connect(t, b), connect(t, b)
	s := staying.join(4, "", time.Minute, time.Minute)
	given := leaving.ask(joinGroup(4, "", time.Minute, time.Minute)).(*kmsg.JoinGroupResponse)
	require.Equal(t, kerr.MemberIDRequired.Code, given.ErrorCode)
	require.NotEmpty(t, given.MemberID)
	assert.Len(t, b.Group("billing").Members, 1, "it has not joined")
	leaving.wait(b, joinGroup(4, given.MemberID, time.Minute, time.Minute))
	waitRebalance(t, b, 2)
	require.Zero(t, beside.leave(0, given.MemberID))
	assert.Equal(t, kerr.UnknownMemberID.Code, leaving.joined().ErrorCode)
	staying.send(joinGroup(4, s.MemberID, time.Minute, time.Minute))
	assert.Zero(t, staying.joined().ErrorCode)
	assert.Len(t, b.Group("billing").Members, 1)

	leaving = connect(t, b)
	given = leaving.ask(joinGroup(4, "", time.Minute, time.Minute)).(*kmsg.JoinGroupResponse)
	require.Zero(t, beside.leave(0, given.MemberID))
	late := leaving.ask(joinGroup(4, given.MemberID, time.Minute, time.Minute)).(*kmsg.JoinGroupResponse)
	assert.Equal(t, kerr.UnknownMemberID.Code, late.ErrorCode)
}

// The connection of a new member breaks while its first JoinGroup waits. It can take its
// place again with the id it was given; if it does not, it loses its session. With kfake
// alone it would stay for ever.
func TestNewMemberLosesItsConnection(t *testing.T) {
	t.Parallel()
	const session, long = time.Second, time.Minute
	b := kgrouptest.Start(t)
	staying := connect(t, b)
	s := staying.join(4, "", long, long)
	for _, returns := range []bool{true, false} {
		breaks := connect(t, b)
		given := breaks.ask(joinGroup(4, "", session, long)).(*kmsg.JoinGroupResponse)
		breaks.wait(b, joinGroup(4, given.MemberID, session, long))
		waitRebalance(t, b, 2)
		require.NoError(t, breaks.conn.Close())
		if returns {
			again := connect(t, b)
			again.wait(b, joinGroup(4, given.MemberID, session, long))
			staying.send(joinGroup(4, s.MemberID, long, long))
			s = staying.joined()
			assert.Equal(t, given.MemberID, again.joined().MemberID)
			assert.Len(t, b.Group("billing").Members, 2)
			require.Zero(t, again.leave(0, given.MemberID))
		} else {
			waitRebalance(t, b, 1)
		}
		staying.send(joinGroup(4, s.MemberID, long, long))
		s = staying.joined()
		assert.Zero(t, s.ErrorCode)
		assert.Len(t, b.Group("billing").Members, 1)
	}
}

// requireSilent fails if there is anything to read by now.
func requireSilent(t *testing.T, c net.Conn) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func waitRebalance(t *testing.T, b *kgrouptest.Broker, members int) {
	t.Helper()
	_, err := b.WaitGroup(within(t), "billing", func(g kgrouptest.Group) bool {
		return g.State == "PreparingRebalance" && len(g.Members) == members
	})
	require.NoError(t, err)
}

func joinGroup(version int16, member string, session, rebalance time.Duration) *kmsg.JoinGroupRequest {
	req := kmsg.NewPtrJoinGroupRequest()
	req.Version = version
	req.Group, req.MemberID, req.ProtocolType = "billing", member, "consumer"
	req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = int32(session.Milliseconds()), int32(rebalance.Milliseconds())
	req.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range", Metadata: []byte("m")}}
	return req
}

// wire is one connection, used by one goroutine.
type wire struct {
	t    *testing.T
	conn net.Conn
	last kmsg.Request
}

func connect(t *testing.T, b *kgrouptest.Broker) *wire {
	t.Helper()
	return &wire{t: t, conn: dial(t, b.Addrs()[0])}
}

func (w *wire) send(req kmsg.Request) {
	w.t.Helper()
	w.last = req
	_, err := w.conn.Write(kmsg.NewRequestFormatter(kmsg.FormatterClientID("test")).AppendRequest(nil, req, 7))
	require.NoError(w.t, err)
}

// wait sends a JoinGroup that will not be answered yet, and returns when the broker
// has it.
func (w *wire) wait(b *kgrouptest.Broker, req *kmsg.JoinGroupRequest) {
	w.t.Helper()
	arrived := b.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup}, Observe: true})
	w.send(req)
	require.NoError(w.t, arrived.Wait(within(w.t), 1))
}

func (w *wire) receive() kmsg.Response {
	w.t.Helper()
	require.NoError(w.t, w.conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	size := make([]byte, 4)
	_, err := io.ReadFull(w.conn, size)
	require.NoError(w.t, err)
	body := make([]byte, binary.BigEndian.Uint32(size))
	_, err = io.ReadFull(w.conn, body)
	require.NoError(w.t, err)
	require.EqualValues(w.t, 7, binary.BigEndian.Uint32(body))
	body = body[4:]
	resp := w.last.ResponseKind()
	if resp.IsFlexible() {
		body = body[1:]
	}
	require.NoError(w.t, resp.ReadFrom(body))
	return resp
}

func (w *wire) ask(req kmsg.Request) kmsg.Response {
	w.t.Helper()
	w.send(req)
	return w.receive()
}

func (w *wire) joined() *kmsg.JoinGroupResponse {
	w.t.Helper()
	return w.receive().(*kmsg.JoinGroupResponse)
}

// join is for a member that nobody keeps waiting.
func (w *wire) join(version int16, member string, session, rebalance time.Duration) *kmsg.JoinGroupResponse {
	w.t.Helper()
	resp := w.ask(joinGroup(version, member, session, rebalance)).(*kmsg.JoinGroupResponse)
	if resp.ErrorCode == kerr.MemberIDRequired.Code {
		return w.join(version, resp.MemberID, session, rebalance)
	}
	require.Zero(w.t, resp.ErrorCode)
	return resp
}

func (w *wire) leave(version int16, member string) int16 {
	w.t.Helper()
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Version = version
	req.Group, req.MemberID = "billing", member
	req.Members = []kmsg.LeaveGroupRequestMember{{MemberID: member}}
	resp := w.ask(req).(*kmsg.LeaveGroupResponse)
	if version < 3 || resp.ErrorCode != 0 {
		return resp.ErrorCode
	}
	require.Len(w.t, resp.Members, 1)
	return resp.Members[0].ErrorCode
}
