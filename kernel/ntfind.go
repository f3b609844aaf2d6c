package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/pe"
)

// ntFound is an NT kernel that was located.
type ntFound struct {
	root  root
	space *vitrine.AddressSpace // by root
	base  arch.GVA
	image *pe.Image
	how   string // what led to the image, in words
}

// errNoNT is returned when nothing looks like an NT kernel.
var errNoNT = errors.New("no NT kernel")

// The KPCR as every build has it (ntddk.h; KPCR is what drivers are compiled
// against): offsets on x86, then on x64.
const (
	pcrSelf86, pcrPrcb86, pcrVersion86, pcrIDT86 = 0x1c, 0x20, 0x34, 0x38
	pcrSelf64, pcrPrcb64, pcrVersion64, pcrIDT64 = 0x18, 0x20, 0x108, 0x38
	prcbData86, prcbData64                       = 0x120, 0x180 // where the KPRCB begins
	prcbThread86, prcbThread64                   = 0x4, 0x8     // CurrentThread in it
	// The kernel's page table in the KPCR of a kernel that isolates its page
	// tables: the entry code reads it by mov rsp,gs:[9000h]; mov cr3,rsp.
	pcrKernelCR3 = 0x9000
	// The one processor's KPCR until XP and 2003.
	fixedPCR = arch.GVA(0xffdf_f000)
	// FS of the kernel on x86: KGDT_R0_PCR.
	selectorPCR = 0x30
)

// isPCR reports whether a KPCR lies at va: it points to itself, and to the
// KPRCB within itself.
func isPCR(as *vitrine.AddressSpace, va arch.GVA, x64 bool) bool {
	self, prcb, data := arch.GVA(pcrSelf86), arch.GVA(pcrPrcb86), arch.GVA(prcbData86)
	if x64 {
		self, prcb, data = pcrSelf64, pcrPrcb64, prcbData64
	}
	if !kernelAddress(va, x64) || va%8 != 0 {
		return false
	}
	if at, err := readWord(as, va+self, x64); err != nil || at != va {
		return false
	}
	at, err := readWord(as, va+prcb, x64)
	return err == nil && at == va+data
}

// findPCR returns the KPCR of a processor, 0 when there is none. In the kernel
// it is the base of FS or GS; in user mode, and for a moment at each entry, it
// is on x64 what SWAPGS would swap in, and on x86 what the GDT tells.
func findPCR(as *vitrine.AddressSpace, r *arch.Registers, x64 bool) arch.GVA {
	candidates := []arch.GVA{arch.GVA(r.GSBase), arch.GVA(r.KernelGSBase)}
	if !x64 {
		candidates = []arch.GVA{arch.GVA(uint32(r.FSBase)), segmentBase(as, arch.GVA(uint32(r.GDTBase)), selectorPCR), fixedPCR}
	}
	for _, va := range candidates {
		if va != 0 && isPCR(as, va, x64) {
			return va
		}
	}
	return 0
}

// segmentBase reads the base of a segment out of the GDT (SDM 3A, 3.4.5).
func segmentBase(as *vitrine.AddressSpace, gdt arch.GVA, selector arch.GVA) arch.GVA {
	if gdt == 0 {
		return 0
	}
	d, err := as.ReadUint64(gdt + selector&^7)
	if err != nil {
		return 0
	}
	return arch.GVA(d>>16&0xff_ffff | d>>56<<24)
}

// ntRoots returns the page tables by which the kernel may be seen from a
// processor: that in use, and in user mode of a kernel that isolates its page
// tables the one that it would switch to.
func ntRoots(g *vitrine.Guest, r *arch.Registers) []root {
	mode := r.PagingMode()
	if mode == arch.PagingOff {
		return nil
	}
	roots := []root{{mode: mode, addr: r.Root(), from: "registers"}}
	if mode == arch.Paging32Bit || mode == arch.PagingPAE {
		return roots
	}
	as := g.AddressSpace(mode, r.Root())
	if pcr := findPCR(as, r, true); pcr != 0 {
		cr3, err := as.ReadUint64(pcr + pcrKernelCR3)
		if a := arch.Root(mode, cr3); err == nil && a != 0 && a != roots[0].addr && inRAM(g.Regions(), a, arch.PageSize) {
			roots = append(roots, root{mode: mode, addr: a, from: "KPCR, as its kernel isolates page tables"})
		}
	}
	return roots
}

// findNT looks for an NT kernel: from the processors, or where there are no
// registers, in memory.
func (d *describer) findNT(ctx context.Context) (*ntFound, error) {
	if c := d.g.WindowsCrash(); c != nil {
		return d.byCrash(c)
	}
	last := errNoNT
	for cpu := range min(d.g.CPUs(), maxCPUs) {
		r, err := d.g.Registers(ctx, cpu)
		if errors.Is(err, errors.ErrUnsupported) {
			if d.searched() { // what was found there is Linux's
				return nil, errNoNT
			}
			return d.scanNT(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("describe guest: read registers: %w", err)
		}
		for _, at := range ntRoots(d.g, r) {
			f, err := findNTBy(d.g, at, r, cpu)
			if err == nil {
				return f, nil
			}
			last = err
		}
	}
	return nil, last
}

// findNTBy looks for the kernel with one page table: the interrupt handlers lie
// in it, and so does the processor when it runs kernel code.
func findNTBy(g *vitrine.Guest, at root, r *arch.Registers, cpu int) (*ntFound, error) {
	as := g.AddressSpace(at.mode, at.addr)
	x64 := at.mode == arch.Paging4Level || at.mode == arch.Paging5Level
	tried := map[arch.GVA]bool{}
	for _, h := range ntHints(as, r, x64) {
		if f := descend(as, h.addr, x64, tried); f != nil {
			f.root, f.how = at, fmt.Sprintf("%s of vcpu %d", h.what, cpu)
			return f, nil
		}
	}
	return nil, errNoNT
}

// hintedAt is an address that may lie in the kernel's image.
type hintedAt struct {
	addr arch.GVA
	what string
}

// Vectors whose handlers are the kernel's own: page fault, breakpoint, divide
// error, general protection, and system service on x86 (KiSystemService).
var kernelVectors = []int{14, 3, 0, 13, 0x2e}

func ntHints(as *vitrine.AddressSpace, r *arch.Registers, x64 bool) []hintedAt {
	var out []hintedAt
	add := func(a arch.GVA, what string) {
		if kernelAddress(a, x64) {
			out = append(out, hintedAt{a, what})
		}
	}
	tables := []arch.GVA{}
	if pcr := findPCR(as, r, x64); pcr != 0 {
		// IDTBase and IDT of the KPCR are at the same offset in both.
		if idt, err := readWord(as, pcr+pcrIDT64, x64); err == nil {
			tables = append(tables, idt)
		}
	}
	if idt := arch.GVA(r.IDTBase); idt != 0 && !slices.Contains(tables, idt) {
		tables = append(tables, idt)
	}
	for _, idt := range tables {
		for _, v := range kernelVectors {
			if h, err := ntHandler(as, idt, v, x64); err == nil {
				add(h, fmt.Sprintf("interrupt handler %#x", v))
			}
		}
	}
	if !r.User() {
		add(r.PC(), "program counter")
	}
	return out
}

// ntHandler reads an entry of the interrupt descriptor table.
func ntHandler(as *vitrine.AddressSpace, idt arch.GVA, n int, x64 bool) (arch.GVA, error) {
	if x64 {
		return idtHandler(as, idt, n)
	}
	e, err := as.ReadUint64(idt + arch.GVA(8*n))
	return arch.GVA(e>>48<<16 | e&0xffff), err
}

// maxImageNT is how far below an address within it the kernel's image is
// looked for: ntoskrnl.exe is up to 18 MiB.
const maxImageNT = 32 << 20

// descend goes down page by page from an address within the kernel to its PE
// header. Pages that are not mapped are passed over. Pages in tried were seen.
func descend(as *vitrine.AddressSpace, from arch.GVA, x64 bool, tried map[arch.GVA]bool) *ntFound {
	for page := from.Page(); page > from-min(from, maxImageNT) && kernelAddress(page, x64); page -= arch.PageSize {
		if tried[page] {
			return nil
		}
		tried[page] = true
		if mz, err := as.ReadUint16(page); err != nil || mz != 0x5a4d {
			continue
		}
		if im := kernelImage(as, page, x64); im != nil && uint64(from-page) < uint64(im.Size) {
			return &ntFound{space: as, base: page, image: im}
		}
	}
	return nil
}

// kernelNames are the names that kernels were linked by. The export directory
// says ntoskrnl.exe whatever the file is called; the others are for kernels
// that are built otherwise.
var kernelNames = []string{"ntoskrnl.exe", "ntkrnlmp.exe", "ntkrnlpa.exe", "ntkrpamp.exe"}

// kernelImage returns the image at base if it is an NT kernel by its own word.
func kernelImage(as *vitrine.AddressSpace, base arch.GVA, x64 bool) *pe.Image {
	im, err := pe.Read(memoryOf(as, base))
	if err != nil || im.Plus != x64 {
		return nil
	}
	name, err := im.ImageName()
	if err != nil || !slices.Contains(kernelNames, strings.ToLower(name)) {
		return nil
	}
	return im
}

// scanNT looks for a kernel in memory without registers.
func (d *describer) scanNT(ctx context.Context) (*ntFound, error) {
	d.progress("looking for an NT kernel in memory")
	if f := d.byStartBlock(); f != nil {
		return f, nil
	}
	return d.bySystemProcess(ctx)
}

// The block by which a 64-bit kernel starts the other processors
// (PROCESSOR_START_BLOCK) lies in the first MiB and stays there: it begins with
// a jump, and holds the kernel's page table and an address in the kernel.
const (
	startBlockEnd   = 1 << 20
	startBlockEntry = 0x70
	startBlockCR3   = 0xa0
)

func (d *describer) byStartBlock() *ntFound {
	for page := arch.GPA(arch.PageSize); page < startBlockEnd; page += arch.PageSize {
		var b [startBlockCR3 + 8]byte
		if _, err := d.g.ReadPhysical(b[:], page); err != nil {
			continue
		}
		word := func(at int) uint64 { return leUint64(b[at:]) }
		if word(0)&0xffff_ffff_ffff_00ff != 0x0000_0001_0006_00e9 || word(startBlockEntry)>>47 != 0x1ffff {
			continue
		}
		for _, mode := range []arch.PagingMode{arch.Paging4Level, arch.Paging5Level} {
			at := root{mode: mode, addr: arch.Root(mode, word(startBlockCR3)), from: "processor start block"}
			as := d.g.AddressSpace(mode, at.addr)
			if f := descend(as, arch.GVA(word(startBlockEntry)), true, map[arch.GVA]bool{}); f != nil {
				f.root, f.how = at, fmt.Sprintf("processor start block at %v", page)
				return f
			}
		}
	}
	return nil
}
