//go:build unix

package main

// What the engine allows: sarama-cluster, and in each partition as many goroutines that
// read its channel and do nothing but handle and mark. It keeps no order, and may lose
// messages: it is not what anybody should write, but nobody who keeps order on this engine
// has less to do.

import (
	"context"
	"sync"

	cluster "github.com/bsm/sarama-cluster"
)

func joinNoOrder(_ context.Context, j job, m *meter) (leave func() error, err error) {
	return j.loop(m, func(p cluster.PartitionConsumer) {
		var all sync.WaitGroup
		for range j.Workers {
			all.Go(func() { readPartition(p, m) })
		}
		all.Wait()
	})
}
