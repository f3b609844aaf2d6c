package implant

import (
	"encoding/binary"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// entryRegisters returns the registers of a thread that waits at a function's
// entry, as far as the trampoline saved them: arguments, stack and place.
func (r *run) entryRegisters(rec *record) *arch.Registers {
	r.regs = arch.Registers{
		RIP: uint64(r.p.sites[rec.fn].addr), RSP: uint64(rec.regs) + entryFrame + uint64(r.p.frame), RFLAGS: arch.RFLAGSIF, CR3: rec.root,
	}
	for i, v := range r.hit.Args {
		r.regs.SetArg(i, v)
	}
	return &r.regs
}

// answerEntry stores the arguments that were changed and lets the thread go on.
func (r *run) answerEntry(rec *record, before *arch.Registers, returns bool) error {
	h := &r.hit
	for i := range h.Args {
		v := h.Regs.Arg(i)
		if v == before.Arg(i) {
			continue
		}
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], v)
		if err := writeFresh(r.e.cfg.Facts.Space(), b[:], rec.regs+entryArgs+arch.GVA(8*i)); err != nil {
			return fmt.Errorf("change argument %d: %w", i, err)
		}
	}
	switch {
	case h.Skip:
		return r.ring.answer(answerSkip, h.SkipValue)
	case !returns:
		return r.ring.answer(answerDrop, 0)
	}
	return r.ring.answer(answerGo, 0)
}

// answerReturn tells a thread that waits at a function's return what to return.
func (r *run) answerReturn(rec *record) error {
	if v := r.hit.Regs.RAX; v != rec.result {
		return r.ring.answer(answerSkip, v)
	}
	return r.ring.answer(answerGo, 0)
}

// writeFresh stores the aligned number p at va by the page tables as they are
// now. An address space remembers translations, and where this thread's stack is
// an earlier one may have been, in other pages.
func writeFresh(as *vitrine.AddressSpace, p []byte, va arch.GVA) error {
	if va%8 != 0 {
		return fmt.Errorf("write %v: not aligned", va) // a forged record
	}
	w, err := as.Walk(va)
	if err != nil {
		return err
	}
	return as.Guest().WritePhysical(p, w.Addr)
}
