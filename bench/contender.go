//go:build unix

package main

// The contenders: programs that read the same topic and do the same with it. Each run
// has a process of its own, in which this program calls itself, so that no contender
// inherits another one's heap, connections or goroutines. The loops they run are in
// the files lib_*.go.

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/kgroup-go/kgroup"
)

// contenderCommand is not for people: start calls this program with it.
const contenderCommand = "contender"

// A setup is what contenders differ in.
type setup struct {
	Kind    string // of libraries
	Mode    kgroup.Mode
	Engine  engineSettings // of a raw loop; zero: those of its README
	Letters string         // dead-letter topic of kgroup; empty: what fails is tried for ever
	Workers int            // for each partition; 0: one, without a choice
}

// A job says what a contender's process has to do. It is its only argument.
type job struct {
	setup
	Brokers  []string
	CA       string // file with the certificate that brokers are trusted by; empty: no TLS
	Topic    topic
	Group    string
	Warmup   time.Duration
	Duration time.Duration
	Profile  string

	Session time.Duration    // the group's; zero: 20 s
	Task    string           // of tasks; empty: throughput
	Rest    time.Duration    // of stall
	Moments [2]time.Duration // of stall
	Handler time.Duration    // of keyed: how long it takes
}

// Members say every second that they are alive, and may be silent for 20: kgroup's
// defaults, which all contenders have.
const (
	session   = 20 * time.Second
	heartbeat = time.Second
)

// timeouts are those of the job's group, by kgroup's rule.
func (j job) timeouts() (s, beat time.Duration) {
	s = cmp.Or(j.Session, session)
	return s, min(heartbeat, s/6)
}

// commitInterval is how often every contender commits: kgroup's default.
const commitInterval = time.Second

// start runs a job in a process of its own and waits for its numbers.
func start(ctx context.Context, j job, stdin io.Reader, stderr io.Writer) (sample, error) {
	self, err := os.Executable()
	if err != nil {
		return sample{}, err
	}
	arg, err := json.Marshal(j)
	if err != nil {
		return sample{}, err
	}
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, self, contenderCommand, string(arg))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, io.MultiWriter(stderr, &said)
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(said.String()), "\n")
		return sample{}, fmt.Errorf("%w: %s", err, lines[len(lines)-1])
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
	do, ok := tasks()[j.Task]
	if !ok {
		return fmt.Errorf("contender: unknown task %q", j.Task)
	}
	s, err := do(j, ctx)
	if err != nil {
		return fmt.Errorf("contender: %w", err)
	}
	return json.NewEncoder(stdout).Encode(s)
}

// tasks are what a contender may have to do.
func tasks() map[string]func(job, context.Context) (sample, error) {
	return map[string]func(job, context.Context) (sample, error){
		"":           job.throughput,
		"keyed":      job.keyed,
		"stall":      job.stall,
		"idle":       job.idle,
		"queues":     job.queues,
		"rebalances": job.rebalances,
	}
}

// join makes this process a member of the group that handles messages with m. What it
// returns makes it leave.
func (j job) join(ctx context.Context, m *meter) (leave func() error, err error) {
	l, ok := libraries()[j.Kind]
	if !ok {
		return nil, fmt.Errorf("unknown kind %q", j.Kind)
	}
	return l.join(ctx, j, m)
}

// throughput measures how much is handled.
func (j job) throughput(ctx context.Context) (sample, error) {
	return j.measured(ctx, newMeter(j.Topic.Partitions, j.Topic.PerPartition))
}

func (j job) measured(ctx context.Context, m *meter) (sample, error) {
	leave, err := j.join(ctx, m)
	if err != nil {
		return sample{}, err
	}
	s, err := m.measure(ctx, window{j.Warmup, j.Duration, j.Profile})
	return s, errors.Join(err, leave())
}
