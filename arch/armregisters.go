package arch

// ARM64Registers is the state of an AArch64 virtual processor. The system
// registers, those from SPEL0 on, are zero where the source does not offer
// them: QEMU's monitor prints none, its gdbstub has them all.
type ARM64Registers struct {
	On bool // the processor is an AArch64 one

	X      [31]uint64 // X30 is the link register
	SP, PC uint64     // SP is that of the exception level that runs
	PSTATE uint64

	SPEL0        uint64 // while EL1 runs Linux it points to the current task
	TTBR0, TTBR1 uint64 // page tables of the bottom and of the top half
	TCR, SCTLR   uint64 // of EL1
}

// armEL is PSTATE.M without the bit that says AArch32: 0 is EL0, and AArch32's
// user mode.
const armEL = 0xf

// Fields of TCR_EL1 and SCTLR_EL1 (Arm ARM, D19.2).
const (
	armMMU     = 1 << 0 // SCTLR.M
	armT1SZ    = 16     // TCR: lowest of 6 bits: the addresses that TTBR1 does not map
	armTG1     = 30     // TCR: lowest of 2 bits: its granule
	armTG1Of4K = 2
)

// KernelMode returns the page-table format of the top half, PagingOff where the
// MMU is off or the format is one that this package does not know.
func (r *ARM64Registers) KernelMode() PagingMode {
	if r.SCTLR&armMMU == 0 || r.TCR>>armTG1&3 != armTG1Of4K {
		return PagingOff
	}
	return ARM64Mode(64 - uint(r.TCR>>armT1SZ&0x3f))
}

// ARM64Mode returns the format of the top half for 4 KiB granules and so many
// bits of address, PagingOff when this package does not know it.
func ARM64Mode(vaBits uint) PagingMode {
	switch vaBits {
	case 39:
		return PagingARM39
	case 48:
		return PagingARM48
	case 52:
		return PagingARM52
	}
	return PagingOff
}

// Kernel returns the physical address of the top half's page table.
func (r *ARM64Registers) Kernel() GPA { return Root(r.KernelMode(), r.TTBR1) }

func (r *ARM64Registers) arg(i int) *uint64 {
	if i < 0 || i > 5 {
		return nil
	}
	return &r.X[i]
}
