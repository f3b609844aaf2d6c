package trace

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/syscalls"
)

// story drives files by calls of threads.
type story struct {
	*files
	t    *testing.T
	path string // what the path argument of the call at hand points to
	open map[string]*inFlight
}

func newStory(t *testing.T, before ...arch.GVA) *story {
	s := &story{t: t, open: map[string]*inFlight{}}
	s.files = newFiles(func() (map[arch.GVA]bool, error) {
		m := map[arch.GVA]bool{}
		for _, b := range before {
			m[b] = true
		}
		return m, nil
	})
	return s
}

// Read implements syscalls.Memory.
func (s *story) Read(p []byte, _ arch.GVA) (int, error) {
	n := copy(p, s.path)
	if n < len(p) {
		return n, errors.New("no more")
	}
	return n, nil
}

func thread(pid, tid, ppid int) *probe.Thread {
	return &probe.Thread{PID: pid, TID: tid, PPID: ppid, Task: arch.GVA(0x1000 * tid)}
}

// enter is the entry of a call, which goes by a name of its own.
func (s *story) enter(id string, th *probe.Thread, name, path string, args ...uint64) {
	f := &inFlight{fn: &traced{entry: entry{name: name}, fd: fdOpOf(name)}}
	f.rec.PID = th.PID
	copy(f.call.Args[:], args)
	s.path = path
	s.entered(f, s.of(th), s)
	s.open[id] = f
}

// leave is its return.
func (s *story) leave(id string, th *probe.Thread, ret int64) string {
	f := s.open[id]
	delete(s.open, id)
	return s.returned(f, s.of(th), ret, s)
}

// call is both.
func (s *story) call(th *probe.Thread, name, path string, ret int64, args ...uint64) string {
	s.enter("", th, name, path, args...)
	return s.leave("", th, ret)
}

// openat opens a file.
func (s *story) openat(th *probe.Thread, path string, flags uint64, fd int64) {
	if got := s.call(th, "openat", path+"\x00", fd, cwd, 0, flags); got != path && path[0] == '/' {
		s.t.Errorf("openat of %s returned %q", path, got)
	}
}

const cwd = uint64(1<<64 - 100)

// known returns what is known of a process's descriptors.
func (s *story) known(th *probe.Thread) map[int]string {
	out := map[int]string{}
	r := &tableFiles{t: s.of(th)}
	for fd := range 200 {
		if p, ok := r.Path(fd); ok {
			out[fd] = p
		}
	}
	return out
}

func (s *story) want(th *probe.Thread, want map[int]string) {
	s.t.Helper()
	if diff := cmp.Diff(want, s.known(th)); diff != "" {
		s.t.Errorf("files of %d (-want +got):\n%s", th.PID, diff)
	}
}

type names = map[int]string

func TestFilesOfOneThread(t *testing.T) {
	s, a := newStory(t), thread(7, 7, 1)
	s.openat(a, "/a", 0, 3)
	s.openat(a, "/b", openCloexec, 4)
	s.openat(a, "relative", 0, 5)
	s.want(a, names{3: "/a", 4: "/b"})
	if got := s.call(a, "dup", "", 6, 3); got != "/a" {
		t.Errorf("dup returned %q", got)
	}
	s.call(a, "dup3", "", 6, 4, 6, openCloexec)
	s.call(a, "fcntl", "", 10, 3, dupFD, 10)
	s.call(a, "fcntl", "", 1, 4, 1) // F_GETFD
	s.want(a, names{3: "/a", 4: "/b", 6: "/b", 10: "/a"})
	s.call(a, "openat", "sub\x00", 11, 3, 0, 0)
	s.call(a, "creat", "/c\x00", 12, 0, 0o644)
	s.call(a, "openat", "/dir\x00", 13, cwd, 0, openTmpfile)
	s.call(a, "openat", "/no/end", 14, cwd, 0, 0)
	s.call(a, "openat", "/gone\x00", -2, cwd, 0, 0)
	s.call(a, "openat2", "\x00\x00\x08\x00\x00\x00\x00\x00", 15, cwd, 0, 0)
	s.want(a, names{3: "/a", 4: "/b", 6: "/b", 10: "/a", 11: "/a/sub", 12: "/c"})
	s.call(a, "close", "", 0, 3)
	s.call(a, "close", "", -9, 99)
	s.call(a, "dup2", "", 4, 4, 4)
	s.call(a, "dup2", "", 12, 5, 12) // of what is not known
	s.call(a, "pipe2", "\x0a\x00\x00\x00\x14\x00\x00\x00", 0, 0, 0)
	s.want(a, names{4: "/b", 6: "/b", 11: "/a/sub"})
	s.call(a, "fcntl", "", 0, 6, setFD, 0)
	s.call(a, "ioctl", "", 0, 11, fioClex)
	s.call(a, "execve", "", -2)
	s.want(a, names{4: "/b", 6: "/b", 11: "/a/sub"})
	s.call(a, "execve", "", 0)
	s.want(a, names{6: "/b"})
	for i := range uint64(5) {
		s.openat(a, "/x", 0, int64(20+i))
	}
	s.call(a, "close_range", "", 0, 22, 23, rangeCloexec)
	s.call(a, "close_range", "", 0, 20, 21, 0)
	s.want(a, names{6: "/b", 22: "/x", 23: "/x", 24: "/x"})
	s.call(a, "execve", "", 0)
	s.want(a, names{6: "/b", 24: "/x"})
	s.call(a, "accept", "", 24, 6) // nobody said that 24 was closed
	s.want(a, names{6: "/b"})
	s.check(1)
	s.want(a, names{})
}

func TestFilesOfThreadsThatOverlap(t *testing.T) {
	a, b := thread(7, 7, 1), thread(7, 8, 1)
	open := func(s *story) { s.openat(a, "/a", 0, 3) }
	for name, tt := range map[string]struct {
		do   func(s *story)
		want names
	}{
		"closed by another while it opens": {func(s *story) {
			s.enter("o", a, "openat", "/b\x00", cwd, 0, 0)
			s.call(b, "close", "", 0, 4)
			s.leave("o", a, 4)
		}, names{3: "/a"}},
		"opened anew while a close returns": {func(s *story) {
			s.enter("c", a, "close", "", 3)
			s.openat(b, "/b", 0, 3)
			s.want(b, names{3: "/b"})
			s.leave("c", a, 0) // it may have closed either
		}, names{}},
		"begun to open before the close": {func(s *story) {
			s.enter("o", b, "openat", "/b\x00", cwd, 0, 0)
			s.enter("c", a, "close", "", 3)
			s.leave("o", b, 3)
			s.leave("c", a, 0)
		}, names{}},
		"replaced while it is duplicated": {func(s *story) {
			s.enter("d", a, "dup", "", 3)
			s.call(b, "dup2", "", 3, 5, 3)
			s.leave("d", a, 6)
		}, names{}},
		"files of its own":               {func(s *story) { s.call(b, "unshare", "", 0, cloneFiles) }, names{}},
		"a thread with files of its own": {func(s *story) { s.call(b, "clone", "", 99, cloneThread) }, names{}},
		"a thread":                       {func(s *story) { s.call(b, "clone", "", 99, cloneThread|cloneFiles) }, names{3: "/a"}},
		"closed without calls":           {func(s *story) { s.call(b, "io_uring_setup", "", 9) }, names{}},
		"put in from outside":            {func(s *story) { s.call(thread(90, 90, 1), "ioctl", "", 9, 5, seccompAddFD) }, names{}},
		"another process of that id": {func(s *story) {
			a := *a
			a.Task++
			s.want(&a, names{})
			a.Task--
		}, names{}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStory(t)
			open(s)
			tt.do(s)
			s.want(b, tt.want)
		})
	}
}

func TestFilesOfChildren(t *testing.T) {
	a, b := thread(7, 7, 1), thread(7, 8, 1)
	child := thread(20, 20, 7)
	for name, tt := range map[string]struct {
		do   func(s *story)
		want names
	}{
		"after fork":  {func(s *story) { s.call(a, "fork", "", 20) }, names{3: "/a", 4: "/b"}},
		"before it":   {func(s *story) { s.enter("f", a, "vfork", "") }, names{3: "/a", 4: "/b"}},
		"later files": {func(s *story) { s.call(a, "fork", "", 20); s.call(a, "close", "", 0, 3); s.openat(a, "/c", 0, 3) }, names{3: "/a", 4: "/b"}},
		"closed meanwhile": {func(s *story) {
			s.enter("f", a, "fork", "")
			s.call(b, "close", "", 0, 3)
			s.leave("f", a, 20)
		}, names{4: "/b"}},
		"opened meanwhile": {func(s *story) {
			s.enter("f", a, "fork", "")
			s.openat(b, "/c", 0, 5)
			s.leave("f", a, 20)
		}, names{3: "/a", 4: "/b"}},
		"two at once":                          {func(s *story) { s.enter("f", a, "fork", ""); s.enter("g", b, "fork", "") }, names{}},
		"an older one that said nothing yet":   {func(s *story) { s.call(a, "fork", "", 30); s.enter("g", a, "fork", "") }, names{}},
		"another's child":                      {func(s *story) { s.call(thread(9, 9, 1), "fork", "", 20) }, names{}},
		"one that was there before":            {func(s *story) { s.before = map[arch.GVA]bool{child.Task: true}; s.enter("g", a, "fork", "") }, names{}},
		"shared files":                         {func(s *story) { s.call(a, "clone", "", 20, cloneFiles) }, names{}},
		"clone3":                               {func(s *story) { s.call(a, "clone3", "\x00\x00\x00\x00\x00\x00\x00\x00", 20) }, names{3: "/a", 4: "/b"}},
		"clone3 with flags that are not known": {func(s *story) { s.call(a, "clone3", "", 20) }, names{}},
		"a failed one":                         {func(s *story) { s.call(a, "fork", "", -11) }, names{}},
		"exec in it": {func(s *story) {
			s.enter("f", a, "vfork", "")
			s.call(child, "execve", "", 0)
			s.leave("f", a, 20)
		}, names{3: "/a"}},
		"an id that is used again": {func(s *story) {
			s.openat(child, "/old", 0, 9)
			s.call(a, "fork", "", 20)
		}, names{3: "/a", 4: "/b"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStory(t)
			s.openat(a, "/a", 0, 3)
			s.openat(a, "/b", openCloexec, 4)
			tt.do(s)
			s.want(child, tt.want)
		})
	}
}

func TestFilesAreBounded(t *testing.T) {
	s := newStory(t)
	for i := range 3 * maxTables {
		th := thread(i+1, i+1, 1)
		s.openat(th, "/a", 0, 3)
		s.call(th, "fork", "", int64(1<<20+i))
	}
	if len(s.tables) > maxTables || len(s.births) > maxTables {
		t.Errorf("%d tables, %d births", len(s.tables), len(s.births))
	}
	th := thread(1, 1, 1)
	for i := range 3 * maxFDs {
		s.openat(th, "/a", 0, int64(i))
		s.enter(fmt.Sprint(i), th, "fork", "")
	}
	if tb := s.of(th); len(tb.names) > maxFDs || len(tb.touched) > maxFDs || len(tb.forks) > maxForks {
		t.Errorf("%d names, %d touched, %d forks", len(tb.names), len(tb.touched), len(tb.forks))
	}
}

func TestNamesAreBounded(t *testing.T) {
	s, parent := newStory(t), thread(1, 1, 1)
	for i := range 1000 {
		s.openat(parent, fmt.Sprint("/", i), 0, int64(i))
	}
	for i := range 2000 {
		s.call(parent, "fork", "", int64(10+i))
		s.of(thread(10+i, 10+i, 1))
		if s.of(parent); len(s.of(parent).names) == 0 {
			return // all was forgotten
		}
	}
	t.Error("2,000,000 names are remembered")
}

func TestFollowsFiles(t *testing.T) {
	var all []entry
	for _, n := range fdNeeded {
		all = append(all, entry{name: n})
	}
	has := func(string) bool { return true }
	if !followsFiles(all, has) || followsFiles(all[1:], has) || !followsFiles(all[1:], func(n string) bool { return n != all[0].name }) {
		t.Error("what is needed is not what is needed")
	}
	if fdOpOf("socket") != fdNew || fdOpOf("read") != fdNone || !syscalls.ReturnsFD("accept4") {
		t.Error("calls are not told apart")
	}
}
