package kernel

import (
	"fmt"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/vmcoreinfo"
)

// A 32-bit x86 kernel has its image within its map of low memory, from
// PAGE_OFFSET on, which VMSPLIT_* chose when it was built. Nothing in the page
// tables tells the image from the memory around it but that its code and its
// constants are write-protected, since it has booted.

const (
	lowest32 arch.GVA = 0x4000_0000 // PAGE_OFFSET with VMSPLIT_1G
	end32    arch.GVA = 0xff80_0000 // where fixed mappings begin
	// maxImage32 is more than a 32-bit kernel's image has: all of it lies within
	// so much of the start of its code.
	maxImage32 = 64 << 20
	// linked32 is where such a kernel is linked to start, from PAGE_OFFSET
	// (CONFIG_PHYSICAL_START, which distributions leave at 16 MiB).
	linked32 = 16 << 20
)

// is32 reports whether the page tables are a 32-bit kernel's.
func (r root) is32() bool { return r.mode.PointerSize() == 4 }

// locate32 returns the root with the place of the image: the first large piece
// of write-protected memory in the kernel's half.
func locate32(g *vitrine.Guest, r root) (root, error) {
	tables := &tableReader{r: g, pages: map[arch.GPA]*[arch.PageSize]byte{}}
	var text run
	for va := lowest32; va < end32; {
		m, err := arch.Walk(tables, r.mode, r.addr, va)
		if err != nil {
			va = nextAfterFault(va, end32, err)
			continue
		}
		m.Size = max(m.Size, arch.PageSize)
		size := m.Size - uint64(va)%m.Size
		switch {
		case m.Writable || m.User:
			text = run{}
		case text.size > 0 && text.pa+arch.GPA(text.size) == m.Addr:
			text.size += size
		default:
			text = run{va: va, pa: m.Addr, size: size}
		}
		if text.size >= minImage {
			r.stext, r.off = text.va, uint64(text.va)-uint64(text.pa)
			return r, nil
		}
		va += arch.GVA(size)
	}
	return r, errNoImage32
}

var errNoImage32 = fmt.Errorf("page tables protect no code of a 32-bit kernel (%w)", errNoImage)

// root32 computes where a note of a 32-bit kernel says that its page table lies,
// if it maps low memory where most do. It tells nothing of KASLR, which moves
// such a kernel in both kinds of memory alike.
func root32(in *vmcoreinfo.Info, swapper uint64) (root, bool) {
	const offset = 0xc000_0000 // PAGE_OFFSET with VMSPLIT_3G
	r := root{mode: arch.Paging32Bit, addr: arch.GPA(swapper - offset), from: "vmcoreinfo"}
	if in.PAE {
		r.mode = arch.PagingPAE
	}
	return r, swapper >= offset && swapper < uint64(end32) && swapper%arch.PageSize == 0
}

// linkedAt returns where the kernel was linked to start.
func (f *found) linkedAt() arch.GVA {
	if f.root.is32() {
		return arch.GVA(f.root.off + linked32)
	}
	return linkedBase
}
