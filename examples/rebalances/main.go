// Rebalances prints what kgroup's hooks say while a second member joins the group and
// leaves it again: who owns what, from which offset on, and who let go of what.
//
//	go run ./examples/rebalances
//
// Two things to see: a partition is revoked before it is assigned to anybody, at the
// offset where its next owner begins, so nothing is lost or repeated; and every
// rebalance revokes all partitions, also those that stay (Kafka calls that eager).
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/examples/internal/sandbox"
)

const partitions = 4

// A member is one consumer of the group. Usually it is a process of its own.
type member struct {
	rebalanced chan int     // after each rebalance, when all are assigned: how many partitions it owns
	total      int          // partitions of the last rebalance
	unassigned atomic.Int32 // of them, those whose Assign is still to come
	stop       context.CancelFunc
	ended      chan struct{}
	err        error // what Run has returned; set when ended is closed
}

func start(ctx context.Context, name string, kafka *sandbox.Kafka, committed func(map[string]map[int32]int64, error)) (*member, error) {
	m := &member{rebalanced: make(chan int, 100), ended: make(chan struct{})}
	say := func(format string, args ...any) { fmt.Printf(name+": "+format+"\n", args...) }
	consumer, err := kgroup.New(kgroup.Config{
		Brokers:  kafka.Brokers,
		Group:    kafka.Group("stock"),
		ClientID: name,
		Topics:   kgroup.Topics{kafka.Topic("items"): {Handler: kgroup.HandlerFunc(handle)}},
		Hooks: kgroup.Hooks{
			RebalanceStarted: func(owned map[string][]int32) {
				say("rebalance started, owned %s", list(owned))
			},
			RebalanceCompleted: func(r kgroup.Rebalance) {
				say("rebalance completed: current %s, claimed %s, released %s", list(r.Current), list(r.Claimed), list(r.Released))
				m.expect(r.Current)
			},
			RebalanceFailed: func(err error) { // it is tried again
				say("rebalance failed: %v", err)
			},
			Assign: func(_ string, partition int32, offset int64) {
				say("assign %d at %d", partition, offset)
				if m.unassigned.Add(-1) == 0 {
					m.rebalanced <- m.total
				}
			},
			Revoke: func(_ string, partition int32, offset int64) { // drained: nothing of it is being handled
				say("revoke %d at %d", partition, offset)
			},
			Lost: func(_ string, partition int32, offset int64, cause error) { // instead of Revoke: no time to drain
				say("lost %d at %d: %v", partition, offset, cause)
			},
			Commit: committed,
		},
	})
	if err != nil {
		return nil, err
	}
	ctx, m.stop = context.WithCancel(ctx)
	go func() {
		defer close(m.ended)
		m.err = consumer.Run(ctx)
	}()
	return m, nil
}

// expect is told what the member owns; the assignments follow.
func (m *member) expect(current map[string][]int32) {
	m.total = 0
	for _, numbers := range current {
		m.total += len(numbers)
	}
	m.unassigned.Store(int32(m.total))
}

func handle(context.Context, kgroup.Message) error { return nil }

// list writes what is owned of the one topic.
func list(owned map[string][]int32) string {
	numbers := slices.Sorted(slices.Values(slices.Concat(slices.Collect(maps.Values(owned))...)))
	if len(numbers) == 0 {
		return "nothing"
	}
	return strings.Trim(fmt.Sprint(numbers), "[]")
}

// owns waits until the member has so many partitions.
func (m *member) owns(ctx context.Context, want int) error {
	for {
		select {
		case total := <-m.rebalanced:
			if total == want {
				return nil
			}
		case <-m.ended:
			return errors.New("a member has ended early")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// leave ends the member in good order.
func (m *member) leave() error {
	m.stop()
	<-m.ended
	return m.err
}

func run() (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	kafka, err := sandbox.Start(ctx, "rebalances", sandbox.Topics{"items": partitions})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kafka.Close(ctx)) }()
	items := make([]any, 5*partitions)
	for i := range items {
		items[i] = i
	}
	if err := kafka.Produce(ctx, "items", items...); err != nil {
		return err
	}
	return scenes(ctx, kafka)
}

func scenes(ctx context.Context, kafka *sandbox.Kafka) (err error) {
	fmt.Println("-- the first member joins and handles 5 messages of each partition")
	committed := make(chan struct{})
	first, err := start(ctx, "first", kafka, kafka.WhenCommitted(func() { close(committed) }))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, first.leave()) }()
	if err := first.owns(ctx, partitions); err != nil {
		return err
	}
	select {
	case <-committed:
	case <-ctx.Done():
		return context.Cause(ctx)
	}

	fmt.Println("-- a second member joins")
	second, err := start(ctx, "second", kafka, nil)
	if err != nil {
		return err
	}
	if err := errors.Join(first.owns(ctx, partitions/2), second.owns(ctx, partitions/2)); err != nil {
		return errors.Join(err, second.leave())
	}

	fmt.Println("-- the second member leaves")
	if err := second.leave(); err != nil {
		return err
	}
	if err := first.owns(ctx, partitions); err != nil {
		return err
	}

	fmt.Println("-- the first member leaves")
	return nil
}

func main() {
	slog.SetLogLoggerLevel(slog.LevelWarn)
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
