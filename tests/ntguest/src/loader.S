// The first thing that runs: found by QEMU as a multiboot kernel, in 32-bit mode without paging.
	.section .head, "ax"
	.globl start
	.balign 4
header:	.long 0x1BADB002, 0x00010002, -(0x1BADB002 + 0x00010002)
	.long header, base, 0, 0, start
start:	cld
	movl $stack, %esp
	pushl %ebx
	call load // returns the entry's low half; the rest is in the variables below
	movl %eax, %edi
	movl root, %eax
	movl %eax, %cr3
#if defined(MODE_X64) || defined(MODE_PAE)
	movl $0xC0000080, %ecx
	rdmsr
#ifdef MODE_X64
	orl $0x901, %eax // SCE, LME, NXE
#else
	orl $0x800, %eax
#endif
	wrmsr
	movl $0xA0, %eax // PAE, PGE
#else
	movl $0x90, %eax // PSE, PGE
#endif
	movl %eax, %cr4
	movl $0x80010033, %eax // PG, WP, NE, ET, MP, PE
	movl %eax, %cr0
#ifdef MODE_X64
	lgdt gdtr
	movl entry, %esi
	movl entry+4, %edi
	ljmp $8, $1f
	.code64
1:	movl %esi, %eax
	movl %edi, %ecx
	shlq $32, %rcx
	orq %rcx, %rax
	movl $0x10, %ecx
	movl %ecx, %ds
	movl %ecx, %es
	movl %ecx, %ss
	jmp *%rax
	.code32
#else
	lgdt gdtr
	movl entry, %eax
	pushl $8
	pushl %eax
	movl $0x10, %ecx
	movl %ecx, %ds
	movl %ecx, %es
	movl %ecx, %ss
	lret
#endif
	.balign 8
gdt:	.quad 0
#ifdef MODE_X64
	.quad 0x00209B0000000000, 0x00CF93000000FFFF
#else
	.quad 0x00CF9B000000FFFF, 0x00CF93000000FFFF
#endif
gdtr:	.word 23
	.long gdt
	.data
	.globl entry, root
	.balign 16
entry:	.quad 0
root:	.long 0
	.fill 4096, 1, 0
	.balign 16
stack:
	.section .blob, "a"
	.globl blob, blob_end
	.balign 4096
blob:	.incbin "kernel.bin"
blob_end:
	.section .note.GNU-stack, ""
