//go:build unix

package main

// The command stall: how long a message waits at worst while a second member joins the
// group, and while it leaves. A message is written every 2 ms, to one partition after
// the other. Each round has moments of its own in the second between two heartbeats,
// which are the same for all contenders.

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

const stallEvery = 2 * time.Millisecond

// stall is the command.
func stall(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var seed uint64
	var rest time.Duration
	o, err := parse("stall", args, stderr, func(f *flag.FlagSet, o *options) {
		o.rounds = 20
		f.DurationVar(&rest, "rest", time.Second, "how long the group must be without delays before and after a change")
		f.Uint64Var(&seed, "seed", 1, "of the random moments at which members join and leave")
	})
	if err != nil {
		return err
	}
	o.topics = nil // each run has its own
	o.about = fmt.Sprintf("a message every %v over %d partitions; %d rounds, seed %d; heartbeat %v, session %v", stallEvery, o.partitions, o.rounds, seed, heartbeat, session)
	return compete(ctx, o, stdout, stderr, func(b *broker) ([]match, error) {
		m := o.match("stall", b, stderr)
		m.columns, m.tolerant = stallColumns(), true
		for _, mode := range o.modes {
			m.contenders = append(m.contenders,
				contender{inMode(nameRaw, mode), setup{Kind: "raw", Mode: mode}},
				contender{inMode(nameKgroup, mode), setup{Kind: "kgroup", Mode: mode}},
			)
		}
		m.contenders = append(m.contenders,
			contender{nameSarama, setup{Kind: "sarama"}},
			contender{"franz-go", setup{Kind: "franz-go"}},
			contender{nameSaramaAgain, setup{Kind: "sarama"}},
		)
		m.around = func(ctx context.Context, n int, j *job, run runner) error {
			j.Task, j.Topic = "stall", topic{Name: j.Group, Partitions: o.partitions, Size: stampSize}
			j.Rest, j.Moments = rest, moments(seed, o.rounds, n)
			return whileProducing(ctx, b, j.Topic, stallEvery, func(ctx context.Context) error { return run(ctx, nil) })
		}
		return []match{m}, nil
	}, compareStalls)
}

// moments are those of round n, in the second between two heartbeats: one for joining and
// one for leaving. Each of the rounds has a part of the second to itself, because nobody
// knows where in it a contender's heartbeats are, and all parts count equally.
func moments(seed uint64, rounds, n int) [2]time.Duration {
	var m [2]time.Duration
	for i := range m {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		part := r.Perm(rounds)[max(0, n)]
		at := 0.0
		for range max(0, n) + 1 {
			at = r.Float64()
		}
		m[i] = time.Duration((float64(part) + at) / float64(rounds) * float64(heartbeat))
	}
	return m
}

func stallColumns() []column {
	return []column{
		{"join_worst_ms", "join ms", "join-ms", "%.0f", func(s sample) float64 { return s.Stall.Join }, asRatio},
		{"leave_worst_ms", "leave ms", "leave-ms", "%.0f", func(s sample) float64 { return s.Stall.Leave }, asRatio},
		{"repeated", "repeated", "", "%.0f", func(s sample) float64 { return float64(s.Stall.Repeated) }, not},
		{"skipped", "skipped", "", "%.0f", func(s sample) float64 { return float64(s.Stall.Skipped) }, not},
	}
}

// compareStalls holds everybody against IBM's sarama, also by medians: joining and
// leaving are to be shorter than there.
func compareStalls(m match, rounds []round) summary {
	s := newSummary(m, rounds)
	for _, c := range m.contenders {
		if c.name == nameSarama {
			continue
		}
		s.Comparisons = append(s.Comparisons, compare(m.columns, rounds, c.name, nameSarama))
		mine, theirs := s.Contenders[c.name].Numbers, s.Contenders[nameSarama].Numbers
		ratio := func(key string) float64 { return mine[key].Median / theirs[key].Median }
		s.Notes = append(s.Notes, fmt.Sprintf("%s, median against the median of %s: joining %.2f, leaving %.2f", c.name, nameSarama, ratio("join_worst_ms"), ratio("leave_worst_ms")))
	}
	return s
}
