package wire

// What is told about a group connection, as plain values, and how it is to treat
// requests. decode.go fills the values in, group.go decides when they are told.

import (
	"context"
	"time"
)

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
	// MemberID is asked before a JoinGroup without a member id is written in a newer
	// version ([Limits.JoinVersion]): the id that the group has given this member, in
	// an answer that may have got lost on its way to sarama-cluster. Joining with it,
	// the member takes its own place again and leaves no ghost behind. Empty: none, or
	// one that the group does not know any more.
	MemberID() string

	// JoinSent is told with the member id of the request, empty for a new member.
	JoinSent(memberID string)
	// JoinAnswered is told with MEMBER_ID_REQUIRED too, before the JoinGroup is sent
	// again with the id that it gives.
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

// Limits says how a group connection treats its requests.
//
// An answer may take as long as is said here, from the writing of its request or
// from the answer before it, whichever is later. Zero leaves it to sarama's deadline.
type Limits struct {
	Join  time.Duration // JoinGroup and SyncGroup, which wait for the whole group
	Other time.Duration

	// JoinVersion is the version that a JoinGroup of version 0 goes out in, which is
	// the only one that sarama-cluster speaks. Zero: 0. From 1 on it carries
	// RebalanceTimeout, how long the group waits for this member in a rebalance. With
	// 4 a new member is given its id before it waits, so that it can leave meanwhile.
	JoinVersion      int16
	RebalanceTimeout time.Duration

	// ExchangeUntil, if it is not empty, says that the connection begins with an
	// exchange that is not Kafka's (see [Security.Above]). It passes unobserved, and
	// ends with the first request that has this client id in its header.
	ExchangeUntil string

	// Vouch, if it is set, is called in a goroutine of its own for each request that
	// may take as long as Join: a broker that hangs looks like members that drain. It
	// returns an error when the broker shows no sign of life, which breaks the
	// connection with that error; and nil, soon, when ctx ends, because the request was
	// answered or the connection closed.
	Vouch func(ctx context.Context) error
}
