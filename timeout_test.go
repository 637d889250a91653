package kgroup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

type contextKey string

var errParent = errors.New("the partition is gone")

// A twin is a context, and what was derived from it.
type twin struct {
	ctx     context.Context
	end     func()
	derived []context.Context
	fired   []*atomic.Bool // AfterFuncs
	stops   []func() bool
}

// asks are what can be asked of a twin, or done with it. Each returns what was seen.
var asks = map[string]func(w *twin) string{
	"Err":      func(w *twin) string { return fmt.Sprint(w.ctx.Err()) },
	"Done":     func(w *twin) string { return fmt.Sprint(isClosed(w.ctx.Done())) },
	"Cause":    func(w *twin) string { return fmt.Sprint(context.Cause(w.ctx)) },
	"Deadline": func(w *twin) string { d, ok := w.ctx.Deadline(); return fmt.Sprint(d, ok) },
	"Value":    func(w *twin) string { return fmt.Sprint(w.ctx.Value(contextKey("who")), w.ctx.Value("?")) },
	"String":   func(w *twin) string { return fmt.Sprint(w.ctx) },
	"without": func(w *twin) string {
		ctx := context.WithoutCancel(w.ctx)
		return fmt.Sprint(ctx.Err(), context.Cause(ctx), ctx.Value(contextKey("who")))
	},
	"WithValue": func(w *twin) string {
		w.derived = append(w.derived, context.WithValue(w.ctx, contextKey("more"), 1))
		return ""
	},
	"WithCancel": func(w *twin) string {
		ctx, cancel := context.WithCancel(w.ctx)
		_ = cancel
		w.derived = append(w.derived, ctx)
		return fmt.Sprint(ctx.Err())
	},
	"WithTimeout": func(w *twin) string {
		ctx, cancel := context.WithTimeoutCause(w.ctx, 100*time.Millisecond+250*time.Microsecond, errHandler)
		_ = cancel
		w.derived = append(w.derived, ctx)
		return fmt.Sprint(ctx.Err())
	},
	"WithCancel, cancelled": func(w *twin) string {
		ctx, cancel := context.WithCancelCause(context.WithValue(w.ctx, contextKey("more"), 1))
		cancel(errHandler)
		return fmt.Sprint(ctx.Err(), context.Cause(ctx), w.ctx.Err(), context.Cause(w.ctx))
	},
	"AfterFunc": func(w *twin) string {
		fired := &atomic.Bool{}
		w.fired = append(w.fired, fired)
		w.stops = append(w.stops, context.AfterFunc(w.ctx, func() { fired.Store(true) }))
		return ""
	},
	"stop": func(w *twin) string {
		if len(w.stops) == 0 {
			return ""
		}
		return fmt.Sprint(w.stops[len(w.stops)/2]())
	},
	"derived": func(w *twin) string {
		seen := ""
		for _, fired := range w.fired {
			seen += fmt.Sprint(fired.Load())
		}
		for _, ctx := range w.derived {
			d, _ := ctx.Deadline()
			seen += fmt.Sprint(ctx.Err(), isClosed(ctx.Done()), context.Cause(ctx), d, ctx.Value(contextKey("who")))
		}
		return seen
	},
}

// A context that is made when it is needed is not to be told from the ordinary one, whatever is
// asked and happens, and in whichever order. No two timers end at the same time: even with
// ordinary contexts nobody knows which of them is the first.
func TestAttemptContextIsAnOrdinaryOne(t *testing.T) {
	names := slices.Sorted(maps.Keys(asks))
	for seed := range uint64(2000) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 11))
			parent, cancel := context.WithCancelCause(context.WithValue(context.WithoutCancel(t.Context()), contextKey("who"), "I"))
			defer cancel(nil)
			timeout := time.Duration(1+random.IntN(300))*time.Millisecond + 100*time.Microsecond
			deadline := time.Now().Add(timeout)
			lazy := newAttemptContext(parent, timeout)
			ordinary, end := context.WithTimeoutCause(parent, timeout, ErrHandlerTimeout)
			defer end()
			got, want := &twin{ctx: lazy, end: lazy.end}, &twin{ctx: ordinary, end: end}
			defer lazy.end()
			history := fmt.Sprint("timeout ", timeout)
			for range 3 + random.IntN(12) {
				switch event := random.IntN(12); {
				case event == 0 && (time.Now().Before(deadline) || lazy.state.Load() != notMade): // see attemptContext
					history += ", parent cancelled"
					cancel(errParent)
				case event == 1:
					history += ", end"
					got.end()
					want.end()
				case event <= 4:
					d := time.Duration(random.IntN(150))*time.Millisecond + 500*time.Microsecond
					history += ", " + d.String()
					time.Sleep(d)
				default:
					name := names[random.IntN(len(names))]
					history += ", " + name
					synctest.Wait()
					require.Equal(t, asks[name](want), asks[name](got), "seed %d: %s", seed, history)
				}
			}
			for _, name := range names {
				synctest.Wait()
				require.Equal(t, asks[name](want), asks[name](got), "seed %d: %s, %s", seed, history, name)
			}
			synctest.Wait()
			require.Equal(t, asks["derived"](want), asks["derived"](got), "seed %d: %s", seed, history)
		})
	}
}

// What a goroutine that a handler has left behind sees.
func TestAttemptContextThatHasEnded(t *testing.T) {
	for name, test := range map[string]struct {
		before func(cancel context.CancelCauseFunc)
		err    error
		cause  error
	}{
		"in time":               {func(context.CancelCauseFunc) {}, context.Canceled, context.Canceled},
		"late":                  {func(context.CancelCauseFunc) { time.Sleep(time.Second) }, context.DeadlineExceeded, ErrHandlerTimeout},
		"with a parent's cause": {func(cancel context.CancelCauseFunc) { cancel(errParent) }, context.Canceled, errParent},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				parent, cancel := context.WithCancelCause(context.WithoutCancel(t.Context()))
				ctx := newAttemptContext(parent, time.Second)
				test.before(cancel)
				ctx.end()
				time.Sleep(time.Minute)
				cancel(errLost)
				assert.Equal(t, test.cause, context.Cause(ctx))
				assert.Equal(t, test.err, ctx.Err())
				assert.True(t, isClosed(ctx.Done()))
			})
		})
	}
}

// An ordinary context that is derived costs no goroutine.
func TestAttemptContextNeedsNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := newAttemptContext(context.WithoutCancel(t.Context()), time.Second)
		before := runtime.NumGoroutine()
		var derived []context.Context
		for range 100 {
			child, cancel := context.WithCancel(context.WithValue(ctx, contextKey("more"), 1))
			defer cancel()
			derived = append(derived, child)
		}
		assert.Equal(t, before, runtime.NumGoroutine())
		ctx.end()
		for _, child := range derived {
			require.Equal(t, context.Canceled, child.Err())
		}
	})
}

// Many ask at once, while the attempt ends, the parent is cancelled, or time is up.
func TestAttemptContextOfMany(t *testing.T) {
	for i := range 300 {
		synctest.Test(t, func(t *testing.T) {
			parent, cancel := context.WithCancelCause(context.WithoutCancel(t.Context()))
			ctx := newAttemptContext(yielding{parent}, 20*time.Millisecond)
			var all sync.WaitGroup
			var channels sync.Map
			for n := range 8 {
				all.Go(func() {
					time.Sleep(time.Duration(n/4) * 20 * time.Millisecond)
					if n%4 == 0 {
						_ = fmt.Sprint(ctx, ctx.Value(contextKey("who")))
						_ = context.AfterFunc(ctx, func() {})
					}
					if n%4 == 1 {
						child, cancel := context.WithCancel(ctx)
						defer cancel()
						<-child.Done()
					}
					channels.Store(ctx.Done(), nil)
					for ctx.Err() == nil {
						time.Sleep(time.Millisecond)
					}
					err, cause := ctx.Err(), context.Cause(ctx)
					<-ctx.Done()
					for range 10 {
						assert.Equal(t, err, ctx.Err())
						assert.Equal(t, cause, context.Cause(ctx))
					}
				})
			}
			if i%3 == 1 {
				all.Go(func() { cancel(errParent) })
			}
			if i%3 != 2 {
				all.Go(ctx.end)
			}
			all.Wait()
			made := 0
			channels.Range(func(any, any) bool { made++; return true })
			assert.Equal(t, 1, made, "one channel, whoever asks")
			ctx.end()
			cancel(nil)
		})
	}
}

// A yielding context lets others run while it is looked at.
type yielding struct{ context.Context }

func (c yielding) Done() <-chan struct{} {
	runtime.Gosched()
	return c.Context.Done()
}

// A handler that does not wait pays for one small piece of memory.
func TestTimeoutAllocations(t *testing.T) {
	for name, handler := range map[string]HandlerFunc{
		"does not look": func(context.Context, Message) error { return nil },
		"looks whether it is over": func(ctx context.Context, _ Message) error {
			if _, ok := ctx.Deadline(); !ok || ctx.Value(contextKey("who")) != nil {
				return errHandler
			}
			return ctx.Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := testLane(handler)
			l.topic.Timeout = time.Minute
			record := &allocRecord{fakeRecord: fakeRecord{value: []byte("v")}}
			finished := true
			got := testing.AllocsPerRun(1000, func() {
				record.offset++
				finished = finished && l.hand.finish(record)
			})
			require.True(t, finished)
			assert.LessOrEqual(t, got, 1.0)
		})
	}
}
