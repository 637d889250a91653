package kgroup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func nop(context.Context, Message) error { return nil }

type pointerHandler struct{}

func (*pointerHandler) Handle(context.Context, Message) error { return nil }

func validConfig() Config {
	return Config{
		Brokers: []string{"kafka-1:9092"},
		Group:   "billing",
		Topics:  Topics{"orders": {Handler: HandlerFunc(nop)}},
	}
}

// fields lists the fields that err complains about, in its order.
func fields(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	require.True(t, ok, "%T is not a joined error", err)
	var names []string
	for _, err := range joined.Unwrap() {
		var mistake *ConfigError
		require.ErrorAs(t, err, &mistake)
		names = append(names, mistake.Field)
	}
	return names
}

func topicWith(change func(*Topic)) func(*Config) {
	return func(c *Config) {
		t := c.Topics["orders"]
		change(&t)
		c.Topics["orders"] = t
	}
}

func broker(addr string) func(*Config) { return func(c *Config) { c.Brokers = []string{addr} } }

func named(name string) func(*Config) {
	return func(c *Config) { c.Topics[name] = Topic{Handler: HandlerFunc(nop)} }
}

func TestValidateFindsEachMistake(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Config)
		field  string
		says   string
	}{
		{"no brokers", func(c *Config) { c.Brokers = nil }, "Brokers", "at least one address"},
		{"empty broker", broker(""), "Brokers[0]", "is empty"},
		{"second broker", func(c *Config) { c.Brokers = append(c.Brokers, c.Brokers[0], "x") }, "Brokers[2]", "host:port"},
		{"no port", broker("kafka-1"), "Brokers[0]", "missing port"},
		{"empty port", broker("kafka-1:"), "Brokers[0]", "1 to 65535"},
		{"named port", broker("kafka-1:http"), "Brokers[0]", "1 to 65535"},
		{"port zero", broker("kafka-1:0"), "Brokers[0]", "1 to 65535"},
		{"port too high", broker("kafka-1:65536"), "Brokers[0]", "1 to 65535"},
		{"no host", broker(":9092"), "Brokers[0]", "no host"},
		{"scheme", broker("kafka://h:1"), "Brokers[0]", `begins with "kafka://"; a broker is not a URL, write "h:1"`},
		{"scheme without port", broker("SASL_SSL://h"), "Brokers[0]", `"SASL_SSL://"`},
		{"scheme and credentials", broker("kafka://alice:secret@h:1"), "Brokers[0]", `write "h:1"`},
		{"list", broker("a:1,b:1"), "Brokers[0]", "commas"},
		{"white space", broker(" a:1"), "Brokers[0]", "white space"},
		{"credentials", broker("alice:secret@h:1"), "Brokers[0]", "credentials"},
		{"bare IPv6", broker("::1"), "Brokers[0]", `write "[::1]:9092"`},
		{"bare IPv6 and port", broker("fe80::1%eth0:9092"), "Brokers[0]", "brackets"},
		{"IPv6 without port", broker("[::1]"), "Brokers[0]", "missing port"},
		{"no group", func(c *Config) { c.Group = "" }, "Group", "is empty"},
		{"no topics", func(c *Config) { c.Topics = nil }, "Topics", "is empty"},
		{"empty topic name", named(""), `Topics[""]`, "is empty"},
		{"dot", named("."), `Topics["."]`, "allows no topic"},
		{"two dots", named(".."), `Topics[".."]`, "allows no topic"},
		{"long name", named(strings.Repeat("x", 250)), `Topics["` + strings.Repeat("x", 250) + `"]`, "250 characters"},
		{"charset", named("my topic"), `Topics["my topic"]`, `has ' ' in it`},
		{"charset, not ASCII", named("bücher"), `Topics["bücher"]`, `has 'ü' in it`},
		{"charset, broken UTF-8", named("a\xff"), `Topics["a\xff"]`, "in it"},
		{"looks like a pattern", named("orders.*"), `Topics["orders.*"]`, "begins with '^'"},
		{"bad pattern", named("^a("), `Topics["^a("]`, "missing closing )"},
		{"pattern without topics", named("^a/b"), `Topics["^a/b"]`, "can match no topic"},
		{"pattern for internal topics", named("^__consumer"), `Topics["^__consumer"]`, "can match no topic"},
		{"overlap", func(c *Config) { named("^ord")(c); named("^.*ders-eu$")(c) }, `Topics["^.*ders-eu$"]`, `matches the topic "orders-eu", and so does Topics["^ord"]`},
		{"no handler", topicWith(func(t *Topic) { t.Handler = nil }), `Topics["orders"].Handler`, "needs a handler"},
		{"nil HandlerFunc", topicWith(func(t *Topic) { t.Handler = HandlerFunc(nil) }), `Topics["orders"].Handler`, "nil kgroup.HandlerFunc"},
		{"nil pointer", topicWith(func(t *Topic) { t.Handler = (*pointerHandler)(nil) }), `Topics["orders"].Handler`, "nil *kgroup.pointerHandler"},
		{"queue", topicWith(func(t *Topic) { t.Queue = -1 }), `Topics["orders"].Queue`, "256"},
		{"backoff negative", topicWith(func(t *Topic) { t.Retry.MinBackoff = -1 }), `Topics["orders"].Retry.MinBackoff`, "negative"},
		{"backoff bare number", topicWith(func(t *Topic) { t.Retry.MinBackoff = 100 }), `Topics["orders"].Retry.MinBackoff`, "nanoseconds"},
		{"max backoff negative", topicWith(func(t *Topic) { t.Retry.MaxBackoff = -time.Second }), `Topics["orders"].Retry.MaxBackoff`, "negative"},
		{"max backoff bare number", topicWith(func(t *Topic) { t.Retry.MaxBackoff = 30 }), `Topics["orders"].Retry.MaxBackoff`, "nanoseconds"},
		{"min over max", topicWith(func(t *Topic) { t.Retry = Retry{MinBackoff: 2 * time.Second, MaxBackoff: time.Second} }), `Topics["orders"].Retry.MinBackoff`, "more than MaxBackoff, 1s"},
		{"timeout negative", topicWith(func(t *Topic) { t.Timeout = -time.Second }), `Topics["orders"].Timeout`, "negative"},
		{"timeout bare number", topicWith(func(t *Topic) { t.Timeout = 30 }), `Topics["orders"].Timeout`, "nanoseconds"},
		{"dead letters to a pattern", topicWith(func(t *Topic) { t.DeadLetter = "^dlq" }), `Topics["orders"].DeadLetter`, "name one topic"},
		{"dead letters to no topic", topicWith(func(t *Topic) { t.DeadLetter = "my dlq" }), `Topics["orders"].DeadLetter`, "' '"},
		{"dead letters to itself", topicWith(func(t *Topic) { t.DeadLetter = "orders" }), `Topics["orders"].DeadLetter`, "come back for ever"},
		{"dead letters in a circle", func(c *Config) {
			h := c.Topics["orders"].Handler
			c.Topics = Topics{"orders": {Handler: h, DeadLetter: "a"}, "a": {Handler: h, DeadLetter: "b"}, "b": {Handler: h, DeadLetter: "a"}}
		}, `Topics["a"].DeadLetter Topics["b"].DeadLetter`, "come back for ever"},
		{"headers of dead letters", topicWith(func(t *Topic) { t.DeadLetterHeaders = 3 }), `Topics["orders"].DeadLetterHeaders`, "DeadLetterHeaders(3) is unknown"},
		{"breaker's ratio", topicWith(func(t *Topic) { t.Breaker.FailureRatio = 1.5 }), `Topics["orders"].Breaker.FailureRatio`, "between 0 and 1"},
		{"breaker's ratio is no number", topicWith(func(t *Topic) { t.Breaker.FailureRatio = math.NaN() }), `Topics["orders"].Breaker.FailureRatio`, "between 0 and 1"},
		{"breaker's window", topicWith(func(t *Topic) { t.Breaker.Window = time.Millisecond }), `Topics["orders"].Breaker.Window`, "less than 10ms"},
		{"breaker's window negative", topicWith(func(t *Topic) { t.Breaker.Window = -1 }), `Topics["orders"].Breaker.Window`, "negative"},
		{"breaker's probe", topicWith(func(t *Topic) { t.Breaker.Probe = 5 }), `Topics["orders"].Breaker.Probe`, "nanoseconds"},
		{"client id", func(c *Config) { c.ClientID = "my app" }, "ClientID", "my app"},
		{"mode", func(c *Config) { c.Mode = 2 }, "Mode", "Mode(2) is unknown"},
		{"start", func(c *Config) { c.Start = -1 }, "Start", "Start(-1) is unknown"},
		{"isolation", func(c *Config) { c.Isolation = 2 }, "Isolation", "Isolation(2) is unknown"},
		{"commit interval bare number", func(c *Config) { c.CommitInterval = 500 }, "CommitInterval", "nanoseconds"},
		{"session negative", func(c *Config) { c.SessionTimeout = -1 }, "SessionTimeout", "negative"},
		{"session bare number", func(c *Config) { c.SessionTimeout = 20 }, "SessionTimeout", "nanoseconds"},
		{"session fraction", func(c *Config) { c.SessionTimeout = 20*time.Second + 1 }, "SessionTimeout", "fraction"},
		{"session too long", func(c *Config) { c.SessionTimeout = (math.MaxInt32 + 1) * time.Millisecond }, "SessionTimeout", "more than Kafka's protocol"},
		{"session too short", func(c *Config) { c.SessionTimeout = time.Second }, "SessionTimeout", "at least 1.8s"},
		{"session a little too short", func(c *Config) { c.SessionTimeout = 1799 * time.Millisecond }, "SessionTimeout", "at least 1.8s"},
		{"rebalance negative", func(c *Config) { c.RebalanceTimeout = -time.Second }, "RebalanceTimeout", "negative"},
		{"rebalance fraction", func(c *Config) { c.RebalanceTimeout = 20*time.Second + 1 }, "RebalanceTimeout", "fraction"},
		{"rebalance too short", func(c *Config) { c.RebalanceTimeout = 2499 * time.Millisecond }, "RebalanceTimeout", "at least 2.5s"},
		{"rebalance too short for this session", func(c *Config) { c.SessionTimeout = 3 * time.Second; c.RebalanceTimeout = 1999 * time.Millisecond }, "RebalanceTimeout", "at least 2s"},
		{"shutdown negative", func(c *Config) { c.ShutdownTimeout = -1 }, "ShutdownTimeout", "negative"},
		{"shutdown too short", func(c *Config) { c.ShutdownTimeout = 999 * time.Millisecond }, "ShutdownTimeout", "at least 1s"},
		{"connect negative", func(c *Config) { c.ConnectTimeout = -1 }, "ConnectTimeout", "negative"},
		{"connect bare number", func(c *Config) { c.ConnectTimeout = 10 }, "ConnectTimeout", "nanoseconds"},
		{"connect as long as session", func(c *Config) { c.ConnectTimeout = 20 * time.Second }, "ConnectTimeout", "not less than SessionTimeout, 20s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := validConfig()
			require.NoError(t, c.Validate())
			tt.change(&c)
			err := c.Validate()
			want := strings.SplitAfter(tt.field, "DeadLetter ")
			for i := range want {
				want[i] = strings.TrimSuffix(want[i], " ")
				assert.Contains(t, err.Error(), "kgroup: config: "+want[i]+": ")
			}
			require.Equal(t, want, fields(t, err), "%v", err)
			assert.Contains(t, err.Error(), tt.says)
			assert.NotContains(t, err.Error(), "secret")
		})
	}
}

func TestValidateFindsAllMistakesAtOnce(t *testing.T) {
	c := Config{
		Brokers: []string{"", "ok:1", "h"},
		Topics: Topics{
			"bad name":  {},
			"bad-näme":  {Handler: HandlerFunc(nop)},
			"orders":    {Handler: HandlerFunc(nil), Queue: -1, Retry: Retry{MinBackoff: -1, MaxBackoff: -1}},
			"^orders-e": {Handler: HandlerFunc(nop)},
			"^orders-":  {Handler: HandlerFunc(nop)},
		},
		ClientID:         "?",
		Mode:             9,
		Start:            9,
		Isolation:        9,
		CommitInterval:   2,
		SessionTimeout:   -1,
		RebalanceTimeout: -1,
		ShutdownTimeout:  -1,
		ConnectTimeout:   -1,
	}
	want := []string{
		"Brokers[0]", "Brokers[2]", "Group",
		`Topics["bad name"]`, `Topics["bad-näme"]`, `Topics["^orders-"]`,
		`Topics["bad name"].Handler`, `Topics["orders"].Handler`, `Topics["orders"].Queue`,
		`Topics["orders"].Retry.MinBackoff`, `Topics["orders"].Retry.MaxBackoff`,
		"ClientID", "Mode", "Start", "Isolation", "CommitInterval",
		"SessionTimeout", "RebalanceTimeout", "ShutdownTimeout", "ConnectTimeout",
	}
	first := c.Validate()
	assert.Equal(t, want, fields(t, first))
	for range 20 { // maps are walked in another order each time
		require.Equal(t, first.Error(), c.Validate().Error())
	}
	assert.Equal(t, []string{"Brokers", "Group", "Topics"}, fields(t, Config{}.Validate()))
}

func TestValidateAccepts(t *testing.T) {
	tests := map[string]func(*Config){
		"IPv6":               broker("[::1]:9092"),
		"IPv4":               broker("127.0.0.1:65535"),
		"repeated broker":    func(c *Config) { c.Brokers = append(c.Brokers, c.Brokers[0]) },
		"every setting":      func(c *Config) { c.Mode, c.Start, c.Isolation = Partitions, Newest, ReadUncommitted },
		"commit every":       func(c *Config) { c.CommitInterval = CommitEveryMessage },
		"no periodic commit": func(c *Config) { c.CommitInterval = -1 },
		"shortest session":   func(c *Config) { c.SessionTimeout = 1800 * time.Millisecond },
		"longest session":    func(c *Config) { c.SessionTimeout = math.MaxInt32 * time.Millisecond },
		"test session":       func(c *Config) { c.SessionTimeout = 3 * time.Second },
		"shortest rebalance": func(c *Config) { c.RebalanceTimeout = 2500 * time.Millisecond },
		"shortest shutdown":  func(c *Config) { c.ShutdownTimeout = time.Second },
		"only min backoff":   topicWith(func(t *Topic) { t.Retry.MinBackoff = time.Minute }),
		"only max backoff":   topicWith(func(t *Topic) { t.Retry.MaxBackoff = time.Millisecond }),
		"longest name":       named(strings.Repeat("x", 249)),
		"internal topic":     named("__consumer_offsets"),
		"name and pattern":   named("^orders"),
		"patterns apart":     func(c *Config) { named("^a")(c); named("^b")(c) },
		"nil tune and hooks": func(c *Config) { c.Tune, c.Hooks = nil, Hooks{} },
		"pointer handler":    topicWith(func(t *Topic) { t.Handler = &pointerHandler{} }),
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			c := validConfig()
			change(&c)
			require.NoError(t, c.Validate())
			// What is valid makes settings that the engine takes, and that keep the
			// rules which are only looked at after Tune.
			c.Tune = func(*cluster.Config) {}
			for _, build := range []func() (*cluster.Config, error){c.ClusterConfig, c.engineConfig} {
				built, err := build()
				require.NoError(t, err)
				require.NoError(t, built.Validate())
			}
			assert.GreaterOrEqual(t, drain(t, c), minDrain)
			assert.GreaterOrEqual(t, drainOf(t, c, false), minDrain)
		})
	}
}

func drain(t *testing.T, c Config) time.Duration { t.Helper(); return drainOf(t, c, true) }

// drainOf is the drain of members whose JoinGroup carries RebalanceTimeout, or not.
func drainOf(t *testing.T, c Config, carried bool) time.Duration {
	t.Helper()
	built, err := c.engineConfig()
	require.NoError(t, err)
	return c.withDefaults().tunedDrain(built, carried)
}

func TestDefaults(t *testing.T) {
	c := validConfig().withDefaults()
	assert.Equal(t, "kgroup", c.ClientID)
	assert.Equal(t, time.Second, c.CommitInterval)
	assert.Equal(t, 20*time.Second, c.SessionTimeout)
	assert.Equal(t, 60*time.Second, c.RebalanceTimeout)
	assert.Equal(t, 25*time.Second, c.ShutdownTimeout)
	assert.Equal(t, 10*time.Second, c.ConnectTimeout)
	assert.Equal(t, slog.Default(), c.Logger)
	assert.Equal(t, 256, c.Topics["orders"].Queue)
	assert.Equal(t, Retry{MinBackoff: 100 * time.Millisecond, MaxBackoff: 30 * time.Second, MaxAttempts: 5}, c.Topics["orders"].Retry)
	assert.Equal(t, time.Second, c.heartbeatInterval())
	assert.Equal(t, 57750*time.Millisecond, drain(t, c))
	assert.Equal(t, 17750*time.Millisecond, drainOf(t, c, false))
	assert.Equal(t, 20*time.Second, c.shutdownGrace())

	// Funcs cannot be compared, text can.
	c.Topics["orders"] = Topic{Queue: 1, Workers: 2, Batch: Batch{Size: 3, Wait: 4}, Retry: Retry{MinBackoff: 1, MaxBackoff: 2, MaxAttempts: 3}}
	assert.Equal(t, fmt.Sprintf("%+v", c), fmt.Sprintf("%+v", c.withDefaults()), "not idempotent")
}

func TestDefaultsFollowWhatIsSet(t *testing.T) {
	c := Config{SessionTimeout: 3 * time.Second}.withDefaults()
	assert.Equal(t, 1500*time.Millisecond, c.ConnectTimeout)
	assert.Equal(t, 500*time.Millisecond, c.heartbeatInterval())
	assert.Equal(t, 58250*time.Millisecond, drain(t, c), "however short the session is")
	assert.Equal(t, 1250*time.Millisecond, drainOf(t, c, false), "brokers take the session for the rebalance timeout")

	// Otherwise the lower of the two bounds the drain, and that was the session so far.
	c = Config{SessionTimeout: 20 * time.Second, RebalanceTimeout: 5 * time.Second}.withDefaults()
	assert.Equal(t, 2750*time.Millisecond, drain(t, c))
	assert.Equal(t, 2750*time.Millisecond, drainOf(t, c, false))

	assert.Equal(t, Retry{MinBackoff: time.Minute, MaxBackoff: time.Minute, MaxAttempts: 5}, Topic{Retry: Retry{MinBackoff: time.Minute}}.withDefaults().Retry)
	assert.Equal(t, Retry{MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond, MaxAttempts: 5}, Topic{Retry: Retry{MaxBackoff: time.Millisecond}}.withDefaults().Retry)

	for total, grace := range map[time.Duration]time.Duration{
		time.Second:      500 * time.Millisecond,
		10 * time.Second: 8 * time.Second,
		time.Minute:      55 * time.Second,
	} {
		assert.Equal(t, grace, Config{ShutdownTimeout: total}.shutdownGrace(), total)
	}
}

func TestWithDefaultsSharesNothing(t *testing.T) {
	c := validConfig()
	c.Brokers = append(c.Brokers, "kafka-2:9092", "kafka-1:9092")
	copied := c.withDefaults()

	c.Brokers[0] = "changed:1"
	c.Topics["orders"] = Topic{Queue: 1}
	c.Topics["more"] = Topic{}
	assert.Equal(t, []string{"kafka-1:9092", "kafka-2:9092"}, copied.Brokers)
	assert.Len(t, copied.Topics, 1)
	assert.Equal(t, 256, copied.Topics["orders"].Queue)

	copied.Topics["other"] = Topic{}
	assert.NotContains(t, c.Topics, "other")
}

func TestClusterConfig(t *testing.T) {
	// A loop of one's own has no handlers, and brokers and group are its business.
	built, err := Config{Topics: Topics{"orders": {}}}.ClusterConfig()
	require.NoError(t, err)
	assert.Equal(t, sarama.V2_1_0_0, built.Version)
	assert.Equal(t, "kgroup", built.ClientID)
	assert.Equal(t, time.Second, built.Consumer.Offsets.CommitInterval)
	assert.Equal(t, time.Second, built.Group.Offsets.Synchronization.DwellTime)
	assert.Equal(t, 3, built.Group.Offsets.Retry.Max)
	assert.False(t, built.Group.Return.Notifications)
	assert.True(t, built.Consumer.Return.Errors)
	assert.Equal(t, 5, built.Metadata.Retry.Max)
	assert.Equal(t, 500*time.Millisecond, built.Metadata.Retry.Backoff)
	assert.Equal(t, time.Minute, built.Metadata.RefreshFrequency)
	assert.False(t, built.Metadata.Full)
	assert.False(t, built.Metadata.AllowAutoTopicCreation)
	assert.Equal(t, 30250*time.Millisecond, built.Net.ReadTimeout)
	assert.Equal(t, sarama.SASLHandshakeV1, built.Net.SASL.Version)
	assert.Equal(t, 20*time.Second, built.Group.Session.Timeout)
	assert.Equal(t, time.Second, built.Group.Heartbeat.Interval)
	assert.Equal(t, 250*time.Millisecond, built.Consumer.MaxWaitTime)
	assert.Equal(t, 500*time.Millisecond, built.Consumer.MaxProcessingTime)
	assert.Equal(t, 16, built.ChannelBufferSize)
	assert.Equal(t, sarama.OffsetOldest, built.Consumer.Offsets.Initial)
	assert.Equal(t, 2*time.Second, built.Consumer.Retry.Backoff)
	assert.Equal(t, sarama.ReadCommitted, built.Consumer.IsolationLevel)
	assert.Zero(t, built.Consumer.Fetch.Max)
	assert.Equal(t, cluster.ConsumerModeMultiplex, built.Group.Mode)
	assert.Nil(t, built.Group.Topics.Whitelist)
	assert.False(t, built.Net.Proxy.Enable)

	again, err := Config{Topics: Topics{"orders": {}}}.ClusterConfig()
	require.NoError(t, err)
	require.NotNil(t, built.MetricRegistry)
	assert.NotSame(t, built.MetricRegistry, again.MetricRegistry)

	_, err = Config{Topics: Topics{"a b": {}}, Mode: 7}.ClusterConfig()
	assert.Equal(t, []string{`Topics["a b"]`, "Mode"}, fields(t, err))
}

func TestEngineConfig(t *testing.T) {
	built, err := validConfig().engineConfig()
	require.NoError(t, err)
	assert.Equal(t, sarama.V2_1_0_0, built.Version)
	assert.Greater(t, built.Consumer.Offsets.CommitInterval, 24*365*time.Hour)
	assert.Equal(t, time.Millisecond, built.Group.Offsets.Synchronization.DwellTime)
	assert.Zero(t, built.Group.Offsets.Retry.Max)
	assert.True(t, built.Group.Return.Notifications)
	assert.True(t, built.Consumer.Return.Errors)
	assert.Equal(t, 1, built.Metadata.Retry.Max)
	assert.Equal(t, 100*time.Millisecond, built.Metadata.Retry.Backoff)
	assert.LessOrEqual(t, built.Metadata.RefreshFrequency*3/2, 30*time.Second, "grown topics are noticed within 30 s")
	assert.Equal(t, 20*time.Second/3, built.Metadata.Timeout)
	assert.False(t, built.Metadata.AllowAutoTopicCreation)
	assert.Equal(t, 10*time.Second, built.Net.DialTimeout)
	assert.Equal(t, 10*time.Second, built.Net.ReadTimeout)
	assert.Equal(t, 10*time.Second, built.Net.WriteTimeout)
	assert.Equal(t, 4096, built.ChannelBufferSize)
	assert.Equal(t, 250*time.Millisecond, built.Consumer.Retry.Backoff)
	assert.NotNil(t, built.MetricRegistry)
	assert.False(t, built.Net.Proxy.Enable)
}

func TestBuiltFromFields(t *testing.T) {
	c := validConfig()
	c.ClientID, c.Mode, c.Start, c.Isolation = "me", Partitions, Newest, ReadUncommitted
	c.ConnectTimeout, c.SessionTimeout = 2*time.Second, 12*time.Second
	named("^orders-")(&c)
	named("^refunds")(&c)
	loop, err := c.ClusterConfig()
	require.NoError(t, err)
	engine, err := c.engineConfig()
	require.NoError(t, err)
	for _, built := range []*cluster.Config{loop, engine} {
		assert.Equal(t, "me", built.ClientID)
		assert.Equal(t, cluster.ConsumerModePartitions, built.Group.Mode)
		assert.Equal(t, sarama.ReadUncommitted, built.Consumer.IsolationLevel)
		assert.Equal(t, 2*time.Second, built.Net.DialTimeout)
		assert.Equal(t, 12*time.Second, built.Group.Session.Timeout)
		assert.Equal(t, 4*time.Second, built.Metadata.Timeout)
		assert.True(t, built.Metadata.Full)
		assert.True(t, built.Group.Topics.Whitelist.MatchString("refunds-eu"))
		assert.True(t, built.Group.Topics.Whitelist.MatchString("orders-eu"))
		assert.False(t, built.Group.Topics.Whitelist.MatchString("payments"))
		assert.True(t, built.Group.Topics.Blacklist.MatchString("__consumer_offsets"))
		assert.False(t, built.Group.Topics.Blacklist.MatchString("_x"))
	}
	assert.Equal(t, sarama.OffsetNewest, loop.Consumer.Offsets.Initial)
	assert.Equal(t, sarama.OffsetOldest, engine.Consumer.Offsets.Initial, "Newest is done by committing the position first")
}

// D1, D2: the engine makes a ticker of these, and one that is not positive panics
// a moment after the first join.
func TestTickersDoNotPanic(t *testing.T) {
	for _, interval := range []time.Duration{0, 5 * time.Second, CommitEveryMessage, -1, math.MinInt64} {
		c := validConfig()
		c.CommitInterval = interval
		loop, err := c.ClusterConfig()
		require.NoError(t, err)
		engine, err := c.engineConfig()
		require.NoError(t, err)
		for _, built := range []*cluster.Config{loop, engine} {
			assert.NotPanics(t, func() {
				time.NewTicker(built.Consumer.Offsets.CommitInterval).Stop()
				time.NewTicker(built.Metadata.RefreshFrequency / 2).Stop()
				time.NewTicker(built.Group.Heartbeat.Interval).Stop()
			})
		}
		switch {
		case interval == 0:
			assert.Equal(t, time.Second, loop.Consumer.Offsets.CommitInterval)
		case interval > CommitEveryMessage:
			assert.Equal(t, interval, loop.Consumer.Offsets.CommitInterval)
		default:
			assert.Equal(t, never, loop.Consumer.Offsets.CommitInterval)
		}
		assert.Equal(t, never, engine.Consumer.Offsets.CommitInterval)
	}
}

func TestClusterConfigDials(t *testing.T) {
	c := validConfig()
	c.ConnectTimeout = 3 * time.Second
	refused := errors.New("refused")
	var network, addr string
	var left time.Duration
	c.Dial = func(ctx context.Context, n, a string) (net.Conn, error) {
		deadline, ok := ctx.Deadline()
		require.True(t, ok)
		network, addr, left = n, a, time.Until(deadline)
		return nil, refused
	}
	built, err := c.ClusterConfig()
	require.NoError(t, err)
	require.True(t, built.Net.Proxy.Enable)
	_, err = built.Net.Proxy.Dialer.Dial("tcp", "kafka-1:9092")
	require.ErrorIs(t, err, refused)
	assert.Equal(t, "tcp kafka-1:9092", network+" "+addr)
	assert.LessOrEqual(t, left, 3*time.Second)
	assert.Greater(t, left, time.Duration(0))
	assert.Equal(t, "kgroup", fmt.Sprintf("%s", built.Net.Proxy.Dialer), "what sarama logs")
}

func TestTuneIsCheckedAgain(t *testing.T) {
	type tune = func(*cluster.Config)
	tests := []struct {
		name     string
		tune     tune
		says     string // by New
		loopSays string // by ClusterConfig; empty: it is allowed there
	}{
		{"CommitInterval", func(c *cluster.Config) { c.Consumer.Offsets.CommitInterval = time.Minute }, "Consumer.Offsets.CommitInterval: set Config.CommitInterval instead", ""},
		{"CommitInterval zero", func(c *cluster.Config) { c.Consumer.Offsets.CommitInterval = 0 }, "(D1)", "Consumer.Offsets.CommitInterval: must be more than zero"},
		{"RefreshFrequency", func(c *cluster.Config) { c.Metadata.RefreshFrequency = 0 }, "Metadata.RefreshFrequency: ", "(D2)"},
		{"Notifications", func(c *cluster.Config) { c.Group.Return.Notifications = !c.Group.Return.Notifications }, "(D5)", ""},
		{"Errors", func(c *cluster.Config) { c.Consumer.Return.Errors = false }, "Consumer.Return.Errors: ", "(D7)"},
		{"AllowAutoTopicCreation", func(c *cluster.Config) { c.Metadata.AllowAutoTopicCreation = true }, "Metadata.AllowAutoTopicCreation: ", "(D8)"},
		{"Initial", func(c *cluster.Config) { c.Consumer.Offsets.Initial = sarama.OffsetNewest }, "(D12)", "set Config.Start instead"},
		{"Version high", func(c *cluster.Config) { c.Version = sarama.V2_2_0_0 }, "(D19)", "(D20)"},
		{"Version low", func(c *cluster.Config) { c.Version = sarama.V0_10_2_2 }, "at least 0.11", "at least 0.11"},
		{"Version unset", func(c *cluster.Config) { c.Version = sarama.KafkaVersion{} }, "at least 0.11", "at least 0.11"},
		{"Fetch.Max", func(c *cluster.Config) { c.Consumer.Fetch.Max = 1 << 20 }, "skipped", "Consumer.Fetch.Max"},
		{"Retention", func(c *cluster.Config) { c.Consumer.Offsets.Retention = time.Hour }, "Consumer.Offsets.Retention", "expire"},
		{"Mode", func(c *cluster.Config) { c.Group.Mode = cluster.ConsumerModePartitions }, "set Config.Mode instead", "Group.Mode"},
		{"IsolationLevel", func(c *cluster.Config) { c.Consumer.IsolationLevel = sarama.ReadUncommitted }, "set Config.Isolation instead", "Consumer.IsolationLevel"},
		{"Session", func(c *cluster.Config) { c.Group.Session.Timeout = time.Minute }, "set Config.SessionTimeout instead", "Group.Session.Timeout"},
		{"Heartbeat", func(c *cluster.Config) { c.Group.Heartbeat.Interval = 7 * time.Second }, "Group.Heartbeat.Interval: must be at most", "a third of the session"},
		{"Heartbeat zero", func(c *cluster.Config) { c.Group.Heartbeat.Interval = 0 }, "Group.Heartbeat.Interval must be > 0", "Group.Heartbeat.Interval must be > 0"},
		{"no drain left", func(c *cluster.Config) { c.Consumer.MaxWaitTime = 18 * time.Second; c.Net.ReadTimeout = time.Minute }, "leave no time to drain", "DwellTime"},
		{"Dwell", func(c *cluster.Config) { c.Group.Offsets.Synchronization.DwellTime = 2 * time.Second }, "must be at most 100ms", ""},
		{"Dwell for a loop", func(c *cluster.Config) { c.Group.Offsets.Synchronization.DwellTime = 6500 * time.Millisecond }, "DwellTime", "must stay below a third of the session"},
		{"ChannelBufferSize", func(c *cluster.Config) { c.ChannelBufferSize = 0 }, "ChannelBufferSize", "(D7)"},
		{"MetricRegistry", func(c *cluster.Config) { c.MetricRegistry = nil }, "MetricRegistry", "panic"},
		{"MaxProcessingTime low", func(c *cluster.Config) { c.Consumer.MaxProcessingTime = time.Millisecond }, "Consumer.MaxProcessingTime", "from 10ms"},
		{"MaxProcessingTime high", func(c *cluster.Config) { c.Consumer.MaxProcessingTime = time.Minute }, "Consumer.MaxProcessingTime", "a third of the session"},
		{"MaxOpenRequests", func(c *cluster.Config) { c.Net.MaxOpenRequests = 1 }, "Net.MaxOpenRequests", "wait for fetches"},
		{"TLS", func(c *cluster.Config) { c.Net.TLS.Enable = true }, "set Config.TLS instead", ""},
		{"SASL", func(c *cluster.Config) { c.Net.SASL.Enable, c.Net.SASL.User, c.Net.SASL.Password = true, "u", "p" }, "set Config.Auth instead", ""},
		{"Proxy", func(c *cluster.Config) { c.Net.Proxy.Enable, c.Net.Proxy.Dialer = true, &net.Dialer{} }, "set Config.Dial instead", ""},
		{"DialTimeout", func(c *cluster.Config) { c.Net.DialTimeout = time.Minute }, "set Config.ConnectTimeout instead", ""},
		{"ReadTimeout", func(c *cluster.Config) { c.Net.ReadTimeout = time.Second }, "Net.ReadTimeout", "(D15)"},
		{"Metadata.Timeout", func(c *cluster.Config) { c.Metadata.Timeout = 0 }, "Metadata.Timeout", ""},
		{"Metadata.Timeout long", func(c *cluster.Config) { c.Metadata.Timeout = 20 * time.Second }, "Metadata.Timeout", ""},
		{"Whitelist", func(c *cluster.Config) { c.Metadata.Full, c.Group.Topics.Whitelist = true, regexp.MustCompile("^x") }, "set Config.Topics instead", ""},
		{"Retry.Backoff", func(c *cluster.Config) { c.Consumer.Retry.Backoff = 0 }, "(D24)", ""},
		{"engine's own check", func(c *cluster.Config) { c.Consumer.Fetch.Min = 0 }, "Consumer.Fetch.Min", "Consumer.Fetch.Min"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := validConfig()
			c.Tune = tt.tune
			requireTune := func(says string, built *cluster.Config, err error) {
				t.Helper()
				if says == "" {
					require.NoError(t, err)
					require.NotNil(t, built)
					return
				}
				require.Error(t, err)
				assert.Nil(t, built)
				for _, field := range fields(t, err) {
					assert.Equal(t, "Tune", field)
				}
				assert.Contains(t, err.Error(), says)
			}
			built, err := c.engineConfig()
			requireTune(tt.says, built, err)
			built, err = c.ClusterConfig()
			requireTune(tt.loopSays, built, err)
		})
	}
}

func TestTuneMay(t *testing.T) {
	c := validConfig()
	c.Tune = func(built *cluster.Config) {
		built.Group.Heartbeat.Interval = 2 * time.Second
		built.Group.PartitionStrategy = cluster.StrategyRoundRobin
		built.Group.Member.UserData = []byte("x")
		built.Consumer.Fetch.Default = 4 << 20
		built.Consumer.MaxWaitTime = 500 * time.Millisecond
		built.ChannelBufferSize = 1
		built.Version = sarama.V0_11_0_0
		built.RackID = "a"
		built.ClientID = "tuned"
	}
	loop, err := c.ClusterConfig()
	require.NoError(t, err)
	assert.Equal(t, "tuned", loop.ClientID)
	engine, err := c.engineConfig()
	require.NoError(t, err)
	assert.Equal(t, "tuned", engine.ClientID)
	assert.Equal(t, 56500*time.Millisecond, c.withDefaults().tunedDrain(engine, true))
}

func TestTuneReportsAllAtOnce(t *testing.T) {
	c := validConfig()
	c.Tune = func(built *cluster.Config) {
		built.Consumer.Fetch.Max = 1
		built.Net.TLS.Enable = true
		built.Consumer.Fetch.Min = 0
	}
	_, err := c.engineConfig()
	assert.Equal(t, []string{"Tune", "Tune", "Tune"}, fields(t, err))
}

func TestTuneIsNotRecovered(t *testing.T) {
	c := validConfig()
	c.Tune = func(*cluster.Config) { panic("bug") }
	assert.PanicsWithValue(t, "bug", func() { _, _ = c.engineConfig() })
}

func TestConstantsHaveNames(t *testing.T) {
	assert.Equal(t, "Multiplex Partitions Mode(2)", fmt.Sprint(Multiplex, " ", Partitions, " ", Mode(2)))
	assert.Equal(t, "Oldest Newest Start(-1)", fmt.Sprint(Oldest, " ", Newest, " ", Start(-1)))
	assert.Equal(t, "ReadCommitted ReadUncommitted Isolation(2)", fmt.Sprint(ReadCommitted, " ", ReadUncommitted, " ", Isolation(2)))
	assert.Equal(t, time.Nanosecond, CommitEveryMessage)
}
