package wire

// Securing a connection between its dial and its first request: TLS, then SASL. The
// steps run under the context of the attempt, which cuts the connection when it
// ends, so that nothing in here needs a deadline of its own.

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// maxSASLFrame bounds what a broker may say at once before the client is
	// authenticated. The largest of Kafka is its ApiVersions, below 1 kB.
	maxSASLFrame = 64 << 10

	// maxSaid bounds what an error repeats of a broker's own text.
	maxSaid = 300

	// maxLifetime is what a longer session counts as: it ends long after the process.
	maxLifetime = 365 * 24 * time.Hour

	// minLifetime is what a shorter session counts as: making a connection takes a
	// while, and with less there would be nothing but connecting.
	minLifetime = time.Second

	saslClientID = "kgroup"
)

// The codes of Kafka that are met here.
const (
	unsupportedMechanism = 33
	illegalSASLState     = 34
	authenticationFailed = 58
)

// A session is for how long a broker accepts requests on a connection (KIP-368).
type session struct {
	born     time.Time     // before the broker's clock began to run
	lifetime time.Duration // zero: for ever
}

// secure does TLS and SASL, as far as s asks for them. After an error the
// connection is of no use.
func (c *conn) secure(ctx context.Context, s Security, a *attempt) error {
	if s.TLS == nil && s.SASL == nil && s.Above == "" {
		return nil
	}
	keep := context.AfterFunc(ctx, c.cut)
	err := c.negotiate(ctx, s, a)
	if !keep() {
		return context.Cause(ctx) // which is why the step has failed, if it has
	}
	return err
}

func (c *conn) negotiate(ctx context.Context, s Security, a *attempt) error {
	if s.TLS != nil {
		a.step.Store(stepTLS)
		config, stale := s.ClientTLS(c.addr)
		secured := tls.Client(c.raw, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			return errors.Join(err, stale)
		}
		c.Conn = secured
	}
	if s.SASL != nil {
		a.step.Store(stepSASL)
		d := dialogue{conn: c, mechanism: s.SASL}
		if err := d.handshake(); err != nil {
			return err
		}
		a.step.Store(stepAuth)
		return d.authenticate(ctx, &c.session)
	}
	if s.Above != "" {
		a.step.Store(stepSASL)
		d := dialogue{conn: c}
		return d.propose(s.Above, 0) // version 0: tokens without a header follow
	}
	return nil
}

// A dialogue is the part of a connection's life in which we speak for ourselves.
// Its versions are the last that are not flexible: later ones have tagged fields,
// whose number kmsg believes.
type dialogue struct {
	conn      io.ReadWriter
	mechanism Mechanism
	version   int16 // of SaslAuthenticate
	sent      int32 // requests, which is also the last one's correlation id
}

// handshake finds out what the broker serves and asks for the mechanism.
func (d *dialogue) handshake() error {
	versions := kmsg.NewPtrApiVersionsRequest()
	served := kmsg.NewPtrApiVersionsResponse()
	if err := d.ask(versions, served); err != nil {
		return err
	}
	if err := d.choose(served); err != nil {
		return err
	}
	return d.propose(d.mechanism.Name(), 1)
}

// propose asks for a mechanism. The version decides about what follows.
func (d *dialogue) propose(mechanism string, version int16) error {
	request := kmsg.NewPtrSASLHandshakeRequest()
	request.Version, request.Mechanism = version, mechanism
	answer := kmsg.NewPtrSASLHandshakeResponse()
	answer.Version = version
	if err := d.ask(request, answer); err != nil {
		return err
	}
	switch answer.ErrorCode {
	case 0:
		return nil
	case unsupportedMechanism:
		return refusal("see sasl.enabled.mechanisms of the broker", "it does not offer %s, only %s", request.Mechanism, offered(answer.SupportedMechanisms))
	case illegalSASLState:
		return refusal("is this the port of a SASL listener?", "it does not authenticate with SASL")
	default:
		return fmt.Errorf("it refuses %s: %s", request.Mechanism, codeText(answer.ErrorCode, nil))
	}
}

// choose takes the version of SaslAuthenticate: v1, which tells how long the session
// lasts, from Kafka 2.2 on, and v0 before, also when the broker does not say.
func (d *dialogue) choose(served *kmsg.ApiVersionsResponse) error {
	if served.ErrorCode != 0 {
		return nil
	}
	newest := func(key kmsg.Key) int16 {
		i := slices.IndexFunc(served.ApiKeys, func(k kmsg.ApiVersionsResponseApiKey) bool { return k.ApiKey == key.Int16() })
		if i < 0 {
			return -1
		}
		return served.ApiKeys[i].MaxVersion
	}
	if newest(kmsg.SASLHandshake) < 1 || newest(kmsg.SASLAuthenticate) < 0 {
		return refusal("Kafka 1.0 and later do", "it does not serve SaslHandshake v1 and SaslAuthenticate")
	}
	d.version = min(1, newest(kmsg.SASLAuthenticate))
	return nil
}

func offered(mechanisms []string) string {
	if len(mechanisms) == 0 {
		return "others"
	}
	return said(strings.Join(mechanisms, ", "))
}

// authenticate carries the messages of the mechanism to and fro.
func (d *dialogue) authenticate(ctx context.Context, s *session) error {
	exchange, err := d.mechanism.Start(ctx)
	switch {
	case err != nil:
		return d.unstarted(ctx, err)
	case exchange == nil:
		return refusal("", "%s: the mechanism has started no exchange", d.mechanism.Name())
	}
	for message, done := exchange.First(), false; ; {
		s.born = time.Now()
		answer, err := d.send(message)
		if err != nil {
			return err
		}
		message, done, err = exchange.Next(answer.SASLAuthBytes)
		if err != nil {
			return refusal("", "%s: %w", d.mechanism.Name(), err)
		}
		if done {
			s.lifetime = lifetime(answer.SessionLifetimeMillis)
			return nil
		}
	}
}

// unstarted says that there are no credentials to present. That is for a person to
// mend, unless it only took too long.
func (d *dialogue) unstarted(ctx context.Context, err error) error {
	err = fmt.Errorf("%s: get the credentials: %w", d.mechanism.Name(), err)
	if ctx.Err() != nil || isTimeout(err) {
		return err
	}
	return &ConnectError{Err: err, Fatal: true}
}

func (d *dialogue) send(message []byte) (*kmsg.SASLAuthenticateResponse, error) {
	request := kmsg.NewPtrSASLAuthenticateRequest()
	request.Version, request.SASLAuthBytes = d.version, message
	answer := kmsg.NewPtrSASLAuthenticateResponse()
	answer.Version = d.version
	if err := d.ask(request, answer); err != nil {
		return nil, err
	}
	switch answer.ErrorCode {
	case 0:
		return answer, nil
	case authenticationFailed:
		return nil, refusal("are the credentials right, and known to this cluster?", "it refuses %s: %s", d.mechanism.Name(), codeText(answer.ErrorCode, answer.ErrorMessage))
	default:
		return nil, fmt.Errorf("it refuses %s: %s", d.mechanism.Name(), codeText(answer.ErrorCode, answer.ErrorMessage))
	}
}

func lifetime(millis int64) time.Duration {
	if millis <= 0 {
		return 0
	}
	return max(minLifetime, time.Duration(min(millis, maxLifetime.Milliseconds()))*time.Millisecond)
}

// ask writes a request and reads its answer. Its errors are not to be wrapped: some
// are a ConnectError that still gets its step and address.
func (d *dialogue) ask(request kmsg.Request, answer kmsg.Response) error {
	d.sent++
	frame := kmsg.NewRequestFormatter(kmsg.FormatterClientID(saslClientID)).AppendRequest(nil, request, d.sent)
	if _, err := d.conn.Write(frame); err != nil {
		return err
	}
	body, err := d.read()
	if err != nil {
		return err
	}
	if err := answer.ReadFrom(body); err != nil {
		return refusal("is this the port of a Kafka listener?", "an answer that cannot be read: %w", err)
	}
	return nil
}

// read returns the body of the answer to the last request.
func (d *dialogue) read() ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(d.conn, size[:]); err != nil {
		return nil, err
	}
	n := int32(binary.BigEndian.Uint32(size[:]))
	if n < 4 || n > maxSASLFrame {
		return nil, refusal("is this the port of a Kafka listener?", "it announces %d bytes, where no answer has more than a few hundred", n)
	}
	frame := make([]byte, n)
	if _, err := io.ReadFull(d.conn, frame); err != nil {
		return nil, err
	}
	if id := int32(binary.BigEndian.Uint32(frame)); id != d.sent {
		return nil, refusal("is this the port of a Kafka listener?", "it answers request %d instead of %d", id, d.sent)
	}
	return frame[4:], nil
}

// codeText is an error of Kafka with what the broker says about it.
func codeText(code int16, text *string) string {
	name, ok := map[int16]string{
		unsupportedMechanism: "UNSUPPORTED_SASL_MECHANISM",
		illegalSASLState:     "ILLEGAL_SASL_STATE",
		authenticationFailed: "SASL_AUTHENTICATION_FAILED",
	}[code]
	if !ok {
		name = "error"
	}
	if text == nil || *text == "" {
		return fmt.Sprintf("%s, code %d", name, code)
	}
	return fmt.Sprintf("%s (%s, code %d)", said(*text), name, code)
}

// said is a text of the broker, fit for one line of a log.
func said(text string) string {
	clean := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
	if len(clean) > maxSaid {
		clean = strings.ToValidUTF8(clean[:maxSaid], "") + "…"
	}
	return clean
}
