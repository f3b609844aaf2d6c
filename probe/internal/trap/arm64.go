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
	if _, err := c.Kernel.ReadUint32(a); err != nil {
		return nil, fmt.Errorf("read code: %w", err)
	}
	return &site{as: c.Kernel, addr: a, arm: true}, nil
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

// Instructions of AArch64 (Arm ARM, C6.2).
const (
	armNop        = 0xd503_201f
	armBTI        = 0xd503_241f // BTI, with what may branch to it in two bits
	armBTITargets = 3 << 6
	armMovLink    = 0xaa1e_03e9 // mov x9, x30: what ftrace makes of a nop
)

// overARM does what the instruction at the site does, for those that functions
// begin with: the nops that the compiler leaves for ftrace.
func (s *site) overARM(r *arch.Registers) bool {
	in, err := s.as.ReadUint32(s.addr)
	if err != nil {
		return false
	}
	switch in {
	case armMovLink:
		r.ARM64.X[9] = r.ARM64.X[30]
	case armNop:
	default:
		return false
	}
	r.ARM64.PC += 4
	return true
}
