package kgroup

import (
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/kgroup-go/kgroup/internal/wire"
)

// tuneKerberos is what the README says.
func tuneKerberos(built *cluster.Config) {
	built.Net.SASL.Enable = true
	built.Net.SASL.Mechanism = sarama.SASLTypeGSSAPI
	built.Net.SASL.GSSAPI = sarama.GSSAPIConfig{
		AuthType:           sarama.KRB5_KEYTAB_AUTH,
		KeyTabPath:         "/etc/billing.keytab",
		KerberosConfigPath: "/etc/krb5.conf",
		ServiceName:        "kafka",
		Username:           "billing",
		Realm:              "EXAMPLE.COM",
	}
}

// withoutKDC makes sarama send what it does for PLAIN without a handshake, instead of
// tickets: a bare token with a bare answer too.
func withoutKDC(g *group) {
	sasl := &g.cluster.Net.SASL
	sasl.Mechanism, sasl.Handshake, sasl.User, sasl.Password = sarama.SASLTypePlaintext, false, "billing", "ticket"
	g.speak(g.spoken)
}

func onKerberos(t *testing.T, change func(*Config), body func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka)) {
	t.Helper()
	onPrepared(t, Multiplex, func(kafka *fakeKafka, cfg *Config, _ *fakeSession) {
		kafka.kerberos, cfg.Tune = true, tuneKerberos
		if change != nil {
			change(cfg)
		}
	}, withoutKDC, body)
}

// sarama authenticates on every connection, and the group connection is read along all
// the same: there is a member id, a rebalance timeout, and heartbeats in a long drain.
func TestKerberos(t *testing.T) {
	onKerberos(t, func(cfg *Config) { cfg.RebalanceTimeout = 5 * time.Minute }, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
		draining := make(chan struct{})
		s.revoke = func(time.Time, time.Time) { <-draining }
		opensGeneration(t, s, 1)
		me, member := g.member.current()
		require.True(t, member)
		assert.Equal(t, wire.Member{ID: "m-1", Generation: 1}, me)
		joins := kafka.all(kmsg.JoinGroup)
		require.Len(t, joins, 2, "the second with the id that the first was given")
		assert.EqualValues(t, 4, joins[0].request.GetVersion())
		assert.EqualValues(t, 300_000, joins[0].request.(*kmsg.JoinGroupRequest).RebalanceTimeoutMillis)
		refused, err := g.Commit(t.Context(), 1, someOffsets)
		require.NoError(t, err)
		assert.Empty(t, refused)
		assert.Equal(t, someOffsets[0].Offset, kafka.committedOffset(someOffsets[0].Partition))

		kafka.forget()
		kafka.rebalance()
		time.Sleep(time.Minute)
		assert.Greater(t, kafka.count(kmsg.Heartbeat), 30, "while it drains, for a minute")
		close(draining)
		opensGeneration(t, s, 2)
		assert.Empty(t, s.history.all("lost"))
		assert.Empty(t, s.history.all("failed"))
		for _, token := range kafka.tokens {
			assert.Equal(t, "\x00billing\x00ticket", token)
		}
	})
}

// A broker that answers SaslHandshake is alive. Nothing is sent on such a connection
// after it: that would count as an authentication that has failed.
func TestKerberosBrokerIsAliveWhileMembersWait(t *testing.T) {
	onKerberos(t, func(cfg *Config) { cfg.SessionTimeout = 6 * time.Second; cfg.RebalanceTimeout = 5 * time.Minute }, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
		opensGeneration(t, s, 1)
		drained := make(chan struct{})
		kafka.on(kmsg.JoinGroup, func(c *call) kmsg.Response {
			<-drained
			return kafka.usual(c)
		})
		kafka.rebalance()
		eventually(t, "the request", func() bool { return kafka.count(kmsg.JoinGroup) == 3 })
		tokens := len(kafka.tokens)
		kafka.forget()
		time.Sleep(4*time.Minute - time.Second)
		assert.InDelta(t, 80, kafka.count(kmsg.SASLHandshake), 2, "one in 3 s")
		assert.InDelta(t, tokens, len(kafka.tokens), 2)
		close(drained)
		kafka.on(kmsg.JoinGroup, nil)
		opensGeneration(t, s, 2)
		assert.Empty(t, s.history.all("failed"))

		kafka.hangs(kmsg.JoinGroup)
		kafka.on(kmsg.SASLHandshake, silence)
		kafka.rebalance()
		began := time.Now()
		eventually(t, "the failure", func() bool { return len(s.history.all("failed")) > 0 })
		assert.LessOrEqual(t, time.Since(began), 15*time.Second)
		kafka.on(kmsg.JoinGroup, nil)
		kafka.on(kmsg.ApiVersions, nil)
		kafka.on(kmsg.SASLHandshake, nil)
		opensGeneration(t, s, 3)
	})
}

func TestKerberosFails(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "krb5.conf")
	tests := map[string]struct {
		kafka func(*fakeKafka)
		group func(*group)
		says  []string
	}{
		"refuses the ticket": {
			kafka: func(k *fakeKafka) { k.refuses = true },
			group: withoutKDC,
			says:  []string{"one:9092: ask for its protocol versions: authenticate with Kerberos: ", "(the broker closed the connection: its log says why)"},
		},
		"no configuration": {
			group: func(g *group) { g.cluster.Net.SASL.GSSAPI.KerberosConfigPath = missing; g.speak(g.spoken) },
			says:  []string{"one:9092: authenticate with Kerberos: ", missing},
		},
		"does not offer it": {
			kafka: func(k *fakeKafka) {
				k.on(kmsg.SASLHandshake, func(*call) kmsg.Response {
					return &kmsg.SASLHandshakeResponse{ErrorCode: 33, SupportedMechanisms: []string{"PLAIN"}}
				})
			},
			group: withoutKDC,
			says:  []string{"SASL handshake with one:9092: it does not offer GSSAPI, only PLAIN"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				kafka := newKafka("one:9092")
				kafka.kerberos = true
				if tt.kafka != nil {
					tt.kafka(kafka)
				}
				g, s := newTestGroup(t, func(cfg *Config) {
					cfg.Brokers, cfg.Dial, cfg.Tune = kafka.addrs, kafka.dial, tuneKerberos
				})
				tt.group(g)
				began := time.Now()
				err := g.Start(t.Context(), s)
				for _, says := range tt.says {
					require.ErrorContains(t, err, says)
				}
				assert.LessOrEqual(t, time.Since(began), 10*time.Second)
				synctest.Wait()
				assert.Zero(t, g.network.Open())
			})
		})
	}
}

// In a loop of one's own too the mechanism has to be asked for. A dialer or TLS of its
// own stays as it is.
func TestKerberosInALoop(t *testing.T) {
	tests := map[string]struct {
		tune  func(*cluster.Config)
		asked bool
	}{
		"alone":         {func(*cluster.Config) {}, true},
		"sarama's TLS":  {func(built *cluster.Config) { built.Net.TLS.Enable = true }, false},
		"its own proxy": {func(built *cluster.Config) { built.Net.Proxy.Enable, built.Net.Proxy.Dialer = true, groupDialer{} }, false},
		"another mechanism": {func(built *cluster.Config) {
			built.Net.SASL.Mechanism, built.Net.SASL.User, built.Net.SASL.Password = sarama.SASLTypePlaintext, "u", "p"
		}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := validConfig()
			c.Tune = func(built *cluster.Config) { tuneKerberos(built); tt.tune(built) }
			built, err := c.ClusterConfig()
			require.NoError(t, err)
			assert.Equal(t, tt.asked, throughWire(built))
		})
	}
	inBubble(t, func(t *testing.T) {
		kafka := newKafka("one:9092")
		c := validConfig()
		c.Dial, c.Tune = kafka.dial, tuneKerberos
		built, err := c.ClusterConfig()
		require.NoError(t, err)
		conn, err := built.Net.Proxy.Dialer.Dial("tcp", "one:9092")
		require.NoError(t, err)
		defer conn.Close()
		asked := kafka.all(kmsg.SASLHandshake)
		require.Len(t, asked, 1)
		assert.Equal(t, "GSSAPI", asked[0].request.(*kmsg.SASLHandshakeRequest).Mechanism)
	})
}

func TestTuneKerberos(t *testing.T) {
	c := validConfig()
	c.Tune = tuneKerberos
	_, err := c.engineConfig()
	require.NoError(t, err)

	c.Auth = Plain("u", "p")
	for _, build := range []func() (*cluster.Config, error){c.engineConfig, c.ClusterConfig} {
		_, err = build()
		require.ErrorContains(t, err, "Net.SASL.Enable: must be off, because Config.Auth authenticates already")
		assert.Equal(t, 1, strings.Count(err.Error(), "Net.SASL"))
	}
}
