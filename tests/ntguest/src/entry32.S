// How x86 processors come into the kernel and leave it. Frames are KTRAP_FRAMEs.
#include "nt.h"
	.text
	.globl entry
entry:	movl $boot_stack_top, %esp
	call KiSystemStartup
	ud2

	.macro SAVE
	subl $KTRAP_FRAME_Ebp, %esp
	movl %ebx, KTRAP_FRAME_Ebx(%esp)
	movl %esi, KTRAP_FRAME_Esi(%esp)
	movl %edi, KTRAP_FRAME_Edi(%esp)
	movl %eax, KTRAP_FRAME_Eax(%esp)
	movl %ecx, KTRAP_FRAME_Ecx(%esp)
	movl %edx, KTRAP_FRAME_Edx(%esp)
	movw %fs, KTRAP_FRAME_SegFs(%esp)
	movw %ds, KTRAP_FRAME_SegDs(%esp)
	movw %es, KTRAP_FRAME_SegEs(%esp)
	movw %gs, KTRAP_FRAME_SegGs(%esp)
	movl $0x30, %ebx
	movl %ebx, %fs
	movl $0x23, %ebx
	movl %ebx, %ds
	movl %ebx, %es
	movl %fs:0, %ebx
	movl %ebx, KTRAP_FRAME_ExceptionList(%esp)
	movl $0xBADB0D00, KTRAP_FRAME_DbgArgMark(%esp)
	.endm

	.macro RESTORE
	movw KTRAP_FRAME_SegGs(%esp), %gs
	movw KTRAP_FRAME_SegEs(%esp), %es
	movw KTRAP_FRAME_SegDs(%esp), %ds
	movw KTRAP_FRAME_SegFs(%esp), %fs
	movl KTRAP_FRAME_Ebx(%esp), %ebx
	movl KTRAP_FRAME_Esi(%esp), %esi
	movl KTRAP_FRAME_Edi(%esp), %edi
	.endm

	.globl ki_traps
	.balign 16
ki_traps:
	vector = 0
	.rept 256
	.balign 16
	.if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
	pushl $0
	.endif
	pushl %ebp
	movl $vector, %ebp
	jmp trap
	vector = vector + 1
	.endr

trap:	cld
	SAVE
	movl %esp, %eax
	pushl %eax
	pushl %ebp
	call KiTrap
	addl $8, %esp
	.globl KiExceptionExit
KiExceptionExit:
	RESTORE
	movl KTRAP_FRAME_Eax(%esp), %eax
	movl KTRAP_FRAME_Ecx(%esp), %ecx
	movl KTRAP_FRAME_Edx(%esp), %edx
	addl $KTRAP_FRAME_Ebp, %esp
	popl %ebp
	addl $4, %esp
	iretl

	.globl KiThreadStartup
KiThreadStartup:
	call kunlock
	jmp KiExceptionExit

	// By sysenter: edx is the caller's stack, with two return addresses before the arguments.
	.globl KiFastCallEntry
	.balign 64
KiFastCallEntry:
	movl $0x23, %ecx
	pushl $0x30
	popl %fs
	movl %ecx, %ds
	movl %ecx, %es
	movl %fs:KPCR_TSS, %ecx
	movl 4(%ecx), %esp
	pushl $0x23
	pushl %edx
	pushfl
	orl $0x200, (%esp)
	pushl $0x1b
	pushl 0xffdf0304 // where KiFastSystemCall returns
	pushl $0
	pushl %ebp
	addl $8, %edx
	SAVE
	movw $0x3b, KTRAP_FRAME_SegFs(%esp)
	call service
	RESTORE
	movl KTRAP_FRAME_Ebp(%esp), %ebp
	movl KTRAP_FRAME_Eip(%esp), %edx
	movl KTRAP_FRAME_HardwareEsp(%esp), %ecx
	movl KTRAP_FRAME_Eax(%esp), %eax
	sti
	sysexit

	// By int 2e: edx points to the arguments.
	.globl KiSystemService
	.balign 64
KiSystemService:
	pushl $0
	pushl %ebp
	SAVE
	call service
	jmp KiExceptionExit

	// The frame is above the return address.
service:
	movl %fs:(KPCR_PRCB + KPRCB_CurrentThread), %esi
	movzbl KTHREAD_PreviousMode(%esi), %ebx
	movl %ebx, 4+KTRAP_FRAME_PreviousPreviousMode(%esp)
	movl 4+KTRAP_FRAME_SegCs(%esp), %ebx
	andl $1, %ebx
	movb %bl, KTHREAD_PreviousMode(%esi)
	movl %edx, 4+KTRAP_FRAME_DbgArgPointer(%esp)
	movl 4+KTRAP_FRAME_Eip(%esp), %edi
	movl %edi, 4+KTRAP_FRAME_DbgEip(%esp)
	movl 4+KTRAP_FRAME_Ebp(%esp), %edi
	movl %edi, 4+KTRAP_FRAME_DbgEbp(%esp)
	leal 4(%esp), %ebp
	movl %ebp, KTHREAD_TrapFrame(%esi)
#ifdef KTHREAD_FirstArgument
	movl %edx, KTHREAD_FirstArgument(%esi)
	movl %eax, KTHREAD_SystemCallNumber(%esi)
#endif
	testl %ebx, %ebx
	jz 1f // from the kernel: it has the lock
	call klock
1:	movl KTRAP_FRAME_Eax(%ebp), %eax
	movl KTRAP_FRAME_Edx(%ebp), %esi
	movl %eax, %edi
	shrl $8, %edi
	andl $0x10, %edi
	andl $0xfff, %eax
	addl $KeServiceDescriptorTable, %edi
	cmpl 8(%edi), %eax
	jae 9f
	movl 12(%edi), %ecx
	movzbl (%ecx,%eax), %ecx
	movl (%edi), %edi
	movl (%edi,%eax,4), %ebx
	subl %ecx, %esp
	shrl $2, %ecx
	movl %esp, %edi
	rep movsl
	call *%ebx
8:	leal -4(%ebp), %esp // at the return address
	movl %eax, KTRAP_FRAME_Eax(%ebp)
	movl %fs:(KPCR_PRCB + KPRCB_CurrentThread), %esi
	movb KTRAP_FRAME_PreviousPreviousMode(%ebp), %bl
	movb %bl, KTHREAD_PreviousMode(%esi)
	testb $1, KTRAP_FRAME_SegCs(%ebp)
	jz 2f
	call kunlock
2:	ret
9:	movl $0xC000001C, %eax
	jmp 8b

	.globl swap_context
swap_context:
	movl 4(%esp), %eax
	movl 8(%esp), %edx
	pushl %ebx
	pushl %ebp
	pushl %esi
	pushl %edi
	movl %esp, (%eax)
	movl %edx, %esp
	popl %edi
	popl %esi
	popl %ebp
	popl %ebx
	ret

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
#ifdef MODE_PAE
	movl $0xC0000080, %ecx
	rdmsr
	orl $0x800, %eax
	wrmsr
	movl $0xA0, %eax
#else
	movl $0x90, %eax
#endif
	movl %eax, %cr4
	movl $0x80010033, %eax
	movl %eax, %cr0
	ljmpl $8, $(TRAMPOLINE + t32 - trampoline)
	.code32
t32:	movl $0x10, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	movl TRAMPOLINE + 0xf08, %esp
	movl TRAMPOLINE + 0xf10, %eax
	call *%eax
	.balign 8
tgdt:	.quad 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF
tgdtr:	.word 23
	.long TRAMPOLINE + tgdt - trampoline
trampoline_end:

	.bss
	.balign 16
	.fill 16384
	.globl boot_stack_top
boot_stack_top:
	.fill 16
