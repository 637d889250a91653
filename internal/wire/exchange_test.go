package wire

// Connections that begin with an exchange which is not Kafka's: sarama authenticates
// with Kerberos in bare tokens, each with its size before it.

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// token is how sarama writes one.
func token(content string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(content))), content...)
}

// kerberosTokens are like those of a real exchange: an AP-REQ, and two wrap tokens.
var kerberosTokens = struct{ ticket, offer, choice []byte }{
	ticket: token("\x60\x82\x02\x5a\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x01\x00\x6e" + string(make([]byte, 588))),
	offer:  token("\x05\x04\x01\xff\x00\x0c\x00\x00\x00\x00\x00\x00\x2e\x61\x43\x76\x01\x00\x00\x00" + string(make([]byte, 12))),
	choice: token("\x05\x04\x00\xff\x00\x0c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00" + string(make([]byte, 12))),
}

var afterExchange = Limits{ExchangeUntil: "test"} // as requestFrame says

func TestExchangePassesBeforeTheProtocol(t *testing.T) {
	requests, answers, want := conversation()
	tokens := kerberosTokens
	for _, cuts := range [][]byte{nil, {0}, {2}, {6}, {255}} {
		for _, size := range []int{1, 3, 1 << 16} {
			var told recorder
			s := &script{in: tokens.offer, cuts: cuts}
			c := newGroupConn(s, &told, afterExchange)
			_, err := c.Write(tokens.ticket)
			require.NoError(t, err)
			got, err := readAll(c, size)
			require.NoError(t, err)
			require.Equal(t, tokens.offer, got)
			_, err = c.Write(tokens.choice)
			require.NoError(t, err)
			require.Empty(t, told.told())
			require.Empty(t, c.pending)

			s.in = answers
			for _, r := range requests {
				_, err := c.Write(r)
				require.NoError(t, err)
			}
			got, err = readAll(c, size)
			require.NoError(t, err)
			require.Equal(t, answers, got, "cuts %v, reads of %d", cuts, size)
			require.Equal(t, want, told.told(), "cuts %v, reads of %d", cuts, size)
			require.Equal(t, bytes.Join(append([][]byte{tokens.ticket, tokens.choice}, requests...), nil), s.out)
		}
	}
}

// A connection may do without an exchange although one was announced.
func TestExchangeMayBeEmpty(t *testing.T) {
	requests, answers, want := conversation()
	var told recorder
	c := newGroupConn(&script{in: answers}, &told, afterExchange)
	for _, r := range requests {
		_, err := c.Write(r)
		require.NoError(t, err)
	}
	got, err := readAll(c, 100)
	require.NoError(t, err)
	assert.Equal(t, answers, got)
	assert.Equal(t, want, told.told())
}

func TestWhatEndsAnExchange(t *testing.T) {
	beat := requestFrame(heartbeat(0, "m", 7), 1)
	other := bytes.Clone(beat)
	other[14] = 'T' // of the client id
	longer := kmsg.NewRequestFormatter(kmsg.FormatterClientID("tests")).AppendRequest(nil, heartbeat(0, "m", 7), 1)
	unknown := bytes.Clone(beat)
	binary.BigEndian.PutUint16(unknown[4:], 0x6082)
	tests := map[string]struct {
		p    []byte
		ends bool
	}{
		"a request":                     {beat, true},
		"a request of a kind not read":  {requestFrame(metadataRequest(), 1), true},
		"a ticket":                      {kerberosTokens.ticket, false},
		"a wrap token":                  {kerberosTokens.choice, false},
		"an empty token":                {token(""), false},
		"a token shorter than a header": {token("abc"), false},
		"another client id":             {other, false},
		"a longer client id":            {longer, false},
		"a request that Kafka has not":  {unknown, false},
		"a request in pieces":           {beat[:20], false},
		"two requests":                  {append(bytes.Clone(beat), beat...), false},
		"a header alone":                {frame(1, nil), false},
		"a header without a client id":  {[]byte{0, 0, 0, 8, 0, 12, 0, 0, 0, 0, 0, 1}, false},
		"half a client id":              {[]byte{0, 0, 0, 12, 0, 12, 0, 0, 0, 0, 0, 1, 0, 4, 't', 'e'}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := newGroupConn(&script{}, &recorder{}, afterExchange)
			_, err := c.Write(tt.p)
			require.NoError(t, err)
			assert.Equal(t, !tt.ends, c.inExchange())
			assert.Equal(t, tt.ends, len(c.pending) == 1)
			assert.False(t, c.blind)
		})
	}
}

// Nobody knows what the bytes belong to that a Read brings which began in the exchange
// and has lasted until after its end.
func TestReadThatOutlastsTheExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told recorder
		c, broker := pipeOf(t, &told, afterExchange)
		read := make(chan []byte)
		go func() {
			p := make([]byte, 4)
			_, _ = io.ReadFull(c, p)
			read <- p
		}()
		synctest.Wait()
		send(t, c, broker, heartbeat(0, "m", 7), 1)
		answer := answerFrame(beaten(0, 0), 1)
		go func() { _, _ = broker.Write(answer) }()
		got := append(<-read, make([]byte, len(answer)-4)...)
		_, err := io.ReadFull(c, got[4:])
		require.NoError(t, err)
		assert.Equal(t, answer, got)
		assert.Equal(t, []string{`heartbeat sent {m 7}`}, told.told())
	})
}

// The mechanism is asked for below the exchange: Kafka 4.0 and later take no token
// without that.
func TestMechanismIsAskedForBelowTheExchange(t *testing.T) {
	var asked []kmsg.Request
	broker := func(c net.Conn) {
		defer c.Close()
		_, version, correlation, body, err := readRequest(c)
		if err != nil {
			return
		}
		r := kmsg.NewPtrSASLHandshakeRequest()
		r.SetVersion(version)
		if r.ReadFrom(body) == nil {
			asked = append(asked, r)
		}
		_, _ = c.Write(answerFrame(kmsg.NewPtrSASLHandshakeResponse(), correlation))
		_, _ = io.CopyN(io.Discard, c, int64(len(kerberosTokens.ticket)))
		_, _ = c.Write(kerberosTokens.offer)
	}
	for _, kind := range []string{"data", "group"} {
		t.Run(kind, func(t *testing.T) {
			asked = nil
			n := NewNetwork(func(context.Context, string, string) (net.Conn, error) {
				near, far := net.Pipe()
				go broker(far)
				return near, nil
			}, 10*time.Second, Security{Above: "GSSAPI"})
			defer n.Close()
			dialer := n.Data()
			if kind == "group" {
				dialer = n.Group(&recorder{}, afterExchange)
			}
			c, err := dialer.Dial("tcp", "b:1")
			require.NoError(t, err)
			require.Len(t, asked, 1)
			assert.Equal(t, "GSSAPI", asked[0].(*kmsg.SASLHandshakeRequest).Mechanism)
			assert.Zero(t, asked[0].GetVersion(), "after version 1 tokens have a header")
			_, err = c.Write(kerberosTokens.ticket)
			require.NoError(t, err)
			got, err := readAll(c, 7)
			require.NoError(t, err)
			assert.Equal(t, kerberosTokens.offer, got)
		})
	}
}

func TestMechanismAboveIsNotOffered(t *testing.T) {
	broker := &fakeBroker{answer: func(_ int, key kmsg.Key, correlation int32) ([]byte, bool) {
		return answerFrame(&kmsg.SASLHandshakeResponse{ErrorCode: unsupportedMechanism, SupportedMechanisms: []string{"PLAIN"}}, correlation), key == kmsg.SASLHandshake
	}}
	n := NewNetwork(broker.dial, 10*time.Second, Security{Above: "GSSAPI"})
	defer n.Close()
	_, err := n.Data().Dial("tcp", "b:1")
	require.ErrorContains(t, err, "SASL handshake with b:1: it does not offer GSSAPI, only PLAIN (see sasl.enabled.mechanisms of the broker)")
	assert.True(t, IsFatal(err))
}

// sarama sets no deadline in its exchange: a broker that hangs would keep it, and
// whoever waits for the connection, for ever.
func TestExchangeEndsWithinTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := func(c net.Conn) {
			_, _, correlation, _, _ := readRequest(c)
			time.Sleep(time.Second)
			_, _ = c.Write(answerFrame(kmsg.NewPtrSASLHandshakeResponse(), correlation))
		}
		var ends []net.Conn
		n := NewNetwork(func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			ends = append(ends, far)
			go broker(far)
			return near, nil
		}, 10*time.Second, Security{Above: "GSSAPI"})
		defer n.Close()
		for _, dialer := range []Dialer{n.Data(), n.Group(&recorder{}, Limits{Join: time.Minute, Other: time.Minute, ExchangeUntil: "test"})} {
			for _, do := range []func(net.Conn) error{
				func(c net.Conn) error { _, err := c.Read(make([]byte, 4)); return err },
				func(c net.Conn) error { _, err := c.Write(kerberosTokens.ticket); return err },
			} {
				began := time.Now()
				c, err := dialer.Dial("tcp", "b:1")
				require.NoError(t, err)
				require.ErrorIs(t, do(c), os.ErrDeadlineExceeded)
				assert.Equal(t, 10*time.Second, time.Since(began))
			}
		}
		for _, c := range ends {
			c.Close()
		}
	})
}

// FuzzExchange: whatever is written and answered before the first request, the bytes
// pass, nothing is told or remembered, and after that everything is as on a connection
// that begins with the request.
func FuzzExchange(f *testing.F) {
	requests, answers, _ := conversation()
	all := bytes.Join(requests, nil)
	f.Add(kerberosTokens.ticket, []byte{255}, kerberosTokens.offer, answers, byte(7))
	f.Add(bytes.Join([][]byte{kerberosTokens.ticket, kerberosTokens.choice}, nil), []byte{3}, []byte{0, 0, 0, 0}, answers, byte(0))
	f.Add(all[1:], []byte{}, answers[:9], answers[:30], byte(1))
	f.Add(all, []byte{byte(len(requests[0]) - 2), 1}, []byte{}, []byte("HTTP/1.1 400"), byte(40))

	f.Fuzz(func(t *testing.T, tokens, cuts, offers, answers []byte, size byte) {
		var told, want recorder
		s, model := &script{in: offers, cuts: cuts}, &script{in: answers, cuts: cuts}
		c, plain := newGroupConn(s, &told, afterExchange), newGroupConn(model, &want, Limits{})
		for i, rest := 0, tokens; len(rest) > 0; i++ {
			n := len(rest)
			if len(cuts) > 0 {
				n = min(n, 1+int(cuts[i%len(cuts)]))
			}
			if isRequestOf(rest[:n], afterExchange.ExchangeUntil) {
				t.Skip("the exchange ends early")
			}
			_, err := c.Write(rest[:n])
			require.NoError(t, err)
			rest = rest[n:]
		}
		got, err := readAll(c, 1+int(size))
		require.NoError(t, err)
		require.Equal(t, string(offers), string(got))
		require.Equal(t, string(tokens), string(s.out))
		require.Empty(t, told.told())
		require.Empty(t, c.pending)

		s.in, s.out, s.next = answers, nil, 0
		for _, r := range requests {
			for _, c := range []*groupConn{c, plain} {
				_, err := c.Write(r)
				require.NoError(t, err)
			}
		}
		got, err = readAll(c, 1+int(size))
		require.NoError(t, err)
		expected, err := readAll(plain, 1+int(size))
		require.NoError(t, err)
		require.Equal(t, string(expected), string(got))
		require.Equal(t, want.told(), told.told())
		require.Equal(t, string(model.out), string(s.out))
		require.Equal(t, plain.blind, c.blind)
		require.Len(t, c.pending, len(plain.pending))
	})
}
