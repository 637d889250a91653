package kgroup

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestSettle(t *testing.T) {
	retry10 := Retry{MinBackoff: 100 * time.Millisecond, MaxBackoff: 10 * time.Second} // the 8th attempt's backoff is at its end
	retry5, endless := retry10, retry10
	retry5.MaxAttempts, endless.MaxAttempts = 5, -1
	long := Retry{MinBackoff: time.Second, MaxBackoff: time.Second, MaxAttempts: 5}
	never := Retry{MinBackoff: time.Second, MaxBackoff: time.Second}
	for name, test := range map[string]struct {
		retry     Retry
		err       error
		attempt   int
		cancelled bool
		want      outcome
		letters   string
	}{
		"nil":                          {retry10, nil, 1, false, done, ""},
		"nil at last":                  {retry10, nil, 1000, false, done, ""},
		"nil after the cancellation":   {retry10, nil, 1, true, done, ""},
		"error":                        {retry10, errHandler, 1, false, retry, ""},
		"error before the last":        {retry10, errHandler, 7, false, retry, ""},
		"error at the end":             {retry10, errHandler, 8, false, hold, ""},
		"error long after":             {retry10, errHandler, math.MaxInt, false, hold, ""},
		"permanent":                    {retry10, Permanent(errHandler), 1, false, hold, ""},
		"permanent inside":             {retry10, fmt.Errorf("charge: %w", Permanent(errHandler)), 1, false, hold, ""},
		"permanent among others":       {retry10, errors.Join(errHandler, Permanent(errHandler)), 1, false, hold, ""},
		"permanent in a panic":         {retry10, &PanicError{Value: Permanent(errHandler)}, 1, false, hold, ""},
		"panic":                        {retry10, &PanicError{Value: "x"}, 1, false, retry, ""},
		"backoff that does not grow":   {never, errHandler, 1, false, hold, ""},
		"error after the cancellation": {retry10, errHandler, 1, true, abandon, ""},
		"permanent after it":           {retry10, Permanent(errHandler), 1, true, abandon, ""},
		"at the end after it":          {retry10, errHandler, 8, true, abandon, ""},

		"attempts left":                 {retry5, errHandler, 4, false, retry, "dlq"},
		"no attempts left":              {retry5, errHandler, 5, false, bury, "dlq"},
		"more attempts than there were": {retry5, errHandler, 6, false, bury, "dlq"}, // of an owner that allowed more
		"attempts without dead letters": {retry5, errHandler, 5, false, retry, ""},
		"permanent, dead letters":       {retry5, Permanent(errHandler), 1, false, bury, "dlq"},
		"shutdown at the last attempt":  {retry5, errHandler, 5, true, abandon, "dlq"},
		"permanent after the shutdown":  {retry5, Permanent(errHandler), 1, true, abandon, "dlq"},
		"nil at the last attempt":       {retry5, nil, 5, false, done, "dlq"},
		"endless attempts":              {endless, errHandler, 8, false, hold, "dlq"},
		"permanent, endless attempts":   {endless, Permanent(errHandler), 1, false, bury, "dlq"},
		"long backoffs, attempts left":  {long, errHandler, 2, false, retry, "dlq"}, // they end by themselves
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, test.want, (&Topic{Retry: test.retry, DeadLetter: test.letters}).settle(test.err, test.attempt, test.cancelled))
		})
	}
}

func TestBackoffCeiling(t *testing.T) {
	ms := time.Millisecond
	for name, test := range map[string]struct {
		retry Retry
		want  []time.Duration // after attempts 1, 2, 3, …
	}{
		"doubles":            {Retry{MinBackoff: 100 * ms, MaxBackoff: 1000 * ms}, []time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms, 1000 * ms, 1000 * ms}},
		"reaches it exactly": {Retry{MinBackoff: 100 * ms, MaxBackoff: 400 * ms}, []time.Duration{100 * ms, 200 * ms, 400 * ms, 400 * ms}},
		"stays":              {Retry{MinBackoff: 100 * ms, MaxBackoff: 100 * ms}, []time.Duration{100 * ms, 100 * ms}},
	} {
		t.Run(name, func(t *testing.T) {
			for i, want := range test.want {
				assert.Equal(t, want, test.retry.ceiling(i+1), "attempt %d", i+1)
			}
			assert.Equal(t, test.retry.MaxBackoff, test.retry.ceiling(1_000_000))
		})
	}
	longest := Retry{MinBackoff: 1, MaxBackoff: math.MaxInt64}
	for attempt := range 200 {
		assert.Positive(t, longest.ceiling(attempt+1), "no overflow")
	}
}

func TestBackoffIsDrawnFromZeroToTheCeiling(t *testing.T) {
	r := Retry{MinBackoff: 100 * time.Millisecond, MaxBackoff: 10 * time.Second}
	var least, most, sum time.Duration = time.Hour, 0, 0
	const n = 10000
	for range n {
		d := r.backoff(retry, 3, errHandler)
		least, most, sum = min(least, d), max(most, d), sum+d
	}
	// Of 10,000 draws none being below a tenth has a probability of 1e-457.
	assert.Less(t, least, 40*time.Millisecond)
	assert.Greater(t, most, 360*time.Millisecond)
	assert.LessOrEqual(t, most, 400*time.Millisecond)
	assert.InDelta(t, 200*time.Millisecond, sum/n, float64(20*time.Millisecond))
}

func TestHeldMessageIsTriedAtASteadyPace(t *testing.T) {
	r := Retry{MinBackoff: 100 * time.Millisecond, MaxBackoff: 10 * time.Second}
	for _, attempt := range []int{1, 2, 1000} {
		assert.Equal(t, 10*time.Second, r.backoff(hold, attempt, errHandler))
	}
}

// Who says when to come again is believed, whatever would have come next; at once is not
// the same as not saying.
func TestRetryAfter(t *testing.T) {
	r := Retry{MinBackoff: time.Hour, MaxBackoff: 2 * time.Hour}
	for _, o := range []outcome{retry, hold} {
		assert.Equal(t, time.Minute, r.backoff(o, 9, RetryAfter(errHandler, time.Minute)))
		assert.Equal(t, time.Minute, r.backoff(o, 9, fmt.Errorf("charge: %w", RetryAfter(errHandler, time.Minute))))
		assert.Zero(t, r.backoff(o, 9, RetryAfter(errHandler, -time.Minute)))
	}
	assert.NoError(t, RetryAfter(nil, time.Minute))
	assert.ErrorIs(t, RetryAfter(errHandler, time.Minute), errHandler)
	assert.Equal(t, errHandler.Error(), RetryAfter(errHandler, time.Minute).Error())
}
