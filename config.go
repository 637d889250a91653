package kgroup

// What a user may set: the fields and their defaults, and every mistake that can be
// seen without asking a broker. What the engine makes of it is in clusterconfig.go,
// which topic goes to which handler in topics.go.

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	cluster "github.com/bsm/sarama-cluster"
)

// Config says where the cluster is, which group this process joins, and what
// becomes of the messages. Brokers, Group and Topics are required; the zero value
// of every other field is its default. Durations are Go's: a bare number counts
// nanoseconds.
//
// New copies the Config: later changes to the slice, the map or TLS have no effect.
type Config struct {
	// Brokers are the addresses ("host:port", IPv6 in brackets) asked first for the
	// rest of the cluster. One that answers is enough; name several, so that one of
	// them being down does not keep the service from starting. Repeated addresses
	// count once. Run connects once to each broker of the cluster at its start, to find
	// what all of them speak.
	Brokers []string

	// Group is the name of the consumer group. All members should have the same Topics.
	// Some may use another client, while a service is moved: one that offers the
	// assignor "range" or "roundrobin", as sarama-cluster and, unless told otherwise,
	// Java's consumer do.
	Group string

	// Topics says which topics are consumed, and by which handlers.
	Topics Topics

	// ClientID names this program in the brokers' logs, quotas and metrics: letters,
	// digits, '.', '_' and '-'. Empty: "kgroup".
	ClientID string

	// TLS encrypts the connections. It says which brokers are trusted, and may have a
	// certificate that says who we are; [LoadTLS] makes one of files. An empty
	// ServerName is the host of each broker's address, as it must be in its
	// certificate. Nil: connections are not encrypted.
	//
	// New copies it. InsecureSkipVerify without VerifyConnection or
	// VerifyPeerCertificate is warned of when Run starts.
	TLS *tls.Config

	// Auth says who we are with SASL, at each new connection: [Plain], [Scram] or
	// [OAuthBearer]. Nil: brokers are not told, except by a certificate in TLS. Plain
	// and OAuthBearer without TLS are warned of when Run starts, unless there is a
	// Dial.
	Auth Auth

	// Dial opens the connections to the brokers, for proxies, tunnels and tests. TLS
	// and Auth are used on what it returns. It must give up when its context ends,
	// which is after ConnectTimeout at the latest. Nil: a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// Mode says how messages come out of the engine. Zero: Multiplex.
	Mode Mode

	// Start says where a group begins that has no offsets yet. Zero: Oldest.
	Start Start

	// Isolation says whether messages of transactions that were aborted, or are not
	// yet committed, are delivered. Zero: ReadCommitted, which delivers neither.
	Isolation Isolation

	// CommitInterval is the time between two commits of what has been marked, at
	// least 1 ms. Zero: 1 s. CommitEveryMessage: a partition's next message (with Workers,
	// the next one of the worker and of the key) waits until the broker has acknowledged
	// the commit of the one before. Negative: only
	// Commit, rebalances and the shutdown commit; a message that kills the process is then
	// not looked for.
	CommitInterval time.Duration

	// SessionTimeout is how long the group waits for a silent member before it gives
	// its partitions to others, in whole milliseconds. Zero: 20 s. Negative is a
	// mistake. Handlers may take longer: heartbeats do not wait for them.
	//
	// At least 1.8 s: a sixth of it is the heartbeat interval (1 s at most), and
	// stopping the fetches and joining again must fit into what is left. Brokers take
	// 6 s to 30 min unless told otherwise (group.min.session.timeout.ms,
	// group.max.session.timeout.ms).
	SessionTimeout time.Duration

	// RebalanceTimeout is how long one member may drain (finish the handlers at work)
	// while the whole group waits for it, in whole milliseconds. Zero: 60 s. Negative
	// is a mistake.
	//
	// Of it, one heartbeat interval, one fetch wait (250 ms) and 1 s are kept back for
	// stopping the fetches and joining again; at least 250 ms must be left. So with the
	// default, one slow handler may keep all other members from working for up to 58 s
	// whenever a member joins or leaves; its context is cancelled after 80 % of that.
	// The session goes on meanwhile, however short it is; if no heartbeat is answered
	// for a whole SessionTimeout, the partitions are lost and the drain ends at once.
	//
	// The group waits as long as the member with the highest timeout asks for. (The
	// engine's own JoinGroup asks for none, and brokers take the session timeout;
	// kgroup sends a newer version. Should a broker serve only that one, the lower of
	// SessionTimeout and RebalanceTimeout counts.)
	RebalanceTimeout time.Duration

	// ShutdownTimeout is how long Run may take to return after its context was
	// cancelled, at least 1 s. Zero: 25 s, which fits into the 30 s that Kubernetes
	// gives. Negative is a mistake.
	//
	// Handlers at work get it less a fifth (at least 500 ms, at most 5 s), which is
	// for the last commit and for leaving the group.
	ShutdownTimeout time.Duration

	// ConnectTimeout is how long one attempt to connect to a broker may take, TLS and
	// Auth included, at least 1 ms. Zero: 10 s, at most half of SessionTimeout. Negative is a mistake,
	// and so is SessionTimeout or more: no heartbeat can be sent while the connection
	// to the group's coordinator is being made, so that a single dead address would
	// cost the membership.
	ConnectTimeout time.Duration

	// Logger gets what happens, never the content of a message. Nil: slog.Default().
	Logger *slog.Logger

	// Hooks are called when something happens. All are optional.
	Hooks Hooks

	// Tune changes the cluster.Config that New or ClusterConfig has built, for
	// settings that have no field here. What the promises need is checked again
	// after it: New and ClusterConfig return a ConfigError with Field "Tune" for each
	// setting that would break one. A panic in it is not recovered. Nil: nothing is
	// changed.
	//
	// Of sarama's own authentication only Kerberos may be turned on (Net.SASL with the
	// mechanism GSSAPI), and only without Auth. It runs on the connections made here,
	// encrypted by TLS if that is set, and its sessions are not renewed: the README says
	// what else is lost.
	//
	// Version need not be set. Run finds the highest that all brokers of the cluster
	// understand, 2.1.0 at most, and a lower one that is set here is an upper bound.
	Tune func(*cluster.Config)
}

// Topics are what is consumed, by name. A name that begins with '^' is a regular
// expression (package regexp; end it with '$' to match whole names): it consumes
// every topic that it matches, also those created later. A name beats a pattern.
// Internal topics (beginning with "__") match no pattern and must be named. Two
// patterns that match the same topic are a mistake.
type Topics map[string]Topic

// A Topic says how the messages of one topic, or of all that match one pattern,
// are handled.
type Topic struct {
	// Handler handles the messages, one at a time. Either it or Batch.Handler is required.
	Handler Handler

	// Batch handles several messages at once, instead of Handler.
	Batch Batch

	// Workers is how many messages of one partition are handled at once. With more than one,
	// order is kept among messages of the same key only: never two of a key are handled at
	// once, and each waits for those before it. Messages without a key have no order. A key
	// that waits, for a retry or because its message is held, keeps no other key from going on
	// until about 13,800 offsets behind it have been delivered, or half of Queue waits. (Where
	// offsets are far apart, as in a compacted topic, some hundred messages: 575 if there are
	// 1,000 offsets from one to the next.) Zero: 1. At most 16,384; negative is a mistake.
	//
	// Where handlers wait, use it with Config.Mode Partitions. In Multiplex mode, messages of one
	// partition come hundreds in a row, fill its Queue and keep the others waiting: mostly the
	// workers of one partition are busy.
	//
	// With batches, it is how many of them.
	Workers int

	// Key returns what Workers keep in order, if it is not the record's key; nil: this message
	// needs no order. It is called once for a message, must depend on nothing else, and
	// should be quick: the partition waits for it. A panic is a failed attempt. With one worker
	// it is not called. Nil: the record's key.
	Key func(Message) []byte

	// Queue is how many messages of one partition may be taken from the engine and
	// not yet handed to the handler, those included that wait for their key or for a retry
	// while others go on. Zero: 256, or twice Workers if that is more. Negative is a mistake.
	Queue int

	// Timeout is how long one attempt may take, at least 1 ms. Then its context is
	// cancelled with ErrHandlerTimeout. What the handler returns counts all the same: an
	// error is a failed attempt, a nil is a nil. A handler that ignores its context is
	// waited for; it is never called twice at once. Zero: no limit. Negative is a mistake.
	Timeout time.Duration

	// Retry says when a message whose handling failed is handled again.
	Retry Retry

	// DeadLetter is the topic that gets what cannot be handled: a message whose attempts
	// are used up, or whose error is Permanent. The message is settled when all in-sync
	// replicas have the letter; until then it is held, as is everything behind it, and
	// writing is tried again. Its value, key, headers and timestamp are those of the
	// message, and headers are added that say where it comes from and why it is there.
	// (A topic with message.timestamp.type=LogAppendTime has its own idea of the
	// timestamp; that is warned of.) It goes to the partition of the same number, or, if
	// there is none, to the one that Java's producer chooses for its key.
	//
	// The topic must exist when Run starts, and the user needs the right to write to it.
	// It belongs to no pattern in Topics. Empty: such a message is held, and tried again
	// every Retry.MaxBackoff.
	DeadLetter string

	// DeadLetterHeaders says which headers a letter gets. Zero: KgroupHeaders.
	DeadLetterHeaders DeadLetterHeaders

	// Breaker tells an outage of what the handler needs from bad messages. Without it, an
	// outage would put a topic's messages into its dead letters one by one. It is on where
	// DeadLetter or one of its fields is set.
	Breaker Breaker
}

// Retry is an exponential backoff with full jitter: before attempt n+1 a random
// time of up to MinBackoff × 2ⁿ⁻¹ passes. After MaxAttempts of them the message goes to
// Topic.DeadLetter. Without that it is held once the backoff has reached MaxBackoff:
// reported as blocked, and tried again every MaxBackoff.
type Retry struct {
	// MinBackoff is the longest wait before the second attempt, at least 1 ms. Zero:
	// 100 ms, or MaxBackoff if that is set and less. Negative is a mistake.
	MinBackoff time.Duration

	// MaxBackoff is the longest wait before any attempt. Zero: 30 s, or MinBackoff if
	// that is more. Negative, or less than MinBackoff, is a mistake.
	MaxBackoff time.Duration

	// MaxAttempts is how many attempts a message gets before it becomes a dead letter, also
	// if they are made by several owners of the partition. It counts with a
	// Topic.DeadLetter only, but for one thing: as many deaths of a process as this, each
	// with one and the same message alone in its hands, and the message is not handled
	// any more. Zero: 5. Negative: no number of attempts or deaths is too many.
	MaxAttempts int
}

// A Breaker pauses a topic while most attempts fail, because then the fault is not the
// messages'. While it is open no attempt counts and nothing becomes a dead letter; once
// every Probe one message of one partition is tried, of another partition each time,
// and the first success closes it. This member stays in the group meanwhile, and
// keeps its partitions. Each process has its own.
//
// Before it is sure, messages that fail while others fail too and nothing works are
// tried once in a Probe, at most a tenth of Window, instead of sooner; with Workers, each
// of them keeps its worker meanwhile.
//
// Attempts that returned a [Permanent] error count neither way. A message that a
// [*BatchError] has named beside others that did not fail is to blame itself. An outage
// looks like messages that are bad without saying so, at the head of all partitions: the
// topic waits for those, too. (In Multiplex mode two partitions are enough, if one has a full queue
// behind it: it keeps the others from being tried.) So when nothing of it has worked for
// ten Windows, one message that has had its attempts becomes a dead letter on trial, and
// the next one after twice that time.
type Breaker struct {
	// MinAttempts is how many attempts Window must hold before the breaker may open. An
	// attempt with a batch counts as one for each of its messages. Zero: 20. Negative: there
	// is no breaker.
	MinAttempts int

	// FailureRatio is the part of them that must have failed, from 0 to 1. Zero: 0.5.
	FailureRatio float64

	// Window is the time in which attempts are counted, from the first failure after a
	// Window without one; half of it must have passed. Zero: 10 s. At least 10 ms;
	// negative is a mistake.
	Window time.Duration

	// Probe is the time between two probes, at least 1 ms. Zero: 1 s. Negative is a mistake.
	Probe time.Duration
}

// DeadLetterHeaders are the names and encodings of the headers that a dead letter gets.
type DeadLetterHeaders int

const (
	// KgroupHeaders are text: kgroup-origin-topic, -origin-partition, -origin-offset,
	// -origin-timestamp (RFC 3339, UTC), -group, -attempts (or the number of deaths), -error
	// (its first 1024 bytes), and -failed-at (RFC 3339, UTC).
	KgroupHeaders DeadLetterHeaders = iota
	// SpringHeaders are those of Spring Kafka's DeadLetterPublishingRecoverer, for tools
	// that read them: kafka_dlt-original-topic and so on, numbers in big-endian bytes.
	SpringHeaders
	// ConnectHeaders are those of Kafka Connect: __connect.errors.topic and so on, all
	// text. The group is the connector's name.
	ConnectHeaders
)

// String returns the name of the constant.
func (h DeadLetterHeaders) String() string {
	return constant("DeadLetterHeaders", int(h), "KgroupHeaders", "SpringHeaders", "ConnectHeaders")
}

// CommitEveryMessage as Config.CommitInterval commits after every message: a
// partition's next message waits for the broker's answer. It is not a length of
// time.
const CommitEveryMessage time.Duration = 1

// A Mode is a way to get messages out of the engine.
type Mode int

const (
	// Multiplex reads all partitions through one channel. A partition whose queue is
	// full makes all others of this member wait once their own messages are used up.
	Multiplex Mode = iota
	// Partitions reads each partition through a channel of its own, and pauses
	// fetching for one whose queue is full.
	Partitions
)

// String returns the name of the constant.
func (m Mode) String() string { return constant("Mode", int(m), "Multiplex", "Partitions") }

// A Start is a place in a partition.
type Start int

const (
	// Oldest begins with the oldest message that the partition still has.
	Oldest Start = iota
	// Newest begins with the first message that arrives after the group was created;
	// partitions that are added later begin with their oldest.
	Newest
)

// String returns the name of the constant.
func (s Start) String() string { return constant("Start", int(s), "Oldest", "Newest") }

// An Isolation is Kafka's isolation.level.
type Isolation int

const (
	// ReadCommitted delivers no message of a transaction before it is committed.
	ReadCommitted Isolation = iota
	// ReadUncommitted delivers every message, also those of aborted transactions.
	ReadUncommitted
)

// String returns the name of the constant.
func (i Isolation) String() string {
	return constant("Isolation", int(i), "ReadCommitted", "ReadUncommitted")
}

func constant(kind string, i int, names ...string) string {
	if i < 0 || i >= len(names) {
		return kind + "(" + strconv.Itoa(i) + ")"
	}
	return names[i]
}

const (
	defaultSession    = 20 * time.Second
	defaultRebalance  = 60 * time.Second
	defaultShutdown   = 25 * time.Second
	defaultConnect    = 10 * time.Second
	defaultCommit     = time.Second
	defaultQueue      = 256
	defaultBatchSize  = 100
	defaultBatchWait  = 100 * time.Millisecond
	defaultMinBackoff = 100 * time.Millisecond
	defaultMaxBackoff = 30 * time.Second

	defaultMaxAttempts     = 5
	defaultBreakerAttempts = 20
	defaultBreakerRatio    = 0.5
	defaultBreakerWindow   = 10 * time.Second
	defaultBreakerProbe    = time.Second

	maxHeartbeat = time.Second
	// fetchWait is how long a fetch without messages waits at the broker. Stopping
	// one takes as long, so that it counts in every rebalance.
	fetchWait = 250 * time.Millisecond
	// drainMargin is for what follows the drain: the last commit, stopping the
	// fetches, and sending JoinGroup.
	drainMargin = time.Second
	// othersTimeout is what another member's rebalance timeout may be: the group waits
	// for the highest, and that of Java's consumers is 5 minutes. (Whether the broker is
	// alive meanwhile is found out otherwise: group_pulse.go.)
	othersTimeout = 10 * time.Minute
	// joinMargin is how much longer than RebalanceTimeout an answer to JoinGroup or
	// SyncGroup is waited for.
	joinMargin = 10 * time.Second
	// minBreakerWindow is where a window still can be told from a single attempt.
	minBreakerWindow = 10 * time.Millisecond
	// minDrain is the least time for handlers that is worth calling a drain.
	minDrain = 250 * time.Millisecond
	// minSession is where heartbeat (a sixth), fetchWait and drainMargin leave minDrain,
	// also if the session is all that the group waits for.
	minSession = (fetchWait + drainMargin + minDrain) * 6 / 5

	minShutdown        = time.Second
	minShutdownReserve = 500 * time.Millisecond
	maxShutdownReserve = 5 * time.Second

	// never is a commit interval that nobody lives to see. The engine's ticker needs
	// one greater than zero (D1).
	never = 100 * 365 * 24 * time.Hour
)

// withDefaults returns a copy of c that shares no slice, map or TLS with it, and in
// which every optional field has the value that is used. It leaves mistakes alone.
func (c Config) withDefaults() Config {
	c.Brokers = unique(c.Brokers)
	c.TLS = c.TLS.Clone()
	c.Topics = maps.Clone(c.Topics)
	for name, t := range c.Topics {
		c.Topics[name] = t.withDefaults()
	}
	c.ClientID = cmp.Or(c.ClientID, "kgroup")
	c.CommitInterval = cmp.Or(c.CommitInterval, defaultCommit)
	c.SessionTimeout = cmp.Or(c.SessionTimeout, defaultSession)
	c.RebalanceTimeout = cmp.Or(c.RebalanceTimeout, defaultRebalance)
	c.ShutdownTimeout = cmp.Or(c.ShutdownTimeout, defaultShutdown)
	// A wrong SessionTimeout is one mistake, not two: hence max, here and below.
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, min(defaultConnect, max(c.SessionTimeout/2, time.Millisecond)))
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

func (t Topic) withDefaults() Topic {
	t.Workers = cmp.Or(t.Workers, 1)
	t.Queue = cmp.Or(t.Queue, max(defaultQueue, 2*t.Workers))
	t.Batch.Size = cmp.Or(t.Batch.Size, defaultBatchSize)
	t.Batch.Wait = cmp.Or(t.Batch.Wait, defaultBatchWait)
	r := &t.Retry
	if r.MinBackoff == 0 {
		r.MinBackoff = defaultMinBackoff
		if r.MaxBackoff != 0 {
			r.MinBackoff = min(defaultMinBackoff, max(r.MaxBackoff, time.Millisecond))
		}
	}
	r.MaxBackoff = cmp.Or(r.MaxBackoff, max(defaultMaxBackoff, r.MinBackoff))
	r.MaxAttempts = cmp.Or(r.MaxAttempts, defaultMaxAttempts)
	if b := &t.Breaker; t.DeadLetter != "" || *b != (Breaker{}) {
		b.MinAttempts = cmp.Or(b.MinAttempts, defaultBreakerAttempts)
		b.FailureRatio = cmp.Or(b.FailureRatio, defaultBreakerRatio)
		b.Window = cmp.Or(b.Window, defaultBreakerWindow)
		b.Probe = cmp.Or(b.Probe, defaultBreakerProbe)
	}
	return t
}

// enabled reports whether b, which has its defaults, may open.
func (b Breaker) enabled() bool { return b.MinAttempts > 0 }

// unique copies list without its repetitions, in order.
func unique(list []string) []string {
	var once []string
	for _, s := range list {
		if !slices.Contains(once, s) {
			once = append(once, s)
		}
	}
	return once
}

// heartbeatInterval is a sixth of the session, so that several heartbeats may be
// lost before the session is; 1 s at most, because it is also how long a member
// may take to learn of a rebalance.
func (c Config) heartbeatInterval() time.Duration {
	return min(maxHeartbeat, c.SessionTimeout/6).Truncate(time.Millisecond)
}

// tunedDrain is the time from the first sign of a rebalance until the last handler
// must have returned. It is asked of what was built, because Tune may change the
// heartbeats and fetches. The group waits for a member as long as its JoinGroup says;
// where it carries no timeout (version 0, D15), brokers take the session's.
func (c Config) tunedDrain(built *cluster.Config, carried bool) time.Duration {
	waits := c.RebalanceTimeout
	if !carried {
		waits = min(waits, c.SessionTimeout)
	}
	return waits - built.Group.Heartbeat.Interval - built.Consumer.MaxWaitTime - drainMargin
}

// shutdownGrace is the part of ShutdownTimeout that handlers at work may use.
func (c Config) shutdownGrace() time.Duration {
	return c.ShutdownTimeout - min(max(c.ShutdownTimeout/5, minShutdownReserve), maxShutdownReserve)
}

// Validate returns every mistake in c that can be found without asking a broker,
// joined, each a *ConfigError; nil if there is none. It does not call Tune: what
// that does is checked by New and ClusterConfig.
func (c Config) Validate() error {
	brokers := c.Brokers // before repetitions are dropped: their index is in the message
	c = c.withDefaults()
	var m mistakes
	m.brokers(brokers)
	if c.Group == "" {
		m.add("Group", "is empty; name the consumer group to join")
	}
	m.topicNames(c.Topics)
	m.topicUse(c.Topics)
	m.settings(c)
	return errors.Join(m...)
}

// mistakes collects ConfigErrors in the order of Config's fields.
type mistakes []error

func (m *mistakes) add(field, format string, args ...any) {
	*m = append(*m, &ConfigError{Field: field, Err: fmt.Errorf(format, args...)})
}

func (m *mistakes) brokers(addrs []string) {
	if len(addrs) == 0 {
		m.add("Brokers", `is empty; give at least one address, like "kafka-1:9092"`)
	}
	for i, addr := range addrs {
		if err := checkAddress(addr); err != nil {
			m.add(fmt.Sprintf("Brokers[%d]", i), "%w", err)
		}
	}
}

// checkAddress wants host:port. It quotes an address only where it cannot contain
// a password.
func checkAddress(addr string) error {
	scheme, rest, hasScheme := strings.Cut(addr, "://")
	switch {
	case addr == "":
		return errors.New(`is empty; write "host:port"`)
	case strings.Contains(addr, ","):
		return errors.New(`is several addresses in one string; split it at the commas`)
	case strings.ContainsAny(addr, " \t\r\n"):
		return errors.New(`has white space in it; write "host:port" and nothing else`)
	case hasScheme:
		return fmt.Errorf(`begins with %q; a broker is not a URL, write %q`, scheme+"://", rest[strings.LastIndex(rest, "@")+1:])
	case strings.Contains(addr, "@"):
		return errors.New(`has credentials in it; write "host:port" and nothing else`)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		switch {
		case net.ParseIP(addr) != nil:
			return fmt.Errorf(`%q has no port; write %q`, addr, net.JoinHostPort(addr, "9092"))
		case strings.Count(addr, ":") > 1 && !strings.HasPrefix(addr, "["):
			return fmt.Errorf(`%q has too many colons; put an IPv6 address in brackets: "[::1]:9092"`, addr)
		}
		return fmt.Errorf(`%q is not "host:port", like "kafka-1:9092": %w`, addr, err)
	}
	if host == "" {
		return fmt.Errorf(`%q has no host; write "host:port"`, addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf(`%q has the port %q; it must be a number from 1 to 65535`, addr, port)
	}
	return nil
}

// topicNames checks what Topics are called.
func (m *mistakes) topicNames(topics Topics) {
	if len(topics) == 0 {
		m.add("Topics", "is empty; name at least one topic and its handler")
	}
	for _, name := range slices.Sorted(maps.Keys(topics)) {
		if err := checkTopicName(name); err != nil {
			m.add(topicField(name), "%w", err)
		}
	}
	for _, o := range overlaps(topics) {
		m.add(topicField(o.a), "matches the topic %q, and so does %s; change one of the patterns so that a topic has one handler, or name that topic itself",
			o.witness, topicField(o.b))
	}
}

func topicField(name string) string { return fmt.Sprintf("Topics[%q]", name) }

// topicUse checks how Topics are handled.
func (m *mistakes) topicUse(topics Topics) {
	for _, name := range slices.Sorted(maps.Keys(topics)) {
		t, field := topics[name], topicField(name)
		m.handler(field, t)
		m.concurrency(field, t)
		if t.Queue < 0 {
			m.add(field+".Queue", "is %d; use zero for the default of %d", t.Queue, defaultQueue)
		}
		minOK := m.duration(field+".Retry.MinBackoff", t.Retry.MinBackoff)
		maxOK := m.duration(field+".Retry.MaxBackoff", t.Retry.MaxBackoff)
		if minOK && maxOK && t.Retry.MinBackoff > t.Retry.MaxBackoff {
			m.add(field+".Retry.MinBackoff", "%v is more than MaxBackoff, %v; lower one or raise the other", t.Retry.MinBackoff, t.Retry.MaxBackoff)
		}
		if t.Timeout != 0 {
			m.duration(field+".Timeout", t.Timeout)
		}
		m.deadLetter(field, t)
		m.breaker(field+".Breaker", t.Breaker)
	}
	m.circles(topics)
}

// handler checks that there is one.
func (m *mistakes) handler(field string, t Topic) {
	switch {
	case t.Handler == nil && t.Batch.Handler == nil:
		m.add(field+".Handler", "is nil; every topic needs a handler, or Batch.Handler")
	case t.Handler != nil && t.Batch.Handler != nil:
		m.add(field+".Handler", "is set, and so is Batch.Handler; a topic has one of them")
	}
	if t.Handler != nil && isNil(t.Handler) {
		m.add(field+".Handler", "is a nil %T, which would be called all the same; give it a value", t.Handler)
	}
	if t.Batch.Handler != nil && isNil(t.Batch.Handler) {
		m.add(field+".Batch.Handler", "is a nil %T, which would be called all the same; give it a value", t.Batch.Handler)
	}
}

// concurrency checks how many messages are handled at once.
func (m *mistakes) concurrency(field string, t Topic) {
	if t.Workers < 1 || t.Workers > maxAhead {
		m.add(field+".Workers", "is %d; use 1 to %d, or zero for 1", t.Workers, maxAhead)
	}
	if t.Batch.Handler == nil {
		if b := t.Batch; b.Size != defaultBatchSize || b.Wait != defaultBatchWait {
			m.add(field+".Batch", "has a Size or a Wait, but no Handler")
		}
		return
	}
	if t.Batch.Size < 1 || t.Batch.Size > maxBatch {
		m.add(field+".Batch.Size", "is %d; use 1 to %d, or zero for the default of %d", t.Batch.Size, maxBatch, defaultBatchSize)
	}
	if t.Batch.Wait >= 0 {
		m.duration(field+".Batch.Wait", t.Batch.Wait)
	}
}

func (m *mistakes) deadLetter(field string, t Topic) {
	if t.DeadLetter != "" {
		switch err := checkTopicName(t.DeadLetter); {
		case isPattern(t.DeadLetter):
			m.add(field+".DeadLetter", "%q is a pattern; name one topic", t.DeadLetter)
		case err != nil:
			m.add(field+".DeadLetter", "%w", err)
		}
	}
	if h := t.DeadLetterHeaders; h < KgroupHeaders || h > ConnectHeaders {
		m.add(field+".DeadLetterHeaders", "%v is unknown; use KgroupHeaders, SpringHeaders or ConnectHeaders", h)
	}
}

func (m *mistakes) breaker(field string, b Breaker) {
	if b == (Breaker{}) || b.MinAttempts < 0 {
		return
	}
	if !(b.FailureRatio > 0 && b.FailureRatio <= 1) { // NaN, too
		m.add(field+".FailureRatio", "%v is not between 0 and 1; use zero for the default of %v", b.FailureRatio, defaultBreakerRatio)
	}
	if m.duration(field+".Window", b.Window) && b.Window < minBreakerWindow {
		m.add(field+".Window", "%v is less than %v", b.Window, minBreakerWindow)
	}
	m.duration(field+".Probe", b.Probe)
}

// circles finds topics whose dead letters come back to them. (They match no pattern.)
func (m *mistakes) circles(topics Topics) {
	for _, name := range slices.Sorted(maps.Keys(topics)) {
		at := topics[name].DeadLetter
		for range topics {
			if at == name && name != "" {
				m.add(topicField(name)+".DeadLetter", "%q leads back to %s: what cannot be handled would come back for ever", topics[name].DeadLetter, topicField(name))
				break
			}
			at = topics[at].DeadLetter
		}
	}
}

// isNil reports whether value, which is not nil itself, holds a nil.
func isNil(value any) bool {
	switch v := reflect.ValueOf(value); v.Kind() {
	case reflect.Pointer, reflect.Func, reflect.Map, reflect.Slice, reflect.Chan:
		return v.IsNil()
	default:
		return false
	}
}

// clientID is what sarama accepts; its own check speaks only of "ClientID is invalid".
var clientID = regexp.MustCompile(`\A[A-Za-z0-9._-]+\z`)

// settings checks the rest: everything that goes into a cluster.Config.
func (m *mistakes) settings(c Config) {
	if !clientID.MatchString(c.ClientID) {
		m.add("ClientID", "%q has characters that Kafka clients may not use; letters, digits, '.', '_' and '-' are fine", c.ClientID)
	}
	m.security(c)
	if c.Mode != Multiplex && c.Mode != Partitions {
		m.add("Mode", "%v is unknown; use Multiplex or Partitions", c.Mode)
	}
	if c.Start != Oldest && c.Start != Newest {
		m.add("Start", "%v is unknown; use Oldest or Newest", c.Start)
	}
	if c.Isolation != ReadCommitted && c.Isolation != ReadUncommitted {
		m.add("Isolation", "%v is unknown; use ReadCommitted or ReadUncommitted", c.Isolation)
	}
	if c.CommitInterval > 0 && c.CommitInterval != CommitEveryMessage {
		m.duration("CommitInterval", c.CommitInterval)
	}
	m.times(c)
}

// times checks the four timeouts, each alone and then against the others.
func (m *mistakes) times(c Config) {
	sessionOK := m.wireDuration("SessionTimeout", c.SessionTimeout)
	if sessionOK && c.SessionTimeout < minSession {
		sessionOK = false
		m.add("SessionTimeout", "%v leaves no time to drain in a rebalance; use at least %v (brokers themselves want 6s unless told otherwise)", c.SessionTimeout, minSession)
	}
	rebalanceOK := m.wireDuration("RebalanceTimeout", c.RebalanceTimeout)
	if least := c.heartbeatInterval() + fetchWait + drainMargin + minDrain; rebalanceOK && sessionOK && c.RebalanceTimeout < least {
		m.add("RebalanceTimeout", "%v leaves no time to drain in a rebalance; with this SessionTimeout use at least %v", c.RebalanceTimeout, least)
	}
	if m.duration("ShutdownTimeout", c.ShutdownTimeout) && c.ShutdownTimeout < minShutdown {
		m.add("ShutdownTimeout", "%v leaves no time for the last commit and for leaving the group; use at least %v", c.ShutdownTimeout, minShutdown)
	}
	if m.duration("ConnectTimeout", c.ConnectTimeout) && sessionOK && c.ConnectTimeout >= c.SessionTimeout {
		m.add("ConnectTimeout", "%v is not less than SessionTimeout, %v: one dead address would cost the membership; use half of that or less", c.ConnectTimeout, c.SessionTimeout)
	}
}

// duration checks a time that must be positive, and reports whether it is.
func (m *mistakes) duration(field string, d time.Duration) bool {
	switch {
	case d < 0:
		m.add(field, "%v is negative; use zero for the default", d)
	case d < time.Millisecond:
		m.add(field, "%v is less than a millisecond; a bare number counts nanoseconds, so multiply it by time.Second or time.Millisecond", d)
	default:
		return true
	}
	return false
}

// wireDuration checks a time that Kafka's protocol carries as an int32 of milliseconds.
func (m *mistakes) wireDuration(field string, d time.Duration) bool {
	switch {
	case !m.duration(field, d):
	case d%time.Millisecond != 0:
		m.add(field, "%v has a fraction of a millisecond, which Kafka's protocol cannot carry; round it", d)
	case d.Milliseconds() > math.MaxInt32:
		m.add(field, "%v is more than Kafka's protocol can carry; use at most %v", d, math.MaxInt32*time.Millisecond)
	default:
		return true
	}
	return false
}
