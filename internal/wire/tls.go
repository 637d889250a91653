package wire

// Whom we trust, and who we are to TLS: the tls.Config of one connection.

import (
	"crypto/tls"
	"net"
)

// ClientTLS returns the TLS settings of one connection to addr, "host:port"; TLS must
// not be nil. stale says why files that have changed could not be read anew: what
// they held before is used, and if the handshake fails this may be the reason.
func (s Security) ClientTLS(addr string) (config *tls.Config, stale error) {
	config = s.TLS.Clone()
	if reload, ok := config.ClientSessionCache.(Reload); ok {
		stale = reload(config)
	}
	if config.ServerName == "" {
		config.ServerName = hostOf(addr)
	}
	return config, stale
}

// hostOf returns what a certificate for addr must be valid for.
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}

// A Reload is the ClientSessionCache of a tls.Config whose certificate authorities may
// change. It brings a connection's own copy of that config up to date, and returns why
// something newer could not be used.
//
// crypto/tls can be asked for another client certificate at each handshake, but not
// for other RootCAs. To verify in VerifyConnection instead, InsecureSkipVerify would
// have to be set, which leaves a config that trusts everybody as soon as somebody
// replaces that func; and VerifyConnection is not told the host if it is an IP
// address. So the config carries its own renewal in a field that survives Clone and
// takes a type of ours. As a session cache it remembers nothing: a resumed session
// would not be verified against new authorities.
type Reload func(*tls.Config) error

// Get implements [tls.ClientSessionCache].
func (Reload) Get(string) (*tls.ClientSessionState, bool) { return nil, false }

// Put implements [tls.ClientSessionCache].
func (Reload) Put(string, *tls.ClientSessionState) {}
