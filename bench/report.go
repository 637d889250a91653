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
}

// A summary is the result of a match.
type summary struct {
	Mode        string                 `json:"mode"`
	Contenders  map[string]description `json:"contenders"`
	Comparisons []comparison           `json:"comparisons"`
	Counts      string                 `json:"counts,omitempty"` // the bare loop against which kgroup looks worse
	Cut         int                    `json:"cut_runs"`         // runs that came to the topic's end
	names       []string
}

// A description sums up one contender. Its numbers are of different minutes: only
// comparisons are to be relied on.
type description struct {
	Settings string `json:"settings,omitempty"`
	Rate     spread `json:"messages_per_second"`
	CPU      spread `json:"cpu_ns_per_message"`
	Allocs   spread `json:"allocs_per_message"`
	Bytes    spread `json:"bytes_per_message"`
	GCs      spread `json:"gcs"`
}

func newSummary(m match, rounds []round) summary {
	s := summary{Mode: m.mode.String(), Contenders: map[string]description{}}
	for _, c := range m.contenders {
		d := description{
			Rate:   each(rounds, c.name, func(s sample) float64 { return s.Rate }),
			CPU:    each(rounds, c.name, func(s sample) float64 { return s.CPU }),
			Allocs: each(rounds, c.name, func(s sample) float64 { return s.Allocs }),
			Bytes:  each(rounds, c.name, func(s sample) float64 { return s.Bytes }),
			GCs:    each(rounds, c.name, func(s sample) float64 { return float64(s.GCs) }),
		}
		if c.kind == "raw" {
			d.Settings = c.engine.String()
		}
		s.Contenders[c.name] = d
		s.names = append(s.names, c.name)
	}
	for _, r := range rounds {
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
}

func newReport(w io.Writer, asJSON bool) *report {
	r := &report{w: w}
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
		Rounds: o.rounds, Seconds: o.duration.Seconds(), Warmup: o.warmup.Seconds(),
	}
	if r.json != nil {
		return r.json.Encode(struct {
			Kind string `json:"kind"`
			machine
		}{"machine", m})
	}
	r.printf("%s, %s, %s, %d CPUs, GOMAXPROCS %d, broker: %s\n", m.Date, m.Go, m.Platform, m.CPUs, m.GOMAXPROCS, m.Broker)
	r.printf("%d partitions, %d messages of %d bytes with %d headers; %d rounds of %v after %v of warm-up\n", m.Partitions, m.Messages, m.Size, m.Headers, o.rounds, o.duration, o.warmup)
	r.printf("broker and contender share the CPUs: only the ratios mean something\n")
	return r.err
}

func (r *report) round(n round) error {
	if r.json != nil {
		return r.json.Encode(struct {
			Kind string `json:"kind"`
			round
		}{"round", n})
	}
	var runs []string
	for _, name := range n.Order {
		s := n.Runs[name]
		cut := ""
		if s.Cut {
			cut = fmt.Sprintf(" (cut after %.1fs)", s.Seconds)
		}
		runs = append(runs, fmt.Sprintf("%s %.2fM/s %.0fns%s", name, s.Rate/1e6, s.CPU, cut))
	}
	r.printf("%s %d: %s\n", n.Mode, n.Number, strings.Join(runs, ", "))
	return r.err
}

func (r *report) summary(s summary) error {
	if r.json != nil {
		return r.json.Encode(struct {
			Kind string `json:"kind"`
			summary
		}{"summary", s})
	}
	r.printf("\n%s, medians\n", s.Mode)
	r.printf("  %-24s %12s %12s %12s %12s %6s\n", "", "messages/s", "CPU ns/msg", "allocs/msg", "bytes/msg", "GCs")
	for _, name := range s.names {
		d := s.Contenders[name]
		r.printf("  %-24s %12.0f %12.0f %12.3f %12.1f %6.0f  %s\n", name, d.Rate.Median, d.CPU.Median, d.Allocs.Median, d.Bytes.Median, d.GCs.Median, d.Settings)
	}
	for _, c := range s.Comparisons {
		r.printf("%s against %s, within rounds\n", c.What, c.Against)
		r.printf("  %-24s %9s %9s %9s %9s %9s\n", "", "min", "q1", "median", "q3", "max")
		r.spread("messages/s, ratio", c.Throughput)
		r.spread("CPU per message, ratio", c.CPU)
		r.spread("allocs added per message", c.Allocs)
		r.spread("bytes added per message", c.Bytes)
	}
	if s.Counts != "" {
		r.printf("what counts: %s against %s\n", nameKgroup, s.Counts)
	}
	if s.Cut > 0 {
		r.printf("%d runs came to the end of the topic and are shorter; more -records avoid that\n", s.Cut)
	}
	r.printf("\n")
	return r.err
}

func (r *report) spread(label string, s spread) {
	r.printf("  %-24s %9.3f %9.3f %9.3f %9.3f %9.3f\n", label, s.Min, s.Q1, s.Median, s.Q3, s.Max)
}
