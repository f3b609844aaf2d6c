// The exported functions from whose code offsets can be read. What they do is public; the code is ours.
#include "nt.h"
	.text
	.macro FN name
	.balign 16
	.globl \name
\name:
	.endm

#ifdef X64
	.macro MEMBER name, off
	FN \name
	movq \off(%rcx), %rax
	ret
	.endm
	.macro MEMBER32 name, off
	FN \name
	movl \off(%rcx), %eax
	ret
	.endm
	.macro MEMBERAT name, off
	FN \name
	leaq \off(%rcx), %rax
	ret
	.endm
	.macro CURRENT name, off
	FN \name
	movq %gs:(KPCR_PRCB + KPRCB_CurrentThread), %rax
	movq \off(%rax), %rax
	ret
	.endm
	FN PsGetCurrentThread
	movq %gs:(KPCR_PRCB + KPRCB_CurrentThread), %rax
	ret
	FN ExGetPreviousMode
	movq %gs:(KPCR_PRCB + KPRCB_CurrentThread), %rax
	movb KTHREAD_PreviousMode(%rax), %al
	ret
	FN PsGetProcessWow64Process
#ifdef EPROCESS_Wow64Process
	movq EPROCESS_Wow64Process(%rcx), %rax
#else
	movq EPROCESS_WoW64Process(%rcx), %rax
	testq %rax, %rax
	jz 1f
	movq (%rax), %rax
1:
#endif
	ret
	FN ObGetObjectType
#if BUILD >= 10000
	leaq -OBJECT_HEADER_Body(%rcx), %rax
	movzbl OBJECT_HEADER_TypeIndex-OBJECT_HEADER_Body(%rcx), %ecx
	shrq $8, %rax
	movzbl %al, %eax
	xorq %rax, %rcx
	movzbl ObHeaderCookie(%rip), %eax
	xorq %rax, %rcx
	leaq ObTypeIndexTable(%rip), %rax
	movq (%rax,%rcx,8), %rax
	ret
#else
	movzbl OBJECT_HEADER_TypeIndex-OBJECT_HEADER_Body(%rcx), %eax
	leaq ObTypeIndexTable(%rip), %rcx
	movq (%rcx,%rax,8), %rax
	ret
#endif
#else
	.macro BEGIN name
	FN \name
	movl %edi, %edi
	pushl %ebp
	movl %esp, %ebp
	.endm
	.macro MEMBER name, off
	BEGIN \name
	movl 8(%ebp), %eax
	movl \off(%eax), %eax
	popl %ebp
	ret $4
	.endm
	.macro MEMBER32 name, off
	MEMBER \name, \off
	.endm
	.macro MEMBERAT name, off
	BEGIN \name
	movl 8(%ebp), %eax
	addl $\off, %eax
	popl %ebp
	ret $4
	.endm
	.macro CURRENT name, off
	FN \name
	movl %fs:(KPCR_PRCB + KPRCB_CurrentThread), %eax
	movl \off(%eax), %eax
	ret
	.endm
	FN PsGetCurrentThread
	movl %fs:(KPCR_PRCB + KPRCB_CurrentThread), %eax
	ret
	FN ExGetPreviousMode
	movl %fs:(KPCR_PRCB + KPRCB_CurrentThread), %eax
	movb KTHREAD_PreviousMode(%eax), %al
	ret
	BEGIN PsGetProcessCreateTimeQuadPart
	movl 8(%ebp), %eax
	movl EPROCESS_CreateTime+4(%eax), %edx
	movl EPROCESS_CreateTime(%eax), %eax
	popl %ebp
	ret $4
#ifdef OBJECT_HEADER_TypeIndex
	BEGIN ObGetObjectType
	movl 8(%ebp), %eax
	movzbl OBJECT_HEADER_TypeIndex-OBJECT_HEADER_Body(%eax), %eax
	movl ObTypeIndexTable(,%eax,4), %eax
	popl %ebp
	ret $4
#endif
#endif

	MEMBER PsGetProcessId, EPROCESS_UniqueProcessId
	MEMBERAT PsGetProcessImageFileName, EPROCESS_ImageFileName
	MEMBER PsGetProcessPeb, EPROCESS_Peb
	MEMBER PsGetProcessInheritedFromUniqueProcessId, EPROCESS_InheritedFromUniqueProcessId
	MEMBER PsGetProcessSectionBaseAddress, EPROCESS_SectionBaseAddress
	MEMBER PsGetProcessJob, EPROCESS_Job
	MEMBER32 PsGetProcessExitStatus, EPROCESS_ExitStatus
#ifdef X64
	MEMBER PsGetProcessCreateTimeQuadPart, EPROCESS_CreateTime
#endif
	MEMBER PsGetThreadId, (ETHREAD_Cid + PSZ)
	MEMBER PsGetThreadProcessId, ETHREAD_Cid
#ifdef ETHREAD_ThreadsProcess
	MEMBER PsGetThreadProcess, ETHREAD_ThreadsProcess
#else
	MEMBER PsGetThreadProcess, KTHREAD_Process
#endif
	MEMBER PsGetThreadTeb, KTHREAD_Teb
	CURRENT IoGetCurrentProcess, (KTHREAD_ApcState + KAPC_STATE_Process)
	CURRENT PsGetCurrentProcess, (KTHREAD_ApcState + KAPC_STATE_Process)
	CURRENT PsGetCurrentProcessId, ETHREAD_Cid
	CURRENT PsGetCurrentThreadId, (ETHREAD_Cid + PSZ)
