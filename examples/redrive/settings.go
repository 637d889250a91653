package main

// What the program is told, and which letters that leaves out.

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

type settings struct {
	brokers      []string
	topic, group string
	security     security

	replay      bool
	verify      bool
	toTopic     string
	rate        float64
	limit       int
	maxRedrives int
	progress    time.Duration
	session     time.Duration

	from, to  bound
	partition int // -1: all
	origin    string
	key       *string
	reason    *regexp.Regexp
	maxAge    time.Duration
	now       time.Time // what ages are counted from
}

func parse(args []string, stderr io.Writer) (settings, error) {
	s := settings{now: time.Now()}
	s.from.now, s.to.now = s.now, s.now
	flags := flag.NewFlagSet("redrive", flag.ContinueOnError)
	flags.SetOutput(stderr)
	brokers := flags.String("brokers", os.Getenv("KAFKA_BROKERS"), "addresses, `host:port,...` (KAFKA_BROKERS)")
	flags.StringVar(&s.topic, "topic", os.Getenv("KAFKA_TOPIC"), "`name` of the dead-letter topic (KAFKA_TOPIC)")
	flags.StringVar(&s.group, "group", os.Getenv("KAFKA_GROUP"), "`name` of the consumer group that remembers what was replayed; without it the topic's, and \".redrive\" (KAFKA_GROUP)")
	s.security.flags(flags)

	flags.BoolVar(&s.replay, "replay", false, "do it, and not only show it")
	flags.BoolVar(&s.verify, "verify", false, "look for every letter in its target, not only for those that a killed run may have written: reads the targets from the time of the oldest message on")
	flags.StringVar(&s.toTopic, "to-topic", "", "`name` of the topic to write to; without it the one that each letter comes from")
	flags.Float64Var(&s.rate, "rate", 10, "letters a second; 0: as fast as it goes")
	flags.IntVar(&s.limit, "limit", 0, "so many letters at most; 0: all")
	flags.IntVar(&s.maxRedrives, "max-redrives", 3, "how often a letter is replayed before it stays")
	flags.DurationVar(&s.progress, "progress", 5*time.Second, "time between two lines that tell how far it is")

	flags.DurationVar(&s.session, "session", 6*time.Second, "how long the group keeps a place for a run that was killed; brokers take no less than their group.min.session.timeout.ms")

	flags.Var(&s.from, "from", "first letter: an offset, the `time` it failed at (RFC 3339), or a time ago (90m)")
	flags.Var(&s.to, "to", "the letter after the last: an offset, a `time` (RFC 3339), or a time ago (90m)")
	flags.IntVar(&s.partition, "partition", -1, "`number` of the only partition to read; -1: all")
	flags.StringVar(&s.origin, "origin", "", "`name` of the only topic whose letters are replayed")
	flags.Func("key", "the only `key` whose letters are replayed", func(key string) error {
		s.key = &key
		return nil
	})
	flags.Func("error", "`regular expression` that a letter's error must match", func(text string) (err error) {
		s.reason, err = regexp.Compile(text)
		return err
	})
	flags.DurationVar(&s.maxAge, "max-age", 0, "leave out messages that were sent longer ago than this; 0: none")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if flags.NArg() > 0 {
		return s, fmt.Errorf("%q belongs to no flag", flags.Arg(0))
	}
	s.brokers = strings.FieldsFunc(*brokers, func(r rune) bool { return r == ',' })
	s.group = cmp.Or(s.group, s.topic+".redrive")
	return s, s.check()
}

func (s settings) check() error {
	switch {
	case len(s.brokers) == 0:
		return errors.New("no brokers: name them with -brokers or KAFKA_BROKERS")
	case s.topic == "":
		return errors.New("no dead-letter topic: name it with -topic or KAFKA_TOPIC")
	case s.toTopic == s.topic:
		return fmt.Errorf("-to-topic is the dead-letter topic itself, %s: what is replayed would be a letter again", s.topic)
	case s.rate < 0 || math.IsNaN(s.rate):
		return fmt.Errorf("-rate %v is no rate; 0 is as fast as it goes", s.rate)
	case s.limit < 0:
		return fmt.Errorf("-limit %d is negative; 0 is all", s.limit)
	case s.maxRedrives < 1:
		return fmt.Errorf("-max-redrives %d would replay nothing; use at least 1", s.maxRedrives)
	case s.progress <= 0:
		return fmt.Errorf("-progress %v is no time between two lines", s.progress)
	case s.maxAge < 0:
		return fmt.Errorf("-max-age %v is negative; 0 is any", s.maxAge)
	}
	return nil
}

// skips names the flag that leaves a letter out, if there is one.
func (s settings) skips(l letter) string {
	switch {
	case s.from.excludesBefore(l):
		return "-from"
	case s.to.given && !s.to.excludesBefore(l):
		return "-to"
	case s.origin != "" && l.origin.topic != s.origin:
		return "-origin"
	case s.key != nil && (l.msg.Key == nil || string(l.msg.Key) != *s.key):
		return "-key"
	case s.reason != nil && !s.reason.MatchString(l.reason):
		return "-error"
	case s.maxAge > 0 && s.now.Sub(l.sent) > s.maxAge:
		return "-max-age"
	default:
		return ""
	}
}

// A bound is one end of a range of letters: an offset, the same in each partition, or a
// time at which they failed. It is a [flag.Value].
type bound struct {
	given  bool
	offset int64     // if at is zero
	at     time.Time // not in the order of offsets
	now    time.Time
	text   string
}

func (b *bound) String() string { return b.text }

func (b *bound) Set(text string) error {
	b.given, b.text = true, text
	var err error
	if b.offset, err = strconv.ParseInt(text, 10, 64); err == nil {
		return nil
	}
	if ago, err := time.ParseDuration(text); err == nil {
		b.at = b.now.Add(-ago)
		return nil
	}
	if b.at, err = time.Parse(time.RFC3339, text); err == nil {
		return nil
	}
	return errors.New("is no offset (120), time (2026-03-29T02:00:00Z) or time ago (90m)")
}

// excludesBefore reports whether the letter is before the bound.
func (b *bound) excludesBefore(l letter) bool {
	switch {
	case !b.given:
		return false
	case b.at.IsZero():
		return l.msg.Offset < b.offset
	default:
		return l.failed.Before(b.at)
	}
}

// atOffset is the bound's offset, or what there is where it has none.
func (b *bound) atOffset(otherwise int64) int64 {
	if b.given && b.at.IsZero() {
		return b.offset
	}
	return otherwise
}
