package kgroup

// The wrapped client: every call of the engine goes through it, those of sarama's
// own consumer too. Each method here corrects one thing that the engine does, or
// learns one that it does not tell; docs/ENGINE.md lists the defects by number.

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/Shopify/sarama"

	"github.com/kgroup-go/kgroup/internal/engine"
	"github.com/kgroup-go/kgroup/internal/wire"
)

var (
	// errRejoin is told to the engine to make it rejoin in good order. It is not an
	// error to anybody else.
	errRejoin = errors.New("kgroup: partitions have changed")
	// errSession ends the engine's generation when the session was lost.
	errSession = errors.New("kgroup: session lost")
	// errStopping keeps the engine from joining again during the shutdown.
	errStopping = errors.New("kgroup: shutting down")
)

type levers struct {
	sarama.Client
	group *group

	mu      sync.Mutex
	counts  map[string]int  // partitions of each topic in the assignment this member computed
	shrunk  map[string]bool // topics that were missing at the last look
	missing map[string]bool // topics that were asked for and do not exist
	places  map[engine.Partition]*place
	initial map[string]int32 // per topic without offsets: how many partitions begin at their newest; 0: none do
	begun   map[string]bool  // topics of which this process has committed something

	asking sync.Mutex // one question for a topic's offsets at a time
}

// A place is where a partition begins, as told to the engine.
type place struct {
	oldest, newest int64
	unknown        bool // no broker could tell: the partition has no leader, or it cannot be reached
	fresh          bool
	gone           bool  // the committed offset was not between oldest and newest,
	end            int64 // which was this
}

func newLevers(inner sarama.Client, g *group) *levers {
	return &levers{
		Client:  inner,
		group:   g,
		counts:  map[string]int{},
		shrunk:  map[string]bool{},
		missing: map[string]bool{},
		places:  map[engine.Partition]*place{},
		initial: map[string]int32{},
		begun:   map[string]bool{},
	}
}

// reset forgets what was learnt for the last assignment.
func (l *levers) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.counts)
	clear(l.shrunk)
	clear(l.places)
	clear(l.initial)
}

// RefreshCoordinator is called at the start of each rebalance, after the engine's
// loops have stopped and before partitions are released: the drain point. It is
// called in other places too, with no generation open.
func (l *levers) RefreshCoordinator(string) error { return l.group.rebalance() }

// Coordinator is called before every request of the group protocol.
func (l *levers) Coordinator(string) (*sarama.Broker, error) {
	if l.group.mustRejoin() {
		return nil, errSession
	}
	return l.group.coordinator()
}

// RefreshMetadata answers no error for what concerns topics: a rebalance goes on
// with what is known, and the drain point is reached even if no broker answers.
func (l *levers) RefreshMetadata(topics ...string) error {
	if err := l.Client.RefreshMetadata(topics...); errors.Is(err, sarama.ErrClosedClient) {
		return err
	}
	return nil
}

// Partitions is called by the group's leader, between JoinGroup and SyncGroup, for
// every topic that any member asked for. An unknown topic has no partitions; in the
// engine it is an error that stops the whole group (D8). The group waits meanwhile:
// a topic that was missing before is looked up in the background.
func (l *levers) Partitions(topic string) ([]int32, error) {
	if !l.known(topic) {
		l.mu.Lock()
		before := l.missing[topic]
		l.missing[topic] = true
		l.mu.Unlock()
		refresh := func() { _ = l.Client.RefreshMetadata(topic) } // still unknown: no partitions
		if before {
			l.group.routines.Go(refresh)
		} else {
			refresh()
		}
	}
	var partitions []int32
	if l.known(topic) {
		var err error
		if partitions, err = l.Client.Partitions(topic); errors.Is(err, sarama.ErrClosedClient) {
			return nil, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[topic] = len(partitions)
	if len(partitions) > 0 {
		delete(l.missing, topic)
	}
	return slices.Clone(partitions), nil
}

// known reports whether the metadata of a topic is at hand.
func (l *levers) known(topic string) bool {
	topics, err := l.Client.Topics()
	return err == nil && slices.Contains(topics, topic)
}

// Topics is called by the engine's topic watcher, twice in every
// Metadata.RefreshFrequency; an error there makes the engine rejoin in good order.
// So partitions that were added are noticed (D11), by the member that computed the
// assignment: another one would get the same assignment back.
func (l *levers) Topics() ([]string, error) {
	topics, err := l.Client.Topics()
	if err == nil && l.group.isOpen() && l.group.member.leads() && l.changed(topics) {
		return nil, errRejoin
	}
	return topics, err
}

// changed compares the partitions of the last assignment with those known now. It
// answers true once: then the assignment is computed anew. A topic that is missing
// has to be missing twice: a broker that has just started knows less than it should.
func (l *levers) changed(topics []string) bool {
	l.mu.Lock()
	counts := maps.Clone(l.counts)
	l.mu.Unlock()
	for topic := range counts {
		counts[topic] = 0
		if slices.Contains(topics, topic) {
			partitions, err := l.Client.Partitions(topic) // not under the lock: it may ask
			if err != nil {
				delete(counts, topic)
				continue
			}
			counts[topic] = len(partitions)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for topic, now := range counts {
		count, asked := l.counts[topic]
		if !asked {
			continue
		}
		before := l.shrunk[topic]
		l.shrunk[topic] = now < count
		if now > count || now < count && before {
			clear(l.counts)
			return true
		}
	}
	return false
}

// Leader is called when a partition is opened, and after each fetch. A partition
// without a leader gets any connected broker, which refuses the fetch; then it
// tries again by itself. In the engine it makes the member leave the group (D9).
func (l *levers) Leader(topic string, partition int32) (*sarama.Broker, error) {
	leader, err := l.Client.Leader(topic, partition)
	if err == nil || errors.Is(err, sarama.ErrClosedClient) {
		return leader, err
	}
	for _, broker := range l.Brokers() {
		if connected, _ := broker.Connected(); connected {
			return broker, nil
		}
	}
	return nil, err
}

// GetOffset is called twice when a partition is opened: for its newest offset, then
// for its oldest. The engine begins where these answers let it, so this is where
// the start of a lane is decided.
func (l *levers) GetOffset(topic string, partition int32, at int64) (int64, error) {
	p := engine.Partition{Topic: topic, Number: partition}
	committed, has := l.group.member.committed(p)
	offset, err := l.ask(p, at, has, committed)
	if errors.Is(err, sarama.ErrClosedClient) {
		return -1, err
	}
	unknown := err != nil
	if unknown {
		offset = 0
		if has {
			offset = committed.Offset // the range contains it, so the engine begins there
		}
	}
	newest := false
	if at == sarama.OffsetOldest && !has && l.group.config.Start == Newest {
		if newest, err = l.beginsNewest(p); err != nil {
			return -1, err
		}
		// The engine's own question may have been answered unseen (wire reads answers up
		// to a size): what it has found committed must not be skipped.
		committed, has = l.group.member.committed(p)
		newest = newest && !has
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.places[p]
	if known == nil {
		known = &place{}
		l.places[p] = known
	}
	known.unknown = known.unknown || unknown
	if at == sarama.OffsetNewest {
		known.newest = offset
		return offset, nil
	}
	if newest && !known.unknown {
		known.fresh = true
		return known.newest, nil
	}
	known.oldest = offset
	if known.unknown && has {
		known.oldest = min(offset, committed.Offset)
	}
	if has && !known.unknown && !known.gone && (committed.Offset < offset || committed.Offset > known.newest) {
		// The engine asks again, to begin at the oldest; by then the committed offset may
		// lie within the range, but it begins there all the same.
		known.gone, known.end = true, known.newest
	}
	return known.oldest, nil
}

// askPatience bounds the question for an offset: all partitions of the member wait
// for the answer.
const askPatience = 3 * time.Second

var errUnanswered = errors.New("no broker has answered")

// ask asks for an offset, and reports a failure. A partition with a committed offset
// can begin without the answer, so a broker that hangs is not waited for, nor asked
// again.
func (l *levers) ask(p engine.Partition, at int64, has bool, committed wire.Offset) (int64, error) {
	if has && l.unreachable(p) {
		return -1, errUnanswered
	}
	type answer struct {
		offset int64
		err    error
	}
	answered := make(chan answer, 1)
	l.group.routines.Go(func() {
		offset, err := l.Client.GetOffset(p.Topic, p.Number, at)
		if err == nil && at == sarama.OffsetNewest && has && !l.isGone(p) {
			offset = l.reached(p, offset, committed)
		}
		answered <- answer{offset, err}
	})
	var late <-chan time.Time
	if has {
		late = time.After(askPatience)
	}
	a := answer{-1, errUnanswered}
	select {
	case a = <-answered:
	case <-late:
	}
	if a.err != nil {
		l.group.session.Error(fmt.Errorf("look up the offsets of %v: %w", p, a.err))
	}
	return a.offset, a.err
}

// reached is the end of a partition, of which the leader has told one, if a commit speaks of
// messages behind that. After a crash a Kafka before 2.2 tells too low an end, until the
// followers have caught up (KIP-207). To a fetch it tells the truth.
func (l *levers) reached(p engine.Partition, told int64, committed wire.Offset) int64 {
	said, _ := parseEnvelope(committed.Metadata, committed.Offset)
	for _, end := range []int64{said.end(), committed.Offset} {
		if told < end && l.reaches(p, end) {
			return end
		}
	}
	return told
}

// reaches reports whether a partition has an offset, or ends there.
func (l *levers) reaches(p engine.Partition, offset int64) bool {
	leader, err := l.Client.Leader(p.Topic, p.Number)
	if err != nil {
		return false
	}
	request := &sarama.FetchRequest{Version: 4, MaxBytes: 1}
	request.AddBlock(p.Topic, p.Number, offset, 1)
	answer, err := leader.Fetch(request)
	if err != nil {
		return false
	}
	block := answer.GetBlock(p.Topic, p.Number)
	return block != nil && block.Err == sarama.ErrNoError
}

// isGone reports whether the committed offset of a partition was found to be gone.
func (l *levers) isGone(p engine.Partition) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.places[p]
	return at != nil && at.gone
}

// beginsNewest reports whether a partition without a committed offset begins at its
// newest message. Start is used once per group: if the group has offsets for other
// partitions of the topic, this one begins there only if it existed when they
// began, which the metadata of their commits tells. Otherwise it was added later,
// and all of it is read.
func (l *levers) beginsNewest(p engine.Partition) (bool, error) {
	l.asking.Lock()
	defer l.asking.Unlock()
	l.mu.Lock()
	initial, asked := l.initial[p.Topic]
	begun := l.begun[p.Topic]
	l.mu.Unlock()
	if !asked {
		partitions, err := l.Client.Partitions(p.Topic)
		if err != nil {
			return false, err
		}
		if err := l.group.fetchOffsets(p.Topic, partitions); err != nil {
			return false, fmt.Errorf("offsets of topic %s: %w", p.Topic, err)
		}
		initial = l.group.member.initial(p.Topic, int32(len(partitions)), begun)
		l.mu.Lock()
		l.initial[p.Topic] = initial
		l.mu.Unlock()
	}
	return p.Number < initial, nil
}

// began notes the topics of which something has been committed.
func (l *levers) began(offsets []engine.Offset, refused map[engine.Partition]error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range offsets {
		if refused[o.Partition] == nil {
			l.begun[o.Topic] = true
		}
	}
}

// claims are the partitions of a new assignment and where they begin. It reports
// committed offsets that do not exist any more: the engine goes on at the oldest
// message without a word (D12).
func (l *levers) claims(current map[string][]int32) []engine.Claim {
	var claims []engine.Claim
	var gone []error
	l.mu.Lock()
	for _, topic := range slices.Sorted(maps.Keys(current)) {
		for _, number := range current[topic] {
			p := engine.Partition{Topic: topic, Number: number}
			at := l.places[p]
			if at == nil {
				at = &place{unknown: true}
			}
			committed, has := l.group.member.committed(p)
			claim := engine.Claim{Partition: p, Offset: at.oldest, Guess: at.unknown && !has}
			switch {
			case at.fresh:
				claim.Offset, claim.Fresh = at.newest, true
				claim.Metadata = envelope{initial: l.initial[topic]}.encode(at.newest)
			case has && !at.gone:
				claim.Offset, claim.Committed, claim.Metadata = committed.Offset, true, committed.Metadata
				claim.HasEnd = !at.unknown
			case has && committed.Offset < at.oldest:
				claim.Metadata, claim.HasEnd = metadataFrom(at.oldest, committed.Metadata, committed.Offset), true
				gone = append(gone, fmt.Errorf("%v: the committed offset %d is gone, and so are %d messages: going on at the oldest, %d", p, committed.Offset, at.oldest-committed.Offset, at.oldest))
			case has:
				gone = append(gone, fmt.Errorf("%v: the committed offset %d lies beyond the end of the partition, %d (was it truncated, or the topic recreated?): going on at the oldest message, %d", p, committed.Offset, at.end, at.oldest))
			}
			if claim.HasEnd {
				claim.End = at.newest
			}
			claims = append(claims, claim)
		}
	}
	l.mu.Unlock()
	for _, err := range gone {
		l.group.session.Error(err)
	}
	return claims
}

// unreachable reports whether nobody could tell the offsets of a partition.
func (l *levers) unreachable(p engine.Partition) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.places[p]
	return at != nil && at.unknown
}
