package history

// What Check has found, told to people: counts first, then for each verdict the
// first findings with what happened around them.

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// A Finding is one broken promise.
type Finding struct {
	Verdict   Verdict
	Topic     string
	Partition int32
	Offset    int64 // the message that it happened to
	Why       string

	at Event // when it showed
}

func (f Finding) String() string {
	return fmt.Sprintf("%s: %s/%d at %d: %s", f.Verdict, f.Topic, f.Partition, f.Offset, f.Why)
}

// A Report is the result of [Check].
type Report struct {
	// What the history holds: records, attempts, settled messages, commits
	// acknowledged for a partition, dead letters.
	Produced, Attempts, Settled, Commits, Letters int

	Findings []Finding // broken promises, by partition
	Excused  []Finding // what would be one, had nothing happened that excuses it

	events []Event
}

func (c *checker) report() Report {
	r := Report{Findings: c.found, Excused: c.excused, events: c.events}
	for _, l := range c.lanes {
		r.Produced += len(l.produced)
		r.Attempts += len(l.attempts)
		r.Settled += len(l.settled)
		for _, letters := range l.letters {
			r.Letters += len(letters)
		}
		for _, e := range l.commits {
			if e.Kind == Committed {
				r.Commits++
			}
		}
	}
	return r
}

// OK reports whether every promise was kept.
func (r Report) OK() bool { return len(r.Findings) == 0 }

// Count returns how often a promise was broken in that way.
func (r Report) Count(v Verdict) int { return count(r.Findings, v) }

// CountExcused returns how often there was an excuse.
func (r Report) CountExcused(v Verdict) int { return count(r.Excused, v) }

func count(findings []Finding, v Verdict) (n int) {
	for _, f := range findings {
		if f.Verdict == v {
			n++
		}
	}
	return n
}

const (
	shownFindings = 3 // of one verdict
	shownAround   = 4 // events of the partition, before and after
)

// String returns the counts, and the first findings of each verdict in context.
// Times count from the first event.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d produced, %d attempts, %d settled, %d commits", r.Produced, r.Attempts, r.Settled, r.Commits)
	if r.Letters > 0 {
		fmt.Fprintf(&b, ", %d dead letters", r.Letters)
	}
	for _, v := range verdicts {
		if n, m := r.Count(v), r.CountExcused(v); n+m > 0 {
			fmt.Fprintf(&b, "; %d %s", n, v)
			if m > 0 {
				fmt.Fprintf(&b, " (and %d excused)", m)
			}
		}
	}
	for _, v := range verdicts {
		shown := 0
		for _, f := range r.Findings {
			if f.Verdict != v {
				continue
			}
			if shown == shownFindings {
				fmt.Fprintf(&b, "\n%s: and %d more", v, r.Count(v)-shown)
				break
			}
			shown++
			fmt.Fprintf(&b, "\n%s", f)
			r.context(&b, f)
		}
	}
	return b.String()
}

// context writes what happened to the message and its partition.
func (r Report) context(b *strings.Builder, f Finding) {
	var around []Event // of the partition, and of members as a whole
	focus := 0
	for _, e := range r.events {
		if e.Topic != "" && (e.Topic != f.Topic || e.Partition != f.Partition) {
			continue
		}
		if e.Kind == Produced && e.Offset != f.Offset {
			continue
		}
		if e.At <= f.at.At {
			focus = len(around)
		}
		around = append(around, e)
	}
	gap := false
	for i, e := range around {
		own := e.Topic != "" && e.Offset == f.Offset && e.Kind != Committed && e.Kind != FinalCommitted
		near := i >= focus-shownAround && i <= focus+shownAround
		if !own && !near && e.Topic != "" {
			gap = true
			continue
		}
		if gap {
			b.WriteString("\n\t…")
			gap = false
		}
		fmt.Fprintf(b, "\n\t%+11.6fs %s", time.Duration(e.At-r.events[0].At).Seconds(), e)
	}
	if gap {
		b.WriteString("\n\t…")
	}
}

// Require ends the test unless every promise was kept, and something was handled:
// an empty history keeps them all.
func Require(tb testing.TB, r Report) {
	tb.Helper()
	if r.Attempts == 0 {
		tb.Fatal("history: nothing was handled")
	}
	if !r.OK() {
		tb.Fatalf("history: %s", r)
	}
}

// Messages returns the offsets that a verdict fell on, by topic and partition.
func (r Report) Messages(v Verdict) map[string]map[int32][]int64 {
	m := map[string]map[int32][]int64{}
	for _, f := range r.Findings {
		if f.Verdict != v {
			continue
		}
		if m[f.Topic] == nil {
			m[f.Topic] = map[int32][]int64{}
		}
		m[f.Topic][f.Partition] = append(m[f.Topic][f.Partition], f.Offset)
	}
	for _, partitions := range m {
		for p := range partitions {
			slices.Sort(partitions[p])
		}
	}
	return m
}
