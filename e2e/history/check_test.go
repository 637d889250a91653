package history

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A script writes the history of one partition, an event every millisecond.
type script struct {
	events   []Event
	attempts map[string]uint64 // open ones by member and offset
	last     uint64
	batches  uint64
	letters  int64
	waited   time.Duration
	keys     map[int64]string
}

func write(f func(s *script)) []Event {
	s := &script{attempts: map[string]uint64{}, keys: map[int64]string{}}
	f(s)
	return s.events
}

func (s *script) add(e Event) {
	e.At = int64(len(s.events)+1)*int64(time.Millisecond) + int64(s.waited)
	if e.Kind != Killed && e.Kind != SessionLost && e.Kind != SessionBack {
		e.Topic = "t"
	}
	s.events = append(s.events, e)
}

func (s *script) produced(offsets ...int64) {
	for _, o := range offsets {
		s.add(Event{Kind: Produced, Offset: o})
	}
}

func (s *script) begin(member string, offset int64) {
	s.last++
	s.attempts[fmt.Sprint(member, offset)] = s.last
	e := Event{Kind: Begin, Member: member, Offset: offset, Attempt: s.last}
	if key, ok := s.keys[offset]; ok {
		e.Key = []byte(key)
	}
	s.add(e)
}

// batch begins an attempt with several messages.
func (s *script) batch(member string, offsets ...int64) {
	s.batches++
	for _, o := range offsets {
		s.begin(member, o)
		s.events[len(s.events)-1].Batch = s.batches
	}
}

func (s *script) end(member string, offset int64, err string) {
	s.add(Event{Kind: End, Member: member, Offset: offset, Err: err, Attempt: s.attempts[fmt.Sprint(member, offset)]})
}

// ok handles messages, one after the other.
func (s *script) ok(member string, offsets ...int64) {
	for _, o := range offsets {
		s.begin(member, o)
		s.end(member, o, "")
	}
}

func (s *script) fail(member string, offset int64) {
	s.begin(member, offset)
	s.end(member, offset, "no")
}

func (s *script) commit(member string, offset int64) {
	s.add(Event{Kind: Committed, Member: member, Offset: offset})
}

func (s *script) final(offset int64) { s.add(Event{Kind: FinalCommitted, Offset: offset}) }

// bad produces messages that are bad.
func (s *script) bad(offsets ...int64) {
	s.produced(offsets...)
	for _, o := range offsets {
		s.add(Event{Kind: Bad, Offset: o})
	}
}

// bury makes a message a dead letter that is the next one of a partition.
func (s *script) bury(member string, offset int64, in int32) {
	s.letter(offset, in)
	s.add(Event{Kind: DeadLettered, Member: member, Offset: offset})
}

func (s *script) letter(offset int64, in int32) {
	e := Event{Kind: Letter, Offset: offset, Place: &Place{"t.dlq", in, s.letters}}
	if key, ok := s.keys[offset]; ok {
		e.Key = []byte(key)
	}
	s.letters++
	s.add(e)
}

// wait lets more time pass than anybody needs to settle what is handled.
func (s *script) wait() { s.waited += settling }

func (s *script) tell(kind Kind, member string) { s.add(Event{Kind: kind, Member: member}) }

// told gives findings the form of this file's tables.
func told(findings []Finding) []string {
	told := []string{}
	for _, f := range findings {
		told = append(told, fmt.Sprint(f.Verdict, " ", f.Offset))
	}
	slices.Sort(told)
	return told
}

func TestCheck(t *testing.T) {
	all := Rules{AllHandled: true, AllCommitted: true}
	keys := Rules{Workers: map[string]int{"t": 4}}
	letters := Rules{AllHandled: true, AllCommitted: true, Letters: true}
	tests := []struct {
		name    string
		rules   Rules
		history func(s *script)
		want    []string
		excused []string
	}{
		// Histories that keep every promise.
		{"clean", all, func(s *script) {
			s.produced(0, 1, 2)
			s.ok("a", 0, 1)
			s.commit("a", 2)
			s.ok("a", 2)
			s.commit("a", 3)
			s.final(3)
		}, nil, nil},
		{"rebalance: an abandoned attempt is no repeat", all, func(s *script) {
			s.produced(0, 1, 2)
			s.ok("a", 0)
			s.fail("a", 1) // cancelled: it did not return nil
			s.commit("a", 1)
			s.ok("b", 1, 2)
			s.commit("b", 3)
			s.final(3)
		}, nil, nil},
		{"retries", all, func(s *script) {
			s.produced(0, 1)
			s.fail("a", 0)
			s.fail("a", 0)
			s.ok("a", 0, 1)
			s.commit("a", 2)
			s.final(2)
		}, nil, nil},
		{"gaps of transactions and compaction", all, func(s *script) {
			s.produced(0, 3, 9)
			s.ok("a", 0, 3)
			s.commit("a", 5)
			s.ok("a", 9)
			s.commit("a", 11)
			s.final(11)
		}, nil, nil},
		{"a dead letter settles", all, func(s *script) {
			s.produced(0, 1)
			s.fail("a", 0)
			s.tell(DeadLettered, "a")
			s.ok("a", 1)
			s.commit("a", 2)
			s.final(2)
		}, nil, nil},
		{"dead letters", letters, func(s *script) {
			s.produced(0, 2, 4)
			s.bad(1, 3)
			s.ok("a", 0)
			s.fail("a", 1)
			s.add(Event{Kind: Blocked, Member: "a", Offset: 1})
			s.bury("a", 1, 0)
			s.ok("a", 2)
			s.fail("a", 3)
			s.commit("a", 3)
			s.fail("b", 3)
			s.bury("b", 3, 0)
			s.ok("b", 4)
			s.commit("b", 5)
			s.final(5)
		}, nil, nil},
		{"a dead letter is told a moment after the commit that passes it", letters, func(s *script) {
			s.bad(0)
			s.fail("a", 0)
			s.letter(0, 0)
			s.commit("a", 1)
			s.add(Event{Kind: DeadLettered, Member: "a"})
			s.final(1)
		}, nil, nil},
		{"crash: a dead letter that was not committed is written again", letters, func(s *script) {
			s.bad(0, 1)
			s.fail("a", 0)
			s.bury("a", 0, 0)
			s.fail("a", 1)
			s.bury("a", 1, 0)
			s.tell(Killed, "a")
			s.fail("b", 0)
			s.bury("b", 0, 0)
			s.fail("b", 1)
			s.bury("b", 1, 0)
			s.commit("b", 2)
			s.final(2)
		}, nil, []string{"repeated 0", "repeated 1", "two letters 0", "two letters 1"}},
		{"crash: between the letter and its word, and after the commit", letters, func(s *script) {
			s.bad(0)
			s.produced(1)
			s.fail("a", 0)
			s.letter(0, 0)
			s.commit("a", 1)
			s.tell(Killed, "a")
			s.ok("b", 1)
			s.commit("b", 2)
			s.final(2)
		}, nil, nil},
		{"dead letters keep the order of each key", Rules{Letters: true, Workers: keys.Workers}, func(s *script) {
			s.keys = map[int64]string{0: "x", 1: "y", 2: "x", 3: "y"} // 4 and 5 have none
			s.bad(0, 1, 2, 3, 4, 5)
			s.fail("a", 1)
			s.fail("a", 0)
			s.fail("a", 5)
			s.fail("a", 4)
			s.bury("a", 1, 1)
			s.bury("a", 5, 0)
			s.bury("a", 0, 0)
			s.bury("a", 4, 0)
			s.fail("a", 3)
			s.fail("a", 2)
			s.bury("a", 3, 1)
			s.bury("a", 2, 0)
		}, nil, nil},
		{"a later start", all, func(s *script) {
			s.produced(0, 1, 2)
			s.add(Event{Kind: NotOwed, Offset: 2})
			s.commit("a", 2)
			s.ok("a", 2)
			s.commit("a", 3)
			s.final(3)
		}, nil, nil},
		{"produced is told late", all, func(s *script) {
			s.ok("a", 0)
			s.produced(0)
			s.commit("a", 1)
			s.final(1)
		}, nil, nil},
		{"crash: what was settled since the commit is repeated", all, func(s *script) {
			s.produced(0, 1, 2, 3, 4)
			s.ok("a", 0)
			s.commit("a", 1)
			s.ok("a", 1, 2)
			s.begin("a", 3)
			s.tell(Killed, "a")
			s.ok("b", 1, 2, 3, 4)
			s.commit("b", 5)
			s.final(5)
		}, nil, []string{"repeated 1", "repeated 2"}},
		{"two crashes", all, func(s *script) {
			s.produced(0, 1)
			s.ok("a", 0)
			s.tell(Killed, "a")
			s.ok("b", 0)
			s.tell(Killed, "b")
			s.ok("a", 0, 1) // a was started again
			s.commit("a", 2)
			s.final(2)
		}, nil, []string{"repeated 0", "repeated 0"}},
		{"lost session: overlaps and repeats until it is back", all, func(s *script) {
			s.produced(0, 1, 2)
			s.ok("a", 0)
			s.begin("a", 1)
			s.tell(SessionLost, "a")
			s.begin("b", 0)
			s.end("a", 1, "")
			s.end("b", 0, "")
			s.tell(SessionBack, "a")
			s.ok("b", 1, 2)
			s.commit("b", 3)
			s.final(3)
		}, nil, []string{"repeated 0", "repeated 1", "two owners 0"}},
		{"a handler that outlived its deadline", all, func(s *script) {
			s.produced(0, 1)
			s.begin("a", 0)
			s.tell(Outlived, "a")
			s.ok("b", 0)
			s.end("a", 0, "")
			s.ok("b", 1)
			s.commit("b", 2)
			s.final(2)
		}, nil, []string{"two owners 0"}},
		{"several workers keep the order of each key", keys, func(s *script) {
			s.produced(0, 1, 2, 3)
			s.keys = map[int64]string{0: "x", 1: "y", 2: "x"} // 3 has none
			s.begin("a", 0)
			s.begin("a", 3)
			s.ok("a", 1)
			s.end("a", 3, "")
			s.end("a", 0, "")
			s.ok("a", 2)
			s.commit("a", 4)
		}, nil, nil},
		{"batches: settled together, retried together, and the bad one alone", all, func(s *script) {
			s.produced(0, 1, 2, 3)
			s.batch("a", 0, 1, 2)
			for o := range int64(3) {
				s.end("a", o, "no")
			}
			s.batch("a", 0, 1, 2)
			s.end("a", 0, "no")
			s.end("a", 1, "")
			s.end("a", 2, "")
			s.fail("a", 0)
			s.batch("a", 0)
			s.end("a", 0, "")
			s.batch("a", 3)
			s.end("a", 3, "")
			s.commit("a", 4)
			s.final(4)
		}, nil, nil},
		{"batches side by side", keys, func(s *script) {
			s.produced(0, 1, 2, 3)
			s.keys = map[int64]string{0: "x", 1: "y", 2: "x", 3: "y"}
			s.batch("a", 0, 2)
			s.batch("a", 1, 3)
			for _, o := range []int64{1, 3, 0, 2} {
				s.end("a", o, "")
			}
		}, nil, nil},
		{"crash: settled beyond the frontier between two commits", keys, func(s *script) {
			s.produced(0, 1)
			s.begin("a", 0)
			s.commit("a", 0)
			s.ok("a", 1)
			s.wait()
			s.commit("a", 0) // may have been made up before
			s.commit("a", 0) // of another partition
			for i := range 2 {
				s.events[len(s.events)-1-i].Batch = 7
			}
			s.events[len(s.events)-1].Partition = 1
			s.tell(Killed, "a")
			s.ok("b", 0, 1)
			s.commit("b", 2)
			s.tell(Killed, "a") // it had been started again
		}, nil, []string{"repeated 1"}},
		{"nothing more is asked of an unfinished history", Rules{}, func(s *script) {
			s.produced(0, 1, 2)
			s.ok("a", 0)
			s.begin("a", 1)
		}, nil, nil},

		// One planted fault each.
		{"lost: never handled", Rules{}, func(s *script) {
			s.produced(0, 1, 2)
			s.ok("a", 0, 2)
			s.commit("a", 3)
		}, []string{"lost 1"}, nil},
		{"lost: handled in vain", Rules{}, func(s *script) {
			s.produced(0)
			s.fail("a", 0)
			s.commit("a", 1)
		}, []string{"lost 0"}, nil},
		{"lost: committed before it was handled", all, func(s *script) {
			s.produced(0)
			s.begin("a", 0)
			s.commit("a", 1)
			s.end("a", 0, "")
			s.final(1)
		}, []string{"lost 0"}, nil},
		{"lost: seen in the final offset only, and once", all, func(s *script) {
			s.produced(0, 1)
			s.ok("a", 0)
			s.final(2)
			s.final(2)
		}, []string{"lost 1"}, nil},
		{"unhandled", Rules{AllHandled: true}, func(s *script) {
			s.produced(0, 1, 2)
			s.ok("a", 0)
			s.fail("a", 1)
			s.commit("a", 1)
		}, []string{"unhandled 1", "unhandled 2"}, nil},
		{"repeated in a rebalance", all, func(s *script) {
			s.produced(0, 1)
			s.ok("a", 0, 1)
			s.commit("a", 1)
			s.ok("b", 1)
			s.commit("b", 2)
			s.final(2)
		}, []string{"repeated 1"}, nil},
		{"repeated in the same member, in vain", Rules{}, func(s *script) {
			s.produced(0)
			s.ok("a", 0)
			s.fail("a", 0)
		}, []string{"repeated 0"}, nil},
		{"repeated after a crash although the commit was acknowledged", Rules{}, func(s *script) {
			s.produced(0, 1, 2)
			s.ok("a", 0, 1)
			s.commit("a", 1)
			s.ok("a", 2)
			s.tell(Killed, "a")
			s.ok("b", 0, 1, 2)
		}, []string{"repeated 0"}, []string{"repeated 1", "repeated 2"}},
		{"repeated twice after one crash", Rules{}, func(s *script) {
			s.produced(0)
			s.ok("a", 0)
			s.tell(Killed, "a")
			s.ok("b", 0)
			s.ok("c", 0)
		}, []string{"repeated 0"}, []string{"repeated 0"}},
		{"repeated, and somebody else crashed", Rules{}, func(s *script) {
			s.produced(0)
			s.ok("a", 0)
			s.tell(Killed, "c")
			s.ok("b", 0)
		}, []string{"repeated 0"}, nil},
		{"repeated before the crash", Rules{}, func(s *script) {
			s.produced(0)
			s.ok("a", 0)
			s.ok("b", 0)
			s.tell(Killed, "a")
		}, []string{"repeated 0"}, nil},
		{"repeated after the session was back", Rules{}, func(s *script) {
			s.produced(0)
			s.tell(SessionLost, "a")
			s.tell(SessionBack, "a")
			s.ok("a", 0)
			s.ok("b", 0)
		}, []string{"repeated 0"}, nil},
		{"repeated by a member started again after its lost session", Rules{}, func(s *script) {
			s.produced(0)
			s.tell(SessionLost, "a")
			s.tell(Killed, "a")
			s.ok("a", 0)
			s.ok("b", 0)
		}, []string{"repeated 0"}, nil},
		{"repeated: one of two has no excuse", Rules{}, func(s *script) {
			s.produced(0)
			s.ok("a", 0)
			s.ok("b", 0)
			s.tell(Killed, "b")
			s.ok("c", 0)
		}, []string{"repeated 0", "repeated 0"}, nil},
		{"order: a later message goes ahead", Rules{}, func(s *script) {
			s.produced(0, 1)
			s.ok("a", 1)
			s.ok("a", 0)
		}, []string{"order broken 0"}, nil},
		{"order: not waiting for the retry", Rules{}, func(s *script) {
			s.produced(0, 1, 2)
			s.fail("a", 0)
			s.ok("a", 1, 2)
			s.ok("a", 0)
		}, []string{"order broken 0"}, nil},
		{"order: across owners", Rules{}, func(s *script) {
			s.produced(0, 1)
			s.fail("a", 0)
			s.ok("b", 1)
		}, []string{"order broken 0"}, nil},
		{"order: side by side", Rules{}, func(s *script) {
			s.produced(0, 1)
			s.begin("a", 0)
			s.begin("a", 1)
			s.end("a", 1, "")
			s.end("a", 0, "")
		}, []string{"order broken 0"}, nil},
		{"order: one message twice at once", Rules{}, func(s *script) {
			s.produced(0)
			s.begin("a", 0)
			s.fail("a", 0)
			s.events = append(s.events, Event{At: time.Hour.Nanoseconds(), Kind: End, Member: "a", Topic: "t", Attempt: 1})
		}, []string{"order broken 0"}, nil},
		{"order: excused repeats, backwards", Rules{}, func(s *script) {
			s.produced(0, 1, 2)
			s.ok("a", 0, 1, 2)
			s.tell(Killed, "a")
			s.ok("b", 0, 2, 1)
		}, []string{"order broken 1"}, []string{"repeated 0", "repeated 1", "repeated 2"}},
		{"order: excused repeats, side by side", Rules{}, func(s *script) {
			s.produced(0, 1)
			s.ok("a", 0, 1)
			s.tell(Killed, "a")
			s.begin("b", 0)
			s.ok("b", 1)
			s.end("b", 0, "")
		}, []string{"order broken 1"}, []string{"repeated 0", "repeated 1"}},
		{"order of a key", keys, func(s *script) {
			s.produced(0, 1, 2)
			s.keys = map[int64]string{0: "x", 1: "y", 2: "x"}
			s.begin("a", 0)
			s.ok("a", 1)
			s.ok("a", 2)
			s.end("a", 0, "")
		}, []string{"order broken 0"}, nil},
		{"an empty key is a key", keys, func(s *script) {
			s.produced(0, 1)
			s.keys = map[int64]string{0: "", 1: ""}
			s.begin("a", 0)
			s.ok("a", 1)
			s.end("a", 0, "")
		}, []string{"order broken 0"}, nil},
		{"no key, and one message twice at once", keys, func(s *script) {
			s.produced(0)
			s.begin("a", 0)
			s.fail("a", 0)
		}, []string{"order broken 0"}, nil},
		{"order: a batch goes ahead of what has failed in another one", Rules{}, func(s *script) {
			s.produced(0, 1, 2)
			s.batch("a", 0, 1)
			s.end("a", 0, "no")
			s.end("a", 1, "")
			s.batch("a", 2)
			s.end("a", 2, "")
			s.ok("a", 0)
		}, []string{"order broken 0"}, nil},
		{"order: batches side by side", Rules{}, func(s *script) {
			s.produced(0, 1, 2)
			s.batch("a", 0, 1)
			s.batch("a", 2)
			for o := range int64(3) {
				s.end("a", o, "")
			}
		}, []string{"order broken 0", "order broken 1"}, nil},
		{"order: batches of two members", Rules{}, func(s *script) { // with the same number
			s.produced(0, 1)
			s.batch("a", 0)
			s.batches--
			s.batch("b", 1)
			s.end("a", 0, "no")
			s.end("b", 1, "no")
		}, []string{"order broken 0", "two owners 1"}, nil},
		{"order in a batch", keys, func(s *script) {
			s.produced(0, 1)
			s.batch("a", 1, 0)
			s.end("a", 0, "")
			s.end("a", 1, "")
		}, []string{"order broken 0"}, nil},
		{"order: one message twice in a batch", keys, func(s *script) {
			s.produced(0)
			s.batch("a", 0, 0)
			s.end("a", 0, "no")
		}, []string{"order broken 0"}, nil},
		{"order: a batch of two partitions", keys, func(s *script) {
			s.produced(0, 1)
			s.batch("a", 0, 1)
			s.events[len(s.events)-1].Partition = 1
			s.events[1].Partition = 1
		}, []string{"order broken 1"}, nil},
		{"repeated after a crash although two commits were acknowledged since", keys, func(s *script) {
			s.produced(0, 1, 2, 3)
			s.begin("a", 0)
			s.ok("a", 1)
			s.wait()
			s.commit("a", 0)
			s.ok("a", 2)
			s.commit("a", 0)
			s.events[len(s.events)-1].Partition = 1
			s.tell(Killed, "a")
			s.ok("b", 0, 1, 2)
		}, []string{"repeated 1"}, []string{"repeated 2"}},
		{"repeated after a crash although nothing was going on", Rules{Quiet: true}, func(s *script) {
			s.produced(0, 1)
			s.ok("a", 0)
			s.begin("a", 1)
			s.tell(Killed, "a")
			s.ok("b", 0, 1)
		}, []string{"repeated 0"}, nil},
		{"two owners", Rules{}, func(s *script) {
			s.produced(0)
			s.begin("a", 0)
			s.begin("b", 0)
			s.end("b", 0, "no")
			s.end("a", 0, "")
		}, []string{"two owners 0"}, nil},
		{"two owners: the first never returns", Rules{}, func(s *script) {
			s.produced(0)
			s.begin("a", 0)
			s.ok("b", 0)
		}, []string{"two owners 0"}, nil},
		{"two owners: an attempt that outlives the crash of another", Rules{}, func(s *script) {
			s.produced(0)
			s.begin("a", 0)
			s.tell(Killed, "c")
			s.ok("b", 0)
			s.end("a", 0, "no")
		}, []string{"two owners 0"}, nil},
		{"two owners: three, and one of them has an excuse", Rules{}, func(s *script) {
			s.produced(0)
			s.tell(SessionLost, "c")
			s.begin("a", 0)
			s.begin("c", 0)
			s.begin("b", 0)
			s.end("b", 0, "no")
			s.end("a", 0, "no")
		}, []string{"two owners 0"}, []string{"two owners 0"}},
		{"never produced", Rules{}, func(s *script) {
			s.produced(0)
			s.ok("a", 0, 1)
		}, []string{"never produced 1"}, nil},
		{"uncommitted", Rules{AllCommitted: true}, func(s *script) {
			s.produced(0, 1, 2)
			s.ok("a", 0, 1)
			s.fail("a", 2)
			s.commit("a", 1)
			s.final(1)
		}, []string{"uncommitted 1"}, nil},
		{"uncommitted: nothing at all", Rules{AllCommitted: true}, func(s *script) {
			s.produced(0)
			s.ok("a", 0)
		}, []string{"uncommitted 0"}, nil},
		{"what is settled beyond a gap need not be committed", Rules{AllCommitted: true, Workers: keys.Workers}, func(s *script) {
			s.produced(0, 1)
			s.fail("a", 0)
			s.ok("a", 1)
			s.final(0)
		}, nil, nil},
		{"lost: committed before the dead letter was acknowledged", letters, func(s *script) {
			s.bad(0)
			s.fail("a", 0)
			s.commit("a", 1)
			s.bury("a", 0, 0)
			s.final(1)
			s.events[len(s.events)-2].At += telling.Nanoseconds()
			s.events[len(s.events)-1].At += telling.Nanoseconds()
		}, []string{"lost 0"}, nil},
		{"lost: a dead letter that is not there", letters, func(s *script) {
			s.bad(0)
			s.fail("a", 0)
			s.add(Event{Kind: DeadLettered, Member: "a"})
			s.commit("a", 1)
			s.final(1)
		}, []string{"lost 0"}, nil},
		{"lost: a dead letter that nobody speaks of, and nobody has died", letters, func(s *script) {
			s.bad(0)
			s.fail("a", 0)
			s.letter(0, 0)
			s.commit("a", 1)
			s.final(1)
		}, []string{"lost 0"}, nil},
		{"unhandled: bad, and no dead letter", letters, func(s *script) {
			s.bad(0, 1)
			s.ok("a", 0)
			s.fail("a", 1)
			s.commit("a", 1)
			s.final(1)
		}, []string{"unhandled 0", "unhandled 1"}, nil},
		{"repeated after a dead letter", letters, func(s *script) {
			s.bad(0)
			s.fail("a", 0)
			s.bury("a", 0, 0)
			s.fail("b", 0)
			s.commit("b", 1)
			s.final(1)
		}, []string{"repeated 0"}, nil},
		{"repeated after a dead letter, and the commit was acknowledged", letters, func(s *script) {
			s.bad(0)
			s.fail("a", 0)
			s.bury("a", 0, 0)
			s.commit("a", 1)
			s.tell(Killed, "a")
			s.fail("b", 0)
			s.final(1)
		}, []string{"repeated 0"}, nil},
		{"two letters", letters, func(s *script) {
			s.bad(0)
			s.tell(Killed, "b") // before
			s.fail("a", 0)
			s.bury("a", 0, 0)
			s.bury("a", 0, 1)
			s.commit("a", 1)
			s.final(1)
		}, []string{"two letters 0"}, nil},
		{"wrong letter", letters, func(s *script) {
			s.produced(0, 1)
			s.fail("a", 0)
			s.bury("a", 0, 0)
			s.ok("a", 1)
			s.letter(1, 0)
			s.letter(7, 0) // never produced
			s.commit("a", 2)
			s.final(2)
		}, []string{"wrong letter 0", "wrong letter 1", "wrong letter 7"}, nil},
		{"nothing is asked of letters that may not be all", all, func(s *script) {
			s.produced(0, 1)
			s.fail("a", 0)
			s.bury("a", 0, 0)
			s.fail("a", 1)
			s.add(Event{Kind: DeadLettered, Member: "a", Offset: 1})
			s.commit("a", 2)
			s.final(2)
		}, nil, nil},
		{"order: a bad message is overtaken while its letter is being written", letters, func(s *script) {
			s.bad(0)
			s.produced(1)
			s.fail("a", 0)
			s.ok("a", 1)
			s.bury("a", 0, 0)
			s.commit("a", 2)
			s.final(2)
		}, []string{"order broken 0"}, nil},
		{"order of dead letters", Rules{Letters: true}, func(s *script) {
			s.bad(0, 1, 2)
			s.fail("a", 0)
			s.fail("a", 1)
			s.fail("a", 2)
			s.bury("a", 1, 0)
			s.bury("a", 0, 1) // of another partition: there is no order between them
			s.letter(2, 1)
			s.events[len(s.events)-1].Place.Offset = 0
		}, []string{"order broken 0", "order broken 1", "order broken 2"}, nil},
		{"order of the dead letters of a key", Rules{Letters: true, Workers: keys.Workers}, func(s *script) {
			s.keys = map[int64]string{0: "x", 1: "y", 2: "x"}
			s.bad(0, 1, 2)
			for o := range int64(3) {
				s.fail("a", o)
				s.add(Event{Kind: DeadLettered, Member: "a", Offset: o})
			}
			s.letter(2, 0)
			s.letter(1, 0)
			s.letter(0, 0)
		}, []string{"order broken 2"}, nil},
		{"order: the dead letters of a key lie in two partitions", letters, func(s *script) {
			s.keys = map[int64]string{0: "x", 1: "x"}
			s.bad(0, 1)
			s.fail("a", 0)
			s.bury("a", 0, 0)
			s.fail("a", 1)
			s.bury("a", 1, 1)
			s.commit("a", 2)
			s.final(2)
		}, []string{"order broken 1"}, nil},
		{"malformed: a letter that lies nowhere", Rules{}, func(s *script) { s.add(Event{Kind: Letter}) }, []string{"malformed 0"}, nil},
		{"malformed: an end without a begin", Rules{}, func(s *script) {
			s.produced(0)
			s.end("a", 0, "")
		}, []string{"malformed 0"}, nil},
		{"malformed: begun twice", Rules{}, func(s *script) {
			s.produced(0)
			s.begin("a", 0)
			s.last = 0
			s.fail("a", 0) // as a second process of the same name would
		}, []string{"malformed 0", "order broken 0"}, nil},
		{"malformed: back from nowhere", Rules{}, func(s *script) { s.tell(SessionBack, "a") }, []string{"malformed 0"}, nil},
		{"malformed: lost twice", Rules{}, func(s *script) {
			s.tell(SessionLost, "a")
			s.tell(SessionLost, "a")
		}, []string{"malformed 0"}, nil},
		{"malformed: unknown", Rules{}, func(s *script) { s.tell("eaten", "a") }, []string{"malformed 0"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := Check(write(tt.history), tt.rules)
			assert.Equal(t, append([]string{}, tt.want...), told(r.Findings), r.String())
			assert.Equal(t, append([]string{}, tt.excused...), told(r.Excused), "excused")
			assert.Equal(t, len(tt.want) == 0, r.OK())
		})
	}
}

func TestPartitionsAreJudgedApart(t *testing.T) {
	events := write(func(s *script) {
		s.produced(0)
		s.ok("a", 0)
	})
	other := slices.Clone(events)
	for i := range other {
		other[i].Partition = 1
		other[i].Member = "b"
	}
	both := append(events, other...)
	require.True(t, Check(both, Rules{AllHandled: true}).OK())
	r := Check(both[:len(both)-1], Rules{AllHandled: true})
	assert.Equal(t, map[string]map[int32][]int64{"t": {1: {0}}}, r.Messages(Unhandled))
}

func TestOutlivedExcusesItsPartitionOnly(t *testing.T) {
	events := write(func(s *script) {
		s.produced(0)
		s.begin("a", 0)
		s.tell(Outlived, "a")
		s.begin("b", 0)
		s.end("b", 0, "no")
		s.end("a", 0, "no")
	})
	require.True(t, Check(events, Rules{}).OK())
	events[2].Partition = 1
	assert.Equal(t, []string{"two owners 0"}, told(Check(events, Rules{}).Findings))
}

func TestTolerance(t *testing.T) {
	overlap := write(func(s *script) { // by 1 ms
		s.produced(0)
		s.begin("a", 0)
		s.begin("b", 0)
		s.end("a", 0, "no")
		s.end("b", 0, "no")
	})
	assert.Equal(t, 1, Check(overlap, Rules{}).Count(TwoOwners))
	assert.Equal(t, 1, Check(overlap, Rules{Tolerance: time.Millisecond - 1}).Count(TwoOwners))
	assert.True(t, Check(overlap, Rules{Tolerance: time.Millisecond}).OK())

	// An overlap that is forgiven must not hide the repeat.
	overlap[3].Err = ""
	r := Check(overlap, Rules{Tolerance: time.Millisecond})
	assert.Equal(t, []string{"repeated 0"}, told(r.Findings))

	early := write(func(s *script) {
		s.produced(0)
		s.begin("a", 0)
		s.commit("a", 1) // its own clock: no tolerance
		s.end("a", 0, "")
	})
	assert.Equal(t, 1, Check(early, Rules{Tolerance: time.Second}).Count(Lost))
}
