package kgroup

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/engine"
)

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

// A loss was told as a drain when the engine came to its next rebalance before the clock
// had been looked at.
func TestDrainPointOfALostGeneration(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, s, _ := atDrainPoint(t)
		g.member.lost(member7, errTransient)
		require.NoError(t, g.levers.RefreshCoordinator("billing"))
		assert.Equal(t, []string{"lost 1: " + errTransient.Error(), "seal 1", "revoke 1"}, s.history.all())
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
