package e2e

// What answers at the address of a broker is no broker for a while, or one that must
// not be trusted, or that says nothing. It is noticed, reported and survived.

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/kgroup-go/kgroup"
	"github.com/kgroup-go/kgroup/e2e/certs"
	"github.com/kgroup-go/kgroup/e2e/faults"
)

// Something else answers.
func nonsense(e *env) {
	e.survives(faults.Relay, []trouble{
		atOnce("nobody", faults.HangUp, hungUp),
		atOnce("somebody who does not like what he hears", faults.HangUpOnce, hungUp),
		atOnce("a web server", faults.HTTP, []string{"HTTP"}),
		atOnce("an endless frame", faults.Frame(1<<31-1), []string{"2147483647"}),
		atOnce("an empty frame", faults.Frame(0), []string{" 0 "}),
	})
}

// The brokers hang up at one kind of request, then at the next.
func hangUps(e *env) {
	var all []trouble
	for _, kind := range requests {
		all = append(all, at(kind, faults.HangUp, hungUp))
	}
	e.survives(faults.Relay, all)
}

// The brokers fall silent at one kind of request, then at the next.
func silence(e *env) {
	kinds := []kmsg.Key{kmsg.Fetch, kmsg.Heartbeat}
	if e.full {
		kinds = requests
	}
	var all []trouble
	for _, kind := range kinds {
		all = append(all, at(kind, faults.Silent, silent))
	}
	e.survives(faults.Relay, all)
}

// requests are those that a member sends when it comes back to a group, those of
// joins while it joins.
var (
	joins    = []kmsg.Key{kmsg.FindCoordinator, kmsg.JoinGroup, kmsg.SyncGroup, kmsg.OffsetFetch, kmsg.ListOffsets}
	requests = append([]kmsg.Key{kmsg.Metadata, kmsg.Fetch, kmsg.Heartbeat, kmsg.OffsetCommit}, joins...)
)

// The brokers present certificates that must not be trusted, or none.
func brokerCertificates(e *env) {
	ours := authority(e.t)
	e.survives(terminating(issue(e.t, ours, here)), []trouble{
		atOnce("an expired certificate", faults.TLS(server(issue(e.t, ours, expired())), faults.Silent), []string{"expired"}),
		atOnce("a certificate for another host", faults.TLS(server(issue(e.t, ours, elsewhere)), faults.Silent), []string{"certificate for 127.0.0.1"}),
		atOnce("one of another authority", faults.TLS(server(issue(e.t, authority(e.t), here)), faults.Silent), []string{"authority"}),
		atOnce("none, and no TLS", faults.HTTP, []string{"HTTP"}),
		atOnce("nothing at all", faults.Silent, silent),
	}, func(c *kgroup.Config) {
		files := writeFiles(e.t, e.t.TempDir(), ours, issue(e.t, ours, here))
		var err error
		c.TLS, err = kgroup.LoadTLS(kgroup.TLSFiles{CA: files.CA})
		require.NoError(e.t, err)
	})
}

// The brokers get certificates of another authority, and the member is told to trust
// that one in a file.
func authorityReplaced(e *env) {
	ours, theirs := authority(e.t), authority(e.t)
	dir := e.t.TempDir()
	config, err := kgroup.LoadTLS(kgroup.TLSFiles{CA: writeFiles(e.t, dir, ours, issue(e.t, ours, here)).CA})
	require.NoError(e.t, err)
	topic := e.topic(4)
	f := e.front(terminating(issue(e.t, ours, here)))
	var reports reports
	a := e.start("a", on(topic, quick), longSession, reports.watch, func(c *kgroup.Config) { c.Dial, c.TLS = f.dial, config })
	load := e.load(topic, 100)
	a.handles(20)
	e.history.SessionLost("a")
	f.become(terminating(issue(e.t, theirs, here)))
	reports.await(e, 0, "authority")
	writeFiles(e.t, dir, theirs, issue(e.t, theirs, here))
	a.handles(100)
	a.owns(4)
	e.history.SessionBack("a")
	load.stop(100)
	e.awaitCommitted()
}

// The certificates of brokers.
var (
	here      = certs.Template{Name: "broker", Hosts: []string{"127.0.0.1"}}
	elsewhere = certs.Template{Name: "broker", Hosts: []string{"broker.test"}}
)

func expired() certs.Template {
	now := time.Now()
	return certs.Template{Name: "broker", Hosts: here.Hosts, NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Hour)}
}

// terminating has brokers that know no TLS speak it.
func terminating(c certs.Certificate) func(addr string) faults.Handler {
	return func(addr string) faults.Handler { return faults.TLS(server(c), faults.Relay(addr)) }
}

// Trouble is something that happens to connections.
type trouble struct {
	name    string
	fault   faults.Handler
	when    func(addr string, fault faults.Handler) faults.Handler
	joining bool     // that is when a member joins
	want    []string // one of them is in what is reported
}

var (
	hungUp = []string{"EOF", "closed", "reset", "broken pipe"}
	silent = []string{"timeout", "deadline"}
)

// at is a fault that is there when a request of that kind comes.
func at(kind kmsg.Key, fault faults.Handler, want []string) trouble {
	return trouble{
		name: "at " + kind.Name(), fault: fault, want: want, joining: slices.Contains(joins, kind),
		when: func(addr string, fault faults.Handler) faults.Handler { return faults.Until(addr, kind, fault) },
	}
}

// atOnce is a fault that is there for every connection from its beginning.
func atOnce(name string, fault faults.Handler, want []string) trouble {
	return trouble{name: name, fault: fault, want: want, when: func(_ string, fault faults.Handler) faults.Handler { return fault }}
}

// survives starts a member, to which one trouble after the other happens. In between
// it handles messages again.
func (e *env) survives(whole func(addr string) faults.Handler, troubles []trouble, change ...func(*kgroup.Config)) {
	e.t.Helper()
	topic := e.topic(4)
	f := e.front(whole)
	var reports reports
	a := e.start("a", on(topic, quick), slices.Concat(change, []func(*kgroup.Config){reports.watch, func(c *kgroup.Config) {
		c.Dial, c.ConnectTimeout = f.dial, time.Second
	}})...)
	load := e.load(topic, 100)
	e.history.SessionLost("a")
	for i, trouble := range troubles {
		a.handles(20)
		var met, before atomic.Int64
		f.become(func(addr string) faults.Handler { // breaks connections, which is reported too
			return trouble.when(addr, func(ctx context.Context, c net.Conn) {
				before.CompareAndSwap(0, int64(len(reports.all())))
				met.Add(1)
				trouble.fault(ctx, c)
			})
		})
		var joins *member
		if trouble.joining {
			joins = e.start(fmt.Sprint("joins-", i), on(topic, quick)) // or a would not have to
		}
		e.reaches(1, "connections with trouble: "+trouble.name, &met)
		reported := int(before.Load())
		reports.await(e, reported, trouble.want...)
		e.t.Logf("%s: %v", trouble.name, reports.all()[reported:])
		f.become(whole)
		if joins != nil {
			joins.handles(1)
			joins.stop()
		}
	}
	a.handles(20)
	a.owns(4)
	e.history.SessionBack("a")
	load.stop(100)
	e.awaitCommitted()
}
