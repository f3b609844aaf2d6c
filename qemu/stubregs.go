package qemu

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/qemu/internal/rsp"
)

// stubLayout tells where in the answer of the gdbstub's g request the registers
// of arch.Registers are.
type stubLayout struct {
	regs []stubReg
	pc   int // index of RIP in regs
	size int // bytes of the answer that are needed
	unit int // what a breakpoint's request calls its size: 1, or 4 on AArch64
	// more are registers that g does not answer and that have to be asked for one
	// by one, after it: the system registers of AArch64.
	more []stubReg
}

// stubReg is a register that both the gdbstub and arch.Registers have.
type stubReg struct {
	rsp.Register
	get func(*arch.Registers) uint64
	set func(*arch.Registers, uint64)
	own bool // SetRegisters stores it: general registers, RIP, RFLAGS
}

// wide and narrow make the accessors of a 64-bit and of a selector field.
func wide(own bool, p func(*arch.Registers) *uint64) stubReg {
	return stubReg{
		get: func(r *arch.Registers) uint64 { return *p(r) },
		set: func(r *arch.Registers, v uint64) { *p(r) = v }, own: own,
	}
}

func narrow(p func(*arch.Registers) *uint16) stubReg {
	return stubReg{
		get: func(r *arch.Registers) uint64 { return uint64(*p(r)) },
		set: func(r *arch.Registers, v uint64) { *p(r) = uint16(v) },
	}
}

// accessor returns how arch.Registers holds the register of the gdbstub's name,
// in 64-bit or 32-bit spelling; ok is false for registers that it lacks.
func accessor(name string) (stubReg, bool) {
	switch name {
	case "eflags":
		return wide(true, func(r *arch.Registers) *uint64 { return &r.RFLAGS }), true
	case "cs":
		return narrow(func(r *arch.Registers) *uint16 { return &r.CS }), true
	case "ss":
		return narrow(func(r *arch.Registers) *uint16 { return &r.SS }), true
	case "ds":
		return narrow(func(r *arch.Registers) *uint16 { return &r.DS }), true
	case "es":
		return narrow(func(r *arch.Registers) *uint16 { return &r.ES }), true
	case "fs":
		return narrow(func(r *arch.Registers) *uint16 { return &r.FS }), true
	case "gs":
		return narrow(func(r *arch.Registers) *uint16 { return &r.GS }), true
	case "fs_base":
		return wide(false, func(r *arch.Registers) *uint64 { return &r.FSBase }), true
	case "gs_base":
		return wide(false, func(r *arch.Registers) *uint64 { return &r.GSBase }), true
	case "k_gs_base":
		return wide(false, func(r *arch.Registers) *uint64 { return &r.KernelGSBase }), true
	}
	monitorName, own := monitorNames[name]
	if !own {
		monitorName = name
		if len(name) != 3 || name[:2] != "cr" {
			if name != "efer" {
				return stubReg{}, false
			}
		}
	}
	monitorName = upper(monitorName)
	if field(new(arch.Registers), monitorName) == nil {
		return stubReg{}, false
	}
	return wide(own, func(r *arch.Registers) *uint64 { return field(r, monitorName) }), true
}

// monitorNames are the general registers and RIP, by what the gdbstub calls
// them and what the monitor does.
var monitorNames = map[string]string{
	"rax": "rax", "rbx": "rbx", "rcx": "rcx", "rdx": "rdx", "rsi": "rsi", "rdi": "rdi", "rbp": "rbp", "rsp": "rsp",
	"r8": "r8", "r9": "r9", "r10": "r10", "r11": "r11", "r12": "r12", "r13": "r13", "r14": "r14", "r15": "r15", "rip": "rip",
	"eax": "rax", "ebx": "rbx", "ecx": "rcx", "edx": "rdx", "esi": "rsi", "edi": "rdi", "ebp": "rbp", "esp": "rsp", "eip": "rip",
}

func upper(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// newStubLayout picks the registers out of a target description.
func newStubLayout(all []rsp.Register) (*stubLayout, error) {
	if isARM(all) {
		return newARMLayout(all)
	}
	l := &stubLayout{pc: -1, unit: 1}
	for _, r := range all {
		s, ok := accessor(r.Name)
		if !ok || r.Size != 4 && r.Size != 8 {
			continue
		}
		s.Register = r
		if r.Name == "rip" || r.Name == "eip" {
			l.pc = len(l.regs)
		}
		l.size = max(l.size, r.Offset+r.Size)
		l.regs = append(l.regs, s)
	}
	if l.pc < 0 {
		return nil, errors.New("the gdbstub's processor is neither an x86 nor an AArch64 one: its description has no rip")
	}
	return l, nil
}

// decode decodes the answer of a g request.
func (l *stubLayout) decode(payload []byte) (*arch.Registers, error) {
	if len(payload) < 2*l.size {
		return nil, fmt.Errorf("read registers: gdbstub answered %.40q", payload)
	}
	raw := make([]byte, l.size)
	if _, err := hex.Decode(raw, payload[:2*l.size]); err != nil {
		return nil, fmt.Errorf("read registers: %w", err)
	}
	r := new(arch.Registers)
	r.ARM64.On = l.more != nil
	for i := range l.regs {
		s := &l.regs[i]
		if s.Size == 8 {
			s.set(r, binary.LittleEndian.Uint64(raw[s.Offset:]))
		} else {
			s.set(r, uint64(binary.LittleEndian.Uint32(raw[s.Offset:])))
		}
	}
	return r, nil
}

// write returns the P request that stores v in the register.
func (s *stubReg) write(v uint64) string {
	var raw [8]byte
	binary.LittleEndian.PutUint64(raw[:], v)
	b := make([]byte, 0, 32)
	b = append(b, 'P')
	b = fmt.Appendf(b, "%x=", s.Number)
	return string(hex.AppendEncode(b, raw[:s.Size]))
}
