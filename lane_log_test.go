package kgroup

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A message that makes its handler panic fails for hours, and every attempt logged the
// same stack of forty lines.
func TestStackOfAPanicIsLoggedOnce(t *testing.T) {
	// The backoff reaches its end with the sixth attempt, and the message is held.
	retry := Retry{MinBackoff: time.Second, MaxBackoff: 32 * time.Second}
	withRig(t, withRetry(retry), func(t *testing.T, r *rig) {
		r.on = func(_ context.Context, msg Message) error {
			switch {
			case msg.Offset == 5 && msg.Attempt > 10:
				return nil
			case msg.Attempt == 3:
				return errHandler
			case msg.Attempt == 4:
				panic("another one")
			}
			panic("no such account")
		}
		r.engine.assign(at(orders0, 5))
		r.engine.deliver(orders0, 5, 6)
		r.after(10 * time.Minute)
		require.Contains(t, r.handled(orders0), "5#11 6#1")
		assert.Len(t, r.logs.with("offset=5", "attempt=1 ", "stack="), 1)
		assert.Empty(t, r.logs.with("offset=5", "attempt=2 ", "stack="), "the same panic")
		assert.Empty(t, r.logs.with("offset=5", "attempt=3 ", "stack="), "no panic")
		assert.Len(t, r.logs.with("offset=5", "attempt=4 ", "another one", "stack="), 1)
		assert.Len(t, r.logs.with("offset=5", "attempt=5 ", "stack="), 1, "not the last one")
		assert.Len(t, r.logs.with("offset=5", "attempt=6 ", "message held", "stack="), 1, "somebody is to act now")
		assert.Empty(t, r.logs.with("offset=5", "attempt=7 ", "stack="))
		assert.Len(t, r.logs.with("offset=5", "attempt=7 ", "no such account"), 1, "but that it failed")
		assert.Len(t, r.logs.with("offset=6", "attempt=1 ", "stack="), 1, "another message")
	})
}
