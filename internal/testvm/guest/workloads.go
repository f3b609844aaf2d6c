//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"unsafe"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"golang.org/x/sys/unix"
)

// work is what a workload knows of itself.
type work struct {
	name  string
	args  []string
	count *uint64 // operations done, read by pid 1
	in    *bufio.Reader
}

// workloads maps kinds to their programs. A program says ready once it is as it will stay, and does not return before
// it is killed, but for an error.
var workloads = map[string]func(*work) error{}

func init() { // not a literal: the programs reach the map through pid 1's code
	workloads["sleeper"] = sleeper
	workloads["procs"] = manyProcs
	workloads["threads"] = manyThreads
	workloads["fork"] = loop(forks)
	workloads["exec"] = loop(execs)
	workloads["getppid"] = getppidLoop
	workloads["open"] = loop(opens)
	workloads["openread"] = loop(openReads)
	workloads["load"] = mixedLoad
	workloads["files"] = holdFiles
	workloads["maps"] = holdMaps
	workloads["sequence"] = sequence
	workloads["blocked"] = blocked
	workloads["waits"] = waits
}

// workloadMain is the process of one workload.
func workloadMain(kind, name string, args []string) {
	w := &work{name: name, args: args, in: bufio.NewReader(os.Stdin)}
	run := workloads[kind]
	page, err := counterPage(name)
	switch {
	case run == nil:
		err = errors.New("no such workload")
	case err == nil:
		w.count = (*uint64)(unsafe.Pointer(&page[0])) //nolint:gosec // the page is shared with pid 1
		runtime.LockOSThread()
		err = run(w)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "workload %s %s: %v\n", kind, name, err)
		os.Exit(1)
	}
}

// ready tells pid 1, which tells the harness, that the workload is set up. Whoever can read its memory finds the counter
// at the address Info["counter"].
func (w *work) ready(s wire.Spawned) error {
	s.PID = os.Getpid()
	if s.Info == nil {
		s.Info = map[string]string{}
	}
	s.Info["counter"] = fmt.Sprintf("%p", w.count)
	atomic.AddUint64(w.count, 0) // its page is there from now on
	return w.say(s)
}

func (w *work) say(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(append(line, '\n'))
	return err
}

// arg returns the n-th argument as a number, def when it is not given.
func (w *work) arg(n, def int) (int, error) {
	if n >= len(w.args) {
		return def, nil
	}
	return strconv.Atoi(w.args[n])
}

func pause() error {
	for {
		// Not raw: other threads of the process need this one's share of the Go runtime.
		_, _, _ = unix.Syscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
}

// sleeper sleeps. Arguments: none.
func sleeper(w *work) error {
	if err := w.ready(wire.Spawned{}); err != nil {
		return err
	}
	return pause()
}

// blocked waits in read(2) on its standard input; a line of input is answered with the number of bytes read.
func blocked(w *work) error {
	if err := w.ready(wire.Spawned{}); err != nil {
		return err
	}
	b := make([]byte, 256)
	for {
		n, _, errno := unix.Syscall(unix.SYS_READ, 0, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b))) //nolint:gosec // a buffer
		if errno != 0 || n == 0 {
			return pause()
		}
		atomic.AddUint64(w.count, 1)
		if err := w.say(n); err != nil {
			return err
		}
	}
}

// rawFork forks; in the child, which has one thread and must not enter the Go runtime, it returns 0.
//
//go:nosplit
//go:norace
func rawFork() (uintptr, unix.Errno) {
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	return pid, errno
}

// sleepingChild forks a child that has the name and sleeps for ever.
//
//go:nosplit
//go:norace
func sleepingChild(name *byte) (uintptr, unix.Errno) {
	pid, errno := rawFork()
	if pid == 0 && errno == 0 {
		// Since 5.9. Fewer files are fewer for the guest to report.
		_, _, _ = unix.RawSyscall(unix.SYS_CLOSE_RANGE, 3, ^uintptr(0)>>32, 0)
		_, _, _ = unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(name)), 0, 0, 0, 0) //nolint:gosec // a name
		for {
			_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
		}
	}
	return pid, errno
}

// endingChild forks a child that ends at once.
//
//go:nosplit
//go:norace
func endingChild() (uintptr, unix.Errno) {
	pid, errno := rawFork()
	if pid == 0 && errno == 0 {
		for {
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	return pid, errno
}

// manyProcs has N sleeping children named kid0, kid1, ... Arguments: N.
func manyProcs(w *work) error {
	n, err := w.arg(0, 100)
	if err != nil {
		return err
	}
	var s wire.Spawned
	for i := range n {
		name := []byte(fmt.Sprintf("kid%d\x00", i))
		pid, errno := sleepingChild(&name[0])
		if errno != 0 {
			return fmt.Errorf("fork child %d: %w", i, errno)
		}
		s.TIDs = append(s.TIDs, int(pid)) //nolint:gosec // a pid
	}
	if err := w.ready(s); err != nil {
		return err
	}
	return pause()
}

// manyThreads has N sleeping threads named thr0, thr1, ... besides those of the Go runtime. Arguments: N.
func manyThreads(w *work) error {
	n, err := w.arg(0, 4)
	if err != nil {
		return err
	}
	tids := make(chan int)
	for i := range n {
		go func() {
			runtime.LockOSThread()
			name, err := unix.BytePtrFromString(fmt.Sprintf("thr%d", i))
			if err == nil {
				_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(name)), 0, 0, 0) //nolint:gosec // a name
			}
			tids <- unix.Gettid()
			_ = pause()
		}()
	}
	var s wire.Spawned
	for range n {
		s.TIDs = append(s.TIDs, <-tids)
	}
	if err := w.ready(s); err != nil {
		return err
	}
	return pause()
}
