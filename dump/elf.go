package dump

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/internal/guestio"
)

// ELF cores, as the System V ABI has them (elf(5)). The standard library's
// reader is not made for hostile files.

// Limits on ELF files.
const (
	maxSegments = 1 << 20  // QEMU writes one for each piece of virtual memory with paging: true
	maxNotes    = 64 << 20 // bytes; about 800 for each virtual processor
)

// Numbers of the ELF format.
const (
	elfClass32   = 1
	elfClass64   = 2
	elfLittle    = 1
	elfCore      = 4
	elfLoad      = 1
	elfNote      = 4
	elfManySegs  = 0xffff // PN_XNUM: section 0 tells how many
	machine386   = 3
	machineAMD64 = 62
	machineARM64 = 183
)

// elfHeader is what of the file header matters.
type elfHeader struct {
	wide      bool // 64-bit
	kind      uint16
	machine   uint16
	segments  uint64 // where the program headers are
	sections  uint64
	entrySize uint64 // of a program header
	count     uint64
}

// segment is a program header.
type segment struct {
	kind                             uint32
	off, vaddr, paddr, filesz, memsz uint64
}

func (im *image) loadELF(_ context.Context, b blob) error {
	im.format = ELF
	h, err := parseELFHeader(b)
	if err != nil {
		return fmt.Errorf("%s: %w", ELF, err)
	}
	switch h.machine {
	case machineAMD64:
		im.arch = arch.AMD64
	case machine386:
		im.arch = arch.I386
	case machineARM64:
		im.arch = arch.ARM64
	default:
		return fmt.Errorf("%s: %w", ELF, malformed("of a processor that is not known (machine %d)", h.machine))
	}
	spans, err := im.readSegments(b, h)
	if err != nil {
		return fmt.Errorf("%s: %w", ELF, err)
	}
	im.detail = "64-bit"
	if !h.wide {
		im.detail = "32-bit"
	}
	im.setLinear(b, spans)
	return nil
}

func parseELFHeader(b blob) (*elfHeader, error) {
	head := make([]byte, min(b.size(), 64))
	if _, err := b.readAt(head, 0); err != nil {
		return nil, err
	}
	if len(head) < 52 {
		return nil, malformed("the file ends within its header, at %d bytes", len(head))
	}
	class, order := head[4], head[5]
	if order != elfLittle || class != elfClass32 && class != elfClass64 {
		return nil, malformed("class %d, byte order %d: only little-endian ones are read", class, order)
	}
	h := &elfHeader{wide: class == elfClass64}
	c := guestio.NewCursor(head)
	c.Skip(16)
	h.kind, h.machine = c.Uint16(), c.Uint16()
	c.Skip(4)
	h.address(c)
	h.segments, h.sections = h.address(c), h.address(c)
	c.Skip(6)
	h.entrySize, h.count = uint64(c.Uint16()), uint64(c.Uint16())
	if c.Err() != nil {
		return nil, malformed("%v", c.Err())
	}
	if h.kind != elfCore {
		return nil, malformed("an ELF file of type %d; a core has type %d", h.kind, elfCore)
	}
	if h.count == elfManySegs {
		if err := h.countSegments(b); err != nil {
			return nil, err
		}
	}
	if least := uint64(32); h.entrySize < least || h.wide && h.entrySize < 56 || h.entrySize > 1024 {
		return nil, malformed("program headers of %d bytes", h.entrySize)
	}
	return h, nil
}

// address reads a number as wide as an address of the class.
func (h *elfHeader) address(c *guestio.Cursor) uint64 {
	if h.wide {
		return c.Uint64()
	}
	return uint64(c.Uint32())
}

// countSegments reads the number of program headers from section 0, where it
// is when it takes more than 16 bits.
func (h *elfHeader) countSegments(b blob) error {
	at := uint64(28) // sh_info
	if h.wide {
		at = 44
	}
	var p [4]byte
	if h.sections > b.size() {
		return malformed("section headers at %#x, the file ends at %#x", h.sections, b.size())
	}
	if _, err := b.readAt(p[:], h.sections+at); err != nil {
		return malformed("number of program headers: %v", err)
	}
	h.count = uint64(binary.LittleEndian.Uint32(p[:]))
	return nil
}

// readSegments reads the program headers: notes go into im, memory is returned.
// Headers behind the end of a file are given up.
func (im *image) readSegments(b blob, h *elfHeader) ([]span, error) {
	var spans []span
	if h.count > maxSegments {
		return nil, malformed("%d program headers, more than %d", h.count, maxSegments)
	}
	buf := make([]byte, h.entrySize)
	flat := 0 // memory at physical address 0, as in cores of processes
	var notes notesPlace
	for i := range h.count {
		off := h.segments + i*h.entrySize
		if off < h.segments || off > b.size() {
			break
		}
		if _, err := b.readAt(buf, off); err != nil {
			break
		}
		s := h.segment(buf)
		switch {
		case s.kind == elfNote:
			notes = notesPlace{end: s.off + s.filesz, missing: s.filesz - im.readNotes(b, s.off, s.filesz)}
		case s.kind == elfLoad && s.memsz != 0:
			if s.paddr == 0 && s.vaddr != 0 {
				flat++
			}
			spans = append(spans, s.spans(b)...)
		}
	}
	if flat > 1 && flat == len(spans) {
		return nil, malformed("a core of one process: it tells no physical addresses")
	}
	if im.arch == arch.ARM64 {
		notes.correct(spans, b.size())
	}
	return spans, nil
}

// notesPlace is where the notes of a core end by its header, and how many bytes of
// that are none.
type notesPlace struct{ end, missing uint64 }

// correct moves memory to where it is. QEMU (7.2) takes the notes of all AArch64
// processors with SVE for as long as the longest, writes those of others shorter,
// and memory right behind them, so that it all lies before the place that the
// header tells, and the file seems to be cut off. Nothing is done unless that
// explains just what is missing.
func (n notesPlace) correct(spans []span, size uint64) {
	end := uint64(0)
	for _, s := range spans {
		if s.off < n.end && s.size != 0 {
			return // memory does not lie behind the notes
		}
		if s.off < size {
			end = max(end, s.off+s.size)
		}
	}
	if n.missing == 0 || n.missing > n.end || end <= size || end-n.missing > size {
		return
	}
	for i := range spans {
		if spans[i].off < size {
			spans[i].off -= n.missing
		}
	}
}

// spans returns the memory of a segment: what the file holds, and what it does
// not (a filter left it out). QEMU gives an offset of -1 to what is no RAM.
func (s *segment) spans(b blob) []span {
	if s.filesz > s.memsz {
		s.memsz = s.filesz
	}
	if s.off == ^uint64(0) || s.paddr >= maxAddress {
		return nil
	}
	out := []span{{start: s.paddr, size: s.filesz, off: s.off}}
	if s.memsz > s.filesz {
		out = append(out, span{start: s.paddr + s.filesz, size: s.memsz - s.filesz, off: b.size(), left: true})
	}
	return out
}

func (h *elfHeader) segment(p []byte) *segment {
	c := guestio.NewCursor(p)
	s := &segment{kind: c.Uint32()}
	if h.wide {
		c.Skip(4)
	}
	s.off, s.vaddr, s.paddr = h.address(c), h.address(c), h.address(c)
	s.filesz, s.memsz = h.address(c), h.address(c)
	return s
}
