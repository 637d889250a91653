//go:build unix

package main

// The numbers of one contender, taken inside its process: how much it handled in a
// window that begins after the first message, and what the process used for it.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"sync/atomic"
	"syscall"
	"time"
)

// A sample is what a contender measured. CPU, Allocs and Bytes are those of the
// whole process: what an engine does in the background counts.
type sample struct {
	Messages int64   `json:"messages,omitempty"`
	Seconds  float64 `json:"seconds,omitempty"`
	Rate     float64 `json:"messages_per_second,omitempty"`
	CPU      float64 `json:"cpu_ns_per_message,omitempty"`
	Allocs   float64 `json:"allocs_per_message,omitempty"`
	Bytes    float64 `json:"bytes_per_message,omitempty"`
	GCs      uint32  `json:"gcs,omitempty"`
	Cut      bool    `json:"cut,omitempty"` // the topic was nearly at its end: Seconds are fewer than asked for

	// Of keyed: how long the work takes, and which part this is of what is allowed.
	// Busiest are the messages of the busiest keys in a second, Busy is the part of the
	// time in which one of them was handled.
	Alone   float64 `json:"handler_seconds,omitempty"`
	Share   float64 `json:"share_of_allowed,omitempty"`
	Busiest float64 `json:"busiest_key_per_second,omitempty"`
	Busy    float64 `json:"busiest_key_busy,omitempty"`

	Stall  *stallSample `json:"stall,omitempty"`
	Idle   *idleSample  `json:"idle,omitempty"`
	Queues *queueSample `json:"queues,omitempty"`
	Looks  []aLook      `json:"looks,omitempty"`
}

// A meter counts what is handled, by partition: partitions are handled side by
// side, and a counter they share would cost more than what is measured.
type meter struct {
	partitions []partitionMeter
	perLane    int64                                    // messages in each partition
	work       func(partition int32, key, value []byte) // nil: look at the message
	alone      time.Duration                            // what the work takes; 0: unknown
	busiest    atomic.Int64                             // of what was handled: messages of the busiest key of each partition
}

type partitionMeter struct {
	handled atomic.Int64
	sum     byte
	_       [48]byte // a cache line for each
}

func newMeter(partitions int, perPartition int64) *meter {
	return &meter{partitions: make([]partitionMeter, partitions), perLane: perPartition}
}

// handle is what every contender does: it counts the message and looks at it, or does
// the work that is set.
func (m *meter) handle(partition int32, key, value []byte) {
	p := &m.partitions[partition]
	if m.work != nil {
		m.work(partition, key, value)
		p.handled.Add(1)
		return
	}
	p.handled.Add(1)
	if len(value) > 0 {
		p.sum += value[0]
	}
}

func (m *meter) handled() (total, most int64) {
	for i := range m.partitions {
		n := m.partitions[i].handled.Load()
		total += n
		most = max(most, n)
	}
	return total, most
}

// A window says what part of a run is measured.
type window struct {
	warmup, duration time.Duration
	profile          string // file for a CPU profile of the window; empty: none
}

// startWithin is how long the first message may take. A contender joins a group
// before it.
const startWithin = 30 * time.Second

// measure waits for the first message, lets the warm-up pass and takes the numbers
// of the window, which lasts longer if nothing was handled in it. It returns early,
// with fewer seconds, when one of the partitions is nearly read to its end: from
// there on not all partitions would take part.
func (m *meter) measure(ctx context.Context, w window) (sample, error) {
	first := func() bool { total, _ := m.handled(); return total > 0 }
	if ok, err := until(ctx, startWithin, first); !ok {
		return sample{}, errors.Join(fmt.Errorf("no message within %v", startWithin), err)
	}
	nearlyAll := m.perLane - m.perLane/50
	dry := func() bool { _, most := m.handled(); return most >= nearlyAll }
	if cut, err := until(ctx, w.warmup, dry); cut || err != nil {
		return sample{}, errors.Join(errors.New("the topic was read to its end in the warm-up: more records are needed"), err)
	}
	var start, end, busiest int64
	var cut bool
	u, err := use(w.profile, func() (err error) {
		start, _ = m.handled()
		busiest = m.busiest.Load()
		cut, err = until(ctx, w.duration, dry)
		moved := func() bool { total, _ := m.handled(); return total > start }
		if ok, late := until(ctx, startWithin, moved); !ok {
			err = errors.Join(err, late, fmt.Errorf("no message within %v", startWithin))
		}
		end, _ = m.handled()
		busiest = m.busiest.Load() - busiest
		return err
	})
	if err != nil {
		return sample{}, err
	}
	n := float64(end - start)
	return sample{
		Messages: end - start,
		Seconds:  u.took.Seconds(),
		Rate:     n / u.took.Seconds(),
		CPU:      float64(u.cpu) / n,
		Allocs:   float64(u.allocs) / n,
		Bytes:    float64(u.bytes) / n,
		GCs:      u.gcs,
		Cut:      cut,
		Busiest:  float64(busiest) / u.took.Seconds(),
	}, nil
}

// A usage is what this process used.
type usage struct {
	took, cpu     time.Duration
	allocs, bytes uint64
	gcs           uint32
}

// use measures what the process uses while f runs. profile is a file for a CPU profile,
// empty: none.
func use(profile string, f func() error) (_ usage, err error) {
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return usage{}, err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return usage{}, err
		}
		defer pprof.StopCPUProfile()
	}
	// Reading the memory statistics stops the world, so it is kept outside.
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu, began := processCPU(), time.Now()
	err = f()
	took := time.Since(began)
	cpu = processCPU() - cpu
	runtime.ReadMemStats(&after)
	return usage{
		took: took, cpu: cpu,
		allocs: after.Mallocs - before.Mallocs, bytes: after.TotalAlloc - before.TotalAlloc,
		gcs: after.NumGC - before.NumGC,
	}, err
}

// until looks every few milliseconds whether something has happened, for at most d.
func until(ctx context.Context, d time.Duration, happened func() bool) (bool, error) {
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	for {
		if happened() {
			return true, nil
		}
		select {
		case <-ticker.C:
		case <-deadline.C:
			return false, nil
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// processCPU is what this process has used so far, in user and system time.
func processCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // only a wrong argument makes it fail
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
