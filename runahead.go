package kgroup

// How far a lane may deliver beyond its frontier: what is settled there must fit into the
// metadata of a commit (ranges.go).

import (
	"math"
	"math/bits"
)

// A runAhead knows what was delivered beyond the frontier, and lets the next message follow
// while either form of ranges fits, whichever of those messages will be settled: a bitmap
// up to the last of them, or runs, of which each message may begin one.
//
// What owners before have settled is written too, until the frontier has passed it. A
// bitmap must reach to the end of that. Runs of theirs come on top of ours: what they took
// where this lane began is a bound, because a message that is settled between two of them
// adds no more than one does elsewhere, and one that is in them adds nothing. So nothing is
// ever left out, unless an owner before has written more than the budget.
type runAhead struct {
	frontier  int64
	last      int64  // the message delivered last, or where the lane has begun
	inherited ranges // settled by owners before, as long as the frontier has not passed them
	runs      int    // bytes of them

	beyond []step
	head   int // beyond[head:] do not lie below the frontier
	cost   int // of them
}

// A step is a message that was delivered, and how many bytes runs may need for it.
type step struct {
	offset int64
	cost   int
}

const (
	// maxAhead is how many messages may be delivered beyond a frontier: they are remembered,
	// and repeated should the metadata get lost.
	maxAhead = 16384

	// aheadBytes are what ranges have besides their form.
	aheadBytes = maxRanges*6/8 - 1
)

func newRunAhead(start int64, inherited ranges) *runAhead {
	b, _ := inherited.runs(start, math.MaxInt)
	return &runAhead{frontier: start, last: start, inherited: inherited, runs: len(b) - 1}
}

// admits reports whether the message at offset, the next one, may be delivered now. The
// first one beyond the frontier always may.
func (a *runAhead) admits(offset int64) bool {
	n := len(a.beyond) - a.head
	if n == 0 {
		return true
	}
	if n >= maxAhead || offset-a.frontier >= maxSpan {
		return false
	}
	return max(offset+1, a.inherited.end())-a.frontier <= 8*aheadBytes || a.cost+a.costs(offset)+a.runs <= aheadBytes
}

// costs is how many bytes the message at offset, the next one, may add to runs. Those of a
// number are no more than those of its parts together: however many of the messages
// since the last that was settled make one run, their distances pay for its length.
// One byte is for a run that begins with this message, and is as long.
func (a *runAhead) costs(offset int64) int {
	if a.inherited.contains(offset) {
		return 0
	}
	return uvarintLen(uint64(offset-a.last)) + 1
}

// deliver notes that the message at offset was handed out. Offsets come in increasing
// order.
func (a *runAhead) deliver(offset int64) {
	if len(a.beyond) == cap(a.beyond) && a.head > len(a.beyond)/2 {
		a.beyond = a.beyond[:copy(a.beyond, a.beyond[a.head:])]
		a.head = 0
	}
	s := step{offset, a.costs(offset)}
	a.beyond = append(a.beyond, s)
	a.cost += s.cost
	a.last = offset
}

// pass notes that the frontier has moved.
func (a *runAhead) pass(frontier int64) {
	a.frontier = frontier
	for a.head < len(a.beyond) && a.beyond[a.head].offset < frontier {
		a.cost -= a.beyond[a.head].cost
		a.head++
	}
	if a.head == len(a.beyond) {
		a.beyond, a.head = a.beyond[:0], 0
	}
	if frontier >= a.inherited.end() {
		a.inherited, a.runs = nil, 0
	}
}

// uvarintLen is how many bytes v takes.
func uvarintLen(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }
