package faults

// What a server does with a connection. Handlers are put together: TLS(config,
// Until(broker, kmsg.SASLAuthenticate, Silent)) is a TLS server that relays to a
// broker and falls silent when the client sends its password.

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Silent takes everything, and never answers.
func Silent(_ context.Context, c net.Conn) { _, _ = io.Copy(io.Discard, c) }

// HangUp closes the connection.
func HangUp(context.Context, net.Conn) {}

// HangUpOnce closes the connection when the client has said something: in TLS that is
// its ClientHello.
func HangUpOnce(_ context.Context, c net.Conn) { heard(c) }

// HTTP is a web server, which does not understand the question.
func HTTP(_ context.Context, c net.Conn) {
	if heard(c) {
		_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request")
	}
}

// Frame answers with a frame that is said to have so many bytes after its size, and
// has four. The connection stays open: a client that believes it waits for the rest,
// with as much memory as it was told.
func Frame(size uint32) Handler {
	return func(_ context.Context, c net.Conn) {
		if !heard(c) {
			return
		}
		if _, err := c.Write(binary.BigEndian.AppendUint64(nil, uint64(size)<<32)); err == nil {
			_, _ = io.Copy(io.Discard, c)
		}
	}
}

// Answer answers one request, whatever it is, with resp, and leaves the rest to then.
func Answer(resp kmsg.Response, then Handler) Handler {
	return func(ctx context.Context, c net.Conn) {
		request, err := readFrame(c)
		if err != nil || len(request) < header {
			return
		}
		answer := append(make([]byte, 4), request[8:header]...) // its size, the correlation id
		if resp.IsFlexible() && kmsg.Key(resp.Key()) != kmsg.ApiVersions {
			answer = append(answer, 0) // tags
		}
		answer = resp.AppendTo(answer)
		binary.BigEndian.PutUint32(answer, uint32(len(answer)-4))
		if _, err := c.Write(answer); err == nil {
			then(ctx, c)
		}
	}
}

// header is how many bytes of a request come before its client id: size, kind,
// version, correlation id.
const header = 12

// heard reports whether the client has said something.
func heard(c net.Conn) bool {
	n, _ := c.Read(make([]byte, 64<<10))
	return n > 0
}

// TLS makes a TLS server of h.
func TLS(config *tls.Config, h Handler) Handler {
	return func(ctx context.Context, c net.Conn) {
		secure := tls.Server(c, config)
		if secure.HandshakeContext(ctx) == nil {
			h(ctx, secure)
		}
	}
}

// Until relays to the broker at addr, until the client sends a request of that kind.
// That one, and all that comes after it, is then's.
//
// Requests are relayed one at a time, as brokers serve them. It must be Kafka's
// protocol in plain text: put [TLS] around it if the client wants that.
func Until(addr string, key kmsg.Key, then Handler) Handler {
	return func(ctx context.Context, c net.Conn) {
		broker, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return
		}
		defer broker.Close()
		defer context.AfterFunc(ctx, func() { broker.Close() })()
		for {
			request, err := readFrame(c)
			if err != nil {
				return
			}
			if kindOf(request) == key {
				then(ctx, &unread{c, request})
				return
			}
			if !exchange(c, broker, request) {
				return
			}
		}
	}
}

// Relay relays to the broker at addr.
func Relay(addr string) Handler { return Until(addr, -1, HangUp) }

func exchange(c, broker net.Conn, request []byte) bool {
	if _, err := broker.Write(request); err != nil {
		return false
	}
	answer, err := readFrame(broker)
	if err != nil {
		return false
	}
	_, err = c.Write(answer)
	return err == nil
}

const largest = 100 << 20 // bytes of a frame: what brokers take by default

func readFrame(r io.Reader) ([]byte, error) {
	frame := make([]byte, 4)
	if _, err := io.ReadFull(r, frame); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(frame)
	if size > largest {
		return nil, errors.New("not a frame of Kafka's protocol")
	}
	frame = append(frame, make([]byte, size)...)
	_, err := io.ReadFull(r, frame[4:])
	return frame, err
}

func kindOf(request []byte) kmsg.Key {
	if len(request) < header {
		return -1
	}
	return kmsg.Key(binary.BigEndian.Uint16(request[4:]))
}

// unread is a connection of which something has been read already.
type unread struct {
	net.Conn
	rest []byte
}

func (u *unread) Read(p []byte) (int, error) {
	if len(u.rest) == 0 {
		return u.Conn.Read(p)
	}
	n := copy(p, u.rest)
	u.rest = u.rest[n:]
	return n, nil
}
