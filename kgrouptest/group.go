package kgrouptest

// Consumer groups as the coordinator sees them.

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// pollInterval is how often the Wait methods look.
const pollInterval = 10 * time.Millisecond

// A Group is a consumer group at one moment.
type Group struct {
	// State is Kafka's: Empty, PreparingRebalance, CompletingRebalance, Stable, or
	// Dead for a group that does not exist.
	State      string
	Generation int32
	Members    []Member // in the order of their ids
}

// A Member is one member of a group.
type Member struct {
	ID       string
	ClientID string
	Assigned map[string][]int32 // by topic
}

// Group describes a consumer group. On a closed Broker every group is Dead.
func (b *Broker) Group(group string) Group {
	found := Group{State: "Dead"}
	_ = b.use(func() error { // ErrClosed: documented above
		info := b.cluster.GroupInfo(group)
		if info == nil {
			return nil
		}
		found.State, found.Generation = info.State, info.Epoch
		for _, m := range info.Members {
			found.Members = append(found.Members, Member{ID: m.MemberID, ClientID: m.ClientID, Assigned: m.Assignment})
		}
		return nil
	})
	return found
}

// Committed are the offsets a group has committed of a topic, by partition: for
// each the offset of the next message to read. Partitions without one are missing.
// On a closed Broker there are none.
func (b *Broker) Committed(group, topic string) map[int32]int64 {
	committed := make(map[int32]int64)
	_ = b.use(func() error { // ErrClosed: documented above
		info := b.cluster.GroupInfo(group)
		if info == nil {
			return nil
		}
		for partition, commit := range info.Commits[topic] {
			committed[partition] = commit.Offset
		}
		return nil
	})
	return committed
}

// WaitGroup waits until the group satisfies the condition and returns it. When ctx
// ends first, it returns the group as it is then, and an error that describes it.
func (b *Broker) WaitGroup(ctx context.Context, group string, until func(Group) bool) (Group, error) {
	var last Group
	err := b.poll(ctx, func() bool {
		last = b.Group(group)
		return until(last)
	})
	if err != nil {
		return last, fmt.Errorf("kgrouptest: wait for group %s, last seen %s: %w", group, last, err)
	}
	return last, nil
}

// Stable is a condition for [Broker.WaitGroup]: the group is stable with so many
// members.
func Stable(members int) func(Group) bool {
	return func(g Group) bool { return g.State == "Stable" && len(g.Members) == members }
}

// WaitCommitted waits until the group has committed every message that was in the
// topic when WaitCommitted was called. When ctx ends first, the error names each
// partition that is behind.
func (b *Broker) WaitCommitted(ctx context.Context, group, topic string) error {
	messages, err := b.Messages(topic) //nolint:contextcheck // short, and ends with the Broker
	if err != nil {
		return err
	}
	ends := make(map[int32]int64)
	for _, m := range messages {
		ends[m.Partition] = m.Offset + 1
	}
	var behind []string
	err = b.poll(ctx, func() bool {
		behind = lag(ends, b.Committed(group, topic))
		return len(behind) == 0
	})
	if err != nil {
		return fmt.Errorf("kgrouptest: wait for group %s to commit %s, behind in %s: %w", group, topic, strings.Join(behind, ", "), err)
	}
	return nil
}

func lag(ends, committed map[int32]int64) []string {
	var behind []string
	for partition, end := range ends {
		if offset, ok := committed[partition]; !ok {
			behind = append(behind, fmt.Sprintf("partition %d (none of %d)", partition, end))
		} else if offset < end {
			behind = append(behind, fmt.Sprintf("partition %d (%d of %d)", partition, offset, end))
		}
	}
	slices.Sort(behind)
	return behind
}

func (b *Broker) poll(ctx context.Context, done func() bool) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if done() {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-b.ctx.Done():
			return ErrClosed
		case <-tick.C:
		}
	}
}

// String is one line for messages of failed tests: state, generation, and each
// member with its partitions.
func (g Group) String() string {
	var members []string
	for _, m := range g.Members {
		members = append(members, fmt.Sprintf("%s%v", m.ID, m.Assigned))
	}
	return fmt.Sprintf("%s, generation %d, %d members %s", g.State, g.Generation, len(members), members)
}
