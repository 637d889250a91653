package kgroup

// What the group protocol says about this member, as seen on the group connection
// (internal/wire), and the heartbeats that the engine does not send. The engine
// keeps its own idea of all this to itself, and stops its heartbeats during the
// steps of a rebalance, which is when a slow handler needs them.

import (
	"context"
	"errors"
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

	changed chan struct{} // receives a value when something happened that watch must look at

	mu      sync.Mutex
	me      wire.Member
	leader  bool
	joining bool      // from JoinGroup written to SyncGroup answered
	member  bool      // from SyncGroup answered to the next JoinGroup or LeaveGroup written
	sent    time.Time // the last heartbeat, or what counts as one
	alive   time.Time // when the last one that was answered well had been sent
	sign    time.Time // when the broker first spoke of the rebalance under way; zero: none
	gone    error     // why this member holds nothing any more
	offsets map[engine.Partition]wire.Offset
}

func newMembership(session time.Duration, refused func(error)) *membership {
	return &membership{
		session: session,
		refused: refused,
		changed: make(chan struct{}, 1),
		offsets: map[engine.Partition]wire.Offset{},
	}
}

// JoinSent implements [wire.Observer]: the last generation is over for good.
func (m *membership) JoinSent(string) {
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
	sarama.ErrGroupAuthorizationFailed:  "this user may not read the group",
	sarama.ErrGroupMaxSizeReached:       "it has as many members as the broker's group.max.size allows",
	sarama.ErrUnsupportedVersion:        "the broker does not speak this version of JoinGroup",
}

// JoinAnswered implements [wire.Observer].
func (m *membership) JoinAnswered(a wire.JoinAnswer) {
	code := sarama.KError(a.Err)
	m.mu.Lock()
	if code == sarama.ErrNoError {
		m.me, m.leader = a.Member, a.Leader
	} else if code == sarama.ErrUnknownMemberId {
		m.me = wire.Member{}
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
	m.member = false
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
		m.alive = sent
	case sarama.ErrRebalanceInProgress:
		m.alive = sent
		if m.sign.IsZero() {
			m.sign = time.Now()
		}
	case sarama.ErrUnknownMemberId, sarama.ErrIllegalGeneration:
		m.lose(fmt.Errorf("heartbeat: %w", code))
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

// check looks at the clock. It returns why the member has lost its session, and
// whether a heartbeat is due: none was sent for longer than an interval.
func (m *membership) check(now time.Time, interval time.Duration) (gone error, due bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.member && m.gone == nil && now.Sub(m.alive) > m.session {
		m.gone = fmt.Errorf("no heartbeat was answered for %v", m.session)
	}
	return m.gone, m.member && m.gone == nil && now.Sub(m.sent) > interval
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

// leads reports whether this member computed the current assignment.
func (m *membership) leads() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leader && m.member
}

// rebalancing is when the rebalance under way began, as far as we know.
func (m *membership) rebalancing() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sign.IsZero() {
		m.sign = time.Now()
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
		if env, err := parseEnvelope(o.Metadata); err == nil {
			initial = max(initial, env.initial)
		}
	}
	if !begun {
		return count
	}
	return initial
}

// watch sends the heartbeats that the engine does not, and notices when the session
// is lost. The rule is: within a generation, if none was sent for one interval, send
// one. It needs no knowledge of the engine's steps.
func (g *group) watch(ctx context.Context) {
	interval := g.cluster.Group.Heartbeat.Interval
	ticker := time.NewTicker(interval / 4)
	defer ticker.Stop()
	beat := make(chan struct{}, 1) // one at a time: a broker that hangs must not keep the clock from being read
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-g.member.changed:
		}
		gone, due := g.member.check(time.Now(), interval)
		if gone != nil {
			g.lose(gone)
		}
		if due {
			select {
			case beat <- struct{}{}:
				g.routines.Go(func() {
					g.heartbeat()
					<-beat
				})
			default:
			}
		}
		if g.leaving.Load() {
			g.leaveEarly()
		}
	}
}

// lose tells the session, once, that the open generation is lost.
func (g *group) lose(cause error) {
	g.mu.Lock()
	gen := g.gen
	first := gen != nil && !gen.lost
	if first {
		gen.lost = true
		g.endSlot()
	}
	g.mu.Unlock()
	if first {
		g.session.Lost(gen.number, cause)
	}
}

// heartbeat sends one. Its answer reaches the membership on the connection.
func (g *group) heartbeat() {
	me, member := g.member.current()
	if !member {
		return
	}
	broker, err := g.coordinator()
	if err != nil {
		return // the session's clock runs
	}
	answer, err := broker.Heartbeat(&sarama.HeartbeatRequest{GroupId: g.name, GenerationId: me.Generation, MemberId: me.ID})
	g.mindCoordinator(broker, err)
	if err == nil && moved(answer.Err) {
		_ = g.inner.RefreshCoordinator(g.name) // asked again with the next heartbeat
	}
}

// mindCoordinator closes a group connection that has failed: every later request on
// it would fail too. The next use opens it again.
func (g *group) mindCoordinator(broker *sarama.Broker, err error) {
	if err != nil {
		_ = broker.Close()
	}
}

func moved(err sarama.KError) bool {
	return errors.Is(err, sarama.ErrNotCoordinatorForConsumer) || errors.Is(err, sarama.ErrConsumerCoordinatorNotAvailable)
}

// Commit implements [engine.Engine]. One OffsetCommit through the group connection,
// with the member and generation seen there.
func (g *group) Commit(ctx context.Context, generation int64, offsets []engine.Offset) (map[engine.Partition]error, error) {
	g.mu.Lock()
	gen := g.gen
	g.mu.Unlock()
	me, member := g.member.current()
	if gen == nil || gen.number != generation || gen.member != me || !member {
		return nil, engine.ErrGone
	}
	refused, err := g.commit(me, offsets, true)
	if err != nil {
		return nil, err
	}
	var again []engine.Offset // the offset counts, what is said beside it does not
	for _, o := range offsets {
		if errors.Is(refused[o.Partition], sarama.ErrOffsetMetadataTooLarge) {
			again = append(again, o)
		}
	}
	if len(again) > 0 && ctx.Err() == nil {
		second, err := g.commit(me, again, false)
		if err != nil {
			return nil, err
		}
		for _, o := range again {
			delete(refused, o.Partition)
			if second[o.Partition] != nil {
				refused[o.Partition] = second[o.Partition]
			}
		}
	}
	g.levers.began(offsets, refused)
	return refused, nil
}

func (g *group) commit(me wire.Member, offsets []engine.Offset, metadata bool) (map[engine.Partition]error, error) {
	request := &sarama.OffsetCommitRequest{
		Version:                 2,
		ConsumerGroup:           g.name,
		ConsumerGroupGeneration: me.Generation,
		ConsumerID:              me.ID,
		RetentionTime:           -1,
	}
	for _, o := range offsets {
		text := ""
		if metadata {
			text = o.Metadata
		}
		request.AddBlock(o.Topic, o.Number, o.Offset, 0, text)
	}
	broker, err := g.coordinator()
	if err != nil {
		return nil, err
	}
	answer, err := broker.CommitOffset(request)
	if err != nil {
		g.mindCoordinator(broker, err)
		return nil, err
	}
	refused := map[engine.Partition]error{}
	for topic, partitions := range answer.Errors {
		for number, code := range partitions {
			switch code {
			case sarama.ErrNoError:
			case sarama.ErrUnknownMemberId, sarama.ErrIllegalGeneration:
				g.member.lost(me, fmt.Errorf("commit: %w", code))
				return nil, fmt.Errorf("%w: %w", engine.ErrGone, code)
			case sarama.ErrNotCoordinatorForConsumer, sarama.ErrConsumerCoordinatorNotAvailable:
				_ = g.inner.RefreshCoordinator(g.name) // the error says enough; the next attempt asks again
				return nil, code
			case sarama.ErrOffsetsLoadInProgress, sarama.ErrRebalanceInProgress, sarama.ErrRequestTimedOut, sarama.ErrNotEnoughReplicas, sarama.ErrNotEnoughReplicasAfterAppend:
				return nil, code
			default:
				refused[engine.Partition{Topic: topic, Number: number}] = code
			}
		}
	}
	return refused, nil
}

// fetchOffsets asks for the committed offsets of a topic. The answer reaches the
// membership on the connection.
func (g *group) fetchOffsets(topic string, partitions []int32) error {
	request := &sarama.OffsetFetchRequest{Version: 1, ConsumerGroup: g.name}
	for _, partition := range partitions {
		request.AddPartition(topic, partition)
	}
	broker, err := g.coordinator()
	if err != nil {
		return err
	}
	answer, err := broker.FetchOffset(request)
	if err != nil {
		g.mindCoordinator(broker, err)
		return err
	}
	for _, partition := range partitions {
		block := answer.GetBlock(topic, partition)
		if block == nil {
			return sarama.ErrIncompleteResponse
		}
		if block.Err != sarama.ErrNoError {
			return block.Err
		}
	}
	return nil
}

// coordinator is a connection of our own for the group protocol. On the engine's,
// which carries its fetches too, a heartbeat waits behind a fetch's long poll.
func (g *group) coordinator() (*sarama.Broker, error) {
	known, err := g.inner.Coordinator(g.name)
	if err != nil {
		return nil, err
	}
	g.brokerMu.Lock()
	defer g.brokerMu.Unlock()
	if g.broker == nil || g.broker.Addr() != known.Addr() {
		if old := g.broker; old != nil {
			g.routines.Go(func() { _ = old.Close() }) // waits for what is under way there
		}
		g.broker = sarama.NewBroker(known.Addr())
	}
	if err := g.broker.Open(g.groupConfig); err != nil && !errors.Is(err, sarama.ErrAlreadyConnected) {
		return nil, err
	}
	return g.broker, nil
}

// leaveEarly takes back a JoinGroup or SyncGroup that waits for other members: a
// LeaveGroup on another connection makes the broker answer it. Otherwise the engine
// would wait with it, and a member that never answers would stay in the group for a
// whole session, holding partitions that nobody reads.
func (g *group) leaveEarly() {
	id, waiting := g.member.waiting()
	if !waiting || g.left == id {
		return
	}
	known, err := g.inner.Coordinator(g.name)
	if err != nil {
		return // tried again at the next tick
	}
	g.left = id
	broker := sarama.NewBroker(known.Addr())
	if err := broker.Open(g.dataConfig); err != nil {
		return
	}
	defer func() { _ = broker.Close() }()
	if _, err := broker.LeaveGroup(&sarama.LeaveGroupRequest{GroupId: g.name, MemberId: id}); err != nil {
		g.left = ""
	}
}
