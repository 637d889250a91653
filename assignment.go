package kgroup

// The lanes of a generation: open, drain, lose. The engine calls in here; from
// here messages are dispatched to lanes. An assignment outlives its generations:
// it remembers the orphans.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// An assignment is the [engine.Session] of one Run.
type assignment struct {
	topics    *matcher
	hooks     Hooks
	log       *slog.Logger
	values    context.Context // of Run, without its cancellation
	committer *committer
	every     bool          // commit after every message
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
}

// A generation is one period of membership: the lanes between two rebalances.
type generation struct {
	number int64
	lanes  []*lane
	index  map[engine.Partition]*lane
	seal   context.CancelFunc // ends the lanes
	ending bool               // somebody drains it or has lost it; guarded by assignment.mu
	over   chan struct{}      // closed when it has ended; the assignment's outcome is set
	err    error              // what became of its last commit; set before over is closed
}

func newAssignment(ctx context.Context, cfg Config, topics *matcher, e engine.Engine, log *slog.Logger, ready chan struct{}) *assignment {
	a := &assignment{
		topics:   topics,
		hooks:    cfg.Hooks,
		log:      log,
		values:   context.WithoutCancel(ctx),
		every:    cfg.CommitInterval == CommitEveryMessage,
		patience: cfg.SessionTimeout,
		ready:    ready,
		changed:  make(chan struct{}),
		orphans:  map[engine.Partition]*lane{},
		state:    Starting,
		since:    time.Now(),
		said:     map[string]time.Time{},
		tellers:  map[engine.Partition]chan struct{}{},
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

// isNew reports whether an error was not logged in that time.
func (a *assignment) isNew(err error) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, text := time.Now(), err.Error()
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
	if err := a.commitFresh(ctx, g); err != nil {
		a.Error(fmt.Errorf("commit where the group begins: %w", err))
		g.discard()
		return nil
	}
	if a.hooks.Assign != nil {
		for _, l := range g.lanes {
			l.tell(func() { a.hooks.Assign(l.partition.Topic, l.partition.Number, l.start) })
		}
	}
	if !a.open(ctx, g) {
		a.revoked(g.lanes)
		g.discard()
		return nil
	}
	lanes := make([]engine.Lane, len(g.lanes))
	for i, l := range g.lanes {
		lanes[i] = l
		go l.work()
	}
	return lanes
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

// commitFresh commits the positions that were found, not committed before: without
// that, a rebalance before the first commit would begin at newer messages still,
// and skip what lies between.
func (a *assignment) commitFresh(ctx context.Context, g *generation) error {
	err := a.committer.commitUntil(ctx, g, a.committer.failed)
	if err != nil && ctx.Err() == nil && !errors.Is(err, engine.ErrGone) {
		return nil // refused for single partitions: reported, and tried again every CommitInterval
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

func (a *assignment) newLane(sealed context.Context, g *generation, claim engine.Claim) *lane {
	topic, name, err := a.topics.match(claim.Topic)
	log := a.log.With("topic", claim.Topic, "partition", claim.Number)
	if err == nil && name == "" {
		err = fmt.Errorf("topic %s was assigned, but no handler is configured for it", claim.Topic)
	}
	if err != nil { // that, or two patterns match: nobody knows whose message it is
		a.Error(err)
		topic = Topic{Handler: refuse(err), Queue: defaultQueue, Retry: Retry{MinBackoff: time.Second, MaxBackoff: 30 * time.Second}}
	}
	env, err := parseEnvelope(claim.Metadata)
	if err != nil {
		log.Warn("committed metadata ignored", "error", err)
	}
	l := &lane{
		partition: claim.Partition,
		topic:     topic,
		env:       env,
		start:     claim.Offset,
		queue:     newQueue(topic.Queue),
		sealed:    sealed.Done(),
		after:     closedChan,
		done:      make(chan struct{}),
		log:       log,
		hooks:     &a.hooks,
		telling:   a.teller(claim.Partition),
		frontier:  frontier{next: -1},
	}
	l.queue.yield = claim.Single
	l.ctx, l.cancel = context.WithCancelCause(a.values)
	l.settled.Store(-1)
	l.committed.Store(-1)
	switch {
	case claim.Fresh:
		l.settled.Store(claim.Offset)
	case claim.Committed:
		l.settled.Store(claim.Offset)
		l.committed.Store(claim.Offset)
	}
	if a.every {
		l.everyMessage = func(l *lane) { a.commitLane(sealed, g, l) }
	}
	return l
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

// commitLane returns when the lane's frontier has been committed, or the lane was
// sealed: then its drain commits it.
func (a *assignment) commitLane(sealed context.Context, g *generation, l *lane) {
	for {
		_ = a.committer.commitUntil(sealed, g, a.committer.failed) // reported there
		if l.committed.Load() >= l.settled.Load() {
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

// discard ends a generation that was never opened.
func (g *generation) discard() {
	g.close()
	for _, l := range g.lanes {
		l.cancel(ErrPartitionLost)
	}
}

func (g *generation) lane(p engine.Partition) *lane { return g.index[p] }

// Revoke implements [engine.Session]: it drains a generation.
func (a *assignment) Revoke(number int64, cancelAt, until time.Time) {
	a.mu.Lock()
	g := a.current
	a.mu.Unlock()
	if g == nil || g.number != number {
		return
	}
	ctx, cancel := context.WithDeadline(context.Background(), until)
	defer cancel()
	if err := a.drain(ctx, g, cancelAt, time.Time{}, ErrPartitionLost); err != nil {
		a.Error(err)
	}
}

// commitTime is what a rebalance's drain has for its last commit if the last handler
// has returned late; the budget of a drain leaves it out.
const commitTime = time.Second

// drain seals g, waits for the handlers at work, and commits, until commitBy (zero:
// until ctx ends, or commitTime). At cancelAt they are cancelled with cause; when ctx ends they are given up: their
// lanes become orphans. Whoever comes second (a rebalance during the shutdown) waits for the
// outcome of the first.
func (a *assignment) drain(ctx context.Context, g *generation, cancelAt, commitBy time.Time, cause error) error {
	g.close()
	cancel := time.AfterFunc(time.Until(cancelAt), func() {
		for _, l := range g.lanes {
			l.cancel(cause)
		}
	})
	defer cancel.Stop()
	for _, l := range g.lanes {
		select {
		case <-l.done:
			continue
		case <-ctx.Done():
		case <-g.over: // lost, or drained by somebody else
		}
		break
	}
	rebalance := commitBy.IsZero()
	if rebalance {
		commitBy, _ = ctx.Deadline()
		if least := time.Now().Add(commitTime); commitBy.Before(least) {
			commitBy = least
		}
	}
	commit, stop := context.WithDeadline(context.WithoutCancel(ctx), commitBy)
	defer stop()
	if !a.end(g) {
		select {
		case <-g.over:
			return g.err
		case <-commit.Done():
			return errors.New("kgroup: the last commit before the partitions are given up has not been answered")
		}
	}
	var orphans, drained []*lane
	for _, l := range g.lanes {
		if isClosed(l.done) {
			drained = append(drained, l)
		} else {
			orphans = append(orphans, l)
		}
	}
	a.abandon(orphans, cause, 0)
	a.revoked(drained)
	err := a.committer.commitUntil(commit, g, nil)
	if rebalance {
		err = a.committer.commitWhenReached(context.WithoutCancel(ctx), g, err)
	}
	if err != nil {
		err = fmt.Errorf("kgroup: last commit before the partitions are given up: %w", err)
	}
	a.over(g, err)
	return err
}

// Lost implements [engine.Session].
func (a *assignment) Lost(number int64, cause error) {
	a.mu.Lock()
	g := a.current
	a.mu.Unlock()
	if g == nil || g.number != number || !a.end(g) {
		return
	}
	g.close()
	a.mu.Lock()
	a.setState(Rebalancing)
	a.mu.Unlock()
	a.log.Error("partitions lost", "error", cause)
	err := fmt.Errorf("%w: %w", ErrPartitionLost, cause)
	a.abandon(g.lanes, err, lostGrace)
	a.over(g, err)
}

// end reports whether the caller is the one who ends g.
func (a *assignment) end(g *generation) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	first := !g.ending
	g.ending = true
	return first
}

// over says that g has ended, and how.
func (a *assignment) over(g *generation, err error) {
	g.err = err
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current == g {
		a.current, a.outcome = nil, err
		a.announce()
	}
	close(g.over)
}

// lostGrace is what the handlers of a lost generation have to return in before they
// are said not to have: enough for one that looks at its context.
const lostGrace = 100 * time.Millisecond

func waitAtMost(d time.Duration, lanes []*lane) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for _, l := range lanes {
		if !isClosed(l.after) {
			continue
		}
		select {
		case <-l.done:
		case <-timer.C:
			return
		}
	}
}

// abandon cancels the lanes' handlers and gives the lanes up. Those whose handler is
// still at work become orphans.
func (a *assignment) abandon(lanes []*lane, cause error, grace time.Duration) {
	for _, l := range lanes {
		l.cancel(cause) // all of them before the first hook, which may take its time
	}
	if grace > 0 {
		waitAtMost(grace, lanes)
	}
	a.mu.Lock()
	for _, l := range lanes {
		if isClosed(l.after) && !isClosed(l.done) { // else it is idle, or waits for an orphan itself
			a.orphans[l.partition] = l
		}
	}
	a.mu.Unlock()
	for _, l := range lanes {
		if isClosed(l.after) && !isClosed(l.done) {
			l.log.Error("handler has not returned: its partition is given up", "offset", l.position())
		}
		if a.hooks.Lost != nil {
			l.tell(func() { a.hooks.Lost(l.partition.Topic, l.partition.Number, l.position(), cause) })
		}
	}
}

// revoked tells the hook that lanes were drained.
func (a *assignment) revoked(lanes []*lane) {
	for _, l := range lanes {
		l.cancel(ErrPartitionLost)
		if a.hooks.Revoke != nil {
			l.tell(func() { a.hooks.Revoke(l.partition.Topic, l.partition.Number, l.position()) })
		}
	}
}

// shutdown drains for good.
func (a *assignment) shutdown(ctx context.Context, cancelAt, commitBy time.Time) error {
	a.mu.Lock()
	a.stopped = true
	a.setState(Stopping)
	g := a.current
	a.mu.Unlock()
	var errs []error
	if g != nil {
		errs = append(errs, a.drain(ctx, g, cancelAt, commitBy, ErrShutdownTimeout))
	}
	a.mu.Lock()
	orphans := maps.Clone(a.orphans)
	a.mu.Unlock()
	for _, p := range slices.SortedFunc(maps.Keys(orphans), comparePartitions) {
		select {
		case <-orphans[p].done:
		case <-ctx.Done():
		}
		if !isClosed(orphans[p].done) {
			errs = append(errs, fmt.Errorf("kgroup: the handler of %v has not returned after its context was cancelled; it was at or after offset %d, which is not committed", p, orphans[p].position()))
		}
	}
	return errors.Join(errs...)
}

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
