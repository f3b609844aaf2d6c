package nap

import (
	"syscall"
	"time"
)

// Sleep sleeps for about d, shorter when a signal comes. time.Sleep wakes after a millisecond at the earliest when nothing
// else runs in the process: the Go runtime then waits in epoll, which counts in those.
func Sleep(d time.Duration) {
	ts := syscall.NsecToTimespec(int64(d))
	_ = syscall.Nanosleep(&ts, nil) // it fails when a signal ended it
}
