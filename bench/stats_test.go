//go:build unix

package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup"
)

func TestSpread(t *testing.T) {
	tests := []struct {
		name string
		list []float64
		want spread
	}{
		{"nothing", nil, spread{}},
		{"one", []float64{7}, spread{1, 7, 7, 7, 7, 7}},
		{"two", []float64{3, 1}, spread{2, 1, 1.5, 2, 2.5, 3}},
		{"odd, unsorted", []float64{5, 1, 4, 2, 3}, spread{5, 1, 2, 3, 4, 5}},
		{"even", []float64{4, 3, 2, 1}, spread{4, 1, 1.75, 2.5, 3.25, 4}},
		{"outlier", []float64{1, 1, 1, 1, 100}, spread{5, 1, 1, 1, 1, 100}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.want, spreadOf(tt.list))
		})
	}
}

func TestSpreadLeavesTheListAlone(t *testing.T) {
	list := []float64{3, 1, 2}
	spreadOf(list)
	assert.Equal(t, []float64{3, 1, 2}, list)
}

// Each round was ten times slower than the one before. Compared within rounds,
// the contender is always twice as fast; its median against the other's median
// would say something else.
func TestCompareWithinRounds(t *testing.T) {
	rounds := []round{
		{Runs: map[string]sample{"a": {Rate: 200, CPU: 10, Allocs: 3, Bytes: 90}, "b": {Rate: 100, CPU: 20, Allocs: 2, Bytes: 100}}},
		{Runs: map[string]sample{"a": {Rate: 2, CPU: 30, Allocs: 2.5, Bytes: 95}, "b": {Rate: 1, CPU: 20, Allocs: 2, Bytes: 100}}},
		{Runs: map[string]sample{"a": {Rate: 20, CPU: 20, Allocs: 2, Bytes: 100}, "b": {Rate: 10, CPU: 20, Allocs: 2, Bytes: 100}}},
		{Runs: map[string]sample{"a": {Rate: 1}}}, // without b: no pair
	}
	want := comparison{What: "a", Against: "b", Numbers: map[string]spread{
		"messages_per_second": {3, 2, 2, 2, 2, 2},
		"cpu_ns_per_message":  {3, 0.5, 0.75, 1, 1.25, 1.5},
		"allocs_per_message":  {3, 0, 0.25, 0.5, 0.75, 1},
		"bytes_per_message":   {3, -10, -7.5, -5, -2.5, 0},
	}}
	assert.Equal(t, want, compare(throughputColumns(), rounds, "a", "b"))
}

// The bare loop against which kgroup is slower counts.
func TestTheLowerRatioCounts(t *testing.T) {
	m := match{contenders: theContenders(t), columns: throughputColumns()}
	rounds := []round{{Runs: map[string]sample{
		nameKgroup: {Rate: 90, CPU: 1, Cut: true}, nameRaw: {Rate: 100, CPU: 1}, nameTuned: {Rate: 200, CPU: 1}, nameAgain: {Rate: 80, CPU: 1},
	}}}
	s := summarize(m, rounds)
	assert.Equal(t, nameTuned, s.Counts)
	assert.Equal(t, 1, s.Cut)
	assert.InDelta(t, 0.9, s.Comparisons[0].Numbers[rate.key].Median, 1e-9, "against raw")
	assert.InDelta(t, 0.45, s.Comparisons[1].Numbers[rate.key].Median, 1e-9, "against raw-tuned")
	assert.InDelta(t, 0.8, s.Comparisons[2].Numbers[rate.key].Median, 1e-9, "the control")

	rounds[0].Runs[nameTuned] = sample{Rate: 95, CPU: 1}
	assert.Equal(t, nameRaw, summarize(m, rounds).Counts)
}

// In as many double rounds as there are contenders, every one of them runs at every
// place equally often.
func TestOrderIsFair(t *testing.T) {
	all := theContenders(t)
	places := map[string]map[int]int{}
	for n := range 2 * len(all) {
		for place, c := range order(all, n) {
			if places[c.name] == nil {
				places[c.name] = map[int]int{}
			}
			places[c.name][place]++
		}
	}
	for _, c := range all {
		assert.Equal(t, map[int]int{0: 2, 1: 2, 2: 2, 3: 2}, places[c.name], c.name)
	}
	assert.Equal(t, []string{nameRaw, nameKgroup, nameTuned, nameAgain}, names(order(all, 0)))
	assert.Equal(t, []string{nameAgain, nameTuned, nameKgroup, nameRaw}, names(order(all, 1)), "backwards")
	assert.Equal(t, nameRaw, all[0].name, "the list itself is left alone")
}

// theContenders are all there are.
func theContenders(t *testing.T) []contender {
	t.Helper()
	all, err := contenders(kgroup.Partitions)
	require.NoError(t, err)
	return all
}

func names(list []contender) []string {
	var all []string
	for _, c := range list {
		all = append(all, c.name)
	}
	return all
}
