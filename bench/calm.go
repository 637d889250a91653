//go:build unix

package main

// The command calm: what retry, dead letters and a breaker cost while nothing fails.
// kgroup with its defaults, with those configured, and once more with its defaults, to
// show how far two runs of the same thing are apart.

import (
	"context"
	"io"

	"github.com/kgroup-go/kgroup"
)

// Names of contenders, besides nameKgroup.
const (
	nameLetters     = "kgroup-letters"
	nameKgroupAgain = "kgroup-again"
)

// letters is the dead-letter topic, which stays empty.
const letters = "bench-letters"

func calmContenders(mode kgroup.Mode) ([]contender, error) {
	return []contender{
		{nameKgroup, setup{Kind: "kgroup", Mode: mode}},
		{nameLetters, setup{Kind: "kgroup", Mode: mode, Letters: letters}},
		{nameKgroupAgain, setup{Kind: "kgroup", Mode: mode}},
	}, nil
}

// calm is the command.
func calm(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse("calm", args, stderr)
	if err != nil {
		return err
	}
	o.topics = append(o.topics, topic{Name: letters, Partitions: o.topic().Partitions})
	return compete(ctx, o, stdout, stderr, o.eachMode(calmContenders, stderr), compareWithFirst)
}
