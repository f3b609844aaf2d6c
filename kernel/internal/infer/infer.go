// Package infer reads out of the machine code of short functions which member
// of a structure they return: mov eax,[ebp+8]; mov eax,[eax+84h]; ret says that
// the member lies at 0x84.
//
// It follows the plain pattern only: a handful of moves from the parameter, or
// from the processor's own block by FS or GS, to the result. Anything else, a
// call, a jump, a comparison, makes it give up. It wraps
// golang.org/x/arch/x86/x86asm. The code is the guest's: Read returns an error
// or a value, and looks at no more than MaxCode bytes.
package infer

import (
	"errors"
	"fmt"

	"golang.org/x/arch/x86/x86asm"
)

// MaxCode is how many bytes of a function are of use.
const MaxCode = 64

// ErrNotPlain is returned for code that is more than a plain accessor.
var ErrNotPlain = errors.New("not a plain accessor")

// Base is where a path begins.
type Base uint8

// The bases.
const (
	None  Base = iota
	Param      // the function's first parameter
	PCR        // the processor's block: FS of a 32-bit, GS of a 64-bit kernel
	frame      // the stack pointer at entry
)

// Value is what a function returns: it starts at Base and follows Loads, each
// reading at its offset from the last one; then Add is added.
type Value struct {
	Base  Base
	Loads []Load
	Add   int64
}

// Load is one read.
type Load struct {
	Offset int64
	Size   int // bytes
}

// maxSteps bounds how many instructions an accessor may have.
const maxSteps = 16

// Read decodes a function. Its code begins at b[0]; x64 tells the mode.
func Read(b []byte, x64 bool) (Value, error) {
	m := newMachine(x64)
	b = b[:min(len(b), MaxCode)]
	for range maxSteps {
		b = skipEndbr(b)
		in, err := x86asm.Decode(b, m.mode)
		if err != nil || in.Op == 0 || in.Len <= 0 || in.Len > len(b) {
			return Value{}, fmt.Errorf("decode % x: %w", b[:min(len(b), 8)], ErrNotPlain)
		}
		if in.Op == x86asm.RET {
			return m.result()
		}
		if !m.step(&in) {
			return Value{}, fmt.Errorf("instruction %v: %w", in, ErrNotPlain)
		}
		b = b[in.Len:]
	}
	return Value{}, fmt.Errorf("no end within %d instructions: %w", maxSteps, ErrNotPlain)
}

// skipEndbr passes over endbr64 and endbr32, which x86asm takes for a prefix.
func skipEndbr(b []byte) []byte {
	if len(b) >= 4 && b[0] == 0xf3 && b[1] == 0x0f && b[2] == 0x1e && (b[3] == 0xfa || b[3] == 0xfb) {
		return b[4:]
	}
	return b
}

// machine follows values through registers.
type machine struct {
	mode   int // 32 or 64
	regs   [16]Value
	pushed []Value // newest last
}

const (
	ax = 0
	cx = 1
	sp = 4
	bp = 5
)

func newMachine(x64 bool) *machine {
	m := &machine{mode: 32}
	if x64 {
		m.mode = 64
		m.regs[cx] = Value{Base: Param}
	}
	m.regs[sp] = Value{Base: frame}
	return m
}

func (m *machine) word() int64 { return int64(m.mode / 8) }

func (m *machine) result() (Value, error) {
	v := m.regs[ax]
	if (v.Base != Param && v.Base != PCR) || len(v.Loads) == 0 && v.Add == 0 {
		return Value{}, fmt.Errorf("returns nothing that comes from a structure: %w", ErrNotPlain)
	}
	return v, nil
}

// step follows one instruction and reports whether it is of the plain kind.
func (m *machine) step(in *x86asm.Inst) bool {
	dst, dstSize := register(in.Args[0])
	switch in.Op {
	case x86asm.NOP:
		return true
	case x86asm.PUSH:
		if dst < 0 {
			return false
		}
		m.pushed = append(m.pushed, m.regs[dst])
		m.regs[sp].Add -= m.word()
		return true
	case x86asm.POP:
		return dst >= 0 && m.pop(dst)
	case x86asm.LEAVE:
		m.regs[sp] = m.regs[bp]
		return m.pop(bp)
	case x86asm.MOV, x86asm.MOVZX, x86asm.MOVSXD, x86asm.MOVSX:
		return dst >= 0 && m.move(dst, dstSize, in)
	case x86asm.LEA:
		mem, ok := in.Args[1].(x86asm.Mem)
		if !ok || dst < 0 || mem.Segment != 0 {
			return false
		}
		v, ok := m.address(mem)
		m.regs[dst] = v
		return ok
	case x86asm.ADD, x86asm.SUB:
		imm, ok := in.Args[1].(x86asm.Imm)
		if !ok || dst < 0 || m.regs[dst].Base == None {
			return false
		}
		m.regs[dst] = m.regs[dst].plus(map[bool]int64{true: int64(imm), false: -int64(imm)}[in.Op == x86asm.ADD])
		return true
	}
	return false
}

// plus returns the value with n added.
func (v Value) plus(n int64) Value {
	v.Add += n
	return v
}

func (m *machine) pop(dst int) bool {
	if len(m.pushed) == 0 {
		return false
	}
	m.regs[dst] = m.pushed[len(m.pushed)-1]
	m.pushed = m.pushed[:len(m.pushed)-1]
	if dst != sp {
		m.regs[sp] = m.regs[sp].plus(m.word())
	}
	return true
}

// move follows a move into a register. A move between registers of its own
// (mov edi,edi at the start of functions that can be patched) changes nothing.
func (m *machine) move(dst, size int, in *x86asm.Inst) bool {
	if src, srcSize := register(in.Args[1]); src >= 0 {
		if src == dst && srcSize == size {
			return true
		}
		m.regs[dst] = Value{}
		if srcSize == size && int64(size) == m.word() {
			m.regs[dst] = m.regs[src]
		}
		return true
	}
	mem, ok := in.Args[1].(x86asm.Mem)
	if !ok {
		return false
	}
	v, ok := m.load(mem, in.MemBytes)
	m.regs[dst] = v
	return ok
}

// load returns what lies in memory.
func (m *machine) load(mem x86asm.Mem, size int) (Value, bool) {
	if mem.Segment == x86asm.FS && m.mode == 32 || mem.Segment == x86asm.GS && m.mode == 64 {
		if mem.Base != 0 || mem.Index != 0 {
			return Value{}, false
		}
		return Value{Base: PCR, Loads: []Load{{mem.Disp, size}}}, true
	}
	at, ok := m.address(mem)
	if !ok || mem.Segment != 0 && mem.Segment != x86asm.DS && mem.Segment != x86asm.SS {
		return Value{}, false
	}
	if at.Base == frame {
		// Above the return address lies the parameter; below, what was stored.
		return Value{Base: Param}, m.mode == 32 && at.Add == 4 && len(at.Loads) == 0
	}
	loads := append(at.Loads[:len(at.Loads):len(at.Loads)], Load{at.Add, size})
	return Value{Base: at.Base, Loads: loads}, true
}

// address returns what an operand's address is made of.
func (m *machine) address(mem x86asm.Mem) (Value, bool) {
	base, size := register(mem.Base)
	if base < 0 || mem.Index != 0 || int64(size) != m.word() || m.regs[base].Base == None {
		return Value{}, false
	}
	return m.regs[base].plus(mem.Disp), true
}

// register returns the number of a general register and its size in bytes, -1
// for another operand.
func register(a x86asm.Arg) (n, size int) {
	r, ok := a.(x86asm.Reg)
	switch {
	case !ok:
	case r >= x86asm.RAX && r <= x86asm.R15:
		return int(r - x86asm.RAX), 8
	case r >= x86asm.EAX && r <= x86asm.R15L:
		return int(r - x86asm.EAX), 4
	case r >= x86asm.AX && r <= x86asm.R15W:
		return int(r - x86asm.AX), 2
	case r >= x86asm.AL && r <= x86asm.BL:
		return int(r - x86asm.AL), 1
	}
	return -1, 0
}
