package kgroup

// What is above the engine, in tests of the engine: a session that writes down what is
// done to it, and its lanes.

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// A fakeSession writes down what the engine does to it. Its lanes take what is
// delivered and never work.
type fakeSession struct {
	history history
	queue   int                                                   // of the lanes; zero: they are never full
	opening func(ctx context.Context, claims []engine.Claim) bool // called by Assigned; false: over before it began
	sealing func()                                                // called by Seal
	revoke  func(cancelAt, until time.Time)                       // called by Revoke
	handle  func(p engine.Partition, r engine.Record) engine.Handled

	mu     sync.Mutex
	opened int
	claims []engine.Claim
	lanes  map[engine.Partition]*fakeLane
}

func (s *fakeSession) RebalanceStarted(owned map[string][]int32) { s.history.add("started %v", owned) }
func (s *fakeSession) RebalanceFailed(err error)                 { s.history.add("failed: %v", err) }
func (s *fakeSession) Error(err error)                           { s.history.add("error: %v", err) }

func (s *fakeSession) Assigned(ctx context.Context, generation int64, claims []engine.Claim, _ engine.Change) []engine.Lane {
	line := fmt.Sprintf("assigned %d:", generation)
	for _, c := range claims {
		line += fmt.Sprintf(" %v@%d", c.Partition, c.Offset)
	}
	s.history.add("%s", line)
	if s.opening != nil && !s.opening(ctx, claims) || ctx.Err() != nil {
		s.history.add("not opened %d", generation)
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened++
	s.claims, s.lanes = claims, map[engine.Partition]*fakeLane{}
	lanes := []engine.Lane{}
	for _, c := range claims {
		lane := newFakeLane(s.queue)
		if s.handle != nil {
			lane.handle = func(r engine.Record) engine.Handled { return s.handle(c.Partition, r) }
		}
		s.lanes[c.Partition] = lane
		lanes = append(lanes, lane)
	}
	return lanes
}

func (s *fakeSession) Seal(generation int64) {
	s.history.add("seal %d", generation)
	if s.sealing != nil {
		s.sealing()
	}
}

func (s *fakeSession) Revoke(generation int64, cancelAt, until time.Time) {
	s.history.add("revoke %d", generation)
	if s.revoke != nil {
		s.revoke(cancelAt, until)
	}
}

func (s *fakeSession) Lost(generation int64, cause error) {
	s.history.add("lost %d: %v", generation, cause)
}

func (s *fakeSession) lane(p engine.Partition) *fakeLane {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lanes[p]
}

func (s *fakeSession) generations() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened
}

// A fakeLane is a lane's queue without a worker.
type fakeLane struct {
	*queue
	handle func(engine.Record) engine.Handled // Handle; nil: it declines

	mu        sync.Mutex
	delivered []int64
	deepest   int
}

func newFakeLane(limit int) *fakeLane {
	if limit == 0 {
		limit = 1 << 20
	}
	return &fakeLane{queue: newQueue(limit)}
}

func (l *fakeLane) Handle(r engine.Record, _ func([]engine.Record) int) engine.Handled {
	if l.handle == nil {
		return engine.Declined
	}
	return l.handle(r)
}

func (l *fakeLane) Deliver(records []engine.Record) (full bool) {
	full = l.put(records)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range records {
		l.delivered = append(l.delivered, r.Offset())
	}
	l.deepest = max(l.deepest, l.Len())
	return full
}

func (l *fakeLane) Room() <-chan struct{} { return l.room }
func (l *fakeLane) Len() int              { return l.len() }

// offsets are those delivered so far.
func (l *fakeLane) offsets() []int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.delivered)
}

// depth is the most messages that the lane has held.
func (l *fakeLane) depth() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deepest
}
