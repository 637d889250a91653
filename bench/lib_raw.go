//go:build unix

package main

// The loop that somebody would write who uses the engine without kgroup. It commits as
// often as kgroup does.

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"

	"github.com/kgroup-go/kgroup"
)

func joinRaw(_ context.Context, j job, m *meter) (leave func() error, err error) {
	return j.loop(m, func(p cluster.PartitionConsumer) { readPartition(p, m) })
}

// loop begins with one goroutine for all messages or, in Partitions mode, with one that
// calls read for each partition.
func (j job) loop(m *meter, read func(cluster.PartitionConsumer)) (leave func() error, err error) {
	built, err := j.bare()
	if err != nil {
		return nil, err
	}
	c, err := cluster.NewConsumer(j.Brokers, j.Group, []string{j.Topic.Name}, built)
	if err != nil {
		return nil, err
	}
	var loops sync.WaitGroup
	loops.Go(func() {
		for err := range c.Errors() {
			complain(err)
		}
	})
	if j.Mode == kgroup.Partitions {
		loops.Go(func() {
			for p := range c.Partitions() {
				loops.Go(func() {
					for err := range p.Errors() {
						complain(err)
					}
				})
				loops.Go(func() { read(p) })
			}
		})
	} else {
		loops.Go(func() {
			for msg := range c.Messages() {
				m.handle(msg.Partition, msg.Key, msg.Value)
				c.MarkOffset(msg, "")
			}
		})
	}
	return func() error {
		err := c.Close()
		loops.Wait()
		return err
	}, nil
}

// readPartition marks through the partition: Consumer.MarkOffset would look it up
// for each message.
func readPartition(p cluster.PartitionConsumer, m *meter) {
	partition := p.Partition()
	for msg := range p.Messages() {
		m.handle(partition, msg.Key, msg.Value)
		p.MarkOffset(msg.Offset, "")
	}
}

// bare are the settings of a loop without kgroup.
func (j job) bare() (built *cluster.Config, err error) {
	if j.Engine == (engineSettings{}) {
		built = j.documented()
	} else if built, err = j.likeKgroup(); err != nil {
		return nil, err
	}
	if j.CA == "" {
		return built, nil
	}
	built.Net.TLS.Enable = true
	built.Net.TLS.Config, err = trusting(j.CA)
	return built, err
}

// documented is what sarama-cluster's README begins with, with what all contenders have
// in common.
func (j job) documented() *cluster.Config {
	built := cluster.NewConfig()
	built.Version = sarama.V2_1_0_0 // its default is of no use to Kafka 4
	built.Consumer.Return.Errors = true
	built.Consumer.Offsets.Initial = sarama.OffsetOldest
	built.Consumer.Offsets.CommitInterval = commitInterval
	built.Group.Session.Timeout, built.Group.Heartbeat.Interval = j.timeouts()
	if j.Mode == kgroup.Partitions {
		built.Group.Mode = cluster.ConsumerModePartitions
	}
	return built
}

// likeKgroup comes from ClusterConfig, which leaves connections to sarama as long as it
// is told of no TLS.
func (j job) likeKgroup() (*cluster.Config, error) {
	cfg := j.config(nothing)
	cfg.Tune = j.Engine.apply
	return cfg.ClusterConfig()
}

// engineSettings are the engine's settings that decide how fast a bare loop is.
type engineSettings struct {
	Buffer     int           // ChannelBufferSize
	Fetch      int32         // Consumer.Fetch.Default, in bytes
	Processing time.Duration // Consumer.MaxProcessingTime
}

// ofKgroup are what kgroup itself sets: New shows it what it has built.
func ofKgroup(mode kgroup.Mode) (engineSettings, error) {
	var own engineSettings
	cfg := job{setup: setup{Mode: mode}, Brokers: []string{"localhost:9092"}, Topic: topic{Name: "bench"}, Group: "bench"}.config(nothing)
	cfg.Tune = func(built *cluster.Config) {
		own = engineSettings{built.ChannelBufferSize, built.Consumer.Fetch.Default, built.Consumer.MaxProcessingTime}
	}
	if _, err := kgroup.New(cfg); err != nil {
		return engineSettings{}, fmt.Errorf("the settings of kgroup in %v mode: %w", mode, err)
	}
	return own, nil
}

func (s engineSettings) String() string {
	return fmt.Sprintf("ChannelBufferSize %d, Fetch.Default %d KiB, MaxProcessingTime %v", s.Buffer, s.Fetch>>10, s.Processing)
}

// apply sets s. ClusterConfig buffers little, because messages left in a buffer are
// repeated after a rebalance, and dwells in each rebalance, the first join included;
// here nothing is ever taken away.
func (s engineSettings) apply(c *cluster.Config) {
	c.Group.Offsets.Synchronization.DwellTime = time.Millisecond
	c.ChannelBufferSize = s.Buffer
	c.Consumer.Fetch.Default = s.Fetch
	c.Consumer.MaxProcessingTime = s.Processing
}
