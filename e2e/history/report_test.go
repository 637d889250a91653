package history

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestReportShowsWhatHappened(t *testing.T) {
	r := Check(write(func(s *script) {
		s.produced(0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
		s.keys[0] = "x"
		s.ok("a", 0, 1, 2, 3, 4, 5)
		s.tell(Killed, "c")
		s.fail("a", 6)
		s.commit("a", 7)
		s.ok("b", 0)
	}), Rules{})
	assert.Equal(t, `10 produced, 8 attempts, 6 settled, 1 commits; 1 lost; 1 repeated
lost: t/0 at 6: the committed offset 7 passes it, and no attempt had returned nil
	  +0.006000s produced t/0 at 6
	…
	  +0.021000s a end t/0 at 5: nil
	  +0.022000s c killed
	  +0.023000s a begin t/0 at 6
	  +0.024000s a end t/0 at 6: no
	  +0.025000s a committed t/0 at 7
	  +0.026000s b begin t/0 at 0 key "x"
	  +0.027000s b end t/0 at 0: nil
repeated: t/0 at 0: b begins it after a has returned nil
	  +0.000000s produced t/0 at 0
	  +0.010000s a begin t/0 at 0 key "x"
	  +0.011000s a end t/0 at 0: nil
	…
	  +0.022000s c killed
	  +0.023000s a begin t/0 at 6
	  +0.024000s a end t/0 at 6: no
	  +0.025000s a committed t/0 at 7
	  +0.026000s b begin t/0 at 0 key "x"
	  +0.027000s b end t/0 at 0: nil`, r.String())
}

func TestReportIsShort(t *testing.T) {
	r := Check(write(func(s *script) {
		for o := range int64(100) {
			s.produced(o)
		}
		s.ok("a", 99)
		s.commit("a", 100)
		s.tell(SessionLost, "a")
		s.ok("b", 99)
	}), Rules{})
	assert.Equal(t, 99, r.Count(Lost))
	text := r.String()
	assert.Contains(t, text, "\nlost: and 96 more")
	assert.Less(t, len(text), 3000)
}

func TestRequire(t *testing.T) {
	good := write(func(s *script) {
		s.produced(0)
		s.ok("a", 0)
	})
	tests := []struct {
		name   string
		report Report
		want   bool // the test goes on
	}{
		{"kept", Check(good, Rules{}), true},
		{"broken", Check(good, Rules{AllCommitted: true}), false},
		{"empty", Check(nil, Rules{}), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			goesOn := false
			fake := &fakeT{TB: t}
			done := make(chan struct{})
			go func() { // Fatal ends the goroutine
				defer close(done)
				Require(fake, tt.report)
				goesOn = true
			}()
			<-done
			assert.Equal(t, tt.want, goesOn)
			assert.Equal(t, !tt.want, fake.failed)
		})
	}
}
