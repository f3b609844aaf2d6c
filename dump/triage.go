package dump

import (
	"cmp"
	"encoding/binary"
	"slices"
	"sort"
	"unicode/utf16"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/internal/guestio"
)

// Triage dumps hold blocks by virtual address. So that they are read as every
// other guest is, page tables are made up for them, which map the blocks. They
// take no memory: an entry is computed when it is read, from its address, which
// tells the level of its table and the virtual addresses that it is for.
//
//	bit 51       a made-up table; bits 49-48 its level, the lowest 1;
//	             from bit 12 on its virtual address, shifted right by 12+9*level
//	bit 50       memory: bits 47-0 are those of the virtual address
//	the root     lies where the header's DirectoryTableBase says
const (
	triageTable = 1 << 51
	triageData  = 1 << 50
	triageLevel = 48
	lowBits     = 1<<48 - 1
)

// maxBlocks bounds the blocks of a triage dump; real ones have some thousands.
const maxBlocks = 1 << 20

// vblock is memory by virtual address, cut to its lowest 48 bits.
type vblock struct {
	start, size, off uint64
}

func (v vblock) end() uint64 { return v.start + v.size }

// virtual is memory of which only the virtual addresses are known.
type virtual struct {
	file   blob
	root   uint64
	pae    bool
	blocks []vblock // sorted, without overlap
}

// Places in a TRIAGE_DUMP64; those of the 32-bit one are the same until
// TopOfStack, which is half as wide.
const (
	triageProcess  = 0x20
	triageThread   = 0x24
	triageStack    = 0x28
	triageDrivers  = 0x30
	triageStackTop = 0x48
)

// triageMemory reads the list of blocks of a triage dump.
func (h *winHeader) triageMemory(b blob, c *vitrine.WindowsCrash) (*virtual, error) {
	t := make([]byte, 0x80)
	if _, err := b.readAt(t, h.size); err != nil {
		return nil, malformed("triage header: %v", err)
	}
	u32 := func(at int) uint64 { return uint64(binary.LittleEndian.Uint32(t[at:])) }
	if h.pointer == 4 {
		c.Paging = arch.PagingPAE // whatever the guest used: these are made up
	}
	m := &virtual{file: b, pae: h.pointer == 4}
	m.root = uint64(arch.Root(c.Paging, uint64(c.DirectoryTableBase)))
	if m.root >= triageData || m.root == 0 {
		m.root = arch.PageSize
	}
	c.DirectoryTableBase = arch.GPA(m.root)

	var top, page uint64
	rest := 0x50 + 0x10 // behind TopOfStack and what only IA-64 has
	if h.pointer == 4 {
		top, rest = u32(triageStackTop), 0x4c
	} else {
		top = binary.LittleEndian.Uint64(t[triageStackTop:])
	}
	m.add(top, u32(triageStack+4), u32(triageStack))
	w := h.pointer
	if w == 8 {
		page = binary.LittleEndian.Uint64(t[rest:])
	} else {
		page = u32(rest)
	}
	m.add(page, u32(rest+w+4), u32(rest+w))
	m.add(uint64(c.KdDebuggerDataBlock), u32(rest+w+12), u32(rest+w+8))
	m.addBlocks(u32(rest+w+16), u32(rest+w+20), w)
	if w == 8 {
		c.Process = m.addObject(u32(triageProcess), u32(triageThread))
		c.Thread = m.addObject(u32(triageThread), u32(triageStack))
		c.Drivers = m.drivers(u32(triageDrivers), u32(triageDrivers+4))
	}
	m.settle()
	if len(m.blocks) == 0 {
		return nil, malformed("triage header: it lists no memory")
	}
	return m, nil
}

// add notes a block, as far as the file has it.
func (m *virtual) add(va, size, off uint64) {
	if size == 0 || off == 0 || off >= m.file.size() || len(m.blocks) >= maxBlocks {
		return
	}
	if high := va >> 47; !m.pae && high != 0 && high != 1<<17-1 { // not an address with 4 levels
		return
	}
	size = min(size, m.file.size()-off)
	if va &= lowBits; va+size > lowBits+1 {
		return
	}
	m.blocks = append(m.blocks, vblock{start: va, size: size, off: off})
}

// addBlocks reads the list of n data blocks at off: address, place and size.
func (m *virtual) addBlocks(off, n uint64, pointer int) {
	each := uint64(pointer + 8)
	if n > maxBlocks || off > m.file.size() {
		return
	}
	n = min(n, (m.file.size()-off)/each)
	p, err := bytesOf(m.file, off, n*each, maxBlocks*16)
	if err != nil {
		return
	}
	c := guestio.NewCursor(p)
	for c.Len() >= int(each) {
		var va uint64
		if pointer == 8 {
			va = c.Uint64()
		} else {
			va = uint64(c.Uint32())
		}
		at, size := uint64(c.Uint32()), uint64(c.Uint32())
		m.add(va, size, at)
	}
}

// addObject notes the EPROCESS or ETHREAD that lies from off to end in the
// file, and returns its address. The dump does not tell it, the object does:
// the list of those who wait for it, 8 bytes into its header, is empty and so
// points at itself. It returns 0 where it does not.
func (m *virtual) addObject(off, end uint64) arch.GVA {
	if end <= off || end-off > 64<<10 {
		return 0
	}
	var p [16]byte
	if _, err := m.file.readAt(p[:], off); err != nil {
		return 0
	}
	list, back := binary.LittleEndian.Uint64(p[8:]), uint64(0)
	var q [8]byte
	if _, err := m.file.readAt(q[:], off+16); err == nil {
		back = binary.LittleEndian.Uint64(q[:])
	}
	if list != back || list%16 != 8 || list>>47 != 1<<17-1 {
		return 0
	}
	m.add(list-8, end-off, off)
	return arch.GVA(list - 8)
}

// driverEntry is the size of a DUMP_DRIVER_ENTRY64: the place of the name and a
// KLDR_DATA_TABLE_ENTRY64.
const (
	driverEntry = 0x90
	maxDrivers  = 8192
)

// drivers reads the list of n drivers at off.
func (m *virtual) drivers(off, n uint64) []vitrine.WindowsDriver {
	var out []vitrine.WindowsDriver
	p := make([]byte, driverEntry)
	for i := range min(n, maxDrivers) {
		if _, err := m.file.readAt(p, off+i*driverEntry); err != nil {
			break
		}
		le := binary.LittleEndian
		out = append(out, vitrine.WindowsDriver{
			Name: m.name(uint64(le.Uint32(p))), Base: arch.GVA(le.Uint64(p[0x38:])), Size: uint64(le.Uint32(p[0x48:])),
		})
	}
	return out
}

// name reads a name: its length in characters, and those in UTF-16.
func (m *virtual) name(off uint64) string {
	var p [4 + 2*256]byte
	if _, err := m.file.readAt(p[:4], off); err != nil {
		return ""
	}
	n := min(binary.LittleEndian.Uint32(p[:]), 256)
	if _, err := m.file.readAt(p[4:4+2*n], off+4); err != nil {
		return ""
	}
	units := make([]uint16, n)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(p[4+2*i:])
	}
	return string(utf16.Decode(units))
}

// settle sorts the blocks and cuts what overlaps: of two that hold the same
// address the one that starts first counts.
func (m *virtual) settle() {
	slices.SortStableFunc(m.blocks, func(a, b vblock) int { return cmp.Compare(a.start, b.start) })
	var out []vblock
	end := uint64(0)
	for _, v := range m.blocks {
		if v.start < end {
			cut := min(end-v.start, v.size)
			v.start, v.off, v.size = v.start+cut, v.off+cut, v.size-cut
		}
		if v.size > 0 {
			out = append(out, v)
			end = v.end()
		}
	}
	m.blocks = out
}

// after returns the number of the first block that ends behind va.
func (m *virtual) after(va uint64) int {
	return sort.Search(len(m.blocks), func(k int) bool { return m.blocks[k].end() > va })
}

// holds reports whether any byte from va to the one before end is there.
func (m *virtual) holds(va, end uint64) bool {
	i := m.after(va)
	return i < len(m.blocks) && m.blocks[i].start < end
}

func (m *virtual) read(p []byte, a uint64) (int, error) {
	if level, va, ok := m.table(a); ok {
		return m.readTable(p, a%arch.PageSize, level, va)
	}
	if a&^lowBits != triageData {
		return 0, noRAM(a)
	}
	done := 0
	for done < len(p) {
		va := a&lowBits + uint64(done)
		i := m.after(va)
		if i >= len(m.blocks) || va < m.blocks[i].start {
			return done, missing(a+uint64(done), "no block of the triage dump holds it")
		}
		v := m.blocks[i]
		n := int(min(uint64(len(p)-done), v.end()-va))
		k, err := m.file.readAt(p[done:done+n], v.off+(va-v.start))
		done += k
		if err != nil {
			return done, missing(a+uint64(done), err.Error())
		}
	}
	return done, nil
}

// table returns the level of the made-up table at a and the first virtual
// address that it is for.
func (m *virtual) table(a uint64) (level int, va uint64, ok bool) {
	if page := a &^ (arch.PageSize - 1); page == m.root&^(arch.PageSize-1) && a >= m.root {
		if m.pae {
			return 3, 0, a < m.root+4*8
		}
		return 4, 0, true
	}
	if a&^(triageTable-1) != triageTable {
		return 0, 0, false
	}
	level = int(a >> triageLevel & 3)
	if level == 0 {
		return 0, 0, false
	}
	va = a & lowBits >> 12 << (12 + 9*level)
	return level, va, va <= lowBits
}

// readTable computes the bytes of a made-up table from off on.
func (m *virtual) readTable(p []byte, off uint64, level int, va uint64) (int, error) {
	if m.pae && level == 3 {
		off -= m.root % arch.PageSize
	}
	size := uint64(1) << (12 + 9*(level-1)) // that an entry maps
	for done := 0; done < len(p); {
		at := off + uint64(done)
		if at >= arch.PageSize {
			return done, noRAM(m.root)
		}
		var e [8]byte
		first := va + at/8*size
		if m.holds(first, first+size) {
			binary.LittleEndian.PutUint64(e[:], m.entry(level, first))
		}
		done += copy(p[done:], e[at%8:])
	}
	return len(p), nil
}

// entry returns the entry of a table of that level for what is mapped from va.
func (m *virtual) entry(level int, va uint64) uint64 {
	const present, writable, noExec = 1, 2, 1 << 63
	switch {
	case level == 1:
		return triageData | va | present | writable | noExec
	case m.pae && level == 3: // it has no permission bits
		return m.tableAddress(level-1, va) | present
	}
	return m.tableAddress(level-1, va) | present | writable
}

func (m *virtual) tableAddress(level int, va uint64) uint64 {
	return triageTable | uint64(level)<<triageLevel | va>>(12+9*level)<<12
}

// slice returns memory only: tables are nowhere.
func (m *virtual) slice(a, n uint64) []byte {
	if a&^lowBits != triageData {
		return nil
	}
	va := a & lowBits
	i := m.after(va)
	if i >= len(m.blocks) || va < m.blocks[i].start || n > m.blocks[i].end()-va {
		return nil
	}
	return m.file.slice(m.blocks[i].off+(va-m.blocks[i].start), n)
}

func (m *virtual) regions() []vitrine.Region {
	var out regionList
	for _, v := range m.blocks {
		out.add(triageData|v.start, v.size)
	}
	return out
}
