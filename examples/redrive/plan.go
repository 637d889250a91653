package main

// The plan: what becomes of each letter. A dry run shows it, a replay carries it out
// (replay.go), and both ask decide. Making it reads, and changes nothing.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/kgroup-go/kgroup"
)

// A verdict is what becomes of a letter.
type verdict int

const (
	replays   verdict = iota // written to its target
	there                    // an earlier run has done that
	skipped                  // a filter leaves it out
	astray                   // no header says where it comes from
	returning                // it keeps coming back
)

type plan struct {
	settings
	kafka     *kafka
	positions map[int32]position // of the group, by partition
	spans     map[int32]*span    // partitions with letters to replay
	numbers   []int32            // of the partitions that are read, in order
	ends      kadm.ListedOffsets
	starts    kadm.ListedOffsets

	targets map[string]int32 // topics, and their numbers of partitions
	missing map[string]int   // topics that do not exist, and how many letters want them
	written map[string]bool  // names of letters that are in their targets

	letters, total int            // read; of them, to replay
	into           map[string]int // of these, by topic
	left           map[string]int // not replayed, by why
	found          int            // of the total, those that are there already; known of a dry run only
}

// A span is the part of a partition that a replay works on.
type span struct {
	first, last int64           // letters to replay
	before      map[verdict]int // what lies before them, and is jumped over
}

func makePlan(ctx context.Context, k *kafka, s settings) (*plan, error) {
	p := &plan{
		settings: s, kafka: k, spans: map[int32]*span{},
		targets: map[string]int32{}, missing: map[string]int{}, written: map[string]bool{},
		into: map[string]int{}, left: map[string]int{},
	}
	topic, err := k.topic(ctx, s.topic)
	if errors.Is(err, errNoTopic) {
		return nil, fmt.Errorf("the dead-letter %w: check -topic, and that this user may see it", err)
	}
	if err != nil {
		return nil, err
	}
	p.numbers = topic.Partitions.Numbers()
	if s.partition >= 0 {
		if !slices.Contains(p.numbers, int32(s.partition)) {
			return nil, fmt.Errorf("topic %s has %d partitions, and no -partition %d", s.topic, len(p.numbers), s.partition)
		}
		p.numbers = []int32{int32(s.partition)}
	}
	if p.positions, err = k.positions(ctx, s.group, s.topic); err != nil {
		return nil, err
	}
	// What is not committed of a transaction is not delivered.
	if p.ends, err = k.admin.ListCommittedOffsets(ctx, s.topic); err != nil {
		return nil, fmt.Errorf("ask for the end of %s: %w", s.topic, err)
	}
	if p.starts, err = k.admin.ListStartOffsets(ctx, s.topic); err != nil {
		return nil, fmt.Errorf("ask for the beginning of %s: %w", s.topic, err)
	}
	if err := p.survey(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// each calls fn with the letters that the group has not passed and that are in the range
// of offsets, partition by partition, in order.
func (p *plan) each(ctx context.Context, fn func(letter) error) error {
	for _, number := range p.numbers {
		of := target{p.topic, number}
		start, err := p.kafka.listed(p.starts, nil)(of)
		if err != nil {
			return err
		}
		end, err := p.kafka.listed(p.ends, nil)(of)
		if err != nil {
			return err
		}
		from := max(start, p.positions[number].offset, p.from.atOffset(0))
		to := min(end, p.to.atOffset(end))
		err = p.kafka.read(ctx, of, from, to, kgo.ReadCommitted(), func(msg kgroup.Message) error {
			return fn(readLetter(msg))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// errEnough ends a reading early: -limit is reached.
var errEnough = errors.New("enough")

// A lookup is a partition in which letters are looked for that were written since a time.
type lookup map[target]time.Time

// add looks for a letter too. It was written after it had failed, which the target may
// have as its time, and it has its timestamp, which may be that instead.
func (l lookup) add(to target, written letter) {
	for _, since := range []time.Time{written.msg.Timestamp, written.failed} {
		if before, ok := l[to]; !ok || since.Before(before) {
			l[to] = since
		}
	}
}

// survey finds what is to be replayed, and what of it is in doubt and may be there. That
// is the first letter of a partition in which the last run has been killed: its others
// were committed before the next one was begun.
func (p *plan) survey(ctx context.Context) error {
	doubts, before := lookup{}, map[int32]map[verdict]int{}
	err := p.each(ctx, func(l letter) error {
		if err := p.know(ctx, l); err != nil {
			return err
		}
		if p.limit > 0 && p.total == p.limit {
			return errEnough
		}
		p.letters++
		number := l.msg.Partition
		v, why, to := p.decide(l)
		if v != replays {
			p.left[why]++
			if p.spans[number] == nil {
				if before[number] == nil {
					before[number] = map[verdict]int{}
				}
				before[number][v]++
			}
			return nil
		}
		if p.missing[to.topic] > 0 || p.targets[to.topic] == 0 {
			p.missing[to.topic]++
			return nil
		}
		p.total++
		p.into[to.topic]++
		if p.spans[number] == nil {
			p.spans[number] = &span{first: l.msg.Offset, before: before[number]}
			if !p.positions[number].settled {
				doubts.add(to, l)
			}
		}
		p.spans[number].last = l.msg.Offset
		if p.verify {
			doubts.add(to, l)
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	for to, since := range doubts {
		found, err := p.kafka.written(ctx, p.topic, to, since)
		if err != nil {
			return fmt.Errorf("look for what an earlier run has written: %w", err)
		}
		maps.Copy(p.written, found)
	}
	return nil
}

// know finds out how many partitions a letter's target has.
func (p *plan) know(ctx context.Context, l letter) error {
	name := p.topicFor(l)
	if _, known := p.targets[name]; known || name == "" {
		return nil
	}
	topic, err := p.kafka.topic(ctx, name)
	if err != nil && !errors.Is(err, errNoTopic) {
		return err
	}
	p.targets[name] = int32(len(topic.Partitions))
	return nil
}

func (p *plan) topicFor(l letter) string { return cmp.Or(p.toTopic, l.origin.topic) }

// decide says what becomes of a letter, why not if it is not replayed, and where to.
func (p *plan) decide(l letter) (v verdict, why string, to target) {
	if flag := p.skips(l); flag != "" {
		return skipped, "left out by " + flag, to
	}
	to.topic = p.topicFor(l)
	switch {
	case to.topic == "":
		return astray, "stays: no header says which topic it comes from (-to-topic names one)", to
	case to.topic == p.topic:
		return astray, "stays: it comes from the dead-letter topic itself", to
	case l.countless:
		return returning, "stays: its header " + countHeader + " is no number, so nobody knows how often it has come back", to
	case l.redrives >= p.maxRedrives:
		return returning, fmt.Sprintf("stays: it keeps coming back (replayed %d times, -max-redrives %d)", l.redrives, p.maxRedrives), to
	}
	if count := p.targets[to.topic]; count > 0 {
		to.partition = l.partitionIn(to.topic, count)
	}
	if p.written[l.name()] {
		return there, "done: an earlier run has written it to " + to.String(), to
	}
	return replays, "", to
}

// show writes a line for each letter, but for those that a filter leaves out.
func (p *plan) show(ctx context.Context, c console) error {
	planned := 0
	err := p.each(ctx, func(l letter) error {
		if p.limit > 0 && planned == p.limit {
			return errEnough
		}
		v, why, to := p.decide(l)
		do := why
		switch {
		case v == skipped:
			return nil
		case v == there:
			planned++
			p.found++
		case v == replays && p.targets[to.topic] == 0:
			do = "cannot go to " + to.topic + ", which does not exist"
		case v == replays:
			do = "to " + to.String()
			planned++
		}
		c.say("%s/%d at %d: %s; %v", p.topic, l.msg.Partition, l.msg.Offset, do, l)
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// String describes a letter without its value. Its key and error are quoted: they may be
// anything.
func (l letter) String() string {
	var b strings.Builder
	if l.msg.Key != nil {
		fmt.Fprintf(&b, "key %.60q, ", l.msg.Key)
	}
	fmt.Fprintf(&b, "failed %s", l.failed.UTC().Format(time.RFC3339))
	if l.redrives > 0 {
		fmt.Fprintf(&b, ", replayed %d times", l.redrives)
	}
	if l.reason != "" {
		fmt.Fprintf(&b, ": %.200q", l.reason)
	}
	return b.String()
}

// summary tells what there is before anything is done.
func (p *plan) summary(c console) {
	c.say("%s: %d letters for the group %s, %d to replay", p.topic, p.letters, p.group, p.total-p.found)
	for _, topic := range slices.Sorted(maps.Keys(p.into)) {
		c.say("  %d: to the topic %s", p.into[topic], topic)
	}
	for _, why := range slices.Sorted(maps.Keys(p.left)) {
		c.say("  %d: %s", p.left[why], why)
	}
	if p.found > 0 {
		c.say("  %d: done: an earlier run has written it", p.found)
	}
	if !p.verify && !slices.ContainsFunc(p.numbers, func(n int32) bool { return p.positions[n].offset >= 0 }) {
		c.say("  the group has no offsets: it is new, or has not run for so long that they are gone (offsets.retention.minutes); -verify finds what was replayed before")
	}
}

// problem says why the plan cannot be carried out.
func (p *plan) problem() error {
	var all []error
	for _, topic := range slices.Sorted(maps.Keys(p.missing)) {
		all = append(all, fmt.Errorf("topic %s %w, and %d letters are to go there: create it, name another with -to-topic, or leave them out (-origin, -partition, -from)",
			topic, errNoTopic, p.missing[topic]))
	}
	return errors.Join(all...)
}
