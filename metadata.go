package kgroup

// What the owner of a partition tells the next one: in the metadata of its commits,
// which other clients show and ignore. docs/DESIGN.md has the format.

import (
	"cmp"
	"fmt"
	"slices"
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

	// tried are messages whose attempts have failed, and how many.
	tried marks

	// alone are messages that were handled while their process handled nothing else, and
	// how many processes have died at that; at the one that is (if opened), should this one die now.
	alone marks

	// settled is what need not be handled again beyond the offset committed.
	settled ranges
}

// A mark is a count that belongs to the message at an offset. A count of zero belongs
// to none.
type mark struct {
	offset int64
	count  int
}

// marks have one for each of some messages, in the order of their offsets. They are not
// changed once they are made.
type marks []mark

// from are those of the messages at or beyond offset.
func (m marks) from(offset int64) marks {
	at, _ := m.search(offset)
	return m[at:]
}

// outside are those of the messages that are not in r.
func (m marks) outside(r ranges) marks {
	if len(m) == 0 || len(r) == 0 {
		return m
	}
	return slices.DeleteFunc(slices.Clone(m), func(m mark) bool { return r.contains(m.offset) })
}

// end is the offset after the last of the messages; 0 if there is none.
func (m marks) end() int64 {
	if len(m) == 0 {
		return 0
	}
	return m[len(m)-1].offset + 1
}

// of is the mark of the message at offset.
func (m marks) of(offset int64) mark {
	if at, found := m.search(offset); found {
		return m[at]
	}
	return mark{}
}

// with has next, in the place of what there was about its message.
func (m marks) with(next mark) marks {
	at, found := m.search(next.offset)
	after := m[at:]
	if found {
		after = after[1:]
	}
	return slices.Concat(m[:at], marks{next}, after)
}

func (m marks) search(offset int64) (at int, found bool) {
	return slices.BinarySearchFunc(m, offset, func(m mark, offset int64) int { return cmp.Compare(m.offset, offset) })
}

const (
	envelopeVersion = "kgroup/1"

	// maxMetadata is what brokers take, unless they are told otherwise
	// (offset.metadata.max.bytes).
	maxMetadata = 4096
	// What single fields may have of it. Attempts are left out from the last message on.
	maxOpener = 64
	maxTried  = 1440
	maxAlone  = 160
	maxRanges = 2304 // so that all the others fit at their longest, too
)

// encode writes the metadata of a commit of the offset at.
func (e envelope) encode(at int64) string {
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
	if len(e.tried)+len(e.alone)+len(e.settled) > 0 {
		b = fmt.Appendf(b, " f=%d", at)
	}
	if tried := e.tried.encode(maxTried); tried != "" {
		b = append(append(b, " a="...), tried...)
	}
	if alone := e.alone.encode(maxAlone); alone != "" {
		b = append(append(b, " s="...), alone...)
	}
	if settled := e.settled.encode(at, maxRanges); settled != "" {
		b = append(append(b, " r="...), settled...)
	}
	if len(b) == len(envelopeVersion) {
		return ""
	}
	return string(b)
}

// briefMetadata is what a commit must say: who has the partition, what is suspected, and the
// deaths, but not which attempts failed and what is settled.
func briefMetadata(metadata string, at int64) string {
	e, err := parseEnvelope(metadata, at)
	if err != nil {
		return ""
	}
	e.tried, e.settled = nil, nil
	return e.encode(at)
}

// metadataFrom is what a commit of the offset at says of messages from the oldest one on, where
// those before it are gone: one that was held, say, and what was settled behind it.
func metadataFrom(oldest int64, metadata string, at int64) string {
	e, err := parseEnvelope(metadata, at)
	if err != nil {
		return ""
	}
	e.tried, e.alone, e.settled = e.tried.from(oldest), e.alone.from(oldest), e.settled.from(oldest)
	return e.encode(oldest)
}

func (m mark) String() string { return fmt.Sprintf("%d:%d", m.offset, m.count) }

// encode writes as many marks as budget characters are enough for.
func (m marks) encode(budget int) string {
	var b []byte
	for i, next := range m {
		text := next.String()
		if i > 0 {
			text = "," + text
		}
		if len(b)+len(text) > budget {
			break
		}
		b = append(b, text...)
	}
	return string(b)
}

// parseEnvelope reads the metadata of a commit of the offset at. What kgroup did not write is not
// ours to judge: it yields the zero envelope and an error that says so. Fields of
// later versions of kgroup are skipped.
func parseEnvelope(metadata string, at int64) (envelope, error) {
	if metadata == "" {
		return envelope{}, nil
	}
	fields := strings.Split(metadata, " ")
	if fields[0] != envelopeVersion {
		return envelope{}, fmt.Errorf("metadata of another client: %.60q", metadata)
	}
	var e envelope
	elsewhere := false
	for _, field := range fields[1:] {
		key, value, ok := strings.Cut(field, "=")
		if ok {
			ok = e.set(key, value, at)
			elsewhere = elsewhere || key == "f" && value != strconv.FormatInt(at, 10)
		}
		if !ok {
			return envelope{}, fmt.Errorf("damaged metadata: %.60q", metadata)
		}
	}
	if elsewhere { // moved by a tool, as MirrorMaker does: what it says of messages is said of others
		e.forgetMessages()
	}
	return e, nil
}

// forgetMessages drops what e says of single messages.
func (e *envelope) forgetMessages() { e.tried, e.alone, e.settled = nil, nil, nil }

// end is the offset after the last message of which e says anything; 0 if there is none.
func (e *envelope) end() int64 {
	return max(e.settled.end(), e.tried.end(), e.alone.end())
}

// set reports whether value can be key's.
func (e *envelope) set(key, value string, at int64) (ok bool) {
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
		e.tried, ok = parseMarks(value)
	case "s":
		e.alone, ok = parseMarks(value)
	case "r":
		e.settled, ok = decodeRanges(value, at)
	default:
		ok = true
	}
	return ok
}

func parseMarks(value string) (m marks, ok bool) {
	for text := range strings.SplitSeq(value, ",") {
		next, ok := parseMark(text)
		if !ok || len(m) > 0 && next.offset <= m[len(m)-1].offset {
			return nil, false
		}
		m = append(m, next)
	}
	return m, true
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
	tried    marks
	alone    marks  // with the deaths that are known of
	inFlight int64  // one that is handled while nothing else is; -1: none
	suspects int    // messages still to be handled alone
	settled  ranges // by owners before
}

// foundOpen reports whether the last owner was another process, and has not drained.
func (l *lane) foundOpen() bool {
	return l.opens != "" && l.env.opened != "" && l.env.opened != l.opens
}

// firstNote is what a new owner begins with. A partition that was found open has suspects: as
// many as its last owner may have had in its hands.
func (l *lane) firstNote() *note {
	n := &note{tried: l.env.tried, alone: l.env.alone, inFlight: -1, suspects: l.env.suspects, settled: l.env.settled}
	switch {
	case l.opens == "": // nor is a message written down before it is handled
		n.suspects = 0
	case l.foundOpen():
		n.suspects = l.topic.Queue + l.topic.inHand() - 1
		if l.everyMessage != nil {
			n.suspects = 1
		}
	case l.env.opened != "": // by this process, which lives: its session was lost
		n.alone = nil
		for _, m := range l.env.alone {
			if m.count > 1 {
				n.alone = append(n.alone, mark{m.offset, m.count - 1})
			}
		}
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

// failed notes how many attempts of the message at offset have failed.
func (l *lane) failed(offset int64, attempts int) {
	l.noted(func(n *note) { n.tried = n.tried.from(l.settled.Load()).with(mark{offset, attempts}) })
}

// metadata is what is committed with the offset settled.
func (l *lane) metadata(n *note, settled int64, releases bool) string {
	e := envelope{initial: l.env.initial, suspects: n.suspects, settled: n.settled.from(settled)}
	if l.crew != nil {
		e.settled = e.settled.union(l.crew.frontier.ahead())
	}
	e.tried = n.tried.from(settled).outside(e.settled)
	if !releases {
		e.opened = l.opens
	}
	e.alone = n.alone
	if n.inFlight >= 0 && !releases { // should the process die at it
		e.alone = e.alone.with(mark{n.inFlight, e.alone.of(n.inFlight).count + 1})
	}
	e.alone = e.alone.from(settled).outside(e.settled)
	return e.encode(settled)
}

// disown forgets what was said of messages: the partition was made again, or has lost its end,
// and has others.
func (l *lane) disown(offset int64) {
	l.log.Warn("offsets begin anew: what was known of single messages is forgotten", "committed", l.start, "offset", offset)
	l.noted(func(n *note) { n.tried, n.alone, n.settled = nil, nil, nil })
}

// inherit takes over what the last owners have said about the message at offset, which
// is the lane's next. It reports whether they have settled it.
func (l *lane) inherit(offset int64, at *progress) (settled bool) {
	n := l.note.Load()
	l.inherits = n.says(offset + 1)
	if n.settled.contains(offset) {
		return true
	}
	switch tried := n.tried.of(offset); {
	case l.topic.spent(tried.count) && tried.count == l.topic.Retry.MaxAttempts:
		at.attempt = tried.count
		at.verdict = fmt.Errorf("%d attempts have failed, the last of them in another owner of the partition", tried.count)
	default: // more than there may be were made when there was no dead-letter topic
		at.attempt = tried.count + 1
	}
	if deaths := n.alone.of(offset).count; l.topic.Retry.spent(deaths) {
		at.verdict = fmt.Errorf("%w: %d times", errDeadly, deaths)
		at.attempt = max(at.attempt, deaths)
	}
	return false
}

// says reports whether the note is about single messages from offset on.
func (n *note) says(offset int64) bool {
	return len(n.tried.from(offset)) > 0 || len(n.alone.from(offset)) > 0 || n.settled.end() > offset
}
