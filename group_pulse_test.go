package kgroup

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// hangs makes one kind of request, and all that a broker is asked about itself,
// unanswered.
func (k *fakeKafka) hangs(key kmsg.Key) {
	k.on(key, silence)
	k.on(kmsg.ApiVersions, silence)
}

func patient(_ *fakeKafka, cfg *Config, _ *fakeSession) { cfg.RebalanceTimeout = 5 * time.Minute }

// A broker that hangs is noticed within 15 s, however long the answer may take that is
// waited for there. The member then finds its place in the group again.
func TestBrokerHangsWhileMembersWait(t *testing.T) {
	for _, key := range []kmsg.Key{kmsg.JoinGroup, kmsg.SyncGroup} {
		t.Run(key.Name(), func(t *testing.T) {
			onEngine(t, Multiplex, patient, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
				opensGeneration(t, s, 1)
				kafka.hangs(key)
				kafka.rebalance()
				eventually(t, "the request", func() bool { return kafka.count(key) == 2 })
				began := time.Now()
				eventually(t, "the failure", func() bool { return len(s.history.all("failed")) > 0 })
				assert.LessOrEqual(t, time.Since(began), 15*time.Second)
				assert.Len(t, s.history.all("failed: ", "broker one:9092 has shown no sign of life for 9.7s"), 1, "%v", s.history.all("failed"))

				kafka.on(key, nil)
				kafka.on(kmsg.ApiVersions, nil)
				opensGeneration(t, s, 2)
				again := kafka.all(kmsg.JoinGroup)[3].request.(*kmsg.JoinGroupRequest).MemberID
				if again == "" { // after a SyncGroup that fails the engine leaves
					again = kafka.all(kmsg.LeaveGroup)[0].request.(*kmsg.LeaveGroupRequest).MemberID
				}
				assert.Equal(t, "m-1", again, "it leaves no ghost behind")
			})
		})
	}
}

// The same if it refuses connections, while the one that the answer is to come on stays open.
func TestBrokerCannotBeReachedWhileMembersWait(t *testing.T) {
	onEngine(t, Multiplex, patient, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
		opensGeneration(t, s, 1)
		kafka.on(kmsg.JoinGroup, silence)
		kafka.rebalance()
		eventually(t, "the request", func() bool { return kafka.count(kmsg.JoinGroup) == 3 })
		kafka.fail("one:9092", errUnreachable)
		began := time.Now()
		eventually(t, "the failure", func() bool { return len(s.history.all("failed")) > 0 })
		assert.LessOrEqual(t, time.Since(began), 10*time.Second)
		assert.Greater(t, time.Since(began), 2*pulseInterval, "one failure is not enough")
		kafka.fail("one:9092", nil)
		kafka.on(kmsg.JoinGroup, nil)
		opensGeneration(t, s, 2)
	})
}

// Other members may take minutes to drain, and short interruptions of the pulse do not
// end the wait.
func TestBrokerIsAliveWhileMembersWait(t *testing.T) {
	onEngine(t, Multiplex, patient, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
		opensGeneration(t, s, 1)
		kafka.forget()
		drained := make(chan struct{})
		kafka.on(kmsg.JoinGroup, func(c *call) kmsg.Response {
			<-drained
			return kafka.usual(c)
		})
		kafka.rebalance()
		asks := 0
		kafka.on(kmsg.ApiVersions, func(c *call) kmsg.Response {
			if asks++; asks%3 == 0 {
				c.hangUp()
				return nil
			}
			return kafka.usual(c)
		})
		time.Sleep(4 * time.Minute)
		close(drained)
		kafka.on(kmsg.JoinGroup, nil)
		opensGeneration(t, s, 2)
		assert.Empty(t, s.history.all("failed"))
		assert.Equal(t, 1, kafka.count(kmsg.JoinGroup))
		assert.InDelta(t, 80, asks, 3, "one in 3 s")
		connections := map[int]bool{}
		for _, c := range kafka.all(kmsg.ApiVersions) {
			connections[c.conn] = true
		}
		assert.InDelta(t, 80/3, len(connections), 2, "a new one only when one has broken")

		time.Sleep(time.Minute)
		synctest.Wait()
		assert.Len(t, kafka.all(kmsg.ApiVersions), asks, "nothing waits any more")
	})
}

// A rebalance in which nobody has to be waited for is over before the first question.
func TestQuickRebalanceAsksNothing(t *testing.T) {
	onEngine(t, Multiplex, nil, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
		opensGeneration(t, s, 1)
		kafka.forget()
		kafka.rebalance()
		opensGeneration(t, s, 2)
		time.Sleep(time.Minute)
		assert.Empty(t, kafka.all(kmsg.ApiVersions))
	})
}

// The connection breaks while the first JoinGroup of a member waits. The engine does
// not know its id yet, and would leave a ghost for which the group waits a session.
func TestNewMemberLosesItsConnectionWhileItWaits(t *testing.T) {
	broken := false
	change := func(kafka *fakeKafka, _ *Config, _ *fakeSession) {
		kafka.on(kmsg.JoinGroup, func(c *call) kmsg.Response {
			if !broken && c.request.(*kmsg.JoinGroupRequest).MemberID != "" {
				broken = true
				c.hangUp()
				return nil
			}
			return kafka.usual(c)
		})
	}
	onEngine(t, Multiplex, change, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
		opensGeneration(t, s, 1)
		var ids []string
		for _, c := range kafka.all(kmsg.JoinGroup) {
			ids = append(ids, c.request.(*kmsg.JoinGroupRequest).MemberID)
		}
		assert.Equal(t, []string{"", "m-1", "m-1"}, ids)
	})
}

// Some brokers let a member go and never answer its JoinGroup.
func TestJoinGroupThatWasTakenBackIsNotAnswered(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		onEngine(t, mode, nil, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
			opensGeneration(t, s, 1)
			kafka.on(kmsg.JoinGroup, silence)
			kafka.rebalance()
			eventually(t, "the JoinGroup", func() bool { return kafka.count(kmsg.JoinGroup) == 3 })
			began := time.Now()
			require.NoError(t, g.Leave(t.Context()))
			assert.LessOrEqual(t, time.Since(began), time.Second)
			assert.Empty(t, kafka.member)
			assert.Empty(t, s.history.all("failed"))
			assert.Empty(t, s.history.all("error"))
		})
	})
}

// A new member can leave while its first JoinGroup waits for the others, because it was
// given its id before.
func TestNewMemberLeavesWhileItWaits(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		left, waiting := make(chan struct{}), make(chan struct{})
		change := func(kafka *fakeKafka, _ *Config, _ *fakeSession) {
			left, waiting = make(chan struct{}), make(chan struct{}) // in the bubble
			kafka.on(kmsg.JoinGroup, func(c *call) kmsg.Response {
				if c.request.(*kmsg.JoinGroupRequest).MemberID == "" {
					return kafka.usual(c)
				}
				close(waiting)
				select {
				case <-left:
				case <-c.gone:
				}
				answer := kmsg.NewPtrJoinGroupResponse()
				answer.ErrorCode = 25 // UNKNOWN_MEMBER_ID
				return answer
			})
			kafka.on(kmsg.LeaveGroup, func(c *call) kmsg.Response {
				if c.request.(*kmsg.LeaveGroupRequest).MemberID == "m-1" {
					close(left)
				}
				return kafka.usual(c)
			})
		}
		onEngine(t, mode, change, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
			<-waiting
			time.Sleep(time.Minute)
			began := time.Now()
			require.NoError(t, g.Leave(t.Context()))
			assert.LessOrEqual(t, time.Since(began), time.Second)
			assert.True(t, isClosed(left))
		})
	})
}

// The drain may outlast the session by far: heartbeats keep the member alive.
func TestDrainOutlastsTheSession(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode Mode) {
		var began time.Time
		change := func(_ *fakeKafka, cfg *Config, s *fakeSession) {
			cfg.SessionTimeout = 3 * time.Second
			s.revoke = func(cancelAt, until time.Time) {
				assert.InDelta(t, 58.25*4/5, cancelAt.Sub(began).Seconds(), 1)
				assert.InDelta(t, 58.25, until.Sub(began).Seconds(), 1)
				time.Sleep(50 * time.Second)
			}
		}
		onEngine(t, mode, change, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
			opensGeneration(t, s, 1)
			kafka.forget()
			began = time.Now()
			kafka.rebalance()
			opensGeneration(t, s, 2)
			assert.Empty(t, s.history.all("lost"))
			last := began
			for _, c := range kafka.all(kmsg.Heartbeat) {
				assert.Less(t, c.at.Sub(last), 1500*time.Millisecond)
				last = c.at
			}
		})
	})
}
