//go:build unix

package main

// What a contender's process holds: while its handlers do not come to an end, and after
// many rebalances.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"
)

// A queueSample is what each partition holds when no more is read.
type queueSample struct {
	Bytes      float64 `json:"bytes_per_partition"`
	Goroutines float64 `json:"goroutines_per_partition"`
}

// queues lets no handler come to an end, until nothing is read any more.
func (j job) queues(ctx context.Context) (sample, error) {
	release := make(chan struct{})
	m := newMeter(j.Topic.Partitions, j.Topic.PerPartition)
	m.work = func(int32, []byte, []byte) { <-release }
	before := look()
	leave, err := j.join(ctx, m)
	if err != nil {
		return sample{}, err
	}
	full, err := fullHeap(ctx)
	close(release)
	if err := errors.Join(err, leave()); err != nil {
		return sample{}, err
	}
	per := func(after, before int) float64 { return float64(after-before) / float64(j.Topic.Partitions) }
	return sample{Queues: &queueSample{per(full.Live, before.Live), per(full.Goroutines, before.Goroutines)}}, nil
}

// fullHeap waits until the heap has stopped growing.
func fullHeap(ctx context.Context) (aLook, error) {
	const (
		within = time.Minute
		every  = 500 * time.Millisecond
	)
	last, same := look(), 0
	for began := time.Now(); time.Since(began) < within; {
		if err := pause(ctx, every); err != nil {
			return last, err
		}
		now := look()
		if grown := float64(now.Live)/float64(last.Live) - 1; grown < 0.01 && time.Since(began) > 3*time.Second {
			same++
		} else {
			same = 0
		}
		if last = now; same == 4 {
			return last, nil
		}
	}
	return last, fmt.Errorf("the heap still grows after %v", within)
}

// aLook is one look at what is there after a garbage collection.
type aLook struct {
	Heap       int `json:"heap_in_use"` // bytes in spans with something in them
	Live       int `json:"heap_live"`   // bytes of objects
	Goroutines int `json:"goroutines"`
}

func look() aLook {
	runtime.GC()
	runtime.GC() // what sync.Pools hold survives one
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return aLook{int(m.HeapInuse), int(m.HeapAlloc), runtime.NumGoroutine()}
}

// looks takes the medians of several, because a fetch may be under way in each.
func looks(ctx context.Context) (aLook, error) {
	var heap, live, goroutines []int
	for range 9 {
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return aLook{}, err
		}
		l := look()
		heap, live, goroutines = append(heap, l.Heap), append(live, l.Live), append(goroutines, l.Goroutines)
	}
	middle := func(list []int) int { slices.Sort(list); return list[len(list)/2] }
	return aLook{middle(heap), middle(live), middle(goroutines)}, nil
}

// rebalances takes a look whenever it is told to, by a line of input, and answers by
// marking that it has.
func (j job) rebalances(ctx context.Context) (sample, error) {
	m := newMeter(j.Topic.Partitions, 0)
	leave, err := j.join(ctx, m)
	if err != nil {
		return sample{}, err
	}
	var s sample
	for in := bufio.NewScanner(os.Stdin); err == nil && in.Scan(); {
		var l aLook
		if l, err = looks(ctx); err == nil {
			s.Looks = append(s.Looks, l)
		}
	}
	return s, errors.Join(err, leave())
}
