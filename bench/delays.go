//go:build unix

package main

// How long messages wait, from when they are written to when they are handled. Both are
// taken on this machine, whose clock the writer puts into each value.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
)

// stampSize is the least that a value must have.
const stampSize = 16

// stamp is a value: a number, from 0 without gaps, and the time.
func stamp(number uint64, at time.Time) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, stampSize), number)
	return binary.BigEndian.AppendUint64(b, uint64(at.UnixNano()))
}

func readStamp(b []byte) (number uint64, at time.Time) {
	return binary.BigEndian.Uint64(b), time.Unix(0, int64(binary.BigEndian.Uint64(b[8:])))
}

// delays are what the members in this process have handled.
type delays struct {
	mu       sync.Mutex
	written  map[uint64]time.Time // what was handled, by number
	newest   []time.Time          // of each partition: when its newest handled message was written
	members  map[int]int          // messages handled by each
	worst    time.Duration        // since the last begin
	repeated int
}

func newDelays(partitions int) *delays {
	return &delays{written: map[uint64]time.Time{}, newest: make([]time.Time, partitions), members: map[int]int{}}
}

// member is a meter that tells d what it handles.
func (d *delays) member(id int) *meter {
	m := newMeter(len(d.newest), 0)
	m.work = func(partition int32, _, value []byte) { d.handled(id, partition, value, time.Now()) }
	return m
}

// handled counts a message the first time: what is repeated was not waited for.
func (d *delays) handled(member int, partition int32, value []byte, now time.Time) {
	number, at := readStamp(value)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.members[member]++
	if _, again := d.written[number]; again {
		d.repeated++
		return
	}
	d.written[number] = at
	d.worst = max(d.worst, now.Sub(at))
	if at.After(d.newest[partition]) {
		d.newest[partition] = at
	}
}

// begin forgets the worst delay so far.
func (d *delays) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.worst = 0
}

func (d *delays) worstMS() float64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return float64(d.worst) / float64(time.Millisecond)
}

// skipped are those that were not handled though later ones were, a second ago.
func (d *delays) skipped(now time.Time) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	var below uint64 // all numbers below are due
	for number, at := range d.written {
		if now.Sub(at) > time.Second {
			below = max(below, number+1)
		}
	}
	n := int(below)
	for number := range d.written {
		if number < below {
			n--
		}
	}
	return n
}

// What counts as rest: nothing older than restLag waits in any partition.
const (
	restLag    = 100 * time.Millisecond
	restWithin = 45 * time.Second
)

// rest waits until the group, in which the member has had a part, has been at rest for
// long enough. It returns when that was so first: heartbeats began shortly before.
func (d *delays) rest(ctx context.Context, member int, enough time.Duration) (first time.Time, err error) {
	var since time.Time
	ok, err := until(ctx, restWithin, func() bool {
		now := time.Now()
		if !d.upToDate(member, now) {
			since = time.Time{}
			return false
		}
		if since.IsZero() {
			since = now
		}
		if first.IsZero() {
			first = now
		}
		return now.Sub(since) >= enough
	})
	if !ok {
		return first, errors.Join(fmt.Errorf("not all partitions were handled without delay within %v", restWithin), err)
	}
	return first, nil
}

// moment waits for rest, and then for the next time that is so long after a heartbeat.
func (d *delays) moment(ctx context.Context, member int, enough, after time.Duration) error {
	first, err := d.rest(ctx, member, enough)
	if err != nil {
		return err
	}
	return pause(ctx, untilMoment(time.Since(first), after))
}

// untilMoment is how much must be added to since for it to be after, give or take whole
// heartbeats.
func untilMoment(since, after time.Duration) time.Duration {
	return ((after-since)%heartbeat + heartbeat) % heartbeat
}

func (d *delays) upToDate(member int, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, at := range d.newest {
		if now.Sub(at) > restLag {
			return false
		}
	}
	return d.members[member] > 0
}

// A stallSample is what a joining and a leaving member cost.
type stallSample struct {
	Join     float64 `json:"join_worst_ms"`
	Leave    float64 `json:"leave_worst_ms"`
	Repeated int     `json:"repeated"` // messages handled twice
	Skipped  int     `json:"skipped"`  // messages never handled
}

// stall makes a second member join and leave, each at its moment after the group has
// come to rest. Both members are in this process.
func (j job) stall(ctx context.Context) (_ sample, err error) {
	d := newDelays(j.Topic.Partitions)
	leaveFirst, err := j.join(ctx, d.member(1))
	if err != nil {
		return sample{}, err
	}
	defer func() { err = errors.Join(err, leaveFirst()) }()
	if err := d.moment(ctx, 1, j.Rest, j.Moments[0]); err != nil {
		return sample{}, fmt.Errorf("before the second member: %w", err)
	}
	var s stallSample
	d.begin()
	leave, err := j.join(ctx, d.member(2))
	if err != nil {
		return sample{}, err
	}
	err = d.moment(ctx, 2, j.Rest, j.Moments[1])
	s.Join = d.worstMS()
	d.begin()
	if err = errors.Join(err, leave()); err != nil {
		return sample{}, fmt.Errorf("with the second member: %w", err)
	}
	if _, err := d.rest(ctx, 1, j.Rest); err != nil {
		return sample{}, fmt.Errorf("after the second member: %w", err)
	}
	s.Leave, s.Skipped = d.worstMS(), d.skipped(time.Now())
	d.mu.Lock()
	s.Repeated = d.repeated
	d.mu.Unlock()
	return sample{Stall: &s}, nil
}
