//go:build unix

package main

// The command idle: what a member uses that has partitions and nothing to do.

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"runtime"
	"time"
)

// idle is the command.
func idle(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse("idle", args, stderr, func(_ *flag.FlagSet, o *options) {
		o.rounds, o.warmup, o.duration, o.partitions = 5, 3*time.Second, 10*time.Second, 100
	})
	if err != nil {
		return err
	}
	one := o.topic()
	one.PerPartition = 1 // it shows that all partitions are there
	o.topics = []topic{one}
	o.about = fmt.Sprintf("%d partitions with nothing to read; %d rounds of %v after %v of warm-up", o.partitions, o.rounds, o.duration, o.warmup)
	return compete(ctx, o, stdout, stderr, func(b *broker) ([]match, error) {
		list, err := bothModes(o.modes)
		if err != nil {
			return nil, err
		}
		m := o.match("idle", b, stderr)
		m.job.Task, m.job.Topic, m.columns = "idle", one, idleColumns()
		m.contenders = append(list, contender{nameSarama, setup{Kind: "sarama"}}, contender{"franz-go", setup{Kind: "franz-go"}})
		return []match{m}, nil
	}, newSummary)
}

func idleColumns() []column {
	return []column{
		{"percent_of_a_core", "% of a core", "core-percent", "%.2f", func(s sample) float64 { return s.Idle.Percent }, not},
		{"allocs_per_second", "allocs/s", "allocs/s", "%.0f", func(s sample) float64 { return s.Idle.Allocs }, not},
		{"goroutines", "goroutines", "", "%.0f", func(s sample) float64 { return float64(s.Idle.Goroutines) }, not},
	}
}

// An idleSample is what the process of a contender used.
type idleSample struct {
	Percent    float64 `json:"percent_of_a_core"`
	Allocs     float64 `json:"allocs_per_second"`
	Goroutines int     `json:"goroutines"`
}

// idle begins when each partition has shown its only message.
func (j job) idle(ctx context.Context) (_ sample, err error) {
	m := newMeter(j.Topic.Partitions, 1)
	leave, err := j.join(ctx, m)
	if err != nil {
		return sample{}, err
	}
	defer func() { err = errors.Join(err, leave()) }()
	all := func() bool { total, _ := m.handled(); return total >= int64(j.Topic.Partitions) }
	if ok, err := until(ctx, startWithin, all); !ok {
		return sample{}, errors.Join(fmt.Errorf("not all of %d partitions within %v", j.Topic.Partitions, startWithin), err)
	}
	if err := pause(ctx, j.Warmup); err != nil {
		return sample{}, err
	}
	u, err := use(j.Profile, func() error { return pause(ctx, j.Duration) })
	return sample{Idle: &idleSample{
		Percent:    100 * u.cpu.Seconds() / u.took.Seconds(),
		Allocs:     float64(u.allocs) / u.took.Seconds(),
		Goroutines: runtime.NumGoroutine(),
	}}, err
}

// pause lets d pass.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
