package dump

import (
	"bytes"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/internal/guestio"
)

// Notes that tell of virtual processors and of the kernel, in ELF cores and in
// kdump files alike.

// maxCPUs bounds the virtual processors that an image may have.
const maxCPUs = 8192

// noteStatus is NT_PRSTATUS: the general registers of one processor.
const noteStatus = 1

// readNotes takes what it knows out of n bytes of notes at off, and returns how
// many of them were notes with names. Notes that make no sense end it: the image can be read
// without.
func (im *image) readNotes(b blob, off, n uint64) (used uint64) {
	if off > b.size() {
		return 0
	}
	n = min(n, b.size()-off, maxNotes)
	p, err := bytesOf(b, off, n, maxNotes)
	if err != nil {
		return 0
	}
	c := guestio.NewCursor(p)
	named := true
	for c.Len() >= 12 {
		nameSize, descSize, kind := c.Uint32(), c.Uint32(), c.Uint32()
		if nameSize > 64 || uint64(descSize) > n {
			return used
		}
		name := c.Bytes(int(nameSize))
		c.Align(4)
		desc := c.Bytes(int(descSize))
		if c.Err() != nil {
			return used
		}
		im.takeNote(string(bytes.TrimRight(name, "\x00")), kind, desc)
		if c.Len() >= 4 {
			c.Align(4)
		}
		if named = named && nameSize != 0; named {
			used = uint64(len(p) - c.Len())
		}
	}
	return used
}

func (im *image) takeNote(name string, kind uint32, desc []byte) {
	switch name {
	case "QEMU":
		if r, ok := parseQEMUState(desc, im.arch); ok && len(im.regs) < maxCPUs {
			im.regs = append(im.regs, registerState{regs: r, control: true})
		}
	case "CORE":
		if kind != noteStatus || im.cpus >= maxCPUs {
			return
		}
		if r, ok := parsePRStatusARM(desc); ok && im.arch == arch.ARM64 && len(im.regs) == im.cpus {
			im.regs = append(im.regs, registerState{regs: r, control: true})
		}
		im.cpus++
	case "VMCOREINFO":
		if im.note == nil {
			im.note = bytes.Clone(desc[:min(len(desc), maxInfo)])
		}
	}
}

// Of struct elf_prstatus: where the registers are, and the size of that of arm64.
const (
	statusRegisters = 112
	statusARM       = statusRegisters + 34*8 + 8
)

// parsePRStatusARM reads the general registers of an AArch64 processor, all that
// such an image has of them.
func parsePRStatusARM(p []byte) (arch.Registers, bool) {
	r := arch.Registers{ARM64: arch.ARM64Registers{On: true}}
	if len(p) < statusARM {
		return r, false
	}
	c := guestio.NewCursor(p)
	c.Skip(statusRegisters)
	for i := range r.ARM64.X {
		r.ARM64.X[i] = c.Uint64()
	}
	r.ARM64.SP, r.ARM64.PC, r.ARM64.PSTATE = c.Uint64(), c.Uint64(), c.Uint64()
	return r, c.Err() == nil
}

// maxInfo is the most of a VMCOREINFO text that is kept: the kernel makes a page.
const maxInfo = 64 << 10

// qemuStateSize is the size of QEMU's note of a processor until kernel_gs_base,
// the last field, was added (3.0).
const (
	qemuStateSize   = 432
	qemuStateWithGS = qemuStateSize + 8
)

// parseQEMUState reads QEMU's note of an x86 processor (QEMUCPUState of
// target/i386/arch_dump.c): version, size, 18 general registers, 10 segments of
// 24 bytes, CR0 to CR4. It has no EFER: in a 64-bit core, paging with PAE on is
// long mode, unless the interrupt table lies as only that of a 32-bit system does:
// below 4 GiB, with no 64-bit code running.
func parseQEMUState(p []byte, a arch.Arch) (r arch.Registers, ok bool) {
	if len(p) < qemuStateSize || a != arch.AMD64 && a != arch.I386 {
		return r, false
	}
	c := guestio.NewCursor(p)
	c.Skip(8)
	for _, v := range []*uint64{
		&r.RAX, &r.RBX, &r.RCX, &r.RDX, &r.RSI, &r.RDI, &r.RSP, &r.RBP,
		&r.R8, &r.R9, &r.R10, &r.R11, &r.R12, &r.R13, &r.R14, &r.R15, &r.RIP, &r.RFLAGS,
	} {
		*v = c.Uint64()
	}
	var flags uint32
	segment := func() (selector uint16, base uint64) {
		selector = uint16(c.Uint32())
		c.Skip(4)
		flags = c.Uint32()
		c.Skip(4)
		return selector, c.Uint64()
	}
	r.CS, _ = segment()
	const long = 1 << 21 // of a descriptor: 64-bit code
	is64 := flags&long != 0
	r.DS, _ = segment()
	r.ES, _ = segment()
	r.FS, r.FSBase = segment()
	r.GS, r.GSBase = segment()
	r.SS, _ = segment()
	segment() // LDT
	segment() // TR
	_, r.GDTBase = segment()
	_, r.IDTBase = segment()
	r.CR0 = c.Uint64()
	c.Skip(8)
	r.CR2, r.CR3, r.CR4 = c.Uint64(), c.Uint64(), c.Uint64()
	if len(p) >= qemuStateWithGS {
		r.KernelGSBase = c.Uint64()
	}
	is64 = is64 || r.IDTBase == 0 || r.IDTBase>>32 != 0
	if a == arch.AMD64 && is64 && r.CR0&arch.CR0PG != 0 && r.CR4&arch.CR4PAE != 0 {
		r.EFER = arch.EFERLMA
	}
	return r, c.Err() == nil
}
