package kgroup

// How a generation ends: drained, because a rebalance or the shutdown gives its
// partitions up in good order, or lost. Then its lanes take no message any more
// (lane.go), what they have settled is committed (offsets.go), and handlers that do
// not return make orphans.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// commitTime is what a rebalance's drain has for its last commit if the last handler
// has returned late; the budget of a drain leaves it out.
const commitTime = time.Second

// numbered is the open generation if that is its number, else nil.
func (a *assignment) numbered(number int64) *generation {
	a.mu.Lock()
	defer a.mu.Unlock()
	if g := a.current; g != nil && g.number == number {
		return g
	}
	return nil
}

// Revoke implements [engine.Session]. While the coordinator is away it goes on trying to
// commit: nobody can join without it either.
func (a *assignment) Revoke(number int64, cancelAt, until time.Time) {
	g := a.numbered(number)
	if g == nil {
		return
	}
	if least := time.Now().Add(lostGrace); until.Before(least) { // the coordinator was away, say: an idle lane is no orphan
		until = least
	}
	drain, cancel := context.WithDeadline(context.Background(), until)
	defer cancel()
	first := a.drain(drain, g, cancelAt, ErrPartitionLost)
	if least := time.Now().Add(commitTime); until.Before(least) {
		until = least
	}
	commit, cancel := context.WithDeadline(context.Background(), until)
	defer cancel()
	if first {
		err := a.committer.commitUntil(commit, g, nil)
		a.over(g, lastCommit(a.committer.commitWhenReached(context.Background(), g, err)))
	}
	if err := g.outcome(commit); err != nil {
		a.Error(err)
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
		errs = append(errs, a.giveUp(ctx, g, cancelAt, commitBy))
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

// giveUp drains g for good, and returns what became of its last commit by commitBy.
func (a *assignment) giveUp(ctx context.Context, g *generation, cancelAt, commitBy time.Time) error {
	first := a.drain(ctx, g, cancelAt, ErrShutdownTimeout)
	commit, cancel := context.WithDeadline(context.WithoutCancel(ctx), commitBy)
	defer cancel()
	if first {
		a.over(g, lastCommit(a.committer.commitUntil(commit, g, nil)))
	}
	return g.outcome(commit)
}

// drain seals g and waits for the handlers at work. At cancelAt they are cancelled with
// cause; when ctx ends they are given up, and their lanes become orphans. It reports
// whether the last commit is the caller's: of two (a rebalance during the shutdown) it
// is the first one's, and nobody's when the generation is lost.
func (a *assignment) drain(ctx context.Context, g *generation, cancelAt time.Time, cause error) bool {
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
	if !a.end(g) {
		return false
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
	g.released.Store(true)
	return true
}

// stopBreakers ends what breakers have begun.
func (a *assignment) stopBreakers() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range a.breakers {
		b.stop()
	}
}

func lastCommit(err error) error {
	if err != nil {
		return fmt.Errorf("kgroup: last commit before the partitions are given up: %w", err)
	}
	return nil
}

// outcome waits for the end of g, and returns what became of its last commit.
func (g *generation) outcome(ctx context.Context) error {
	select {
	case <-g.over:
		return g.err
	default:
	}
	select {
	case <-g.over:
		return g.err
	case <-ctx.Done():
		return errors.New("kgroup: the last commit before the partitions are given up has not been answered")
	}
}

// Lost implements [engine.Session].
func (a *assignment) Lost(number int64, cause error) {
	g := a.numbered(number)
	if g == nil || !a.end(g) {
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
// are said not to have, and of a drain that begins too late: enough for one that looks
// at its context.
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
		if l.atWork() {
			a.orphans[l.partition] = l
		}
	}
	a.mu.Unlock()
	for _, l := range lanes {
		if l.atWork() {
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
