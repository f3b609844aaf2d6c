package probe

import (
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe/internal/trap"
)

// Linux on 32-bit x86. Functions take their first three arguments in eax, edx and
// ecx and the others on the stack above the return address (regparm(3)), and
// leave them there. FS leads to a processor's own variables while the kernel runs.

// i386Facts is what the others of facts do not tell of such a kernel.
type i386Facts struct {
	as                    *vitrine.AddressSpace
	current               arch.GVA // of current_task in FS
	stackField, stackSize uint64
}

// is32 reports whether the kernel is Linux on 32-bit x86.
func is32(k *kernel.Kernel) bool { return k.NT() == nil && k.Arch() == arch.I386 }

// task returns the thread that runs on a processor that is in kernel code.
func (f *i386Facts) task(r *arch.Registers) arch.GVA {
	p, err := f.as.ReadPointer(arch.GVA(uint32(r.FSBase) + uint32(f.current)))
	if err != nil || !inKernel(p) {
		return 0
	}
	return p
}

// stack names the stack that sp lies in by its task, if it is the task's.
func (f *i386Facts) stack(task arch.GVA, sp uint64) (arch.GVA, bool) {
	if task == 0 {
		return 0, false
	}
	base, err := f.as.ReadPointer(task + arch.GVA(f.stackField))
	return task, err == nil && arch.GVA(sp) >= base && uint64(arch.GVA(sp)-base) < f.stackSize
}

func (f *i386Facts) argRegister(r *arch.Registers, i int) *uint64 {
	if i < 0 || i > 2 {
		return nil
	}
	return [...]*uint64{&r.RAX, &r.RDX, &r.RCX}[i]
}

// argPlace returns where on the stack argument i, which is in no register, lies.
func (f *i386Facts) argPlace(r *arch.Registers, i int) arch.GVA {
	return arch.GVA(uint32(r.RSP)) + 4 + 4*arch.GVA(i-3)
}

// arg returns argument i at a function's entry, 0 when it cannot be read.
func (f *i386Facts) arg(r *arch.Registers, i int) uint64 {
	if p := f.argRegister(r, i); p != nil {
		return uint64(uint32(*p))
	}
	v, _ := f.as.ReadUint32(f.argPlace(r, i))
	return uint64(v)
}

func (f *i386Facts) setArg(r *arch.Registers, i int, v uint64) error {
	if p := f.argRegister(r, i); p != nil {
		*p = uint64(uint32(v))
		return nil
	}
	return f.as.Write([]byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)}, f.argPlace(r, i))
}

func (f *i386Facts) machine() *trap.Machine {
	return &trap.Machine{Bits32: true, Task: f.task, Stack: f.stack, Arg: f.arg}
}

// choose386 takes breakpoints: the implants' code is 64-bit code.
func (s *Session) choose386(o *Options) error {
	switch {
	case o.Engine == Implant, o.Delivery == Stream:
		return fmt.Errorf("use implants in a guest with a kernel of architecture %v: %w", arch.I386, errors.ErrUnsupported)
	case o.Engine != "" && o.Engine != Auto && o.Engine != Trap:
		return fmt.Errorf("use engine %q: there is no such engine: %w", o.Engine, errors.ErrUnsupported)
	}
	return s.useTrap(o)
}
