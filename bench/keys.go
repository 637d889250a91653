//go:build unix

package main

// The keys of a topic's records.

import (
	"fmt"
	"math"
	"math/rand/v2"
)

// Keys says how the keys of each partition are drawn. Partitions share no key, as they
// do not in a topic that a producer has filled.
type keys struct {
	Count    int     // 0: records have no key
	Exponent float64 // of Zipf's law, more than 1; 0: all keys are equally frequent
}

// in returns a function that draws the keys of one partition, always the same ones.
func (k keys) in(partition int) func() []byte {
	if k.Count == 0 {
		return func() []byte { return nil }
	}
	all := make([][]byte, k.Count)
	for i := range all {
		all[i] = key(partition, i)
	}
	r := rand.New(rand.NewPCG(1, uint64(partition)))
	if k.Exponent == 0 {
		return func() []byte { return all[r.IntN(len(all))] }
	}
	zipf := rand.NewZipf(r, k.Exponent, 1, uint64(k.Count-1))
	return func() []byte { return all[zipf.Uint64()] }
}

// key is the i-th key of a partition. By Zipf's law the first is the busiest.
func key(partition, i int) []byte { return fmt.Appendf(nil, "key-%d-%d", partition, i) }

// busiest is the share that the most frequent key has of the records of its partition.
func (k keys) busiest() float64 {
	sum := 0.0
	for i := range k.Count {
		sum += math.Pow(float64(i+1), -k.Exponent)
	}
	return 1 / sum
}

func (k keys) String() string {
	if k.Exponent == 0 {
		return "uniform"
	}
	return "zipf"
}
