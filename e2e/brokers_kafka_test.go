//go:build kafka

package e2e

// Real brokers, started by the suite. The tag is there so that whoever builds with
// it has Java and Maven, or gets a failure that says so.

import (
	"cmp"
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/e2e/kafka"
)

// builtTargets reads KGROUP_KAFKA: versions, each with "all" or "main" scenarios,
// like "4.4.0:all 3.9.1:main". The embedded broker may be named too.
func builtTargets(t *testing.T) []target {
	t.Helper()
	var targets []target
	for _, word := range strings.Fields(cmp.Or(os.Getenv("KGROUP_KAFKA"), "4.4.0:all")) {
		version, which, _ := strings.Cut(word, ":")
		require.Contains(t, []string{"all", "main"}, which, "KGROUP_KAFKA has %q, want version:all or version:main", word)
		g := embeddedTarget
		if version != g.name {
			g = kafkaTarget(version)
		}
		g.main = which == "main"
		targets = append(targets, g)
	}
	return targets
}

// kafkaTarget shares one cluster of three nodes between the scenarios that disturb
// it: they run one after the other, and leave it as they found it.
func kafkaTarget(version string) target {
	var parent *testing.T
	var disturbed *ownCluster
	return target{
		name:    version,
		secured: true,
		renews:  version != noRenewal,
		shared: func(t *testing.T) brokers {
			t.Helper()
			parent = t
			return startCluster(t, version, 1)
		},
		own: func(t *testing.T) brokers {
			t.Helper()
			if disturbed == nil {
				disturbed = startCluster(parent, version, 3)
			}
			t.Cleanup(func() { disturbed.mend(t) })
			return disturbed
		},
	}
}

type ownCluster struct {
	*kafka.Cluster
	down map[int32]bool
}

// noRenewal is the version that has neither sessions that end nor OAUTHBEARER.
const noRenewal = "1.1.1"

// startCluster starts brokers that have the listeners of kafka.Security, and one that
// offers a single mechanism. Whoever comes through the plaintext listener does not
// notice.
func startCluster(t *testing.T, version string, nodes int) *ownCluster {
	t.Helper()
	security := &kafka.Security{Users: map[string]string{saslUser: saslPassword}, Reauth: sessionLifetime}
	if version == noRenewal {
		security.Reauth = 0
	}
	c, err := kafka.Start(t.Context(), kafka.Options{
		Version:   version,
		Nodes:     nodes,
		Security:  security,
		Listeners: map[string]string{plainOnly: "SASL_PLAINTEXT"},
		Properties: map[string]string{
			"listener.name.plain_only.sasl.enabled.mechanisms": "PLAIN",
			"listener.name.plain_only.plain.sasl.jaas.config":  `org.apache.kafka.common.security.plain.PlainLoginModule required user_` + saslUser + `="` + saslPassword + `";`,
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Stop()) })
	return &ownCluster{Cluster: c, down: map[int32]bool{}}
}

func (c *ownCluster) crash(nodes ...int32) error {
	var errs []error
	for _, id := range c.chosen(nodes) {
		errs = append(errs, c.Node(id).Kill())
		c.down[id] = true
	}
	return errors.Join(errs...)
}

func (c *ownCluster) terminate(node int32) error {
	c.down[node] = true
	return c.Node(node).Terminate()
}

// revive starts nodes at the same time: one alone may wait for the others.
func (c *ownCluster) revive(ctx context.Context, nodes ...int32) error {
	ids := c.chosen(nodes)
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() { errs[i] = c.Node(id).Start(ctx) })
	}
	wg.Wait()
	for i, id := range ids {
		if errs[i] == nil {
			delete(c.down, id)
		}
	}
	return errors.Join(errs...)
}

// suspend stops the whole process: connections stay open, and nothing answers.
func (c *ownCluster) suspend(node int32, _ string) (func() error, error) {
	return sync.OnceValue(c.Node(node).Resume), c.Node(node).Pause()
}

func (c *ownCluster) chosen(nodes []int32) []int32 {
	if len(nodes) > 0 {
		return nodes
	}
	for _, n := range c.Nodes() {
		nodes = append(nodes, n.ID())
	}
	return nodes
}

// mend starts what a scenario that failed has left behind.
func (c *ownCluster) mend(t *testing.T) {
	t.Helper()
	var down []int32
	for id := range c.down {
		down = append(down, id)
	}
	if len(down) > 0 {
		require.NoError(t, c.revive(context.WithoutCancel(t.Context()), down...))
	}
}
