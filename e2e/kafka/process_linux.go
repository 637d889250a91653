package kafka

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// awaitStopped returns when every thread of a child has stopped. SIGSTOP only asks
// for it: a broker has been seen to answer one more request.
func awaitStopped(pid int) error {
	for {
		// Without WEXITED this never takes the exit status that cmd.Wait is for.
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
