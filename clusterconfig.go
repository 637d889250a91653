package kgroup

// The cluster.Config that is built of a Config: by ClusterConfig for a loop of
// one's own, by engineConfig for New; and what Tune may make of it.

import (
	"errors"
	"fmt"
	"time"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"

	"github.com/kgroup-go/kgroup/internal/wire"
)

// ClusterConfig returns settings for a sarama-cluster loop of one's own that avoid
// the engine's known ways to lose messages, to stop or to panic. It does no I/O.
// It does not look at Brokers, Group, handlers, queues and retries: they are that
// loop's business. Names in Topics are to be passed to cluster.NewConsumer;
// patterns become the whitelist. TLS, Auth and Dial, if one of them is set, become
// Net.Proxy.Dialer, whose connections are encrypted and authenticated within
// ConnectTimeout; what sarama has for it, in Net.TLS and Net.SASL, stays off. If Tune
// turns on sarama's Kerberos, and neither its TLS nor a dialer, our connections are
// below it too: Kafka 4.0 and later refuse what sarama does alone (D29).
//
// The loop must read Errors() (in Partitions mode also those of each partition)
// and Partitions() until they are closed, also while it closes the consumer. It
// may turn on Group.Return.Notifications if it always reads them.
//
// New starts from the same values and differs because it takes over commits and
// the drain. In a loop of one's own
//   - the engine commits every CommitInterval; if that is CommitEveryMessage or
//     negative, it does so only when partitions are given up, and the loop has to call
//     CommitOffsets itself;
//   - a rebalance waits a fixed dwell time of 1 s (a sixth of the session at most)
//     for handlers, without heartbeats, and Close does not wait at all;
//   - few messages are buffered, because those left over when a partition is taken
//     away are handled a second time;
//   - a rebalance waits no longer than the session for a member, and Kafka 4.0.0 is
//     not spoken to (D15, D26): JoinGroup goes out as the engine writes it;
//   - Version is 2.1.0; for older brokers set another one with Tune;
//   - Start also decides where a partition goes on whose committed offset is gone.
func (c Config) ClusterConfig() (*cluster.Config, error) {
	c = c.withDefaults()
	var m mistakes
	m.topicNames(c.Topics)
	m.settings(c)
	if len(m) > 0 {
		return nil, errors.Join(m...)
	}

	built := c.baseConfig()
	built.Consumer.Offsets.CommitInterval = c.CommitInterval
	if c.CommitInterval < 0 || c.CommitInterval == CommitEveryMessage {
		built.Consumer.Offsets.CommitInterval = never
	}
	if c.Start == Newest {
		built.Consumer.Offsets.Initial = sarama.OffsetNewest
	}
	// MaxWaitTime and dwell pass without a heartbeat and must stay well below the session.
	built.Group.Offsets.Synchronization.DwellTime = c.heartbeatInterval()
	built.Group.Offsets.Retry.Max = 3
	built.Metadata.Retry.Max, built.Metadata.Retry.Backoff = 5, 500*time.Millisecond
	built.Metadata.RefreshFrequency = time.Minute
	// JoinGroup is answered when the slowest member has come back (D15).
	built.Net.ReadTimeout = c.SessionTimeout + fetchWait + 10*time.Second
	built.Net.SASL.Version = sarama.SASLHandshakeV1 // v0 says EOF instead of why
	built.ChannelBufferSize = 16                    // D14
	built.Consumer.Retry.Backoff = 2 * time.Second
	// TLS and SASL are not left to sarama, for whose TLS handshake no timeout counts
	// (D21), and which knows no password that changes.
	if c.ownConnections() {
		built.Net.Proxy.Enable, built.Net.Proxy.Dialer = true, c.network(false).Data()
	}
	built, err := c.tune(built, c.loopRules)
	if err == nil && kerberos(built) && !built.Net.TLS.Enable && (throughWire(built) || !built.Net.Proxy.Enable) {
		built.Net.Proxy.Enable, built.Net.Proxy.Dialer = true, c.network(true).Data()
	}
	return built, err
}

// engineConfig is the cluster.Config that New uses, of a c that is valid. It
// leaves Net.Proxy to whoever makes the connections.
func (c Config) engineConfig() (*cluster.Config, error) {
	c = c.withDefaults()
	built := c.baseConfig()
	// Commits are ours: an error of the engine's own would send the whole group into
	// a rebalance (D28). Its ticker still needs an interval (D1).
	built.Consumer.Offsets.CommitInterval = never
	built.Group.Offsets.Retry.Max = 0
	// The drain has waited for the handlers; the engine need not.
	built.Group.Offsets.Synchronization.DwellTime = time.Millisecond
	built.Group.Return.Notifications = true
	// Retries of a refresh run inside rebalances; outages are retried by us.
	built.Metadata.Retry.Max, built.Metadata.Retry.Backoff = 1, 100*time.Millisecond
	// The counts of partitions are refreshed this often, and the topic watcher looks
	// at them every half of it: together 30 s.
	built.Metadata.RefreshFrequency = 20 * time.Second
	built.Net.ReadTimeout = 10 * time.Second
	built.Net.WriteTimeout = 10 * time.Second
	built.ChannelBufferSize = 256 // sealing a generation makes D14 harmless, and 16 costs throughput
	if c.Mode == Multiplex {
		built.ChannelBufferSize = 4096 // a fifth more than with 256; in Partitions mode it makes no difference
	}
	built.Consumer.Retry.Backoff = 250 * time.Millisecond
	return c.tune(built, c.engineRules)
}

// baseConfig is what a loop of one's own and New have in common. Its metric
// registry is its own (sarama.NewConfig makes one), because sarama 1.33 never
// unregisters what it puts there.
func (c Config) baseConfig() *cluster.Config {
	built := cluster.NewConfig()
	built.ClientID = c.ClientID
	built.Version = sarama.V2_1_0_0 // the upper bound of what Run finds
	if c.Mode == Partitions {
		built.Group.Mode = cluster.ConsumerModePartitions
	}
	built.Group.Session.Timeout = c.SessionTimeout
	built.Group.Heartbeat.Interval = c.heartbeatInterval()
	built.Net.DialTimeout = c.ConnectTimeout
	built.Metadata.AllowAutoTopicCreation = false // D8
	built.Metadata.Timeout = min(10*time.Second, c.SessionTimeout/3)
	built.Metadata.Full = false
	if matcher := newMatcher(c.Topics); len(matcher.patterns) > 0 {
		built.Metadata.Full = true
		built.Group.Topics.Whitelist = matcher.whitelist()
		built.Group.Topics.Blacklist = matcher.blacklist()
	}
	built.Consumer.MaxWaitTime = fetchWait
	built.Consumer.MaxProcessingTime = 500 * time.Millisecond
	built.Consumer.Return.Errors = true                  // D7
	built.Consumer.Offsets.Initial = sarama.OffsetOldest // D12
	built.Consumer.IsolationLevel = sarama.ReadCommitted
	if c.Isolation == ReadUncommitted {
		built.Consumer.IsolationLevel = sarama.ReadUncommitted
	}
	return built
}

// network is what makes the connections. With kerberos sarama authenticates on them.
func (c Config) network(kerberos bool) *wire.Network {
	s := c.security()
	if kerberos {
		s.Above = sarama.SASLTypeGSSAPI
	}
	return wire.NewNetwork(c.Dial, c.ConnectTimeout, s)
}

// kerberos reports whether Tune has turned on sarama's own Kerberos, of which sarama
// 1.33 leaves out the beginning (D29): the wire asks for the mechanism.
func kerberos(built *cluster.Config) bool {
	return built.Net.SASL.Enable && built.Net.SASL.Mechanism == sarama.SASLTypeGSSAPI
}

// ownConnections reports whether a loop of one's own needs our connections.
func (c Config) ownConnections() bool { return c.TLS != nil || c.Auth != nil || c.Dial != nil }

// throughWire reports whether sarama takes its connections from us.
func throughWire(built *cluster.Config) bool {
	_, ours := built.Net.Proxy.Dialer.(wire.Dialer)
	return built.Net.Proxy.Enable && ours
}

// A rule is what one setting must not be after Tune.
type rule struct {
	setting string
	broken  bool
	why     string // with the defect's number, the symptom, and what to do instead
}

// tune lets the user change what was built and then looks at the rules.
func (c Config) tune(built *cluster.Config, rules func(got, want *cluster.Config) []rule) (*cluster.Config, error) {
	if c.Tune == nil {
		return built, nil
	}
	want := *built
	c.Tune(built)
	var m mistakes
	for _, r := range rules(built, &want) {
		if r.broken {
			m.add("Tune", "%s: %s", r.setting, r.why)
		}
	}
	if err := built.Validate(); err != nil {
		m.add("Tune", "%w", err)
	}
	if len(m) > 0 {
		return nil, errors.Join(m...)
	}
	return built, nil
}

// commonRules are those of a loop of one's own and of New.
func (c Config) commonRules(got, want *cluster.Config) []rule {
	return []rule{
		{"ChannelBufferSize", got.ChannelBufferSize < 1,
			"must be at least 1: without a buffer an error that nobody is reading just now stops the heartbeats (D7)"},
		{"MetricRegistry", got.MetricRegistry == nil,
			"must not be nil: the first fetch would panic"},
		{"Version", !got.Version.IsAtLeast(sarama.V0_11_0_0),
			"must be at least 0.11: older fetches carry no headers, and Kafka 4 refuses them; New needs no version"},
		{"Version", got.Version.IsAtLeast(sarama.V2_2_0_0),
			"must be below 2.2: from there on SCRAM always fails (D19), re-authentication breaks connections (D20), and a stale replica may be read for ever; newer brokers serve 2.1"},
		{"Net.MaxOpenRequests", got.Net.MaxOpenRequests < 5,
			"must be at least 5: with fewer, heartbeats and commits wait for fetches"},
		{"Metadata.RefreshFrequency", got.Metadata.RefreshFrequency < 100*time.Millisecond,
			"must be at least 100ms: zero panics in the topic watcher (D2)"},
		{"Metadata.AllowAutoTopicCreation", got.Metadata.AllowAutoTopicCreation,
			"must be false: a misspelt topic would be created instead of reported (D8)"},
		{"Group.Mode", got.Group.Mode != want.Group.Mode,
			"set Config.Mode instead: the engine delivers messages in the other mode on a channel that would not be read"},
		{"Group.Session.Timeout", got.Group.Session.Timeout != want.Group.Session.Timeout,
			"set Config.SessionTimeout instead: the heartbeat interval and the other timeouts follow from it"},
		{"Group.Heartbeat.Interval", got.Group.Heartbeat.Interval > c.SessionTimeout/3,
			fmt.Sprintf("must be at most a third of the session, %v: else two lost heartbeats cost the membership", c.SessionTimeout/3)},
		{"Consumer.MaxProcessingTime", got.Consumer.MaxProcessingTime < 10*time.Millisecond || got.Consumer.MaxProcessingTime > c.SessionTimeout/3,
			fmt.Sprintf("must be from 10ms to a third of the session, %v: with less, partitions fall out of the fetches all the time; with more, one that stands still holds up the others of its broker", c.SessionTimeout/3)},
		{"Consumer.Return.Errors", !got.Consumer.Return.Errors,
			"must be true: else every failure is silent (D7)"},
		{"Consumer.Offsets.Initial", got.Consumer.Offsets.Initial != want.Consumer.Offsets.Initial,
			"set Config.Start instead: Newest here skips what was not read whenever a committed offset is gone (D12)"},
		{"Consumer.Offsets.Retention", got.Consumer.Offsets.Retention != 0,
			"must be zero: offsets that expire before their messages make the group start anew (D12); set offsets.retention.minutes on the brokers instead"},
		{"Consumer.IsolationLevel", got.Consumer.IsolationLevel != want.Consumer.IsolationLevel,
			"set Config.Isolation instead"},
		{"Consumer.Fetch.Max", got.Consumer.Fetch.Max > 0,
			"must be zero: a batch larger than it would be skipped, its messages lost; set Consumer.Fetch.Default to limit memory"},
	}
}

// loopRules are those of a loop of one's own.
func (c Config) loopRules(got, want *cluster.Config) []rule {
	dwell := got.Group.Offsets.Synchronization.DwellTime
	return append(c.commonRules(got, want),
		rule{"Consumer.Offsets.CommitInterval", got.Consumer.Offsets.CommitInterval <= 0,
			"must be more than zero: else the engine panics after its first join (D1)"},
		rule{"Group.Offsets.Synchronization.DwellTime", dwell+got.Consumer.MaxWaitTime >= c.SessionTimeout/3,
			fmt.Sprintf("with Consumer.MaxWaitTime must stay below a third of the session, %v: no heartbeat is sent meanwhile, and the session would be lost", c.SessionTimeout/3)},
		rule{"Net.TLS.Enable", got.Net.TLS.Enable && c.TLS != nil,
			"must be off, because Config.TLS encrypts already"},
		rule{"Net.SASL.Enable", got.Net.SASL.Enable && c.Auth != nil,
			"must be off, because Config.Auth authenticates already"},
		rule{"Net.Proxy", c.ownConnections() && !throughWire(got),
			"must stay as it is, because Config.TLS, Auth and Dial are in it"},
		rule{"Net.ReadTimeout", got.Net.ReadTimeout < c.SessionTimeout+got.Consumer.MaxWaitTime+5*time.Second,
			"must be at least the session, Consumer.MaxWaitTime and 5s together: else JoinGroup times out while others drain, and the group never settles (D15)"},
	)
}

// engineRules are those of New.
func (c Config) engineRules(got, want *cluster.Config) []rule {
	return append(c.commonRules(got, want),
		rule{"Net.TLS.Enable", got.Net.TLS.Enable,
			"set Config.TLS instead: kgroup could not read the group protocol on a connection that sarama encrypts above it"},
		rule{"Net.SASL.Enable", got.Net.SASL.Enable && !kerberos(got),
			"set Config.Auth instead: kgroup makes the connections, and keeps them authenticated (D20); of sarama's own mechanisms there is only GSSAPI, Kerberos"},
		rule{"Net.SASL.Enable", kerberos(got) && c.Auth != nil,
			"must be off, because Config.Auth authenticates already"},
		rule{"Net.Proxy", got.Net.Proxy.Enable || got.Net.Proxy.Dialer != nil,
			"set Config.Dial instead: kgroup makes the connections, within ConnectTimeout (D21)"},
		rule{"Net.DialTimeout", got.Net.DialTimeout != want.Net.DialTimeout,
			"set Config.ConnectTimeout instead: kgroup makes the connections, and this would have no effect"},
		rule{"Net.ReadTimeout", got.Net.ReadTimeout < got.Consumer.MaxWaitTime+time.Second,
			"must be at least Consumer.MaxWaitTime and 1s together: else fetches without messages break their connection"},
		rule{"Metadata.Timeout", got.Metadata.Timeout <= 0 || got.Metadata.Timeout >= c.SessionTimeout,
			"must be more than zero and less than the session: a refresh against dead brokers would outlast the membership"},
		rule{"Group.Return.Notifications", !got.Group.Return.Notifications,
			"must be true: a generation is opened when the engine says that it has joined (D5)"},
		rule{"Group.Topics", got.Group.Topics != want.Group.Topics,
			"set Config.Topics instead: messages of other topics would have no handler"},
		rule{"Group.Heartbeat.Interval and Consumer.MaxWaitTime", c.tunedDrain(got, false) < minDrain,
			"leave no time to drain in a rebalance; lower them, or raise Config.SessionTimeout and Config.RebalanceTimeout"},
		rule{"Group.Offsets.Synchronization.DwellTime", got.Group.Offsets.Synchronization.DwellTime > 100*time.Millisecond,
			"must be at most 100ms: handlers are waited for by the drain, and this only makes the group stand still"},
		rule{"Consumer.Offsets.CommitInterval", got.Consumer.Offsets.CommitInterval != want.Consumer.Offsets.CommitInterval,
			"set Config.CommitInterval instead: a commit of the engine's own that fails makes the whole group rebalance (D28), and zero panics (D1)"},
		rule{"Consumer.Retry.Backoff", got.Consumer.Retry.Backoff < 10*time.Millisecond,
			"must be at least 10ms: a paused partition asks again this often (D24)"},
	)
}
