package trace

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/syscalls"
)

// Event is one entry into a traced function, or one return from it. It is
// valid only during the handler that it was given to.
type Event struct {
	// Hit has the vCPU, the thread (task, pid, tid, ppid, comm, uid), the time,
	// and the raw registers and arguments of the kernel function.
	*probe.Hit
	// Name is the system call's name without prefix, "" for other functions.
	Name string
	// ABI is the interface by which the call is made: arch.I386 for a 32-bit
	// program's on an x86-64 kernel.
	ABI arch.Arch

	loop *Loop
	ctx  context.Context
	// saved is where a system call's arguments are in memory, 0 for other functions.
	saved arch.GVA
	args  *[6]uint64 // of the call; the same for its entry and its return
	// Of Windows guests: the arguments beyond the sixth, and whether the function
	// is a service, which returns an NTSTATUS.
	more   []uint64
	status bool
}

// Loop returns the loop that delivers the event.
func (e *Event) Loop() *Loop { return e.loop }

// PID, TID and PPID return the ids of the process, the thread and the parent.
func (e *Event) PID() int { return e.Thread.PID }

// TID returns the thread's id.
func (e *Event) TID() int { return e.Thread.TID }

// PPID returns the process id of the real parent.
func (e *Event) PPID() int { return e.Thread.PPID }

// Comm returns the thread's short name, as the kernel holds it.
func (e *Event) Comm() string { return e.Thread.Comm }

// UID returns the real user id.
func (e *Event) UID() uint32 { return e.Thread.UID }

// savedArgs is where struct pt_regs of x86-64 holds the arguments of a system
// call: the layout that ptrace(2) has fixed (arch/x86/include/asm/ptrace.h),
// di si dx r10 r8 r9 by the 64-bit convention, bx cx dx si di bp by the 32-bit
// one.
var savedArgs = map[probe.UserRegs][6]arch.GVA{
	probe.UserRegs64: {0x70, 0x68, 0x60, 0x38, 0x48, 0x40},
	probe.UserRegs32: {0x28, 0x58, 0x60, 0x68, 0x70, 0x20},
	// x0 to x5 (arch/arm64/include/uapi/asm/ptrace.h)
	probe.UserRegsARM64: {0, 8, 16, 24, 32, 40},
	probe.UserRegsI386:  {0, 4, 8, 12, 16, 20},
}

// Arg returns argument i (0 to 5) as it was at entry: of a system call what the
// program passed, of any other function what its caller did. It is 0 for any
// other i. Of a Windows guest's services it returns all arguments; of its other
// functions the first four.
func (e *Event) Arg(i int) uint64 {
	switch {
	case i < 0 || i >= len(e.args)+len(e.more):
		return 0
	case i >= len(e.args):
		return e.more[i-len(e.args)]
	}
	return e.args[i]
}

// SetArg replaces argument i (0 to 5) at entry, under sync delivery.
func (e *Event) SetArg(i int, v uint64) error {
	switch {
	case !e.Sync():
		return fmt.Errorf("change argument: the guest does not wait: %w", errors.ErrUnsupported)
	case e.Return || i < 0 || i >= len(e.args):
		return fmt.Errorf("change argument %d: not at entry, or no such argument", i)
	}
	var err error
	if e.saved == 0 {
		err = e.Hit.SetArg(i, v)
	} else {
		b := binary.LittleEndian.AppendUint64(nil, v)
		if e.Probe.User == probe.UserRegsI386 {
			b = b[:4]
		}
		err = e.Kernel().Write(b, e.saved+savedArgs[e.Probe.User][i])
	}
	if err == nil {
		e.args[i] = v
	}
	return err
}

// argsAt returns the arguments of the call that a hit is the entry of, and
// where a system call's are in memory.
func argsAt(h *probe.Hit) (args [6]uint64, saved arch.GVA) {
	if h.Probe.User != probe.NoUserRegs {
		saved = arch.GVA(h.Arg(0))
	}
	for i := range args {
		if saved == 0 {
			args[i] = h.Arg(i)
			continue
		}
		args[i], _ = h.UserArg(i)
	}
	return args, saved
}

// Result returns what the function returned, as a signed number: a system call
// returns an error as -errno, that of a Windows guest an NTSTATUS, which is
// negative for errors too. It is 0 at entry.
func (e *Event) Result() int64 {
	if e.status {
		return int64(int32(e.Hit.Result()))
	}
	return seenBy(e.ABI, int64(e.Hit.Result()))
}

// Register returns a register of the vCPU by its usual name, as "rax" or "cr3",
// on arm64 "x0" or "ttbr0_el1".
func (e *Event) Register(name string) (uint64, error) {
	r, err := e.Registers()
	if err != nil {
		return 0, err
	}
	if r.ARM64.On {
		return armRegister(&r.ARM64, strings.ToLower(name))
	}
	p, ok := map[string]uint64{
		"rax": r.RAX, "rbx": r.RBX, "rcx": r.RCX, "rdx": r.RDX, "rsi": r.RSI, "rdi": r.RDI, "rbp": r.RBP, "rsp": r.RSP,
		"r8": r.R8, "r9": r.R9, "r10": r.R10, "r11": r.R11, "r12": r.R12, "r13": r.R13, "r14": r.R14, "r15": r.R15,
		"rip": r.RIP, "rflags": r.RFLAGS, "fs_base": r.FSBase, "gs_base": r.GSBase, "kernel_gs_base": r.KernelGSBase,
		"cr0": r.CR0, "cr2": r.CR2, "cr3": r.CR3, "cr4": r.CR4, "cr8": r.CR8, "efer": r.EFER,
		"cs": uint64(r.CS), "ss": uint64(r.SS), "ds": uint64(r.DS), "es": uint64(r.ES), "fs": uint64(r.FS), "gs": uint64(r.GS),
	}[strings.ToLower(name)]
	if !ok {
		return 0, fmt.Errorf("read register %q: no such register", name)
	}
	return p, nil
}

// armRegister returns a register of an AArch64 processor.
func armRegister(r *arch.ARM64Registers, name string) (uint64, error) {
	if n, err := strconv.Atoi(strings.TrimPrefix(name, "x")); err == nil && name[0] == 'x' && n >= 0 && n < len(r.X) {
		return r.X[n], nil
	}
	v, ok := map[string]uint64{
		"sp": r.SP, "pc": r.PC, "lr": r.X[30], "pstate": r.PSTATE, "cpsr": r.PSTATE, "sp_el0": r.SPEL0,
		"ttbr0_el1": r.TTBR0, "ttbr1_el1": r.TTBR1, "tcr_el1": r.TCR, "sctlr_el1": r.SCTLR,
	}[name]
	if !ok {
		return 0, fmt.Errorf("read register %q: no such register", name)
	}
	return v, nil
}

// PageSize returns the size of the guest's smallest page, in bytes.
func (e *Event) PageSize() int { return arch.PageSize }

// memory returns the address space that a is in: the process's, which on x86 has
// the kernel's half too, as arm64's has not.
func (e *Event) memory(a arch.GVA) *vitrine.AddressSpace {
	own := e.Process()
	if kernel := e.Kernel(); int64(a) < 0 && own.Mode() != kernel.Mode() {
		return kernel
	}
	return own
}

// Bytes reads n bytes, at most 1 MiB, of the process's memory. Fewer come with
// an error that says where the rest is missing.
func (e *Event) Bytes(a arch.GVA, n int) ([]byte, error) {
	p := make([]byte, min(max(n, 0), 1<<20))
	n, err := e.memory(a).Read(p, a)
	return p[:n], err
}

// String reads a string of the process's memory, at most limit bytes of it.
// With an error it returns what could be read: vitrine.ErrTooLong when the
// string is longer.
func (e *Event) String(a arch.GVA, limit int) (string, error) {
	return e.memory(a).ReadString(a, limit)
}

// Uint32 reads a number of the process's memory.
func (e *Event) Uint32(a arch.GVA) (uint32, error) { return e.memory(a).ReadUint32(a) }

// Limits of Argv.
const (
	maxArgv     = 4096     // strings
	maxArgvText = 64 << 10 // bytes of one
	maxArgvAll  = 1 << 20  // bytes of all
)

// Argv reads a vector of strings that ends with a null pointer, as the argv and
// envp of execve, from the process's memory. With an error it returns the
// strings before the one that could not be read; it is vitrine.ErrTooLong for
// more than 4096 of them, or 1 MiB.
func (e *Event) Argv(a arch.GVA) ([]string, error) {
	var out []string
	size := arch.GVA(8)
	if e.ABI == arch.I386 {
		size = 4
	}
	for total := 0; len(out) < maxArgv && total < maxArgvAll; {
		p, err := e.pointer(a+arch.GVA(len(out))*size, size)
		if err != nil || p == 0 {
			return out, err
		}
		s, err := e.memory(p).ReadString(p, maxArgvText)
		if err != nil {
			return out, err
		}
		out = append(out, s)
		total += len(s)
	}
	return out, vitrine.ErrTooLong
}

func (e *Event) pointer(a, size arch.GVA) (arch.GVA, error) {
	if size == 4 {
		v, err := e.memory(a).ReadUint32(a)
		return arch.GVA(v), err
	}
	v, err := e.memory(a).ReadUint64(a)
	return arch.GVA(v), err
}

// Path returns the path of an open file of the process, as /proc/PID/fd has it,
// and that of the working directory for syscalls.AtFDCWD.
func (e *Event) Path(fd int) (string, error) {
	return (&resolver{sys: e.loop.sys, ctx: e.ctx, task: e.Thread.Task}).path(fd)
}

var _ syscalls.Memory = (*vitrine.AddressSpace)(nil)
