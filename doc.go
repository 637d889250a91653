// Package kgroup runs Kafka consumer groups: it joins a group, calls a handler for
// each message, and marks the message's offset when the handler has returned nil.
//
//	consumer, err := kgroup.New(kgroup.Config{
//		Brokers: []string{"localhost:9092"},
//		Group:   "billing",
//		Topics: kgroup.Topics{
//			"orders":  {Handler: kgroup.JSON(charge)},
//			"refunds": {Handler: kgroup.HandlerFunc(refund)},
//		},
//	})
//	if err != nil { ... }     // every mistake in the Config, each naming its field
//	err = consumer.Run(ctx)   // nil after ctx is cancelled and everything is drained
//
// # What is promised
//
// Each promise names the tests that fail when it is broken: Test… in this package,
// "…" a scenario of the suite in e2e, which runs on an embedded broker and on real
// Kafka.
//
//  1. Nothing is lost. The committed offset never passes a message of which no
//     attempt has returned nil: under no concurrency, rebalance, crash or shutdown.
//     TestNothingIsCommittedBeforeNil, TestFrontier, TestStartNewestIsCommittedFirst,
//     "join and leave under load", "killed and restarted". Nor one whose dead letter
//     the brokers have not acknowledged. TestDeadLetterTopicThatCannotBeWritten,
//     TestLetterThatTakesTooLong.
//
//  2. Nothing is repeated without cause. No attempt of a message begins, in any
//     member, after one has returned nil, at a rebalance or a shutdown. Only a crash,
//     a lost session, or a handler that outlives its deadline repeats, and then at
//     most what was in flight and what was settled since the last acknowledged commit.
//     TestDrainWaitsForTheHandlerAtWork, TestDrainThatBeginsTooLate,
//     TestDrainWaitsForACoordinatorThatIsSlow, TestShutdown, TestLifeInTrouble,
//     "join and leave under load", "handler slower than the session".
//
//  3. Order. Messages of one partition are handled one after the other, in the order
//     of their offsets, retries included; with Topic.Workers, those of the same key are.
//     TestRetryKeepsOrder, TestWhoPollsIsRelieved,
//     TestWhoPollsIsNotRelievedBetweenMessages, TestWorkersSimulation,
//     "join and leave under load", "join and leave, quick handlers".
//
//  4. One owner. A partition is never handed out while this member does not hold it,
//     as far as the member can know, and a handler's context is cancelled with the
//     cause the moment it is lost. TestLost, TestLostDuringADrain,
//     TestNextGenerationWaitsUntilTheLastOneIsLost, "session lost".
//
//  5. Bounded. Memory, goroutines, and the time of every step have a bound, below.
//     What cannot be bounded is a handler that ignores its cancelled context: it is
//     named in the error of Run or in Health, its offset stays uncommitted, and its
//     partition is not handled again in this process until it has returned.
//     TestQueueBound, TestWorkersAreBounded, TestShutdownTimeoutIsKept, TestOrphan,
//     "handler ignores its cancelled context".
//
//  6. Loud. What stops progress is an error from Run, or a hook, a log line and an
//     unhealthy Health. TestPermanentIsHeld, TestEndlessRetryIsReported,
//     TestDeadlyMessageIsHeld, TestHealthBlocked, TestHealthOfCommitsThatFail.
//
//  7. The handler's result is the only acknowledgement. A nil is a nil, however late,
//     as long as the partition is still ours; its timeout makes no difference.
//     TestNilAfterCancellationSettles, TestTimeout.
//
//  8. A dead letter is a message whose handling has failed: Retry.MaxAttempts times, in
//     whichever owners, or for good, or by the death of as many processes that handled
//     nothing else. No shutdown, rebalance, or crash beside it makes one, and an outage of
//     a topic with a Breaker only few: the first one where no other message fails, and
//     then on trial.
//     TestAttemptsSurviveARebalance, TestLetterUnderWayIsAwaited, TestOutageIsNotPoison,
//     TestLongOutage, TestDeadlyMessage, TestDeathsOfOtherMessages.
//
// # Bounds
//
// Memory, for each partition:
//
//   - Topic.Queue messages that were taken from Kafka and not handed to the handler;
//   - those that are being handled: one, or Topic.Workers, or Workers times Batch.Size;
//   - in Partitions mode, where a fetched batch is taken as a whole, two batches;
//   - with Workers or batches, up to 16,384 offsets (in practice 13,816) that were settled
//     before one in front of them was;
//   - below that, what the engine buffers: 4096 messages (256 in Partitions mode), and one
//     fetch response a broker.
//
// Goroutines:
//
//   - 6 of the consumer's own, and short-lived ones for single requests;
//   - one for each partition (three in Partitions mode), and one more for each that waits in
//     a handler which used to be quick;
//   - with Workers or batches, for each partition as many as Workers instead of one, when
//     there is work for them, and one for each message that waits for its next attempt: half
//     of Queue, and Workers, at most, or with batches half of Queue and Workers times
//     Batch.Size;
//   - about as many of the engine.
//
// Of the functions that may be asked for credentials at each connection 8 run at once at
// most.
//
// Connecting takes at most Config.ConnectTimeout for one attempt, TLS and SASL
// included; a broker that hangs is noticed within 13 s. A rebalance waits for handlers
// for RebalanceTimeout less a heartbeat interval, 250 ms and 1 s, whatever
// SessionTimeout is; after 80 % of that their context is cancelled. Run returns within
// Config.ShutdownTimeout after its context is cancelled.
//
// # Security
//
// Config.TLS encrypts the connections; [LoadTLS] makes it of PEM files, and reads them
// anew when they change. Config.Auth says who this member is: [Plain], [Scram],
// [OAuthBearer]. Functions that return secrets are called for each connection, so a
// secret that was rotated needs no restart; where the brokers limit how long a
// connection is authenticated, it is replaced before that ends. No secret is shown
// however a Config or an error is printed, encoded or logged.
//
// # Exactly once
//
// Kafka delivers at least once: a crash repeats. Where an effect must happen once,
// keep the message's topic, partition and offset beside it, in the same transaction;
// examples/commit shows how.
package kgroup
