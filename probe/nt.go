package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe/internal/trap"
)

// NT kernels. A thread is named by its ETHREAD; functions are called by the
// conventions of Microsoft's compilers: on x64 arguments in rcx, rdx, r8, r9 and
// from rsp+28h on, on x86 (stdcall) on the stack above the return address, where
// the function takes them off when it returns.

// ntFacts is where an NT kernel keeps what identifies a thread. Offsets count
// from the start of the ETHREAD, of which a KTHREAD is the first member, but
// those of a process.
type ntFacts struct {
	as  *vitrine.AddressSpace
	nt  *kernel.NT
	x64 bool

	current                 arch.GVA // of the current thread's address in the KPCR
	tid, pid, process, mode arch.GVA
	stackBase, stackLimit   arch.GVA
	hasStack                bool
	name, parent, creation  arch.GVA // of the EPROCESS
}

// imageName is the size of EPROCESS.ImageFileName: 16 until 7, 15 since.
const imageName = 15

func findNTFacts(k *kernel.Kernel) (*ntFacts, error) {
	f := &ntFacts{as: k.AddressSpace(), nt: k.NT(), x64: k.NT().X64, current: arch.GVA(k.NT().CurrentThreadOffset())}
	for _, want := range []struct {
		to          *arch.GVA
		typ, member string
	}{
		{&f.tid, "_ETHREAD", "Cid.UniqueThread"},
		{&f.pid, "_ETHREAD", "Cid.UniqueProcess"},
		{&f.mode, "_KTHREAD", "PreviousMode"},
		{&f.name, "_EPROCESS", "ImageFileName"},
		{&f.parent, "_EPROCESS", "InheritedFromUniqueProcessId"},
		{&f.creation, "_EPROCESS", "CreateTime"},
	} {
		field, err := k.Types().Field(want.typ, want.member)
		if err != nil {
			return nil, err
		}
		*want.to = arch.GVA(field.Offset)
	}
	// Until 2003 a member of ETHREAD's own; since Vista KTHREAD.Process.
	process, err := k.Types().Field("_ETHREAD", "ThreadsProcess")
	if err != nil {
		if process, err = k.Types().Field("_KTHREAD", "Process"); err != nil {
			return nil, err
		}
	}
	f.process = arch.GVA(process.Offset)
	base, err := k.Types().Field("_KTHREAD", "StackBase")
	limit, err2 := k.Types().Field("_KTHREAD", "StackLimit")
	f.stackBase, f.stackLimit, f.hasStack = arch.GVA(base.Offset), arch.GVA(limit.Offset), err == nil && err2 == nil
	return f, nil
}

// word reads a pointer of the kernel, 0 when it cannot.
func (f *ntFacts) word(a arch.GVA) arch.GVA {
	v, err := f.nt.Word(f.as, a)
	if err != nil {
		return 0
	}
	return v
}

// task returns the thread that runs on a processor that is in kernel code: the
// KPCR is where GS leads, on x86 FS.
func (f *ntFacts) task(r *arch.Registers) arch.GVA {
	pcr := arch.GVA(r.GSBase)
	if !f.x64 {
		pcr = arch.GVA(uint32(r.FSBase))
	}
	if !f.nt.KernelAddress(pcr) {
		return 0
	}
	task := f.word(pcr + f.current)
	if !f.nt.KernelAddress(task) {
		return 0
	}
	return task
}

// stack names the stack that sp lies in by its upper end: a thread that calls
// back into user code gets another one for the time (KeExpandKernelStack...),
// and has its bounds changed.
func (f *ntFacts) stack(task arch.GVA, sp uint64) (arch.GVA, bool) {
	if task == 0 {
		return 0, false
	}
	if !f.hasStack {
		return task, true
	}
	base, limit := f.word(task+f.stackBase), f.word(task+f.stackLimit)
	return base, limit < base && arch.GVA(sp) >= limit && arch.GVA(sp) < base
}

// arg returns argument i at a function's entry, 0 when its place on the stack
// cannot be read.
func (f *ntFacts) arg(r *arch.Registers, i int) uint64 {
	v, _ := f.argument(r, i)
	return v
}

// maxNTArgs bounds the number of arguments: no service has more.
const maxNTArgs = 32

func (f *ntFacts) argument(r *arch.Registers, i int) (uint64, error) {
	if i < 0 || i >= maxNTArgs {
		return 0, fmt.Errorf("read argument %d: there is no such argument", i)
	}
	if p := f.argRegister(r, i); p != nil {
		return *p, nil
	}
	v, err := f.nt.Word(f.as, f.argPlace(r, i))
	if err != nil {
		return 0, fmt.Errorf("read argument %d: %w", i, err)
	}
	return uint64(v), nil
}

// argRegister returns the register that holds argument i, nil when it is on the stack.
func (f *ntFacts) argRegister(r *arch.Registers, i int) *uint64 {
	if !f.x64 || i > 3 {
		return nil
	}
	return [...]*uint64{&r.RCX, &r.RDX, &r.R8, &r.R9}[i]
}

// argPlace returns where on the stack argument i is: above the return address;
// on x64 the four in registers have homes there too.
func (f *ntFacts) argPlace(r *arch.Registers, i int) arch.GVA {
	if f.x64 {
		return arch.GVA(r.RSP) + 8 + 8*arch.GVA(i)
	}
	return arch.GVA(uint32(r.RSP)) + 4 + 4*arch.GVA(i)
}

func (f *ntFacts) setArg(r *arch.Registers, i int, v uint64) error {
	if p := f.argRegister(r, i); p != nil {
		*p = v
		return nil
	}
	b := binary.LittleEndian.AppendUint64(nil, v)
	if !f.x64 {
		b = b[:4]
	}
	return f.as.Write(b, f.argPlace(r, i))
}

// thread reads a thread's identity. What cannot be read stays zero.
func (f *ntFacts) thread(task arch.GVA) Thread {
	t := Thread{Task: task}
	if task == 0 {
		return t
	}
	t.TID, t.PID = int(f.word(task+f.tid)), int(f.word(task+f.pid))
	mode, err := f.as.ReadUint8(task + f.mode)
	t.Kernel = err == nil && mode == 0
	process := f.word(task + f.process)
	if !f.nt.KernelAddress(process) {
		return t
	}
	t.PPID = int(f.word(process + f.parent))
	var b [imageName]byte
	n, _ := f.as.Read(b[:], process+f.name)
	name, _, _ := bytes.Cut(b[:n], []byte{0})
	t.Comm = string(name)
	return t
}

// created returns when the thread's process was created, as the kernel counts.
func (f *ntFacts) created(task arch.GVA) uint64 {
	v, _ := f.as.ReadUint64(f.word(task+f.process) + f.creation)
	return v
}

func (f *ntFacts) machine() *trap.Machine {
	return &trap.Machine{Bits32: !f.x64, Task: f.task, Stack: f.stack, Arg: f.arg}
}

// useNT takes the one engine that there is for NT kernels: what guards their
// text would find an implant.
func (s *Session) useNT(o *Options) error {
	switch o.Engine {
	case "", Auto, Trap:
		return s.useTrap(o)
	case Implant:
		return fmt.Errorf("use engine %q: NT kernels take no implants, which their guard of kernel text would find: %w", Implant, errors.ErrUnsupported)
	}
	return fmt.Errorf("use engine %q: there is no such engine: %w", o.Engine, errors.ErrUnsupported)
}

// ArgAt returns integer argument i of the function as it was at entry, also
// beyond the sixth: from the stack, where the guest's calling convention has it.
// It works at entry, under sync delivery.
func (h *Hit) ArgAt(i int) (uint64, error) {
	switch {
	case h.raw.Return || !h.Sync():
		return 0, fmt.Errorf("read argument %d: not at entry, or the guest does not wait", i)
	case i >= 0 && i < len(h.raw.Args):
		return h.raw.Args[i], nil
	case h.facts.nt != nil:
		return h.facts.nt.argument(h.raw.Regs, i)
	case i < 0 || i >= maxNTArgs:
		return 0, fmt.Errorf("read argument %d: there is no such argument", i)
	}
	if h.facts.i386 != nil {
		v, err := h.kern.ReadUint32(h.facts.i386.argPlace(h.raw.Regs, i))
		if err != nil {
			return 0, fmt.Errorf("read argument %d: %w", i, err)
		}
		return uint64(v), nil
	}
	v, err := h.kern.ReadUint64(h.raw.Regs.SP() + 8 + 8*arch.GVA(i-len(h.raw.Args)))
	if err != nil {
		return 0, fmt.Errorf("read argument %d: %w", i, err)
	}
	return v, nil
}
