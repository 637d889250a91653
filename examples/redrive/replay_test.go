package main

// Runs that do not go straight to their end: stopped, killed, refused, joined by another
// member. A letter is replayed once all the same.

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/kgrouptest"
)

// watch calls see with each request of a kind. If that returns an error, the request is
// not carried out, and its connection breaks.
func (b bed) watch(kind kmsg.Key, see func(kmsg.Request) error) {
	b.Cluster().ControlKey(int16(kind), func(req kmsg.Request) (kmsg.Response, error, bool) {
		b.Cluster().KeepControl()
		err := see(req)
		return nil, err, err != nil
	})
}

// lookups counts what is read of a topic from now on.
func (b bed) lookups(topic string) *kfake.FaultHandle {
	return b.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: topic, Observe: true, Count: -1})
}

// eventually waits until the topic has so many messages.
func (b bed) eventually(topic string, messages int) {
	b.t.Helper()
	require.Eventually(b.t, func() bool { return len(b.values(topic)) >= messages }, 20*time.Second, 5*time.Millisecond, "%d messages in %s", messages, topic)
}

func TestRate(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders"})
	b.letters(numbered(6)...)
	var mu sync.Mutex
	var writes []time.Time
	b.watch(kmsg.Produce, func(kmsg.Request) error {
		mu.Lock()
		defer mu.Unlock()
		writes = append(writes, time.Now())
		return nil
	})
	got := b.must("-replay", "-rate", "10", "-progress", "20ms")
	require.Len(t, writes, 6)
	// Half of it, because a request may have been slower than the one after it.
	assert.GreaterOrEqual(t, writes[5].Sub(writes[0]), 5*time.Second/10/2)
	assert.Regexp(t, `(?m)^[0-5] of 6 letters: [0-5] replayed, \d+\.\d a second$`, got.stderr)
}

// Ctrl-C, and the run after it. That one need not look for anything: all that the first
// has begun was finished.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders"})
	b.letters(numbered(7)...)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	written := 0
	b.watch(kmsg.Produce, func(kmsg.Request) error {
		if written++; written == 3 {
			interrupt()
		}
		return nil
	})
	got := b.run(ctx, "-replay")
	require.EqualError(t, got.err, "interrupted: 4 letters are left; run it again to go on")
	assert.Contains(t, got.stdout, "3 of 7 letters: 3 replayed, ")
	assert.Empty(t, got.stderr)
	assert.Equal(t, replayedValues(3), b.values("orders"))
	assert.Equal(t, int64(3), b.Committed(group, dlq)[0])

	lookups := b.lookups("orders")
	b.must("-replay")
	assert.Zero(t, lookups.Hits())
	assert.Equal(t, replayedValues(7), b.values("orders"))
	assert.Contains(t, b.must("-replay").stdout, "0 to replay")
}

// A letter that waits for its turn is given back at once.
func TestInterruptedWhileWaiting(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders"})
	b.letters(numbered(2)...)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	go func() {
		b.eventually("orders", 1)
		interrupt()
	}()
	began := time.Now()
	got := b.run(ctx, "-replay", "-rate", "0.01")
	require.ErrorContains(t, got.err, "interrupted: 1 letters are left")
	assert.Empty(t, got.stderr)
	assert.Less(t, time.Since(began), 5*time.Second)
	b.must("-replay")
	assert.Equal(t, replayedValues(2), b.values("orders"))
}

// commits reports whether the request commits an offset of partition 0.
func commits(req kmsg.Request, offset int64) bool {
	for _, topic := range req.(*kmsg.OffsetCommitRequest).Topics {
		for _, p := range topic.Partitions {
			if p.Partition == 0 && p.Offset == offset {
				return true
			}
		}
	}
	return false
}

// opens reports whether it says that a partition is being worked on.
func opens(req kmsg.Request) bool {
	for _, topic := range req.(*kmsg.OffsetCommitRequest).Topics {
		for _, p := range topic.Partitions {
			if p.Metadata != nil && strings.Contains(*p.Metadata, " o=1") {
				return true
			}
		}
	}
	return false
}

// The program, as a process, is killed with SIGKILL while the letter at an offset is in
// doubt.
func TestKilled(t *testing.T) {
	t.Parallel()
	const letters = 5
	for _, tt := range []struct {
		name string
		at   int64
		// acknowledged: after the brokers have acknowledged the letter, and before they have
		// its offset; else before they have the letter.
		acknowledged bool
		before       string // arguments of a run that came to its end before
		opening      bool   // fails: the commit that says that the partition is being worked on
	}{
		{name: "before the first letter is written"},
		{name: "before the third letter is written", at: 2},
		{name: "after the first letter was acknowledged", acknowledged: true},
		{name: "after the third letter was acknowledged", acknowledged: true, at: 2},
		{name: "after the first letter of a second run", acknowledged: true, at: 2, before: "-replay -limit 2"},
		{name: "after the first letter of a second run that began with trouble", acknowledged: true, at: 2, before: "-replay -limit 2", opening: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, kgrouptest.Topic{Name: "orders"})
			b.letters(numbered(letters)...)
			done := int64(0)
			if tt.before != "" {
				b.must(strings.Fields(tt.before)...)
				done = b.Committed(group, dlq)[0]
			}
			if tt.opening {
				b.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.CoordinatorLoadInProgress, Count: 1, When: opens})
			}

			var out bytes.Buffer
			child := exec.CommandContext(t.Context(), os.Args[0])
			child.Env = append(os.Environ(), childArgs+"=-replay -rate 0 -session 3s -topic "+dlq+" -brokers "+strings.Join(b.Addrs(), ","))
			child.Stdout, child.Stderr = &out, &out
			started, gone := make(chan struct{}), make(chan struct{})
			killed := false
			kill := func(now bool) error {
				if !now || killed {
					return nil
				}
				killed = true
				<-started
				assert.NoError(t, child.Process.Kill())
				<-gone
				return errors.New("nobody is there to be answered")
			}
			if tt.acknowledged {
				b.watch(kmsg.OffsetCommit, func(req kmsg.Request) error { return kill(commits(req, tt.at+1)) })
			} else {
				written := done
				b.watch(kmsg.Produce, func(kmsg.Request) error { written++; return kill(written == tt.at+1) })
			}
			require.NoError(t, child.Start())
			close(started)
			err := child.Wait()
			close(gone)
			require.EqualError(t, err, "signal: killed", "%s", &out)

			inTarget := int(tt.at)
			if tt.acknowledged {
				inTarget++
			}
			require.Equal(t, replayedValues(inTarget), b.values("orders"))
			require.Equal(t, tt.at, b.Committed(group, dlq)[0])

			dry := b.must()
			if tt.acknowledged {
				assert.Contains(t, dry.stdout, fmt.Sprintf("orders.dlq/0 at %d: done: an earlier run has written it to orders/0;", tt.at))
			}
			lookups := b.lookups("orders")
			got := b.must("-replay")
			assert.Contains(t, got.stderr, "waiting for the group orders.dlq.redrive, at most 8s: a run is at work, or was killed\n")
			assert.Equal(t, inTarget > 0, lookups.Hits() > 0, "there is something to look at")
			assert.Equal(t, replayedValues(letters), b.values("orders"))
			assert.Equal(t, tt.acknowledged, strings.Contains(got.stdout, "; 1 were there already, "), got.stdout)
		})
	}
}

// What is in doubt stays so while other runs do not come to it.
func TestDoubtLasts(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders", Partitions: 2})
	b.letters(sample{value: "2", on: 1}, sample{value: "3", on: 1})
	for _, value := range []string{"0", "1"} { // at 0 and 2: a transaction's end has an offset, too
		require.NoError(t, b.ProduceWith(kgrouptest.How{Transaction: kgrouptest.Commit}, dlq, kgrouptest.Record{
			Value: []byte(value), Headers: []kgrouptest.Header{{Key: "kgroup-origin-topic", Value: []byte("orders")}},
		}.On(0)))
	}
	b.must("-replay", "-limit", "1")
	// As after a kill between acknowledgement and commit of partition 0's second letter:
	// it is there, and the partition's last commit is one of a run at work.
	b.must("-replay", "-partition", "0", "-group", "other", "-from", "1")
	b.commit(group, 0, 1, "kgroup/1 o=1")
	require.Equal(t, []string{"0*", "1*"}, b.values("orders"))

	b.must("-replay", "-partition", "1", "-limit", "1")
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	b.watch(kmsg.OffsetFetch, func(req kmsg.Request) error {
		if req.GetVersion() < 8 { // kgroup's: the run has begun, and has come to no letter
			interrupt()
		}
		return nil
	})
	require.Error(t, b.run(ctx, "-replay").err)
	require.Equal(t, []string{"0*", "1*", "2*"}, b.values("orders"))
	got := b.must("-replay")
	assert.Contains(t, got.stdout, "2 of 2 letters: 1 replayed, ")
	assert.Equal(t, []string{"0*", "1*", "2*", "3*"}, b.values("orders"))
}

// commit commits an offset of the dead-letter topic for a group without members.
func (b bed) commit(group string, partition int32, offset int64, metadata string) {
	b.t.Helper()
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: dlq, Partition: partition, At: offset, LeaderEpoch: -1, Metadata: metadata})
	require.NoError(b.t, b.admin().CommitAllOffsets(b.t.Context(), group, offsets))
}

func (b bed) admin() *kadm.Client {
	b.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(b.Addrs()...), kgo.DisableClientMetrics())
	require.NoError(b.t, err)
	b.t.Cleanup(client.Close)
	return kadm.NewClient(client)
}

func TestTargetDoesNotExist(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders"})
	b.letters(sample{value: "a"}, sample{value: "b", origin: "refunds"}, sample{value: "c", origin: "refunds"})
	const says = "topic refunds does not exist, and 2 letters are to go there: create it, name another with -to-topic, or leave them out (-origin, -partition, -from)"
	dry := b.run(t.Context())
	require.EqualError(t, dry.err, says)
	assert.Contains(t, dry.stdout, "orders.dlq/0 at 1: cannot go to refunds, which does not exist; ")
	require.EqualError(t, b.run(t.Context(), "-replay").err, says)
	assert.Empty(t, b.values("orders"), "nothing at all is written")
	assert.Equal(t, "Dead", b.Group(group).State)
	assert.Nil(t, b.Cluster().TopicInfo("refunds"), "nor is the topic made")

	require.NoError(t, b.CreateTopic(kgrouptest.Topic{Name: "refunds"}))
	b.must("-replay")
	assert.Equal(t, []string{"a*"}, b.values("orders"))
	assert.Equal(t, []string{"b*", "c*"}, b.values("refunds"))
}

// What the brokers refuse ends the run, and the next one goes on with that letter.
func TestRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  *kerr.Error
		says string
	}{
		{kerr.UnknownTopicOrPartition, "(the topic is gone)"},
		{kerr.MessageTooLarge, "(raise the topic's max.message.bytes, or leave the letter out with -from, -to or -key)"},
		{kerr.TopicAuthorizationFailed, "(the ACLs must allow this user to write to the topic)"},
		{kerr.InvalidTimestamp, "(the topic takes no messages that are so old: see message.timestamp.before.max.ms)"},
	} {
		t.Run(tt.err.Message, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, kgrouptest.Topic{Name: "orders"})
			b.letters(numbered(4)...)
			var written atomic.Int32
			b.watch(kmsg.Produce, func(kmsg.Request) error { written.Add(1); return nil })
			fault := b.Cluster().Fault(kfake.Fault{
				Keys: []kmsg.Key{kmsg.Produce}, Err: tt.err, Count: -1,
				When: func(kmsg.Request) bool { return written.Load() > 2 },
			})
			got := b.run(t.Context(), "-replay")
			require.ErrorContains(t, got.err, "replay orders.dlq/0 at 2 to orders/0: "+tt.err.Message)
			require.ErrorContains(t, got.err, tt.says+"\n2 letters are left; run it again to go on")
			assert.Contains(t, got.stdout, "2 of 4 letters: 2 replayed, ")
			assert.NotContains(t, got.stderr, "level=", "the error is said once")
			assert.Equal(t, int64(2), b.Committed(group, dlq)[0])

			fault.Remove()
			b.must("-replay")
			assert.Equal(t, replayedValues(4), b.values("orders"))
		})
	}
}

// member is another consumer in the group, whose handler settles nothing.
func (b bed) member(ctx context.Context) (leave func()) {
	b.t.Helper()
	ctx, stop := context.WithCancel(ctx)
	consumer, err := kgroup.New(kgroup.Config{
		Brokers: b.Addrs(), Group: group, Logger: slog.New(slog.DiscardHandler),
		Topics: kgroup.Topics{dlq: {Handler: kgroup.HandlerFunc(func(context.Context, kgroup.Message) error {
			return kgroup.RetryAfter(errors.New("no"), time.Hour)
		})}},
	})
	require.NoError(b.t, err)
	ended := make(chan error, 1)
	go func() { ended <- consumer.Run(ctx) }()
	select {
	case <-consumer.Ready():
	case err := <-ended:
		require.NoError(b.t, err)
	}
	return func() {
		stop()
		assert.NoError(b.t, <-ended)
	}
}

func TestGroupIsAtWork(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders"})
	b.letters(numbered(1)...)
	leave := b.member(t.Context())
	defer leave()
	assert.Contains(t, b.must().stdout, "1 to replay", "a dry run does not mind")
	got := b.run(t.Context(), "-replay", "-session", "2s")
	require.EqualError(t, got.err, "the group orders.dlq.redrive is at work: is another redrive running? Let it end, or name another group with -group")
	assert.Empty(t, b.values("orders"))
}

func TestAnotherMemberJoins(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders", Partitions: 2})
	samples := numbered(60) // for 12 s
	for i := range samples {
		samples[i].on = int32(i % 2)
	}
	b.letters(samples...)
	ended := make(chan said, 1)
	go func() { ended <- b.run(t.Context(), "-replay", "-rate", "5") }()
	b.eventually("orders", 2)
	leave := b.member(t.Context())
	got := <-ended
	leave()
	require.ErrorContains(t, got.err, "another member has joined the group orders.dlq.redrive")
	require.ErrorContains(t, got.err, "run it again to go on")
	b.must("-replay")
	assert.Equal(t, replayedValues(60), b.values("orders"))
}

// A log that ends in what is no message, and transactions that were aborted.
func TestTransactions(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders"})
	headers := []kgrouptest.Header{{Key: "kgroup-origin-topic", Value: []byte("orders")}}
	for _, tx := range []struct {
		outcome kgrouptest.Transaction
		value   string
	}{{kgrouptest.Commit, "0"}, {kgrouptest.Abort, "x"}, {kgrouptest.Commit, "1"}, {kgrouptest.Abort, "y"}} {
		require.NoError(t, b.ProduceWith(kgrouptest.How{Transaction: tx.outcome}, dlq, kgrouptest.Record{Value: []byte(tx.value), Headers: headers}.On(0)))
	}
	require.NoError(t, b.ProduceWith(kgrouptest.How{Transaction: kgrouptest.Abort}, "orders", kgrouptest.Record{Value: []byte("z")}))
	b.must("-replay")
	assert.Equal(t, replayedValues(2), b.values("orders"))
	assert.Contains(t, b.must("-replay", "-verify", "-group", "other").stdout, "2 of 2 letters: 0 replayed, 0.0 a second; 2 were there already")
	assert.Equal(t, replayedValues(2), b.values("orders"))
}

// Letters that Kafka deletes before they were delivered are not waited for.
func TestLettersAreDeleted(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders", Partitions: 2})
	b.letters(sample{value: "0"}, sample{value: "1", on: 1})
	b.Cluster().Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Fetch}, Topic: dlq, Partitions: []int32{1}, Err: kerr.LeaderNotAvailable, Count: -1,
		When: func(req kmsg.Request) bool { return req.GetVersion() <= 11 }, // kgroup's, not those of the plan
	})
	ended := make(chan said, 1)
	go func() { ended <- b.run(t.Context(), "-replay", "-progress", "50ms") }()
	b.eventually("orders", 1)
	upTo := kadm.Offsets{}
	upTo.Add(kadm.Offset{Topic: dlq, Partition: 1, At: 1})
	deleted, err := b.admin().DeleteRecords(t.Context(), upTo)
	require.NoError(t, err)
	require.NoError(t, deleted.Error())
	got := <-ended
	require.NoError(t, got.err)
	assert.Contains(t, got.stdout, "\n1 letters are gone: Kafka has deleted them meanwhile\n")
}

// Both clients, the one that reads and the one that writes, know who they are.
func TestSecured(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(nil) // only for its certificate, which is for 127.0.0.1
	server.StartTLS()
	defer server.Close()
	const user, secret = "alice", "alice-secret"
	broker, err := kgrouptest.New(kgrouptest.Config{
		Topics: []kgrouptest.Topic{{Name: dlq}, {Name: "orders"}},
		TLS:    &tls.Config{Certificates: server.TLS.Certificates}, //nolint:gosec // a broker of a test
		Users:  []kgrouptest.User{{Name: user, Password: secret, Mechanism: "SCRAM-SHA-512"}},
	})
	require.NoError(t, err)
	defer broker.Close()
	b := bed{broker, t}
	b.letters(sample{value: "a"})

	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, content, 0o600))
		return path
	}
	ca := file("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	as := []string{"-protocol", "SASL_SSL", "-ca", ca, "-user", user, "-secret-file", file("secret", []byte(secret+"\n"))}
	b.must(append(as, "-replay")...)
	assert.Equal(t, []string{"a*"}, b.values("orders"))

	as[len(as)-1] = file("wrong", []byte("wrong"))
	refused := b.run(t.Context(), as...)
	require.ErrorContains(t, refused.err, "check -brokers, -protocol and who may connect")
	assert.NotContains(t, refused.err.Error()+refused.stdout+refused.stderr, "wrong")
	require.ErrorContains(t, b.run(t.Context(), slices.Concat(as, []string{"-mechanism", "GSSAPI"})...).err, `"GSSAPI" is unknown`)
}

// A plan is not carried out when another run may have done so meanwhile.
func TestPlanIsOutOfDate(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders"})
	b.letters(numbered(2)...)
	s, err := parse([]string{"-brokers", b.Addrs()[0], "-topic", dlq, "-replay"}, io.Discard)
	require.NoError(t, err)
	k, err := connect(t.Context(), s)
	require.NoError(t, err)
	defer k.close()
	p, err := makePlan(t.Context(), k, s)
	require.NoError(t, err)
	b.must("-replay")
	require.EqualError(t, replay(t.Context(), p, console{io.Discard, io.Discard}), "the group orders.dlq.redrive has moved since the plan was made: is another redrive running? Run it again")
	assert.Equal(t, replayedValues(2), b.values("orders"))
}

func TestNothingIsThere(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	assert.Contains(t, b.must("-replay").stdout, "orders.dlq: 0 letters for the group orders.dlq.redrive, 0 to replay\n")
	require.EqualError(t, b.run(t.Context(), "-topic", "ordres.dlq").err, "the dead-letter topic ordres.dlq does not exist: check -topic, and that this user may see it")
	require.EqualError(t, b.run(t.Context(), "-partition", "2").err, "topic orders.dlq has 2 partitions, and no -partition 2")
}
