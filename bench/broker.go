//go:build unix

package main

// What the contenders read: a topic that was filled before, on a broker of its own
// or on one embedded in this process.

import (
	"bytes"
	"context"
	"crypto/tls"
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
	Keys         keys
}

// A broker is a running cluster, and what it is called in a report.
type broker struct {
	name  string
	addrs []string // where the contenders connect
	ca    string   // file with the certificate of addrs; empty: they are plain text
	fill  []kgo.Opt
	stop  func() error
}

// startBroker starts Kafka in another process, or the embedded broker in this one.
// The contenders are in neither.
func startBroker(ctx context.Context, o options) (*broker, error) {
	var server *identity
	if o.tls {
		var err error
		if server, err = newIdentity(); err != nil {
			return nil, err
		}
	}
	b, err := startKind(ctx, o, server)
	if server == nil {
		return b, err
	}
	if err != nil {
		return nil, errors.Join(err, server.remove())
	}
	b.name, b.ca = b.name+" with TLS", server.ca
	stop := b.stop
	b.stop = func() error { return errors.Join(stop(), server.remove()) }
	return b, nil
}

func startKind(ctx context.Context, o options, server *identity) (*broker, error) {
	switch o.broker {
	case "kafka":
		options := kafka.Options{Version: o.version}
		if server != nil {
			options.Listeners, options.Properties = map[string]string{secureListener: "SSL"}, server.properties()
		}
		c, err := kafka.Start(ctx, options)
		if err != nil {
			return nil, err
		}
		b := &broker{name: "Kafka " + o.version, addrs: c.Addrs(), stop: c.Stop}
		b.fill = []kgo.Opt{kgo.SeedBrokers(b.addrs...)}
		if server != nil {
			b.addrs = c.ListenerAddrs(secureListener)
		}
		return b, nil
	case "embedded":
		var cfg kgrouptest.Config
		var fill []kgo.Opt
		if server != nil {
			cfg.TLS = server.config()
			fill = append(fill, kgo.DialTLSConfig(&tls.Config{RootCAs: server.pool(), MinVersion: tls.VersionTLS12}))
		}
		b, err := kgrouptest.New(cfg)
		if err != nil {
			return nil, err
		}
		return &broker{name: "embedded", addrs: b.Addrs(), fill: append(fill, kgo.SeedBrokers(b.Addrs()...)), stop: func() error { b.Close(); return nil }}, nil
	default:
		return nil, fmt.Errorf("-broker %q: want embedded or kafka", o.broker)
	}
}

// fill creates the topic and its records, in large batches: small ones cost the
// engine more for each message, and would make what is above it look cheaper.
func fill(ctx context.Context, b *broker, t topic) error {
	admin, err := kafka.NewAdmin(nil, b.fill...)
	if err != nil {
		return err
	}
	defer admin.Close()
	if err := admin.CreateTopic(ctx, t.Name, int32(t.Partitions), 1, nil); err != nil {
		return err
	}
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerLinger(20 * time.Millisecond),
		kgo.MaxBufferedRecords(200_000),
		kgo.RecordDeliveryTimeout(time.Minute),
	}, b.fill...)...)
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
	var draw []func() []byte
	for p := range t.Partitions {
		draw = append(draw, t.Keys.in(p))
	}
	for range t.PerPartition {
		for p := range t.Partitions {
			open.Add(1)
			client.Produce(ctx, &kgo.Record{Topic: t.Name, Partition: int32(p), Key: draw[p](), Value: value, Headers: headers}, done)
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

// with starts a broker, fills the topics, calls f and stops the broker.
func with(ctx context.Context, o options, f func(*broker) error) (err error) {
	b, err := startBroker(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	for _, t := range o.topics {
		if err := fill(ctx, b, t); err != nil {
			return err
		}
	}
	return f(b)
}
