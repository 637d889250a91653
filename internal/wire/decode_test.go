package wire

import (
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func consumerMetadata(version int16, topics ...string) []byte {
	m := kmsg.ConsumerMemberMetadata{Version: version, Topics: topics}
	return m.AppendTo(nil)
}

// saramaCluster is the metadata of sarama-cluster: version 1 with the fields of
// version 0 (D27).
func saramaCluster(topics ...string) []byte {
	m := consumerMetadata(0, topics...)
	m[1] = 1
	return m
}

func TestGroupConnectionTellsWhatPasses(t *testing.T) {
	needsID := joined(4, "given", "")
	needsID.ErrorCode, needsID.Generation = 79, -1 // MEMBER_ID_REQUIRED

	refused := joined(0, "m", "m", consumerMetadata(0, "a"))
	refused.ErrorCode = 25

	tests := []struct {
		name    string
		request kmsg.Request
		answer  []byte
		want    []string
	}{
		{
			name:    "join as a follower",
			request: join(0, ""), answer: answerFrame(joined(0, "m", "other"), 1),
			want: []string{`join sent ""`, `join answered {SentID: Err:0 Member:{ID:m Generation:7} Leader:false Topics:[]}`},
		},
		{
			name:    "join as the leader of members of many versions, one of them unreadable",
			request: join(2, "m"),
			answer: answerFrame(joined(2, "m", "m", consumerMetadata(0, "c", "a"), saramaCluster("b", "a"),
				consumerMetadata(3, "d"), []byte{0}, []byte{0, 0, 127, 255, 255, 255, 0}), 1),
			want: []string{`join sent "m"`, `join answered {SentID:m Err:0 Member:{ID:m Generation:7} Leader:true Topics:[a b c d]}`},
		},
		{
			name:    "join that is given a member id first",
			request: join(4, ""), answer: answerFrame(needsID, 1),
			want: []string{`join sent ""`, `join answered {SentID: Err:79 Member:{ID:given Generation:-1} Leader:false Topics:[]}`},
		},
		{
			name:    "join that is refused has no leader",
			request: join(0, "m"), answer: answerFrame(refused, 1),
			want: []string{`join sent "m"`, `join answered {SentID:m Err:25 Member:{ID:m Generation:7} Leader:false Topics:[]}`},
		},
		{
			name:    "join of the newest version that is read",
			request: join(5, "m"), answer: answerFrame(joined(5, "m", "other"), 1),
			want: []string{`join sent "m"`, `join answered {SentID:m Err:0 Member:{ID:m Generation:7} Leader:false Topics:[]}`},
		},
		{
			name:    "sync",
			request: syncGroup("m", 7), answer: answerFrame(&kmsg.SyncGroupResponse{ErrorCode: 27}, 1),
			want: []string{`sync answered {m 7} 27`},
		},
		{
			name:    "heartbeat",
			request: heartbeat(0, "m", 7), answer: answerFrame(beaten(0, 22), 1),
			want: []string{`heartbeat sent {m 7}`, `heartbeat answered {m 7} 22`},
		},
		{
			name:    "heartbeat with throttling and instance id",
			request: heartbeat(3, "m", 7), answer: answerFrame(beaten(3, 0), 1),
			want: []string{`heartbeat sent {m 7}`, `heartbeat answered {m 7} 0`},
		},
		{
			name:    "leave",
			request: leave("m"), answer: answerFrame(&kmsg.LeaveGroupResponse{ErrorCode: 25}, 1),
			want: []string{`leave sent "m"`, `leave answered "m" 25`},
		},
		{
			name:    "offsets",
			request: offsetFetch(1), answer: answerFrame(fetched(1), 1),
			want: []string{`offsets [{Topic:t0 Partition:0 Offset:42 Metadata:meta Err:0} {Topic:t1 Partition:1 Offset:42 Metadata: Err:0}]`},
		},
		{
			name:    "offsets with leader epochs",
			request: offsetFetch(5), answer: answerFrame(fetched(5), 1),
			want: []string{`offsets [{Topic:t0 Partition:0 Offset:42 Metadata:meta Err:0} {Topic:t1 Partition:1 Offset:42 Metadata: Err:0}]`},
		},
		{
			name:    "a request of another kind",
			request: metadataRequest(), answer: frame(1, []byte("whatever")),
		},
		{
			name:    "a version with tagged fields, whose count is a lie that would take kmsg minutes",
			request: heartbeat(4, "m", 7), answer: frame(1, []byte{0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f}),
		},
		{
			name:    "an answer that does not read",
			request: heartbeat(0, "m", 7), answer: frame(1, []byte{0}),
			want: []string{`heartbeat sent {m 7}`},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var told recorder
			s := &script{in: tt.answer}
			c := newGroupConn(s, &told, Limits{})
			request := requestFrame(tt.request, 1)
			_, err := c.Write(request)
			require.NoError(t, err)
			assert.Equal(t, request, s.out)

			got, err := io.ReadAll(c)
			require.NoError(t, err)
			assert.Equal(t, tt.answer, got)
			assert.Equal(t, tt.want, told.told())
			assert.Empty(t, c.pending)
			assert.False(t, c.blind)
		})
	}
}

// A request whose body does not read is passed, and its answer is not held back.
func TestUnreadableRequestIsNotObserved(t *testing.T) {
	for _, body := range [][]byte{nil, {0}, {0xff, 0xff}, {0, 50, 'x'}, {0xff, 0xff, 0, 9, 'g'}} {
		p := append([]byte{0, 0, 0, byte(8 + len(body)), 0, 12, 0, 0, 0, 0, 0, 1}, body...)
		var told recorder
		s := &script{in: answerFrame(beaten(0, 0), 1)}
		c := newGroupConn(s, &told, Limits{})
		_, err := c.Write(p)
		require.NoError(t, err)
		assert.Equal(t, p, s.out)
		require.Len(t, c.pending, 1)
		assert.False(t, c.pending[0].observed)

		_, err = io.ReadAll(c)
		require.NoError(t, err)
		assert.Empty(t, told.told())
		assert.Empty(t, c.pending)
	}
}

// Newer versions are not read: their answers may have tagged fields. Negative ones
// do not exist.
func TestOtherVersionsAreNotRead(t *testing.T) {
	for key, newest := range readable {
		answer := key.Response()
		answer.SetVersion(newest)
		assert.False(t, answer.IsFlexible(), "%s v%d", key.Name(), newest)
		for version, want := range map[int16]bool{-1: false, 0: true, newest: true, newest + 1: false} {
			req := key.Request()
			req.SetVersion(version)
			nobody := []byte{0xff, 0xff} // the client id: null
			p := requestOf(req, req.AppendTo(nobody))
			r, body, ok := parseRequest(p, time.Now())
			require.True(t, ok)
			r.tellSent(&recorder{}, p, body, Limits{})
			assert.Equal(t, want, r.observed, "%s v%d", key.Name(), version)
		}
	}
}
