package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// pipes is a dial func whose connections lead to nobody.
func pipes(context.Context, string, string) (net.Conn, error) {
	c, _ := net.Pipe()
	return c, nil
}

func TestDataConnectionsAreUntouched(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	go func() {
		if c, err := listener.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()

	n := NewNetwork(nil, 5*time.Second, Security{})
	defer n.Close()
	c, err := n.Data().Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	assert.Equal(t, 1, n.Open())
	sent := append(requestFrame(heartbeat(0, "m", 7), 1), "and no frame"...)
	_, err = c.Write(sent)
	require.NoError(t, err)
	got := make([]byte, len(sent))
	_, err = io.ReadFull(c, got)
	require.NoError(t, err)
	assert.Equal(t, sent, got)
	assert.IsType(t, &conn{}, c, "nothing that reads along")

	require.NoError(t, c.Close())
	require.NoError(t, c.Close(), "closed twice")
	assert.Zero(t, n.Open())
}

func TestDialerIsHarmlessInALog(t *testing.T) {
	n := NewNetwork(pipes, time.Second, Security{})
	assert.Equal(t, "kgroup kgroup", fmt.Sprint(n.Data(), " ", n.Group(&recorder{}, Limits{})))
}

func TestDialError(t *testing.T) {
	refused := errors.New("refused")
	n := NewNetwork(func(context.Context, string, string) (net.Conn, error) { return nil, refused }, time.Second, Security{})
	c, err := n.Group(&recorder{}, Limits{}).Dial("tcp", "b:1")
	require.ErrorIs(t, err, refused)
	assert.Nil(t, c)

	n = NewNetwork(func(context.Context, string, string) (net.Conn, error) { return nil, nil }, time.Second, Security{})
	_, err = n.Data().Dial("tcp", "b:1")
	require.ErrorContains(t, err, "dial b:1: the dial func returned neither")
	assert.Zero(t, n.Open())
}

func TestDialTimeout(t *testing.T) {
	tests := []struct {
		name string
		dial func(ctx context.Context, network, addr string) (net.Conn, error)
	}{
		{"a dial func that heeds its context", func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, errors.New("i/o timeout")
		}},
		{"a dial func that ignores it and fails late", func(context.Context, string, string) (net.Conn, error) {
			time.Sleep(time.Minute)
			return nil, errors.New("late")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := NewNetwork(tt.dial, 10*time.Second, Security{})
				start := time.Now()
				_, err := n.Data().Dial("tcp", "b:1")
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorContains(t, err, "dial b:1: ")
				var timeout net.Error
				require.ErrorAs(t, err, &timeout)
				assert.True(t, timeout.Timeout())
				assert.Equal(t, 10*time.Second, time.Since(start))
				time.Sleep(time.Minute) // the dial func is let go of, but ends
			})
		})
	}
}

// A connection that comes after its caller has given up is closed, not leaked.
func TestLateConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var far net.Conn
		n := NewNetwork(func(context.Context, string, string) (net.Conn, error) {
			time.Sleep(time.Minute)
			var near net.Conn
			near, far = net.Pipe()
			return near, nil
		}, 10*time.Second, Security{})
		_, err := n.Data().Dial("tcp", "b:1")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		time.Sleep(time.Minute)
		synctest.Wait()
		assert.Zero(t, n.Open())
		_, err = far.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
	})
}

func TestCloseCutsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := make(chan struct{})
		var others []net.Conn // the brokers' ends
		n := NewNetwork(func(_ context.Context, _, addr string) (net.Conn, error) {
			if addr == "slow" {
				<-slow
			}
			c, other := net.Pipe()
			others = append(others, other)
			return c, nil
		}, time.Minute, Security{})

		data, err := n.Data().Dial("tcp", "b:1")
		require.NoError(t, err)
		group, err := n.Group(&recorder{}, Limits{}).Dial("tcp", "b:1")
		require.NoError(t, err)
		assert.Equal(t, 2, n.Open())

		var waiting sync.WaitGroup
		for _, c := range []net.Conn{data, group} {
			waiting.Go(func() {
				_, err := c.Read(make([]byte, 1))
				assert.Error(t, err)
			})
		}
		waiting.Go(func() {
			_, err := n.Data().Dial("tcp", "slow")
			assert.ErrorIs(t, err, net.ErrClosed)
		})
		synctest.Wait()
		start := time.Now()
		n.Close()
		waiting.Wait()
		assert.Equal(t, start, time.Now(), "Close takes no time")
		assert.Zero(t, n.Open())

		close(slow)
		synctest.Wait()
		assert.Zero(t, n.Open(), "the dial that came too late")
		require.Len(t, others, 3)
		for _, other := range others {
			_, err := other.Read(make([]byte, 1))
			require.ErrorIs(t, err, io.EOF)
		}

		_, err = n.Data().Dial("tcp", "b:1")
		require.ErrorIs(t, err, net.ErrClosed)
		require.ErrorContains(t, err, "dial b:1: ")
		assert.Len(t, others, 3, "the dial func is not called any more")
		n.Close()
		require.NoError(t, data.Close())
		require.NoError(t, group.Close())
	})
}

// A dial that heeds its context fails with its own words, which would hide why.
func TestCloseIsTheReasonOfACancelledDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 200 { // Close and the dial func are heard in an order that may differ
			n := NewNetwork(func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, errors.New("operation was canceled")
			}, time.Minute, Security{})
			time.AfterFunc(time.Second, n.Close)
			_, err := n.Data().Dial("tcp", "b:1")
			require.ErrorIs(t, err, net.ErrClosed)
		}
	})
}

// Dials, closes of single connections and of the network in any order leave
// nothing open: for the race detector.
func TestCloseWhileDialing(t *testing.T) {
	for range 50 {
		n := NewNetwork(pipes, time.Minute, Security{})
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				c, err := n.Data().Dial("tcp", "b:1")
				if err != nil {
					assert.ErrorIs(t, err, net.ErrClosed)
					return
				}
				_ = n.Open()
				all.Go(func() { _ = c.Close() })
				_ = c.Close()
			})
		}
		all.Go(n.Close)
		all.Go(n.Close)
		all.Wait()
		n.Close()
		assert.Zero(t, n.Open())
	}
}
