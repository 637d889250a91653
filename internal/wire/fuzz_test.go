package wire

import (
	"bytes"
	"encoding/binary"
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
// same bytes; what is told depends on the bytes alone and is what a reader of the
// whole stream would find; and memory is bounded by what arrived.
//
// Each byte of asked is a request that is pending. With framed set, stream is cut
// into pieces at bytes of 0xfe, and each becomes a well-formed frame: else no input
// would get past the header.
func FuzzAnswers(f *testing.F) {
	requests, answers, _ := conversation()
	f.Add(answers, []byte{0, 11, 4, 5, 8}, []byte{0, 6, 200}, byte(2), false)
	f.Add(answers, []byte{5, 5}, []byte{}, byte(255), false)
	f.Add(bytes.Join(requests, nil), []byte{1, 2, 3}, []byte{7}, byte(0), true)
	f.Add(frame(0, make([]byte, 100))[:50], []byte{5}, []byte{3}, byte(20), false)
	f.Add([]byte{0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 2, 3}, []byte{8}, []byte{0}, byte(1), false)

	f.Fuzz(func(t *testing.T, stream, asked, cuts []byte, size byte, framed bool) {
		asked = asked[:min(len(asked), 64)]
		if framed {
			stream = frames(stream)
		}
		var told recorder
		s := &script{in: stream, cuts: cuts}
		c := newGroupConn(s, &told, Limits{Join: 2, Other: 1})
		for i, kind := range asked {
			_, err := c.Write(requestFrame(kinds[int(kind)%len(kinds)], int32(i)))
			require.NoError(t, err)
		}
		want := modelOf(stream, c.pending, told.told())

		s.onRead = func() {
			arrived := len(stream) - len(s.in)
			if cap(c.held) > 3*arrived+1024 { // append doubles and rounds up
				t.Errorf("%d bytes held after %d arrived", cap(c.held), arrived)
			}
		}
		got, err := readAll(c, 1+int(size))
		require.NoError(t, err)
		require.Equal(t, string(stream), string(got))
		require.Equal(t, want, told.told())
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

// modelOf is what is told after lines about a stream that is there as a whole.
func modelOf(stream []byte, pending []*request, lines []string) []string {
	told := recorder{lines: lines}
	for _, r := range pending {
		if len(stream) < headerSize || int32(binary.BigEndian.Uint32(stream[4:])) != r.correlation {
			break
		}
		size := int64(int32(binary.BigEndian.Uint32(stream)))
		if size < 4 || size > int64(len(stream)-4) {
			break
		}
		if r.observed {
			r.tellAnswered(&told, stream[headerSize:4+size])
		}
		stream = stream[4+size:]
	}
	return told.told()
}

// FuzzRequests: whatever is written, in whatever pieces, and if the connection
// takes only a part of it, the server gets the same bytes, the writer's own are
// not touched, and exactly the whole frames before the first that is none are
// remembered.
//
// With key below the number of kinds, each piece becomes the content of such a
// request.
func FuzzRequests(f *testing.F) {
	requests, _, _ := conversation()
	for _, r := range requests {
		f.Add(r, []byte{255}, byte(255), byte(0))
	}
	f.Add(bytes.Join(requests, nil), []byte{byte(len(requests[0]) - 1), 3}, byte(255), byte(0))
	f.Add(requests[0][12:], []byte{255}, byte(0), byte(0))
	f.Add(requests[4][12:], []byte{30, 1}, byte(8), byte(3))
	f.Add([]byte{0, 4, 't', 'e', 's', 't', 0, 1, 'g', 127, 255, 255, 255, 0, 1, 'm'}, []byte{255}, byte(5), byte(2))

	f.Fuzz(func(t *testing.T, stream, cuts []byte, key, failAt byte) {
		var told recorder
		s := &script{}
		c := newGroupConn(s, &told, Limits{Join: 2, Other: 1})
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
			written := len(p)
			if failAt > 0 && i+1 == int(failAt) {
				written = i % len(p)
			}
			s.fail = func(p []byte) (int, error) { return written, nil }

			original := bytes.Clone(p)
			got, err := c.Write(p)
			require.NoError(t, err)
			require.Equal(t, written, got)
			require.Equal(t, original, p)
			want = append(want, original[:written]...)

			whole := len(p) >= 12 && int(binary.BigEndian.Uint32(p)) == len(p)-4
			blind = blind || !whole || remembered == maxPending
			switch {
			case blind:
			case written == len(p):
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

// requestOf is a request of the same key and version as req with another body.
func requestOf(req kmsg.Request, body []byte) []byte {
	p := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	p = binary.BigEndian.AppendUint16(p, uint16(req.Key()))
	p = binary.BigEndian.AppendUint16(p, uint16(req.GetVersion()))
	p = binary.BigEndian.AppendUint32(p, 1)
	return append(p, body...)
}
