package kgroup

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/kgroup-go/kgroup/internal/engine"
	"github.com/kgroup-go/kgroup/internal/wire"
)

// aMember is a group whose generation 1 is open, on a coordinator that knows it as m-1.
func aMember(t *testing.T) (*group, *fakeSession, *fakeKafka) {
	t.Helper()
	kafka := newKafka("one:9092", "two:9092")
	kafka.member, kafka.generation = member7.ID, member7.Generation
	g, s := newTestGroup(t, func(cfg *Config) { cfg.Dial = kafka.dial })
	stubbed(g)
	joins(g.member, member7)
	g.gen = &term{number: 1, member: member7, current: map[string][]int32{"orders": {0, 1}}}
	return g, s, kafka
}

var someOffsets = []engine.Offset{
	{Partition: orders0, Offset: 42, Metadata: "kgroup/1 n=2"},
	{Partition: orders1, Offset: 7},
}

func TestEngineCommit(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, _, kafka := aMember(t)
		refused, err := g.Commit(t.Context(), 1, someOffsets)
		require.NoError(t, err)
		assert.Empty(t, refused)

		commits := kafka.all(kmsg.OffsetCommit)
		require.Len(t, commits, 1)
		request := commits[0].request.(*kmsg.OffsetCommitRequest)
		assert.Equal(t, "billing", request.Group)
		assert.Equal(t, member7.ID, request.MemberID)
		assert.Equal(t, member7.Generation, request.Generation)
		assert.EqualValues(t, -1, request.RetentionTimeMillis, "the broker's own setting counts")
		assert.Equal(t, someOffsets, offsetsOf(request))
	})
}

func TestEngineCommitRefused(t *testing.T) {
	tests := []struct {
		name    string
		codes   map[engine.Partition]sarama.KError
		refused map[engine.Partition]error
		gone    bool
		err     error
		finds   int // the coordinator anew
	}{
		{
			name:    "one partition",
			codes:   map[engine.Partition]sarama.KError{orders1: sarama.ErrTopicAuthorizationFailed},
			refused: map[engine.Partition]error{orders1: sarama.ErrTopicAuthorizationFailed},
		},
		{
			name:    "both, for different reasons",
			codes:   map[engine.Partition]sarama.KError{orders0: sarama.ErrUnknownTopicOrPartition, orders1: sarama.ErrGroupAuthorizationFailed},
			refused: map[engine.Partition]error{orders0: sarama.ErrUnknownTopicOrPartition, orders1: sarama.ErrGroupAuthorizationFailed},
		},
		{name: "unknown member", codes: map[engine.Partition]sarama.KError{orders0: sarama.ErrUnknownMemberId, orders1: sarama.ErrUnknownMemberId}, gone: true},
		{name: "illegal generation", codes: map[engine.Partition]sarama.KError{orders0: sarama.ErrIllegalGeneration, orders1: sarama.ErrIllegalGeneration}, gone: true},
		{name: "not the coordinator", codes: map[engine.Partition]sarama.KError{orders0: sarama.ErrNotCoordinatorForConsumer}, err: sarama.ErrNotCoordinatorForConsumer, finds: 1},
		{name: "no coordinator", codes: map[engine.Partition]sarama.KError{orders0: sarama.ErrConsumerCoordinatorNotAvailable}, err: sarama.ErrConsumerCoordinatorNotAvailable, finds: 1},
		{name: "coordinator loads", codes: map[engine.Partition]sarama.KError{orders0: sarama.ErrOffsetsLoadInProgress}, err: sarama.ErrOffsetsLoadInProgress},
		{name: "rebalance in progress", codes: map[engine.Partition]sarama.KError{orders0: sarama.ErrRebalanceInProgress}, err: sarama.ErrRebalanceInProgress},
		{name: "replicas", codes: map[engine.Partition]sarama.KError{orders0: sarama.ErrNotEnoughReplicas}, err: sarama.ErrNotEnoughReplicas},
		{name: "timed out", codes: map[engine.Partition]sarama.KError{orders0: sarama.ErrRequestTimedOut}, err: sarama.ErrRequestTimedOut},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				g, _, kafka := aMember(t)
				finds := 0
				g.inner.(*stubClient).refreshCoordinator = func() error { finds++; return nil }
				kafka.on(kmsg.OffsetCommit, func(c *call) kmsg.Response {
					return refuseCommit(c.request, func(p engine.Partition) sarama.KError { return test.codes[p] })
				})
				refused, err := g.Commit(t.Context(), 1, someOffsets)
				_, _, gone := g.member.check(time.Now(), testBeat)
				assert.Equal(t, test.finds, finds, "asks for the coordinator")
				if test.gone {
					require.ErrorIs(t, err, engine.ErrGone)
					require.ErrorIs(t, gone, test.codes[orders0])
					require.ErrorContains(t, gone, "commit")

					kafka.forget()
					_, err = g.Commit(t.Context(), 1, someOffsets)
					require.ErrorIs(t, err, engine.ErrGone)
					assert.Empty(t, kafka.all(kmsg.OffsetCommit), "there is nothing to ask for")
					return
				}
				require.NoError(t, gone)
				require.ErrorIs(t, err, test.err)
				assert.NotErrorIs(t, err, engine.ErrGone, "it may pass")
				assert.Equal(t, len(test.refused), len(refused))
				for p, want := range test.refused {
					assert.ErrorIs(t, refused[p], want, p)
				}
			})
		})
	}
}

// takesMetadata makes a broker that takes at most so many bytes of metadata with an offset.
func takesMetadata(most int) func(c *call) kmsg.Response {
	return func(c *call) kmsg.Response {
		return refuseCommit(c.request, func(p engine.Partition) sarama.KError {
			for _, o := range offsetsOf(c.request) {
				if o.Partition == p && len(o.Metadata) > most {
					return sarama.ErrOffsetMetadataTooLarge
				}
			}
			return sarama.ErrNoError
		})
	}
}

// A broker with little room (offset.metadata.max.bytes) is told what matters most, and somebody
// that it was too little.
func TestEngineCommitWithLessMetadata(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, s, kafka := aMember(t)
		kafka.on(kmsg.OffsetCommit, takesMetadata(40))
		long := "kgroup/1 o=7 q=3 f=42 a=50:2,51:2,52:2 s=43:1 r=" + ranges{{60, 70}}.encode(42, maxRanges)
		refused, err := g.Commit(t.Context(), 1, []engine.Offset{{Partition: orders0, Offset: 42, Metadata: long}, {Partition: orders1, Offset: 5, Metadata: "kgroup/1 o=7"}})
		require.NoError(t, err)
		assert.Empty(t, refused)
		commits := kafka.all(kmsg.OffsetCommit)
		require.Len(t, commits, 2)
		assert.Equal(t, []engine.Offset{{Partition: orders0, Offset: 42, Metadata: "kgroup/1 o=7 q=3 f=42 s=43:1"}}, offsetsOf(commits[1].request))
		assert.Len(t, s.history.all("error", "orders/0", "offset.metadata.max.bytes"), 1)
	})
}

func TestEngineCommitWhoseMetadataIsTooLarge(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, _, kafka := aMember(t)
		kafka.on(kmsg.OffsetCommit, takesMetadata(0))
		refused, err := g.Commit(t.Context(), 1, someOffsets)
		require.NoError(t, err)
		assert.Empty(t, refused)
		commits := kafka.all(kmsg.OffsetCommit)
		require.Len(t, commits, 2)
		assert.Equal(t, []engine.Offset{{Partition: orders0, Offset: 42}}, offsetsOf(commits[1].request), "only what was refused, without metadata")
		assert.True(t, g.levers.begun["orders"])
	})
}

func TestEngineCommitRefusedWithoutMetadataToo(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, _, kafka := aMember(t)
		codes := []sarama.KError{sarama.ErrOffsetMetadataTooLarge, sarama.ErrTopicAuthorizationFailed}
		kafka.on(kmsg.OffsetCommit, func(c *call) kmsg.Response {
			code := codes[0]
			codes = codes[1:]
			return refuseCommit(c.request, func(engine.Partition) sarama.KError { return code })
		})
		offsets := slices.Clone(someOffsets)
		offsets[1].Metadata = offsets[0].Metadata
		refused, err := g.Commit(t.Context(), 1, offsets)
		require.NoError(t, err)
		require.ErrorIs(t, refused[orders0], sarama.ErrTopicAuthorizationFailed)
		require.ErrorIs(t, refused[orders1], sarama.ErrTopicAuthorizationFailed)
		assert.False(t, g.levers.begun["orders"])
	})
}

// A partition that the answer leaves out is not committed, as far as anybody knows.
func TestEngineCommitAnsweredInPart(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, _, kafka := aMember(t)
		kafka.on(kmsg.OffsetCommit, func(c *call) kmsg.Response {
			answer := refuseCommit(c.request, func(engine.Partition) sarama.KError { return sarama.ErrNoError })
			answer.Topics[0].Partitions = answer.Topics[0].Partitions[:1]
			return answer
		})
		refused, err := g.Commit(t.Context(), 1, someOffsets)
		assert.True(t, err != nil || refused[orders1] != nil, "the frontier of orders/1 counts as committed")
	})
}

// A mark belongs to the generation whose lane made it: in a later one it would rewind,
// or skip, what the partition's owner does.
func TestEngineCommitIsFenced(t *testing.T) {
	tests := map[string]func(g *group){
		"no generation":              func(g *group) { g.gen = nil },
		"a later generation":         func(g *group) { g.gen.number = 2 },
		"the member has joined anew": func(g *group) { joins(g.member, member8) },
		"the member is joining":      func(g *group) { g.member.JoinSent(member7.ID) },
		"the member has left":        func(g *group) { g.member.LeaveSent(member7.ID) },
		"the session is lost":        func(g *group) { g.member.lost(member7, errTransient) },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				g, _, kafka := aMember(t)
				change(g)
				_, err := g.Commit(t.Context(), 1, someOffsets)
				require.ErrorIs(t, err, engine.ErrGone)
				assert.Empty(t, kafka.all(kmsg.OffsetCommit))
			})
		})
	}
}

// After an error of the connection every later request on the same Broker would fail.
func TestBrokenGroupConnectionIsReplaced(t *testing.T) {
	requests := map[kmsg.Key]func(g *group) error{
		kmsg.OffsetCommit: func(g *group) error {
			_, err := g.Commit(context.Background(), 1, someOffsets) //nolint:usetesting // used outside of a test function
			return err
		},
		kmsg.OffsetFetch: func(g *group) error { return g.fetchOffsets("orders", []int32{0}) },
		kmsg.Heartbeat: func(g *group) error {
			g.heartbeat()
			return nil
		},
	}
	for key, request := range requests {
		t.Run(key.Name(), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				g, _, kafka := aMember(t)
				kafka.once(key, func(c *call) kmsg.Response { c.hangUp(); return nil })
				err := request(g)
				assert.True(t, err != nil || key == kmsg.Heartbeat)
				assert.NotErrorIs(t, err, engine.ErrGone)
				assert.Zero(t, g.network.Open(), "the broken connection is closed")
				require.NoError(t, request(g))

				calls := kafka.all(key)
				require.Len(t, calls, 2)
				assert.NotEqual(t, calls[0].conn, calls[1].conn)
				require.NoError(t, request(g))
				assert.Equal(t, calls[1].conn, kafka.all(key)[2].conn, "and the new one is kept")
			})
		})
	}
}

// A coordinator that hangs must not keep anybody longer than he is ready to wait: the
// drain, the shutdown, and whoever calls Consumer.Commit have deadlines.
func TestEngineCommitEndsWithItsContext(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, _, kafka := aMember(t)
		kafka.on(kmsg.OffsetCommit, silence)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		_, err := g.Commit(ctx, 1, someOffsets)
		require.Error(t, err)
		assert.Equal(t, time.Second, time.Since(began))
	})
}

func TestFetchOffsets(t *testing.T) {
	tests := []struct {
		name   string
		answer func(*kmsg.OffsetFetchResponse)
		want   error
	}{
		{"found", func(*kmsg.OffsetFetchResponse) {}, nil},
		{"refused for one", func(a *kmsg.OffsetFetchResponse) {
			a.Topics[0].Partitions[1].ErrorCode = int16(sarama.ErrGroupAuthorizationFailed)
		}, sarama.ErrGroupAuthorizationFailed},
		{"one is left out", func(a *kmsg.OffsetFetchResponse) { a.Topics[0].Partitions = a.Topics[0].Partitions[:1] }, sarama.ErrIncompleteResponse},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				g, _, kafka := aMember(t)
				kafka.commit(orders0, 42, "checkpoint-7")
				kafka.on(kmsg.OffsetFetch, func(c *call) kmsg.Response {
					answer := kafka.offsetFetch(c.request.(*kmsg.OffsetFetchRequest))
					test.answer(answer)
					return answer
				})
				require.ErrorIs(t, g.fetchOffsets("orders", []int32{0, 1}), test.want)
				o, has := g.member.committed(orders0)
				assert.True(t, has, "the membership has seen the answer")
				assert.Equal(t, wire.Offset{Topic: "orders", Offset: 42, Metadata: "checkpoint-7"}, o)
			})
		})
	}
}

func TestCoordinatorMoves(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, _, kafka := aMember(t)
		_, err := g.Commit(t.Context(), 1, someOffsets)
		require.NoError(t, err)
		g.inner.(*stubClient).coordinator = func() (*sarama.Broker, error) { return sarama.NewBroker("two:9092"), nil }
		_, err = g.Commit(t.Context(), 1, someOffsets)
		require.NoError(t, err)
		synctest.Wait()
		assert.Equal(t, 1, g.network.Open(), "the connection to the old one is closed")
		var asked []string
		for _, c := range kafka.all(kmsg.OffsetCommit) {
			asked = append(asked, c.addr)
		}
		assert.Equal(t, []string{"one:9092", "two:9092"}, asked)
	})
}

// beats lists when heartbeats were sent, since start.
func beats(kafka *fakeKafka, start time.Time) []time.Duration {
	var times []time.Duration
	for _, c := range kafka.all(kmsg.Heartbeat) {
		times = append(times, c.at.Sub(start))
	}
	return times
}

// watching runs g.watch for as long as body takes.
func watching(t *testing.T, g *group, body func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := begin(func() { g.watch(ctx) })
	body()
	stop()
	<-ended
}

// During the steps of a rebalance the engine sends no heartbeats, which is when a slow
// handler needs them.
func TestHeartbeatsThatTheEngineDoesNotSend(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, s, kafka := aMember(t)
		start := time.Now()
		watching(t, g, func() {
			time.Sleep(time.Minute)
			synctest.Wait()
		})
		times := beats(kafka, start)
		require.NotEmpty(t, times)
		last := time.Duration(0)
		for _, at := range times {
			assert.Greater(t, at-last, testBeat)
			assert.LessOrEqual(t, at-last, testBeat+testBeat/4, "an interval, and one tick of the clock")
			last = at
		}
		assert.Empty(t, s.history.all("lost"))
	})
}

func TestHeartbeatsThatTheEngineSends(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, _, kafka := aMember(t)
		watching(t, g, func() {
			for range 30 {
				time.Sleep(testBeat)
				g.member.HeartbeatSent(member7)
			}
			assert.Empty(t, kafka.all(kmsg.Heartbeat))

			g.member.JoinSent(member7.ID)
			time.Sleep(time.Minute)
			synctest.Wait()
			assert.Empty(t, kafka.all(kmsg.Heartbeat), "outside a generation there are none")
		})
	})
}

// A coordinator that hangs keeps neither the clock of the session from being read nor
// more than one heartbeat waiting.
func TestSessionIsLostOnce(t *testing.T) {
	tests := []struct {
		name   string
		answer script
		lost   time.Duration // at the latest, and not much before
		cause  string
	}{
		{"nobody answers", silence, testSession, "no heartbeat was answered for 20s"},
		{"the connection breaks", func(c *call) kmsg.Response { c.hangUp(); return nil }, testSession, "no heartbeat was answered for 20s"},
		{"unknown member", refuseHeartbeat(sarama.ErrUnknownMemberId), testBeat, sarama.ErrUnknownMemberId.Error()},
		{"illegal generation", refuseHeartbeat(sarama.ErrIllegalGeneration), testBeat, sarama.ErrIllegalGeneration.Error()},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				g, s, kafka := aMember(t)
				kafka.on(kmsg.Heartbeat, test.answer)
				_, err := (&levers{Client: g.inner, group: g}).Coordinator(g.name)
				require.NoError(t, err)
				watching(t, g, func() {
					time.Sleep(test.lost)
					assert.Empty(t, s.history.all("lost"))
					time.Sleep(testBeat)
					synctest.Wait()
					assert.Equal(t, []string{"lost 1: " + lossText(test.cause)}, s.history.all("lost"))
					require.Error(t, g.slot.Err(), "an opening of that generation is given up")
					sent := kafka.count(kmsg.Heartbeat)

					time.Sleep(time.Hour)
					assert.Len(t, s.history.all("lost"), 1)
					assert.Equal(t, sent, kafka.count(kmsg.Heartbeat))
				})
				_, err = (&levers{Client: g.inner, group: g}).Coordinator(g.name)
				require.ErrorIs(t, err, errSession, "the engine has to join again")
			})
		})
	}
}

func lossText(cause string) string {
	if strings.HasPrefix(cause, "no heartbeat") {
		return cause
	}
	return "heartbeat: " + cause
}

func refuseHeartbeat(code sarama.KError) script {
	return func(*call) kmsg.Response {
		answer := kmsg.NewPtrHeartbeatResponse()
		answer.ErrorCode = int16(code)
		return answer
	}
}

func TestOneHeartbeatAtATime(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, _, kafka := aMember(t)
		kafka.on(kmsg.Heartbeat, silence)
		watching(t, g, func() {
			time.Sleep(testSession/3 - 1) // as long as an answer is waited for
			synctest.Wait()
			assert.Equal(t, 1, kafka.count(kmsg.Heartbeat))
			kafka.on(kmsg.Heartbeat, nil)
			time.Sleep(3 * testBeat)
			synctest.Wait()
			assert.Greater(t, kafka.count(kmsg.Heartbeat), 1, "on another connection")
			_, _, gone := g.member.check(time.Now(), testBeat)
			assert.NoError(t, gone)
		})
	})
}

func TestHeartbeatAnsweredThatTheCoordinatorHasMoved(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, s, kafka := aMember(t)
		finds := 0
		g.inner.(*stubClient).refreshCoordinator = func() error { finds++; return nil }
		kafka.once(kmsg.Heartbeat, refuseHeartbeat(sarama.ErrNotCoordinatorForConsumer))
		g.heartbeat()
		assert.Equal(t, 1, finds)
		g.heartbeat()
		assert.Equal(t, 1, finds)
		assert.Equal(t, 2, kafka.count(kmsg.Heartbeat))
		assert.Empty(t, s.history.all("lost"))
	})
}

// A loss is of one member in one generation. Between the moment when watch learns of
// it and the moment when it tells the session, the engine may have joined again: then
// it must not end the generation that was opened meanwhile.
func TestLossOfTheGenerationBefore(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, s, _ := aMember(t)
		g.member.lost(member7, errTransient)
		g.gen = &term{number: 2, member: member8}
		watching(t, g, func() {
			time.Sleep(testBeat)
			synctest.Wait()
		})
		assert.Empty(t, s.history.all("lost"))
		assert.False(t, g.mustRejoin())
	})
}

func TestLeaveEarly(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, _, kafka := aMember(t)
		broken := 2
		kafka.on(kmsg.LeaveGroup, func(c *call) kmsg.Response {
			if broken--; broken >= 0 {
				c.hangUp()
				return nil
			}
			return kafka.usual(c)
		})
		_, err := g.Commit(t.Context(), 1, someOffsets)
		require.NoError(t, err)
		watching(t, g, func() {
			g.leaving.Store(true)
			time.Sleep(testBeat)
			synctest.Wait()
			assert.Empty(t, kafka.all(kmsg.LeaveGroup), "nothing waits: the engine leaves by itself")

			g.member.JoinSent(member7.ID)
			synctest.Wait()
			assert.Len(t, kafka.all(kmsg.LeaveGroup), 1, "at once")
			time.Sleep(time.Minute)
			synctest.Wait()
		})
		leaves := kafka.all(kmsg.LeaveGroup)
		require.Len(t, leaves, 3, "until it has been answered, and no more")
		request := leaves[2].request.(*kmsg.LeaveGroupRequest)
		assert.Equal(t, member7.ID, request.MemberID)
		assert.Equal(t, "billing", request.Group)
		group := kafka.all(kmsg.OffsetCommit)[0].conn
		for _, c := range leaves {
			assert.NotEqual(t, group, c.conn, "where the JoinGroup waits, it would wait behind it")
		}
		assert.Equal(t, 1, g.network.Open(), "only the group connection is left")
	})
}

// A broker that does not coordinate the group any more has let nobody go.
func TestLeaveEarlyFromTheWrongBroker(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, _, kafka := aMember(t)
		asked := 0
		g.inner.(*stubClient).refreshCoordinator = func() error { asked++; return nil }
		kafka.once(kmsg.LeaveGroup, func(*call) kmsg.Response {
			answer := kmsg.NewPtrLeaveGroupResponse()
			answer.ErrorCode = int16(sarama.ErrNotCoordinatorForConsumer)
			return answer
		})
		g.member.JoinSent(member7.ID)
		g.leaveEarly()
		assert.False(t, isClosed(g.taken))
		assert.Equal(t, 1, asked)
		g.leaveEarly()
		assert.True(t, isClosed(g.taken))
		assert.Len(t, kafka.all(kmsg.LeaveGroup), 2)
	})
}

// A member that has no id yet cannot be taken back.
func TestLeaveEarlyWithoutAnID(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		kafka := newKafka("one:9092")
		g, _ := newTestGroup(t, func(cfg *Config) { cfg.Dial = kafka.dial })
		stubbed(g)
		g.member.JoinSent("")
		g.leaveEarly()
		assert.Empty(t, kafka.all(kmsg.LeaveGroup))
	})
}

func TestLeaveEarlyWithoutACoordinator(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, _, kafka := aMember(t)
		stub := g.inner.(*stubClient)
		known := stub.coordinator
		stub.coordinator = func() (*sarama.Broker, error) { return nil, errTransient }
		g.member.JoinSent(member7.ID)
		g.leaveEarly()
		stub.coordinator = known
		g.leaveEarly()
		assert.Len(t, kafka.all(kmsg.LeaveGroup), 1)
	})
}

// A tick, or somebody's Commit, may come when the engine is at its end: nothing may be
// started any more that nobody waits for.
func TestCommitAfterTheEnd(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, _, _ := aMember(t)
		g.end()
		_, err := g.Commit(t.Context(), 1, someOffsets)
		require.ErrorIs(t, err, engine.ErrGone)
		assert.Empty(t, g.commits, "the turn is given back")
	})
}
