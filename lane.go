package kgroup

// A lane is one partition while this member owns it: its queue, its worker, its
// frontier. The engine delivers into it; the worker takes a message, handles it
// until it is settled (attempt.go), and moves the frontier. When the generation is
// sealed the worker ends after the message it is at.

import (
	"context"
	"log/slog"
	"sync/atomic"

	"github.com/kgroup-go/kgroup/internal/engine"
)

type lane struct {
	partition engine.Partition
	topic     Topic
	group     string
	call      HandlerFunc // topic.Handler's
	env       envelope
	start     int64
	queue     *queue

	// ctx is the handlers' context. Cancelling it ends attempts; sealed ends the lane.
	ctx    context.Context
	cancel context.CancelCauseFunc
	sealed <-chan struct{}
	closed atomic.Bool     // before sealed is closed: what the worker looks at for each message
	after  <-chan struct{} // the worker does not start before it is closed: see orphans in assignment.go
	done   chan struct{}   // closed when the worker has returned

	// Of whose turn it is (turn.go): what it has taken; whether the first message of that
	// is settled; how far it is with it. They outlive a goroutine that a handler or a hook
	// has ended.
	batch  []engine.Record
	passed bool
	hand   *hand

	crew     *crew // nil: one message is handled at a time
	inherits bool  // note says something about messages that were not handled yet
	// unrecorded are messages settled since the quarantine has committed them, without a crew.
	unrecorded int64

	direct     direct
	breaker    *breaker
	quarantine *quarantine // nil: nobody has died here
	publish    func(context.Context, engine.Letter) error

	// note is what is committed beside the frontier. Whose turn it is replaces it.
	note  atomic.Pointer[note]
	opens string                 // who the commits say has the lane open, until it is drained; empty: nobody
	said  atomic.Pointer[string] // the metadata that the broker has acknowledged last

	// settled publishes the frontier to the committer; -1: nothing to commit.
	settled   atomic.Int64
	committed atomic.Int64
	// offered is what the last commit says, or would have said, and saved the last one that was
	// acknowledged.
	offered offer // guarded by the committer's turn
	saved   atomic.Pointer[offer]
	// everyMessage, if not nil, commits until what was settled is committed.
	everyMessage func(l *lane, committed func() bool)

	log     *slog.Logger
	hooks   *Hooks
	telling chan struct{} // holds a value while a hook is called, for any lane of the partition
}

// An offer is what a commit says of a lane.
type offer struct {
	note    *note
	settled uint64 // how many messages of a crew
}

// work is the lane's worker.
func (l *lane) work() {
	if l.crew != nil {
		l.workTogether()
		return
	}
	ended := false
	defer func() {
		if !ended { // the handler or a hook called runtime.Goexit, as t.FailNow does
			go l.work()
			return
		}
		defer close(l.done) // also if the hook does
		l.hand.unblock()
	}()
	select {
	case <-l.after:
	case <-l.sealed:
		ended = true
		return
	}
	for l.finishBatch() {
		if l.batch = l.queue.take(l.sealed); l.batch == nil {
			break
		}
	}
	ended = true
}

// workTogether is the same with a crew.
func (l *lane) workTogether() {
	select {
	case <-l.after:
		l.crew.begin()
	case <-l.sealed:
		close(l.done)
	}
}

// finishBatch handles what has been taken, and goes on with it where a goroutine was
// ended. It reports false if the lane is at its end.
func (l *lane) finishBatch() bool {
	for {
		if l.passed {
			l.batch[0] = nil
			l.batch, l.passed = l.batch[1:], false
		}
		if l.everyMessage != nil && !l.isCommitted() {
			l.everyMessage(l, l.isCommitted)
		}
		if len(l.batch) == 0 {
			return true
		}
		if !l.hand.finish(l.batch[0]) {
			return false
		}
	}
}

// settle moves the frontier over a message, before hooks that may not return hear of it: a
// message that is settled is not handled again. Without hooks, a crew does it when it
// gives the hand something else to do.
func (h *hand) settle(offset int64, hooks bool) {
	h.at.attempt = 0
	if h.crew != nil {
		h.tasks[0].done = true
		if hooks || h.quarantine != nil {
			h.crew.settle(h)
		}
	} else {
		h.pass(offset)
	}
	if h.quarantine != nil {
		h.quarantine.keepUp(h)
		h.quarantine.settled(h.lane, offset)
	}
}

// pass settles a message of a lane that handles one at a time.
func (h *hand) pass(offset int64) {
	h.passed, h.at.attempt = true, 0
	next := offset + 1 // it is the only one that was handed out
	if h.inherits {
		next = h.note.Load().settled.past(next)
	}
	h.settled.Store(next)
}

// isCommitted reports whether the frontier is.
func (l *lane) isCommitted() bool { return l.committed.Load() >= l.settled.Load() }

// tell calls a hook, never two at once for one partition: its loss is told by another
// goroutine than its worker's, and an orphan may outlive several lanes.
func (l *lane) tell(hook func()) {
	l.telling <- struct{}{}
	defer func() { <-l.telling }()
	hook()
}

// read takes a record apart.
func (h *hand) read(r engine.Record, msg *Message) {
	var headers int
	msg.Key, msg.Value, headers = r.Payload()
	msg.Topic, msg.Partition = h.partition.Topic, h.partition.Number
	msg.Offset, msg.Timestamp = r.Offset(), r.Timestamp()
	if headers > 0 {
		msg.Headers = h.readHeaders(r, headers)
	}
}

func (h *hand) readHeaders(r engine.Record, n int) []Header {
	headers := make([]Header, n)
	for i := range headers {
		key, value := r.Header(i)
		headers[i] = Header{Key: h.intern(key), Value: value}
	}
	return headers
}

// maxHeaderKeys bounds the keys a hand remembers: a topic that makes up new ones
// pays for them by itself.
const maxHeaderKeys = 256

func (h *hand) intern(key []byte) string {
	if s, ok := h.headers[string(key)]; ok {
		return s
	}
	s := string(key)
	if h.headers == nil {
		h.headers = map[string]string{}
	}
	if len(h.headers) < maxHeaderKeys {
		h.headers[s] = s
	}
	return s
}

// atWork reports whether its worker has begun and not ended. One that waits for an
// orphan has not begun.
func (l *lane) atWork() bool { return isClosed(l.after) && !isClosed(l.done) }

// close seals the lane, but for the sealed channel: that is the generation's.
func (l *lane) close() {
	l.closed.Store(true)
	l.queue.close()
}

// due is what is to be committed for the lane, if there is anything. The last commit of
// a generation releases it.
func (l *lane) due(all, releases bool) (engine.Offset, bool) {
	settled, metadata := l.state(releases)
	if settled < 0 || settled == l.committed.Load() && metadata == *l.said.Load() && !all {
		l.acknowledged() // there is nothing to say, or nothing new
		return engine.Offset{}, false
	}
	return engine.Offset{Partition: l.partition, Offset: settled, Metadata: metadata}, true
}

// state is what there is to commit.
func (l *lane) state(releases bool) (settled int64, metadata string) {
	if c := l.crew; c != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		l.offered.settled = c.settled
	}
	l.offered.note = l.note.Load()
	settled = l.settled.Load()
	return settled, l.metadata(l.offered.note, settled, releases)
}

// acknowledged says that the brokers know what was offered.
func (l *lane) acknowledged() {
	offered := l.offered
	l.saved.Store(&offered)
}

// blocking is what keeps the lane from going on, or the first of it; nil: nothing.
func (l *lane) blocking() *blocked {
	if l.crew != nil {
		return l.crew.blocking()
	}
	return l.hand.blocked.Load()
}

// position is the frontier as people see it: where the lane began, until something
// was settled.
func (l *lane) position() int64 { return max(l.settled.Load(), l.start) }

// Deliver, Room and Len make the lane an [engine.Lane].
func (l *lane) Deliver(records []engine.Record) (full bool) { return l.queue.put(records) }
func (l *lane) Room() <-chan struct{}                       { return l.queue.room }
func (l *lane) Len() int                                    { return l.queue.len() }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
