package kgroup

// What the group protocol says about this member, as seen on the group connection
// (internal/wire): the engine keeps its own idea of it to itself.

import (
	"fmt"
	"sync"
	"time"

	"github.com/Shopify/sarama"

	"github.com/kgroup-go/kgroup/internal/engine"
	"github.com/kgroup-go/kgroup/internal/wire"
)

// A membership observes the group connection.
type membership struct {
	session time.Duration
	refused func(error) // a JoinGroup was refused for good
	rejoins func()      // a JoinGroup is about to be sent

	changed chan struct{} // receives a value when something happened that watch must look at

	mu      sync.Mutex
	me      wire.Member
	id      string // what the group knows this member as; empty: not at all, or no longer
	leader  bool
	joining bool      // from JoinGroup written to SyncGroup answered
	member  bool      // from SyncGroup answered to the next JoinGroup or LeaveGroup written
	sent    time.Time // the last heartbeat, or what counts as one
	alive   time.Time // when the last one that was answered well had been sent
	sign    time.Time // when the broker first spoke of the rebalance under way; zero: none
	gone    error     // why this member holds nothing any more
	offsets map[engine.Partition]wire.Offset
}

func newMembership(session time.Duration, refused func(error), rejoins func()) *membership {
	return &membership{
		session: session,
		refused: refused,
		rejoins: rejoins,
		changed: make(chan struct{}, 1),
		offsets: map[engine.Partition]wire.Offset{},
	}
}

// MemberID implements [wire.Observer]. The engine forgets its id more often than the
// group does: when the connection breaks while its first JoinGroup waits, and when it
// fails as a leader between JoinGroup and SyncGroup (D8).
func (m *membership) MemberID() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.id
}

// JoinSent implements [wire.Observer]: the last generation is over for good.
func (m *membership) JoinSent(string) {
	m.rejoins()
	m.mu.Lock()
	m.joining, m.member, m.leader = true, false, false
	m.gone, m.sign = nil, time.Time{}
	clear(m.offsets)
	m.mu.Unlock()
	m.wakeUp()
}

// fatalJoin are answers to JoinGroup that a person must mend.
var fatalJoin = map[sarama.KError]string{
	sarama.ErrInconsistentGroupProtocol: "its members use another protocol: a group of this name belongs to something else (Kafka Connect, Kafka Streams, a consumer with other assignors)",
	sarama.ErrInvalidGroupId:            "the group's name is not valid",
	sarama.ErrInvalidSessionTimeout:     "Config.SessionTimeout is outside the broker's group.min.session.timeout.ms and group.max.session.timeout.ms",
	sarama.ErrGroupAuthorizationFailed:  "the ACLs must allow this user to read the group",
	sarama.ErrGroupMaxSizeReached:       "it has as many members as the broker's group.max.size allows",
	sarama.ErrUnsupportedVersion:        "the broker does not speak this version of JoinGroup",
}

// JoinAnswered implements [wire.Observer].
func (m *membership) JoinAnswered(a wire.JoinAnswer) {
	code := sarama.KError(a.Err)
	m.mu.Lock()
	switch code {
	case sarama.ErrNoError:
		m.me, m.leader = a.Member, a.Leader
		m.id = a.Member.ID
	case sarama.ErrMemberIdRequired: // it is sent again, with this id
		m.me, m.id = a.Member, a.Member.ID
	case sarama.ErrUnknownMemberId:
		m.me, m.id = wire.Member{}, ""
	default: // the engine tries again
	}
	m.mu.Unlock()
	m.wakeUp()
	if why, fatal := fatalJoin[code]; fatal {
		m.refused(fmt.Errorf("join the group: %w: %s", code, why))
	}
}

// SyncAnswered implements [wire.Observer]: from here on the member holds what it
// was assigned.
func (m *membership) SyncAnswered(of wire.Member, err int16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.joining = false
	if err == 0 && of == m.me {
		m.member = true
		m.sent = time.Now()
		m.alive = m.sent
	}
}

// LeaveSent implements [wire.Observer].
func (m *membership) LeaveSent(string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.member, m.id = false, ""
}

// LeaveAnswered implements [wire.Observer].
func (m *membership) LeaveAnswered(string, int16) {}

// HeartbeatSent implements [wire.Observer].
func (m *membership) HeartbeatSent(wire.Member) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sent = time.Now()
}

// HeartbeatAnswered implements [wire.Observer]. An answer that comes after the next
// JoinGroup speaks of the past: it is matched with the member it was sent for.
func (m *membership) HeartbeatAnswered(of wire.Member, sent time.Time, err int16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.member || of != m.me {
		return
	}
	switch code := sarama.KError(err); code {
	case sarama.ErrNoError:
		m.heard(sent)
	case sarama.ErrRebalanceInProgress:
		m.heard(sent)
		if m.sign.IsZero() {
			m.sign = time.Now()
		}
	case sarama.ErrUnknownMemberId, sarama.ErrIllegalGeneration:
		m.lose(fmt.Errorf("heartbeat: %w", code))
	default: // the engine ends its generation, or asks again
	}
}

// heard notes, with m.mu held, an answer to a heartbeat; one of a connection that was
// replaced may come late.
func (m *membership) heard(sent time.Time) {
	if sent.After(m.alive) {
		m.alive = sent
	}
}

// OffsetsFetched implements [wire.Observer].
func (m *membership) OffsetsFetched(offsets []wire.Offset) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range offsets {
		if o.Err == 0 {
			m.offsets[engine.Partition{Topic: o.Topic, Number: o.Partition}] = o
		}
	}
}

// lose notes, with m.mu held, that the member holds nothing any more.
func (m *membership) lose(cause error) {
	if m.gone == nil {
		m.gone = cause
	}
	m.wakeUp()
}

func (m *membership) wakeUp() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// lost is [membership.lose] from outside: a commit was refused.
func (m *membership) lost(of wire.Member, cause error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.member && of == m.me {
		m.lose(cause)
	}
}

// check looks at the clock. It returns who we are, whether a heartbeat is due (none
// was sent for longer than an interval), and why the session is lost, if it is.
func (m *membership) check(now time.Time, interval time.Duration) (me wire.Member, due bool, gone error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.member && m.gone == nil && now.Sub(m.alive) > m.session {
		m.gone = fmt.Errorf("no heartbeat was answered for %v", m.session)
	}
	return m.me, m.member && m.gone == nil && now.Sub(m.sent) > interval, m.gone
}

// current is who we are, and whether we are a member now.
func (m *membership) current() (me wire.Member, member bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.me, m.member && m.gone == nil
}

// waiting is the id of a member whose JoinGroup or SyncGroup is under way, if it
// is known.
func (m *membership) waiting() (id string, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.me.ID, m.joining && m.me.ID != ""
}

// waits reports whether a JoinGroup or SyncGroup is under way.
func (m *membership) waits() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.joining
}

// leads reports whether this member computed the current assignment.
func (m *membership) leads() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leader && m.member
}

// rebalancing is when the rebalance under way began, as far as we know: with the
// broker's first word of it, or now. That is not kept: while the coordinator cannot be
// found nobody can join, and nobody waits for this member.
func (m *membership) rebalancing() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sign.IsZero() {
		return time.Now()
	}
	return m.sign
}

// committed is the committed offset of a partition, as of the last assignment.
func (m *membership) committed(p engine.Partition) (wire.Offset, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.offsets[p]
	return o, ok && o.Offset >= 0
}

// initial is how many partitions of a topic begin at their newest message, by what
// the group has committed for the topic: all of them (count), if it has committed
// nothing, neither now nor before in this process.
func (m *membership) initial(topic string, count int32, begun bool) int32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	var initial int32
	for p, o := range m.offsets {
		if p.Topic != topic || o.Offset < 0 {
			continue
		}
		begun = true
		if env, err := parseEnvelope(o.Metadata, o.Offset); err == nil {
			initial = max(initial, env.initial)
		}
	}
	if !begun {
		return count
	}
	return initial
}
