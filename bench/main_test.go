//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	cluster "github.com/bsm/sarama-cluster"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/kgrouptest"
)

// The contenders run in processes of this program, which in a test is the test.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == contenderCommand {
		os.Exit(status(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// Everything once, on the embedded broker, with times too short to say anything.
func TestOverhead(t *testing.T) {
	t.Parallel()
	profiles := t.TempDir()
	var out bytes.Buffer
	err := run(t.Context(), []string{
		"overhead", "-broker", "embedded", "-rounds", "1", "-duration", "50ms", "-warmup", "1ms",
		"-records", "160000", "-headers", "-json", "-cpuprofile", profiles,
	}, &out, t.Output())
	require.NoError(t, err)

	type line struct {
		Kind, Match string
		Broker      string
		Headers     int
		Runs        map[string]sample
		Comparisons []comparison
	}
	var lines []line
	for text := range strings.Lines(out.String()) {
		var l line
		require.NoError(t, json.Unmarshal([]byte(text), &l), text)
		lines = append(lines, l)
	}
	var kinds []string
	for _, l := range lines {
		kinds = append(kinds, l.Kind+" "+l.Match)
	}
	require.Equal(t, []string{"machine ", "round Multiplex", "summary Multiplex", "round Partitions", "summary Partitions"}, kinds)
	assert.Equal(t, "embedded", lines[0].Broker)
	assert.Equal(t, 3, lines[0].Headers)
	// In Multiplex mode the best settings that we know are kgroup's own.
	for at, contenders := range map[int]int{1: 3, 3: 4} {
		require.Len(t, lines[at].Runs, contenders)
		for name, s := range lines[at].Runs {
			assert.Positive(t, s.Messages, name)
			assert.Positive(t, s.CPU, name)
			assert.Positive(t, s.Seconds, name)
			assert.InDelta(t, float64(s.Messages)/s.Seconds, s.Rate, 1, name)
		}
		assert.Len(t, lines[at+1].Comparisons, contenders-1)
	}
	for _, name := range []string{"multiplex-kgroup-1.pprof", "partitions-raw-1.pprof"} {
		assert.FileExists(t, filepath.Join(profiles, name))
	}
}

// The files of two contenders have the same names in them, or benchstat would not
// compare them.
func TestCalm(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "new")
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{
		"calm", "-broker", "embedded", "-rounds", "2", "-duration", "50ms", "-warmup", "1ms",
		"-records", "160000", "-benchstat", folder,
	}, &out, t.Output()))
	assert.Contains(t, out.String(), "kgroup-letters against kgroup, within rounds")
	assert.Contains(t, out.String(), "kgroup-again against kgroup, within rounds")
	for _, name := range []string{nameKgroup, nameLetters, nameKgroupAgain} {
		text, err := os.ReadFile(filepath.Join(folder, name+".txt"))
		require.NoError(t, err)
		number := `[0-9.e+]+`
		for _, mode := range []string{"multiplex", "partitions"} {
			line := `(?m)^BenchmarkMessage/` + mode + `-\d+ \d+ ` + number + ` msgs/s ` + number + ` cpu-ns/op ` + number + ` allocs/op ` + number + ` B/op$`
			assert.Len(t, regexp.MustCompile(line).FindAllString(string(text), -1), 2, "%s in\n%s", mode, text)
		}
	}
}

// What calm compares is configured on one side only.
func TestCalmConfigures(t *testing.T) {
	for name, want := range map[string]kgroup.Topic{
		"":      {},
		letters: {DeadLetter: letters, Retry: kgroup.Retry{MaxAttempts: 5}},
	} {
		got := job{setup: setup{Letters: name}, Topic: topic{Name: "bench"}}.config(nothing).Topics["bench"]
		got.Handler = nil
		assert.Equal(t, want, got)
	}
}

// All libraries read, and say what they promise.
func TestPeers(t *testing.T) {
	t.Parallel()
	for _, flags := range []string{"", "-tls"} {
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), strings.Fields(
			"peers -broker embedded -rounds 1 -duration 50ms -warmup 1ms -records 160000 "+flags), &out, t.Output()))
		for _, against := range []string{"raw-multiplex", "sarama", "franz-go", "kafka-go", "watermill"} {
			assert.Contains(t, out.String(), "kgroup-multiplex against "+against+", within rounds")
		}
		assert.NotContains(t, out.String(), "kgroup-multiplex against raw-partitions")
		assert.Contains(t, out.String(), "sarama-again against sarama, within rounds")
		for _, kind := range []string{"raw", "kgroup", "sarama", "franz-go", "kafka-go", "watermill"} {
			assert.Contains(t, out.String(), libraries()[kind].guarantee)
		}
	}
}

// Joining and leaving, once for everybody.
func TestStall(t *testing.T) {
	t.Parallel() // it waits most of the time
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), strings.Fields("stall -broker embedded -rounds 1 -mode partitions -rest 200ms -json"), &out, t.Output()))
	var got struct {
		Kind       string
		Failed     int `json:"failed_runs"`
		Notes      []string
		Contenders map[string]struct{ Numbers map[string]spread }
	}
	for line := range strings.Lines(out.String()) {
		require.NoError(t, json.Unmarshal([]byte(line), &got))
	}
	require.Equal(t, "summary", got.Kind)
	assert.Zero(t, got.Failed, out.String())
	for _, name := range []string{"raw-partitions", "kgroup-partitions", nameSarama, "franz-go", nameSaramaAgain} {
		numbers := got.Contenders[name].Numbers
		assert.Positive(t, numbers["join_worst_ms"].Median, name)
		assert.Positive(t, numbers["leave_worst_ms"].Median, name)
		assert.Zero(t, numbers["skipped"].Max, name)
	}
	assert.Len(t, got.Notes, 4)
}

// Every round has a part of the second to itself.
func TestMoments(t *testing.T) {
	const rounds = 20
	var parts [2]map[int]bool
	for i := range parts {
		parts[i] = map[int]bool{}
		for n := range rounds {
			m := moments(1, rounds, n)
			assert.Equal(t, m, moments(1, rounds, n), "the same for all contenders")
			parts[i][int(m[i]*rounds/heartbeat)] = true
		}
		assert.Len(t, parts[i], rounds)
	}
	assert.NotEqual(t, moments(1, rounds, 3), moments(2, rounds, 3))
}

func TestKeyed(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), strings.Fields(
		"keyed -broker embedded -rounds 1 -duration 50ms -warmup 1ms -records 100000 -handlers 0,1ms -workers 4 -partitions 1 -mode partitions"), &out, t.Output()))
	for _, c := range []string{"0s, 1 partitions, 4 workers, uniform", "0s, 1 partitions, 4 workers, zipf", "1ms, 1 partitions, 4 workers, uniform", "1ms, 1 partitions, 4 workers, zipf"} {
		number := ` +[\d.]+`
		assert.Regexp(t, "(?s)"+c+", medians\n.*  bare-loop"+number+number+".*  kgroup-partitions"+number+number+number+".*  raw-partitions"+number+number+number+".*  fixed-hash"+number+number+".*  no-order"+number+number, out.String())
	}
	assert.NotContains(t, out.String(), "runs failed")
}

// Four goroutines that need 2 ms each handle 2000 a second. A key with half of the
// messages of its partition allows 1000, and 2000 in two partitions.
// Zipf's law lets other keys run ahead for a while: then the share is more than 1, and
// what counts is whether the busiest key was at work all the time.
func TestBusiestKey(t *testing.T) {
	zipf := keys{Count: 10_000, Exponent: 1.1}
	j := job{Topic: topic{Partitions: 2, Keys: zipf}}
	m := newMeter(2, 0)
	m.work = func(int32, []byte, []byte) {}
	j.countBusiest(m)
	for range 3 {
		m.handle(1, key(1, 0), nil)
		m.handle(1, key(1, 1), nil)
		m.handle(1, key(0, 0), nil)
	}
	assert.EqualValues(t, 3, m.busiest.Load())

	rounds := []round{{Runs: map[string]sample{nameBare: {Rate: 1e6, Alone: 0.01}, nameHash: {Rate: 5000, Busiest: 180}}}}
	match := match{job: j, columns: keyedColumns(), contenders: []contender{{nameBare, setup{Kind: "bare"}}, {nameHash, setup{Kind: "hash"}}}}
	s := compareKeyed(match, rounds)
	assert.InDelta(t, 0.9, s.Contenders[nameHash].Numbers["busiest_key_busy"].Median, 1e-9)
	assert.Greater(t, s.Contenders[nameHash].Numbers["share_of_allowed"].Median, 1.0)
	assert.Len(t, s.Notes, 1)
}

func TestAllowed(t *testing.T) {
	bare := sample{Rate: 2000, Alone: 0.002}
	half := keys{Count: 2, Exponent: 1e-9}
	assert.InDelta(t, 2000, allowed(bare, topic{Partitions: 1, Keys: keys{Count: 2}}), 1e-3)
	assert.InDelta(t, 1000, allowed(bare, topic{Partitions: 1, Keys: half}), 1e-3)
	assert.InDelta(t, 2000, allowed(bare, topic{Partitions: 2, Keys: half}), 1e-3)
	assert.InDelta(t, 2000, allowed(bare, topic{Partitions: 3, Keys: half}), 1e-3)
}

func TestKeys(t *testing.T) {
	for _, k := range []keys{{Count: 100}, {Count: 10_000, Exponent: 1.1}} {
		const n = 200_000
		counts, most := map[string]int{}, 0
		for draw, i := k.in(3), 0; i < n; i++ {
			drawn := string(draw())
			counts[drawn]++
			most = max(most, counts[drawn])
		}
		assert.InEpsilon(t, k.busiest(), float64(most)/n, 0.12, k)
		if k.Exponent != 0 {
			assert.Equal(t, most, counts[string(key(3, 0))], "the first is the busiest")
		}
		assert.LessOrEqual(t, len(counts), k.Count)
	}
	assert.InDelta(t, 0.151, keys{Count: 10_000, Exponent: 1.1}.busiest(), 0.001)
	assert.NotEqual(t, keys{Count: 2}.in(0)(), keys{Count: 2}.in(1)(), "partitions share no key")
	assert.Nil(t, keys{}.in(0)())
}

func TestContiguous(t *testing.T) {
	var marked []int64
	c := contiguous{mark: func(offset int64) { marked = append(marked, offset) }}
	a, b, d := c.begin(10), c.begin(12), c.begin(13)
	c.done(b)
	assert.Empty(t, marked)
	c.done(a)
	assert.Equal(t, []int64{12}, marked)
	e := c.begin(20)
	c.done(e)
	c.done(d)
	assert.Equal(t, []int64{12, 20}, marked)
}

func TestMemory(t *testing.T) {
	t.Parallel() // it waits most of the time
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), strings.Fields(
		"memory -broker embedded -rounds 1 -partitions 4 -records 40000 -early 2 -late 6 -mode partitions"), &out, t.Output()))
	number := `[\d.]+`
	assert.Regexp(t, `queues, medians\n.*\n +raw-partitions +\d{3,} +`+number+` .*\n +kgroup-partitions +\d{3,} +`+number, out.String())
	assert.Regexp(t, `kgroup-partitions, late against early: heap in use `+number+`, goroutines `+number, out.String())
	assert.NotContains(t, out.String(), "runs failed")
}

func TestIdle(t *testing.T) {
	t.Parallel() // it waits most of the time
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), strings.Fields(
		"idle -broker embedded -rounds 1 -partitions 4 -warmup 1ms -duration 100ms"), &out, t.Output()))
	for _, name := range []string{"raw-multiplex", "kgroup-multiplex", "raw-partitions", "kgroup-partitions", "sarama", "franz-go"} {
		assert.Regexp(t, `(?m)^ +`+name+` +\d+\.\d+ +\d+ +\d+ `, out.String())
	}
}

func TestOverheadWithTLS(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{
		"overhead", "-broker", "embedded", "-mode", "partitions", "-rounds", "1", "-duration", "50ms", "-warmup", "1ms",
		"-records", "160000", "-tls",
	}, &out, t.Output()))
	assert.Contains(t, out.String(), "broker: embedded with TLS")
	assert.Contains(t, out.String(), "kgroup against raw-tuned, within rounds")
}

// A contender that does not check whom it talks to would be cheaper than it should be;
// so would one that does not encrypt, which this broker would not answer.
func TestContendersCheckTheCertificate(t *testing.T) {
	var identities []*identity
	for range 2 {
		i, err := newIdentity()
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, i.remove()) })
		identities = append(identities, i)
	}
	b, err := kgrouptest.New(kgrouptest.Config{TLS: identities[0].config()})
	require.NoError(t, err)
	t.Cleanup(b.Close)
	own, err := ofKgroup(kgroup.Multiplex)
	require.NoError(t, err)
	j := job{setup: setup{Engine: own}, Brokers: b.Addrs(), Topic: topic{Name: "bench"}, Group: "bench"}
	// connect is how the bare loop fares.
	connect := func() error {
		built, err := j.bare()
		require.NoError(t, err)
		built.Metadata.Retry.Max = 0
		client, err := cluster.NewClient(j.Brokers, built)
		require.NoError(t, err)
		defer client.Close()
		return client.RefreshMetadata()
	}

	j.CA = identities[0].ca
	require.NoError(t, connect())

	j.CA = identities[1].ca
	require.ErrorContains(t, connect(), "out of available brokers") // sarama does not say why
	c, err := j.consumer(j.config(nothing))
	require.NoError(t, err)
	require.ErrorContains(t, c.Run(t.Context()), "unknown authority")
}

// The bare loop with kgroup's settings has them from kgroup, so that they are still
// kgroup's when those change.
func TestEngineSettings(t *testing.T) {
	for _, mode := range []kgroup.Mode{kgroup.Multiplex, kgroup.Partitions} {
		own, err := ofKgroup(mode)
		require.NoError(t, err)
		cfg := job{setup: setup{Mode: mode}, Brokers: []string{"localhost:9092"}, Topic: topic{Name: "bench"}, Group: "bench"}.config(nothing)
		cfg.Tune = own.apply
		built, err := cfg.ClusterConfig()
		require.NoError(t, err)
		assert.Equal(t, own, engineSettings{built.ChannelBufferSize, built.Consumer.Fetch.Default, built.Consumer.MaxProcessingTime}, mode)
		for _, list := range []func(kgroup.Mode) ([]contender, error){contenders, candidates} {
			all, err := list(mode)
			require.NoError(t, err)
			assert.Equal(t, contender{nameRaw, setup{Kind: "raw", Mode: mode, Engine: own}}, all[0])
			for _, c := range all[1:] {
				assert.True(t, c.Kind == "kgroup" || c.name == nameAgain || c.Engine != own, "%s is the same as %s", c.name, nameRaw)
			}
		}
	}
}

func TestFill(t *testing.T) {
	b := kgrouptest.Start(t)
	require.NoError(t, fill(t.Context(), &broker{fill: []kgo.Opt{kgo.SeedBrokers(b.Addrs()...)}}, topic{Name: "bench", Partitions: 2, PerPartition: 30, Size: 100, Headers: 3, Keys: keys{Count: 5}}))
	messages, err := b.Messages("bench")
	require.NoError(t, err)
	partitions := map[int32]int{}
	for _, m := range messages {
		partitions[m.Partition]++
		assert.Len(t, m.Value, 100)
		assert.Len(t, m.Headers, 3)
		assert.Contains(t, string(m.Key), "key-")
	}
	assert.Equal(t, map[int32]int{0: 30, 1: 30}, partitions)
}

func TestTextReport(t *testing.T) {
	var out bytes.Buffer
	m := match{title: "Multiplex", contenders: theContenders(t), columns: throughputColumns()}
	r := round{Match: "Multiplex", Number: 1, Order: []string{nameKgroup, nameRaw}, Runs: map[string]sample{
		nameKgroup: {Rate: 1_900_000, CPU: 550, Allocs: 2.5, Bytes: 250},
		nameRaw:    {Rate: 2_000_000, CPU: 500, Allocs: 2, Bytes: 200, Seconds: 1.5, Cut: true},
	}}
	rep := newReport(&out, false)
	require.NoError(t, rep.machine(&broker{name: "Kafka 0"}, options{rounds: 1, partitions: 1, duration: time.Second}))
	require.NoError(t, rep.round(m, r))
	require.NoError(t, rep.summary(summarize(m, []round{r})))
	assert.Contains(t, out.String(), "broker: Kafka 0")
	assert.Contains(t, out.String(), "Multiplex 1: kgroup 1900000 messages/s 550 CPU ns/msg, raw 2000000 messages/s 500 CPU ns/msg (cut after 1.5s)\n")
	assert.Regexp(t, `kgroup against raw, within rounds\n.*median.*\n +messages/s, ratio( +0\.950){5}\n +CPU ns/msg, ratio( +1\.100){5}\n +allocs/msg, added( +0\.500){5}\n +bytes/msg, added( +50\.000){5}\n`, out.String())
	assert.Contains(t, out.String(), "1 runs came to the end of the topic")
}

// A contender that reads faster than was expected must not be measured while it
// has nothing left to read.
func TestMeasureIsCutBeforeTheTopicEnds(t *testing.T) {
	m := newMeter(2, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for n := 0; n < 985 && ctx.Err() == nil; n++ { // the second partition comes near its end
			m.handle(1, nil, []byte("x"))
			<-time.After(50 * time.Microsecond)
		}
		m.handle(0, nil, nil)
	}()
	s, err := m.measure(ctx, window{duration: 20 * time.Second})
	require.NoError(t, err)
	assert.True(t, s.Cut)
	assert.Less(t, s.Seconds, 15.0)

	_, err = m.measure(ctx, window{warmup: time.Second, duration: time.Second})
	assert.ErrorContains(t, err, "more records are needed")
}

func TestCommandLine(t *testing.T) {
	tests := []struct{ args, want string }{
		{"nonsense", `unknown command "nonsense"`},
		{"overhead -mode sideways", "want multiplex, partitions or both"},
		{"overhead -broker rabbit", "want embedded or kafka"},
		{"overhead -rounds 0", "must be more than zero"},
		{"memory -early 1", "want at least 2"},
		{"memory -late 50 -mode both -rounds 1", "and more"},
		{"keyed -keys none", "want uniform or zipf"},
		{"keyed -workers 0", "want more than zero"},
		{"keyed -exponent 1", "more than one"},
		{"settings more", `unexpected argument "more"`},
		{"contender", "want one argument"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			err := run(t.Context(), strings.Fields(tt.args), io.Discard, io.Discard)
			assert.ErrorContains(t, err, tt.want)
		})
	}
	var usage bytes.Buffer
	assert.True(t, errors.Is(run(t.Context(), nil, io.Discard, &usage), flag.ErrHelp))
	assert.Contains(t, usage.String(), "overhead")
}
