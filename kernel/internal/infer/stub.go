package infer

import "golang.org/x/arch/x86/x86asm"

// maxStub bounds how many instructions stand before a stub's number: seven in
// the Zw functions of a 64-bit kernel.
const maxStub = 12

// Stub returns the number that a system call's stub loads into EAX: mov eax, N
// after moves, pushes and the like, before it calls or jumps anywhere. Ok is
// false for code that is no such stub.
func Stub(b []byte, x64 bool) (number uint32, ok bool) {
	mode := 32
	if x64 {
		mode = 64
	}
	b = b[:min(len(b), MaxCode)]
	for range maxStub {
		b = skipEndbr(b)
		in, err := x86asm.Decode(b, mode)
		if err != nil || in.Op == 0 || in.Len <= 0 || in.Len > len(b) {
			return 0, false
		}
		switch in.Op {
		case x86asm.MOV:
			imm, isImm := in.Args[1].(x86asm.Imm)
			if in.Args[0] == x86asm.EAX && isImm {
				return uint32(imm), true
			}
		case x86asm.PUSH, x86asm.PUSHF, x86asm.PUSHFD, x86asm.PUSHFQ, x86asm.CLI, x86asm.SUB, x86asm.LEA, x86asm.NOP:
		default:
			return 0, false
		}
		b = b[in.Len:]
	}
	return 0, false
}
