//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"golang.org/x/sys/unix"
)

// holdFiles keeps one open file of every sort that has a name of its own in /proc/PID/fd. Arguments: none.
func holdFiles(w *work) error {
	dir := filepath.Join("/tmp", w.name)
	if err := os.MkdirAll(filepath.Join(dir, "deep", "er"), 0o755); err != nil {
		return err
	}
	if err := os.Chdir(filepath.Join(dir, "deep")); err != nil {
		return err
	}
	held, err := openAll(dir)
	if err != nil {
		return err
	}
	if err := w.ready(wire.Spawned{}); err != nil {
		return err
	}
	for _, f := range held {
		defer f.Close() // never runs: it keeps the files from their finalizers
	}
	return pause()
}

func openAll(dir string) ([]*os.File, error) {
	var open []*os.File
	for _, f := range []struct {
		name  string
		flags int
		seek  int64
		gone  bool
	}{
		{"plain", os.O_RDWR | os.O_CREATE, 123, false},
		{"with space\nand newline", os.O_RDWR | os.O_CREATE, 7, false},
		{"append", os.O_WRONLY | os.O_CREATE | os.O_APPEND, 0, false},
		{"sync", os.O_RDWR | os.O_CREATE | os.O_SYNC, 1 << 33, false},
		{"deep/er/file", os.O_RDWR | os.O_CREATE, 0, false},
		{"deleted", os.O_RDWR | os.O_CREATE, 5, true},
	} {
		h, err := openOne(filepath.Join(dir, f.name), f.flags, f.seek, f.gone)
		if err != nil {
			return nil, err
		}
		open = append(open, h)
	}
	for _, path := range []string{dir, "/dev/null", "/dev/zero", "/proc/self/status", "/sys/kernel", "/etc/hostname", "/proc/self/ns/net"} {
		h, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		open = append(open, h)
	}
	return open, openAnonymous()
}

func openOne(path string, flags int, seek int64, gone bool) (*os.File, error) {
	h, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return nil, err
	}
	if seek > 0 {
		if _, err := h.Seek(seek, io.SeekStart); err != nil {
			return nil, err
		}
	}
	if gone {
		err = os.Remove(path)
	}
	return h, err
}

// openAnonymous leaves descriptors open that the Go runtime knows nothing of.
func openAnonymous() error {
	var pipe [2]int
	_, e1 := unix.Eventfd(3, unix.EFD_CLOEXEC)
	_, e2 := unix.EpollCreate1(0)
	_, e3 := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, 0)
	_, e4 := unix.MemfdCreate("a memfd", 0)
	_, e5 := unix.InotifyInit1(unix.IN_NONBLOCK)
	_, e6 := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	e7 := unix.Pipe2(pipe[:], unix.O_NONBLOCK)
	tcp, e8 := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	var e9 error
	if e8 == nil {
		e9 = unix.Listen(tcp, 4)
	}
	return errors.Join(e1, e2, e3, e4, e5, e6, e7, e8, e9)
}

// holdMaps keeps mappings of several sorts; Info has their addresses: file (two pages of a file from offset 4096, r--p),
// shared (rw-s), anon (rw-p, holding the text "vitrine was here" and the rest of the page zero), exec (r-xp), hole (a
// page between two of anonymous memory that is not mapped). Arguments: none.
func holdMaps(w *work) error {
	path := filepath.Join("/tmp", w.name+" mapped file")
	if err := os.WriteFile(path, make([]byte, 4*4096), 0o644); err != nil { //nolint:gosec // others may read it
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	s := wire.Spawned{Info: map[string]string{"path": path}}
	for _, m := range []struct {
		name  string
		fd    int
		off   int64
		n     int
		prot  int
		flags int
	}{
		{"file", int(f.Fd()), 4096, 2 * 4096, unix.PROT_READ, unix.MAP_PRIVATE},
		{"shared", int(f.Fd()), 0, 4096, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED},
		{"exec", int(f.Fd()), 0, 4096, unix.PROT_READ | unix.PROT_EXEC, unix.MAP_PRIVATE},
		{"anon", -1, 0, 4096, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS},
		{"hole", -1, 0, 3 * 4096, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS},
	} {
		b, err := unix.Mmap(m.fd, m.off, m.n, m.prot, m.flags)
		if err != nil {
			return fmt.Errorf("map %s: %w", m.name, err)
		}
		at := uint64(uintptr(unsafe.Pointer(&b[0]))) //nolint:gosec // the address is what is asked for
		switch m.name {
		case "anon":
			copy(b, "vitrine was here")
		case "hole":
			b[0], b[2*4096] = 1, 2
			at += 4096
			if _, _, errno := unix.Syscall(unix.SYS_MUNMAP, uintptr(at), 4096, 0); errno != 0 {
				return fmt.Errorf("unmap hole: %w", errno)
			}
		}
		s.Info[m.name] = fmt.Sprintf("%#x", at)
	}
	if err := w.ready(s); err != nil {
		return err
	}
	return pause()
}

// sequence makes a known sequence of system calls on several threads each time it is told "go" and answers with a
// []wire.SeqCall. Arguments: threads (default 2), rounds a thread (default 50).
func sequence(w *work) error {
	threads, err := w.arg(0, 2)
	if err != nil {
		return err
	}
	rounds, err := w.arg(1, 50)
	if err != nil {
		return err
	}
	if err := os.MkdirAll("/tmp/seq", 0o777); err != nil {
		return err
	}
	begin, done := make(chan int), make(chan seqResult)
	tids := make(chan int)
	for k := range threads {
		go func() {
			runtime.LockOSThread()
			tids <- unix.Gettid()
			for turn := range begin {
				calls, err := runSequence(w, k, turn, rounds)
				done <- seqResult{calls, err}
			}
		}()
	}
	var s wire.Spawned
	for range threads {
		s.TIDs = append(s.TIDs, <-tids)
	}
	if err := w.ready(s); err != nil {
		return err
	}
	return sequenceTurns(w, threads, begin, done)
}

// seqResult is what one thread did in one turn.
type seqResult struct {
	calls []wire.SeqCall
	err   error
}

func sequenceTurns(w *work, threads int, begin chan<- int, done <-chan seqResult) error {
	for turn := 0; ; turn++ {
		if _, err := w.in.ReadString('\n'); err != nil {
			return pause()
		}
		for range threads {
			begin <- turn
		}
		var all []wire.SeqCall
		for range threads {
			r := <-done
			if r.err != nil {
				return r.err
			}
			all = append(all, r.calls...)
		}
		if err := w.say(all); err != nil {
			return err
		}
	}
}

// seqPath makes paths of many lengths, some across a page's end, each unlike any other.
func seqPath(thread, turn, round int) string {
	tail := strings.Repeat("x", (round*37)%160)
	return "/tmp/seq/t" + strconv.Itoa(thread) + "-" + strconv.Itoa(turn) + "-" + strconv.Itoa(round) + "-" + tail
}

// seqMemory is memory that does not move and that the paths lie in, most of them across a page's end.
func seqMemory() (mem []byte, base uintptr, err error) {
	mem, err = unix.Mmap(-1, 0, 4*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, 0, err
	}
	return mem, uintptr(unsafe.Pointer(&mem[0])), nil //nolint:gosec // mapped memory stays where it is
}

// sequencer makes and records the calls of one thread.
type sequencer struct {
	w   *work
	tid int
	all []wire.SeqCall
}

func (q *sequencer) call(name string, nr uintptr, path string, a ...uintptr) int64 {
	r, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], 0, 0)
	ret := int64(r) //nolint:gosec // a result may be negative
	if errno != 0 {
		ret = -int64(errno)
	}
	args := make([]uint64, len(a))
	for i := range a {
		args[i] = uint64(a[i])
	}
	q.all = append(q.all, wire.SeqCall{TID: q.tid, Name: name, Args: args, Path: path, Ret: ret})
	atomic.AddUint64(q.w.count, 1)
	return ret
}

func runSequence(w *work, thread, turn, rounds int) ([]wire.SeqCall, error) {
	mem, base, err := seqMemory()
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Munmap(mem) }()
	q := &sequencer{w: w, tid: unix.Gettid()}
	const here, gone, data = 4096 - 60, 2*4096 - 30, 3 * 4096
	dirfd := unix.AT_FDCWD
	at := uintptr(dirfd)
	for i := range rounds {
		path := seqPath(thread, turn, i)
		absent := path + ".absent"
		copy(mem[here:], path+"\x00")
		copy(mem[gone:], absent+"\x00")
		fd := q.call("openat", unix.SYS_OPENAT, path, at, base+here, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o640)
		q.call("write", unix.SYS_WRITE, "", uintptr(fd), base+data, uintptr(i%64), 0)
		q.call("lseek", unix.SYS_LSEEK, "", uintptr(fd), uintptr(i), unix.SEEK_SET, 0)
		q.call("close", unix.SYS_CLOSE, "", uintptr(fd), 0, 0, 0)
		q.call("openat", unix.SYS_OPENAT, absent, at, base+gone, unix.O_RDONLY, 0)
		q.call("unlinkat", unix.SYS_UNLINKAT, path, at, base+here, 0, 0)
	}
	return q.all, nil
}
