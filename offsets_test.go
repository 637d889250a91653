package kgroup

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestFrontier(t *testing.T) {
	const deliver, settle = "deliver", "settle"
	type step struct {
		do     string
		offset int64
		want   int64 // the frontier after it
	}
	for name, steps := range map[string][]step{
		"in order": {
			{deliver, 5, -1}, {settle, 5, 6}, {deliver, 6, 6}, {settle, 6, 7},
		},
		"delivered ahead": {
			{deliver, 5, -1}, {deliver, 6, -1}, {deliver, 7, -1}, {settle, 5, 6}, {settle, 6, 7}, {settle, 7, 8},
		},
		"out of order": {
			{deliver, 5, -1}, {deliver, 6, -1}, {deliver, 7, -1}, {settle, 7, -1}, {settle, 6, -1}, {settle, 5, 8},
		},
		"a hole in the middle": {
			{deliver, 5, -1}, {deliver, 6, -1}, {deliver, 7, -1}, {settle, 5, 6}, {settle, 7, 6}, {settle, 6, 8},
		},
		// Compaction, transaction markers, aborted messages.
		"offsets with gaps": {
			{deliver, 0, -1}, {deliver, 10, -1}, {deliver, 1000, -1}, {settle, 10, -1}, {settle, 0, 11}, {settle, 1000, 1001},
		},
		"the next is delivered meanwhile": {
			{deliver, 5, -1}, {deliver, 6, -1}, {settle, 5, 6}, {deliver, 7, 6}, {settle, 7, 6}, {deliver, 9, 6}, {settle, 6, 8}, {settle, 9, 10},
		},
		"offset zero": {
			{deliver, 0, -1}, {settle, 0, 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := frontier{next: -1}
			for i, s := range steps {
				if s.do == deliver {
					f.deliver(s.offset)
				} else {
					f.settleAt(s.offset)
				}
				require.Equal(t, s.want, f.next, "step %d: %s %d", i, s.do, s.offset)
			}
		})
	}
}

// settleAt settles the message at offset, which has been delivered.
func (f *frontier) settleAt(offset int64) {
	at := slices.IndexFunc(f.open[f.head:], func(d delivery) bool { return d.offset == offset })
	f.settle(f.first + int64(f.head+at))
}

// What is below the frontier must not be kept: a lane lives for weeks.
func TestFrontierDoesNotGrow(t *testing.T) {
	f := frontier{next: -1}
	for i := range int64(8) {
		f.deliver(i)
	}
	for i := range int64(100000) {
		f.settleAt(i)
		f.deliver(i + 8)
	}
	assert.LessOrEqual(t, cap(f.open), 32)
	assert.EqualValues(t, 100000, f.next)
}

// A naiveFrontier remembers everything.
type naiveFrontier struct {
	delivered []int64
	settled   map[int64]bool
}

func (n naiveFrontier) next() int64 {
	next := int64(-1)
	for _, o := range n.delivered {
		if !n.settled[o] {
			break
		}
		next = o + 1
	}
	return next
}

// FuzzFrontier compares the frontier with one that remembers everything. Each byte is
// a step: an even one delivers the next message, after a gap; an odd one settles one
// of those that wait.
func FuzzFrontier(f *testing.F) {
	f.Add([]byte{0, 1, 0, 1})
	f.Add([]byte{0, 0, 0, 5, 3, 1})
	f.Add([]byte{2, 40, 254, 1, 1, 0, 3, 1})
	random := rand.New(rand.NewPCG(5, 6))
	for range 8 {
		steps := make([]byte, 300)
		for i := range steps {
			steps[i] = byte(random.Uint32())
		}
		f.Add(steps)
	}
	f.Fuzz(func(t *testing.T, steps []byte) {
		tested, naive := frontier{next: -1}, naiveFrontier{settled: map[int64]bool{}}
		var open []int64
		offset := int64(0)
		for i, step := range steps {
			if step%2 == 0 {
				offset += int64(step / 2)
				tested.deliver(offset)
				naive.delivered = append(naive.delivered, offset)
				open = append(open, offset)
				offset++
			} else if len(open) > 0 {
				at := int(step/2) % len(open)
				tested.settleAt(open[at])
				naive.settled[open[at]] = true
				open = slices.Delete(open, at, at+1)
			}
			if want := naive.next(); tested.next != want {
				t.Fatalf("after step %d of %v: the frontier is %d, want %d", i, steps, tested.next, want)
			}
		}
	})
}

// A lane whose messages are settled out of order must not commit what the zero value
// of a frontier says.
func TestLanesFrontierBeginsWithNothing(t *testing.T) {
	assert.EqualValues(t, -1, testLaneOf(Topic{Workers: 2}).crew.frontier.next)
}

// Metadata of another program says nothing, and is no reason to stop.
func TestForeignMetadataIsIgnored(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		claim := at(orders0, 5)
		claim.Metadata = "of another client"
		r.engine.assign(claim)
		r.engine.deliver(orders0, 5)
		r.after(time.Second)
		assert.EqualValues(t, 6, r.engine.acknowledged(orders0))
		assert.Len(t, r.logs.with("level=WARN", "metadata ignored", "another client", "topic=orders"), 1)
	})
}

func TestRefusalIsReportedOnce(t *testing.T) {
	for name, interval := range map[string]time.Duration{"interval": time.Second, "every message": CommitEveryMessage} {
		t.Run(name, func(t *testing.T) {
			withRig(t, committing(interval), func(t *testing.T, r *rig) {
				r.engine.answer(refusing(errRefused, orders0))
				r.engine.assign(at(orders0, 5), at(refunds0, 0))
				r.engine.deliver(orders0, 5)
				for i := range int64(60) {
					r.engine.deliver(refunds0, i)
					r.after(time.Second)
				}
				assert.Len(t, r.history.all("error: "), 1, "not every interval")
				assert.GreaterOrEqual(t, r.engine.acknowledged(refunds0), int64(59), "other partitions go on")
				assert.EqualValues(t, -1, r.engine.acknowledged(orders0))

				r.engine.answer(nil)
				r.after(2 * time.Second)
				assert.EqualValues(t, 6, r.engine.acknowledged(orders0), "it is tried again")

				r.engine.answer(refusing(errRefused, orders0))
				r.engine.deliver(orders0, 6)
				r.after(3 * time.Second)
				assert.Len(t, r.history.all("error: "), 2, "it is new then")
			})
		})
	}
}

func TestFailedCommitIsReportedAndMadeAgain(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r *rig) {
		r.engine.answer(failing(errTransient))
		r.engine.assign(at(orders0, 5))
		r.engine.deliver(orders0, 5)
		r.after(3 * time.Second)
		assert.Equal(t, []string{"[1s] orders/0@6: broker is restarting", "[2s] orders/0@6"}, r.engine.attempts(r.start))
		assert.Equal(t, []string{"error: commit: broker is restarting"}, r.history.all("error: "))
		assert.Equal(t, []string{
			"answered map[orders:map[0:6]]: broker is restarting",
			"answered map[orders:map[0:6]]: <nil>",
		}, r.history.all("answered"))
	})
}

// One request at a time: else an older one that is answered later would take an offset
// back.
func TestCommitsDoNotOvertakeEachOther(t *testing.T) {
	withRig(t, committing(100*time.Millisecond), func(t *testing.T, r *rig) {
		under := make(chan struct{}, 1)
		r.engine.answer(func(c *fakeCommit) error {
			select {
			case under <- struct{}{}:
			default:
				return fmt.Errorf("two commits at once at %v", c.at.Sub(r.start))
			}
			defer func() { <-under }()
			time.Sleep(time.Duration(1+len(c.offsets)) * 70 * time.Millisecond)
			return nil
		})
		r.engine.assign(at(orders0, 0), at(refunds0, 0))
		for i := range int64(30) {
			r.engine.deliver(orders0, i)
			r.engine.deliver(refunds0, i)
			synctest.Wait()
			require.NoError(t, r.consumer.Commit(t.Context()))
			require.EqualValues(t, i+1, r.engine.acknowledged(orders0))
		}
		var last int64
		for _, c := range r.engine.commits {
			require.NoError(t, c.err)
			if offset, ok := c.offsets[orders0]; ok {
				require.Greater(t, offset, last)
				last = offset
			}
		}
	})
}
