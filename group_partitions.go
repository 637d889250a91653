package kgroup

// Dispatching in Partitions mode: each partition has a reader of its own, and a
// slow one must not hold up the others of its broker.

import (
	"time"

	"github.com/Shopify/sarama"
	cluster "github.com/bsm/sarama-cluster"

	"github.com/kgroup-go/kgroup/internal/engine"
)

// newReader returns the reader of a partition. A message belongs to the lane of the
// PartitionConsumer it came from, also after the next assignment: what is still
// delivered then is thrown away by that lane.
func (g *group) newReader(p cluster.PartitionConsumer) *reader {
	r := &reader{group: g, source: p, records: make([]engine.Record, readSize)}
	r.more = r.atHand
	return r
}

// start begins to deliver.
func (r *reader) start(lane engine.Lane) {
	r.lane = lane
	r.group.routines.Go(func() {
		for err := range r.source.Errors() {
			r.group.engineError(err)
		}
	})
	r.group.routines.Add(1)
	go r.run()
}

// relieve makes another goroutine read.
func (r *reader) relieve() { go r.run() }

// A reader delivers one partition. Not reading is no back-pressure: a partition
// whose channel is not emptied stops every partition of its broker until its whole
// fetched batch is taken. So a reader lets a batch wait a little for a full lane; if
// that is not enough it takes the rest of it and, if the lane is slow, pauses the
// partition. What a lane holds is bounded by its queue and two fetched batches.
type reader struct {
	group    *group
	source   cluster.PartitionConsumer
	lane     engine.Lane
	records  []engine.Record
	more     func([]engine.Record) int // atHand
	patience time.Duration             // left for the batch that is being read
	taking   bool                      // this batch is being taken into a full queue,
	taken    bool                      // and so was the one before it
	done     int                       // messages handled while the lane was last waited for,
	took     time.Duration             // and how long that was
}

const (
	readSize = 256
	// patience is how long a fetched batch may wait for its lane, and so hold up the
	// other partitions of its broker.
	patience = 100 * time.Millisecond
	// betweenBatches tells a new batch from the rest of one: the engine has to fetch it
	// first, while the rest of one is at hand.
	betweenBatches = 500 * time.Microsecond
	// ahead is how much work a lane must have left for a pause to be worth it: a paused
	// partition needs Consumer.Retry.Backoff and a fetch to come back.
	ahead = 300 * time.Millisecond
)

// run reads until the partition has ended, or another goroutine reads.
func (r *reader) run() {
	for {
		m, ok := r.next()
		if !ok {
			break
		}
		switch r.lane.Handle(record{m}, r.more) {
		case engine.Done:
			continue
		case engine.Relieved:
			return
		case engine.Declined:
		}
		if full := r.take(m); full && !r.wait() {
			break
		}
	}
	r.group.routines.Done()
}

// atHand takes what is there without waiting, as much as batch can hold.
func (r *reader) atHand(batch []engine.Record) (n int) {
	for n < len(batch) {
		select {
		case m, ok := <-r.source.Messages():
			if ok {
				batch[n] = record{m}
				n++
				continue
			}
		default:
		}
		break
	}
	return n
}

// next waits for a message, and notices when a new batch begins with it.
func (r *reader) next() (m *sarama.ConsumerMessage, ok bool) {
	select {
	case m, ok = <-r.source.Messages():
	default:
		began := time.Now()
		m, ok = <-r.source.Messages()
		if time.Since(began) > betweenBatches {
			r.patience = patience
			r.taking, r.taken = false, r.taking
		}
	}
	return m, ok
}

// take delivers m and what is at hand with it.
func (r *reader) take(m *sarama.ConsumerMessage) (full bool) {
	r.records[0] = record{m}
	batch := r.records[:1+r.atHand(r.records[1:])]
	full = r.lane.Deliver(batch)
	clear(batch)
	return full
}

// wait waits for room in the lane. It reports false if the partition has ended.
func (r *reader) wait() bool {
	if r.patience > 0 {
		began, queued := time.Now(), r.lane.Len()
		timer := time.NewTimer(r.patience)
		defer timer.Stop()
		select {
		case <-r.lane.Room():
			r.patience -= time.Since(began)
			r.taken = false
			return true
		case <-timer.C:
			r.patience = 0
			r.done, r.took = queued-r.lane.Len(), time.Since(began)
		}
	}
	if !r.taken && r.behind() < ahead {
		r.taking = true
		return true
	}
	r.taking, r.taken = false, false
	return r.pause()
}

// behind is how long the lane needs for what it holds, at the pace it last had.
func (r *reader) behind() time.Duration {
	if r.done <= 0 {
		return time.Hour
	}
	return r.took * time.Duration(r.lane.Len()) / time.Duration(r.done)
}

// pause pauses the partition and takes what was fetched already, until the lane is
// about to run dry. It reports false if the partition has ended.
func (r *reader) pause() bool {
	p := partitionOf(r.source)
	r.source.Pause()
	defer r.source.Resume()
	ticker := time.NewTicker(patience / 2)
	defer ticker.Stop()
	began, queued := time.Now(), r.lane.Len()
	for {
		r.group.paused.Store(p, time.Now().Add(2*time.Second)) // its complaint follows by then
		select {
		case m, ok := <-r.source.Messages():
			if !ok {
				return false
			}
			r.take(m)
			began, queued = time.Now(), r.lane.Len()
			continue
		case <-r.lane.Room():
			return true
		case <-ticker.C:
		}
		r.done, r.took = queued-r.lane.Len(), time.Since(began)
		if r.behind() < ahead {
			return true
		}
	}
}
