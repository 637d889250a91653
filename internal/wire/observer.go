package wire

// What is told about a group connection, as plain values. decode.go fills them in,
// group.go decides when they are told.

import "time"

// An Observer is told what passes on a group connection: a request just before its
// bytes are written, an answer before any of its bytes is handed to the reader.
// A request that could not be written has been told as well.
//
// The calls come from the goroutine that writes or reads, and delay it; those of
// writing and of reading may run at the same time. They must not use the
// connection. For one request, Sent happens before Answered, and answers come in
// the order of their requests.
//
// err is Kafka's error code, zero for none.
type Observer interface {
	// JoinSent is told with the member id of the request, empty for a new member.
	JoinSent(memberID string)
	JoinAnswered(answer JoinAnswer)

	// SyncAnswered is told with the member as it was sent: the answer names none.
	SyncAnswered(m Member, err int16)

	HeartbeatSent(m Member)
	// HeartbeatAnswered is told with the member that the heartbeat was sent for, and
	// when: an answer that arrives after a new generation began is about the old one.
	HeartbeatAnswered(m Member, sent time.Time, err int16)

	// LeaveSent is told when sarama-cluster gives up its membership, which it also
	// does by itself when a partition cannot be opened (D9).
	LeaveSent(memberID string)
	LeaveAnswered(memberID string, err int16)

	// OffsetsFetched is told with everything that one answer contains. An answer that
	// was refused as a whole (possible from version 2 on) contains nothing.
	OffsetsFetched(offsets []Offset)
}

// A Member is one membership: a member id in one generation of the group.
type Member struct {
	ID         string
	Generation int32
}

// A JoinAnswer is the answer to a JoinGroup.
type JoinAnswer struct {
	SentID string // member id of the request
	Err    int16
	Member Member // its ID is also set with MEMBER_ID_REQUIRED (version 4)
	Leader bool   // this member computes the assignment

	// Topics is, for the leader, every topic that any member asked for, sorted.
	// Members whose metadata cannot be read are left out.
	Topics []string
}

// An Offset is what the group has committed for one partition.
type Offset struct {
	Topic     string
	Partition int32
	Offset    int64 // -1: nothing committed
	Metadata  string
	Err       int16
}

// Limits says how long an answer may take, from the writing of its request or from
// the answer before it, whichever is later. Zero leaves it to sarama's deadline.
type Limits struct {
	Join  time.Duration // JoinGroup and SyncGroup, which wait for the whole group
	Other time.Duration
}
