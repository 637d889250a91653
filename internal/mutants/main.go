// Mutants takes one safeguard of kgroup out at a time, in a copy of the tree, and
// runs the test that is said to guard it. It fails unless that test goes red: a
// safeguard whose absence no test notices is either useless or unguarded.
//
// Run it from the root of the repository: go run ./internal/mutants [name ...]
package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A mutant is one safeguard taken out: every occurrence of old in file becomes new.
type mutant struct {
	name     string
	prevents string // what happens without it
	file     string
	old, new string
	module   string // directory of the module whose test guards it
	test     string // its name, as for go test -run
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(names []string) error {
	tree, err := os.MkdirTemp("", "kgroup-mutants-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tree) }()
	if err := copyTree(".", tree); err != nil {
		return fmt.Errorf("copy the tree (is this the root of the repository?): %w", err)
	}
	var survived []string
	for _, m := range mutants {
		if len(names) > 0 && !slices.Contains(names, m.name) {
			continue
		}
		began := time.Now()
		verdict, err := m.try(tree)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		fmt.Printf("%-36s %-10s %-60s %5.1fs\n", m.name, verdict, m.test, time.Since(began).Seconds())
		if verdict != "caught" {
			survived = append(survived, fmt.Sprintf("%s (it prevents this: %s)", m.name, m.prevents))
		}
	}
	if len(survived) > 0 {
		return fmt.Errorf("not caught: %s", strings.Join(survived, ", "))
	}
	return nil
}

// try runs the mutant's test with the safeguard in, which must pass, and without it.
func (m mutant) try(tree string) (string, error) {
	path := filepath.Join(tree, m.file)
	original, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if !bytes.Contains(original, []byte(m.old)) {
		return "", fmt.Errorf("%s does not contain the safeguard any more:\n%s", m.file, m.old)
	}
	if out, passed := m.runTest(tree); !passed {
		return "", fmt.Errorf("%s fails with the safeguard in place:\n%s", m.test, out)
	}
	changed := bytes.ReplaceAll(original, []byte(m.old), []byte(m.new))
	if err := os.WriteFile(path, changed, 0o600); err != nil {
		return "", err
	}
	defer func() { _ = os.WriteFile(path, original, 0o600) }()
	out, passed := m.runTest(tree)
	switch {
	case passed:
		return "SURVIVED", nil
	case bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("[setup failed]")):
		return "", fmt.Errorf("the mutant does not compile:\n%s", out)
	default:
		return "caught", nil
	}
}

func (m mutant) runTest(tree string) (output []byte, passed bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "test", "-vet=off", "-count=1", "-timeout=60s", "-run", "^"+strings.ReplaceAll(m.test, "/", "$/^")+"$", ".") //nolint:gosec // our own arguments
	cmd.Dir = filepath.Join(tree, m.module)
	output, err := cmd.CombinedOutput()
	if err == nil && bytes.Contains(output, []byte("no tests to run")) {
		return append(output, "no such test"...), false
	}
	return output, err == nil
}

// copyTree copies the Go parts of the repository.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && (name == "bin" || path != "." && strings.HasPrefix(name, ".")) {
			return filepath.SkipDir
		}
		target := filepath.Join(to, path)
		if d.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, content, 0o600)
	})
}
