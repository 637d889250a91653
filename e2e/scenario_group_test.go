package e2e

// Members come and go: consuming, restarting, joining and leaving under load.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/e2e/faults"
	"github.com/kgroup-go/kgroup/e2e/kafka"
)

// scenarios are the suite. Those that take longest come first, so that nobody waits
// for them in the end.
var scenarios = []scenario{
	{name: "join and leave under load", run: joinAndLeave(kgroup.Oldest, crew{}), main: true},
	{name: "join and leave under load, newest", run: joinAndLeave(kgroup.Newest, crew{}), main: true},
	{name: "join and leave under load, 16 workers", run: joinAndLeave(kgroup.Oldest, crew{Workers: 16}), main: true, limit: 2 * time.Minute},
	{name: "join and leave under load, batches", run: joinAndLeave(kgroup.Oldest, crew{Batch: 50}), main: true},
	{name: "join and leave, quick handlers", run: quickJoinAndLeave, main: true},
	{name: "killed and restarted", run: killed(crew{}), main: true},
	{name: "killed and restarted, 16 workers", run: killed(crew{Workers: 16}), main: true},
	{name: "killed and restarted, batches", run: killed(crew{Workers: 4, Batch: 50}), main: true},
	{name: "handler slower than the session", run: slowerThanSession, main: true, alone: true, not: answersLate, limit: 3 * time.Minute},
	{name: "handler slower than half the session", run: slowHandlers(5 * time.Second), main: true},
	{name: "handler slower than the heartbeat", run: slowHandlers(1500 * time.Millisecond)},
	{name: "handler slower than the fetch", run: slowHandlers(400 * time.Millisecond)},
	{name: "session lost", run: sessionLost, main: true},
	{name: "brokers crash and come back", run: brokersCrash, main: true, disturbs: true},
	{name: "coordinator restarts", run: coordinatorRestarts, disturbs: true},
	{name: "coordinator crashes", run: coordinatorCrashes, disturbs: true},
	{name: "broker hangs", run: brokerHangs, disturbs: true, not: nothingHangs, limit: 2 * time.Minute},
	{name: "broker hangs while a JoinGroup waits", run: brokerHangsInJoinGroup, disturbs: true, not: nothingHangs},
	{name: "coordinator unavailable during a commit", run: coordinatorUnavailable, main: true, disturbs: true},
	{name: "partition that cannot be opened", run: deadPartition, disturbs: true},
	{name: "brokers fall silent", run: silence, limit: 3 * time.Minute},
	{name: "brokers hang up", run: hangUps, limit: 2 * time.Minute},
	{name: "brokers answer nonsense", run: nonsense, limit: 2 * time.Minute},

	{name: "client certificate replaced", run: certificateReplaced, disturbs: true, secured: true, limit: 2 * time.Minute},
	{name: "sessions that end", run: sessionsEnd, secured: true, renews: true, alone: true, limit: 3 * time.Minute},
	{name: "mutual TLS", run: identified(byCertificate), main: true, secured: true},
	{name: "PLAIN over TLS", run: identified(byPlain), main: true, secured: true},
	{name: "SCRAM-SHA-256 over TLS", run: identified(byScram256), main: true, secured: true},
	{name: "SCRAM-SHA-512 over TLS", run: identified(byScram512), main: true, secured: true},
	{name: "OAUTHBEARER over TLS", run: identified(byToken), main: true, secured: true, renews: true},
	{name: "SCRAM-SHA-512 without TLS", run: identified(byScram512.at(kafka.SASLPlaintext)), secured: true},
	{name: "TLS", run: identified(byNothing), secured: true},
	{name: "mistakes, on real brokers", run: mistakesOnRealBrokers, secured: true},
	{name: "password changed on the brokers", run: passwordChanges, secured: true, renews: true},
	{name: "user removed and made again", run: userRemoved, secured: true, renews: true},
	{name: "source of tokens fails", run: tokenSourceFails, secured: true, renews: true},
	{name: "authentication fails", run: authenticationFails, secured: true, limit: 2 * time.Minute},
	{name: "rights taken and given back", run: rightsTaken, secured: true},
	{name: "certificates of the brokers", run: brokerCertificates, limit: 2 * time.Minute},
	{name: "authority of the brokers replaced", run: authorityReplaced},

	{name: "two topics", run: twoTopics, main: true},
	{name: "resume after a restart", run: resume, main: true},
	{name: "commit after every message", run: everyMessage},
	{name: "more members than partitions", run: moreMembers},
	{name: "newest, join before the first commit", run: newestJoin, main: true},
	{name: "newest, session lost before the first commit", run: newestLost},
	{name: "sarama-cluster and kgroup in one group", run: mixedGroup, not: noRawMembers},

	{name: "one message in a hundred is bad", run: oneInAHundred(crew{}), main: true},
	{name: "one message in a hundred is bad, 16 workers", run: oneInAHundred(crew{Workers: 16}), main: true, limit: 2 * time.Minute},
	{name: "one message in a hundred is bad, batches", run: oneInAHundred(crew{Workers: 4, Batch: 50})},
	{name: "retries longer than between two rebalances", run: retriesOutlastOwners},
	{name: "shutdown during an attempt, with dead letters", run: shutdownInAttempt, main: true},
	{name: "shutdown between two attempts, with dead letters", run: shutdownBetweenAttempts, main: true},
	{name: "shutdown while a dead letter is written", run: shutdownInPublish, main: true},
	{name: "shutdown while a dead letter cannot be written", run: shutdownInPublishForTooLong},
	{name: "bad messages in every partition", run: badInEveryPartition},
	{name: "everything fails for a while, under load", run: outage},
	{name: "one of eight partitions held", run: heldLane},

	{name: "message that ends the process", run: deadlyMessage(10, crew{}), main: true, limit: 2 * time.Minute},
	{name: "message that ends the process, the first one", run: deadlyMessage(0, crew{}), limit: 2 * time.Minute},
	{name: "message that ends the process, 16 workers", run: deadlyMessage(10, crew{Workers: 16}), main: true, limit: 2 * time.Minute},
	{name: "message that ends the process, batches", run: deadlyMessage(10, crew{Batch: 50}), limit: 2 * time.Minute},
	{name: "message that ends the process, and is held", run: deadlyMessageHeld, limit: 2 * time.Minute},
	{name: "killed again and again", run: killedAgainAndAgain, limit: 2 * time.Minute},
	{name: "killed while it looks for a deadly message", run: killedWhileLooking, limit: 2 * time.Minute},

	{name: "one slow message among quick ones, killed", run: slowAmongQuick, main: true, limit: 2 * time.Minute},
	{name: "one slow message among quick ones, ends in the drain", run: slowMovesOn(true)},
	{name: "one slow message among quick ones, cut off in the drain", run: slowMovesOn(false), main: true},
	{name: "log start passes a held message, 16 workers", run: logStartPasses, main: true},
	{name: "topic made again, longer, 16 workers", run: madeAgain(400, false), main: true},
	{name: "topic made again, shorter, 16 workers", run: madeAgain(20, false)},
	{name: "topic made again, shorter, and its offsets kept, 16 workers", run: madeAgain(20, true)},
	{name: "topic made again, not as long as its metadata says, 16 workers", run: madeAgain(100, true), main: true},
	{name: "offsets moved with their metadata, 16 workers", run: offsetsReset(heldAt-20, true), main: true},
	{name: "offsets set back, 16 workers", run: offsetsReset(0, false), main: true},
	{name: "offsets set forth, 16 workers", run: offsetsReset(2*heldAt, false)},
	{name: "offsets set to where they are, 16 workers", run: offsetsReset(heldAt, false)},

	{name: "dead-letter topic without a leader", run: lettersWithoutLeader, disturbs: true, limit: 2 * time.Minute},
	{name: "dead letters that are too large", run: lettersTooLarge},
	{name: "dead letters that must not be written", run: lettersForbidden, secured: true},
	{name: "dead letters as documented", run: lettersAsDocumented, main: true},
	{name: "dead letters with timestamps of their topic", run: lettersStamped, not: noStamps},
	{name: "dead-letter topic that does not exist", run: lettersNowhere},
	{name: "dead-letter topics that match a pattern", run: lettersAndPatterns},

	{name: "shutdown with handlers in flight", run: shutdownInFlight, main: true},
	{name: "shutdown with a retry in backoff", run: shutdownInBackoff},
	{name: "shutdown while others drain", run: shutdownWhileOthersDrain, main: true},
	{name: "shutdown of a newcomer while others drain", run: shutdownOfNewcomer},
	{name: "shutdown with a handler that does not return", run: shutdownTimeout},

	{name: "handler fails, panics, succeeds", run: retries},
	{name: "handler ignores its cancelled context", run: orphan, main: true},
	{name: "slow lane beside a quick one", run: slowLane},
	{name: "quick handler that turns slow", run: turnsSlow},

	{name: "topic grows, the leader's", run: grows("leader")},
	{name: "topic grows, a follower's", run: grows("follower")},
	{name: "sarama-cluster member with a missing topic", run: missingTopic, not: noRawMembers},
	{name: "topic deleted", run: deletedTopic},

	{name: "transactions aborted and open", run: transactions},
	{name: "every codec", run: codecs},
	{name: "records without key, value, headers", run: bareRecords},
}

// Why some scenarios do not run everywhere.
var (
	noRawMembers = map[string]string{"4.0.0": "it refuses sarama-cluster's JoinGroup (D26)"}
	nothingHangs = map[string]string{embeddedTarget.name: "it cannot hang, only refuse"}
	noStamps     = map[string]string{embeddedTarget.name: "it knows the setting (LogAppendTime), and does not act on it"}
)

// Two topics with a handler each: every message reaches the right one.
func twoTopics(e *env) {
	orders, refunds := e.topic(4), e.topic(2)
	e.produce(orders, 200)
	e.produce(refunds, 100)
	var strayed atomic.Int64
	only := func(topic string) kgroup.Handler {
		return kgroup.HandlerFunc(func(_ context.Context, msg kgroup.Message) error {
			if msg.Topic != topic {
				strayed.Add(1)
			}
			return nil
		})
	}
	e.start("a", kgroup.Topics{orders: {Handler: only(orders)}, refunds: {Handler: only(refunds)}})
	e.awaitCommitted()
	assert.Zero(e.t, strayed.Load())
}

// A member is stopped in the middle of its work, and another one goes on where it
// was: nothing is lost, and nothing repeated.
func resume(e *env) {
	topic := e.topic(4)
	e.produce(topic, 2000)
	slow := func(ctx context.Context, _ kgroup.Message) error { return work(ctx, e.random.upTo(2*time.Millisecond)) }
	for i := range 3 {
		m := e.start(fmt.Sprint("m", i), on(topic, slow))
		m.handles(300)
		m.stop()
	}
	e.start("last", on(topic, quick))
	e.awaitCommitted()
}

// Members join and leave in good order while messages come and are handled.
func joinAndLeave(start kgroup.Start, c crew) func(*env) {
	return func(e *env) {
		rounds, total, rate := 3, 1000, 400
		if e.full {
			rounds, total, rate = 6, 100_000, 1000
		}
		from := func(c *kgroup.Config) { c.Start = start }
		topic := e.topic(8)
		topics := kgroup.Topics{topic: c.topic(c.takes(e.random))}
		if c.Workers > 1 {
			e.keys = manyKeys
		}
		e.produce(topic, 80)
		if start == kgroup.Newest {
			e.notOwed(topic)
		}
		a := e.start("a", topics, from)
		a.ready()
		load := e.load(topic, rate)
		for i := range rounds {
			b := e.start(fmt.Sprint("b", i), topics, from)
			b.handles(20)
			c := e.start(fmt.Sprint("c", i), topics, from)
			require.NoError(e.t, work(e.ctx, e.random.upTo(time.Second)))
			b.stop()
			a.handles(20)
			c.stop()
		}
		load.stop(total)
		e.awaitCommitted()
	}
}

// Members are killed with SIGKILL while they work, and started again. Only what was
// in flight and what had not been committed may be repeated.
func killed(c crew) func(*env) {
	return func(e *env) {
		kills, total, rate := 1, 500, 200
		if e.full {
			kills, total, rate = 5, 20_000, 500
		}
		if c.Workers > 1 {
			e.keys = manyKeys
		}
		topic := e.topic(8)
		load := e.load(topic, rate)
		start := func(name string) *child {
			return e.startChild(name, topic, func(s *childSpec) { s.Crew, s.Slow = c, 2*time.Second })
		}
		stays, victim := start("stays"), start("victim-0")
		var slows []*kgo.Record
		for i := range kills {
			victim.handles(20)
			if c.Workers > 1 {
				e.untilSettled(topic, slows) // alone in the hands of one victim after the other, one of them would be to blame
				slows = nil
				for p := int32(0); p < 8; p += 2 { // others are settled behind these
					slows = append(slows, e.sendTo(topic, p, slow))
				}
				require.NoError(e.t, work(e.ctx, 1500*time.Millisecond))
			}
			require.NoError(e.t, work(e.ctx, e.random.upTo(500*time.Millisecond)))
			victim.kill()
			victim = start(fmt.Sprint("victim-", i+1))
		}
		victim.handles(20) // after the session of the one that was killed
		load.stop(total)
		e.awaitCommitted()
		stays.stop()
		victim.stop()
	}
}

// untilSettled waits until the group has committed beyond records of a topic.
func (e *env) untilSettled(topic string, records []*kgo.Record) {
	e.t.Helper()
	e.until("records to be committed", func() error {
		committed := e.committed(topic)
		for _, r := range records {
			if at := committed[r.Partition]; at <= r.Offset {
				return fmt.Errorf("%d is committed up to %d, and one is at %d", r.Partition, at, r.Offset)
			}
		}
		return nil
	})
}

// A second member joins while a handler of every partition is busy for so long. The
// group waits, and no message is repeated, or handled at two places.
func slowHandlers(busy time.Duration) func(*env) {
	return func(e *env) {
		topic := e.topic(4)
		e.produce(topic, 80)
		var started, cancelled atomic.Int64
		handler := func(ctx context.Context, msg kgroup.Message) error {
			if msg.Offset != 0 {
				return nil
			}
			started.Add(1)
			err := work(ctx, busy)
			if err != nil {
				cancelled.Add(1)
			}
			return err
		}
		long := func(c *kgroup.Config) { c.SessionTimeout = 10 * time.Second } // busy is half of it, at most
		e.start("a", on(topic, handler), long)
		e.reaches(4, "handlers at work", &started)
		b := e.start("b", on(topic, handler), long)
		b.owns(2)
		e.awaitCommitted()
		assert.EqualValues(e.t, 4, started.Load(), "handlers that were called for the first message of a partition")
		assert.Zero(e.t, cancelled.Load(), "handlers that were cancelled")
	}
}

// Handlers take much longer than the session, while members join and leave. The group
// waits for them, nobody loses its session, and nothing is repeated.
//
// The suite keeps the embedded broker busy for longer than a heartbeat of so short a
// session may take; that a drain outlasts the session is tested on a fake one too.
func slowerThanSession(e *env) {
	short, busy := 3*time.Second, 8*time.Second
	if os.Getenv("KAFKA_BROKERS") != "" {
		short = session // brokers take no shorter one untold
	}
	topic := e.topic(4)
	e.produce(topic, 16)
	var started, cancelled atomic.Int64
	handler := func(ctx context.Context, _ kgroup.Message) error {
		started.Add(1)
		err := work(ctx, busy)
		if err != nil {
			cancelled.Add(1)
		}
		return err
	}
	change := func(c *kgroup.Config) {
		c.SessionTimeout, c.RebalanceTimeout, c.ShutdownTimeout = short, time.Minute, 20*time.Second
	}
	a := e.start("a", on(topic, handler), change)
	e.reaches(4, "handlers at work", &started)
	b := e.start("b", on(topic, handler), change)
	b.owns(2)
	e.reaches(8, "handlers at work", &started)
	c := e.start("c", on(topic, handler), change)
	c.ready()
	b.stop()
	a.owns(2)
	e.awaitCommitted()
	assert.EqualValues(e.t, 16, started.Load(), "handlers that were called")
	assert.Zero(e.t, cancelled.Load(), "handlers that were cancelled")
}

var answersLate = map[string]string{embeddedTarget.name: "it is this process, and answers late when that is busy: the session of 3 s would be lost"}

// With more members than partitions some have nothing to do. They are ready and
// healthy, and one takes over when an owner leaves.
func moreMembers(e *env) {
	topic := e.topic(2)
	e.produce(topic, 20)
	var all []*member
	for _, name := range []string{"a", "b", "c", "d"} {
		all = append(all, e.start(name, on(topic, quick)))
	}
	e.awaitMembers("a", "b", "c", "d")
	owners := func() (owners []*member) {
		for _, m := range all {
			m.ready()
			assert.NoError(e.t, m.consumer.Health().Err())
			if len(m.consumer.Health().Lanes) == 1 {
				owners = append(owners, m)
			}
		}
		return owners
	}
	e.until("two members to own a partition", func() error {
		if n := len(owners()); n != 2 {
			return fmt.Errorf("%d do", n)
		}
		return nil
	})
	e.awaitCommitted()

	leaves := owners()[0]
	leaves.stop()
	all = slices.DeleteFunc(all, func(m *member) bool { return m == leaves })
	e.until("another member to take over", func() error {
		if n := len(owners()); n != 2 {
			return fmt.Errorf("%d own a partition", n)
		}
		return nil
	})
	e.produce(topic, 20)
	e.awaitCommitted()
}

// A group begins at the newest message. A member joins before the first has been
// handled: it must not skip what arrived meanwhile.
func newestJoin(e *env) {
	a, f := newestFirst(e, nil)
	b := e.start("b", on(f.topic, f.handle), newest)
	b.owns(2)
	f.handling.Store(true)
	a.handled(1)
	a.stop()
	e.awaitCommitted()
}

// The same when the first member has lost its session before it has handled anything.
func newestLost(e *env) {
	var cable faults.Link
	_, f := newestFirst(e, cable.Dial)
	e.history.SessionLost("a")
	cable.Cut()
	b := e.start("b", on(f.topic, f.handle), newest)
	b.owns(4)
	f.handling.Store(true)
	e.awaitCommitted()
	cable.Mend()
	e.awaitMembers("a", "b")
	e.history.SessionBack("a")
}

func newest(c *kgroup.Config) { c.Start = kgroup.Newest }

// newestFirst starts the first member of a group that begins at the newest message.
// Its handlers, the same as those of all members, fail at first.
func newestFirst(e *env, dial func(context.Context, string, string) (net.Conn, error)) (*member, *unready) {
	f := &unready{topic: e.topic(4)}
	e.produce(f.topic, 40)
	e.notOwed(f.topic)
	a := e.start("a", on(f.topic, f.handle), newest, func(c *kgroup.Config) {
		c.Dial = dial
		c.CommitInterval = -1 // only when it has to: in a rebalance, and at the end
	})
	a.ready()
	e.produce(f.topic, 40)
	e.reaches(4, "partitions with a message that waits", &f.waiting)
	return a, f
}

// unready handlers fail until they may handle.
type unready struct {
	topic    string
	handling atomic.Bool
	waiting  atomic.Int64
}

func (f *unready) handle(_ context.Context, msg kgroup.Message) error {
	if f.handling.Load() {
		return nil
	}
	if msg.Attempt == 1 {
		f.waiting.Add(1)
	}
	return errors.New("not yet")
}

// Members of both kinds share a group while a service is moved from one to the
// other.
func mixedGroup(e *env) {
	topic := e.topic(4)
	a := e.start("a", on(topic, quick))
	a.ready()
	load := e.load(topic, 100)
	raw := e.startRaw("raw", topic)
	e.awaitMembers("a", "raw")
	a.owns(2)
	a.handles(50)
	b := e.start("b", on(topic, quick))
	b.handles(20)
	raw.stop()
	e.awaitMembers("a", "b")
	a.owns(2)
	load.stop(100)
	e.awaitCommitted()
}

// On a topic where little comes, a commit does not wait for anything, a fetch above all.
func everyMessage(e *env) {
	topic := e.topic(1)
	var mu sync.Mutex
	returned := map[int64]time.Time{}
	var took []time.Duration
	a := e.start("a", on(topic, func(_ context.Context, msg kgroup.Message) error {
		mu.Lock()
		defer mu.Unlock()
		returned[msg.Offset+1] = time.Now()
		return nil
	}), func(c *kgroup.Config) {
		c.CommitInterval = kgroup.CommitEveryMessage
		c.Hooks.Commit = func(offsets map[string]map[int32]int64, err error) {
			mu.Lock()
			defer mu.Unlock()
			if at, ok := returned[offsets[topic][0]]; ok && err == nil {
				took = append(took, time.Since(at))
			}
		}
	})
	for n := range int64(50) {
		e.produce(topic, 1)
		a.handled(n + 1)
	}
	e.awaitCommitted()
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(took)
	require.NotEmpty(e.t, took)
	median := took[len(took)/2]
	e.t.Logf("commits took %v at the median", median.Round(10*time.Microsecond))
	assert.Less(e.t, median, 200*time.Millisecond, "less than the fetch's wait, also on a busy machine")
}
