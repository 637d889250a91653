package kgroup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/kgroup-go/kgroup/internal/engine"
)

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
