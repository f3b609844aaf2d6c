package syscalls

import (
	"strconv"

	"github.com/vitrine-vmi/vitrine/arch"
)

// retKind is how a successful result is shown.
type retKind uint8

const (
	retLong retKind = iota
	retFD
	retPtr
	retMode
	retNone // the call does not return
	retFcntl
	retFileFlags // F_GETFL
	retFDFlags   // F_GETFD
)

var resultKinds = map[string]retKind{
	"open": retFD, "openat": retFD, "openat2": retFD, "creat": retFD, "dup": retFD, "dup2": retFD, "dup3": retFD,
	"socket": retFD, "accept": retFD, "accept4": retFD, "eventfd": retFD, "eventfd2": retFD, "epoll_create": retFD,
	"epoll_create1": retFD, "timerfd_create": retFD, "signalfd": retFD, "signalfd4": retFD, "memfd_create": retFD,
	"memfd_secret": retFD, "inotify_init": retFD, "inotify_init1": retFD, "fanotify_init": retFD, "userfaultfd": retFD,
	"perf_event_open": retFD, "io_uring_setup": retFD, "pidfd_open": retFD, "pidfd_getfd": retFD, "open_tree": retFD,
	"open_tree_attr": retFD, "fsopen": retFD, "fspick": retFD, "fsmount": retFD, "open_by_handle_at": retFD,
	"mq_open": retFD, "landlock_create_ruleset": retFD, "fcntl": retFcntl, "fcntl64": retFcntl,
	"mmap": retPtr, "mmap2": retPtr, "mremap": retPtr, "brk": retPtr, "shmat": retPtr, "umask": retMode,
	"exit": retNone, "exit_group": retNone,
}

func resultKind(_ arch.Arch, name string) retKind { return resultKinds[name] }

// Result is a call's decoded outcome.
type Result struct {
	Text  string // as strace shows it: "3</etc/passwd>", "-1 ENOENT (No such file or directory)"
	Errno string // "ENOENT", empty on success
}

// Result decodes what a call returned. A call that has not returned has the
// text "?". The resolver may be nil.
func (d *Decoder) Result(c *Call, r Resolver) Result {
	if !c.Returned {
		return Result{Text: "?"}
	}
	ret := c.Ret
	if d.arch == arch.I386 {
		ret = int64(int32(ret))
	}
	if IsError(ret) {
		return Result{Text: string(appendError(nil, ret)), Errno: Errno(-ret)}
	}
	switch d.kindOfResult(c) {
	case retFD:
		return Result{Text: string(appendFD(nil, r, int(ret)))}
	case retPtr:
		return Result{Text: string(appendHex(nil, d.word(uint64(ret))))}
	case retMode:
		return Result{Text: string(appendMode(nil, uint64(ret)))}
	case retNone:
		return Result{Text: "?"}
	case retFileFlags:
		return Result{Text: "0x" + strconv.FormatInt(ret, 16) + " (flags " + OpenFlags(d.arch, uint64(ret)) + ")"}
	case retFDFlags:
		return Result{Text: string(appendFDFlags(nil, d.arch, uint64(ret)))}
	}
	return Result{Text: strconv.FormatInt(ret, 10)}
}

// kindOfResult settles what depends on the arguments.
func (d *Decoder) kindOfResult(c *Call) retKind {
	k := d.table.lookup(c).ret
	if k != retFcntl {
		return k
	}
	switch name, _ := famFcntl.find(d.arch, c.Args[1]&0xffffffff, ^uint64(0)); name {
	case "F_DUPFD", "F_DUPFD_CLOEXEC":
		return retFD
	case "F_GETFL":
		return retFileFlags
	case "F_GETFD":
		return retFDFlags
	}
	return retLong
}

// appendFDFlags appends 0, or the number and what it stands for.
func appendFDFlags(b []byte, a arch.Arch, v uint64) []byte {
	b = appendHex(b, v)
	if v == 0 {
		return b
	}
	return append(famFdflags.append(append(b, " (flags "...), a, v), ')')
}

// ReturnsFD reports whether a call's result is always a file descriptor.
func ReturnsFD(name string) bool { return resultKinds[name] == retFD }
