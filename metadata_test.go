package kgroup

import (
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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
		{metadata: "kgroup/1 n=3 o=1 q=17 a=42:2 s=42:1", want: envelope{initial: 3, opened: "1", suspects: 17, tried: mark{42, 2}, alone: mark{42, 1}}},
		{metadata: "kgroup/1 s=9223372036854775807:2147483647", want: envelope{alone: mark{math.MaxInt64, math.MaxInt32}}},
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
		{metadata: "kgroup/1 s=42:-1", failure: "damaged"},
		{metadata: "kgroup/1 s=9223372036854775808:1", failure: "damaged"},
		{metadata: "kgroup/10 n=1", failure: "another client"},
		{metadata: "NEEDS 7 BYTES", failure: "another client"},
		{metadata: strings.Repeat("x", 5000), failure: "another client"},
	} {
		t.Run(test.metadata[:min(30, len(test.metadata))], func(t *testing.T) {
			got, err := parseEnvelope(test.metadata)
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

func FuzzEnvelope(f *testing.F) {
	for _, s := range []string{"", "kgroup/1", "kgroup/1 n=3", "kgroup/1 n=3 x=y", "kgroup/1 n=3 o=1 q=17 a=42:2 s=42:1", "kgroup/1 o=0 q=0 a=0:0 s=1:0", "kgroup/2 n=3", "kgroup/1 n=\xff", "other"} {
		f.Add(s, int32(3))
	}
	f.Fuzz(func(t *testing.T, metadata string, initial int32) {
		read, err := parseEnvelope(metadata)
		if err != nil && read != (envelope{}) {
			t.Fatalf("%q is damaged and counts all the same: %+v", metadata, read)
		}
		if initial < 0 {
			return
		}
		for _, want := range []envelope{{initial: initial}, {opened: "1", suspects: int(initial), tried: mark{int64(initial), 1}, alone: mark{1, int(initial)}}, read} {
			if got, err := parseEnvelope(want.String()); err != nil || got != want {
				t.Fatalf("%+v became %q became %+v, %v", want, want, got, err)
			}
		}
	})
}
