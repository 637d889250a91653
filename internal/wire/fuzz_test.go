package wire

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// kinds are the requests that fuzzed answers are for.
var kinds = []kmsg.Request{
	join(0, ""), join(2, "m"), join(4, ""), join(5, "m"),
	syncGroup("m", 7), heartbeat(0, "m", 7), heartbeat(3, "m", 7), leave("m"),
	offsetFetch(1), offsetFetch(2), offsetFetch(5), metadataRequest(), heartbeat(4, "m", 7),
}

// FuzzAnswers: whatever the server sends, in whatever pieces, the reader gets the
// same bytes, but for the answers to a JoinGroup that was sent in another version;
// what is told, and what is sent again, depends on the bytes alone and is what a
// reader of the whole stream would find; and memory is bounded by what arrived.
//
// Each byte of asked is a request that is pending. With framed set, stream is cut
// into pieces at bytes of 0xfe, and each becomes a well-formed frame: else no input
// would get past the header.
func FuzzAnswers(f *testing.F) {
	requests, answers, _ := conversation()
	f.Add(answers, []byte{0, 11, 4, 5, 8}, []byte{0, 6, 200}, byte(2), false, byte(0))
	f.Add(answers, []byte{5, 5}, []byte{}, byte(255), false, byte(0))
	f.Add(bytes.Join(requests, nil), []byte{1, 2, 3}, []byte{7}, byte(0), true, byte(0))
	f.Add(frame(0, make([]byte, 100))[:50], []byte{5}, []byte{3}, byte(20), false, byte(0))
	f.Add([]byte{0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 2, 3}, []byte{8}, []byte{0}, byte(1), false, byte(0))
	again := append(answerFrame(requiresID("given"), 0), answerFrame(joined(4, "given", "given", saramaCluster("a"), consumerMetadata(3, "b")), 0)...)
	f.Add(again, []byte{0}, []byte{0, 6, 200}, byte(2), false, byte(4))
	f.Add(again, []byte{0, 5}, []byte{1}, byte(2), false, byte(4))
	f.Add(answerFrame(joined(2, "m", "m", saramaCluster("a")), 0), []byte{0}, []byte{9}, byte(2), false, byte(2))
	f.Add(answerFrame(joined(1, "m", "m"), 0)[8:], []byte{0}, []byte{9}, byte(2), true, byte(1))

	f.Fuzz(func(t *testing.T, stream, asked, cuts []byte, size byte, framed bool, version byte) {
		asked = asked[:min(len(asked), 64)]
		if framed {
			stream = frames(stream)
		}
		var told recorder
		s := &script{in: stream, cuts: cuts}
		c := newGroupConn(s, &told, Limits{Join: 2, Other: 1, JoinVersion: int16(version % 6), RebalanceTimeout: time.Minute})
		for i, kind := range asked {
			_, err := c.Write(requestFrame(kinds[int(kind)%len(kinds)], int32(i)))
			require.NoError(t, err)
		}
		want := modelOf(stream, slices.Clone(c.pending), told.told())
		written := len(s.out)

		s.onRead = func() {
			arrived := len(stream) - len(s.in)
			if cap(c.held) > 3*arrived+1024 { // append doubles and rounds up
				t.Errorf("%d bytes held after %d arrived", cap(c.held), arrived)
			}
		}
		got, err := readAll(c, 1+int(size))
		require.NoError(t, err)
		require.Equal(t, string(want.handed), string(got))
		require.LessOrEqual(t, len(got), len(stream))
		require.Equal(t, want.told.told(), told.told())
		require.Equal(t, string(want.sent), string(s.out[written:]))
		require.LessOrEqual(t, len(c.pending), len(asked))
	})
}

// frames makes a frame of each piece between two bytes of 0xfe.
func frames(stream []byte) (framed []byte) {
	for i, body := range bytes.Split(stream, []byte{0xfe}) {
		framed = append(framed, frame(int32(i), body)...)
	}
	return framed
}

// A model is what becomes of a stream that is there as a whole.
type model struct {
	told         recorder
	handed, sent []byte // to the reader, to the server
}

// modelOf begins after lines have been told.
func modelOf(stream []byte, pending []*request, lines []string) *model {
	m := &model{told: recorder{lines: lines}}
	for len(pending) > 0 {
		r := pending[0]
		if len(stream) < headerSize || int32(binary.BigEndian.Uint32(stream[4:])) != r.correlation {
			break
		}
		size := int64(int32(binary.BigEndian.Uint32(stream)))
		if size < 4 {
			break
		}
		if size > int64(len(stream)-4) {
			if r.join != nil && (size <= maxAnswer || len(stream) < headerSize+throttleSize) {
				stream = nil
			} else if r.join != nil {
				stream = r.cutThrottle(bytes.Clone(stream))
			}
			break
		}
		frame := bytes.Clone(stream[:4+size])
		stream = stream[4+size:]
		var answer kmsg.Response
		if r.observed {
			answer = r.tellAnswered(&m.told, frame[headerSize:])
		}
		if r.join == nil {
			m.handed = append(m.handed, frame...)
			pending = pending[1:]
			continue
		}
		joined, _ := answer.(*kmsg.JoinGroupResponse)
		if id, given := r.givenID(joined); given && len(pending) == 1 {
			pending = []*request{r.withID(id)}
			m.told.JoinSent(id)
			m.sent = append(m.sent, pending[0].join.frame()...)
			continue
		}
		m.handed = append(m.handed, r.downgrade(frame, joined)...)
		pending = pending[1:]
	}
	m.handed = append(m.handed, stream...)
	return m
}

// FuzzRequests: whatever is written, in whatever pieces, and if the connection
// takes only a part of it, the server gets the same bytes, but for a JoinGroup of
// version 0 that reads, which is a little longer in its other version; the writer's
// own are not touched, and exactly the whole frames before the first that is none
// are remembered.
//
// With key below the number of kinds, each piece becomes the content of such a
// request.
func FuzzRequests(f *testing.F) {
	requests, _, _ := conversation()
	for _, r := range requests {
		f.Add(r, []byte{255}, byte(255), byte(0), byte(0))
	}
	f.Add(bytes.Join(requests, nil), []byte{byte(len(requests[0]) - 1), 3}, byte(255), byte(0), byte(4))
	f.Add(requests[0][12:], []byte{255}, byte(0), byte(0), byte(2))
	f.Add(requestFrame(clusterJoin("m"), 1)[12:], []byte{255}, byte(0), byte(0), byte(4))
	f.Add(requestFrame(clusterJoin(""), 1)[12:], []byte{255}, byte(0), byte(1), byte(4))
	f.Add(requests[4][12:], []byte{30, 1}, byte(8), byte(3), byte(0))
	f.Add([]byte{0, 4, 't', 'e', 's', 't', 0, 1, 'g', 127, 255, 255, 255, 0, 1, 'm'}, []byte{255}, byte(5), byte(2), byte(1))

	f.Fuzz(func(t *testing.T, stream, cuts []byte, key, failAt, version byte) {
		told := recorder{id: "given"}
		s := &script{}
		c := newGroupConn(s, &told, Limits{Join: 2, Other: 1, JoinVersion: int16(version % 6), RebalanceTimeout: time.Minute})
		var want []byte
		remembered, blind := 0, false
		for i := 0; len(stream) > 0; i++ {
			n := len(stream)
			if len(cuts) > 0 {
				n = min(n, 1+int(cuts[i%len(cuts)]))
			}
			p := stream[:n]
			stream = stream[n:]
			if int(key) < len(kinds) {
				p = requestOf(kinds[key], p)
			}
			written := -1 // all of it
			if failAt > 0 && i+1 == int(failAt) {
				written = i % len(p)
			}
			var out []byte
			s.fail = func(p []byte) (int, error) {
				out = bytes.Clone(p)
				if written < 0 {
					return len(p), nil
				}
				return written, nil
			}

			original := bytes.Clone(p)
			got, err := c.Write(p)
			require.NoError(t, err)
			require.Equal(t, original, p)
			whole := len(p) >= 12 && int(binary.BigEndian.Uint32(p)) == len(p)-4
			blind = blind || !whole || remembered == maxPending
			if !blind {
				original = upgradedBy(original, c.limits, told.id)
			}
			require.Equal(t, string(original), string(out))
			if written < 0 {
				require.Equal(t, len(p), got)
				want = append(want, out...)
			} else {
				require.Less(t, got, len(p))
				want = append(want, out[:written]...)
			}

			switch {
			case blind:
			case written < 0:
				remembered++
			default:
				blind = written > 0
			}
			require.Equal(t, blind, c.blind)
			require.Len(t, c.pending, remembered)
		}
		require.Equal(t, string(want), string(s.out))
		require.LessOrEqual(t, len(told.told()), remembered+1)
		for _, r := range c.pending {
			require.WithinDuration(t, time.Now(), r.sent, time.Minute)
		}
	})
}

// upgradedBy is what becomes of a frame on its way to the server: another way to
// compute it.
func upgradedBy(p []byte, limits Limits, id string) []byte {
	_, body, ok := parseRequest(p, time.Now())
	r := kmsg.NewPtrJoinGroupRequest()
	if !ok || body == nil || limits.JoinVersion == 0 || binary.BigEndian.Uint32(p[4:]) != uint32(kmsg.JoinGroup)<<16 || r.ReadFrom(bytes.Clone(body)) != nil {
		return p
	}
	for i := range r.Protocols {
		m := r.Protocols[i].Metadata
		r.Protocols[i].Metadata = append(make([]byte, min(2, len(m))), m[min(2, len(m)):]...)
	}
	r.MemberID = cmp.Or(r.MemberID, id)
	r.RebalanceTimeoutMillis = 60_000
	r.Version = limits.JoinVersion
	q := r.AppendTo(bytes.Clone(p[:len(p)-len(body)]))
	binary.BigEndian.PutUint32(q, uint32(len(q)-4))
	binary.BigEndian.PutUint16(q[6:], uint16(r.Version))
	return q
}

// requestOf is a request of the same key and version as req with another body.
func requestOf(req kmsg.Request, body []byte) []byte {
	p := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	p = binary.BigEndian.AppendUint16(p, uint16(req.Key()))
	p = binary.BigEndian.AppendUint16(p, uint16(req.GetVersion()))
	p = binary.BigEndian.AppendUint32(p, 1)
	return append(p, body...)
}
