package e2e

// What a run is: every scenario on every broker it is meant for, in both modes. It
// ends with a table, in which no cell may be empty.

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/kgroup-go/kgroup"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(childEnv); spec != "" {
		os.Exit(runChild(spec))
	}
	flag.Parse()
	if !given("test.parallel") { // scenarios mostly wait, for sessions and rebalances
		_ = flag.Set("test.parallel", "8")
	}
	goleak.VerifyTestMain(m,
		// Never ends once a sarama client has connected.
		goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"),
		// Of a seed broker that was given up while somebody opened it (D30): once in thousands
		// of scenarios.
		goleak.IgnoreTopFunction("github.com/Shopify/sarama.(*Broker).responseReceiver"))
}

func given(name string) (set bool) {
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

// A scenario is one thing that may happen to a consumer group.
type scenario struct {
	name string
	run  func(*env)

	// main scenarios also run where not all do: on further versions of Kafka.
	main bool

	// disturbs: it stops brokers, so it needs some of its own, three of them. The
	// others share one, and run in parallel.
	disturbs bool

	// not says, by the name of a target, why that one will not do.
	not map[string]string

	// secured: it needs listeners with TLS and SASL; renews: ones whose sessions end, or
	// OAUTHBEARER, which the oldest versions have not.
	secured, renews bool

	// alone: nothing else may happen meanwhile, because it measures.
	alone bool

	// limit is how long it may take; zero: a minute. With full counts it is ten
	// times as much.
	limit time.Duration
}

// A target is a kind of broker to run on.
type target struct {
	name string
	main bool // only the main scenarios

	secured, renews bool // see scenario

	// shared starts the brokers for scenarios that leave them alone, own the
	// brokers for those that do not; nil if there are none. They end with the test.
	shared func(*testing.T) brokers
	own    func(*testing.T) brokers
}

func (g target) runs(s scenario) bool {
	return (s.main || !g.main) && (!s.disturbs || g.own != nil) && s.not[g.name] == "" &&
		(!s.secured || g.secured) && (!s.renews || g.renews)
}

var modes = []kgroup.Mode{kgroup.Multiplex, kgroup.Partitions}

func TestScenarios(t *testing.T) {
	targets := targets(t)
	table := newTable(targets)
	t.Cleanup(func() { table.publish(t) })
	for _, g := range targets {
		t.Run(g.name, func(t *testing.T) { g.run(t, table) })
	}
}

func (g target) run(t *testing.T, table *table) {
	t.Helper()
	shared := g.shared(t)
	for _, s := range scenarios {
		if !g.runs(s) {
			continue
		}
		for _, mode := range modes {
			t.Run(s.name+"/"+mode.String(), func(t *testing.T) {
				var b brokers
				switch {
				case s.disturbs:
					b = g.own(t)
				case s.alone:
					b = shared
				default:
					t.Parallel()
					b = shared
				}
				began := time.Now()
				t.Cleanup(func() { table.set(cell{s.name, g.name, mode}, time.Since(began), t.Failed()) })
				e := newEnv(t, s, b, mode)
				s.run(e)
				e.judge()
			})
		}
	}
}

// A cell of the table: one scenario, one broker, one mode.
type cell struct {
	scenario, target string
	mode             kgroup.Mode
}

type table struct {
	targets []target

	mu    sync.Mutex
	cells map[cell]string
}

func newTable(targets []target) *table {
	return &table{targets: targets, cells: map[cell]string{}}
}

func (b *table) set(at cell, took time.Duration, failed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cells[at] = strconv.FormatFloat(took.Seconds(), 'f', 1, 64)
	if failed {
		b.cells[at] = "FAILED"
	}
}

// publish prints the table, and fails the test if a cell is empty that should not
// be. If it was asked for, the table goes into a file as well.
func (b *table) publish(t *testing.T) {
	t.Helper()
	text, empty := b.text()
	t.Logf("seconds that each scenario took:\n%s", text)
	if given("test.run") || given("test.skip") {
		return // somebody looks at a part of the suite
	}
	if len(empty) > 0 {
		t.Errorf("scenarios that have not run: %s", strings.Join(empty, ", "))
	}
	if file := os.Getenv("KGROUP_TESTED"); file != "" && !t.Failed() {
		require.NoError(t, os.WriteFile(file, []byte(tested(text)), 0o644))
	}
}

func (b *table) text() (text string, empty []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var rows [][]string
	head := []string{"scenario"}
	for _, g := range b.targets {
		for _, mode := range modes {
			head = append(head, g.name+" "+mode.String())
		}
	}
	rows = append(rows, head, slices.Repeat([]string{"---"}, len(head)))
	for _, s := range scenarios {
		row := []string{s.name}
		for _, g := range b.targets {
			for _, mode := range modes {
				text, ran := b.cells[cell{s.name, g.name, mode}]
				if !ran && g.runs(s) {
					empty = append(empty, fmt.Sprintf("%s on %s in %s", s.name, g.name, mode))
				}
				if !g.runs(s) {
					text = "·"
				}
				row = append(row, text)
			}
		}
		rows = append(rows, row)
	}
	var out strings.Builder
	for _, row := range rows {
		out.WriteString("| " + strings.Join(row, " | ") + " |\n")
	}
	return out.String(), empty
}

// tested is the file that shows what was tested.
func tested(table string) string {
	commit := "an unknown commit"
	if out, err := exec.Command("git", "describe", "--always", "--dirty").Output(); err == nil { //nolint:noctx // reads a few files
		commit = strings.TrimSpace(string(out))
	}
	return fmt.Sprintf(`# What was tested

Written by `+"`make test-kafka-all`"+`: every scenario of [e2e](../e2e) on every version of Kafka, in both modes.
The numbers are seconds; "·" means that a scenario is not meant for that broker.
Commit %s, %s, %s counts; %s, %d CPUs, %s/%s.

%s`, commit, time.Now().UTC().Format(time.DateOnly), map[bool]string{false: "short", true: "full"}[full()],
		runtime.Version(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, table)
}

// full reports whether the counts of records, joins and kills are those of the
// promises rather than those of a quick run.
func full() bool { return os.Getenv("KGROUP_FULL") != "" }
