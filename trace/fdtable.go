package trace

import (
	"maps"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/syscalls"
)

// fdTable is the open files of a process.
type fdTable struct {
	leader  arch.GVA // task of the first thread, 0 when it was not seen
	since   uint64
	names   map[int]fdName
	touched map[int]uint64 // when something last happened to a descriptor
	forgot  uint64         // the same for all of them
	forks   []*inFlight    // under way
	// silent counts children whose makers have returned and that have made no call
	// that was known for theirs.
	silent int
	off    bool // nothing can be known

	parent    *fdTable // in births; likewise below
	parentPID int
}

type fdName struct {
	path    string
	cloexec bool
}

// changed returns when something last happened to fd.
func (t *fdTable) changed(fd int) uint64 { return max(t.touched[fd], t.forgot) }

// touch notes that something happens to fd: it stands for nothing known.
func (t *fdTable) touch(fd int, now uint64) {
	delete(t.names, fd)
	if len(t.touched) >= maxFDs {
		t.forgetAll(now)
	}
	t.touched[fd] = now
}

func (t *fdTable) forgetAll(now uint64) {
	clear(t.names)
	clear(t.touched)
	t.forgot = now
}

// put notes what fd stands for since now, by a call that began at start.
func (t *fdTable) put(fd int, n fdName, start, now uint64) {
	sure := t.changed(fd) <= start
	t.touch(fd, now)
	if sure && n.path != "" {
		t.names[fd] = n
	}
}

// tableFiles answers for one process, and for the result of the call at hand.
type tableFiles struct {
	t      *fdTable
	fd     int
	result string // what fd stands for, if not empty
}

var _ syscalls.Resolver = (*tableFiles)(nil)

// Path implements syscalls.Resolver.
func (r *tableFiles) Path(fd int) (string, bool) {
	if r.result != "" && fd == r.fd {
		return r.result, true
	}
	if r.t.off {
		return "", false
	}
	n, ok := r.t.names[fd]
	return n.path, ok
}

// rangeTouched is close_range.
func (t *fdTable) rangeTouched(a *[6]uint64, now uint64) {
	switch {
	case a[2]&rangeUnshare != 0:
		t.off = true
	case a[2]&rangeCloexec != 0:
		for fd, n := range t.names {
			if uint32(fd) >= uint32(a[0]) && uint32(fd) <= uint32(a[1]) {
				n.cloexec = true
				t.names[fd] = n
			}
		}
	default:
		t.forgetRange(uint32(a[0]), uint32(a[1]), now)
	}
}

// forgetRange touches all from first to last.
func (t *fdTable) forgetRange(first, last uint32, now uint64) {
	for fd := range t.names {
		if uint32(fd) >= first && uint32(fd) <= last {
			t.touch(fd, now)
		}
	}
	for fd := range t.touched {
		if uint32(fd) >= first && uint32(fd) <= last {
			t.touched[fd] = now
		}
	}
}

// control is the entry of fcntl.
func (t *fdTable) control(f *inFlight, now uint64) {
	fd := int(int32(f.call.Args[0]))
	n, ok := t.names[fd]
	switch uint32(f.call.Args[1]) {
	case dupFD, dupFDCloexec:
		f.name = fdName{n.path, uint32(f.call.Args[1]) == dupFDCloexec}
	case setFD:
		if n.cloexec = f.call.Args[2]&1 != 0; ok {
			t.names[fd] = n
		}
	}
}

// executed notes that the process runs another program.
func (t *fdTable) executed(now uint64) {
	if t.off {
		t.off = false
		t.forgetAll(now)
	}
	maps.DeleteFunc(t.names, func(_ int, n fdName) bool { return n.cloexec })
	t.forks = nil
}
