package vitrine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/vitrine-vmi/vitrine/arch"
)

// AddressSpace is a guest's virtual memory as one set of page tables maps it.
// Its methods may be called concurrently.
//
// Translations are cached until Invalidate. A running guest changes its page
// tables at any time, so a reader that meets something torn calls Invalidate
// before it tries again; the address space of a process is best made anew for
// each question.
type AddressSpace struct {
	g    *Guest
	mode arch.PagingMode
	root arch.GPA
	soft SoftPage // nil without

	// Two direct-mapped caches, which Invalidate empties: translations by 4 KiB
	// page, whatever the size of the mapping; and those of large pages by 2 MiB.
	// Kernels map all RAM by large pages, so the second holds most of what is
	// read from their data however it is scattered.
	tlb   [tlbSize]atomic.Pointer[translation]
	large [largeSize]atomic.Pointer[translation]
}

// Sizes of the caches, powers of two.
const (
	tlbSize   = 1024
	largeSize = 256
	largePage = 2 << 20
)

type translation struct {
	page arch.GVA // 4 KiB page, or 2 MiB of a large page
	addr arch.GPA
}

// AddressSpace returns the virtual memory that the page tables at root map.
func (g *Guest) AddressSpace(mode arch.PagingMode, root arch.GPA) *AddressSpace {
	return &AddressSpace{g: g, mode: mode, root: root}
}

// SoftPage tells where a page lies that the hardware would fault on and that is
// in RAM all the same, such as one that an operating system is about to write
// out. The fault carries the entry that was found.
type SoftPage func(f *FaultError) (arch.GPA, bool)

// WithSoftPages returns an address space of the same page tables, with caches
// of its own, that asks soft about each page that is not present. Walk does
// not: it tells what the hardware sees.
func (as *AddressSpace) WithSoftPages(soft SoftPage) *AddressSpace {
	return &AddressSpace{g: as.g, mode: as.mode, root: as.root, soft: soft}
}

// Guest returns the guest that the address space belongs to.
func (as *AddressSpace) Guest() *Guest { return as.g }

// Mode returns the page-table format.
func (as *AddressSpace) Mode() arch.PagingMode { return as.mode }

// Root returns the physical address of the top page table.
func (as *AddressSpace) Root() arch.GPA { return as.root }

// Invalidate forgets every cached translation.
func (as *AddressSpace) Invalidate() {
	for i := range as.tlb {
		as.tlb[i].Store(nil)
	}
	for i := range as.large {
		as.large[i].Store(nil)
	}
}

// Translate returns the physical address of va, from the cache where it can.
// It returns a *FaultError when va is not mapped.
func (as *AddressSpace) Translate(va arch.GVA) (arch.GPA, error) {
	page := va.Page()
	slot := &as.tlb[uint64(page)/arch.PageSize%tlbSize]
	if t := slot.Load(); t != nil && t.page == page {
		return t.addr + arch.GPA(va-page), nil
	}
	big := va &^ (largePage - 1)
	largeSlot := &as.large[uint64(big)/largePage%largeSize]
	if t := largeSlot.Load(); t != nil && t.page == big {
		return t.addr + arch.GPA(va-big), nil
	}
	m, err := as.Walk(va)
	if err != nil {
		return as.softly(va, err)
	}
	if m.Size >= largePage {
		largeSlot.Store(&translation{page: big, addr: m.Addr &^ (largePage - 1)})
	} else {
		slot.Store(&translation{page: page, addr: m.Addr.Page()})
	}
	return m.Addr, nil
}

// softly returns where the page of a fault lies by the word of as.soft. Such
// places are not cached: the next moment may change them.
func (as *AddressSpace) softly(va arch.GVA, err error) (arch.GPA, error) {
	var f *FaultError
	if as.soft == nil || !errors.As(err, &f) {
		return 0, err
	}
	if page, ok := as.soft(f); ok {
		return page.Page() + arch.GPA(va-va.Page()), nil
	}
	return 0, err
}

// Walk translates va by the page tables themselves and tells the page's size
// and permissions too. It returns a *FaultError when va is not mapped.
func (as *AddressSpace) Walk(va arch.GVA) (arch.Mapping, error) {
	return arch.Walk(as.g, as.mode, as.root, va)
}

// Read fills p from va. It returns how many bytes it filled; fewer than len(p)
// comes with an error: a *FaultError where a page is not mapped, a
// *PhysicalError where it is mapped to something that is not RAM.
func (as *AddressSpace) Read(p []byte, va arch.GVA) (int, error) {
	done := 0
	for done < len(p) {
		at := va + arch.GVA(done)
		n := min(len(p)-done, int(arch.PageSize-at%arch.PageSize))
		pa, err := as.Translate(at)
		if err != nil {
			return done, err
		}
		m, err := as.g.ReadPhysical(p[done:done+n], pa)
		done += m
		if err != nil {
			return done, fmt.Errorf("read %v: %w", at, err)
		}
	}
	return done, nil
}

// Write stores p at va: data, never code. It ignores page permissions. After
// an error a first part of p may have been written.
func (as *AddressSpace) Write(p []byte, va arch.GVA) error {
	for done := 0; done < len(p); {
		at := va + arch.GVA(done)
		n := min(len(p)-done, int(arch.PageSize-at%arch.PageSize))
		pa, err := as.Translate(at)
		if err != nil {
			return err
		}
		if err := as.g.WritePhysical(p[done:done+n], pa); err != nil {
			return fmt.Errorf("write %v: %w", at, err)
		}
		done += n
	}
	return nil
}

// ReadUint8 reads one byte.
func (as *AddressSpace) ReadUint8(va arch.GVA) (uint8, error) {
	v, err := as.readUint(va, 1)
	return uint8(v), err
}

// ReadUint16 reads a little-endian 16-bit number.
func (as *AddressSpace) ReadUint16(va arch.GVA) (uint16, error) {
	v, err := as.readUint(va, 2)
	return uint16(v), err
}

// ReadUint32 reads a little-endian 32-bit number.
func (as *AddressSpace) ReadUint32(va arch.GVA) (uint32, error) {
	v, err := as.readUint(va, 4)
	return uint32(v), err
}

// ReadUint64 reads a little-endian 64-bit number.
func (as *AddressSpace) ReadUint64(va arch.GVA) (uint64, error) {
	return as.readUint(va, 8)
}

// ReadPointer reads a pointer of the guest's kernel: 4 or 8 bytes.
func (as *AddressSpace) ReadPointer(va arch.GVA) (arch.GVA, error) {
	v, err := as.readUint(va, max(as.pointerSize(), 4))
	return arch.GVA(v), err
}

// pointerSize goes by the page tables where they tell: a 32-bit kernel may run on
// a 64-bit processor.
func (as *AddressSpace) pointerSize() int {
	if n := as.mode.PointerSize(); n != 0 {
		return n
	}
	return as.g.Arch().PointerSize()
}

// readUint reads a little-endian number of 1 to 8 bytes.
func (as *AddressSpace) readUint(va arch.GVA, size int) (uint64, error) {
	var b [8]byte
	if _, err := as.Read(b[:size], va); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// ErrTooLong is returned with the part that was read when a string does not
// end within the limit.
var ErrTooLong = errors.New("string does not end within the limit")

// ReadString reads bytes up to a NUL, at most limit of them (and at most
// 1 MiB). With an error it returns the bytes before the place that could not
// be read, or the first limit bytes with ErrTooLong.
func (as *AddressSpace) ReadString(va arch.GVA, limit int) (string, error) {
	limit = min(limit, 1<<20)
	var out []byte
	var buf [256]byte
	for len(out) < limit {
		at := va + arch.GVA(len(out))
		n := min(limit-len(out), len(buf), int(arch.PageSize-at%arch.PageSize))
		n, err := as.Read(buf[:n], at)
		if i := bytes.IndexByte(buf[:n], 0); i >= 0 {
			return string(append(out, buf[:i]...)), nil
		}
		out = append(out, buf[:n]...)
		if err != nil {
			return string(out), err
		}
	}
	return string(out), ErrTooLong
}
