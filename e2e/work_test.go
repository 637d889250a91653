package e2e

// What handlers do with their time.

import (
	"context"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kgroup-go/kgroup"
)

// quick handlers return at once.
func quick(context.Context, kgroup.Message) error { return nil }

// uneven handlers take 0 to 2 ms, and one in a hundred up to 200 ms.
func uneven(r *random) kgroup.HandlerFunc {
	return func(ctx context.Context, _ kgroup.Message) error {
		if r.below(100) == 0 {
			return work(ctx, r.upTo(200*time.Millisecond))
		}
		return work(ctx, r.upTo(2*time.Millisecond))
	}
}

// A crew is how the messages of a partition are handled: one at a time if it is zero,
// several at once, in batches.
type crew struct{ Workers, Batch int }

// manyKeys of a partition keep a crew busy, and are soon met again.
const manyKeys = 100

// topic is one whose messages are handled so. Of a batch, the first message and those that
// are bad or slow are given to the handler: so the others cost nothing.
func (c crew) topic(h kgroup.HandlerFunc) kgroup.Topic {
	if c.Batch == 0 {
		return kgroup.Topic{Handler: h, Workers: c.Workers}
	}
	return kgroup.Topic{Workers: c.Workers, Batch: kgroup.Batch{
		Size: c.Batch,
		Handler: kgroup.BatchHandlerFunc(func(ctx context.Context, msgs []kgroup.Message) error {
			failed := map[int]error{}
			for i, msg := range msgs {
				if i > 0 && !isBad(msg.Value) && string(msg.Value) != slow {
					continue
				}
				if err := h(ctx, msg); err != nil {
					failed[i] = err
				}
			}
			if len(failed) == 0 {
				return nil
			}
			return &kgroup.BatchError{Failed: failed}
		}),
	}}
}

// takes is how long its handlers usually do: alone they must be quick, together each may
// take 0 to 200 ms.
func (c crew) takes(r *random) kgroup.HandlerFunc {
	if c == (crew{}) {
		return uneven(r)
	}
	return func(ctx context.Context, _ kgroup.Message) error { return work(ctx, r.upTo(200*time.Millisecond)) }
}

// work takes time.
func work(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A brake holds handlers until it is released.
type brake struct {
	held     atomic.Int64
	released chan struct{}
	release  func()
}

func newBrake() *brake {
	b := &brake{released: make(chan struct{})}
	b.release = sync.OnceFunc(func() { close(b.released) })
	return b
}

func (b *brake) handle(ctx context.Context, _ kgroup.Message) error {
	b.held.Add(1)
	select {
	case <-b.released:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// awaitHandlers waits until so many handlers are held.
func (b *brake) awaitHandlers(e *env, n int64) {
	e.t.Helper()
	e.reaches(n, "handlers at work", &b.held)
}

// A random is a source of what is random in one scenario or one process.
type random struct {
	mu sync.Mutex
	r  *rand.Rand
}

func newRandom(name string) *random {
	return &random{r: rand.New(rand.NewPCG(seed(), uint64(crc32.ChecksumIEEE([]byte(name)))))}
}

// seed is what a run begins with: KGROUP_SEED, or the time. Each scenario logs it.
var seed = sync.OnceValue(func() uint64 {
	if n, err := strconv.ParseUint(os.Getenv("KGROUP_SEED"), 10, 64); err == nil {
		return n
	}
	return uint64(time.Now().UnixNano())
})

func (r *random) below(n int64) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.r.Int64N(n)
}

func (r *random) upTo(d time.Duration) time.Duration { return time.Duration(r.below(int64(d) + 1)) }
