//go:build unix

// Command bench measures kgroup, always as a ratio: what it is compared with runs
// alternately with it, in the same minutes and on the same machine. Run it from a
// clone:
//
//	go run ./bench overhead          what kgroup costs over a bare loop
//	go run ./bench calm              what retry, dead letters and a breaker cost while nothing fails
//	go run ./bench peers             kgroup and other libraries, side by side
//	go run ./bench keyed             how near several workers on a partition come to what is possible
//	go run ./bench stall             how long messages wait while a member joins and leaves
//	go run ./bench memory            what full queues hold, and whether rebalances leave something behind
//	go run ./bench idle              what a member uses that has nothing to do
//	go run ./bench settings          the engine settings with which a bare loop is fastest
//
// Each takes -h.
package main

// The commands. What a measurement is made of: options.go has the flags and plays the
// matches, broker.go the topic that is read (keys.go its keys,
// tls.go if it is encrypted, produce.go if it is written to meanwhile), contender.go
// the processes that read it, library.go and lib_*.go the loops in them, meter.go the
// numbers taken there, rounds.go the order of play, stats.go, report.go and
// benchstat.go what is made of the numbers.

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

type command struct {
	name, does string
	run        func(ctx context.Context, args []string, stdout, stderr io.Writer) error
}

func commands() []command {
	return []command{
		{"overhead", "what kgroup costs over a bare loop", overhead},
		{"calm", "what retry, dead letters and a breaker cost while nothing fails", calm},
		{"peers", "kgroup and other libraries, side by side", peers},
		{"keyed", "how near several workers on a partition come to what is possible", keyed},
		{"stall", "how long messages wait while a member joins and leaves", stall},
		{"memory", "what full queues hold, and whether rebalances leave something behind", memory},
		{"idle", "what a member uses that has nothing to do", idle},
		{"settings", "the engine settings with which a bare loop is fastest", settings},
	}
}

func main() { os.Exit(status(os.Args[1:])) }

// status runs one command and returns the exit status.
func status(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, args, os.Stdout, os.Stderr)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		return 2
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 {
		if args[0] == contenderCommand {
			return contend(ctx, args[1:], stdout)
		}
		for _, c := range commands() {
			if c.name == args[0] {
				return c.run(ctx, args[1:], stdout, stderr)
			}
		}
	}
	usage := "usage: go run ./bench <command> [flags]\n"
	for _, c := range commands() {
		usage += fmt.Sprintf("  %-10s %s\n", c.name, c.does)
	}
	if _, err := io.WriteString(stderr, usage); err != nil {
		return err
	}
	if len(args) == 0 {
		return flag.ErrHelp
	}
	return fmt.Errorf("unknown command %q", args[0])
}
