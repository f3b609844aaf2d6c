package kernel

import (
	"context"
	"fmt"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/vmcoreinfo"
)

// An arm64 kernel may lie anywhere in the upper half of its addresses, and QEMU
// tells where its page tables are only to a debugger, for which it stops the
// guest. So the kernel is found by its VMCOREINFO, which tells all of it:
// NUMBER(kimage_voffset) is the distance of the image from physical memory
// (Documentation/admin-guide/kdump/vmcoreinfo.rst). As everywhere, what the text
// says is believed once the page tables and the image agree with it.

// armRoot computes where a note of an arm64 kernel says that its page table lies.
func armRoot(in *vmcoreinfo.Info, swapper, off uint64) (root, bool) {
	bits := 64 - in.Numbers["TCR_EL1_T1SZ"] // 5.9; with 52-bit kernels, what the processor can
	if _, has := in.Numbers["TCR_EL1_T1SZ"]; !has {
		bits = in.Numbers["VA_BITS"]
	}
	if bits < 0 || bits > 64 {
		return root{}, false
	}
	r := root{mode: arch.ARM64Mode(uint(bits)), addr: arch.GPA(swapper - off), from: "vmcoreinfo",
		stext: arch.GVA(in.Symbols["_stext"]), off: off}
	return r, r.mode != arch.PagingOff && r.addr%arch.PageSize == 0 && r.stext>>63 != 0 && r.stext%arch.PageSize == 0
}

// armDirect returns where an arm64 kernel maps physical address 0: it maps
// PHYS_OFFSET to the lowest address of its half, by the bits that it was built
// for. It is 0 where the kernel does not tell, and on x86.
func armDirect(f *found) arch.GVA {
	bits, ok := f.info.Numbers["VA_BITS"]
	start, ok2 := f.info.Numbers["PHYS_OFFSET"]
	if f.root.stext == 0 || !ok || !ok2 || bits < 32 || bits > 52 {
		return 0
	}
	return ^arch.GVA(0)<<bits - arch.GVA(start)
}

// byMemory finds the kernel of a guest whose registers tell no page tables, and
// stops looking when it has the one that a processor runs in. Memory may hold
// notes of earlier boots too: where no processor was seen in the kernel, only the
// lack of a rival tells.
func (d *describer) byMemory(ctx context.Context, seen *sighting) (*found, error) {
	var sure *found
	var roots []root
	at := seen.kernelCode()
	err := eachRoot(ctx, d.g, func(r root) bool {
		roots = append(roots, r)
		if at == 0 {
			return true
		}
		if f, err := tryRoot(d.g, r, d.hints); err == nil && f.image.holds(at) {
			sure = f
		}
		return sure == nil
	})
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("describe guest: %w", ctx.Err())
	case err != nil:
		return nil, notBooted(ctx, d.g, seen, err)
	case sure != nil:
		return sure, nil
	}
	return d.onlyOne(ctx, roots, seen)
}

// look notes what the processors do, where that can be told.
func (d *describer) look(ctx context.Context) *sighting {
	seen := &sighting{}
	for cpu := range min(d.g.CPUs(), maxCPUs) {
		r, err := d.g.Registers(ctx, cpu)
		if err != nil {
			continue // an image, or a processor that runs 32-bit code, of which QEMU prints others
		}
		seen.add(d.g, cpu, r)
	}
	return seen
}

// kernelCode returns an address of kernel code that some processor runs, 0 when
// none was seen in any.
func (s *sighting) kernelCode() arch.GVA {
	if s == nil {
		return 0
	}
	return s.kernel
}

// whereARM describes in words what an AArch64 processor executes.
func whereARM(r *arch.Registers) string {
	switch pc := r.PC(); {
	case r.User():
		return fmt.Sprintf("in a user program at %v", pc)
	case pc>>63 != 0:
		return fmt.Sprintf("in kernel code at %v", pc)
	default:
		return fmt.Sprintf("in code at %v (firmware or boot loader)", pc)
	}
}
