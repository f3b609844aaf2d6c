package vitrinetest

import (
	"encoding/binary"
	"fmt"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Perm is the permissions of a mapping.
type Perm uint8

// Permission bits. Without any a page is for the kernel, read-only, executable.
const (
	Writable Perm = 1 << iota
	User
	NoExec
)

// Page-table entry bits, by the Intel SDM volume 3A, table 4-20; written down
// here once more, so that the tables do not come from the walker under test.
const (
	pteTable  = 0x7 // present, writable, user: the leaf alone restricts
	pteLarge  = 1 << 7
	pteNoExec = 1 << 63
	pteAddr   = 0x000f_ffff_ffff_f000
)

// Page sizes that Space.MapTo takes, in bytes.
const (
	Page4K = 1 << 12
	Page2M = 1 << 21
	Page1G = 1 << 30
)

// form is a page-table format.
type form struct {
	entry  int    // bytes
	shifts []uint // of the index of each level, the top first
	top    uint   // entries of the top table
	arm    bool
}

// By the SDM, volume 3A, figures 4-2, 4-5, 4-8 and 4-11, and the Arm ARM, figure
// D8-5 and those behind it.
var forms = map[arch.PagingMode]form{
	arch.Paging32Bit:     {4, []uint{22, 12}, 1024, false},
	arch.PagingPAE:       {8, []uint{30, 21, 12}, 4, false},
	arch.Paging4Level:    {8, []uint{39, 30, 21, 12}, 512, false},
	arch.Paging5Level:    {8, []uint{48, 39, 30, 21, 12}, 512, false},
	arch.PagingARM48:     {8, []uint{39, 30, 21, 12}, 512, true},
	arch.PagingARM48User: {8, []uint{39, 30, 21, 12}, 512, true},
}

// Space is a set of page tables under construction: x86 ones, or one half of
// AArch64's.
type Space struct {
	b    *Backend
	mode arch.PagingMode
	form form
	root arch.GPA
}

// NewSpace returns empty page tables. A mode without page tables panics.
func (b *Backend) NewSpace(mode arch.PagingMode) *Space {
	f, ok := forms[mode]
	if !ok {
		panic(fmt.Sprintf("vitrinetest: no page tables for mode %v", mode))
	}
	return &Space{b: b, mode: mode, form: f, root: b.Alloc(1)}
}

// Root returns the physical address of the top table.
func (s *Space) Root() arch.GPA { return s.root }

// Mode returns the page-table format.
func (s *Space) Mode() arch.PagingMode { return s.mode }

// Share makes the upper half of s that of other, as every process shares the
// kernel's. Tables that other gets under a new top entry later are not seen.
func (s *Space) Share(other *Space) {
	half := make([]byte, int(s.form.top)*s.form.entry/2)
	s.b.mustRead(half, other.root+arch.GPA(len(half)))
	s.b.PutPhysical(s.root+arch.GPA(len(half)), half)
}

// Map maps size bytes (rounded up to pages) at va, which must be page-aligned,
// to fresh zeroed memory, and returns its physical address.
func (s *Space) Map(va arch.GVA, size uint64, perm Perm) arch.GPA {
	n := (size + Page4K - 1) / Page4K
	pa := s.b.Alloc(int(n))
	for i := range n {
		s.MapTo(va+arch.GVA(i*Page4K), pa+arch.GPA(i*Page4K), Page4K, perm)
	}
	return pa
}

// MapTo maps one page of the given size at va to pa: 4 KiB, or where the format
// has them 2 MiB and 1 GiB.
func (s *Space) MapTo(va arch.GVA, pa arch.GPA, size uint64, perm Perm) {
	level := map[uint64]int{Page4K: 1, Page2M: 2, Page1G: 3}[size]
	if level == 0 || uint64(va)%size != 0 || uint64(pa)%size != 0 || level > 1 && s.form.entry == 4 {
		panic(fmt.Sprintf("vitrinetest: map %v to %v with a page of %#x bytes", va, pa, size))
	}
	if s.form.arm {
		s.put(s.slot(va, level), armLeaf(pa, level, perm))
		return
	}
	s.put(s.slot(va, level), leaf(pa, level, perm))
}

// Unmap makes the page at va not present; it must be mapped by a 4 KiB page,
// or not at all.
func (s *Space) Unmap(va arch.GVA) { s.PutEntry(va, 0) }

// PutEntry makes e the lowest entry for va, whatever it says.
func (s *Space) PutEntry(va arch.GVA, e uint64) { s.put(s.slot(va, 1), e) }

func (s *Space) put(at arch.GPA, e uint64) {
	s.b.PutPhysical(at, binary.LittleEndian.AppendUint64(nil, e)[:s.form.entry])
}

func leaf(pa arch.GPA, level int, perm Perm) uint64 {
	e := uint64(pa) | 1
	if perm&Writable != 0 {
		e |= 1 << 1
	}
	if perm&User != 0 {
		e |= 1 << 2
	}
	if perm&NoExec != 0 {
		e |= pteNoExec
	}
	if level > 1 {
		e |= pteLarge
	}
	return e
}

// Bits of AArch64 descriptors (Arm ARM, D8.3); those of a table restrict nothing.
const (
	armTable  = 3
	armUser   = 1 << 6
	armRead   = 1 << 7 // not writable
	armAccess = 1 << 10
	armNoExec = 3 << 53
	armAddr   = 0x0000_ffff_ffff_f000
)

func armLeaf(pa arch.GPA, level int, perm Perm) uint64 {
	e := uint64(pa) | 1 | armAccess
	if level == 1 {
		e |= armTable
	}
	if perm&Writable == 0 {
		e |= armRead
	}
	if perm&User != 0 {
		e |= armUser
	}
	if perm&NoExec != 0 {
		e |= armNoExec
	}
	return e
}

// slot returns the address of the entry for va at a level (1 the lowest), and
// makes the tables above it.
func (s *Space) slot(va arch.GVA, level int) arch.GPA {
	table, entries := s.root, uint64(s.form.top)
	for i, shift := range s.form.shifts {
		at := table + arch.GPA(uint64(va)>>shift%entries*uint64(s.form.entry))
		if len(s.form.shifts)-i == level {
			return at
		}
		table = s.child(at, i)
		entries = arch.PageSize / uint64(s.form.entry)
	}
	panic(fmt.Sprintf("vitrinetest: no level %d in mode %v", level, s.mode))
}

// child returns the table that an entry leads to, and makes it where there is
// none. The top entries of PAE have no permission bits.
func (s *Space) child(slot arch.GPA, depth int) arch.GPA {
	p := make([]byte, 8)
	s.b.mustRead(p[:s.form.entry], slot)
	if e := binary.LittleEndian.Uint64(p); e&1 != 0 {
		if s.form.arm {
			return arch.GPA(e & armAddr)
		}
		return arch.GPA(e & pteAddr)
	}
	t := s.b.Alloc(1)
	flags := uint64(pteTable)
	switch {
	case s.form.arm:
		flags = armTable
	case s.mode == arch.PagingPAE && depth == 0:
		flags = 1
	}
	s.put(slot, uint64(t)|flags)
	return t
}

// Phys returns the physical address of va, by the tables. It panics when va is
// not mapped.
func (s *Space) Phys(va arch.GVA) arch.GPA {
	m, err := arch.Walk(silent{s.b}, s.mode, s.root, va)
	if err != nil {
		panic(fmt.Sprintf("vitrinetest: %v", err))
	}
	return m.Addr
}

// Put stores p at va. It panics where va is not mapped.
func (s *Space) Put(va arch.GVA, p []byte) {
	for len(p) > 0 {
		n := min(len(p), int(Page4K-va%Page4K))
		s.b.PutPhysical(s.Phys(va), p[:n])
		p, va = p[n:], va+arch.GVA(n)
	}
}

// PutUint stores the lowest size bytes of v at va, little-endian.
func (s *Space) PutUint(va arch.GVA, v uint64, size int) {
	s.Put(va, binary.LittleEndian.AppendUint64(nil, v)[:size])
}

// PutUint64 stores a little-endian 64-bit number at va.
func (s *Space) PutUint64(va arch.GVA, v uint64) { s.PutUint(va, v, 8) }

// PutUint32 stores a little-endian 32-bit number at va.
func (s *Space) PutUint32(va arch.GVA, v uint32) { s.PutUint(va, uint64(v), 4) }

// PutString stores str and a NUL at va.
func (s *Space) PutString(va arch.GVA, str string) { s.Put(va, append([]byte(str), 0)) }

// Uint64 reads a little-endian 64-bit number back.
func (s *Space) Uint64(va arch.GVA) uint64 {
	var b [8]byte
	for i := range b {
		s.b.mustRead(b[i:i+1], s.Phys(va+arch.GVA(i)))
	}
	return binary.LittleEndian.Uint64(b[:])
}

// silent reads a backend's memory without log, faults and hook.
type silent struct{ b *Backend }

func (r silent) ReadPhysical(p []byte, a arch.GPA) (int, error) {
	return r.b.each(p, a, func(part []byte, frame arch.GFN, off int) {
		if page := r.b.pages[frame]; page != nil {
			copy(part, page[off:])
		} else {
			clear(part)
		}
	})
}

func (b *Backend) mustRead(p []byte, a arch.GPA) {
	if _, err := (silent{b}).ReadPhysical(p, a); err != nil {
		panic(fmt.Sprintf("vitrinetest: %v", err))
	}
}
