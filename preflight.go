package kgroup

// What is asked of the cluster before the group is joined: everything that a person
// would have to mend is found here, and ends Run at once.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Shopify/sarama"
)

// preflight asks every configured broker what it speaks, and one of them whether
// the topics exist.
func (g *group) preflight(ctx context.Context) error {
	type probe struct {
		addr   string
		broker *sarama.Broker
		apis   apis
		err    error
	}
	probes := make([]probe, len(g.config.Brokers))
	var wg sync.WaitGroup
	for i, addr := range g.config.Brokers {
		wg.Go(func() {
			broker, apis, err := g.probe(addr)
			probes[i] = probe{addr, broker, apis, err}
		})
	}
	wg.Wait()
	defer func() {
		for _, p := range probes {
			if p.broker != nil {
				_ = p.broker.Close()
			}
		}
	}()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var reached []*sarama.Broker
	var failures []error
	var releases []string
	for _, p := range probes {
		if p.err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", p.addr, p.err))
			continue
		}
		if err := p.apis.check(); err != nil {
			return fmt.Errorf("kgroup: broker %s: %w", p.addr, err)
		}
		reached = append(reached, p.broker)
		releases = append(releases, fmt.Sprintf("%s: %s", p.addr, p.apis.release()))
	}
	if len(reached) == 0 {
		return fmt.Errorf("kgroup: no broker can be reached (are the addresses right, is the cluster up, does it expect TLS or SASL?): %w", errors.Join(failures...))
	}
	for _, err := range failures {
		g.session.Error(fmt.Errorf("at the start: broker %w", err))
	}
	if err := g.checkTopics(reached); err != nil {
		return err
	}
	g.warnOfPatterns(reached)
	g.log.Info("consumer starts",
		"brokers", releases, "topics", g.topics.names(), "patterns", fmt.Sprint(g.topics.patterns), "mode", g.config.Mode.String(),
		"without_offset", g.config.Start.String(), "isolation", g.config.Isolation.String(), "commit_interval", g.config.CommitInterval,
		"session_timeout", g.cluster.Group.Session.Timeout, "heartbeat_interval", g.cluster.Group.Heartbeat.Interval,
		"drain_timeout", g.config.tunedDrain(g.cluster), "shutdown_timeout", g.config.ShutdownTimeout)
	return nil
}

// probe connects to one broker and asks for its protocol versions.
func (g *group) probe(addr string) (*sarama.Broker, apis, error) {
	broker := sarama.NewBroker(addr)
	if err := broker.Open(g.dataConfig); err != nil {
		return nil, nil, err
	}
	if _, err := broker.Connected(); err != nil {
		return nil, nil, err
	}
	answer, err := broker.ApiVersions(&sarama.ApiVersionsRequest{})
	if err != nil {
		_ = broker.Close()
		return nil, nil, fmt.Errorf("ask for its protocol versions: %w (is this a Kafka listener without TLS and SASL?)", err)
	}
	found := apis{}
	for _, key := range answer.ApiKeys {
		found[key.ApiKey] = versions{key.MinVersion, key.MaxVersion}
	}
	return broker, found, nil
}

// describe asks for topics, one broker after the other until one answers; for all
// topics if none are named.
func (g *group) describe(brokers []*sarama.Broker, topics ...string) ([]*sarama.TopicMetadata, error) {
	var errs []error
	for _, broker := range brokers {
		answer, err := broker.GetMetadata(&sarama.MetadataRequest{Version: 5, Topics: topics})
		if err == nil {
			return answer.Topics, nil
		}
		errs = append(errs, fmt.Errorf("kgroup: ask %s for the topics: %w", broker.Addr(), err))
	}
	return nil, errors.Join(errs...)
}

// checkTopics names the topics that do not exist, and what they may be meant for.
func (g *group) checkTopics(brokers []*sarama.Broker) error {
	names := g.topics.names()
	if len(names) == 0 {
		return nil // only patterns: there is nothing that has to exist
	}
	topics, err := g.describe(brokers, names...)
	if err != nil {
		return err
	}
	var errs []error
	for _, topic := range topics {
		switch topic.Err {
		case sarama.ErrNoError, sarama.ErrLeaderNotAvailable:
		case sarama.ErrUnknownTopicOrPartition:
			errs = append(errs, g.unknownTopic(brokers, topic.Name))
		default:
			errs = append(errs, fmt.Errorf("kgroup: topic %q: %w", topic.Name, topic.Err))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// warnOfPatterns names the patterns that match nothing yet. They wait for a topic; but
// they may be misspelt, and nothing else would ever say so.
func (g *group) warnOfPatterns(brokers []*sarama.Broker) {
	if len(g.topics.patterns) == 0 {
		return
	}
	topics, err := g.describe(brokers)
	if err != nil {
		return // the engine is about to ask the same
	}
	var existing []string
	for _, topic := range topics {
		existing = append(existing, topic.Name)
	}
	for _, pattern := range g.topics.unmatched(existing) {
		g.log.Warn("no topic matches the pattern yet", "pattern", pattern)
	}
}

func (g *group) unknownTopic(brokers []*sarama.Broker, name string) error {
	all, err := g.describe(brokers)
	if err != nil {
		return fmt.Errorf("kgroup: topic %q does not exist", name)
	}
	var existing []string
	for _, topic := range all {
		existing = append(existing, topic.Name)
	}
	if near, ok := nearest(name, existing); ok {
		return fmt.Errorf("kgroup: topic %q does not exist; did you mean %q?", name, near)
	}
	return fmt.Errorf("kgroup: topic %q does not exist, nor one with a similar name", name)
}

// findCoordinator finds the group's coordinator and connects to it. A cluster whose
// first group this is makes its offsets topic now, which takes a moment.
func (g *group) findCoordinator(ctx context.Context) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := g.inner.RefreshCoordinator(g.name)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			return g.checkCoordinator()
		case !errors.Is(err, sarama.ErrConsumerCoordinatorNotAvailable):
			return fmt.Errorf("kgroup: find the coordinator of group %q: %w", g.name, err)
		}
		g.session.Error(fmt.Errorf("find the coordinator of group %q: %w", g.name, err))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// checkCoordinator connects to the coordinator at the address that the cluster
// advertises, which need not be one of Config.Brokers.
func (g *group) checkCoordinator() error {
	known, err := g.inner.Coordinator(g.name)
	if err != nil {
		return fmt.Errorf("kgroup: find the coordinator of group %q: %w", g.name, err)
	}
	broker, apis, err := g.probe(known.Addr())
	if err != nil {
		return fmt.Errorf("kgroup: the coordinator of group %q, broker %d, advertises %s, which cannot be reached (check its advertised.listeners): %w", g.name, known.ID(), known.Addr(), err)
	}
	defer func() { _ = broker.Close() }()
	if err := apis.check(); err != nil {
		return fmt.Errorf("kgroup: broker %s: %w", known.Addr(), err)
	}
	return nil
}

// apis are the protocol versions a broker speaks, by request key.
type apis map[int16]versions

type versions struct{ oldest, newest int16 }

const (
	apiFetch     = 1
	apiJoinGroup = 11
)

// check refuses brokers that the engine cannot speak to. It would try for ever, in
// silence (D26).
func (a apis) check() error {
	if a[apiFetch].newest < 10 {
		return fmt.Errorf("it is older than Kafka 2.1 (%s)", a.release())
	}
	if oldest := a[apiJoinGroup].oldest; oldest > 0 {
		return fmt.Errorf("it refuses the first version of JoinGroup (%s): Kafka 4.0.0 is the only release that does; 4.0.1 and later are fine", a.release())
	}
	return nil
}

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
