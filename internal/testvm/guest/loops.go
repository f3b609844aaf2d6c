//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"golang.org/x/sys/unix"
)

// loop makes a workload that does one thing again and again, counting, until it fails. Arguments: times a second at most
// (0, the default: as fast as it goes), then those of prepare, which returns the thing to do.
func loop(prepare func(args []string) (func() error, error)) func(*work) error {
	return func(w *work) error {
		rate, err := w.arg(0, 0)
		if err != nil {
			return err
		}
		op, err := prepare(w.args[min(1, len(w.args)):])
		if err != nil {
			return err
		}
		if err := w.ready(wire.Spawned{}); err != nil {
			return err
		}
		return paced(w, rate, op)
	}
}

func paced(w *work, rate int, op func() error) error {
	var gap time.Duration
	if rate > 0 {
		gap = time.Second / time.Duration(rate)
	}
	for {
		if err := op(); err != nil {
			return err
		}
		atomic.AddUint64(w.count, 1)
		if gap > 0 {
			time.Sleep(gap)
		}
	}
}

// forks forks a child that ends at once, and reaps it. Arguments: none.
func forks([]string) (func() error, error) { return forkOnce, nil }

func forkOnce() error {
	pid, errno := endingChild()
	if errno != 0 {
		return fmt.Errorf("fork: %w", errno)
	}
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(int(pid), &ws, 0, nil) //nolint:gosec // a pid
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// execs runs a program to its end. Arguments: its path and arguments (default /bin/true).
func execs(argv []string) (func() error, error) {
	if len(argv) == 0 {
		argv = []string{"/bin/true"}
	}
	return func() error { return execOnce(argv) }, nil
}

// execOnce fails if the program does: what it is for would not be done.
func execOnce(argv []string) error {
	p, err := os.StartProcess(argv[0], argv, &os.ProcAttr{})
	if err != nil {
		return err
	}
	s, err := p.Wait()
	if err == nil && !s.Success() {
		err = fmt.Errorf("%q: %v", argv, s)
	}
	return err
}

// opens opens and closes paths in turn; one that is absent is opened in vain. Arguments: paths (default /etc/hostname).
func opens(paths []string) (func() error, error) {
	if len(paths) == 0 {
		paths = []string{"/etc/hostname"}
	}
	c := make([]*byte, len(paths))
	for i, p := range paths {
		var err error
		if c[i], err = unix.BytePtrFromString(p); err != nil {
			return nil, err
		}
	}
	i := 0
	return func() error {
		openClose(c[i%len(c)])
		i++
		return nil
	}, nil
}

func openClose(path *byte) {
	dirfd := unix.AT_FDCWD
	fd, _, errno := unix.RawSyscall6(unix.SYS_OPENAT, uintptr(dirfd), uintptr(unsafe.Pointer(path)), unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0) //nolint:gosec // a path
	if errno == 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
	}
}

// openReads opens, reads and closes /proc/self/stat. Arguments: none.
func openReads([]string) (func() error, error) {
	return func() error {
		_, err := os.ReadFile("/proc/self/stat")
		return err
	}, nil
}

// getppidLoop makes the cheapest system call as fast as it goes, and counts the calls in steps: to count each would cost
// a good part of a call. Arguments: calls in a step (default 256), threads that do so (default 1).
func getppidLoop(w *work) error {
	step, err := w.arg(0, 256)
	if err != nil {
		return err
	}
	threads, err := w.arg(1, 1)
	if err != nil {
		return err
	}
	if err := w.ready(wire.Spawned{}); err != nil {
		return err
	}
	for range threads - 1 {
		go getppids(w.count, step)
	}
	getppids(w.count, step)
	return nil
}

func getppids(count *uint64, step int) {
	for {
		for range step {
			_, _, _ = unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
		}
		atomic.AddUint64(count, uint64(step)) //nolint:gosec // a small number
	}
}

// mixedLoad forks, opens and executes on N threads as fast as it goes; it counts rounds. Arguments: N (default one for
// each CPU).
func mixedLoad(w *work) error {
	n, err := w.arg(0, runtime.NumCPU())
	if err != nil {
		return err
	}
	path, err := unix.BytePtrFromString("/etc/hostname")
	if err != nil {
		return err
	}
	if err := w.ready(wire.Spawned{}); err != nil {
		return err
	}
	round := func() error {
		for range 8 {
			openClose(path)
		}
		if err := forkOnce(); err != nil || atomic.LoadUint64(w.count)%16 != 0 {
			return err
		}
		return execOnce([]string{"/bin/true"})
	}
	failed := make(chan error)
	for range n {
		go func() {
			runtime.LockOSThread()
			failed <- paced(w, 0, round)
		}()
	}
	return <-failed
}
