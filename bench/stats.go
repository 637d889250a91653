//go:build unix

package main

// The statistics: quartiles of pairs. A machine that others use is slower in one
// minute than in the next; numbers of the same round share their minute, so they
// are compared with each other first, and only the comparisons are summed up.

import (
	"math"
	"slices"
)

// A spread describes a list of numbers.
type spread struct {
	N      int     `json:"n"`
	Min    float64 `json:"min"`
	Q1     float64 `json:"q1"`
	Median float64 `json:"median"`
	Q3     float64 `json:"q3"`
	Max    float64 `json:"max"`
}

// spreadOf returns the zero spread for an empty list.
func spreadOf(list []float64) spread {
	if len(list) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(list))
	return spread{
		N:      len(sorted),
		Min:    sorted[0],
		Q1:     quantile(sorted, 0.25),
		Median: quantile(sorted, 0.5),
		Q3:     quantile(sorted, 0.75),
		Max:    sorted[len(sorted)-1],
	}
}

// quantile interpolates between the two numbers nearest to p of the way through
// the list (R's type 7, the default of most tools).
func quantile(sorted []float64, p float64) float64 {
	at := p * float64(len(sorted)-1)
	low := math.Floor(at)
	i := int(low)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + (at-low)*(sorted[i+1]-sorted[i])
}

// A column is one number of every run.
type column struct {
	key    string // in JSON
	label  string // in a text
	unit   string // for benchstat; empty: it does not get it
	format string
	of     func(sample) float64
	how    way
}

func (c column) width() int { return max(12, len(c.label)) }

// A way is how the numbers of two runs are compared.
type way int

const (
	not way = iota
	asRatio
	asDifference
)

// rate is the number that most is about.
var rate = column{"messages_per_second", "messages/s", "msgs/s", "%.0f", func(s sample) float64 { return s.Rate }, asRatio}

// throughputColumns are the numbers of job.throughput.
func throughputColumns() []column {
	return []column{
		rate,
		{"cpu_ns_per_message", "CPU ns/msg", "cpu-ns/op", "%.0f", func(s sample) float64 { return s.CPU }, asRatio},
		{"allocs_per_message", "allocs/msg", "allocs/op", "%.3f", func(s sample) float64 { return s.Allocs }, asDifference},
		{"bytes_per_message", "bytes/msg", "B/op", "%.1f", func(s sample) float64 { return s.Bytes }, asDifference},
		{"gcs", "GCs", "", "%.0f", func(s sample) float64 { return float64(s.GCs) }, not},
	}
}

// A comparison holds one contender against another, round by round.
type comparison struct {
	What    string            `json:"what"`
	Against string            `json:"against"`
	Numbers map[string]spread `json:"numbers"` // ratios or differences, by column
}

// compare pairs the runs of the same round. A round that lacks one of the two is
// left out.
func compare(columns []column, rounds []round, what, against string) comparison {
	c := comparison{What: what, Against: against, Numbers: map[string]spread{}}
	for _, col := range columns {
		if col.how == not {
			continue
		}
		var list []float64
		for _, r := range rounds {
			x, ok := r.Runs[what]
			y, also := r.Runs[against]
			if ok && also {
				list = append(list, col.how.compare(col.of(x), col.of(y)))
			}
		}
		if len(list) > 0 {
			c.Numbers[col.key] = spreadOf(list)
		}
	}
	return c
}

func (w way) compare(x, y float64) float64 {
	if w == asRatio {
		return x / y
	}
	return x - y
}

// each returns one number of every run of a contender.
func each(rounds []round, contender string, number func(sample) float64) spread {
	var list []float64
	for _, r := range rounds {
		if s, ok := r.Runs[contender]; ok {
			list = append(list, number(s))
		}
	}
	return spreadOf(list)
}
