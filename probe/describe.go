package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// Describe says which task a probe's entry hits describe.
type Describe = engine.AboutOf

// The tasks that a hit can describe.
const (
	DescribeNothing = engine.AboutNone
	DescribeArg     = engine.AboutArg     // the one whose task_struct the function's first argument points to
	DescribeCurrent = engine.AboutCurrent // the one that runs
)

// Description is a task as it was at the moment of a hit, so that it holds also
// when the task has ended since. What the task does not have, as a kernel
// thread has no program, is zero.
type Description struct {
	Task        arch.GVA      // address of its task_struct
	Start       time.Duration // when it was created: time since boot, sleep included
	LeaderStart time.Duration // the same of its process's first thread
	ParentStart time.Duration // the same of the parent process's first thread
	TID, PID    int           // thread and process id
	PPID        int           // process id of the real parent
	UID         uint32        // real user id
	SignalFlags uint32        // signal_struct->flags
	SignalCode  uint32        // signal_struct->group_exit_code
	Comm        string        // short name, any bytes
	LeaderComm  string        // of the process's first thread
	ExeMount    arch.GVA      // struct path of the executable: the mount (struct vfsmount)
	ExeEntry    arch.GVA      // and the directory entry (struct dentry)
	ArgsStart   arch.GVA      // where the command line lies in user memory
	ArgsSize    uint64        // its size in bytes, as the guest says
	Args        []byte        // its first bytes: all, unless it is shorter than ArgsSize; valid during the callback
}

// maxArgs is how much of a command line is read; implants record less.
const maxArgs = 4096

var errNotDescribed = errors.New("not at entry, or the probe does not ask for it")

// Described returns the task that Probe.Describe asks for. It works at entry.
func (h *Hit) Described() (*Description, error) {
	switch {
	case h.raw.Return || h.Probe.Describe == DescribeNothing:
		return nil, fmt.Errorf("describe task: %w", errNotDescribed)
	case h.raw.About != nil:
		d := Description(*h.raw.About)
		return &d, nil
	case !h.Sync():
		return nil, fmt.Errorf("describe task: the record does not tell: %w", errNotDescribed)
	}
	task := h.Thread.Task
	if h.Probe.Describe == DescribeArg {
		task = arch.GVA(h.raw.Args[0])
	}
	return h.facts.describe(task, h.Process())
}

// describe reads a task from memory. Its arguments are read in user, the address
// space in use: a new process has a copy of its maker's.
func (f *facts) describe(task arch.GVA, user *vitrine.AddressSpace) (*Description, error) {
	if f.about == nil {
		return nil, fmt.Errorf("describe task: the kernel's types do not tell: %w", errors.ErrUnsupported)
	}
	o := f.about
	r := reader{as: f.kernel}
	leader, parent := r.pointer(task, o.Leader), r.pointer(task, o.Parent)
	d := &Description{
		Task: task, Start: r.duration(task, o.Start), LeaderStart: r.duration(leader, o.Start),
		ParentStart: r.duration(r.pointer(parent, o.Leader), o.Start),
		TID:         r.int(task, o.PID), PID: r.int(task, o.TGID), PPID: r.int(parent, o.TGID),
		UID: uint32(r.uint(r.pointer(task, o.Cred), o.UID, 4)), Comm: r.comm(task, o.Comm), LeaderComm: r.comm(leader, o.Comm),
	}
	if signal := r.pointer(task, o.Signal); inKernel(signal) {
		d.SignalFlags, d.SignalCode = uint32(r.uint(signal, o.SignalFlags, 4)), uint32(r.uint(signal, o.SignalCode, 4))
	}
	if mm := r.pointer(task, o.MM); inKernel(mm) {
		d.memory(&r, mm, o, user)
	}
	if r.err != nil {
		return nil, fmt.Errorf("describe task %v: %w", task, r.err)
	}
	return d, nil
}

func (d *Description) memory(r *reader, mm arch.GVA, o *engine.AboutOffsets, user *vitrine.AddressSpace) {
	if exe := r.pointer(mm, o.Exe); inKernel(exe) {
		d.ExeMount, d.ExeEntry = r.pointer(exe, o.ExePath), r.pointer(exe, o.ExePath+r.word())
	}
	d.ArgsStart = r.pointer(mm, o.Args)
	d.ArgsSize = uint64(r.pointer(mm, o.ArgsEnd) - d.ArgsStart)
	if d.ArgsStart == 0 || d.ArgsSize == 0 || int64(d.ArgsSize) < 0 {
		return
	}
	d.Args = make([]byte, min(d.ArgsSize, maxArgs))
	n, _ := user.Read(d.Args, d.ArgsStart) // a page that is not there cuts it short
	d.Args = d.Args[:n]
}

// inKernel reports whether a can be an address of the kernel's half, of a 64-bit
// or a 32-bit kernel (whose half begins at 1 GiB at the lowest).
func inKernel(a arch.GVA) bool { return int64(a) < 0 || a >= 1<<30 && a < 1<<32 }

// reader reads members and keeps the first error.
type reader struct {
	as  *vitrine.AddressSpace
	err error
}

func (r *reader) uint(base arch.GVA, off uint64, size int) uint64 {
	var b [8]byte
	if _, err := r.as.Read(b[:size], base+arch.GVA(off)); err != nil && r.err == nil {
		r.err = err
	}
	return binary.LittleEndian.Uint64(b[:])
}

// word is the size of a pointer.
func (r *reader) word() uint64 { return uint64(max(r.as.Mode().PointerSize(), 4)) }

func (r *reader) pointer(base arch.GVA, off uint64) arch.GVA {
	return arch.GVA(r.uint(base, off, int(r.word())))
}

func (r *reader) duration(base arch.GVA, off uint64) time.Duration {
	return time.Duration(r.uint(base, off, 8))
}

func (r *reader) int(base arch.GVA, off uint64) int { return int(int32(r.uint(base, off, 4))) }

func (r *reader) comm(base arch.GVA, off uint64) string {
	var b [commLen]byte
	if _, err := r.as.Read(b[:], base+arch.GVA(off)); err != nil && r.err == nil {
		r.err = err
	}
	name, _, _ := bytes.Cut(b[:], []byte{0})
	return string(name)
}

// accepts reports whether a probe goes with those on the function; t may be nil.
func (t *target) accepts(p *Probe) error {
	captures, describes := len(p.Capture) > 0, p.Describe
	if t != nil {
		captures = captures || len(t.captures) > 0
		if d := t.describe(); d != DescribeNothing && describes != DescribeNothing && d != describes {
			return fmt.Errorf("add probe: %s describes another task already", t.point.Name)
		} else if describes == DescribeNothing {
			describes = d
		}
	}
	if captures && describes != DescribeNothing {
		return fmt.Errorf("add probe: %s cannot both describe a task and capture memory", p.Func)
	}
	return nil
}

// describe returns which task the probes want described.
func (t *target) describe() Describe {
	for _, p := range t.probes {
		if p.probe.Describe != DescribeNothing {
			return p.probe.Describe
		}
	}
	return DescribeNothing
}
