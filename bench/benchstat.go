//go:build unix

package main

// The numbers as files in Go's benchmark format, for bin/benchstat, which says whether
// a difference is more than chance. It compares contenders over all rounds, not within
// them: its intervals are wider than those of report.go where the machine is restless.

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// benchstat is the text of the files, by contender.
type benchstat map[string]*bytes.Buffer

// add writes a line for each round. It has the same name in all files, because benchstat
// compares what is named the same.
func (files benchstat) add(m match, rounds []round) {
	for _, r := range rounds {
		for name, s := range r.Runs {
			f := files[name]
			if f == nil {
				f = &bytes.Buffer{}
				files[name] = f
				fmt.Fprintf(f, "goos: %s\ngoarch: %s\npkg: github.com/kgroup-go/kgroup/bench\nbroker: %s\n", runtime.GOOS, runtime.GOARCH, m.broker.name)
			}
			fmt.Fprintf(f, "BenchmarkMessage/%s-%d %d", strings.ToLower(strings.ReplaceAll(m.title, " ", "")), runtime.GOMAXPROCS(0), max(1, s.Messages))
			for _, col := range m.columns {
				if col.unit != "" {
					fmt.Fprintf(f, " %.6g %s", col.of(s), col.unit)
				}
			}
			fmt.Fprintln(f)
		}
	}
}

func (files benchstat) write(folder string) error {
	for name, f := range files {
		if err := os.WriteFile(filepath.Join(folder, name+".txt"), f.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}
