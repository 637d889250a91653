package wire

import (
	"encoding/binary"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestPing(t *testing.T) {
	answer := frame(0, []byte("whatever"))
	s := &script{in: append(answer, answer...), cuts: []byte{2}}
	for i := range 2 {
		require.NoError(t, Ping(s, "test"))
		assert.Len(t, s.in, (1-i)*len(answer), "the answer is taken, and no more")
	}
	require.Equal(t, len(s.out), 2*(4+int(binary.BigEndian.Uint32(s.out))))
	assert.EqualValues(t, kmsg.ApiVersions, binary.BigEndian.Uint16(s.out[4:]))
	assert.EqualValues(t, 0, binary.BigEndian.Uint16(s.out[6:]), "the version that every Kafka speaks")
}

func TestPingFails(t *testing.T) {
	for name, in := range map[string][]byte{
		"closed":        nil,
		"breaks off":    {0, 0, 0, 9, 1},
		"HTTP":          []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"a size of 2³¹": {0x80, 0, 0, 0, 0},
	} {
		require.Error(t, Ping(&script{in: in}, "test"), name)
	}
	synctest.Test(t, func(t *testing.T) {
		c, broker := pipe(t, &recorder{})
		go func() { _, _ = io.Copy(io.Discard, broker) }()
		require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Second)))
		require.ErrorIs(t, Ping(c.(*groupConn).Conn, "test"), os.ErrDeadlineExceeded)
	})
}
