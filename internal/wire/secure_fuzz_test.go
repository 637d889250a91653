package wire

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// FuzzSASL: whatever a broker says while it is asked to authenticate us, in whatever
// pieces, the exchange ends with a session or with an error of one line; nothing is
// said after the mechanism is done; and memory is bounded by what an answer may have.
//
// With framed set, stream is cut into pieces at bytes of 0xfe, and each becomes a
// frame that answers the next request: else hardly an input would get past the first.
func FuzzSASL(f *testing.F) {
	text := "Authentication failed"
	versions := served(kmsg.SASLHandshake, 1, kmsg.SASLAuthenticate, 2).AppendTo(nil)
	handshake := (&kmsg.SASLHandshakeResponse{Version: 1, SupportedMechanisms: []string{"PLAIN"}}).AppendTo(nil)
	refused := (&kmsg.SASLHandshakeResponse{Version: 1, ErrorCode: 33, SupportedMechanisms: []string{"GSSAPI", "\n"}}).AppendTo(nil)
	done := (&kmsg.SASLAuthenticateResponse{Version: 1, SASLAuthBytes: []byte("x"), SessionLifetimeMillis: 5000}).AppendTo(nil)
	wrong := (&kmsg.SASLAuthenticateResponse{Version: 1, ErrorCode: 58, ErrorMessage: &text}).AppendTo(nil)
	join := func(bodies ...[]byte) (stream []byte) {
		for i, b := range bodies {
			if i > 0 {
				stream = append(stream, 0xfe)
			}
			stream = append(stream, b...)
		}
		return stream
	}
	f.Add(join(versions, handshake, done), []byte{}, byte(1), true)
	f.Add(join(versions, handshake, done, done, done), []byte{0, 5}, byte(3), true)
	f.Add(join(versions, refused), []byte{2}, byte(1), true)
	f.Add(join(versions, handshake, wrong), []byte{}, byte(1), true)
	f.Add([]byte("HTTP/1.1 400 Bad Request"), []byte{}, byte(1), false)
	f.Add([]byte{0, 0, 255, 255, 0, 0, 0, 1, 0, 0, 0, 0, 255, 255}, []byte{}, byte(1), false)

	f.Fuzz(func(t *testing.T, stream, cuts []byte, rounds byte, framed bool) {
		if framed {
			stream = frames(stream)
			for i, n := 0, int32(1); i < len(stream); n++ { // frames counts from 0
				binary.BigEndian.PutUint32(stream[i+4:], uint32(n))
				i += 4 + int(binary.BigEndian.Uint32(stream[i:]))
			}
		}
		n := NewNetwork(nil, time.Minute, Security{})
		s := &script{in: stream, cuts: cuts}
		c := &conn{Conn: s, raw: s, network: n, addr: "b:1"}
		asked := 0
		d := dialogue{conn: c, mechanism: mechanism{next: func(challenge []byte) ([]byte, bool, error) {
			require.LessOrEqual(t, len(challenge), maxSASLFrame)
			asked++
			if asked == int(rounds) {
				return nil, true, nil
			}
			return []byte("answer"), false, nil
		}}}
		err := d.handshake()
		if err == nil {
			err = d.authenticate(t.Context(), &c.session)
		}
		require.LessOrEqual(t, int(d.sent), 3+asked)
		if err == nil {
			require.Equal(t, int(rounds), asked)
			require.Equal(t, int32(2+asked), d.sent)
			require.GreaterOrEqual(t, c.session.lifetime, time.Duration(0))
			require.LessOrEqual(t, c.session.lifetime, maxLifetime)
			return
		}
		err = failure(stepAuth, "b:1", false, err)
		require.NotContains(t, err.Error(), "\n")
		require.Less(t, len(err.Error()), 1000)
		var known *ConnectError
		require.True(t, errors.As(err, &known))
	})
}

// FuzzFrameCount: in whatever pieces a stream passes, as many frames end as a reader
// of the whole would find.
func FuzzFrameCount(f *testing.F) {
	f.Add(append(frame(1, []byte("hello")), frame(2, nil)...), []byte{0, 3, 200})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 7, 255, 255, 255, 255, 1}, []byte{1})
	f.Fuzz(func(t *testing.T, stream, cuts []byte) {
		var c frameCount
		ended, rest := 0, stream
		for i := 0; len(rest) > 0; i++ {
			n := len(rest)
			if len(cuts) > 0 {
				n = min(n, int(cuts[i%len(cuts)])+1)
			}
			ended += c.pass(rest[:n])
			rest = rest[n:]
		}
		want := 0
		for len(stream) >= 4 {
			size := int64(binary.BigEndian.Uint32(stream))
			if size > int64(len(stream)-4) {
				break
			}
			stream = stream[4+size:]
			want++
		}
		require.Equal(t, want, ended)
		require.Equal(t, want, c.ended)
		require.Equal(t, len(stream) == 0, c.between())
	})
}
