package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
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

// reports collects what a Network reports.
type reports struct {
	mu   sync.Mutex
	errs []error
}

func (r *reports) add(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs = append(r.errs, err)
}

func (r *reports) all() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]error(nil), r.errs...)
}

// sessions is a network whose broker has sessions of 10 s, and a connection to it.
func sessions(t *testing.T, broker *fakeBroker) (*Network, *reports, *renewed) {
	t.Helper()
	broker.lifetime = 10 * time.Second
	n := NewNetwork(broker.dial, 3*time.Second, Security{SASL: plainText(secret)})
	t.Cleanup(n.Close)
	told := &reports{}
	n.Report = told.add
	c, err := n.Data().Dial("tcp", "b:1")
	require.NoError(t, err)
	require.IsType(t, &renewed{}, c)
	return n, told, c.(*renewed)
}

func (b *fakeBroker) authenticated() int { return b.count(kmsg.SASLAuthenticate) }

func (b *fakeBroker) refuse(reason string) { b.change(func() { b.wrong = reason }) }

func (b *fakeBroker) hangUps() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.hungUp
}

func (b *fakeBroker) end(i int) net.Conn {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ends[i]
}

// at sleeps until the session of c is that old. It must not be renewed before.
func at(c *renewed, age time.Duration) {
	time.Sleep(time.Until(c.reading().session.born.Add(age)))
	synctest.Wait()
}

// A connection that nobody uses is renewed too, at 80 to 85 % of each session.
func TestIdleConnectionIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		n, told, c := sessions(t, broker)
		for i := 1; i <= 5; i++ {
			at(c, 8*time.Second-1)
			assert.Equal(t, i, broker.authenticated(), "too early")
			time.Sleep(500*time.Millisecond + 1)
			synctest.Wait()
			assert.Equal(t, i+1, broker.authenticated(), "too late")
			assert.Equal(t, 1, n.Open(), "the old one is forgotten")
			_, err := broker.end(i - 1).Write([]byte("x"))
			require.ErrorIs(t, err, io.ErrClosedPipe, "the old one is closed")
		}
		echo(t, c, 1, "hello")
		assert.Empty(t, told.all())
		require.NoError(t, c.Close())
		assert.Zero(t, n.Open())
		time.Sleep(time.Minute)
		assert.Equal(t, 6, broker.authenticated(), "no more after Close")
	})
}

// Connections that were made at one moment are not renewed at one.
func TestRenewalsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{lifetime: 10 * time.Second}
		n := NewNetwork(broker.dial, time.Second, Security{SASL: plainText(secret)})
		defer n.Close()
		for range 100 {
			_, err := n.Data().Dial("tcp", "b:1")
			require.NoError(t, err)
		}
		time.Sleep(8*time.Second - 1)
		before := 100
		for range 10 {
			time.Sleep(50*time.Millisecond + 1)
			synctest.Wait()
			now := broker.authenticated()
			assert.Less(t, now-before, 50)
			before = now
		}
		assert.Equal(t, 200, broker.authenticated())
	})
}

// A pipeline sends requests as sarama does: several before an answer, which one
// goroutine reads only while it awaits one.
//
// Its lock is a channel: in a bubble, time stands still while a goroutine waits for
// a mutex.
type pipeline struct {
	conn     net.Conn
	lock     chan struct{}
	sent     int32
	awaited  chan awaited
	received chan struct{}
}

type awaited struct {
	want []byte
	err  chan error
}

func newPipeline(c net.Conn) *pipeline {
	p := &pipeline{conn: c, lock: make(chan struct{}, 1), awaited: make(chan awaited, 4), received: make(chan struct{})}
	go p.receive()
	return p
}

func (p *pipeline) ask(text string) error {
	p.lock <- struct{}{}
	p.sent++
	a := awaited{frame(p.sent, []byte(text)), make(chan error, 1)}
	_ = p.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
	_, err := p.conn.Write(echoRequest(p.sent, text))
	if err == nil {
		p.awaited <- a
	}
	<-p.lock
	if err != nil {
		return err
	}
	return <-a.err
}

func (p *pipeline) receive() {
	defer close(p.received)
	for a := range p.awaited {
		_ = p.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		got, err := readAnswer(p.conn)
		if err == nil && !bytes.Equal(got, a.want) {
			err = errors.New("another answer")
		}
		a.err <- err
	}
}

func (p *pipeline) close() error {
	close(p.awaited)
	<-p.received
	return p.conn.Close()
}

// Under load, on connections of both kinds, with so much pending that there is
// hardly a moment for the change: no error, no answer lost or out of order, no
// session overstayed, and no request much later than its answer takes.
func TestRenewalUnderLoad(t *testing.T) {
	tests := []struct {
		name    string
		askers  int
		pause   time.Duration // between two requests of an asker, at most
		takes   time.Duration // the broker, for an answer
		slowest time.Duration
	}{
		{"one after the other", 1, 50 * time.Millisecond, 10 * time.Millisecond, 10 * time.Millisecond},
		{"a long poll", 1, 1, 250 * time.Millisecond, 250 * time.Millisecond},
		{"always busy", 5, 1, 30 * time.Millisecond, 2 * 5 * 30 * time.Millisecond},
		{"nearly always busy", 3, 100 * time.Millisecond, 20 * time.Millisecond, 2 * 3 * 20 * time.Millisecond},
	}
	for _, tt := range tests {
		for _, group := range []bool{false, true} {
			t.Run(tt.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					broker := &fakeBroker{lifetime: 5 * time.Second, delay: tt.takes}
					n := NewNetwork(broker.dial, 3*time.Second, Security{SASL: plainText(secret)})
					n.Report = func(err error) { t.Error(err) }
					dialer := n.Data()
					if group {
						dialer = n.Group(&recorder{}, limits)
					}
					c, err := dialer.Dial("tcp", "b:1")
					require.NoError(t, err)
					p := newPipeline(c)
					var asking sync.WaitGroup
					var slowest atomic.Int64
					for range tt.askers {
						asking.Go(func() {
							for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
								began := time.Now()
								if !assert.NoError(t, p.ask("some text")) {
									return
								}
								if took := int64(time.Since(began)); took > slowest.Load() {
									slowest.Store(took)
								}
								time.Sleep(rand.N(tt.pause))
							}
						})
					}
					asking.Wait()
					require.NoError(t, p.close())
					assert.Zero(t, n.Open())
					assert.Zero(t, broker.hangUps())
					assert.Greater(t, broker.authenticated(), 2*60/5)
					assert.LessOrEqual(t, time.Duration(slowest.Load()), tt.slowest)
				})
			})
		}
	}
}

// An answer that is pending for longer than several sessions (a JoinGroup) still
// comes, on the old connection, and the request after it finds a good session.
func TestAnswerPendingForSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{delay: 65 * time.Second}
		n, told, c := sessions(t, broker)
		echo(t, c, 1, "join")
		synctest.Wait()
		assert.GreaterOrEqual(t, broker.authenticated(), 7)
		assert.Equal(t, 1, n.Open(), "those that waited in vain are closed")
		broker.change(func() { broker.delay = 0 })
		echo(t, c, 2, "sync")
		assert.Empty(t, told.all())
		assert.Zero(t, broker.hangUps())
	})
}

// A Read that was there before the change gets the answer that comes after it.
func TestReadGoesOnWithTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		_, _, c := sessions(t, broker)
		var got []byte
		var reading sync.WaitGroup
		reading.Go(func() {
			var err error
			got, err = readAnswer(c)
			assert.NoError(t, err)
		})
		time.Sleep(20 * time.Second)
		require.Equal(t, 3, broker.authenticated())
		_, err := c.Write(echoRequest(1, "hello"))
		require.NoError(t, err)
		reading.Wait()
		assert.Equal(t, frame(1, []byte("hello")), got)
	})
}

// scripted is a renewed connection without a network below: the current connection
// says what current does, and another is there to replace it.
func scripted(current net.Conn) (c *renewed, next *conn) {
	n := NewNetwork(nil, time.Second, Security{})
	c = renewing(&conn{Conn: current, raw: current, network: n}, "tcp")
	after := lastWords{&script{}}
	return c, &conn{Conn: after, raw: after, network: n}
}

// The change happens between frames only, in both directions, and not before the
// last Write has returned.
func TestNoChangeWithinAFrame(t *testing.T) {
	request, answer := echoRequest(1, "hello"), frame(1, []byte("hello"))
	t.Run("of a request", func(t *testing.T) {
		c, next := scripted(lastWords{&script{in: answer}})
		_, err := c.Write(request[:3])
		require.NoError(t, err)
		c.offer(next)
		require.NotEqual(t, next, c.reading())
		_, err = c.Write(request[3:])
		require.NoError(t, err)
		require.NotEqual(t, next, c.reading())
		_, err = readAnswer(c)
		require.NoError(t, err)
		require.Equal(t, next, c.reading())
	})
	t.Run("of an answer that nobody asked for", func(t *testing.T) {
		c, next := scripted(lastWords{&script{in: answer}})
		_, err := c.Read(make([]byte, 3))
		require.NoError(t, err)
		c.offer(next)
		require.NotEqual(t, next, c.reading())
	})
	t.Run("whose answer is quicker", func(t *testing.T) {
		writing, written := make(chan struct{}), make(chan struct{})
		c, next := scripted(lastWords{&script{in: answer, onWrite: func() { close(writing); <-written }}})
		var all sync.WaitGroup
		all.Go(func() {
			_, err := c.Write(request)
			assert.NoError(t, err)
		})
		<-writing
		_, err := readAnswer(c)
		require.NoError(t, err)
		c.offer(next)
		require.NotEqual(t, next, c.reading())
		close(written)
		all.Wait()
		require.Equal(t, next, c.reading())
	})
}

// What the broker says last on the old connection is not taken for the end of all.
func TestEndWithTheLastBytes(t *testing.T) {
	c, next := scripted(lastWords{&script{in: frame(1, nil)}})
	c.pending = 1
	c.offer(next)
	n, err := c.Read(make([]byte, 100))
	require.NoError(t, err)
	assert.Equal(t, 8, n)
	require.Equal(t, next, c.reading())
}

// A connection that is ready when nobody wants it any more is closed.
func TestOfferAfterClose(t *testing.T) {
	c, _ := scripted(lastWords{&script{}})
	require.NoError(t, c.Close())
	near, far := net.Pipe()
	c.offer(&conn{Conn: near, raw: near, network: c.network})
	_, err := far.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

// lastWords tells the end of the stream together with its last bytes.
type lastWords struct{ *script }

func (c lastWords) SetWriteDeadline(time.Time) error { return nil }
func (c lastWords) Close() error                     { return nil }
func (c lastWords) Read(p []byte) (int, error) {
	n, err := c.script.Read(p)
	if err == nil && len(c.in) == 0 {
		err = io.EOF
	}
	return n, err
}

// Deadlines hold whatever connection is below, and however they were set.
func TestDeadlinesOutliveTheChange(t *testing.T) {
	tests := []struct {
		name string
		set  func(c net.Conn, t time.Time) error
	}{
		{"SetDeadline", net.Conn.SetDeadline},
		{"SetReadDeadline and SetWriteDeadline", func(c net.Conn, t time.Time) error {
			return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{}
				_, _, c := sessions(t, broker)
				start := time.Now()
				require.NoError(t, tt.set(c, start.Add(42*time.Second)))
				_, err := c.Read(make([]byte, 1))
				require.ErrorIs(t, err, os.ErrDeadlineExceeded)
				assert.Equal(t, 42*time.Second, time.Since(start))
				require.GreaterOrEqual(t, broker.authenticated(), 5)
				time.Sleep(time.Nanosecond)
				_, err = c.Write(echoRequest(1, "late"))
				require.ErrorIs(t, err, os.ErrDeadlineExceeded)

				require.NoError(t, tt.set(c, time.Time{}))
				time.Sleep(time.Minute)
				echo(t, c, 2, "hello")
			})
		})
	}
}

// A request that was not written leaves nothing pending that would be in the way.
func TestUnwrittenRequestIsNotPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		_, _, c := sessions(t, broker)
		require.NoError(t, c.SetWriteDeadline(time.Now().Add(-1)))
		for range 3 {
			_, err := c.Write(echoRequest(1, "not written"))
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		}
		require.NoError(t, c.SetWriteDeadline(time.Time{}))
		time.Sleep(20 * time.Second)
		require.Equal(t, 3, broker.authenticated())
		echo(t, c, 2, "hello")
		assert.Zero(t, broker.hangUps())
	})
}

// A renewal that fails is tried again with backoff, and each failure is reported.
// When it succeeds in time nobody else notices; after the end of the session the
// broker hangs up, unless nobody asked anything.
func TestFailingRenewal(t *testing.T) {
	tests := []struct {
		name   string
		mended time.Duration // age of the session; zero: never
		asked  time.Duration
		works  bool
	}{
		{"mended in time", 9800 * time.Millisecond, 10050 * time.Millisecond, true},
		{"mended after the end, before anybody noticed", 15 * time.Second, 30 * time.Second, true},
		{"not mended", 0, 15 * time.Second, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for range 10 { // the moments are random
				synctest.Test(t, func(t *testing.T) { testFailingRenewal(t, tt.mended, tt.asked, tt.works) })
			}
		})
	}
}

func testFailingRenewal(t *testing.T, mended, asked time.Duration, works bool) {
	broker := &fakeBroker{}
	n, told, c := sessions(t, broker)
	broker.refuse("rotated")
	if mended > 0 {
		time.AfterFunc(mended, func() { broker.refuse("") })
	}
	time.Sleep(asked)
	errs := told.all()
	require.NotEmpty(t, errs)
	assert.LessOrEqual(t, len(errs), 30)
	assert.Regexp(t, `^renew the connection to b:1, whose session ends at 00:00:10Z: authenticate to b:1: it refuses PLAIN: `, errs[0].Error())
	texts := map[string]bool{}
	for _, err := range errs {
		texts[err.Error()] = true
	}
	assert.LessOrEqual(t, len(texts), 2, "one before the end and one after it, however often: %v", texts)
	assert.True(t, IsFatal(errs[0]))
	if works {
		echo(t, c, 1, "hello")
		assert.Zero(t, broker.hangUps())
		return
	}
	assert.ErrorContains(t, errs[len(errs)-1], "renew the connection to b:1, whose session has ended: ")
	start := time.Now()
	_, err := c.Write(echoRequest(1, "hello"))
	require.NoError(t, err)
	assert.Equal(t, start, time.Now(), "nothing to wait for")
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	assert.Equal(t, 1, broker.hangUps())

	require.NoError(t, c.Close())
	assert.Zero(t, n.Open())
	before := broker.authenticated()
	time.Sleep(time.Minute)
	assert.Equal(t, before, broker.authenticated(), "no more after Close")
}

// mute answers no request but those of SASL, and needs that long for every connection
// but the first.
func mute(connecting time.Duration) *fakeBroker {
	var handshakes atomic.Int64
	return &fakeBroker{answer: func(_ int, key kmsg.Key, _ int32) ([]byte, bool) {
		if key == kmsg.SASLHandshake && handshakes.Add(1) > 1 {
			time.Sleep(connecting)
		}
		return []byte{}, key == kmsg.Metadata
	}}
}

// In the last 5 % of a session a Write waits for pending answers, and in the last 1 %
// for a connection that is being made; no longer than making one may take (3 s), nor
// than its deadline.
func TestWriteWaitsForTheChange(t *testing.T) {
	const second = time.Second
	tests := []struct {
		name       string
		connecting time.Duration
		pending    bool
		age        time.Duration // of the session at the Write
		deadline   time.Duration // from the Write on; zero: none
		from, to   time.Duration // age of the session when the Write is done
		refused    bool
	}{
		{"a next connection that comes", 1900 * time.Millisecond, false, 9900 * time.Millisecond, 0, 9900 * time.Millisecond, 10400 * time.Millisecond, false},
		{"one that does not", time.Hour, false, 9900 * time.Millisecond, 0, 11 * second, 11500 * time.Millisecond, false},
		{"one that does not, and a deadline", time.Hour, false, 9900 * time.Millisecond, 300 * time.Millisecond, 10200 * time.Millisecond, 10200 * time.Millisecond, true},
		{"one that does not, before the last 1 %", time.Hour, false, 9900*time.Millisecond - 1, 0, 9900*time.Millisecond - 1, 9900*time.Millisecond - 1, false},
		{"an answer that does not come", 0, true, 9500 * time.Millisecond, 0, 12500 * time.Millisecond, 12500 * time.Millisecond, false},
		{"an answer that does not come, and a deadline", 0, true, 9500 * time.Millisecond, 700 * time.Millisecond, 10200 * time.Millisecond, 10200 * time.Millisecond, true},
		{"an answer that does not come, before the last 5 %", 0, true, 9500*time.Millisecond - 1, 0, 9500*time.Millisecond - 1, 9500*time.Millisecond - 1, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, _, c := sessions(t, mute(tt.connecting))
				born := c.reading().session.born
				if tt.pending {
					_, err := c.Write(echoRequest(1, "pending"))
					require.NoError(t, err)
				}
				at(c, tt.age)
				if tt.deadline > 0 {
					require.NoError(t, c.SetWriteDeadline(time.Now().Add(tt.deadline)))
				}
				_, err := c.Write(echoRequest(2, "x"))
				if tt.refused {
					require.ErrorIs(t, err, os.ErrDeadlineExceeded)
				} else {
					require.NoError(t, err)
				}
				assert.GreaterOrEqual(t, time.Since(born), tt.from)
				assert.LessOrEqual(t, time.Since(born), tt.to)
				n.Close()
				time.Sleep(2 * time.Hour)
			})
		})
	}
	s := session{time.Now(), 10 * time.Hour}
	assert.Equal(t, s.end().Add(-2*second), s.last(holdFrom, holdFor), "of a long session, only its last seconds")
}

// A Write that waits heeds what is done to the connection meanwhile.
func TestWriteStopsWaiting(t *testing.T) {
	tests := []struct {
		name string
		do   func(n *Network, c *renewed)
		want error
	}{
		{"the network is closed", func(n *Network, _ *renewed) { n.Close() }, net.ErrClosed},
		{"the connection is closed", func(_ *Network, c *renewed) { _ = c.Close() }, net.ErrClosed},
		{"SetDeadline", func(_ *Network, c *renewed) { _ = c.SetDeadline(time.Now()) }, os.ErrDeadlineExceeded},
		{"SetWriteDeadline", func(_ *Network, c *renewed) { _ = c.SetWriteDeadline(time.Now()) }, os.ErrDeadlineExceeded},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, _, c := sessions(t, mute(time.Hour))
				at(c, 9950*time.Millisecond)
				time.AfterFunc(100*time.Millisecond, func() { tt.do(n, c) })
				start := time.Now()
				_, err := c.Write(echoRequest(1, "hello"))
				require.ErrorIs(t, err, tt.want)
				assert.Equal(t, 100*time.Millisecond, time.Since(start))
				n.Close()
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

// Nobody waits for an attempt that has failed: the next may be a long time off.
func TestWriteDoesNotWaitForABackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		_, _, c := sessions(t, broker)
		broker.refuse("rotated")
		at(c, 9950*time.Millisecond)
		start := time.Now()
		echo(t, c, 1, "hello")
		assert.Equal(t, start, time.Now())
	})
}

// Whatever a renewal is doing, closing the network or the connection ends it.
func TestCloseEndsARenewal(t *testing.T) {
	stages := []struct {
		name   string
		answer func(n int, key kmsg.Key, correlation int32) ([]byte, bool)
	}{
		{"silent", func(int, kmsg.Key, int32) ([]byte, bool) { time.Sleep(time.Hour); return nil, true }},
		{"backing off", func(int, kmsg.Key, int32) ([]byte, bool) { return nil, true }},
		{"waiting for its moment", nil},
	}
	for _, stage := range stages {
		for _, network := range []bool{true, false} {
			t.Run(stage.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					broker := &fakeBroker{}
					n, told, c := sessions(t, broker)
					broker.change(func() { broker.answer = stage.answer })
					if stage.answer == nil {
						broker.change(func() { broker.delay = time.Hour })
						_, err := c.Write(echoRequest(1, "pending"))
						require.NoError(t, err)
					}
					at(c, 9100*time.Millisecond)
					if stage.answer == nil {
						assert.Equal(t, 2, n.Open())
					}
					start := time.Now()
					if network {
						n.Close()
					} else {
						require.NoError(t, c.Close())
					}
					synctest.Wait()
					assert.Equal(t, start, time.Now())
					assert.Zero(t, n.Open())
					n.renewals.Wait()
					asked, reported := len(broker.asked), told.all()
					time.Sleep(2 * time.Hour)
					assert.Equal(t, reported, told.all())
					for _, err := range reported {
						assert.NotErrorIs(t, err, net.ErrClosed)
					}
					assert.Len(t, broker.asked, asked)
					_, err := c.Write([]byte("x"))
					require.Error(t, err)
					require.NoError(t, c.Close())
				})
			})
		}
	}
}

// Nothing is reported once Close has returned.
func TestCloseWaitsForAReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		n, _, c := sessions(t, broker)
		n.Report = func(error) { time.Sleep(time.Minute) }
		broker.refuse("rotated")
		at(c, 9*time.Second)
		n.Close()
		assert.Greater(t, time.Since(c.reading().session.born), time.Minute)
	})
}

// Closing at any moment, beside reads, writes and renewals: for the race detector.
func TestCloseWhileRenewing(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			broker := &fakeBroker{delay: time.Millisecond}
			n, _, c := sessions(t, broker)
			p := newPipeline(c)
			var all sync.WaitGroup
			for range 3 {
				all.Go(func() {
					for p.ask("text") == nil {
						time.Sleep(rand.N(20 * time.Millisecond))
					}
				})
			}
			time.Sleep(8*time.Second + rand.N(3*time.Second))
			if rand.IntN(2) == 0 {
				n.Close()
			} else {
				_ = c.Close()
			}
			all.Wait()
			_ = p.close()
			n.Close()
			assert.Zero(t, n.Open())
			time.Sleep(time.Second) // the broker's side ends
		})
	}
}

// A broker that no longer limits sessions ends the renewals.
func TestLifetimeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		_, _, c := sessions(t, broker)
		broker.change(func() { broker.lifetime = 0 })
		time.Sleep(time.Hour)
		assert.Equal(t, 2, broker.authenticated())
		echo(t, c, 1, "hello")
	})
}

// A group connection on top keeps what it knows: an answer on the next connection
// is matched with a request, and the member with it.
func TestGroupConnectionOutlivesTheChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{lifetime: 5 * time.Second, answer: func(_ int, key kmsg.Key, correlation int32) ([]byte, bool) {
			return answerFrame(beaten(0, 0), correlation), key == kmsg.Heartbeat
		}}
		n := NewNetwork(broker.dial, time.Second, Security{SASL: plainText(secret)})
		defer n.Close()
		var told recorder
		c, err := n.Group(&told, limits).Dial("tcp", "b:1")
		require.NoError(t, err)
		for i := range int32(60) {
			_, err := c.Write(requestFrame(heartbeat(0, "m", 7), i))
			require.NoError(t, err)
			got, err := readAnswer(c)
			require.NoError(t, err)
			require.Equal(t, uint32(i), binary.BigEndian.Uint32(got[4:]))
			time.Sleep(time.Second)
		}
		assert.Greater(t, broker.authenticated(), 12)
		assert.Len(t, told.sent, 60)
	})
}

func TestLifetime(t *testing.T) {
	tests := []struct {
		millis int64
		want   time.Duration
	}{
		{0, 0}, {-1, 0}, {-1 << 63, 0},
		{1, time.Second}, {5000, 5 * time.Second}, {3_600_000, time.Hour},
		{1<<63 - 1, 365 * 24 * time.Hour},
	}
	for _, tt := range tests {
		assert.Equal(t, tt.want, lifetime(tt.millis), tt.millis)
	}
}
