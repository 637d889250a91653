//go:build kafka

package kafka

// These tests run real brokers. They carry a build tag, not a skip: whoever asks
// for them (make test-kafka) has Java and Maven, or a failure that says so.

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// versions are the releases that KGROUP_KAFKA names, as in the Makefile
// ("4.4.0:all 3.9.1:main"), or two without it.
func versions() []string {
	names := strings.Fields(cmp.Or(os.Getenv("KGROUP_KAFKA"), "4.4.0 3.9.1"))
	for i := range names {
		names[i], _, _ = strings.Cut(names[i], ":")
	}
	return names
}

var quickJVM = append(DefaultJVM, "-XX:TieredStopAtLevel=1")

func startCluster(t *testing.T, ctx context.Context, o Options) *Cluster {
	t.Helper()
	o.JVM = quickJVM
	c, err := Start(ctx, o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Stop() }) // of a test that failed; else there is nothing left to stop
	return c
}

func admin(t *testing.T, c *Cluster) *Admin {
	t.Helper()
	a, err := NewAdmin(c.Addrs())
	require.NoError(t, err)
	t.Cleanup(a.Close)
	return a
}

func record(topic string) *kgo.Record { return &kgo.Record{Topic: topic, Value: []byte("v")} }

func end(t *testing.T, ctx context.Context, a *Admin, topic string) int64 {
	t.Helper()
	_, end, err := a.Range(ctx, topic)
	require.NoError(t, err)
	return end[0]
}

func TestOneNode(t *testing.T) {
	for _, version := range versions() {
		t.Run(version, func(t *testing.T) {
			ctx := deadline(t, 3*time.Minute)
			c := startCluster(t, ctx, Options{Version: version})
			n, a := c.Node(1), admin(t, c)
			assert.Equal(t, version, c.Version())
			assert.Equal(t, []string{n.Addr()}, c.Addrs())

			t.Run("ready when started", func(t *testing.T) {
				// One try each: a broker that is still waking up would refuse.
				cl, err := kgo.NewClient(kgo.SeedBrokers(c.Addrs()...), kgo.RequestRetries(0))
				require.NoError(t, err)
				defer cl.Close()
				v, err := look(ctx, cl.SeedBrokers()[0])
				require.NoError(t, err)
				require.NoError(t, v.complete(1))
			})
			t.Run("admin", func(t *testing.T) { testAdmin(t, c.Addrs(), 1) })

			require.NoError(t, a.CreateTopic(ctx, "kept", 1, 1, nil))
			require.NoError(t, a.Produce(ctx, kgo.NoCompression(), record("kept")))

			t.Run("pause and resume", func(t *testing.T) {
				require.NoError(t, n.Pause())
				short, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				_, _, err := a.Range(short, "kept")
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.NoError(t, n.Resume())
				assert.Equal(t, int64(1), end(t, ctx, a, "kept"))
			})
			t.Run("kill and start", func(t *testing.T) {
				pid := n.p.cmd.Process.Pid
				require.NoError(t, n.Kill())
				assert.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH)
				require.EqualError(t, n.Pause(), "pause node 1: it is not running")
				require.EqualError(t, n.Kill(), "kill node 1: it is not running")
				require.NoError(t, n.Start(ctx))
				require.ErrorContains(t, n.Start(ctx), "has not been killed")
				assert.Equal(t, int64(1), end(t, ctx, a, "kept"), "records after a crash")
			})
			t.Run("terminate and start", func(t *testing.T) {
				require.NoError(t, a.Produce(ctx, kgo.NoCompression(), record("kept")))
				require.NoError(t, n.Terminate())
				require.NoError(t, n.Start(ctx))
				assert.Equal(t, int64(2), end(t, ctx, a, "kept"), "records after a restart")
			})

			pid := n.p.cmd.Process.Pid
			require.NoError(t, c.Stop())
			assert.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH, "the broker is still there")
			assert.NoDirExists(t, c.dir)
		})
	}
}

func TestThreeNodes(t *testing.T) {
	const version = "4.4.0"
	ctx := deadline(t, 4*time.Minute)
	c := startCluster(t, ctx, Options{Version: version, Nodes: 3, Security: &Security{Users: map[string]string{"alice": "secret"}}})
	a := admin(t, c)
	require.Len(t, c.Addrs(), 3)
	t.Run("security", func(t *testing.T) {
		require.Nil(t, c.ListenerAddrs(Reauth))
		require.Len(t, c.ListenerAddrs(SSL), 3)
		for _, addr := range c.ListenerAddrs(SSL) {
			conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: c.CA().Pool()}}).DialContext(ctx, "tcp", addr)
			require.NoError(t, err)
			conn.Close()
		}
		require.Len(t, c.ListenerAddrs(SASLPlaintext), 3)
		for _, addr := range c.ListenerAddrs(SASLPlaintext) {
			assert.NoError(t, login(ctx, addr, "alice", "secret"))
		}
		require.NoError(t, a.RestrictTopic(ctx, "nobody's", "User:nobody"))
		require.NoError(t, a.RestrictTopic(ctx, "nobody's"))
	})
	t.Run("admin", func(t *testing.T) { testAdmin(t, c.Addrs(), 3) })

	require.NoError(t, a.CreateTopic(ctx, "kept", 1, 3, map[string]string{"min.insync.replicas": "2"}))
	require.NoError(t, a.Produce(ctx, kgo.NoCompression(), record("kept")))
	leader, err := a.Leader(ctx, "kept", 0)
	require.NoError(t, err)
	coordinator, err := a.Coordinator(ctx, "team")
	require.NoError(t, err)
	var pids []int
	for _, n := range c.Nodes() {
		pids = append(pids, n.p.cmd.Process.Pid)
	}

	moved := func(what string, from int32, ask func() (int32, error)) {
		require.NoError(t, poll(ctx, what+" to move", func(context.Context) error {
			now, err := ask()
			if err == nil && now == from {
				err = fmt.Errorf("it is still node %d", from)
			}
			return err
		}))
	}
	require.NoError(t, c.Node(leader).Kill())
	moved("the leader", leader, func() (int32, error) { return a.Leader(ctx, "kept", 0) })
	require.NoError(t, a.Produce(ctx, kgo.NoCompression(), record("kept")))
	require.NoError(t, c.Node(leader).Start(ctx))

	require.NoError(t, c.Node(coordinator).Terminate())
	moved("the coordinator", coordinator, func() (int32, error) { return a.Coordinator(ctx, "team") })
	require.NoError(t, c.Node(coordinator).Start(ctx))

	// Start waits until the node is in sync, so the next one can go at once: with
	// two replicas required, nothing is refused.
	for _, n := range c.Nodes() {
		require.NoError(t, n.Terminate())
		require.NoError(t, a.Produce(ctx, kgo.NoCompression(), record("kept")))
		require.NoError(t, n.Start(ctx))
		pids = append(pids, n.p.cmd.Process.Pid)
	}
	assert.Equal(t, int64(5), end(t, ctx, a, "kept"))

	require.NoError(t, c.Stop())
	for _, pid := range pids {
		assert.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH, "a broker is still there")
	}
}

func TestListener(t *testing.T) {
	ctx := deadline(t, 2*time.Minute)
	c := startCluster(t, ctx, Options{
		Version:   "4.4.0",
		Listeners: map[string]string{"LOGIN": "SASL_PLAINTEXT"},
		Properties: map[string]string{
			"sasl.enabled.mechanisms":                            "SCRAM-SHA-256",
			"listener.name.login.scram-sha-256.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
		},
		FormatArgs: []string{"--add-scram", "SCRAM-SHA-256=[name=alice,password=secret]"},
	})
	require.Len(t, c.ListenerAddrs("LOGIN"), 1)
	for password, want := range map[string]string{"secret": "", "wrong": "SASL_AUTHENTICATION_FAILED"} {
		a, err := NewAdmin(c.ListenerAddrs("LOGIN"), kgo.SASL(scram.Auth{User: "alice", Pass: password}.AsSha256Mechanism()))
		require.NoError(t, err)
		_, err = a.Coordinator(ctx, "team")
		a.Close()
		if want == "" {
			assert.NoError(t, err)
		} else {
			assert.ErrorContains(t, err, want)
		}
	}
}

func TestStartSaysWhatTheBrokerSaid(t *testing.T) {
	t.Run("while formatting", func(t *testing.T) {
		_, err := Start(deadline(t, time.Minute), Options{Version: "4.4.0", Properties: map[string]string{"num.io.threads": "many"}})
		require.ErrorContains(t, err, "start Kafka 4.4.0: format the storage of node 1: exit status 1")
		assert.ErrorContains(t, err, "many")
	})
	t.Run("while starting", func(t *testing.T) {
		_, err := Start(deadline(t, time.Minute), Options{Version: "4.4.0", Listeners: map[string]string{"LOGIN": "SASL_PLAINTEXT"}})
		require.ErrorContains(t, err, "start Kafka 4.4.0: start node 1: wait for all nodes and the group coordinator: ")
		assert.ErrorContains(t, err, "the process is gone (exit status 1)")
		assert.ErrorContains(t, err, "java.security.auth.login.config")
	})
	t.Run("and cleans up", func(t *testing.T) {
		t.Setenv("TMPDIR", t.TempDir())
		_, err := Start(deadline(t, time.Minute), Options{Version: "4.4.0", Properties: map[string]string{"num.io.threads": "many"}})
		require.Error(t, err)
		left, err := os.ReadDir(os.TempDir())
		require.NoError(t, err)
		for _, entry := range left {
			assert.False(t, strings.HasPrefix(entry.Name(), "kgroup-kafka-"), "left behind: %s", entry.Name())
		}
	})
}

func TestStopTellsOfABrokerThatDied(t *testing.T) {
	ctx := deadline(t, 2*time.Minute)
	c := startCluster(t, ctx, Options{Version: "3.9.1"})
	p := c.Node(1).p
	require.NoError(t, p.cmd.Process.Kill())
	<-p.done
	require.ErrorContains(t, c.Node(1).Pause(), "pause node 1: the process is gone (signal: killed)")
	require.ErrorContains(t, c.Stop(), "stop Kafka 3.9.1: node 1: the process is gone (signal: killed)")
	_, err := net.Dial("tcp", c.Node(1).Addr())
	require.Error(t, err)
}
