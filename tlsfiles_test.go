package kgroup

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/wire"
)

// An issuer is a certificate with its key: an authority, a broker or a client.
type issuer struct {
	chain [][]byte // from its own certificate up, without the root
	leaf  *x509.Certificate
	key   crypto.Signer
}

// issue makes a certificate that parent signs; without a parent it signs itself.
func issue(t *testing.T, parent *issuer, name string, change func(*x509.Certificate)) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	signer, signerKey := template, crypto.Signer(key)
	if parent != nil {
		signer, signerKey = parent.leaf, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer, key.Public(), signerKey)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	made := &issuer{chain: [][]byte{der}, leaf: leaf, key: key}
	if parent != nil && len(parent.chain) > 0 && string(parent.leaf.RawIssuer) != string(parent.leaf.RawSubject) {
		made.chain = append(made.chain, parent.chain...)
	}
	return made
}

func authority(c *x509.Certificate) {
	c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign
}

func expired(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }

// brokerAt makes a certificate of a broker that is reached by these names and addresses.
func brokerAt(hosts ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		for _, host := range hosts {
			if ip := net.ParseIP(host); ip != nil {
				c.IPAddresses = append(c.IPAddresses, ip)
			} else {
				c.DNSNames = append(c.DNSNames, host)
			}
		}
	}
}

func forClients(c *x509.Certificate) {
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
}

func all(changes ...func(*x509.Certificate)) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		for _, change := range changes {
			change(c)
		}
	}
}

// certPEM is the certificates of one file.
func certPEM(issuers ...*issuer) string {
	var b strings.Builder
	for _, i := range issuers {
		for _, der := range i.chain {
			_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der})
		}
	}
	return b.String()
}

func keyPEM(t *testing.T, i *issuer) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// pemDir is a directory with the files of a test.
type pemDir string

func (d pemDir) files() TLSFiles {
	return TLSFiles{CA: d.path("ca.pem"), Cert: d.path("client.pem"), Key: d.path("client.key")}
}

func (d pemDir) path(name string) string { return filepath.Join(string(d), name) }

func (d pemDir) write(t *testing.T, name, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(d.path(name), []byte(content), 0o600))
}

// tlsBroker lets b present itself, and asks for a client certificate.
func tlsBroker(b *issuer) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: b.chain, PrivateKey: b.key}},
		ClientAuth:   tls.RequestClientCert,
	}
}

// tcp is a connection, seen from both ends. A pipe has no buffer, so that two who both
// want to say that they have failed wait for each other.
func tcp(t *testing.T) (clientEnd, brokerEnd net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	clientEnd, err = net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	brokerEnd, err = listener.Accept()
	require.NoError(t, err)
	return clientEnd, brokerEnd
}

// handshake connects a client to a broker, and returns whom the broker has seen.
func handshake(t *testing.T, client, broker *tls.Config) (string, error) {
	t.Helper()
	clientEnd, brokerEnd := tcp(t)
	return handshakeOn(t, clientEnd, brokerEnd, client, broker)
}

func handshakeOn(t *testing.T, clientEnd, brokerEnd net.Conn, client, broker *tls.Config) (string, error) {
	t.Helper()
	defer clientEnd.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	seen := make(chan string, 1)
	go func() {
		defer brokerEnd.Close()
		c := tls.Server(brokerEnd, broker)
		name := "nobody"
		if err := c.HandshakeContext(ctx); err == nil {
			if certificates := c.ConnectionState().PeerCertificates; len(certificates) > 0 {
				name = certificates[0].Subject.CommonName
			}
			_, _ = c.Write([]byte("!"))
		}
		seen <- name
	}()
	c := tls.Client(clientEnd, client)
	err := c.HandshakeContext(ctx)
	if err == nil {
		_, err = c.Read(make([]byte, 1)) // in TLS 1.3 the broker's verdict comes after the handshake
	}
	_ = clientEnd.Close()
	return <-seen, err
}

// connect does what the wire does for one connection to addr.
func connect(t *testing.T, config *tls.Config, addr string, broker *issuer) (string, error) {
	t.Helper()
	clientEnd, brokerEnd := tcp(t)
	return connectOn(t, clientEnd, brokerEnd, config, addr, broker)
}

func connectOn(t *testing.T, clientEnd, brokerEnd net.Conn, config *tls.Config, addr string, broker *issuer) (string, error) {
	t.Helper()
	client, stale := wire.Security{TLS: config}.ClientTLS(addr)
	seen, err := handshakeOn(t, clientEnd, brokerEnd, client, tlsBroker(broker))
	if err != nil {
		err = errors.Join(err, stale)
	}
	return seen, err
}

func TestLoadTLSMistakes(t *testing.T) {
	ca := issue(t, nil, "ca", authority)
	client := issue(t, ca, "alice", forClients)
	cut := func(s string) string { return s[:len(s)/2] }
	tests := []struct {
		name  string
		file  string // what is written
		to    string
		files func(*TLSFiles) // or else what is named
		says  string
	}{
		{name: "no CA file", files: func(f *TLSFiles) { f.CA += "x" }, says: "ca.pemx: no such file"},
		{name: "CA is a directory", files: func(f *TLSFiles) { f.CA = filepath.Dir(f.CA) }, says: "is a directory"},
		{name: "no cert file", files: func(f *TLSFiles) { f.Cert += "x" }, says: "client.pemx: no such file"},
		{name: "no key file", files: func(f *TLSFiles) { f.Key += "x" }, says: "client.keyx: no such file"},
		{name: "cert without key", files: func(f *TLSFiles) { f.Key = "" }, says: "a Cert but no Key"},
		{name: "key without cert", files: func(f *TLSFiles) { f.Cert = "" }, says: "a Key but no Cert"},
		{name: "cert and key swapped", files: func(f *TLSFiles) { f.Cert, f.Key = f.Key, f.Cert }, says: "client.pem: tls: "},
		{name: "CA empty", to: "ca.pem", file: " \n", says: "ca.pem: it is empty"},
		{name: "cert empty", to: "client.pem", file: "", says: "client.pem: it is empty"},
		{name: "key empty", to: "client.key", file: "", says: "client.key: it is empty"},
		{name: "CA not PEM", to: "ca.pem", file: "\xfe\xed\xfe\xed", says: "ca.pem: it is not PEM"},
		{name: "cert not PEM", to: "client.pem", file: string(client.chain[0]), says: "client.pem: it is not PEM"},
		{name: "key not PEM", to: "client.key", file: "secret", says: "client.key: it is not PEM"},
		{name: "CA is a key", to: "ca.pem", file: keyPEM(t, ca), says: "ca.pem: it has no certificate, but this: private key"},
		{name: "CA cut off", to: "ca.pem", file: certPEM(ca) + cut(certPEM(ca)), says: "1 of its 2 PEM blocks cannot be read"},
		{name: "CA damaged in the middle", to: "ca.pem", file: cut(certPEM(ca)) + "\n" + certPEM(ca), says: "1 of its 2 PEM blocks cannot be read"},
		{name: "CA no certificate inside", to: "ca.pem", file: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", says: "ca.pem: x509: malformed certificate"},
		{name: "cert cut off", to: "client.pem", file: cut(certPEM(client)), says: "client.pem: 1 of its 1 PEM blocks"},
		{name: "key cut off", to: "client.key", file: cut(keyPEM(t, client)), says: "client.key: 1 of its 1 PEM blocks"},
		{name: "key of another", to: "client.key", file: keyPEM(t, ca), says: "private key does not match public key"},
		{name: "key encrypted", to: "client.key", file: "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n", says: "client.key: it is encrypted"},
		{name: "key encrypted, old format", to: "client.key", file: "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n", says: "client.key: it is encrypted"},
		{name: "CA expired", to: "ca.pem", file: certPEM(issue(t, nil, "old", all(authority, expired))), says: `the certificate of "CN=old" expired 1m`},
		{name: "cert expired", to: "client.pem", file: "expired", says: `the certificate of "CN=alice" expired 1m`},
		{name: "cert for servers only", to: "client.pem", file: "server", says: "it is not for TLS clients"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := pemDir(t.TempDir())
			dir.write(t, "ca.pem", certPEM(ca))
			dir.write(t, "client.pem", certPEM(client))
			dir.write(t, "client.key", keyPEM(t, client))
			files := dir.files()
			switch {
			case tt.files != nil:
				tt.files(&files)
			case tt.file == "expired", tt.file == "server":
				change := all(forClients, expired)
				if tt.file == "server" {
					change = brokerAt("kafka")
				}
				other := issue(t, ca, "alice", change)
				dir.write(t, "client.pem", certPEM(other))
				dir.write(t, "client.key", keyPEM(t, other))
			default:
				dir.write(t, tt.to, tt.file)
			}
			config, err := LoadTLS(files)
			assert.Nil(t, config)
			require.ErrorContains(t, err, tt.says)
			assert.ErrorContains(t, err, "kgroup: load TLS files: ")
			assert.NotContains(t, err.Error(), "secret")
		})
	}

	_, err := LoadTLS(TLSFiles{CA: "no-ca", Cert: "no-cert", Key: "no-key"})
	require.ErrorContains(t, err, "no-ca")
	assert.ErrorContains(t, err, "no-cert", "all mistakes at once")
}

func TestLoadTLSAccepts(t *testing.T) {
	ca, old := issue(t, nil, "ca", authority), issue(t, nil, "old", all(authority, expired))
	tests := map[string]func(t *testing.T, dir pemDir) TLSFiles{
		"only CA": func(_ *testing.T, dir pemDir) TLSFiles { return TLSFiles{CA: dir.path("ca.pem")} },
		"cert and key in one file": func(t *testing.T, dir pemDir) TLSFiles {
			client := issue(t, ca, "alice", nil)
			dir.write(t, "both.pem", "a comment\n"+keyPEM(t, client)+"\n\n"+certPEM(client))
			return TLSFiles{CA: dir.path("ca.pem"), Cert: dir.path("both.pem"), Key: dir.path("both.pem")}
		},
		"an old CA beside a good one": func(t *testing.T, dir pemDir) TLSFiles {
			dir.write(t, "ca.pem", certPEM(old)+"# comment\n"+certPEM(ca))
			return TLSFiles{CA: dir.path("ca.pem")}
		},
		"cert not valid yet": func(t *testing.T, dir pemDir) TLSFiles {
			client := issue(t, ca, "alice", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })
			dir.write(t, "client.pem", certPEM(client))
			dir.write(t, "client.key", keyPEM(t, client))
			return dir.files()
		},
		"system roots": func(*testing.T, pemDir) TLSFiles { return TLSFiles{} },
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			dir := pemDir(t.TempDir())
			dir.write(t, "ca.pem", certPEM(ca))
			config, err := LoadTLS(prepare(t, dir))
			require.NoError(t, err)
			assert.EqualValues(t, tls.VersionTLS12, config.MinVersion)
			assert.False(t, config.InsecureSkipVerify)
			assert.Equal(t, name != "system roots", config.RootCAs != nil)
			cfg := validConfig()
			cfg.TLS = config
			require.NoError(t, cfg.Validate())
		})
	}
}

// Whom we talk to, whichever way the config is copied for a connection.
func TestLoadTLSVerifiesTheBroker(t *testing.T) {
	ca, stranger := issue(t, nil, "ca", authority), issue(t, nil, "ca", authority)
	between := issue(t, ca, "between", authority)
	tests := []struct {
		name   string
		addr   string
		server string // ServerName of the config
		broker *issuer
		says   string
	}{
		{name: "name", addr: "kafka-1:9093", broker: issue(t, ca, "b", brokerAt("kafka-1"))},
		{name: "wildcard", addr: "b1.kafka.internal:9093", broker: issue(t, ca, "b", brokerAt("*.kafka.internal"))},
		{name: "IP address", addr: "127.0.0.1:9093", broker: issue(t, ca, "b", brokerAt("127.0.0.1"))},
		{name: "IPv6 address", addr: "[::1]:9093", broker: issue(t, ca, "b", brokerAt("::1"))},
		{name: "intermediate", addr: "kafka-1:9093", broker: issue(t, between, "b", brokerAt("kafka-1"))},
		{name: "ServerName", addr: "10.0.0.1:9093", server: "kafka", broker: issue(t, ca, "b", brokerAt("kafka"))},
		{name: "other name", addr: "kafka-1:9093", broker: issue(t, ca, "b", brokerAt("kafka-2")), says: "valid for kafka-2, not kafka-1"},
		{name: "other IP address", addr: "127.0.0.1:9093", broker: issue(t, ca, "b", brokerAt("127.0.0.2")), says: "valid for 127.0.0.2, not 127.0.0.1"},
		{name: "name for an IP address", addr: "127.0.0.1:9093", broker: issue(t, ca, "b", brokerAt("localhost")), says: "doesn't contain any IP SANs"},
		{name: "only a common name", addr: "kafka-1:9093", broker: issue(t, ca, "kafka-1", brokerAt()), says: "relies on legacy Common Name field"},
		{name: "ServerName is another", addr: "kafka-1:9093", server: "kafka", broker: issue(t, ca, "b", brokerAt("kafka-1")), says: "valid for kafka-1, not kafka"},
		{name: "unknown authority", addr: "kafka-1:9093", broker: issue(t, stranger, "b", brokerAt("kafka-1")), says: "unknown authority"},
		{name: "signed by itself", addr: "kafka-1:9093", broker: issue(t, nil, "b", brokerAt("kafka-1")), says: "unknown authority"},
		{name: "intermediate missing", addr: "kafka-1:9093", broker: &issuer{chain: issue(t, between, "b", brokerAt("kafka-1")).chain[:1]}, says: "unknown authority"},
		{name: "expired", addr: "kafka-1:9093", broker: issue(t, ca, "b", all(brokerAt("kafka-1"), expired)), says: "expired"},
		{name: "a client's certificate", addr: "kafka-1:9093", broker: issue(t, ca, "b", all(brokerAt("kafka-1"), forClients)), says: "incompatible key usage"},
	}
	dir := pemDir(t.TempDir())
	dir.write(t, "ca.pem", certPEM(ca))
	loaded, err := LoadTLS(TLSFiles{CA: dir.path("ca.pem")})
	require.NoError(t, err)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.broker.key == nil { // the chain of another: the handshake fails before the key counts
				tt.broker.key = ca.key
			}
			config := Config{TLS: loaded}.withDefaults().TLS
			config.ServerName = tt.server
			_, err := connect(t, config, tt.addr, tt.broker)

			byHand := config.Clone()
			if byHand.ServerName == "" {
				byHand.ServerName, _, _ = net.SplitHostPort(tt.addr)
			}
			_, errByHand := handshake(t, byHand, tlsBroker(tt.broker))
			if tt.says == "" {
				require.NoError(t, err)
				require.NoError(t, errByHand)
				return
			}
			require.ErrorContains(t, err, tt.says)
			require.ErrorContains(t, errByHand, tt.says)
			var refused *tls.CertificateVerificationError
			assert.ErrorAs(t, err, &refused)
		})
	}

	t.Run("TLS 1.1", func(t *testing.T) {
		broker := tlsBroker(issue(t, ca, "b", brokerAt("kafka-1")))
		broker.MinVersion, broker.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		client, _ := wire.Security{TLS: loaded}.ClientTLS("kafka-1:9093")
		_, err := handshake(t, client, broker)
		require.ErrorContains(t, err, "protocol version")
	})
}

func TestLoadTLSRereadsTheAuthorities(t *testing.T) {
	before, after := issue(t, nil, "before", authority), issue(t, nil, "after", authority)
	oldBroker, newBroker := issue(t, before, "b", brokerAt("127.0.0.1")), issue(t, after, "b", brokerAt("127.0.0.1"))
	dir := pemDir(t.TempDir())
	dir.write(t, "ca.pem", certPEM(before))
	loaded, err := LoadTLS(TLSFiles{CA: dir.path("ca.pem")})
	require.NoError(t, err)
	config := Config{TLS: loaded}.withDefaults().TLS
	trusted := func() (one, other bool) {
		_, err := connect(t, config, "127.0.0.1:9093", oldBroker)
		_, errNew := connect(t, config, "127.0.0.1:9093", newBroker)
		return err == nil, errNew == nil
	}
	requireTrust := func(wantOne, wantOther bool) {
		t.Helper()
		one, other := trusted()
		require.Equal(t, []bool{wantOne, wantOther}, []bool{one, other})
	}
	requireTrust(true, false)
	dir.write(t, "ca.pem", certPEM(before, after))
	requireTrust(true, true)

	for name, content := range map[string]string{
		"empty":       "",
		"cut off":     certPEM(before) + certPEM(after)[:100],
		"no PEM":      "moved",
		"a directory": "dir",
	} {
		t.Run(name, func(t *testing.T) {
			if content == "dir" {
				require.NoError(t, os.Remove(dir.path("ca.pem")))
				require.NoError(t, os.Mkdir(dir.path("ca.pem"), 0o700))
				defer func() { require.NoError(t, os.Remove(dir.path("ca.pem"))) }()
			} else {
				dir.write(t, "ca.pem", content)
			}
			for range 2 { // also when it has been looked at
				one, other := trusted()
				assert.True(t, one && other, "what was there before stays in use")
				_, err := connect(t, config, "kafka-1:9093", oldBroker)
				require.ErrorContains(t, err, "to match kafka-1")
				assert.ErrorContains(t, err, "ca.pem", "a handshake that fails says that the file cannot be used")
			}
		})
	}

	// As Kubernetes does it: a link is moved to another directory.
	other := pemDir(t.TempDir())
	other.write(t, "ca.pem", certPEM(after))
	_ = os.RemoveAll(dir.path("ca.pem"))
	require.NoError(t, os.Symlink(other.path("ca.pem"), dir.path("ca.pem")))
	requireTrust(false, true)
}

func TestLoadTLSRereadsTheClientCertificate(t *testing.T) {
	ca := issue(t, nil, "ca", authority)
	broker := issue(t, ca, "b", brokerAt("kafka-1"))
	alice, bob := issue(t, ca, "alice", forClients), issue(t, ca, "bob", forClients)
	dir := pemDir(t.TempDir())
	dir.write(t, "ca.pem", certPEM(ca))
	dir.write(t, "client.pem", certPEM(alice))
	dir.write(t, "client.key", keyPEM(t, alice))
	loaded, err := LoadTLS(dir.files())
	require.NoError(t, err)
	config := Config{TLS: loaded}.withDefaults().TLS
	requireSeen := func(name string) {
		t.Helper()
		seen, err := connect(t, config, "kafka-1:9093", broker)
		require.NoError(t, err)
		require.Equal(t, name, seen)
	}
	requireSeen("alice")
	requireSeen("alice")

	dir.write(t, "client.pem", certPEM(bob))
	requireSeen("alice") // the key is still hers
	_, err = connect(t, config, "kafka-2:9093", broker)
	require.ErrorContains(t, err, "private key does not match public key", "a handshake that fails says so")
	dir.write(t, "client.key", keyPEM(t, bob)[:50])
	requireSeen("alice")
	require.NoError(t, os.Remove(dir.path("client.key")))
	requireSeen("alice")
	dir.write(t, "client.key", keyPEM(t, bob))
	requireSeen("bob")

	// Also where nothing of kgroup makes the connection.
	dir.write(t, "client.pem", certPEM(alice))
	dir.write(t, "client.key", keyPEM(t, alice))
	usual := loaded.Clone()
	usual.ServerName = "kafka-1"
	seen, err := handshake(t, usual, tlsBroker(broker))
	require.NoError(t, err)
	assert.Equal(t, "alice", seen)
}

// A certificate that expires while the consumer runs is not sent: the broker's
// refusal would come after the handshake, as a connection that is closed.
func TestLoadTLSExpiredMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := issue(t, nil, "ca", func(c *x509.Certificate) { authority(c); c.NotAfter = time.Now().Add(24 * time.Hour) })
		broker := issue(t, ca, "b", func(c *x509.Certificate) { brokerAt("kafka-1")(c); c.NotAfter = time.Now().Add(24 * time.Hour) })
		client := issue(t, ca, "alice", forClients)
		dir := pemDir(t.TempDir())
		dir.write(t, "ca.pem", certPEM(ca))
		dir.write(t, "client.pem", certPEM(client))
		dir.write(t, "client.key", keyPEM(t, client))
		config, err := LoadTLS(dir.files())
		require.NoError(t, err)
		connect := func() (string, error) {
			clientEnd, brokerEnd := net.Pipe() // as it must be in a bubble
			return connectOn(t, clientEnd, brokerEnd, config, "kafka-1:9093", broker)
		}
		seen, err := connect()
		require.NoError(t, err)
		assert.Equal(t, "alice", seen)

		time.Sleep(2 * time.Hour)
		_, err = connect()
		require.ErrorContains(t, err, `client.pem: the certificate of "CN=alice" expired 1h0m0s ago, on 2000-01-01T01:00:00Z`)
		dir.write(t, "client.key", "")
		_, err = connect()
		require.ErrorContains(t, err, "expired")
		require.ErrorContains(t, err, "client.key: it is empty", "and why there is no newer one")

		client = issue(t, ca, "alice", forClients)
		dir.write(t, "client.pem", certPEM(client))
		dir.write(t, "client.key", keyPEM(t, client))
		seen, err = connect()
		require.NoError(t, err)
		assert.Equal(t, "alice", seen)
	})
}

func TestLoadTLSWhileFilesChange(t *testing.T) {
	ca := issue(t, nil, "ca", authority)
	broker := issue(t, ca, "b", brokerAt("kafka-1"))
	clients := []*issuer{issue(t, ca, "alice", forClients), issue(t, ca, "bob", forClients)}
	dir := pemDir(t.TempDir())
	rotate := func(i int) {
		dir.write(t, "ca.pem", strings.Repeat(certPEM(ca), i%2+1))
		dir.write(t, "client.pem", certPEM(clients[i%2]))
		dir.write(t, "client.key", keyPEM(t, clients[i%2]))
	}
	rotate(0)
	config, err := LoadTLS(dir.files())
	require.NoError(t, err)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				seen, err := connect(t, config, "kafka-1:9093", broker)
				assert.NoError(t, err)
				assert.Contains(t, []string{"alice", "bob"}, seen)
			}
		})
	}
	for i := range 101 {
		rotate(i + 1)
	}
	close(done)
	wg.Wait()
	seen, err := connect(t, config, "kafka-1:9093", broker)
	require.NoError(t, err)
	assert.Equal(t, "bob", seen)
}

// Go looks for the system's roots once in a process.
func TestLoadTLSWithoutSystemRoots(t *testing.T) {
	if os.Getenv("KGROUP_TEST_CHILD") != "" {
		_, err := LoadTLS(TLSFiles{})
		fmt.Println(err)
		return
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestLoadTLSWithoutSystemRoots$", "-test.v")
	child.Env = append(os.Environ(), "KGROUP_TEST_CHILD=1", "SSL_CERT_FILE=/nonexistent", "SSL_CERT_DIR=/nonexistent")
	out, err := child.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), "kgroup: load TLS files: no CA is named, and the operating system has no root certificates")
}
