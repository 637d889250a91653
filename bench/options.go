//go:build unix

package main

// What the commands share: their flags, and playing the matches that they plan.

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/kgroup-go/kgroup"
)

// options are the flags that the commands share.
type options struct {
	rounds           int
	warmup, duration time.Duration
	modes            []kgroup.Mode
	broker, version  string
	partitions       int
	records          int64
	headers          bool
	tls              bool
	profiles         string
	benchstat        string
	json             bool

	topics []topic // to be filled
	about  string  // what is measured, where it is not how fast a topic is read
}

// parse reads the flags that all commands have. What else there is of flags and
// defaults is added by more, which is called before.
func parse(name string, args []string, stderr io.Writer, more ...func(*flag.FlagSet, *options)) (options, error) {
	o := options{partitions: 8, rounds: 21, duration: 3 * time.Second, warmup: 300 * time.Millisecond}
	var mode string
	f := flag.NewFlagSet("bench "+name, flag.ContinueOnError)
	f.SetOutput(stderr)
	for _, add := range more {
		add(f, &o)
	}
	f.IntVar(&o.rounds, "rounds", o.rounds, "how often every contender runs")
	f.DurationVar(&o.duration, "duration", o.duration, "how long a run is measured")
	f.DurationVar(&o.warmup, "warmup", o.warmup, "how much of a run is left out at its beginning")
	f.StringVar(&mode, "mode", "both", "multiplex, partitions or both")
	f.StringVar(&o.broker, "broker", "kafka", "kafka (needs Java 17 and Maven) or embedded")
	f.StringVar(&o.version, "version", "4.4.0", "which Kafka")
	if f.Lookup("partitions") == nil {
		f.IntVar(&o.partitions, "partitions", o.partitions, "of the topic")
	}
	f.Int64Var(&o.records, "records", 0, "messages in the topic (default: enough for a fast contender)")
	f.BoolVar(&o.headers, "headers", false, "give each record three headers")
	f.BoolVar(&o.tls, "tls", false, "encrypt the contenders' connections (with -broker kafka: 2.7 or later)")
	f.StringVar(&o.profiles, "cpuprofile", "", "write a CPU profile of each run into this `folder`")
	f.StringVar(&o.benchstat, "benchstat", "", "write a file for bin/benchstat per contender into this `folder`")
	f.BoolVar(&o.json, "json", false, "print JSON lines: the machine, each round, a summary for each mode")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("%s: unexpected argument %q", name, f.Arg(0))
	}
	switch strings.ToLower(mode) {
	case "both":
		o.modes = []kgroup.Mode{kgroup.Multiplex, kgroup.Partitions}
	case "multiplex":
		o.modes = []kgroup.Mode{kgroup.Multiplex}
	case "partitions":
		o.modes = []kgroup.Mode{kgroup.Partitions}
	default:
		return o, fmt.Errorf("-mode %q: want multiplex, partitions or both", mode)
	}
	if o.rounds < 1 || o.partitions < 1 || o.duration <= 0 || o.warmup < 0 {
		return o, errors.New("-rounds, -partitions and -duration must be more than zero, -warmup not less")
	}
	for _, folder := range []string{o.profiles, o.benchstat} {
		if folder == "" {
			continue
		}
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return o, err
		}
	}
	o.topics = []topic{o.topic()}
	return o, nil
}

// topic is what the contenders read. Its default size is what the fastest contender
// reads in the time of a run; one that still comes to its end is cut (see measure).
func (o options) topic() topic {
	t := topic{Name: "bench", Partitions: o.partitions, Size: 100}
	if o.headers {
		t.Headers = 3
	}
	records := o.records
	if records == 0 {
		perSecond := 5_000_000.0
		if o.broker == "embedded" {
			perSecond = 1_500_000 // it keeps them in memory
		}
		records = int64(perSecond * (o.warmup + o.duration).Seconds())
	}
	t.PerPartition = max(1, records/int64(o.partitions))
	return t
}

// match has no contenders yet.
func (o options) match(title string, b *broker, stderr io.Writer) match {
	return match{
		title: title, broker: b, columns: throughputColumns(),
		job:    job{Topic: o.topic(), Warmup: o.warmup, Duration: o.duration},
		rounds: o.rounds, profiles: o.profiles, stderr: stderr,
	}
}

// eachMode plans a match in each mode.
func (o options) eachMode(contenders func(kgroup.Mode) ([]contender, error), stderr io.Writer) func(*broker) ([]match, error) {
	return func(b *broker) ([]match, error) {
		var matches []match
		for _, mode := range o.modes {
			m := o.match(mode.String(), b, stderr)
			var err error
			if m.contenders, err = contenders(mode); err != nil {
				return nil, err
			}
			matches = append(matches, m)
		}
		return matches, nil
	}
}

// compete plays the matches that are planned, and prints what judge makes of each.
func compete(
	ctx context.Context, o options, stdout, stderr io.Writer,
	plan func(*broker) ([]match, error), judge func(match, []round) summary,
) error {
	return with(ctx, o, func(b *broker) error {
		rep := newReport(stdout, o.json)
		if err := rep.machine(b, o); err != nil {
			return err
		}
		matches, err := plan(b)
		if err != nil {
			return err
		}
		files := benchstat{}
		for _, m := range matches {
			rounds, err := m.play(ctx, rep.round)
			if err != nil {
				return err
			}
			if err := rep.summary(judge(m, rounds)); err != nil {
				return err
			}
			files.add(m, rounds)
		}
		if o.benchstat == "" {
			return nil
		}
		return files.write(o.benchstat)
	})
}
