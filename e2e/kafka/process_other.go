//go:build unix && !linux

package kafka

import "syscall"

// Only Linux ties a child to its parent. Elsewhere the children stay in our
// process group, so that at least Ctrl-C reaches them; a test process that is
// killed with SIGKILL leaves its brokers behind.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

// awaitStopped takes the kernel's word: only Linux tells when a stop is complete.
func awaitStopped(int) error { return nil }
