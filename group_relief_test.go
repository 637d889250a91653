package kgroup

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// keeper makes the lanes of a session handle everything on the goroutine that polls,
// which message 0 of orders/0 keeps until it is released; it is relieved meanwhile.
type keeper struct {
	session *fakeSession
	kept    chan struct{}
	release chan struct{}
	outcome func() engine.Handled // of the kept call

	mu      sync.Mutex
	handled map[engine.Partition]int
	first   atomic.Bool
}

func keep(s *fakeSession) *keeper {
	k := &keeper{
		session: s,
		kept:    make(chan struct{}),
		release: make(chan struct{}),
		outcome: func() engine.Handled { return engine.Relieved },
		handled: map[engine.Partition]int{},
	}
	s.handle = k.handle
	return k
}

func (k *keeper) handle(p engine.Partition, r engine.Record) engine.Handled {
	if p == orders0 && r.Offset() == 0 && !k.first.Swap(true) {
		close(k.kept)
		<-k.release
		return k.outcome()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.handled[p]++
	return engine.Done
}

func (k *keeper) count(p engine.Partition) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.handled[p]
}

// relieve does what the session does when a handler takes its time.
func (k *keeper) relieve(t *testing.T, p engine.Partition) {
	t.Helper()
	k.session.mu.Lock()
	defer k.session.mu.Unlock()
	for _, c := range k.session.claims {
		if c.Partition == p {
			require.Positive(t, c.Patience)
			c.Relieve()
			return
		}
	}
	require.Fail(t, "not claimed", p)
}

// A handler that keeps the goroutine that polls must not keep other partitions, nor a
// rebalance, nor the end of the engine.
func TestWhoPollsIsRelievedInEachMode(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		var k *keeper
		prepare := func(_ *fakeKafka, _ *Config, s *fakeSession) { k = keep(s) }
		onEngine(t, mode, prepare, func(t *testing.T, _ *group, s *fakeSession, kafka *fakeKafka) {
			defer close(k.release) // after the engine has ended
			opensGeneration(t, s, 1)
			kafka.produce(orders0, "a", "b", "c")
			<-k.kept
			kafka.produce(orders1, "a", "b")
			k.relieve(t, orders0)
			eventually(t, "the other partition", func() bool { return k.count(orders1) == 2 })
			eventually(t, "the rest of this one", func() bool { return k.count(orders0) == 2 })

			kafka.rebalance()
			opensGeneration(t, s, 2)
			before := k.count(orders1)
			kafka.produce(orders1, "c")
			eventually(t, "the next generation", func() bool { return k.count(orders1) > before })
			assert.Empty(t, s.history.all("error"))
		})
	})
}

// A rebalance that comes before the relief waits for it, no longer.
func TestSealWaitsForTheRelief(t *testing.T) {
	var k *keeper
	prepare := func(_ *fakeKafka, _ *Config, s *fakeSession) { k = keep(s) }
	onEngine(t, Multiplex, prepare, func(t *testing.T, _ *group, s *fakeSession, kafka *fakeKafka) {
		defer close(k.release)
		opensGeneration(t, s, 1)
		kafka.produce(orders0, "a")
		<-k.kept
		kafka.rebalance()
		time.Sleep(5 * time.Second)
		require.Empty(t, s.history.all("seal"), "who polls has a message in its hands")
		k.relieve(t, orders0)
		opensGeneration(t, s, 2)
		assert.Len(t, s.history.all("seal 1"), 1)
	})
}

// The goroutine that polls may be ended by a handler: the one that relieves it has
// everything it needs.
func TestLoopThatIsEndedByAHandler(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		var k *keeper
		prepare := func(_ *fakeKafka, _ *Config, s *fakeSession) {
			k = keep(s)
			k.outcome = func() engine.Handled { runtime.Goexit(); return engine.Declined }
		}
		onEngine(t, mode, prepare, func(t *testing.T, _ *group, s *fakeSession, kafka *fakeKafka) {
			opensGeneration(t, s, 1)
			kafka.produce(orders0, "a", "b")
			<-k.kept
			k.relieve(t, orders0)
			close(k.release)
			kafka.produce(orders1, "a")
			eventually(t, "both partitions", func() bool { return k.count(orders0) == 1 && k.count(orders1) == 1 })
		})
	})
}
