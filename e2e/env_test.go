package e2e

// What a scenario works with: topics and a group of its own, records, a history of
// all that happens, and ways to wait. Members are in member_test.go.

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/e2e/history"
	"github.com/kgroup-go/kgroup/e2e/kafka"
)

// An env is one scenario on one broker in one mode. What ends the test must be
// called from the scenario's own goroutine.
type env struct {
	t       *testing.T
	ctx     context.Context // ends when the scenario has taken too long
	mode    kgroup.Mode
	brokers brokers
	admin   *kafka.Admin
	group   string
	full    bool

	// history is what happened, rules what may be expected of it: unless the
	// scenario says otherwise, that in the end all is handled and committed.
	history *history.Log
	rules   history.Rules
	files   []string // of members in other processes

	random *random

	mu         sync.Mutex
	partitions map[string]int32
	ends       kafka.Offsets // the offset after the last record produced
	members    []*member
	topics     int
	letters    []string // dead-letter topics
	badEvery   int64    // one in so many records is bad; zero: none is
	keys       int64    // of a partition, and now and then none; zero: seven, in turns
}

func newEnv(t *testing.T, s scenario, b brokers, mode kgroup.Mode) *env {
	t.Helper()
	limit := cmp.Or(s.limit, time.Minute)
	if full() {
		limit *= 10
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("the scenario has taken more than %v", limit))
	t.Cleanup(cancel)
	t.Logf("KGROUP_SEED=%d", seed())
	e := &env{
		t:          t,
		ctx:        ctx,
		mode:       mode,
		brokers:    b,
		full:       full(),
		history:    history.New(),
		rules:      history.Rules{Workers: map[string]int{}, AllHandled: true, AllCommitted: true},
		random:     newRandom(t.Name()),
		partitions: map[string]int32{},
		ends:       kafka.Offsets{},
	}
	e.connect()
	t.Cleanup(func() { e.admin.Close() })
	// A cluster that is not ours may have seen this scenario before.
	words := strings.Fields(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return ' '
	}, strings.ToLower(s.name+" "+mode.String())))
	e.group = fmt.Sprintf("e2e-%s-%d", strings.Join(words, "-"), time.Now().UnixNano()%1e9)
	t.Cleanup(e.stopAll)
	return e
}

func (e *env) connect() {
	e.t.Helper()
	var err error
	e.admin, err = kafka.NewAdmin(e.brokers.Addrs())
	require.NoError(e.t, err)
}

// topic makes a topic, replicated to all brokers.
func (e *env) topic(partitions int32) string { return e.topicWith(partitions, -1) }

func (e *env) topicWith(partitions int32, replicas int16) string {
	e.t.Helper()
	return e.topicSet(partitions, replicas, nil)
}

// topicSet makes a topic with settings of Kafka's.
func (e *env) topicSet(partitions int32, replicas int16, settings map[string]string) string {
	e.t.Helper()
	e.topics++
	name := fmt.Sprintf("%s-%d", e.group, e.topics)
	require.NoError(e.t, e.admin.CreateTopic(e.ctx, name, partitions, replicas, settings))
	e.setPartitions(name, partitions)
	return name
}

func (e *env) grow(topic string, partitions int32) {
	e.t.Helper()
	require.NoError(e.t, e.admin.GrowTopic(e.ctx, topic, partitions))
	e.admin.Close() // its producer knows the old number
	e.connect()
	e.setPartitions(topic, partitions)
}

func (e *env) setPartitions(topic string, n int32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.partitions[topic] = n
}

// records are n records with keys, dealt out to the partitions of a topic.
func (e *env) records(topic string, n int) []*kgo.Record {
	e.mu.Lock()
	defer e.mu.Unlock()
	rs := make([]*kgo.Record, n)
	for i := range rs {
		p := int32(e.random.below(int64(e.partitions[topic])))
		if n >= int(e.partitions[topic]) {
			p = int32(i) % e.partitions[topic]
		}
		rs[i] = &kgo.Record{Topic: topic, Partition: p, Key: e.key(p, i), Value: fmt.Appendf(nil, "value %d", i)}
		if e.badEvery > 0 && e.random.below(e.badEvery) == 0 {
			rs[i].Value = []byte(bad)
		}
	}
	return rs
}

// key is that of the record of that number.
func (e *env) key(p int32, i int) []byte {
	of := int64(i % 7)
	if e.keys > 0 {
		if e.random.below(20) == 0 {
			return nil
		}
		of = e.random.below(e.keys)
	}
	return fmt.Appendf(nil, "key-%d-%d", p, of)
}

// produce writes n records to a topic, the same number to each partition.
func (e *env) produce(topic string, n int) {
	e.t.Helper()
	e.send(e.records(topic, n)...)
}

func (e *env) send(records ...*kgo.Record) {
	e.t.Helper()
	require.NoError(e.t, e.admin.Produce(e.ctx, kgo.NoCompression(), records...))
	e.produced(records...)
}

// produced tells of records that the group owes an attempt.
func (e *env) produced(records ...*kgo.Record) {
	for _, r := range records {
		e.history.Produced(r.Topic, r.Partition, r.Offset, r.Key)
		if isBad(r.Value) {
			e.history.Bad(r.Topic, r.Partition, r.Offset)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range records {
		if e.ends[r.Topic] == nil {
			e.ends[r.Topic] = map[int32]int64{}
		}
		e.ends[r.Topic][r.Partition] = max(e.ends[r.Topic][r.Partition], r.Offset+1)
	}
}

// notOwed tells that the group begins where a topic ends now.
func (e *env) notOwed(topic string) {
	e.t.Helper()
	_, ends, err := e.admin.Range(e.ctx, topic)
	require.NoError(e.t, err)
	for p, end := range ends {
		e.history.NotOwed(topic, p, end)
	}
}

// A load is a producer that goes on.
type load struct {
	e      *env
	cancel context.CancelFunc
	done   chan struct{}
	mu     sync.Mutex
	sent   int
	err    error
}

// load produces about so many records a second to a topic until it is stopped.
func (e *env) load(topic string, perSecond int) *load {
	ctx, cancel := context.WithCancel(e.ctx)
	l := &load{e: e, cancel: cancel, done: make(chan struct{})}
	e.t.Cleanup(func() { cancel(); <-l.done })
	go func() {
		defer close(l.done)
		const interval = 20 * time.Millisecond
		pace := time.NewTicker(interval)
		defer pace.Stop()
		for {
			select {
			case <-pace.C:
			case <-ctx.Done():
				return
			}
			rs := e.records(topic, max(1, perSecond*int(interval)/int(time.Second)))
			// Not with ctx: of a record given up while it is sent nobody knows whether it
			// is there.
			err := e.admin.Produce(e.ctx, kgo.NoCompression(), rs...) //nolint:contextcheck // see above
			if err == nil {
				e.produced(rs...)
			}
			l.mu.Lock()
			l.sent, l.err = l.sent+len(rs), cmp.Or(l.err, err)
			l.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return l
}

// count is how many records have been produced so far.
func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent
}

// stop ends the load, not before so many records were produced.
func (l *load) stop(least int) {
	l.e.t.Helper()
	l.e.until(fmt.Sprintf("%d records to be produced", least), func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.sent < least && l.err == nil {
			return fmt.Errorf("%d are", l.sent)
		}
		return nil
	})
	l.cancel()
	<-l.done
	require.NoError(l.e.t, l.err)
}

// until waits for something.
func (e *env) until(what string, met func() error) {
	e.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := met()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-e.ctx.Done():
			require.FailNow(e.t, "waited for "+what, "%v\nlast seen: %v\n%s", context.Cause(e.ctx), err, e.state())
		}
	}
}

// reaches waits until a counter is at n.
func (e *env) reaches(n int64, what string, counter *atomic.Int64) {
	e.t.Helper()
	e.until(fmt.Sprintf("%d %s", n, what), func() error {
		if at := counter.Load(); at < n {
			return fmt.Errorf("%d so far", at)
		}
		return nil
	})
}

// receive waits for a value that a handler sends.
func receive[T any](e *env, what string, from <-chan T) (v T) {
	e.t.Helper()
	select {
	case v = <-from:
	case <-e.ctx.Done():
		require.FailNow(e.t, "waited for "+what, "%v\n%s", context.Cause(e.ctx), e.state())
	}
	return v
}

// state is what the members know, for a scenario that is stuck.
func (e *env) state() string {
	var b strings.Builder
	for _, m := range e.members {
		fmt.Fprintf(&b, "%s: %+v\n", m.name, m.consumer.Health())
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), 5*time.Second)
	defer cancel()
	group, err := e.admin.DescribeGroup(ctx, e.group)
	committed, err2 := e.admin.CommittedOffsets(ctx, e.group)
	fmt.Fprintf(&b, "group: %+v %v\ncommitted: %v %v\n", group, err, committed, err2)
	report := history.Check(e.history.Events(), history.Rules{Workers: e.rules.Workers})
	fmt.Fprintf(&b, "history: %s", report)
	return b.String()
}

// awaitCommitted waits until the group has committed all that was produced to the
// given topics, to all of them if none is given.
func (e *env) awaitCommitted(topics ...string) {
	e.t.Helper()
	e.until("all to be committed", e.uncommitted(topics...))
}

// uncommitted returns what says whether something of that is missing.
func (e *env) uncommitted(topics ...string) func() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(topics) == 0 {
		topics = slices.Collect(maps.Keys(e.ends))
	}
	ends := kafka.Offsets{}
	for _, topic := range topics {
		ends[topic] = maps.Clone(e.ends[topic])
	}
	return func() error {
		committed, err := e.admin.CommittedOffsets(e.ctx, e.group)
		if err != nil {
			return err
		}
		ends.Each(func(topic string, p int32, end int64) {
			if at := committed[topic][p]; at < end && err == nil {
				err = fmt.Errorf("%s/%d is committed up to %d, and ends at %d", topic, p, at, end)
			}
		})
		return err
	}
}

// awaitMembers waits until the group is stable and has exactly these members.
func (e *env) awaitMembers(names ...string) {
	e.t.Helper()
	slices.Sort(names)
	e.until(fmt.Sprintf("the group to be of %v", names), func() error {
		g, err := e.admin.DescribeGroup(e.ctx, e.group)
		if err != nil {
			return err
		}
		var found []string
		for _, m := range g.Members {
			found = append(found, m.ClientID)
		}
		slices.Sort(found)
		if len(names) == 0 && len(found) == 0 {
			return nil
		}
		if g.State != "Stable" || !slices.Equal(found, names) {
			return fmt.Errorf("it is %s, of %v", g.State, found)
		}
		return nil
	})
}

// crash ends brokers; they are started again at the latest after the scenario.
func (e *env) crash(nodes ...int32) {
	e.t.Helper()
	require.NoError(e.t, e.brokers.crash(nodes...))
}

func (e *env) terminate(node int32) {
	e.t.Helper()
	require.NoError(e.t, e.brokers.terminate(node))
}

func (e *env) revive(nodes ...int32) {
	e.t.Helper()
	require.NoError(e.t, e.brokers.revive(e.ctx, nodes...))
}

// suspend keeps the group from its coordinator until resume is called.
func (e *env) suspend() (resume func()) {
	e.t.Helper()
	return e.suspendNode(e.coordinator())
}

// suspendNode does the same to any node, where nodes can hang.
func (e *env) suspendNode(node int32) (resume func()) {
	e.t.Helper()
	back, err := e.brokers.suspend(node, e.group)
	require.NoError(e.t, err)
	back = sync.OnceValue(back)
	e.t.Cleanup(func() { _ = back() })
	return func() {
		e.t.Helper()
		require.NoError(e.t, back())
	}
}

func (e *env) coordinator() int32 {
	e.t.Helper()
	node, err := e.admin.Coordinator(e.ctx, e.group)
	require.NoError(e.t, err)
	return node
}

// file is a place for the history of a member in another process.
func (e *env) file(member string) string {
	path := filepath.Join(e.t.TempDir(), member+".jsonl")
	e.files = append(e.files, path)
	return path
}

// judge ends the members that still run, and holds what happened against what is
// promised.
func (e *env) judge() {
	e.t.Helper()
	for _, m := range e.members {
		if !m.ended() {
			m.stop()
		}
	}
	for _, path := range e.files {
		require.NoError(e.t, e.history.Merge(path))
	}
	committed, err := e.admin.CommittedOffsets(e.ctx, e.group)
	require.NoError(e.t, err)
	e.history.FinalCommitted(committed)
	e.tellLetters()
	report := history.Check(e.history.Events(), e.rules)
	history.Require(e.t, report)
	e.t.Logf("history: %s", report)
}

// stopAll ends the members of a scenario that has failed.
func (e *env) stopAll() {
	for _, m := range e.members {
		m.cancel()
	}
	for _, m := range e.members {
		<-m.done
	}
}
