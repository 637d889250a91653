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

// writeBenchstat writes one file a contender, with a line for each round. A line has the
// same name in all files, because benchstat compares what is named the same.
func writeBenchstat(folder, broker string, rounds []round) error {
	files := map[string]*bytes.Buffer{}
	for _, r := range rounds {
		for name, s := range r.Runs {
			f := files[name]
			if f == nil {
				f = &bytes.Buffer{}
				files[name] = f
				fmt.Fprintf(f, "goos: %s\ngoarch: %s\npkg: %s\nbroker: %s\n", runtime.GOOS, runtime.GOARCH, "github.com/kgroup-go/kgroup/bench", broker)
			}
			fmt.Fprintf(f, "BenchmarkMessage/%s-%d %d %.2f cpu-ns/op %.5f allocs/op %.2f B/op\n",
				strings.ToLower(strings.ReplaceAll(r.Match, " ", "")), runtime.GOMAXPROCS(0), s.Messages, s.CPU, s.Allocs, s.Bytes)
		}
	}
	for name, f := range files {
		if err := os.WriteFile(filepath.Join(folder, name+".txt"), f.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}
