package kernel

import (
	"context"
	"fmt"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// byCrash finds the kernel of a Windows crash dump by what its header says:
// the page table, and the list of drivers, which begins with the kernel.
func (d *describer) byCrash(c *vitrine.WindowsCrash) (*ntFound, error) {
	at := root{mode: c.Paging, addr: c.DirectoryTableBase, from: "header of the crash dump"}
	as := d.g.AddressSpace(at.mode, at.addr)
	x64 := c.Bits == 64
	base := arch.GVA(0x18)
	if x64 {
		base = 0x30 // LDR_DATA_TABLE_ENTRY.DllBase
	}
	first, err := readWord(as, c.PsLoadedModuleList, x64)
	if err != nil {
		return nil, fmt.Errorf("describe guest: %w: crash dump of build %d: read PsLoadedModuleList: %w", vitrine.ErrNotUnderstood, c.Build, err)
	}
	kernel, err := readWord(as, first+base, x64)
	if err != nil {
		return nil, fmt.Errorf("describe guest: %w: crash dump of build %d: read the first driver: %w", vitrine.ErrNotUnderstood, c.Build, err)
	}
	im := kernelImage(as, kernel, x64)
	if im == nil {
		return nil, fmt.Errorf("describe guest: %w: crash dump of build %d: the first driver, at %v, is no NT kernel", vitrine.ErrNotUnderstood, c.Build, kernel)
	}
	return &ntFound{root: at, space: as, base: kernel, image: im, how: "list of drivers in the header of the crash dump"}, nil
}

// describeTriage describes the kernel of a triage dump. It holds one process,
// one thread, the names of the drivers, and nothing of the kernel's image; what
// the header says of itself is all that there is to compare.
func (d *describer) describeTriage(ctx context.Context, c *vitrine.WindowsCrash) (*Kernel, error) {
	b := &ntBuilder{d: d, nt: &NT{X64: c.Bits == 64, Build: int(c.Build), Revision: -1, Checked: c.Major == buildChecked, pcrs: map[int]arch.GVA{}}}
	space := d.g.AddressSpace(c.Paging, c.DirectoryTableBase)
	b.k = &Kernel{g: d.g, space: space, facts: map[string]string{}, nt: b.nt}
	b.nt.k = b.k
	if len(c.Drivers) == 0 {
		return nil, fmt.Errorf("describe guest: %w: triage dump of build %d without drivers", vitrine.ErrNotUnderstood, c.Build)
	}
	b.k.base, b.nt.ImageSize = c.Drivers[0].Base, c.Drivers[0].Size
	b.k.end = b.k.base + arch.GVA(b.nt.ImageSize)
	b.k.symbols = newNTSymbols(nil)
	const by = "header of the triage dump"
	for _, name := range []string{"base", "paging", "page_table", "build", "PsLoadedModuleList", "PsActiveProcessHead"} {
		b.k.fact(name, by)
	}
	b.nt.ModuleList, b.nt.ProcessHead = c.PsLoadedModuleList, c.PsActiveProcessHead
	b.name("PsLoadedModuleList", c.PsLoadedModuleList)
	b.name("PsActiveProcessHead", c.PsActiveProcessHead)
	b.name("KdDebuggerDataBlock", c.KdDebuggerDataBlock)
	b.nt.Major, b.nt.Minor = versionOf(int(c.Build))
	b.k.release = fmt.Sprintf("%d.%d.%d", b.nt.Major, b.nt.Minor, b.nt.Build)
	b.k.fact("release", "build of the header; its version by the build")
	b.k.lacks("kernel image, lists of processes and threads: a triage dump holds one process and one thread only")
	b.useSymbolFile(ctx) // checked by the heads of lists: the GUID is in the image, which the dump lacks
	b.chooseLayout()
	b.finishSymbols()
	b.nt.prcb, b.nt.currentThread = prcbData86, prcbData86+prcbThread86
	if b.nt.X64 {
		b.nt.prcb, b.nt.currentThread = prcbData64, prcbData64+prcbThread64
	}
	b.checkTriage(c)
	return b.k, nil
}

// versionOf tells the version by the build, as it was of all that were released.
func versionOf(build int) (major, minor int) {
	for _, v := range []struct{ from, major, minor int }{{10000, 10, 0}, {9600, 6, 3}, {9200, 6, 2}, {7600, 6, 1}, {6000, 6, 0}, {3790, 5, 2}, {2600, 5, 1}} {
		if build >= v.from {
			return v.major, v.minor
		}
	}
	return 0, 0
}

// checkTriage checks the members that the one process and thread show, against
// each other.
func (b *ntBuilder) checkTriage(c *vitrine.WindowsCrash) {
	b.system = make([]byte, eprocessSize)
	readHoles(b.k.space, b.system, c.Process)
	size := b.k.PointerSize()
	pid := b.sysWord(b.offset("_EPROCESS", "UniqueProcessId"))
	b.settle(shape{structName: "_EPROCESS", member: "UniqueProcessId", size: size, weak: true,
		what: "an id that the thread of the dump has as well", check: func(off uint64) bool {
			at, err := b.types.field("_ETHREAD", "Cid.UniqueProcess")
			if err != nil {
				return false
			}
			owner, err := b.word(c.Thread + arch.GVA(at.Offset))
			return err == nil && uint64(owner) == b.sysWord(off) && pid%4 == 0
		}})
	b.settle(shape{structName: "_EPROCESS", member: "ImageFileName", size: 15, weak: true,
		what: "a name that can be printed", check: func(off uint64) bool {
			return off+15 <= eprocessSize && printable8(b.system[off:off+8]) && b.system[off] > ' '
		}})
	if pid == 4 {
		b.nt.System = c.Process
		b.k.fact("PsInitialSystemProcess", "process of the triage dump, which has the id 4")
	}
}

func (b *ntBuilder) offset(structName, path string) uint64 {
	f, err := b.types.field(structName, path)
	if err != nil {
		return eprocessSize
	}
	return f.Offset
}
