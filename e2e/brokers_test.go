package e2e

// The brokers that scenarios run on: the embedded one here, real ones in
// brokers_kafka_test.go.

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/kgroup-go/kgroup/kgrouptest"
)

// brokers are what a scenario runs on. What follows Addrs is only for scenarios
// that have them to themselves; nodes have the ids that Kafka's answers give.
type brokers interface {
	Addrs() []string

	// crash ends nodes at once, all of them if none is given; terminate lets one hand
	// over what it has. revive starts them again, with the data they had.
	crash(nodes ...int32) error
	terminate(node int32) error
	revive(ctx context.Context, nodes ...int32) error

	// suspend keeps the coordinator of a group from serving it, until resume.
	suspend(node int32, group string) (resume func() error, err error)
}

// targets are the brokers of this run.
func targets(t *testing.T) []target {
	t.Helper()
	if addrs := os.Getenv("KAFKA_BROKERS"); addrs != "" {
		return []target{{name: "KAFKA_BROKERS", shared: func(*testing.T) brokers {
			return foreign(strings.Split(addrs, ","))
		}}}
	}
	return builtTargets(t)
}

// foreign brokers are somebody else's, and left alone.
type foreign []string

func (f foreign) Addrs() []string { return f }

func (foreign) crash(...int32) error                        { panic("not ours") }
func (foreign) terminate(int32) error                       { panic("not ours") }
func (foreign) revive(context.Context, ...int32) error      { panic("not ours") }
func (foreign) suspend(int32, string) (func() error, error) { panic("not ours") }

// embeddedTarget runs everything at once: brokers cost nothing there.
var embeddedTarget = target{
	name:   "embedded",
	shared: func(t *testing.T) brokers { t.Helper(); return embed(t, 1) },
	own: func(t *testing.T) brokers {
		t.Helper()
		t.Parallel()
		return embed(t, 3)
	},
}

type embedded struct{ *kgrouptest.Broker }

func embed(t *testing.T, nodes int) brokers {
	t.Helper()
	b, err := kgrouptest.New(kgrouptest.Config{Brokers: nodes})
	require.NoError(t, err)
	t.Cleanup(b.Close)
	return embedded{b}
}

func (b embedded) crash(nodes ...int32) error {
	b.Stop(nodes...)
	return nil
}

func (b embedded) terminate(node int32) error { return b.crash(node) }

func (b embedded) revive(_ context.Context, nodes ...int32) error { return b.Restart(nodes...) } //nolint:contextcheck // it returns at once

// suspend has every request of the group refused.
func (b embedded) suspend(_ int32, group string) (func() error, error) {
	fault := b.Cluster().Fault(kfake.Fault{
		Keys:  []kmsg.Key{kmsg.FindCoordinator, kmsg.OffsetCommit, kmsg.OffsetFetch, kmsg.Heartbeat, kmsg.JoinGroup, kmsg.SyncGroup},
		Group: group,
		Err:   kerr.CoordinatorNotAvailable,
		Count: -1,
	})
	return func() error { fault.Remove(); return nil }, nil
}
