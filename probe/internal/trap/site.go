package trap

import (
	"bytes"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/x86dec"
)

// site is an instruction that a breakpoint goes on.
type site struct {
	as   *vitrine.AddressSpace
	addr arch.GVA
	code []byte // as it was when last decoded
	inst x86dec.Inst

	bits32 bool   // it is 32-bit code
	arm    bool   // an instruction of AArch64: code and inst mean nothing
	word   uint32 // that instruction, as it was before a breakpoint was put there
}

// newSite decodes the instruction at a.
func newSite(as *vitrine.AddressSpace, a arch.GVA, bits32 bool) (*site, error) {
	code, err := readCode(as, a, x86dec.MaxLen)
	if err != nil {
		return nil, err
	}
	decode := x86dec.Decode
	if bits32 {
		decode = x86dec.Decode32
	}
	in, err := decode(code, uint64(a))
	if err != nil {
		return nil, fmt.Errorf("decode instruction at %v: %w", a, err)
	}
	return &site{as: as, addr: a, code: code[:in.Len], inst: in, bits32: bits32}, nil
}

// readCode reads up to n bytes of code: fewer only where a page that is not
// mapped follows.
func readCode(as *vitrine.AddressSpace, a arch.GVA, n int) ([]byte, error) {
	code := make([]byte, n)
	n, err := as.Read(code, a)
	if n == 0 {
		return nil, fmt.Errorf("read code: %w", err)
	}
	return code[:n], nil
}

// over is the site's vitrine.OverFunc. The guest's own ftrace, kprobes and
// static keys change its text: what is there now counts.
func (s *site) over(r *arch.Registers) bool {
	if s.arm {
		return s.overARM(r)
	}
	var buf [x86dec.MaxLen]byte
	now := buf[:len(s.code)]
	if _, err := s.as.Read(now, s.addr); err != nil {
		return false
	}
	if !same(now, s.code) {
		fresh, err := newSite(s.as, s.addr, s.bits32)
		if err != nil {
			return false
		}
		*s = *fresh
	}
	if s.bits32 {
		return emulate32(s.as, &s.inst, r)
	}
	return s.inst.Kind != x86dec.Trap && emulate(s.as, &s.inst, r)
}

// int3 is what a hypervisor that holds breakpoints in guest memory puts there.
const int3 = 0xcc

// same reports whether the code is what it was, but for a breakpoint of ours.
func same(now, before []byte) bool {
	return bytes.Equal(now[1:], before[1:]) && (now[0] == before[0] || now[0] == int3)
}

// entrySite returns where to hook the entry of the function at a: on its ftrace
// nop where there is one. A landing pad before it must run, since the
// processor may be waiting for it after an indirect call (IBT), and direct
// calls may skip it (Linux 6.2 on); so the breakpoint goes behind it. Since 6.2
// the kernel also overwrites pads that it does not need with a nop of 4 bytes.
func entrySite(as *vitrine.AddressSpace, a arch.GVA, bits32 bool) (*site, error) {
	first, err := newSite(as, a, bits32)
	if err != nil {
		return nil, err
	}
	pad := first.inst.Kind == x86dec.Endbr || first.inst.Kind == x86dec.Nop && first.inst.Len == 4
	if !pad {
		return first, nil
	}
	second, err := newSite(as, a+arch.GVA(first.inst.Len), bits32)
	if err != nil {
		return first, nil //nolint:nilerr // what follows is not code that we know; the pad is
	}
	return second, nil
}
