//go:build linux

#include "textflag.h"

// func vsyscall(entry, nr, a1, a2, a3, a4, a5 uintptr) uintptr
TEXT ·vsyscall(SB),NOSPLIT,$0-32
	MOVL	nr+4(FP), AX
	MOVL	a1+8(FP), BX
	MOVL	a2+12(FP), CX
	MOVL	a3+16(FP), DX
	MOVL	a4+20(FP), SI
	MOVL	a5+24(FP), DI
	MOVL	entry+0(FP), BP
	CALL	BP
	MOVL	AX, ret+28(FP)
	RET
