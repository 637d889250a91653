package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// conversation is five requests sent at once, and their answers.
func conversation() (requests [][]byte, answers []byte, told []string) {
	for i, r := range []kmsg.Request{join(0, ""), metadataRequest(), syncGroup("m", 7), heartbeat(0, "m", 7), offsetFetch(1)} {
		requests = append(requests, requestFrame(r, int32(i)))
	}
	answers = append(answers, answerFrame(joined(0, "m", "m", consumerMetadata(0, "a")), 0)...)
	answers = append(answers, frame(1, bytes.Repeat([]byte("x"), 30))...)
	answers = append(answers, answerFrame(&kmsg.SyncGroupResponse{MemberAssignment: bytes.Repeat([]byte("y"), 600)}, 2)...)
	answers = append(answers, answerFrame(beaten(0, 0), 3)...)
	answers = append(answers, answerFrame(fetched(1), 4)...)
	return requests, answers, []string{
		`join sent ""`,
		`heartbeat sent {m 7}`,
		`join answered {SentID: Err:0 Member:{ID:m Generation:7} Leader:true Topics:[a]}`,
		`sync answered {m 7} 0`,
		`heartbeat answered {m 7} 0`,
		`offsets [{Topic:t0 Partition:0 Offset:42 Metadata:meta Err:0} {Topic:t1 Partition:1 Offset:42 Metadata: Err:0}]`,
	}
}

func TestFragmentationChangesNothing(t *testing.T) {
	requests, answers, want := conversation()
	for _, cuts := range [][]byte{nil, {0}, {1}, {2}, {6}, {7}, {8}, {0, 100, 3}, {255}} {
		for _, size := range []int{1, 3, 8, 100, 1 << 16} {
			var told recorder
			c := newGroupConn(&script{in: answers, cuts: cuts}, &told, Limits{})
			for _, r := range requests {
				_, err := c.Write(r)
				require.NoError(t, err)
			}
			got, err := readAll(c, size)
			require.NoError(t, err)
			require.Equal(t, answers, got, "cuts %v, reads of %d", cuts, size)
			require.Equal(t, want, told.told(), "cuts %v, reads of %d", cuts, size)
		}
	}
}

// readAll reads in pieces of the given size until io.EOF.
func readAll(r io.Reader, size int) (all []byte, err error) {
	p := make([]byte, size)
	for {
		n, err := r.Read(p)
		all = append(all, p[:n]...)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
	}
}

func TestObserverIsToldBeforeTheBytesMove(t *testing.T) {
	var told recorder
	s := &script{in: answerFrame(beaten(0, 0), 1), cuts: []byte{0}}
	s.onWrite = func() { assert.Equal(t, []string{`heartbeat sent {m 7}`}, told.told()) }
	s.onRead = func() { assert.NotContains(t, told.told(), `heartbeat answered {m 7} 0`) }
	c := newGroupConn(s, &told, Limits{})
	_, err := c.Write(requestFrame(heartbeat(0, "m", 7), 1))
	require.NoError(t, err)
	n, err := c.Read(make([]byte, 1))
	require.NoError(t, err)
	assert.Equal(t, 1, n)
	assert.Contains(t, told.told(), `heartbeat answered {m 7} 0`)
}

// What does not look like the group protocol passes, and is not observed.
func TestBlind(t *testing.T) {
	beat := requestFrame(heartbeat(0, "m", 7), 1)
	next := requestFrame(heartbeat(0, "m", 8), 2)
	answer := answerFrame(beaten(0, 0), 1)
	sent, answered := `heartbeat sent {m 7}`, `heartbeat answered {m 7} 0`

	tests := []struct {
		name   string
		writes [][]byte
		in     []byte
		want   []string
	}{
		{
			name:   "a request in two writes",
			writes: [][]byte{beat[:9], beat[9:], next}, in: answer,
		},
		{
			name:   "two requests in one write",
			writes: [][]byte{append(bytes.Clone(beat), next...), next}, in: answer,
		},
		{
			name:   "a frame too short for a request",
			writes: [][]byte{{0, 0, 0, 4, 1, 2, 3, 4}, beat}, in: answer,
		},
		{
			name:   "answers to what was sent before it went blind",
			writes: [][]byte{beat, beat[:9], beat[9:], next}, in: append(bytes.Clone(answer), "rest"...),
			want: []string{sent, answered},
		},
		{
			name:   "an answer to another request",
			writes: [][]byte{beat}, in: append(answerFrame(beaten(0, 0), 9), answer...),
			want: []string{sent},
		},
		{
			name: "an answer to nothing",
			in:   answer,
		},
		{
			name:   "a size too small for a correlation id",
			writes: [][]byte{beat}, in: append([]byte{0, 0, 0, 3, 0, 0, 0, 1}, answer...),
			want: []string{sent},
		},
		{
			name:   "a negative size",
			writes: [][]byte{beat}, in: append([]byte{255, 255, 255, 255, 0, 0, 0, 1}, answer...),
			want: []string{sent},
		},
		{
			name:   "a size too small in an answer that is not read",
			writes: [][]byte{requestFrame(metadataRequest(), 1), next},
			in:     bytes.Join([][]byte{{0, 0, 0, 3, 0, 0, 0, 1}, frame(1, nil), answerFrame(beaten(0, 0), 2)}, nil),
			want:   []string{`heartbeat sent {m 8}`},
		},
		{
			name:   "the end in the middle of a header",
			writes: [][]byte{beat}, in: answer[:5],
			want: []string{sent},
		},
		{
			name:   "the end in the middle of an answer",
			writes: [][]byte{beat}, in: answer[:9],
			want: []string{sent},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var told recorder
			s := &script{in: tt.in}
			c := newGroupConn(s, &told, Limits{})
			for _, p := range tt.writes {
				n, err := c.Write(p)
				require.NoError(t, err)
				assert.Equal(t, len(p), n)
			}
			assert.Equal(t, string(bytes.Join(tt.writes, nil)), string(s.out))
			got, err := readAll(c, 3)
			require.NoError(t, err)
			assert.Equal(t, string(tt.in), string(got))
			assert.Equal(t, tt.want, told.told())
		})
	}
}

// A read that fails halfway through a frame, and is tried again: the bytes are
// still the same, and what is told is never made of the wrong ones.
func TestReadsGoOnAfterAnError(t *testing.T) {
	answers := append(answerFrame(beaten(0, 0), 1), answerFrame(beaten(0, 0), 2)...)
	first, second := `heartbeat answered {m 7} 0`, `heartbeat answered {m 8} 0`
	for at := range len(answers) / 2 {
		synctest.Test(t, func(t *testing.T) {
			var told recorder
			near, broker := net.Pipe()
			c := newGroupConn(near, &told, Limits{})
			go func() { _, _ = io.CopyN(io.Discard, broker, 2*int64(len(requestFrame(heartbeat(0, "m", 7), 1)))) }()
			for i := range int32(2) {
				_, err := c.Write(requestFrame(heartbeat(0, "m", 7+i), 1+i))
				require.NoError(t, err)
			}

			var written sync.WaitGroup
			written.Go(func() { _, _ = broker.Write(answers[:at]) })
			require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Second)))
			got, err := readAll(c, 100)
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			assert.Equal(t, answers[:at], append([]byte{}, got...))
			assert.Equal(t, 0 < at && at < headerSize, c.blind)
			written.Wait()

			written.Go(func() { _, _ = broker.Write(answers[at:]); _ = broker.Close() })
			require.NoError(t, c.SetReadDeadline(time.Time{}))
			rest, err := readAll(c, 100)
			require.NoError(t, err)
			assert.Equal(t, answers, append(got, rest...))
			written.Wait()

			switch lines := told.told()[2:]; {
			case at == 0:
				assert.Equal(t, []string{first, second}, lines, "at %d", at)
			case at < headerSize:
				assert.Empty(t, lines, "at %d", at)
			default:
				assert.Equal(t, []string{second}, lines, "at %d", at)
			}
		})
	}
}

// An answer to nothing makes the connection blind for good: the requests after it
// are not remembered, or they would pile up.
func TestBlindConnectionRemembersNothing(t *testing.T) {
	c := newGroupConn(&script{in: []byte("garbage!")}, &recorder{}, Limits{})
	_, err := readAll(c, 100)
	require.NoError(t, err)
	_, err = c.Write(requestFrame(heartbeat(0, "m", 7), 1))
	require.NoError(t, err)
	assert.Empty(t, c.pending)
}

func TestPendingRequestsAreBounded(t *testing.T) {
	c := newGroupConn(&script{}, &recorder{}, Limits{})
	for range 2 * maxPending {
		_, err := c.Write(requestFrame(heartbeat(0, "m", 7), 1))
		require.NoError(t, err)
	}
	assert.Len(t, c.pending, maxPending)
}

// An announced size costs nothing until the bytes arrive.
func TestMemoryFollowsWhatArrives(t *testing.T) {
	s := &script{in: binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, maxAnswer), 1)}
	s.in = append(s.in, make([]byte, 100)...)
	c := newGroupConn(s, &recorder{}, Limits{})
	most := 0
	s.onRead = func() { most = max(most, cap(c.held)) }
	_, err := c.Write(requestFrame(heartbeat(0, "m", 7), 1))
	require.NoError(t, err)
	got, err := readAll(c, 100)
	require.NoError(t, err)
	assert.Len(t, got, 108)
	assert.Positive(t, most)
	assert.LessOrEqual(t, most, 1024)
}

// Answers above the bound pass without being held, and the ones after them are
// observed.
func TestLargeAnswersPass(t *testing.T) {
	sent := []string{`heartbeat sent {m 7}`, `heartbeat sent {m 8}`}
	tests := []struct {
		name string
		size int
		want []string
	}{
		{"as large as is held", maxAnswer, append(sent, `heartbeat answered {m 7} 0`, `heartbeat answered {m 8} 0`)},
		{"larger", maxAnswer + 1, append(sent, `heartbeat answered {m 8} 0`)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &script{in: append(frame(1, make([]byte, tt.size-4)), answerFrame(beaten(0, 0), 2)...)}
			var told recorder
			c := newGroupConn(s, &told, Limits{})
			for i := range int32(2) {
				_, err := c.Write(requestFrame(heartbeat(0, "m", 7+i), 1+i))
				require.NoError(t, err)
			}
			n, err := io.Copy(io.Discard, c)
			require.NoError(t, err)
			assert.EqualValues(t, 4+tt.size+10, n)
			assert.Equal(t, tt.want, told.told())
		})
	}
}

// A size that overflows an int of 32 bits when anything is added to it.
func TestLargestSize(t *testing.T) {
	s := &script{in: binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, math.MaxInt32), 1)}
	c := newGroupConn(s, &recorder{}, Limits{})
	_, err := c.Write(requestFrame(heartbeat(0, "m", 7), 1))
	require.NoError(t, err)
	got, err := readAll(c, 100)
	require.NoError(t, err)
	assert.Len(t, got, 8)
	assert.Equal(t, math.MaxInt32-4, c.passing)
}

// sarama uses the correlation id of a request that could not be written again for
// the next one, whose answer must not be taken for the first one's.
func TestFailedWriteIsForgotten(t *testing.T) {
	failure := errors.New("failure")
	tests := []struct {
		name    string
		written int
		pending int
		blind   bool
	}{
		{name: "nothing written", written: 0, pending: 2, blind: false},
		{name: "a part written", written: 5, pending: 1, blind: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &script{}
			var told recorder
			c := newGroupConn(s, &told, Limits{})
			_, err := c.Write(requestFrame(heartbeat(0, "m", 7), 1))
			require.NoError(t, err)

			s.fail = func([]byte) (int, error) { return tt.written, failure }
			n, err := c.Write(requestFrame(leave("m"), 2))
			assert.Equal(t, tt.written, n)
			require.ErrorIs(t, err, failure)

			s.fail = nil
			_, err = c.Write(requestFrame(heartbeat(0, "m", 8), 2))
			require.NoError(t, err)
			assert.Len(t, c.pending, tt.pending)
			assert.Equal(t, tt.blind, c.blind)

			s.in = append(answerFrame(beaten(0, 0), 1), answerFrame(beaten(0, 0), 2)...)
			_, err = readAll(c, 100)
			require.NoError(t, err)
			assert.Contains(t, told.told(), `heartbeat answered {m 7} 0`)
			assert.Equal(t, !tt.blind, len(told.sent) == 2)
			assert.NotContains(t, told.told(), `leave answered "m" 0`)
		})
	}
}

// limits as a session of 20 s gives them.
var limits = Limits{Join: 30 * time.Second, Other: 5 * time.Second}

// pipe is a group connection and the broker's end of it, in a synctest bubble.
func pipe(t *testing.T, o Observer) (c net.Conn, broker net.Conn) {
	t.Helper()
	return pipeOf(t, o, limits)
}

func pipeOf(t *testing.T, o Observer, limits Limits) (c net.Conn, broker net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	c = newGroupConn(near, o, limits)
	t.Cleanup(func() { c.Close(); far.Close() })
	return c, far
}

// send writes a request and takes it off the broker's end.
func send(t *testing.T, c, broker net.Conn, req kmsg.Request, correlation int32) {
	t.Helper()
	p := requestFrame(req, correlation)
	done := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(broker, make([]byte, len(p)))
		done <- err
	}()
	_, err := c.Write(p)
	require.NoError(t, err)
	require.NoError(t, <-done)
}

// await reads as sarama does, with its deadline, and returns how long it took.
func await(c net.Conn, size int) (time.Duration, error) {
	start := time.Now()
	if err := c.SetReadDeadline(start.Add(time.Second)); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(c, make([]byte, size))
	return time.Since(start), err
}

func TestDeadlineIsThatOfTheRequest(t *testing.T) {
	tests := []struct {
		name    string
		request kmsg.Request
		want    time.Duration
	}{
		{"join", join(0, ""), limits.Join},
		{"sync", syncGroup("m", 7), limits.Join},
		{"heartbeat", heartbeat(0, "m", 7), limits.Other},
		{"one that is not read", metadataRequest(), limits.Other},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, broker := pipe(t, &recorder{})
				send(t, c, broker, tt.request, 1)
				took, err := await(c, headerSize)
				require.ErrorIs(t, err, os.ErrDeadlineExceeded)
				assert.Equal(t, tt.want, took)
			})
		})
	}
}

// A heartbeat sent while a JoinGroup waits counts from the JoinGroup's answer.
func TestDeadlineBehindASlowAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told recorder
		c, broker := pipe(t, &told)
		send(t, c, broker, join(0, ""), 1)
		time.Sleep(time.Second)
		sent := time.Now()
		send(t, c, broker, heartbeat(0, "m", 7), 2)
		send(t, c, broker, heartbeat(0, "m", 7), 3)

		go func() {
			time.Sleep(20 * time.Second)
			_, _ = broker.Write(answerFrame(joined(0, "m", "m"), 1))
			time.Sleep(4 * time.Second)
			_, _ = broker.Write(answerFrame(beaten(0, 0), 2))
		}()
		took, err := await(c, len(answerFrame(joined(0, "m", "m"), 1)))
		require.NoError(t, err)
		assert.Equal(t, 20*time.Second, took)

		// One read for both heartbeats: nobody but us moves the deadline in between.
		took, err = await(c, 2*len(answerFrame(beaten(0, 0), 2)))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.Equal(t, 4*time.Second+limits.Other, took, "from the answer before it")
		assert.Equal(t, []time.Time{sent}, told.sent, "the time of writing, not of the answer before")
	})
}

// An answer that trickles in does not extend its deadline.
func TestDeadlineIsForTheWholeAnswer(t *testing.T) {
	for _, request := range []kmsg.Request{heartbeat(0, "m", 7), metadataRequest()} {
		synctest.Test(t, func(t *testing.T) {
			c, broker := pipe(t, &recorder{})
			send(t, c, broker, request, 1)
			var trickle sync.WaitGroup
			trickle.Go(func() {
				for _, b := range answerFrame(beaten(0, 0), 1) {
					time.Sleep(time.Second)
					_, _ = broker.Write([]byte{b})
				}
			})
			took, err := await(c, 10)
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			assert.Equal(t, limits.Other, took)
			broker.Close()
			trickle.Wait()
		})
	}
}

// With nothing pending sarama's deadline holds, also after an answer and when the
// connection has gone blind; a request written during a read takes it over.
func TestDeadlineWithNothingPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, broker := pipe(t, &recorder{})
		took, err := await(c, headerSize)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.Equal(t, time.Second, took)

		go func() {
			time.Sleep(time.Second / 2)
			_, _ = c.Write(requestFrame(heartbeat(0, "m", 7), 1))
		}()
		go func() { _, _ = io.Copy(io.Discard, broker) }()
		took, err = await(c, headerSize)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.Equal(t, time.Second/2+limits.Other, took)

		go func() { _, _ = broker.Write(answerFrame(beaten(0, 0), 1)) }()
		time.Sleep(time.Second)
		_, err = await(c, 10)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded, "a request that is late stays late")
		broker.Close()
	})

	synctest.Test(t, func(t *testing.T) {
		c, broker := pipe(t, &recorder{})
		send(t, c, broker, heartbeat(0, "m", 7), 1)
		go func() { _, _ = broker.Write(answerFrame(beaten(0, 0), 1)) }()
		_, err := await(c, 10)
		require.NoError(t, err)
		took, err := await(c, headerSize)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.Equal(t, time.Second, took, "after the answer")

		send(t, c, broker, heartbeat(0, "m", 7), 2)
		go func() { _, _ = broker.Write(answerFrame(beaten(0, 0), 99)) }()
		took, err = await(c, 10+headerSize)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.Equal(t, time.Second, took, "blind")
	})
}

func TestNoLimitLeavesSaramasDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, broker := net.Pipe()
		defer near.Close()
		defer broker.Close()
		c := newGroupConn(near, &recorder{}, Limits{})
		send(t, c, broker, heartbeat(0, "m", 7), 1)
		took, err := await(c, headerSize)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.Equal(t, time.Second, took)
	})
}

func TestOtherDeadlinesPassThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := pipe(t, &recorder{})
		require.NoError(t, c.SetWriteDeadline(time.Now().Add(time.Second)))
		start := time.Now()
		_, err := c.Write(requestFrame(heartbeat(0, "m", 7), 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.Equal(t, time.Second, time.Since(start))
	})
}

// Several writers, one reader, and a Close in between: for the race detector.
func TestConcurrentUse(t *testing.T) {
	near, far := net.Pipe()
	var told recorder
	c := newGroupConn(near, &told, Limits{Join: time.Minute, Other: time.Minute})
	const each = 200

	var broker, reader, writers sync.WaitGroup
	broker.Go(func() {
		p := make([]byte, len(requestFrame(heartbeat(0, "m", 7), 1)))
		for {
			if _, err := io.ReadFull(far, p); err != nil {
				return
			}
			correlation := int32(binary.BigEndian.Uint32(p[8:]))
			if _, err := far.Write(answerFrame(beaten(0, 0), correlation)); err != nil {
				return
			}
		}
	})
	got := 0
	reader.Go(func() {
		for {
			_ = c.SetReadDeadline(time.Now().Add(time.Minute))
			n, err := c.Read(make([]byte, 7))
			got += n
			if err != nil {
				return
			}
		}
	})
	for w := range int32(4) {
		writers.Go(func() {
			for i := range int32(each) {
				_ = c.SetWriteDeadline(time.Now().Add(time.Minute))
				_, err := c.Write(requestFrame(heartbeat(0, "m", 7), w*each+i))
				assert.NoError(t, err)
			}
		})
	}
	writers.Wait()
	far.Close()
	broker.Wait()
	reader.Wait()
	c.Close()
	// The broker's last answer may be lost to the Close, no other.
	assert.GreaterOrEqual(t, got, 10*(4*each-1)-1)
	assert.GreaterOrEqual(t, len(told.sent), 4*each-1)
}

// vouching are limits with somebody who vouches for the broker until fail is sent
// something. It counts who does.
func vouching(version int16) (l Limits, now *atomic.Int32, fail chan error) {
	l, now, fail = upgrading(version), new(atomic.Int32), make(chan error)
	l.Vouch = func(ctx context.Context) error {
		now.Add(1)
		defer now.Add(-1)
		select {
		case <-ctx.Done():
			return nil
		case err := <-fail:
			return err
		}
	}
	return l, now, fail
}

// While a request waits for other members its deadline says nothing about the broker.
func TestSomebodyVouchesForTheBroker(t *testing.T) {
	tests := []struct {
		name    string
		version int16
		request kmsg.Request
		want    int32
	}{
		{"JoinGroup", 4, clusterJoin("m"), 1},
		{"JoinGroup as it is", 0, clusterJoin("m"), 1},
		{"SyncGroup", 4, syncGroup("m", 7), 1},
		{"JoinGroup of a new member, which waits for nobody", 4, clusterJoin(""), 0},
		{"JoinGroup of a new member, which waits", 2, clusterJoin(""), 1},
		{"heartbeat", 4, heartbeat(0, "m", 7), 0},
	}
	for _, tt := range tests {
		for _, end := range []string{"answered", "closed"} {
			t.Run(tt.name+", "+end, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					limits, now, _ := vouching(tt.version)
					c, broker := pipeOf(t, &recorder{}, limits)
					go func() { _, _ = io.Copy(io.Discard, broker) }()
					_, err := c.Write(requestFrame(tt.request, 1))
					require.NoError(t, err)
					synctest.Wait()
					assert.Equal(t, tt.want, now.Load())
					if end == "closed" {
						c.Close()
					} else {
						go func() { _, _ = broker.Write(frame(1, make([]byte, 40))) }()
						_, err = c.Read(make([]byte, 44))
						require.NoError(t, err)
						go func() { _, _ = io.Copy(io.Discard, c) }()
					}
					synctest.Wait()
					assert.Zero(t, now.Load())
				})
			})
		}
	}
}

func TestNewMemberIsVouchedForOnceItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits, now, _ := vouching(4)
		c, broker := pipeOf(t, &recorder{}, limits)
		go func() { _, _ = io.Copy(io.Discard, broker) }()
		_, err := c.Write(requestFrame(clusterJoin(""), 1))
		require.NoError(t, err)
		go func() { _, _ = c.Read(make([]byte, 1)) }()
		_, err = broker.Write(answerFrame(requiresID("given"), 1))
		require.NoError(t, err)
		synctest.Wait()
		assert.EqualValues(t, 1, now.Load())
	})
}

func TestBrokerThatNobodyVouchesForIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits, _, fail := vouching(4)
		c, broker := pipeOf(t, &recorder{}, limits)
		go func() { _, _ = io.Copy(io.Discard, broker) }()
		_, err := c.Write(requestFrame(clusterJoin("m"), 1))
		require.NoError(t, err)
		hangs := errors.New("the broker hangs")
		go func() {
			time.Sleep(10 * time.Second)
			fail <- hangs
		}()
		took, err := await(c, headerSize)
		require.ErrorIs(t, err, hangs)
		assert.Equal(t, 10*time.Second, took)
		_, err = c.Write(requestFrame(heartbeat(0, "m", 7), 2))
		require.Error(t, err, "it is closed")
	})
}
