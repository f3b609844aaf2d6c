package dump

import (
	"encoding/binary"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// The header of a core that Write makes: file header, program headers, notes,
// padded to a page, so that memory can be mapped page by page.

// header makes everything that comes before memory.
func (w *coreWriter) header(regions []vitrine.Region) []byte {
	notes := w.notes()
	mapped := w.mapped(regions)
	count := 1 + len(mapped) + len(regions)
	notesAt := 64 + 56*count
	memory := (notesAt + len(notes) + arch.PageSize - 1) &^ (arch.PageSize - 1)
	machine := uint16(machineAMD64)
	switch w.g.Arch() {
	case arch.I386:
		machine = machine386
	case arch.ARM64:
		machine = machineARM64
	}
	le := binary.LittleEndian
	h := append(make([]byte, 0, memory), "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	h = le.AppendUint16(le.AppendUint16(h, elfCore), machine)
	h = le.AppendUint32(h, 1)
	h = le.AppendUint64(le.AppendUint64(le.AppendUint64(h, 0), 64), 0)
	h = le.AppendUint32(h, 0)
	for _, v := range []int{64, 56, count, 0, 0, 0} {
		h = le.AppendUint16(h, uint16(v))
	}
	h = appendSegment(h, elfNote, uint64(notesAt), 0, 0, uint64(len(notes)))
	place := func(a arch.GPA) uint64 {
		off := uint64(memory)
		for _, r := range regions {
			if a >= r.Start && a < r.End() {
				return off + uint64(a-r.Start)
			}
			off += r.Size
		}
		return off
	}
	for _, m := range mapped {
		h = appendSegment(h, elfLoad, place(m.Physical), uint64(m.Virtual), uint64(m.Physical), m.Size)
	}
	for _, r := range regions {
		h = appendSegment(h, elfLoad, place(r.Start), 0, uint64(r.Start), r.Size)
	}
	h = append(h, notes...)
	return append(h, make([]byte, memory-len(h))...)
}

// mapped returns the parts of the mappings that lie in one region each.
func (w *coreWriter) mapped(regions []vitrine.Region) []Mapping {
	var out []Mapping
	for _, m := range w.opts.Mappings {
		for _, r := range regions {
			start, end := max(m.Physical, r.Start), min(m.Physical+arch.GPA(m.Size), r.End())
			if start < end {
				out = append(out, Mapping{Virtual: m.Virtual + arch.GVA(start-m.Physical), Physical: start, Size: uint64(end - start)})
			}
		}
	}
	return out
}

func appendSegment(h []byte, kind uint32, off, vaddr, paddr, size uint64) []byte {
	le := binary.LittleEndian
	h = le.AppendUint32(le.AppendUint32(h, kind), 0)
	for _, v := range []uint64{off, vaddr, paddr, size, size, 0} {
		h = le.AppendUint64(h, v)
	}
	return h
}

// notes makes what tells of processors and kernel. A backend that offers no
// registers gives a core without.
func (w *coreWriter) notes() []byte {
	var status, state []byte
	for cpu := range w.g.CPUs() {
		r, err := w.g.Registers(w.ctx, cpu)
		if err != nil {
			status, state = nil, nil
			break
		}
		if r.ARM64.On { // QEMU's own note is for x86
			status = appendNote(status, "CORE", noteStatus, prStatusARM(cpu, &r.ARM64))
			continue
		}
		status = appendNote(status, "CORE", noteStatus, prStatus(cpu, r))
		state = appendNote(state, "QEMU", 0, encodeQEMUState(r))
	}
	out := append(status, state...)
	if len(w.opts.Info) > 0 {
		out = appendNote(out, "VMCOREINFO", 0, w.opts.Info)
	}
	return out
}

func appendNote(out []byte, name string, kind uint32, desc []byte) []byte {
	le := binary.LittleEndian
	out = le.AppendUint32(out, uint32(len(name)+1))
	out = le.AppendUint32(out, uint32(len(desc)))
	out = le.AppendUint32(out, kind)
	out = append(append(out, name...), 0)
	out = append(out, make([]byte, -len(out)&3)...)
	out = append(out, desc...)
	return append(out, make([]byte, -len(out)&3)...)
}

// prStatus makes the struct elf_prstatus of x86-64 (linux/elfcore.h, user_64.h).
func prStatus(cpu int, r *arch.Registers) []byte {
	le := binary.LittleEndian
	p := make([]byte, 112, 336)
	le.PutUint32(p[32:], uint32(cpu+1)) // pr_pid
	for _, v := range []uint64{
		r.R15, r.R14, r.R13, r.R12, r.RBP, r.RBX, r.R11, r.R10, r.R9, r.R8, r.RAX, r.RCX, r.RDX, r.RSI, r.RDI, ^uint64(0),
		r.RIP, uint64(r.CS), r.RFLAGS, r.RSP, uint64(r.SS), r.FSBase, r.GSBase, uint64(r.DS), uint64(r.ES), uint64(r.FS), uint64(r.GS),
	} {
		p = le.AppendUint64(p, v)
	}
	return p[:336]
}

// prStatusARM makes the struct elf_prstatus of arm64 (linux/elfcore.h,
// arch/arm64/include/uapi/asm/ptrace.h); see parsePRStatusARM.
func prStatusARM(cpu int, r *arch.ARM64Registers) []byte {
	le := binary.LittleEndian
	p := make([]byte, statusRegisters, statusARM)
	le.PutUint32(p[32:], uint32(cpu+1)) // pr_pid
	for _, v := range append(r.X[:], r.SP, r.PC, r.PSTATE) {
		p = le.AppendUint64(p, v)
	}
	return p[:statusARM]
}

// encodeQEMUState makes QEMU's note of a processor; see parseQEMUState.
func encodeQEMUState(r *arch.Registers) []byte {
	le := binary.LittleEndian
	p := le.AppendUint32(le.AppendUint32(make([]byte, 0, qemuStateWithGS), 1), qemuStateWithGS)
	for _, v := range []uint64{
		r.RAX, r.RBX, r.RCX, r.RDX, r.RSI, r.RDI, r.RSP, r.RBP,
		r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15, r.RIP, r.RFLAGS,
	} {
		p = le.AppendUint64(p, v)
	}
	for _, s := range []struct {
		selector uint16
		base     uint64
	}{{r.CS, 0}, {r.DS, 0}, {r.ES, 0}, {r.FS, r.FSBase}, {r.GS, r.GSBase}, {r.SS, 0}, {}, {}, {0, r.GDTBase}, {0, r.IDTBase}} {
		p = le.AppendUint32(p, uint32(s.selector))
		p = append(p, make([]byte, 12)...)
		p = le.AppendUint64(p, s.base)
	}
	for _, v := range []uint64{r.CR0, 0, r.CR2, r.CR3, r.CR4, r.KernelGSBase} {
		p = le.AppendUint64(p, v)
	}
	return p
}
