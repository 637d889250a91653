//go:build unix

package kafka

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// keeperEnv makes the test binary a keeper: it starts a child, prints its pid and
// waits to be killed. The value is the child's log file.
const keeperEnv = "KGROUP_TEST_KEEPER"

func keepChild(log string) {
	p, err := startProcess(log, "", "sleep", "600")
	if err != nil {
		panic(err)
	}
	fmt.Println(p.cmd.Process.Pid)
	if os.Getenv(keeperEnv+"_STOPPED") != "" {
		_ = p.signal(syscall.SIGSTOP)
	}
	<-p.done
	os.Exit(1)
}

func TestChildDiesWithItsParent(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Log("only Linux ties a child to its parent: see process_other.go")
		return
	}
	for _, stopped := range []string{"", "yes"} {
		t.Run("stopped="+stopped, func(t *testing.T) {
			ctx := deadline(t, 30*time.Second)
			keeper := exec.CommandContext(ctx, os.Args[0])
			keeper.Env = append(os.Environ(), keeperEnv+"="+filepath.Join(t.TempDir(), "log"), keeperEnv+"_STOPPED="+stopped)
			out, err := keeper.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, keeper.Start())
			line, err := bufio.NewReader(out).ReadString('\n')
			require.NoError(t, err)
			child, err := strconv.Atoi(strings.TrimSpace(line))
			require.NoError(t, err)
			require.True(t, alive(child))

			require.NoError(t, keeper.Process.Kill())
			_ = keeper.Wait()
			require.NoError(t, poll(ctx, "the child to be gone", func(context.Context) error {
				if alive(child) {
					return fmt.Errorf("process %d is alive", child)
				}
				return nil
			}))
		})
	}
}

// alive takes a zombie for dead: in a container nobody may collect orphans.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z")
}

// Go ends a thread when a goroutine returns that has locked it. A child started on
// such a thread would be killed then, in the middle of a test.
func TestChildSurvivesTheThreadOfItsCaller(t *testing.T) {
	started := make(chan *process)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		p, err := startProcess(filepath.Join(t.TempDir(), "log"), "", "sleep", "600")
		assert.NoError(t, err)
		started <- p
	}()
	p := <-started
	<-ended
	var threads sync.WaitGroup
	for range 20 {
		threads.Go(runtime.LockOSThread)
	}
	threads.Wait()

	// A signal that were on its way would beat this one.
	require.NoError(t, p.signal(syscall.SIGTERM))
	<-p.done
	assert.Equal(t, "signal: terminated", p.err.Error())
}

func TestProcess(t *testing.T) {
	start := func(t *testing.T, script string) *process {
		t.Helper()
		p, err := startProcess(filepath.Join(t.TempDir(), "log"), "", "sh", "-c", script)
		require.NoError(t, err)
		t.Cleanup(p.kill)
		return p
	}
	t.Run("its end is told with its log", func(t *testing.T) {
		p := start(t, "echo out of coffee; exit 3")
		err := p.exited()
		assert.ErrorContains(t, err, "exit status 3")
		assert.ErrorContains(t, err, "out of coffee")
		assert.ErrorContains(t, p.signal(syscall.SIGSTOP), "out of coffee")
	})
	t.Run("only the end of a long log", func(t *testing.T) {
		p := start(t, "seq 10000; exit 1")
		err := p.exited()
		assert.ErrorContains(t, err, "\t10000")
		assert.Less(t, len(err.Error()), 2*tailBytes)
	})
	t.Run("terminate ends a stopped process in good order", func(t *testing.T) {
		p := start(t, "trap 'kill $!; exit 7' TERM; echo ready; sleep 600 & wait")
		awaitLog(t, p, "ready")
		require.NoError(t, p.signal(syscall.SIGSTOP))
		p.terminate(30 * time.Second)
		assert.ErrorContains(t, p.exited(), "exit status 7")
	})
	t.Run("terminate kills who does not listen", func(t *testing.T) {
		p := start(t, "trap '' TERM; echo ready; while true; do sleep 0.1; done")
		awaitLog(t, p, "ready")
		p.terminate(50 * time.Millisecond)
		assert.ErrorContains(t, p.exited(), "killed")
	})
}

func awaitLog(t *testing.T, p *process, text string) {
	t.Helper()
	require.NoError(t, poll(deadline(t, 30*time.Second), "the log", func(context.Context) error {
		if log := tail(p.log); !strings.Contains(log, text) {
			return fmt.Errorf("no %q in %s", text, log)
		}
		return nil
	}))
}
