//go:build unix

package main

// The command keyed: several workers on one partition, with order kept by key. What a
// contender reaches is held against what as many goroutines reach that call the same
// handler in a bare loop, and where keys are not equally frequent, against what the
// busiest one allows: its messages are handled one after the other by anybody who keeps
// their order.

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/kgroup-go/kgroup"
)

// Names of contenders.
const (
	nameBare    = "bare-loop"
	nameHash    = "fixed-hash"
	nameNoOrder = "no-order"
)

// A cell is one match of keyed.
type cell struct {
	handler    time.Duration // how long it takes
	partitions int
	workers    int // for each partition
	keys       keys
}

func (c cell) String() string {
	return fmt.Sprintf("%v, %d partitions, %d workers, %v", c.handler, c.partitions, c.workers, c.keys)
}

// A list is a flag with several values.
type list[T any] struct {
	of    []T
	parse func(string) (T, error)
}

func (l *list[T]) String() string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(l.of), "[]"), " ", ",")
}

func (l *list[T]) Set(text string) error {
	l.of = nil
	for part := range strings.SplitSeq(text, ",") {
		v, err := l.parse(part)
		if err != nil {
			return err
		}
		l.of = append(l.of, v)
	}
	return nil
}

func positive(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err == nil && n < 1 {
		err = errors.New("want more than zero")
	}
	return n, err
}

// keyed is the command.
func keyed(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	handlers := list[time.Duration]{[]time.Duration{0, 100 * time.Microsecond, time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond}, time.ParseDuration}
	partitions, workers := list[int]{[]int{1, 8}, positive}, list[int]{[]int{1, 16, 256}, positive}
	kinds := list[string]{[]string{"uniform", "zipf"}, func(s string) (string, error) {
		if s != "uniform" && s != "zipf" {
			return "", errors.New("want uniform or zipf")
		}
		return s, nil
	}}
	k := keys{}
	o, err := parse("keyed", args, stderr, func(f *flag.FlagSet, o *options) {
		o.rounds, o.duration = 3, 2*time.Second
		f.Var(&handlers, "handlers", "how long a handler takes; comma-separated")
		f.Var(&partitions, "partitions", "of the topic; comma-separated")
		f.Var(&workers, "workers", "for each partition; comma-separated")
		f.Var(&kinds, "keys", "uniform, zipf; comma-separated")
		f.IntVar(&k.Count, "distinct", 10_000, "keys in each partition")
		f.Float64Var(&k.Exponent, "exponent", 1.1, "of Zipf's law, more than 1: with 1.1 and 10,000 keys the busiest has 15 %")
	})
	if err != nil {
		return err
	}
	if k.Count < 1 || k.Exponent <= 1 {
		return errors.New("-distinct must be more than zero, -exponent more than one")
	}
	o.topics = nil
	o.records = cmp.Or(o.records, int64(2_000_000*(o.warmup+o.duration).Seconds()))
	o.about = fmt.Sprintf("%d messages of %d bytes, %d keys in each partition, Zipf exponent %v (the busiest key has %.1f %%); %d rounds of %v after %v of warm-up",
		o.records, o.topic().Size, k.Count, k.Exponent, 100*k.busiest(), o.rounds, o.duration, o.warmup)
	var matches []func(*broker) (match, error)
	for _, p := range partitions.of {
		for _, kind := range kinds.of {
			o.partitions = p
			t := o.topic()
			t.Name, t.Keys = fmt.Sprintf("bench-%s-%d", kind, p), k
			if kind == "uniform" {
				t.Keys.Exponent = 0
			}
			o.topics = append(o.topics, t)
			for _, d := range handlers.of {
				for _, n := range workers.of {
					c := cell{d, p, n, t.Keys}
					matches = append(matches, func(b *broker) (match, error) { return o.keyedMatch(b, c, t, stderr) })
				}
			}
		}
	}
	return compete(ctx, o, stdout, stderr, func(b *broker) ([]match, error) {
		var list []match
		for _, of := range matches {
			m, err := of(b)
			if err != nil {
				return nil, err
			}
			list = append(list, m)
		}
		return list, nil
	}, compareKeyed)
}

func (o options) keyedMatch(b *broker, c cell, t topic, stderr io.Writer) (match, error) {
	m := o.match(c.String(), b, stderr)
	m.columns, m.cold, m.tolerant = keyedColumns(), true, true
	m.job.Task, m.job.Topic, m.job.Handler = "keyed", t, c.handler
	m.job.Duration = max(o.duration, 20*c.handler)
	m.contenders = []contender{{nameBare, setup{Kind: "bare", Workers: c.workers}}}
	for _, mode := range o.modes {
		own, err := ofKgroup(mode)
		if err != nil {
			return m, err
		}
		m.contenders = append(m.contenders,
			contender{inMode(nameKgroup, mode), setup{Kind: "workers", Mode: mode, Workers: c.workers}},
			contender{inMode(nameRaw, mode), setup{Kind: "raw", Mode: mode, Engine: own}},
		)
		if mode == kgroup.Partitions && c.workers > 1 {
			m.contenders = append(m.contenders,
				contender{nameHash, setup{Kind: "hash", Mode: mode, Engine: own, Workers: c.workers}},
				contender{nameNoOrder, setup{Kind: "no-order", Mode: mode, Engine: own, Workers: c.workers}},
			)
		}
	}
	return m, nil
}

func keyedColumns() []column {
	return []column{
		rate,
		{"cpu_ns_per_message", "CPU ns/msg", "cpu-ns/op", "%.0f", func(s sample) float64 { return s.CPU }, not},
		{"busiest_key_busy", "busiest busy", "busy", "%.3f", func(s sample) float64 { return s.Busy }, not},
		{"share_of_allowed", "share", "share", "%.3f", func(s sample) float64 { return s.Share }, not},
	}
}

// compareKeyed says which share everybody reaches of what is allowed, in its round, and
// holds kgroup against the loops on the same engine: with a fixed hash, without order, and
// without workers.
func compareKeyed(m match, rounds []round) summary {
	for _, r := range rounds {
		bare, ok := r.Runs[nameBare]
		if !ok {
			continue
		}
		limit := allowed(bare, m.job.Topic)
		for name, s := range r.Runs {
			s.Share = s.Rate / limit
			s.Busy = s.Busiest * bare.Alone / float64(m.job.Topic.Partitions)
			r.Runs[name] = s
		}
	}
	s := newSummary(m, rounds)
	if m.job.Topic.Keys.Exponent != 0 {
		for _, c := range m.contenders {
			if c.name != nameBare && s.Contenders[c.name].Numbers["share_of_allowed"].Median > 1 {
				s.Notes = append(s.Notes, c.name+": a share above 1 does not last: other keys ran ahead of the busiest one, as far as they may; how much of the time that one was handled counts")
			}
		}
	}
	for _, c := range m.contenders {
		if c.Kind != "workers" {
			continue
		}
		for _, other := range m.contenders {
			if other.Kind == "hash" || other.Kind == "no-order" || other.Kind == "raw" && other.Mode == c.Mode {
				s.Comparisons = append(s.Comparisons, compare(m.columns, rounds, c.name, other.name))
			}
		}
	}
	return s
}

// allowed is the highest rate there can be: that of the bare loop or, if it is lower, the
// one at which the busiest key of each partition is always at work.
func allowed(bare sample, t topic) float64 {
	if t.Keys.Exponent == 0 || bare.Alone == 0 {
		return bare.Rate
	}
	return min(bare.Rate, float64(t.Partitions)/(t.Keys.busiest()*bare.Alone))
}

// keyed measures how much is handled by a handler that takes its time.
func (j job) keyed(ctx context.Context) (sample, error) {
	end := j.Topic.PerPartition
	if j.Kind == "bare" {
		end = math.MaxInt64
	}
	m := newMeter(j.Topic.Partitions, end)
	m.work = func(int32, []byte, []byte) {}
	if j.Handler > 0 {
		m.work = func(int32, []byte, []byte) { time.Sleep(j.Handler) }
	}
	if j.Topic.Keys.Exponent != 0 {
		j.countBusiest(m)
	}
	s, err := j.measured(ctx, m)
	s.Alone = m.alone.Seconds()
	return s, err
}

// countBusiest counts the messages of the busiest key of each partition, beside the work.
func (j job) countBusiest(m *meter) {
	var busiest [][]byte
	for p := range j.Topic.Partitions {
		busiest = append(busiest, key(p, 0))
	}
	work := m.work
	m.work = func(partition int32, key, value []byte) {
		work(partition, key, value)
		if bytes.Equal(key, busiest[partition]) {
			m.busiest.Add(1)
		}
	}
}
