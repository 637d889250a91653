package main

// The database: effects, and how far each partition has got, written together or not
// at all.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	_ "modernc.org/sqlite" // SQLite in Go: nothing to install

	"github.com/kgroup-go/kgroup"
)

const schema = `
CREATE TABLE IF NOT EXISTS effects (
	payment INTEGER NOT NULL, -- without UNIQUE: a repeated effect must show, not fail
	cents   INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS progress (
	topic     TEXT    NOT NULL,
	partition INTEGER NOT NULL,
	offset    INTEGER NOT NULL, -- of the last message with an effect
	repeats   INTEGER NOT NULL DEFAULT 0,
	PRIMARY KEY (topic, partition)
);`

type ledger struct {
	path string
	db   *sql.DB
}

func openLedger(ctx context.Context, path string) (*ledger, error) {
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_pragma=busy_timeout(5000)&_pragma=journal_mode(wal)")
	if err != nil {
		return nil, fmt.Errorf("open the ledger: %w", err)
	}
	db.SetMaxOpenConns(1) // SQLite has one writer at a time: better wait here than for its lock
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return nil, errors.Join(fmt.Errorf("open the ledger: %w", err), db.Close())
	}
	return &ledger{path: path, db: db}, nil
}

func (l *ledger) close() { _ = l.db.Close() }

// record writes the effect of a payment, unless it is there already.
//
// Messages of a partition are handled one after the other, in offset order, so one
// offset says it all: everything up to it has its effect. Two members never handle
// the same partition at once unless a session was lost; the transaction is what makes
// even that harmless.
func (l *ledger) record(ctx context.Context, p Payment, msg kgroup.Message) (repeat bool, err error) {
	tx, err := l.db.BeginTx(ctx, nil)
	if err != nil {
		return false, fmt.Errorf("ledger: begin: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("ledger: payment %d: %w", p.ID, err)
			_ = tx.Rollback() // err is what matters
		}
	}()

	done := int64(-1)
	err = tx.QueryRowContext(ctx, `SELECT offset FROM progress WHERE topic = ? AND partition = ?`, msg.Topic, msg.Partition).Scan(&done)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, err
	}
	if msg.Offset <= done {
		if _, err := tx.ExecContext(ctx, `UPDATE progress SET repeats = repeats + 1 WHERE topic = ? AND partition = ?`, msg.Topic, msg.Partition); err != nil {
			return false, err
		}
		return true, tx.Commit()
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO effects (payment, cents) VALUES (?, ?)`, p.ID, p.Cents); err != nil {
		return false, err
	}
	_, err = tx.ExecContext(ctx, `
		INSERT INTO progress (topic, partition, offset) VALUES (?, ?, ?)
		ON CONFLICT (topic, partition) DO UPDATE SET offset = excluded.offset`, msg.Topic, msg.Partition, msg.Offset)
	if err != nil {
		return false, err
	}
	return false, tx.Commit()
}

type totals struct{ effects, different, repeats int }

func (l *ledger) totals(ctx context.Context) (t totals, err error) {
	err = l.db.QueryRowContext(ctx, `
		SELECT count(*), count(DISTINCT payment), (SELECT coalesce(sum(repeats), 0) FROM progress)
		FROM effects`).Scan(&t.effects, &t.different, &t.repeats)
	if err != nil {
		return t, fmt.Errorf("ledger: count: %w", err)
	}
	return t, nil
}
