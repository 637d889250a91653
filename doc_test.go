package kgroup

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A promise that names no test, or one that does not exist, is only a wish.
func TestPromisesNameTheirTests(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	tests := read(t, "*_test.go")
	scenarios := read(t, filepath.Join("e2e", "scenario_*_test.go"))
	promised, _, found := strings.Cut(string(text), "# Bounds")
	require.True(t, found)
	promises := regexp.MustCompile(`\n//  \d\. `).Split(promised, -1)[1:]
	require.Len(t, promises, 8)
	for _, promise := range promises {
		names := regexp.MustCompile(`Test\w+`).FindAllString(promise, -1)
		assert.NotEmpty(t, names, promise)
		for _, name := range names {
			assert.Contains(t, tests, "func "+name+"(t *testing.T)", promise)
		}
		for _, quoted := range regexp.MustCompile(`"([^"]+)"`).FindAllStringSubmatch(promise, -1) {
			scenario := strings.Join(strings.Fields(strings.ReplaceAll(quoted[1], "//", "")), " ")
			assert.Contains(t, scenarios, `name: "`+scenario+`"`, promise)
		}
	}
}

func read(t *testing.T, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	require.NoError(t, err)
	require.NotEmpty(t, files, pattern)
	var all strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		all.Write(text)
	}
	return all.String()
}
