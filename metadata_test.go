package kgroup

import (
	"context"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
)

func TestEnvelope(t *testing.T) {
	for _, test := range []struct {
		metadata string
		want     envelope
		failure  string
	}{
		{metadata: "", want: envelope{}},
		{metadata: "kgroup/1", want: envelope{}},
		{metadata: "kgroup/1 n=12", want: envelope{initial: 12}},
		{metadata: "kgroup/1 n=2147483647", want: envelope{initial: 2147483647}},
		{metadata: "kgroup/1 o=1", want: envelope{opened: "1"}},
		{metadata: "kgroup/1 o=5c0ffee5", want: envelope{opened: "5c0ffee5"}},
		{metadata: "kgroup/1 n=3 o=1 q=17 a=42:2 s=42:1", want: envelope{initial: 3, opened: "1", suspects: 17, tried: marks{{42, 2}}, alone: marks{{42, 1}}}},
		{metadata: "kgroup/1 a=42:3,45:1", want: envelope{tried: marks{{42, 3}, {45, 1}}}},
		{metadata: "kgroup/1 o=5c0ffee5 r=AAID", want: envelope{opened: "5c0ffee5", settled: ranges{{44, 47}}}},
		{metadata: "kgroup/1 r=AAGsAgMK", want: envelope{settled: ranges{{43, 343}, {346, 356}}}},
		{metadata: "kgroup/1 r=AVZV", want: envelope{settled: ranges{{43, 45}, {46, 47}, {48, 49}, {50, 51}, {52, 53}, {54, 55}, {56, 57}}}},
		{metadata: "kgroup/1 s=9223372036854775807:2147483647", want: envelope{alone: marks{{math.MaxInt64, math.MaxInt32}}}},
		{metadata: "kgroup/1 later=x,y n=12 z=", want: envelope{initial: 12}}, // fields of a later version
		{metadata: "kgroup/1 n=2147483648", failure: "damaged"},
		{metadata: "kgroup/1 n=-1", failure: "damaged"},
		{metadata: "kgroup/1 n=", failure: "damaged"},
		{metadata: "kgroup/1 n", failure: "damaged"},
		{metadata: "kgroup/1  n=1", failure: "damaged"},
		{metadata: "kgroup/1 o=", failure: "damaged"},
		{metadata: "kgroup/1 o=" + strings.Repeat("x", 65), failure: "damaged"},
		{metadata: "kgroup/1 q=-1", failure: "damaged"},
		{metadata: "kgroup/1 a=42", failure: "damaged"},
		{metadata: "kgroup/1 a=42:", failure: "damaged"},
		{metadata: "kgroup/1 a=:2", failure: "damaged"},
		{metadata: "kgroup/1 a=-1:2", failure: "damaged"},
		{metadata: "kgroup/1 a=", failure: "damaged"},
		{metadata: "kgroup/1 a=42:1,", failure: "damaged"},
		{metadata: "kgroup/1 a=42:1,42:2", failure: "damaged"},
		{metadata: "kgroup/1 a=45:1,42:3", failure: "damaged"},
		{metadata: "kgroup/1 s=42:-1", failure: "damaged"},
		{metadata: "kgroup/1 s=42:1,43:1", want: envelope{alone: marks{{42, 1}, {43, 1}}}},
		{metadata: "kgroup/1 o=1 f=42 a=42:2", want: envelope{opened: "1", tried: marks{{42, 2}}}},
		{metadata: "kgroup/1 o=1 f=41 a=42:2 s=42:1 r=AAIA", failure: "damaged"},
		{metadata: "kgroup/1 o=1 f=41 a=42:2 s=42:1 r=AAED", want: envelope{opened: "1"}}, // moved by a tool
		{metadata: "kgroup/1 s=43:1,42:1", failure: "damaged"},
		{metadata: "kgroup/1 n=3 r=", failure: "damaged"},
		{metadata: "kgroup/1 n=3 r=AAIA", failure: "damaged"},
		{metadata: "kgroup/1 s=9223372036854775808:1", failure: "damaged"},
		{metadata: "kgroup/10 n=1", failure: "another client"},
		{metadata: "NEEDS 7 BYTES", failure: "another client"},
		{metadata: strings.Repeat("x", 5000), failure: "another client"},
	} {
		t.Run(test.metadata[:min(30, len(test.metadata))], func(t *testing.T) {
			got, err := parseEnvelope(test.metadata, 42)
			assert.Equal(t, test.want, got)
			if test.failure == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, test.failure)
			assert.Less(t, len(err.Error()), 200, "the whole of it may be 4096 characters")
		})
	}
}

// Each field at its longest, all of them together: brokers refuse a commit with more.
func TestEnvelopeFits(t *testing.T) {
	const at = math.MaxInt64 - maxSpan
	e := envelope{initial: math.MaxInt32, opened: strings.Repeat("x", maxOpener), suspects: math.MaxInt32}
	for i := range int64(1000) {
		e.tried = append(e.tried, mark{at + i, math.MaxInt32})
		e.alone = append(e.alone, mark{at + i, math.MaxInt32})
	}
	for i := range int64(10000) {
		e.settled = append(e.settled, span{at + 1 + 100*i, at + 2 + 100*i})
	}
	metadata := e.encode(at)
	assert.LessOrEqual(t, len(metadata), maxMetadata)
	most := len(envelopeVersion) + 7*len(" x=") + len(fmt.Sprint(int64(at))) + 2*len(fmt.Sprint(math.MaxInt32)) + maxOpener + maxTried + maxAlone + maxRanges
	assert.LessOrEqual(t, most, maxMetadata)
	assert.InDelta(t, most, len(metadata), 40, "the lists are cut where an entry ends")

	read, err := parseEnvelope(metadata, at)
	require.NoError(t, err)
	assert.NotEmpty(t, read.tried)
	assert.Equal(t, e.tried[:len(read.tried)], read.tried, "the first ones")
	assert.Equal(t, e.settled[:len(read.settled)], read.settled, "the first ones")
	assert.Greater(t, len(read.settled), 800)
}

func TestMarks(t *testing.T) {
	m := marks{{3, 1}, {5, 2}, {9, 3}}
	assert.Equal(t, mark{5, 2}, m.of(5))
	assert.Equal(t, mark{}, m.of(4))
	assert.Equal(t, m[1:], m.from(4))
	assert.Empty(t, m.from(10))
	assert.Equal(t, marks{{3, 1}, {4, 7}, {5, 2}, {9, 3}}, m.with(mark{4, 7}))
	assert.Equal(t, marks{{3, 1}, {5, 7}, {9, 3}}, m.with(mark{5, 7}))
	assert.Equal(t, marks{{3, 1}}, marks(nil).with(mark{3, 1}))
	assert.Equal(t, marks{{3, 1}}, m.outside(ranges{{4, 10}}))
	assert.Equal(t, marks{{3, 1}, {5, 2}, {9, 3}}, m, "it is not changed")
	assert.Equal(t, "3:1,5:2,9:3", m.encode(11))
	assert.Equal(t, "3:1,5:2", m.encode(10))
	assert.Empty(t, m.encode(2))
}

func FuzzEnvelope(f *testing.F) {
	for _, s := range []string{
		"", "kgroup/1", "kgroup/1 n=3", "kgroup/1 n=3 x=y", "kgroup/1 n=3 o=1 q=17 a=42:2 s=42:1", "kgroup/1 o=0 q=0 a=0:0 s=1:0",
		"kgroup/2 n=3", "kgroup/1 n=\xff", "other", "kgroup/1 a=42:3,45:1 r=AAID", "kgroup/1 r=AVZV",
	} {
		f.Add(s, int32(3))
	}
	f.Fuzz(func(t *testing.T, metadata string, initial int32) {
		if initial < 0 {
			return
		}
		at := int64(initial)
		read, err := parseEnvelope(metadata, at)
		if err != nil && !reflect.DeepEqual(read, envelope{}) {
			t.Fatalf("%q is damaged and counts all the same: %+v", metadata, read)
		}
		all := []envelope{{initial: initial}, {opened: "1", suspects: int(initial), tried: marks{{at, 1}}, alone: marks{{1, int(initial)}}}}
		if len(metadata) < maxTried { // else it may be cut
			all = append(all, read)
		}
		for _, want := range all {
			written := want.encode(at)
			if len(written) > maxMetadata {
				t.Fatalf("%+v became %d characters", want, len(written))
			}
			if got, err := parseEnvelope(written, at); err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%+v became %q became %+v, %v", want, written, got, err)
			}
		}
	})
}

// beyond is what the tests' owners have settled beyond the offset 42: 50 does not exist.
var beyond = ranges{{43, 44}, {45, 48}, {49, 52}}

// beyond42 is the metadata with that, and with more.
func beyond42(e envelope) string {
	e.settled = beyond
	return e.encode(42)
}

// What owners before have settled beyond the committed offset is not handled again, and
// the commits go on saying so until the frontier has passed it.
func TestSettledByOwnersBefore(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		said   []string
	}{
		"intervals":     {nil, []string{"48 kgroup/1 o=1 f=48 r=" + beyond.from(48).encode(48, maxRanges), "53 kgroup/1 o=1"}},
		"every message": {committing(CommitEveryMessage), []string{"48 kgroup/1 o=1 f=48 r=" + beyond.from(48).encode(48, maxRanges), "53 kgroup/1 o=1"}},
		"own commits":   {committing(-1), []string{"0 ", "0 "}},
	} {
		t.Run(name, func(t *testing.T) {
			withRig(t, test.change, func(t *testing.T, r *rig) {
				gate := r.gate()
				r.on = func(_ context.Context, msg Message) error {
					if msg.Offset == 48 {
						gate.wait()
					}
					return nil
				}
				r.engine.assign(found(orders0, 42, beyond42(envelope{})))
				assert.Len(t, r.logs.with("level=DEBUG", "settled is not handled again", "offsets=7"), 1)
				r.engine.deliver(orders0, 42, 43, 44)
				r.engine.deliver(orders0, 45, 46, 47, 48, 49, 51, 52)
				r.after(2 * time.Second)
				assert.Equal(t, "42#1 44#1 48#1", r.handled(orders0))
				assert.Equal(t, test.said[0], r.engine.said(orders0))
				gate.open()
				r.after(2 * time.Second)
				assert.Equal(t, "42#1 44#1 48#1 52#1", r.handled(orders0))
				assert.Equal(t, test.said[1], r.engine.said(orders0))
				for _, l := range r.consumer.assignment.current.lanes {
					assert.False(t, l.inherits, "nothing is left")
				}
			})
		})
	}
}

// Nor is each of them committed.
func TestSettledByOwnersBeforeIsCommittedAtOnce(t *testing.T) {
	withRig(t, committing(CommitEveryMessage), func(t *testing.T, r *rig) {
		r.engine.assign(found(orders0, 0, envelope{settled: ranges{{1, 1000}}}.encode(0)))
		for offset := range int64(1001) {
			r.engine.deliver(orders0, offset)
		}
		r.after(time.Second)
		assert.Equal(t, "0#1 1000#1", r.handled(orders0))
		assert.Equal(t, 2, r.engine.commitCount())
	})
}

// What is known of later messages survives any number of owners, those too who add to it.
func TestMetadataIsCarriedOn(t *testing.T) {
	withRig(t, withLetters, func(t *testing.T, r *rig) {
		r.on = func(_ context.Context, msg Message) error {
			if msg.Offset == 42 || msg.Offset == 44 {
				return RetryAfter(errHandler, time.Hour)
			}
			return nil
		}
		next := func(offsets ...int64) {
			claim := at(orders0, r.engine.acknowledged(orders0))
			claim.Metadata = r.engine.metadata(orders0)
			r.engine.assign(claim)
			r.engine.deliver(orders0, offsets...)
			r.after(2 * time.Second)
		}
		ends := func() { r.engine.rebalance(time.Minute, time.Minute) }
		settled := " r=" + beyond.encode(42, maxRanges)

		r.engine.assign(found(orders0, 42, beyond42(envelope{tried: marks{{44, 1}, {46, 1}, {60, 2}}})))
		ends()
		assert.Equal(t, "42 kgroup/1 f=42 a=44:1,60:2"+settled, r.engine.said(orders0), "without a message; 46 is settled")
		next(42, 43)
		ends()
		assert.Equal(t, "42 kgroup/1 f=42 a=42:1,44:1,60:2"+settled, r.engine.said(orders0))
		next(42, 43, 44)
		ends()
		assert.Equal(t, "42 kgroup/1 f=42 a=42:2,44:1,60:2"+settled, r.engine.said(orders0))
		r.engine.lose(errLost)
		next(42, 43, 44, 45) // the third attempt, then a letter; and the second one of 44
		ends()
		assert.Equal(t, []string{"orders.dlq/0=42"}, r.engine.written())
		assert.Equal(t, "44 kgroup/1 f=44 a=44:2,60:2 r="+beyond.from(45).encode(44, maxRanges), r.engine.said(orders0))
		r.on = nil
		next(44, 45, 46, 47, 48, 49, 51, 52, 60, 61)
		assert.Equal(t, "42#1 42#2 42#3 44#2 44#3 48#1 52#1 60#3 61#1", r.handled(orders0))
		assert.Equal(t, "62 kgroup/1 o=1", r.engine.said(orders0))
	})
}

// A lane that does not begin where that was committed has other messages.
func TestMetadataOfOtherMessages(t *testing.T) {
	all := []int64{42, 43, 44, 45}
	for name, test := range map[string]struct {
		claim     engine.Claim
		delivered []int64
		handled   string
	}{
		"begins there":             {found(orders0, 42, beyond42(envelope{})), all, "42#1 44#1"},
		"begins elsewhere":         {engine.Claim{Partition: orders0, Offset: 41, Metadata: beyond42(envelope{})}, append([]int64{41}, all...), "41#1 42#1 43#1 44#1 45#1"},
		"is taken back meanwhile":  {found(orders0, 42, beyond42(envelope{tried: marks{{44, 1}}})), append([]int64{41}, all...), "41#1 42#1 43#1 44#1 45#1"},
		"is damaged":               {found(orders0, 42, "kgroup/1 r=AAAAAA"), all, "42#1 43#1 44#1 45#1"},
		"is damaged in other ways": {found(orders0, 42, beyond42(envelope{})+" s=x"), all, "42#1 43#1 44#1 45#1"},
	} {
		t.Run(name, func(t *testing.T) {
			withRig(t, nil, func(t *testing.T, r *rig) {
				r.engine.assign(test.claim)
				r.engine.deliver(orders0, test.delivered...)
				r.after(2 * time.Second)
				assert.Equal(t, test.handled, r.handled(orders0))
				assert.NotContains(t, r.engine.said(orders0), " a=")
				switch {
				case strings.Contains(name, "damaged"):
					assert.Len(t, r.logs.with("level=WARN", "committed metadata ignored"), 1)
				case strings.Contains(name, "back"):
					assert.Len(t, r.logs.with("level=WARN", "offsets begin anew"), 1)
				}
				if !strings.Contains(name, "there") {
					assert.Equal(t, "46 kgroup/1 o=1", r.engine.said(orders0))
				}
			})
		})
	}
}

// What is settled was not in the hands of an owner that has died.
func TestSettledMessagesAreNoSuspects(t *testing.T) {
	withRig(t, withQueue, func(t *testing.T, r *rig) {
		said := map[int64]string{}
		r.on = func(_ context.Context, msg Message) error {
			said[msg.Offset] = r.engine.said(orders0)
			return nil
		}
		r.engine.assign(found(orders0, 42, beyond42(envelope{opened: "2"})))
		r.engine.deliver(orders0, 42, 43, 44, 45, 46, 47, 48, 49, 51, 52, 53)
		r.after(2 * time.Second)
		assert.Equal(t, "42#1 44#1 48#1 52#1 53#1", r.handled(orders0))
		assert.Equal(t, "52 kgroup/1 o=1 q=1 f=52 s=52:1", said[52], "the fourth of four")
		assert.NotContains(t, said[53], "s=")
	})
}
