package kgroup

// The engine of the tests: a fakeEngine does what a test tells it to, when it is
// told, and writes down every commit. A rig is a running consumer on top of it,
// inside a synctest bubble, with a history of everything that can be observed.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// A fakeEngine keeps the contract of [engine.Engine]: one generation at a time,
// commits only for the open one, the opening's context ended before a Seal or a Lost.
type fakeEngine struct {
	joined   chan struct{} // closed by Start
	refusal  chan error
	startErr error                           // Start returns it
	leaving  func(ctx context.Context) error // Leave, if not nil
	marks    map[engine.Partition]int64      // HighWatermarks
	holds    func() (engine.Partition, bool) // Held, if not nil
	waits    bool                            // Waits
	onCommit func(engine.Partition, int64)   // called with each offset that is acknowledged

	session engine.Session

	mu          sync.Mutex
	opening     bool                               // Assigned is under way, without a claim that is Fresh: its commit only says that lanes are open
	openings    map[engine.Partition]engine.Offset // what such commits said, until the next one
	failOpening bool                               // they fail
	letters     []engine.Letter
	publish     func(ctx context.Context, letter engine.Letter) error // Publish, if not nil
	answers     func(a *fakeCommit) error
	number      int64 // of the last generation
	open        bool  // it may commit
	slot        context.Context
	endSlot     context.CancelFunc
	owned       map[string][]int32
	lanes       map[engine.Partition]engine.Lane
	commits     []*fakeCommit
	committed   map[engine.Partition]engine.Offset
	left        time.Time
}

// A fakeCommit is one OffsetCommit, and what became of it.
type fakeCommit struct {
	ctx        context.Context
	at         time.Time
	generation int64
	offsets    map[engine.Partition]int64
	refused    map[engine.Partition]error
	err        error
}

func newFakeEngine() *fakeEngine {
	e := &fakeEngine{
		joined:    make(chan struct{}),
		refusal:   make(chan error, 1),
		lanes:     map[engine.Partition]engine.Lane{},
		committed: map[engine.Partition]engine.Offset{},
		openings:  map[engine.Partition]engine.Offset{},
	}
	e.slot, e.endSlot = context.WithCancel(context.Background())
	return e
}

func (e *fakeEngine) Start(_ context.Context, s engine.Session) error {
	if e.startErr != nil {
		return e.startErr
	}
	e.session = s
	close(e.joined)
	return nil
}

func (e *fakeEngine) Failed() <-chan error { return e.refusal }

func (e *fakeEngine) Commit(ctx context.Context, generation int64, offsets []engine.Offset) (map[engine.Partition]error, error) {
	a := &fakeCommit{ctx: ctx, at: time.Now(), generation: generation, offsets: map[engine.Partition]int64{}, refused: map[engine.Partition]error{}}
	for _, o := range offsets {
		a.offsets[o.Partition] = o.Offset
	}
	e.mu.Lock()
	gone, answers := !e.open || e.number != generation, e.answers
	if e.opening {
		defer e.mu.Unlock()
		if e.failOpening {
			return nil, errTransient
		}
		for _, o := range offsets {
			e.openings[o.Partition] = o
		}
		return nil, nil
	}
	e.commits = append(e.commits, a)
	e.mu.Unlock()
	if gone {
		a.err = engine.ErrGone
		return nil, a.err
	}
	if answers != nil {
		a.err = answers(a)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if a.err == nil && (!e.open || e.number != generation) {
		a.err = engine.ErrGone
	}
	if a.err != nil {
		return nil, a.err
	}
	for _, o := range offsets {
		if a.refused[o.Partition] == nil {
			e.committed[o.Partition] = o
			delete(e.openings, o.Partition)
			if e.onCommit != nil {
				e.onCommit(o.Partition, o.Offset)
			}
		}
	}
	return a.refused, nil
}

func (e *fakeEngine) Publish(ctx context.Context, letter engine.Letter) error {
	e.mu.Lock()
	publish := e.publish
	e.mu.Unlock()
	if publish != nil {
		if err := publish(ctx, letter); err != nil {
			return err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.letters = append(e.letters, letter)
	return nil
}

func (e *fakeEngine) HighWatermarks() map[engine.Partition]int64 { return e.marks }

func (e *fakeEngine) Held() (engine.Partition, bool) {
	if e.holds != nil {
		return e.holds()
	}
	return engine.Partition{}, false
}

func (e *fakeEngine) Waits() bool { return e.waits }

func (e *fakeEngine) Leave(ctx context.Context) error {
	e.mu.Lock()
	e.open, e.left = false, time.Now()
	e.mu.Unlock()
	e.endSlot()
	if e.leaving != nil {
		return e.leaving(ctx)
	}
	return nil
}

// assign opens the next generation.
func (e *fakeEngine) assign(claims ...engine.Claim) {
	e.mu.Lock()
	e.number++
	e.open = true
	e.slot, e.endSlot = context.WithCancel(context.Background())
	slot, number, before := e.slot, e.number, e.owned
	e.owned = map[string][]int32{}
	for _, c := range claims {
		e.owned[c.Topic] = append(e.owned[c.Topic], c.Number)
	}
	change := engine.Change{Current: e.owned, Claimed: e.owned, Released: before}
	e.opening = !slices.ContainsFunc(claims, func(c engine.Claim) bool { return c.Fresh })
	e.mu.Unlock()
	lanes := e.session.Assigned(slot, number, claims, change)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.opening = false
	clear(e.lanes)
	for i, l := range lanes {
		e.lanes[claims[i].Partition] = l
	}
}

// deliver hands offsets to a partition's lane.
func (e *fakeEngine) deliver(p engine.Partition, offsets ...int64) (full bool) {
	records := make([]engine.Record, len(offsets))
	for i, o := range offsets {
		records[i] = &fakeRecord{offset: o, value: []byte(strconv.FormatInt(o, 10))}
	}
	return e.lane(p).Deliver(records)
}

func (e *fakeEngine) lane(p engine.Partition) engine.Lane {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.lanes[p]
}

// rebalance drains the open generation, like an engine that has cancelAfter until
// handlers are cancelled and giveUpAfter until they are given up.
func (e *fakeEngine) rebalance(cancelAfter, giveUpAfter time.Duration) {
	began := time.Now()
	e.endSlot()
	e.session.Seal(e.number)
	e.session.RebalanceStarted(e.owned)
	e.session.Revoke(e.number, began.Add(cancelAfter), began.Add(giveUpAfter))
	e.mu.Lock()
	e.open = false
	e.mu.Unlock()
}

// lose takes the open generation away.
func (e *fakeEngine) lose(cause error) {
	e.mu.Lock()
	e.open = false
	number := e.number
	e.mu.Unlock()
	e.endSlot()
	e.session.Lost(number, cause)
}

// answer says what becomes of the commits from now on; f may set refused and take its
// time. Nil: they are acknowledged at once.
func (e *fakeEngine) answer(f func(c *fakeCommit) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answers = f
}

// isOpening reports whether a commit under way only says that lanes are open.
func (e *fakeEngine) isOpening() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.opening
}

// attempts are the commits asked for so far, each as "[t] orders/0@7 refunds/1@3",
// t being the time since start, with its error if it had one.
func (e *fakeEngine) attempts(start time.Time) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var lines []string
	for _, c := range e.commits {
		line := fmt.Sprintf("[%v]", c.at.Sub(start))
		for _, p := range slices.SortedFunc(maps.Keys(c.offsets), comparePartitions) {
			line += fmt.Sprintf(" %v@%d", p, c.offsets[p])
			if err := c.refused[p]; err != nil {
				line += " refused"
			}
		}
		if c.err != nil {
			line += ": " + c.err.Error()
		}
		lines = append(lines, line)
	}
	return lines
}

// acknowledged is the committed offset of a partition, -1 if there is none.
func (e *fakeEngine) acknowledged(p engine.Partition) int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if o, ok := e.committed[p]; ok {
		return o.Offset
	}
	return -1
}

// metadata is what was committed beside the offset.
func (e *fakeEngine) metadata(p engine.Partition) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.committed[p].Metadata
}

func (e *fakeEngine) commitCount() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.commits)
}

// failing makes an answer of a list of errors, one for each commit; nil from then on.
func failing(errs ...error) func(*fakeCommit) error {
	return func(*fakeCommit) error {
		if len(errs) == 0 {
			return nil
		}
		err := errs[0]
		errs = errs[1:]
		return err
	}
}

// slow makes an answer that comes after d, or with the error of the commit's context.
func slow(d time.Duration) func(*fakeCommit) error {
	return func(c *fakeCommit) error {
		select {
		case <-time.After(d):
			return nil
		case <-c.ctx.Done():
			return c.ctx.Err()
		}
	}
}

// refusing makes an answer that refuses single partitions.
func refusing(err error, partitions ...engine.Partition) func(*fakeCommit) error {
	return func(c *fakeCommit) error {
		for _, p := range partitions {
			if _, asked := c.offsets[p]; asked {
				c.refused[p] = err
			}
		}
		return nil
	}
}

type fakeRecord struct {
	offset     int64
	key, value []byte
	headers    []Header
	timestamp  time.Time
}

func (r *fakeRecord) Offset() int64        { return r.offset }
func (r *fakeRecord) Timestamp() time.Time { return r.timestamp }
func (r *fakeRecord) Payload() (key, value []byte, headers int) {
	return r.key, r.value, len(r.headers)
}
func (r *fakeRecord) Header(i int) (key, value []byte) {
	return []byte(r.headers[i].Key), r.headers[i].Value
}

var (
	orders0  = engine.Partition{Topic: "orders", Number: 0}
	orders1  = engine.Partition{Topic: "orders", Number: 1}
	refunds0 = engine.Partition{Topic: "refunds", Number: 0}
)

// at claims a partition whose committed offset is the given one.
func at(p engine.Partition, offset int64) engine.Claim {
	return engine.Claim{Partition: p, Offset: offset, Committed: true}
}

// fresh claims a partition that begins under Start: Newest.
func fresh(p engine.Partition, offset int64) engine.Claim {
	return engine.Claim{Partition: p, Offset: offset, Fresh: true}
}

// A history is what has happened, one line for each event, in order.
type history struct {
	mu      sync.Mutex
	lines   []string
	opening func() bool // a commit is not worth a line now
}

func (h *history) add(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, fmt.Sprintf(format, args...))
}

// all returns the lines that contain each of the words.
func (h *history) all(words ...string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var found []string
	for _, line := range h.lines {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			found = append(found, line)
		}
	}
	return found
}

func (h *history) clear() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = nil
}

// hooks write down every call, and make the one of next too.
func (h *history) hooks(next Hooks) Hooks {
	return Hooks{
		RebalanceStarted: func(owned map[string][]int32) {
			h.add("rebalance started %v", owned)
			if next.RebalanceStarted != nil {
				next.RebalanceStarted(owned)
			}
		},
		RebalanceCompleted: func(r Rebalance) {
			h.add("rebalance completed %v %v %v", r.Current, r.Claimed, r.Released)
			if next.RebalanceCompleted != nil {
				next.RebalanceCompleted(r)
			}
		},
		RebalanceFailed: func(err error) {
			h.add("rebalance failed: %v", err)
			if next.RebalanceFailed != nil {
				next.RebalanceFailed(err)
			}
		},
		Assign: func(topic string, partition int32, offset int64) {
			h.add("assign %s/%d@%d", topic, partition, offset)
			if next.Assign != nil {
				next.Assign(topic, partition, offset)
			}
		},
		Revoke: func(topic string, partition int32, offset int64) {
			h.add("revoke %s/%d@%d", topic, partition, offset)
			if next.Revoke != nil {
				next.Revoke(topic, partition, offset)
			}
		},
		Lost: func(topic string, partition int32, offset int64, cause error) {
			h.add("lost %s/%d@%d: %v", topic, partition, offset, cause)
			if next.Lost != nil {
				next.Lost(topic, partition, offset, cause)
			}
		},
		Commit: func(offsets map[string]map[int32]int64, err error) {
			if h.opening == nil || !h.opening() {
				h.add("answered %v: %v", offsets, err)
			}
			if next.Commit != nil {
				next.Commit(offsets, err)
			}
		},
		Blocked: func(err *HandlerError) {
			h.add("blocked %s/%d@%d#%d: %v", err.Topic, err.Partition, err.Offset, err.Attempts, err.Err)
			if next.Blocked != nil {
				next.Blocked(err)
			}
		},
		DeadLetter: func(err *HandlerError) {
			h.add("dead letter %s/%d@%d#%d: %v", err.Topic, err.Partition, err.Offset, err.Attempts, err.Err)
			if next.DeadLetter != nil {
				next.DeadLetter(err)
			}
		},
		Breaker: func(topic string, open bool, cause error) {
			h.add("breaker %s %v: %v", topic, open, cause)
			if next.Breaker != nil {
				next.Breaker(topic, open, cause)
			}
		},
		Unblocked: func(topic string, partition int32, offset int64) {
			h.add("unblocked %s/%d@%d", topic, partition, offset)
			if next.Unblocked != nil {
				next.Unblocked(topic, partition, offset)
			}
		},
		Error: func(err error) {
			h.add("error: %v", err)
			if next.Error != nil {
				next.Error(err)
			}
		},
	}
}

// A rig is a consumer that runs on a fakeEngine.
type rig struct {
	t        *testing.T
	consumer *Consumer
	engine   *fakeEngine
	history  *history
	logs     *logs
	start    time.Time
	cancel   context.CancelFunc
	done     chan struct{} // closed when Run has returned
	err      error         // what it returned

	// on handles the messages of orders and refunds. The history has a line before
	// and one after each call. Nil: it returns nil.
	on func(ctx context.Context, msg Message) error
}

// A gate keeps a handler waiting, whatever happens to its context. The end of the test
// opens it, so that one that has failed can end.
type gate struct {
	open   func()
	opened chan struct{}
}

func (r *rig) gate() gate {
	opened := make(chan struct{})
	open := sync.OnceFunc(func() { close(opened) })
	r.t.Cleanup(open)
	return gate{open, opened}
}

func (g gate) wait() { <-g.opened }

// withRig runs body in a synctest bubble, on a consumer of the topics orders and
// refunds that has started and has no assignment yet. What was started must have
// ended when body has returned and Run's context was cancelled.
func withRig(t *testing.T, change func(cfg *Config), body func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, change)
		r.run(t.Context())
		body(t, r)
		_, _ = r.stop()
	})
}

func newRig(t *testing.T, change func(cfg *Config)) *rig {
	t.Helper()
	r := &rig{t: t, engine: newFakeEngine(), history: &history{}, logs: &logs{}, start: time.Now(), done: make(chan struct{})}
	h := HandlerFunc(r.handle)
	cfg := Config{
		Brokers: []string{"localhost:9092"},
		Group:   "billing",
		Topics:  Topics{"orders": {Handler: h}, "refunds": {Handler: h}},
		Logger:  slog.New(slog.NewTextHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&cfg)
	}
	cfg.Hooks = r.history.hooks(cfg.Hooks)
	consumer, err := New(cfg)
	require.NoError(t, err)
	consumer.engine = func(*Consumer) engine.Engine { return r.engine }
	r.consumer = consumer
	r.engine.onCommit = func(p engine.Partition, offset int64) { r.history.add("commit %v@%d", p, offset) }
	r.history.opening = r.engine.isOpening
	r.consumer.id = "1"
	return r
}

func (r *rig) run(ctx context.Context) {
	ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx)) // t.Context ends before the cleanup
	r.t.Cleanup(func() { _, _ = r.stop() })
	go func() {
		defer close(r.done)
		r.err = r.consumer.Run(ctx)
	}()
	synctest.Wait()
}

// stop cancels Run's context and returns what Run returned, and how long it took.
func (r *rig) stop() (took time.Duration, err error) {
	began := time.Now()
	r.cancel()
	<-r.done
	return time.Since(began), r.err
}

func (r *rig) handle(ctx context.Context, msg Message) (err error) {
	r.history.add("handle %s/%d@%d#%d", msg.Topic, msg.Partition, msg.Offset, msg.Attempt)
	defer func() {
		r.history.add("returned %s/%d@%d#%d: %v", msg.Topic, msg.Partition, msg.Offset, msg.Attempt, err)
	}()
	if r.on == nil {
		return nil
	}
	return r.on(ctx, msg)
}

// receives gives the consumer one partition, whose committed offset is the first of
// the offsets, and these messages.
func (r *rig) receives(p engine.Partition, first int64, more ...int64) {
	r.engine.assign(at(p, first))
	r.engine.deliver(p, append([]int64{first}, more...)...)
	synctest.Wait()
}

// drains is a rebalance (see fakeEngine), and how long it took.
func (r *rig) drains(cancelAfter, giveUpAfter time.Duration) time.Duration {
	began := time.Now()
	r.engine.rebalance(cancelAfter, giveUpAfter)
	return time.Since(began)
}

// loses takes the partitions away.
func (r *rig) loses() {
	r.engine.lose(errLost)
	synctest.Wait()
}

// hangs makes every handler wait at a gate, whatever happens to its context.
func (r *rig) hangs() gate {
	g := r.gate()
	r.on = func(context.Context, Message) error {
		g.wait()
		return nil
	}
	return g
}

// takes makes a handler that is done after a time, whatever happens to its context.
func takes(d time.Duration) func(context.Context, Message) error {
	return func(context.Context, Message) error {
		time.Sleep(d)
		return nil
	}
}

// committing is a change of the rig's Config.
func committing(interval time.Duration) func(*Config) {
	return func(cfg *Config) { cfg.CommitInterval = interval }
}

// handled are the attempts made on a partition, as "5#1 5#2 6#1".
func (r *rig) handled(p engine.Partition) string {
	var attempts []string
	for _, line := range r.history.all("handle " + p.String() + "@") {
		_, attempt, _ := strings.Cut(line, "@")
		attempts = append(attempts, attempt)
	}
	return strings.Join(attempts, " ")
}

// after lets virtual time pass, and everything settle.
func (r *rig) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// begin starts f, and returns a channel that is closed when it has returned.
func begin(f func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	synctest.Wait()
	return done
}

// logs are the lines of a log.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// with returns the lines that contain each of the words.
func (l *logs) with(words ...string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []string
	for line := range strings.Lines(l.buf.String()) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

var (
	errTransient = errors.New("broker is restarting")
	errHandler   = errors.New("bank is closed")
	errRefused   = errors.New("not allowed")
	errLost      = errors.New("session")
)
