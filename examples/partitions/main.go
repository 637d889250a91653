// Partitions reads every partition through a channel of its own: kgroup.Partitions.
// Messages of one partition are handled in offset order, partitions side by side, and
// one that stands still does not hold up the others.
//
//	go run ./examples/partitions
//
// Here the first handlers of all partitions wait for each other; then partition 0
// stands still until the others are through. Its queue is full long before that, so
// kgroup pauses it and goes on fetching the others. In Mode Multiplex, whose partitions
// share one channel, they would all wait for good.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/examples/internal/sandbox"
)

const (
	partitions   = 3
	perPartition = 200
)

// A Step is one step of the work on a partition's orders.
type Step struct {
	Number int `json:"number"`
}

// A yard handles the steps of all partitions.
type yard struct {
	met     chan struct{} // closed when every partition is at its first step
	cleared chan struct{} // closed when all partitions but 0 are through

	mu      sync.Mutex
	due     [partitions]int // the next step
	arrived int             // partitions at their first step
	through int             // partitions at their end
	atWork  int             // handlers
	most    int             // of them ever
}

func newYard() *yard {
	return &yard{met: make(chan struct{}), cleared: make(chan struct{})}
}

func (y *yard) handle(ctx context.Context, step Step, msg kgroup.Message) error {
	y.begin()
	defer y.end()
	if step.Number == 0 {
		if err := y.meet(ctx, msg.Partition); err != nil {
			return err
		}
	}
	return y.record(msg.Partition, step.Number)
}

func (y *yard) begin() {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.atWork++
	y.most = max(y.most, y.atWork)
}

func (y *yard) end() {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.atWork--
}

// meet waits until the first handlers of all partitions are at work and, in partition
// 0, for the end of the others.
func (y *yard) meet(ctx context.Context, partition int32) error {
	y.mu.Lock()
	y.arrived++
	if y.arrived == partitions {
		close(y.met)
	}
	y.mu.Unlock()
	if err := wait(ctx, y.met); err != nil || partition != 0 {
		return err
	}
	fmt.Println("partition 0 waits for the others")
	return wait(ctx, y.cleared)
}

// wait gives up when the partition is lost or the time to shut down is over: a
// handler should listen to its context wherever it waits.
func wait(ctx context.Context, event <-chan struct{}) error {
	select {
	case <-event:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// record finds any step that comes early, late, or twice.
func (y *yard) record(partition int32, step int) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	if step != y.due[partition] {
		return fmt.Errorf("partition %d: step %d, but %d is due", partition, step, y.due[partition])
	}
	y.due[partition]++
	if y.due[partition] < perPartition {
		return nil
	}
	fmt.Printf("partition %d is through: %d steps, in order\n", partition, perPartition)
	y.through++
	if y.through == partitions-1 {
		close(y.cleared)
	}
	return nil
}

func run() (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	kafka, err := sandbox.Start(ctx, "partitions", sandbox.Topics{"steps": partitions})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kafka.Close(ctx)) }()
	steps := make([]any, partitions*perPartition)
	for i := range steps {
		steps[i] = Step{Number: i / partitions}
	}
	if err := kafka.Produce(ctx, "steps", steps...); err != nil {
		return err
	}

	yard := newYard()
	consumer, err := kgroup.New(kgroup.Config{
		Brokers: kafka.Brokers,
		Group:   kafka.Group("yard"),
		Mode:    kgroup.Partitions,
		Topics: kgroup.Topics{
			kafka.Topic("steps"): {Handler: kgroup.JSON(yard.handle), Queue: 16},
		},
		Hooks: kgroup.Hooks{Commit: kafka.WhenCommitted(stop)},
	})
	if err != nil {
		return err
	}
	if err := consumer.Run(ctx); err != nil {
		return err
	}
	fmt.Printf("at most %d handlers at once, one per partition\n", yard.most)
	return nil
}

func main() {
	slog.SetLogLoggerLevel(slog.LevelWarn)
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
