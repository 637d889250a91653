package faults

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/kgroup-go/kgroup/e2e/certs"
	"github.com/kgroup-go/kgroup/kgrouptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func serve(t *testing.T, h Handler) *Server {
	t.Helper()
	s, err := Serve(h)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

func dial(t *testing.T, s *Server) net.Conn {
	t.Helper()
	c, err := s.Dial(t.Context(), "tcp", "broker.test:9092")
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	return c
}

// silent asserts that the other side says nothing, and does not hang up.
func silent(t *testing.T, c net.Conn) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

// hungUp asserts that the connection has ended.
func hungUp(t *testing.T, c net.Conn) {
	t.Helper()
	_, err := c.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
}

func ask(t *testing.T, c net.Conn, req kmsg.Request) {
	t.Helper()
	_, err := c.Write(kmsg.NewRequestFormatter().AppendRequest(nil, req, 7))
	require.NoError(t, err)
}

func answered(t *testing.T, c net.Conn) {
	t.Helper()
	frame, err := readFrame(c)
	require.NoError(t, err)
	require.EqualValues(t, 7, binary.BigEndian.Uint32(frame[4:]), "correlation id")
}

func TestSilent(t *testing.T) {
	c := dial(t, serve(t, Silent))
	ask(t, c, kmsg.NewPtrApiVersionsRequest())
	silent(t, c)
}

func TestHangUp(t *testing.T) {
	hungUp(t, dial(t, serve(t, HangUp)))
	c := dial(t, serve(t, HangUpOnce))
	silent(t, c)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(30*time.Second)))
	ask(t, c, kmsg.NewPtrApiVersionsRequest())
	hungUp(t, c)
}

func TestHTTP(t *testing.T) {
	c := dial(t, serve(t, HTTP))
	ask(t, c, kmsg.NewPtrApiVersionsRequest())
	text, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.Contains(t, string(text), "HTTP/1.1 400")
}

func TestFrame(t *testing.T) {
	c := dial(t, serve(t, Frame(1<<31-1)))
	ask(t, c, kmsg.NewPtrApiVersionsRequest())
	answer := make([]byte, 8)
	_, err := io.ReadFull(c, answer)
	require.NoError(t, err)
	assert.Equal(t, []byte{0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0}, answer)
	silent(t, c)
}

func TestUntil(t *testing.T) {
	broker := kgrouptest.Start(t)
	for name, then := range map[string]Handler{"silent": Silent, "hangs up": HangUp} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, serve(t, Until(broker.Addrs()[0], kmsg.Metadata, then)))
			ask(t, c, kmsg.NewPtrApiVersionsRequest())
			answered(t, c)
			ask(t, c, kmsg.NewPtrMetadataRequest())
			if name == "silent" {
				silent(t, c)
			} else {
				hungUp(t, c)
			}
		})
	}
	t.Run("answers", func(t *testing.T) { // then is given the request, too
		c := dial(t, serve(t, Until(broker.Addrs()[0], kmsg.ApiVersions, Frame(9))))
		ask(t, c, kmsg.NewPtrApiVersionsRequest())
		_, err := io.ReadFull(c, make([]byte, 8))
		require.NoError(t, err)
	})
}

func TestAnswer(t *testing.T) {
	broker := kgrouptest.Start(t)
	for _, version := range []int16{2, 12} { // the second has tags
		resp := kmsg.NewPtrMetadataResponse()
		resp.Version, resp.ControllerID = version, 42
		c := dial(t, serve(t, Until(broker.Addrs()[0], kmsg.Metadata, Answer(resp, Silent))))
		req := kmsg.NewPtrMetadataRequest()
		req.Version = version
		ask(t, c, req)
		frame, err := readFrame(c)
		require.NoError(t, err)
		body := frame[8:]
		if resp.IsFlexible() {
			body = body[1:]
		}
		got := kmsg.NewPtrMetadataResponse()
		got.Version = version
		require.NoError(t, got.ReadFrom(body))
		assert.EqualValues(t, 42, got.ControllerID)
		silent(t, c)
	}
}

func TestTLS(t *testing.T) {
	broker := kgrouptest.Start(t)
	ca, err := certs.NewAuthority("ca")
	require.NoError(t, err)
	cert, err := ca.Issue(certs.Template{Hosts: []string{"127.0.0.1"}})
	require.NoError(t, err)
	s := serve(t, TLS(&tls.Config{Certificates: []tls.Certificate{cert.TLS()}}, Relay(broker.Addrs()[0])))
	c := tls.Client(dial(t, s), &tls.Config{RootCAs: ca.Pool(), ServerName: "127.0.0.1"})
	ask(t, c, kmsg.NewPtrApiVersionsRequest())
	answered(t, c)

	plain := dial(t, s)
	_, err = plain.Write([]byte("no ClientHello"))
	require.NoError(t, err)
	_, _ = io.Copy(io.Discard, plain) // an alert
	hungUp(t, plain)
}

func TestBecome(t *testing.T) {
	broker := kgrouptest.Start(t)
	s := serve(t, Relay(broker.Addrs()[0]))
	before := dial(t, s)
	ask(t, before, kmsg.NewPtrApiVersionsRequest())
	answered(t, before)
	require.NoError(t, s.Await(t.Context(), 1))
	assert.Equal(t, 1, s.Accepted())

	s.Become(Silent)
	hungUp(t, before)
	after := dial(t, s)
	ask(t, after, kmsg.NewPtrApiVersionsRequest())
	silent(t, after)

	awaited := make(chan error, 1)
	go func() { awaited <- s.Await(t.Context(), 3) }()
	s.Become(Relay(broker.Addrs()[0]))
	again := dial(t, s)
	ask(t, again, kmsg.NewPtrApiVersionsRequest())
	answered(t, again)
	require.NoError(t, <-awaited)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorContains(t, s.Await(ctx, 4), "3 of 4 connections have come")

	s.Close()
	hungUp(t, again)
	_, err := s.Dial(t.Context(), "tcp", "")
	require.Error(t, err)
}

func TestLink(t *testing.T) {
	broker := kgrouptest.Start(t)
	var l Link
	c, err := l.Dial(t.Context(), "tcp", broker.Addrs()[0])
	require.NoError(t, err)
	defer c.Close()
	ask(t, c, kmsg.NewPtrApiVersionsRequest())
	answered(t, c)

	l.Cut()
	ask(t, c, kmsg.NewPtrApiVersionsRequest())
	silent(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = l.Dial(ctx, "tcp", broker.Addrs()[0])
	require.ErrorIs(t, err, context.Canceled)

	l.Mend()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(30*time.Second)))
	answered(t, c)
}
