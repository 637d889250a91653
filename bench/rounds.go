//go:build unix

package main

// The order of play. In each round every contender runs once, one after the other;
// what is reported are comparisons within rounds.

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A contender is one way to read the topic.
type contender struct {
	name string
	setup
}

// A round holds one run of every contender.
type round struct {
	Match  string            `json:"match"`
	Number int               `json:"round"` // from 1
	Order  []string          `json:"order"`
	Runs   map[string]sample `json:"runs"`
	Failed map[string]string `json:"failed,omitempty"` // why there is no run
}

// A match is what is played: contenders that do the same job, on one broker.
type match struct {
	title      string
	broker     *broker
	job        job // what all of them are to do
	contenders []contender
	columns    []column // the numbers of a run
	rounds     int
	profiles   string // folder for CPU profiles; empty: none
	stderr     io.Writer

	// around calls run, which runs a contender, when all that belongs to its job in
	// round n is there. Nil: nothing is missing.
	around func(ctx context.Context, n int, j *job, run runner) error
	// tolerant: a contender that fails has lost a run, and the others go on.
	tolerant bool
	// cold: there is no run before the first round.
	cold bool
}

// A runner runs a contender with something to read from, which may be nil.
type runner func(ctx context.Context, stdin io.Reader) error

// play plays all rounds and tells each as soon as it is over.
func (m match) play(ctx context.Context, tell func(match, round) error) ([]round, error) {
	// The first run would be the one for which the broker compiles its code and
	// reads its files.
	if !m.cold {
		if _, err := m.run(ctx, m.contenders[0], -1); err != nil && !m.tolerant {
			return nil, fmt.Errorf("%s, before the first round: %w", m.title, err)
		}
	}
	var rounds []round
	for n := range m.rounds {
		r := round{Match: m.title, Number: n + 1, Runs: map[string]sample{}, Failed: map[string]string{}}
		for _, c := range order(m.contenders, n) {
			s, err := m.run(ctx, c, n)
			r.Order = append(r.Order, c.name)
			switch {
			case err == nil:
				r.Runs[c.name] = s
			case m.tolerant && ctx.Err() == nil:
				r.Failed[c.name] = err.Error()
			default:
				return nil, fmt.Errorf("%s, round %d, %s: %w", m.title, n+1, c.name, err)
			}
		}
		rounds = append(rounds, r)
		if err := tell(m, r); err != nil {
			return nil, err
		}
	}
	return rounds, nil
}

// runWithin is how long one run may take, so that a contender that hangs does not keep
// the others from playing.
const runWithin = 15 * time.Minute

func (m match) run(ctx context.Context, c contender, n int) (s sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, runWithin)
	defer cancel()
	j := m.jobOf(c, n)
	run := func(ctx context.Context, stdin io.Reader) (err error) {
		s, err = start(ctx, j, stdin, m.stderr)
		return err
	}
	if m.around != nil {
		err = m.around(ctx, n, &j, run)
	} else {
		err = run(ctx, nil)
	}
	return s, err
}

func (m match) jobOf(c contender, n int) job {
	// A group of its own for each run: it begins at the beginning.
	id := strings.ToLower(fmt.Sprintf("%s-%s-%d", strings.NewReplacer(",", "", " ", "-").Replace(m.title), c.name, n+1))
	j := m.job
	j.setup = c.setup
	j.Brokers, j.CA = m.broker.addrs, m.broker.ca
	j.Group = "bench-" + id
	if m.profiles != "" && n >= 0 {
		j.Profile = filepath.Join(m.profiles, id+".pprof")
	}
	return j
}

// order is who runs after whom in round n: forwards and backwards in turn (A B B A),
// so that a machine that gets slower all the time favours nobody, and beginning with
// another contender every second round, so that nobody always follows the same one.
func order(contenders []contender, n int) []contender {
	k := n / 2 % len(contenders)
	list := slices.Concat(contenders[k:], contenders[:k])
	if n%2 == 1 {
		slices.Reverse(list)
	}
	return list
}
