package kafka

// Waiting for what a broker does in its own time.

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const pollInterval = 50 * time.Millisecond

// poll calls ready until it returns nil. When ctx ends first, the error names what
// was waited for and what was still missing.
func poll(ctx context.Context, what string, ready func(context.Context) error) error {
	last := errors.New("nothing")
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil { // else it only says that ctx has ended
			last = err
		}
		if pause(ctx, pollInterval) != nil {
			return fmt.Errorf("wait for %s: last seen: %w: %w", what, last, context.Cause(ctx))
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
