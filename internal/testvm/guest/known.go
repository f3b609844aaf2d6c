//go:build linux

package main

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"golang.org/x/sys/unix"
)

func init() {
	workloads["tree"] = tree
	workloads["clock"] = clock
	workloads["descriptors"] = descriptors
}

// turns answers each line of input with what turn returns.
func (w *work) turns(turn func(n int, line string) (any, error)) error {
	if err := w.ready(wire.Spawned{}); err != nil {
		return err
	}
	for n := 0; ; n++ {
		line, err := w.in.ReadString('\n')
		if err != nil {
			return pause()
		}
		answer, err := turn(n, strings.TrimSpace(line))
		if err != nil {
			return err
		}
		if err := w.say(answer); err != nil {
			return err
		}
	}
}

// tree makes a binary tree of processes as fast as it goes each time it is told how deep. Each process first calls
// getpgid with wire.TreeMark plus its number, which fails, then makes its children and ends without waiting for them,
// so that most lose their parents early. It answers with the number of processes. Arguments: none.
func tree(w *work) error {
	return w.turns(func(_ int, line string) (any, error) {
		depth, err := strconv.Atoi(line)
		if err != nil {
			return nil, err
		}
		if errno := growTree(uintptr(depth)); errno != 0 {
			return nil, fmt.Errorf("fork: %w", errno)
		}
		return 1<<(depth+1) - 1, nil
	})
}

// growTree forks the root of a tree and reaps it.
//
//go:nosplit
//go:norace
func growTree(depth uintptr) unix.Errno {
	pid, errno := rawFork()
	if errno != 0 {
		return errno
	}
	if pid != 0 {
		_, _, errno = unix.RawSyscall6(unix.SYS_WAIT4, pid, 0, 0, 0, 0, 0)
		return errno
	}
	id := uintptr(0)
	for {
		_, _, _ = unix.RawSyscall(unix.SYS_GETPGID, wire.TreeMark+id, 0, 0)
		child := uintptr(0)
		for depth > 0 && child < 2 {
			pid, errno := rawFork()
			if pid == 0 && errno == 0 {
				break
			}
			child++
		}
		if depth == 0 || child == 2 {
			for {
				_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			}
		}
		id, depth = 2*id+1+child, depth-1
	}
}

// clock calls getpgid with the number of the call, which fails, each time between two readings of the wall clock, and
// answers with the []wire.Timed. It is told how many calls to make and, behind a space, how many nanoseconds to sleep
// between them. Arguments: none.
func clock(w *work) error {
	return w.turns(func(_ int, line string) (any, error) {
		var n int
		var gap time.Duration
		if _, err := fmt.Sscan(line, &n, &gap); err != nil {
			return nil, err
		}
		all := make([]wire.Timed, n)
		for i := range all {
			t := &all[i]
			t.TID, t.Arg = unix.Gettid(), wire.TreeMark+uint64(i)
			before, err := wallClock()
			if err != nil {
				return nil, err
			}
			_, _, _ = unix.RawSyscall(unix.SYS_GETPGID, uintptr(t.Arg), 0, 0)
			after, err := wallClock()
			if err != nil {
				return nil, err
			}
			t.Before, t.After = before, after
			time.Sleep(gap)
		}
		return all, nil
	})
}

func wallClock() (int64, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_REALTIME, &ts)
	return ts.Nano(), err
}

// descriptors opens, uses and closes files on several threads that share their descriptors, so that numbers are used
// again and again for other files. Each time it is told "go" it answers with the []wire.SeqCall, of which Path is what
// the descriptor in the first argument stands for. Arguments: threads (default 2), rounds a thread (default 50).
func descriptors(w *work) error {
	threads, err := w.arg(0, 2)
	if err != nil {
		return err
	}
	rounds, err := w.arg(1, 50)
	if err != nil {
		return err
	}
	return w.turns(func(turn int, _ string) (any, error) {
		done := make(chan seqResult)
		for k := range threads {
			go func() {
				runtime.LockOSThread() // and never unlocked: the thread ends with the turn
				calls, err := useDescriptors(w, k, turn, rounds)
				done <- seqResult{calls, err}
			}()
		}
		var all []wire.SeqCall
		for range threads {
			r := <-done
			if r.err != nil {
				err = errors.Join(err, r.err)
			}
			all = append(all, r.calls...)
		}
		return all, err
	})
}

// useDescriptors is one thread's turn.
func useDescriptors(w *work, thread, turn, rounds int) ([]wire.SeqCall, error) {
	mem, base, err := seqMemory()
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Munmap(mem) }()
	q := &sequencer{w: w, tid: unix.Gettid()}
	const cwd = ^uintptr(99) // AT_FDCWD
	open := func(path string, flags uintptr) uintptr {
		copy(mem, path+"\x00")
		return uintptr(q.call("openat", unix.SYS_OPENAT, path, cwd, base, flags|unix.O_CREAT|unix.O_RDWR, 0o600))
	}
	use := func(fd uintptr, path string) {
		q.call("lseek", unix.SYS_LSEEK, path, fd, uintptr(len(q.all)), unix.SEEK_SET, 0)
	}
	shut := func(fd uintptr, path string) { q.call("close", unix.SYS_CLOSE, path, fd, 0, 0, 0) }
	for i := range rounds {
		path := fmt.Sprintf("/tmp/fd-%d-%d-%d", thread, turn, i)
		other := path + "-other"
		fd := open(path, unix.O_CLOEXEC)
		use(fd, path)
		twin := uintptr(q.call("dup", unix.SYS_DUP, path, fd, 0, 0, 0))
		shut(fd, path)
		use(twin, path)
		second := open(other, 0) // most likely where path was
		use(second, other)
		q.call("dup3", unix.SYS_DUP3, other, second, twin, unix.O_CLOEXEC, 0)
		use(twin, other)
		shut(second, other)
		if i%4 == 0 {
			q.inChild(twin, other)
		}
		use(twin, other)
		shut(twin, other)
		for _, p := range []string{path, other} {
			copy(mem, p+"\x00")
			_, _, _ = unix.RawSyscall(unix.SYS_UNLINKAT, cwd, base, 0)
		}
	}
	return q.all, nil
}

// inChild forks a child that uses the descriptor, which stands for path, closes it and puts standard input at its
// number.
func (q *sequencer) inChild(fd uintptr, path string) {
	pid, ok := childUses(fd)
	if !ok {
		return
	}
	for _, c := range []struct {
		name, path string
		args       []uint64
		ret        int64
	}{
		{"lseek", path, []uint64{uint64(fd), 1, 0, 0}, 1},
		{"close", path, []uint64{uint64(fd), 0, 0, 0}, 0},
		{"dup3", "", []uint64{0, uint64(fd), 0, 0}, int64(fd)}, //nolint:gosec // a descriptor
		{"lseek", "", []uint64{uint64(fd), 2, 0, 0}, -int64(unix.ESPIPE)},
	} {
		q.all = append(q.all, wire.SeqCall{TID: int(pid), Name: c.name, Args: c.args, Path: c.path, Ret: c.ret}) //nolint:gosec // a pid
	}
}

//go:nosplit
//go:norace
func childUses(fd uintptr) (uintptr, bool) {
	pid, errno := rawFork()
	if errno != 0 {
		return 0, false
	}
	if pid == 0 {
		_, _, _ = unix.RawSyscall6(unix.SYS_LSEEK, fd, 1, 0, 0, 0, 0)
		_, _, _ = unix.RawSyscall6(unix.SYS_CLOSE, fd, 0, 0, 0, 0, 0)
		_, _, _ = unix.RawSyscall6(unix.SYS_DUP3, 0, fd, 0, 0, 0, 0)
		_, _, _ = unix.RawSyscall6(unix.SYS_LSEEK, fd, 2, 0, 0, 0, 0)
		for {
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	_, _, _ = unix.RawSyscall6(unix.SYS_WAIT4, pid, 0, 0, 0, 0, 0)
	return pid, true
}
