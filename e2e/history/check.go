package history

// The judge: what each verdict means, and who is guilty of it. It reads the events
// of event.go; report.go tells the result to people.

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// A Verdict names a way in which a promise is broken.
type Verdict string

// The verdicts.
const (
	// Lost: a committed offset passes a message, although up to then no attempt of
	// it had returned nil and no dead letter was acknowledged. With Rules.Letters
	// also: a member says that there is a dead letter, and there is none.
	Lost Verdict = "lost"

	// Unhandled: at the end, with Rules.AllHandled, a message is not settled,
	// and no commit has passed it either. With Rules.Letters also: a message is bad,
	// and there is no dead letter of it.
	Unhandled Verdict = "unhandled"

	// Repeated: an attempt begins, in any member, after an attempt of the same
	// message has returned nil, or it has become a dead letter. It is excused by a
	// Killed, SessionLost or Outlived of the member that had settled it, if that came
	// before the repeat and no acknowledged commit had passed the message. A Killed does
	// not excuse it either if that member has had two commits acknowledged after it had
	// settled the message, of whatever partitions: the second was made up after the first,
	// from all that had changed, what is settled beyond an offset included.
	Repeated Verdict = "repeated"

	// TwoLetters: there is more than one dead letter of a message. Excused by a
	// Killed, SessionLost or Outlived of any member since its first attempt.
	TwoLetters Verdict = "two letters"

	// WrongLetter: with Rules.Letters, there is a dead letter of a message that is
	// not bad, or that was never produced.
	WrongLetter Verdict = "wrong letter"

	// OrderBroken: a message is handled although an earlier one is not settled:
	// one of the same partition, or with several workers one of the same key. It
	// counts each message that was overtaken, in any member, once. Messages that
	// are never attempted are not overtaken: they are lost or unhandled. Also
	// broken is order when excused repeats go backwards, when one member
	// handles two messages of one order, or one message twice, at once, and when the
	// dead letters of one order do not lie in it, or those of one key not in one
	// partition. Messages of one batch are handled together, and overtake each other when
	// they do not lie in it as they do in the partition, of which it has only one.
	OrderBroken Verdict = "order broken"

	// TwoOwners: attempts on one partition by two members overlap in time.
	// Excused by a SessionLost or Outlived of either.
	TwoOwners Verdict = "two owners"

	// NeverProduced: a message is handled that was not produced, or not visibly:
	// its transaction was aborted.
	NeverProduced Verdict = "never produced"

	// Uncommitted: at the end, with Rules.AllCommitted, a message is settled, and
	// so is all before it, and the committed offset has not passed it.
	Uncommitted Verdict = "uncommitted"

	// Malformed: the history cannot have happened, such as the end of an attempt
	// that did not begin.
	Malformed Verdict = "malformed"
)

var verdicts = []Verdict{Lost, Unhandled, Repeated, TwoLetters, WrongLetter, OrderBroken, TwoOwners, NeverProduced, Uncommitted, Malformed}

// Rules say what a scenario may expect beyond the promises that always hold.
type Rules struct {
	// Workers is Topic.Workers by topic. With more than one, order is promised per
	// key; a message without a key has none.
	Workers map[string]int

	// Quiet: whoever was killed had settled nothing since its last commit. Then nothing
	// excuses a repeat.
	Quiet bool

	// AllHandled: by the end everything should have been handled.
	AllHandled bool

	// AllCommitted: all members ended in good order, so what they had settled
	// should be committed. Needs [Log.FinalCommitted].
	AllCommitted bool

	// Letters: every dead letter that there is was told ([Log.Letter]), and every
	// message that should be one ([Log.Bad]).
	Letters bool

	// Tolerance is how far the clocks of two members may differ. Events of two
	// members that are closer together are not held against anybody. Zero is right
	// for processes of one machine: they share the clock that a Log reads.
	Tolerance time.Duration
}

// Check judges a history. The events may come in any order.
func Check(events []Event, rules Rules) Report {
	c := &checker{rules: rules, lanes: map[laneID]*lane{}, commits: map[string][]Event{}}
	c.events = slices.Clone(events)
	slices.SortStableFunc(c.events, func(x, y Event) int { return cmp.Compare(x.At, y.At) })
	c.read()
	for _, id := range slices.SortedFunc(maps.Keys(c.lanes), laneID.compare) {
		l := c.lanes[id]
		c.findUntold(l)
		c.checkProduced(l)
		c.checkCommits(l)
		c.checkEnd(l)
		c.checkRepeats(l)
		c.checkOrder(l)
		c.checkBatches(l)
		c.checkOwners(l)
		c.checkLetters(l)
		c.checkLetterOrder(l)
	}
	return c.report()
}

type checker struct {
	rules   Rules
	events  []Event
	lanes   map[laneID]*lane
	commits map[string][]Event // acknowledged, by member
	excuses []excuse
	found   []Finding
	excused []Finding
}

type laneID struct {
	topic     string
	partition int32
}

func (x laneID) compare(y laneID) int {
	return cmp.Or(cmp.Compare(x.topic, y.topic), cmp.Compare(x.partition, y.partition))
}

// A lane is all that happened to one partition.
type lane struct {
	laneID
	produced map[int64]bool
	owedFrom int64
	attempts []*attempt      // by their begin
	settled  map[int64]Event // the first nil or dead letter of an offset
	commits  []Event         // Committed and FinalCommitted
	bad      map[int64]bool
	buried   []Event           // DeadLettered
	letters  map[int64][]Event // by the message's offset
}

// owed returns the offsets that the group owes an attempt, sorted.
func (l *lane) owed() []int64 {
	offsets := slices.Sorted(maps.Keys(l.produced))
	first, _ := slices.BinarySearch(offsets, l.owedFrom)
	return offsets[first:]
}

// An attempt is a Begin with its end, which may be that of its process.
type attempt struct {
	begin Event
	end   Event // End or Killed; at the end of time if there is none
}

var never = Event{At: math.MaxInt64}

func (a *attempt) nil() bool { return a.end.Kind == End && a.end.Err == "" }

// with reports whether the two are of one batch.
func (a *attempt) with(b *attempt) bool {
	return a.begin.Batch != 0 && a.begin.Batch == b.begin.Batch && a.begin.Member == b.begin.Member
}

// An excuse is a time in which a member may have repeated or overlapped.
type excuse struct {
	member   string
	lane     laneID // zero: all
	from, to int64
	cause    Kind
}

func (e excuse) covers(l *lane) bool { return e.lane == laneID{} || e.lane == l.laneID }

// precedes reports whether x came before y, or may have: clocks of two members
// differ by up to the tolerance.
func (c *checker) precedes(x, y Event) bool {
	if x.Member != y.Member && x.At != math.MaxInt64 {
		return x.At <= y.At+int64(c.rules.Tolerance)
	}
	return x.At <= y.At
}

// read sorts the events into lanes, pairs the attempts and collects the excuses.
func (c *checker) read() {
	type attemptID struct {
		member string
		id     uint64
	}
	open := map[attemptID]*attempt{}
	batches := map[attemptID]laneID{}
	lost := map[string]int{} // by member, the index of the excuse that goes on
	for _, e := range c.events {
		switch e.Kind {
		case Produced:
			c.lane(e).produced[e.Offset] = true
		case NotOwed:
			l := c.lane(e)
			l.owedFrom = max(l.owedFrom, e.Offset)
		case Begin:
			id := attemptID{e.Member, e.Attempt}
			if e.Batch != 0 {
				of := attemptID{e.Member, e.Batch}
				if first, ok := batches[of]; ok && first != c.lane(e).laneID {
					c.add(OrderBroken, false, e.Offset, e, "it is in a batch with messages of %s/%d", first.topic, first.partition)
				} else {
					batches[of] = c.lane(e).laneID
				}
			}
			if open[id] != nil {
				c.malformed(e, "its attempt had begun before and has not ended; was the member started again without a Killed?")
			}
			open[id] = &attempt{begin: e, end: never}
			l := c.lane(e)
			l.attempts = append(l.attempts, open[id])
		case End:
			id := attemptID{e.Member, e.Attempt}
			a := open[id]
			if a == nil || a.begin.Topic != e.Topic || a.begin.Partition != e.Partition || a.begin.Offset != e.Offset {
				c.malformed(e, "no such attempt has begun")
				continue
			}
			a.end = e
			delete(open, id)
			if a.nil() {
				c.settle(e)
			}
		case Bad:
			c.lane(e).bad[e.Offset] = true
		case DeadLettered:
			l := c.lane(e)
			l.buried = append(l.buried, e)
			c.settle(e)
		case Letter:
			if e.Place == nil {
				c.malformed(e, "it lies nowhere")
				continue
			}
			l := c.lane(e)
			l.letters[e.Offset] = append(l.letters[e.Offset], e)
		case Blocked:
		case Committed, FinalCommitted:
			l := c.lane(e)
			l.commits = append(l.commits, e)
			if e.Kind == Committed {
				c.commits[e.Member] = append(c.commits[e.Member], e)
			}
		case Killed:
			for id, a := range open {
				if id.member == e.Member {
					a.end = e
					delete(open, id)
				}
			}
			if i, ok := lost[e.Member]; ok {
				c.excuses[i].to = e.At
				delete(lost, e.Member)
			}
			c.excuses = append(c.excuses, excuse{member: e.Member, from: e.At, to: e.At, cause: e.Kind})
		case SessionLost:
			if _, ok := lost[e.Member]; ok {
				c.malformed(e, "its session was lost already")
				continue
			}
			lost[e.Member] = len(c.excuses)
			c.excuses = append(c.excuses, excuse{member: e.Member, from: e.At, to: math.MaxInt64, cause: e.Kind})
		case SessionBack:
			i, ok := lost[e.Member]
			if !ok {
				c.malformed(e, "its session was not lost")
				continue
			}
			c.excuses[i].to = e.At
			delete(lost, e.Member)
		case Outlived:
			c.excuses = append(c.excuses, excuse{member: e.Member, lane: c.lane(e).laneID, from: e.At, to: e.At, cause: e.Kind})
		default:
			c.malformed(e, "unknown kind of event")
		}
	}
}

func (c *checker) lane(e Event) *lane {
	id := laneID{e.Topic, e.Partition}
	l := c.lanes[id]
	if l == nil {
		l = &lane{laneID: id, produced: map[int64]bool{}, settled: map[int64]Event{}, bad: map[int64]bool{}, letters: map[int64][]Event{}}
		c.lanes[id] = l
	}
	return l
}

func (c *checker) settle(e Event) {
	if l := c.lane(e); l.settled[e.Offset].Kind == "" {
		l.settled[e.Offset] = e
	}
}

func (c *checker) malformed(e Event, why string) {
	c.found = append(c.found, Finding{Verdict: Malformed, Topic: e.Topic, Partition: e.Partition, Offset: e.Offset, Why: why, at: e})
}

func (c *checker) add(v Verdict, excused bool, offset int64, at Event, why string, args ...any) {
	f := Finding{Verdict: v, Topic: at.Topic, Partition: at.Partition, Offset: offset, Why: fmt.Sprintf(why, args...), at: at}
	if excused {
		c.excused = append(c.excused, f)
	} else {
		c.found = append(c.found, f)
	}
}

func (c *checker) checkProduced(l *lane) {
	seen := map[int64]bool{}
	for _, a := range l.attempts {
		if o := a.begin.Offset; !l.produced[o] && !seen[o] {
			seen[o] = true
			c.add(NeverProduced, false, o, a.begin, "it was handled, and nobody has produced it")
		}
	}
}

// checkCommits judges each message at the first commit that passes it: later it is
// too late.
func (c *checker) checkCommits(l *lane) {
	owed := l.owed()
	for _, commit := range l.commits {
		passed, _ := slices.BinarySearch(owed, commit.Offset)
		for _, o := range owed[:passed] {
			if s, ok := l.settled[o]; !ok || !c.precedes(s.untold(), commit) {
				c.add(Lost, false, o, commit, "the committed offset %d passes it, and no attempt had returned nil", commit.Offset)
			}
		}
		owed = owed[passed:]
	}
}

func (c *checker) checkEnd(l *lane) {
	passed, final := int64(-1), int64(-1)
	for _, e := range l.commits {
		passed = max(passed, e.Offset)
		if e.Kind == FinalCommitted {
			final = e.Offset
		}
	}
	end := c.events[len(c.events)-1]
	end.Topic, end.Partition = l.topic, l.partition
	contiguous := true
	for _, o := range l.owed() {
		_, settled := l.settled[o]
		contiguous = contiguous && settled
		switch {
		case c.rules.AllHandled && !settled && o >= passed:
			c.add(Unhandled, false, o, end, "it was produced, and at the end no attempt has returned nil")
		case c.rules.AllCommitted && contiguous && o >= final:
			c.add(Uncommitted, false, o, end, "it and all before it are settled, and at the end the committed offset is %d (-1: none)", final)
		}
	}
}

func (c *checker) checkRepeats(l *lane) {
	for _, r := range c.repeats(l) {
		did := "returned nil"
		if r.first.end.Kind == DeadLettered {
			did = "made it a dead letter"
		}
		c.add(Repeated, r.excused, r.attempt.begin.Offset, r.attempt.begin, "%s begins it after %s has %s%s", r.attempt.begin.Member, r.first.begin.Member, did, r.why)
	}
}

type repeat struct {
	attempt *attempt
	first   *attempt // what had settled it; what has no excuse if there is such
	excused bool
	why     string
}

func (c *checker) repeats(l *lane) []repeat {
	var repeats []repeat
	done := map[int64][]*attempt{} // what has settled a message
	for _, e := range l.buried {
		done[e.Offset] = append(done[e.Offset], &attempt{begin: e, end: e})
	}
	committed := highest(l.commits)
	for _, b := range l.attempts {
		var r *repeat
		for _, a := range done[b.begin.Offset] {
			if !c.precedes(a.end, b.begin) || (r != nil && !r.excused) {
				continue
			}
			r = &repeat{attempt: b, first: a}
			cause := c.excuseOf(l, a, b)
			switch passed := committed(b.begin.At); {
			case cause == "":
			case passed > b.begin.Offset:
				r.why = fmt.Sprintf("; %s was %s, but the commit of %d had been acknowledged", a.begin.Member, cause, passed)
			case cause == Killed && c.saved(a):
				r.why = fmt.Sprintf("; %s was %s, but two of its commits had been acknowledged since", a.begin.Member, cause)
			case c.rules.Quiet:
				r.why = fmt.Sprintf("; %s was %s, but it had settled nothing since its last commit", a.begin.Member, cause)
			default:
				r.excused, r.why = true, fmt.Sprintf("; excused: %s was %s", a.begin.Member, cause)
			}
		}
		if r != nil {
			repeats = append(repeats, *r)
		}
		if b.nil() {
			done[b.begin.Offset] = append(done[b.begin.Offset], b)
		}
	}
	return repeats
}

// settling is how long it may take from the end of an attempt until the member has
// settled the message, should the machine be busy.
const settling = 500 * time.Millisecond

// saved reports whether what the attempt has settled is in a commit that was acknowledged
// before its member was killed, because it was made up later.
func (c *checker) saved(a *attempt) bool {
	killed := slices.IndexFunc(c.excuses, func(e excuse) bool {
		return e.cause == Killed && e.member == a.begin.Member && e.from >= a.end.At
	})
	commits := c.commits[a.begin.Member]
	from, _ := slices.BinarySearchFunc(commits, a.end.At+int64(settling), func(e Event, at int64) int { return cmp.Compare(e.At, at) })
	for i, e := range commits[from:] {
		if first := commits[from]; i > 0 && (e.Batch == 0 || e.Batch != first.Batch) {
			return e.At <= c.excuses[killed].from
		}
	}
	return false
}

// highest returns a function that gives the highest committed offset up to a time. It must be asked in the order of time.
func highest(commits []Event) func(at int64) int64 {
	var top int64
	return func(at int64) int64 {
		for len(commits) > 0 && commits[0].At <= at {
			top = max(top, commits[0].Offset)
			commits = commits[1:]
		}
		return top
	}
}

// excuseOf returns why a's member may not have known that what a did counts for
// nothing when b began, or nothing.
func (c *checker) excuseOf(l *lane, a, b *attempt) Kind {
	for _, e := range c.excuses {
		if e.member == a.begin.Member && e.covers(l) && a.begin.At <= e.to && e.from <= b.begin.At {
			return e.cause
		}
	}
	return ""
}

// excusedBetween reports whether something happened between two events of a lane
// after which its owner may be somebody else and start again further back.
func (c *checker) excusedBetween(l *lane, x, y Event) bool {
	return slices.ContainsFunc(c.excuses, func(e excuse) bool { return e.covers(l) && e.from <= y.At && x.At <= e.to })
}

func (c *checker) checkOrder(l *lane) {
	repeats := map[*attempt]bool{} // whether excused
	for _, r := range c.repeats(l) {
		repeats[r.attempt] = r.excused
	}
	for _, attempts := range l.orders(c.rules.Workers[l.topic] > 1) {
		c.checkOvertaken(l, attempts)
		c.checkBackwards(l, attempts, repeats)
		c.checkAtOnce(l, attempts)
	}
}

// orders splits the attempts into those that must come one after the other.
func (l *lane) orders(byKey bool) [][]*attempt {
	if !byKey {
		return [][]*attempt{l.attempts}
	}
	type order struct {
		key    string
		offset int64 // of a message without a key, which only follows itself
	}
	var orders [][]*attempt
	index := map[order]int{}
	for _, a := range l.attempts {
		of := order{key: string(a.begin.Key)}
		if a.begin.Key == nil {
			of.offset = a.begin.Offset + 1
		}
		i, ok := index[of]
		if !ok {
			i = len(orders)
			index[of] = i
			orders = append(orders, nil)
		}
		orders[i] = append(orders[i], a)
	}
	return orders
}

// checkOvertaken judges each attempted offset when the first attempt of a later one
// begins that is not in one batch with it: it must be settled by then.
func (c *checker) checkOvertaken(l *lane, attempts []*attempt) {
	var offsets []int64
	var together []int64 // begun together with later ones, and not judged yet
	for _, a := range attempts {
		offsets = append(offsets, a.begin.Offset)
	}
	slices.Sort(offsets)
	offsets = slices.Compact(offsets)
	last := map[int64]*attempt{} // by offset
	for _, b := range attempts {
		judge := func(o int64) {
			if s, ok := l.settled[o]; !ok || !c.precedes(s, b.begin) {
				c.add(OrderBroken, c.excuseOf(l, b, b) != "", o, b.begin, "%s begins %d while it is not settled", b.begin.Member, b.begin.Offset)
			}
		}
		last[b.begin.Offset] = b
		together = slices.DeleteFunc(together, func(o int64) bool {
			if o >= b.begin.Offset || last[o].with(b) {
				return false
			}
			judge(o)
			return true
		})
		before, _ := slices.BinarySearch(offsets, b.begin.Offset)
		for _, o := range offsets[:before] {
			if a := last[o]; a != nil && a.with(b) {
				together = append(together, o)
			} else {
				judge(o)
			}
		}
		offsets = offsets[before:]
	}
}

// checkBatches holds batches against the partition.
func (c *checker) checkBatches(l *lane) {
	type batch struct {
		member string
		number uint64
	}
	last := map[batch]*attempt{}
	for _, b := range l.attempts {
		of := batch{b.begin.Member, b.begin.Batch}
		if of.number == 0 {
			continue
		}
		if a := last[of]; a != nil && a.begin.Offset >= b.begin.Offset {
			c.add(OrderBroken, false, b.begin.Offset, b.begin, "it comes after %d in a batch", a.begin.Offset)
		}
		last[of] = b
	}
}

// checkBackwards judges excused repeats: they may start again further back, once,
// and from there on order holds. Other repeats are a finding anyway.
func (c *checker) checkBackwards(l *lane, attempts []*attempt, repeats map[*attempt]bool) {
	for i, b := range attempts {
		if i == 0 || !repeats[b] {
			continue
		}
		if a := attempts[i-1]; b.begin.Offset < a.begin.Offset && !c.excusedBetween(l, a.begin, b.begin) {
			c.add(OrderBroken, false, b.begin.Offset, b.begin, "%s begins it after %s began %d", b.begin.Member, a.begin.Member, a.begin.Offset)
		}
	}
}

// checkAtOnce judges what one member does at the same time. Where one of the two
// overtakes the other, checkOvertaken has said it.
func (c *checker) checkAtOnce(l *lane, attempts []*attempt) {
	last := map[string]*attempt{} // by member, what ends last
	for _, b := range attempts {
		a := last[b.begin.Member]
		if a == nil || b.end.At > a.end.At {
			last[b.begin.Member] = b
		}
		if a == nil || a.end.At <= b.begin.At || a.with(b) {
			continue
		}
		low, high := a, b
		if a.begin.Offset > b.begin.Offset {
			low, high = b, a
		}
		s, settled := l.settled[low.begin.Offset]
		if low.begin.Offset == high.begin.Offset || settled && c.precedes(s, high.begin) {
			c.add(OrderBroken, false, b.begin.Offset, b.begin, "%s begins it while it is at work on %d", b.begin.Member, a.begin.Offset)
		}
	}
}

func (c *checker) checkOwners(l *lane) {
	var active []*attempt
	for _, b := range l.attempts {
		active = slices.DeleteFunc(active, func(a *attempt) bool { return a.end.At <= b.begin.At })
		var other *attempt
		excused := true
		for _, a := range active {
			if a.begin.Member == b.begin.Member || c.precedes(a.end, b.begin) || !excused {
				continue
			}
			other, excused = a, c.excuseOf(l, a, b) != "" || c.excuseOf(l, b, b) != ""
		}
		if other != nil {
			c.add(TwoOwners, excused, b.begin.Offset, b.begin, "%s begins it while %s is at work on %d", b.begin.Member, other.begin.Member, other.begin.Offset)
		}
		active = append(active, b)
	}
}
