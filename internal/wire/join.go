package wire

// JoinGroup in a newer version than sarama-cluster speaks, and its answer back in
// version 0. That version carries no rebalance timeout (D15), is refused by Kafka
// 4.0.0 (D26), and leaves a new member without an id for as long as it waits, so
// that nobody can take it back. group.go calls in here on the way in both directions.

import (
	"bytes"
	"encoding/binary"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// memberIDRequired is Kafka's MEMBER_ID_REQUIRED: join again, with this id.
const memberIDRequired = 79

// A joining is a JoinGroup that goes out in a newer version than it was written in.
type joining struct {
	head []byte // of its frame: all that comes before the body
	body *kmsg.JoinGroupRequest
}

// upgrade makes a JoinGroup of version 0 one of limits.JoinVersion, and returns its
// frame. If it names no member, id is asked for one. It keeps head's content and req.
func (r *request) upgrade(head []byte, req *kmsg.JoinGroupRequest, id func() string, limits Limits) []byte {
	r.version = limits.JoinVersion
	req.Version = limits.JoinVersion
	req.RebalanceTimeoutMillis = int32(limits.RebalanceTimeout.Milliseconds())
	if req.MemberID == "" {
		req.MemberID = id()
	}
	for _, p := range req.Protocols {
		// sarama-cluster says version 1 and leaves out what that version adds (D27). What
		// it writes is version 0, which Java and the coordinator's migration can read.
		clear(p.Metadata[:min(2, len(p.Metadata))])
	}
	r.join = &joining{head: bytes.Clone(head), body: req}
	return r.join.frame()
}

func (j *joining) frame() []byte {
	p := j.body.AppendTo(bytes.Clone(j.head))
	binary.BigEndian.PutUint32(p, uint32(len(p)-4))
	binary.BigEndian.PutUint16(p[6:], uint16(j.body.Version))
	return p
}

// givesID reports whether r is answered at once, with a member id and nothing else
// (KIP-394).
func (r *request) givesID() bool { return r.version >= 4 && r.member.ID == "" }

// givenID is the id in an answer that asks r to be sent again with it. No more than
// once: then r names a member.
func (r *request) givenID(answer *kmsg.JoinGroupResponse) (id string, given bool) {
	if answer == nil || answer.ErrorCode != memberIDRequired || r.member.ID != "" {
		return "", false
	}
	return answer.MemberID, answer.MemberID != ""
}

// withID is r once more, in the name of the member that the broker has made.
func (r *request) withID(id string) *request {
	body := *r.join.body
	body.MemberID = id
	again := *r
	again.join = &joining{head: r.join.head, body: &body}
	again.member.ID = id
	return &again
}

// throttleSize is the size of the field that answers begin with from version 2 on.
const throttleSize = 4

// downgrade makes a frame with the whole answer to r one of version 0. One that does
// not read, nil, is left to sarama to refuse.
//
// The metadata of the members are cut back to version 0 as well: of newer versions,
// which Java's members send, sarama-cluster's leader reads only 1, and stops the
// whole group at any other.
func (r *request) downgrade(frame []byte, answer *kmsg.JoinGroupResponse) []byte {
	if answer == nil {
		return r.cutThrottle(frame)
	}
	for i := range answer.Members {
		m := &answer.Members[i]
		if subscription, ok := subscriptionOf(m.ProtocolMetadata); ok {
			m.ProtocolMetadata = subscription.AppendTo(nil)
		}
	}
	answer.Version = 0
	frame = answer.AppendTo(bytes.Clone(frame[:headerSize]))
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-4))
	return frame
}

// cutThrottle takes that field out of the beginning of an answer to r. The rest is
// the same in version 0.
func (r *request) cutThrottle(frame []byte) []byte {
	if r.version < 2 || len(frame) < headerSize+throttleSize {
		return frame
	}
	size := binary.BigEndian.Uint32(frame)
	frame = append(frame[:headerSize:headerSize], frame[headerSize+throttleSize:]...)
	binary.BigEndian.PutUint32(frame, size-throttleSize)
	return frame
}
