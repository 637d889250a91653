package kgroup

// What a probe, or a person at night, asks a running consumer.

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// A State is what a consumer is doing.
type State int

// The states, in the order in which a consumer goes through them.
const (
	Idle        State = iota // Run has not been called
	Starting                 // connecting and joining for the first time
	Consuming                // member of the group, with or without partitions
	Rebalancing              // between two assignments
	Stopping                 // Run's context is cancelled
	Stopped                  // Run has returned
)

func (s State) String() string {
	return constant("State", int(s), "idle", "starting", "consuming", "rebalancing", "stopping", "stopped")
}

// Health is a snapshot of a consumer.
type Health struct {
	State State
	Since time.Time // when State began; zero while Idle

	// Lanes are the partitions this member owns, sorted; between two assignments
	// there are none.
	Lanes []LaneHealth

	// Holding is the partition ("topic/partition") whose full queue keeps all others
	// waiting, which happens in Multiplex mode only; empty if none does.
	Holding string

	// Stuck are partitions ("topic/partition") that this member had to give up while a
	// handler was at work that has still not returned.
	Stuck []string

	// Paused are the topics whose Breaker is open. That alone is not unhealthy: a restart
	// mends nothing. A message that has failed for 30 s is.
	Paused []string

	patience time.Duration // how long a rebalance may take before Err says so,
	waits    bool          // unless this member waits for others
}

// LaneHealth is the state of one owned partition.
type LaneHealth struct {
	Topic         string
	Partition     int32
	Position      int64 // the offset after the last message taken from Kafka, but for one that is just being handled
	Frontier      int64 // every message before it has been settled
	Committed     int64 // what the broker has acknowledged; -1: nothing yet
	HighWatermark int64 // the end of the partition as of the last fetch; -1: not known

	// Blocked is what the handler of the message that is next at Frontier returned last,
	// and BlockedSince when it failed first. Nil while the lane goes on. With Topic.Workers
	// it is the first of the messages that fail.
	Blocked      *HandlerError
	BlockedSince time.Time

	// CommitError is why the lane's last commit failed, and CommitErrorSince when the
	// first one did since the last that worked. Nil if it has worked.
	CommitError      error
	CommitErrorSince time.Time

	held bool // no retry soon will help
}

// blockedFor is how long a message or a commit may fail before Err says so: a failure
// that the first retries cure is no reason to restart a process.
const blockedFor = 30 * time.Second

// Err returns why the consumer is not healthy, or nil. It is not while it is held up
// by a message that is held or has failed for 30 s, by a handler that was cancelled
// and does not return, by commits that have failed for 30 s, by a cluster or group that
// it cannot (re)join for 10 s longer than RebalanceTimeout (or SessionTimeout, if that
// is more), or because Run has ended. Waiting for another member's slow handler is
// healthy, and so is having no partitions because there are more members than
// partitions.
func (h Health) Err() error {
	switch {
	case h.State == Idle, h.State == Stopped:
		return ErrNotRunning
	case len(h.Stuck) > 0:
		return fmt.Errorf("kgroup: handlers that were cancelled have not returned: %v", h.Stuck)
	}
	if joins := h.State == Starting || h.State == Rebalancing; joins && !h.waits && time.Since(h.Since) > h.patience {
		return fmt.Errorf("kgroup: %v since %v: the group cannot be joined", h.State, h.Since.Format(time.RFC3339))
	}
	for _, l := range h.Lanes {
		if l.Blocked != nil && (l.held || time.Since(l.BlockedSince) >= blockedFor) {
			return l.Blocked
		}
		if l.CommitError != nil && time.Since(l.CommitErrorSince) >= blockedFor {
			return fmt.Errorf("kgroup: commit %s/%d: has failed since %v: %w", l.Topic, l.Partition, l.CommitErrorSince.Format(time.RFC3339), l.CommitError)
		}
	}
	return nil
}

func (a *assignment) health(e engine.Engine) Health {
	a.mu.Lock()
	h := Health{State: a.state, Since: a.since, patience: a.patience}
	g := a.current
	for p, orphan := range a.orphans {
		if !isClosed(orphan.done) {
			h.Stuck = append(h.Stuck, p.String())
		}
	}
	for topic, b := range a.breakers {
		if b.isOpen() {
			h.Paused = append(h.Paused, topic)
		}
	}
	a.mu.Unlock()
	slices.Sort(h.Stuck)
	slices.Sort(h.Paused)
	h.waits = e.Waits()
	if p, held := e.Held(); held {
		h.Holding = p.String()
	}
	if g == nil {
		return h
	}
	marks := e.HighWatermarks()
	for _, l := range g.lanes {
		lane, failure := l.health(marks), a.committer.failure(l)
		lane.CommitError, lane.CommitErrorSince = failure.err, failure.since
		h.Lanes = append(h.Lanes, lane)
	}
	slices.SortFunc(h.Lanes, func(a, b LaneHealth) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	return h
}

func (l *lane) health(marks map[engine.Partition]int64) LaneHealth {
	h := LaneHealth{
		Topic:         l.partition.Topic,
		Partition:     l.partition.Number,
		Position:      max(l.queue.end(l.start), l.position()),
		Frontier:      l.position(),
		Committed:     l.committed.Load(),
		HighWatermark: -1,
	}
	if mark, known := marks[l.partition]; known {
		h.HighWatermark = mark
	}
	if b := l.blocking(); b != nil {
		h.Blocked, h.BlockedSince, h.held = b.err, b.since, b.held
	}
	return h
}
