package kgroup

import (
	"context"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// A failed require in a test's hook ends the goroutine it runs on, as in a handler. The
// message was taken for another one then, and the frontier never moved again.
func TestGoexitInAHook(t *testing.T) {
	exits := func(cfg *Config) {
		cfg.Hooks.Blocked = func(*HandlerError) { runtime.Goexit() }
		withRetry(Retry{MinBackoff: time.Second, MaxBackoff: time.Second})(cfg)
	}
	withRig(t, exits, func(t *testing.T, r *rig) {
		calls := 0
		r.on = func(_ context.Context, msg Message) error {
			if calls++; calls <= 2 {
				return errHandler
			}
			return nil
		}
		r.receives(orders0, 5, 6, 7)
		r.after(time.Minute)
		assert.Len(t, r.history.all("returned orders/0@7"), 1)
		assert.EqualValues(t, 8, r.engine.acknowledged(orders0))
	})
}

// With CommitEveryMessage the worker commits, and so calls this hook. The message that
// had just been settled was handled again.
func TestGoexitInTheCommitHook(t *testing.T) {
	exits := func(cfg *Config) {
		cfg.CommitInterval = CommitEveryMessage
		n := 0
		cfg.Hooks.Commit = func(map[string]map[int32]int64, error) {
			if n++; n == 2 { // the first says that the lane is open
				runtime.Goexit()
			}
		}
	}
	withRig(t, exits, func(t *testing.T, r *rig) {
		r.receives(orders0, 5, 6, 7)
		r.after(time.Second)
		assert.Equal(t, "5#1 6#1 7#1", r.handled(orders0))
		assert.EqualValues(t, 8, r.engine.acknowledged(orders0))
	})
}

// The message was handled again; or the worker never ended, which looks like a handler
// that never returns.
func TestGoexitInTheUnblockedHook(t *testing.T) {
	t.Run("after the message was settled", func(t *testing.T) {
		exits := func(cfg *Config) {
			cfg.Hooks.Unblocked = func(string, int32, int64) { runtime.Goexit() }
			withRetry(Retry{MinBackoff: time.Second, MaxBackoff: time.Second})(cfg)
		}
		withRig(t, exits, func(t *testing.T, r *rig) {
			calls := 0
			r.on = func(_ context.Context, msg Message) error {
				if calls++; calls == 1 {
					return errHandler
				}
				return nil
			}
			r.receives(orders0, 5, 6, 7)
			r.after(time.Minute)
			assert.Equal(t, "5#1 5#2 6#1 7#1", r.handled(orders0))
			assert.EqualValues(t, 8, r.engine.acknowledged(orders0))
		})
	})
	t.Run("when the partition is given up", func(t *testing.T) {
		exits := func(cfg *Config) {
			cfg.Hooks.Unblocked = func(string, int32, int64) { runtime.Goexit() }
		}
		withRig(t, exits, func(t *testing.T, r *rig) {
			r.on = func(context.Context, Message) error { return Permanent(errHandler) }
			r.receives(orders0, 5)
			r.after(time.Second)
			assert.Zero(t, r.drains(10*time.Second, 20*time.Second))
			assert.Empty(t, r.consumer.Health().Stuck)
		})
	})
}

// Every hook is optional: a life in which each would be called.
func TestNilHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.consumer.config.Hooks = Hooks{}
		r.on = func(_ context.Context, msg Message) error {
			if msg.Attempt == 1 {
				return Permanent(errHandler)
			}
			return nil
		}
		r.run(t.Context())
		r.receives(orders0, 5)
		r.after(time.Minute)
		require.EqualValues(t, 6, r.engine.acknowledged(orders0))
		r.engine.rebalance(time.Minute, time.Minute)
		r.engine.session.RebalanceFailed(errTransient)
		r.engine.session.Error(errTransient)
		r.engine.assign(at(orders0, 6))
		r.engine.lose(errTransient)
		_, err := r.stop()
		require.NoError(t, err)
		assert.Empty(t, r.history.all("assign"), "they were nil indeed")
	})
}

func TestRebalanceFailed(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.engine.session.RebalanceFailed(errTransient)
		assert.Equal(t, []string{"rebalance failed: broker is restarting"}, r.history.all())
		assert.Len(t, r.logs.with("rebalance failed", "broker is restarting"), 1)
	})
}

// Two hooks of one partition at the same time would make every user guard his hooks by
// a lock, though they look like a sequence.
func TestHooksOfAPartitionDoNotOverlap(t *testing.T) {
	var running, overlaps atomic.Int32
	during := func(d time.Duration) {
		if running.Add(1) > 1 {
			overlaps.Add(1)
		}
		time.Sleep(d)
		running.Add(-1)
	}
	slowly := func(cfg *Config) {
		running.Store(0)
		overlaps.Store(0)
		cfg.Hooks = Hooks{
			Assign:    func(string, int32, int64) { during(10 * time.Second) },
			Revoke:    func(string, int32, int64) { during(10 * time.Second) },
			Lost:      func(string, int32, int64, error) { during(10 * time.Second) },
			Blocked:   func(*HandlerError) { during(10 * time.Second) },
			Unblocked: func(string, int32, int64) { during(10 * time.Second) },
		}
		withRetry(Retry{MinBackoff: time.Second, MaxBackoff: time.Second})(cfg)
	}

	for name, when := range map[string]time.Duration{
		"lost while it is blocked":   15 * time.Second,
		"lost while that is told":    5 * time.Second,
		"lost before the second try": 11*time.Second - 1,
	} {
		t.Run(name, func(t *testing.T) {
			withRig(t, slowly, func(t *testing.T, r *rig) {
				r.on = func(context.Context, Message) error { return Permanent(errHandler) }
				r.receives(orders0, 5)
				r.after(when)
				r.engine.lose(errLost)
				r.after(time.Minute)
				require.Len(t, r.history.all("unblocked"), 1)
				require.Len(t, r.history.all("lost"), 1)
				assert.Zero(t, overlaps.Load())
			})
		})
	}

	t.Run("assigned again while an orphan ends", func(t *testing.T) {
		withRig(t, slowly, func(t *testing.T, r *rig) {
			stuck := r.gate()
			r.on = func(_ context.Context, msg Message) error {
				if msg.Attempt == 2 {
					stuck.wait()
				}
				return Permanent(errHandler)
			}
			r.receives(orders0, 5)
			r.after(15 * time.Second)
			require.Equal(t, "5#1 5#2", r.handled(orders0))
			r.engine.rebalance(time.Second, 2*time.Second)
			require.Len(t, r.history.all("lost"), 1)
			assigned := begin(func() { r.engine.assign(at(orders0, 5)) })
			r.after(5 * time.Second)
			stuck.open()
			<-assigned
			r.after(time.Minute)
			require.Len(t, r.history.all("assign"), 2)
			assert.Zero(t, overlaps.Load())
		})
	})
}

// A hook is not protected: hiding its panic would hide a bug. It has to end the
// process, so a child process it is.
func TestPanickingHookEndsTheProcess(t *testing.T) {
	for name := range panickingHooks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPanickingHookInAChild$", "-test.timeout=30s")
			child.Env = append(os.Environ(), panickingHook+"="+name)
			output, err := child.CombinedOutput()
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit, "%s", output)
			assert.Equal(t, 2, exit.ExitCode(), "%s", output)
			assert.Contains(t, string(output), "panic: the hook "+name)
			assert.Contains(t, string(output), "hooks_test.go", "the stack says where")
		})
	}
}

const panickingHook = "KGROUP_TEST_PANICKING_HOOK"

// Hooks are called by three kinds of goroutine: the engine's, a lane's worker, and the
// one that commits.
var panickingHooks = map[string]Hooks{
	"Assign":  {Assign: func(string, int32, int64) { panic("the hook Assign") }},
	"Blocked": {Blocked: func(*HandlerError) { panic("the hook Blocked") }},
	"Commit":  {Commit: func(map[string]map[int32]int64, error) { panic("the hook Commit") }},
}

func TestPanickingHookInAChild(t *testing.T) {
	hooks, ok := panickingHooks[os.Getenv(panickingHook)]
	if !ok {
		return // it is the child's
	}
	e := newFakeEngine()
	consumer, err := New(Config{
		Brokers:        []string{"localhost:9092"},
		Group:          "billing",
		CommitInterval: time.Millisecond,
		Hooks:          hooks,
		Topics: Topics{"orders": {Handler: HandlerFunc(func(_ context.Context, msg Message) error {
			if msg.Offset == 6 {
				return Permanent(errHandler)
			}
			return nil
		})}},
	})
	require.NoError(t, err)
	consumer.engine = func(*Consumer) engine.Engine { return e }
	go func() {
		<-e.joined
		e.assign(at(orders0, 5))
		e.deliver(orders0, 5, 6)
	}()
	_ = consumer.Run(t.Context()) // until the process ends
}

// Every hook is joined, also one that is added to Hooks later; the first is called
// first, and one that only one side has is called as it is.
func TestJoinHooks(t *testing.T) {
	var calls []string
	each := func(name string) Hooks {
		var h Hooks
		v := reflect.ValueOf(&h).Elem()
		for i := range v.NumField() {
			field := v.Type().Field(i)
			v.Field(i).Set(reflect.MakeFunc(field.Type, func([]reflect.Value) []reflect.Value {
				calls = append(calls, name+" "+field.Name)
				return nil
			}))
		}
		return h
	}
	tests := []struct {
		name   string
		joined Hooks
		want   []string
	}{
		{"both", JoinHooks(each("a"), each("b")), []string{"a", "b"}},
		{"the first", JoinHooks(each("a"), Hooks{}), []string{"a"}},
		{"the second", JoinHooks(Hooks{}, each("b")), []string{"b"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			v := reflect.ValueOf(test.joined)
			for i := range v.NumField() {
				field := v.Type().Field(i)
				require.False(t, v.Field(i).IsNil(), field.Name)
				calls = nil
				in := make([]reflect.Value, field.Type.NumIn())
				for k := range in {
					in[k] = reflect.Zero(field.Type.In(k))
				}
				v.Field(i).Call(in)
				var want []string
				for _, name := range test.want {
					want = append(want, name+" "+field.Name)
				}
				assert.Equal(t, want, calls)
			}
		})
	}
	neither := reflect.ValueOf(JoinHooks(Hooks{}, Hooks{}))
	for i := range neither.NumField() {
		assert.True(t, neither.Field(i).IsNil(), "a hook that nobody has costs nothing")
	}
}
