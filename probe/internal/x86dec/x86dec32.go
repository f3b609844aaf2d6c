package x86dec

import (
	"errors"
	"fmt"

	"golang.org/x/arch/x86/x86asm"
)

// Decode32 decodes the first instruction of 32-bit code, which stands at
// address pc. Of the kinds it tells those that Decode has a use for there: Nop,
// Endbr, Push, MovReg, MovImm, SubReg, JmpRel, Ret and Trap; all else is Other. Registers are
// 32-bit ones.
func Decode32(code []byte, pc uint64) (Inst, error) {
	code = code[:min(len(code), MaxLen)]
	if len(code) >= 4 && code[0] == 0xf3 && code[1] == 0x0f && code[2] == 0x1e && (code[3] == 0xfa || code[3] == 0xfb) {
		return Inst{Kind: Endbr, Len: 4, Src: -1, Dst: -1}, nil
	}
	x, err := x86asm.Decode(code, 32)
	switch {
	case errors.Is(err, x86asm.ErrTruncated):
		return Inst{}, ErrTruncated
	case err != nil || x.Op == 0 || x.Len <= 0 || x.Len > len(code):
		return Inst{}, fmt.Errorf("%w: % x", ErrUnknown, code)
	}
	return classify32(&x, pc), nil
}

func classify32(x *x86asm.Inst, pc uint64) Inst {
	in := Inst{Len: x.Len, Src: -1, Dst: -1}
	if x.Prefix[0] != 0 {
		return in // a prefix may change what it does
	}
	dst, src := number32(x.Args[0]), number32(x.Args[1])
	imm, isImm := x.Args[1].(x86asm.Imm)
	switch {
	case x.Op == x86asm.NOP:
		in.Kind = Nop
	case x.Op == x86asm.RET:
		in.Kind = Ret
		if n, ok := x.Args[0].(x86asm.Imm); ok {
			in.Imm = int64(n)
		}
	case x.Op == x86asm.JMP:
		if rel, ok := x.Args[0].(x86asm.Rel); ok {
			in.Kind, in.Target = JmpRel, uint64(uint32(pc)+uint32(x.Len)+uint32(rel))
		}
	case x.Op == x86asm.INT || x.Op == x86asm.UD1 || x.Op == x86asm.UD2 || x.Op == x86asm.HLT:
		in.Kind = Trap
	case x.Op == x86asm.PUSH && dst >= 0:
		in.Kind, in.Src = Push, dst
	case x.Op == x86asm.MOV && dst >= 0 && src >= 0:
		in.Kind, in.Dst, in.Src = MovReg, dst, src
	case x.Op == x86asm.SUB && dst >= 0 && isImm:
		in.Kind, in.Dst, in.Imm = SubReg, dst, int64(imm)
	case x.Op == x86asm.MOV && dst >= 0 && isImm:
		in.Kind, in.Dst, in.Imm = MovImm, dst, int64(imm)
	}
	return in
}

// number32 returns the number of a 32-bit general register, -1 for other operands.
func number32(a x86asm.Arg) int {
	if r, ok := a.(x86asm.Reg); ok && r >= x86asm.EAX && r <= x86asm.EDI {
		return int(r - x86asm.EAX)
	}
	return -1
}
