package kgroup

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRanges(t *testing.T) {
	r := ranges{{3, 5}, {8, 9}, {20, 30}}
	var in []int64
	for offset := range int64(35) {
		if r.contains(offset) {
			in = append(in, offset)
		}
	}
	assert.Equal(t, []int64{3, 4, 8, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29}, in)
	assert.EqualValues(t, 13, r.len())
	assert.EqualValues(t, 30, r.end())
	assert.EqualValues(t, 2, r.past(2))
	assert.EqualValues(t, 5, r.past(3))
	assert.EqualValues(t, 5, r.past(4))
	assert.EqualValues(t, 5, r.past(5))

	assert.Equal(t, r, r.from(3))
	assert.Equal(t, ranges{{4, 5}, {8, 9}, {20, 30}}, r.from(4))
	assert.Equal(t, ranges{{8, 9}, {20, 30}}, r.from(5))
	assert.Equal(t, ranges{{29, 30}}, r.from(29))
	assert.Empty(t, r.from(30))
	assert.Empty(t, r.until(3))
	assert.Equal(t, ranges{{3, 4}}, r.until(4))
	assert.Equal(t, ranges{{3, 5}, {8, 9}}, r.until(20))
	assert.Equal(t, ranges{{3, 5}, {8, 9}, {20, 21}}, r.until(21))
	assert.Equal(t, ranges{{3, 5}, {8, 9}, {20, 30}}, r, "it is not changed")

	assert.Equal(t, r, r.union(nil))
	assert.Equal(t, r, ranges(nil).union(r))
	assert.Equal(t, r, r.union(r))
	assert.Equal(t, ranges{{0, 6}, {8, 10}, {12, 13}, {19, 31}}, r.union(ranges{{0, 4}, {5, 6}, {9, 10}, {12, 13}, {19, 22}, {25, 31}}))
	assert.Equal(t, ranges{{3, 5}, {8, 9}, {20, 30}}, r, "it is not changed")
}

// Those of docs/DESIGN.md, and others; the committed offset is 42.
func TestRangesInMetadata(t *testing.T) {
	for text, want := range map[string]ranges{
		"ARw":      {{44, 47}},
		"AAGsAgMK": {{43, 343}, {346, 356}},
		"AVZV":     {{43, 45}, {46, 47}, {48, 49}, {50, 51}, {52, 53}, {54, 55}, {56, 57}},
		"Aaqq":     {{43, 44}, {45, 46}, {47, 48}, {49, 50}, {51, 52}, {53, 54}, {55, 56}, {57, 58}},
		"AQI":      {{43, 44}},
	} {
		t.Run(text, func(t *testing.T) {
			got, ok := decodeRanges(text, 42)
			require.True(t, ok)
			assert.Equal(t, want, got)
			assert.Equal(t, text, want.encode(42, maxRanges))
		})
	}
	got, ok := decodeRanges("AAID", 42)
	assert.True(t, ok)
	assert.Equal(t, ranges{{44, 47}}, got, "though a bitmap is shorter")
	got, ok = decodeRanges("AAAD", 42)
	assert.True(t, ok)
	assert.Equal(t, ranges{{42, 45}}, got, "the committed offset itself, which we do not write")
	assert.Empty(t, ranges{}.encode(42, maxRanges))
	assert.Empty(t, ranges{{40, 42}}.encode(42, maxRanges))
}

func TestDamagedRanges(t *testing.T) {
	form := func(b ...byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	runs := func(lengths ...uint64) string {
		b := []byte{asRuns}
		for _, n := range lengths {
			b = binary.AppendUvarint(b, n)
		}
		return form(b...)
	}
	for name, text := range map[string]string{
		"empty":                  "",
		"no runs":                runs(),
		"no bits":                form(asBitmap),
		"another form":           form(2, 1, 1),
		"half a pair":            runs(1, 1, 1),
		"half a number":          form(asRuns, 1, 0x80),
		"a number of 70 bits":    form(asRuns, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1),
		"nothing settled":        runs(1, 0),
		"nothing between":        runs(0, 1, 0, 1),
		"too far":                runs(maxSpan+1, 1),
		"too long":               runs(1, maxSpan+1),
		"too far together":       runs(maxSpan/2, maxSpan/2, 1, 1),
		"an overflow":            runs(math.MaxUint64, math.MaxUint64),
		"zeros after the bitmap": form(asBitmap, 2, 0),
		"no base64":              "AA!D",
		"padding":                "AQI=",
		"bits of no byte":        "AQJ",
		"a line break":           "AQI\n",
		"more than fits":         form(slices.Repeat([]byte{asBitmap}, 4000)...),
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := decodeRanges(text, 42)
			assert.False(t, ok)
			assert.Nil(t, got)
		})
	}
	_, ok := decodeRanges("AAID", math.MaxInt64-maxSpan+1)
	assert.False(t, ok, "there is no such offset")
	assert.Empty(t, ranges{{math.MaxInt64 - 2, math.MaxInt64 - 1}}.encode(math.MaxInt64-3, maxRanges))
}

// FuzzRanges writes ranges, made of steps, and reads them; and reads anything.
func FuzzRanges(f *testing.F) {
	f.Add([]byte{0, 3, 2, 1}, int64(0), uint16(maxRanges), "AAID")
	f.Add([]byte{9, 9, 200, 200, 255, 255}, int64(math.MaxInt64-maxSpan), uint16(7), "AVZV")
	f.Add(bytes.Repeat([]byte{0, 0}, 200), int64(1)<<40, uint16(20), strings.Repeat("_", maxMetadata))
	f.Fuzz(func(t *testing.T, steps []byte, at int64, budget uint16, text string) {
		if at < 0 || at > math.MaxInt64-maxSpan {
			return
		}
		var want ranges
		offset := at
		for i := 0; i+1 < len(steps) && offset < math.MaxInt64/2; i += 2 {
			s := span{from: offset + 1 + int64(steps[i])>>1<<(steps[i]%2*20)}
			s.to = s.from + 1 + int64(steps[i+1])>>1<<(steps[i+1]%2*20)
			want, offset = append(want, s), s.to
		}
		written := want.encode(at, int(budget))
		if len(written) > int(budget) {
			t.Fatalf("%v became %d characters, %d were allowed", want, len(written), budget)
		}
		if written != "" && len(written) <= maxMetadata {
			got, ok := decodeRanges(written, at)
			if !ok || !slices.Equal(got, want.until(got.end())) {
				t.Fatalf("%v became %q became %v, %v", want, written, got, ok)
			}
			if complete := want.until(at + maxSpan); got.end() < complete.end() && len(want.encode(at, math.MaxUint16)) <= int(budget) {
				t.Fatalf("%v was cut to %v, and would have fitted", want, got)
			}
		}
		read, ok := decodeRanges(text, at)
		if !ok {
			return
		}
		for i, s := range read {
			if s.to <= s.from || s.from < at || i > 0 && s.from <= read[i-1].to || s.to > at+maxSpan {
				t.Fatalf("%q became %v", text, read)
			}
		}
		if again, ok := decodeRanges(read.encode(at, maxMetadata), at); !ok || !slices.Equal(read, again) {
			t.Fatalf("%q became %v became %v", text, read, again)
		}
	})
}
