package kgroup

// The engine: drives sarama-cluster as a member of the group, polls, and keeps the
// order of a rebalance. levers.go wraps the client that the engine uses,
// membership.go speaks the group protocol beside it. Above is the session
// (assignment.go), which knows nothing of either.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"

	"github.com/kgroup-go/kgroup/internal/engine"
	"github.com/kgroup-go/kgroup/internal/wire"
)

// A group is the [engine.Engine] made of sarama-cluster.
type group struct {
	name    string
	config  Config
	topics  *matcher
	log     *slog.Logger
	cluster *cluster.Config
	metrics map[string]bool // in its registry before: the user's, who may have set one in Tune
	session engine.Session

	network     *wire.Network
	dataConfig  *sarama.Config
	groupConfig *sarama.Config
	inner       sarama.Client // as sarama made it
	levers      *levers
	member      *membership
	letters     *letters
	consumer    *cluster.Consumer
	spoken      spoken
	asked       map[string]apis // brokers by address; of preflight, then of mindBrokers
	kerberos    bool            // sarama authenticates, on the wire's connections

	brokerMu sync.Mutex
	broker   *sarama.Broker          // the group connection
	known    map[*sarama.Broker]bool // knownCoordinator's

	starting atomic.Bool
	created  chan struct{}      // closed when the engine and what reads it have been started
	seals    chan chan struct{} // the rendezvous of a rebalance with loop
	loopDone chan struct{}
	routines sync.WaitGroup // everything started here but loop; of a reader, whichever goroutine reads
	stop     context.CancelFunc
	leaving  atomic.Bool
	quit     context.CancelFunc // called by Leave,
	quitting context.Context    // which ends then
	finding  atomic.Bool        // the coordinator is asked for: findAnew
	cut      atomic.Bool        // the connections were cut because the shutdown took too long
	left     string             // the member id for which leaveEarly has been sent; only watch uses it
	taken    chan struct{}      // closed by takeBack: the group has let this member go
	takeBack func()
	failed   chan error
	commits  chan struct{} // holds a value while a commit is under way
	joined   atomic.Bool   // there was an assignment
	held     atomic.Pointer[engine.Partition]
	paused   sync.Map // engine.Partition → time.Time: until then a paused partition's complaints are expected

	mu        sync.Mutex
	ended     bool // routines are waited for
	gen       *term
	terms     int64
	announced bool            // RebalanceStarted was told for the rebalance under way
	tries     int             // times the drain point was reached since a generation was opened
	slot      context.Context // ends when the generation it opens, or would open, is over
	endSlot   context.CancelFunc
}

// A term is a generation as the engine sees it.
type term struct {
	number  int64
	member  wire.Member
	current map[string][]int32
	sealed  bool
	lost    bool
}

func newGroup(cfg Config, topics *matcher, built *cluster.Config, log *slog.Logger) *group {
	g := &group{
		name:     cfg.Group,
		config:   cfg,
		topics:   topics,
		log:      log,
		cluster:  built,
		metrics:  map[string]bool{},
		network:  cfg.network(kerberos(built)),
		kerberos: kerberos(built),
		created:  make(chan struct{}),
		seals:    make(chan chan struct{}),
		loopDone: make(chan struct{}),
		failed:   make(chan error, 1),
		commits:  make(chan struct{}, 1),
		asked:    map[string]apis{},
		known:    map[*sarama.Broker]bool{},
		taken:    make(chan struct{}),
	}
	built.MetricRegistry.Each(func(name string, _ any) { g.metrics[name] = true })
	g.letters = &letters{group: g, turn: make(chan struct{}, 1), warned: map[string]bool{}}
	g.takeBack = sync.OnceFunc(func() { close(g.taken) })
	g.network.Report = func(err error) { g.session.Error(err) }
	g.slot, g.endSlot = context.WithCancel(context.Background())
	g.quitting, g.quit = context.WithCancel(context.Background())
	g.member = newMembership(built.Group.Session.Timeout, g.refused, func() { g.levers.reset() })
	g.speak(spoken{version: built.Version}) // until preflight knows better
	return g
}

// Start implements [engine.Engine].
func (g *group) Start(ctx context.Context, s engine.Session) error {
	g.session = s
	uncut := context.AfterFunc(ctx, g.network.Close) // nothing in here listens to a context
	if err := g.join(ctx, uncut); err != nil {
		uncut()
		g.end()
		return err
	}
	return nil
}

// join checks what can be checked and starts the engine. From then on the connections
// are not cut any more when ctx is cancelled: they are needed for leaving the group.
func (g *group) join(ctx context.Context, uncut func() bool) error { //nolint:contextcheck // the callbacks on the connections have no caller
	if err := g.preflight(ctx); err != nil {
		return err
	}
	client, err := cluster.NewClient(g.config.Brokers, g.cluster)
	if err != nil {
		return fmt.Errorf("kgroup: start the client: %w", err)
	}
	g.inner = client.Client
	g.levers = newLevers(g.inner, g)
	client.Client = g.levers
	_ = g.inner.RefreshMetadata(g.topics.names()...) // preflight has judged them; the first assignment is computed from this
	if err := g.findCoordinator(ctx); err != nil {
		return err
	}
	if !uncut() {
		return context.Cause(ctx)
	}
	if g.consumer, err = cluster.NewConsumerFromClient(client, g.name, g.topics.names()); err != nil {
		return fmt.Errorf("kgroup: start the consumer: %w", err)
	}
	watch, stop := context.WithCancel(context.Background())
	g.stop = stop
	g.routines.Go(func() { g.watch(watch) })
	g.routines.Go(func() { g.mindBrokers(watch) })
	g.routines.Go(g.pumpErrors)
	go g.loop(&desk{routes: newRoutes(), consumers: map[engine.Partition]cluster.PartitionConsumer{}})
	close(g.created)
	return nil
}

// refused ends the start when the group refuses this member for good. Later on, it
// is survived: somebody may mend it.
func (g *group) refused(err error) {
	if g.joined.Load() {
		return // the engine reports it too
	}
	select {
	case g.failed <- fmt.Errorf("kgroup: group %q: %w", g.name, err):
	default:
	}
}

// Failed implements [engine.Engine].
func (g *group) Failed() <-chan error { return g.failed }

// A desk is what loop works with. It passes to the goroutine that relieves another.
type desk struct {
	routes    *routes
	consumers map[engine.Partition]cluster.PartitionConsumer // of an assignment that is not open yet
	started   *cluster.Notification                          // the last one that said that a rebalance has started
}

// loop reads what the engine sends, until it is closed. One goroutine at a time does:
// it opens and seals generations and, in Multiplex mode, dispatches, so that a seal
// finds it with no message in its hands.
func (g *group) loop(d *desk) {
	for {
		if g.config.Mode == Multiplex && d.routes.open {
			if relieved := g.poll(d); relieved {
				return
			}
			continue
		}
		select {
		case ack := <-g.seals:
			g.discard(d.consumers)
			g.sealed(d.routes)
			close(ack)
		case p, ok := <-g.consumer.Partitions():
			if !ok { // and so are the notifications, at once
				for range g.consumer.Notifications() {
				}
				close(g.loopDone)
				return
			}
			d.consumers[partitionOf(p)] = p
		case n, ok := <-g.consumer.Notifications():
			switch {
			case !ok:
				close(g.loopDone)
				return
			case n == d.started: // the rebalance has failed; the error follows on the errors channel
			case n.Claimed == nil: // a rebalance has started
				d.started = n
				g.announce(nil)
			case g.collect(d.consumers, n.Current):
				g.open(d, engine.Change{Current: n.Current, Claimed: n.Claimed, Released: n.Released})
				clear(d.consumers)
			default:
				g.sealed(d.routes) // over before it was opened
			}
		}
	}
}

func partitionOf(p cluster.PartitionConsumer) engine.Partition {
	return engine.Partition{Topic: p.Topic(), Number: p.Partition()}
}

// discard forgets partition consumers of an assignment that failed before it was
// opened, among them one that may still lie in the channel. It is called at the drain
// point: the engine waits, and whoever sends has ended. (After the notification that
// follows, the engine goes on, and what lies there may be of the next assignment.)
func (g *group) discard(consumers map[engine.Partition]cluster.PartitionConsumer) {
	clear(consumers)
	for {
		select {
		case _, ok := <-g.consumer.Partitions():
			if !ok {
				return
			}
		default:
			return
		}
	}
}

// collect waits for the partition consumers of a new assignment: they have all been
// sent before the notification. It reports false, and has acknowledged the seal, if
// the next rebalance comes first.
func (g *group) collect(consumers map[engine.Partition]cluster.PartitionConsumer, current map[string][]int32) bool {
	if g.config.Mode != Partitions {
		return true
	}
	total := 0
	for _, numbers := range current {
		total += len(numbers)
	}
	for len(consumers) < total {
		select {
		case p, ok := <-g.consumer.Partitions():
			if !ok {
				return true // closed for good: what is missing is not opened
			}
			consumers[partitionOf(p)] = p
		case ack := <-g.seals:
			g.discard(consumers)
			close(ack)
			return false
		}
	}
	return true
}

// open opens a generation: on RebalanceOK, never on the first message. If a partition
// cannot be opened the engine gives all of them up again without a word, while
// others deliver already.
func (g *group) open(d *desk, change engine.Change) {
	claims := g.levers.claims(change.Current)
	readers := make([]*reader, len(claims))
	for i := range claims {
		c := &claims[i]
		if p := d.consumers[c.Partition]; p != nil {
			readers[i] = g.newReader(p)
			c.Relieve, c.Patience = readers[i].relieve, patience
		} else {
			c.Single = true
			c.Relieve, c.Patience = func() { go g.loop(d) }, pollPatience
		}
	}
	me, member := g.member.current()
	g.mu.Lock()
	if g.leaving.Load() {
		g.mu.Unlock()
		return // it would be drained at once; and Leave waits for nobody who opens one
	}
	g.terms++
	gen := &term{number: g.terms, member: me, current: change.Current, lost: !member}
	g.gen = gen
	g.announced = g.announced && !member
	ctx := g.slot
	g.mu.Unlock()
	if !member { // the engine's next heartbeat finds errSession, and it joins again
		g.session.RebalanceFailed(errors.New("the session was lost while partitions were opened"))
		return
	}
	g.joined.Store(true)
	g.mu.Lock()
	g.tries = 0
	g.mu.Unlock()
	lanes := g.session.Assigned(ctx, gen.number, claims, change)
	if lanes == nil && len(claims) > 0 {
		return // over before it began
	}
	for i, claim := range claims {
		if readers[i] != nil {
			readers[i].start(lanes[i])
		} else {
			d.routes.add(claim.Partition, lanes[i])
		}
	}
	d.routes.open = true
}

// sealed ends the open generation, if there is one, on behalf of a rebalance.
func (g *group) sealed(routes *routes) {
	routes.clear()
	g.mu.Lock()
	gen := g.gen
	if gen != nil {
		gen.sealed = true
	}
	g.slot, g.endSlot = context.WithCancel(context.Background())
	g.mu.Unlock()
	if gen != nil {
		g.session.Seal(gen.number)
	}
}

// isOpen reports whether a generation is open.
func (g *group) isOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gen != nil && !g.gen.sealed && g.slot.Err() == nil
}

// mustRejoin reports whether the open generation was lost. Then the engine must not
// go on in it, whatever the broker says later.
func (g *group) mustRejoin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gen != nil && g.gen.lost
}

// announce tells, once for each rebalance, that it has started.
func (g *group) announce(owned map[string][]int32) {
	g.mu.Lock()
	first := !g.announced
	g.announced = true
	g.mu.Unlock()
	if first {
		g.session.RebalanceStarted(owned)
	}
}

// rebalance is the drain point: the engine's loops have stopped, and it is about to
// give its partitions up. It seals the generation, waits for the handlers at work
// and commits, all while this member still holds them.
//
// If the coordinator cannot be found the engine comes again; the seal stays, so
// nobody works outside the group (D13).
func (g *group) rebalance() error {
	if !g.starting.Swap(true) { // called by NewConsumerFromClient, not yet by the engine's main loop
		return g.inner.RefreshCoordinator(g.name)
	}
	<-g.created
	g.breathe() // not the first time: nothing waits to be sealed
	if me, _, gone := g.member.check(time.Now(), 0); gone != nil {
		g.lose(me, gone) // watch may not have come round to it, and the next JoinGroup forgets it
	}
	began := g.member.rebalancing()
	g.mu.Lock()
	g.endSlot() // an opening under way gives up
	g.mu.Unlock()
	g.seal()
	g.mu.Lock()
	gen := g.gen
	lost := gen != nil && gen.lost
	g.mu.Unlock()
	if gen != nil && !lost {
		g.announce(gen.current)
	}
	err := g.inner.RefreshCoordinator(g.name)
	if err != nil && !g.leaving.Load() {
		return err
	}
	if gen != nil {
		budget := g.drainTimeout()
		g.session.Revoke(gen.number, began.Add(budget*4/5), began.Add(budget))
		g.mu.Lock()
		g.gen = nil
		g.mu.Unlock()
	}
	if g.leaving.Load() {
		return errStopping
	}
	return nil
}

// seal has who polls seal the open generation: a rendezvous, so that no message is in
// its hands afterwards. During the shutdown there is nothing to seal: the session was
// drained, and will open nothing. The engine is about to close the bell then.
func (g *group) seal() {
	if g.leaving.Load() {
		return
	}
	ack := make(chan struct{})
	select {
	case g.seals <- ack:
		<-ack
	case g.bell() <- nil:
		g.seals <- ack
		<-ack
	case <-g.loopDone:
	}
}

// freeTries are how often the engine may come again at once: a member that was thrown
// out needs two, and a group whose members come one by one a few more.
const freeTries = 5

// breathe slows the engine down when it comes again and again, every 100 ms on its own:
// a cluster in trouble is not helped by all members of all groups asking it so often.
func (g *group) breathe() {
	g.mu.Lock()
	g.tries++
	extra := g.tries - freeTries
	g.mu.Unlock()
	if extra <= 0 {
		return
	}
	timer := time.NewTimer(min(time.Second, 100*time.Millisecond<<min(extra, 10)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-g.quitting.Done():
	}
}

// A record is a message of sarama's. Being one pointer, it is held in an interface
// without an allocation.
type record struct{ m *sarama.ConsumerMessage }

func (r record) Offset() int64        { return r.m.Offset }
func (r record) Timestamp() time.Time { return r.m.Timestamp }
func (r record) Payload() (key, value []byte, headers int) {
	return r.m.Key, r.m.Value, len(r.m.Headers)
}

func (r record) Header(i int) (key, value []byte) {
	return r.m.Headers[i].Key, r.m.Headers[i].Value
}

// pumpErrors reads the engine's errors until it is closed: unread, they stop its
// heartbeats (D7).
func (g *group) pumpErrors() {
	for err := range g.consumer.Errors() {
		g.engineError(err)
	}
}

// engineError sorts an error of the engine. A cluster.Error hides what it wraps:
// only its text can be compared.
func (g *group) engineError(err error) {
	var failure *sarama.ConsumerError
	if errors.As(err, &failure) {
		p := engine.Partition{Topic: failure.Topic, Number: failure.Partition}
		until, paused := g.paused.Load(p)
		if paused && errors.Is(failure.Err, sarama.ErrIncompleteResponse) && time.Now().Before(until.(time.Time)) {
			return // how a paused partition shows (D24)
		}
		if g.leaving.Load() {
			return
		}
		g.session.Error(fmt.Errorf("fetch %v: %w", p, failure.Err))
		return
	}
	text := err.Error()
	if g.leaving.Load() || slices.ContainsFunc([]error{errRejoin, errSession, errStopping}, func(e error) bool { return e.Error() == text }) {
		return
	}
	var step *cluster.Error
	if errors.As(err, &step) {
		err = fmt.Errorf("%s: %w", step.Ctx, err)
		if step.Ctx == "rebalance" {
			g.session.RebalanceFailed(err)
			return
		}
	}
	g.session.Error(err)
}

// HighWatermarks implements [engine.Engine].
func (g *group) HighWatermarks() map[engine.Partition]int64 {
	marks := map[engine.Partition]int64{}
	for topic, partitions := range g.consumer.HighWaterMarks() {
		for number, mark := range partitions {
			p := engine.Partition{Topic: topic, Number: number}
			if !g.levers.unreachable(p) {
				marks[p] = mark
			}
		}
	}
	return marks
}

// Waits implements [engine.Engine].
func (g *group) Waits() bool { return g.member.waits() }

// Leave implements [engine.Engine].
func (g *group) Leave(ctx context.Context) error {
	g.mu.Lock()
	g.leaving.Store(true)
	g.endSlot() // an opening under way gives up
	g.mu.Unlock()
	g.quit()
	g.member.wakeUp()
	closed := make(chan error, 1)
	go func() { closed <- g.consumer.Close() }()
	var err error
	select {
	case err = <-closed:
	case <-ctx.Done():
		g.cut.Store(true)
		g.network.Close() // breaks every wait
		<-closed          //nolint:errcheck // why it took so long is said below
		err = fmt.Errorf("kgroup: leave the group: %w: the connections were cut, and the group waits for this member until its session ends", context.Cause(ctx))
	}
	<-g.loopDone
	g.end()
	return err
}

// begin counts one more of the routines, for who is called from outside of them. It
// reports false if they are being waited for already.
func (g *group) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.ended {
		g.routines.Add(1)
	}
	return !g.ended
}

// end ends what Start began, but for the consumer.
func (g *group) end() {
	if g.stop != nil {
		g.stop()
	}
	g.network.Close()
	g.brokerMu.Lock()
	if g.broker != nil {
		_ = g.broker.Close()
	}
	g.brokerMu.Unlock()
	g.endSlot()
	g.quit()
	g.mu.Lock()
	g.ended = true
	g.mu.Unlock()
	g.routines.Wait()
	g.letters.close()
	if g.inner != nil {
		_ = g.inner.Close() // after all who use it: a broker that is opened later keeps a goroutine for ever
	}
	for broker := range g.known {
		_ = broker.Close() // usually it is
	}
	registry := g.cluster.MetricRegistry // sarama leaves its meters behind
	registry.Each(func(name string, _ any) {
		if !g.metrics[name] {
			registry.Unregister(name)
		}
	})
}
