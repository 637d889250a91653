package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"software.sslmate.com/src/go-pkcs12"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func authority(t *testing.T, name string) *Authority {
	t.Helper()
	a, err := NewAuthority(name)
	require.NoError(t, err)
	return a
}

func issue(t *testing.T, a *Authority, tmpl Template) Certificate {
	t.Helper()
	c, err := a.Issue(tmpl)
	require.NoError(t, err)
	return c
}

// handshake returns what client and server make of each other. It takes a socket: on a
// pipe, which keeps nothing, two sides that both want to say something stand still.
func handshake(t *testing.T, client, server *tls.Config) (clientErr, serverErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			err = tls.Server(c, server).HandshakeContext(t.Context())
		}
		done <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	clientErr = tls.Client(c, client).HandshakeContext(t.Context())
	return clientErr, <-done
}

func TestClientAndServerTrustEachOther(t *testing.T) {
	ca := authority(t, "ca")
	server := issue(t, ca, Template{Name: "broker", Hosts: []string{"127.0.0.1", "broker.test"}})
	client := issue(t, ca, Template{Name: "billing"})
	assert.Equal(t, "User:CN=billing", client.Principal())

	for _, host := range []string{"127.0.0.1", "broker.test"} {
		var seen string
		clientErr, serverErr := handshake(t,
			&tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{client.TLS()}, ServerName: host, MaxVersion: tls.VersionTLS12},
			&tls.Config{ClientCAs: ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert, Certificates: []tls.Certificate{server.TLS()},
				VerifyConnection: func(s tls.ConnectionState) error {
					seen = s.PeerCertificates[0].Subject.String()
					return nil
				}})
		require.NoError(t, clientErr)
		require.NoError(t, serverErr)
		assert.Equal(t, "CN=billing", seen)
	}
}

func TestClientRefuses(t *testing.T) {
	ca := authority(t, "ca")
	now := time.Now()
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	for _, test := range []struct {
		name string
		from *Authority
		tmpl Template
		want any
	}{
		{"another authority, of the same name", authority(t, "ca"), Template{Hosts: []string{"127.0.0.1"}}, &unknown},
		{"another host", ca, Template{Hosts: []string{"broker.test", "127.0.0.2"}}, &host},
		{"expired", ca, Template{Hosts: []string{"127.0.0.1"}, NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Hour)}, &invalid},
		{"not yet valid", ca, Template{Hosts: []string{"127.0.0.1"}, NotBefore: now.Add(time.Hour)}, &invalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := issue(t, test.from, test.tmpl)
			err, _ := handshake(t, &tls.Config{RootCAs: ca.Pool(), ServerName: "127.0.0.1"}, &tls.Config{Certificates: []tls.Certificate{server.TLS()}})
			require.ErrorAs(t, err, test.want)
		})
	}
}

func TestFilesAreReplaced(t *testing.T) {
	dir := t.TempDir()
	ca := authority(t, "ca")
	first, second := issue(t, ca, Template{Name: "first"}), issue(t, ca, Template{Name: "second"})

	files, err := WriteFiles(dir, ca, first)
	require.NoError(t, err)
	open, err := os.Open(files.Key)
	require.NoError(t, err)
	defer open.Close()
	again, err := WriteFiles(dir, ca, second)
	require.NoError(t, err)
	require.Equal(t, files, again)

	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	require.NoError(t, err)
	assert.Equal(t, "CN=second", pair.Leaf.Subject.String())
	pem, err := os.ReadFile(files.CA)
	require.NoError(t, err)
	assert.Equal(t, ca.PEM(), pem)

	// A reader that has a file open reads the old one to its end.
	var old bytes.Buffer
	_, err = old.ReadFrom(open)
	require.NoError(t, err)
	_, err = tls.X509KeyPair(first.CertPEM(), old.Bytes())
	require.NoError(t, err)
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	assert.Len(t, left, 3, "files in %s", dir)

	info, err := os.Stat(files.Key)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())
}

// That Java reads the stores is shown by the brokers of package kafka.
func TestStores(t *testing.T) {
	ca := authority(t, "ca")
	server := issue(t, ca, Template{Name: "broker"})
	store, err := server.KeyStore("secret")
	require.NoError(t, err)
	key, leaf, chain, err := pkcs12.DecodeChain(store, "secret")
	require.NoError(t, err)
	assert.Equal(t, server.TLS().PrivateKey, key)
	assert.Equal(t, "CN=broker", leaf.Subject.String())
	require.Len(t, chain, 1)
	assert.Equal(t, "CN=ca", chain[0].Subject.String())

	store, err = ca.TrustStore("secret")
	require.NoError(t, err)
	trusted, err := pkcs12.DecodeTrustStore(store, "secret")
	require.NoError(t, err)
	require.Len(t, trusted, 1)
	assert.Equal(t, "CN=ca", trusted[0].Subject.String())
}
