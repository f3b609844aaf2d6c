/* What lies between a stub and the C functions. A stub is
 *
 *	the gate, if there is one: leads threads that a filter does not mean to 2
 *	sub $FRAME, %rsp; mov $ID, %eax; call vt_enter_trampoline
 *	test %eax, %eax; jne 1f
 *	call FUNCTION behind its nop
 *	mov $ID, %r11d; jmp vt_leave_trampoline
 * 1:	add $FRAME, %rsp
 * 2:	jmp FUNCTION behind its nop
 *
 * (stub.go and gate.go make them). rax, r10 and r11 are dead at a function's entry; all
 * argument registers are kept. At its return only rax and rdx live, besides the
 * registers that a callee keeps, which the C functions keep too.
 */
	.text
	.globl vt_enter_trampoline, vt_leave_trampoline, vt_plain_return, vt_no_clock

/* What __x86_return_thunk is resolved to where the kernel returns plainly. */
vt_plain_return:
	ret
	int3

/* The clock of a kernel that has none to call. */
vt_no_clock:
	xorl	%eax, %eax
	jmp	__x86_return_thunk

vt_enter_trampoline:
	pushq	%r9
	pushq	%r8
	pushq	%rcx
	pushq	%rdx
	pushq	%rsi
	pushq	%rdi
	movq	%rsp, %rdi
	movl	%eax, %esi
	call	vt_enter
	popq	%rdi
	popq	%rsi
	popq	%rdx
	popq	%rcx
	popq	%r8
	popq	%r9
	cmpl	$2, %eax		/* ACT_SKIP */
	je	1f
	jmp	__x86_return_thunk
1:	addq	$8, %rsp		/* the stub is not gone back to */
	movq	16(%rsp), %rax		/* frame.value */
	addq	$vt_frame_size, %rsp
	jmp	__x86_return_thunk

vt_leave_trampoline:
	pushq	%rdx
	pushq	%rax
	movq	%rsp, %rdi
	movl	%r11d, %esi
	call	vt_leave
	popq	%rax
	popq	%rdx
	addq	$vt_frame_size, %rsp
	jmp	__x86_return_thunk
	.section .note.GNU-stack,"",@progbits
