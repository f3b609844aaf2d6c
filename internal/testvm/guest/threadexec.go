//go:build linux

package main

import (
	"os"
	"runtime"
	"syscall"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"golang.org/x/sys/unix"
)

func init() { workloads["threadexec"] = threadExec }

// threadExec executes a shell, which then sleeps, from another thread than the first, at a line of input. The shell
// answers that line with 1. Arguments: none.
func threadExec(w *work) error {
	if err := w.ready(wire.Spawned{}); err != nil {
		return err
	}
	if _, err := w.in.ReadString('\n'); err != nil {
		return err
	}
	failed := make(chan error)
	go fromOtherThread(func() { // the present thread is locked to workloadMain
		failed <- syscall.Exec("/bin/sh", []string{"sh", "-c", "echo 1; while :; do sleep 1000; done", "from", "thread"}, nil) //nolint:gosec // a test's own
	})
	return <-failed
}

// fromOtherThread calls f on another thread than the process's first.
func fromOtherThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		f()
		return
	}
	go fromOtherThread(f)
	_ = pause() // keep the first thread, so that the other one gets another
}
