// Package examples has no code of its own: each folder is a program. Here each is run
// as a user runs it, as a process, and what it prints is compared.
package examples

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/kgroup-go/kgroup/kgrouptest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if dir, err := programs(); err == nil {
			_ = os.RemoveAll(dir)
		}
		os.Exit(code)
	}))
}

// programs builds all examples, once, and returns where they are.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "kgroup-examples-")
	if err != nil {
		return "", err
	}
	// Without symbols, which take as long to link as all the rest.
	out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", dir+string(filepath.Separator), "./...").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", errors.Join(err, os.RemoveAll(dir)), out)
	}
	return dir, nil
})

// limit is more than any example takes, on a busy machine too.
const limit = time.Minute

// command is an example that is ready to start, on the embedded broker unless there
// are addresses.
func command(t *testing.T, name string, brokers ...string) *exec.Cmd {
	t.Helper()
	dir, err := programs()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, filepath.Join(dir, name))
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "KAFKA_BROKERS="+strings.Join(brokers, ","))
	return cmd
}

// output runs an example to its end, which must be a good one, and returns its lines.
func output(t *testing.T, name string, within time.Duration) []string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := command(t, name)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began)
	require.NoError(t, err, "after %v\n%s%s", took, &stdout, &stderr)
	assert.Empty(t, stderr.String())
	assert.Less(t, took, within)
	return strings.Split(strings.TrimSuffix(stdout.String(), "\n"), "\n")
}

var charged = []string{
	"charged ada 1250 cents for order 3",
	"charged ada 1999 cents for order 1",
	"charged edsger 99900 cents for order 4",
	"charged grace 450 cents for order 2",
	"charged grace 700 cents for order 5",
}

const stopped = "stopped: everything that was handled has been committed"

func TestQuickstart(t *testing.T) {
	t.Parallel()
	lines := output(t, "quickstart", 15*time.Second)
	require.NotEmpty(t, lines)
	assert.Equal(t, stopped, lines[len(lines)-1])
	// Three partitions are handled at once: their lines come in any order.
	assert.ElementsMatch(t, append(slices.Clone(charged),
		"refunded 450 cents of order 2",
		"refunded 9900 cents of order 4",
	), lines[:len(lines)-1])
}

// Ctrl-C while there is work that never ends by itself: refunds cannot be fetched. The
// example takes the broker for a cluster that others use, too, and must leave it clean.
func TestQuickstartInterrupted(t *testing.T) {
	t.Parallel()
	broker := kgrouptest.Start(t)
	topics := withholdRefunds(broker)

	cmd := command(t, "quickstart", broker.Addrs()...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())

	var lines []string
	var interrupted time.Time
	for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
		lines = append(lines, scanner.Text())
		if len(lines) == len(charged) {
			interrupted = time.Now()
			require.NoError(t, cmd.Process.Signal(os.Interrupt))
		}
	}
	require.NoError(t, cmd.Wait(), "%s\n%s", lines, &stderr)
	require.False(t, interrupted.IsZero(), "ended by itself, after %s\n%s", lines, &stderr)
	assert.Less(t, time.Since(interrupted), 27*time.Second) // the default ShutdownTimeout, and a little

	assert.Equal(t, stopped, lines[len(lines)-1])
	assert.ElementsMatch(t, charged, lines[:len(lines)-1])
	made := topics()
	require.Len(t, made, 2)
	for _, topic := range made {
		assert.Regexp(t, `^kgroup-example-quickstart-[a-z0-9]{8}-(orders|refunds)$`, topic)
		assert.Nil(t, broker.Cluster().TopicInfo(topic), "%s is left behind", topic)
		group := strings.TrimSuffix(strings.TrimSuffix(topic, "orders"), "refunds") + "billing"
		assert.Equal(t, "Dead", broker.Group(group).State, "%s is left behind", group)
	}
}

// withholdRefunds makes fetches of any topic of refunds fail. It returns a function
// that tells which topics have been created.
func withholdRefunds(broker *kgrouptest.Broker) func() []string {
	var mu sync.Mutex
	var names []string
	cluster := broker.Cluster()
	cluster.ControlKey(int16(kmsg.CreateTopics), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		for _, topic := range req.(*kmsg.CreateTopicsRequest).Topics {
			names = append(names, topic.Topic)
			if strings.HasSuffix(topic.Topic, "refunds") {
				cluster.Fault(kfake.Fault{
					Keys:  []kmsg.Key{kmsg.Fetch},
					Topic: topic.Topic,
					Err:   kerr.LeaderNotAvailable,
					Count: -1,
				})
			}
		}
		return nil, nil, false
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(names)
	}
}

func TestQuickstartRefused(t *testing.T) {
	t.Parallel()
	broker := kgrouptest.Start(t)
	broker.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Err: kerr.TopicAuthorizationFailed, Count: -1})
	cmd := command(t, "quickstart", broker.Addrs()...)
	out, err := cmd.CombinedOutput()
	assert.ErrorContains(t, err, "exit status 1")
	assert.Contains(t, string(out), "create topic kgroup-example-quickstart-")
	assert.Contains(t, string(out), "TOPIC_AUTHORIZATION_FAILED")
	assert.NotContains(t, string(out), stopped)
}

func TestPartitions(t *testing.T) {
	t.Parallel()
	lines := output(t, "partitions", limit)
	require.Len(t, lines, 5)
	assert.ElementsMatch(t, []string{
		"partition 0 waits for the others",
		"partition 1 is through: 200 steps, in order",
		"partition 2 is through: 200 steps, in order",
	}, lines[:3])
	assert.Equal(t, []string{
		"partition 0 is through: 200 steps, in order",
		"at most 3 handlers at once, one per partition",
	}, lines[3:])
}

// The members' lines come in any order, each member's own but for the partitions of
// one rebalance in theirs.
func TestRebalances(t *testing.T) {
	t.Parallel()
	assert.Equal(t, []string{
		"-- the first member joins and handles 5 messages of each partition",
		"first: rebalance started, owned nothing",
		"first: rebalance completed: current 0 1 2 3, claimed 0 1 2 3, released nothing",
		"first: assign 0 at 0",
		"first: assign 1 at 0",
		"first: assign 2 at 0",
		"first: assign 3 at 0",
		"-- a second member joins",
		"first: rebalance started, owned 0 1 2 3",
		"first: revoke 0 at 5",
		"first: revoke 1 at 5",
		"first: revoke 2 at 5",
		"first: revoke 3 at 5",
		"first: rebalance completed: current 0 1, claimed nothing, released 2 3",
		"first: assign 0 at 5",
		"first: assign 1 at 5",
		"second: rebalance started, owned nothing",
		"second: rebalance completed: current 2 3, claimed 2 3, released nothing",
		"second: assign 2 at 5",
		"second: assign 3 at 5",
		"-- the second member leaves",
		"first: rebalance started, owned 0 1",
		"first: revoke 0 at 5",
		"first: revoke 1 at 5",
		"first: rebalance completed: current 0 1 2 3, claimed 2 3, released nothing",
		"first: assign 0 at 5",
		"first: assign 1 at 5",
		"first: assign 2 at 5",
		"first: assign 3 at 5",
		"second: revoke 2 at 5",
		"second: revoke 3 at 5",
		"-- the first member leaves",
		"first: revoke 0 at 5",
		"first: revoke 1 at 5",
		"first: revoke 2 at 5",
		"first: revoke 3 at 5",
	}, orderly(output(t, "rebalances", limit)))
}

// orderly sorts the lines of each scene by member, and the partitions of one rebalance
// by number.
func orderly(lines []string) []string {
	var sorted, scene []string
	for _, line := range append(lines, "--") {
		if strings.HasPrefix(line, "--") {
			slices.SortStableFunc(scene, func(a, b string) int {
				memberA, _, _ := strings.Cut(a, ":")
				memberB, _, _ := strings.Cut(b, ":")
				return strings.Compare(memberA, memberB)
			})
			sorted, scene = append(sorted, scene...), nil
			sorted = append(sorted, line)
			continue
		}
		scene = append(scene, line)
	}
	sorted = sorted[:len(sorted)-1]
	for i := 0; i < len(sorted); {
		kind := step.FindString(sorted[i])
		end := i + 1
		for kind != "" && end < len(sorted) && step.FindString(sorted[end]) == kind {
			end++
		}
		slices.Sort(sorted[i:end])
		i = end
	}
	return sorted
}

var step = regexp.MustCompile(`^\w+: (assign|revoke) `)

func TestCommit(t *testing.T) {
	t.Parallel()
	out := strings.Join(output(t, "commit", limit), "\n")

	killed := regexp.MustCompile(`(?m)^the first member: (payment \d+ is in the ledger); killing myself before its handler returns$`).FindStringSubmatch(out)
	require.NotNil(t, killed, out)
	assert.Contains(t, out, "\nthe first member: signal: killed\n")
	assert.Contains(t, out, "\nthe second member: "+killed[1]+" already\n")

	repeats := strings.Count(out, "is in the ledger already\n")
	assert.Positive(t, repeats)
	assert.True(t, strings.HasSuffix(out, fmt.Sprintf("\n60 payments: 60 effects, of 60 different payments; %d repeats recognised", repeats)), out)
}

func TestRawloop(t *testing.T) {
	t.Parallel()
	lines := output(t, "rawloop", limit)
	require.NotEmpty(t, lines)
	assert.Equal(t, "committed: partition 0 up to 3, partition 1 up to 2", lines[len(lines)-1])
	slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(a[:5], b[:5]) })
	assert.Equal(t, []string{
		"attic: 31 °C", "attic: 32 °C", "attic: 33 °C",
		"cellar: 12 °C", "cellar: 11 °C",
		"committed: partition 0 up to 3, partition 1 up to 2",
	}, lines)
}

// Its letters are made, and handled, by two partitions at once. They are shown, replayed,
// and not replayed twice.
func TestRedrive(t *testing.T) {
	t.Parallel()
	lines := output(t, "redrive", 15*time.Second)
	for i := range lines {
		lines[i] = regexp.MustCompile(`failed [^:]+:[^:]+:[^:]+:`).ReplaceAllString(lines[i], "failed at some time:")
		lines[i] = regexp.MustCompile(`, [0-9.]+ a second, in .*s$`).ReplaceAllString(lines[i], "")
	}
	require.Len(t, lines, 19)
	slices.Sort(lines[1:3])
	slices.Sort(lines[15:17])
	const isNew = "  the group has no offsets: it is new, or has not run for so long that they are gone (offsets.retention.minutes); -verify finds what was replayed before"
	assert.Equal(t, []string{
		"-- a service that cannot handle free orders",
		"a letter: kgroup: handle orders/0 at 1: attempt 1: divided by zero",
		"a letter: kgroup: handle orders/1 at 0: attempt 1: divided by zero",
		"-- redrive",
		`orders.dlq/0 at 0: to orders/0; failed at some time: "divided by zero"`,
		`orders.dlq/1 at 0: to orders/1; failed at some time: "divided by zero"`,
		"orders.dlq: 2 letters for the group orders.dlq.redrive, 2 to replay",
		"  2: to the topic orders",
		isNew,
		"-- redrive -replay",
		"orders.dlq: 2 letters for the group orders.dlq.redrive, 2 to replay",
		"  2: to the topic orders",
		isNew,
		"2 of 2 letters: 2 replayed",
		"-- the service, mended",
		"order 2 is free; it was the letter orders.dlq/1/0",
		"order 3 is free; it was the letter orders.dlq/0/0",
		"-- redrive -replay",
		"orders.dlq: 0 letters for the group orders.dlq.redrive, 0 to replay",
	}, lines)
}
