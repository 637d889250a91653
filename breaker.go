package kgroup

// Telling an outage from bad messages: while most attempts of a topic fail, its lanes
// wait here, and one of them at a time tries whether it is over.

import (
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// A breaker belongs to one topic of one process, and outlives generations.
type breaker struct {
	topic    string
	settings Breaker
	log      *slog.Logger
	hook     func(topic string, open bool, cause error)

	// mode is all that is looked at for a message while nothing fails.
	mode atomic.Int32

	mu     sync.Mutex
	since  time.Time          // when it began to count
	slots  [breakerSlots]slot // what was tried in the window, by time modulo the window
	worked time.Time          // when the last attempt that succeeded had begun
	// failing are the messages of which an attempt has failed since one of another has
	// succeeded, since dark; trials are those that were condemned all the same.
	failing map[suspect]struct{}
	dark    time.Time
	trials  int

	// While it is open.
	waiting []chan struct{} // lanes, in the order in which they came; closed: its turn to probe, or the breaker is closed
	due     bool            // a probe could be made, but nobody waits
	timer   *time.Timer     // until the next probe; nil: it is closed
	evasive int             // probes in a row whose answer says nothing about an outage

	told   []breakerEvent // to be told
	teller bool           // somebody does
}

// A suspect is a message that may be bad.
type suspect struct {
	partition engine.Partition
	offset    int64
}

type breakerEvent struct {
	open  bool
	cause error
}

// The modes of a breaker.
const (
	calm int32 = iota // nothing has failed lately, and nothing is counted
	counting
	open
)

const (
	// breakerSlots is how finely the window moves.
	breakerSlots = 10
	// trialAfter is how many windows nothing has succeeded in before a message is condemned
	// in doubt, twice as many before the next one, and so on.
	trialAfter = 10
	// maxFailing bounds what is remembered: two are enough to be in doubt.
	maxFailing = 100
)

// A slot counts the attempts of a tenth of the window.
type slot struct {
	number        int64 // of all such tenths since 1970
	tried, failed int
}

func newBreaker(topic string, settings Breaker, log *slog.Logger, hook func(topic string, open bool, cause error)) *breaker {
	return &breaker{
		topic: topic, settings: settings, hook: hook,
		log:     log.With("topic", topic),
		failing: map[suspect]struct{}{},
	}
}

// isOpen reports whether the topic is paused.
func (b *breaker) isOpen() bool { return b.mode.Load() == open }

// An admission says as what a lane makes an attempt.
type admission int

const (
	normal  admission = iota // the breaker is closed
	asProbe                  // it is open, and this attempt tells whether it stays so
	refused                  // it is open, and the lane is sealed
)

// admit is asked before an attempt while the breaker is open. It waits: until it is
// closed, until it is the caller's turn to probe, or until sealed.
func (b *breaker) admit(sealed <-chan struct{}) admission {
	turn := make(chan struct{})
	b.mu.Lock()
	if b.mode.Load() == open {
		b.waiting = append(b.waiting, turn)
		if b.due {
			b.next()
		}
	} else {
		close(turn)
	}
	b.mu.Unlock()
	select {
	case <-turn:
	case <-sealed:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	at := slices.Index(b.waiting, turn)
	switch {
	case at >= 0: // sealed, and not its turn
		b.waiting = slices.Delete(b.waiting, at, at+1)
		return refused
	case b.mode.Load() != open:
		return normal
	default:
		return asProbe
	}
}

// next makes who has waited longest probe. It is called with mu.
func (b *breaker) next() {
	b.due = len(b.waiting) == 0
	if b.due {
		return
	}
	close(b.waiting[0])
	b.waiting = b.waiting[1:]
}

// tick makes a probe now and then, also if one before has no outcome yet: a handler may
// hang because of the outage. It is called with mu.
func (b *breaker) tick() {
	var timer *time.Timer
	timer = time.AfterFunc(b.settings.Probe, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.timer == timer { // else it has been closed since
			b.next()
			b.tick()
		}
	})
	b.timer = timer
}

// succeeded notes an attempt that has settled n messages. began is zero if nothing was counted
// then.
func (b *breaker) succeeded(as admission, began time.Time, n int) {
	b.mu.Lock()
	switch mode := b.mode.Load(); {
	case mode == open && as == asProbe:
		b.close()
	case mode == counting:
		if began.After(b.worked) {
			b.worked, b.trials = began, 0
			clear(b.failing)
		}
		if _, failed := b.count(time.Now(), n, 0); failed == 0 {
			b.mode.Store(calm)
		}
	}
	b.mu.Unlock()
	b.tell()
}

// failed notes an attempt with n messages that did not, the first of them at offset, and
// reports whether it counts: while the breaker is open, or this has opened it, it does not.
func (b *breaker) failed(p engine.Partition, offset int64, n int, err error) (counts bool) {
	if !b.settings.enabled() {
		return true
	}
	b.mu.Lock()
	counts = b.notes(suspect{p, offset}, n, err)
	b.mu.Unlock()
	b.tell()
	return counts
}

// notes is called with mu.
func (b *breaker) notes(s suspect, n int, err error) (counts bool) {
	now := time.Now()
	if len(b.failing) == 0 {
		b.dark = now
	}
	if len(b.failing) < maxFailing {
		b.failing[s] = struct{}{}
	}
	if b.mode.Load() == open {
		b.evasive = 0
		return false
	}
	if b.mode.Swap(counting) == calm {
		b.since, b.worked = now, time.Time{}
	}
	tried, failed := b.count(now, n, n)
	if tried < b.settings.MinAttempts || float64(failed) < b.settings.FailureRatio*float64(tried) || now.Sub(b.since) < b.settings.Window/2 {
		return true
	}
	b.open(err)
	return false
}

// evaded notes an attempt whose error says nothing about an outage (it is Permanent),
// and reports whether it counts: not while the breaker is open. But if the probes of all
// lanes end so, nothing speaks for an outage any more.
func (b *breaker) evaded(as admission) (counts bool) {
	if b.mode.Load() != open {
		return true
	}
	b.mu.Lock()
	if b.mode.Load() == open && as == asProbe {
		if b.evasive++; b.evasive > len(b.waiting) {
			b.close()
		}
	}
	counts = b.mode.Load() != open
	b.mu.Unlock()
	b.tell()
	return counts
}

// doubtful reports whether a message that has had all its attempts may not be to blame:
// others fail too, and nothing has worked that was begun after its first failure.
func (b *breaker) doubtful(p engine.Partition, offset int64, failed time.Time) bool {
	if b.mode.Load() == calm {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	others := len(b.failing)
	if _, own := b.failing[suspect{p, offset}]; own {
		others--
	}
	return b.mode.Load() == open || others > 0 && !b.worked.After(failed)
}

// pace is how long a lane waits at least before it tries a message again that may not be to
// blame: while the breaker is not sure yet, an outage sees one attempt a second and lane.
func (b *breaker) pace() time.Duration {
	return min(b.settings.Probe, b.settings.Window/breakerSlots)
}

// trial reports whether a message is to be condemned although it may not be to blame, to
// see whether what is behind it works: nothing has for long. Without it, bad messages at
// the head of all partitions would stop the topic for ever.
func (b *breaker) trial() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if now.Sub(b.dark) < (trialAfter<<min(b.trials, 10))*b.settings.Window {
		return false
	}
	b.trials++
	b.dark = now
	return true
}

// count notes what was tried, one for each message, and returns what the window holds. It is
// called with mu.
func (b *breaker) count(now time.Time, tried, failed int) (allTried, allFailed int) {
	width := int64(b.settings.Window / breakerSlots)
	number := now.UnixNano() / width
	s := &b.slots[number%breakerSlots]
	if s.number != number {
		*s = slot{number: number}
	}
	s.tried += tried
	s.failed += failed
	for _, s := range b.slots {
		if s.number > number-breakerSlots {
			allTried += s.tried
			allFailed += s.failed
		}
	}
	return allTried, allFailed
}

// open is called with mu, and so is close.
func (b *breaker) open(cause error) {
	b.mode.Store(open)
	b.evasive, b.due = 0, false
	b.tick()
	b.told = append(b.told, breakerEvent{true, cause})
}

func (b *breaker) close() {
	b.timer.Stop()
	b.timer = nil
	b.mode.Store(calm)
	clear(b.slots[:])
	clear(b.failing)
	b.trials = 0
	for _, turn := range b.waiting {
		close(turn)
	}
	b.waiting, b.due = nil, false
	b.told = append(b.told, breakerEvent{open: false})
}

// stop ends the timer, with the consumer.
func (b *breaker) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
}

// tell calls the hook, in the order of events, and not with mu: it may take its time.
func (b *breaker) tell() {
	for {
		b.mu.Lock()
		if b.teller || len(b.told) == 0 {
			b.mu.Unlock()
			return
		}
		event := b.told[0]
		b.told, b.teller = b.told[1:], true
		b.mu.Unlock()
		b.say(event)
	}
}

func (b *breaker) say(event breakerEvent) {
	defer func() { // the hook may end its goroutine
		b.mu.Lock()
		b.teller = false
		b.mu.Unlock()
	}()
	if event.open {
		b.log.Error("most attempts fail: the topic is paused, and tried now and then", "probe", b.settings.Probe, "error", event.cause)
	} else {
		b.log.Info("an attempt has succeeded: the topic goes on")
	}
	if b.hook != nil {
		b.hook(b.topic, event.open, event.cause)
	}
}
