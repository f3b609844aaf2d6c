package pdb

import (
	"encoding/binary"
	"fmt"
	"sort"

	"github.com/vitrine-vmi/vitrine/internal/guestio"
)

// File is a PDB.
type File struct {
	GUID string // 32 upper-case hexadecimal digits
	Age  uint32 // that the image's CodeView record names: of the debug information

	tpi     *types
	publics []public
}

type public struct {
	name string
	rva  uint32
}

// Numbers of streams.
const (
	streamInfo  = 1
	streamTypes = 2
	streamDebug = 3
)

// Parse reads a PDB.
func Parse(b []byte) (*File, error) {
	if len(b) > MaxSize {
		return nil, malformed("%d bytes", len(b))
	}
	m, err := openMSF(b)
	if err != nil {
		return nil, err
	}
	f := &File{}
	if err := f.readInfo(m); err != nil {
		return nil, err
	}
	if err := f.readDebug(m); err != nil {
		return nil, err
	}
	raw, err := m.stream(streamTypes)
	if err != nil {
		return nil, err
	}
	f.tpi, err = readTypes(raw)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (f *File) readInfo(m *msf) error {
	b, err := m.stream(streamInfo)
	if err != nil {
		return err
	}
	if len(b) < 28 {
		return malformed("information stream of %d bytes", len(b))
	}
	f.Age = binary.LittleEndian.Uint32(b[8:])
	g := b[12:28]
	f.GUID = fmt.Sprintf("%08X%04X%04X%X", binary.LittleEndian.Uint32(g), binary.LittleEndian.Uint16(g[4:]), binary.LittleEndian.Uint16(g[6:]), g[8:])
	return nil
}

// Streams that the optional header of the debug information names.
const (
	debugOmapFrom     = 4
	debugSections     = 5
	debugSectionsOrig = 10
	noStream          = 0xffff
)

// readDebug reads the debug information: its age, and the public symbols.
func (f *File) readDebug(m *msf) error {
	b, err := m.stream(streamDebug)
	if err != nil || len(b) == 0 {
		return err // a PDB of types only
	}
	c := guestio.NewCursor(b)
	c.Skip(8)
	f.Age = c.Uint32()
	c.Skip(8)
	symbols := int(c.Uint16())
	c.Skip(2)
	var skip uint64
	for range 5 { // modules, contributions, section map, files, type servers
		skip += uint64(c.Uint32())
	}
	c.Skip(4)
	optional, ec := uint64(c.Uint32()), uint64(c.Uint32())
	if c.Err() != nil {
		return malformed("debug information of %d bytes", len(b))
	}
	start := 64 + skip + ec
	if start+optional > uint64(len(b)) {
		return malformed("debug information: parts of %d bytes in %d", start+optional, len(b))
	}
	other := b[start : start+optional]
	where, err := readPlaces(m, other)
	if err != nil {
		return err
	}
	if symbols == noStream {
		return nil
	}
	records, err := m.stream(symbols)
	if err != nil {
		return err
	}
	f.readPublics(records, where)
	return nil
}

// places turns section and offset into an address behind the image's base.
type places struct {
	sections []uint32 // where they begin
	omap     []byte   // pairs of addresses, sorted, of an image whose code was moved after linking
}

func readPlaces(m *msf, header []byte) (*places, error) {
	index := func(i int) int {
		if 2*i+2 > len(header) {
			return noStream
		}
		return int(binary.LittleEndian.Uint16(header[2*i:]))
	}
	p := &places{}
	sections := index(debugSections)
	if n := index(debugOmapFrom); n != noStream {
		var err error
		if p.omap, err = m.stream(n); err != nil {
			return nil, err
		}
		if n := index(debugSectionsOrig); n != noStream {
			sections = n
		}
	}
	if sections == noStream {
		return p, nil
	}
	b, err := m.stream(sections)
	if err != nil {
		return nil, err
	}
	for ; len(b) >= 40; b = b[40:] { // IMAGE_SECTION_HEADER
		p.sections = append(p.sections, binary.LittleEndian.Uint32(b[12:]))
	}
	return p, nil
}

func (p *places) rva(section uint16, offset uint32) (uint32, bool) {
	if section == 0 || int(section) > len(p.sections) {
		return 0, false
	}
	a := p.sections[section-1] + offset
	n := len(p.omap) / 8
	if n == 0 {
		return a, true
	}
	at := func(i int) uint32 { return binary.LittleEndian.Uint32(p.omap[8*i:]) }
	i := sort.Search(n, func(i int) bool { return at(i) > a }) - 1
	if i < 0 {
		return 0, false
	}
	to := binary.LittleEndian.Uint32(p.omap[8*i+4:])
	return to + a - at(i), to != 0
}

const recordPublic = 0x110e // S_PUB32

// maxPublics bounds the public symbols; kernels have about 40,000.
const maxPublics = 1 << 20

func (f *File) readPublics(b []byte, where *places) {
	c := guestio.NewCursor(b)
	for c.Len() >= 4 && len(f.publics) < maxPublics {
		n := int(c.Uint16())
		r := guestio.NewCursor(c.Bytes(n))
		if c.Err() != nil || n < 2 {
			return
		}
		if r.Uint16() != recordPublic {
			continue
		}
		r.Skip(4)
		offset, section := r.Uint32(), r.Uint16()
		name := r.CString(4096)
		if rva, ok := where.rva(section, offset); ok && r.Err() == nil {
			f.publics = append(f.publics, public{string(name), rva})
		}
	}
}

// Symbols calls yield with every public symbol and its offset from the image's
// base. Names are as the linker has them; what the compiler puts before or
// behind C names on x86 is taken off.
func (f *File) Symbols(yield func(name string, rva uint32)) {
	for _, p := range f.publics {
		yield(undecorate(p.name), p.rva)
	}
}

// undecorate returns the C name of a symbol: _Name (cdecl), _Name@8 (stdcall)
// and @Name@8 (fastcall) are Name. Names of C++ stay as they are.
func undecorate(s string) string {
	if s == "" || s[0] == '?' {
		return s
	}
	name := s
	for i := len(s) - 1; i > 0; i-- {
		if s[i] == '@' && i < len(s)-1 {
			name = s[:i]
			break
		}
		if s[i] < '0' || s[i] > '9' {
			break
		}
	}
	if name[0] == '_' || name[0] == '@' && name != s {
		if len(name) > 1 && (name != s || s[0] == '_') {
			name = name[1:]
		}
	}
	return name
}
