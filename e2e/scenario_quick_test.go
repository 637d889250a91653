package e2e

// Handlers that are so quick that they are called where messages are polled. The
// history would slow them down; a ledger takes a few nanoseconds.

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/kgroup-go/kgroup"
)

// A ledger has the offset that each partition's next attempt must be of, in whatever
// member: a message that is lost, repeated, out of order, or handled at two places at
// once does not fit.
type ledger struct {
	next  []paddedOffset
	wrong atomic.Pointer[string] // the first attempt that did not fit
}

type paddedOffset struct {
	atomic.Int64
	_ [56]byte // a cache line for each
}

// Handle makes the ledger a handler whose attempts are not recorded.
func (l *ledger) Handle(_ context.Context, msg kgroup.Message) error {
	if !l.next[msg.Partition].CompareAndSwap(msg.Offset, msg.Offset+1) {
		text := fmt.Sprintf("partition %d: an attempt at %d, want %d", msg.Partition, msg.Offset, l.next[msg.Partition].Load())
		l.wrong.CompareAndSwap(nil, &text)
	}
	return nil
}

func (l *ledger) unrecorded() {}

// Members with quick handlers join and leave in good order while messages come as fast
// as they can be produced.
func quickJoinAndLeave(e *env) {
	const partitions = 8
	rounds, total := 4, int64(200_000)
	if e.full {
		rounds, total = 12, 5_000_000
	}
	topic := e.topic(partitions)
	l := &ledger{next: make([]paddedOffset, partitions)}
	beside := e.topic(2) // with a history, like any other
	e.produce(beside, 100)
	topics := kgroup.Topics{topic: {Handler: l}, beside: {Handler: kgroup.HandlerFunc(quick)}}
	stop := make(chan struct{})
	produced := make(chan error, 1)
	go func() { produced <- e.flood(topic, partitions, total/partitions, stop) }()

	e.start("a", topics)
	for i := range rounds {
		b := e.start(fmt.Sprint("b", i), topics)
		b.ready()
		require.NoError(e.t, work(e.ctx, e.random.upTo(time.Second)))
		c := e.start(fmt.Sprint("c", i), topics)
		require.NoError(e.t, work(e.ctx, e.random.upTo(time.Second)))
		b.stop()
		require.NoError(e.t, work(e.ctx, e.random.upTo(500*time.Millisecond)))
		c.stop()
	}
	close(stop)
	require.NoError(e.t, receive(e, "the end of the records", produced))
	e.awaitCommitted()
	_, ends, err := e.admin.Range(e.ctx, topic)
	require.NoError(e.t, err)
	e.until("all to be handled and committed", func() error {
		if wrong := l.wrong.Load(); wrong != nil {
			require.Fail(e.t, *wrong)
		}
		committed := e.committed(topic)
		for p, end := range ends {
			if at := l.next[p].Load(); at != end || committed[p] != end {
				return fmt.Errorf("partition %d: handled up to %d, committed up to %d, ends at %d", p, at, committed[p], end)
			}
		}
		return nil
	})
}

// flood produces at least so many records to each partition, and goes on until it is
// stopped.
func (e *env) flood(topic string, partitions, least int64, stop <-chan struct{}) error {
	for n := int64(0); ; n += 100 {
		select {
		case <-stop:
			if n >= least {
				return nil
			}
		default:
		}
		var records []*kgo.Record
		for i := range 100 * partitions {
			records = append(records, &kgo.Record{Topic: topic, Partition: int32(i % partitions), Value: []byte("value")})
		}
		if err := e.admin.Produce(e.ctx, kgo.NoCompression(), records...); err != nil {
			return err
		}
	}
}
