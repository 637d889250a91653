package kgroup

// The engine on brokers that live in memory. Their connections are pipes, so that
// sarama-cluster itself runs inside a synctest bubble: on its clock, and a goroutine
// that is left behind fails the test. (sarama's MockBroker answers one request at a
// time over all its connections; here a JoinGroup may wait while another connection
// goes on.)

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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
	addrs []string // broker 1 is the first one

	mu        sync.Mutex
	down      map[string]error // what dialing an address says
	scripts   map[kmsg.Key]script
	calls     []*call
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
	for frame := range frames {
		request := kmsg.RequestForKey(int16(binary.BigEndian.Uint16(frame)))
		request.SetVersion(int16(binary.BigEndian.Uint16(frame[2:])))
		correlation, clientID := frame[4:8], int(binary.BigEndian.Uint16(frame[8:]))
		if err := request.ReadFrom(frame[10+clientID:]); err != nil {
			panic(err)
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

// A fakeSession writes down what the engine does to it. Its lanes take what is
// delivered and never work.
type fakeSession struct {
	history history
	queue   int                                                   // of the lanes; zero: they are never full
	opening func(ctx context.Context, claims []engine.Claim) bool // called by Assigned; false: over before it began
	sealing func()                                                // called by Seal
	revoke  func(cancelAt, until time.Time)                       // called by Revoke
	handle  func(p engine.Partition, r engine.Record) engine.Handled

	mu     sync.Mutex
	opened int
	claims []engine.Claim
	lanes  map[engine.Partition]*fakeLane
}

func (s *fakeSession) RebalanceStarted(owned map[string][]int32) { s.history.add("started %v", owned) }
func (s *fakeSession) RebalanceFailed(err error)                 { s.history.add("failed: %v", err) }
func (s *fakeSession) Error(err error)                           { s.history.add("error: %v", err) }

func (s *fakeSession) Assigned(ctx context.Context, generation int64, claims []engine.Claim, _ engine.Change) []engine.Lane {
	line := fmt.Sprintf("assigned %d:", generation)
	for _, c := range claims {
		line += fmt.Sprintf(" %v@%d", c.Partition, c.Offset)
	}
	s.history.add("%s", line)
	if s.opening != nil && !s.opening(ctx, claims) || ctx.Err() != nil {
		s.history.add("not opened %d", generation)
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened++
	s.claims, s.lanes = claims, map[engine.Partition]*fakeLane{}
	lanes := []engine.Lane{}
	for _, c := range claims {
		lane := newFakeLane(s.queue)
		if s.handle != nil {
			lane.handle = func(r engine.Record) engine.Handled { return s.handle(c.Partition, r) }
		}
		s.lanes[c.Partition] = lane
		lanes = append(lanes, lane)
	}
	return lanes
}

func (s *fakeSession) Seal(generation int64) {
	s.history.add("seal %d", generation)
	if s.sealing != nil {
		s.sealing()
	}
}

func (s *fakeSession) Revoke(generation int64, cancelAt, until time.Time) {
	s.history.add("revoke %d", generation)
	if s.revoke != nil {
		s.revoke(cancelAt, until)
	}
}

func (s *fakeSession) Lost(generation int64, cause error) {
	s.history.add("lost %d: %v", generation, cause)
}

func (s *fakeSession) lane(p engine.Partition) *fakeLane {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lanes[p]
}

// A fakeLane is a lane's queue without a worker.
type fakeLane struct {
	*queue
	handle func(engine.Record) engine.Handled // Handle; nil: it declines

	mu        sync.Mutex
	delivered []int64
	deepest   int
}

func newFakeLane(limit int) *fakeLane {
	if limit == 0 {
		limit = 1 << 20
	}
	return &fakeLane{queue: newQueue(limit)}
}

func (l *fakeLane) Handle(r engine.Record, _ func() (engine.Record, bool)) engine.Handled {
	if l.handle == nil {
		return engine.Declined
	}
	return l.handle(r)
}

func (l *fakeLane) Deliver(records []engine.Record) (full bool) {
	full = l.put(records)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range records {
		l.delivered = append(l.delivered, r.Offset())
	}
	l.deepest = max(l.deepest, l.Len())
	return full
}

func (l *fakeLane) Room() <-chan struct{} { return l.room }
func (l *fakeLane) Len() int              { return l.len() }

// offsets are those delivered so far.
func (l *fakeLane) offsets() []int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.delivered)
}

// depth is the most messages that the lane has held.
func (l *fakeLane) depth() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deepest
}

// work takes the lane's messages, each in the given time, until the lane is closed.
func (l *fakeLane) work(each time.Duration, closed <-chan struct{}) {
	for {
		batch := l.take(closed)
		if batch == nil {
			return
		}
		time.Sleep(each * time.Duration(len(batch)))
	}
}

// A stubClient is a sarama.Client that answers what a test says.
type stubClient struct {
	sarama.Client
	topics             func() ([]string, error)
	partitions         func(topic string) ([]int32, error)
	refresh            func(topics ...string) error
	refreshCoordinator func() error
	coordinator        func() (*sarama.Broker, error)
	leader             func(topic string, partition int32) (*sarama.Broker, error)
	brokers            func() []*sarama.Broker
	offset             func(topic string, partition int32, at int64) (int64, error)
}

func (c *stubClient) Topics() ([]string, error)                        { return c.topics() }
func (c *stubClient) Partitions(topic string) ([]int32, error)         { return c.partitions(topic) }
func (c *stubClient) RefreshMetadata(topics ...string) error           { return c.refresh(topics...) }
func (c *stubClient) RefreshCoordinator(string) error                  { return c.refreshCoordinator() }
func (c *stubClient) Coordinator(string) (*sarama.Broker, error)       { return c.coordinator() }
func (c *stubClient) Brokers() []*sarama.Broker                        { return c.brokers() }
func (c *stubClient) Leader(t string, p int32) (*sarama.Broker, error) { return c.leader(t, p) }
func (c *stubClient) Close() error                                     { return nil }
func (c *stubClient) GetOffset(topic string, partition int32, at int64) (int64, error) {
	return c.offset(topic, partition, at)
}

var errUnreachable = errors.New("connection refused")

// newTestGroup makes a group as New does, and ends what the test leaves.
func newTestGroup(t *testing.T, change func(*Config)) (*group, *fakeSession) {
	t.Helper()
	cfg := Config{
		Brokers: []string{"one:9092"},
		Group:   "billing",
		Topics:  Topics{"orders": {Handler: HandlerFunc(nop)}, "refunds": {Handler: HandlerFunc(nop)}},
		Dial:    func(context.Context, string, string) (net.Conn, error) { return nil, errUnreachable },
	}
	if change != nil {
		change(&cfg)
	}
	require.NoError(t, cfg.Validate())
	cfg = cfg.withDefaults()
	built, err := cfg.engineConfig()
	require.NoError(t, err)
	g := newGroup(cfg, newMatcher(cfg.Topics), built, slog.New(slog.DiscardHandler))
	g.consumer = &cluster.Consumer{} // its channels never have anything
	s := &fakeSession{}
	g.session = s
	t.Cleanup(func() {
		if g.stop == nil || g.leaving.Load() {
			g.end()
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		_ = g.Leave(ctx) // the test has failed
	})
	return g, s
}

// stubbed gives g a client that answers what the test says, and a coordinator.
func stubbed(g *group) *stubClient {
	stub := &stubClient{
		refreshCoordinator: func() error { return nil },
		coordinator:        func() (*sarama.Broker, error) { return sarama.NewBroker("one:9092"), nil },
		refresh:            func(...string) error { return nil },
	}
	g.inner = stub
	g.levers = newLevers(stub, g)
	return stub
}

// atDrainPoint is a group with an open generation whose loop only seals.
func atDrainPoint(t *testing.T) (*group, *fakeSession, *stubClient) {
	t.Helper()
	g, s, _ := aMember(t)
	stub := g.inner.(*stubClient)
	g.starting.Store(true)
	close(g.created)
	ended, stop := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case ack := <-g.seals:
				g.sealed(newRoutes())
				close(ack)
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-ended
	})
	return g, s, stub
}

func TestDrainPoint(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, s, stub := atDrainPoint(t)
		stub.refreshCoordinator = func() error { s.history.add("find the coordinator"); return nil }
		opening := g.slot
		s.sealing = func() { require.Error(t, opening.Err(), "an opening under way gives up before it is waited for") }
		var cancelIn, giveUpIn time.Duration
		s.revoke = func(cancelAt, until time.Time) {
			cancelIn, giveUpIn = time.Until(cancelAt), time.Until(until)
			_, err := g.Commit(t.Context(), 1, someOffsets)
			require.NoError(t, err, "the partitions are still ours")
		}
		g.levers.places[orders0] = &place{}
		g.member.HeartbeatAnswered(member7, time.Now(), int16(sarama.ErrRebalanceInProgress))
		time.Sleep(3 * time.Second) // until the engine has stopped its loops

		require.NoError(t, g.levers.RefreshCoordinator("billing"))
		assert.Equal(t, []string{
			"seal 1",
			"started map[orders:[0 1]]",
			"find the coordinator",
			"revoke 1",
		}, s.history.all())
		// 20 s of the session, less a heartbeat, a fetch, 1 s, and what has passed.
		assert.Equal(t, 17750*time.Millisecond-3*time.Second, giveUpIn)
		assert.Equal(t, 17750*time.Millisecond*4/5-3*time.Second, cancelIn)
		_, err := g.Commit(t.Context(), 1, someOffsets)
		require.ErrorIs(t, err, engine.ErrGone, "it is given up")
		require.NoError(t, g.slot.Err(), "the next generation may be opened")
		assert.False(t, g.isOpen())
		g.member.JoinSent("")
		assert.Empty(t, g.levers.places, "what was learnt for it is forgotten")

		s.history.clear()
		require.NoError(t, g.levers.RefreshCoordinator("billing"), "joining has failed; the engine comes again")
		assert.Equal(t, []string{"find the coordinator"}, s.history.all(), "there is nothing to give up, and nothing new to say")
	})
}

// While the coordinator is not found the engine comes again and again, and does not
// stop fetching (D13): the seal stays.
func TestDrainPointWithoutACoordinator(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, s, stub := atDrainPoint(t)
		failures := 3
		stub.refreshCoordinator = func() error {
			if failures--; failures >= 0 {
				return errTransient
			}
			return nil
		}
		for range 3 {
			require.ErrorIs(t, g.levers.RefreshCoordinator("billing"), errTransient)
			assert.Empty(t, s.history.all("revoke"))
			assert.NotEmpty(t, s.history.all("seal 1"))
			_, err := g.Commit(t.Context(), 1, someOffsets)
			require.NoError(t, err, "what handlers at work finish now still counts")
		}
		require.NoError(t, g.levers.RefreshCoordinator("billing"))
		assert.Len(t, s.history.all("revoke 1"), 1)
		assert.Equal(t, []string{"started map[orders:[0 1]]"}, s.history.all("started"), "told once")
	})
}

// Symptom: a coordinator that was away for a while made handlers at work be given up the
// moment it was back, and their messages repeat. Cause: the time without a coordinator
// counted as time that the group had waited.
func TestDrainHasItsTimeAfterACoordinatorWasAway(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, s, stub := atDrainPoint(t)
		back := time.Now().Add(18 * time.Second)
		stub.refreshCoordinator = func() error {
			if time.Now().Before(back) {
				return errTransient
			}
			return nil
		}
		var giveUpIn time.Duration
		s.revoke = func(_, until time.Time) { giveUpIn = time.Until(until) }
		for g.levers.RefreshCoordinator("billing") != nil {
			time.Sleep(100 * time.Millisecond)
		}
		assert.Equal(t, 17750*time.Millisecond, giveUpIn)
	})
}

// The engine asks for the coordinator once before its main loop runs.
func TestDrainPointBeforeTheStart(t *testing.T) {
	g, s := newTestGroup(t, nil)
	stub := stubbed(g)
	stub.refreshCoordinator = func() error { return errTransient }
	require.ErrorIs(t, g.levers.RefreshCoordinator("billing"), errTransient)
	assert.Empty(t, s.history.all())
}

func TestDrainPointWhileLeaving(t *testing.T) {
	for name, err := range map[string]error{"found": nil, "not found": errTransient} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				g, s, stub := atDrainPoint(t)
				stub.refreshCoordinator = func() error { return err }
				g.leaving.Store(true)
				require.ErrorIs(t, g.levers.RefreshCoordinator("billing"), errStopping, "the engine must not join again")
				assert.Len(t, s.history.all("revoke 1"), 1)
			})
		})
	}
}

// The slot that a loss ends is its generation's. When the broker still knows the member
// (its coordinator hung, say), the very next JoinGroup works, and a generation that was
// never opened looks healthy and handles nothing, for ever.
func TestLossDuringTheDrainDoesNotEndTheNextGeneration(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, s, _ := atDrainPoint(t)
		watching(t, g, func() {
			s.revoke = func(time.Time, time.Time) {
				g.member.lost(member7, errTransient)
				synctest.Wait()
			}
			require.NoError(t, g.levers.RefreshCoordinator("billing"))
		})
		assert.Equal(t, []string{"lost 1: " + errTransient.Error()}, s.history.all("lost"))
		assert.NoError(t, g.slot.Err(), "the next generation cannot be opened")
	})
}

func TestEngineErrors(t *testing.T) {
	fetch := func(err error) error { return &sarama.ConsumerError{Topic: "orders", Partition: 0, Err: err} }
	tests := []struct {
		name   string
		change func(*group)
		err    error
		want   []string
	}{
		{"fetch", nil, fetch(errTransient), []string{"error: fetch orders/0: " + errTransient.Error()}},
		{"fetch, incomplete", nil, fetch(sarama.ErrIncompleteResponse), []string{"error: fetch orders/0: " + sarama.ErrIncompleteResponse.Error()}},
		{
			"a paused partition's complaint",
			func(g *group) { g.paused.Store(orders0, time.Now().Add(time.Second)) }, fetch(sarama.ErrIncompleteResponse), nil,
		},
		{
			"another error of a paused partition",
			func(g *group) { g.paused.Store(orders0, time.Now().Add(time.Second)) }, fetch(errTransient),
			[]string{"error: fetch orders/0: " + errTransient.Error()},
		},
		{
			"of a partition that was paused long ago",
			func(g *group) { g.paused.Store(orders0, time.Now().Add(-time.Second)) }, fetch(sarama.ErrIncompleteResponse),
			[]string{"error: fetch orders/0: " + sarama.ErrIncompleteResponse.Error()},
		},
		{
			"while another is paused",
			func(g *group) { g.paused.Store(orders1, time.Now().Add(time.Second)) }, fetch(sarama.ErrIncompleteResponse),
			[]string{"error: fetch orders/0: " + sarama.ErrIncompleteResponse.Error()},
		},
		{"another error", nil, errTransient, []string{"error: " + errTransient.Error()}},
		{"rejoin", nil, errors.New(errRejoin.Error()), nil}, // as the engine tells it: only the text is left
		{"session", nil, errors.New(errSession.Error()), nil},
		{"stopping", nil, errors.New(errStopping.Error()), nil},
		{"fetch, while leaving", func(g *group) { g.leaving.Store(true) }, fetch(errTransient), nil},
		{"another error, while leaving", func(g *group) { g.leaving.Store(true) }, errTransient, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			g, s := newTestGroup(t, nil)
			if test.change != nil {
				test.change(g)
			}
			g.engineError(test.err)
			assert.Equal(t, test.want, s.history.all())
		})
	}
}

// onEngine starts the engine on a cluster with two partitions of orders, and leaves
// the group when body has returned.
func onEngine(t *testing.T, mode Mode, change func(*fakeKafka, *Config, *fakeSession), body func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka)) {
	t.Helper()
	inBubble(t, func(t *testing.T) {
		kafka := newKafka("one:9092", "two:9092")
		kafka.partition(orders0, 0)
		kafka.partition(orders1, 0)
		session := &fakeSession{}
		g, _ := newTestGroup(t, func(cfg *Config) {
			cfg.Brokers, cfg.Dial, cfg.Mode = kafka.addrs, kafka.dial, mode
			cfg.Topics = Topics{"orders": {Handler: HandlerFunc(nop)}}
			if change != nil {
				change(kafka, cfg, session)
			}
		})
		require.NoError(t, g.Start(t.Context(), session))
		body(t, g, session, kafka)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		require.NoError(t, g.Leave(ctx))
		assert.LessOrEqual(t, time.Since(began), time.Second)
		assert.Zero(t, g.network.Open())
		assert.Empty(t, kafka.member, "it has left the group")
	})
}

// inEachMode runs a test with each way to get messages out of the engine.
func inEachMode(t *testing.T, test func(t *testing.T, mode Mode)) {
	t.Helper()
	for _, mode := range []Mode{Multiplex, Partitions} {
		t.Run(mode.String(), func(t *testing.T) { test(t, mode) })
	}
}

// eventually lets virtual time pass until something has happened.
func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for range 1000 {
		synctest.Wait()
		if happened() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	require.Fail(t, "never", what)
}

func (s *fakeSession) generations() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened
}

func opensGeneration(t *testing.T, s *fakeSession, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("generation %d: %v", n, s.history.all()), func() bool { return s.generations() == n })
}

// Consume, rebalance, consume, leave.
func TestEngineRun(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		onEngine(t, mode, nil, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
			s.revoke = func(time.Time, time.Time) {
				_, err := g.Commit(t.Context(), int64(s.generations()), []engine.Offset{{Partition: orders0, Offset: 3}, {Partition: orders1, Offset: 1}})
				assert.NoError(t, err)
			}
			opensGeneration(t, s, 1)
			kafka.produce(orders0, "a", "b", "c")
			kafka.produce(orders1, "d", "e")
			eventually(t, "messages", func() bool { return len(s.lane(orders0).offsets()) == 3 && len(s.lane(orders1).offsets()) == 2 })
			assert.Equal(t, map[engine.Partition]int64{orders0: 3, orders1: 2}, g.HighWatermarks())
			before := s.lanes

			kafka.rebalance()
			opensGeneration(t, s, 2)
			kafka.produce(orders0, "f")
			eventually(t, "messages", func() bool { return len(s.lane(orders0).offsets()) == 1 && len(s.lane(orders1).offsets()) == 1 })
			assert.Equal(t, []int64{3}, s.lane(orders0).offsets())
			assert.Equal(t, []int64{1}, s.lane(orders1).offsets(), "what was not committed comes again")
			assert.Equal(t, []int64{0, 1, 2}, before[orders0].offsets(), "nothing went to the lanes of the generation before")
			assert.Equal(t, []int64{0, 1}, before[orders1].offsets())
			assert.Equal(t, []string{
				"started map[]",
				"assigned 1: orders/0@0 orders/1@0",
				"seal 1",
				"started map[orders:[0 1]]",
				"revoke 1",
				"assigned 2: orders/0@3 orders/1@1",
			}, s.history.all())
			assert.Empty(t, g.failed)
		})
	})
}

// Under Start: Newest nothing that is produced while a rebalance goes on is skipped.
func TestEngineRunUnderNewest(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		newest := func(kafka *fakeKafka, cfg *Config, _ *fakeSession) {
			cfg.Start = Newest
			kafka.partition(orders0, 40, "old", "older")
		}
		onEngine(t, mode, newest, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
			opensGeneration(t, s, 1)
			assert.Equal(t, []string{"assigned 1: orders/0@42 orders/1@0"}, s.history.all("assigned"))
			assert.True(t, s.claims[0].Fresh)
			_, err := g.Commit(t.Context(), 1, []engine.Offset{{Partition: orders0, Offset: 42, Metadata: s.claims[0].Metadata}})
			require.NoError(t, err)
			kafka.produce(orders0, "new")
			kafka.rebalance()
			opensGeneration(t, s, 2)
			eventually(t, "the message", func() bool { return len(s.lane(orders0).offsets()) == 1 })
			assert.Equal(t, []int64{42}, s.lane(orders0).offsets())
		})
	})
}

// A group with more members than partitions gives this one none.
func TestEngineRunWithoutPartitions(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		none := func(kafka *fakeKafka, _ *Config, _ *fakeSession) {
			kafka.on(kmsg.SyncGroup, answersWith(func() kmsg.Response { return kmsg.NewPtrSyncGroupResponse() }))
		}
		onEngine(t, mode, none, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
			opensGeneration(t, s, 1)
			assert.Equal(t, []string{"started map[]", "assigned 1:"}, s.history.all())
			kafka.on(kmsg.SyncGroup, nil)
			kafka.rebalance()
			opensGeneration(t, s, 2)
			assert.Equal(t, []string{"started map[]", "assigned 1:", "seal 1", "started map[]", "revoke 1", "assigned 2: orders/0@0 orders/1@0"}, s.history.all())
		})
	})
}

// The engine writes to a notification that it has sent (D6): the race detector finds
// whoever reads it.
func TestJoinFailsAtFirst(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		failures := 3
		change := func(kafka *fakeKafka, _ *Config, _ *fakeSession) {
			kafka.on(kmsg.JoinGroup, func(c *call) kmsg.Response {
				if failures--; failures >= 0 {
					answer := kmsg.NewPtrJoinGroupResponse()
					answer.ErrorCode = int16(sarama.ErrOffsetsLoadInProgress)
					return answer
				}
				return kafka.usual(c)
			})
		}
		onEngine(t, mode, change, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
			opensGeneration(t, s, 1)
			failed := "failed: rebalance: " + sarama.ErrOffsetsLoadInProgress.Error()
			assert.Equal(t, []string{failed, failed, failed}, s.history.all("failed"))
			assert.Equal(t, []string{"started map[]"}, s.history.all("started"), "told once")
			assert.Empty(t, s.history.all("error:"))
		})
	})
}

func TestJoinIsRefusedForGood(t *testing.T) {
	refuse := func(*call) kmsg.Response {
		answer := kmsg.NewPtrJoinGroupResponse()
		answer.ErrorCode = int16(sarama.ErrInconsistentGroupProtocol)
		return answer
	}
	change := func(kafka *fakeKafka, _ *Config, _ *fakeSession) { kafka.on(kmsg.JoinGroup, refuse) }
	onEngine(t, Multiplex, change, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
		err := <-g.Failed()
		require.ErrorContains(t, err, `kgroup: group "billing": join the group: `)
		require.ErrorIs(t, err, sarama.ErrInconsistentGroupProtocol)
		time.Sleep(time.Second)
		assert.LessOrEqual(t, len(g.failed), 1, "and the engine goes on trying")
	})
	onEngine(t, Multiplex, nil, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
		opensGeneration(t, s, 1)
		kafka.on(kmsg.JoinGroup, refuse)
		kafka.rebalance()
		eventually(t, "the refusal", func() bool { return len(s.history.all("failed:")) > 0 })
		assert.Empty(t, g.failed, "after the first assignment it is survived")
	})
}

// A group that refuses this member was asked ten times a second, for ever.
func TestJoinIsTriedAgainWithBackoff(t *testing.T) {
	onEngine(t, Multiplex, nil, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
		opensGeneration(t, s, 1)
		kafka.on(kmsg.JoinGroup, func(*call) kmsg.Response {
			answer := kmsg.NewPtrJoinGroupResponse()
			answer.ErrorCode = int16(sarama.ErrGroupAuthorizationFailed)
			return answer
		})
		kafka.rebalance()
		time.Sleep(10 * time.Second)
		kafka.forget()
		time.Sleep(time.Minute)
		for _, key := range []kmsg.Key{kmsg.JoinGroup, kmsg.FindCoordinator, kmsg.Metadata} {
			assert.LessOrEqual(t, kafka.count(key), 70, key.Name())
		}
		kafka.on(kmsg.JoinGroup, nil)
		began := time.Now()
		opensGeneration(t, s, 2)
		assert.LessOrEqual(t, time.Since(began), 2*time.Second)
	})
}

// If one partition cannot be opened the engine gives all of them up without calling
// anything, while others deliver already.
func TestAssignmentThatCouldNotBeOpened(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		// The offset of orders/1 is asked for alone, under Start: Newest, and the first
		// time nobody knows: orders/0, which is open by then, has nothing to wait for.
		var kafka *fakeKafka
		failures := 2
		change := func(k *fakeKafka, cfg *Config, _ *fakeSession) {
			kafka = k
			cfg.Start = Newest
			k.commit(orders0, 0, "kgroup/1 n=2")
			k.partition(orders0, 0, "a", "b", "c")
			asked := 0
			k.on(kmsg.OffsetFetch, func(c *call) kmsg.Response {
				answer := k.usual(c).(*kmsg.OffsetFetchResponse)
				if asked++; asked%2 == 0 && failures > 0 { // the engine's question comes first, then ours
					failures--
					time.Sleep(time.Second)
					answer.Topics[0].Partitions[1].ErrorCode = int16(sarama.ErrOffsetsLoadInProgress)
				}
				return answer
			})
		}
		onEngine(t, mode, change, func(t *testing.T, g *group, s *fakeSession, _ *fakeKafka) {
			opensGeneration(t, s, 1)
			eventually(t, "messages", func() bool { return len(s.lane(orders0).offsets()) == 3 })
			assert.Equal(t, []int64{0, 1, 2}, s.lane(orders0).offsets())
			assert.Zero(t, failures)
			assert.Len(t, s.history.all("assigned"), 1)
			assert.Empty(t, s.history.all("without an assignment"), "what the first attempts delivered was not looked at")
			assert.Len(t, s.history.all("failed:", "offsets of topic orders"), 2)
			kafka.produce(orders1, "d")
			eventually(t, "the other partition", func() bool { return len(s.lane(orders1).offsets()) == 1 })
		})
	})
}

func TestSessionIsLostOnTheEngine(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		onEngine(t, mode, nil, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
			opensGeneration(t, s, 1)
			kafka.mu.Lock()
			kafka.member = "" // thrown out
			kafka.mu.Unlock()
			opensGeneration(t, s, 2)
			lost := s.history.all("lost")
			require.Len(t, lost, 1)
			assert.Contains(t, lost[0], sarama.ErrUnknownMemberId.Error())
			kafka.produce(orders0, "a")
			eventually(t, "the message", func() bool { return len(s.lane(orders0).offsets()) == 1 })
		})
	})
}

// The same as TestLossDuringTheDrainDoesNotEndTheNextGeneration, on the engine: the
// coordinator refuses a heartbeat of the drain, and takes the member back at once.
func TestGenerationAfterALossDuringTheDrain(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		onEngine(t, mode, nil, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
			opensGeneration(t, s, 1)
			s.revoke = func(time.Time, time.Time) {
				s.revoke = nil
				kafka.on(kmsg.Heartbeat, refuseHeartbeat(sarama.ErrIllegalGeneration))
				time.Sleep(5 * time.Second)
				kafka.on(kmsg.Heartbeat, nil)
			}
			kafka.rebalance()
			time.Sleep(time.Minute)
			synctest.Wait()
			assert.Len(t, s.history.all("lost 1"), 1)
			assert.Equal(t, 2, s.generations(), "the group looks healthy and handles nothing: %v", s.history.all())
		})
	})
}

// The coordinator's broker is gone for a while. The generation is sealed at once, and
// given up when there is a coordinator again.
func TestCoordinatorIsAwayForAWhile(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		onEngine(t, mode, nil, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
			opensGeneration(t, s, 1)
			away := answersWith(findCoordinator("", sarama.ErrConsumerCoordinatorNotAvailable))
			kafka.partition(firstOf("__consumer_offsets"), 0)
			kafka.on(kmsg.FindCoordinator, away)
			kafka.on(kmsg.Heartbeat, func(c *call) kmsg.Response { c.hangUp(); return nil })
			eventually(t, "the seal", func() bool { return len(s.history.all("seal 1")) > 0 })
			kafka.produce(orders0, "a")
			time.Sleep(5 * time.Second)
			synctest.Wait()
			assert.Empty(t, s.history.all("revoke"))
			assert.Empty(t, s.history.all("lost"), "there is time left")

			kafka.on(kmsg.FindCoordinator, nil)
			kafka.on(kmsg.Heartbeat, nil)
			opensGeneration(t, s, 2)
			assert.Len(t, s.history.all("revoke 1"), 1)
			assert.Len(t, s.history.all("started map[orders:[0 1]]"), 1)
			eventually(t, "the message", func() bool { return len(s.lane(orders0).offsets()) == 1 })
		})
	})
}

// Symptom: a handler of a few seconds was cancelled, and its message repeated, when the
// coordinator's broker went down while it was drained. Cause: nobody but the engine asked
// for the coordinator anew, and the engine was waiting for the drain.
func TestDrainFindsACoordinatorThatHasMoved(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		onEngine(t, mode, nil, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
			opensGeneration(t, s, 1)
			s.revoke = func(time.Time, time.Time) { // a handler at work for 30 s of a longer budget
				kafka.fail("one:9092", errors.New("connection refused"))
				kafka.on(kmsg.FindCoordinator, func(*call) kmsg.Response {
					answer := kmsg.NewPtrFindCoordinatorResponse()
					answer.NodeID, answer.Host, answer.Port = 2, "two", 9092
					return answer
				})
				kafka.on(kmsg.Heartbeat, func(c *call) kmsg.Response {
					if c.addr == "one:9092" {
						c.hangUp()
						return nil
					}
					return kafka.usual(c)
				})
				time.Sleep(30 * time.Second)
				s.revoke = nil
			}
			kafka.rebalance()
			opensGeneration(t, s, 2)
			assert.Empty(t, s.history.all("lost"))
			kafka.fail("one:9092", nil)
		})
	})
}

// The group throws the member out while it still asks for offsets: what it knows by
// then must keep it from handling anything.
func TestMembershipLostWhilePartitionsAreOpened(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		change := func(kafka *fakeKafka, _ *Config, _ *fakeSession) {
			first := true
			kafka.on(kmsg.ListOffsets, func(c *call) kmsg.Response {
				if first {
					first = false
					kafka.mu.Lock()
					kafka.member = "" // thrown out
					kafka.mu.Unlock()
					time.Sleep(3 * time.Second)
				}
				return kafka.usual(c)
			})
		}
		onEngine(t, mode, change, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
			opensGeneration(t, s, 1)
			assert.Len(t, s.history.all("assigned"), 1, "%v", s.history.all())
			assert.Len(t, s.history.all("failed: the session was lost"), 1)
			assert.Len(t, s.history.all("started"), 1, "told once")
			kafka.produce(orders0, "a")
			eventually(t, "the message", func() bool { return len(s.lane(orders0).offsets()) == 1 })
		})
	})
}

// Somebody who sets a registry in Tune, to export sarama's metrics with his own, lost all
// of them when the consumer ended.
func TestMetricsOfTheUserAreLeftAlone(t *testing.T) {
	registry := sarama.NewConfig().MetricRegistry
	shared := func(_ *fakeKafka, cfg *Config, _ *fakeSession) {
		cfg.Tune = func(built *cluster.Config) { built.MetricRegistry = registry }
	}
	var theirs any
	onEngine(t, Multiplex, shared, func(t *testing.T, g *group, s *fakeSession, _ *fakeKafka) {
		opensGeneration(t, s, 1)
		theirs = registry.Get("request-rate")
	})
	assert.Nil(t, registry.Get("request-rate"))
	require.NoError(t, registry.Register("orders", theirs))
	onEngine(t, Multiplex, shared, func(t *testing.T, g *group, s *fakeSession, _ *fakeKafka) {
		opensGeneration(t, s, 1)
		require.NotNil(t, registry.Get("request-rate"))
	})
	assert.Nil(t, registry.Get("request-rate"))
	assert.NotNil(t, registry.Get("orders"))
}

func TestTopicHasGrownOnTheEngine(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		onEngine(t, mode, nil, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
			opensGeneration(t, s, 1)
			kafka.partition(engine.Partition{Topic: "orders", Number: 2}, 0)
			time.Sleep(30*time.Second + time.Second) // as promised
			synctest.Wait()
			assert.Equal(t, []string{"assigned 2: orders/0@0 orders/1@0 orders/2@0"}, s.history.all("assigned 2"))
			time.Sleep(time.Minute)
			synctest.Wait()
			assert.Equal(t, 2, s.generations(), "once")
			assert.Empty(t, s.history.all("error"), "that is how the engine is driven")
			assert.Empty(t, s.history.all("failed"))
		})
	})
}

// A JoinGroup waits for the other members, who may take a while. On its own the engine
// would wait with it.
func TestLeaveWhileJoinGroupWaits(t *testing.T) {
	onEngine(t, Multiplex, nil, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
		opensGeneration(t, s, 1)
		left, waiting := make(chan struct{}), make(chan struct{})
		kafka.on(kmsg.JoinGroup, func(c *call) kmsg.Response {
			close(waiting)
			select {
			case <-left:
			case <-c.gone:
			}
			answer := kmsg.NewPtrJoinGroupResponse()
			answer.ErrorCode = int16(sarama.ErrUnknownMemberId)
			return answer
		})
		kafka.on(kmsg.LeaveGroup, func(c *call) kmsg.Response {
			if id := c.request.(*kmsg.LeaveGroupRequest).MemberID; id == "m-1" {
				close(left)
			}
			return kafka.usual(c)
		})
		kafka.rebalance()
		<-waiting
		began := time.Now()
		require.NoError(t, g.Leave(t.Context()))
		assert.LessOrEqual(t, time.Since(began), time.Second)
		assert.Empty(t, kafka.member)
		assert.Empty(t, s.history.all("error"))
	})
}

// An opening may wait, for a commit or a hook. Nobody but the next rebalance ended it, and
// when the member leaves there is none.
func TestLeaveEndsAnOpening(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		opening := make(chan struct{})
		waits := func(_ *fakeKafka, _ *Config, s *fakeSession) {
			opening = make(chan struct{})
			s.opening = func(ctx context.Context, _ []engine.Claim) bool {
				close(opening)
				select {
				case <-ctx.Done():
				case <-time.After(time.Hour):
				}
				return false
			}
		}
		onEngine(t, mode, waits, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
			<-opening
		})
	})
}

// The same, as a service sees it: the coordinator goes away just when the group begins
// under Newest, and Run took a session to return.
func TestShutdownTimeoutWhileAGenerationIsOpened(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		inBubble(t, func(t *testing.T) {
			kafka := newKafka("one:9092", "two:9092")
			kafka.partition(orders0, 0, "a")
			kafka.on(kmsg.OffsetCommit, func(c *call) kmsg.Response {
				kafka.fail("one:9092", errors.New("connection refused"))
				kafka.fail("two:9092", errors.New("connection refused"))
				c.hangUp()
				return nil
			})
			consumer, err := New(Config{
				Brokers: kafka.addrs, Dial: kafka.dial, Group: "billing", Mode: mode, Start: Newest,
				ShutdownTimeout: 2 * time.Second,
				Logger:          slog.New(slog.DiscardHandler),
				Topics:          Topics{"orders": {Handler: HandlerFunc(nop)}},
			})
			require.NoError(t, err)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- consumer.Run(ctx) }()
			eventually(t, "a commit", func() bool { return kafka.count(kmsg.OffsetCommit) > 0 })
			cancel()
			began := time.Now()
			require.NoError(t, <-ended)
			assert.LessOrEqual(t, time.Since(began), 2*time.Second)
		})
	})
}

func TestLeaveByForce(t *testing.T) {
	hanging := map[string]struct {
		key   kmsg.Key
		cause func(*fakeKafka)
	}{
		"LeaveGroup is not answered": {kmsg.LeaveGroup, func(*fakeKafka) {}},
		"JoinGroup is not answered, nor LeaveGroup": {kmsg.JoinGroup, func(k *fakeKafka) {
			k.on(kmsg.LeaveGroup, silence)
			k.rebalance()
		}},
	}
	for name, test := range hanging {
		t.Run(name, func(t *testing.T) {
			inEachMode(t, func(t *testing.T, mode Mode) {
				inBubble(t, func(t *testing.T) {
					kafka := newKafka("one:9092")
					kafka.partition(orders0, 0)
					kafka.partition(refunds0, 0)
					g, s := newTestGroup(t, func(cfg *Config) { cfg.Dial, cfg.Mode = kafka.dial, mode })
					require.NoError(t, g.Start(t.Context(), s))
					opensGeneration(t, s, 1)
					kafka.on(test.key, silence)
					test.cause(kafka)
					time.Sleep(3 * time.Second)
					ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
					defer cancel()
					began := time.Now()
					err := g.Leave(ctx)
					require.ErrorIs(t, err, context.DeadlineExceeded)
					require.ErrorContains(t, err, "until its session ends")
					assert.LessOrEqual(t, time.Since(began), 2*time.Second+500*time.Millisecond)
					assert.Zero(t, g.network.Open())
				})
			})
		})
	}
}

// A whole Run, the real session on the real engine: no message is lost, and none is
// handled twice, over rebalances and a restart.
func TestRunOnTheEngine(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		inBubble(t, func(t *testing.T) {
			kafka := newKafka("one:9092", "two:9092")
			kafka.partition(orders0, 0)
			kafka.partition(orders1, 5)
			var handled history
			run := func(body func()) {
				consumer, err := New(Config{
					Brokers: kafka.addrs, Dial: kafka.dial, Group: "billing", Mode: mode,
					Logger: slog.New(slog.DiscardHandler),
					Topics: Topics{"orders": {Queue: 8, Handler: HandlerFunc(func(_ context.Context, msg Message) error {
						time.Sleep(10 * time.Millisecond)
						handled.add("%d/%d %s", msg.Partition, msg.Offset, msg.Value)
						return nil
					})}},
				})
				require.NoError(t, err)
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- consumer.Run(ctx) }()
				<-consumer.Ready()
				body()
				cancel()
				require.NoError(t, <-ended)
			}
			var want []string
			produce := func(n int) {
				for range n {
					for _, p := range []engine.Partition{orders0, orders1} {
						at := kafka.logs[p].newest()
						want = append(want, fmt.Sprintf("%d/%d v%d", p.Number, at, at))
						kafka.produce(p, fmt.Sprintf("v%d", at))
					}
				}
			}
			produce(20)
			run(func() {
				time.Sleep(500 * time.Millisecond)
				kafka.rebalance()
				produce(400)
				time.Sleep(1500 * time.Millisecond)
				kafka.rebalance()
				time.Sleep(1800 * time.Millisecond) // and stops in the middle
			})
			require.NotEmpty(t, handled.all())
			require.Less(t, len(handled.all()), len(want), "the shutdown is to find work")
			produce(10)
			run(func() {
				eventually(t, "everything", func() bool { return len(handled.all()) >= len(want) })
				time.Sleep(time.Minute)
			})
			got := handled.all()
			slices.Sort(got)
			slices.Sort(want)
			assert.Equal(t, want, got)
			assert.Equal(t, kafka.logs[orders0].newest(), kafka.committedOffset(orders0))
			assert.Equal(t, kafka.logs[orders1].newest(), kafka.committedOffset(orders1))
		})
	})
}
