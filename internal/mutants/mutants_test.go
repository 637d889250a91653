package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A safeguard whose lines have changed is noticed with the change, not when the mutants are
// run the next time.
func TestSafeguardsAreThere(t *testing.T) {
	names := map[string]bool{}
	for _, m := range mutants {
		text, err := os.ReadFile(filepath.Join("..", "..", m.file))
		require.NoError(t, err, m.name)
		assert.Equal(t, 1, strings.Count(string(text), m.old), "%s: how often it is in %s", m.name, m.file)
		assert.False(t, names[m.name], "two of the name %s", m.name)
		names[m.name] = true
	}
}
