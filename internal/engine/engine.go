// Package engine is the seam between kgroup and whatever polls Kafka for it.
//
// An [Engine] is a member of a consumer group. It calls a [Session], which owns
// the handlers: it opens a generation's lanes, delivers into them, and has them
// drained before it gives them up. Nothing above the seam knows which engine
// runs, nor in which mode.
package engine

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrGone says that this member does not hold what it speaks for any more: its
// session was lost, or its generation is over. Trying again is useless.
var ErrGone = errors.New("the group has gone on without this member")

// ErrUnreachable says that the group's coordinator cannot be reached, or is not ready.
// Without it nobody can join either, so the group does not wait for this member.
var ErrUnreachable = errors.New("the coordinator cannot be reached")

// A Partition is one partition of a topic.
type Partition struct {
	Topic  string
	Number int32
}

func (p Partition) String() string { return fmt.Sprintf("%s/%d", p.Topic, p.Number) }

// A Record is one message as the engine holds it. Taking it apart is left to the
// moment when a handler is about to see it. What the methods return shares memory
// with the record and is not modified.
type Record interface {
	Offset() int64
	Timestamp() time.Time
	Header(i int) (key, value []byte)

	// Payload is the rest, with the number of headers. (Together, because that is one
	// call for each message, and no more than what a call returns in registers.)
	Payload() (key, value []byte, headers int)
}

// A Claim is one partition of a new assignment.
type Claim struct {
	Partition
	Offset    int64  // of the first message, or, where offsets have gaps, one before it
	Metadata  string // as committed with Offset, or with one before it, for what is left from Offset on; empty: there is none
	Committed bool   // Offset is the committed one
	HasEnd    bool   // a broker has told where the partition ends,
	End       int64  // which is here
	Guess     bool   // Offset is not known: no broker could tell
	Single    bool   // messages are delivered one at a time: a worker that wakes should let a few come
	// Relieve makes another goroutine poll, in place of one that has called Lane.Handle
	// and is kept there by a handler for longer than Patience. Nil: nobody can.
	Relieve  func()
	Patience time.Duration
	Fresh    bool // Offset was found under Start: Newest; it must be committed before the first message is dispatched
}

// An Offset is what is to be committed for a partition.
type Offset struct {
	Partition
	Offset   int64
	Metadata string
}

// A Change says what a member owned before a rebalance and owns after it: sorted
// partition numbers by topic.
type Change struct {
	Current, Claimed, Released map[string][]int32
}

// A Letter is a record that is to be written to another topic.
type Letter struct {
	Partition         // of another number if the topic does not have that one
	Key, Value []byte // nil where there is none
	Headers    []Header
	Timestamp  time.Time
}

// A Header is one record header.
type Header struct {
	Key   string
	Value []byte
}

// ErrTooLarge says that the topic takes no record of that size.
var ErrTooLarge = errors.New("the record is larger than the topic takes")

// Handled is what became of records that a [Lane] was asked to handle at once.
type Handled int

// What becomes of them.
const (
	Declined Handled = iota // nothing was taken: deliver it
	Done                    // what was taken has been handled, or the generation is sealed
	Relieved                // the same, but another goroutine polls by now: the caller has nothing more to do with it
)

// A Lane takes the messages of one partition of one generation. It is called by the
// goroutine that polls the partition.
type Lane interface {
	// Handle handles first on the calling goroutine, and then what more has at hand,
	// until that is nothing; more may be nil. It takes nothing unless the handler is known
	// to be quick and everything delivered before has been handled.
	Handle(first Record, more func(batch []Record) (n int)) Handled

	// Deliver queues records, in the order of their offsets, and reports whether the
	// queue is full now. All of them are taken, full or not; the engine is asked to
	// wait for Room before it delivers more. Once the generation is sealed they are
	// thrown away: the partition's next owner reads them again. The slice may be used
	// again by the caller.
	Deliver(records []Record) (full bool)

	// Room receives a value when a queue that was full has room again, or is sealed.
	Room() <-chan struct{}

	// Len is how many messages are queued.
	Len() int
}

// A Session is what an engine drives. Generations are numbered by the engine, one
// for each assignment that was opened; the broker's numbers may repeat.
//
// For one generation the order is Assigned, Seal, Revoke. Lost may come at any
// time from another goroutine.
type Session interface {
	// RebalanceStarted and RebalanceFailed report; owned is what is about to be given up.
	RebalanceStarted(owned map[string][]int32)
	RebalanceFailed(err error)

	// Assigned opens a generation and returns its lanes, one for each claim, or nil if
	// ctx ended before they could be opened. It blocks the delivery.
	Assigned(ctx context.Context, generation int64, claims []Claim, change Change) []Lane

	// Seal stops the generation: no message is handed to a handler any more. It does
	// not wait.
	Seal(generation int64)

	// Revoke drains a sealed generation, commits it, and returns. Handlers still at
	// work are cancelled at cancelAt and given up at until, or, if that has passed,
	// after a moment. While the coordinator is unreachable it goes on trying to commit.
	// When the session is lost meanwhile it returns at once.
	Revoke(generation int64, cancelAt, until time.Time)

	// Lost says that the generation's partitions belong to somebody else, or may:
	// handlers are cancelled at once, given a moment to return, and nothing is
	// committed. The context given to Assigned has ended before.
	Lost(generation int64, cause error)

	// Error reports what was survived.
	Error(err error)
}

// An Engine polls Kafka as a member of a consumer group.
type Engine interface {
	// Start joins the group. It returns an error if that cannot work before somebody
	// mends something, and nil when joining is under way.
	Start(ctx context.Context, s Session) error

	// Failed receives an error when the group refuses this member for good before its
	// first assignment.
	Failed() <-chan error

	// Commit commits offsets for a generation, in one request and one attempt.
	// It returns what was refused for single partitions, and an error for the request
	// as a whole: ErrGone, or one that may pass, ErrUnreachable among them.
	Commit(ctx context.Context, generation int64, offsets []Offset) (refused map[Partition]error, err error)

	// Publish writes a letter, and returns when all in-sync replicas have it. If ctx ends
	// first, nobody knows whether they do.
	Publish(ctx context.Context, letter Letter) error

	// HighWatermarks are the ends of the owned partitions, as far as they are known.
	HighWatermarks() map[Partition]int64

	// Held is the partition whose full queue keeps all others from being served.
	Held() (p Partition, held bool)

	// Waits reports whether this member waits for others, so that the group can go on.
	Waits() bool

	// Leave leaves the group and ends everything that Start has begun, by force when
	// ctx ends. The session must have been drained; nothing is delivered any more.
	Leave(ctx context.Context) error
}
