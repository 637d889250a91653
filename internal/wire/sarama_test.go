package wire

import (
	"sync"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// sarama's own broker talks to sarama's mock through a group connection: every
// answer is understood by both sides of it, and told in order.
func TestSaramaBrokerThroughAGroupConnection(t *testing.T) {
	mock := sarama.NewMockBroker(t, 1)
	defer mock.Close()
	mock.SetHandlerByMap(map[string]sarama.MockResponse{
		"JoinGroupRequest": sarama.NewMockJoinGroupResponse(t).SetGenerationId(7).SetMemberId("m").SetLeaderId("m").
			SetGroupProtocol("range").SetMember("m", &sarama.ConsumerGroupMemberMetadata{Topics: []string{"b", "a"}}),
		"SyncGroupRequest":   sarama.NewMockSyncGroupResponse(t),
		"HeartbeatRequest":   sarama.NewMockHeartbeatResponse(t),
		"LeaveGroupRequest":  sarama.NewMockLeaveGroupResponse(t),
		"OffsetFetchRequest": sarama.NewMockOffsetFetchResponse(t).SetOffset("g", "a", 0, 42, "meta", sarama.ErrNoError),
		"MetadataRequest":    sarama.NewMockMetadataResponse(t),
	})

	var told recorder
	n := NewNetwork(nil, 5*time.Second, Security{})
	defer n.Close()
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V2_1_0_0
	cfg.Net.Proxy.Enable = true
	cfg.Net.Proxy.Dialer = n.Group(&told, limits)
	broker := sarama.NewBroker(mock.Addr())
	require.NoError(t, broker.Open(cfg))
	connected, err := broker.Connected()
	require.NoError(t, err)
	require.True(t, connected)

	join := &sarama.JoinGroupRequest{GroupId: "g", ProtocolType: "consumer", SessionTimeout: 20000}
	require.NoError(t, join.AddGroupProtocolMetadata("range", &sarama.ConsumerGroupMemberMetadata{Version: 1, Topics: []string{"a"}}))
	joined, err := broker.JoinGroup(join)
	require.NoError(t, err)
	assert.Equal(t, "m", joined.MemberId)
	_, err = broker.SyncGroup(&sarama.SyncGroupRequest{GroupId: "g", GenerationId: 7, MemberId: "m"})
	require.NoError(t, err)
	fetch := &sarama.OffsetFetchRequest{ConsumerGroup: "g", Version: 1}
	fetch.AddPartition("a", 0)
	offsets, err := broker.FetchOffset(fetch)
	require.NoError(t, err)
	assert.EqualValues(t, 42, offsets.GetBlock("a", 0).Offset)
	_, err = broker.GetMetadata(&sarama.MetadataRequest{Version: 1})
	require.NoError(t, err)

	// Several at once: the answers come back in order.
	var beats sync.WaitGroup
	for range 20 {
		beats.Go(func() {
			_, err := broker.Heartbeat(&sarama.HeartbeatRequest{GroupId: "g", GenerationId: 7, MemberId: "m"})
			assert.NoError(t, err)
		})
	}
	beats.Wait()
	assert.Len(t, told.sent, 20)
	_, err = broker.LeaveGroup(&sarama.LeaveGroupRequest{GroupId: "g", MemberId: "m"})
	require.NoError(t, err)

	lines := told.told()
	assert.Equal(t, []string{
		`join sent ""`,
		`join answered {SentID: Err:0 Member:{ID:m Generation:7} Leader:true Topics:[a b]}`,
		`sync answered {m 7} 0`,
		`offsets [{Topic:a Partition:0 Offset:42 Metadata:meta Err:0}]`,
	}, lines[:4])
	assert.Equal(t, []string{`leave sent "m"`, `leave answered "m" 0`}, lines[len(lines)-2:])

	require.NoError(t, broker.Close())
	assert.Zero(t, n.Open())
}
