package kernel

import (
	"errors"
	"fmt"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// The range in which x86-64 Linux maps its image, wherever KASLR put it
// (Documentation/arch/x86/x86_64/mm.rst; KERNEL_IMAGE_SIZE is at most 1 GiB).
const (
	imageLow  arch.GVA = 0xffff_ffff_8000_0000
	imageHigh arch.GVA = 0xffff_ffff_c000_0000
)

// A real image is between a few MiB and about 100 MiB; what is mapped beyond
// maxImage is not looked at. During early boot the kernel maps 512 MiB or 1 GiB
// regardless of its size, from its first byte on.
const (
	minImage = 2 << 20
	maxImage = 192 << 20
	maxRuns  = 4096
)

// run is a piece of the kernel image that is contiguous in virtual and in
// physical memory and has one set of permissions.
type run struct {
	va       arch.GVA
	pa       arch.GPA
	size     uint64
	writable bool
	noExec   bool
}

func (r run) end() arch.GVA { return r.va + arch.GVA(r.size) }

// image is what one set of page tables maps where a Linux kernel has its image.
type image struct {
	g    *vitrine.Guest
	low  arch.GVA // where it was looked for: pointers from here on lead to no memory but it
	mode arch.PagingMode
	root arch.GPA
	runs []run  // in address order
	size uint64 // bytes of all runs
}

// errNoImage is returned when page tables map no Linux kernel image.
var errNoImage = errors.New("page tables map no kernel image at 0xffffffff80000000")

// span is where an image is looked for.
func (r root) span() (low, high arch.GVA) {
	if r.stext == 0 {
		return imageLow, imageHigh
	}
	if r.is32() {
		return r.stext, min(r.stext+maxImage32, end32)
	}
	return r.stext, r.stext + maxImage
}

// belongs reports whether what is mapped at va is part of the image. That of
// arm64 is one piece of physical memory, between modules and the vmalloc area.
func (r root) belongs(va arch.GVA, pa arch.GPA) bool {
	return r.stext == 0 || uint64(va)-uint64(pa) == r.off
}

// noImage is the error for page tables without the image.
func (r root) noImage() error {
	if r.stext == 0 {
		return errNoImage
	}
	return fmt.Errorf("page tables at %v map no kernel image at %v, as vmcoreinfo has it", r.addr, r.stext)
}

// mapImage lists what the page tables at a root map of the kernel image.
func mapImage(g *vitrine.Guest, at root) (*image, error) {
	low, high := at.span()
	im := &image{g: g, low: low, mode: at.mode, root: at.addr}
	tables := &tableReader{r: g, pages: map[arch.GPA]*[arch.PageSize]byte{}}
	ram := g.Regions()
	if at.stext != 0 { // most notes that are none of a kernel's end here
		if m, err := arch.Walk(tables, at.mode, at.addr, at.stext); err != nil || !at.belongs(at.stext, m.Addr) {
			return nil, at.noImage()
		}
	}
	for va := low; va < high && im.size < maxImage; {
		m, err := arch.Walk(tables, at.mode, at.addr, va)
		if err != nil {
			va = nextAfterFault(va, high, err)
			continue
		}
		m.Size = max(m.Size, arch.PageSize)
		start := va &^ arch.GVA(m.Size-1)
		size := min(m.Size-uint64(va-start), maxImage)
		if inRAM(ram, m.Addr, size) && at.belongs(va, m.Addr) {
			im.add(run{va: va, pa: m.Addr, size: size, writable: m.Writable, noExec: m.NoExec})
		}
		va = start + arch.GVA(m.Size)
		if len(im.runs) > maxRuns {
			return nil, at.noImage()
		}
	}
	if im.size < minImage {
		return nil, at.noImage()
	}
	return im, nil
}

// inRAM reports whether n bytes at a lie in one region of guest memory.
func inRAM(ram []vitrine.Region, a arch.GPA, n uint64) bool {
	for _, r := range ram {
		if a >= r.Start && n <= r.Size && uint64(a-r.Start) <= r.Size-n {
			return true
		}
	}
	return false
}

// nextAfterFault returns where to go on when va is not mapped: behind all that
// the missing entry would have mapped.
func nextAfterFault(va, high arch.GVA, err error) arch.GVA {
	var fault *arch.FaultError
	if !errors.As(err, &fault) || fault.Level == 0 {
		return high
	}
	size := arch.GVA(1) << (12 + 9*(fault.Level-1))
	next := va&^(size-1) + size
	if next <= va { // wrapped around the end of the address space
		return high
	}
	return next
}

// add appends r, joining it to the last run where they continue each other.
func (im *image) add(r run) {
	im.size += r.size
	if n := len(im.runs); n > 0 {
		last := &im.runs[n-1]
		if last.end() == r.va && last.pa+arch.GPA(last.size) == r.pa &&
			last.writable == r.writable && last.noExec == r.noExec {
			last.size += r.size
			return
		}
	}
	im.runs = append(im.runs, r)
}

// base returns the lowest mapped address: the kernel's _text once the kernel
// has tidied up its first page tables.
func (im *image) base() arch.GVA { return im.runs[0].va }

// bytes returns the memory of a run: the guest's own where the backend has it
// mapped, else a copy in buf. Parts that cannot be read are zero.
func (im *image) bytes(r run, buf []byte) (p, reuse []byte) {
	if p := im.g.MapPhysical(r.pa, r.size); p != nil {
		return p, buf
	}
	if uint64(cap(buf)) < r.size {
		buf = make([]byte, r.size)
	}
	buf = buf[:r.size]
	const chunk = 1 << 20
	for at := uint64(0); at < r.size; at += chunk {
		part := buf[at:min(at+chunk, r.size)]
		n, _ := im.g.ReadPhysical(part, r.pa+arch.GPA(at))
		clear(part[n:])
	}
	return buf, buf
}

// byTrust returns the runs in the order in which to search them: constant
// data first, then what is writable. The kernel's tables are read-only once
// it has booted, while memory that it freed and user programs may since own
// stays mapped in the image as writable.
func (im *image) byTrust() []run {
	order := make([]run, 0, len(im.runs))
	for _, want := range []func(run) bool{
		func(r run) bool { return !r.writable && r.noExec },
		func(r run) bool { return !r.writable && !r.noExec },
		func(r run) bool { return r.writable },
	} {
		for _, r := range im.runs {
			if want(r) {
				order = append(order, r)
			}
		}
	}
	return order
}

// tableReader reads page tables and keeps each page that it has read, for walks
// over neighbouring addresses.
type tableReader struct {
	r     arch.PhysicalReader
	pages map[arch.GPA]*[arch.PageSize]byte
}

const maxTablePages = 2048

// ReadPhysical implements arch.PhysicalReader for reads within a page.
func (t *tableReader) ReadPhysical(p []byte, a arch.GPA) (int, error) {
	page := a.Page()
	b := t.pages[page]
	if b == nil {
		b = new([arch.PageSize]byte)
		if _, err := t.r.ReadPhysical(b[:], page); err != nil {
			return 0, err
		}
		if len(t.pages) >= maxTablePages {
			clear(t.pages)
		}
		t.pages[page] = b
	}
	return copy(p, b[a-page:]), nil
}
