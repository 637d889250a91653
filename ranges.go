package kgroup

// What is settled beyond a frontier. It goes into the metadata of a commit (metadata.go), so
// that the partition's next owner does not repeat it. docs/DESIGN.md has the format.

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"math"
	"slices"
	"sort"
)

// ranges are offsets: sorted, with a hole between each of them and the next one. They are
// not changed once they are made, but for extend.
type ranges []span

// A span is the offsets from one up to another, which is not in it.
type span struct{ from, to int64 }

func (r ranges) contains(offset int64) bool { return r.past(offset) != offset }

// past is the first offset at or beyond the given one that is not in r.
func (r ranges) past(offset int64) int64 {
	if i := r.search(offset); i < len(r) && r[i].from <= offset {
		return r[i].to
	}
	return offset
}

// search is the index of the first range that ends beyond offset.
func (r ranges) search(offset int64) int {
	return sort.Search(len(r), func(i int) bool { return r[i].to > offset })
}

// from is what is left of r at or beyond offset.
func (r ranges) from(offset int64) ranges {
	r = r[r.search(offset):]
	if len(r) > 0 && r[0].from < offset {
		r = slices.Clone(r)
		r[0].from = offset
	}
	return r
}

// until is what of r lies before offset.
func (r ranges) until(offset int64) ranges {
	n := r.search(offset)
	if n < len(r) && r[n].from < offset {
		r = slices.Clone(r[:n+1])
		r[n].to = offset
		return r
	}
	return r[:n]
}

// union is what is in r, in s, or in both.
func (r ranges) union(s ranges) ranges {
	if len(r) == 0 {
		return s
	}
	if len(s) == 0 {
		return r
	}
	all := slices.Concat(r, s)
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	merged := all[:0]
	for _, next := range all {
		merged = merged.extend(next)
	}
	return merged
}

// extend adds a span that does not begin before the last range.
func (r ranges) extend(s span) ranges {
	if n := len(r); n > 0 && s.from <= r[n-1].to {
		r[n-1].to = max(r[n-1].to, s.to)
		return r
	}
	return append(r, s)
}

// end is the offset after the last range; 0 if there is none.
func (r ranges) end() int64 {
	if len(r) == 0 {
		return 0
	}
	return r[len(r)-1].to
}

// len is how many offsets there are.
func (r ranges) len() (n int64) {
	for _, s := range r {
		n += s.to - s.from
	}
	return n
}

// The two forms of ranges in metadata: the first of their bytes.
const (
	asRuns   = iota // lengths: not settled, settled, and so on, as unsigned varints
	asBitmap        // bit i, the lowest of a byte first, is the offset i beyond the committed one
)

// maxSpan is how far beyond the committed offset ranges may lie: who reads them is not to
// believe everything.
const maxSpan = 1 << 31

// encode writes what is in r beyond at, the committed offset, with at most budget
// characters. What does not fit is left out, from the far end: that is repeated, no more.
func (r ranges) encode(at int64, budget int) string {
	if at > math.MaxInt64-maxSpan {
		return ""
	}
	size := base64.RawURLEncoding.DecodedLen(budget)
	r = r.from(at).until(at + maxSpan)
	b, end := r.runs(at, size)
	if bitmap, reached := r.bitmap(at, size); reached > end || reached == end && len(bitmap) < len(b) {
		b = bitmap
	}
	if len(b) <= 1 {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// runs is the one form of r in at most size bytes, and the offset up to which it goes.
func (r ranges) runs(at int64, size int) (b []byte, end int64) {
	b, end = []byte{asRuns}, at
	for _, s := range r {
		longer := binary.AppendUvarint(b, uint64(s.from-end))
		longer = binary.AppendUvarint(longer, uint64(s.to-s.from))
		if len(longer) > size {
			break
		}
		b, end = longer, s.to
	}
	return b, end
}

// bitmap is the other one.
func (r ranges) bitmap(at int64, size int) (b []byte, end int64) {
	r = r.until(at + 8*int64(size-1))
	if len(r) == 0 {
		return nil, at
	}
	end = r.end()
	b = make([]byte, 1+(end-at+7)/8)
	b[0] = asBitmap
	for _, s := range r {
		for i := s.from - at; i < s.to-at; i++ {
			b[1+i/8] |= 1 << (i % 8)
		}
	}
	return b, end
}

// decodeRanges reads what encode has written. It reports false if that cannot be it.
func decodeRanges(text string, at int64) (r ranges, ok bool) {
	if len(text) > maxMetadata || at > math.MaxInt64-maxSpan {
		return nil, false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < 2 || base64.RawURLEncoding.EncodedLen(len(b)) != len(text) { // line breaks are skipped
		return nil, false
	}
	switch b[0] {
	case asRuns:
		return decodeRuns(b[1:], at)
	case asBitmap:
		return decodeBitmap(b[1:], at)
	default:
		return nil, false
	}
}

func decodeRuns(b []byte, at int64) (r ranges, ok bool) {
	end := at
	for len(b) > 0 {
		var lengths [2]int64
		for i := range lengths {
			length, n := binary.Uvarint(b)
			if n <= 0 || length > maxSpan || length == 0 && (i > 0 || r != nil) {
				return nil, false
			}
			lengths[i], b = int64(length), b[n:]
		}
		s := span{from: end + lengths[0], to: end + lengths[0] + lengths[1]}
		if s.to-at > maxSpan {
			return nil, false
		}
		r, end = append(r, s), s.to
	}
	return r, true
}

func decodeBitmap(b []byte, at int64) (r ranges, ok bool) {
	if b[len(b)-1] == 0 {
		return nil, false
	}
	for i := range int64(8 * len(b)) {
		if b[i/8]>>(i%8)&1 != 0 {
			r = r.extend(span{at + i, at + i + 1})
		}
	}
	return r, true
}
