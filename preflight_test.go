package kgroup

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// answersWith makes a script of one answer. Connections must not share it.
func answersWith(answer func() kmsg.Response) script {
	return func(*call) kmsg.Response { return answer() }
}

// withTopicError answers Metadata with an error for a topic.
func withTopicError(kafka *fakeKafka, topic string, code sarama.KError) script {
	return func(c *call) kmsg.Response {
		answer := kafka.usual(c).(*kmsg.MetadataResponse)
		for i, t := range answer.Topics {
			if *t.Topic == topic {
				answer.Topics[i].ErrorCode = int16(code)
			}
		}
		return answer
	}
}

func findCoordinator(host string, code sarama.KError) func() kmsg.Response {
	return func() kmsg.Response {
		answer := kmsg.NewPtrFindCoordinatorResponse()
		answer.NodeID, answer.Host, answer.Port, answer.ErrorCode = 1, host, 9092, int16(code)
		return answer
	}
}

// What a person has to mend ends the start at once, and says what that is.
func TestStartFails(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Config)
		kafka  func(*fakeKafka)
		says   []string
		took   time.Duration // at most
	}{
		{
			name: "no broker reachable",
			kafka: func(k *fakeKafka) {
				k.fail("one:9092", errUnreachable)
				k.fail("two:9092", errUnreachable)
			},
			says: []string{"kgroup: no broker can be reached", "one:9092: connection refused", "two:9092: connection refused"},
		},
		{
			name:   "wrong host",
			change: func(cfg *Config) { cfg.Brokers = []string{"three:9092"} },
			says:   []string{"no broker can be reached", "three:9092", "no such host"},
		},
		{
			name:  "hangs up, as a TLS listener does",
			kafka: func(k *fakeKafka) { k.on(kmsg.ApiVersions, func(c *call) kmsg.Response { c.hangUp(); return nil }) },
			says:  []string{"no broker can be reached", "one:9092", "two:9092", "ask for its protocol versions: ", "without TLS and SASL?"},
		},
		{
			// What a firewall does that accepts for somebody else.
			name:  "accepts and stays silent",
			kafka: func(k *fakeKafka) { k.on(kmsg.ApiVersions, silence) },
			says:  []string{"no broker can be reached", "one:9092", "two:9092", "timeout"},
			took:  10 * time.Second,
		},
		{
			name:  "topic missing",
			kafka: func(k *fakeKafka) { k.partition(firstOf("order"), 0); delete(k.logs, orders0) },
			says:  []string{`kgroup: topic "orders" does not exist; did you mean "order"?`},
		},
		{
			name:  "topic missing, nothing like it",
			kafka: func(k *fakeKafka) { delete(k.logs, orders0) },
			says:  []string{`kgroup: topic "orders" does not exist, nor one with a similar name`},
		},
		{
			name:  "all topics missing, each is named",
			kafka: func(k *fakeKafka) { clear(k.logs) },
			says:  []string{`kgroup: topic "orders" does not exist`, "\n" + `kgroup: topic "refunds" does not exist`},
		},
		{
			name: "topic not authorized",
			kafka: func(k *fakeKafka) {
				k.on(kmsg.Metadata, withTopicError(k, "refunds", sarama.ErrTopicAuthorizationFailed))
			},
			says: []string{`kgroup: topic "refunds": `, sarama.ErrTopicAuthorizationFailed.Error()},
		},
		{
			name: "too old",
			kafka: func(k *fakeKafka) {
				k.on(kmsg.ApiVersions, answersWith(speaks(map[kmsg.Key]versions{kmsg.Fetch: {0, 7}, kmsg.JoinGroup: {0, 2}})))
			},
			says: []string{"kgroup: broker one:9092: it is older than Kafka 2.1 (Kafka 1.1)"},
		},
		{
			name: "refuses JoinGroup v0 (D26)",
			kafka: func(k *fakeKafka) {
				k.on(kmsg.ApiVersions, answersWith(speaks(map[kmsg.Key]versions{kmsg.Fetch: {4, 17}, kmsg.JoinGroup: {2, 9}})))
			},
			says: []string{"kgroup: broker one:9092: it refuses the first version of JoinGroup (Kafka 3.9 or 4.0)", "Kafka 4.0.0"},
		},
		{
			name: "group not authorized",
			kafka: func(k *fakeKafka) {
				k.on(kmsg.FindCoordinator, answersWith(findCoordinator("", sarama.ErrGroupAuthorizationFailed)))
			},
			says: []string{`kgroup: find the coordinator of group "billing": `, sarama.ErrGroupAuthorizationFailed.Error()},
			took: time.Second,
		},
		{
			name:  "coordinator advertises an address that does not resolve",
			kafka: func(k *fakeKafka) { k.on(kmsg.FindCoordinator, answersWith(findCoordinator("pod-7.kafka", 0))) },
			says:  []string{`kgroup: the coordinator of group "billing", broker 1, advertises pod-7.kafka:9092, which cannot be reached`, "advertised.listeners", "no such host"},
		},
		{
			name: "only the coordinator is too old",
			kafka: func(k *fakeKafka) {
				k.addrs = append(k.addrs, "three:9092")
				k.on(kmsg.FindCoordinator, answersWith(findCoordinator("three", 0)))
				k.on(kmsg.ApiVersions, func(c *call) kmsg.Response {
					if c.addr != "three:9092" {
						return k.usual(c)
					}
					return speaks(map[kmsg.Key]versions{kmsg.Fetch: {0, 7}})()
				})
			},
			says: []string{"kgroup: broker three:9092: it is older than Kafka 2.1"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				kafka := newKafka("one:9092", "two:9092")
				kafka.partition(orders0, 0)
				kafka.partition(refunds0, 0)
				g, s := newTestGroup(t, func(cfg *Config) {
					cfg.Brokers, cfg.Dial = kafka.addrs, kafka.dial
					if test.change != nil {
						test.change(cfg)
					}
				})
				if test.kafka != nil {
					test.kafka(kafka)
				}
				began := time.Now()
				err := g.Start(t.Context(), s)
				require.Error(t, err)
				for _, text := range test.says {
					assert.ErrorContains(t, err, text)
				}
				assert.LessOrEqual(t, time.Since(began), test.took)
				assert.Zero(t, g.network.Open())
				assert.Zero(t, kafka.count(kmsg.JoinGroup), "nothing was joined")
			})
		})
	}
}

// One address that answers is enough; the others are reported.
func TestStartWithOneBrokerDown(t *testing.T) {
	tests := []struct {
		name string
		down func(*fakeKafka)
		took time.Duration
	}{
		{"refuses", func(k *fakeKafka) { k.fail("two:9092", errUnreachable) }, 0},
		{
			"accepts and stays silent", func(k *fakeKafka) {
				k.on(kmsg.ApiVersions, func(c *call) kmsg.Response {
					if c.addr == "two:9092" {
						return nil
					}
					return k.usual(c)
				})
			}, 10 * time.Second,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				kafka := newKafka("one:9092", "two:9092")
				kafka.partition(orders0, 0)
				kafka.partition(refunds0, 0)
				test.down(kafka)
				g, s := newTestGroup(t, func(cfg *Config) { cfg.Brokers, cfg.Dial = kafka.addrs, kafka.dial })
				began := time.Now()
				require.NoError(t, g.preflight(t.Context()))
				assert.Equal(t, test.took, time.Since(began))
				assert.Len(t, s.history.all("error: at the start: broker two:9092"), 1)
				assert.Len(t, s.history.all("error"), 1)
			})
		})
	}
}

// The broker that is asked for the topics may go away after it has told its versions;
// another one that was reached can be asked.
func TestPreflightAsksAnotherBroker(t *testing.T) {
	addrs := []string{"one:9092", "two:9092"}
	for _, gone := range addrs {
		t.Run(gone, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				kafka := newKafka(addrs...)
				kafka.partition(orders0, 0)
				kafka.partition(refunds0, 0)
				kafka.on(kmsg.Metadata, func(c *call) kmsg.Response {
					if c.addr == gone {
						c.hangUp()
						return nil
					}
					return kafka.usual(c)
				})
				g, _ := newTestGroup(t, func(cfg *Config) { cfg.Brokers, cfg.Dial = kafka.addrs, kafka.dial })
				assert.NoError(t, g.preflight(t.Context()))
			})
		})
	}
}

func TestStartIsCancelled(t *testing.T) {
	tests := map[string]func(*fakeKafka){
		"asking for versions": func(k *fakeKafka) { k.on(kmsg.ApiVersions, silence) },
		"asking for topics":   func(k *fakeKafka) { k.on(kmsg.Metadata, silence) },
		"asking for the coordinator": func(k *fakeKafka) {
			k.on(kmsg.FindCoordinator, silence)
		},
		"waiting for the offsets topic": func(k *fakeKafka) {
			k.on(kmsg.FindCoordinator, answersWith(findCoordinator("", sarama.ErrConsumerCoordinatorNotAvailable)))
			k.partition(firstOf("__consumer_offsets"), 0)
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				kafka := newKafka("one:9092")
				kafka.partition(orders0, 0)
				kafka.partition(refunds0, 0)
				change(kafka)
				g, s := newTestGroup(t, func(cfg *Config) { cfg.Dial = kafka.dial })
				ctx, cancel := context.WithCancel(t.Context())
				var err error
				started := begin(func() { err = g.Start(ctx, s) })
				time.Sleep(1550 * time.Millisecond)
				require.False(t, isClosed(started))
				cancelled := time.Now()
				cancel()
				<-started
				require.Error(t, err)
				// sarama's own pauses between attempts listen to nothing.
				assert.LessOrEqual(t, time.Since(cancelled), 500*time.Millisecond)
				synctest.Wait()
				assert.Zero(t, g.network.Open())
			})
		})
	}
}

// A cluster whose first group this is makes its offsets topic now.
func TestStartWaitsForTheOffsetsTopic(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		kafka := newKafka("one:9092")
		kafka.partition(orders0, 0)
		kafka.partition(refunds0, 0)
		kafka.partition(firstOf("__consumer_offsets"), 0)
		missing := 5
		kafka.on(kmsg.FindCoordinator, func(c *call) kmsg.Response {
			if missing--; missing >= 0 {
				return findCoordinator("", sarama.ErrConsumerCoordinatorNotAvailable)()
			}
			return kafka.usual(c)
		})
		g, s := newTestGroup(t, func(cfg *Config) { cfg.Dial = kafka.dial })
		began := time.Now()
		require.NoError(t, g.Start(t.Context(), s))
		assert.Less(t, time.Since(began), 2*time.Second)
		assert.NotEmpty(t, s.history.all(`error: find the coordinator of group "billing"`))
		synctest.Wait()
		require.NoError(t, g.Leave(t.Context()))
	})
}

// A pattern has nothing that must exist; but one that is misspelt was mentioned nowhere.
func TestPreflightOfPatterns(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		kafka := newKafka("one:9092")
		kafka.partition(firstOf("orders-eu"), 0)
		lines := &logs{}
		g, _ := newTestGroup(t, func(cfg *Config) {
			cfg.Dial = kafka.dial
			cfg.Topics = Topics{"^order": {Handler: HandlerFunc(nop)}, "^refnuds-": {Handler: HandlerFunc(nop)}}
		})
		g.log = slog.New(slog.NewTextHandler(lines, nil))
		require.NoError(t, g.preflight(t.Context()))
		require.Len(t, lines.with("level=WARN"), 1)
		assert.Len(t, lines.with("level=WARN", "no topic matches the pattern yet", "^refnuds-"), 1)
		assert.Equal(t, 1, kafka.count(kmsg.Metadata))
	})
}

// A connection that cannot be made takes ConnectTimeout, also if the dial func does not
// listen to its context. (Outside a bubble: sarama dials with a lock held.)
func TestPreflightIsBoundedByConnectTimeout(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	dials := map[string]func(context.Context, string, string) (net.Conn, error){
		"listens": func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		"does not listen": func(context.Context, string, string) (net.Conn, error) {
			<-hang
			return nil, errUnreachable
		},
	}
	for name, dial := range dials {
		t.Run(name, func(t *testing.T) {
			g, _ := newTestGroup(t, func(cfg *Config) {
				cfg.Brokers, cfg.ConnectTimeout = []string{"one:9092", "two:9092"}, 50*time.Millisecond
				cfg.Dial = dial
			})
			began := time.Now()
			err := g.preflight(t.Context())
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "one:9092")
			require.ErrorContains(t, err, "two:9092")
			assert.Less(t, time.Since(began), 50*time.Millisecond+2*time.Second)
		})
	}
}

func TestRelease(t *testing.T) {
	for newest, want := range map[int16]string{
		25: "Kafka 4.1 or later", 17: "Kafka 3.9 or 4.0", 14: "Kafka 3.1 to 3.4", 13: "Kafka 3.1 to 3.4", 12: "Kafka 2.7 to 3.0",
		10: "Kafka 2.1 or 2.2", 9: "Kafka 2.0", 5: "Kafka 0.11", 4: "a Kafka before 0.11", 0: "a Kafka before 0.11",
	} {
		assert.Equal(t, want, apis{apiFetch: {0, newest}}.release(), newest)
	}
}
