package arch

// Registers is the state of one virtual processor, as far as introspection
// needs it: of an x86 one, or where ARM64.On is set of an AArch64 one. On an x86
// processor without long mode the upper halves are zero. The methods are for
// code that is of no processor in particular.
type Registers struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP uint64
	R8, R9, R10, R11, R12, R13, R14, R15   uint64
	RIP, RFLAGS                            uint64

	CS, SS, DS, ES, FS, GS        uint16
	FSBase, GSBase, KernelGSBase  uint64
	CR0, CR2, CR3, CR4, CR8, EFER uint64
	IDTBase, GDTBase              uint64 // zero where the source does not offer them (the gdbstub)

	ARM64 ARM64Registers // all else is zero when it is on
}

// Register bits, named as in Intel SDM volume 3A, section 2.5 and 2.2.1.
const (
	CR0PE    = 1 << 0
	CR0PG    = 1 << 31
	CR4PAE   = 1 << 5
	CR4LA57  = 1 << 12
	EFERLMA  = 1 << 10
	RFLAGSIF = 1 << 9
)

// PC returns the program counter.
func (r *Registers) PC() GVA {
	if r.ARM64.On {
		return GVA(r.ARM64.PC)
	}
	return GVA(r.RIP)
}

// SetPC replaces the program counter.
func (r *Registers) SetPC(a GVA) {
	if r.ARM64.On {
		r.ARM64.PC = uint64(a)
		return
	}
	r.RIP = uint64(a)
}

// SP returns the stack pointer.
func (r *Registers) SP() GVA {
	if r.ARM64.On {
		return GVA(r.ARM64.SP)
	}
	return GVA(r.RSP)
}

// Result returns what a function that is about to return, or has just
// returned, returns: RAX or X0.
func (r *Registers) Result() uint64 {
	if r.ARM64.On {
		return r.ARM64.X[0]
	}
	return r.RAX
}

// SetResult replaces what Result returns.
func (r *Registers) SetResult(v uint64) {
	if r.ARM64.On {
		r.ARM64.X[0] = v
		return
	}
	r.RAX = v
}

// Arg returns integer argument i (0 to 5) of a function that was just entered,
// by the System V AMD64 or the AArch64 calling convention; 0 for any other i.
func (r *Registers) Arg(i int) uint64 {
	if p := r.arg(i); p != nil {
		return *p
	}
	return 0
}

// SetArg replaces integer argument i (0 to 5); any other i is ignored.
func (r *Registers) SetArg(i int, v uint64) {
	if p := r.arg(i); p != nil {
		*p = v
	}
}

func (r *Registers) arg(i int) *uint64 {
	if r.ARM64.On {
		return r.ARM64.arg(i)
	}
	switch i {
	case 0:
		return &r.RDI
	case 1:
		return &r.RSI
	case 2:
		return &r.RDX
	case 3:
		return &r.RCX
	case 4:
		return &r.R8
	case 5:
		return &r.R9
	}
	return nil
}

// User reports whether the processor runs user code (CPL 3, EL0).
func (r *Registers) User() bool {
	if r.ARM64.On {
		return r.ARM64.PSTATE&armEL == 0
	}
	return r.CS&3 == 3
}

// PagingMode returns the page-table format that the control registers select
// (SDM 3A, 4.1.1), on AArch64 that of a program's half.
func (r *Registers) PagingMode() PagingMode {
	switch {
	case r.ARM64.On:
		return r.ARM64.KernelMode().User()
	case r.CR0&CR0PG == 0:
		return PagingOff
	case r.CR4&CR4PAE == 0:
		return Paging32Bit
	case r.EFER&EFERLMA == 0:
		return PagingPAE
	case r.CR4&CR4LA57 == 0:
		return Paging4Level
	}
	return Paging5Level
}

// Root returns the physical address of the top page table in use, on AArch64
// that of a program's half.
func (r *Registers) Root() GPA {
	if r.ARM64.On {
		return Root(r.PagingMode(), r.ARM64.TTBR0)
	}
	return Root(r.PagingMode(), r.CR3)
}
