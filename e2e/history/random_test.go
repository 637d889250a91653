package history

// Random histories of a group that keeps every promise, and the same with one
// fault planted in it. The first must be found good, the second not.

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// step is the time between two events; there is room between them for faults.
const step = 1000

// A simulation is a group whose members handle a topic as they should.
type simulation struct {
	*rand.Rand
	workers int
	events  []Event
	now     int64
	members int // how many names have been used
	ids     uint64
	lanes   []*simLane
	letters map[int32]int64 // by partition
}

type simLane struct {
	partition int32
	messages  []*simMessage
	committed int64 // acknowledged
	owner     string
}

type simMessage struct {
	offset  int64
	key     []byte
	bad     bool   // every attempt fails, and after the second it becomes a dead letter
	tries   int    // that have failed, for the owner
	done    bool   // for the owner
	saved   bool   // done, and in the last acknowledged commit, be it in its metadata
	attempt uint64 // by the owner; zero: none
}

// simulate returns the events of a whole run, and its rules.
func simulate(seed uint64, workers int) ([]Event, Rules) {
	s := &simulation{Rand: rand.New(rand.NewPCG(seed, 0)), workers: workers, letters: map[int32]int64{}}
	for p := range 1 + s.IntN(3) {
		l := &simLane{partition: int32(p), owner: s.member()}
		offset := int64(s.IntN(3))
		for range 1 + s.IntN(60) {
			m := &simMessage{offset: offset, bad: s.IntN(3) == 0}
			if s.IntN(4) > 0 {
				m.key = fmt.Append(nil, s.IntN(5))
			}
			l.messages = append(l.messages, m)
			s.tell(l, Event{Kind: Produced, Offset: m.offset, Key: m.key})
			if m.bad {
				s.tell(l, Event{Kind: Bad, Offset: m.offset})
			}
			offset += 1 + int64(s.IntN(8)/7*s.IntN(5)) // now and then a gap
		}
		s.lanes = append(s.lanes, l)
	}
	for step := range 500 {
		l := s.lanes[s.IntN(len(s.lanes))]
		what := s.IntN(40)
		if step > 200 && what < 3 {
			what = 0 // in the end nothing happens that excuses anything
		}
		switch what {
		case 0:
			s.rebalance(l)
		case 1:
			s.crash(l.owner)
		case 2:
			s.freeze(l.owner)
		case 3, 4, 5:
			s.commit(l)
		default:
			s.work(l, s.IntN(8) == 0)
		}
	}
	s.finish()
	return s.events, Rules{Workers: map[string]int{"t": workers}, AllHandled: true, AllCommitted: true, Letters: true}
}

func (s *simulation) member() string {
	s.members++
	return fmt.Sprint("m", s.members)
}

func (s *simulation) tell(l *simLane, e Event) {
	s.now += step
	e.At = s.now
	if l != nil {
		e.Topic, e.Partition = "t", l.partition
	}
	s.events = append(s.events, e)
}

// ready returns the messages whose handler may be called.
func (s *simulation) ready(l *simLane) (ready []*simMessage) {
	running := 0
	blocked := map[string]bool{}
	for _, m := range l.messages {
		key := fmt.Sprint(m.key != nil, string(m.key))
		free := m.key == nil || !blocked[key]
		switch {
		case m.done:
			continue
		case m.attempt != 0:
			running++
		case free:
			ready = append(ready, m)
		}
		blocked[key] = true
		if s.workers <= 1 {
			break // nothing overtakes the first
		}
	}
	if running >= max(s.workers, 1) {
		return nil
	}
	return ready
}

// work begins or ends an attempt.
func (s *simulation) work(l *simLane, fails bool) {
	var running []*simMessage
	for _, m := range l.messages {
		if m.attempt != 0 {
			running = append(running, m)
		}
	}
	ready := s.ready(l)
	if len(ready) > 0 && (len(running) == 0 || s.IntN(2) == 0) {
		m := ready[s.IntN(len(ready))]
		s.ids++
		m.attempt = s.ids
		s.tell(l, Event{Kind: Begin, Member: l.owner, Offset: m.offset, Key: m.key, Attempt: m.attempt})
		return
	}
	if len(running) > 0 {
		s.end(l, running[s.IntN(len(running))], fails)
	}
}

func (s *simulation) end(l *simLane, m *simMessage, fails bool) {
	e := Event{Kind: End, Member: l.owner, Offset: m.offset, Attempt: m.attempt}
	fails = fails || m.bad
	if fails {
		e.Err = "no"
	}
	m.done, m.attempt = !fails, 0
	s.tell(l, e)
	if m.tries++; !m.bad || m.tries < 2 {
		return
	}
	m.done = true
	place := &Place{"t.dlq", l.partition, s.letters[l.partition]}
	s.letters[l.partition]++
	s.tell(l, Event{Kind: Letter, Offset: m.offset, Key: m.key, Place: place})
	s.tell(l, Event{Kind: DeadLettered, Member: l.owner, Offset: m.offset})
}

func (l *simLane) frontier() int64 {
	for _, m := range l.messages {
		if !m.done {
			return m.offset
		}
	}
	return l.messages[len(l.messages)-1].offset + 1
}

func (s *simulation) commit(l *simLane) {
	l.committed = l.frontier()
	for _, m := range l.messages {
		m.saved = m.done
	}
	s.tell(l, Event{Kind: Committed, Member: l.owner, Offset: l.committed})
}

// rebalance drains a lane, some handlers being cancelled, and gives it away.
func (s *simulation) rebalance(l *simLane) {
	for _, m := range l.messages {
		if m.attempt != 0 {
			s.end(l, m, s.IntN(2) == 0)
		}
	}
	s.commit(l)
	l.owner = s.member()
}

// crash kills a member; others begin at what is committed.
func (s *simulation) crash(member string) {
	s.tell(nil, Event{Kind: Killed, Member: member})
	for _, l := range s.lanes {
		if l.owner == member {
			s.takeOver(l)
		}
	}
}

func (s *simulation) takeOver(l *simLane) {
	l.owner = s.member()
	for _, m := range l.messages {
		m.attempt, m.tries = 0, 0
		m.done = m.saved
	}
}

// freeze has a member lose its session: its handlers end while others have begun
// again at what is committed.
func (s *simulation) freeze(member string) {
	s.tell(nil, Event{Kind: SessionLost, Member: member})
	for _, l := range s.lanes {
		if l.owner != member {
			continue
		}
		old := *l
		var running []*simMessage
		for _, m := range l.messages {
			if m.attempt != 0 {
				running = append(running, &simMessage{offset: m.offset, bad: m.bad, attempt: m.attempt})
			}
		}
		s.takeOver(l)
		s.work(l, false)
		for _, m := range running {
			s.end(&old, m, s.IntN(2) == 0)
		}
		s.work(l, false)
	}
	s.tell(nil, Event{Kind: SessionBack, Member: member})
}

func (s *simulation) finish() {
	for _, l := range s.lanes {
		for l.frontier() <= l.messages[len(l.messages)-1].offset {
			s.work(l, false)
		}
		s.commit(l)
	}
	for _, l := range s.lanes {
		s.tell(l, Event{Kind: FinalCommitted, Offset: l.committed})
	}
}

// A fault changes a good history so that it breaks one promise, at the message
// that it returns; or it finds no place for itself.
type fault func(r *rand.Rand, events []Event, rules Rules) (bad []Event, at Event, ok bool)

var faults = map[Verdict][]fault{
	Lost:          {neverSettled, committedEarly, noLetter},
	Unhandled:     {producedMore, badAndHandled},
	Repeated:      {repeatedAfterAll, repeatedAtOnce, repeatedAlthoughCommitted, repeatedAfterLetter},
	TwoLetters:    {letterTwice},
	WrongLetter:   {letterOfGood, letterOfNothing},
	OrderBroken:   {overtaken, lettersSwapped, lettersApart},
	TwoOwners:     {intruder},
	NeverProduced: {notProduced},
	Uncommitted:   {committedShort},
}

// pick returns the index of a random event that fits.
func pick(r *rand.Rand, events []Event, fits func(i int) bool) (int, bool) {
	for _, i := range r.Perm(len(events)) {
		if fits(i) {
			return i, true
		}
	}
	return 0, false
}

func is(e Event, kind Kind) bool { return e.Kind == kind && e.Err == "" }

func same(x, y Event) bool { return x.Partition == y.Partition && x.Offset == y.Offset }

// attempted returns an attempt by a member right after a time.
func attempted(like Event, member string, at int64, err string) []Event {
	begin := Event{At: at + 1, Kind: Begin, Member: member, Topic: "t", Partition: like.Partition, Offset: like.Offset, Key: like.Key, Attempt: 1 << 60}
	end := begin
	end.At, end.Kind, end.Err = at+2, End, err
	return []Event{begin, end}
}

func neverSettled(r *rand.Rand, events []Event, _ Rules) ([]Event, Event, bool) {
	i, ok := pick(r, events, func(i int) bool { return is(events[i], End) })
	for j := range events {
		if ok && is(events[j], End) && same(events[j], events[i]) {
			events[j].Err = "no"
		}
	}
	return events, events[i], ok
}

func committedEarly(r *rand.Rand, events []Event, _ Rules) ([]Event, Event, bool) {
	i, ok := pick(r, events, func(i int) bool {
		return is(events[i], End) && !slices.ContainsFunc(events[:i], func(e Event) bool { return is(e, End) && same(e, events[i]) })
	})
	e := events[i]
	return append(events, Event{At: e.At - 1, Kind: Committed, Member: e.Member, Topic: "t", Partition: e.Partition, Offset: e.Offset + 1}), e, ok
}

func producedMore(_ *rand.Rand, events []Event, _ Rules) ([]Event, Event, bool) {
	e := Event{Kind: Produced, Topic: "t", Offset: 1 << 40}
	return append(events, e), e, true
}

func repeatedAfterAll(r *rand.Rand, events []Event, _ Rules) ([]Event, Event, bool) {
	i, ok := pick(r, events, func(i int) bool { return is(events[i], End) })
	return append(events, attempted(events[i], "late", events[len(events)-1].At, "no")...), events[i], ok
}

func repeatedAtOnce(r *rand.Rand, events []Event, _ Rules) ([]Event, Event, bool) {
	frozen := map[string]bool{}
	for _, e := range events {
		frozen[e.Member] = frozen[e.Member] || e.Kind == SessionLost
	}
	i, ok := pick(r, events, func(i int) bool { return is(events[i], End) && !frozen[events[i].Member] })
	return append(events, attempted(events[i], events[i].Member, events[i].At, "")...), events[i], ok
}

func repeatedAlthoughCommitted(_ *rand.Rand, events []Event, rules Rules) ([]Event, Event, bool) {
	excused := Check(events, rules).Excused
	i := slices.IndexFunc(excused, func(f Finding) bool { return f.Verdict == Repeated })
	if i < 0 {
		return nil, Event{}, false
	}
	at := excused[i].at
	return append(events, Event{At: at.At - 1, Kind: Committed, Member: "any", Topic: "t", Partition: at.Partition, Offset: at.Offset + 1}), at, true
}

func overtaken(r *rand.Rand, events []Event, rules Rules) ([]Event, Event, bool) {
	var later Event
	i, ok := pick(r, events, func(i int) bool {
		e := events[i]
		if e.Kind != Begin || slices.ContainsFunc(events[:i], func(x Event) bool { return x.Kind == Begin && same(x, e) }) {
			return false
		}
		for _, x := range events {
			ordered := rules.Workers["t"] <= 1 || (e.Key != nil && string(x.Key) == string(e.Key))
			if x.Kind == Produced && x.Partition == e.Partition && x.Offset > e.Offset && ordered {
				later = x
				return true
			}
		}
		return false
	})
	return append(events, attempted(later, events[i].Member, events[i].At-10, "no")...), events[i], ok
}

func intruder(r *rand.Rand, events []Event, _ Rules) ([]Event, Event, bool) {
	frozen := map[string]bool{}
	for _, e := range events {
		frozen[e.Member] = frozen[e.Member] || e.Kind == SessionLost
	}
	i, ok := pick(r, events, func(i int) bool { return events[i].Kind == Begin && !frozen[events[i].Member] })
	return append(events, attempted(events[i], "intruder", events[i].At, "no")...), events[i], ok
}

func notProduced(r *rand.Rand, events []Event, _ Rules) ([]Event, Event, bool) {
	i, ok := pick(r, events, func(i int) bool { return events[i].Kind == Produced })
	e := events[i]
	return slices.Delete(events, i, i+1), e, ok
}

func committedShort(r *rand.Rand, events []Event, _ Rules) ([]Event, Event, bool) {
	i, ok := pick(r, events, func(i int) bool { return events[i].Kind == FinalCommitted })
	events[i].Offset--
	return events, events[i], ok
}

// theLetter picks a message that became a dead letter once.
func theLetter(r *rand.Rand, events []Event, fits func(e Event) bool) (int, bool) {
	return pick(r, events, func(i int) bool {
		n := 0
		for _, e := range events {
			if e.Kind == Letter && same(e, events[i]) {
				n++
			}
		}
		return events[i].Kind == Letter && n == 1 && fits(events[i])
	})
}

// undisturbed reports whether nothing happened since a message's first attempt that
// excuses anything.
func undisturbed(events []Event, e Event) bool {
	first := slices.IndexFunc(events, func(x Event) bool { return x.Kind == Begin && same(x, e) })
	return !slices.ContainsFunc(events[first:], func(x Event) bool { return x.Kind == Killed || x.Kind == SessionBack })
}

func noLetter(r *rand.Rand, events []Event, _ Rules) ([]Event, Event, bool) {
	i, ok := theLetter(r, events, func(Event) bool { return true })
	if !ok {
		return nil, Event{}, false
	}
	e := events[i]
	return slices.Delete(events, i, i+1), e, true
}

func badAndHandled(r *rand.Rand, events []Event, _ Rules) ([]Event, Event, bool) {
	buried := func(e Event) bool {
		return slices.ContainsFunc(events, func(x Event) bool { return x.Kind == Bad && same(x, e) })
	}
	i, ok := pick(r, events, func(i int) bool { return is(events[i], End) && !buried(events[i]) })
	if !ok {
		return nil, Event{}, false
	}
	e := events[i]
	e.Kind = Bad
	return append(events, e), e, true
}

func repeatedAfterLetter(r *rand.Rand, events []Event, _ Rules) ([]Event, Event, bool) {
	i, ok := theLetter(r, events, func(e Event) bool { return undisturbed(events, e) })
	if !ok {
		return nil, Event{}, false
	}
	return append(events, attempted(events[i], "late", events[len(events)-1].At, "no")...), events[i], true
}

func letterTwice(r *rand.Rand, events []Event, _ Rules) ([]Event, Event, bool) {
	i, ok := theLetter(r, events, func(e Event) bool { return undisturbed(events, e) })
	if !ok {
		return nil, Event{}, false
	}
	again := events[i]
	again.Place = &Place{"t.dlq", again.Partition, 1 << 40}
	return append(events, again), again, true
}

func letterOfGood(r *rand.Rand, events []Event, _ Rules) ([]Event, Event, bool) {
	i, ok := pick(r, events, func(i int) bool { return is(events[i], End) })
	e := events[i]
	e.Kind, e.Place = Letter, &Place{"t.dlq", e.Partition, 1 << 40}
	return append(events, e), e, ok
}

func letterOfNothing(_ *rand.Rand, events []Event, _ Rules) ([]Event, Event, bool) {
	e := Event{Kind: Letter, Topic: "t", Offset: 1 << 40, Place: &Place{"t.dlq", 0, 1 << 40}}
	return append(events, e), e, true
}

// successors picks two messages of one key, or of one partition, that became dead
// letters once each, and after which nothing happened.
func successors(r *rand.Rand, events []Event, key bool) (early, late int, ok bool) {
	late, ok = theLetter(r, events, func(e Event) bool {
		var found bool
		early, found = theLetter(r, events, func(x Event) bool {
			return x.Partition == e.Partition && x.Offset < e.Offset && undisturbed(events, x) &&
				(!key || x.Key != nil && string(x.Key) == string(e.Key))
		})
		return found
	})
	return early, late, ok
}

func lettersSwapped(r *rand.Rand, events []Event, rules Rules) ([]Event, Event, bool) {
	early, late, ok := successors(r, events, rules.Workers["t"] > 1)
	if !ok {
		return nil, Event{}, false
	}
	events[early].Place, events[late].Place = events[late].Place, events[early].Place
	return events, events[late], true
}

func lettersApart(r *rand.Rand, events []Event, _ Rules) ([]Event, Event, bool) {
	_, late, ok := successors(r, events, true)
	if !ok {
		return nil, Event{}, false
	}
	events[late].Place = &Place{"t.dlq", 99, 0}
	return events, events[late], true
}

// slower is a history in which a second lies between two events: whoever settles a message
// is not in the way of the next commit.
func slower(events []Event) []Event {
	events = slices.Clone(events)
	for i := range events {
		events[i].At *= int64(time.Second) / step
	}
	return events
}

func FuzzCheck(f *testing.F) {
	for seed := range uint64(60) {
		f.Add(seed, uint8(seed%2*3+1))
	}
	f.Fuzz(func(t *testing.T, seed uint64, workers uint8) {
		good, rules := simulate(seed, int(workers))
		r := Check(good, rules)
		require.True(t, r.OK(), "a good history: %s", r)
		r = Check(slower(good), rules)
		require.True(t, r.OK(), "a good history: %s", r)
		for verdict, plants := range faults {
			for n, plant := range plants {
				bad, at, ok := plant(rand.New(rand.NewPCG(seed, 1)), slices.Clone(good), rules)
				if !ok {
					continue
				}
				assert.Contains(t, Check(bad, rules).Messages(verdict)["t"][at.Partition], at.Offset, "%s, fault %d", verdict, n)
			}
		}
	})
}

// Without this the faults might find no place, and nothing would be tested.
func TestFaultsArePlanted(t *testing.T) {
	const seeds = 30
	planted := map[string]int{}
	var excused Report
	for seed := range uint64(seeds) {
		good, rules := simulate(seed, 1)
		excused.Excused = append(excused.Excused, Check(good, rules).Excused...)
		for verdict, plants := range faults {
			for n, plant := range plants {
				name := fmt.Sprintf("%s, fault %d", verdict, n)
				planted[name] += 0
				if _, _, ok := plant(rand.New(rand.NewPCG(seed, 1)), slices.Clone(good), rules); ok {
					planted[name]++
				}
			}
		}
	}
	for name, n := range planted {
		assert.Greater(t, n, seeds/3, name)
	}
	for _, v := range []Verdict{Repeated, TwoOwners} {
		assert.Greater(t, excused.CountExcused(v), seeds/3, "good histories hold excused ones: %s", v)
	}
}
