// Package x86dec decodes x86-64 machine code as far as planting probes needs:
// how long an instruction is, and whether and where it leads away. It wraps
// golang.org/x/arch/x86/x86asm and fills that decoder's gaps: instructions that
// it refuses, takes for a lone prefix, or measures wrongly.
//
// References are to Intel's Software Developer's Manual, volume 2 (2024-06).
// The input is hostile: Decode returns an error or an instruction that lies
// within it. The package keeps no state.
package x86dec

import (
	"errors"
	"fmt"

	"golang.org/x/arch/x86/x86asm"
)

// Kind says what an instruction does, where that matters to a probe.
type Kind uint8

// The kinds.
const (
	Other   Kind = iota // anything that goes on with the next instruction
	Nop                 // no effect at all
	Endbr               // landing pad of indirect branches: endbr64, endbr32
	Ret                 // near return; Imm is what it pops besides
	JmpRel              // unconditional jump to Target
	JmpInd              // unconditional jump through a register or memory: Inst.Args[0]
	CondJmp             // jump to Target or on
	CallRel             // call of Target
	CallInd             // call through a register or memory
	Push                // push of register Src
	MovReg              // 64-bit move of register Src to register Dst
	MovImm              // move of Imm to 32-bit register Dst; Decode32 only
	SubReg              // 64-bit subtraction of Imm from register Dst
	Store               // 64-bit store of register Src to Mem
	Load                // 64-bit load of register Dst from Mem
	Trap                // int3, ud0, ud1, ud2, hlt: what stands where nothing goes on
	Far                 // leaves in a way that we do not follow: iret, sysret, far jumps
)

// MaxLen is the length of the longest instruction, in bytes.
const MaxLen = 15

// Inst is one instruction.
type Inst struct {
	Kind   Kind
	Len    int        // bytes
	Target uint64     // of JmpRel, CondJmp, CallRel
	Dst    int        // register number 0 (RAX) to 15 (R15)
	Src    int        // likewise
	Imm    int64      // see Kind
	Mem    x86asm.Mem // of Store and Load, and of JmpInd and CallInd when Src is negative
}

// ErrTruncated is returned when the code ends within an instruction.
var ErrTruncated = errors.New("code ends within an instruction")

// ErrUnknown is returned for bytes that are no instruction we know.
var ErrUnknown = errors.New("unknown instruction")

// Decode decodes the first instruction of code, which stands at address pc.
func Decode(code []byte, pc uint64) (Inst, error) {
	code = code[:min(len(code), MaxLen)]
	if in, ok, err := decodeGap(code); ok || err != nil {
		return in, err
	}
	x, err := x86asm.Decode(code, 64)
	switch {
	case errors.Is(err, x86asm.ErrTruncated):
		return Inst{}, ErrTruncated
	case err != nil || x.Op == 0 || x.Len <= 0 || x.Len > len(code):
		return Inst{}, fmt.Errorf("%w: % x", ErrUnknown, code)
	}
	return classify(&x, pc), nil
}

// classify turns a decoded instruction into ours.
func classify(x *x86asm.Inst, pc uint64) Inst {
	in := Inst{Len: x.Len, Src: -1, Dst: -1}
	rel, isRel := x.Args[0].(x86asm.Rel)
	if isRel {
		in.Target = pc + uint64(x.Len) + uint64(int64(rel))
	}
	switch x.Op {
	case x86asm.NOP, x86asm.PAUSE:
		in.Kind = Nop
	case x86asm.RET:
		in.Kind = Ret
		if imm, ok := x.Args[0].(x86asm.Imm); ok {
			in.Imm = int64(imm)
		}
	case x86asm.JMP, x86asm.CALL:
		in.branch(x, isRel)
	case x86asm.INT, x86asm.UD0, x86asm.UD1, x86asm.UD2, x86asm.HLT:
		if imm, ok := x.Args[0].(x86asm.Imm); !ok || imm == 3 {
			in.Kind = Trap
		}
	case x86asm.LRET, x86asm.LJMP, x86asm.IRET, x86asm.IRETD, x86asm.IRETQ, x86asm.SYSRET, x86asm.SYSEXIT:
		in.Kind = Far
	case x86asm.PUSH, x86asm.MOV, x86asm.SUB:
		in.simple(x)
	default:
		if isRel {
			in.Kind = CondJmp // jcc, loop, jrcxz, and xbegin with its abort target
		}
	}
	return in
}

func (in *Inst) branch(x *x86asm.Inst, isRel bool) {
	in.Kind = JmpInd
	switch {
	case x.Op == x86asm.JMP && isRel:
		in.Kind = JmpRel
		return
	case x.Op == x86asm.CALL && isRel:
		in.Kind = CallRel
		return
	case x.Op == x86asm.CALL:
		in.Kind = CallInd
	}
	in.Src = number(x.Args[0])
	if m, ok := x.Args[0].(x86asm.Mem); ok {
		in.Mem = m
	}
}

// simple recognises the instructions that functions begin with, and those
// that follow a call.
func (in *Inst) simple(x *x86asm.Inst) {
	dst := number(x.Args[0])
	if m, ok := x.Args[0].(x86asm.Mem); ok && x.Op == x86asm.MOV && number(x.Args[1]) >= 0 {
		in.Kind, in.Mem, in.Src = Store, m, number(x.Args[1])
	}
	if dst < 0 {
		return
	}
	if m, ok := x.Args[1].(x86asm.Mem); ok && x.Op == x86asm.MOV {
		in.Kind, in.Mem, in.Dst = Load, m, dst
	}
	switch imm, isImm := x.Args[1].(x86asm.Imm); {
	case x.Op == x86asm.PUSH:
		in.Kind, in.Src = Push, dst
	case x.Op == x86asm.MOV && number(x.Args[1]) >= 0:
		in.Kind, in.Dst, in.Src = MovReg, dst, number(x.Args[1])
	case x.Op == x86asm.SUB && isImm:
		in.Kind, in.Dst, in.Imm = SubReg, dst, int64(imm)
	}
}

// number returns the number of a 64-bit general register, -1 for other operands.
func number(a x86asm.Arg) int {
	if r, ok := a.(x86asm.Reg); ok && r >= x86asm.RAX && r <= x86asm.R15 {
		return int(r - x86asm.RAX)
	}
	return -1
}
