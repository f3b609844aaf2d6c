package trace

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/syscalls"
)

// files learns from the records of a stream what descriptors stand for: when a
// record is read the process has run on, and its memory tells of later files.
//
// Records are in order of time: a call takes effect between the records of its
// entry and of its return. What happens to a descriptor is noted at both; where
// two calls on the same one overlap, it stands for nothing that is known, until
// it is opened anew. So names may be missing, and are not wrong: all calls that
// change descriptors have to be recorded, of all threads of a process, and when
// records are lost everything is forgotten.
//
// A name is the path by which the file was opened.
type files struct {
	sys    existing
	now    uint64 // counts entries and returns
	lost   uint64 // records, when that was last asked
	added  int    // names since they were last counted
	tables map[int]*fdTable
	births map[int]*fdTable // of children that have made no call yet, by process id
	// before holds the tasks that were there when the trace began, nil while that
	// has not been asked.
	before map[arch.GVA]bool
}

// existing lists the tasks of all processes that there are.
type existing func() (map[arch.GVA]bool, error)

// Bounds on what guests make us remember.
const (
	maxTables = 1 << 13
	maxFDs    = 1 << 12
	maxForks  = 64
	maxNames  = 1 << 18 // of all processes; they are counted each time that a quarter has been added
)

// fdOp is what a call does to descriptors.
type fdOp uint8

const (
	fdNone fdOp = iota
	fdOpen      // result: a file by name
	fdNew       // result: something else
	fdDup
	fdDup2
	fdPair
	fdClose
	fdCloseRange
	fdControl // fcntl
	fdIoctl
	fdFork
	fdExec
	fdUnshare
	fdExit
	fdHidden // from now on descriptors change without calls
)

// fdOps are the calls that change descriptors.
var fdOps = map[string]fdOp{
	"open": fdOpen, "openat": fdOpen, "openat2": fdOpen, "creat": fdOpen,
	"dup": fdDup, "dup2": fdDup2, "dup3": fdDup2, "fcntl": fdControl, "fcntl64": fdControl, "ioctl": fdIoctl,
	"pipe": fdPair, "pipe2": fdPair, "socketpair": fdPair,
	"close": fdClose, "close_range": fdCloseRange, "fork": fdFork, "vfork": fdFork, "clone": fdFork, "clone3": fdFork,
	"execve": fdExec, "execveat": fdExec, "unshare": fdUnshare, "exit_group": fdExit, "io_uring_setup": fdHidden,
}

// fdNeeded are those without which nothing can be known, where the kernel has
// them.
var fdNeeded = []string{
	"dup2", "dup3", "fcntl", "ioctl", "close", "close_range", "fork", "vfork", "clone", "clone3", "execve", "execveat",
	"unshare", "exit_group", "io_uring_setup",
}

// fdOpOf returns what a call does to descriptors.
func fdOpOf(name string) fdOp {
	if op, ok := fdOps[name]; ok {
		return op
	}
	if syscalls.ReturnsFD(name) {
		return fdNew
	}
	return fdNone
}

// followsFiles reports whether the entries are all that is needed, of a kernel
// that has what has returns true for.
func followsFiles(entries []entry, has func(call string) bool) bool {
	traced := map[string]bool{}
	for _, e := range entries {
		traced[e.name] = true
	}
	return !slices.ContainsFunc(fdNeeded, func(n string) bool { return !traced[n] && has(n) })
}

func newFiles(sys existing) *files {
	return &files{sys: sys, tables: map[int]*fdTable{}, births: map[int]*fdTable{}}
}

func newFDTable(since uint64) *fdTable {
	return &fdTable{since: since, forgot: since, names: map[int]fdName{}, touched: map[int]uint64{}}
}

// check forgets everything when records have been lost.
func (fs *files) check(lost uint64) {
	if lost != fs.lost {
		fs.lost = lost
		fs.forget()
	}
}

func (fs *files) forget() {
	clear(fs.tables)
	clear(fs.births)
}

// add counts names that are noted, and forgets all when there are too many.
func (fs *files) add(n int) {
	if fs.added += n; fs.added < maxNames/4 {
		return
	}
	fs.added = 0
	total := 0
	for _, tables := range []map[int]*fdTable{fs.tables, fs.births} {
		for _, t := range tables {
			total += len(t.names)
		}
	}
	if total > maxNames {
		fs.forget()
	}
}

// of returns the table of a thread's process.
func (fs *files) of(th *probe.Thread) *fdTable {
	if fs.before == nil {
		var err error
		if fs.before, err = fs.sys(); err != nil || fs.before == nil {
			fs.before = map[arch.GVA]bool{0: true} // nobody is known to be new
		}
	}
	first := th.TID == th.PID
	t := fs.tables[th.PID]
	if t != nil && first {
		if t.leader == 0 {
			t.leader = th.Task
		}
		if t.leader != th.Task {
			t = nil // another process of the same id, or another thread has taken it over
		}
	}
	if t == nil {
		if len(fs.tables) >= maxTables {
			fs.forget()
		}
		t = fs.born(th)
		if first {
			t.leader = th.Task
		}
		fs.tables[th.PID] = t
	}
	return t
}

// born returns the table of a process that is seen for the first time.
func (fs *files) born(th *probe.Thread) *fdTable {
	if t := fs.births[th.PID]; t != nil && t.parentPID == th.PPID {
		delete(fs.births, th.PID)
		t.parent.silent--
		t.parent = nil
		return t
	}
	parent := fs.tables[th.PPID]
	if parent == nil || len(parent.forks) != 1 || parent.silent > 0 || fs.before[0] || fs.before[th.Task] {
		return newFDTable(fs.now)
	}
	return fs.inherit(parent, parent.forks[0]) // that has not returned yet: it can be no other's child
}

// inherit returns the table of a child that the call f of a process makes.
func (fs *files) inherit(parent *fdTable, f *inFlight) *fdTable {
	t := newFDTable(fs.now)
	t.off = parent.off
	if f.shares {
		t.off, parent.off = true, true // two processes change one table
		return t
	}
	for fd, n := range parent.names {
		if parent.changed(fd) <= f.start {
			t.names[fd] = n
		}
	}
	fs.add(len(t.names))
	return t
}

// Values of the kernel's interface (include/uapi).
const (
	cloneFiles      = 0x400
	cloneThread     = 0x10000
	rangeUnshare    = 2
	rangeCloexec    = 4
	dupFD           = 0
	dupFDCloexec    = 1030
	setFD           = 2
	fioNclex        = 0x5450
	fioClex         = 0x5451
	seccompAddFD    = 0x40182103
	openTmpfile     = 0o20000000
	openCloexec     = 0o2000000
	maxPathRecorded = 256
)

// entered notes the entry of a call, after it has been shown.
func (fs *files) entered(f *inFlight, t *fdTable, m syscalls.Memory) {
	fs.now++
	f.start, f.name, f.shares = fs.now, fdName{}, false
	a := &f.call.Args
	fd := int(int32(a[0]))
	switch f.fn.fd {
	case fdOpen:
		f.name = opened(f, t, m)
	case fdDup, fdDup2:
		f.name = fdName{path: t.names[fd].path}
		if f.fn.fd == fdDup2 && fd != int(int32(a[1])) {
			f.name.cloexec = a[2]&openCloexec != 0 && f.fn.name == "dup3"
			t.touch(int(int32(a[1])), fs.now)
		}
	case fdClose:
		t.touch(fd, fs.now)
	case fdCloseRange:
		t.rangeTouched(a, fs.now)
	case fdControl:
		t.control(f, fs.now)
	case fdIoctl:
		if uint32(a[1]) == seccompAddFD {
			fs.forget() // it may replace a file of another process
		}
	case fdFork:
		fs.forking(f, t, m)
	case fdExit:
		delete(fs.tables, f.rec.PID)
	case fdHidden:
		t.off = true
	}
}

// forking notes the entry of a call that makes a process, or a thread.
func (fs *files) forking(f *inFlight, t *fdTable, m syscalls.Memory) {
	flags := uint64(0)
	switch f.fn.name {
	case "clone":
		flags = f.call.Args[0]
	case "clone3":
		var b [8]byte
		flags = cloneFiles // unless it says otherwise
		if n, _ := m.Read(b[:], arch.GVA(f.call.Args[0])); n == len(b) {
			flags = binary.LittleEndian.Uint64(b[:])
		}
	}
	switch {
	case flags&cloneThread == 0:
		f.shares = flags&cloneFiles != 0
		if len(t.forks) == maxForks {
			t.forks = nil // never returned: killed
		}
		t.forks = append(t.forks, f)
	case flags&cloneFiles == 0:
		t.off = true // a thread with files of its own
	}
}

// opened returns what the call opens, with an empty path when that is not known.
func opened(f *inFlight, t *fdTable, m syscalls.Memory) fdName {
	a := &f.call.Args
	path, flags, dir := a[0], a[1], -1
	switch f.fn.name {
	case "creat":
		flags = 0
	case "openat", "openat2":
		path, flags, dir = a[1], a[2], int(int32(a[0]))
	}
	if f.fn.name == "openat2" {
		var b [8]byte
		if n, _ := m.Read(b[:], arch.GVA(a[2])); n < len(b) {
			return fdName{}
		}
		flags = binary.LittleEndian.Uint64(b[:])
	}
	var b [maxPathRecorded]byte
	n, _ := m.Read(b[:], arch.GVA(path))
	s, _, ended := bytes.Cut(b[:n], []byte{0})
	switch {
	case !ended || len(s) == 0 || flags&openTmpfile == openTmpfile:
		return fdName{}
	case s[0] == '/':
		return fdName{string(s), flags&openCloexec != 0}
	}
	if d := t.names[dir].path; dir >= 0 && d != "" {
		return fdName{d + "/" + string(s), flags&openCloexec != 0}
	}
	return fdName{}
}

// returned notes the return of a call, before it is shown. It returns what the
// result stands for, "" when that is not known.
func (fs *files) returned(f *inFlight, t *fdTable, ret int64, m syscalls.Memory) string {
	fs.now++
	failed := syscalls.IsError(ret)
	a := &f.call.Args
	switch f.fn.fd {
	case fdOpen, fdNew, fdDup, fdControl:
		return fs.made(f, t, ret)
	case fdDup2:
		fs.replaced(f, t, ret)
	case fdPair:
		var b [8]byte
		at := a[0]
		if f.fn.name == "socketpair" {
			at = a[3]
		}
		if n, _ := m.Read(b[:], arch.GVA(at)); n == len(b) && !failed {
			t.touch(int(binary.LittleEndian.Uint32(b[:])), fs.now)
			t.touch(int(binary.LittleEndian.Uint32(b[4:])), fs.now)
		}
	case fdClose:
		t.touch(int(int32(a[0])), fs.now)
	case fdCloseRange:
		if a[2]&(rangeUnshare|rangeCloexec) == 0 {
			t.forgetRange(uint32(a[0]), uint32(a[1]), fs.now)
		}
	case fdIoctl:
		if n, ok := t.names[int(int32(a[0]))]; ok && (a[1] == fioClex || a[1] == fioNclex) {
			n.cloexec = a[1] == fioClex
			t.names[int(int32(a[0]))] = n
		}
	case fdFork:
		fs.forked(f, t, int(int32(ret)))
	case fdExec:
		if !failed {
			t.executed(fs.now)
		}
	case fdUnshare:
		t.off = t.off || !failed && a[0]&cloneFiles != 0
	}
	return ""
}

// made notes a descriptor that a call has returned.
func (fs *files) made(f *inFlight, t *fdTable, ret int64) string {
	if f.fn.fd == fdControl {
		if cmd := uint32(f.call.Args[1]); cmd != dupFD && cmd != dupFDCloexec {
			return ""
		}
	}
	if syscalls.IsError(ret) {
		return ""
	}
	if f.fn.fd != fdOpen && t.changed(int(int32(f.call.Args[0]))) > f.start {
		f.name.path = "" // it may have been another file by the time that it was taken
	}
	t.put(int(int32(ret)), f.name, f.start, fs.now)
	fs.add(1)
	if t.off && f.fn.fd != fdOpen {
		return ""
	}
	return f.name.path
}

// replaced notes the return of dup2 and dup3.
func (fs *files) replaced(f *inFlight, t *fdTable, ret int64) {
	old, fd := int(int32(f.call.Args[0])), int(int32(f.call.Args[1]))
	switch {
	case old == fd:
	case syscalls.IsError(ret) || t.changed(old) > f.start:
		t.touch(fd, fs.now)
	default:
		t.put(fd, f.name, f.start, fs.now)
	}
}

// forked notes the return of a call that may have made a process.
func (fs *files) forked(f *inFlight, t *fdTable, pid int) {
	i := slices.Index(t.forks, f)
	if i < 0 {
		return
	}
	t.forks = slices.Delete(t.forks, i, i+1)
	if pid <= 0 {
		return
	}
	if seen := fs.tables[pid]; seen != nil {
		if seen.since >= f.start {
			return // it has made calls already
		}
		delete(fs.tables, pid) // of a process that is gone
	}
	if len(fs.births) >= maxTables {
		clear(fs.births)
	}
	child := fs.inherit(t, f)
	child.parent, child.parentPID = t, f.rec.PID
	fs.births[pid] = child
	t.silent++
}
