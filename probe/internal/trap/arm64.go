package trap

import (
	"fmt"

	"github.com/vitrine-vmi/vitrine/arch"
)

// site returns where to hook the instruction at a.
func (c *Config) site(a arch.GVA) (*site, error) {
	if !c.ARM64 {
		return newSite(c.Kernel, a, c.bits32())
	}
	if a%4 != 0 {
		return nil, fmt.Errorf("hook %v: no instruction of arm64 starts there", a)
	}
	in, err := c.Kernel.ReadUint32(a)
	if err != nil {
		return nil, fmt.Errorf("read code: %w", err)
	}
	return &site{as: c.Kernel, addr: a, arm: true, word: in}, nil
}

// entry returns where to hook the entry of the function at a. On arm64 that is
// behind a landing pad: after an indirect branch the processor waits for it to run
// (PSTATE.BTYPE, which the gdbstub would have to put right).
func (c *Config) entry(a arch.GVA) (*site, error) {
	if !c.ARM64 {
		return entrySite(c.Kernel, a, c.bits32())
	}
	in, err := c.Kernel.ReadUint32(a)
	if err != nil {
		return nil, fmt.Errorf("read code: %w", err)
	}
	if in&^armBTITargets == armBTI {
		a += 4
	}
	return c.site(a)
}

// root returns the page table of the process that the processor runs.
func (e *Engine) root(task arch.GVA, r *arch.Registers) arch.GPA {
	use := r.Root()
	if !r.ARM64.On || use != r.ARM64.Kernel()-arch.PageSize || e.cfg.UserRoot == nil {
		return use
	}
	// An empty table, reserved_pg_dir, the page before the kernel's own
	// (arch/arm64/kernel/vmlinux.lds.S): where processors lack PAN, the kernel uses
	// it to keep itself from a program's memory, but while it means to copy.
	if own, ok := e.cfg.UserRoot(task); ok {
		return own
	}
	return use
}

// Instructions of AArch64 (Arm ARM, C6.2) and their register fields.
const (
	armNop        = 0xd503_201f
	armBTI        = 0xd503_241f // BTI, with what may branch to it in two bits
	armBTITargets = 3 << 6
	armMov        = 0xaa00_03e0 // mov xd, xm: orr xd, xzr, xm; ftrace makes mov x9, x30 of a nop
	armMovShort   = 0x2a00_03e0 // mov wd, wm
	armMovFields  = armRd | 0x1f<<16
	armCurrent    = 0xd538_4100 // mrs xd, sp_el0
	armRd         = 0x1f
	armZero       = 31          // the number of xzr
	armBreak      = 0xd420_0000 // brk #0: what a hypervisor that holds breakpoints in guest memory puts there
)

// overARM does what the instruction at the site does, for those that functions
// begin with, nops for ftrace, and those that often follow a call: where all
// system calls return to, the kernel fetches the current task.
func (s *site) overARM(r *arch.Registers) bool {
	in, err := s.as.ReadUint32(s.addr)
	if in == armBreak {
		in = s.word
	}
	return err == nil && emulateARM(in, &r.ARM64)
}

// emulateARM does what an instruction does. It reports false, with nothing
// changed, for what it does not know.
func emulateARM(in uint32, r *arch.ARM64Registers) bool {
	source := func() uint64 {
		if n := in >> 16 & 0x1f; n != armZero {
			return r.X[n]
		}
		return 0
	}
	var v uint64
	switch {
	case in == armNop:
		r.PC += 4
		return true
	case in&^armMovFields == armMov:
		v = source()
	case in&^armMovFields == armMovShort:
		v = source() & 0xffff_ffff
	case in&^armRd == armCurrent:
		v = r.SPEL0
	default:
		return false
	}
	if d := in & armRd; d != armZero {
		r.X[d] = v
	}
	r.PC += 4
	return true
}
