package trap

import (
	"encoding/binary"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
	"github.com/vitrine-vmi/vitrine/probe/internal/x86dec"
)

// Machine is how a kernel other than Linux on x86-64 passes arguments and keeps
// its threads. Its functions are not followed to their ways out, for which
// exact bounds of functions would be needed: each call is watched at its return
// address. Its breakpoints are the processors' own, so that a kernel that guards
// its text finds it as it was.
//
// The methods run on the goroutine of Engine.Run, while the guest stands still.
type Machine struct {
	// Bits32 says that the kernel's code is 32-bit code, and that functions pop
	// their own arguments (stdcall).
	Bits32 bool
	// Task returns the thread that runs on a processor that runs kernel code, 0
	// when it cannot be told.
	Task func(r *arch.Registers) arch.GVA
	// Stack names the stack of the thread that sp lies in, false when it is
	// none of the thread's.
	Stack func(task arch.GVA, sp uint64) (id arch.GVA, ok bool)
	// Arg returns argument i of a function that was just entered.
	Arg func(r *arch.Registers, i int) uint64
}

func (m *Machine) stackOf(task arch.GVA, cpu int, r *arch.Registers) stack {
	if id, ok := m.Stack(task, r.RSP); ok {
		return stack{task: id}
	}
	return stack{cpu: cpu + 1}
}

func (c *Config) bits32() bool { return c.Machine != nil && c.Machine.Bits32 }

func (e *Engine) arg(r *arch.Registers, i int) uint64 {
	if m := e.cfg.Machine; m != nil {
		return m.Arg(r, i)
	}
	return r.Arg(i)
}

// waysOf returns how a function can be left. Code of arm64 is not followed
// either.
func (e *Engine) waysOf(body []engine.Range) ways {
	if e.cfg.Machine != nil || e.cfg.ARM64 {
		return ways{opaque: true}
	}
	return follow(&e.cfg, body)
}

// word reads a pointer of the kernel's width.
func (e *Engine) word(a arch.GVA) (uint64, error) {
	if e.cfg.bits32() {
		v, err := e.cfg.Kernel.ReadUint32(a)
		return uint64(v), err
	}
	return e.cfg.Kernel.ReadUint64(a)
}

// emulate32 is emulate for 32-bit code: what functions begin with, and returns.
func emulate32(as *vitrine.AddressSpace, in *x86dec.Inst, r *arch.Registers) bool {
	next := uint64(uint32(r.RIP) + uint32(in.Len))
	switch in.Kind {
	case x86dec.Nop:
	case x86dec.JmpRel:
		next = in.Target
	case x86dec.Push:
		v := uint32(*register(r, in.Src))
		at := uint32(r.RSP) - 4
		if as.Write(binary.LittleEndian.AppendUint32(nil, v), arch.GVA(at)) != nil {
			return false
		}
		r.RSP = uint64(at)
	case x86dec.MovReg:
		*register(r, in.Dst) = uint64(uint32(*register(r, in.Src)))
	case x86dec.MovImm:
		*register(r, in.Dst) = uint64(uint32(in.Imm))
	case x86dec.SubReg:
		p := register(r, in.Dst)
		*p = subtract32(uint32(*p), uint32(in.Imm), &r.RFLAGS)
	case x86dec.Ret:
		to, err := as.ReadUint32(arch.GVA(uint32(r.RSP)))
		if err != nil {
			return false
		}
		r.RSP = uint64(uint32(r.RSP) + 4 + uint32(in.Imm))
		next = uint64(to)
	default:
		return false
	}
	r.RIP = next
	return true
}

// subtract32 is subtract for 32 bits: in the upper halves of the operands the
// flags are the same, but those of the lowest byte.
func subtract32(a, b uint32, flags *uint64) uint64 {
	subtract(uint64(a)<<32, uint64(b)<<32, flags)
	const low = uint64(flagPF | flagAF)
	var of uint64
	subtract(uint64(a), uint64(b), &of)
	*flags = *flags&^low | of&low
	return uint64(a - b)
}
