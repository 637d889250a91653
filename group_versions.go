package kgroup

// Which versions of Kafka's requests are spoken with a cluster. They are found by
// asking its brokers (preflight.go), not configured: a request in a version that a
// broker does not serve is answered with a closed connection, and the engine would
// try for ever, in silence (D26).

import (
	"fmt"
	"slices"
	"time"

	"github.com/Shopify/sarama"

	"github.com/kgroup-go/kgroup/internal/wire"
)

// spoken is what every broker of a cluster understands.
type spoken struct {
	version sarama.KafkaVersion // sarama's setting, from which the versions of its requests follow
	join    int16               // version of JoinGroup on the group connection; 0: as sarama-cluster writes it
}

// A level is a setting of sarama's and the newest Fetch and Metadata that it then
// sends. All other requests of the engine have one version.
type level struct {
	version         sarama.KafkaVersion
	fetch, metadata int16
}

// levels begins with the best. Above 2.1 there is D19 and D20.
var levels = []level{
	{sarama.V2_1_0_0, 10, 5},
	{sarama.V1_1_0_0, 7, 5},
	{sarama.V1_0_0_0, 4, 5},
	{sarama.V0_11_0_0, 4, 1},
}

// An apiVersion is one version of one kind of request, by Kafka's key.
type apiVersion struct {
	name         string
	key, version int16
}

const (
	apiFetch     = 1
	apiMetadata  = 3
	apiJoinGroup = 11
)

// requests are those that are sent.
func (s spoken) requests() []apiVersion {
	l := levels[slices.IndexFunc(levels, func(l level) bool { return s.version.IsAtLeast(l.version) })]
	return []apiVersion{
		{"Fetch", apiFetch, l.fetch},
		{"ListOffsets", 2, 1},
		{"Metadata", apiMetadata, l.metadata},
		{"OffsetCommit", 8, 2},
		{"OffsetFetch", 9, 1},
		{"FindCoordinator", 10, 0},
		{"JoinGroup", apiJoinGroup, s.join},
		{"Heartbeat", 12, 0},
		{"LeaveGroup", 13, 0},
		{"SyncGroup", 14, 0},
	}
}

// carriesRebalanceTimeout reports whether JoinGroup says how long the group is to
// wait for this member. Otherwise brokers take the session timeout for it (D15).
func (s spoken) carriesRebalanceTimeout() bool { return s.join >= 1 }

// agree finds what all of the brokers understand, and no newer than most. It is an
// error if that is nothing, which names one that is to blame.
func agree(brokers []probe, most sarama.KafkaVersion) (spoken, error) {
	newest := func(key int16) int16 {
		least := slices.MinFunc(brokers, func(a, b probe) int { return int(a.apis[key].newest) - int(b.apis[key].newest) })
		return least.apis[key].newest
	}
	best := levels[len(levels)-1]
	for _, l := range slices.Backward(levels) {
		if newest(apiFetch) >= l.fetch && newest(apiMetadata) >= l.metadata {
			best = l
		}
	}
	s := spoken{version: best.version, join: newest(apiJoinGroup)}
	if !most.IsAtLeast(s.version) {
		s.version = most
	}
	switch {
	case s.join >= 4:
		s.join = 4 // what later ones can do the engine has no use for
	case s.join == 3:
		s.join = 2 // the same
	}
	for _, b := range brokers {
		if err := s.check(b.apis); err != nil {
			return s, fmt.Errorf("kgroup: broker %s: %w", b.addr, err)
		}
	}
	return s, nil
}

// check returns why a broker with these versions cannot be spoken to.
func (s spoken) check(a apis) error {
	if fetch, serves := a[apiFetch]; serves && fetch.newest < 4 {
		return fmt.Errorf("it is older than Kafka 0.11, the oldest that kgroup speaks to (Fetch up to version %d)", fetch.newest)
	}
	for _, r := range s.requests() {
		served, serves := a[r.key]
		switch {
		case !serves:
			return fmt.Errorf("it does not serve %s at all: is this a port for consumers?", r.name)
		case served.newest < r.version:
			return fmt.Errorf("it serves %s up to version %d (%s), and %d is needed", r.name, served.newest, a.release(), r.version)
		case served.oldest > r.version:
			return fmt.Errorf("it serves %s from version %d on (%s), and %d is the newest that kgroup speaks with the other brokers, or at all: use a newer kgroup", r.name, served.oldest, a.release(), r.version)
		}
	}
	return nil
}

// speak settles what is spoken from now on. Connections that exist are not concerned.
func (g *group) speak(s spoken) {
	g.spoken = s
	g.cluster.Version = s.version
	g.cluster.Net.Proxy.Enable, g.cluster.Net.Proxy.Dialer = true, g.network.Data()
	data, group := g.cluster.Config, g.cluster.Config
	group.Net.Proxy.Dialer = groupDialer{g}
	g.dataConfig, g.groupConfig = &data, &group
}

// limits are those of a group connection.
func (g *group) limits() wire.Limits {
	l := wire.Limits{
		Join:             g.config.SessionTimeout + joinMargin,
		Other:            min(10*time.Second, g.config.SessionTimeout/3),
		JoinVersion:      g.spoken.join,
		RebalanceTimeout: g.config.RebalanceTimeout,
	}
	if g.spoken.carriesRebalanceTimeout() {
		l.Join = max(g.config.RebalanceTimeout, othersTimeout) + joinMargin
	}
	if g.kerberos {
		l.ExchangeUntil = g.cluster.ClientID
	}
	return l
}

// drainTimeout is what a rebalance's drain may take.
func (g *group) drainTimeout() time.Duration {
	return g.config.tunedDrain(g.cluster, g.spoken.carriesRebalanceTimeout())
}

// apis are the protocol versions a broker speaks, by request key.
type apis map[int16]versions

type versions struct{ oldest, newest int16 }

// releases tells Kafka's releases by the newest Fetch they speak.
var releases = []struct {
	fetch int16
	name  string
}{
	{18, "4.1 or later"}, {17, "3.9 or 4.0"}, {16, "3.7 or 3.8"}, {15, "3.5 or 3.6"}, {13, "3.1 to 3.4"},
	{12, "2.7 to 3.0"}, {11, "2.3 to 2.6"}, {10, "2.1 or 2.2"}, {8, "2.0"}, {7, "1.1"}, {6, "1.0"}, {5, "0.11"},
}

func (a apis) release() string {
	for _, r := range releases {
		if a[apiFetch].newest >= r.fetch {
			return "Kafka " + r.name
		}
	}
	return "a Kafka before 0.11"
}
