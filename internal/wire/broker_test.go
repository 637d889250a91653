package wire

// A broker for tests: it authenticates with PLAIN, and then answers every request
// with the request's own body. Each of its steps can be replaced.

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const secret = "open sesame"

// plainText is the mechanism PLAIN, for alice and the password that it is.
type plainText string

func (plainText) Name() string                                { return "PLAIN" }
func (p plainText) Start(context.Context) (Exchange, error)   { return p, nil }
func (p plainText) First() []byte                             { return []byte("\x00alice\x00" + string(p)) }
func (plainText) Next(challenge []byte) ([]byte, bool, error) { return nil, true, nil }

// mechanism is one whose steps are functions. An exchange has no more than one.
type mechanism struct {
	start func(ctx context.Context) (Exchange, error)
	next  func(challenge []byte) ([]byte, bool, error)
}

func (mechanism) Name() string { return "PLAIN" }
func (m mechanism) Start(ctx context.Context) (Exchange, error) {
	if m.start != nil {
		return m.start(ctx)
	}
	return m, nil
}
func (m mechanism) First() []byte                             { return []byte("\x00alice\x00" + secret) }
func (m mechanism) Next(c []byte) (_ []byte, _ bool, _ error) { return m.next(c) }

// fakeBroker serves connections. The zero value offers PLAIN for alice.
type fakeBroker struct {
	lifetime time.Duration // of a session; a later request makes it hang up
	saslOnly int16         // newest SaslAuthenticate served
	delay    time.Duration // before each answer to a request that is none of SASL

	// answer replaces the answer to a request, counted from 0 on its connection: nil
	// hangs up, and empty is no answer at all.
	answer func(n int, key kmsg.Key, correlation int32) (frame []byte, replaced bool)

	mu     sync.Mutex // for what is above too, once a connection is there: see change
	asked  []kmsg.Key // by all connections
	names  []string   // mechanisms asked for
	ends   []net.Conn // this side of the connections
	hungUp int        // because a session was over
	wrong  string     // the password is
}

// dial is the dial func that leads to the broker, through pipes.
func (b *fakeBroker) dial(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	b.mu.Lock()
	b.ends = append(b.ends, far)
	b.mu.Unlock()
	go b.serve(far)
	return near, nil
}

// change changes the broker while it serves.
func (b *fakeBroker) change(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func (b *fakeBroker) count(key kmsg.Key) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range b.asked {
		if k == key {
			n++
		}
	}
	return n
}

func (b *fakeBroker) serve(c net.Conn) {
	defer c.Close()
	var ends time.Time
	for n := 0; ; n++ {
		key, version, correlation, body, err := readRequest(c)
		if err != nil {
			return
		}
		b.mu.Lock()
		b.asked = append(b.asked, key)
		over := !ends.IsZero() && !time.Now().Before(ends)
		if over {
			b.hungUp++
		}
		answer := b.answer
		b.mu.Unlock()
		if over {
			return
		}
		var out []byte
		replaced := false
		if answer != nil {
			out, replaced = answer(n, key, correlation)
		}
		if !replaced {
			out, ends = b.reply(key, version, correlation, body, ends)
		}
		if out == nil {
			return
		}
		if len(out) == 0 {
			continue
		}
		if _, err := c.Write(out); err != nil || len(out) < 8 {
			return // less than an answer was meant to be the last word
		}
	}
}

func (b *fakeBroker) reply(key kmsg.Key, version int16, correlation int32, body []byte, ends time.Time) ([]byte, time.Time) {
	b.mu.Lock()
	lifetime, delay, wrong := b.lifetime, b.delay, b.wrong != ""
	b.mu.Unlock()
	switch key {
	case kmsg.ApiVersions:
		return answerFrame(served(kmsg.SASLHandshake, 1, kmsg.SASLAuthenticate, 2-b.saslOnly), correlation), ends
	case kmsg.SASLHandshake:
		req := kmsg.NewPtrSASLHandshakeRequest()
		req.Version = version
		_ = req.ReadFrom(body)
		b.mu.Lock()
		b.names = append(b.names, req.Mechanism)
		b.mu.Unlock()
		answer := &kmsg.SASLHandshakeResponse{Version: version, SupportedMechanisms: []string{"PLAIN"}}
		if req.Mechanism != "PLAIN" {
			answer.SupportedMechanisms, answer.ErrorCode = []string{"PLAIN", "GSSAPI"}, 33
		}
		return answerFrame(answer, correlation), ends
	case kmsg.SASLAuthenticate:
		req := kmsg.NewPtrSASLAuthenticateRequest()
		req.Version = version
		_ = req.ReadFrom(body)
		answer := &kmsg.SASLAuthenticateResponse{Version: version, SessionLifetimeMillis: lifetime.Milliseconds()}
		if !bytes.Equal(req.SASLAuthBytes, plainText(secret).First()) || wrong {
			answer.ErrorCode = 58
			answer.ErrorMessage = kmsg.StringPtr("Authentication failed: Invalid username or password")
		} else if lifetime > 0 {
			ends = time.Now().Add(lifetime)
		}
		return answerFrame(answer, correlation), ends
	default:
		<-time.After(delay)
		return frame(correlation, body), ends
	}
}

// readRequest reads one frame and what is needed of its header.
func readRequest(r io.Reader) (key kmsg.Key, version int16, correlation int32, body []byte, err error) {
	var size [4]byte
	if _, err = io.ReadFull(r, size[:]); err != nil {
		return
	}
	p := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err = io.ReadFull(r, p); err != nil {
		return
	}
	if len(p) < 10 {
		return 0, 0, 0, nil, errors.New("too short")
	}
	key = kmsg.Key(binary.BigEndian.Uint16(p))
	version = int16(binary.BigEndian.Uint16(p[2:]))
	correlation = int32(binary.BigEndian.Uint32(p[4:]))
	return key, version, correlation, skipString(p[8:]), nil
}

// served is an ApiVersions of pairs of a key and its newest version.
func served(pairs ...any) *kmsg.ApiVersionsResponse {
	answer := kmsg.NewPtrApiVersionsResponse()
	for i := 0; i < len(pairs); i += 2 {
		k := kmsg.NewApiVersionsResponseApiKey()
		k.ApiKey = pairs[i].(kmsg.Key).Int16()
		switch v := pairs[i+1].(type) {
		case int:
			k.MaxVersion = int16(v)
		case int16:
			k.MaxVersion = v
		}
		answer.ApiKeys = append(answer.ApiKeys, k)
	}
	return answer
}

// echo sends a request over c and expects its body back.
func echo(t *testing.T, c net.Conn, correlation int32, text string) {
	t.Helper()
	_, err := c.Write(echoRequest(correlation, text))
	require.NoError(t, err)
	got, err := readAnswer(c)
	require.NoError(t, err)
	require.Equal(t, frame(correlation, []byte(text)), got)
}

// echoRequest is a request whose body, after the client id, is text.
func echoRequest(correlation int32, text string) []byte {
	p := binary.BigEndian.AppendUint32(nil, uint32(10+len(text)))
	p = binary.BigEndian.AppendUint16(p, uint16(kmsg.Metadata))
	p = binary.BigEndian.AppendUint16(p, 0)
	p = binary.BigEndian.AppendUint32(p, uint32(correlation))
	p = append(p, 0xff, 0xff) // no client id
	return append(p, text...)
}

// readAnswer reads as sarama does: the header, then the rest.
func readAnswer(c io.Reader) ([]byte, error) {
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(c, header); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(header)-4)
	_, err := io.ReadFull(c, body)
	return append(header, body...), err
}

// An authority signs certificates that are valid for a century, unless they are not.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(100, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return authority{cert, key}
}

func (a authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// sign makes a certificate for servers and clients, with names and addresses in it.
func (a authority) sign(t *testing.T, until time.Time, hosts ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Unix(0, 0), NotAfter: until,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// listen serves the connections of a loopback listener until the test ends.
func listen(t *testing.T, serve func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var all sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			all.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		assert.NoError(t, l.Close())
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return l.Addr().String()
}
