package main

// The replay: a consumer of kgroup's that carries the plan out. A letter is settled when
// its target has it, and committed before the next one of its partition is begun.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/time/rate"

	"github.com/kgroup-go/kgroup"
)

// errReached is the cause that ends a run which has done everything.
var errReached = errors.New("the end of the plan")

// errGivenBack is what the handler returns for a letter that this run does not handle:
// it is beyond its end, or the run is over.
var errGivenBack = kgroup.RetryAfter(errors.New("not in this run"), 24*time.Hour)

type redrive struct {
	*plan
	ctx      context.Context //nolint:containedctx // the run's; a handler's own lasts until it has finished
	end      context.CancelCauseFunc
	consumer *kgroup.Consumer
	limiter  *rate.Limiter
	began    time.Time

	replayed, found atomic.Int64 // letters of the plan
	passed, stayed  atomic.Int64 // those between them: left out by a filter; for other reasons
	unknown         atomic.Bool  // whether one was written

	mu     sync.Mutex
	open   map[int32]bool // partitions that have letters to replay
	opened map[int32]bool // partitions whose commits say that they are being worked on
}

func replay(ctx context.Context, p *plan, c console) error {
	r := &redrive{plan: p, limiter: rate.NewLimiter(rate.Inf, 1), began: time.Now(), open: map[int32]bool{}, opened: map[int32]bool{}}
	if p.rate > 0 {
		r.limiter.SetLimit(rate.Limit(p.rate))
	}
	now, err := p.kafka.positions(ctx, p.group, p.topic)
	if err != nil {
		return err
	}
	if !maps.Equal(now, p.positions) { // the plan is out of date, and would be carried out twice
		return fmt.Errorf("the group %s has moved since the plan was made: is another redrive running? Run it again", p.group)
	}
	begin := map[int32]position{}
	for number, s := range p.spans {
		r.open[number] = true
		r.passed.Add(int64(s.before[skipped]))
		r.stayed.Add(int64(s.before[astray] + s.before[returning]))
		if at := p.positions[number]; at.offset != s.first {
			begin[number] = position{s.first, at.settled}
		}
	}
	if err := p.kafka.move(ctx, p.group, p.topic, begin); err != nil {
		return err
	}
	if r.consumer, err = kgroup.New(r.config(c)); err != nil {
		return err
	}
	running, end := context.WithCancelCause(ctx)
	r.ctx, r.end = running, end
	var telling sync.WaitGroup
	telling.Go(func() { r.tell(c) })
	err = r.consumer.Run(running)
	cause := context.Cause(running)
	end(nil)
	telling.Wait()
	if err == nil {
		r.settle(ctx)
	}
	c.say("%v, in %v", r, time.Since(r.began).Round(100*time.Millisecond))
	left := int64(p.total) - r.replayed.Load() - r.found.Load()
	switch {
	case err != nil:
		return err
	case errors.Is(cause, errReached):
		if left > 0 {
			c.say("%d letters are gone: Kafka has deleted them meanwhile", left)
		}
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("interrupted: %d letters are left; run it again to go on", left)
	default:
		return fmt.Errorf("%w\n%d letters are left; run it again to go on", cause, left)
	}
}

func (r *redrive) config(c console) kgroup.Config {
	config := r.kafka.config
	config.Group = r.group
	config.Topics = kgroup.Topics{r.topic: {Handler: kgroup.HandlerFunc(r.handle)}}
	config.Mode = kgroup.Partitions // one that has come to its end holds up no other
	config.CommitInterval = kgroup.CommitEveryMessage
	config.SessionTimeout = r.session
	config.ShutdownTimeout = 10 * time.Second
	config.Logger = slog.New(quiet{slog.NewTextHandler(c.notes, &slog.HandlerOptions{Level: slog.LevelWarn})})
	config.Hooks = kgroup.Hooks{
		RebalanceCompleted: r.rebalanced,
		Lost: func(string, int32, int64, error) {
			r.unknown.Store(true)
			r.end(fmt.Errorf("the group %s has taken partitions away: this run has lost its session", r.group))
		},
	}
	return config
}

// rebalanced ends the run if somebody else has got partitions of it: this run would wait
// for their end, and know nothing of it.
func (r *redrive) rebalanced(now kgroup.Rebalance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for number := range r.open {
		if !slices.Contains(now.Current[r.topic], number) {
			r.end(fmt.Errorf("another member has joined the group %s, and has %s/%d now: one redrive at a time", r.group, r.topic, number))
			return
		}
	}
}

// handle carries the plan out for one letter.
func (r *redrive) handle(ctx context.Context, msg kgroup.Message) error {
	s := r.spans[msg.Partition]
	switch {
	case r.ctx.Err() != nil, s == nil:
		return errGivenBack
	case msg.Offset > s.last: // the last one may be gone
		r.reached(msg.Partition)
		return errGivenBack
	}
	l := readLetter(msg)
	switch v, _, to := r.decide(l); v {
	case replays:
		if err := r.write(ctx, l, to); err != nil {
			return err
		}
		r.replayed.Add(1)
	case there:
		r.found.Add(1)
	case skipped:
		r.passed.Add(1)
	case astray, returning:
		r.stayed.Add(1)
	}
	if msg.Offset == s.last {
		r.reached(msg.Partition)
	}
	return nil
}

// reached notes that a partition has nothing left, and ends the run if none has. What
// has been handled is committed by its end.
func (r *redrive) reached(number int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, number)
	if len(r.open) == 0 {
		r.end(errReached)
	}
}

// fail ends the run. The letter stays, and so does everything behind it in its
// partition.
func (r *redrive) fail(l letter, to target, err error) error {
	r.end(fmt.Errorf("replay %s/%d at %d to %v: %w", r.topic, l.msg.Partition, l.msg.Offset, to, err))
	return errGivenBack
}

// write returns nil when all replicas of the target have the letter.
func (r *redrive) write(ctx context.Context, l letter, to target) error {
	if err := r.begin(ctx, l.msg.Partition); err != nil {
		return r.fail(l, to, fmt.Errorf("commit: %w", err))
	}
	turn, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)() //nolint:contextcheck // the run's ends before its handlers'
	if r.limiter.Wait(turn) != nil {
		return errGivenBack
	}
	written := make(chan error, 1)
	// Not with ctx: given up is not the same as not written.
	r.kafka.client.Produce(context.WithoutCancel(ctx), l.record(to), func(_ *kgo.Record, err error) { written <- err })
	select {
	case err := <-written:
		if err != nil {
			r.unknown.Store(true)
			return r.fail(l, to, explain(err))
		}
		return nil
	case <-ctx.Done():
		r.unknown.Store(true)
		return r.fail(l, to, fmt.Errorf("the brokers have not answered: %w", context.Cause(ctx)))
	}
}

// begin returns when the brokers know that this partition is being worked on: else a run
// that is killed with its first letter would leave the mark of the last one, which says
// that nothing is in doubt.
func (r *redrive) begin(ctx context.Context, number int32) error {
	r.mu.Lock()
	opened := r.opened[number]
	r.mu.Unlock()
	if opened {
		return nil
	}
	if err := r.consumer.Commit(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened[number] = true
	return nil
}

// explain adds what to check.
func explain(err error) error {
	hint := ""
	switch {
	case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID):
		hint = "the topic is gone"
	case errors.Is(err, kerr.MessageTooLarge):
		hint = "raise the topic's max.message.bytes, or leave the letter out with -from, -to or -key"
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		hint = "the ACLs must allow this user to write to the topic"
	case errors.Is(err, kerr.ClusterAuthorizationFailed):
		hint = "before Kafka 2.8, the ACLs must allow this user IdempotentWrite on the cluster"
	case errors.Is(err, kerr.InvalidTimestamp):
		hint = "the topic takes no messages that are so old: see message.timestamp.before.max.ms"
	default:
		return err
	}
	return fmt.Errorf("%w (%s)", err, hint)
}

// settle marks the positions of a run that knows of each letter whether it was written,
// so that the next one need not look. Should that fail, it looks.
func (r *redrive) settle(ctx context.Context) {
	if r.unknown.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	now, err := r.kafka.positions(ctx, r.group, r.topic)
	if err != nil {
		return
	}
	marks := map[int32]position{}
	for number, at := range now {
		// A letter that was in doubt before the run is so still if it was not reached.
		s := r.spans[number]
		if at.offset >= 0 && (r.positions[number].settled || s != nil && at.offset > s.first) {
			marks[number] = position{at.offset, true}
		}
	}
	_ = r.kafka.move(ctx, r.group, r.topic, marks)
}

// tell says now and then how far it is.
func (r *redrive) tell(c console) {
	ticker := time.NewTicker(r.progress)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			c.note("%v", r)
			r.lookForDeleted()
		case <-r.ctx.Done():
			return
		}
	}
}

// lookForDeleted notes partitions of which Kafka has deleted what was left: nothing
// of them may ever be delivered.
func (r *redrive) lookForDeleted() {
	starts, err := r.kafka.admin.ListStartOffsets(r.ctx, r.topic)
	if err != nil {
		return
	}
	for number, s := range r.spans {
		if start, ok := starts.Lookup(r.topic, number); ok && start.Err == nil && start.Offset > s.last {
			r.reached(number)
		}
	}
}

// String is how far it is.
func (r *redrive) String() string {
	replayed, found := r.replayed.Load(), r.found.Load()
	text := fmt.Sprintf("%d of %d letters: %d replayed, %.1f a second", replayed+found, r.total, replayed, float64(replayed)/time.Since(r.began).Seconds())
	if found > 0 {
		text += fmt.Sprintf("; %d were there already", found)
	}
	if passed := r.passed.Load(); passed > 0 {
		text += fmt.Sprintf("; %d left out", passed)
	}
	if stayed := r.stayed.Load(); stayed > 0 {
		text += fmt.Sprintf("; %d stay", stayed)
	}
	return text
}

// quiet is a log without the letters that were given back: that is no news.
type quiet struct{ slog.Handler }

func (q quiet) Handle(ctx context.Context, record slog.Record) error {
	givenBack := false
	record.Attrs(func(a slog.Attr) bool {
		err, ok := a.Value.Any().(error)
		givenBack = ok && errors.Is(err, errGivenBack)
		return !givenBack
	})
	if givenBack {
		return nil
	}
	return q.Handler.Handle(ctx, record)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }
func (q quiet) WithGroup(name string) slog.Handler       { return quiet{q.Handler.WithGroup(name)} }
