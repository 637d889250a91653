// Commit has each effect exactly once, although its process is killed. The handler
// writes the effect and the message's offset into a database in one transaction; after
// a restart the database, not Kafka, knows which messages are done.
//
//	go run ./examples/commit
//
// Kafka delivers again what was handled after the last commit: no consumer can avoid
// that when it crashes. But a message at or below the offset in the database is
// recognised, and settled without a second effect. With that in place commits are only
// about how much is read again, so they may be rare: here a ticker calls
// Consumer.Commit, and the automatic ones are off.
//
// The program starts itself twice as a member of the group. The first kills itself
// (SIGKILL) half way, at the worst moment: the effect is written, the handler has not
// returned. The second finishes the work. Then the database is asked for the proof.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kgroup-go/kgroup/examples/internal/sandbox"
)

const (
	payments   = 60
	partitions = 2
)

// A Payment is the value of a message.
type Payment struct {
	ID    int `json:"id"`
	Cents int `json:"cents"`
}

func run(ctx context.Context) (err error) {
	kafka, err := sandbox.Start(ctx, "commit", sandbox.Topics{"payments": partitions})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kafka.Close(ctx)) }()
	samples := make([]any, payments)
	for i := range samples {
		samples[i] = Payment{ID: i, Cents: 100 + i}
	}
	if err := kafka.Produce(ctx, "payments", samples...); err != nil {
		return err
	}

	dir, err := os.MkdirTemp("", "kgroup-example-commit-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ledger, err := openLedger(ctx, filepath.Join(dir, "ledger.sqlite"))
	if err != nil {
		return err
	}
	defer ledger.close()

	t := task{
		Member:   "first",
		Brokers:  kafka.Brokers,
		Group:    kafka.Group("ledger"),
		Topic:    kafka.Topic("payments"),
		Database: ledger.path,
		DieAfter: payments / 2,
	}
	killed := process(ctx, t)
	switch {
	case ctx.Err() != nil:
		return killed
	case killed == nil:
		return errors.New("the first member was to be killed, but has ended")
	}
	fmt.Println("the first member:", killed)
	fmt.Printf("the group waits %v for it before its partitions go to the second\n", session)
	t.Member, t.DieAfter = "second", 0
	if err := process(ctx, t); err != nil {
		return fmt.Errorf("the second member: %w", err)
	}
	return prove(ctx, ledger)
}

// process runs a member as a process of its own and waits for its end.
func process(ctx context.Context, t task) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	arg, err := json.Marshal(t)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, string(arg))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // let it leave the group
	cmd.WaitDelay = 30 * time.Second                                      // more than its ShutdownTimeout
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	stdin, err := cmd.StdinPipe() // nothing is written: its end tells the member that we are gone
	if err != nil {
		return err
	}
	defer stdin.Close()
	err = cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// prove fails if an effect is missing, or there twice, or if nothing was repeated, so
// that nothing has been shown.
func prove(ctx context.Context, l *ledger) error {
	t, err := l.totals(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%d payments: %d effects, of %d different payments; %d repeats recognised\n", payments, t.effects, t.different, t.repeats)
	if t.effects != payments || t.different != payments || t.repeats == 0 {
		return errors.New("that is not each effect exactly once, with repeats recognised")
	}
	return nil
}

func main() {
	slog.SetLogLoggerLevel(slog.LevelWarn)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	work := run
	if len(os.Args) > 1 { // started by process
		work = func(ctx context.Context) error { return consume(ctx, os.Args[1]) }
	}
	err := work(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
