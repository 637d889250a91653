package kgroup

// The tasks of a crew: the lines in which those of one key stand, and those that are ready.

import (
	"cmp"
	"slices"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// A task is a message of a crew, from the queue until it is settled.
type task struct {
	record engine.Record
	offset int64
	number int64 // of its delivery, among those of its epoch
	epoch  int
	past   *progress // what is known of earlier attempts; nil: nothing
	done   bool      // its hand says that it is settled,
	passed bool      // and so does the frontier

	key   uint64 // its hash: two keys may share a line
	keyed bool   // else it stands in no line
	asked bool   // Topic.Key has been
	line  *line
	alone bool  // it is not handled in a batch with others
	out   bool  // it is ready, or in a hand,
	by    *hand // which is this one
	next  *task // of its line
}

// Lines have the tasks of each key, in order.
type lines struct {
	of    map[uint64]*line
	tasks spares[task]
	lines spares[line]
}

// Spares are to be used again.
type spares[T any] []*T

// take returns one, or makes it.
func (s *spares[T]) take() *T {
	n := len(*s)
	if n == 0 {
		return new(T)
	}
	t := (*s)[n-1]
	*s = (*s)[:n-1]
	return t
}

type line struct{ head, tail *task }

func (l *lines) newTask(r engine.Record) *task {
	t := l.tasks.take()
	t.record, t.offset = r, r.Offset()
	return t
}

func (l *lines) recycle(t *task) {
	*t = task{}
	l.tasks = append(l.tasks, t)
}

// add lets a task stand in its line, and returns the one before it, if there is any.
func (l *lines) add(t *task) (before *task) {
	if !t.keyed {
		return nil
	}
	at := l.of[t.key]
	t.line = at
	if at != nil {
		before = at.tail
		before.next, at.tail = t, t
		return before
	}
	at = l.lines.take()
	at.head, at.tail = t, t
	t.line, l.of[t.key] = at, at
	return nil
}

// remove takes a task out of its line. Those before it, if any, were handled with it.
func (l *lines) remove(t *task) {
	at := t.line
	if at == nil {
		return
	}
	var before *task
	for other := at.head; other != t; other = other.next {
		before = other
	}
	if before == nil {
		at.head = t.next
	} else {
		before.next = t.next
	}
	if at.tail == t {
		at.tail = before
	}
	if at.head == nil {
		delete(l.of, t.key)
		l.lines = append(l.lines, at)
	}
}

// first is the first task of t's line; one without a key is its own, until it is settled.
func (t *task) first() *task {
	switch {
	case t.line != nil:
		return t.line.head // nil: it is over
	case t.done:
		return nil
	default:
		return t
	}
}

// Tasks are what is ready, the oldest first.
type tasks struct {
	list []*task
	head int
}

func (q *tasks) len() int { return len(q.list) - q.head }

func (q *tasks) first() *task { return q.list[q.head] }

// push is quick for the youngest, as most are when they are pushed.
func (q *tasks) push(t *task) {
	if q.head > 0 && len(q.list) == cap(q.list) {
		q.list = slices.Delete(q.list, 0, q.head)
		q.head = 0
	}
	if q.len() == 0 || q.list[len(q.list)-1].offset < t.offset {
		q.list = append(q.list, t)
		return
	}
	at, _ := slices.BinarySearchFunc(q.list[q.head:], t.offset, func(o *task, offset int64) int { return cmp.Compare(o.offset, offset) })
	if at == 0 && q.head > 0 {
		q.head--
		q.list[q.head] = t
		return
	}
	q.list = slices.Insert(q.list, q.head+at, t)
}

func (q *tasks) pop() *task {
	t := q.list[q.head]
	q.list[q.head] = nil
	q.head++
	if q.head == len(q.list) {
		q.list, q.head = q.list[:0], 0
	}
	return t
}
