package kgroup

// The group protocol beside the engine, on a connection of our own: the heartbeats
// that it does not send (it stops them during the steps of a rebalance, which is
// when a slow handler needs them), commits, and leaving while a JoinGroup waits.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/Shopify/sarama"

	"github.com/kgroup-go/kgroup/internal/engine"
	"github.com/kgroup-go/kgroup/internal/wire"
)

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
		me, due, gone := g.member.check(time.Now(), interval)
		if gone != nil {
			g.lose(me, gone)
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

// lose tells the session, once, that the generation of a member is lost.
func (g *group) lose(me wire.Member, cause error) {
	g.mu.Lock()
	gen := g.gen
	first := gen != nil && !gen.lost && gen.member == me
	if first {
		gen.lost = true
		if !gen.sealed { // else the slot is the next generation's
			g.endSlot()
		}
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
	switch {
	case err != nil:
		g.findAnew()
	case moved(answer.Err):
		_ = g.inner.RefreshCoordinator(g.name) // asked again with the next heartbeat
	}
}

// findAnew asks for the coordinator after a request that got no answer. The engine does
// so too, but not while its rebalance is being drained: the session would be lost with
// the coordinator's broker, though another one has long taken over. It is done beside
// the heartbeats, because brokers that are down take their time.
func (g *group) findAnew() {
	if g.finding.Swap(true) {
		return
	}
	g.routines.Go(func() {
		defer g.finding.Store(false)
		_ = g.inner.RefreshCoordinator(g.name) // asked again with the next heartbeat
	})
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
	if gen == nil || gen.number != generation || gen.member != me || !member || g.cut.Load() {
		return nil, engine.ErrGone
	}
	type result struct {
		refused map[engine.Partition]error
		err     error
	}
	select {
	case g.commits <- struct{}{}: // one that was given up is waited for: it must not come after this one
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if !g.begin() { // somebody commits who does not know yet that this member has left
		<-g.commits
		return nil, engine.ErrGone
	}
	answered := make(chan result, 1)
	go func() { // requests know no context; this one ends with its connection's deadline
		defer g.routines.Done()
		defer func() { <-g.commits }()
		refused, err := g.commitShorter(ctx, me, offsets)
		answered <- result{refused, err}
	}()
	select {
	case r := <-answered:
		return r.refused, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// commitShorter commits, and once more with less metadata, and at last without, where that is
// too large: the offset counts most.
func (g *group) commitShorter(ctx context.Context, me wire.Member, offsets []engine.Offset) (map[engine.Partition]error, error) {
	refused, err := g.commit(me, offsets)
	if err != nil {
		return nil, err
	}
	for _, shorten := range []func(metadata string, at int64) string{briefMetadata, noMetadata} {
		var again []engine.Offset
		for _, o := range offsets {
			if errors.Is(refused[o.Partition], sarama.ErrOffsetMetadataTooLarge) {
				g.session.Error(fmt.Errorf("commit %v: the brokers take less metadata than kgroup has to write (offset.metadata.max.bytes; their default is enough): the next owner is told less, and may repeat what is settled beyond the offset", o.Partition))
				if text := shorten(o.Metadata, o.Offset); text != o.Metadata {
					o.Metadata = text
					again = append(again, o)
				}
			}
		}
		if len(again) == 0 || isClosed(ctx.Done()) {
			continue
		}
		answer, err := g.commit(me, again)
		if err != nil {
			return nil, err
		}
		for _, o := range again {
			delete(refused, o.Partition)
			if answer[o.Partition] != nil {
				refused[o.Partition] = answer[o.Partition]
			}
		}
	}
	g.levers.began(offsets, refused)
	return refused, nil
}

func noMetadata(string, int64) string { return "" }

func (g *group) commit(me wire.Member, offsets []engine.Offset) (map[engine.Partition]error, error) {
	request := &sarama.OffsetCommitRequest{
		Version:                 2,
		ConsumerGroup:           g.name,
		ConsumerGroupGeneration: me.Generation,
		ConsumerID:              me.ID,
		RetentionTime:           -1,
	}
	for _, o := range offsets {
		request.AddBlock(o.Topic, o.Number, o.Offset, 0, o.Metadata)
	}
	broker, err := g.coordinator()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", engine.ErrUnreachable, err)
	}
	answer, err := broker.CommitOffset(request)
	if err != nil {
		g.mindCoordinator(broker, err)
		_ = g.inner.RefreshCoordinator(g.name) // it may be another by now
		return nil, fmt.Errorf("%w: %w", engine.ErrUnreachable, err)
	}
	refused := map[engine.Partition]error{}
	for _, o := range offsets {
		if _, answered := answer.Errors[o.Topic][o.Number]; !answered {
			return nil, sarama.ErrIncompleteResponse
		}
	}
	for topic, partitions := range answer.Errors {
		for number, code := range partitions {
			switch code {
			case sarama.ErrNoError:
			case sarama.ErrUnknownMemberId, sarama.ErrIllegalGeneration:
				g.member.lost(me, fmt.Errorf("commit: %w", code))
				return nil, fmt.Errorf("%w: %w", engine.ErrGone, code)
			case sarama.ErrNotCoordinatorForConsumer, sarama.ErrConsumerCoordinatorNotAvailable:
				_ = g.inner.RefreshCoordinator(g.name) // the error says enough; the next attempt asks again
				return nil, fmt.Errorf("%w: %w", engine.ErrUnreachable, code)
			case sarama.ErrOffsetsLoadInProgress:
				return nil, fmt.Errorf("%w: %w", engine.ErrUnreachable, code)
			case sarama.ErrRebalanceInProgress, sarama.ErrRequestTimedOut, sarama.ErrNotEnoughReplicas, sarama.ErrNotEnoughReplicasAfterAppend:
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

// knownCoordinator is the coordinator as sarama knows it, and with sarama's connection,
// which is not used. That is opened without a lock: if the broker is given up at the same
// time, nobody closes it (D30), so it is remembered.
func (g *group) knownCoordinator() (*sarama.Broker, error) {
	broker, err := g.inner.Coordinator(g.name)
	if err == nil {
		g.brokerMu.Lock()
		g.known[broker] = true
		g.brokerMu.Unlock()
	}
	return broker, err
}

// coordinator is a connection of our own for the group protocol. On the engine's,
// which carries its fetches too, a heartbeat waits behind a fetch's long poll.
func (g *group) coordinator() (*sarama.Broker, error) {
	known, err := g.knownCoordinator()
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
// whole session, holding partitions that nobody reads. (Some older brokers, 1.1 for
// one, let the member go and answer nothing: then vouch ends the wait.)
func (g *group) leaveEarly() {
	id, waiting := g.member.waiting()
	if !waiting || g.left == id {
		return
	}
	known, err := g.knownCoordinator()
	if err != nil {
		return // tried again at the next tick
	}
	g.left = id
	broker := sarama.NewBroker(known.Addr())
	if err := broker.Open(g.dataConfig); err != nil {
		return
	}
	defer func() { _ = broker.Close() }()
	answer, err := broker.LeaveGroup(&sarama.LeaveGroupRequest{GroupId: g.name, MemberId: id})
	switch {
	case err != nil:
		g.left = "" // tried again at the next tick, as below
	case moved(answer.Err):
		g.left = ""
		_ = g.inner.RefreshCoordinator(g.name)
	default:
		g.takeBack()
	}
}
