// Redrive replays a dead-letter topic: it writes the letters to the topics they come
// from, when what kept them from being handled has been mended.
//
//	go run ./examples/redrive -brokers kafka-1:9092 -topic orders.dlq            shows what it would do
//	go run ./examples/redrive -brokers kafka-1:9092 -topic orders.dlq -replay    does it
//
// Without -replay nothing is written and nothing committed. The letters may be those
// of kgroup, of Spring Kafka or of Kafka Connect: their headers say where each comes
// from. What is replayed keeps its key, value, timestamp and headers, and goes to the
// partition it was in. Without any flag, and without KAFKA_BROKERS, the program shows
// itself on a broker of its own.
//
// Which letters? Those in the topic when the program starts that its consumer group
// has not passed. Filters choose among them:
//
//	-from 120  -to 140      offsets, of each partition: from the first on, up to before the second
//	-from 2h   -to 10m      letters that failed so long ago: at most 2 hours, at least 10 minutes
//	-from 2026-03-29T02:00:00Z  likewise a time (RFC 3339)
//	-partition 3            of the dead-letter topic
//	-origin orders          the topic they come from
//	-key A-7                exactly this key
//	-error 'timeout|reset'  a regular expression, for the text of the error
//	-max-age 24h            messages that were sent no longer ago than this
//	-limit 10               so many, and leave the others for the next run
//
// The group (-group; the topic's name and ".redrive") goes as far as the last letter
// that was replayed, over those that the filters skip on the way: use another group to
// come back for them, with -verify. A run that replays nothing moves nothing.
//
// Twice? A letter is not replayed twice, also if the program is killed at any moment.
// Offsets are committed after every letter, so at most one letter of each partition is
// in doubt, and the next run looks whether it is in its target already: what is
// replayed has a header that names the letter (kgroup-redriven-from). With -verify it
// looks for every letter. That is for a second group, and for one whose offsets are
// gone, which Kafka forgets when a group has not run for a week.
//
// A letter that comes back has been counted (kgroup-redrives). Once it has been
// replayed -max-redrives times it stays in the dead-letter topic, and is reported:
// somebody has to look at it.
//
// Keys and errors are shown, values never. Ctrl-C ends it in good order; the next run
// goes on from there.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// A console is where the program writes to.
type console struct {
	results io.Writer // stdout
	notes   io.Writer // stderr
}

// say writes a line of the results, and note one of what goes on.
func (c console) say(format string, args ...any)  { _, _ = fmt.Fprintf(c.results, format+"\n", args...) }
func (c console) note(format string, args ...any) { _, _ = fmt.Fprintf(c.notes, format+"\n", args...) }

// run is the program.
func run(ctx context.Context, args []string, c console) error {
	s, err := parse(args, c.notes)
	if err != nil {
		return err
	}
	k, err := connect(ctx, s)
	if err != nil {
		return err
	}
	defer k.close()
	if s.replay {
		if err := k.waitForGroup(ctx, s.group, s.session, c); err != nil {
			return err
		}
	}
	p, err := makePlan(ctx, k, s)
	if err != nil {
		return err
	}
	if !s.replay {
		if err := p.show(ctx, c); err != nil {
			return err
		}
	}
	p.summary(c)
	switch {
	case p.problem() != nil: // before anything is written
		return p.problem()
	case !s.replay || p.total == 0:
		return nil
	default:
		return replay(ctx, p, c)
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	work := run
	if len(os.Args) == 1 && os.Getenv("KAFKA_BROKERS") == "" {
		work = demonstrate
	}
	err := work(ctx, os.Args[1:], console{os.Stdout, os.Stderr})
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
