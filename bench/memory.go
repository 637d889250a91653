//go:build unix

package main

// The command memory: what a partition costs whose handler does not come to an end, and
// whether rebalances leave something behind.

import (
	"context"
	"flag"
	"fmt"
	"io"
	"time"
)

// memory is the command.
func memory(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var early, late int
	o, err := parse("memory", args, stderr, func(f *flag.FlagSet, o *options) {
		o.rounds, o.partitions = 3, 100
		f.IntVar(&early, "early", 50, "how many rebalances come before the first look")
		f.IntVar(&late, "late", 500, "how many have been when the second one is taken")
	})
	if err != nil {
		return err
	}
	if early < 2 || late <= early {
		return fmt.Errorf("-early %d -late %d: want at least 2, and more", early, late)
	}
	if o.records == 0 {
		o.records = 20_000 * int64(o.partitions) // two fetches, of which one is kept
	}
	o.topics = []topic{o.topic()}
	o.about = fmt.Sprintf("queues: %d partitions, %d messages of %d bytes, %d rounds; rebalances: 8 partitions, %d and %d rebalances, heartbeat %v",
		o.partitions, o.records, o.topic().Size, o.rounds, early, late, shortHeartbeat)
	return compete(ctx, o, stdout, stderr, func(b *broker) ([]match, error) {
		list, err := bothModes(o.modes)
		if err != nil {
			return nil, err
		}
		queues := o.match("queues", b, stderr)
		queues.contenders, queues.columns, queues.job.Task = list, queueColumns(), "queues"

		rebalances := o.match("rebalances", b, stderr)
		rebalances.contenders, rebalances.columns, rebalances.job.Task = list, rebalanceColumns(), "rebalances"
		rebalances.job.Session = 6 * shortHeartbeat
		rebalances.rounds, rebalances.cold, rebalances.tolerant = 1, true, true // minutes each
		rebalances.around = func(ctx context.Context, _ int, j *job, run runner) error {
			j.Topic = topic{Name: j.Group, Partitions: 8, Size: stampSize}
			return whileProducing(ctx, b, j.Topic, 10*time.Millisecond, func(ctx context.Context) error {
				return whileDisturbing(ctx, b, *j, []int{early, late}, run)
			})
		}
		return []match{queues, rebalances}, nil
	}, compareMemory)
}

func queueColumns() []column {
	return []column{
		{"bytes_per_partition", "bytes/partition", "B/partition", "%.0f", func(s sample) float64 { return s.Queues.Bytes }, asRatio},
		{"goroutines_per_partition", "goroutines/partition", "goroutines/partition", "%.2f", func(s sample) float64 { return s.Queues.Goroutines }, asDifference},
	}
}

func rebalanceColumns() []column {
	heap := func(i int) func(sample) float64 {
		return func(s sample) float64 { return float64(s.Looks[i].Heap) / 1024 }
	}
	goroutines := func(i int) func(sample) float64 {
		return func(s sample) float64 { return float64(s.Looks[i].Goroutines) }
	}
	return []column{
		{"heap_kib_early", "heap KiB", "", "%.0f", heap(0), not},
		{"heap_kib_late", "later", "", "%.0f", heap(1), not},
		{"goroutines_early", "goroutines", "", "%.0f", goroutines(0), not},
		{"goroutines_late", "later", "", "%.0f", goroutines(1), not},
	}
}

// compareMemory holds kgroup against the bare loop where they fill queues, and everybody
// against their own past where there were rebalances.
func compareMemory(m match, rounds []round) summary {
	s := newSummary(m, rounds)
	for _, c := range m.contenders {
		if m.job.Task == "queues" {
			if c.Kind == "kgroup" {
				s.Comparisons = append(s.Comparisons, compare(m.columns, rounds, c.name, inMode(nameRaw, c.Mode)))
			}
			continue
		}
		n := s.Contenders[c.name].Numbers
		s.Notes = append(s.Notes, fmt.Sprintf("%s, late against early: heap in use %.3f, goroutines %.3f", c.name,
			n["heap_kib_late"].Median/n["heap_kib_early"].Median, n["goroutines_late"].Median/n["goroutines_early"].Median))
	}
	return s
}
