//go:build unix

package main

// The command overhead: kgroup against the bare loop. The bare loop runs with the
// engine settings that kgroup uses, with the fastest ones that we know where those
// are others, and once more with the first, to show how far two runs of the same
// thing are apart.

import (
	"context"
	"io"

	"github.com/kgroup-go/kgroup"
)

// Names of contenders.
const (
	nameKgroup = "kgroup"
	nameRaw    = "raw"
	nameTuned  = "raw-tuned"
	nameAgain  = "raw-again"
)

// tuned are the settings of a bare loop that did best in the command settings, by a
// margin that is mostly noise. They are kgroup's own but for the buffer, which in
// Multiplex mode is kgroup's as well: buffers of 16384 and more and fetches of 256 KiB
// or 4 MiB cost more CPU for each message, and a longer MaxProcessingTime changes
// nothing for a handler that does nothing.
func tuned(mode kgroup.Mode, own engineSettings) engineSettings {
	own.Buffer = 4096
	if mode == kgroup.Partitions {
		own.Buffer = 1024
	}
	return own
}

func contenders(mode kgroup.Mode) ([]contender, error) {
	own, err := ofKgroup(mode)
	if err != nil {
		return nil, err
	}
	raw := setup{Kind: "raw", Mode: mode, Engine: own}
	list := []contender{{nameRaw, raw}, {nameKgroup, setup{Kind: "kgroup", Mode: mode}}}
	if best := tuned(mode, own); best != own {
		list = append(list, contender{nameTuned, setup{Kind: "raw", Mode: mode, Engine: best}})
	}
	return append(list, contender{nameAgain, raw}), nil
}

// overhead is the command.
func overhead(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse("overhead", args, stderr)
	if err != nil {
		return err
	}
	return compete(ctx, o, stdout, stderr, o.eachMode(contenders, stderr), summarize)
}

// summarize compares kgroup with the bare loops, and those that do the same with each
// other. The one against which kgroup looks worst counts.
func summarize(m match, rounds []round) summary {
	s := newSummary(m, rounds)
	worst := 0.0
	for _, c := range m.contenders {
		if c.name != nameRaw && c.name != nameTuned {
			continue
		}
		against := compare(m.columns, rounds, nameKgroup, c.name)
		if ratio := against.Numbers[rate.key].Median; s.Counts == "" || ratio < worst {
			s.Counts, worst = c.name, ratio
		}
		s.Comparisons = append(s.Comparisons, against)
	}
	s.Comparisons = append(s.Comparisons, compare(m.columns, rounds, nameAgain, nameRaw))
	return s
}
