//go:build unix

// Package kafka runs real Kafka brokers, and talks to brokers as an independent
// client.
//
// [Start] runs a cluster of brokers as child processes on this machine, on any
// machine with Java 17 and Maven: no Docker, no download page. Each broker is a
// [Node] that can be killed, paused, ended in good order and started again. The
// brokers end with the test process, however that ends. With [Security] they have
// listeners for TLS and SASL as well, and an authorizer.
//
// [Admin] is what a scenario needs beside the consumer under test: it makes
// topics, produces, and reads what a group has really committed. It is built on
// another client library than the consumer under test, and takes plain addresses,
// so it serves an embedded broker just as well.
package kafka

// A cluster: choosing ports, writing what the brokers read, starting and ending
// them together. The jars come from dist.go, the configuration from properties.go;
// what happens to a single broker afterwards is in node.go.

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// DefaultJVM are the flags of a broker's Java unless [Options] says otherwise: a
// small heap, and a collector without threads of its own, so that three brokers
// and a test fit on a small machine. Add -XX:TieredStopAtLevel=1 where a broker
// lives for seconds only; a benchmark wants the optimizing compiler.
var DefaultJVM = []string{"-Xmx512m", "-XX:+UseSerialGC"}

// Options says what cluster to run.
type Options struct {
	// Version is one of [Versions]. Required.
	Version string

	// Nodes is the number of brokers, 1 or 3; zero: 1. Without ZooKeeper each is
	// a controller too. With three, all internal topics have three replicas.
	Nodes int

	// Properties are added to every broker's server.properties, and replace what
	// is there: see properties.go.
	Properties map[string]string

	// Security adds listeners with TLS and SASL, and an authorizer; nil: there are
	// none.
	Security *Security

	// Listeners are further listeners: the security protocol
	// (SASL_PLAINTEXT, SSL, SASL_SSL) by the listener's name, in capitals. What
	// else they need goes into Properties, as listener.name.<name>.…
	Listeners map[string]string

	// FormatArgs are further arguments of the storage tool, such as
	// "--add-scram", "SCRAM-SHA-256=[name=alice,password=secret]". Not with
	// ZooKeeper.
	FormatArgs []string

	// JVM are the flags of each broker's Java; nil: DefaultJVM.
	JVM []string
}

// A Cluster is a running set of brokers.
type Cluster struct {
	opts  Options
	rel   release
	dist  Dist
	dir   string
	nodes []*Node
	zk    *process // nil without ZooKeeper
}

// stopGrace is how long a broker may take to shut down in good order. One that has
// lost its controllers would wait for minutes.
const stopGrace = 10 * time.Second

// startTimeout bounds a start for callers whose context has no deadline. A broker
// needs 5 s, on a busy machine more.
const startTimeout = 2 * time.Minute

// Start installs the release if need be, starts the cluster and returns when it is
// ready: every node knows every other, and groups find their coordinator. An error
// carries the end of the broker's log. The caller must call [Cluster.Stop].
func Start(ctx context.Context, o Options) (*Cluster, error) {
	o.Nodes = max(o.Nodes, 1)
	if o.Nodes != 1 && o.Nodes != 3 {
		return nil, fmt.Errorf("start Kafka: %d nodes, want 1 or 3", o.Nodes)
	}
	if o.JVM == nil {
		o.JVM = DefaultJVM
	}
	if err := o.secure(); err != nil {
		return nil, fmt.Errorf("start Kafka %s: %w", o.Version, err)
	}
	dist, err := Install(ctx, o.Version)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// Between choosing a port and a broker's listening on it somebody else may
	// take it. Nothing else is tried again.
	for try := 1; ; try++ {
		c, err := start(ctx, o, dist)
		if err == nil || try == 3 || !strings.Contains(err.Error(), "Address already in use") {
			return c, err
		}
	}
}

func start(ctx context.Context, o Options, dist Dist) (_ *Cluster, err error) {
	c := &Cluster{opts: o, rel: releases[o.Version], dist: dist}
	if c.dir, err = os.MkdirTemp("", "kgroup-kafka-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start Kafka %s: %w", o.Version, err), c.discard())
		}
	}()
	zkAddr, err := c.place()
	if err != nil {
		return nil, err
	}
	if c.rel.zooKeeper != "" {
		if err := c.startZooKeeper(ctx, zkAddr); err != nil {
			return nil, err
		}
		if err := c.toolUsers(ctx, zkAddr); err != nil {
			return nil, err
		}
	} else if err := c.format(ctx); err != nil {
		return nil, err
	}
	// All of them first: none is ready before most of the controllers are there.
	for _, n := range c.nodes {
		if err := n.launch(); err != nil {
			return nil, err
		}
	}
	for _, n := range c.nodes {
		if err := n.await(ctx, "all nodes and the group coordinator", func(v view) error { return v.complete(o.Nodes) }); err != nil {
			return nil, err
		}
	}
	return c, c.addUsers(ctx)
}

// place gives every node its folder, its ports and its server.properties.
func (c *Cluster) place() (zkAddr string, err error) {
	names := slices.AppendSeq([]string{plaintext, controller}, maps.Keys(c.opts.Listeners))
	addrs, err := freeAddrs(c.opts.Nodes*len(names) + 1)
	if err != nil {
		return "", err
	}
	zkAddr, addrs = addrs[0], addrs[1:]
	var places []endpoints
	for range c.opts.Nodes {
		at := endpoints{}
		for _, name := range names {
			at[name], addrs = addrs[0], addrs[1:]
		}
		if c.rel.zooKeeper != "" {
			delete(at, controller)
		}
		places = append(places, at)
	}
	for i, at := range places {
		n := &Node{cluster: c, id: i + 1, at: at, dir: filepath.Join(c.dir, "node-"+strconv.Itoa(i+1))}
		if err := os.MkdirAll(filepath.Join(n.dir, "data"), 0o755); err != nil {
			return "", err
		}
		if err := n.writeStores(); err != nil {
			return "", err
		}
		text := format(properties(c.opts, c.rel, places, n.id, zkAddr, n.dir))
		if err := os.WriteFile(n.config(), text, 0o600); err != nil {
			return "", err
		}
		c.nodes = append(c.nodes, n)
	}
	return zkAddr, nil
}

// freeAddrs chooses loopback addresses that nobody listens on. They are taken from
// below the range that systems take a client's own port from. A client that keeps
// dialing a dead broker inside that range sooner or later is given the broker's
// port as its own, connects to itself, and the broker cannot come back.
func freeAddrs(n int) ([]string, error) {
	const low, high = 20000, 32000
	var addrs []string
	for range 100 * n {
		if len(addrs) == n {
			break
		}
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(low+mathrand.IntN(high-low)))) //nolint:noctx // does not block
		if err != nil {
			continue
		}
		defer l.Close() // all at the end, or one could be chosen twice
		addrs = append(addrs, l.Addr().String())
	}
	if len(addrs) < n {
		return nil, fmt.Errorf("no %d free ports from %d to %d on 127.0.0.1", n, low, high)
	}
	return addrs, nil
}

// format writes the identity of a new cluster into each node's data folder.
func (c *Cluster) format(ctx context.Context) error {
	var uuid [16]byte
	_, _ = rand.Read(uuid[:]) // never fails
	uuid[0] &= 0x7f           // else the text might begin with "-", and be read as a flag
	id := base64.RawURLEncoding.EncodeToString(uuid[:])

	errs := make([]error, len(c.nodes))
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		wg.Go(func() {
			args := []string{"-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", c.classpath(c.dist), "kafka.tools.StorageTool", "format", "-t", id, "-c", n.config()}
			out, err := exec.CommandContext(ctx, "java", append(args, c.opts.FormatArgs...)...).CombinedOutput()
			if err != nil {
				errs[i] = fmt.Errorf("format the storage of node %d: %w\n%s", n.id, err, lastLines(out))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (c *Cluster) startZooKeeper(ctx context.Context, addr string) error {
	dist, err := Install(ctx, c.rel.zooKeeper)
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	dir := filepath.Join(c.dir, "zookeeper")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// The short tick allows the brokers short sessions: a killed broker cannot
	// come back before its old session has ended.
	config := filepath.Join(dir, "zoo.cfg")
	text := format(map[string]string{
		"dataDir": dir, "clientPortAddress": host, "clientPort": port,
		"tickTime": "500", "maxClientCnxns": "0", "admin.enableServer": "false",
	})
	if err := os.WriteFile(config, text, 0o600); err != nil {
		return err
	}
	c.zk, err = startProcess(filepath.Join(dir, "zookeeper.log"), dir, "java", "-Xmx256m", "-XX:+UseSerialGC", logLevel, "-cp", c.classpath(dist), "org.apache.zookeeper.server.quorum.QuorumPeerMain", config)
	return err
}

const logLevel = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"

// classpath is expanded by Java itself.
func (c *Cluster) classpath(d Dist) string { return filepath.Join(d.Libs, "*") }

// Addrs returns host:port of every node's plaintext listener.
func (c *Cluster) Addrs() []string { return c.ListenerAddrs(plaintext) }

// ListenerAddrs returns host:port of every node's listener of that name: one of
// Options.Listeners, or of those that [Security] adds.
func (c *Cluster) ListenerAddrs(name string) []string {
	var addrs []string
	for _, n := range c.nodes {
		if at, ok := n.at[name]; ok {
			addrs = append(addrs, at)
		}
	}
	return addrs
}

// Version returns the release that the cluster runs.
func (c *Cluster) Version() string { return c.opts.Version }

// Nodes returns the brokers, in the order of their ids.
func (c *Cluster) Nodes() []*Node { return slices.Clone(c.nodes) }

// Node returns the broker with that id. Ids begin with 1, as in Kafka's answers:
// cluster.Node(coordinator) is the broker that coordinates a group.
func (c *Cluster) Node(id int32) *Node { return c.nodes[id-1] }

// Stop ends every broker, waits until it is gone and removes its data. The error
// names a broker that had died on its own before, with the end of its log.
func (c *Cluster) Stop() error {
	var errs []error
	for _, n := range c.nodes {
		if n.p != nil && !n.p.running() {
			errs = append(errs, fmt.Errorf("stop Kafka %s: node %d: %w", c.opts.Version, n.id, n.p.exited()))
		}
	}
	var wg sync.WaitGroup
	for _, n := range c.nodes {
		if n.p != nil {
			wg.Go(func() { n.p.terminate(stopGrace) })
		}
	}
	wg.Wait()
	return errors.Join(append(errs, c.discard())...)
}

// discard ends what runs, without grace, and removes the data.
func (c *Cluster) discard() error {
	for _, n := range c.nodes {
		if n.p != nil {
			n.p.kill()
			n.p = nil
		}
	}
	if c.zk != nil {
		c.zk.kill()
		c.zk = nil
	}
	return os.RemoveAll(c.dir)
}
