package kgroup

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// owners have a partition one after the other, and settle its messages in any order. What is
// settled beyond the frontier must never be cut.
type owners struct {
	t       *testing.T
	random  *rand.Rand
	offsets []int64 // of the partition's messages
	slow    float64 // part of them that are settled only when nothing else can be done
	settled map[int64]bool
	most    int // messages beyond a frontier
}

// own is one of them, who ends after so many steps. It returns what it has committed.
func (o *owners) own(start int64, inherited ranges, steps int) (int64, ranges) {
	f := frontier{next: start}
	a := newRunAhead(start, inherited)
	next, _ := slices.BinarySearch(o.offsets, start)
	var quick, slow []int64
	settle := func(offset int64) {
		f.settleAt(offset)
		a.pass(inherited.past(f.next))
	}
	for range steps {
		switch ahead := next < len(o.offsets) && a.admits(o.offsets[next]); {
		case ahead && (len(quick) == 0 || o.random.IntN(3) > 0):
			offset := o.offsets[next]
			next++
			f.deliver(offset)
			a.deliver(offset)
			switch {
			case inherited.contains(offset):
				require.True(o.t, o.settled[offset], "%d is skipped, and nobody has settled it", offset)
				settle(offset)
			case o.random.Float64() < o.slow:
				slow = append(slow, offset)
			default:
				quick = append(quick, offset)
			}
		case len(quick) > 0:
			i := o.random.IntN(len(quick))
			o.settled[quick[i]] = true
			settle(quick[i])
			quick[i] = quick[len(quick)-1]
			quick = quick[:len(quick)-1]
		default:
			require.NotEmpty(o.t, slow, "nothing is delivered, and nothing is under way")
			i := o.random.IntN(len(slow)) / 2
			o.settled[slow[i]] = true
			settle(slow[i])
			slow = slices.Delete(slow, i, i+1)
		}
		o.most = max(o.most, len(a.beyond)-a.head)
		if o.random.IntN(2000) == 0 {
			o.commit(&f, inherited)
		}
	}
	return o.commit(&f, inherited)
}

func (o *owners) commit(f *frontier, inherited ranges) (int64, ranges) {
	at := inherited.past(f.next)
	all := f.ahead().union(inherited.from(at))
	if len(all) == 0 {
		return at, nil
	}
	require.Greater(o.t, all[0].from, at, "the offset committed is not settled")
	got, ok := decodeRanges(all.encode(at, maxRanges), at)
	require.True(o.t, ok)
	require.True(o.t, slices.Equal(all, got), "%d ranges were cut to %d", len(all), len(got))
	for _, s := range got {
		require.True(o.t, o.settled[s.from] && o.settled[s.to-1])
	}
	return at, got
}

func TestRunAheadNeverCuts(t *testing.T) {
	for name, gap := range map[string]func(r *rand.Rand) int64{
		"dense":          func(*rand.Rand) int64 { return 0 },
		"transactions":   func(*rand.Rand) int64 { return 1 },
		"a few":          func(r *rand.Rand) int64 { return r.Int64N(30) },
		"compacted":      func(r *rand.Rand) int64 { return r.Int64N(500) },
		"much compacted": func(r *rand.Rand) int64 { return r.Int64N(1 << 20) },
		"anything":       func(r *rand.Rand) int64 { return r.Int64N(1 << r.IntN(33)) },
		"in blocks": func(r *rand.Rand) int64 {
			if r.IntN(500) == 0 {
				return 1 << 18
			}
			return 0
		},
	} {
		t.Run(name, func(t *testing.T) {
			most := 0
			for _, slow := range []float64{0.003, 0.1, 0.5} {
				random := rand.New(rand.NewPCG(uint64(1000*slow), 7))
				o := &owners{t: t, random: random, slow: slow, settled: map[int64]bool{}}
				offset := random.Int64N(1000)
				for range 60000 {
					o.offsets = append(o.offsets, offset)
					offset += 1 + gap(random)
				}
				start, inherited := int64(0), ranges(nil)
				for range 4 {
					start, inherited = o.own(start, inherited, 25000)
				}
				most = max(most, o.most)
			}
			assert.Greater(t, most, 50, "it is tested with something")
			t.Log(most)
		})
	}
}

// Every second message is settled, and their distances are such that few bytes of a run pay
// for others.
func TestRunAheadWorstCases(t *testing.T) {
	var far ranges
	for i := range int64(500) {
		far = append(far, span{1000000 + 1000*i, 1000001 + 1000*i})
	}
	for name, test := range map[string]struct {
		distances [2]int64
		inherited ranges
	}{
		"dense":                       {[2]int64{1, 1}, nil},
		"runs":                        {[2]int64{127, 2}, nil},
		"long runs":                   {[2]int64{16383, 2}, nil},
		"dense, others far beyond":    {[2]int64{1, 1}, far},
		"runs, and others far beyond": {[2]int64{127, 2}, far},
	} {
		t.Run(name, func(t *testing.T) {
			f, a := frontier{next: 0}, newRunAhead(0, test.inherited)
			n := 0
			for offset := int64(0); a.admits(offset); n++ {
				f.deliver(offset)
				a.deliver(offset)
				if n%2 == 1 {
					f.settleAt(offset)
				}
				offset += test.distances[n%2]
			}
			all := f.ahead().union(test.inherited)
			got, ok := decodeRanges(all.encode(0, maxRanges), 0)
			require.True(t, ok)
			assert.Equal(t, len(all), len(got), "of %d messages", n)
			assert.Greater(t, n, 50)
		})
	}
}

func TestRunAhead(t *testing.T) {
	deliver := func(a *runAhead, from, step int64) (n int64) {
		for a.admits(from + n*step) {
			a.deliver(from + n*step)
			n++
		}
		return n
	}
	for _, test := range []struct{ step, want int64 }{
		{1, 8 * aheadBytes}, // as a bitmap
		{2, 4 * aheadBytes},
		{15, 922},
		{20, aheadBytes / 2}, // as runs
		{100, aheadBytes / 2},
		{1000, aheadBytes / 3},
		{maxSpan, 1},
	} {
		t.Run(fmt.Sprint(test.step), func(t *testing.T) {
			assert.InDelta(t, test.want, deliver(newRunAhead(42, nil), 42, test.step), 1)
		})
	}
	t.Run("the frontier moves", func(t *testing.T) {
		a := newRunAhead(0, nil)
		n := deliver(a, 0, 1)
		a.pass(1)
		assert.True(t, a.admits(n))
		a.deliver(n)
		assert.False(t, a.admits(n+1))
		a.pass(n + 1)
		assert.Zero(t, a.cost)
		assert.EqualValues(t, n, deliver(a, n+1, 1), "all of it")
	})
	t.Run("the first always", func(t *testing.T) {
		a := newRunAhead(0, nil)
		far := int64(1) << 60
		require.True(t, a.admits(far))
		a.deliver(far)
		assert.False(t, a.admits(far+1))
		a.pass(far + 1)
		assert.True(t, a.admits(far+1))
	})
	t.Run("no more than maxAhead", func(t *testing.T) {
		a := newRunAhead(0, ranges{{1, 50000}}) // one run, of more messages than one owner settles
		assert.EqualValues(t, maxAhead, deliver(a, 0, 1))
	})
	t.Run("others have left no room", func(t *testing.T) {
		var r ranges
		for i := range int64(2000) {
			r = append(r, span{1000 * (i + 1), 1000*(i+1) + 1})
		}
		a := newRunAhead(0, r)
		assert.EqualValues(t, 1, deliver(a, 0, 1), "one at a time")
		a.pass(r.end())
		assert.Greater(t, deliver(a, r.end(), 100), int64(800), "until they are passed")
	})
	t.Run("it does not grow", func(t *testing.T) {
		a := newRunAhead(0, nil)
		for offset := range int64(100000) {
			a.deliver(offset)
			a.pass(offset - 8)
		}
		assert.LessOrEqual(t, cap(a.beyond), 32)
		assert.Equal(t, 18, a.cost)
	})
}
