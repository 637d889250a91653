//go:build unix

package main

// No library: as many goroutines as there are workers call the handler in a loop. Nobody
// can handle more.

import (
	"context"
	"sync"
	"time"
)

func joinBare(ctx context.Context, j job, m *meter) (leave func() error, err error) {
	if err := m.time(ctx); err != nil {
		return nil, err
	}
	return running(ctx, func(ctx context.Context) error {
		var loops sync.WaitGroup
		for i := range j.Workers * j.Topic.Partitions {
			partition := int32(i % j.Topic.Partitions)
			loops.Go(func() {
				for ctx.Err() == nil {
					m.handle(partition, nil, nil)
				}
			})
		}
		loops.Wait()
		return nil
	}), nil
}

// time finds out how long the work takes when it is called alone. A sleep takes longer
// than it was asked to.
func (m *meter) time(ctx context.Context) error {
	const atLeast = 200 * time.Millisecond
	began, n := time.Now(), 0
	for ; time.Since(began) < atLeast && ctx.Err() == nil; n++ {
		m.work(0, nil, nil)
	}
	m.alone = time.Since(began) / time.Duration(n)
	return ctx.Err()
}
