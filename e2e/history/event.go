// Package history records what was produced, handled and committed while a group
// of consumers ran, and judges it by what kgroup promises: nothing lost, nothing
// repeated without cause, order kept, one owner per partition.
//
// A scenario records into a [Log]: what it produced, each attempt of a handler,
// each commit that a broker acknowledged, and what it did to its members. Members
// in other processes write to a file ([Append]) that survives their SIGKILL
// ([Log.Merge]). [Check] takes the events and names every violation with what
// happened around it. The package knows nothing of kgroup: any consumer can be
// judged.
package history

// The events of a history, and the log that collects them. They are judged in
// check.go.

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A Kind says what an [Event] tells.
type Kind string

// The kinds of events. Each is written by the method of [Log] with its name.
const (
	Produced       Kind = "produced"        // a record is in the topic, and visible to the group
	NotOwed        Kind = "not owed"        // nobody owes the group the records before Offset
	Begin          Kind = "begin"           // an attempt to handle a message
	End            Kind = "end"             // its result
	Bad            Kind = "bad"             // nobody can handle a message: it is to become a dead letter
	DeadLettered   Kind = "dead-lettered"   // a member says that the dead letter was acknowledged
	Letter         Kind = "letter"          // a dead letter, as it lies in its topic
	Blocked        Kind = "blocked"         // a member says that a message keeps its partition from going on
	Committed      Kind = "committed"       // a commit was acknowledged
	FinalCommitted Kind = "final committed" // a committed offset, read from the broker at the end
	Killed         Kind = "killed"          // a member's process has ended without any order
	SessionLost    Kind = "session lost"    // a member is being kept from its heartbeats
	SessionBack    Kind = "session back"    // no longer
	Outlived       Kind = "outlived"        // a handler has outlived its deadline
)

// An Event is one thing that happened.
type Event struct {
	// At is the time, in nanoseconds of the system's monotonic clock. All
	// processes of one machine share that clock, so their events compare exactly.
	At int64 `json:"at"`

	Kind      Kind   `json:"kind"`
	Member    string `json:"member,omitempty"`
	Topic     string `json:"topic,omitempty"`
	Partition int32  `json:"partition,omitempty"`
	Offset    int64  `json:"offset,omitempty"`
	Key       []byte `json:"key"`               // nil: the record has none
	Attempt   uint64 `json:"attempt,omitempty"` // pairs Begin and End of a member
	Batch     uint64 `json:"batch,omitempty"`   // of Begin and Committed: those of a member with one number are one call, one commit
	Err       string `json:"err,omitempty"`     // of End; empty: the handler returned nil
	Place     *Place `json:"place,omitempty"`   // of Letter
}

func (e Event) String() string {
	var b strings.Builder
	if e.Member != "" {
		fmt.Fprintf(&b, "%s ", e.Member)
	}
	b.WriteString(string(e.Kind))
	if e.Topic != "" {
		fmt.Fprintf(&b, " %s/%d", e.Topic, e.Partition)
		if e.Kind != Outlived {
			fmt.Fprintf(&b, " at %d", e.Offset)
		}
	}
	if e.Key != nil {
		fmt.Fprintf(&b, " key %q", e.Key)
	}
	switch {
	case e.Kind == End && e.Err == "":
		b.WriteString(": nil")
	case e.Kind == End:
		fmt.Fprintf(&b, ": %s", e.Err)
	case e.Place != nil:
		fmt.Fprintf(&b, ": %s", e.Place)
	case e.Batch != 0 && e.Kind == Begin:
		fmt.Fprintf(&b, " in batch %d", e.Batch)
	}
	return b.String()
}

// A Log collects events in the order in which they happened. All its methods may
// be called at once; each costs about a microsecond, to a file a few.
//
// A method that cannot write its event panics: a scenario must not be judged by
// half of what happened.
type Log struct {
	mu       sync.Mutex
	events   []Event
	file     *os.File // nil: events are kept in memory
	attempts uint64
	batches  uint64
}

// New returns a log in memory.
func New() *Log { return &Log{} }

// Append returns a log that adds its events to the end of a file, one line of JSON
// each. Every event is in the file when its method returns, so that a process that
// is killed leaves behind all that it did.
func Append(path string) (*Log, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("append to a history: %w", err)
	}
	return &Log{file: f}, nil
}

// Close closes the file.
func (l *Log) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

func (l *Log) add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addLocked(e)
}

// addLocked takes the time under the lock, so the order of a log is the order of
// its times.
func (l *Log) addLocked(e Event) {
	e.At = now()
	if l.file == nil {
		l.events = append(l.events, e)
		return
	}
	line, err := json.Marshal(e)
	if err != nil {
		panic(fmt.Errorf("history: %w", err))
	}
	// One write: with O_APPEND, lines of several processes do not mix.
	if _, err := l.file.Write(append(line, '\n')); err != nil {
		panic(fmt.Errorf("history: %w", err))
	}
}

// now reads CLOCK_MONOTONIC. Go's own monotonic time begins anew in each process,
// and wall clocks are adjusted while a scenario runs.
func now() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(fmt.Errorf("history: read the clock: %w", err))
	}
	return t.Nano()
}

// Produced tells that a record is in the topic, for the group to see: not when it
// is part of an open or aborted transaction, and not when compaction may remove it
// (offsets may have gaps). It may be told later than the record is handled.
func (l *Log) Produced(topic string, partition int32, offset int64, key []byte) {
	l.add(Event{Kind: Produced, Topic: topic, Partition: partition, Offset: offset, Key: key})
}

// NotOwed tells that the group need not handle the records of a partition before
// offset: it starts there, or retention took them.
func (l *Log) NotOwed(topic string, partition int32, offset int64) {
	l.add(Event{Kind: NotOwed, Topic: topic, Partition: partition, Offset: offset})
}

// An Attempt is a call of a handler that has begun.
type Attempt struct {
	log   *Log
	event Event
}

// Begin tells that a member's handler has been called for a message. A member that
// is started again under the same name must have a Killed before.
func (l *Log) Begin(member, topic string, partition int32, offset int64, key []byte) Attempt {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.begin(Event{Member: member, Topic: topic, Partition: partition, Offset: offset, Key: key})
}

func (l *Log) begin(e Event) Attempt {
	l.attempts++
	e.Kind, e.Attempt = Begin, l.attempts
	l.addLocked(e)
	return Attempt{log: l, event: e}
}

// A Message is one of a batch.
type Message struct {
	Topic     string
	Partition int32
	Offset    int64
	Key       []byte
}

// BeginBatch tells that a member's handler has been called for several messages at once,
// as they are given to it. Each of them has an attempt, and an end.
func (l *Log) BeginBatch(member string, msgs []Message) []Attempt {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batches++
	attempts := make([]Attempt, len(msgs))
	for i, m := range msgs {
		attempts[i] = l.begin(Event{Member: member, Topic: m.Topic, Partition: m.Partition, Offset: m.Offset, Key: m.Key, Batch: l.batches})
	}
	return attempts
}

// End tells what the handler is about to return. It must be the last thing that
// the handler does: then what seems to overlap really did.
func (a Attempt) End(err error) {
	e := a.event
	e.Kind, e.Batch = End, 0
	if err != nil {
		// An error without text is an error all the same.
		e.Err = cmp.Or(err.Error(), "error")
	}
	a.log.add(e)
}

// Handle tells of one attempt: its begin, the call of handle, its end. A panic of
// handle is recorded as an error and goes on.
func (l *Log) Handle(member, topic string, partition int32, offset int64, key []byte, handle func() error) (err error) {
	a := l.Begin(member, topic, partition, offset, key)
	err = errors.New("panic")
	defer func() { a.End(err) }()
	return handle()
}

// Bad tells that nobody can handle a message: with [Rules.Letters] it must become a
// dead letter, and no other may.
func (l *Log) Bad(topic string, partition int32, offset int64) {
	l.add(Event{Kind: Bad, Topic: topic, Partition: partition, Offset: offset})
}

// DeadLettered tells that a member says of a message that the broker has acknowledged
// its dead letter, which settles it. It must be told before the member handles the
// partition's next message; a commit that passes the message may be told a moment
// earlier.
func (l *Log) DeadLettered(member, topic string, partition int32, offset int64) {
	l.add(Event{Kind: DeadLettered, Member: member, Topic: topic, Partition: partition, Offset: offset})
}

// Blocked tells that a member says of a message that it keeps its partition from going on.
// It is not judged.
func (l *Log) Blocked(member, topic string, partition int32, offset int64) {
	l.add(Event{Kind: Blocked, Member: member, Topic: topic, Partition: partition, Offset: offset})
}

// Letter tells of a dead letter that an independent client has read, and which message
// it says that it is of. When it is told does not matter.
func (l *Log) Letter(topic string, partition int32, offset int64, key []byte, at Place) {
	l.add(Event{Kind: Letter, Topic: topic, Partition: partition, Offset: offset, Key: key, Place: &at})
}

// Committed tells that the broker has acknowledged a member's commit. Tell it
// before anything else that follows from the answer.
func (l *Log) Committed(member string, offsets map[string]map[int32]int64) {
	l.commits(Committed, member, offsets)
}

// FinalCommitted tells what an independent client has read from the broker as the
// group's committed offsets, after all members had ended.
func (l *Log) FinalCommitted(offsets map[string]map[int32]int64) {
	l.commits(FinalCommitted, "", offsets)
}

func (l *Log) commits(kind Kind, member string, offsets map[string]map[int32]int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch := uint64(0)
	if kind == Committed {
		l.batches++
		batch = l.batches
	}
	for _, topic := range slices.Sorted(maps.Keys(offsets)) {
		for _, p := range slices.Sorted(maps.Keys(offsets[topic])) {
			l.addLocked(Event{Kind: kind, Member: member, Topic: topic, Partition: p, Offset: offsets[topic][p], Batch: batch})
		}
	}
}

// Killed tells that a member is gone without having ended in order. Tell it when
// the process is gone, and before it is started again. What it was handling, and
// what it had settled since the last acknowledged commit, may be repeated.
func (l *Log) Killed(member string) { l.add(Event{Kind: Killed, Member: member}) }

// SessionLost tells that a member is being kept from its heartbeats, by stopping
// the process or its connections: it may lose its partitions without knowing it.
// What it handles until [Log.SessionBack] may overlap with other owners, and be
// repeated unless a commit of it was acknowledged.
func (l *Log) SessionLost(member string) { l.add(Event{Kind: SessionLost, Member: member}) }

// SessionBack ends what SessionLost began. Tell it when the member is seen to have
// joined the group again.
func (l *Log) SessionBack(member string) { l.add(Event{Kind: SessionBack, Member: member}) }

// Outlived tells that a member's handlers of a partition did not return within
// their deadline after it was taken away. What they were handling may overlap with
// the next owner, and be repeated with what was settled and not yet committed.
func (l *Log) Outlived(member, topic string, partition int32) {
	l.add(Event{Kind: Outlived, Member: member, Topic: topic, Partition: partition})
}

// Events returns what has been recorded in memory so far.
func (l *Log) Events() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

// Merge adds the events of a file that another process wrote with [Append].
func (l *Log) Merge(path string) error {
	events, err := Read(path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, events...)
	slices.SortStableFunc(l.events, func(x, y Event) int { return cmp.Compare(x.At, y.At) })
	return nil
}

// Read returns the events of a file. A last line without its end is what a process
// was writing when it was killed: that event has not happened.
func Read(path string) ([]Event, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read a history: %w", err)
	}
	defer f.Close()
	var events []Event
	r := bufio.NewReader(f)
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return events, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read a history: %w", err)
		}
		var e Event
		if err = json.Unmarshal(line, &e); err == nil && e.Kind == "" {
			err = errors.New("not an event")
		}
		if err != nil {
			return nil, fmt.Errorf("read a history: %s line %d: %w", path, n, err)
		}
		events = append(events, e)
	}
}
