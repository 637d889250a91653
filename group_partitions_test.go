package kgroup

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A fakeSource is a partition as sarama consumes it: batches are handed over through a
// channel, and as long as one is not taken the partition's broker is not asked for
// anything else.
type fakeSource struct {
	cluster.PartitionConsumer
	lane     *fakeLane
	messages chan *sarama.ConsumerMessage
	errors   chan *sarama.ConsumerError
	next     int64

	mu      sync.Mutex
	pauses  int
	resumed []int // the messages in the lane, each time
	running chan struct{}
}

func newFakeSource(lane *fakeLane) *fakeSource {
	s := &fakeSource{
		lane:     lane,
		messages: make(chan *sarama.ConsumerMessage, 256),
		errors:   make(chan *sarama.ConsumerError, 256),
		running:  make(chan struct{}),
	}
	close(s.running)
	return s
}

func (s *fakeSource) Topic() string                            { return "orders" }
func (s *fakeSource) Partition() int32                         { return 0 }
func (s *fakeSource) Messages() <-chan *sarama.ConsumerMessage { return s.messages }
func (s *fakeSource) Errors() <-chan *sarama.ConsumerError     { return s.errors }

func (s *fakeSource) Pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pauses++
	s.running = make(chan struct{})
}

func (s *fakeSource) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resumed = append(s.resumed, s.lane.Len())
	close(s.running)
}

// batch hands over n messages once they are fetched, and returns how long that held up
// the other partitions of the broker. A paused partition is left out of the fetches
// and asks again after its backoff.
func (s *fakeSource) batch(n int) (heldUp time.Duration) {
	s.mu.Lock()
	running := s.running
	s.mu.Unlock()
	if !isClosed(running) {
		s.errors <- &sarama.ConsumerError{Topic: "orders", Err: sarama.ErrIncompleteResponse}
		<-running
		time.Sleep(250 * time.Millisecond)
	}
	time.Sleep(5 * time.Millisecond)
	began := time.Now()
	for range n {
		s.messages <- polled(orders0, s.next)
		s.next++
	}
	for len(s.messages) > 0 {
		time.Sleep(100 * time.Microsecond)
	}
	return time.Since(began)
}

func (s *fakeSource) close() {
	close(s.messages)
	close(s.errors)
}

func (s *fakeSource) paused() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pauses
}

// work takes the lane's messages, each in the given time, until the lane is closed.
func (l *fakeLane) work(each time.Duration, closed <-chan struct{}) {
	for {
		batch := l.take(closed)
		if batch == nil {
			return
		}
		time.Sleep(each * time.Duration(len(batch)))
	}
}

// reading starts a reader of a source whose lane has a queue of 256 messages and a
// worker that takes the given time for each. It ends all of them after body.
func reading(t *testing.T, each time.Duration, body func(t *testing.T, source *fakeSource, lane *fakeLane, s *fakeSession)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		g, s := newTestGroup(t, func(cfg *Config) { cfg.Mode = Partitions })
		lane := newFakeLane(256)
		source := newFakeSource(lane)
		sealed := make(chan struct{})
		worker := begin(func() { lane.work(each, sealed) })
		g.newReader(source).start(lane)
		body(t, source, lane, s)
		source.close()
		g.routines.Wait()
		close(sealed)
		<-worker
		offsets := lane.offsets()
		require.Len(t, offsets, int(source.next))
		for i, offset := range offsets {
			require.EqualValues(t, i, offset, "order")
		}
	})
}

// A pause costs a backoff and a fetch, so that a lane that is about to be done with
// what it has is never paused.
func TestReaderDoesNotPauseAQuickLane(t *testing.T) {
	for _, size := range []int{1, 100, 1000, 10000} { // 1 MB holds 10,000 messages of 100 bytes
		t.Run(fmt.Sprintf("batches of %d", size), func(t *testing.T) {
			reading(t, 10*time.Microsecond, func(t *testing.T, source *fakeSource, lane *fakeLane, s *fakeSession) {
				for range 10 {
					heldUp := source.batch(size)
					assert.LessOrEqual(t, heldUp, patience+10*time.Millisecond)
				}
				assert.Zero(t, source.paused())
				assert.LessOrEqual(t, lane.depth(), 256+2*size)
				assert.Empty(t, s.history.all())
			})
		})
	}
}

// What a lane holds has a bound also if it is only a little slower than its batches
// come: then a pause is hardly worth it, but they pile up.
func TestReaderTakesTwoBatchesAtMost(t *testing.T) {
	for _, size := range []int{1200, 1500, 2000} {
		t.Run(fmt.Sprintf("batches of %d", size), func(t *testing.T) {
			reading(t, 100*time.Microsecond, func(t *testing.T, source *fakeSource, lane *fakeLane, _ *fakeSession) {
				for range 60 {
					assert.LessOrEqual(t, source.batch(size), patience+10*time.Millisecond)
				}
				assert.LessOrEqual(t, lane.depth(), 256+2*size)
			})
		})
	}
}

// A slow lane must not hold up the other partitions of its broker: after a little
// patience its batch is taken whole and it is paused, until it is about to run dry.
func TestReaderPausesASlowLane(t *testing.T) {
	for _, each := range []time.Duration{200 * time.Microsecond, time.Millisecond, 10 * time.Millisecond} {
		t.Run(each.String(), func(t *testing.T) {
			reading(t, each, func(t *testing.T, source *fakeSource, lane *fakeLane, s *fakeSession) {
				const size = 5000
				for range 5 {
					heldUp := source.batch(size)
					assert.LessOrEqual(t, heldUp, patience+10*time.Millisecond)
				}
				assert.Positive(t, source.paused())
				assert.LessOrEqual(t, lane.depth(), 256+2*size)
				for _, left := range source.resumed {
					// What it still has must last until it is fetched for again.
					assert.Greater(t, time.Duration(left)*each, 200*time.Millisecond)
				}
				assert.Empty(t, s.history.all(), "that a paused partition complains is no news")
			})
		})
	}
}

// What one message at a time brings is taken without any wait.
func TestReaderOfSingleMessages(t *testing.T) {
	reading(t, time.Millisecond, func(t *testing.T, source *fakeSource, lane *fakeLane, _ *fakeSession) {
		for range 1000 {
			assert.LessOrEqual(t, source.batch(1), time.Millisecond)
		}
		assert.Zero(t, source.paused())
		assert.Less(t, lane.depth(), 10)
	})
}

func TestReaderReportsErrors(t *testing.T) {
	reading(t, time.Millisecond, func(t *testing.T, source *fakeSource, _ *fakeLane, s *fakeSession) {
		source.errors <- &sarama.ConsumerError{Topic: "orders", Err: errTransient}
		source.errors <- &sarama.ConsumerError{Topic: "orders", Err: sarama.ErrIncompleteResponse}
		synctest.Wait()
		assert.Equal(t, []string{
			"error: fetch orders/0: " + errTransient.Error(),
			"error: fetch orders/0: " + sarama.ErrIncompleteResponse.Error(), // it was never paused
		}, s.history.all())
	})
}

// When the engine gives a partition up its source is closed, whatever the reader does
// just then, and whether or not the lane has been sealed.
func TestReaderEndsWithItsSource(t *testing.T) {
	fills := newFakeLane(256).limit // with one more, the reader may or may not have taken it
	states := []struct {
		name     string
		messages int
		after    time.Duration
		paused   int
	}{
		{"waiting for a message", 0, time.Minute, 0},
		{"waiting for room", fills, 10 * time.Millisecond, 0},
		{"paused", fills, time.Minute, 1},
	}
	for _, state := range states {
		for _, sealed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, sealed %v", state.name, sealed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					g, _ := newTestGroup(t, func(cfg *Config) { cfg.Mode = Partitions })
					lane := newFakeLane(256) // nobody works there
					source := newFakeSource(lane)
					g.newReader(source).start(lane)
					time.Sleep(time.Second)
					for i := range state.messages {
						source.messages <- polled(orders0, int64(i))
					}
					time.Sleep(state.after)
					synctest.Wait()
					require.Equal(t, state.paused, source.paused())
					require.Equal(t, state.messages, lane.Len())
					if sealed {
						lane.close()
					}
					closed := time.Now()
					source.close()
					g.routines.Wait()
					assert.LessOrEqual(t, time.Since(closed), patience)
					assert.Len(t, source.resumed, source.paused(), "each pause has ended")
				})
			})
		}
	}
}

// A lane that was sealed throws away what its source still has, at once.
func TestReaderOfASealedLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newTestGroup(t, func(cfg *Config) { cfg.Mode = Partitions })
		lane := newFakeLane(256)
		source := newFakeSource(lane)
		g.newReader(source).start(lane)
		source.batch(500) // the worker is at its first message: it is paused, or waits
		lane.close()
		began := time.Now()
		for i := range 1000 {
			source.messages <- polled(orders0, int64(500+i))
		}
		assert.LessOrEqual(t, time.Since(began), patience)
		assert.Zero(t, lane.Len())
		source.close()
		g.routines.Wait()
	})
}
