package wire

// Who we are: what a SASL mechanism has to say. How it is said on a connection is
// in network.go.

import (
	"context"
	"crypto/tls"
)

// Security says how connections are secured. The zero value is plaintext without
// authentication.
type Security struct {
	// TLS is cloned for each connection; an empty ServerName becomes the host that
	// is dialled.
	TLS  *tls.Config
	SASL Mechanism
}

// A Mechanism is a SASL mechanism together with whose credentials it presents. It
// may be started by several goroutines at once.
type Mechanism interface {
	// Name is what SaslHandshake asks for, like "SCRAM-SHA-256".
	Name() string

	// Start begins an exchange for one connection. Credentials that may change are
	// asked for here. It must give up when ctx ends.
	Start(ctx context.Context) (Exchange, error)
}

// An Exchange is one authentication under way.
type Exchange interface {
	// First is the client's first message.
	First() []byte

	// Next answers what the broker said. done reports that nothing more is to be
	// sent; then answer is empty. An error means that the broker must not be trusted,
	// or has refused in the mechanism's own words.
	Next(challenge []byte) (answer []byte, done bool, err error)
}
