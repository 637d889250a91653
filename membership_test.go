package kgroup

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
	"github.com/kgroup-go/kgroup/internal/wire"
)

var (
	member7 = wire.Member{ID: "m-1", Generation: 7}
	member8 = wire.Member{ID: "m-1", Generation: 8}
)

const (
	testSession = 20 * time.Second
	testBeat    = time.Second
)

func testMembership() *membership {
	return newMembership(testSession, func(error) {}, func() {})
}

// joins tells m what passes on the group connection when a member joins as its leader.
func joins(m *membership, as wire.Member) {
	m.JoinSent("")
	m.JoinAnswered(wire.JoinAnswer{Member: as, Leader: true})
	m.SyncAnswered(as, 0)
}

func TestMembershipFollowsTheProtocol(t *testing.T) {
	m := testMembership()
	steps := []struct {
		name    string
		told    func()
		me      wire.Member
		member  bool
		waiting bool
		leads   bool
	}{
		{"nothing yet", func() {}, wire.Member{}, false, false, false},
		{"the first JoinGroup has no id to take back", func() { m.JoinSent("") }, wire.Member{}, false, false, false},
		{"JoinGroup answered", func() { m.JoinAnswered(wire.JoinAnswer{Member: member7, Leader: true}) }, member7, false, true, false},
		{"SyncGroup of somebody else", func() { m.SyncAnswered(member8, 0) }, member7, false, false, false},
		{"SyncGroup answered", func() { m.SyncAnswered(member7, 0) }, member7, true, false, true},
		{"the next JoinGroup", func() { m.JoinSent("m-1") }, member7, false, true, false},
		{"as a follower", func() { m.JoinAnswered(wire.JoinAnswer{Member: member8}) }, member8, false, true, false},
		{"SyncGroup refused", func() { m.SyncAnswered(member8, int16(sarama.ErrRebalanceInProgress)) }, member8, false, false, false},
		{"once more", func() {
			m.JoinSent("m-1")
			m.JoinAnswered(wire.JoinAnswer{Member: member8})
			m.SyncAnswered(member8, 0)
		}, member8, true, false, false},
		{"LeaveGroup", func() { m.LeaveSent("m-1") }, member8, false, false, false},
		{"JoinGroup with the id that has left", func() { m.JoinSent("m-1") }, member8, false, true, false},
		{"which nobody knows", func() { m.JoinAnswered(wire.JoinAnswer{Err: int16(sarama.ErrUnknownMemberId)}) }, wire.Member{}, false, false, false},
	}
	for _, step := range steps {
		step.told()
		me, member := m.current()
		id, waiting := m.waiting()
		assert.Equal(t, step.me, me, step.name)
		assert.Equal(t, step.member, member, "%s: member", step.name)
		assert.Equal(t, step.waiting, waiting, "%s: waiting", step.name)
		assert.Equal(t, step.leads, m.leads(), "%s: leads", step.name)
		if waiting {
			assert.Equal(t, me.ID, id, step.name)
		}
	}
}

func TestHeartbeatAnswer(t *testing.T) {
	tests := []struct {
		name  string
		of    wire.Member
		code  sarama.KError
		alive bool
		sign  bool
		gone  string
	}{
		{"none", member8, sarama.ErrNoError, true, false, ""},
		{"a rebalance is no loss", member8, sarama.ErrRebalanceInProgress, true, true, ""},
		{"unknown member", member8, sarama.ErrUnknownMemberId, false, false, "not known"},
		{"illegal generation", member8, sarama.ErrIllegalGeneration, false, false, "generation id"},
		{"coordinator moved", member8, sarama.ErrNotCoordinatorForConsumer, false, false, ""},
		{"of the generation before", member7, sarama.ErrIllegalGeneration, false, false, ""},
		{"good, of the generation before", member7, sarama.ErrNoError, false, false, ""},
		{"of another member", wire.Member{ID: "m-2", Generation: 8}, sarama.ErrUnknownMemberId, false, false, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := testMembership()
				joins(m, member7)
				joins(m, member8)
				<-m.changed
				joined := time.Now()
				time.Sleep(15 * time.Second)
				m.HeartbeatSent(test.of)
				sent := time.Now()
				time.Sleep(2 * time.Second)
				m.HeartbeatAnswered(test.of, sent, int16(test.code))

				alive := joined
				if test.alive {
					alive = sent
				}
				assert.Equal(t, alive, m.alive, "it counts from its sending")
				assert.Equal(t, test.sign, !m.sign.IsZero(), "the sign of a rebalance")
				_, _, gone := m.check(time.Now(), testBeat)
				_, member := m.current()
				if test.gone == "" {
					require.NoError(t, gone)
					assert.True(t, member)
					assert.Empty(t, m.changed)
					return
				}
				require.ErrorContains(t, gone, test.gone)
				require.ErrorIs(t, gone, test.code)
				assert.False(t, member)
				assert.Len(t, m.changed, 1, "watch is woken up")
			})
		})
	}
}

func TestFirstCauseOfALossStays(t *testing.T) {
	m := testMembership()
	joins(m, member7)
	m.lost(member8, errors.New("of another generation"))
	_, _, gone := m.check(time.Now(), testBeat)
	require.NoError(t, gone)

	m.HeartbeatAnswered(member7, time.Now(), int16(sarama.ErrIllegalGeneration))
	m.lost(member7, errors.New("later"))
	_, due, gone := m.check(time.Now().Add(time.Hour), testBeat)
	require.ErrorIs(t, gone, sarama.ErrIllegalGeneration)
	assert.False(t, due, "whoever is not a member sends no heartbeats")

	m.JoinSent("m-1")
	_, _, gone = m.check(time.Now(), testBeat)
	assert.NoError(t, gone, "that was the last generation")
}

// A refusal that arrives when the member has left, or joins again, is no loss.
func TestRefusalOutsideAGeneration(t *testing.T) {
	for name, end := range map[string]func(*membership){
		"left":    func(m *membership) { m.LeaveSent("m-1") },
		"rejoins": func(m *membership) { m.JoinSent("m-1") },
	} {
		t.Run(name, func(t *testing.T) {
			m := testMembership()
			joins(m, member7)
			end(m)
			m.HeartbeatAnswered(member7, time.Now(), int16(sarama.ErrUnknownMemberId))
			m.lost(member7, errors.New("commit refused"))
			_, due, gone := m.check(time.Now().Add(time.Hour), testBeat)
			require.NoError(t, gone)
			assert.False(t, due)
		})
	}
}

func TestSessionClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testMembership()
		start := time.Now()
		_, due, gone := m.check(start.Add(time.Hour), testBeat)
		require.NoError(t, gone, "outside a generation no clock runs")
		assert.False(t, due)

		m.JoinSent("")
		m.JoinAnswered(wire.JoinAnswer{Member: member7})
		time.Sleep(time.Hour)
		_, due, gone = m.check(time.Now(), testBeat)
		require.NoError(t, gone, "JoinGroup waits for others")
		assert.False(t, due)
		m.SyncAnswered(member7, 0)

		joined := time.Now()
		_, due, _ = m.check(joined.Add(testBeat), testBeat)
		assert.False(t, due, "an interval has to pass")
		_, due, _ = m.check(joined.Add(testBeat+1), testBeat)
		assert.True(t, due)

		time.Sleep(5 * time.Second)
		m.HeartbeatSent(member7)
		sent := time.Now()
		_, due, _ = m.check(sent.Add(testBeat), testBeat)
		assert.False(t, due, "whoever sent it: the engine or we")
		time.Sleep(3 * time.Second)
		m.HeartbeatAnswered(member7, sent, 0)

		time.Sleep(time.Second)
		m.HeartbeatSent(member7) // never answered
		_, _, gone = m.check(sent.Add(testSession), testBeat)
		require.NoError(t, gone)
		_, due, gone = m.check(sent.Add(testSession+1), testBeat)
		require.ErrorContains(t, gone, "no heartbeat was answered for 20s")
		assert.False(t, due)
		_, member := m.current()
		assert.False(t, member)
	})
}

// The budget of a drain counts from the moment the broker spoke of the rebalance, and
// not from when the engine got round to it.
func TestRebalanceBeginsWithItsFirstSign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testMembership()
		joins(m, member7)
		m.HeartbeatAnswered(member7, time.Now(), int16(sarama.ErrRebalanceInProgress))
		sign := time.Now()
		time.Sleep(time.Second)
		m.HeartbeatAnswered(member7, time.Now(), int16(sarama.ErrRebalanceInProgress))
		assert.Equal(t, sign, m.rebalancing())

		joins(m, member8)
		time.Sleep(time.Second)
		now := time.Now()
		assert.Equal(t, now, m.rebalancing(), "the engine rejoins by itself")
		time.Sleep(time.Second)
		assert.Equal(t, time.Now(), m.rebalancing(), "the coordinator was not found at first, and nobody has waited")
	})
}

func TestJoinRefusedForGood(t *testing.T) {
	tests := []struct {
		code sarama.KError
		says string // empty: it is tried again
	}{
		{sarama.ErrNoError, ""},
		{sarama.ErrUnknownMemberId, ""},
		{sarama.ErrRebalanceInProgress, ""},
		{sarama.ErrNotCoordinatorForConsumer, ""},
		{sarama.ErrInconsistentGroupProtocol, "another protocol"},
		{sarama.ErrInvalidGroupId, "the group's name"},
		{sarama.ErrInvalidSessionTimeout, "Config.SessionTimeout"},
		{sarama.ErrGroupAuthorizationFailed, "may not read the group"},
		{sarama.ErrGroupMaxSizeReached, "group.max.size"},
		{sarama.ErrUnsupportedVersion, "JoinGroup"},
	}
	for _, test := range tests {
		t.Run(test.code.Error(), func(t *testing.T) {
			var refused error
			m := newMembership(testSession, func(err error) { refused = err }, func() {})
			m.JoinSent("")
			m.JoinAnswered(wire.JoinAnswer{Err: int16(test.code)})
			if test.says == "" {
				assert.NoError(t, refused)
				return
			}
			require.ErrorIs(t, refused, test.code)
			assert.ErrorContains(t, refused, test.says)
		})
	}
}

func TestCommittedOffsetsAreThoseOfThisAssignment(t *testing.T) {
	m := testMembership()
	joins(m, member7)
	m.OffsetsFetched([]wire.Offset{
		{Topic: "orders", Partition: 0, Offset: 42, Metadata: "kgroup/1 n=2"},
		{Topic: "orders", Partition: 1, Offset: -1},
		{Topic: "refunds", Partition: 0, Offset: 3, Err: int16(sarama.ErrOffsetsLoadInProgress)},
	})
	o, has := m.committed(orders0)
	assert.True(t, has)
	assert.Equal(t, int64(42), o.Offset)
	assert.Equal(t, "kgroup/1 n=2", o.Metadata)
	for _, p := range []engine.Partition{orders1, refunds0} {
		_, has := m.committed(p)
		assert.False(t, has, p)
	}
	m.JoinSent("m-1")
	_, has = m.committed(orders0)
	assert.False(t, has, "while we were away somebody else may have committed")
}

func TestInitial(t *testing.T) {
	const partitions = 4
	tests := []struct {
		name      string
		committed map[engine.Partition]wire.Offset
		begun     bool
		want      int32
	}{
		{"the group has no offsets", nil, false, partitions},
		{"only for another topic", map[engine.Partition]wire.Offset{refunds0: {Offset: 5, Metadata: "kgroup/1 n=1"}}, false, partitions},
		{"the answer says none", map[engine.Partition]wire.Offset{orders0: {Offset: -1}}, false, partitions},
		{"it began with two partitions", map[engine.Partition]wire.Offset{orders0: {Offset: 5, Metadata: "kgroup/1 n=2"}, orders1: {Offset: -1}}, false, 2},
		{"the highest counts", map[engine.Partition]wire.Offset{orders0: {Metadata: "kgroup/1 n=2"}, orders1: {Metadata: "kgroup/1 n=3"}}, false, 3},
		{"it began at the oldest", map[engine.Partition]wire.Offset{orders0: {Offset: 5}}, false, 0},
		{"another client began it", map[engine.Partition]wire.Offset{orders0: {Offset: 5, Metadata: "checkpoint-7"}}, false, 0},
		{"damaged", map[engine.Partition]wire.Offset{orders0: {Offset: 5, Metadata: "kgroup/1 n=x"}}, false, 0},
		{"begun by this process, and the offsets are gone", nil, true, 0},
		{"begun by this process", map[engine.Partition]wire.Offset{orders0: {Offset: 5, Metadata: "kgroup/1 n=2"}}, true, 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := testMembership()
			var told []wire.Offset
			for p, o := range test.committed {
				o.Topic, o.Partition = p.Topic, p.Number
				told = append(told, o)
			}
			m.OffsetsFetched(told)
			assert.Equal(t, test.want, m.initial("orders", partitions, test.begun))
		})
	}
}
