//go:build unix

package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestDelays(t *testing.T) {
	d := newDelays(2)
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	d.handled(1, 0, stamp(0, ago(5*time.Second)), now)
	d.begin()
	d.handled(1, 0, stamp(2, ago(3*time.Second)), ago(2*time.Second))
	d.handled(1, 0, stamp(2, ago(3*time.Second)), now) // again: it was handled before
	d.handled(1, 0, stamp(4, ago(50*time.Millisecond)), now)
	assert.InDelta(t, 1000, d.worstMS(), 1e-6)
	assert.Equal(t, 1, d.repeated)
	assert.Equal(t, 1, d.skipped(now), "1 is missing, 3 is not due yet")

	assert.False(t, d.upToDate(1, now), "nothing of partition 1 was handled")
	d.handled(2, 1, stamp(5, ago(time.Millisecond)), now)
	assert.True(t, d.upToDate(2, now))
	assert.False(t, d.upToDate(3, now), "it has handled nothing")
	assert.False(t, d.upToDate(2, now.Add(restLag)))
}

func TestUntilMoment(t *testing.T) {
	ms := time.Millisecond
	assert.Equal(t, 300*ms, untilMoment(1000*ms, 300*ms))
	assert.Equal(t, 900*ms, untilMoment(1400*ms, 300*ms), "it has passed: one heartbeat later")
	assert.Equal(t, 50*ms, untilMoment(3250*ms, 300*ms))
	assert.Zero(t, untilMoment(2300*ms, 300*ms))
}
