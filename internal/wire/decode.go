package wire

// Reading frames: what a request says, and what its answer means. Nothing here
// waits or keeps a reference to a frame; group.go calls it and owns the bytes.

import (
	"bytes"
	"context"
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// readable has the newest version of each request that is read. Later ones have
// tagged fields, whose number kmsg believes (10 bytes that announce 268 million of
// them kept it busy for 11 s), or name several members at once. sarama-cluster
// sends version 0, of OffsetFetch 1.
var readable = map[kmsg.Key]int16{
	kmsg.JoinGroup:   5,
	kmsg.SyncGroup:   3,
	kmsg.Heartbeat:   3,
	kmsg.LeaveGroup:  2,
	kmsg.OffsetFetch: 5,
}

// A request is one that is under way: what must be known of it to understand its
// answer, and how long to wait for it.
type request struct {
	key         kmsg.Key
	version     int16
	correlation int32
	sent        time.Time
	observed    bool     // it was understood, and so may be its answer
	member      Member   // who sent it, as far as the request says
	join        *joining // set if it went out in another version than it was written in

	answered context.CancelFunc // tells who vouches for the broker; nil: nobody does
}

// parseRequest reads the header of a frame that is about to be written. It fails
// if p is not exactly one frame. The body is nil if it is not to be read.
func parseRequest(p []byte, now time.Time) (r *request, body []byte, ok bool) {
	const header = 12 // size, key, version, correlation id
	if len(p) < header || int64(binary.BigEndian.Uint32(p)) != int64(len(p)-4) {
		return nil, nil, false
	}
	r = &request{
		key:         kmsg.Key(binary.BigEndian.Uint16(p[4:])),
		version:     int16(binary.BigEndian.Uint16(p[6:])),
		correlation: int32(binary.BigEndian.Uint32(p[8:])),
		sent:        now,
	}
	if newest, ok := readable[r.key]; ok && r.version >= 0 && r.version <= newest {
		body = skipString(p[header:]) // the client id
	}
	return r, body, true
}

// isRequestOf reports whether p is exactly one request, of a kind that Kafka knows,
// with that client id. A token of GSSAPI would be of kind 0x6082, or 0x0504.
func isRequestOf(p []byte, clientID string) bool {
	const header = 12
	r, _, ok := parseRequest(p, time.Time{})
	if !ok || kmsg.RequestForKey(int16(r.key)) == nil {
		return false
	}
	id := append(binary.BigEndian.AppendUint16(nil, uint16(len(clientID))), clientID...)
	return bytes.HasPrefix(p[header:], id)
}

// skipString returns what follows a string, which may be null; nil if nothing does.
func skipString(p []byte) []byte {
	if len(p) < 2 {
		return nil
	}
	end := 2 + max(0, int(int16(binary.BigEndian.Uint16(p))))
	if len(p) <= end {
		return nil
	}
	return p[end:]
}

// tellSent reads the body of the request in frame p, tells what it asks for, and
// keeps what its answer will be matched with. It returns what is to be written,
// which is p but for a JoinGroup that goes out in a newer version. A body that does
// not read makes a request that is not observed, nor is its answer.
func (r *request) tellSent(o Observer, p, body []byte, limits Limits) []byte {
	if body == nil {
		return p
	}
	upgrades := r.key == kmsg.JoinGroup && r.version == 0 && limits.JoinVersion > 0
	if upgrades {
		body = bytes.Clone(body) // it is kept, and p is not ours
	}
	req := r.key.Request()
	req.SetVersion(r.version)
	if req.ReadFrom(body) != nil {
		return p
	}
	r.observed = true
	if upgrades {
		p = r.upgrade(p[:len(p)-len(body)], req.(*kmsg.JoinGroupRequest), o.MemberID, limits)
	}
	switch req := req.(type) {
	case *kmsg.JoinGroupRequest:
		r.member.ID = req.MemberID
		o.JoinSent(req.MemberID)
	case *kmsg.SyncGroupRequest:
		r.member = Member{ID: req.MemberID, Generation: req.Generation}
	case *kmsg.HeartbeatRequest:
		r.member = Member{ID: req.MemberID, Generation: req.Generation}
		o.HeartbeatSent(r.member)
	case *kmsg.LeaveGroupRequest:
		r.member.ID = req.MemberID
		o.LeaveSent(req.MemberID)
	}
	return p
}

func (r *request) limit(l Limits) time.Duration {
	if r.waitsForOthers() {
		return l.Join
	}
	return l.Other
}

// waitsForOthers reports whether the answer to r waits for other members.
func (r *request) waitsForOthers() bool {
	return r.key == kmsg.SyncGroup || r.key == kmsg.JoinGroup && (r.join == nil || !r.givesID())
}

// end says that r is not waited for any more.
func (r *request) end() {
	if r.answered != nil {
		r.answered()
	}
}

// tellAnswered reads the answer's body, and returns what it has read. One that does
// not read is not told: sarama will not understand it either, and break the
// connection.
func (r *request) tellAnswered(o Observer, body []byte) kmsg.Response {
	answer := r.key.Response()
	answer.SetVersion(r.version)
	if answer.ReadFrom(body) != nil {
		return nil
	}
	switch answer := answer.(type) {
	case *kmsg.JoinGroupResponse:
		o.JoinAnswered(joinAnswer(r.member.ID, answer))
	case *kmsg.SyncGroupResponse:
		o.SyncAnswered(r.member, answer.ErrorCode)
	case *kmsg.HeartbeatResponse:
		o.HeartbeatAnswered(r.member, r.sent, answer.ErrorCode)
	case *kmsg.LeaveGroupResponse:
		o.LeaveAnswered(r.member.ID, answer.ErrorCode)
	case *kmsg.OffsetFetchResponse:
		o.OffsetsFetched(offsets(answer))
	}
	return answer
}

func joinAnswer(sentID string, answer *kmsg.JoinGroupResponse) JoinAnswer {
	a := JoinAnswer{
		SentID: sentID,
		Err:    answer.ErrorCode,
		Member: Member{ID: answer.MemberID, Generation: answer.Generation},
		Leader: answer.ErrorCode == 0 && answer.LeaderID == answer.MemberID,
	}
	if a.Leader {
		a.Topics = topics(answer.Members)
	}
	return a
}

// topics is the union of what the members asked for.
func topics(members []kmsg.JoinGroupResponseMember) []string {
	union := make(map[string]struct{})
	for _, m := range members {
		if subscription, ok := subscriptionOf(m.ProtocolMetadata); ok {
			for _, topic := range subscription.Topics {
				union[topic] = struct{}{}
			}
		}
	}
	return slices.Sorted(maps.Keys(union))
}

// subscriptionOf reads a member's metadata as version 0, with whose fields every
// version begins: sarama-cluster says version 1 and then leaves out what version 1
// adds (D27).
func subscriptionOf(metadata []byte) (m kmsg.ConsumerMemberMetadata, ok bool) {
	if len(metadata) < 2 {
		return m, false
	}
	v0 := slices.Concat([]byte{0, 0}, metadata[2:])
	return m, m.ReadFrom(v0) == nil
}

func offsets(answer *kmsg.OffsetFetchResponse) []Offset {
	var all []Offset
	for _, t := range answer.Topics {
		for _, p := range t.Partitions {
			o := Offset{Topic: t.Topic, Partition: p.Partition, Offset: p.Offset, Err: p.ErrorCode}
			if p.Metadata != nil {
				o.Metadata = *p.Metadata
			}
			all = append(all, o)
		}
	}
	return all
}
