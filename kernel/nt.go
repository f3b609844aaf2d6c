package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"sync"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/pe"
)

// NT is what only an NT kernel has. Its fields do not change; its methods may
// be called concurrently. Addresses that could not be found are 0; Missing of
// the kernel then says why.
type NT struct {
	X64      bool // the kernel is a 64-bit one
	Major    int  // of the version: 10.0, 6.1, ...
	Minor    int
	Build    int  // 19041; it proves nothing by itself
	Revision int  // the last part of the file version, -1 when it is not known
	Checked  bool // a checked (debug) build

	PDB    string // file name of the symbols, "ntkrnlmp.pdb"; "" when the kernel has no CodeView record
	GUID   string // of the symbols, 32 upper-case hexadecimal digits
	PDBAge uint32

	ImageSize   uint64   // bytes of the kernel's image
	System      arch.GVA // the EPROCESS of the process System, PsInitialSystemProcess
	ProcessHead arch.GVA // PsActiveProcessHead
	ModuleList  arch.GVA // PsLoadedModuleList
	Processors  arch.GVA // KiProcessorBlock, the array of pointers to the KPRCBs
	SharedData  arch.GVA // KUSER_SHARED_DATA as the kernel maps it
	Objects     ObjectTypes

	k             *Kernel
	currentThread uint64 // offset in the KPCR
	prcb          uint64 // offset of the KPRCB in the KPCR

	mu   sync.Mutex
	pcrs map[int]arch.GVA // protected by mu: by virtual processor, once found

	scanned func() map[int]arch.GVA // of scanPCRs, once
}

// ErrNoPCR is returned when the KPCR of a processor can't be found.
var ErrNoPCR = errors.New("processor control region not found")

// Word reads a pointer of the kernel: 4 or 8 bytes.
func (n *NT) Word(as *vitrine.AddressSpace, va arch.GVA) (arch.GVA, error) {
	return readWord(as, va, n.X64)
}

func readWord(as *vitrine.AddressSpace, va arch.GVA, x64 bool) (arch.GVA, error) {
	if x64 {
		v, err := as.ReadUint64(va)
		return arch.GVA(v), err
	}
	v, err := as.ReadUint32(va)
	return arch.GVA(v), err
}

// KernelAddress reports whether a can be an address of the kernel's half: on
// x86 from 0x80000000, the split that all but a /3GB boot have.
func (n *NT) KernelAddress(a arch.GVA) bool { return kernelAddress(a, n.X64) }

func kernelAddress(a arch.GVA, x64 bool) bool {
	if x64 {
		return a >= 0xffff_8000_0000_0000
	}
	return a >= 0x8000_0000 && a < 1<<32
}

// CurrentThreadOffset returns where in a KPCR the address of the current KTHREAD is.
func (n *NT) CurrentThreadOffset() uint64 { return n.currentThread }

// PCR returns the address of the KPCR of a virtual processor (0-based).
func (n *NT) PCR(ctx context.Context, vcpu int) (arch.GVA, error) {
	n.mu.Lock()
	at := n.pcrs[vcpu]
	n.mu.Unlock()
	if at != 0 {
		return at, nil
	}
	r, err := n.k.g.Registers(ctx, vcpu)
	if err == nil {
		if at = findPCR(n.k.space, r, n.X64); at == 0 {
			err = fmt.Errorf("find KPCR of virtual processor %d: %w", vcpu, ErrNoPCR)
		}
	}
	if err != nil {
		if at = n.pcrOf(vcpu); at == 0 {
			at = n.scanPCRs()[vcpu]
		}
		if at == 0 {
			return 0, err
		}
	}
	n.mu.Lock()
	n.pcrs[vcpu] = at
	n.mu.Unlock()
	return at, nil
}

// pcrOf finds a KPCR by KiProcessorBlock, 0 when it can't.
func (n *NT) pcrOf(cpu int) arch.GVA {
	if n.Processors == 0 || cpu < 0 || cpu >= maxCPUs {
		return 0
	}
	prcb, err := n.Word(n.k.space, n.Processors+arch.GVA(cpu*n.k.PointerSize()))
	if err != nil || !n.KernelAddress(prcb) || uint64(prcb) < n.prcb {
		return 0
	}
	at := prcb - arch.GVA(n.prcb)
	if !isPCR(n.k.space, at, n.X64) {
		return 0
	}
	return at
}

// scanPCRs looks through physical memory for KPCRs, by the processors' numbers.
// It is the last resort, takes 0.1 s for 4 GiB, and is done once.
func (n *NT) scanPCRs() map[int]arch.GVA {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.scanned == nil {
		n.scanned = sync.OnceValue(n.scan)
	}
	return n.scanned()
}

func (n *NT) scan() map[int]arch.GVA {
	found := map[int]arch.GVA{}
	number, err := n.k.types.Field("_KPRCB", "Number")
	if err != nil {
		return found
	}
	var b [0x28]byte // a KPCR begins on a page and points to itself
	for _, r := range n.k.g.Regions() {
		for pa := r.Start.Page(); pa < r.End(); pa += arch.PageSize {
			if _, err := n.k.g.ReadPhysical(b[:], pa); err != nil {
				continue
			}
			va := arch.GVA(leUint64(b[pcrSelf64:]))
			if !n.X64 {
				va = arch.GVA(leUint(b[pcrSelf86 : pcrSelf86+4]))
			}
			if va%arch.PageSize != 0 || !isPCR(n.k.space, va, n.X64) {
				continue
			}
			if at, err := n.k.space.Translate(va); err != nil || at != pa {
				continue
			}
			if cpu, err := n.k.space.ReadUint8(va + arch.GVA(n.prcb+number.Offset)); err == nil {
				found[int(cpu)] = va
			}
		}
	}
	return found
}

// CurrentThread returns the KTHREAD that a virtual processor (0-based) runs.
func (n *NT) CurrentThread(ctx context.Context, vcpu int) (arch.GVA, error) {
	pcr, err := n.PCR(ctx, vcpu)
	if err != nil {
		return 0, err
	}
	return n.Word(n.k.space, pcr+arch.GVA(n.currentThread))
}

// SoftPages makes as read pages as well that NT keeps in RAM without telling
// the hardware: those in transition to the page file or back, and those shared
// by a prototype entry.
func (n *NT) SoftPages(as *vitrine.AddressSpace) *vitrine.AddressSpace {
	return as.WithSoftPages(func(f *vitrine.FaultError) (arch.GPA, bool) { return n.softPage(as.Mode(), f) })
}

// Bits of an entry whose valid bit is clear: MMPTE_TRANSITION and
// MMPTE_PROTOTYPE, the same in all formats.
const (
	pteSwizzle    = 1 << 4
	ptePrototype  = 1 << 10
	pteTransition = 1 << 11
)

func (n *NT) softPage(mode arch.PagingMode, f *vitrine.FaultError) (arch.GPA, bool) {
	if f.Level != 1 || f.Err != nil {
		return 0, false
	}
	if f.Entry&(pteTransition|ptePrototype) == pteTransition {
		return n.transition(mode, f.Entry)
	}
	if f.Entry&ptePrototype == 0 {
		return 0, false
	}
	at, ok := prototype(mode, f.Entry)
	if !ok {
		return 0, false
	}
	e, err := n.k.space.ReadUint64(at)
	switch {
	case err != nil:
	case e&1 != 0:
		return n.inRAM(arch.GPA(e & 0x000f_ffff_ffff_f000))
	case e&(pteTransition|ptePrototype) == pteTransition:
		return n.transition(mode, e)
	}
	return 0, false
}

// prototype returns where the prototype entry lies that e names. The two-level
// format packs the address by a base that is not known; one that says "ask the
// VAD" has all bits set.
func prototype(mode arch.PagingMode, e uint64) (arch.GVA, bool) {
	at := arch.GVA(int64(e) >> 16)
	if mode == arch.PagingPAE {
		at = arch.GVA(e >> 32)
	}
	return at, mode != arch.Paging32Bit && kernelAddress(at, mode != arch.PagingPAE) && uint32(at) != 0xffff_ffff && uint32(at) != 0xffff_0000
}

// transition returns the page of an entry in transition. Since 10 1803 the
// frame's upper bits are inverted in entries without the swizzle bit, against
// L1TF; those are above all RAM.
func (n *NT) transition(mode arch.PagingMode, e uint64) (arch.GPA, bool) {
	if mode == arch.Paging32Bit {
		return n.inRAM(arch.GPA(e & 0xffff_f000))
	}
	a := arch.GPA(e & 0x0000_ffff_ffff_f000)
	if page, ok := n.inRAM(a); ok || e&pteSwizzle != 0 {
		return page, ok
	}
	top := arch.GPA(0)
	for _, r := range n.k.g.Regions() {
		top = max(top, r.End()-1)
	}
	return n.inRAM(a & (1<<bits.Len64(uint64(top)) - 1))
}

func (n *NT) inRAM(a arch.GPA) (arch.GPA, bool) {
	return a, a != 0 && inRAM(n.k.g.Regions(), a, arch.PageSize)
}

// memoryOf returns an image's memory for package pe.
func memoryOf(as *vitrine.AddressSpace, base arch.GVA) pe.Memory {
	return func(p []byte, rva uint32) int {
		n, _ := as.Read(p, base+arch.GVA(rva))
		return n
	}
}

// readHoles fills p from va; what can't be read is zero.
func readHoles(as *vitrine.AddressSpace, p []byte, va arch.GVA) {
	for len(p) > 0 {
		n := min(len(p), int(arch.PageSize-va%arch.PageSize))
		got, _ := as.Read(p[:n], va)
		clear(p[got:n])
		p, va = p[n:], va+arch.GVA(n)
	}
}

// unicode reads a UNICODE_STRING of the kernel, at most limit bytes of it.
func (n *NT) unicode(as *vitrine.AddressSpace, va arch.GVA, limit int) (string, error) {
	length, err := as.ReadUint16(va)
	if err != nil {
		return "", err
	}
	buffer, err := n.Word(as, va+arch.GVA(n.k.PointerSize()))
	if err != nil {
		return "", err
	}
	b := make([]byte, min(int(length)&^1, limit))
	if _, err := as.Read(b, buffer); err != nil {
		return "", err
	}
	out := make([]rune, 0, len(b)/2)
	for ; len(b) > 1; b = b[2:] {
		out = append(out, rune(binary.LittleEndian.Uint16(b)))
	}
	return string(out), nil
}
