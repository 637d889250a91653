package wire

// What is said when a connection cannot be made: at which step, why, what to check,
// and whether trying again can help. The steps are taken in network.go and
// secure.go; the first answer of a connection is looked at in its Read.

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// A ConnectError says why there is no usable connection to a broker.
type ConnectError struct {
	Addr string // as it was dialled
	Step string // what was being done to Addr, like "TLS handshake with"
	Err  error
	Hint string // what to check; may be empty

	// Fatal reports that a person must mend something: credentials, certificates, the
	// port. Without it the broker may only be away for a while.
	Fatal bool
}

func (e *ConnectError) Error() string {
	s := fmt.Sprintf("%s %s: %v", e.Step, e.Addr, e.Err)
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap returns e.Err.
func (e *ConnectError) Unwrap() error { return e.Err }

// Is makes an error that is fatal one for errors.Is, wherever it is in a tree.
func (e *ConnectError) Is(target error) bool { return target == errFatal && e.Fatal }

var errFatal = errors.New("a person must mend this")

// IsFatal reports whether err, or an error that it wraps, is a [ConnectError] that
// trying again cannot cure: refused credentials, a mechanism that the broker does
// not offer, a certificate that is not accepted on either side, a port that speaks
// something else. What it does not report may be an unreachable broker.
func IsFatal(err error) bool { return errors.Is(err, errFatal) }

// The steps to a connection. They read on with the address.
const (
	stepDial  = "dial"
	stepTLS   = "TLS handshake with"
	stepSASL  = "SASL handshake with"
	stepAuth  = "authenticate to"
	stepFirst = "first answer of"
)

// refusal is a failure that is known not to go away.
func refusal(hint, format string, args ...any) *ConnectError {
	return &ConnectError{Err: fmt.Errorf(format, args...), Hint: hint, Fatal: true}
}

// failure makes a ConnectError of err. One that is a ConnectError already knows
// better than its caller, and gets what it lacks.
func failure(step, addr string, secured bool, err error) *ConnectError {
	known, ok := errors.AsType[*ConnectError](err)
	if !ok {
		known = &ConnectError{Err: err}
		known.Hint, known.Fatal = judge(step, secured, err)
	}
	if known.Step == "" {
		known.Step, known.Addr = step, addr
	}
	return known
}

// judge says what to check, and whether err comes from what somebody has set up
// rather than from the state of the network and of the broker.
func judge(step string, secured bool, err error) (hint string, fatal bool) {
	if errors.Is(err, net.ErrClosed) {
		return "", false // by us
	}
	if hint := certificateHint(err); hint != "" {
		return hint, true
	}
	if hint := alertHint(err); hint != "" {
		return hint, true
	}
	if e, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		if isHTTP(e.RecordHeader[:]) {
			return "it speaks HTTP: is this the port of a Kafka listener?", true
		}
		return "the port does not speak TLS: is this a plaintext listener, or none of Kafka?", true
	}
	if isTimeout(err) {
		return silenceHint(step, secured), false
	}
	if IsHangUp(err) {
		return hangUpHint(step, secured), false
	}
	// What fails a TLS handshake and is neither the network nor an alert that says
	// nothing is the configuration.
	_, network := errors.AsType[*net.OpError](err)
	return "", step == stepTLS && !network && !errors.Is(err, context.Canceled)
}

// certificateHint knows why Go refuses a broker's certificate.
func certificateHint(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "is the CA that signed the broker's certificate among those of Config.TLS (TLSFiles.CA of LoadTLS, or RootCAs)? without any, the system's count"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "connect by a name that is in the certificate, have the broker advertise such a name (advertised.listeners), or set ServerName in Config.TLS"
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return "renew the broker's certificate; or is this machine's clock wrong?"
	}
	if _, ok := errors.AsType[x509.SystemRootsError](err); ok {
		return "this machine has no CA certificates: install ca-certificates, or give Config.TLS a CA (TLSFiles.CA of LoadTLS, or RootCAs)"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "the broker's certificate is not fit for a server"
	}
	return ""
}

// ownCertificate is for the alerts about a client's certificate. Java says "bad
// certificate" also when there is none.
const ownCertificate = "the broker requires a client certificate, or refuses this one: is one set in Config.TLS, for clients, not expired, and signed by a CA of the broker's truststore?"

// alertHints are for what a broker says in TLS before it closes the connection. In
// TLS 1.3 what it says about the client's certificate arrives after the handshake,
// as the first answer.
var alertHints = map[string]string{
	alertText(40):  "no cipher or TLS version in common, or the broker requires a client certificate: see Certificates in Config.TLS",
	alertText(42):  ownCertificate,
	alertText(43):  ownCertificate,
	alertText(44):  ownCertificate,
	alertText(45):  ownCertificate,
	alertText(46):  ownCertificate,
	alertText(48):  ownCertificate,
	alertText(49):  ownCertificate,
	alertText(70):  "no TLS version in common: see MinVersion of Config.TLS and the broker's ssl.enabled.protocols",
	alertText(112): "the broker does not know the name it is called by: see ServerName in Config.TLS",
	alertText(116): "the broker requires a client certificate: set Certificates in Config.TLS",
}

// alertText is how crypto/tls words an alert. The type of those that arrive on a
// connection is not exported.
func alertText(code tls.AlertError) string { return code.Error() }

func alertHint(err error) string {
	op, ok := errors.AsType[*net.OpError](err)
	switch {
	case ok && op.Op == "remote error":
		return alertHints[op.Err.Error()]
	case ok && op.Op == "local error":
		return "what the broker says is no TLS: brokers before Kafka 3 do this when they require a client certificate, or refuse this one"
	default:
		return ""
	}
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout() || errors.Is(err, os.ErrDeadlineExceeded)
}

func silenceHint(step string, secured bool) string {
	switch {
	case step == stepDial:
		return "is the address right? does a firewall drop the packets?"
	case step == stepTLS:
		return "the port accepts connections and stays silent: does it speak TLS? does the broker hang?"
	case step == stepAuth:
		return "who is slow, the source of the credentials or the broker?"
	case secured:
		return "the port stays silent: is it a Kafka listener? does the broker hang?"
	default:
		return "the port accepts connections and stays silent: is it a Kafka listener, and one without TLS? does the broker hang?"
	}
}

// IsHangUp reports whether err says that the other side has closed the connection.
func IsHangUp(err error) bool {
	for _, hangUp := range []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE} {
		if errors.Is(err, hangUp) {
			return true
		}
	}
	return false
}

func hangUpHint(step string, secured bool) string {
	switch {
	case step == stepDial:
		return ""
	case step == stepTLS:
		return "the broker closed the connection: is this a plaintext listener?"
	case step == stepSASL, step == stepAuth:
		return "the broker closed the connection: is this a SASL listener? its log says why"
	case secured:
		return "the broker closed the connection: does it require a client certificate, or refuse this one? its log says why"
	default:
		return "the broker closed the connection: does this listener expect TLS?"
	}
}

// first is how many bytes of a connection's first answer are looked at.
const first = 5

// maxFirst bounds the first answer of a connection: ten times what sarama takes
// unless sarama.MaxResponseSize was raised.
const maxFirst = 1 << 30

// notKafka says what speaks on a port whose first answer begins with b: nil if that
// may be Kafka. An answer of Kafka begins with its size.
func notKafka(b []byte) error {
	switch {
	case len(b) >= 2 && b[0] == 0x15 && b[1] == 0x03:
		return refusal("this listener expects TLS", "a TLS alert")
	case isHTTP(b):
		return refusal("is this the port of a Kafka listener?", "it speaks HTTP")
	case len(b) < 4:
		return nil
	}
	if size := int32(binary.BigEndian.Uint32(b)); size < 4 || size > maxFirst {
		return refusal("is this the port of a Kafka listener?", "it announces %d bytes, which no answer of Kafka has", size)
	}
	return nil
}

func isHTTP(b []byte) bool { return bytes.HasPrefix(b, []byte("HTTP")) }
