package nttest

import (
	"encoding/binary"
	"maps"
	"slices"

	"github.com/vitrine-vmi/vitrine/arch"
)

// makeHeaders writes the PE headers, the export directory and the name of the
// symbols.
func (g *Guest) makeHeaders() {
	le := binary.LittleEndian
	h := make([]byte, 0x1000)
	copy(h, "MZ")
	const pe = 0x80
	le.PutUint32(h[0x3c:], pe)
	copy(h[pe:], "PE\x00\x00")
	machine, magic, optional, dirs := uint16(0x14c), uint16(0x10b), 224, 96
	if g.X64 {
		machine, magic, optional, dirs = 0x8664, 0x20b, 240, 112
	}
	sections := []struct {
		name      string
		at, size  uint32
		character uint32
	}{
		{".text", textAt, dataAt - textAt, 0x68000020}, {".data", dataAt, edataAt - dataAt, 0xc8000040},
		{".edata", edataAt, rdataAt - edataAt, 0x40000040}, {".rdata", rdataAt, imageSize - rdataAt, 0x40000040},
	}
	le.PutUint16(h[pe+4:], machine)
	le.PutUint16(h[pe+6:], uint16(len(sections)))
	le.PutUint16(h[pe+20:], uint16(optional))
	o := h[pe+24:]
	le.PutUint16(o, magic)
	le.PutUint32(o[16:], textAt)
	le.PutUint32(o[56:], imageSize)
	le.PutUint32(o[dirs-4:], 16)
	le.PutUint32(o[dirs:], edataAt)
	le.PutUint32(o[dirs+4:], g.makeExports())
	le.PutUint32(o[dirs+8*6:], rdataAt)
	le.PutUint32(o[dirs+8*6+4:], 28)
	for i, s := range sections {
		e := o[optional+40*i:]
		copy(e, s.name)
		le.PutUint32(e[8:], s.size)
		le.PutUint32(e[12:], s.at)
		le.PutUint32(e[36:], s.character)
	}
	g.Kernel.Put(g.Base, h)
	g.makeDebug()
}

// makeExports writes the export directory and returns its size.
func (g *Guest) makeExports() uint32 {
	names := slices.Sorted(maps.Keys(g.Exports))
	n := uint32(len(names))
	addresses, strings, ordinals := uint32(edataAt+0x40), edataAt+0x40+4*n, edataAt+0x40+8*n
	text := ordinals + 2*n
	put := func(at, v uint32) { g.Kernel.PutUint32(g.Base+arch.GVA(at), v) }
	put(edataAt+12, text)
	g.Kernel.PutString(g.Base+arch.GVA(text), "ntoskrnl.exe")
	text += 16
	put(edataAt+20, n)
	put(edataAt+24, n)
	put(edataAt+28, addresses)
	put(edataAt+32, strings)
	put(edataAt+36, ordinals)
	for i, name := range names {
		put(addresses+4*uint32(i), uint32(g.Exports[name]-g.Base))
		put(strings+4*uint32(i), text)
		g.Kernel.PutUint(g.Base+arch.GVA(ordinals)+arch.GVA(2*i), uint64(i), 2)
		g.Kernel.PutString(g.Base+arch.GVA(text), name)
		text += uint32(len(name) + 1)
	}
	if text > rdataAt {
		panic("nttest: too many exports")
	}
	return text - edataAt
}

// makeDebug writes the debug directory with its CodeView record.
func (g *Guest) makeDebug() {
	put := func(at, v uint32) { g.Kernel.PutUint32(g.Base+arch.GVA(at), v) }
	put(rdataAt+12, 2)
	put(rdataAt+16, 0x30)
	put(rdataAt+20, rdataAt+0x40)
	guid := []byte{0xf8, 0xaf, 0x78, 0x52, 0x34, 0x6c, 0x77, 0x16, 0xd7, 0xd7, 0x83, 0x5c, 0x85, 0xb7, 0xb8, 0x44}
	g.Kernel.Put(g.Base+rdataAt+0x40, append([]byte("RSDS"), guid...))
	put(rdataAt+0x54, 1)
	g.Kernel.PutString(g.Base+rdataAt+0x58, "ntkrnlmp.pdb")
	g.GUID = "5278AFF86C341677D7D7835C85B7B844"
}

// makeAccessors writes the exported functions that return members.
func (g *Guest) makeAccessors() {
	for _, a := range []struct {
		export, structName, path string
		address                  bool
	}{
		{"PsGetProcessId", "_EPROCESS", "UniqueProcessId", false},
		{"PsGetProcessImageFileName", "_EPROCESS", "ImageFileName", true},
		{"PsGetProcessPeb", "_EPROCESS", "Peb", false},
		{"PsGetProcessInheritedFromUniqueProcessId", "_EPROCESS", "InheritedFromUniqueProcessId", false},
		{"PsGetProcessSectionBaseAddress", "_EPROCESS", "SectionBaseAddress", false},
		{"PsGetProcessCreateTimeQuadPart", "_EPROCESS", "CreateTime", false},
		{"PsGetThreadId", "_ETHREAD", "Cid.UniqueThread", false},
		{"PsGetThreadProcessId", "_ETHREAD", "Cid.UniqueProcess", false},
		{"PsGetThreadProcess", "_ETHREAD", "ThreadsProcess", false},
		{"PsGetThreadTeb", "_KTHREAD", "Teb", false},
	} {
		off, ok := g.has(a.structName, a.path)
		if !ok && a.path == "ThreadsProcess" {
			off, ok = g.has("_KTHREAD", "Process")
		}
		if ok {
			g.function(a.export, g.accessor(uint32(off), a.address, a.path == "CreateTime"))
		}
	}
	at, cur := byte(0x88), byte(0x01)
	if !g.X64 {
		g.function("PsGetCurrentThread", []byte{0x64, 0xa1, 0x24, 0x01, 0, 0, 0xc3})
		return
	}
	g.function("PsGetCurrentThread", []byte{0x65, 0x48, 0x8b, 0x04, 0x25, at, cur, 0, 0, 0xc3})
}

// accessor returns machine code: on x86 that of XP, with its frame.
func (g *Guest) accessor(off uint32, address, wide bool) []byte {
	op := []byte{0x48, 0x8b, 0x81}
	switch {
	case g.X64 && address:
		op[1] = 0x8d
	case !g.X64 && address:
		op = []byte{0x8b, 0xff, 0x55, 0x8b, 0xec, 0x8b, 0x45, 0x08, 0x05}
	case !g.X64 && wide:
		op = binary.LittleEndian.AppendUint32([]byte{0x8b, 0xff, 0x55, 0x8b, 0xec, 0x8b, 0x45, 0x08, 0x8b, 0x90}, off+4)
		op = append(op, 0x8b, 0x80)
	case !g.X64:
		op = []byte{0x8b, 0xff, 0x55, 0x8b, 0xec, 0x8b, 0x45, 0x08, 0x8b, 0x80}
	}
	op = binary.LittleEndian.AppendUint32(op, off)
	if g.X64 {
		return append(op, 0xc3)
	}
	return append(op, 0x5d, 0xc2, 0x04, 0x00)
}

// function exports code.
func (g *Guest) function(name string, code []byte) {
	g.Kernel.Put(g.text, code)
	g.export(name, g.text)
	g.text += arch.GVA(len(code)+15) &^ 15
}

// makePCR makes the first processor's KPCR, its interrupt table and its
// registers.
func (g *Guest) makePCR() {
	handler := g.Base + dataAt - 0x100
	idt := g.Pool(16 * 0x40)
	for v := range arch.GVA(0x40) {
		h := uint64(handler)
		if g.X64 {
			g.Kernel.PutUint64(idt+16*v, h&0xffff|0x8e00<<32|(h>>16&0xffff)<<48|0x10<<16)
			g.Kernel.PutUint64(idt+16*v+8, h>>32)
		} else {
			g.Kernel.PutUint64(idt+8*v, h&0xffff|0x8<<16|0x8e00<<32|(h>>16&0xffff)<<48)
		}
	}
	last := g.Processes[len(g.Processes)-1]
	thread := g.idle
	if !g.Idle && len(last.Threads) > 0 {
		thread = last.Threads[0].Task
	}
	r := arch.Registers{CR0: arch.CR0PE | arch.CR0PG, CR3: uint64(last.Space.Root()), RIP: uint64(handler), CS: 0x8}
	if g.X64 {
		g.Word(g.PCR+0x18, uint64(g.PCR))
		g.Word(g.PCR+0x20, uint64(g.PCR)+0x180)
		g.Word(g.PCR+0x38, uint64(idt))
		g.Word(g.PCR+0x188, uint64(thread))
		r.CS, r.GSBase, r.EFER, r.CR4 = 0x10, uint64(g.PCR), arch.EFERLMA|1<<8, arch.CR4PAE
		if g.Mode == arch.Paging5Level {
			r.CR4 |= arch.CR4LA57
		}
		if g.User {
			r.CS, r.RIP, r.GSBase, r.KernelGSBase = 0x33, 0x401000, 0x7ff000, uint64(g.PCR)
		}
		if g.NoKernelGS {
			r.KernelGSBase, r.IDTBase = 0, uint64(idt)
		}
		g.Word(g.reserve(16), uint64(g.PCR)+0x180) // KiProcessorBlock
		g.SetRegisters(r)
		return
	}
	gdt := g.Pool(0x100)
	base := uint64(g.PCR)
	g.Kernel.PutUint64(gdt+0x30, 0x1fff|(base&0xff_ffff)<<16|0xc093<<40|base>>24<<56)
	g.Word(g.PCR+0x1c, uint64(g.PCR))
	g.Word(g.PCR+0x20, uint64(g.PCR)+0x120)
	g.Word(g.PCR+0x38, uint64(idt))
	g.Word(g.PCR+0x3c, uint64(gdt))
	g.Word(g.PCR+0x124, uint64(thread))
	g.Word(g.reserve(16), uint64(g.PCR)+0x120) // KiProcessorBlock
	r.FS, r.FSBase, r.GDTBase = 0x30, uint64(g.PCR), uint64(gdt)
	if g.Mode == arch.PagingPAE {
		r.CR4 = arch.CR4PAE
	}
	if g.User {
		r.CS, r.RIP, r.FS, r.FSBase = 0x1b, 0x401000, 0x3b, 0x7ffdf000
	}
	g.SetRegisters(r)
}
