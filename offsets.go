package kgroup

// Which offset may be committed, and committing it. The lanes advance their
// frontiers; the committer takes them to the broker. Committing is ours: the
// engine's own marks are never touched (docs/decisions/0003).

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// A frontier is the offset before which everything delivered has been settled. It
// moves over what is settled without a hole, in the order of delivery: offsets
// themselves have gaps (compaction, transaction markers, aborted messages). Only a lane with
// a crew needs one: others hand out one message at a time.
type frontier struct {
	next  int64 // the frontier; -1 until something was settled or committed
	open  []delivery
	head  int   // open[head:] have been delivered and do not lie below the frontier
	first int64 // the number of open[0], counted from the first delivery
}

type delivery struct {
	offset  int64
	settled bool
}

// deliver notes that the message at offset was handed out, and returns the number of the
// delivery. Offsets come in increasing order.
func (f *frontier) deliver(offset int64) (number int64) {
	if len(f.open) == cap(f.open) && f.head > len(f.open)/2 {
		f.open = f.open[:copy(f.open, f.open[f.head:])]
		f.first += int64(f.head)
		f.head = 0
	}
	f.open = append(f.open, delivery{offset: offset})
	return f.first + int64(len(f.open)-1)
}

// settle notes that the message of a delivery is done with, and moves the frontier.
func (f *frontier) settle(number int64) {
	f.open[number-f.first].settled = true
	for f.head < len(f.open) && f.open[f.head].settled {
		f.next = f.open[f.head].offset + 1
		f.head++
	}
	if f.head == len(f.open) {
		f.first += int64(f.head)
		f.open, f.head = f.open[:0], 0
	}
}

// ahead is what is settled beyond the frontier. Between two messages that were delivered one
// after the other is nothing: if both are settled, they are in one range.
func (f *frontier) ahead() ranges {
	var r ranges
	settled := false
	for _, d := range f.open[f.head:] {
		switch {
		case d.settled && settled:
			r[len(r)-1].to = d.offset + 1
		case d.settled:
			r = append(r, span{d.offset, d.offset + 1})
		}
		settled = d.settled
	}
	return r
}

// The committer takes frontiers to the broker, one request at a time, so that what
// a request says is never older than what the one before it said. Whoever waits for
// the turn finds his frontier in the next request together with everybody else's.
type committer struct {
	engine  engine.Engine
	turn    chan struct{}
	report  func(error)
	hook    func(offsets map[string]map[int32]int64, err error)
	refused map[engine.Partition]string // reported already; guarded by turn

	mu      sync.Mutex
	failing map[*lane]commitFailure // lanes whose last commit has failed
}

// A commitFailure says why a lane's last commit has failed, and when the first one
// did since the last that worked.
type commitFailure struct {
	err   error
	since time.Time
}

func newCommitter(e engine.Engine, hooks Hooks, report func(error)) *committer {
	return &committer{
		engine:  e,
		turn:    make(chan struct{}, 1),
		report:  report,
		hook:    hooks.Commit,
		refused: map[engine.Partition]string{},
		failing: map[*lane]commitFailure{},
	}
}

// commit takes the frontiers of g's lanes to the broker in one attempt: those that
// have moved, or all. It returns nil when nothing is left to commit.
func (c *committer) commit(ctx context.Context, g *generation, all bool) error {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	var offsets []engine.Offset
	for _, l := range g.lanes {
		if o, due := l.due(all, g.released.Load()); due {
			offsets = append(offsets, o)
		}
	}
	if len(offsets) == 0 {
		return nil
	}
	refused, err := c.engine.Commit(ctx, g.number, offsets)
	if ctx.Err() == nil { // else nobody knows: it was not waited for
		c.note(g, offsets, refused, err)
	}
	if err != nil { // nor what the broker knows
		for _, o := range offsets {
			g.lane(o.Partition).said.Store(&unknown)
		}
	}
	if err == nil {
		for _, o := range offsets {
			if refused[o.Partition] == nil {
				l := g.lane(o.Partition)
				l.said.Store(&o.Metadata)
				l.committed.Store(o.Offset)
				l.acknowledged()
			}
		}
		err = c.refusals(offsets, refused)
	}
	if c.hook != nil {
		c.hook(byTopic(offsets), err)
	}
	return err
}

// unknown is no metadata: what was said last has not been answered.
var unknown = "?"

// note remembers which lanes of g could not be committed; those of an earlier
// generation are nobody's business any more.
func (c *committer) note(g *generation, offsets []engine.Offset, refused map[engine.Partition]error, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.failing, func(l *lane, _ commitFailure) bool { return g.lane(l.partition) != l })
	for _, o := range offsets {
		l, why := g.lane(o.Partition), cmp.Or(err, refused[o.Partition])
		if why == nil || errors.Is(why, engine.ErrGone) {
			delete(c.failing, l)
			continue
		}
		failure := commitFailure{why, time.Now()}
		if before, failed := c.failing[l]; failed {
			failure.since = before.since
		}
		c.failing[l] = failure
	}
}

// failure is that of a lane's last commit; the zero value if it has worked.
func (c *committer) failure(l *lane) commitFailure {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failing[l]
}

// refusals makes one error of what was refused, and reports a refusal when it is
// new: committing is tried again every CommitInterval.
func (c *committer) refusals(offsets []engine.Offset, refused map[engine.Partition]error) error {
	var all []error
	for _, p := range slices.SortedFunc(maps.Keys(refused), comparePartitions) {
		err := fmt.Errorf("commit %v: %w", p, refused[p])
		all = append(all, err)
		if text := err.Error(); c.refused[p] != text {
			c.refused[p] = text
			c.report(err)
		}
	}
	for _, o := range offsets {
		if refused[o.Partition] == nil {
			delete(c.refused, o.Partition)
		}
	}
	if all == nil {
		return nil
	}
	return &refusedError{errors.Join(all...)}
}

// A refusedError says that the broker has answered, and will not answer otherwise:
// the topic is gone, say, or the right to commit.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

// commitUntil commits g until it has worked, was refused, or ctx ends. Between
// attempts it waits a little longer each time, and tells failed, if not nil.
func (c *committer) commitUntil(ctx context.Context, g *generation, failed func(error)) error {
	wait := 50 * time.Millisecond
	for {
		err := c.commit(ctx, g, false)
		if err == nil || errors.Is(err, engine.ErrGone) || errors.As(err, new(*refusedError)) || ctx.Err() != nil {
			return err
		}
		if failed != nil {
			failed(err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
		wait = min(2*wait, time.Second)
	}
}

// commitWhenReached goes on committing g while the coordinator cannot be reached, or
// has not answered when time was up: this member cannot join without it either, and
// what was settled would be repeated. It ends with the session, if not before.
func (c *committer) commitWhenReached(ctx context.Context, g *generation, err error) error {
	for errors.Is(err, engine.ErrUnreachable) || errors.Is(err, context.DeadlineExceeded) {
		time.Sleep(100 * time.Millisecond)
		err = c.commit(ctx, g, false)
	}
	return err
}

// failed reports a commit that will be made again, unless it is known: a refusal has
// been reported, a loss will be by the engine.
func (c *committer) failed(err error) {
	if !errors.As(err, new(*refusedError)) && !errors.Is(err, engine.ErrGone) {
		c.report(fmt.Errorf("commit: %w", err))
	}
}

func byTopic(offsets []engine.Offset) map[string]map[int32]int64 {
	topics := map[string]map[int32]int64{}
	for _, o := range offsets {
		if topics[o.Topic] == nil {
			topics[o.Topic] = map[int32]int64{}
		}
		topics[o.Topic][o.Number] = o.Offset
	}
	return topics
}
