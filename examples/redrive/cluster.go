package main

// What is asked of the cluster beside the group's own reading: where the group stands,
// what a topic has from one offset to another, and what has been written already.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/kgroup-go/kgroup"
)

const (
	// patience is how long the cluster may take to be found.
	patience = 10 * time.Second

	// skew is how much the brokers' clocks may differ. Where a topic has their timestamps,
	// what was written after a letter may seem to be older by that.
	skew = time.Minute
)

type kafka struct {
	config kgroup.Config // brokers and security
	client *kgo.Client
	admin  *kadm.Client
	topics map[string]kadm.TopicDetail
}

func connect(ctx context.Context, s settings) (*kafka, error) {
	config, opts, err := s.security.options()
	if err != nil {
		return nil, err
	}
	config.Brokers, config.ClientID = s.brokers, "redrive"
	opts = append(opts,
		kgo.SeedBrokers(s.brokers...),
		kgo.ClientID(config.ClientID),
		kgo.DisableClientMetrics(),
		// The producer is idempotent, and waits for all replicas, unless told otherwise.
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.StopProducerOnDataLossDetected(), // going on could write twice
		kgo.UnknownTopicRetries(1),           // it was there a moment ago
		kgo.ProducerLinger(0),
		kgo.ProducerBatchMaxBytes(64<<20), // the brokers say what is too large
		// Letters that came compressed may be too large if they are not.
		kgo.ProducerBatchCompression(kgo.GzipCompression()),
	)
	k := &kafka{config: config, topics: map[string]kadm.TopicDetail{}}
	if k.client, err = kgo.NewClient(opts...); err != nil {
		return nil, err
	}
	k.admin = kadm.NewClient(k.client)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := k.client.Ping(ctx); err != nil {
		k.close()
		return nil, fmt.Errorf("reach %s: %w (check -brokers, -protocol and who may connect)", strings.Join(s.brokers, ","), err)
	}
	return k, nil
}

func (k *kafka) close() { k.client.Close() }

var errNoTopic = errors.New("does not exist")

// topic is asked for once.
func (k *kafka) topic(ctx context.Context, name string) (kadm.TopicDetail, error) {
	if known, ok := k.topics[name]; ok {
		return known, nil
	}
	details, err := k.admin.ListTopics(ctx, name)
	if err != nil {
		return kadm.TopicDetail{}, fmt.Errorf("ask for the topic %s: %w", name, err)
	}
	switch detail := details[name]; {
	case errors.Is(detail.Err, kerr.UnknownTopicOrPartition), errors.Is(detail.Err, kerr.InvalidTopicException):
		return detail, fmt.Errorf("topic %s %w", name, errNoTopic)
	case detail.Err != nil:
		return detail, fmt.Errorf("ask for the topic %s: %w", name, detail.Err)
	default:
		k.topics[name] = detail
		return detail, nil
	}
}

// waitForGroup returns when the group has no members. A run that was killed is one for
// the rest of its session, and until then its last letter may still be on its way.
func (k *kafka) waitForGroup(ctx context.Context, group string, session time.Duration, c console) error {
	limit := session + 2*time.Second
	until := time.Now().Add(limit)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for told := false; ; told = true {
		groups, err := k.admin.DescribeGroups(ctx, group)
		if err == nil {
			err = groups[group].Err
		}
		switch {
		case errors.Is(err, kerr.GroupIDNotFound):
			return nil
		case err != nil:
			return fmt.Errorf("ask for the group %s: %w", group, err)
		case groups[group].State == "Empty", groups[group].State == "Dead":
			return nil
		case time.Now().After(until):
			return fmt.Errorf("the group %s is at work: is another redrive running? Let it end, or name another group with -group", group)
		case !told:
			c.note("waiting for the group %s, at most %v: a run is at work, or was killed", group, limit)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// settledMark is what is committed beside an offset when it is known that nothing from
// there on has been written by this group. kgroup skips it, and puts its own metadata
// in its place as soon as the partition is opened: a run that is killed leaves none.
const settledMark = "kgroup/1 redrive=settled"

// A position is where a group stands in a partition.
type position struct {
	offset  int64 // -1: nowhere
	settled bool  // nothing from there on has been written
}

// positions are by partition of the topic.
func (k *kafka) positions(ctx context.Context, group, topic string) (map[int32]position, error) {
	detail, err := k.topic(ctx, topic)
	if err != nil {
		return nil, err
	}
	committed, err := k.admin.FetchOffsets(ctx, group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, fmt.Errorf("ask where the group %s stands: %w", group, err)
	}
	all := map[int32]position{}
	for number := range detail.Partitions {
		at, ok := committed.Lookup(topic, number)
		switch {
		case ok && at.Err != nil:
			return nil, fmt.Errorf("ask where the group %s stands in %s/%d: %w", group, topic, number, at.Err)
		case !ok || at.At < 0:
			all[number] = position{offset: -1, settled: true}
		default:
			all[number] = position{offset: at.At, settled: at.Metadata == settledMark}
		}
	}
	return all, nil
}

// move commits positions of a group that has no members.
func (k *kafka) move(ctx context.Context, group, topic string, to map[int32]position) error {
	offsets := kadm.Offsets{}
	for number, p := range to {
		o := kadm.Offset{Topic: topic, Partition: number, At: p.offset, LeaderEpoch: -1}
		if p.settled {
			o.Metadata = settledMark
		}
		offsets.Add(o)
	}
	if len(offsets) == 0 {
		return nil
	}
	if err := k.admin.CommitAllOffsets(ctx, group, offsets); err != nil {
		return fmt.Errorf("commit where the group %s begins: %w", group, err)
	}
	return nil
}

// written returns which letters of the dead-letter topic have been written to a partition
// since a time, by their names.
func (k *kafka) written(ctx context.Context, letters string, to target, since time.Time) (map[string]bool, error) {
	from, err := k.listed(k.admin.ListOffsetsAfterMilli(ctx, max(0, since.Add(-skew).UnixMilli()), to.topic))(to)
	if err != nil {
		return nil, err
	}
	end, err := k.listed(k.admin.ListEndOffsets(ctx, to.topic))(to)
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	err = k.read(ctx, to, from, end, kgo.ReadUncommitted(), func(msg kgroup.Message) error {
		if name := text(msg, letterHeader); strings.HasPrefix(name, letters+"/") {
			found[name] = true
		}
		return nil
	})
	return found, err
}

func (k *kafka) listed(offsets kadm.ListedOffsets, err error) func(target) (int64, error) {
	return func(of target) (int64, error) {
		at, ok := offsets.Lookup(of.topic, of.partition)
		switch {
		case err != nil:
			return 0, fmt.Errorf("ask for the offsets of %v: %w", of, err)
		case !ok:
			return 0, fmt.Errorf("ask for the offsets of %v: no answer", of)
		case at.Err != nil:
			return 0, fmt.Errorf("ask for the offsets of %v: %w", of, at.Err)
		default:
			return at.Offset, nil
		}
	}
}

// read calls fn with the messages of a partition from one offset up to another. It
// fetches by itself: a consumer does not tell when it is at the end of a log that ends
// in something other than a message.
func (k *kafka) read(ctx context.Context, of target, from, to int64, level kgo.IsolationLevel, fn func(kgroup.Message) error) error {
	for failed := 0; from < to; {
		records, next, err := k.fetch(ctx, of, from, level)
		switch {
		case kerr.IsRetriable(err) && failed < 10: // the leader has moved, say
			failed++
			delete(k.topics, of.topic)
			select {
			case <-time.After(200 * time.Millisecond):
				continue
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		case err == nil && next <= from:
			err = fmt.Errorf("no answer has what is there up to %d", to)
		}
		if err != nil {
			return fmt.Errorf("read %v at %d: %w", of, from, err)
		}
		for _, r := range records {
			if r.Offset >= to {
				return nil
			}
			if err := fn(message(r)); err != nil {
				return err
			}
		}
		from, failed = next, 0
	}
	return nil
}

// fetch reads what one answer has, and returns where to go on.
func (k *kafka) fetch(ctx context.Context, of target, from int64, level kgo.IsolationLevel) ([]*kgo.Record, int64, error) {
	detail, err := k.topic(ctx, of.topic)
	if err != nil {
		return nil, 0, err
	}
	leader := detail.Partitions[of.partition].Leader
	if leader < 0 {
		return nil, 0, kerr.LeaderNotAvailable
	}
	part := kmsg.NewFetchRequestTopicPartition()
	part.Partition, part.FetchOffset, part.PartitionMaxBytes = of.partition, from, 4<<20
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic, topic.TopicID = of.topic, detail.ID
	topic.Partitions = append(topic.Partitions, part)
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes = 500, 1, 16<<20
	if level == kgo.ReadCommitted() {
		req.IsolationLevel = 1
	}
	req.Topics = append(req.Topics, topic)
	answer, err := k.client.Broker(int(leader)).RetriableRequest(ctx, req)
	if err != nil {
		return nil, 0, err
	}
	resp := answer.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, 0, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return nil, 0, errors.New("the answer is about something else")
	}
	fetched, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		Offset: from, IsolationLevel: level, Topic: of.topic, Partition: of.partition,
	}, &resp.Topics[0].Partitions[0], kgo.DefaultDecompressor(), nil)
	return fetched.Records, next, fetched.Err
}

func message(r *kgo.Record) kgroup.Message {
	msg := kgroup.Message{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset,
		Key: r.Key, Value: r.Value, Timestamp: r.Timestamp,
	}
	for _, h := range r.Headers {
		msg.Headers = append(msg.Headers, kgroup.Header{Key: h.Key, Value: h.Value})
	}
	return msg
}
