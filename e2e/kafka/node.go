//go:build unix

package kafka

// One broker: what a test may do to it, and how it is seen to be ready.

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A Node is one broker of a [Cluster]. Its methods must not be called at the same
// time, those of different nodes may. Each returns an error when the broker is not
// in the state that it changes: a broker that has died on its own is not paused in
// silence.
type Node struct {
	cluster *Cluster
	id      int
	dir     string
	at      endpoints
	p       *process // nil after Kill and Terminate
}

func (n *Node) config() string { return filepath.Join(n.dir, "server.properties") }

// ID returns the broker id, from 1.
func (n *Node) ID() int32 { return int32(n.id) }

// Addr returns host:port of the plaintext listener.
func (n *Node) Addr() string { return n.at[plaintext] }

// LogFile returns the path of the broker's log. It is removed by [Cluster.Stop].
func (n *Node) LogFile() string { return filepath.Join(n.dir, "broker.log") }

// Kill ends the broker with SIGKILL, as a crash does, and waits until it is gone.
func (n *Node) Kill() error {
	if err := n.alive("kill"); err != nil {
		return err
	}
	n.p.kill()
	n.p = nil
	return nil
}

// Terminate ends the broker with SIGTERM, as a rolling restart does: it hands its
// partitions over first. A broker that takes longer than 10 s is killed. Terminate
// waits until it is gone.
func (n *Node) Terminate() error {
	if err := n.alive("terminate"); err != nil {
		return err
	}
	n.p.terminate(stopGrace)
	n.p = nil
	return nil
}

// Pause stops the broker with SIGSTOP: its connections stay open and nothing
// answers, until [Node.Resume].
func (n *Node) Pause() error {
	if err := n.signal("pause", syscall.SIGSTOP); err != nil {
		return err
	}
	if err := awaitStopped(n.p.cmd.Process.Pid); err != nil {
		return fmt.Errorf("pause node %d: wait until it has stopped: %w", n.id, err)
	}
	return nil
}

// Resume lets a paused broker go on.
func (n *Node) Resume() error { return n.signal("resume", syscall.SIGCONT) }

func (n *Node) signal(verb string, s syscall.Signal) error {
	if err := n.alive(verb); err != nil {
		return err
	}
	if err := n.p.signal(s); err != nil {
		return fmt.Errorf("%s node %d: %w", verb, n.id, err)
	}
	return nil
}

func (n *Node) alive(verb string) error {
	switch {
	case n.p == nil:
		return fmt.Errorf("%s node %d: it is not running", verb, n.id)
	case !n.p.running():
		return fmt.Errorf("%s node %d: %w", verb, n.id, n.p.exited())
	}
	return nil
}

// Start starts a broker that was killed or terminated, with its old ports and
// data, and returns when it is ready: it answers, is known to the cluster, and has
// caught up with every partition that it has a replica of. With three nodes of
// which two are down no controller can be elected: start both, each from its own
// goroutine.
func (n *Node) Start(ctx context.Context) error {
	if n.p != nil {
		return fmt.Errorf("start node %d: it has not been killed or terminated", n.id)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if err := n.launch(); err != nil {
			return err
		}
		err := n.await(ctx, "the node to be in sync", func(v view) error { return v.inSync(n.ID()) })
		if err == nil {
			return nil
		}
		n.p.kill()
		n.p = nil
		// ZooKeeper believes for a session that a killed broker is still there.
		if n.cluster.zk == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "NodeExistsException") {
			return err
		}
	}
}

func (n *Node) launch() error {
	args := append(slices.Clone(n.cluster.opts.JVM), logLevel, "-cp", n.cluster.classpath(n.cluster.dist), "kafka.Kafka", n.config())
	p, err := startProcess(n.LogFile(), n.dir, "java", args...)
	if err != nil {
		return fmt.Errorf("start node %d: %w", n.id, err)
	}
	n.p = p
	return nil
}

// await asks the broker about the cluster until ready accepts its view, or the
// broker has ended.
func (n *Node) await(ctx context.Context, what string, ready func(view) error) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.Addr()), kgo.DialTimeout(time.Second), kgo.RequestTimeoutOverhead(2*time.Second))
	if err != nil {
		return err
	}
	defer cl.Close()

	p := n.p
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	defer func() { cancel(nil); <-watched }()
	go func() {
		defer close(watched)
		select {
		case <-p.done:
			cancel(p.exited())
		case <-ctx.Done():
		}
	}()

	err = poll(ctx, what, func(ctx context.Context) error {
		v, err := look(ctx, cl.SeedBrokers()[0])
		if err != nil {
			return err
		}
		return ready(v)
	})
	switch {
	case err == nil:
		return nil
	case p.running():
		return fmt.Errorf("start node %d: %w%s", n.id, err, tail(p.log))
	default: // the cause carries the log
		return fmt.Errorf("start node %d: %w", n.id, err)
	}
}

// A view is what one broker says about the cluster.
type view struct {
	brokers     []int32
	partitions  []kmsg.MetadataResponseTopicPartition
	coordinator error // nil: the broker knows where a group's coordinator is
}

// look asks exactly this broker. Looking for a coordinator has the brokers create
// the offsets topic, which takes a second that no test should begin with.
func look(ctx context.Context, b *kgo.Broker) (view, error) {
	metadata, err := kmsg.NewPtrMetadataRequest().RequestWith(ctx, b)
	if err != nil {
		return view{}, err
	}
	find := kmsg.NewPtrFindCoordinatorRequest()
	find.CoordinatorKey = "kgroup-ready"
	find.CoordinatorKeys = []string{find.CoordinatorKey} // since v4
	found, err := find.RequestWith(ctx, b)
	if err != nil {
		return view{}, err
	}
	v := view{coordinator: kerr.ErrorForCode(found.ErrorCode)}
	for _, c := range found.Coordinators {
		v.coordinator = kerr.ErrorForCode(c.ErrorCode)
	}
	for _, b := range metadata.Brokers {
		v.brokers = append(v.brokers, b.NodeID)
	}
	for _, t := range metadata.Topics {
		v.partitions = append(v.partitions, t.Partitions...)
	}
	return v, nil
}

// complete reports what a new cluster still lacks.
func (v view) complete(nodes int) error {
	if len(v.brokers) != nodes {
		return fmt.Errorf("%d of %d brokers are known", len(v.brokers), nodes)
	}
	if v.coordinator != nil {
		return fmt.Errorf("find a group's coordinator: %w", v.coordinator)
	}
	for _, p := range v.partitions {
		if p.Leader < 0 || len(p.ISR) != len(p.Replicas) {
			return errors.New("a partition of the offsets topic is not ready")
		}
	}
	return nil
}

// inSync reports what a broker that has come back still lacks.
func (v view) inSync(id int32) error {
	if !slices.Contains(v.brokers, id) {
		return errors.New("the cluster does not know it yet")
	}
	for _, p := range v.partitions {
		if slices.Contains(p.Replicas, id) && (p.Leader < 0 || !slices.Contains(p.ISR, id)) {
			return errors.New("it lags behind in a partition")
		}
	}
	return v.coordinator
}
