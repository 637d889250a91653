package kafka

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSecurityOptions(t *testing.T) {
	security := &Security{Users: map[string]string{"alice": "secret"}, Reauth: 5 * time.Second}
	o := Options{Version: "4.4.0", Security: security, Listeners: map[string]string{"LOGIN": "SASL_PLAINTEXT"}}
	given := o.Listeners
	require.NoError(t, o.secure())
	assert.Equal(t, map[string]string{
		"LOGIN": "SASL_PLAINTEXT", SSL: "SSL", MTLS: "SSL", SASLSSL: "SASL_SSL", SASLPlaintext: "SASL_PLAINTEXT", Reauth: "SASL_SSL",
	}, o.Listeners)
	assert.NotNil(t, o.Security.CA)
	assert.Len(t, given, 1, "the caller's own")
	assert.Nil(t, security.CA, "the caller's own")

	for want, o := range map[string]Options{
		"no re-authentication before Kafka 2.2": {Version: "1.1.1", Security: &Security{Reauth: time.Second}},
		`user "a,b": `:                          {Version: "4.4.0", Security: &Security{Users: map[string]string{"a,b": "secret"}}},
		`user "alice": `:                        {Version: "4.4.0", Security: &Security{Users: map[string]string{"alice": `"`}}},
	} {
		assert.ErrorContains(t, o.secure(), want)
	}
	without := Options{Version: "4.4.0"}
	require.NoError(t, without.secure())
	assert.Equal(t, Options{Version: "4.4.0"}, without)
}

func TestSecurityProperties(t *testing.T) {
	s := &Security{Users: map[string]string{"bob": "b-secret", "alice": "a-secret"}, Reauth: 5 * time.Second}
	p := s.properties(releases["4.4.0"], "/node")
	for key, want := range map[string]string{
		"ssl.keystore.location":              "/node/key.p12",
		"ssl.truststore.location":            "/node/trust.p12",
		"listener.name.mtls.ssl.client.auth": "required",
		"sasl.enabled.mechanisms":            "OAUTHBEARER,PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
		"authorizer.class.name":              "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users":                        "User:ANONYMOUS",

		"listener.name.reauth.connections.max.reauth.ms":              "5000",
		"listener.name.sasl_ssl.plain.sasl.jaas.config":               `org.apache.kafka.common.security.plain.PlainLoginModule required user_alice="a-secret" user_bob="b-secret";`,
		"listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
		"listener.name.reauth.oauthbearer.sasl.jaas.config":           `org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";`,
		"listener.name.sasl_ssl.connections.max.reauth.ms":            "",
		"listener.name.ssl.scram-sha-512.sasl.jaas.config":            "",
	} {
		assert.Equal(t, want, p[key], key)
	}

	p = (&Security{}).properties(releases["1.1.1"], "/node")
	assert.Equal(t, "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512", p["sasl.enabled.mechanisms"])
	assert.Equal(t, "kafka.security.auth.SimpleAclAuthorizer", p["authorizer.class.name"])
	assert.NotContains(t, p, "listener.name.reauth.connections.max.reauth.ms")
}

func TestUnsecuredToken(t *testing.T) {
	for _, lifetime := range []time.Duration{time.Minute, -time.Minute} {
		parts := strings.Split(UnsecuredToken("alice", lifetime), ".")
		require.Len(t, parts, 3)
		assert.Empty(t, parts[2], "the signature")
		text, err := base64.RawURLEncoding.DecodeString(parts[1])
		require.NoError(t, err)
		var claims struct {
			Sub      string
			Iat, Exp int64
		}
		require.NoError(t, json.Unmarshal(text, &claims))
		assert.Equal(t, "alice", claims.Sub)
		assert.WithinDuration(t, time.Now().Add(lifetime), time.Unix(claims.Exp, 0), 5*time.Second)
		assert.Less(t, claims.Iat, claims.Exp)
	}
}
