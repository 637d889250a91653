// Rawloop is a sarama-cluster loop of one's own on the settings of
// kgroup.Config.ClusterConfig: for a service that cannot change to Run today. It does
// what such a loop must do, and each line that is easily forgotten says what happens
// without it.
//
//	go run ./examples/rawloop
//
// With those settings the known ways to panic, to stop for good and to skip messages
// are closed. What it still cannot do, and Run does:
//   - Wait for handlers in a rebalance, and keep up heartbeats meanwhile. The engine
//     sleeps a fixed time (DwellTime) and gives the partition away in the middle of
//     whatever takes longer: the next owner handles it again, perhaps at the same time.
//   - Tell a handler that its partition is gone: nothing is cancelled.
//   - Try a message again while the other partitions go on, or handle partitions side
//     by side. Here the loop ends with the first error.
//   - Believe a commit. CommitOffsets returns nil for partitions that are gone.
//   - Stay when a topic of the group is deleted or a partition has no leader (the
//     engine leaves and joins for ever), and notice partitions that are added.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/examples/internal/sandbox"
)

// A Reading is the value of a message.
type Reading struct {
	Sensor  string `json:"sensor"`
	Celsius int    `json:"celsius"`
}

func handle(msg *sarama.ConsumerMessage) error {
	var r Reading
	if err := json.Unmarshal(msg.Value, &r); err != nil {
		return fmt.Errorf("decode %s/%d at %d: %w", msg.Topic, msg.Partition, msg.Offset, err)
	}
	fmt.Printf("%s: %d °C\n", r.Sensor, r.Celsius)
	return nil
}

// consume handles messages until ctx is cancelled or total of them are done.
func consume(ctx context.Context, brokers []string, group, topic string, total int) (err error) {
	// Topics is looked at for patterns and duplicates only: the handler is the loop below.
	config, err := kgroup.Config{Topics: kgroup.Topics{topic: {}}}.ClusterConfig()
	if err != nil {
		return err
	}
	config.Group.Return.Notifications = true // off by default: who turns it on must read them, always

	// Not cluster.NewConsumer, which leaks its connections when it fails.
	client, err := cluster.NewClient(brokers, config)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	consumer, err := cluster.NewConsumerFromClient(client, group, []string{topic})
	if err != nil {
		return fmt.Errorf("join %s: %w", group, err)
	}

	// Both channels until they are closed, which is after Close: an unread error stops
	// the heartbeats once the buffer is full, and an unread notification stops the
	// engine before it joins, or before it ever commits.
	var reading sync.WaitGroup
	reading.Go(func() {
		for err := range consumer.Errors() {
			slog.Warn("survived", "error", err)
		}
	})
	reading.Go(func() {
		for n := range consumer.Notifications() {
			// Not n.Type: the engine writes it while we read. Claimed is nil when a
			// rebalance starts.
			if n.Claimed != nil {
				slog.Info("rebalanced", "current", n.Current)
			}
		}
	})

	err = loop(ctx, consumer, total)

	// Close neither waits for handlers nor retries its commit. So first no more
	// handlers (the loop is over), then the commit, then Close, also after an error.
	if failed := consumer.CommitOffsets(); failed != nil {
		err = errors.Join(err, fmt.Errorf("commit: %w", failed))
	}
	if failed := consumer.Close(); failed != nil {
		err = errors.Join(err, fmt.Errorf("close: %w", failed))
	}
	reading.Wait()
	return err
}

func loop(ctx context.Context, consumer *cluster.Consumer, total int) error {
	for range total {
		select {
		case msg, ok := <-consumer.Messages():
			if !ok {
				return errors.New("the engine has stopped")
			}
			// An error cannot wait for better times here: whatever is marked next in
			// this partition would commit past the failed message. So the loop ends
			// with it, and a supervisor starts it again from the last commit.
			if err := handle(msg); err != nil {
				return err
			}
			// After the handler, never before: the mark may be committed at once.
			consumer.MarkOffset(msg, "")
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

func run() (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	kafka, err := sandbox.Start(ctx, "rawloop", sandbox.Topics{"readings": 2})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kafka.Close(ctx)) }()
	readings := []any{
		Reading{Sensor: "attic", Celsius: 31},
		Reading{Sensor: "cellar", Celsius: 12},
		Reading{Sensor: "attic", Celsius: 32},
		Reading{Sensor: "cellar", Celsius: 11},
		Reading{Sensor: "attic", Celsius: 33},
	}
	if err := kafka.Produce(ctx, "readings", readings...); err != nil {
		return err
	}

	if err := consume(ctx, kafka.Brokers, kafka.Group("weather"), kafka.Topic("readings"), len(readings)); err != nil {
		return err
	}
	// Asked of the cluster, because CommitOffsets says nil too when it commits nothing.
	committed, err := kafka.Committed(context.WithoutCancel(ctx), "weather", "readings")
	if err != nil {
		return err
	}
	fmt.Printf("committed: partition 0 up to %d, partition 1 up to %d\n", committed[0], committed[1])
	return nil
}

func main() {
	slog.SetLogLoggerLevel(slog.LevelWarn)
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
