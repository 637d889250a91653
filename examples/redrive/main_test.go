package main

// The program is run as it is, on an embedded broker: what it prints, what its targets
// have then, and where its group stands.

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/kgrouptest"
)

// childArgs is set where the test program is to be redrive itself, so that it can be
// killed.
const childArgs = "REDRIVE_CHILD"

func TestMain(m *testing.M) {
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "KAFKA_") {
			_ = os.Unsetenv(name)
		}
	}
	if args := os.Getenv(childArgs); args != "" {
		os.Args = append(os.Args[:1], strings.Fields(args)...)
		main()
		os.Exit(0)
	}
	// go-metrics starts a ticker with sarama's first meter and never stops it.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

const dlq, group = "orders.dlq", "orders.dlq.redrive"

// A bed is a broker with a dead-letter topic and what the program says.
type bed struct {
	*kgrouptest.Broker
	t *testing.T
}

func newBed(t *testing.T, topics ...kgrouptest.Topic) bed {
	t.Helper()
	broker, err := kgrouptest.New(kgrouptest.Config{Brokers: 3, Topics: append(topics, kgrouptest.Topic{Name: dlq, Partitions: 2})})
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	return bed{broker, t}
}

// A said is what a run has written, and its error.
type said struct {
	stdout, stderr string
	err            error
}

func (b bed) run(ctx context.Context, args ...string) said {
	b.t.Helper()
	var stdout, stderr bytes.Buffer
	err := run(ctx, append([]string{"-brokers", strings.Join(b.Addrs(), ","), "-topic", dlq, "-rate", "0"}, args...), console{&stdout, &stderr})
	return said{stdout.String(), stderr.String(), err}
}

// must runs the program to a good end.
func (b bed) must(args ...string) said {
	b.t.Helper()
	got := b.run(b.t.Context(), args...)
	require.NoError(b.t, got.err, "%s\n%s", got.stdout, got.stderr)
	return got
}

// failedAt is when the letters of these tests failed, unless they say otherwise.
var failedAt = time.Now().Add(-time.Hour).Truncate(time.Millisecond)

// A sample is a letter of kgroup's.
type sample struct {
	key, value string
	on         int32 // partition, of the dead-letter topic and of where it comes from
	origin     string
	reason     string
	failed     time.Time
	sent       time.Time
	redrives   string
}

func (b bed) letters(samples ...sample) {
	b.t.Helper()
	for i, s := range samples {
		if s.failed.IsZero() {
			s.failed = failedAt
		}
		if s.sent.IsZero() {
			s.sent = s.failed.Add(-time.Second)
		}
		if s.origin == "" {
			s.origin = "orders"
		}
		r := kgrouptest.Record{Key: []byte(s.key), Value: []byte(s.value), Timestamp: s.sent}
		add := func(key, value string) {
			r.Headers = append(r.Headers, kgrouptest.Header{Key: key, Value: []byte(value)})
		}
		add("trace", "t-"+s.value)
		if s.redrives != "" {
			add(countHeader, s.redrives)
		}
		add("kgroup-origin-topic", s.origin)
		add("kgroup-origin-partition", strconv.Itoa(int(s.on)))
		add("kgroup-origin-offset", strconv.Itoa(100+i))
		add("kgroup-failed-at", s.failed.UTC().Format("2006-01-02T15:04:05.000Z07:00"))
		add("kgroup-error", s.reason)
		require.NoError(b.t, b.Produce(dlq, r.On(s.on)))
	}
}

// values are what a topic has, sorted: "value" or "value*" if it was replayed.
func (b bed) values(topic string) []string {
	b.t.Helper()
	messages, err := b.Messages(topic)
	require.NoError(b.t, err)
	all := []string{}
	for _, m := range messages {
		value := string(m.Value)
		if header(m, letterHeader) != "" {
			value += "*"
		}
		all = append(all, value)
	}
	slices.Sort(all)
	return all
}

func header(m kgrouptest.Message, key string) string {
	for _, h := range slices.Backward(m.Headers) {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

func numbered(n int) []sample {
	all := make([]sample, n)
	for i := range all {
		all[i] = sample{value: strconv.Itoa(i), reason: "no " + strconv.Itoa(i)}
	}
	return all
}

func replayedValues(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = strconv.Itoa(i) + "*"
	}
	slices.Sort(all)
	return all
}

func TestDryRunChangesNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders", Partitions: 2})
	b.letters(sample{key: "A-7", value: "a", reason: "card\ndeclined"}, sample{value: "b", on: 1, redrives: "2"}, sample{value: "c", redrives: "3"}, sample{key: "A-8", value: "d"})
	at := failedAt.UTC().Format(time.RFC3339)
	lines := []string{
		`orders.dlq/0 at 0: to orders/0; key "A-7", failed ` + at + `: "card\ndeclined"`,
		`orders.dlq/0 at 1: stays: it keeps coming back (replayed 3 times, -max-redrives 3); key "", failed ` + at + `, replayed 3 times`,
		`orders.dlq/0 at 2: to orders/0; key "A-8", failed ` + at,
		`orders.dlq/1 at 0: to orders/1; key "", failed ` + at + `, replayed 2 times`,
	}
	first := b.must()
	assert.Equal(t, strings.Join(append(lines,
		`orders.dlq: 4 letters for the group orders.dlq.redrive, 3 to replay`,
		`  3: to the topic orders`,
		`  1: stays: it keeps coming back (replayed 3 times, -max-redrives 3)`,
		`  the group has no offsets: it is new, or has not run for so long that they are gone (offsets.retention.minutes); -verify finds what was replayed before`,
	), "\n")+"\n", first.stdout)
	assert.Empty(t, first.stderr)
	assert.Empty(t, b.values("orders"))
	assert.Equal(t, "Dead", b.Group(group).State, "there is no group")

	// Of a group that stands somewhere, and in doubt, not even the metadata change.
	b.must("-replay", "-partition", "0", "-to", "1")
	before := *b.Cluster().GroupInfo(group)
	second := b.must()
	assert.Equal(t, append(lines[1:],
		`orders.dlq: 3 letters for the group orders.dlq.redrive, 2 to replay`,
		`  2: to the topic orders`,
		`  1: stays: it keeps coming back (replayed 3 times, -max-redrives 3)`,
	), strings.Split(strings.TrimSuffix(second.stdout, "\n"), "\n"))
	assert.Equal(t, before, *b.Cluster().GroupInfo(group))
	assert.Equal(t, []string{"a*"}, b.values("orders"))
}

// All that a letter has is kept, but for the two headers that a replay writes.
func TestReplayKeepsTheMessage(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders", Partitions: 2})
	sent := time.UnixMilli(1_700_000_000_123)
	headers := []kgrouptest.Header{
		{Key: "a", Value: []byte("1")}, {Key: "a", Value: []byte("2")}, {Key: "empty", Value: []byte{}}, {Key: "null"},
		{Key: letterHeader, Value: []byte("orders.dlq/9/9")}, {Key: countHeader, Value: []byte("1")},
		{Key: "kgroup-origin-topic", Value: []byte("orders")}, {Key: "kgroup-origin-partition", Value: []byte("1")},
	}
	require.NoError(t, b.Produce(dlq,
		kgrouptest.Record{Key: []byte("k"), Value: []byte("v"), Headers: headers, Timestamp: sent}.On(0),
		kgrouptest.Record{Key: []byte("deleted"), Headers: headers[6:], Timestamp: sent}.On(0),
		kgrouptest.Record{Value: []byte{}, Headers: headers[6:], Timestamp: sent}.On(0)))
	got := b.must("-replay")
	assert.Contains(t, got.stdout, "3 of 3 letters: 3 replayed, ")
	assert.Empty(t, got.stderr)

	messages, err := b.Messages("orders")
	require.NoError(t, err)
	added := func(count, letter string) []kgrouptest.Header {
		return []kgrouptest.Header{{Key: countHeader, Value: []byte(count)}, {Key: letterHeader, Value: []byte(letter)}}
	}
	assert.Equal(t, []kgrouptest.Message{
		{Partition: 1, Offset: 0, Key: []byte("k"), Value: []byte("v"), Timestamp: sent, Headers: slices.Concat(headers[:4], headers[6:], added("2", "orders.dlq/0/0@1700000000123"))},
		{Partition: 1, Offset: 1, Key: []byte("deleted"), Timestamp: sent, Headers: slices.Concat(headers[6:], added("1", "orders.dlq/0/1@1700000000123"))},
		{Partition: 1, Offset: 2, Value: []byte{}, Timestamp: sent, Headers: slices.Concat(headers[6:], added("1", "orders.dlq/0/2@1700000000123"))},
	}, messages)
}

// Letters as kgroup writes them, in each style of headers.
func TestStyles(t *testing.T) {
	t.Parallel()
	for _, style := range []kgroup.DeadLetterHeaders{kgroup.KgroupHeaders, kgroup.SpringHeaders, kgroup.ConnectHeaders} {
		t.Run(style.String(), func(t *testing.T) {
			t.Parallel()
			b := newBed(t, kgrouptest.Topic{Name: "orders", Partitions: 2})
			sent := time.Now().Add(-2 * time.Hour).Truncate(time.Millisecond)
			for i := range 4 {
				require.NoError(t, b.Produce("orders", kgrouptest.Record{Key: []byte("k"), Value: []byte{byte('a' + i)}, Timestamp: sent}.On(int32(i%2))))
			}
			b.serve("orders", style, 4, func(msg kgroup.Message) error { return fmt.Errorf("no %s", msg.Value) })
			dry := b.must("-error", "no [a-c]")
			for _, line := range []string{"orders.dlq/0 at 0: to orders/0;", "orders.dlq/0 at 1: to orders/0;", "orders.dlq/1 at 0: to orders/1;"} {
				assert.Contains(t, dry.stdout, line)
			}
			assert.Contains(t, dry.stdout, `1: left out by -error`)
			assert.Contains(t, b.must("-max-age", "1h", "-group", "age").stdout, "4: left out by -max-age", "the message's age, not the letter's")

			b.must("-replay")
			assert.Equal(t, []string{"a", "a*", "b", "b*", "c", "c*", "d", "d*"}, b.values("orders"))
			messages, err := b.Messages("orders")
			require.NoError(t, err)
			for _, m := range messages {
				assert.Equal(t, sent, m.Timestamp)
				assert.Equal(t, "k", string(m.Key))
				assert.Equal(t, int32(m.Value[0]-'a')%2, m.Partition)
			}
		})
	}
}

// serve is a service whose orders become letters where handle fails; it ends when so many
// have been handled, or have.
func (b bed) serve(topic string, style kgroup.DeadLetterHeaders, messages int, handle func(kgroup.Message) error) {
	b.t.Helper()
	ctx, stop := context.WithCancel(b.t.Context())
	defer stop()
	var mu sync.Mutex
	settle := func() {
		mu.Lock()
		defer mu.Unlock()
		if messages--; messages == 0 {
			stop()
		}
	}
	consumer, err := kgroup.New(kgroup.Config{
		Brokers: b.Addrs(), Group: "billing",
		Topics: kgroup.Topics{topic: {
			DeadLetter: dlq, DeadLetterHeaders: style,
			Handler: kgroup.HandlerFunc(func(_ context.Context, msg kgroup.Message) error {
				err := handle(msg)
				if err == nil {
					settle()
				}
				return kgroup.Permanent(err)
			}),
		}},
		Logger: slog.New(slog.DiscardHandler),
		Hooks:  kgroup.Hooks{DeadLetter: func(*kgroup.HandlerError) { settle() }},
	})
	require.NoError(b.t, err)
	require.NoError(b.t, consumer.Run(ctx))
}

func TestFilters(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders", Partitions: 2}, kgrouptest.Topic{Name: "refunds", Partitions: 2})
	now := time.Now()
	b.letters(
		sample{value: "a", key: "x", failed: now.Add(-5 * time.Hour), sent: now.Add(-30 * time.Hour), reason: "timeout"},
		sample{value: "b", key: "y", failed: now.Add(-3 * time.Hour), reason: "connection reset"},
		sample{value: "c", key: "", failed: now.Add(-1 * time.Hour), origin: "refunds", reason: "not a number"},
		sample{value: "d", key: "x", failed: now.Add(-4 * time.Hour), on: 1, reason: "timeout"},
		sample{value: "e", key: "x2", failed: now.Add(-2 * time.Hour), on: 1, origin: "refunds"},
	)
	require.NoError(t, b.Produce(dlq, kgrouptest.Record{Value: []byte("f"), Timestamp: now}.On(1))) // no letter's headers, no key
	names := map[string]string{"0 at 0": "a", "0 at 1": "b", "0 at 2": "c", "1 at 0": "d", "1 at 1": "e", "1 at 2": "f"}
	for _, tt := range []struct {
		args, want string // what would be replayed
	}{
		{"", "abcde"},
		{"-from 1", "bce"},
		{"-to 1", "ad"},
		{"-from 1 -to 2", "be"},
		{"-from 3h30m", "bce"},
		{"-to 150m", "abd"},
		{"-from 210m -to 90m", "be"},
		{"-from " + now.Add(-210*time.Minute).Format(time.RFC3339) + " -to 2", "be"},
		{"-partition 1", "de"},
		{"-partition 1 -from 1", "e"},
		{"-origin refunds", "ce"},
		{"-key x", "ad"},
		{"-key=", "c"},
		{"-error timeout|reset", "abd"},
		{"-error ^reset", ""},
		{"-error .", "abcd"},
		{"-max-age 24h", "bcde"},
		{"-max-age 24h -error timeout -key x", "d"},
		{"-limit 1", "a"},
		{"-limit 4", "abcd"},
		{"-limit 2 -origin refunds", "ce"},
		{"-to-topic orders", "abcdef"},
		{"-to-topic orders -max-age 1m", "f"},
		{"-to-topic orders -key=", "c"}, // no key is not an empty one
	} {
		t.Run("with "+tt.args, func(t *testing.T) {
			var got string
			for line := range strings.Lines(b.must(strings.Fields(tt.args)...).stdout) {
				letter, isLetter := strings.CutPrefix(line, "orders.dlq/")
				if where, to, ok := strings.Cut(letter, ": to "); ok && isLetter {
					got += names[where]
					if strings.Contains(tt.args, "-to-topic") {
						assert.Contains(t, to, "orders/")
					}
				}
			}
			assert.Equal(t, tt.want, got)
		})
	}
	assert.Contains(t, b.must().stdout, "orders.dlq/1 at 2: stays: no header says which topic it comes from (-to-topic names one); failed")
}

// The group goes over what is left out on the way, but no further than to the last letter
// that was replayed.
func TestWhereTheGroupStands(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders", Partitions: 2})
	b.letters(
		sample{value: "a", key: "x"}, sample{value: "b", key: "y"}, sample{value: "c", key: "x"}, sample{value: "d", key: "y"},
		sample{value: "e", key: "y", on: 1},
	)
	b.must("-replay", "-key", "z")
	assert.Equal(t, "Dead", b.Group(group).State, "nothing is replayed, nothing moves")

	got := b.must("-replay", "-key", "x")
	assert.Contains(t, got.stdout, "2 of 2 letters: 2 replayed, ")
	assert.Contains(t, got.stdout, "; 1 left out, ")
	assert.Equal(t, map[int32]int64{0: 3, 1: 0}, b.Committed(group, dlq))
	assert.Equal(t, []string{"a*", "c*"}, b.values("orders"))

	b.must("-replay")
	assert.Equal(t, map[int32]int64{0: 4, 1: 1}, b.Committed(group, dlq))
	assert.Equal(t, []string{"a*", "c*", "d*", "e*"}, b.values("orders"))

	// Another group comes back for b, and finds the others where they are.
	again := b.must("-replay", "-group", "second", "-verify")
	assert.Contains(t, again.stdout, "5 of 5 letters: 1 replayed, ")
	assert.Contains(t, again.stdout, "; 4 were there already, ")
	assert.Equal(t, []string{"a*", "b*", "c*", "d*", "e*"}, b.values("orders"))
	assert.Contains(t, b.must("-group", "third", "-verify").stdout, "orders.dlq/0 at 1: done: an earlier run has written it to orders/0;")
}

// A partition that has come to the end of its part stays there while others go on.
func TestRangeOfOffsets(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders", Partitions: 2})
	samples := numbered(8)
	for i := range samples {
		samples[i].on = int32(i % 2)
	}
	b.letters(samples...)
	b.must("-replay", "-from", "1", "-to", "3", "-rate", "20")
	assert.Equal(t, []string{"2*", "3*", "4*", "5*"}, b.values("orders"))
	assert.Equal(t, map[int32]int64{0: 3, 1: 3}, b.Committed(group, dlq))

	b.must("-replay", "-limit", "1")
	assert.Equal(t, []string{"2*", "3*", "4*", "5*", "6*"}, b.values("orders"))
	b.must("-replay")
	assert.Equal(t, []string{"2*", "3*", "4*", "5*", "6*", "7*"}, b.values("orders"))
}

func TestToTopic(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders"}, kgrouptest.Topic{Name: "trial", Partitions: 1})
	b.letters(sample{value: "a"}, sample{value: "b", on: 1})
	b.must("-replay", "-to-topic", "trial")
	assert.Equal(t, []string{"a*", "b*"}, b.values("trial"))
	assert.Empty(t, b.values("orders"))
}

// A letter that is replayed again and again is counted, through the service that makes
// a new letter of it, and stays in the end.
func TestWhatKeepsComingBack(t *testing.T) {
	t.Parallel()
	b := newBed(t, kgrouptest.Topic{Name: "orders"})
	require.NoError(t, b.Produce("orders", kgrouptest.Record{Value: []byte("bad")}, kgrouptest.Record{Value: []byte("good")}))
	fails := func(kgroup.Message) error { return fmt.Errorf("no") }
	b.serve("orders", kgroup.KgroupHeaders, 2, fails)
	b.must("-replay", "-max-redrives", "2")
	b.serve("orders", kgroup.KgroupHeaders, 2, func(msg kgroup.Message) error {
		if string(msg.Value) == "good" {
			return nil
		}
		return fails(msg)
	})
	b.must("-replay", "-max-redrives", "2")
	b.serve("orders", kgroup.KgroupHeaders, 1, fails)

	got := b.must("-replay", "-max-redrives", "2")
	const stays = "1: stays: it keeps coming back (replayed 2 times, -max-redrives 2)"
	assert.Contains(t, got.stdout, "1 letters for the group orders.dlq.redrive, 0 to replay\n  "+stays)
	assert.Contains(t, b.must("-max-redrives", "2").stdout, stays, "the next time too")
	assert.Equal(t, []string{"bad", "bad*", "bad*", "good", "good*"}, b.values("orders"))

	// It holds up no others, and goes when somebody says so.
	b.letters(sample{value: "next"})
	got = b.must("-replay", "-max-redrives", "2")
	assert.Contains(t, got.stdout, "1 of 1 letters: 1 replayed, ")
	assert.Contains(t, got.stdout, "; 1 stay, ")
	b.must("-replay", "-max-redrives", "3", "-group", "again", "-verify")
	assert.Equal(t, []string{"bad", "bad*", "bad*", "bad*", "good", "good*", "next*"}, b.values("orders"))
}
