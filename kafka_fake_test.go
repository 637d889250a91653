package kgroup

// The engine on brokers that live in memory. Their connections are pipes, so that
// sarama-cluster itself runs inside a synctest bubble: on its clock, and a goroutine
// that is left behind fails the test. (sarama's MockBroker answers one request at a
// time over all its connections; here a JoinGroup may wait while another connection
// goes on.)

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Shopify/sarama"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/kgroup-go/kgroup/internal/engine"
	"github.com/kgroup-go/kgroup/internal/wire"
)

// firstOf is partition 0.
func firstOf(topic string) engine.Partition { return engine.Partition{Topic: topic} }

// inBubble runs body in a synctest bubble in which sarama can be used.
func inBubble(t *testing.T, body func(t *testing.T)) {
	t.Helper()
	startMeters()
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(time.Second) }) // sarama's fetchers nap before they end
		body(t)
	})
}

// startMeters makes go-metrics start its one ticker outside of any bubble, as it does
// with sarama's first connection: it would never end in one.
var startMeters = sync.OnceFunc(func() {
	conf := sarama.NewConfig()
	conf.Net.Proxy.Enable = true
	conf.Net.Proxy.Dialer = wire.NewNetwork(func(context.Context, string, string) (net.Conn, error) {
		c, _ := net.Pipe()
		return c, nil
	}, time.Second, wire.Security{}).Data()
	b := sarama.NewBroker("one:9092")
	_ = b.Open(conf)
	_, _ = b.Connected()
	_ = b.Close()
	conf.MetricRegistry.UnregisterAll()
})

// A fakeKafka is a cluster of brokers. The first of them coordinates the group, which
// has one member, and leads all partitions. Tests replace single answers with on.
type fakeKafka struct {
	addrs    []string // broker 1 is the first one
	kerberos bool     // asks for a SaslHandshake of that mechanism and a bare token, on each connection

	mu        sync.Mutex
	down      map[string]error // what dialing an address says
	scripts   map[kmsg.Key]script
	calls     []*call
	tokens    []string
	refuses   bool // tokens
	conns     int
	logs      map[engine.Partition]*partitionLog
	grown     chan struct{} // closed and replaced when a log grows
	committed map[engine.Partition]engine.Offset

	member     string
	given      string // id of a member that has not joined with it yet
	members    int    // ids given out
	generation int32
	unrest     bool // heartbeats are answered "rebalance in progress" until the member joins again
}

type partitionLog struct {
	oldest int64
	values []string
}

func (l *partitionLog) newest() int64 { return l.oldest + int64(len(l.values)) }

// A script answers requests of one kind. Nil: no answer.
type script func(c *call) kmsg.Response

// A call is one request.
type call struct {
	conn    int // counts the connections
	addr    string
	at      time.Time
	request kmsg.Request
	gone    <-chan struct{} // closed when the connection has ended
	hangUp  func()
}

func newKafka(addrs ...string) *fakeKafka {
	return &fakeKafka{
		addrs:     addrs,
		down:      map[string]error{},
		scripts:   map[kmsg.Key]script{},
		logs:      map[engine.Partition]*partitionLog{},
		grown:     make(chan struct{}),
		committed: map[engine.Partition]engine.Offset{},
	}
}

// on replaces the answers to a kind of request; nil: the default again.
func (k *fakeKafka) on(key kmsg.Key, s script) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.scripts[key] = s
}

// once replaces the next answer only.
func (k *fakeKafka) once(key kmsg.Key, s script) {
	k.on(key, func(c *call) kmsg.Response {
		k.on(key, nil)
		return s(c)
	})
}

// silence gives no answer.
func silence(*call) kmsg.Response { return nil }

// partition makes a partition whose first messages are gone already.
func (k *fakeKafka) partition(p engine.Partition, oldest int64, values ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.logs[p] = &partitionLog{oldest, values}
}

// produce appends to a partition.
func (k *fakeKafka) produce(p engine.Partition, values ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.logs[p].values = append(k.logs[p].values, values...)
	close(k.grown)
	k.grown = make(chan struct{})
}

func (k *fakeKafka) commit(p engine.Partition, offset int64, metadata string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.committed[p] = engine.Offset{Partition: p, Offset: offset, Metadata: metadata}
}

// committedOffset is -1 if there is none.
func (k *fakeKafka) committedOffset(p engine.Partition) int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	if o, ok := k.committed[p]; ok {
		return o.Offset
	}
	return -1
}

// rebalance calls on the member to join again.
func (k *fakeKafka) rebalance() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.unrest = true
}

func (k *fakeKafka) fail(addr string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.down[addr] = err
}

// all are the requests of a kind so far.
func (k *fakeKafka) all(key kmsg.Key) []*call {
	k.mu.Lock()
	defer k.mu.Unlock()
	var found []*call
	for _, c := range k.calls {
		if kmsg.Key(c.request.Key()) == key {
			found = append(found, c)
		}
	}
	return found
}

func (k *fakeKafka) count(key kmsg.Key) int { return len(k.all(key)) }

func (k *fakeKafka) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = nil
}

func (k *fakeKafka) dial(_ context.Context, _, addr string) (net.Conn, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.down[addr]; err != nil {
		return nil, err
	}
	if !slices.Contains(k.addrs, addr) {
		return nil, fmt.Errorf("dial tcp: lookup %s: no such host", addr)
	}
	client, server := net.Pipe()
	k.conns++
	go k.serve(k.conns, addr, server)
	return client, nil
}

// serve answers the requests of one connection, one after the other as Kafka does.
func (k *fakeKafka) serve(number int, addr string, conn net.Conn) {
	frames, gone := make(chan []byte, 100), make(chan struct{})
	go func() {
		defer close(frames)
		defer close(gone)
		for {
			frame := make([]byte, 4)
			if _, err := io.ReadFull(conn, frame); err != nil {
				return
			}
			frame = make([]byte, binary.BigEndian.Uint32(frame))
			if _, err := io.ReadFull(conn, frame); err != nil {
				return
			}
			frames <- frame
		}
	}()
	defer conn.Close()
	proposed, authenticated := false, !k.kerberos
	for frame := range frames {
		if proposed && !authenticated {
			authenticated = k.accept(string(frame))
			if _, err := conn.Write(make([]byte, 4)); err != nil || !authenticated {
				return
			}
			continue
		}
		request := kmsg.RequestForKey(int16(binary.BigEndian.Uint16(frame)))
		request.SetVersion(int16(binary.BigEndian.Uint16(frame[2:])))
		correlation, clientID := frame[4:8], int(binary.BigEndian.Uint16(frame[8:]))
		if err := request.ReadFrom(frame[10+clientID:]); err != nil {
			panic(err)
		}
		if !authenticated {
			if handshake, ok := request.(*kmsg.SASLHandshakeRequest); !ok || handshake.Version != 0 {
				return // after version 1 tokens would have a header
			}
			proposed = true
		}
		c := &call{number, addr, time.Now(), request, gone, func() { _ = conn.Close() }}
		response := k.answer(c)
		if response == nil {
			continue
		}
		response.SetVersion(request.GetVersion())
		answer := response.AppendTo(append(make([]byte, 4), correlation...))
		binary.BigEndian.PutUint32(answer, uint32(len(answer)-4))
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

// accept reports whether it accepts a token.
func (k *fakeKafka) accept(token string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tokens = append(k.tokens, token)
	return !k.refuses
}

func (k *fakeKafka) answer(c *call) kmsg.Response {
	k.mu.Lock()
	k.calls = append(k.calls, c)
	s := k.scripts[kmsg.Key(c.request.Key())]
	k.mu.Unlock()
	if s != nil {
		return s(c)
	}
	return k.usual(c)
}

// usual is the answer of a broker that nothing is wrong with.
func (k *fakeKafka) usual(c *call) kmsg.Response {
	if r, ok := c.request.(*kmsg.FetchRequest); ok {
		return k.fetch(c, r)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch r := c.request.(type) {
	case *kmsg.ApiVersionsRequest:
		return speaks(nil)()
	case *kmsg.SASLHandshakeRequest:
		return kmsg.NewPtrSASLHandshakeResponse()
	case *kmsg.MetadataRequest:
		return k.metadata(r)
	case *kmsg.FindCoordinatorRequest:
		answer := kmsg.NewPtrFindCoordinatorResponse()
		answer.NodeID, answer.Host, answer.Port = 1, host(k.addrs[0]), 9092
		return answer
	case *kmsg.JoinGroupRequest:
		return k.join(r)
	case *kmsg.SyncGroupRequest:
		return k.sync(r)
	case *kmsg.HeartbeatRequest:
		answer := kmsg.NewPtrHeartbeatResponse()
		answer.ErrorCode = k.refusal(r.MemberID, r.Generation)
		if answer.ErrorCode == 0 && k.unrest {
			answer.ErrorCode = int16(sarama.ErrRebalanceInProgress)
		}
		return answer
	case *kmsg.LeaveGroupRequest:
		if r.MemberID == k.member {
			k.member = ""
		}
		return kmsg.NewPtrLeaveGroupResponse()
	case *kmsg.OffsetFetchRequest:
		return k.offsetFetch(r)
	case *kmsg.OffsetCommitRequest:
		return k.offsetCommit(r)
	case *kmsg.ListOffsetsRequest:
		return k.listOffsets(r)
	}
	panic(fmt.Sprintf("%T", c.request))
}

// speaks makes the answer to ApiVersions of a Kafka 3.9 that differs in some apis.
// Those that are notServed it does not have.
func speaks(differs map[kmsg.Key]versions) func() kmsg.Response {
	apis := map[kmsg.Key]versions{
		kmsg.Fetch: {0, 17}, kmsg.ListOffsets: {0, 9}, kmsg.Metadata: {0, 12}, kmsg.OffsetCommit: {0, 9}, kmsg.OffsetFetch: {0, 9},
		kmsg.FindCoordinator: {0, 6}, kmsg.JoinGroup: {0, 9}, kmsg.Heartbeat: {0, 4}, kmsg.LeaveGroup: {0, 5}, kmsg.SyncGroup: {0, 5},
	}
	maps.Copy(apis, differs)
	return func() kmsg.Response {
		answer := kmsg.NewPtrApiVersionsResponse()
		for key, v := range apis {
			if v != notServed {
				answer.ApiKeys = append(answer.ApiKeys, kmsg.ApiVersionsResponseApiKey{ApiKey: int16(key), MinVersion: v.oldest, MaxVersion: v.newest})
			}
		}
		return answer
	}
}

var notServed = versions{-1, -1}

// speaks makes one broker differ from the others.
func (k *fakeKafka) speaks(addr string, differs map[kmsg.Key]versions) {
	k.mu.Lock()
	others := k.scripts[kmsg.ApiVersions]
	k.mu.Unlock()
	k.on(kmsg.ApiVersions, func(c *call) kmsg.Response {
		switch {
		case c.addr == addr:
			return speaks(differs)()
		case others != nil:
			return others(c)
		default:
			return k.usual(c)
		}
	})
}

func host(addr string) string { return strings.TrimSuffix(addr, ":9092") }

func (k *fakeKafka) metadata(r *kmsg.MetadataRequest) *kmsg.MetadataResponse {
	answer := kmsg.NewPtrMetadataResponse()
	for i, addr := range k.addrs {
		answer.Brokers = append(answer.Brokers, kmsg.MetadataResponseBroker{NodeID: int32(i + 1), Host: host(addr), Port: 9092})
	}
	topics := map[string]*kmsg.MetadataResponseTopic{}
	for _, asked := range r.Topics {
		topics[*asked.Topic] = &kmsg.MetadataResponseTopic{Topic: asked.Topic, ErrorCode: int16(sarama.ErrUnknownTopicOrPartition)}
	}
	for _, p := range slices.SortedFunc(maps.Keys(k.logs), comparePartitions) {
		topic := topics[p.Topic]
		if topic == nil && len(r.Topics) > 0 {
			continue
		}
		if topic == nil {
			topic = &kmsg.MetadataResponseTopic{Topic: &p.Topic}
			topics[p.Topic] = topic
		}
		topic.ErrorCode = 0
		topic.Partitions = append(topic.Partitions, kmsg.MetadataResponseTopicPartition{Partition: p.Number, Leader: 1, Replicas: []int32{1}, ISR: []int32{1}})
	}
	for _, name := range slices.Sorted(maps.Keys(topics)) {
		answer.Topics = append(answer.Topics, *topics[name])
	}
	return answer
}

func (k *fakeKafka) refusal(member string, generation int32) int16 {
	switch {
	case k.member == "" || member != k.member:
		return int16(sarama.ErrUnknownMemberId)
	case generation != k.generation:
		return int16(sarama.ErrIllegalGeneration)
	}
	return 0
}

func (k *fakeKafka) join(r *kmsg.JoinGroupRequest) *kmsg.JoinGroupResponse {
	answer := kmsg.NewPtrJoinGroupResponse()
	protocol := "range"
	answer.Protocol = &protocol
	switch {
	case r.MemberID == "" && r.Version >= 4:
		k.members++
		k.given = fmt.Sprintf("m-%d", k.members)
		answer.ErrorCode, answer.MemberID, answer.Generation = int16(sarama.ErrMemberIdRequired), k.given, -1
		return answer
	case r.MemberID == "":
		k.members++
		k.member = fmt.Sprintf("m-%d", k.members)
	case r.MemberID == k.given:
		k.member, k.given = k.given, ""
	case r.MemberID != k.member:
		answer.ErrorCode = int16(sarama.ErrUnknownMemberId)
		return answer
	}
	k.generation++
	k.unrest = false
	answer.Generation, answer.MemberID, answer.LeaderID = k.generation, k.member, k.member
	answer.Members = []kmsg.JoinGroupResponseMember{{MemberID: k.member, ProtocolMetadata: r.Protocols[0].Metadata}}
	return answer
}

func (k *fakeKafka) sync(r *kmsg.SyncGroupRequest) *kmsg.SyncGroupResponse {
	answer := kmsg.NewPtrSyncGroupResponse()
	if answer.ErrorCode = k.refusal(r.MemberID, r.Generation); answer.ErrorCode != 0 {
		return answer
	}
	for _, a := range r.GroupAssignment {
		answer.MemberAssignment = a.MemberAssignment
	}
	return answer
}

func (k *fakeKafka) offsetFetch(r *kmsg.OffsetFetchRequest) *kmsg.OffsetFetchResponse {
	answer := kmsg.NewPtrOffsetFetchResponse()
	for _, topic := range r.Topics {
		at := kmsg.OffsetFetchResponseTopic{Topic: topic.Topic}
		for _, number := range topic.Partitions {
			p := kmsg.OffsetFetchResponseTopicPartition{Partition: number, Offset: -1, Metadata: new(string)}
			if o, ok := k.committed[engine.Partition{Topic: topic.Topic, Number: number}]; ok {
				p.Offset, p.Metadata = o.Offset, &o.Metadata
			}
			at.Partitions = append(at.Partitions, p)
		}
		answer.Topics = append(answer.Topics, at)
	}
	return answer
}

func (k *fakeKafka) offsetCommit(r *kmsg.OffsetCommitRequest) *kmsg.OffsetCommitResponse {
	code := k.refusal(r.MemberID, r.Generation)
	if code == 0 {
		for _, o := range offsetsOf(r) {
			k.committed[o.Partition] = o
		}
	}
	return refuseCommit(r, func(engine.Partition) sarama.KError { return sarama.KError(code) })
}

// offsetsOf is what a commit asks for, sorted.
func offsetsOf(r kmsg.Request) []engine.Offset {
	var offsets []engine.Offset
	for _, topic := range r.(*kmsg.OffsetCommitRequest).Topics {
		for _, p := range topic.Partitions {
			o := engine.Offset{Partition: engine.Partition{Topic: topic.Topic, Number: p.Partition}, Offset: p.Offset}
			if p.Metadata != nil {
				o.Metadata = *p.Metadata
			}
			offsets = append(offsets, o)
		}
	}
	slices.SortFunc(offsets, func(a, b engine.Offset) int { return comparePartitions(a.Partition, b.Partition) })
	return offsets
}

// refuseCommit answers a commit with an error for each partition, or none.
func refuseCommit(r kmsg.Request, code func(engine.Partition) sarama.KError) *kmsg.OffsetCommitResponse {
	answer := kmsg.NewPtrOffsetCommitResponse()
	for _, topic := range r.(*kmsg.OffsetCommitRequest).Topics {
		at := kmsg.OffsetCommitResponseTopic{Topic: topic.Topic}
		for _, p := range topic.Partitions {
			at.Partitions = append(at.Partitions, kmsg.OffsetCommitResponseTopicPartition{
				Partition: p.Partition,
				ErrorCode: int16(code(engine.Partition{Topic: topic.Topic, Number: p.Partition})),
			})
		}
		answer.Topics = append(answer.Topics, at)
	}
	return answer
}

func (k *fakeKafka) listOffsets(r *kmsg.ListOffsetsRequest) *kmsg.ListOffsetsResponse {
	answer := kmsg.NewPtrListOffsetsResponse()
	for _, topic := range r.Topics {
		at := kmsg.ListOffsetsResponseTopic{Topic: topic.Topic}
		for _, asked := range topic.Partitions {
			log := k.logs[engine.Partition{Topic: topic.Topic, Number: asked.Partition}]
			p := kmsg.ListOffsetsResponseTopicPartition{Partition: asked.Partition, Timestamp: -1, Offset: log.newest()}
			if asked.Timestamp == sarama.OffsetOldest {
				p.Offset = log.oldest
			}
			at.Partitions = append(at.Partitions, p)
		}
		answer.Topics = append(answer.Topics, at)
	}
	return answer
}

// fetch waits for messages as long as it is asked to.
func (k *fakeKafka) fetch(c *call, r *kmsg.FetchRequest) kmsg.Response {
	timer := time.NewTimer(time.Duration(r.MaxWaitMillis) * time.Millisecond)
	defer timer.Stop()
	for {
		k.mu.Lock()
		answer, some := k.fetched(r)
		grown := k.grown
		k.mu.Unlock()
		if some {
			return answer
		}
		select {
		case <-grown:
		case <-timer.C:
			return answer
		case <-c.gone:
			return nil
		}
	}
}

func (k *fakeKafka) fetched(r *kmsg.FetchRequest) (answer *kmsg.FetchResponse, some bool) {
	answer = kmsg.NewPtrFetchResponse()
	for _, topic := range r.Topics {
		at := kmsg.FetchResponseTopic{Topic: topic.Topic}
		for _, asked := range topic.Partitions {
			log := k.logs[engine.Partition{Topic: topic.Topic, Number: asked.Partition}]
			p := kmsg.FetchResponseTopicPartition{Partition: asked.Partition, HighWatermark: log.newest(), LastStableOffset: log.newest(), LogStartOffset: log.oldest, RecordBatches: []byte{}}
			switch from := asked.FetchOffset; {
			case from < log.oldest || from > log.newest():
				p.ErrorCode = int16(sarama.ErrOffsetOutOfRange)
				some = true
			case from < log.newest():
				p.RecordBatches = recordBatch(from, log.values[from-log.oldest:])
				some = true
			}
			at.Partitions = append(at.Partitions, p)
		}
		answer.Topics = append(answer.Topics, at)
	}
	return answer, some
}

func recordBatch(firstOffset int64, values []string) []byte {
	var records []byte
	for i, value := range values {
		r := kmsg.Record{OffsetDelta: int32(i), Value: []byte(value)}
		r.Length = int32(len(r.AppendTo(nil)) - 1) // less the length itself
		records = r.AppendTo(records)
	}
	batch := (&kmsg.RecordBatch{
		FirstOffset:     firstOffset,
		Magic:           2,
		LastOffsetDelta: int32(len(values) - 1),
		ProducerID:      -1,
		ProducerEpoch:   -1,
		FirstSequence:   -1,
		NumRecords:      int32(len(values)),
		Records:         records,
	}).AppendTo(nil)
	const length, crc, summed = 8, 17, 21
	binary.BigEndian.PutUint32(batch[length:], uint32(len(batch)-12))
	binary.BigEndian.PutUint32(batch[crc:], crc32.Checksum(batch[summed:], crc32.MakeTable(crc32.Castagnoli)))
	return batch
}
