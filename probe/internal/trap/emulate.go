package trap

import (
	"encoding/binary"
	"math/bits"

	"golang.org/x/arch/x86/x86asm"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/x86dec"
)

// register returns general register n in the encoding's order.
func register(r *arch.Registers, n int) *uint64 {
	return [...]*uint64{&r.RAX, &r.RCX, &r.RDX, &r.RBX, &r.RSP, &r.RBP, &r.RSI, &r.RDI,
		&r.R8, &r.R9, &r.R10, &r.R11, &r.R12, &r.R13, &r.R14, &r.R15}[n&15]
}

// emulate does what the instruction at r.RIP does, in r and in the guest's
// data. It reports false, with nothing changed, for what it does not know or
// cannot reach: the processor has to step then.
func emulate(as *vitrine.AddressSpace, in *x86dec.Inst, r *arch.Registers) bool {
	next := r.RIP + uint64(in.Len)
	switch in.Kind {
	case x86dec.Nop:
		r.RIP = next
	case x86dec.JmpRel:
		r.RIP = in.Target
	case x86dec.JmpInd:
		target, ok := indirect(as, in, r)
		if !ok {
			return false
		}
		r.RIP = target
	case x86dec.CallRel:
		if !push(as, r, next) {
			return false
		}
		r.RIP = in.Target
	case x86dec.Ret:
		return ret(as, r, uint64(in.Imm))
	case x86dec.Push:
		if !push(as, r, *register(r, in.Src)) {
			return false
		}
		r.RIP = next
	case x86dec.MovReg:
		*register(r, in.Dst) = *register(r, in.Src)
		r.RIP = next
	case x86dec.SubReg:
		p := register(r, in.Dst)
		*p = subtract(*p, uint64(in.Imm), &r.RFLAGS)
		r.RIP = next
	case x86dec.Store, x86dec.Load:
		if !move(as, in, r) {
			return false
		}
		r.RIP = next
	default:
		return false
	}
	return true
}

// move stores a register in memory, or loads it from there: the kernel's own
// only, since a process's may have to be paged in or copied first.
func move(as *vitrine.AddressSpace, in *x86dec.Inst, r *arch.Registers) bool {
	a, ok := effective(in, r)
	if !ok || int64(a) >= 0 {
		return false
	}
	if in.Kind == x86dec.Store {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], *register(r, in.Src))
		return as.Write(b[:], a) == nil
	}
	v, err := as.ReadUint64(a)
	if err != nil {
		return false
	}
	*register(r, in.Dst) = v
	return true
}

// push stores v on the stack.
func push(as *vitrine.AddressSpace, r *arch.Registers, v uint64) bool {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	if as.Write(b[:], arch.GVA(r.RSP-8)) != nil {
		return false
	}
	r.RSP -= 8
	return true
}

// ret returns to the address on top of the stack.
func ret(as *vitrine.AddressSpace, r *arch.Registers, pop uint64) bool {
	to, err := as.ReadUint64(arch.GVA(r.RSP))
	if err != nil {
		return false
	}
	r.RIP = to
	r.RSP += 8 + pop
	return true
}

// indirect returns where an indirect jump goes.
func indirect(as *vitrine.AddressSpace, in *x86dec.Inst, r *arch.Registers) (uint64, bool) {
	if in.Src >= 0 {
		return *register(r, in.Src), true
	}
	a, ok := effective(in, r)
	if !ok {
		return 0, false
	}
	to, err := as.ReadUint64(a)
	return to, err == nil
}

// effective returns the address of an instruction's memory operand.
func effective(in *x86dec.Inst, r *arch.Registers) (arch.GVA, bool) {
	m := in.Mem
	a := uint64(m.Disp)
	for _, part := range []struct {
		reg   x86asm.Reg
		scale uint64
	}{{m.Base, 1}, {m.Index, uint64(m.Scale)}} {
		switch {
		case part.reg == 0:
		case part.reg == x86asm.RIP:
			a += r.RIP + uint64(in.Len)
		case part.reg >= x86asm.RAX && part.reg <= x86asm.R15:
			a += *register(r, int(part.reg-x86asm.RAX)) * part.scale
		default:
			return 0, false
		}
	}
	switch m.Segment {
	case 0, x86asm.DS, x86asm.SS, x86asm.CS, x86asm.ES: // all begin at 0 in 64-bit mode
	case x86asm.GS:
		a += r.GSBase
	case x86asm.FS:
		a += r.FSBase
	default:
		return 0, false
	}
	return arch.GVA(a), true
}

// The arithmetic flags (SDM volume 1, 3.4.3.1).
const (
	flagCF = 1 << 0
	flagPF = 1 << 2
	flagAF = 1 << 4
	flagZF = 1 << 6
	flagSF = 1 << 7
	flagOF = 1 << 11
)

// subtract returns a-b and sets the flags as the sub instruction does.
func subtract(a, b uint64, flags *uint64) uint64 {
	d := a - b
	f := *flags &^ (flagCF | flagPF | flagAF | flagZF | flagSF | flagOF)
	for _, c := range []struct {
		set  bool
		flag uint64
	}{
		{a < b, flagCF},
		{bits.OnesCount8(uint8(d))%2 == 0, flagPF},
		{(a^b^d)&0x10 != 0, flagAF},
		{d == 0, flagZF},
		{d>>63 != 0, flagSF},
		{(a^b)&(a^d)>>63 != 0, flagOF},
	} {
		if c.set {
			f |= c.flag
		}
	}
	*flags = f
	return d
}
