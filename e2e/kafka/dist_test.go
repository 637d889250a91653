package kafka

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// tools puts programs with these shell scripts, and nothing else, into PATH.
func tools(t *testing.T, scripts map[string]string) {
	t.Helper()
	bin := t.TempDir()
	for name, script := range scripts {
		require.NoError(t, os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\nPATH=/usr/bin:/bin\n"+script), 0o755))
	}
	t.Setenv("PATH", bin)
}

const (
	java17 = `echo 'openjdk version "17.0.15" 2025-04-15' >&2`
	// Fetches slowly enough for two to meet, and counts its calls.
	mvnOK = `for a; do case $a in -DoutputDirectory=*) out=${a#*=};; esac; done
echo called >>"$CALLS"
mkdir -p "$out"; touch "$out/a.jar"; sleep 0.2; touch "$out/b.jar"`
)

func TestInstallSaysWhatIsMissing(t *testing.T) {
	tests := []struct {
		name    string
		version string
		scripts map[string]string
		want    string
	}{
		{"java", "4.4.0", nil, "real Kafka tests need Java 17 or later and Maven: java not found in PATH"},
		{"newer java", "4.4.0", map[string]string{"java": `echo 'openjdk version "11.0.2"'`}, "need Java 17 or later and Maven: the java in PATH is version 11"},
		{"much newer java", "4.4.0", map[string]string{"java": `echo 'java version "1.8.0_292"'`}, "the java in PATH is version 8"},
		{"java that works", "4.4.0", map[string]string{"java": "echo no libjvm; exit 1"}, "no libjvm"},
		{"maven", "4.4.0", map[string]string{"java": java17}, "real Kafka tests need Java 17 or later and Maven: mvn not found in PATH"},
		{"network", "4.4.0", map[string]string{"java": java17, "mvn": "echo Could not resolve; exit 1"}, "Could not resolve"},
		{"jars", "4.4.0", map[string]string{"java": java17, "mvn": "exit 0"}, "without giving jars"},
		{"version", "0.7.0", nil, "unknown version, have 1.1.1, 2.8.2, 3.9.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cache := t.TempDir()
			t.Setenv("KGROUP_KAFKA_CACHE", cache)
			tools(t, tt.scripts)
			_, err := Install(t.Context(), tt.version)
			require.ErrorContains(t, err, tt.want)
			left, err := filepath.Glob(filepath.Join(cache, tt.version+"*"))
			require.NoError(t, err)
			for _, path := range left {
				assert.True(t, strings.HasSuffix(path, ".lock"), "left behind: %s", path)
			}
		})
	}
}

func TestInstallAtTheSameTime(t *testing.T) {
	calls := filepath.Join(t.TempDir(), "calls")
	t.Setenv("CALLS", calls)
	t.Setenv("KGROUP_KAFKA_CACHE", t.TempDir())
	tools(t, map[string]string{"java": java17, "mvn": mvnOK})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			dist, err := Install(t.Context(), "4.4.0")
			assert.NoError(t, err)
			assert.FileExists(t, filepath.Join(dist.Libs, "b.jar"), "an incomplete folder was taken for complete")
		})
	}
	wg.Wait()
	log, err := os.ReadFile(calls)
	require.NoError(t, err)
	assert.Equal(t, "called\n", string(log), "fetched more than once")
}

func TestInstallFromTheCacheNeedsNoMaven(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("KGROUP_KAFKA_CACHE", cache)
	require.NoError(t, os.Mkdir(filepath.Join(cache, "3.9.1"), 0o755))
	tools(t, map[string]string{"java": java17})
	dist, err := Install(t.Context(), "3.9.1")
	require.NoError(t, err)
	assert.Equal(t, Dist{Version: "3.9.1", Libs: filepath.Join(cache, "3.9.1")}, dist)
}

func TestLockFileGivesUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lockFile(t.Context(), path)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = lockFile(ctx, path)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	unlock()
	unlock, err = lockFile(t.Context(), path)
	require.NoError(t, err)
	unlock()
}
