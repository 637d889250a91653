//go:build unix

package main

// The command settings: bare loops with different engine settings against each
// other. From it comes what overhead calls tuned.

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/kgroup-go/kgroup"
)

// candidates change one setting of kgroup's at a time, and then combine.
func candidates(mode kgroup.Mode) ([]contender, error) {
	own, err := ofKgroup(mode)
	if err != nil {
		return nil, err
	}
	list := []contender{{nameRaw, setup{Kind: "raw", Mode: mode, Engine: own}}}
	add := func(name string, change func(*engineSettings)) {
		s := own
		if change(&s); s != own {
			list = append(list, contender{name, setup{Kind: "raw", Mode: mode, Engine: s}})
		}
	}
	for _, buffer := range []int{16, 256, 1024, 4096, 16384, 65536} {
		add(fmt.Sprintf("buffer-%d", buffer), func(s *engineSettings) { s.Buffer = buffer })
	}
	for _, kib := range []int32{256, 4096} {
		add(fmt.Sprintf("fetch-%dk", kib), func(s *engineSettings) { s.Fetch = kib << 10 })
	}
	const patient = 5 * time.Second
	add("processing-5s", func(s *engineSettings) { s.Processing = patient })
	add("buffer-16384-fetch-256k", func(s *engineSettings) { *s = engineSettings{Buffer: 16384, Fetch: 256 << 10, Processing: patient} })
	return list, nil
}

// settings is the command.
func settings(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse("settings", args, stderr)
	if err != nil {
		return err
	}
	return compete(ctx, o, stdout, stderr, o.eachMode(candidates, stderr), compareWithFirst)
}

// compareWithFirst compares everybody with the first.
func compareWithFirst(m match, rounds []round) summary {
	s := newSummary(m, rounds)
	for _, c := range m.contenders[1:] {
		s.Comparisons = append(s.Comparisons, compare(m.columns, rounds, c.name, m.contenders[0].name))
	}
	return s
}
