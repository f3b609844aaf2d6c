// Package pe reads a Windows executable image as it lies in a guest's memory:
// by relative virtual addresses, some of its pages missing.
//
// References are to Microsoft's PE format specification. The bytes are the
// guest's, so everything is bounded and nothing is allocated because they say
// so; a page that can't be read counts as zeros, and what lies in it is told as
// missing. An Image keeps no state but what Read found and may be used
// concurrently as far as its Memory may.
package pe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Memory reads p from rva bytes behind the image's base. It returns how many
// bytes it filled before the first that can't be read.
type Memory func(p []byte, rva uint32) int

// Errors of reading an image.
var (
	// ErrFormat is returned for what is no image.
	ErrFormat = errors.New("not a PE image")
	// ErrAbsent is returned when the image has no such part.
	ErrAbsent = errors.New("image has no such part")
	// ErrPagedOut is returned when the part lies in pages that are not in memory.
	ErrPagedOut = errors.New("paged out")
)

// Machine types of the header.
const (
	I386  = 0x14c
	AMD64 = 0x8664
	ARM64 = 0xaa64
)

// Limits, above what Windows's own images have.
const (
	maxSize     = 1 << 28
	maxSections = 96
	maxExports  = 1 << 16
	maxName     = 512
	maxForward  = 256
	pageSize    = 4096
)

// Section is one section of an image.
type Section struct {
	Name       string // at most 8 bytes
	RVA, Size  uint32 // where it lies in memory
	Executable bool
	Writable   bool
	Discard    bool // it may have been taken out after start
}

// Image is the header of an image.
type Image struct {
	Machine   uint16
	Plus      bool   // PE32+: 64 bits
	TimeStamp uint32 // of the link; together with Size the name of the file in a symbol store
	Size      uint32 // of the image in memory, in bytes
	Entry     uint32 // RVA of the entry point
	Base      uint64 // the base that the header has; the loader of NT writes the true one there
	Sections  []Section

	mem  Memory
	dirs [16][2]uint32 // RVA and size
}

// Directories of the optional header.
const (
	dirExport   = 0
	dirResource = 2
	dirDebug    = 6
)

// Read reads the headers of an image.
func Read(mem Memory) (*Image, error) {
	var dos [64]byte
	if mem(dos[:], 0) < len(dos) || dos[0] != 'M' || dos[1] != 'Z' {
		return nil, fmt.Errorf("read DOS header: %w", ErrFormat)
	}
	at := binary.LittleEndian.Uint32(dos[60:])
	if at < 4 || at > pageSize-24 {
		return nil, fmt.Errorf("read PE header at %#x: %w", at, ErrFormat)
	}
	var coff [24]byte
	if mem(coff[:], at) < len(coff) || string(coff[:4]) != "PE\x00\x00" {
		return nil, fmt.Errorf("read PE header at %#x: %w", at, ErrFormat)
	}
	im := &Image{mem: mem, Machine: binary.LittleEndian.Uint16(coff[4:]), TimeStamp: binary.LittleEndian.Uint32(coff[8:])}
	sections, optional := int(binary.LittleEndian.Uint16(coff[6:])), int(binary.LittleEndian.Uint16(coff[20:]))
	if err := im.readOptional(at+24, optional); err != nil {
		return nil, err
	}
	return im, im.readSections(at+24+uint32(optional), sections)
}

func (im *Image) readOptional(at uint32, n int) error {
	if n < 96 || n > 1024 {
		return fmt.Errorf("read optional header of %d bytes: %w", n, ErrFormat)
	}
	b := make([]byte, n)
	if im.mem(b, at) < n {
		return fmt.Errorf("read optional header: %w", ErrPagedOut)
	}
	dirs := 92
	switch binary.LittleEndian.Uint16(b) {
	case 0x10b:
		im.Base = uint64(binary.LittleEndian.Uint32(b[28:]))
	case 0x20b:
		im.Plus, dirs = true, 108
		im.Base = binary.LittleEndian.Uint64(b[24:])
	default:
		return fmt.Errorf("read optional header with magic %#x: %w", b[:2], ErrFormat)
	}
	im.Entry = binary.LittleEndian.Uint32(b[16:])
	im.Size = binary.LittleEndian.Uint32(b[56:])
	if im.Size < pageSize || im.Size > maxSize || len(b) < dirs+4 {
		return fmt.Errorf("read optional header: image of %#x bytes: %w", im.Size, ErrFormat)
	}
	have := int(min(binary.LittleEndian.Uint32(b[dirs:]), uint32(len(im.dirs))))
	for i := range have {
		p := dirs + 4 + 8*i
		if p+8 > len(b) {
			break
		}
		im.dirs[i] = [2]uint32{binary.LittleEndian.Uint32(b[p:]), binary.LittleEndian.Uint32(b[p+4:])}
	}
	return nil
}

// Flags of a section.
const (
	sectionDiscard = 0x0200_0000
	sectionExecute = 0x2000_0000
	sectionWrite   = 0x8000_0000
)

func (im *Image) readSections(at uint32, n int) error {
	if n > maxSections {
		return fmt.Errorf("read section headers: %d of them: %w", n, ErrFormat)
	}
	b := make([]byte, 40*n)
	got := im.mem(b, at)
	for i := range got / 40 {
		h := b[40*i:]
		s := Section{
			Name: strings.TrimRight(string(h[:8]), "\x00"),
			Size: binary.LittleEndian.Uint32(h[8:]), RVA: binary.LittleEndian.Uint32(h[12:]),
		}
		if s.RVA >= im.Size || s.Size > im.Size-s.RVA {
			continue // lies outside of its own image
		}
		flags := binary.LittleEndian.Uint32(h[36:])
		s.Discard, s.Executable, s.Writable = flags&sectionDiscard != 0, flags&sectionExecute != 0, flags&sectionWrite != 0
		im.Sections = append(im.Sections, s)
	}
	return nil
}

// dir returns where a directory lies.
func (im *Image) dir(i int) (rva, size uint32, err error) {
	rva, size = im.dirs[i][0], im.dirs[i][1]
	if rva == 0 || size == 0 {
		return 0, 0, ErrAbsent
	}
	if rva >= im.Size || size > im.Size-rva {
		return 0, 0, fmt.Errorf("directory of %#x bytes at %#x: %w", size, rva, ErrFormat)
	}
	return rva, size, nil
}

// read fills p from rva, page by page; what can't be read is zero. It returns
// how many pages that were.
func (im *Image) read(p []byte, rva uint32) (missing int) {
	for len(p) > 0 {
		n := min(len(p), pageSize-int(rva%pageSize))
		if rva >= im.Size || im.mem(p[:n], rva) < n {
			clear(p[:n])
			missing++
		}
		p, rva = p[n:], rva+uint32(n)
	}
	return missing
}

// text reads a string that ends with NUL.
func (im *Image) text(rva uint32, limit int) (string, bool) {
	var buf [64]byte
	var out []byte
	for len(out) < limit && rva < im.Size {
		n := min(len(buf), limit-len(out), pageSize-int(rva%pageSize))
		if im.mem(buf[:n], rva) < n {
			return "", false
		}
		for i, c := range buf[:n] {
			if c == 0 {
				return string(append(out, buf[:i]...)), true
			}
		}
		out, rva = append(out, buf[:n]...), rva+uint32(n)
	}
	return "", false
}
