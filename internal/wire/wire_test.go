package wire

// What the tests of this package share: an observer that writes down what it is
// told, frames made by kmsg, and a connection that follows a script.

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// go-metrics starts a ticker with sarama's first meter and never stops it.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

// recorder writes down what it is told, one line each.
type recorder struct {
	mu    sync.Mutex
	lines []string
	sent  []time.Time // of the heartbeats answered
	id    string      // MemberID
}

func (r *recorder) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
}

func (r *recorder) told() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.lines...)
}

func (r *recorder) MemberID() string                 { return r.id }
func (r *recorder) JoinSent(id string)               { r.add("join sent %q", id) }
func (r *recorder) JoinAnswered(a JoinAnswer)        { r.add("join answered %+v", a) }
func (r *recorder) SyncAnswered(m Member, err int16) { r.add("sync answered %v %d", m, err) }
func (r *recorder) HeartbeatSent(m Member)           { r.add("heartbeat sent %v", m) }
func (r *recorder) LeaveSent(id string)              { r.add("leave sent %q", id) }
func (r *recorder) LeaveAnswered(id string, e int16) { r.add("leave answered %q %d", id, e) }
func (r *recorder) OffsetsFetched(offsets []Offset)  { r.add("offsets %+v", offsets) }
func (r *recorder) HeartbeatAnswered(m Member, sent time.Time, err int16) {
	r.add("heartbeat answered %v %d", m, err)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = append(r.sent, sent)
}

// requestFrame is req as sarama writes it.
func requestFrame(req kmsg.Request, correlation int32) []byte {
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID("test")).AppendRequest(nil, req, correlation)
}

// answerFrame is an answer as Kafka writes it, without tagged fields.
func answerFrame(answer kmsg.Response, correlation int32) []byte {
	return frame(correlation, answer.AppendTo(nil))
}

func frame(correlation int32, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(4+len(body)))
	b = binary.BigEndian.AppendUint32(b, uint32(correlation))
	return append(b, body...)
}

func join(version int16, id string) *kmsg.JoinGroupRequest {
	r := kmsg.NewPtrJoinGroupRequest()
	r.Version, r.Group, r.MemberID, r.ProtocolType = version, "g", id, "consumer"
	return r
}

func joined(version int16, id, leader string, metadata ...[]byte) *kmsg.JoinGroupResponse {
	r := kmsg.NewPtrJoinGroupResponse()
	r.Version, r.Generation, r.MemberID, r.LeaderID, r.Protocol = version, 7, id, leader, kmsg.StringPtr("range")
	for _, m := range metadata {
		member := kmsg.NewJoinGroupResponseMember()
		member.MemberID, member.ProtocolMetadata = "m", m
		r.Members = append(r.Members, member)
	}
	return r
}

func syncGroup(id string, generation int32) *kmsg.SyncGroupRequest {
	r := kmsg.NewPtrSyncGroupRequest()
	r.Group, r.MemberID, r.Generation = "g", id, generation
	return r
}

func heartbeat(version int16, id string, generation int32) *kmsg.HeartbeatRequest {
	r := kmsg.NewPtrHeartbeatRequest()
	r.Version, r.Group, r.MemberID, r.Generation = version, "g", id, generation
	return r
}

func beaten(version, err int16) *kmsg.HeartbeatResponse {
	return &kmsg.HeartbeatResponse{Version: version, ErrorCode: err}
}

func leave(id string) *kmsg.LeaveGroupRequest {
	r := kmsg.NewPtrLeaveGroupRequest()
	r.Group, r.MemberID = "g", id
	return r
}

func offsetFetch(version int16) *kmsg.OffsetFetchRequest {
	r := kmsg.NewPtrOffsetFetchRequest()
	r.Version, r.Group = version, "g"
	return r
}

func fetched(version int16) *kmsg.OffsetFetchResponse {
	r := kmsg.NewPtrOffsetFetchResponse()
	r.Version = version
	for i, metadata := range []*string{kmsg.StringPtr("meta"), nil} {
		p := kmsg.NewOffsetFetchResponseTopicPartition()
		p.Partition, p.Offset, p.Metadata = int32(i), 42, metadata
		t := kmsg.NewOffsetFetchResponseTopic()
		t.Topic, t.Partitions = fmt.Sprintf("t%d", i), append(t.Partitions, p)
		r.Topics = append(r.Topics, t)
	}
	return r
}

func metadataRequest() *kmsg.MetadataRequest {
	r := kmsg.NewPtrMetadataRequest()
	r.Version = 1
	return r
}

// script is a connection whose reads follow a script: in, in pieces of the sizes
// in cuts (again from the first when they are used up; none: as much as fits),
// then io.EOF. It keeps what is written, all of it unless fail says otherwise.
type script struct {
	net.Conn
	in       []byte
	cuts     []byte
	next     int
	out      []byte
	fail     func(p []byte) (int, error)
	deadline time.Time
	writeBy  time.Time
	onRead   func()
	onWrite  func()
}

func (s *script) Read(p []byte) (int, error) {
	if s.onRead != nil {
		s.onRead()
	}
	if len(s.in) == 0 {
		return 0, io.EOF
	}
	if len(s.cuts) > 0 {
		p = p[:min(len(p), 1+int(s.cuts[s.next%len(s.cuts)]))]
		s.next++
	}
	n := copy(p, s.in)
	s.in = s.in[n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error) {
	if s.onWrite != nil {
		s.onWrite()
	}
	if s.fail != nil {
		n, err := s.fail(p)
		s.out = append(s.out, p[:n]...)
		return n, err
	}
	s.out = append(s.out, p...)
	return len(p), nil
}

func (s *script) SetReadDeadline(t time.Time) error  { s.deadline = t; return nil }
func (s *script) SetWriteDeadline(t time.Time) error { s.writeBy = t; return nil }
