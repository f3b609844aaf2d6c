package dump

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/internal/guestio"
)

// The kdump-compressed format (makedumpfile's IMPLEMENTATION document, struct
// disk_dump_header and kdump_sub_header): a header, a sub header with notes,
// two bitmaps, which RAM there is and which of it is here, a descriptor for
// each page that is here, and the pages, each compressed by itself.

// Limits and sizes of kdump files.
const (
	maxBlock     = maxPiece
	maxBitmap    = 256 << 20 // bytes that are copied of a flattened one: 8 TiB of RAM
	pageDesc     = 24
	zeroExcluded = 1 // dump level: pages of zeros are left out, nothing else
)

// Flags of a page descriptor.
const (
	pageZlib   = 0x01
	pageLZO    = 0x02
	pageSnappy = 0x04
	pageZstd   = 0x20
)

// kdumpHeader is what of the headers matters.
type kdumpHeader struct {
	wide           bool // made on a 64-bit machine
	machine        string
	block          uint64 // bytes of a page, and of what else is counted in blocks
	subBlocks      uint64
	bitmapBlocks   uint64
	frames         uint64
	level          uint32 // what was left out
	split          bool
	cpus           uint64
	infoAt, info   uint64 // VMCOREINFO: place and bytes
	notesAt, notes uint64
}

// kdump is memory in pages that are compressed each.
type kdump struct {
	file    blob
	block   uint64
	present *bitmap // RAM there was
	here    *bitmap // RAM that the file has
	descs   uint64
	zeros   bool // what is not here is zero
	cache   expanded
	ram     []vitrine.Region
}

func (im *image) loadKDump(_ context.Context, b blob) error {
	im.format = KDump
	h, err := parseKDumpHeader(b)
	if err != nil {
		return fmt.Errorf("%s: %w", KDump, err)
	}
	if h.split {
		return fmt.Errorf("%s: %w", KDump, malformed("a part of a dump that was split; join the parts by makedumpfile --reassemble"))
	}
	im.arch = machineArch(h.machine, im.arch)
	if h.notes > 0 {
		im.readNotes(b, h.notesAt, h.notes)
	}
	if im.note == nil && h.info > 0 && h.info <= maxInfo {
		if p, err := bytesOf(b, h.infoAt, h.info, maxInfo); err == nil {
			im.note = bytes.Clone(p)
		}
	}
	if im.cpus == 0 {
		im.cpus = int(min(h.cpus, maxCPUs))
	}
	m, err := newKDump(b, h)
	if err != nil {
		return fmt.Errorf("%s: %w", KDump, err)
	}
	if h.level != 0 {
		im.detail = fmt.Sprintf("without some pages (makedumpfile -d %d)", h.level)
	}
	im.mem = m
	return nil
}

func machineArch(name string, def arch.Arch) arch.Arch {
	for _, a := range []arch.Arch{arch.AMD64, arch.ARM64} {
		if a.String() == name {
			return a
		}
	}
	if len(name) == 4 && name[0] == 'i' && name[2:] == "86" {
		return arch.I386
	}
	return def
}

// parseKDumpHeader reads both headers. Those of 32-bit machines have a shorter
// time stamp and so everything behind it earlier.
func parseKDumpHeader(b blob) (*kdumpHeader, error) {
	head := make([]byte, min(b.size(), 512))
	if _, err := b.readAt(head, 0); err != nil {
		return nil, err
	}
	if len(head) < 512 {
		return nil, malformed("the file ends within its header, at %d bytes", len(head))
	}
	for _, status := range []int{424, 412} {
		h := &kdumpHeader{wide: status == 424}
		if h.parse(head, status) {
			return h, h.parseSub(b, binary.LittleEndian.Uint32(head[8:]))
		}
	}
	return nil, malformed("block size, sub header and bitmaps make no sense")
}

// parse reads the header by the place of its field status, and reports whether
// it makes sense so.
func (h *kdumpHeader) parse(p []byte, status int) bool {
	const machineAt, nameSize = 12 + 4*65, 65
	h.machine = string(bytes.TrimRight(p[machineAt:machineAt+nameSize], "\x00"))
	c := guestio.NewCursor(p)
	c.Seek(status + 4)
	h.block, h.subBlocks, h.bitmapBlocks = uint64(c.Uint32()), uint64(c.Uint32()), uint64(c.Uint32())
	h.frames = uint64(c.Uint32())
	c.Skip(16)
	h.cpus = uint64(c.Uint32())
	return c.Err() == nil && h.block >= 4096 && h.block <= maxBlock && h.block&(h.block-1) == 0 &&
		h.subBlocks > 0 && h.subBlocks < 1<<20 && h.bitmapBlocks > 0
}

// parseSub reads the sub header.
func (h *kdumpHeader) parseSub(b blob, version uint32) error {
	p := make([]byte, 104)
	if _, err := b.readAt(p, h.block); err != nil {
		return malformed("sub header: %v", err)
	}
	c := guestio.NewCursor(p)
	h.long(c) // phys_base
	h.level = c.Uint32()
	h.split = c.Uint32() != 0 && version >= 2
	h.long(c)
	h.long(c)
	h.infoAt, h.info = c.Uint64(), h.long(c)
	h.notesAt, h.notes = c.Uint64(), h.long(c)
	c.Skip(8)
	h.long(c)
	c.Skip(16)
	// The number of frames outgrew 32 bits with version 6.
	if n := c.Uint64(); version >= 6 && n != 0 {
		h.frames = n
	}
	if version < 3 {
		h.info = 0
	}
	if version < 4 {
		h.notes = 0
	}
	return nil
}

func (h *kdumpHeader) long(c *guestio.Cursor) uint64 {
	if h.wide {
		return c.Uint64()
	}
	return uint64(c.Uint32())
}

func newKDump(b blob, h *kdumpHeader) (*kdump, error) {
	at := h.block * (1 + h.subBlocks)
	size := h.bitmapBlocks / 2 * h.block
	m := &kdump{file: b, block: h.block, descs: at + h.bitmapBlocks*h.block, zeros: h.level == zeroExcluded}
	var maps [2]*bitmap
	for i := range maps {
		p, err := bytesOf(b, at+uint64(i)*size, size, maxBitmap)
		if err != nil {
			return nil, fmt.Errorf("bitmap %d: %w", i+1, err)
		}
		maps[i] = newBitmap(p, min(h.frames, maxAddress/h.block))
	}
	m.present, m.here = maps[0], maps[1]
	m.here.count()
	// QEMU leaves the first bitmap as it is the second; where a file disagrees,
	// what is here was there.
	var ram regionList
	shown := m.present
	if m.present.count() < m.here.count() {
		shown = m.here
	}
	shown.ranges(func(first, n uint64) { ram.add(first*m.block, n*m.block) })
	m.ram = ram
	return m, nil
}

func (m *kdump) read(p []byte, a uint64) (int, error) {
	done := 0
	for done < len(p) {
		at := a + uint64(done)
		skip := at % m.block
		n := int(min(m.block-skip, uint64(len(p)-done)))
		frame := at / m.block
		switch {
		case m.here.has(frame):
			page, err := m.page(frame)
			if err != nil {
				return done, missing(at, err.Error())
			}
			done += copy(p[done:], page[skip:])
		case !m.present.has(frame):
			return done, noRAM(at)
		case m.zeros:
			clear(p[done : done+n])
			done += n
		default:
			return done, missing(at, "makedumpfile left the page out")
		}
	}
	return done, nil
}

// page returns a page that the file has.
func (m *kdump) page(frame uint64) ([]byte, error) {
	var raw [pageDesc]byte
	if _, err := m.file.readAt(raw[:], m.descs+pageDesc*m.here.rank(frame)); err != nil {
		return nil, fmt.Errorf("descriptor of frame %#x: %w", frame, err)
	}
	c := guestio.NewCursor(raw[:])
	off, size, flags := c.Uint64(), uint64(c.Uint32()), c.Uint32()
	return m.cache.get(off, func() ([]byte, error) {
		p, err := expandAt(m.file, pageCodec(flags), off, size, m.block)
		if err != nil {
			return nil, fmt.Errorf("frame %#x: %w", frame, err)
		}
		return p, nil
	})
}

func pageCodec(flags uint32) codec {
	switch {
	case flags&pageZlib != 0:
		return codecZlib
	case flags&pageLZO != 0:
		return codecLZO
	case flags&pageSnappy != 0:
		return codecSnappy
	case flags&pageZstd != 0:
		return codecZstd
	}
	return stored
}

func (m *kdump) slice(uint64, uint64) []byte { return nil }

func (m *kdump) regions() []vitrine.Region { return m.ram }
