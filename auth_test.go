package kgroup

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"testing"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kgroup-go/kgroup/internal/wire"
)

// canary is a secret that must not be seen anywhere.
const canary = "c4nary-s3cr3t"

func alice(context.Context) (user, password string, err error) { return "alice", canary, nil }

func aToken(context.Context) (token string, extensions map[string]string, err error) {
	return canary, map[string]string{"logicalCluster": canary}, nil
}

// auths are one of each.
func auths() map[string]Auth {
	return map[string]Auth{
		"PLAIN as alice":         Plain("alice", canary),
		"PLAIN":                  PlainFunc(alice),
		"SCRAM-SHA-256 as alice": Scram(crypto.SHA256, "alice", canary),
		"SCRAM-SHA-512 as alice": Scram(crypto.SHA512, "alice", canary),
		"SCRAM-SHA-512":          ScramFunc(crypto.SHA512, alice),
		"OAUTHBEARER":            OAuthBearer(aToken),
	}
}

func TestAuthSaysWhoItIs(t *testing.T) {
	for want, a := range auths() {
		assert.Equal(t, want, a.String())
		assert.Equal(t, want, fmt.Sprintf("%+v", a))
		text, err := json.Marshal(struct{ Auth Auth }{a})
		require.NoError(t, err)
		assert.JSONEq(t, `{"Auth": "`+want+`"}`, string(text))
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("start", "auth", a)
		assert.Contains(t, log.String(), want)

		m, err := a.sasl()
		require.NoError(t, err)
		name, _, _ := strings.Cut(want, " ")
		assert.Equal(t, name, m.Name())
		x, err := m.Start(t.Context())
		require.NoError(t, err)
		assert.NotEmpty(t, x.First())
	}
}

func TestValidateSecurity(t *testing.T) {
	var typedNil *auth
	tests := []struct {
		name   string
		change func(*Config)
		field  string
		says   string
	}{
		{"no user", func(c *Config) { c.Auth = Plain("", canary) }, "Auth", "PLAIN: the user is empty"},
		{"no password", func(c *Config) { c.Auth = Plain("alice", "") }, "Auth", "PLAIN: the password is empty"},
		{"no SCRAM user", func(c *Config) { c.Auth = Scram(crypto.SHA512, "", canary) }, "Auth", "SCRAM-SHA-512: the user is empty"},
		{"no SCRAM password", func(c *Config) { c.Auth = Scram(crypto.SHA256, "alice", "") }, "Auth", "SCRAM-SHA-256: the password is empty"},
		{"line break", func(c *Config) { c.Auth = Plain("alice", canary+"\n") }, "Auth", "PLAIN: the password ends with a line break"},
		{"no hash", func(c *Config) { c.Auth = Scram(0, "alice", canary) }, "Auth", "use crypto.SHA256 or crypto.SHA512"},
		{"other hash", func(c *Config) { c.Auth = Scram(crypto.SHA1, "alice", canary) }, "Auth", "SCRAM with SHA-1: "},
		{"other hash and function", func(c *Config) { c.Auth = ScramFunc(crypto.SHA384, alice) }, "Auth", "SCRAM with SHA-384: "},
		{"nil function", func(c *Config) { c.Auth = PlainFunc(nil) }, "Auth", "PLAIN: the function is nil"},
		{"nil SCRAM function", func(c *Config) { c.Auth = ScramFunc(crypto.SHA512, nil) }, "Auth", "SCRAM-SHA-512: the function is nil"},
		{"nil token function", func(c *Config) { c.Auth = OAuthBearer(nil) }, "Auth", "OAUTHBEARER: the function is nil"},
		{"typed nil", func(c *Config) { c.Auth = typedNil }, "Auth", "is a nil *kgroup.auth"},
		{"versions", func(c *Config) { c.TLS = &tls.Config{MinVersion: tls.VersionTLS13, MaxVersion: tls.VersionTLS12} }, "TLS.MaxVersion", "lower than MinVersion"},
		{"certificate without key", func(c *Config) {
			c.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{{1}}}}}
		}, "TLS.Certificates[0]", "no private key"},
		{"empty certificate", func(c *Config) { c.TLS = &tls.Config{Certificates: make([]tls.Certificate, 1)} }, "TLS.Certificates[0]", "no certificate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := validConfig()
			tt.change(&c)
			_, newErr := New(c)
			_, loopErr := c.ClusterConfig()
			for _, err := range []error{c.Validate(), newErr, loopErr} {
				require.Equal(t, []string{tt.field}, fields(t, err), "%v", err)
				assert.ErrorContains(t, err, tt.says)
				assert.NotContains(t, err.Error(), canary)
			}
		})
	}
}

func TestValidateAcceptsSecurity(t *testing.T) {
	for name, a := range auths() {
		for _, config := range []*tls.Config{nil, {}, {InsecureSkipVerify: true}, {ServerName: "kafka", MinVersion: tls.VersionTLS13}} {
			c := validConfig()
			c.Auth, c.TLS = a, config
			require.NoError(t, c.Validate(), name)
			c.Tune = func(*cluster.Config) {} // looks at the rules
			_, err := New(c)
			require.NoError(t, err)
			_, err = c.ClusterConfig()
			require.NoError(t, err)

			s := c.security()
			assert.Equal(t, config == nil, s.TLS == nil)
			assert.True(t, strings.HasPrefix(name, s.SASL.Name()))
		}
	}
	assert.Equal(t, wire.Security{}, validConfig().security())
}

func TestNewCopiesTLS(t *testing.T) {
	c := validConfig()
	c.TLS = &tls.Config{ServerName: "kafka"}
	consumer, err := New(c)
	require.NoError(t, err)
	c.TLS.ServerName = "changed"
	c.TLS.InsecureSkipVerify = true
	assert.Equal(t, "kafka", consumer.config.TLS.ServerName)
	assert.False(t, consumer.config.TLS.InsecureSkipVerify)
}

// A loop of one's own gets its connections from us, and no secret in its Config.
func TestClusterConfigIsSecured(t *testing.T) {
	plaintext, err := validConfig().ClusterConfig()
	require.NoError(t, err)
	assert.False(t, plaintext.Net.Proxy.Enable)

	for name, change := range map[string]func(*Config){
		"TLS":  func(c *Config) { c.TLS = &tls.Config{} },
		"Auth": func(c *Config) { c.Auth = Plain("alice", canary) },
		"Dial": func(c *Config) { c.Dial = new(net.Dialer).DialContext },
	} {
		t.Run(name, func(t *testing.T) {
			c := validConfig()
			change(&c)
			built, err := c.ClusterConfig()
			require.NoError(t, err)
			assert.True(t, throughWire(built))
			assert.False(t, built.Net.TLS.Enable)
			assert.False(t, built.Net.SASL.Enable)
			assert.NotContains(t, fmt.Sprintf("%+v", built), canary)

			for _, tt := range []struct {
				says string
				tune func(*cluster.Config)
			}{
				{"Net.Proxy: must stay as it is", func(b *cluster.Config) { b.Net.Proxy.Enable = false }},
				{"Net.Proxy: must stay as it is", func(b *cluster.Config) { b.Net.Proxy.Dialer = &net.Dialer{} }},
				{"Net.TLS.Enable: must be off", func(b *cluster.Config) { b.Net.TLS.Enable = name == "TLS" }},
				{"Net.SASL.Enable: must be off", func(b *cluster.Config) {
					if name == "Auth" {
						b.Net.SASL.Enable, b.Net.SASL.User, b.Net.SASL.Password = true, "u", "p"
					}
				}},
			} {
				c.Tune = tt.tune
				_, err := c.ClusterConfig()
				if err == nil { // what the tune is about is not set here
					assert.NotEqual(t, "Net.Proxy: must stay as it is", tt.says)
					continue
				}
				assert.ErrorContains(t, err, tt.says)
			}
		})
	}

	// Without them it may use sarama's own.
	c := validConfig()
	c.Tune = func(b *cluster.Config) {
		b.Net.TLS.Enable, b.Net.TLS.Config = true, &tls.Config{}
		b.Net.SASL.Enable, b.Net.SASL.User, b.Net.SASL.Password = true, "u", "p"
	}
	built, err := c.ClusterConfig()
	require.NoError(t, err)
	assert.Equal(t, sarama.SASLHandshakeV1, built.Net.SASL.Version)
}

func TestWarnInsecure(t *testing.T) {
	verify := func(tls.ConnectionState) error { return nil }
	const unverified, unencrypted = "brokers are not verified", "is sent unencrypted"
	tests := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"nothing", func(*Config) {}, ""},
		{"TLS", func(c *Config) { c.TLS = &tls.Config{} }, ""},
		{"TLS unverified", func(c *Config) { c.TLS = &tls.Config{InsecureSkipVerify: true} }, unverified},
		{"TLS verified by hand", func(c *Config) { c.TLS = &tls.Config{InsecureSkipVerify: true, VerifyConnection: verify} }, ""},
		{"TLS verified by hand, otherwise", func(c *Config) {
			c.TLS = &tls.Config{InsecureSkipVerify: true, VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error { return nil }}
		}, ""},
		{"PLAIN", func(c *Config) { c.Auth = Plain("alice", canary) }, unencrypted},
		{"OAUTHBEARER", func(c *Config) { c.Auth = OAuthBearer(aToken) }, unencrypted},
		{"SCRAM", func(c *Config) { c.Auth = Scram(crypto.SHA512, "alice", canary) }, ""},
		{"PLAIN and TLS", func(c *Config) { c.Auth, c.TLS = Plain("alice", canary), &tls.Config{} }, ""},
		{"PLAIN and Dial", func(c *Config) { c.Auth, c.Dial = Plain("alice", canary), new(net.Dialer).DialContext }, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := validConfig()
			tt.change(&c)
			var log bytes.Buffer
			c.Logger = slog.New(slog.NewTextHandler(&log, nil))
			consumer, err := New(c)
			require.NoError(t, err)
			consumer.config.warnInsecure(consumer.log)
			if tt.want == "" {
				assert.Empty(t, log.String())
				return
			}
			assert.Equal(t, 1, strings.Count(log.String(), "level=WARN"))
			assert.Contains(t, log.String(), tt.want)
			assert.NotContains(t, log.String(), canary)
		})
	}
}

func TestRunWarnsOnce(t *testing.T) {
	withRig(t, func(c *Config) { c.Auth = Plain("alice", canary) }, func(t *testing.T, r *rig) {
		_, err := r.stop()
		require.NoError(t, err)
		assert.Len(t, r.logs.with("is sent unencrypted"), 1)
		assert.Empty(t, r.logs.with(canary))
	})
}

// A key that was hidden does what crypto/tls does with the one that was not.
func TestHiddenKeysArePresented(t *testing.T) {
	ca, other := issue(t, nil, "ca", authority), issue(t, nil, "other", authority)
	broker := issue(t, ca, "b", brokerAt("kafka-1"))
	alice, mallory := issue(t, ca, "alice", forClients), issue(t, other, "mallory", forClients)
	pair := func(i *issuer) tls.Certificate { return tls.Certificate{Certificate: i.chain, PrivateKey: i.key} }
	trust := func(issuers ...*issuer) *x509.CertPool {
		pool := x509.NewCertPool()
		for _, i := range issuers {
			pool.AddCert(i.leaf)
		}
		return pool
	}
	for name, tt := range map[string]struct {
		certificates []tls.Certificate
		ask          func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
		want         string
	}{
		"none":              {nil, nil, "nobody"},
		"the one":           {[]tls.Certificate{pair(alice)}, nil, "alice"},
		"the one that fits": {[]tls.Certificate{pair(mallory), pair(alice)}, nil, "alice"},
		"none that fits":    {[]tls.Certificate{pair(mallory)}, nil, "nobody"},
		"a func beats them": {[]tls.Certificate{pair(mallory)}, func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			p := pair(alice)
			return &p, nil
		}, "alice"},
	} {
		t.Run(name, func(t *testing.T) {
			config := &tls.Config{RootCAs: trust(ca), ServerName: "kafka-1", Certificates: tt.certificates, GetClientCertificate: tt.ask}
			server := tlsBroker(broker)
			server.ClientCAs = trust(ca)
			for _, client := range []*tls.Config{config, hideKeys(config), hideKeys(hideKeys(config))} {
				seen, err := handshake(t, client, server)
				require.NoError(t, err)
				assert.Equal(t, tt.want, seen)
			}
			assert.Empty(t, hideKeys(config).Certificates)
			assert.Equal(t, tt.certificates, config.Certificates, "the user's own is left alone")
		})
	}
}

// shown is what out shows of a secret, in any of the ways in which bytes are printed.
func shown(out string, secret []byte) string {
	for _, form := range []string{
		string(secret),
		hex.EncodeToString(secret),
		base64.StdEncoding.EncodeToString(secret)[:8],
		strings.Trim(fmt.Sprintf("%d", secret[:6]), "[]"),
		strings.ReplaceAll(strings.Trim(fmt.Sprintf("%#v", secret[:6]), "[]byte{}"), "}", ""),
	} {
		if strings.Contains(strings.ToLower(out), strings.ToLower(form)) {
			return form
		}
	}
	return ""
}

// testing.T's place is taken by what keeps the message of a failing assertion, which
// dumps whatever it compares, unexported fields and pointers included.
type failure struct{ string }

func (f *failure) Errorf(format string, args ...any) { f.string += fmt.Sprintf(format, args...) }

// Whatever is done to a Config in a log, an error or a test, nobody learns a secret.
func TestSecretsAreNotShown(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	ca := issue(t, nil, "ca", authority)
	client := issue(t, ca, "alice", func(c *x509.Certificate) { forClients(c) })
	dir := pemDir(t.TempDir())
	dir.write(t, "ca.pem", certPEM(ca))
	dir.write(t, "client.pem", certPEM(client))
	dir.write(t, "client.key", keyPEM(t, client))
	loaded, err := LoadTLS(dir.files())
	require.NoError(t, err)
	fileKey, err := client.key.(*ecdsa.PrivateKey).Bytes()
	require.NoError(t, err)
	secrets := map[string][]byte{
		"password":                        []byte(canary),
		"private key":                     key,
		"private key of a file":           fileKey,
		"private key of a file, a number": []byte(new(big.Int).SetBytes(fileKey).String()),
	}

	subjects := map[string]any{"loaded": loaded}
	for name, a := range auths() {
		c := validConfig()
		c.Auth, c.TLS = a, loaded
		withKey := c
		withKey.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: client.chain, PrivateKey: key}}}
		consumer, err := New(withKey)
		require.NoError(t, err)
		built, err := withKey.ClusterConfig()
		require.NoError(t, err)
		invalid := c
		invalid.Auth, invalid.Group = Plain("", canary+"\n"), ""
		subjects[name] = a
		subjects[name+" in Config"] = c
		subjects[name+" in Config with a key"] = withKey
		subjects[name+" in Consumer"] = consumer
		subjects[name+" in cluster.Config"] = built
		subjects[name+" invalid"] = invalid.Validate()
		subjects[name+" panicked"] = &PanicError{Value: c}
	}
	for name, subject := range subjects {
		t.Run(name, func(t *testing.T) {
			type exported struct{ Subject any }
			type unexported struct{ subject any }
			for shape, v := range map[string]any{
				"itself":           subject,
				"pointer":          &subject,
				"exported field":   exported{subject},
				"pointer to field": &exported{&subject},
				"unexported field": unexported{subject},
				"pointer inside":   &unexported{&subject},
				"map":              map[string]any{"x": subject},
				"slice":            []any{subject},
				"error":            fmt.Errorf("start %v: %w", subject, errors.New("refused")),
			} {
				if strings.Contains(name, "with a key") && (shape == "unexported field" || shape == "pointer inside") {
					continue // what is not exported is not asked for its methods, and crypto/tls's own struct is what it is
				}
				for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p", "%w"} {
					requireHidden(t, secrets, fmt.Sprintf(verb, v), shape+" "+verb)
				}
				text, err := json.Marshal(v)
				requireHidden(t, secrets, string(text)+fmt.Sprint(err), shape+" JSON")
				var log bytes.Buffer
				slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v)
				slog.New(slog.NewJSONHandler(&log, nil)).With("v", v).Info("x", slog.Group("g", "v", v))
				requireHidden(t, secrets, log.String(), shape+" slog")
				if !strings.Contains(name, "with a key") {
					var f failure
					assert.Equal(&f, nil, v)
					assert.Equal(&f, exported{}, exported{v})
					requireHidden(t, secrets, f.string, shape+" failing assertion")
				}
			}
		})
	}
}

func requireHidden(t *testing.T, secrets map[string][]byte, out, how string) {
	t.Helper()
	for what, secret := range secrets {
		require.Empty(t, shown(out, secret), "%s: the %s is shown in %q", how, what, out)
	}
}

// The checks above would find what they look for.
func TestShown(t *testing.T) {
	for _, v := range []any{canary, []byte(canary), struct{ s string }{canary}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%X"} {
			assert.NotEmpty(t, shown(fmt.Sprintf(verb, v), []byte(canary)), "%T %s", v, verb)
		}
	}
	text, err := json.Marshal([]byte(canary))
	require.NoError(t, err)
	assert.NotEmpty(t, shown(string(text), []byte(canary)))
	var f failure
	assert.Equal(&f, 1, &struct{ p *string }{new(string)})
	assert.NotEmpty(t, f.string)
}
