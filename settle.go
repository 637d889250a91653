package kgroup

// The outcome of one attempt. A lane hands every attempt's result to settle and
// does what it says; nothing else in the package decides about retrying. Settled
// messages go on to offsets.go, dead letters to deadletter.go.

import (
	"math/rand/v2"
	"time"
)

type outcome int

const (
	done    outcome = iota // mark it
	retry                  // try again after a backoff
	hold                   // nowhere to go: keep trying, and say so
	bury                   // make it a dead letter
	abandon                // we took the partition away: neither failed nor done
)

// settle decides what becomes of a message after its attempt of that number ended with
// err. cancelled reports whether the handler's context was cancelled by us, other than
// for its own timeout: then err says nothing about the message. A nil counts even
// then: the work is done.
func (t *Topic) settle(err error, attempt int, cancelled bool) outcome {
	switch {
	case err == nil:
		return done
	case cancelled:
		return abandon
	case t.DeadLetter != "" && isPermanent(err), t.spent(attempt):
		return bury
	case isPermanent(err), (t.DeadLetter == "" || t.Retry.MaxAttempts < 0) && t.Retry.exhausted(attempt):
		return hold
	default:
		return retry
	}
}

// spent reports whether so many are all the attempts a message gets.
func (t *Topic) spent(attempts int) bool { return t.DeadLetter != "" && t.Retry.spent(attempts) }

// spent reports whether so many are all the attempts, or deaths, that there may be.
func (r Retry) spent(attempts int) bool { return r.MaxAttempts > 0 && attempts >= r.MaxAttempts }

// exhausted reports whether the backoff after this attempt has reached MaxBackoff:
// patience has not helped, and somebody should know.
func (r Retry) exhausted(attempt int) bool { return r.ceiling(attempt) >= r.MaxBackoff }

// ceiling is the longest backoff after the given attempt: MinBackoff, doubled by
// every attempt, up to MaxBackoff.
func (r Retry) ceiling(attempt int) time.Duration {
	d := r.MinBackoff
	for range attempt - 1 {
		if d >= r.MaxBackoff/2 {
			return r.MaxBackoff
		}
		d *= 2
	}
	return min(d, r.MaxBackoff)
}

// backoff is the time to wait before the attempt that follows the given one, which
// ended with err. It is drawn from zero to the ceiling ("full jitter"), so that the
// members of a group that failed together do not come back together. A held message
// is different: it waits for a person or another system, and is tried at a steady
// pace. An error may know better than all of that.
func (r Retry) backoff(o outcome, attempt int, err error) time.Duration {
	if d, ok := retryAfter(err); ok {
		return d
	}
	if o == hold {
		return r.MaxBackoff
	}
	return rand.N(r.ceiling(attempt) + 1)
}
