//go:build unix

package main

// The contenders: loops that read the same topic and do the same nothing with it.
// Each run has a process of its own, in which this program calls itself, so that
// no contender inherits another one's heap, connections or goroutines.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"time"

	cluster "github.com/bsm/sarama-cluster"

	"github.com/kgroup-go/kgroup"
)

// contenderCommand is not for people: start calls this program with it.
const contenderCommand = "contender"

// A job says what a contender's process has to do. It is its only argument.
type job struct {
	Kind     string // "raw" or "kgroup"
	Mode     kgroup.Mode
	Engine   engineSettings // of a raw loop; kgroup runs with its own
	Brokers  []string
	CA       string // file with the certificate that brokers are trusted by; empty: no TLS
	Topic    topic
	Letters  string // dead-letter topic of kgroup; empty: what fails is tried for ever
	Group    string
	Warmup   time.Duration
	Duration time.Duration
	Profile  string
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
	cfg := job{Mode: mode, Brokers: []string{"localhost:9092"}, Topic: topic{Name: "bench"}, Group: "bench"}.config(idle)
	cfg.Tune = func(built *cluster.Config) {
		own = engineSettings{built.ChannelBufferSize, built.Consumer.Fetch.Default, built.Consumer.MaxProcessingTime}
	}
	if _, err := kgroup.New(cfg); err != nil {
		return engineSettings{}, fmt.Errorf("the settings of kgroup in %v mode: %w", mode, err)
	}
	return own, nil
}

func idle(context.Context, kgroup.Message) error { return nil }

func (s engineSettings) String() string {
	return fmt.Sprintf("ChannelBufferSize %d, Fetch.Default %d KiB, MaxProcessingTime %v", s.Buffer, s.Fetch>>10, s.Processing)
}

// start runs a job in a process of its own and waits for its numbers.
func start(ctx context.Context, j job, stderr io.Writer) (sample, error) {
	self, err := os.Executable()
	if err != nil {
		return sample{}, err
	}
	arg, err := json.Marshal(j)
	if err != nil {
		return sample{}, err
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, self, contenderCommand, string(arg))
	cmd.Stdout, cmd.Stderr = &out, stderr
	if err := cmd.Run(); err != nil {
		return sample{}, err
	}
	var s sample
	if err := json.Unmarshal(out.Bytes(), &s); err != nil {
		return sample{}, fmt.Errorf("read %q: %w", out.String(), err)
	}
	return s, nil
}

// contend does what start asked for.
func contend(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) != 1 {
		return errors.New("contender: want one argument; it is for this program's own use")
	}
	var j job
	if err := json.Unmarshal([]byte(args[0]), &j); err != nil {
		return fmt.Errorf("contender: %w", err)
	}
	m := newMeter(j.Topic.Partitions, j.Topic.PerPartition)
	loop := j.kgroup
	if j.Kind == "raw" {
		loop = j.raw
	}
	stop, err := loop(ctx, m)
	if err != nil {
		return fmt.Errorf("contender: %w", err)
	}
	s, err := m.measure(ctx, window{j.Warmup, j.Duration, j.Profile})
	if err := errors.Join(err, stop()); err != nil {
		return fmt.Errorf("contender: %w", err)
	}
	return json.NewEncoder(stdout).Encode(s)
}

// config is what both sides begin with. TLS is not in it: each side has it as its users
// do, kgroup in Config.TLS and the bare loop in sarama's Net.TLS, and what that costs
// counts.
func (j job) config(handle kgroup.HandlerFunc) kgroup.Config {
	t := kgroup.Topic{Handler: handle}
	if j.Letters != "" {
		t.DeadLetter, t.Retry.MaxAttempts = j.Letters, 5 // and with them the breaker
	}
	return kgroup.Config{
		Brokers: j.Brokers,
		Group:   j.Group,
		Mode:    j.Mode,
		Topics:  kgroup.Topics{j.Topic.Name: t},
		Logger:  slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

// consumer is kgroup with its defaults.
func (j job) consumer(handle kgroup.HandlerFunc) (*kgroup.Consumer, error) {
	cfg := j.config(handle)
	if j.CA != "" {
		var err error
		if cfg.TLS, err = kgroup.LoadTLS(kgroup.TLSFiles{CA: j.CA}); err != nil {
			return nil, err
		}
	}
	return kgroup.New(cfg)
}

// bare are the settings of a loop without kgroup. They come from ClusterConfig, which
// leaves connections to sarama as long as it is told of no TLS.
func (j job) bare() (*cluster.Config, error) {
	cfg := j.config(idle)
	cfg.Tune = j.Engine.apply
	built, err := cfg.ClusterConfig()
	if err != nil || j.CA == "" {
		return built, err
	}
	built.Net.TLS.Enable = true
	built.Net.TLS.Config, err = trusting(j.CA)
	return built, err
}

// kgroup starts a consumer. What it returns stops it.
func (j job) kgroup(ctx context.Context, m *meter) (stop func() error, err error) {
	c, err := j.consumer(func(_ context.Context, msg kgroup.Message) error {
		m.handle(msg.Partition, msg.Value)
		return nil
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	return func() error {
		cancel()
		return <-ended
	}, nil
}

// raw starts the loop that somebody would write who uses the engine without
// kgroup. It commits as often as kgroup does.
func (j job) raw(_ context.Context, m *meter) (stop func() error, err error) {
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
			fmt.Fprintln(os.Stderr, "contender:", err)
		}
	})
	if j.Mode == kgroup.Partitions {
		loops.Go(func() {
			for p := range c.Partitions() {
				loops.Go(func() { readPartition(p, m) })
			}
		})
	} else {
		loops.Go(func() {
			for msg := range c.Messages() {
				m.handle(msg.Partition, msg.Value)
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
	go func() {
		for err := range p.Errors() {
			fmt.Fprintln(os.Stderr, "contender:", err)
		}
	}()
	partition := p.Partition()
	for msg := range p.Messages() {
		m.handle(partition, msg.Value)
		p.MarkOffset(msg.Offset, "")
	}
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
