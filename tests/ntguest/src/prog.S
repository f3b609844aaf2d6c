// The user program, as it is mapped in each process.
	.section .rdata, "a"
	.globl prog, prog_end
	.balign 16
prog:	.incbin "program.bin"
prog_end:
