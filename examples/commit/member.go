package main

// A member of the group, in a process of its own. What its handler writes, and how a
// repeat is recognised, is in ledger.go.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/kgroup-go/kgroup"
)

const (
	// session is the shortest that brokers take unless told otherwise: so long the
	// group waits for a member that was killed.
	session = 6 * time.Second

	commitInterval = 100 * time.Millisecond
	handlingTime   = 10 * time.Millisecond
)

// A task is what a member is told by its parent.
type task struct {
	Member   string
	Brokers  []string
	Group    string
	Topic    string
	Database string
	DieAfter int // effects; 0: never
}

type member struct {
	task
	ledger  *ledger
	effects atomic.Int64
	stop    context.CancelFunc
}

func consume(ctx context.Context, arg string) error {
	var m member
	if err := json.Unmarshal([]byte(arg), &m.task); err != nil {
		return fmt.Errorf("this example takes no arguments: %w", err)
	}
	ctx, m.stop = context.WithCancel(ctx)
	defer m.stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends with the parent, whatever ends that
		m.stop()
	}()
	var err error
	if m.ledger, err = openLedger(ctx, m.Database); err != nil {
		return err
	}
	defer m.ledger.close()

	consumer, err := kgroup.New(kgroup.Config{
		Brokers:        m.Brokers,
		Group:          m.Group,
		Topics:         kgroup.Topics{m.Topic: {Handler: kgroup.JSON(m.pay)}},
		SessionTimeout: session,
		CommitInterval: -1, // rebalances and the end of Run commit too, whatever this says
	})
	if err != nil {
		return err
	}
	committing := make(chan struct{})
	go func() {
		defer close(committing)
		commitPeriodically(ctx, consumer)
	}()
	err = consumer.Run(ctx)
	m.stop() // also if Run could not start
	<-committing
	return err
}

// commitPeriodically is where a service decides when to commit: every so often, after
// so many effects, when its own output has been flushed.
func commitPeriodically(ctx context.Context, consumer *kgroup.Consumer) {
	ticker := time.NewTicker(commitInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			err := consumer.Commit(ctx)
			if err != nil && !errors.Is(err, kgroup.ErrNotRunning) && ctx.Err() == nil {
				slog.Warn("commit failed; the next one takes it along", "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// pay handles a payment. It runs for both partitions at once.
func (m *member) pay(ctx context.Context, p Payment, msg kgroup.Message) error {
	time.Sleep(handlingTime) // the work
	repeat, err := m.ledger.record(ctx, p, msg)
	if err != nil {
		return err // nothing was written, so trying again is safe
	}
	if repeat {
		fmt.Printf("the %s member: payment %d is in the ledger already\n", m.Member, p.ID)
		return nil
	}
	if m.effects.Add(1) == int64(m.DieAfter) {
		return m.die(p)
	}
	t, err := m.ledger.totals(ctx)
	if err == nil && t.effects == payments {
		m.stop()
	}
	return err
}

func (m *member) die(p Payment) error {
	fmt.Printf("the %s member: payment %d is in the ledger; killing myself before its handler returns\n", m.Member, p.ID)
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		return err
	}
	if err := self.Kill(); err != nil {
		return err
	}
	select {} // the signal is on its way
}
