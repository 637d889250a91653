package e2e

// The members of a group: kgroup consumers in this process and in others, and
// hand-written sarama-cluster loops. Each records what it does in the history.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/e2e/history"
)

// session is short, so that scenarios are, and what brokers accept untold.
const session = 6 * time.Second

// longSession is for scenarios in which a drain or a restart takes its time.
func longSession(c *kgroup.Config) { c.SessionTimeout = 20 * time.Second }

// A member is a kgroup consumer that runs.
type member struct {
	e        *env
	name     string
	limit    time.Duration // its ShutdownTimeout
	consumer *kgroup.Consumer
	cancel   context.CancelFunc
	done     chan struct{}
	err      error // of Run; read after done

	settled    atomic.Int64 // attempts that returned nil
	rebalances atomic.Int64
}

// on is a topic for start.
func on(topic string, h kgroup.HandlerFunc) kgroup.Topics {
	return kgroup.Topics{topic: {Handler: h}}
}

// start runs a member. Its name is its client id, too: of two members the one that
// comes first in the alphabet gets the first partitions.
func (e *env) start(name string, topics kgroup.Topics, change ...func(*kgroup.Config)) *member {
	e.t.Helper()
	cfg := e.config(name, topics)
	for _, f := range change {
		f(&cfg)
	}
	for topic, t := range cfg.Topics {
		e.rules.Workers[topic] = max(e.rules.Workers[topic], t.Workers)
	}
	m := &member{e: e, name: name, limit: cfg.ShutdownTimeout, done: make(chan struct{})}
	record(&cfg, e.history, name, &m.settled)
	completed := cfg.Hooks.RebalanceCompleted
	cfg.Hooks.RebalanceCompleted = func(r kgroup.Rebalance) {
		m.rebalances.Add(1)
		if completed != nil {
			completed(r)
		}
	}
	var err error
	m.consumer, err = kgroup.New(cfg)
	require.NoError(e.t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.ctx))
	m.cancel = cancel
	e.members = append(e.members, m)
	go func() {
		defer close(m.done)
		m.err = m.consumer.Run(ctx)
	}()
	return m
}

func (e *env) config(name string, topics kgroup.Topics) kgroup.Config {
	cfg := memberConfig(e.brokers.Addrs(), e.group, name, topics, e.mode)
	cfg.Logger = slog.New(slog.NewTextHandler(e.t.Output(), nil)).With("member", name)
	return cfg
}

func memberConfig(addrs []string, group, name string, topics kgroup.Topics, mode kgroup.Mode) kgroup.Config {
	return kgroup.Config{
		Brokers:         addrs,
		Group:           group,
		ClientID:        name,
		Topics:          maps.Clone(topics),
		Mode:            mode,
		SessionTimeout:  session,
		ShutdownTimeout: 10 * time.Second,
		CommitInterval:  200 * time.Millisecond,
		Tune: func(c *cluster.Config) {
			if full() {
				return // as users have it
			}
			c.Group.Heartbeat.Interval = 200 * time.Millisecond
			c.Metadata.RefreshFrequency = time.Second
		},
	}
}

// record has a member's attempts, commits and dead letters told to a history.
func record(cfg *kgroup.Config, log *history.Log, name string, settled *atomic.Int64) {
	for topic, t := range cfg.Topics {
		if t.Batch.Handler != nil {
			t.Batch.Handler = recordBatches(t.Batch.Handler, log, name, settled)
			cfg.Topics[topic] = t
			continue
		}
		h := t.Handler
		if _, ok := h.(interface{ unrecorded() }); ok {
			continue
		}
		t.Handler = kgroup.HandlerFunc(func(ctx context.Context, msg kgroup.Message) error {
			err := log.Handle(name, msg.Topic, msg.Partition, msg.Offset, msg.Key, func() error { return h.Handle(ctx, msg) })
			if err == nil {
				settled.Add(1)
			}
			return err
		})
		cfg.Topics[topic] = t
	}
	cfg.Hooks = kgroup.JoinHooks(kgroup.Hooks{
		Commit: func(offsets map[string]map[int32]int64, err error) {
			if err == nil {
				log.Committed(name, offsets)
			}
		},
		DeadLetter: func(err *kgroup.HandlerError) { log.DeadLettered(name, err.Topic, err.Partition, err.Offset) },
		Blocked:    func(err *kgroup.HandlerError) { log.Blocked(name, err.Topic, err.Partition, err.Offset) },
	}, cfg.Hooks)
}

// recordBatches has each attempt with a batch told: that of each of its messages.
func recordBatches(h kgroup.BatchHandler, log *history.Log, name string, settled *atomic.Int64) kgroup.BatchHandler {
	return kgroup.BatchHandlerFunc(func(ctx context.Context, msgs []kgroup.Message) (err error) {
		batch := make([]history.Message, len(msgs))
		for i, m := range msgs {
			batch[i] = history.Message{Topic: m.Topic, Partition: m.Partition, Offset: m.Offset, Key: m.Key}
		}
		attempts := log.BeginBatch(name, batch)
		err = errors.New("panic")
		defer func() {
			failed := (*kgroup.BatchError)(nil)
			for i, a := range attempts {
				of := err
				if errors.As(err, &failed) {
					of = failed.Failed[i]
				}
				if of == nil {
					settled.Add(1)
				}
				a.End(of)
			}
		}()
		return h.HandleBatch(ctx, msgs)
	})
}

// ready waits for the member's first assignment.
func (m *member) ready() {
	m.e.t.Helper()
	select {
	case <-m.consumer.Ready():
	case <-m.done:
		require.FailNow(m.e.t, m.name+" has ended before it was ready", "%v", m.err)
	case <-m.e.ctx.Done():
		require.FailNow(m.e.t, "waited for "+m.name+" to be ready", "%v\n%s", context.Cause(m.e.ctx), m.e.state())
	}
}

// handled waits until the member has settled n messages in all.
func (m *member) handled(n int64) {
	m.e.t.Helper()
	m.e.reaches(n, "messages handled by "+m.name, &m.settled)
}

// handles waits until the member has settled n more messages.
func (m *member) handles(n int64) {
	m.e.t.Helper()
	m.handled(m.settled.Load() + n)
}

// owns waits until the member owns exactly so many partitions, and is consuming.
func (m *member) owns(n int) {
	m.e.t.Helper()
	m.e.until(fmt.Sprintf("%s to own %d partitions", m.name, n), func() error {
		if h := m.consumer.Health(); h.State != kgroup.Consuming || len(h.Lanes) != n {
			return fmt.Errorf("it is %v, with %d", h.State, len(h.Lanes))
		}
		return nil
	})
}

// stop ends the member in good order and returns how long that took.
func (m *member) stop() time.Duration {
	m.e.t.Helper()
	took, err := m.end()
	require.NoError(m.e.t, err, "%s ends", m.name)
	return took
}

// end stops the member and returns what Run has returned, in the time it promises.
func (m *member) end() (time.Duration, error) {
	m.e.t.Helper()
	began := time.Now()
	m.cancel()
	timer := time.NewTimer(m.limit + slack)
	defer timer.Stop()
	select {
	case <-m.done:
	case <-timer.C:
		require.FailNow(m.e.t, "Run has not returned", "%s was to end within %v\n%s", m.name, m.limit, m.e.state())
	}
	return time.Since(began), m.err
}

func (m *member) ended() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// childEnv, when it is set, makes this test binary a member of a group.
const childEnv = "KGROUP_E2E_CHILD"

// A child is a member in a process of its own, to be killed, or to die of a message.
type child struct {
	e      *env
	spec   childSpec
	cmd    *exec.Cmd
	alive  io.Closer // its standard input: when that ends, so does the child
	exited chan struct{}
	err    error // how; read after exited
}

type childSpec struct {
	Name, Group, Topic, History string
	Brokers                     []string
	Mode                        kgroup.Mode
	Session                     time.Duration
	DeadLetter                  string // empty: there is no such topic
	Crew                        crew
	Slow                        time.Duration // how long it is at work on a slow message
	Quick                       bool          // and on others not at all
}

// by has a child handle its messages so.
func by(c crew) func(*childSpec) { return func(s *childSpec) { s.Crew = c } }

// deadly is the value of a message that ends a child.
const deadly = bad + ", and deadly"

// slow is the value of a message that takes its time.
const slow = "slow"

// deaths is after how many of them a message is deadly: a child's MaxAttempts.
const deaths = 3

// startChild runs a member with uneven handlers in another process.
func (e *env) startChild(name, topic string, change ...func(*childSpec)) *child {
	e.t.Helper()
	spec := childSpec{Name: name, Group: e.group, Topic: topic, History: e.file(name), Brokers: e.brokers.Addrs(), Mode: e.mode, Session: session}
	for _, f := range change {
		f(&spec)
	}
	e.rules.Workers[topic] = max(e.rules.Workers[topic], spec.Crew.Workers)
	text, err := json.Marshal(spec)
	require.NoError(e.t, err)
	cmd := exec.Command(os.Args[0]) //nolint:noctx // ended by the scenario, or with its standard input
	cmd.Env = append(os.Environ(), childEnv+"="+string(text), "KGROUP_SEED="+strconv.FormatUint(seed(), 10))
	cmd.Stdout, cmd.Stderr = e.t.Output(), e.t.Output()
	alive, err := cmd.StdinPipe()
	require.NoError(e.t, err)
	require.NoError(e.t, cmd.Start())
	c := &child{e: e, spec: spec, cmd: cmd, alive: alive, exited: make(chan struct{})}
	go func() {
		defer close(c.exited)
		c.err = cmd.Wait()
	}()
	e.t.Cleanup(c.end)
	return c
}

// handles waits until the child has begun n attempts in all.
func (c *child) handles(n int) {
	c.e.t.Helper()
	c.e.until(fmt.Sprintf("%s to handle %d messages", c.spec.Name, n), func() error {
		events, err := history.Read(c.spec.History)
		if err != nil {
			return err
		}
		begun := 0
		for _, event := range events {
			if event.Kind == history.Begin {
				begun++
			}
		}
		if begun < n {
			return fmt.Errorf("it has begun %d", begun)
		}
		return nil
	})
}

// kill ends the child with SIGKILL.
func (c *child) kill() {
	c.e.t.Helper()
	require.NoError(c.e.t, c.cmd.Process.Kill())
	<-c.exited
	require.ErrorContains(c.e.t, c.err, "killed", "%s was to live until now", c.spec.Name)
	c.e.history.Killed(c.spec.Name)
}

// stop ends the child in good order.
func (c *child) stop() {
	c.e.t.Helper()
	c.alive.Close()
	receive(c.e, c.spec.Name+" to end", c.exited)
	require.NoError(c.e.t, c.err, "%s ends", c.spec.Name)
}

// dies waits until the child has died of a message, or something else is so. It reports
// which of the two.
func (c *child) dies(or func() error) bool {
	c.e.t.Helper()
	dead := false
	c.e.until(c.spec.Name+" to die, or not", func() error {
		select {
		case <-c.exited:
			dead = true
			return nil
		default:
			return or()
		}
	})
	if dead {
		require.Equal(c.e.t, exitDeadly, c.cmd.ProcessState.ExitCode(), "%s: %v", c.spec.Name, c.err)
		c.e.history.Killed(c.spec.Name)
	}
	return dead
}

const exitDeadly = 2

// end is for a child of a scenario that has failed.
func (c *child) end() {
	select {
	case <-c.exited:
	default:
		_ = c.cmd.Process.Kill()
		<-c.exited
	}
}

// runChild is the main function of a child. It ends with its standard input, and so
// with its parent at the latest.
func runChild(text string) int {
	var spec childSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		panic(err)
	}
	log, err := history.Append(spec.History)
	if err != nil {
		panic(err)
	}
	var settled atomic.Int64
	usual := uneven(newRandom(spec.Name)) // after a death messages are handled one at a time
	if spec.Quick {
		usual = quick
	}
	topic := spec.Crew.topic(func(ctx context.Context, msg kgroup.Message) error {
		switch string(msg.Value) {
		case deadly:
			os.Exit(exitDeadly)
		case slow:
			return work(ctx, spec.Slow)
		}
		return usual(ctx, msg)
	})
	topic.DeadLetter, topic.Retry.MaxAttempts = spec.DeadLetter, deaths
	cfg := memberConfig(spec.Brokers, spec.Group, spec.Name, kgroup.Topics{spec.Topic: topic}, spec.Mode)
	cfg.SessionTimeout = spec.Session
	record(&cfg, log, spec.Name, &settled)
	consumer, err := kgroup.New(cfg)
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if err := errors.Join(consumer.Run(ctx), log.Close()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// A rawMember is a loop around sarama-cluster as services have written it by hand,
// with the settings of ClusterConfig.
type rawMember struct {
	e        *env
	name     string
	consumer *cluster.Consumer
	stopping chan struct{}
	busy     sync.RWMutex // held for reading while a message is handled and marked
	loops    sync.WaitGroup
}

func (e *env) startRaw(name string, topics ...string) *rawMember {
	e.t.Helper()
	all := kgroup.Topics{}
	for _, topic := range topics {
		all[topic] = kgroup.Topic{}
	}
	settings, err := e.config(name, all).ClusterConfig()
	require.NoError(e.t, err)
	consumer, err := cluster.NewConsumer(e.brokers.Addrs(), e.group, topics, settings)
	require.NoError(e.t, err)
	m := &rawMember{e: e, name: name, consumer: consumer, stopping: make(chan struct{})}
	m.loops.Go(func() {
		for err := range consumer.Errors() {
			_, _ = fmt.Fprintf(e.t.Output(), "%s: %v\n", name, err)
		}
	})
	if e.mode == kgroup.Multiplex {
		m.loops.Go(func() { m.loop(consumer.Messages(), consumer.MarkOffset) })
	} else {
		m.loops.Go(m.partitions)
	}
	e.t.Cleanup(m.stop)
	return m
}

func (m *rawMember) partitions() {
	for p := range m.consumer.Partitions() {
		m.loops.Go(func() {
			for err := range p.Errors() {
				_, _ = fmt.Fprintf(m.e.t.Output(), "%s: %v\n", m.name, err)
			}
		})
		m.loops.Go(func() {
			m.loop(p.Messages(), func(msg *sarama.ConsumerMessage, _ string) { p.MarkOffset(msg.Offset, "") })
		})
	}
}

func (m *rawMember) loop(messages <-chan *sarama.ConsumerMessage, mark func(*sarama.ConsumerMessage, string)) {
	for msg := range messages {
		m.handle(msg, mark)
	}
}

// handle drops what comes after the end: its next owner reads it again.
func (m *rawMember) handle(msg *sarama.ConsumerMessage, mark func(*sarama.ConsumerMessage, string)) {
	m.busy.RLock()
	defer m.busy.RUnlock()
	select {
	case <-m.stopping:
		return
	default:
	}
	_ = m.e.history.Handle(m.name, msg.Topic, msg.Partition, msg.Offset, msg.Key, func() error { return nil })
	mark(msg, "")
}

// stop ends the loop: once.
func (m *rawMember) stop() {
	select {
	case <-m.stopping:
		return
	default:
	}
	close(m.stopping)
	m.busy.Lock() // waits for what is being handled
	assert.NoError(m.e.t, m.consumer.CommitOffsets())
	m.busy.Unlock()
	assert.NoError(m.e.t, m.consumer.Close())
	m.loops.Wait()
}
