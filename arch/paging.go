package arch

import (
	"encoding/binary"
	"fmt"
)

// PagingMode names a page-table format.
type PagingMode uint8

// The formats that the walker knows.
const (
	PagingOff    PagingMode = iota // CR0.PG clear: a virtual address is a physical one
	Paging32Bit                    // x86 two-level, 4 KiB and 4 MiB pages
	PagingPAE                      // x86 three-level with 64-bit entries
	Paging4Level                   // x86-64, 48-bit addresses
	Paging5Level                   // x86-64 with LA57, 57-bit addresses

	// AArch64 has two roots at a time: TTBR1 for addresses at the top, the
	// kernel's half, and TTBR0 for those at the bottom, a program's. Each is a
	// format of its own, of 4 KiB granules and so many bits of address.
	PagingARM39
	PagingARM39User
	PagingARM48
	PagingARM48User
	PagingARM52 // with FEAT_LPA2, which widens physical addresses too
	PagingARM52User
)

var pagingNames = [...]string{"off", "32-bit", "PAE", "4-level", "5-level",
	"arm64 39-bit", "arm64 39-bit user", "arm64 48-bit", "arm64 48-bit user", "arm64 52-bit", "arm64 52-bit user"}

// String returns the format's name as `vitrine info` prints it.
func (m PagingMode) String() string {
	if int(m) < len(pagingNames) {
		return pagingNames[m]
	}
	return fmt.Sprintf("paging(%d)", uint8(m))
}

// User returns the format of a program's own page tables on a processor whose
// kernel uses m: m itself where one root maps both.
func (m PagingMode) User() PagingMode {
	switch m {
	case PagingARM39, PagingARM48, PagingARM52:
		return m + 1
	}
	return m
}

// PointerSize returns the size in bytes of pointers of a kernel that uses the
// format, 0 for PagingOff.
func (m PagingMode) PointerSize() int {
	switch m {
	case PagingOff:
		return 0
	case Paging32Bit, PagingPAE:
		return 4
	}
	return 8
}

// PhysicalReader reads guest-physical memory. It fills p from address a and
// returns how many bytes it filled; fewer than len(p) comes with an error.
type PhysicalReader interface {
	ReadPhysical(p []byte, a GPA) (int, error)
}

// Mapping is what the page tables say of one virtual address.
type Mapping struct {
	Addr     GPA    // the physical address of the virtual address that was asked for
	Size     uint64 // size of the page that maps it, in bytes
	Writable bool   // writable at every level
	User     bool   // reachable from user mode at every level
	NoExec   bool   // execution forbidden at any level; on AArch64 to the half's owner
}

// FaultError is returned when a guest-virtual address is not mapped. It tells
// of the guest, never of a lost connection.
type FaultError struct {
	Addr  GVA // the address that was asked for
	Root  GPA // the page-table root that it was asked of
	Level int // the level whose entry was not present, 1 the lowest; 0 when the address itself cannot exist
	// Entry is that entry as it stands in memory, 0 when it was not read. What
	// it means is the operating system's affair: it may tell where the page is.
	Entry uint64
	Err   error
}

// Error describes the fault with the address, the root and the level.
func (e *FaultError) Error() string {
	switch {
	case e.Err != nil:
		return fmt.Sprintf("translate %v: page table at level %d (root %v): %v", e.Addr, e.Level, e.Root, e.Err)
	case e.Level == 0:
		return fmt.Sprintf("translate %v: no such address in this paging mode (root %v)", e.Addr, e.Root)
	}
	return fmt.Sprintf("translate %v: not present at level %d (root %v)", e.Addr, e.Level, e.Root)
}

// Unwrap returns the error of the physical read that failed, nil when the
// entry was read and is not present.
func (e *FaultError) Unwrap() error { return e.Err }

// level describes one level of a page-table format.
type level struct {
	shift uint // lowest bit of the index in the virtual address
	bits  uint // width of the index
	large bool // bit 7 of the entry makes it a page of 1<<shift bytes
	plain bool // the entry has no permission bits (the PAE page-directory-pointer table)
}

// format describes one page-table format, top level first.
type format struct {
	entry    int    // bytes of an entry
	rootMask uint64 // bits of CR3 that hold the root
	addrMask uint64 // bits of an entry that hold an address
	vaBits   uint   // bits of a virtual address, sign-extended where canonical
	canon    bool   // higher bits must repeat the top one
	levels   []level
	arm      *armFormat // nil for x86
}

// Sources: Intel SDM volume 3A (2024-06), tables 4-3 (32-bit), 4-8 (PAE) and
// section 4.5 (4-level and 5-level); AMD APM volume 2, section 5.3.
const (
	bitPresent  = 1 << 0
	bitWritable = 1 << 1
	bitUser     = 1 << 2
	bitLarge    = 1 << 7
	bitNoExec   = 1 << 63
	mask52      = 0x000f_ffff_ffff_f000
)

var formats = [...]*format{
	Paging32Bit: {entry: 4, rootMask: 0xffff_f000, addrMask: 0xffff_f000, vaBits: 32,
		levels: []level{{shift: 22, bits: 10, large: true}, {shift: 12, bits: 10}}},
	PagingPAE: {entry: 8, rootMask: 0xffff_ffe0, addrMask: mask52, vaBits: 32,
		levels: []level{{shift: 30, bits: 2, plain: true}, {shift: 21, bits: 9, large: true}, {shift: 12, bits: 9}}},
	Paging4Level: {entry: 8, rootMask: mask52, addrMask: mask52, vaBits: 48, canon: true, levels: longLevels[1:]},
	Paging5Level: {entry: 8, rootMask: mask52, addrMask: mask52, vaBits: 57, canon: true, levels: longLevels},

	PagingARM39:     armFormatOf(39, false, false),
	PagingARM39User: armFormatOf(39, true, false),
	PagingARM48:     armFormatOf(48, false, false),
	PagingARM48User: armFormatOf(48, true, false),
	PagingARM52:     armFormatOf(52, false, true),
	PagingARM52User: armFormatOf(52, true, true),
}

var longLevels = []level{{shift: 48, bits: 9}, {shift: 39, bits: 9}, {shift: 30, bits: 9, large: true}, {shift: 21, bits: 9, large: true}, {shift: 12, bits: 9}}

// formatOf returns nil for PagingOff and for a mode that does not exist.
func formatOf(mode PagingMode) *format {
	if int(mode) < len(formats) {
		return formats[mode]
	}
	return nil
}

// Root returns the physical address of the top page table that the value of
// CR3, or of TTBR0 and TTBR1, names in the given mode; the PCID or ASID and
// flag bits are dropped.
func Root(mode PagingMode, register uint64) GPA {
	f := formatOf(mode)
	switch {
	case f == nil:
		return 0
	case f.arm != nil:
		return f.arm.root(register & f.rootMask)
	}
	return GPA(register & f.rootMask)
}

// Walk translates va by the page tables at root. It reads at most one entry a
// level, so it ends whatever the tables hold. It returns a *FaultError when va
// is not mapped, or when a table itself cannot be read.
func Walk(r PhysicalReader, mode PagingMode, root GPA, va GVA) (Mapping, error) {
	if mode == PagingOff {
		return Mapping{Addr: GPA(va), Size: PageSize, Writable: true, User: true}, nil
	}
	f := formatOf(mode)
	if f == nil || !f.holds(va) {
		return Mapping{}, &FaultError{Addr: va, Root: root}
	}
	m := Mapping{Writable: true, User: true}
	table := root
	for i, l := range f.levels {
		n := len(f.levels) - i
		e, err := f.read(r, table, l, va)
		present, leaf := f.kind(e, l, n == 1)
		if err != nil || !present {
			return Mapping{}, &FaultError{Addr: va, Root: root, Level: n, Entry: e, Err: err}
		}
		f.restrict(&m, e, l, leaf)
		if leaf {
			m.Size = 1 << l.shift
			m.Addr = f.page(e, l) | GPA(uint64(va)&(m.Size-1))
			return m, nil
		}
		table = f.address(e)
	}
	panic("unreachable: the last level always returns")
}

// kind tells whether an entry maps anything, and whether what it maps is a page
// rather than a table.
func (f *format) kind(e uint64, l level, last bool) (present, leaf bool) {
	switch {
	case e&bitPresent == 0:
		return false, false
	case f.arm != nil:
		return armKind(e, l, last)
	}
	return true, last || l.large && e&bitLarge != 0
}

// address returns the address that an entry holds.
func (f *format) address(e uint64) GPA {
	if f.arm != nil {
		return f.arm.address(e, f.addrMask)
	}
	return GPA(e & f.addrMask)
}

// holds reports whether va can exist in the format.
func (f *format) holds(va GVA) bool {
	if f.arm != nil {
		return f.arm.holds(va, f.vaBits)
	}
	if f.canon {
		top := int64(va) >> (f.vaBits - 1)
		return top == 0 || top == -1
	}
	return uint64(va)>>f.vaBits == 0
}

func (f *format) read(r PhysicalReader, table GPA, l level, va GVA) (uint64, error) {
	var buf [8]byte
	index := uint64(va) >> l.shift & (1<<l.bits - 1)
	if _, err := r.ReadPhysical(buf[:f.entry], table+GPA(index*uint64(f.entry))); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(buf[:]), nil
}

// restrict narrows the permissions by one entry: x86 ANDs writable and user
// over the levels and ORs no-execute (SDM 3A, 4.6).
func (f *format) restrict(m *Mapping, e uint64, l level, leaf bool) {
	switch {
	case f.arm != nil:
		f.arm.restrict(m, e, leaf)
	case !l.plain:
		m.Writable = m.Writable && e&bitWritable != 0
		m.User = m.User && e&bitUser != 0
		m.NoExec = m.NoExec || (f.entry == 8 && e&bitNoExec != 0)
	}
}

// page returns the address of the page that a leaf entry maps.
func (f *format) page(e uint64, l level) GPA {
	size := uint64(1) << l.shift
	if f.entry == 4 && l.shift == 22 {
		// PSE-36: bits 13 to 20 of a 4 MiB entry are bits 32 to 39 of the address.
		return GPA(e&0xffc0_0000 | e>>13&0xff<<32)
	}
	return f.address(e) &^ GPA(size-1)
}
