package kafka

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if log := os.Getenv(keeperEnv); log != "" {
		keepChild(log)
	}
	goleak.VerifyTestMain(m)
}

func deadline(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("%s has taken more than %v", t.Name(), d))
	t.Cleanup(cancel)
	return ctx
}
