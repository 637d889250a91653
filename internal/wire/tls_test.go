package wire

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestClientTLSKnowsTheHost(t *testing.T) {
	tests := map[string]string{
		"kafka-1:9093":       "kafka-1",
		"10.0.0.1:9093":      "10.0.0.1",
		"[::1]:9093":         "::1",
		"kafka-1.internal.:": "kafka-1.internal.",
		"pipe":               "pipe", // a dial func may be given anything
	}
	for addr, want := range tests {
		config, stale := Security{TLS: &tls.Config{}}.ClientTLS(addr)
		require.NoError(t, stale)
		assert.Equal(t, want, config.ServerName, addr)
	}
	config, _ := Security{TLS: &tls.Config{ServerName: "kafka"}}.ClientTLS("10.0.0.1:9093")
	assert.Equal(t, "kafka", config.ServerName)
}

func TestClientTLSIsACopy(t *testing.T) {
	base := &tls.Config{MinVersion: tls.VersionTLS13}
	config, _ := Security{TLS: base}.ClientTLS("kafka-1:9093")
	assert.NotSame(t, base, config)
	assert.Empty(t, base.ServerName)
	assert.EqualValues(t, tls.VersionTLS13, config.MinVersion)
}

func TestClientTLSReloads(t *testing.T) {
	before, after, unreadable := x509.NewCertPool(), x509.NewCertPool(), errors.New("unreadable")
	calls := 0
	base := &tls.Config{RootCAs: before, ClientSessionCache: Reload(func(c *tls.Config) error {
		calls++
		c.RootCAs = after
		return unreadable
	})}
	s := Security{TLS: base.Clone()} // as Config copies it
	for i := range 2 {
		config, stale := s.ClientTLS("kafka-1:9093")
		assert.Same(t, unreadable, stale)
		assert.Same(t, after, config.RootCAs)
		assert.Equal(t, i+1, calls)
	}
	assert.Same(t, before, base.RootCAs)

	// A session cache of the user's own is none of our business.
	base.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	config, stale := Security{TLS: base}.ClientTLS("kafka-1:9093")
	require.NoError(t, stale)
	assert.Same(t, before, config.RootCAs)
}
