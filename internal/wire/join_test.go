package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// upgrading are the limits of a connection on which JoinGroup goes out as version.
func upgrading(version int16) Limits {
	return Limits{Join: 70 * time.Second, Other: 5 * time.Second, JoinVersion: version, RebalanceTimeout: time.Minute}
}

// clusterJoin is a JoinGroup as sarama-cluster writes it.
func clusterJoin(id string) *kmsg.JoinGroupRequest {
	r := join(0, id)
	r.SessionTimeoutMillis = 20_000
	for _, name := range []string{"range", "roundrobin"} {
		r.Protocols = append(r.Protocols, kmsg.JoinGroupRequestProtocol{Name: name, Metadata: saramaCluster("b", "a")})
	}
	return r
}

// requiresID is the first answer to a member without an id.
func requiresID(id string) *kmsg.JoinGroupResponse {
	r := joined(4, id, "")
	r.ErrorCode, r.Generation, r.Protocol = memberIDRequired, -1, new(string)
	return r
}

// sentJoin reads a JoinGroup off the front of what was written.
func sentJoin(t *testing.T, p []byte) (r *kmsg.JoinGroupRequest, correlation int32, rest []byte) {
	t.Helper()
	require.GreaterOrEqual(t, len(p), 12)
	frame, rest := p[:4+binary.BigEndian.Uint32(p)], p[4+binary.BigEndian.Uint32(p):]
	require.EqualValues(t, kmsg.JoinGroup, binary.BigEndian.Uint16(frame[4:]))
	require.Equal(t, "test", string(frame[14:18]), "the client id")
	r = kmsg.NewPtrJoinGroupRequest()
	r.Version = int16(binary.BigEndian.Uint16(frame[6:]))
	require.NoError(t, r.ReadFrom(frame[18:]))
	return r, int32(binary.BigEndian.Uint32(frame[8:])), rest
}

func TestJoinGroupGoesOutInANewerVersion(t *testing.T) {
	for _, version := range []int16{1, 2, 4} {
		var told recorder
		s := &script{in: answerFrame(joined(version, "m", "other"), 9)}
		c := newGroupConn(s, &told, upgrading(version))
		written := requestFrame(clusterJoin("m"), 9)
		before := bytes.Clone(written)
		n, err := c.Write(written)
		require.NoError(t, err)
		assert.Equal(t, len(written), n)
		assert.Equal(t, before, written, "what is written is not ours")

		got, correlation, rest := sentJoin(t, s.out)
		assert.Empty(t, rest)
		assert.EqualValues(t, 9, correlation)
		want := clusterJoin("m")
		want.Version, want.RebalanceTimeoutMillis = version, 60_000
		for i := range want.Protocols {
			want.Protocols[i].Metadata = consumerMetadata(0, "b", "a")
		}
		assert.Equal(t, want, got)

		answer, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Equal(t, answerFrame(joined(0, "m", "other"), 9), answer, "version %d", version)
		assert.Equal(t, []string{
			`join sent "m"`,
			`join answered {SentID:m Err:0 Member:{ID:m Generation:7} Leader:false Topics:[]}`,
		}, told.told())
	}
}

// Only what sarama-cluster sends is rewritten, and only where it was asked for.
func TestOtherRequestsGoOutAsTheyAre(t *testing.T) {
	tests := []struct {
		name    string
		limits  Limits
		request []byte
	}{
		{"no version is known", Limits{RebalanceTimeout: time.Minute}, requestFrame(clusterJoin("m"), 1)},
		{"a newer JoinGroup", upgrading(4), requestFrame(join(2, "m"), 1)},
		{"a heartbeat", upgrading(4), requestFrame(heartbeat(0, "m", 7), 1)},
		{"a SyncGroup", upgrading(4), requestFrame(syncGroup("m", 7), 1)},
		{"a JoinGroup that does not read", upgrading(4), requestOf(join(0, "m"), []byte{0xff, 0xff, 0, 9, 'g'})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			told := recorder{id: "given"}
			s := &script{in: frame(1, []byte("answer"))}
			c := newGroupConn(s, &told, tt.limits)
			_, err := c.Write(tt.request)
			require.NoError(t, err)
			assert.Equal(t, tt.request, s.out)
			answer, err := io.ReadAll(c)
			require.NoError(t, err)
			assert.Equal(t, frame(1, []byte("answer")), answer)
		})
	}
}

// A newcomer is given its id at once, and the observer knows it before the wait
// begins. sarama sees one request and one answer.
func TestNewMemberLearnsItsIDBeforeItWaits(t *testing.T) {
	var told recorder
	s := &script{in: answerFrame(requiresID("given"), 3), cuts: []byte{2}}
	c := newGroupConn(s, &told, upgrading(4))
	_, err := c.Write(requestFrame(clusterJoin(""), 3))
	require.NoError(t, err)
	first, _, rest := sentJoin(t, s.out)
	assert.Empty(t, first.MemberID)
	assert.Empty(t, rest)

	var beforeTheSecond []string
	s.onWrite = func() { beforeTheSecond = told.told() }
	s.onRead = func() {
		if len(s.in) == 0 && len(told.told()) == 3 {
			s.in = answerFrame(joined(4, "given", "given", saramaCluster("a")), 3)
		}
	}
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.Equal(t, answerFrame(joined(0, "given", "given", consumerMetadata(0, "a")), 3), answer)

	_, _, rest = sentJoin(t, s.out)
	second, correlation, rest := sentJoin(t, rest)
	assert.Empty(t, rest)
	assert.EqualValues(t, 3, correlation)
	first.MemberID = "given"
	assert.Equal(t, first, second, "the same but for the id")
	want := []string{
		`join sent ""`,
		`join answered {SentID: Err:79 Member:{ID:given Generation:-1} Leader:false Topics:[]}`,
		`join sent "given"`,
		`join answered {SentID:given Err:0 Member:{ID:given Generation:7} Leader:true Topics:[a]}`,
	}
	assert.Equal(t, want[:3], beforeTheSecond)
	assert.WithinDuration(t, time.Now().Add(upgrading(4).Other), s.writeBy, 2*time.Second, "sarama's own deadline may have passed")
	assert.Equal(t, want, told.told())
	assert.Empty(t, c.pending)
	assert.False(t, c.blind)
}

// The id may have been given on a connection that has broken since: the member takes
// its own place, and leaves no ghost behind.
func TestMemberJoinsWithTheIDItWasGiven(t *testing.T) {
	for _, version := range []int16{2, 4} {
		told := recorder{id: "given"}
		s := &script{}
		c := newGroupConn(s, &told, upgrading(version))
		_, err := c.Write(requestFrame(clusterJoin(""), 3))
		require.NoError(t, err)
		_, err = c.Write(requestFrame(clusterJoin("mine"), 4))
		require.NoError(t, err)
		first, _, rest := sentJoin(t, s.out)
		assert.Equal(t, "given", first.MemberID)
		second, _, _ := sentJoin(t, rest)
		assert.Equal(t, "mine", second.MemberID)
		assert.Equal(t, []string{`join sent "given"`, `join sent "mine"`}, told.told())
	}
}

// sarama takes answers in the order of its requests, so where something was sent
// behind the JoinGroup it must not be sent again.
func TestRefusalIsHandedOutIfSomethingWasSentBehindIt(t *testing.T) {
	var told recorder
	refusal := requiresID("given")
	s := &script{in: append(answerFrame(refusal, 3), answerFrame(beaten(0, 0), 4)...)}
	c := newGroupConn(s, &told, upgrading(4))
	for _, r := range [][]byte{requestFrame(clusterJoin(""), 3), requestFrame(heartbeat(0, "m", 7), 4)} {
		_, err := c.Write(r)
		require.NoError(t, err)
	}
	written := len(s.out)
	answers, err := io.ReadAll(c)
	require.NoError(t, err)
	refusal.Version = 0
	assert.Equal(t, append(answerFrame(refusal, 3), answerFrame(beaten(0, 0), 4)...), answers)
	assert.Len(t, s.out, written)
	assert.Contains(t, told.told(), `join answered {SentID: Err:79 Member:{ID:given Generation:-1} Leader:false Topics:[]}`)
}

// A broker that goes on asking does not keep us going on answering.
func TestJoinGroupIsSentAgainOnce(t *testing.T) {
	tests := []struct {
		name   string
		first  string // id that the first answer gives
		writes int
	}{
		{"asks again", "given", 2},
		{"gives no id", "", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			refusal := requiresID(tt.first)
			s := &script{in: bytes.Repeat(answerFrame(refusal, 3), tt.writes)}
			c := newGroupConn(s, &recorder{}, upgrading(4))
			_, err := c.Write(requestFrame(clusterJoin(""), 3))
			require.NoError(t, err)
			answer, err := io.ReadAll(c)
			require.NoError(t, err)
			refusal.Version = 0
			assert.Equal(t, answerFrame(refusal, 3), answer)
			rest := s.out
			for range tt.writes {
				_, _, rest = sentJoin(t, rest)
			}
			assert.Empty(t, rest)
		})
	}
}

func TestSecondJoinGroupCannotBeWritten(t *testing.T) {
	failure := errors.New("failure")
	s := &script{in: answerFrame(requiresID("given"), 3)}
	c := newGroupConn(s, &recorder{}, upgrading(4))
	_, err := c.Write(requestFrame(clusterJoin(""), 3))
	require.NoError(t, err)
	s.fail = func([]byte) (int, error) { return 5, failure }
	got, err := io.ReadAll(c)
	require.ErrorIs(t, err, failure)
	assert.Empty(t, got)
	assert.Empty(t, c.pending)
	assert.True(t, c.blind)
}

// A write that has not gone out whole must not look as if it had: the rewritten
// frame is longer than what sarama has written.
func TestRewrittenFrameGoesOutInPart(t *testing.T) {
	p := requestFrame(clusterJoin("m"), 3)
	failure := errors.New("failure")
	s := &script{fail: func(q []byte) (int, error) { return len(q) - 1, failure }}
	c := newGroupConn(s, &recorder{}, upgrading(4))
	n, err := c.Write(p)
	require.ErrorIs(t, err, failure)
	assert.Equal(t, len(p)-1, n)
	assert.Empty(t, c.pending)
}

// Members of every kind are in one group. sarama-cluster's leader reads version 0,
// and of the newer ones only 1.
func TestLeaderReadsTheMetadataOfAnyMember(t *testing.T) {
	withUserData := kmsg.ConsumerMemberMetadata{Version: 1, Topics: []string{"c"}, UserData: []byte("data")}
	rack := "r"
	java := kmsg.ConsumerMemberMetadata{
		Version: 3, Topics: []string{"b"}, Generation: 6, Rack: &rack,
		OwnedPartitions: []kmsg.ConsumerMemberMetadataOwnedPartition{{Topic: "b", Partitions: []int32{1, 2}}},
	}
	answer := joined(4, "m1", "m1", saramaCluster("a"), java.AppendTo(nil), withUserData.AppendTo(nil))
	for i, id := range []string{"m1", "m2", "m3"} {
		answer.Members[i].MemberID = id
	}
	var told recorder
	s := &script{in: answerFrame(answer, 1)}
	c := newGroupConn(s, &told, upgrading(4))
	_, err := c.Write(requestFrame(clusterJoin("m1"), 1))
	require.NoError(t, err)
	frame, err := io.ReadAll(c)
	require.NoError(t, err)

	var read kmsg.JoinGroupResponse
	require.NoError(t, read.ReadFrom(frame[headerSize:]))
	members := sarama.JoinGroupResponse{Members: map[string][]byte{}}
	for _, m := range read.Members {
		members.Members[m.MemberID] = m.ProtocolMetadata
	}
	understood, err := members.GetMembers()
	require.NoError(t, err)
	assert.Equal(t, map[string]sarama.ConsumerGroupMemberMetadata{
		"m1": {Topics: []string{"a"}},
		"m2": {Topics: []string{"b"}},
		"m3": {Topics: []string{"c"}, UserData: []byte("data")},
	}, understood)
}

// An answer that does not read is left to sarama to refuse, in the version that it
// expects; one that is too large to be held is translated all the same.
func TestAnswersThatAreNotReadAreTranslated(t *testing.T) {
	throttle := []byte{0, 0, 0, 5}
	large := make([]byte, maxAnswer)
	tests := []struct {
		name     string
		version  int16
		in, want []byte
	}{
		{"unreadable", 4, append(throttle, 0, 0, 1), []byte{0, 0, 1}},
		{"unreadable, of a version without throttling", 1, []byte{0, 0, 1}, []byte{0, 0, 1}},
		{"shorter than the throttle time", 4, []byte{0, 0}, []byte{0, 0}},
		{"too large", 4, append(bytes.Clone(throttle), large...), large},
		{"too large, of a version without throttling", 1, large, large},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			beat := answerFrame(beaten(0, 0), 2)
			var told recorder
			s := &script{in: append(frame(1, tt.in), beat...), cuts: []byte{3, 200, 255}}
			c := newGroupConn(s, &told, upgrading(tt.version))
			for _, r := range [][]byte{requestFrame(clusterJoin("m"), 1), requestFrame(heartbeat(0, "m", 7), 2)} {
				_, err := c.Write(r)
				require.NoError(t, err)
			}
			got, err := io.ReadAll(c)
			require.NoError(t, err)
			require.True(t, bytes.Equal(append(frame(1, tt.want), beat...), got), "%d bytes", len(got))
			assert.Equal(t, []string{`join sent "m"`, `heartbeat sent {m 7}`, `heartbeat answered {m 7} 0`}, told.told())
		})
	}
}

// Of an answer whose rest never comes nothing is handed out: it would be read as one
// of version 0.
func TestTranslatedAnswerBreaksOff(t *testing.T) {
	whole := answerFrame(joined(4, "m", "other"), 1)
	for at := 8; at < len(whole); at++ {
		var told recorder
		c := newGroupConn(&script{in: whole[:at]}, &told, upgrading(4))
		_, err := c.Write(requestFrame(clusterJoin("m"), 1))
		require.NoError(t, err)
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Empty(t, got)
		assert.Equal(t, []string{`join sent "m"`}, told.told())
		assert.Empty(t, c.pending)
	}
}

// The first JoinGroup of a new member waits for nobody. A broker that hangs then is
// noticed as soon as with any other request.
func TestDeadlineOfANewMembersJoinGroup(t *testing.T) {
	tests := []struct {
		name    string
		version int16
		id      string
		want    time.Duration
	}{
		{"is given an id first", 4, "", 5 * time.Second},
		{"waits without an id", 2, "", 70 * time.Second},
		{"waits with an id", 4, "m", 70 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, broker := pipeOf(t, &recorder{}, upgrading(tt.version))
				go func() { _, _ = io.Copy(io.Discard, broker) }()
				_, err := near.Write(requestFrame(clusterJoin(tt.id), 1))
				require.NoError(t, err)
				took, err := await(near, headerSize)
				require.ErrorIs(t, err, os.ErrDeadlineExceeded)
				assert.Equal(t, tt.want, took)
			})
		})
	}

	t.Run("once it has its id", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			near, broker := pipeOf(t, &recorder{}, upgrading(4))
			go func() { _, _ = io.Copy(io.Discard, broker) }()
			_, err := near.Write(requestFrame(clusterJoin(""), 1))
			require.NoError(t, err)
			go func() {
				time.Sleep(4 * time.Second)
				_, _ = broker.Write(answerFrame(requiresID("given"), 1))
			}()
			took, err := await(near, headerSize)
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			assert.Equal(t, 74*time.Second, took)
		})
	})
}
