// How x86-64 processors come into the kernel and leave it. Frames are KTRAP_FRAMEs.
#include "nt.h"
#define FRAME 0x158 // below the saved rbp: KTRAP_FRAME_Rbp
	.text
	.globl entry
entry:	leaq boot_stack_top(%rip), %rsp
	andq $-16, %rsp
	call KiSystemStartup
	ud2

	.macro SAVE
	subq $FRAME, %rsp
	movq %rax, KTRAP_FRAME_Rax(%rsp)
	movq %rcx, KTRAP_FRAME_Rcx(%rsp)
	movq %rdx, KTRAP_FRAME_Rdx(%rsp)
	movq %r8, KTRAP_FRAME_R8(%rsp)
	movq %r9, KTRAP_FRAME_R9(%rsp)
	movq %r10, KTRAP_FRAME_R10(%rsp)
	movq %r11, KTRAP_FRAME_R11(%rsp)
	movq %rbx, KTRAP_FRAME_Rbx(%rsp)
	movq %rdi, KTRAP_FRAME_Rdi(%rsp)
	movq %rsi, KTRAP_FRAME_Rsi(%rsp)
	.endm

	.macro RESTORE
	movq KTRAP_FRAME_Rbx(%rsp), %rbx
	movq KTRAP_FRAME_Rdi(%rsp), %rdi
	movq KTRAP_FRAME_Rsi(%rsp), %rsi
	movq KTRAP_FRAME_Rax(%rsp), %rax
	movq KTRAP_FRAME_Rdx(%rsp), %rdx
	movq KTRAP_FRAME_R8(%rsp), %r8
	movq KTRAP_FRAME_R9(%rsp), %r9
	movq KTRAP_FRAME_R10(%rsp), %r10
	.endm

	// 256 entries of 16 bytes. Vectors 8, 10 to 14, 17, 21, 29 and 30 come with an error code.
	.globl ki_traps
	.balign 16
ki_traps:
	vector = 0
	.rept 256
	.balign 16
	.if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
	pushq $0
	.endif
	pushq %rbp
	movl $vector, %ebp
	jmp trap
	vector = vector + 1
	.endr

trap:	cld
	SAVE
	testb $3, KTRAP_FRAME_SegCs(%rsp)
	jz 1f
	swapgs
1:	movl %ebp, %edi
	movq %rsp, %rsi
	leaq 0x80(%rsp), %rbp
	call KiTrap
	.globl KiExceptionExit
KiExceptionExit:
	testb $3, KTRAP_FRAME_SegCs(%rsp)
	jz 2f
	swapgs
2:	RESTORE
	movq KTRAP_FRAME_Rcx(%rsp), %rcx
	movq KTRAP_FRAME_R11(%rsp), %r11
	addq $FRAME, %rsp
	popq %rbp
	addq $8, %rsp
	iretq

	// A new thread's first steps: its frame lies above.
	.globl KiThreadStartup
KiThreadStartup:
	call kunlock
	jmp KiExceptionExit

	.globl KiSystemCall32
KiSystemCall32:
	swapgs
	ud2

	.globl KiSystemCall64
	.balign 64
KiSystemCall64:
	swapgs
	movq %rsp, %gs:KPCR_UserRsp
	movq %gs:(KPCR_PRCB + KPRCB_RspBase), %rsp
	pushq $0x2b
	pushq %gs:KPCR_UserRsp
	pushq %r11
	pushq $0x33
	pushq %rcx
	movq %r10, %rcx
	pushq $0
	pushq %rbp
	SAVE
	leaq 0x80(%rsp), %rbp
	movb $1, KTRAP_FRAME_PreviousMode(%rsp)
	movq %gs:(KPCR_PRCB + KPRCB_CurrentThread), %rbx
	movb $1, KTHREAD_PreviousMode(%rbx)
#ifdef KTHREAD_FirstArgument
	movq %rcx, KTHREAD_FirstArgument(%rbx)
	movl %eax, KTHREAD_SystemCallNumber(%rbx)
#endif
	movq %rsp, KTHREAD_TrapFrame(%rbx)
	call klock
	movq KTRAP_FRAME_Rsp(%rsp), %rsi // where the caller's stack arguments are
	call dispatch
	movq %rax, KTRAP_FRAME_Rax(%rsp)
	call kunlock
	RESTORE
	movq KTRAP_FRAME_Rip(%rsp), %rcx
	movq KTRAP_FRAME_EFlags(%rsp), %r11
	movq KTRAP_FRAME_Rbp(%rsp), %rbp
	movq KTRAP_FRAME_Rsp(%rsp), %rsp
	swapgs
	sysretq

	// dispatch calls the service in the frame above the return address, with stack arguments from rsi + 0x28.
dispatch:
	pushq %r12
	movq %rsp, %r12
	movq 16+KTRAP_FRAME_Rax(%rsp), %rax
	movq 16+KTRAP_FRAME_Rcx(%rsp), %rcx
	movq 16+KTRAP_FRAME_Rdx(%rsp), %rdx
	movq 16+KTRAP_FRAME_R8(%rsp), %r8
	movq 16+KTRAP_FRAME_R9(%rsp), %r9
	.globl KiSystemServiceStart
KiSystemServiceStart:
	movl %eax, %edi
	shrl $7, %edi
	andl $0x20, %edi
	andl $0xfff, %eax
	.globl KiSystemServiceRepeat
KiSystemServiceRepeat:
	leaq KeServiceDescriptorTable(%rip), %r10
	leaq KeServiceDescriptorTableShadow(%rip), %r11
	testl %edi, %edi
	cmovneq %r11, %r10
	cmpl 0x10(%r10,%rdi), %eax
	jae 9f
	movq (%r10,%rdi), %r10
	movslq (%r10,%rax,4), %r11
	movl %r11d, %eax
	sarq $4, %r11
	addq %r11, %r10
	andl $15, %eax
	leaq 0x28(,%rax,8), %r11 // home of four, the arguments, one more for alignment
	addq $8, %r11
	andq $-16, %r11
	subq %r11, %rsp
	andq $-16, %rsp
	leaq 0x20(%rsp), %rdi
	addq $0x28, %rsi
	xchgq %rcx, %rax
	rep movsq
	movq %rax, %rcx
	.globl KiSystemServiceCopyEnd
KiSystemServiceCopyEnd:
	call *%r10
8:	movq %r12, %rsp
	popq %r12
	ret
9:	movl $0xC000001C, %eax
	jmp 8b

	// A Zw function jumps here: the machine's part of a frame lies on the stack, its rsp being that of Zw's own entry.
	.globl KiServiceInternal
KiServiceInternal:
	pushq $0
	pushq %rbp
	SAVE
	leaq 0x80(%rsp), %rbp
	movq %gs:(KPCR_PRCB + KPRCB_CurrentThread), %rbx
	movb KTHREAD_PreviousMode(%rbx), %cl
	movb %cl, KTRAP_FRAME_PreviousMode(%rsp)
	movb $0, KTHREAD_PreviousMode(%rbx)
	movq KTRAP_FRAME_Rsp(%rsp), %rsi
	call dispatch
	movq %gs:(KPCR_PRCB + KPRCB_CurrentThread), %rbx
	movb KTRAP_FRAME_PreviousMode(%rsp), %cl
	movb %cl, KTHREAD_PreviousMode(%rbx)
	movq KTRAP_FRAME_Rbx(%rsp), %rbx
	movq KTRAP_FRAME_Rdi(%rsp), %rdi
	movq KTRAP_FRAME_Rsi(%rsp), %rsi
	movq KTRAP_FRAME_Rbp(%rsp), %rbp
	movq KTRAP_FRAME_Rsp(%rsp), %rsp
	.globl KiServiceLinkage
KiServiceLinkage:
	ret

	// swap_context(rdi: where to keep the stack pointer, rsi: the new one)
	.globl swap_context
swap_context:
	pushq %rbx
	pushq %rbp
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rsp, (%rdi)
	movq %rsi, %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbp
	popq %rbx
	ret

	// Where another processor begins, in real mode; copied to TRAMPOLINE.
	.globl trampoline, trampoline_end
	.balign 16
trampoline:
	.code16
	cli
	movw $TRAMPOLINE >> 4, %ax
	movw %ax, %ds
	lgdtl (tgdtr - trampoline)
	movl 0xf00, %eax
	movl %eax, %cr3
	movl $0xA0, %eax
	movl %eax, %cr4
	movl $0xC0000080, %ecx
	rdmsr
	orl $0x901, %eax
	wrmsr
	movl $0x80010033, %eax
	movl %eax, %cr0
	ljmpl $8, $(TRAMPOLINE + t64 - trampoline)
	.code64
t64:	movl $0x10, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	movq TRAMPOLINE + 0xf08, %rsp
	movq TRAMPOLINE + 0xf10, %rax
	call *%rax
	.balign 8
tgdt:	.quad 0, 0x00209B0000000000, 0x00CF93000000FFFF
tgdtr:	.word 23
	.long TRAMPOLINE + tgdt - trampoline
trampoline_end:

	.bss
	.balign 16
	.fill 16384
	.globl boot_stack_top
boot_stack_top:
	.fill 16
