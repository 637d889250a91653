//go:build unix

package main

// What is often written where partitions are not enough: sarama-cluster, and in each
// partition a fixed hash of keys onto goroutines.

import (
	"context"
	"hash/maphash"
	"sync"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"
)

// hashQueue is how many messages may wait for each goroutine before the partition
// waits.
const hashQueue = 16

func joinHash(_ context.Context, j job, m *meter) (leave func() error, err error) {
	return j.loop(m, func(p cluster.PartitionConsumer) { readHashed(p, m, j.Workers) })
}

func readHashed(p cluster.PartitionConsumer, m *meter, workers int) {
	type ticket struct {
		*sarama.ConsumerMessage
		number int
	}
	var (
		handled = contiguous{mark: func(offset int64) { p.MarkOffset(offset, "") }}
		queues  = make([]chan ticket, workers)
		all     sync.WaitGroup
		seed    = maphash.MakeSeed()
	)
	for i := range queues {
		q := make(chan ticket, hashQueue)
		queues[i] = q
		all.Go(func() {
			for msg := range q {
				m.handle(msg.Partition, msg.Key, msg.Value)
				handled.done(msg.number)
			}
		})
	}
	for msg := range p.Messages() {
		queues[maphash.Bytes(seed, msg.Key)%uint64(workers)] <- ticket{msg, handled.begin(msg.Offset)}
	}
	for _, q := range queues {
		close(q)
	}
	all.Wait()
}

// contiguous marks what is handled without a gap before it.
type contiguous struct {
	mark func(offset int64)

	mu      sync.Mutex
	first   int // number of open[0]
	open    []int64
	settled []bool
}

// begin returns the number of the next message.
func (c *contiguous) begin(offset int64) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open, c.settled = append(c.open, offset), append(c.settled, false)
	return c.first + len(c.open) - 1
}

func (c *contiguous) done(number int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settled[number-c.first] = true
	n := 0
	for n < len(c.settled) && c.settled[n] {
		n++
	}
	if n > 0 {
		c.mark(c.open[n-1])
		c.first, c.open, c.settled = c.first+n, c.open[n:], c.settled[n:]
	}
}
