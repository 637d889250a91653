package kafka

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPollSaysWhatItLastSaw(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause, seen := errors.New("the broker is gone"), errors.New("2 of 3 brokers")
	calls := 0
	err := poll(ctx, "the cluster", func(ctx context.Context) error {
		if calls++; calls == 2 {
			cancel(cause)
			return ctx.Err() // as everything that was given the ctx
		}
		return seen
	})
	require.EqualError(t, err, "wait for the cluster: last seen: 2 of 3 brokers: the broker is gone")
	assert.ErrorIs(t, err, cause)
	assert.ErrorIs(t, err, seen)
	assert.Equal(t, 2, calls)
}
