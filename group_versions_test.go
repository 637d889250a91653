package kgroup

import (
	"testing"
	"time"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"
	"github.com/stretchr/testify/assert"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// What some releases answer, where they differ from Kafka 3.9.
var (
	kafka440 = map[kmsg.Key]versions{kmsg.Fetch: {4, 18}, kmsg.ListOffsets: {1, 11}, kmsg.OffsetCommit: {2, 10}, kmsg.OffsetFetch: {1, 10}}
	kafka400 = map[kmsg.Key]versions{kmsg.Fetch: {4, 17}, kmsg.ListOffsets: {1, 10}, kmsg.OffsetCommit: {2, 9}, kmsg.OffsetFetch: {1, 9}, kmsg.JoinGroup: {2, 9}}
	kafka210 = map[kmsg.Key]versions{kmsg.Fetch: {0, 10}, kmsg.Metadata: {0, 7}, kmsg.JoinGroup: {0, 3}}
	kafka111 = map[kmsg.Key]versions{kmsg.Fetch: {0, 7}, kmsg.Metadata: {0, 5}, kmsg.JoinGroup: {0, 2}}
	kafka100 = map[kmsg.Key]versions{kmsg.Fetch: {0, 6}, kmsg.Metadata: {0, 5}, kmsg.JoinGroup: {0, 2}}
	kafka011 = map[kmsg.Key]versions{kmsg.Fetch: {0, 5}, kmsg.Metadata: {0, 4}, kmsg.JoinGroup: {0, 2}}
)

// The lowest of all brokers counts, named in Config.Brokers or not.
func TestProtocolIsFound(t *testing.T) {
	tests := []struct {
		name     string
		one, two map[kmsg.Key]versions // two is not named in Config.Brokers
		tune     sarama.KafkaVersion
		version  sarama.KafkaVersion
		fetch    int16
		join     int16
		drain    time.Duration
	}{
		{"3.9", nil, nil, sarama.KafkaVersion{}, sarama.V2_1_0_0, 10, 4, 57750 * time.Millisecond},
		{"4.4", kafka440, kafka440, sarama.KafkaVersion{}, sarama.V2_1_0_0, 10, 4, 57750 * time.Millisecond},
		{"4.0.0, which refuses JoinGroup v0 (D26)", kafka400, kafka400, sarama.KafkaVersion{}, sarama.V2_1_0_0, 10, 4, 57750 * time.Millisecond},
		{"2.1, which gives no id first", kafka210, kafka210, sarama.KafkaVersion{}, sarama.V2_1_0_0, 10, 2, 57750 * time.Millisecond},
		{"1.1, which answers 2.1 with EOF (D26)", kafka111, kafka111, sarama.KafkaVersion{}, sarama.V1_1_0_0, 7, 2, 57750 * time.Millisecond},
		{"1.0", kafka100, kafka100, sarama.KafkaVersion{}, sarama.V1_0_0_0, 4, 2, 57750 * time.Millisecond},
		{"0.11", kafka011, kafka011, sarama.KafkaVersion{}, sarama.V0_11_0_0, 4, 2, 57750 * time.Millisecond},
		{"one is older", kafka440, kafka111, sarama.KafkaVersion{}, sarama.V1_1_0_0, 7, 2, 57750 * time.Millisecond},
		{"the named one is older", kafka100, kafka440, sarama.KafkaVersion{}, sarama.V1_0_0_0, 4, 2, 57750 * time.Millisecond},
		{"JoinGroup v0 and v1 only", map[kmsg.Key]versions{kmsg.JoinGroup: {0, 1}}, nil, sarama.KafkaVersion{}, sarama.V2_1_0_0, 10, 1, 57750 * time.Millisecond},
		{"JoinGroup v0 only", map[kmsg.Key]versions{kmsg.JoinGroup: {0, 0}}, nil, sarama.KafkaVersion{}, sarama.V2_1_0_0, 10, 0, 17750 * time.Millisecond},
		{"Tune wants less", nil, nil, sarama.V1_0_0_0, sarama.V1_0_0_0, 4, 4, 57750 * time.Millisecond},
		{"Tune wants something in between", nil, nil, sarama.V2_0_0_0, sarama.V2_0_0_0, 7, 4, 57750 * time.Millisecond},
		{"Tune wants more than there is", kafka100, nil, sarama.V1_1_0_0, sarama.V1_0_0_0, 4, 2, 57750 * time.Millisecond},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			change := func(kafka *fakeKafka, cfg *Config, _ *fakeSession) {
				cfg.Brokers = kafka.addrs[:1]
				kafka.speaks(kafka.addrs[0], test.one)
				kafka.speaks(kafka.addrs[1], test.two)
				if test.tune != (sarama.KafkaVersion{}) {
					cfg.Tune = func(c *cluster.Config) { c.Version = test.tune }
				}
			}
			onEngine(t, Multiplex, change, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
				opensGeneration(t, s, 1)
				assert.Equal(t, test.version, g.spoken.version)
				assert.Equal(t, test.drain, g.drainTimeout())
				eventually(t, "a fetch", func() bool { return kafka.count(kmsg.Fetch) > 0 })
				assert.Equal(t, test.fetch, kafka.all(kmsg.Fetch)[0].request.GetVersion())
				for _, c := range kafka.all(kmsg.JoinGroup) {
					join := c.request.(*kmsg.JoinGroupRequest)
					assert.Equal(t, test.join, join.Version)
					if test.join > 0 {
						assert.EqualValues(t, 60_000, join.RebalanceTimeoutMillis)
					}
				}
				assert.Empty(t, s.history.all("failed"))
				assert.Empty(t, s.history.all("error"))
			})
		})
	}
}

// Brokers that cannot be reached at the start do not count. One that comes later and
// does not understand what was agreed on is reported for as long as it is there: of
// itself it says nothing but EOF.
func TestOlderBrokerComesLater(t *testing.T) {
	change := func(kafka *fakeKafka, cfg *Config, _ *fakeSession) {
		cfg.Brokers = kafka.addrs[:1]
		kafka.fail(kafka.addrs[1], errUnreachable)
		kafka.speaks(kafka.addrs[1], kafka111)
	}
	onEngine(t, Multiplex, change, func(t *testing.T, g *group, s *fakeSession, kafka *fakeKafka) {
		opensGeneration(t, s, 1)
		assert.Equal(t, sarama.V2_1_0_0, g.spoken.version)
		assert.Equal(t, []string{"error: at the start: dial two:9092: connection refused"}, s.history.all("error"))

		time.Sleep(time.Minute)
		assert.Len(t, s.history.all("error"), 1)
		kafka.fail(kafka.addrs[1], nil)
		time.Sleep(time.Minute)
		reports := s.history.all("broker two:9092 does not understand what was agreed on", "Fetch up to version 7 (Kafka 1.1)")
		assert.Len(t, reports, 3, "each time that the metadata are refreshed: %v", s.history.all("error"))
		asked := 0
		for _, c := range kafka.all(kmsg.ApiVersions) {
			if c.addr == kafka.addrs[1] {
				asked++
			}
		}
		assert.Equal(t, 1, asked)
	})
}

func TestRelease(t *testing.T) {
	for newest, want := range map[int16]string{
		25: "Kafka 4.1 or later", 17: "Kafka 3.9 or 4.0", 14: "Kafka 3.1 to 3.4", 13: "Kafka 3.1 to 3.4", 12: "Kafka 2.7 to 3.0",
		10: "Kafka 2.1 or 2.2", 9: "Kafka 2.0", 5: "Kafka 0.11", 4: "a Kafka before 0.11", 0: "a Kafka before 0.11",
	} {
		assert.Equal(t, want, apis{apiFetch: {0, newest}}.release(), newest)
	}
}
