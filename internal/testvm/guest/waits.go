//go:build linux

package main

import (
	"runtime"
	"sync/atomic"
	"unsafe"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"golang.org/x/sys/unix"
)

// waits has one thread each blocked in poll, futex and wait4. A line of input wakes all of them; it is answered with the
// number that woke up, and they block again. Arguments: none.
func waits(w *work) error {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	var word uint32
	children := make(chan int, 1)
	woke := make(chan error)
	tids := make(chan int)
	for _, wait := range []func() error{
		func() error { return waitPoll(ends[0]) },
		func() error { return waitFutex(&word) },
		func() error { return waitChild(children) },
	} {
		go func() {
			runtime.LockOSThread()
			tids <- unix.Gettid()
			for {
				woke <- wait()
			}
		}()
	}
	var s wire.Spawned
	for range 3 {
		s.TIDs = append(s.TIDs, <-tids)
	}
	if err := w.ready(s); err != nil {
		return err
	}
	for {
		if _, err := w.in.ReadString('\n'); err != nil {
			return pause()
		}
		n, err := wakeAll(ends[1], &word, children, woke)
		if err != nil {
			return err
		}
		if err := w.say(n); err != nil {
			return err
		}
	}
}

// wakeAll wakes the three threads and returns how many said so.
func wakeAll(pipe int, word *uint32, children <-chan int, woke <-chan error) (n int, err error) {
	if _, err := unix.Write(pipe, []byte{1}); err != nil {
		return 0, err
	}
	atomic.AddUint32(word, 1)
	const wake = 1 // FUTEX_WAKE
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), wake, 1, 0, 0, 0)
	if err := unix.Kill(<-children, unix.SIGKILL); err != nil {
		return 0, err
	}
	for range 3 {
		if err := <-woke; err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

func waitPoll(fd int) error {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor
	for {
		n, err := unix.Poll(p, -1)
		if n == 1 {
			_, err := unix.Read(fd, make([]byte, 1))
			return err
		}
		if err != nil && err != unix.EINTR {
			return err
		}
	}
}

// waitFutex waits until the word changes.
func waitFutex(word *uint32) error {
	before := atomic.LoadUint32(word)
	for atomic.LoadUint32(word) == before {
		_, _, errno := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), 0, uintptr(before), 0, 0, 0)
		if errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR {
			return errno
		}
	}
	return nil
}

// waitChild forks a child, tells of it, and waits for its end.
func waitChild(children chan<- int) error {
	name := []byte("waited\x00")
	pid, errno := sleepingChild(&name[0])
	if errno != 0 {
		return errno
	}
	children <- int(pid) //nolint:gosec // a pid
	var status unix.WaitStatus
	for {
		got, err := unix.Wait4(int(pid), &status, 0, nil) //nolint:gosec // a pid
		if err == unix.EINTR {
			continue
		}
		if err == nil && (got != int(pid) || status.Signal() != unix.SIGKILL) { //nolint:gosec // a pid
			return unix.ECHILD
		}
		return err
	}
}
