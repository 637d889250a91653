//go:build unix

package main

// The command settings: bare loops with different engine settings against each
// other. From it comes what overhead calls tuned.

import (
	"context"
	"fmt"
	"io"
	"time"
)

// candidates change one setting of kgroup's at a time, and then combine.
func candidates() []contender {
	list := []contender{{name: nameRaw, kind: "raw", engine: ofKgroup}}
	for _, buffer := range []int{16, 1024, 4096, 16384, 65536} {
		s := ofKgroup
		s.Buffer = buffer
		list = append(list, contender{name: fmt.Sprintf("buffer-%d", buffer), kind: "raw", engine: s})
	}
	for _, kib := range []int32{256, 4096} {
		s := ofKgroup
		s.Fetch = kib << 10
		list = append(list, contender{name: fmt.Sprintf("fetch-%dk", kib), kind: "raw", engine: s})
	}
	s := ofKgroup
	s.Processing = 5 * time.Second
	list = append(list, contender{name: "processing-5s", kind: "raw", engine: s})
	s = engineSettings{Buffer: 16384, Fetch: 256 << 10, Processing: s.Processing}
	return append(list, contender{name: "buffer-16384-fetch-256k", kind: "raw", engine: s})
}

// settings is the command.
func settings(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse("settings", args, stderr)
	if err != nil {
		return err
	}
	return with(ctx, o.broker, o.version, o.topic(), func(b *broker) error {
		rep := newReport(stdout, o.json)
		if err := rep.machine(b, o); err != nil {
			return err
		}
		for _, mode := range o.modes {
			m := o.match(b, mode, stderr)
			m.contenders = candidates()
			rounds, err := m.play(ctx, rep.round)
			if err != nil {
				return err
			}
			s := newSummary(m, rounds)
			for _, c := range m.contenders[1:] {
				s.Comparisons = append(s.Comparisons, compare(rounds, c.name, nameRaw))
			}
			if err := rep.summary(s); err != nil {
				return err
			}
		}
		return nil
	})
}
