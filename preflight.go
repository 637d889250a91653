package kgroup

// What is asked of the cluster before the group is joined: everything that a person
// would have to mend is found here, and ends Run at once.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Shopify/sarama"

	"github.com/kgroup-go/kgroup/internal/wire"
)

// A probe is what one broker has said.
type probe struct {
	addr   string
	broker *sarama.Broker // open, if err is nil
	apis   apis
	err    error
}

// failure is p.err with the broker's address, which a failed connection names itself.
func (p probe) failure() error {
	if errors.As(p.err, new(*wire.ConnectError)) {
		return p.err
	}
	return fmt.Errorf("%s: %w", p.addr, p.err)
}

// preflight asks the brokers what they speak, those of Config.Brokers first and then
// all others of the cluster, and one of them whether the topics exist.
func (g *group) preflight(ctx context.Context) error {
	var probes []probe
	defer func() {
		for _, p := range probes {
			if p.err == nil {
				_ = p.broker.Close()
			}
		}
	}()
	probes = g.probes(g.config.Brokers)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	reached, failures := sortProbes(probes)
	if len(reached) == 0 {
		return fmt.Errorf("kgroup: no broker can be reached (are the addresses right, is the cluster up, does it expect what Config.TLS and Config.Auth say?): %w", errors.Join(failures...))
	}
	if _, err := agree(reached, g.cluster.Version); err != nil {
		return err // before anything else is asked of them
	}
	names := slices.Concat(g.topics.names(), slices.Sorted(maps.Keys(g.topics.letters)))
	if len(names) == 0 {
		names = []string{"__consumer_offsets"} // none at all would mean all of them
	}
	cluster, err := g.describe(reached, names...)
	if err != nil {
		return err
	}
	probes = append(probes, g.probes(g.others(cluster))...)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	reached, failures = sortProbes(probes)
	s, err := agree(reached, g.cluster.Version)
	if err != nil {
		return err
	}
	for _, err := range failures {
		g.session.Error(fmt.Errorf("at the start: %w", err))
	}
	if err := g.checkTopics(reached, cluster.Topics); err != nil {
		return err
	}
	g.warnOfPatterns(reached)
	var releases []string
	for _, p := range reached {
		g.asked[p.addr] = p.apis
		releases = append(releases, fmt.Sprintf("%s: %s", p.addr, p.apis.release()))
	}
	g.speak(s)
	g.log.Info("consumer starts",
		"brokers", releases, "protocol", s.version.String(), "join_group", s.join,
		"topics", g.topics.names(), "patterns", fmt.Sprint(g.topics.patterns), "mode", g.config.Mode.String(),
		"without_offset", g.config.Start.String(), "isolation", g.config.Isolation.String(), "commit_interval", g.config.CommitInterval,
		"session_timeout", g.cluster.Group.Session.Timeout, "heartbeat_interval", g.cluster.Group.Heartbeat.Interval,
		"drain_timeout", g.drainTimeout(), "shutdown_timeout", g.config.ShutdownTimeout)
	return nil
}

// probes asks several brokers at the same time.
func (g *group) probes(addrs []string) []probe {
	probes := make([]probe, len(addrs))
	var wg sync.WaitGroup
	for i, addr := range addrs {
		wg.Go(func() {
			broker, apis, err := g.probe(addr)
			probes[i] = probe{addr, broker, apis, err}
		})
	}
	wg.Wait()
	return probes
}

func sortProbes(probes []probe) (reached []probe, failures []error) {
	for _, p := range probes {
		if p.err != nil {
			failures = append(failures, p.failure())
		} else {
			reached = append(reached, p)
		}
	}
	return reached, failures
}

// others are the addresses that the cluster advertises beside Config.Brokers.
func (g *group) others(cluster *sarama.MetadataResponse) []string {
	var addrs []string
	for _, broker := range cluster.Brokers {
		if !slices.Contains(g.config.Brokers, broker.Addr()) {
			addrs = append(addrs, broker.Addr())
		}
	}
	return addrs
}

// probe connects to one broker and asks for its protocol versions.
func (g *group) probe(addr string) (*sarama.Broker, apis, error) {
	broker := sarama.NewBroker(addr)
	if err := broker.Open(g.dataConfig); err != nil {
		return nil, nil, err
	}
	if _, err := broker.Connected(); err != nil {
		return nil, nil, g.unauthenticated(err)
	}
	answer, err := broker.ApiVersions(&sarama.ApiVersionsRequest{})
	if err != nil {
		_ = broker.Close()
		return nil, nil, fmt.Errorf("ask for its protocol versions: %w", g.unauthenticated(err))
	}
	found := apis{}
	for _, key := range answer.ApiKeys {
		found[key.ApiKey] = versions{key.MinVersion, key.MaxVersion}
	}
	return broker, found, nil
}

// unauthenticated says more about a failure while sarama itself authenticates. That
// says little, and what a broker does not like about the last token shows as the end of
// the connection.
func (g *group) unauthenticated(err error) error {
	switch {
	case !g.kerberos || errors.As(err, new(*wire.ConnectError)):
		return err
	case wire.IsHangUp(err):
		return fmt.Errorf("authenticate with Kerberos: %w (the broker closed the connection: its log says why)", err)
	default:
		return fmt.Errorf("authenticate with Kerberos: %w", err)
	}
}

// describe asks for the brokers and for topics, one broker after the other until one
// answers; for all topics if none are named.
func (g *group) describe(reached []probe, topics ...string) (*sarama.MetadataResponse, error) {
	var errs []error
	for _, p := range reached {
		// Version 4 is the first that can be told not to make the topics, and Kafka 0.11's.
		answer, err := p.broker.GetMetadata(&sarama.MetadataRequest{Version: 4, Topics: topics})
		if err == nil {
			return answer, nil
		}
		errs = append(errs, fmt.Errorf("kgroup: ask %s for the topics: %w", p.addr, g.advise(err)))
	}
	return nil, errors.Join(errs...)
}

// advise adds what to check to an answer that is no help by itself.
func (g *group) advise(err error) error {
	switch {
	case errors.Is(err, sarama.ErrTopicAuthorizationFailed):
		return fmt.Errorf("%w (the ACLs must allow this user to describe and read the topic)", err)
	case errors.Is(err, sarama.ErrGroupAuthorizationFailed):
		return fmt.Errorf("%w (the ACLs must allow this user to read the group)", err)
	case errors.Is(err, io.EOF) && g.config.Auth == nil && !g.kerberos:
		return fmt.Errorf("%w (the broker closed the connection: does this listener expect SASL? see Config.Auth)", err)
	}
	return err
}

// checkTopics names the topics that do not exist, and what they may be meant for.
func (g *group) checkTopics(reached []probe, topics []*sarama.TopicMetadata) error {
	if len(g.topics.names())+len(g.topics.letters) == 0 {
		return nil // only patterns: there is nothing that has to exist
	}
	var errs []error
	for _, topic := range topics {
		what := "topic"
		if g.topics.letters[topic.Name] {
			what = "dead-letter topic"
		}
		switch topic.Err {
		case sarama.ErrNoError, sarama.ErrLeaderNotAvailable:
		case sarama.ErrUnknownTopicOrPartition:
			errs = append(errs, g.unknownTopic(reached, what, topic.Name))
		default:
			errs = append(errs, fmt.Errorf("kgroup: %s %q: %w", what, topic.Name, g.advise(topic.Err)))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// warnOfPatterns names the patterns that match nothing yet. They wait for a topic; but
// they may be misspelt, and nothing else would ever say so.
func (g *group) warnOfPatterns(reached []probe) {
	if len(g.topics.patterns) == 0 {
		return
	}
	all, err := g.describe(reached)
	if err != nil {
		return // the engine is about to ask the same
	}
	for _, pattern := range g.topics.unmatched(namesOf(all)) {
		g.log.Warn("no topic matches the pattern yet", "pattern", pattern)
	}
}

func namesOf(cluster *sarama.MetadataResponse) []string {
	var names []string
	for _, topic := range cluster.Topics {
		names = append(names, topic.Name)
	}
	return names
}

func (g *group) unknownTopic(reached []probe, what, name string) error {
	all, err := g.describe(reached)
	if err != nil {
		return fmt.Errorf("kgroup: %s %q does not exist", what, name)
	}
	if near, ok := nearest(name, namesOf(all)); ok {
		return fmt.Errorf("kgroup: %s %q does not exist; did you mean %q?", what, name, near)
	}
	return fmt.Errorf("kgroup: %s %q does not exist, nor one with a similar name", what, name)
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
			return fmt.Errorf("kgroup: find the coordinator of group %q: %w", g.name, g.advise(err))
		}
		g.session.Error(fmt.Errorf("find the coordinator of group %q: %w", g.name, err))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// checkCoordinator checks that the coordinator can be reached at the address that the
// cluster advertises, which need not be one of Config.Brokers.
func (g *group) checkCoordinator() error {
	known, err := g.knownCoordinator()
	if err != nil {
		return fmt.Errorf("kgroup: find the coordinator of group %q: %w", g.name, err)
	}
	if err := g.meet(known.Addr()); err != nil {
		return fmt.Errorf("kgroup: the coordinator of group %q, broker %d, advertises %s, which cannot be reached (check its advertised.listeners): %w", g.name, known.ID(), known.Addr(), err)
	}
	if err := g.spoken.check(g.asked[known.Addr()]); err != nil {
		return fmt.Errorf("kgroup: broker %s: %w", known.Addr(), err)
	}
	return nil
}

// meet asks a broker what it speaks, once.
func (g *group) meet(addr string) error {
	if g.asked[addr] != nil {
		return nil
	}
	broker, apis, err := g.probe(addr)
	if err != nil {
		return err
	}
	g.asked[addr] = apis
	_ = broker.Close() // it has nothing more to say
	return nil
}

// mindBrokers asks those brokers what they speak that have come since the start, or
// could not be reached then. What is spoken stays, so one that does not understand
// it is reported for as long as it is there: the engine would only say EOF.
func (g *group) mindBrokers(ctx context.Context) {
	ticker := time.NewTicker(g.cluster.Metadata.RefreshFrequency)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		for _, broker := range g.inner.Brokers() {
			addr := broker.Addr()
			if g.meet(addr) != nil {
				continue // whoever needs it reports that
			}
			if err := g.spoken.check(g.asked[addr]); err != nil && ctx.Err() == nil {
				g.session.Error(fmt.Errorf("broker %s does not understand what was agreed on at the start; restart this member to speak what all brokers do: %w", addr, err))
			}
		}
	}
}
