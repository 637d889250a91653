//go:build unix

package kafka

// A child process that is waited for, can be signalled, and does not outlive this
// one. What runs in it is cluster.go's business.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended and is reaped
	err  error         // how it ended; read after done
}

// startProcess starts a program whose output goes to the end of the file log.
//
// It must not outlive this process, however that ends: a panic, a test timeout,
// SIGKILL. On Linux the kernel sees to it (PR_SET_PDEATHSIG in dieWithParent), a
// stopped child included, with one trap: the signal is sent when the *thread* that
// started the child ends, and Go ends a thread whenever a goroutine returns that
// has locked it. A broker started on such a thread would be killed in the middle
// of a test. So the goroutine that starts the child locks its thread, keeps it
// until the child is reaped, and gives it back unharmed: the thread ends before
// the child only if the whole process does.
//
// Each child leads a process group of its own. Ctrl-C in a terminal therefore ends
// only this process, and the children with it, at once: a broker that saw the
// Ctrl-C itself would begin an orderly shutdown that nobody waits for.
func startProcess(log, dir, name string, args ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()

	p := &process{cmd: exec.Command(name, args...), log: log, done: make(chan struct{})} //nolint:noctx // ended by its owner, not by a context
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, out, out
	p.cmd.SysProcAttr = dieWithParent()

	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) signal(s syscall.Signal) error {
	err := p.cmd.Process.Signal(s)
	if errors.Is(err, os.ErrProcessDone) {
		return p.exited()
	}
	return err
}

// kill ends the process at once and waits until it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // fails only when it is gone already
	<-p.done
}

// terminate asks the process to end and waits; after the grace it is killed.
func (p *process) terminate(grace time.Duration) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Process.Signal(syscall.SIGCONT) // a stopped process would not see it
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.done:
	case <-t.C:
		p.kill()
	}
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// exited says how the process ended, with the end of its log.
func (p *process) exited() error {
	<-p.done
	how := "ended with status 0"
	if p.err != nil {
		how = p.err.Error()
	}
	return fmt.Errorf("the process is gone (%s)%s", how, tail(p.log))
}

const tailBytes = 4 << 10

// tail returns the end of a log as the end of an error text.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "; its log: " + err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > tailBytes {
		_, _ = f.Seek(-tailBytes, io.SeekEnd) // else from the start
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return "; its log: " + err.Error()
	}
	return "; the end of its log:\n" + lastLines(text)
}

// lastLines indents the last 30 lines of a program's output.
func lastLines(out []byte) string {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	if len(lines) > 30 {
		lines = lines[len(lines)-30:]
	}
	return "\t" + string(bytes.Join(lines, []byte("\n\t")))
}
