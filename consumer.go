package kgroup

// The lifecycle: New, Run, shutting down. Run starts the engine (group.go), which
// drives the assignment (assignment.go), and ends both in good order.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// A Consumer is one member of a consumer group. It is made by [New] and runs once.
type Consumer struct {
	config  Config
	topics  *matcher
	log     *slog.Logger
	ready   chan struct{}
	id      string // tells this process from others, in what is committed
	started atomic.Bool
	engine  func(*Consumer) engine.Engine // newGroup, or a fake in tests

	mu         sync.Mutex
	running    context.Context // of Commit: ends with Run; nil before
	assignment *assignment
	group      engine.Engine
	ended      bool
	endedAt    time.Time
}

// New returns a Consumer for cfg, which is copied. It does no I/O and starts no
// goroutine. Its error joins every mistake in cfg, each a [*ConfigError] that names
// its field.
func New(cfg Config) (*Consumer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	cfg.TLS = hideKeys(cfg.TLS)
	built, err := cfg.engineConfig()
	if err != nil {
		return nil, err
	}
	return &Consumer{
		config: cfg,
		topics: newMatcher(cfg.Topics),
		log:    cfg.Logger.With("group", cfg.Group),
		ready:  make(chan struct{}),
		id:     fmt.Sprintf("%08x", rand.Uint32()),
		engine: func(c *Consumer) engine.Engine {
			return newGroup(c.config, c.topics, built, c.log)
		},
	}, nil
}

// Run joins the group and handles messages until ctx is cancelled. It returns when
// everything it started has ended; a second call returns [ErrAlreadyRun].
//
// Until the first assignment, an error that a person must mend (an address, a name, a
// right, a version) ends Run at once, and so does a cluster of which no address can
// be reached. After that everything is survived: retried with backoff, and reported
// to Config.Hooks, the log, and Health.
//
// When ctx is cancelled no further message is handed out. Handlers at work are left
// to finish; when a fifth of Config.ShutdownTimeout is left (5 s at most) their
// context is cancelled with [ErrShutdownTimeout]. Then what was settled is committed,
// and this member leaves the group. Run returns nil after that, also when a message
// that could not be handled yet was left to its next owner, and when ctx was cancelled
// before the start; and an error when a handler did not return or the last commit
// failed.
func (c *Consumer) Run(ctx context.Context) error { //nolint:contextcheck // a generation ends by itself, not with a caller
	if c.started.Swap(true) {
		return ErrAlreadyRun
	}
	running, stop := context.WithCancelCause(context.Background())
	defer stop(ErrNotRunning)
	group := c.engine(c)
	a := newAssignment(ctx, c.config, c.topics, group, c.log, c.ready)
	if c.config.CommitInterval >= 0 {
		a.opens = c.id
	}
	c.mu.Lock()
	c.running, c.assignment, c.group = running, a, group
	c.mu.Unlock()
	defer c.end()
	if ctx.Err() != nil {
		return nil
	}
	c.config.warnInsecure(c.log)
	if err := group.Start(ctx, a); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	var ticking sync.WaitGroup
	ticking.Go(func() { c.commitPeriodically(running, a) })
	ticking.Go(func() { a.relief.run(running) })
	var refused error
	select {
	case <-ctx.Done():
	case refused = <-group.Failed():
	}
	err := c.shutdown(a, group) //nolint:contextcheck // ctx is cancelled already; the shutdown has a deadline of its own
	stop(ErrNotRunning)
	ticking.Wait()
	a.watching.Wait()
	a.stopBreakers()
	if refused != nil {
		return refused
	}
	return err
}

// shutdown drains, commits, and leaves, within ShutdownTimeout.
func (c *Consumer) shutdown(a *assignment, group engine.Engine) error {
	began := time.Now()
	end := began.Add(c.config.ShutdownTimeout)
	grace := c.config.shutdownGrace()
	reserve := c.config.ShutdownTimeout - grace
	c.log.Info("consumer stops", "shutdown_timeout", c.config.ShutdownTimeout)
	drain, cancel := context.WithDeadline(context.Background(), end.Add(-reserve*3/5)) // Run's is cancelled already
	defer cancel()
	err := a.shutdown(drain, began.Add(grace), end.Add(-reserve*3/10))
	leave, cancel := context.WithDeadline(context.Background(), end)
	defer cancel()
	if left := group.Leave(leave); left != nil {
		c.log.Warn("leaving the group failed", "error", left)
	}
	c.log.Info("consumer stopped", "took", time.Since(began))
	return err
}

// refreshOffsets is how often offsets that have not moved are committed again.
// Before Kafka 2.1 the offsets of an idle partition expire after a day.
const refreshOffsets = time.Hour

func (c *Consumer) commitPeriodically(ctx context.Context, a *assignment) {
	interval := c.config.CommitInterval
	if interval < 0 {
		return
	}
	if interval == CommitEveryMessage {
		interval = refreshOffsets
	}
	refreshed := time.Now() // before the ticker, whose first tick may be due for it
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			all := now.Sub(refreshed) >= refreshOffsets
			if all {
				refreshed = now
			}
			a.tick(ctx, all)
		case <-ctx.Done():
			return
		}
	}
}

func (c *Consumer) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended, c.endedAt = true, time.Now()
}

// Ready is closed after the first assignment, also if it is empty because the group
// has more members than partitions.
func (c *Consumer) Ready() <-chan struct{} { return c.ready }

// Commit commits what has been settled in every partition, and returns when the
// broker has answered; it tries again until ctx ends, but for partitions whose offset
// the broker has refused, which its error names. It may be called from anywhere, a
// handler included: the message being handled is not settled yet, and not part of it.
// During a rebalance it waits for the next assignment, and after a loss it returns
// [ErrPartitionLost]. Before Run has started and after it has ended it returns
// [ErrNotRunning].
func (c *Consumer) Commit(ctx context.Context) error {
	c.mu.Lock()
	running, a, ended := c.running, c.assignment, c.ended
	c.mu.Unlock()
	if running == nil || ended || running.Err() != nil {
		return ErrNotRunning
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(running, func() { cancel(ErrNotRunning) })() //nolint:contextcheck // it is the caller's, cut short by the end of Run
	err := a.commit(ctx)
	if err != nil && errors.Is(context.Cause(ctx), ErrNotRunning) {
		return ErrNotRunning
	}
	return err
}

// Health is a snapshot for probes. It does no I/O.
func (c *Consumer) Health() Health {
	c.mu.Lock()
	a, group, ended, endedAt := c.assignment, c.group, c.ended, c.endedAt
	c.mu.Unlock()
	switch {
	case a == nil:
		return Health{State: Idle}
	case ended:
		return Health{State: Stopped, Since: endedAt}
	}
	return a.health(group)
}
