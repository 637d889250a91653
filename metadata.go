package kgroup

// What the owner of a partition tells the next one: in the metadata of its commits,
// which other clients show and ignore. docs/DESIGN.md has the format.

import (
	"fmt"
	"strconv"
	"strings"
)

// An envelope is what kgroup writes into the metadata of a commit.
type envelope struct {
	// initial is the number of partitions the topic had when the group began at its
	// newest messages (Start: Newest). A partition beyond it came later, and is read
	// from its beginning. Zero: the group did not begin so, or it is not known.
	initial int32

	// opened is who has the partition in his hands: some id of a process. A drain takes it
	// back: who finds it knows that the last owner has died, or lost its session.
	opened string

	// suspects is how many messages from the offset on are to be handled alone, because
	// one of them may have killed an owner.
	suspects int

	// tried is a message whose attempts have failed, and how many.
	tried mark

	// alone is a message that is handled while its process handles nothing else (if
	// opened; else it was), and how many processes have died at that.
	alone mark
}

// A mark is a count that belongs to the message at an offset. A count of zero belongs
// to none.
type mark struct {
	offset int64
	count  int
}

const (
	envelopeVersion = "kgroup/1"
	maxOpener       = 64
)

func (e envelope) String() string {
	if e == (envelope{}) {
		return ""
	}
	b := []byte(envelopeVersion)
	if e.initial > 0 {
		b = fmt.Appendf(b, " n=%d", e.initial)
	}
	if e.opened != "" {
		b = append(append(b, " o="...), e.opened...)
	}
	if e.suspects > 0 {
		b = fmt.Appendf(b, " q=%d", e.suspects)
	}
	if e.tried != (mark{}) {
		b = fmt.Appendf(b, " a=%d:%d", e.tried.offset, e.tried.count)
	}
	if e.alone != (mark{}) {
		b = fmt.Appendf(b, " s=%d:%d", e.alone.offset, e.alone.count)
	}
	return string(b)
}

// parseEnvelope reads the metadata of a commit. What kgroup did not write is not
// ours to judge: it yields the zero envelope and an error that says so. Fields of
// later versions of kgroup are skipped.
func parseEnvelope(metadata string) (envelope, error) {
	if metadata == "" {
		return envelope{}, nil
	}
	fields := strings.Split(metadata, " ")
	if fields[0] != envelopeVersion {
		return envelope{}, fmt.Errorf("metadata of another client: %.60q", metadata)
	}
	var e envelope
	for _, field := range fields[1:] {
		key, value, ok := strings.Cut(field, "=")
		if ok {
			ok = e.set(key, value)
		}
		if !ok {
			return envelope{}, fmt.Errorf("damaged metadata: %.60q", metadata)
		}
	}
	return e, nil
}

// set reports whether value can be key's.
func (e *envelope) set(key, value string) (ok bool) {
	var n int
	switch key {
	case "n":
		n, ok = number(value)
		e.initial = int32(n)
	case "o":
		e.opened, ok = value, value != "" && len(value) <= maxOpener
	case "q":
		e.suspects, ok = number(value)
	case "a":
		e.tried, ok = parseMark(value)
	case "s":
		e.alone, ok = parseMark(value)
	default:
		ok = true
	}
	return ok
}

func parseMark(value string) (mark, bool) {
	at, count, ok := strings.Cut(value, ":")
	offset, err := strconv.ParseInt(at, 10, 64)
	if !ok || err != nil || offset < 0 {
		return mark{}, false
	}
	n, ok := number(count)
	return mark{offset, n}, ok
}

// number reads a count: none is negative, and all fit into an int32.
func number(value string) (int, bool) {
	n, err := strconv.ParseInt(value, 10, 32)
	return int(n), err == nil && n >= 0
}

// A note is what a lane's commits say beside its offset, for as long as that has not
// passed what is said about a message.
type note struct {
	tried    mark
	alone    mark // with the deaths that are known of
	inFlight bool // alone is being handled
	suspects int  // messages still to be handled alone
}

// foundOpen reports whether the last owner was another process, and has not drained.
func (l *lane) foundOpen() bool {
	return l.opens != "" && l.env.opened != "" && l.env.opened != l.opens
}

// firstNote is what a new owner begins with. A partition that was found open has suspects: as
// many as its last owner may have had in its hands.
func (l *lane) firstNote() *note {
	n := &note{tried: l.env.tried, alone: l.env.alone, suspects: l.env.suspects}
	switch {
	case l.opens == "": // nor is a message written down before it is handled
		n.suspects = 0
	case l.foundOpen():
		n.suspects = l.topic.Queue
		if l.everyMessage != nil {
			n.suspects = 1
		}
	case l.env.opened != "": // by this process, which lives: its session was lost
		n.alone.count = max(0, n.alone.count-1)
	}
	return n
}

// noted changes the lane's note. Whose turn it is may do so, and the quarantine.
func (l *lane) noted(change func(*note)) {
	for {
		old := l.note.Load()
		n := *old
		change(&n)
		if l.note.CompareAndSwap(old, &n) {
			return
		}
	}
}

// metadata is what is committed with the offset settled.
func (l *lane) metadata(settled int64, releases bool) string {
	n := l.note.Load()
	e := envelope{initial: l.env.initial, suspects: n.suspects}
	if !releases {
		e.opened = l.opens
	}
	if n.tried.offset >= settled {
		e.tried = n.tried
	}
	if n.alone.offset >= settled {
		e.alone = n.alone
		if n.inFlight && !releases {
			e.alone.count++ // should the process die at it
		}
		if e.alone.count == 0 {
			e.alone = mark{}
		}
	}
	return e.String()
}

// inherit takes over what the last owners have said about the message at offset, which
// is the lane's next.
func (l *lane) inherit(offset int64) {
	switch tried := l.env.tried; {
	case tried.offset != offset:
	case l.topic.spent(tried.count) && tried.count == l.topic.Retry.MaxAttempts:
		l.at.attempt = tried.count
		l.at.verdict = fmt.Errorf("%d attempts have failed, the last of them in another owner of the partition", tried.count)
	default: // more than there may be were made when there was no dead-letter topic
		l.at.attempt = tried.count + 1
	}
	if deaths := l.note.Load().alone; deaths.offset == offset && l.topic.Retry.spent(deaths.count) {
		l.at.verdict = fmt.Errorf("%w: %d times", errDeadly, deaths.count)
		l.at.attempt = max(l.at.attempt, deaths.count)
	}
	l.inherits = max(l.env.tried.offset, l.env.alone.offset) > offset
}
