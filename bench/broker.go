//go:build unix

package main

// What the contenders read: a topic that was filled before, on a broker of its own
// or on one embedded in this process.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/kgroup-go/kgroup/e2e/kafka"
	"github.com/kgroup-go/kgroup/kgrouptest"
)

// A topic says what there is to read.
type topic struct {
	Name         string
	Partitions   int
	PerPartition int64 // messages
	Size         int   // bytes of a value
	Headers      int
}

// A broker is a running cluster, and what it is called in a report.
type broker struct {
	name  string
	addrs []string
	stop  func() error
}

// startBroker starts Kafka in another process, or the embedded broker in this one.
// The contenders are in neither.
func startBroker(ctx context.Context, kind, version string) (*broker, error) {
	switch kind {
	case "kafka":
		c, err := kafka.Start(ctx, kafka.Options{Version: version})
		if err != nil {
			return nil, err
		}
		return &broker{"Kafka " + version, c.Addrs(), c.Stop}, nil
	case "embedded":
		b, err := kgrouptest.New(kgrouptest.Config{})
		if err != nil {
			return nil, err
		}
		return &broker{"embedded", b.Addrs(), func() error { b.Close(); return nil }}, nil
	default:
		return nil, fmt.Errorf("-broker %q: want embedded or kafka", kind)
	}
}

// fill creates the topic and its records, in large batches: small ones cost the
// engine more for each message, and would make what is above it look cheaper.
func fill(ctx context.Context, b *broker, t topic) error {
	admin, err := kafka.NewAdmin(b.addrs)
	if err != nil {
		return err
	}
	defer admin.Close()
	if err := admin.CreateTopic(ctx, t.Name, int32(t.Partitions), 1, nil); err != nil {
		return err
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(b.addrs...),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerLinger(20*time.Millisecond),
		kgo.MaxBufferedRecords(200_000),
		kgo.RecordDeliveryTimeout(time.Minute),
	)
	if err != nil {
		return err
	}
	defer client.Close()

	value := make([]byte, t.Size)
	for i := range value {
		value[i] = byte(rand.IntN(256))
	}
	var headers []kgo.RecordHeader
	for i := range t.Headers {
		headers = append(headers, kgo.RecordHeader{Key: "header-" + strconv.Itoa(i), Value: bytes.Repeat([]byte{'v'}, 16)})
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var open sync.WaitGroup
	done := func(_ *kgo.Record, err error) {
		if err != nil {
			cancel(err)
		}
		open.Done()
	}
	for range t.PerPartition {
		for p := range t.Partitions {
			open.Add(1)
			client.Produce(ctx, &kgo.Record{Topic: t.Name, Partition: int32(p), Value: value, Headers: headers}, done)
		}
		if ctx.Err() != nil {
			break
		}
	}
	open.Wait()
	if ctx.Err() != nil {
		return fmt.Errorf("fill the topic: %w", context.Cause(ctx))
	}
	return nil
}

// with starts a broker, fills the topic, calls f and stops the broker.
func with(ctx context.Context, kind, version string, t topic, f func(*broker) error) (err error) {
	b, err := startBroker(ctx, kind, version)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	if err := fill(ctx, b, t); err != nil {
		return err
	}
	return f(b)
}
