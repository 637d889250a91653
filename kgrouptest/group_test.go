package kgrouptest_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/kgroup-go/kgroup/kgrouptest"
)

func TestGroup(t *testing.T) {
	b := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders", Partitions: 2})
	assert.Equal(t, kgrouptest.Group{State: "Dead"}, b.Group("billing"))
	assert.Equal(t, map[int32]int64{}, b.Committed("billing", "orders"))

	require.NoError(t, b.Produce("orders", values("a", "b", "c")...))
	client := consume(t, b, kgo.ConsumerGroup("billing"), kgo.ConsumeTopics("orders"), kgo.ClientID("me"),
		kgo.Balancers(kgo.RangeBalancer()), kgo.DisableAutoCommit())
	group, err := b.WaitGroup(within(t), "billing", kgrouptest.Stable(1))
	require.NoError(t, err)
	require.Len(t, group.Members, 1)
	assert.Positive(t, group.Generation)
	assert.Contains(t, group.Members[0].ID, "me-")
	assert.Equal(t, "me", group.Members[0].ClientID)
	assert.Equal(t, map[string][]int32{"orders": {0, 1}}, group.Members[0].Assigned)

	for range 3 {
		next(t, client)
	}
	require.NoError(t, client.CommitUncommittedOffsets(within(t)))
	assert.Equal(t, map[int32]int64{0: 2, 1: 1}, b.Committed("billing", "orders"))
	assert.Empty(t, b.Committed("billing", "other"))

	client.Close()
	_, err = b.WaitGroup(within(t), "billing", func(g kgrouptest.Group) bool { return g.State == "Empty" })
	require.NoError(t, err)
}

func TestWaitGroupSaysWhatItSaw(t *testing.T) {
	b := kgrouptest.Start(t)
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	group, err := b.WaitGroup(ctx, "billing", func(kgrouptest.Group) bool {
		if calls++; calls == 2 {
			cancel()
		}
		return false
	})
	require.ErrorIs(t, err, context.Canceled)
	require.EqualError(t, err, "kgrouptest: wait for group billing, last seen Dead, generation 0, 0 members []: context canceled")
	assert.Equal(t, "Dead", group.State)
}

func TestWaitCommitted(t *testing.T) {
	b := kgrouptest.Start(t, kgrouptest.Topic{Name: "orders", Partitions: 3})
	require.NoError(t, b.WaitCommitted(within(t), "billing", "orders"), "nothing to commit")

	require.NoError(t, b.Produce("orders", values("a", "b", "c")...))
	client := consume(t, b, kgo.ConsumerGroup("billing"), kgo.ConsumeTopics("orders"), kgo.DisableAutoCommit())
	commit := func(offsets map[int32]int64) {
		t.Helper()
		at := make(map[int32]kgo.EpochOffset)
		for partition, offset := range offsets {
			at[partition] = kgo.EpochOffset{Epoch: -1, Offset: offset}
		}
		client.CommitOffsetsSync(within(t), map[string]map[int32]kgo.EpochOffset{"orders": at}, nil)
	}
	_, err := b.WaitGroup(within(t), "billing", kgrouptest.Stable(1))
	require.NoError(t, err)
	next(t, client) // the client knows then that it is a member

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	commit(map[int32]int64{0: 1, 1: 0})
	require.ErrorContains(t, b.WaitCommitted(gone, "billing", "orders"),
		"wait for group billing to commit orders, behind in partition 1 (0 of 1), partition 2 (none of 1): context canceled")

	// The end of a transaction is no message: nobody could commit it.
	require.NoError(t, b.ProduceWith(kgrouptest.How{Transaction: kgrouptest.Commit}, "orders", kgrouptest.Record{}.On(0)))
	require.NoError(t, b.ProduceWith(kgrouptest.How{Transaction: kgrouptest.Abort}, "orders", kgrouptest.Record{}.On(1)))
	waited := make(chan error, 1)
	go func() { waited <- b.WaitCommitted(within(t), "billing", "orders") }()
	commit(map[int32]int64{0: 2, 1: 1, 2: 1})
	require.NoError(t, <-waited)
}
