//go:build race

package kgroup

import "runtime"

// In a synctest bubble, goroutines that find a timer due run it themselves, and all of them
// with the one race context of the bubble. Two at a time corrupt the race detector, which
// then ends the process with SIGSEGV or a failed CHECK, once in a hundred tests or so
// (golang/go#78156, in Go 1.26). On one processor there are no two at a time; what the
// detector looks for, accesses without an order, it finds all the same.
func init() { runtime.GOMAXPROCS(1) }
