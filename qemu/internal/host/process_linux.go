package host

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is a process of this host, by number. It holds no resource.
type Process int

// Processes returns the processes of this host, in no order.
func Processes() ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []Process
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, Process(n))
		}
	}
	return out, nil
}

// OnExit calls f when the process ends, in a goroutine of its own. The returned
// function gives up waiting; f may then still be under way.
func (p Process) OnExit(f func()) (cancel func()) {
	fd, err := unix.PidfdOpen(int(p), unix.PIDFD_NONBLOCK)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			go f()
		}
		return func() {}
	}
	// The poller of the runtime takes a pidfd for readable when the process ends.
	file := os.NewFile(uintptr(fd), "pidfd")
	go func() {
		defer file.Close()
		raw, err := file.SyscallConn()
		if err != nil {
			return
		}
		first := true
		if raw.Read(func(uintptr) bool { was := first; first = false; return !was }) == nil {
			f()
		}
	}()
	return func() { file.Close() }
}

// Path returns a path under /proc/PID. A link among its elements is not
// resolved, so "root" and "cwd" lead into the process's own view of files.
func (p Process) Path(elem ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(int(p))}, elem...)...)
}

// Maps returns the mappings of the process. It needs the right to trace it.
func (p Process) Maps() ([]VMA, error) {
	f, err := os.Open(p.Path("maps"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ParseMaps(f)
}

// Executable returns the path that the process runs, with " (deleted)" cut
// off, or its short name when the path is not readable.
func (p Process) Executable() string {
	if exe, err := os.Readlink(p.Path("exe")); err == nil {
		return strings.TrimSuffix(exe, " (deleted)")
	}
	comm, _ := os.ReadFile(p.Path("comm"))
	return strings.TrimSpace(string(comm))
}

// OtherFiles reports whether the process sees other files under the same paths
// than this one: it has another root folder or another mount namespace, as far
// as this one may look.
func (p Process) OtherFiles() bool {
	theirs, err1 := os.Readlink(p.Path("ns", "mnt"))
	ours, err2 := os.Readlink("/proc/self/ns/mnt")
	root, err3 := os.Readlink(p.Path("root"))
	own, err4 := os.Readlink("/proc/self/root")
	return errors.Join(err1, err2, err3, err4) == nil && (theirs != ours || root != own)
}

// Cmdline returns the arguments that the process was started with.
func (p Process) Cmdline() ([]string, error) {
	b, err := os.ReadFile(p.Path("cmdline"))
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimRight(string(b), "\x00"), "\x00"), nil
}

// UID returns the effective user and group of the process.
func (p Process) UID() (uid, gid int, err error) {
	b, err := os.ReadFile(p.Path("status"))
	if err != nil {
		return 0, 0, err
	}
	uid, gid = -1, -1
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		switch f[0] {
		case "Uid:":
			uid, _ = strconv.Atoi(f[2])
		case "Gid:":
			gid, _ = strconv.Atoi(f[2])
		}
	}
	return uid, gid, nil
}

// HasThread reports whether a thread of the process has the number tid in the
// process's own pid namespace.
func (p Process) HasThread(tid int) bool {
	entries, err := os.ReadDir(p.Path("task"))
	if err != nil {
		return false
	}
	for _, e := range entries {
		b, err := os.ReadFile(p.Path("task", e.Name(), "status"))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 1 && f[0] == "NSpid:" && f[len(f)-1] == strconv.Itoa(tid) {
				return true
			}
		}
	}
	return false
}

// ThreadOwner returns the process that thread tid of this pid namespace
// belongs to.
func ThreadOwner(tid int) (Process, error) {
	b, err := os.ReadFile(Process(tid).Path("status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "Tgid:" {
			n, err := strconv.Atoi(f[1])
			return Process(n), err
		}
	}
	return 0, fmt.Errorf("no process has thread %d", tid)
}

// Peer returns the process that listens on the other end of a unix socket, as
// the kernel recorded it when it began to listen.
func Peer(conn net.Conn) (Process, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a unix socket")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return 0, err
	}
	if cred.Pid <= 0 {
		return 0, errors.New("the peer is in another pid namespace")
	}
	return Process(cred.Pid), nil
}

// Read fills b from addr in the process's memory. It returns how many bytes it
// filled, fewer than len(b) only with an error.
func (p Process) Read(b []byte, addr uint64) (int, error) {
	return p.transfer(unix.ProcessVMReadv, b, addr)
}

// Write stores b at addr in the process's memory.
func (p Process) Write(b []byte, addr uint64) (int, error) {
	return p.transfer(unix.ProcessVMWritev, b, addr)
}

func (p Process) transfer(call func(int, []unix.Iovec, []unix.RemoteIovec, uint) (int, error), b []byte, addr uint64) (int, error) {
	done := 0
	for done < len(b) {
		local := [1]unix.Iovec{{Base: &b[done]}}
		local[0].SetLen(len(b) - done)
		remote := [1]unix.RemoteIovec{{Base: uintptr(addr) + uintptr(done), Len: len(b) - done}}
		n, err := call(int(p), local[:], remote[:], 0)
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, unix.EFAULT
		}
		done += n
	}
	return done, nil
}
