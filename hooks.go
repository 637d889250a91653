package kgroup

// What can be observed of a running consumer.

// Hooks are called when something happens. Every field may be nil. A hook runs on
// the goroutine that does the step, and delays it: Assign delays the partition's
// first message, Revoke the whole group's rebalance. No two hooks run at once for
// one partition (Commit, which concerns many, may run beside others). A hook is not
// protected: one that panics ends the process, as any bug does, and one that ends its
// goroutine (runtime.Goexit, FailNow of a test) may end the engine's. Hooks must not
// call Consumer.Commit, which may wait for what they delay.
type Hooks struct {
	// RebalanceStarted is called when a rebalance begins, before anything is given
	// up, with what this member owns (nothing at the first one).
	RebalanceStarted func(owned map[string][]int32)

	// RebalanceCompleted is called when this member has joined again and its
	// partitions are about to be handled.
	RebalanceCompleted func(Rebalance)

	// RebalanceFailed is called when joining has failed. It is tried again.
	RebalanceFailed func(err error)

	// Assign is called before a partition's first message is dispatched, with the
	// offset of that message or, where offsets have gaps, one before it.
	Assign func(topic string, partition int32, offset int64)

	// Revoke is called when a partition has been drained, before its last commit:
	// every message before offset has been settled, and none is being handled. Should
	// that commit be refused, because the session is lost meanwhile, Commit and Error
	// say so, and the next owner repeats what it does not contain.
	Revoke func(topic string, partition int32, offset int64)

	// Lost is called instead of Revoke when a partition was taken away without a
	// drain, or a handler outlived the drain: what was settled since the last
	// acknowledged commit may be repeated by the next owner, and a handler may still
	// be running here.
	Lost func(topic string, partition int32, offset int64, cause error)

	// Commit is called after each attempt to commit, that with which partitions are opened
	// before their first message included: with the offsets asked for, and nil,
	// what the broker refused, or why it has not answered. A failed commit is made again.
	Commit func(offsets map[string]map[int32]int64, err error)

	// Blocked is called once for a message that keeps its partition from going on: where
	// there is no dead-letter topic, its handler's error was Permanent, or its backoff has
	// reached Retry.MaxBackoff, or too many processes have died of it; else its letter
	// cannot be written for that long.
	// Unblocked is called when such a message was settled, or its worker has ended
	// because the partition is given up.
	Blocked   func(err *HandlerError)
	Unblocked func(topic string, partition int32, offset int64)

	// DeadLetter is called when a message has become a dead letter: the brokers have the
	// letter, and the message is settled. The error says why.
	DeadLetter func(err *HandlerError)

	// Breaker is called when a topic is paused because most attempts fail, with the last
	// error, and when it goes on.
	Breaker func(topic string, open bool, cause error)

	// Error is called with every error that was survived and has no hook of its own:
	// broken connections, fetches that failed, offsets that are gone. Several goroutines
	// may call it at once.
	Error func(err error)
}

// A Rebalance says what this member owns after a rebalance, and what changed by
// it: sorted partition numbers by topic.
type Rebalance struct {
	Current, Claimed, Released map[string][]int32
}

// JoinHooks returns hooks that call those of a, then those of b: for metrics beside a
// service's own, say.
func JoinHooks(a, b Hooks) Hooks {
	return Hooks{
		RebalanceStarted:   join1(a.RebalanceStarted, b.RebalanceStarted),
		RebalanceCompleted: join1(a.RebalanceCompleted, b.RebalanceCompleted),
		RebalanceFailed:    join1(a.RebalanceFailed, b.RebalanceFailed),
		Assign:             join3(a.Assign, b.Assign),
		Revoke:             join3(a.Revoke, b.Revoke),
		Lost:               join4(a.Lost, b.Lost),
		Commit:             join2(a.Commit, b.Commit),
		Blocked:            join1(a.Blocked, b.Blocked),
		Unblocked:          join3(a.Unblocked, b.Unblocked),
		DeadLetter:         join1(a.DeadLetter, b.DeadLetter),
		Breaker:            join3(a.Breaker, b.Breaker),
		Error:              join1(a.Error, b.Error),
	}
}

func join1[A any](f, g func(A)) func(A) {
	if f == nil || g == nil {
		return either(f == nil, g, f)
	}
	return func(a A) { f(a); g(a) }
}

func join2[A, B any](f, g func(A, B)) func(A, B) {
	if f == nil || g == nil {
		return either(f == nil, g, f)
	}
	return func(a A, b B) { f(a, b); g(a, b) }
}

func join3[A, B, C any](f, g func(A, B, C)) func(A, B, C) {
	if f == nil || g == nil {
		return either(f == nil, g, f)
	}
	return func(a A, b B, c C) { f(a, b, c); g(a, b, c) }
}

func join4[A, B, C, D any](f, g func(A, B, C, D)) func(A, B, C, D) {
	if f == nil || g == nil {
		return either(f == nil, g, f)
	}
	return func(a A, b B, c C, d D) { f(a, b, c, d); g(a, b, c, d) }
}

func either[F any](first bool, f, g F) F {
	if first {
		return f
	}
	return g
}
