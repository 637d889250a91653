package kgroup

// The lanes of a generation: opening, sealing, committing them. The engine calls in
// here; from here messages are dispatched to lanes. How a generation ends is in
// drain.go. An assignment outlives its generations: it remembers the orphans.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// An assignment is the [engine.Session] of one Run.
type assignment struct {
	topics    *matcher
	group     string
	engine    engine.Engine
	hooks     Hooks
	log       *slog.Logger
	values    context.Context // of Run, without its cancellation
	committer *committer
	relief    *relief
	every     bool          // commit after every message
	opens     string        // who commits say has a lane open; empty: they do not
	patience  time.Duration // of Health, with a rebalance

	ready chan struct{} // closed after the first assignment

	mu      sync.Mutex
	current *generation
	changed chan struct{} // closed and replaced when current changes
	outcome error         // of the last generation that ended
	stopped bool          // no generation is opened any more
	// orphans are lanes of ended generations whose handler has not returned. Their
	// partitions wait for them: a message is never handled twice at once in one
	// process, and what the first handler does late cannot mix with a second.
	orphans map[engine.Partition]*lane
	state   State
	since   time.Time
	said    map[string]time.Time // errors logged lately, by text
	tellers map[engine.Partition]chan struct{}
	// breakers are kept while generations come and go: a rebalance ends no outage.
	breakers map[string]*breaker
	watching sync.WaitGroup // quarantines
}

// A generation is one period of membership: the lanes between two rebalances.
type generation struct {
	number   int64
	lanes    []*lane
	index    map[engine.Partition]*lane
	seal     context.CancelFunc // ends the lanes
	ending   bool               // somebody drains it or has lost it; guarded by assignment.mu
	released atomic.Bool        // drained: what is committed from now on gives it up
	over     chan struct{}      // closed when it has ended; the assignment's outcome is set
	err      error              // what became of its last commit; set before over is closed
}

func newAssignment(ctx context.Context, cfg Config, topics *matcher, e engine.Engine, log *slog.Logger, ready chan struct{}) *assignment {
	a := &assignment{
		topics:   topics,
		group:    cfg.Group,
		engine:   e,
		hooks:    cfg.Hooks,
		log:      log,
		values:   context.WithoutCancel(ctx),
		every:    cfg.CommitInterval == CommitEveryMessage,
		patience: max(cfg.SessionTimeout, cfg.RebalanceTimeout) + joinMargin, // as long as JoinGroup may wait for others
		ready:    ready,
		relief:   newRelief(),
		changed:  make(chan struct{}),
		orphans:  map[engine.Partition]*lane{},
		state:    Starting,
		since:    time.Now(),
		said:     map[string]time.Time{},
		tellers:  map[engine.Partition]chan struct{}{},
		breakers: map[string]*breaker{},
	}
	a.committer = newCommitter(e, cfg.Hooks, a.Error)
	return a
}

// RebalanceStarted implements [engine.Session].
func (a *assignment) RebalanceStarted(owned map[string][]int32) {
	a.log.Info("rebalance started", "owned", owned)
	if a.hooks.RebalanceStarted != nil {
		a.hooks.RebalanceStarted(owned)
	}
}

// RebalanceFailed implements [engine.Session].
func (a *assignment) RebalanceFailed(err error) {
	if a.isNew(err) {
		a.log.Warn("rebalance failed", "error", err)
	}
	if a.hooks.RebalanceFailed != nil {
		a.hooks.RebalanceFailed(err)
	}
}

// Error implements [engine.Session].
func (a *assignment) Error(err error) {
	if a.isNew(err) {
		a.log.Warn("error, going on", "error", err)
	}
	if a.hooks.Error != nil {
		a.hooks.Error(err)
	}
}

// quiet is how long an error of the same words is not logged again: a broker that
// is down says the same several times a second. Hooks get every one.
const quiet = 10 * time.Second

// localAddr is what differs between the errors of two connections to one broker.
var localAddr = regexp.MustCompile(`\S+->`)

// isNew reports whether an error was not logged in that time.
func (a *assignment) isNew(err error) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, text := time.Now(), localAddr.ReplaceAllString(err.Error(), "->")
	if now.Sub(a.said[text]) < quiet {
		return false
	}
	if len(a.said) > 100 {
		clear(a.said)
	}
	a.said[text] = now
	return true
}

// Assigned implements [engine.Session]: it opens a generation.
func (a *assignment) Assigned(ctx context.Context, number int64, claims []engine.Claim, change engine.Change) []engine.Lane {
	if !a.waitForTheLast(ctx) {
		return nil
	}
	ctx, seal := context.WithCancel(ctx)
	g := &generation{
		number: number,
		index:  map[engine.Partition]*lane{},
		seal:   seal,
		over:   make(chan struct{}),
	}
	for _, claim := range claims {
		l := a.newLane(ctx, g, claim)
		g.lanes = append(g.lanes, l)
		g.index[l.partition] = l
	}
	a.log.Info("rebalance completed", "generation", number, "current", change.Current, "claimed", change.Claimed, "released", change.Released)
	if a.hooks.RebalanceCompleted != nil {
		a.hooks.RebalanceCompleted(Rebalance(change))
	}
	if err := a.commitOpening(ctx, g, claims); err != nil {
		a.Error(fmt.Errorf("commit where partitions are opened: %w", err))
		a.discard(ctx, g)
		return nil
	}
	if a.hooks.Assign != nil {
		for _, l := range g.lanes {
			l.tell(func() { a.hooks.Assign(l.partition.Topic, l.partition.Number, l.start) })
		}
	}
	if !a.open(ctx, g) {
		a.revoked(g.lanes)
		a.discard(ctx, g)
		return nil
	}
	a.isolate(ctx, g)
	lanes := make([]engine.Lane, len(g.lanes))
	for i, l := range g.lanes {
		lanes[i] = l
		go l.work() //nolint:contextcheck // handlers have the context of their lane, which outlives that of the opening
	}
	return lanes
}

// isolate begins a quarantine, if a lane of g was found open.
func (a *assignment) isolate(sealed context.Context, g *generation) {
	record := func(l *lane) *note {
		if err := a.committer.commit(sealed, g, false); err != nil && sealed.Err() == nil {
			a.committer.failed(err)
		}
		return l.saved.Load().note
	}
	a.mu.Lock()
	orphans := slices.Collect(maps.Values(a.orphans))
	a.mu.Unlock()
	q := newQuarantine(sealed, g.lanes, orphans, record, a.engine.HighWatermarks)
	if q == nil {
		return
	}
	a.log.Warn("a member of the group has died, or lost its session: the messages it may have had in its hands are handled one at a time", "partitions", len(q.lanes))
	for _, l := range g.lanes {
		l.quarantine = q
	}
	a.watching.Go(q.watch)
}

// waitForTheLast waits until the generation before has ended, its hooks included: its
// orphans must be known before their partitions are opened again, and Lost be told
// before Assign. It reports false if ctx ends first.
func (a *assignment) waitForTheLast(ctx context.Context) bool {
	a.mu.Lock()
	last := a.current
	a.mu.Unlock()
	if last == nil {
		return true
	}
	select {
	case <-last.over:
		return true
	case <-ctx.Done():
		return false
	}
}

// commitOpening commits that the lanes are open, before the first of their messages can
// kill anybody, and the positions that were found under Start: Newest. Without these, a
// rebalance before the first commit would begin at newer messages still, and skip what
// lies between: they are tried until it works. The rest can wait for the next commit,
// unless that comes with a message only.
func (a *assignment) commitOpening(ctx context.Context, g *generation, claims []engine.Claim) error {
	commit := func() error { return a.committer.commit(ctx, g, false) }
	if a.every || slices.ContainsFunc(claims, func(c engine.Claim) bool { return c.Fresh }) {
		commit = func() error { return a.committer.commitUntil(ctx, g, a.committer.failed) }
	}
	err := commit()
	if err != nil && ctx.Err() == nil && !errors.Is(err, engine.ErrGone) {
		a.committer.failed(err) // tried again every CommitInterval, as what was refused for single partitions
		return nil
	}
	return err
}

// open publishes a generation, unless it is over already.
func (a *assignment) open(ctx context.Context, g *generation) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ctx.Err() != nil || a.stopped {
		return false
	}
	maps.DeleteFunc(a.orphans, func(_ engine.Partition, orphan *lane) bool { return isClosed(orphan.done) })
	for _, l := range g.lanes {
		if orphan := a.orphans[l.partition]; orphan != nil {
			l.after = orphan.done
		}
	}
	a.current, a.outcome = g, nil
	a.setState(Consuming)
	a.announce()
	select {
	case <-a.ready:
	default:
		close(a.ready)
	}
	return true
}

// envelope is what is believed of what the last owner has committed.
func (a *assignment) envelope(claim engine.Claim, log *slog.Logger) envelope {
	env, err := parseEnvelope(claim.Metadata, claim.Offset)
	if err != nil {
		log.Warn("committed metadata ignored", "error", err)
	}
	if known := env.end(); claim.HasEnd && known > claim.End {
		a.Error(fmt.Errorf("%v: its metadata speaks of messages up to %d, and it ends at %d (was it truncated, or the topic recreated?): what it says of messages is ignored", claim.Partition, known-1, claim.End))
		env.forgetMessages()
	}
	return env
}

func (a *assignment) newLane(sealed context.Context, g *generation, claim engine.Claim) *lane {
	topic, name, err := a.topics.match(claim.Topic)
	log := a.log.With("topic", claim.Topic, "partition", claim.Number)
	if err == nil && name == "" {
		err = fmt.Errorf("topic %s was assigned, but no handler is configured for it", claim.Topic)
	}
	if err != nil { // that, or two patterns match: nobody knows whose message it is
		a.Error(err)
		topic = Topic{Handler: refuse(err), Workers: 1, Queue: defaultQueue, Retry: Retry{MinBackoff: time.Second, MaxBackoff: 30 * time.Second}}
	}
	l := &lane{
		partition: claim.Partition,
		topic:     topic,
		group:     a.group,
		opens:     a.opens,
		breaker:   a.breaker(claim.Topic, topic),
		publish:   a.engine.Publish,
		call:      topic.call(),
		env:       a.envelope(claim, log),
		start:     claim.Offset,
		sealed:    sealed.Done(),
		after:     closedChan,
		done:      make(chan struct{}),
		log:       log,
		hooks:     &a.hooks,
		telling:   a.teller(claim.Partition),
	}
	l.hand = &hand{lane: l}
	l.ctx, l.cancel = context.WithCancelCause(a.values)
	l.settled.Store(-1)
	l.committed.Store(-1)
	if a.every {
		l.everyMessage = func(l *lane, committed func() bool) { a.commitLane(sealed, g, l, committed) }
	}
	first := l.firstNote()
	l.note.Store(first)
	l.inherits = first.says(claim.Offset)
	if offsets := first.settled.len(); offsets > 0 {
		log.Debug("what an owner before has settled is not handled again", "offsets", offsets)
	}
	l.saved.Store(&offer{note: first})
	l.crew = newCrew(l)
	queued := topic.Queue
	if l.crew != nil {
		queued -= l.crew.limit
	} else if !a.every { // else each message waits for the broker's answer, and is not handled where it is polled
		l.direct.relieve, l.direct.patience, l.direct.relief = claim.Relieve, claim.Patience, a.relief
	}
	l.direct.start()
	l.queue = newQueue(queued)
	l.queue.yield = claim.Single
	said := claim.Metadata
	if l.opens == "" {
		said = l.metadata(first, claim.Offset, false)
	}
	l.said.Store(&said)
	switch {
	case claim.Committed:
		l.settled.Store(claim.Offset)
		l.committed.Store(claim.Offset)
	case claim.Fresh, l.opens != "" && !claim.Guess:
		l.settled.Store(claim.Offset)
	}
	return l
}

// breaker is that of a topic. One without settings never opens.
func (a *assignment) breaker(name string, topic Topic) *breaker {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.breakers[name] == nil {
		a.breakers[name] = newBreaker(name, topic.Breaker, a.log, a.hooks.Breaker)
	}
	return a.breakers[name]
}

// teller is what lanes of one partition take turns with when they call hooks.
func (a *assignment) teller(p engine.Partition) chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tellers[p] == nil {
		a.tellers[p] = make(chan struct{}, 1)
	}
	return a.tellers[p]
}

// commitLane returns when what the lane has settled is committed, or the lane was sealed:
// then its drain commits it.
func (a *assignment) commitLane(sealed context.Context, g *generation, l *lane, committed func() bool) {
	for {
		_ = a.committer.commitUntil(sealed, g, a.committer.failed) // reported there
		if committed() {
			return
		}
		if sealed.Err() != nil { // the seal is on its way; the next message must not be quicker
			l.close()
			return
		}
		timer := time.NewTimer(time.Second) // refused, or the loss of the generation is about to be noticed
		select {
		case <-timer.C:
		case <-sealed.Done():
			timer.Stop()
		}
	}
}

// refuse is the handler of a topic that has none.
func refuse(err error) Handler {
	return HandlerFunc(func(context.Context, Message) error { return Permanent(err) })
}

// Seal implements [engine.Session].
func (a *assignment) Seal(number int64) {
	a.mu.Lock()
	g := a.current
	if g == nil || g.number != number {
		a.mu.Unlock()
		return
	}
	a.setState(Rebalancing)
	a.mu.Unlock()
	g.close()
}

// close seals the lanes: their workers end after the message they are at.
func (g *generation) close() {
	for _, l := range g.lanes {
		l.close()
	}
	g.seal()
}

// discard ends a generation that was never opened, and takes back that its lanes are.
func (a *assignment) discard(opening context.Context, g *generation) {
	g.released.Store(true)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(opening), commitTime)
	defer cancel()
	if err := a.committer.commit(ctx, g, true); err != nil && !errors.Is(err, engine.ErrGone) {
		a.committer.failed(err)
	}
	g.close()
	for _, l := range g.lanes {
		l.cancel(ErrPartitionLost)
	}
}

func (g *generation) lane(p engine.Partition) *lane { return g.index[p] }

// commit takes every lane's frontier to the broker and returns when it has
// answered. While a rebalance is under way it waits for the outcome.
func (a *assignment) commit(ctx context.Context) error {
	for {
		a.mu.Lock()
		g, changed, outcome := a.current, a.changed, a.outcome
		a.mu.Unlock()
		if g == nil {
			if outcome != nil {
				return outcome
			}
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		err := a.committer.commitUntil(ctx, g, a.committer.failed)
		if !errors.Is(err, engine.ErrGone) {
			return err
		}
		select {
		case <-g.over:
			return g.err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tick commits what has moved, or all: so often that the offsets of idle
// partitions do not expire (before Kafka 2.1 they do, after a day).
func (a *assignment) tick(ctx context.Context, all bool) {
	a.mu.Lock()
	g := a.current
	a.mu.Unlock()
	if g == nil {
		return
	}
	if err := a.committer.commit(ctx, g, all); err != nil && ctx.Err() == nil {
		a.committer.failed(err)
	}
}

func (a *assignment) setState(s State) { // with a.mu
	if a.state != s && a.state != Stopping {
		a.state, a.since = s, time.Now()
	}
}

func (a *assignment) announce() { // with a.mu
	close(a.changed)
	a.changed = make(chan struct{})
}

func comparePartitions(a, b engine.Partition) int {
	return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Number, b.Number))
}

var closedChan = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()
