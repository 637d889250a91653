//go:build unix

package main

// What is printed: a text for people or one JSON object a line for programs, both
// with the machine on which it was measured. Numbers of different machines, or of
// different runs, are not comparable; ratios are, a little.

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"
)

// A machine is where, when and on what was measured.
type machine struct {
	Date       string  `json:"date"`
	Broker     string  `json:"broker"`
	Go         string  `json:"go"`
	Platform   string  `json:"platform"`
	CPUs       int     `json:"cpus"`
	GOMAXPROCS int     `json:"gomaxprocs"`
	Partitions int     `json:"partitions"`
	Messages   int64   `json:"messages_in_topic"`
	Size       int     `json:"value_bytes"`
	Headers    int     `json:"headers"`
	Rounds     int     `json:"rounds"`
	Seconds    float64 `json:"seconds"`
	Warmup     float64 `json:"warmup_seconds"`
	About      string  `json:"about,omitempty"`
}

// A summary is the result of a match.
type summary struct {
	Match       string                 `json:"match"`
	Contenders  map[string]description `json:"contenders"`
	Comparisons []comparison           `json:"comparisons"`
	Counts      string                 `json:"counts,omitempty"` // the bare loop against which kgroup looks worse
	Cut         int                    `json:"cut_runs"`         // runs that came to the topic's end
	Failed      int                    `json:"failed_runs"`
	Notes       []string               `json:"notes,omitempty"`
	names       []string
	columns     []column
}

// A description sums up one contender. Its numbers are of different minutes: only
// comparisons are to be relied on.
type description struct {
	Library   string            `json:"library"` // with its version
	Guarantee string            `json:"guarantee"`
	Settings  string            `json:"settings,omitempty"`
	Numbers   map[string]spread `json:"numbers"` // by column
}

func newSummary(m match, rounds []round) summary {
	s := summary{Match: m.title, Contenders: map[string]description{}, columns: m.columns}
	for _, c := range m.contenders {
		l := libraries()[c.Kind]
		d := description{Library: l.String(), Guarantee: l.guarantee, Numbers: map[string]spread{}}
		for _, col := range m.columns {
			d.Numbers[col.key] = each(rounds, c.name, col.of)
		}
		if c.Engine != (engineSettings{}) {
			d.Settings = c.Engine.String()
		}
		s.Contenders[c.name] = d
		s.names = append(s.names, c.name)
	}
	for _, r := range rounds {
		s.Failed += len(r.Failed)
		for _, run := range r.Runs {
			if run.Cut {
				s.Cut++
			}
		}
	}
	return s
}

// A report prints.
type report struct {
	w    io.Writer
	json *json.Encoder // nil: text
	err  error
	told map[string]bool // guarantees
}

func newReport(w io.Writer, asJSON bool) *report {
	r := &report{w: w, told: map[string]bool{}}
	if asJSON {
		r.json = json.NewEncoder(w)
	}
	return r
}

// printf keeps the first error for the end of a section.
func (r *report) printf(format string, args ...any) {
	if r.err == nil {
		_, r.err = fmt.Fprintf(r.w, format, args...)
	}
}

func (r *report) machine(b *broker, o options) error {
	t := o.topic()
	m := machine{
		Date: time.Now().UTC().Format(time.DateOnly), Broker: b.name,
		Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, CPUs: runtime.NumCPU(), GOMAXPROCS: runtime.GOMAXPROCS(0),
		Partitions: t.Partitions, Messages: t.PerPartition * int64(t.Partitions), Size: t.Size, Headers: t.Headers,
		Rounds: o.rounds, Seconds: o.duration.Seconds(), Warmup: o.warmup.Seconds(), About: o.about,
	}
	if r.json != nil {
		return r.json.Encode(struct {
			Kind string `json:"kind"`
			machine
		}{"machine", m})
	}
	r.printf("%s, %s, %s, %d CPUs, GOMAXPROCS %d, broker: %s\n", m.Date, m.Go, m.Platform, m.CPUs, m.GOMAXPROCS, m.Broker)
	if m.About != "" {
		r.printf("%s\n", m.About)
	} else {
		r.printf("%d partitions, %d messages of %d bytes with %d headers; %d rounds of %v after %v of warm-up\n", m.Partitions, m.Messages, m.Size, m.Headers, o.rounds, o.duration, o.warmup)
	}
	r.printf("broker and contender share the CPUs: only the ratios mean something\n")
	return r.err
}

// round shows the first two columns.
func (r *report) round(m match, n round) error {
	if r.json != nil {
		return r.json.Encode(struct {
			Kind string `json:"kind"`
			round
		}{"round", n})
	}
	var runs []string
	for _, name := range n.Order {
		s, ok := n.Runs[name]
		if !ok {
			runs = append(runs, name+" failed: "+n.Failed[name])
			continue
		}
		text := name
		for _, col := range m.columns[:min(2, len(m.columns))] {
			text += fmt.Sprintf(" "+col.format+" %s", col.of(s), col.label)
		}
		if s.Cut {
			text += fmt.Sprintf(" (cut after %.1fs)", s.Seconds)
		}
		runs = append(runs, text)
	}
	r.printf("%s %d: %s\n", n.Match, n.Number, strings.Join(runs, ", "))
	return r.err
}

func (r *report) summary(s summary) error {
	if r.json != nil {
		return r.json.Encode(struct {
			Kind string `json:"kind"`
			summary
		}{"summary", s})
	}
	r.printf("\n%s, medians\n  %-24s", s.Match, "")
	for _, col := range s.columns {
		r.printf(" %*s", col.width(), col.label)
	}
	r.printf("\n")
	for _, name := range s.names {
		d := s.Contenders[name]
		r.printf("  %-24s", name)
		for _, col := range s.columns {
			r.printf(" %*s", col.width(), fmt.Sprintf(col.format, d.Numbers[col.key].Median))
		}
		r.printf("  %s\n", d.Settings)
	}
	for _, c := range s.Comparisons {
		if len(c.Numbers) == 0 {
			continue // one of the two has lost all its runs
		}
		r.printf("%s against %s, within rounds\n", c.What, c.Against)
		r.printf("  %-24s %9s %9s %9s %9s %9s\n", "", "min", "q1", "median", "q3", "max")
		for _, col := range s.columns {
			if n, ok := c.Numbers[col.key]; ok {
				r.spread(col.label+map[way]string{asRatio: ", ratio", asDifference: ", added"}[col.how], n)
			}
		}
	}
	if s.Counts != "" {
		r.printf("what counts: %s against %s\n", nameKgroup, s.Counts)
	}
	for _, note := range s.Notes {
		r.printf("%s\n", note)
	}
	if s.Failed > 0 {
		r.printf("%d runs failed; the other numbers are without them\n", s.Failed)
	}
	if s.Cut > 0 {
		r.printf("%d runs came to the end of the topic and are shorter; more -records avoid that\n", s.Cut)
	}
	r.guarantees(s)
	r.printf("\n")
	return r.err
}

// guarantees says what each library does for its price, once.
func (r *report) guarantees(s summary) {
	for _, name := range s.names {
		d := s.Contenders[name]
		if !r.told[d.Guarantee] {
			r.told[d.Guarantee] = true
			r.printf("%s: %s\n", d.Library, d.Guarantee)
		}
	}
}

func (r *report) spread(label string, s spread) {
	r.printf("  %-24s %9.3f %9.3f %9.3f %9.3f %9.3f\n", label, s.Min, s.Q1, s.Median, s.Q3, s.Max)
}
