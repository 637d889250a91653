package history

// Dead letters: what members say of them, and what lies in their topics in the end.

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// A Place is where a dead letter lies.
type Place struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

func (p Place) String() string { return fmt.Sprintf("%s/%d at %d", p.Topic, p.Partition, p.Offset) }

// telling is how much later than a commit a member may say that the message has become
// a dead letter: it says so when the message is settled, and may be committed.
const telling = time.Second

// untold is a dead letter when it may have been acknowledged, other events as they are.
func (e Event) untold() Event {
	if e.Kind == DeadLettered {
		e.At -= int64(telling)
	}
	return e
}

// findUntold settles messages whose letter is there, and whose member was gone before
// it could say so.
func (c *checker) findUntold(l *lane) {
	for o := range l.letters {
		last := l.last(o)
		if _, ok := l.settled[o]; !ok && last != nil && last.end.At != never.At && c.disturbed(l, o) {
			l.settled[o] = last.end
		}
	}
}

// first and last are attempts of one message; nil if there is none.
func (l *lane) first(offset int64) *attempt {
	i := slices.IndexFunc(l.attempts, func(a *attempt) bool { return a.begin.Offset == offset })
	if i < 0 {
		return nil
	}
	return l.attempts[i]
}

func (l *lane) last(offset int64) (last *attempt) {
	for _, a := range l.attempts {
		if a.begin.Offset == offset {
			last = a
		}
	}
	return last
}

// disturbed reports whether something has happened since a message's first attempt after
// which a letter may be written once more, or never be told of.
func (c *checker) disturbed(l *lane, offset int64) bool {
	first := l.first(offset)
	return first != nil && c.excusedBetween(l, first.begin, never)
}

// checkLetters holds what lies there against what should.
func (c *checker) checkLetters(l *lane) {
	for _, letters := range l.sortedLetters() {
		e := letters[0]
		if n := len(letters); n > 1 {
			c.add(TwoLetters, c.disturbed(l, e.Offset), e.Offset, letters[1], "there are %d dead letters of it", n)
		}
		if c.rules.Letters && !l.bad[e.Offset] {
			c.add(WrongLetter, false, e.Offset, e, "there is a dead letter of it, and nothing was wrong with it")
		}
	}
	if !c.rules.Letters {
		return
	}
	told := map[int64]bool{}
	for _, e := range l.buried {
		if !told[e.Offset] && len(l.letters[e.Offset]) == 0 {
			c.add(Lost, false, e.Offset, e, "%s has made it a dead letter, and there is none", e.Member)
		}
		told[e.Offset] = true
	}
	end := c.events[len(c.events)-1]
	end.Topic, end.Partition = l.topic, l.partition
	for _, o := range l.owed() {
		if _, settled := l.settled[o]; c.rules.AllHandled && l.bad[o] && len(l.letters[o]) == 0 && settled && !told[o] {
			c.add(Unhandled, false, o, end, "it is bad, and at the end there is no dead letter of it")
		}
	}
}

// sortedLetters are the letters of each message as they lie, by message.
func (l *lane) sortedLetters() [][]Event {
	var all [][]Event
	for _, letters := range l.letters {
		slices.SortStableFunc(letters, func(x, y Event) int {
			return cmp.Or(cmp.Compare(x.Place.Topic, y.Place.Topic), cmp.Compare(x.Place.Partition, y.Place.Partition), cmp.Compare(x.Place.Offset, y.Place.Offset))
		})
		all = append(all, letters)
	}
	slices.SortFunc(all, func(x, y []Event) int { return cmp.Compare(x[0].Offset, y[0].Offset) })
	return all
}

// checkLetterOrder judges the first letter of each message: those of one order must lie
// one after the other, and those of one key in one partition.
func (c *checker) checkLetterOrder(l *lane) {
	byKey := c.rules.Workers[l.topic] > 1
	type order struct {
		key       string
		topic     string
		partition int32
	}
	last := map[order]Event{}
	keys := map[string]Event{}
	for _, letters := range l.sortedLetters() {
		e := letters[0]
		if e.Key != nil {
			if other, ok := keys[string(e.Key)]; ok && (other.Place.Topic != e.Place.Topic || other.Place.Partition != e.Place.Partition) {
				c.add(OrderBroken, false, e.Offset, e, "its dead letter is %s, and that of %d, which has the same key, is %s", e.Place, other.Offset, other.Place)
			}
			keys[string(e.Key)] = e
		}
		of := order{topic: e.Place.Topic, partition: e.Place.Partition}
		if byKey {
			if e.Key == nil {
				continue
			}
			of.key = string(e.Key)
		}
		if before, ok := last[of]; ok && before.Place.Offset > e.Place.Offset {
			c.add(OrderBroken, c.disturbed(l, before.Offset), e.Offset, e, "its dead letter is %s, before that of %d, which is %s", e.Place, before.Offset, before.Place)
			continue
		}
		last[of] = e
	}
}
