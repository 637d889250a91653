package e2e

// Members say who they are, again when they are asked to, and go on when what they
// present changes.

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/e2e/certs"
	"github.com/kgroup-go/kgroup/e2e/faults"
	"github.com/kgroup-go/kgroup/e2e/kafka"
)

// Members of one identity consume, rebalance and shut down. That the topic is theirs
// alone proves that it is this identity which the brokers see.
func identified(id identity) func(*env) {
	return func(e *env) {
		topic := e.topic(4)
		if id != byNothing {
			e.restrict(topic, id)
		}
		a := e.start("a", on(topic, quick), e.as(id))
		load := e.load(topic, 100)
		a.handles(20)
		b := e.start("b", on(topic, quick), e.as(id))
		b.owns(2)
		b.handles(20)
		a.stop()
		b.owns(4)
		b.handles(20)
		load.stop(100)
		e.awaitCommitted()
	}
}

// Every 5 s each connection must be authenticated again, with every mechanism. Nobody
// notices: there is no error, no rebalance, and no message is late.
func sessionsEnd(e *env) {
	const late = 250 * time.Millisecond
	lasts := 3 * sessionLifetime
	if e.full {
		lasts = time.Minute
	}
	topic := e.topic(8)
	var reports reports
	var kgroups lateness
	var dials atomic.Int64
	counted := func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	names := []string{"plain", "scram256", "scram512", "token"}
	var members []*member
	for i, id := range []identity{byPlain, byScram256, byScram512, byToken} {
		members = append(members, e.start(names[i], on(topic, func(_ context.Context, msg kgroup.Message) error {
			kgroups.of(msg.Timestamp)
			return nil
		}), longSession, e.as(id.at(kafka.Reauth)), reports.watch, func(c *kgroup.Config) { c.Dial = counted }))
	}
	e.awaitMembers(names...)
	others := e.independent(topic)
	load := e.load(topic, 100)
	for _, m := range members {
		m.owns(2)
		m.handles(20)
	}
	// A machine that stands still for a moment makes messages late, as the other consumer
	// shows, and authentications too. What went wrong meanwhile says nothing: once more.
	const calm, tries = late / 2, 5
	for try := 1; ; try++ {
		kgroups.reset()
		others.reset()
		reported, dialed, before := len(reports.all()), dials.Load(), rebalances(members)

		require.NoError(e.t, work(e.ctx, lasts))

		errs, dialed, after := reports.all()[reported:], dials.Load()-dialed, rebalances(members)
		e.t.Logf("the latest message came after %v, that of the other consumer after %v; %d connections were made", kgroups.worst(), others.worst(), dialed)
		well := len(errs) == 0 && slices.Equal(before, after) && kgroups.worst() <= late
		if !well && others.worst() > calm && try < tries {
			continue
		}
		assert.Empty(e.t, errs)
		assert.Equal(e.t, before, after, "rebalances of each member")
		assert.LessOrEqual(e.t, kgroups.worst(), late, "how late a message was")
		// Each member has a data and a group connection at least.
		assert.GreaterOrEqual(e.t, dialed, int64(len(members))*2*int64(lasts/sessionLifetime-1), "connections made anew")
		break
	}
	load.stop(100)
	e.awaitCommitted()
}

func rebalances(members []*member) (each []int64) {
	for _, m := range members {
		each = append(each, m.rebalances.Load())
	}
	return each
}

// lateness is how late messages have come.
type lateness struct{ most atomic.Int64 }

func (l *lateness) of(produced time.Time) {
	late := int64(time.Since(produced))
	for {
		most := l.most.Load()
		if late <= most || l.most.CompareAndSwap(most, late) {
			return
		}
	}
}

func (l *lateness) reset()               { l.most.Store(0) }
func (l *lateness) worst() time.Duration { return time.Duration(l.most.Load()) }

// independent is how late another consumer, on the plaintext listener, gets the
// messages of a topic.
func (e *env) independent(topic string) *lateness {
	e.t.Helper()
	from := map[int32]kgo.Offset{}
	for p := range e.partitions[topic] {
		from[p] = kgo.NewOffset().AtEnd()
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(e.brokers.Addrs()...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}))
	require.NoError(e.t, err)
	var l lateness
	done := make(chan struct{})
	e.t.Cleanup(func() { cl.Close(); <-done })
	go func() {
		defer close(done)
		for {
			fetches := cl.PollFetches(e.ctx)
			if fetches.IsClientClosed() || e.ctx.Err() != nil {
				return
			}
			fetches.EachRecord(func(r *kgo.Record) { l.of(r.Timestamp) })
		}
	}()
	return &l
}

// Mistakes, and how real brokers answer them.
func mistakesOnRealBrokers(e *env) {
	topic := e.topic(1)
	forbidden := e.topic(1)
	e.restrict(forbidden, identity{principal: "User:nobody"})
	require.NoError(e.t, e.admin.RestrictGroup(e.ctx, e.group+"-forbidden", "User:nobody"))
	stranger := authority(e.t)
	wrong := func(auth kgroup.Auth) func(*kgroup.Config) {
		return e.as(identity{listener: kafka.SASLSSL, auth: auth})
	}
	certificate := func(files kgroup.TLSFiles) func(*kgroup.Config) {
		config, err := kgroup.LoadTLS(files)
		require.NoError(e.t, err)
		return func(c *kgroup.Config) { c.Brokers, c.TLS = e.secured().ListenerAddrs(kafka.MTLS), config }
	}
	unsigned := e.clientFiles(e.t.TempDir(), "unused") // the brokers' CA with another's certificate
	theirs := writeFiles(e.t, e.t.TempDir(), stranger, issue(e.t, stranger, certs.Template{Name: "billing"}))
	unsigned.Cert, unsigned.Key = theirs.Cert, theirs.Key

	for _, m := range []mistake{
		{"wrong password, PLAIN", wrong(kgroup.Plain(saslUser, "wrong-secret")), "PLAIN.*" + refused + ".*credentials", 0},
		{"wrong password, SCRAM-SHA-256", wrong(kgroup.Scram(crypto.SHA256, saslUser, "wrong-secret")), "SCRAM-SHA-256.*" + refused + ".*credentials", 0},
		{"wrong password, SCRAM-SHA-512", wrong(kgroup.Scram(crypto.SHA512, saslUser, "wrong-secret")), "SCRAM-SHA-512.*" + refused + ".*credentials", 0},
		{"unknown user", wrong(kgroup.Scram(crypto.SHA512, "bob", "wrong-secret")), "SCRAM-SHA-512.*" + refused + ".*credentials", 0},
		{"mechanism that is not offered", e.as(byScram512.at(plainOnly)), "not offer SCRAM-SHA-512, only PLAIN", 0},
		{"SASL where there is none", e.as(identity{listener: kafka.SSL, auth: byPlain.auth}), "SASL", 0},
		{"no SASL where there is", e.as(identity{listener: kafka.SASLSSL}), "SASL", 0},
		{"no SASL where there is, without TLS", e.as(identity{listener: kafka.SASLPlaintext}), "SASL", 0},
		{"a topic that is not for us", func(c *kgroup.Config) {
			e.as(byScram512)(c)
			c.Topics = on(forbidden, quick)
		}, forbidden + ".*authoriz.*(ACL|right)", 0},
		{"a group that is not for us", func(c *kgroup.Config) {
			e.as(byScram512)(c)
			c.Group += "-forbidden"
		}, e.group + "-forbidden.*authoriz.*(ACL|right)", 0},
		{"another CA", certificate(theirs), "unknown authority.*CA", 0},
		{"no client certificate", certificate(kgroup.TLSFiles{CA: unsigned.CA}), "client certificate", 0},
		{"a client certificate of another CA", certificate(unsigned), "client certificate", 0},
		{"plaintext to a TLS port", func(c *kgroup.Config) { c.Brokers = e.secured().ListenerAddrs(kafka.SSL) }, "TLS", 0},
		{"TLS to a plaintext port", func(c *kgroup.Config) {
			e.as(byNothing)(c)
			c.Brokers = e.brokers.Addrs()
		}, "plaintext", 0},
	} {
		e.t.Run(m.name, func(t *testing.T) {
			m.check(t, kgroup.Config{Brokers: e.brokers.Addrs(), Group: e.group, Topics: on(topic, quick)})
		})
	}
	e.produce(topic, 20) // none of it has stayed
	e.start("a", on(topic, quick), e.as(byScram512))
	e.awaitCommitted()
}

// The files of the client certificate are replaced while a member runs. Connections
// that are made afterwards present the new one: after a rolling restart of the brokers
// all do, and the topic is for the new one only.
func certificateReplaced(e *env) {
	topic := e.topic(4)
	first, second := identity{principal: "User:CN=first"}, identity{principal: "User:CN=second"}
	require.NoError(e.t, e.admin.RestrictTopic(e.ctx, topic, first.principal, second.principal))
	dir := e.t.TempDir()
	config, err := kgroup.LoadTLS(e.clientFiles(dir, "first"))
	require.NoError(e.t, err)
	var reports reports
	a := e.start("a", on(topic, quick), longSession, reports.watch, func(c *kgroup.Config) {
		c.Brokers, c.TLS = e.secured().ListenerAddrs(kafka.MTLS), config
	})
	load := e.load(topic, 100)
	a.handles(20)

	e.clientFiles(dir, "second")
	for node := range int32(3) {
		e.terminate(node + 1)
		e.revive(node + 1)
	}
	a.handles(20)
	e.restrict(topic, second)
	reported := len(reports.all())
	a.handles(100)
	a.owns(4)
	assert.Empty(e.t, reports.all()[reported:])
	load.stop(100)
	e.awaitCommitted()
}

// A password is changed on the brokers before the member knows the new one. What it
// still has is refused, which is reported; when it has the new one it goes on.
func passwordChanges(e *env) {
	user := e.group
	require.NoError(e.t, e.secured().SetPassword(e.ctx, user, "first-secret"))
	var current atomic.Value
	current.Store("first-secret")
	id := identity{listener: kafka.SASLPlaintext, auth: kgroup.ScramFunc(crypto.SHA512, func(context.Context) (string, string, error) {
		return user, current.Load().(string), nil
	})}
	credentialsChange(e, id, func(f *front, reports *reports) {
		require.NoError(e.t, e.secured().SetPassword(e.ctx, user, "second-secret"))
		reported := len(reports.all())
		f.become(faults.Relay)
		reports.await(e, reported, refused)
		current.Store("second-secret")
	})
}

// refused is in what is reported of credentials that brokers do not take.
const refused = "SASL_AUTHENTICATION_FAILED"

// A user is removed, and made again with the same password.
func userRemoved(e *env) {
	user := e.group
	require.NoError(e.t, e.secured().SetPassword(e.ctx, user, "only-secret"))
	id := identity{listener: kafka.SASLPlaintext, auth: kgroup.Scram(crypto.SHA256, user, "only-secret")}
	credentialsChange(e, id, func(f *front, reports *reports) {
		require.NoError(e.t, e.secured().RemoveUser(e.ctx, user))
		reported := len(reports.all())
		f.become(faults.Relay)
		reports.await(e, reported, refused)
		require.NoError(e.t, e.secured().SetPassword(e.ctx, user, "only-secret"))
	})
}

// What gives the tokens fails, gives old ones, gives none, and works again.
func tokenSourceFails(e *env) {
	e.t.Run("at the start", func(t *testing.T) {
		old := mistake{"an expired token", e.as(identity{listener: kafka.SASLSSL, auth: kgroup.OAuthBearer(func(context.Context) (string, map[string]string, error) {
			return kafka.UnsecuredToken(saslUser, -time.Minute), nil, nil
		})}), "OAUTHBEARER.*(refuse|" + refused + ")", 0}
		old.check(t, kgroup.Config{Group: e.group, Topics: on("any", quick)})
	})
	type source func(ctx context.Context) (string, error)
	valid := source(func(context.Context) (string, error) { return kafka.UnsecuredToken(saslUser, time.Minute), nil })
	var current atomic.Value
	current.Store(valid)
	id := identity{listener: kafka.SASLPlaintext, auth: kgroup.OAuthBearer(func(ctx context.Context) (string, map[string]string, error) {
		token, err := current.Load().(source)(ctx)
		return token, nil, err
	})}
	credentialsChange(e, id, func(f *front, reports *reports) {
		for want, bad := range map[string]source{
			"the issuer is down": func(context.Context) (string, error) { return "", errors.New("the issuer is down") },
			"deadline":           func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() },
			"the token is empty": func(context.Context) (string, error) { return "", nil },
			refused:              func(context.Context) (string, error) { return kafka.UnsecuredToken(saslUser, -time.Minute), nil },
		} {
			current.Store(bad)
			reported := len(reports.all())
			f.become(faults.Relay)
			reports.await(e, reported, want)
		}
		current.Store(valid)
	})
}

// credentialsChange runs a member while something happens to what it presents. Its
// connections go through a front, which can break them. No secret is reported.
func credentialsChange(e *env, id identity, change func(*front, *reports)) {
	topic := e.topic(4)
	f := e.front(faults.Relay)
	var reports reports
	a := e.start("a", on(topic, quick), longSession, e.as(id), reports.watch, func(c *kgroup.Config) {
		c.Dial, c.ConnectTimeout = f.dial, time.Second
	})
	load := e.load(topic, 100)
	a.handles(20)
	change(f, &reports)
	a.handles(100)
	load.stop(100)
	e.awaitCommitted()
	assert.NotContains(e.t, fmt.Sprintf("%v %+v %#v", reports.all(), reports.all(), reports.all()), "-secret")
}

// Brokers fail while they authenticate a member, or do not want its mechanism any more.
func authenticationFails(e *env) {
	other := kmsg.NewPtrSASLHandshakeResponse()
	other.Version, other.ErrorCode, other.SupportedMechanisms = 1, kerr.UnsupportedSaslMechanism.Code, []string{"GSSAPI"}
	id := byScram512.at(kafka.SASLPlaintext)
	e.survives(faults.Relay, []trouble{
		at(kmsg.ApiVersions, faults.Silent, silent),
		at(kmsg.SASLHandshake, faults.HangUp, hungUp),
		at(kmsg.SASLHandshake, faults.Answer(other, faults.Silent), []string{"GSSAPI"}),
		at(kmsg.SASLAuthenticate, faults.Silent, silent),
		at(kmsg.SASLAuthenticate, faults.HangUp, hungUp),
	}, e.as(id))
}

// A member may not read its topic any more, and then it may again; the same with its
// group.
func rightsTaken(e *env) {
	topic := e.topic(4)
	nobody := "User:nobody"
	var reports reports
	a := e.start("a", on(topic, quick), longSession, e.as(byScram512), reports.watch)
	load := e.load(topic, 100)
	for _, restrict := range []func(principals ...string) error{
		func(principals ...string) error { return e.admin.RestrictTopic(e.ctx, topic, principals...) },
		func(principals ...string) error { return e.admin.RestrictGroup(e.ctx, e.group, principals...) },
	} {
		a.handles(20)
		reported := len(reports.all())
		require.NoError(e.t, restrict(nobody))
		reports.await(e, reported, "authoriz")
		require.NoError(e.t, restrict(byScram512.principal))
	}
	a.handles(100)
	a.owns(4)
	load.stop(100)
	e.awaitCommitted()
}
