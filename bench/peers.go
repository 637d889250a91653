//go:build unix

package main

// The command peers: kgroup against the other libraries, all with a handler that does
// nothing and a commit a second.

import (
	"context"
	"io"
	"slices"

	"github.com/kgroup-go/kgroup"
)

// Names of contenders.
const (
	nameSarama      = "sarama"
	nameSaramaAgain = "sarama-again"
)

// bothModes are raw and kgroup in the modes that were asked for.
func bothModes(modes []kgroup.Mode) ([]contender, error) {
	var list []contender
	for _, mode := range modes {
		own, err := ofKgroup(mode)
		if err != nil {
			return nil, err
		}
		list = append(list,
			contender{inMode(nameRaw, mode), setup{Kind: "raw", Mode: mode, Engine: own}},
			contender{inMode(nameKgroup, mode), setup{Kind: "kgroup", Mode: mode}},
		)
	}
	return list, nil
}

// inMode is the name of a contender where both modes play in one match.
func inMode(name string, mode kgroup.Mode) string {
	return name + map[kgroup.Mode]string{kgroup.Multiplex: "-multiplex", kgroup.Partitions: "-partitions"}[mode]
}

// peers is the command.
func peers(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse("peers", args, stderr)
	if err != nil {
		return err
	}
	return compete(ctx, o, stdout, stderr, func(b *broker) ([]match, error) {
		list, err := bothModes(o.modes)
		if err != nil {
			return nil, err
		}
		m := o.match("peers", b, stderr)
		m.contenders = append(list,
			contender{nameSarama, setup{Kind: "sarama"}},
			contender{"franz-go", setup{Kind: "franz-go"}},
			contender{"kafka-go", setup{Kind: "kafka-go"}},
			contender{"watermill", setup{Kind: "watermill"}},
			contender{nameSaramaAgain, setup{Kind: "sarama"}},
		)
		return []match{m}, nil
	}, compareKgroup)
}

// compareKgroup holds kgroup in each mode against all others that are there once, and
// those that are there twice against each other.
func compareKgroup(m match, rounds []round) summary {
	s := newSummary(m, rounds)
	isKgroup := func(c contender) bool { return c.Kind == "kgroup" }
	for _, c := range m.contenders {
		if !isKgroup(c) {
			continue
		}
		for _, other := range m.contenders {
			if isKgroup(other) || other.name == nameSaramaAgain || other.Kind == "raw" && other.Mode != c.Mode {
				continue
			}
			s.Comparisons = append(s.Comparisons, compare(m.columns, rounds, c.name, other.name))
		}
	}
	if slices.ContainsFunc(m.contenders, func(c contender) bool { return c.name == nameSaramaAgain }) {
		s.Comparisons = append(s.Comparisons, compare(m.columns, rounds, nameSaramaAgain, nameSarama))
	}
	return s
}
