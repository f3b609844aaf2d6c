package implant

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/vitrine-vmi/vitrine/arch"
)

// The code region: a header, the object's code, one stub for each function, and
// a table of the places that were patched, for whoever takes it out.
const (
	codeMagic   = 0x65646f63746e6c70 // at the region's start
	stubMagic   = 0x62757473746e6c70 // before each stub
	codeVersion = 2

	stubSize  = 128
	stubEntry = 16 // behind the mark: magic, id, offset of the stub in the region
	stubBack  = stubEntry + gateSize + 23
	siteSize  = 32
	nopSize   = 5
)

// Offsets in the header of the code region.
const (
	codeHdrMagic   = 0
	codeHdrVersion = 8
	codeHdrFuncs   = 12
	codeHdrSize    = 16
	codeHdrData    = 24
	codeHdrDataLen = 32
	codeHdrFrame   = 40
	codeHdrStubs   = 44
	codeHdrSites   = 48
	codeHdrGadget  = 56
)

// site is one patched place of the kernel's text.
type site struct {
	addr arch.GVA      // of the nop
	nop  [nopSize]byte // what was there
}

// code describes a code region.
type code struct {
	base    arch.GVA
	size    uint64 // bytes, a multiple of the page size
	data    arch.GVA
	dataLen uint64
	frame   uint32 // size of a stub's frame
	stubs   uint32 // offset of the first stub
	sitesAt uint32 // offset of the table of sites
	gadget  arch.GVA
	sites   []site
}

// codeLayout returns the offsets and size of a region for text and n functions.
func codeLayout(text, n int) (stubs, sites uint32, size uint64) {
	s := (codeHeaderSize + text + stubSize - 1) &^ (stubSize - 1)
	t := s + n*stubSize
	return uint32(s), uint32(t), pageUp(uint64(t + n*siteSize))
}

// contains reports whether a lies in the region.
func (c *code) contains(a uint64) bool {
	return a >= uint64(c.base) && a-uint64(c.base) < c.size
}

// returnsHere reports whether a is the place in a stub to which a wrapped
// function returns.
func (c *code) returnsHere(a uint64) bool {
	first := uint64(c.base) + uint64(c.stubs)
	return a >= first && a-first < uint64(len(c.sites))*stubSize && (a-first)%stubSize == stubBack
}

// inner reports whether a lies in the region and is not such a place.
func (c *code) inner(a uint64) bool { return c.contains(a) && !c.returnsHere(a) }

// stub returns where the jump at site i leads.
func (c *code) stub(i int) arch.GVA {
	return c.base + arch.GVA(c.stubs) + arch.GVA(i*stubSize+stubEntry)
}

// image returns the bytes of the whole region; enter and leave are the
// addresses of the two trampolines, text the linked object, gates what is before
// each stub (see gate), nil for nothing at all.
func (c *code) image(text []byte, enter, leave arch.GVA, gates []*gate) ([]byte, error) {
	p := make([]byte, c.size)
	le := binary.LittleEndian
	le.PutUint64(p[codeHdrMagic:], codeMagic)
	le.PutUint32(p[codeHdrVersion:], codeVersion)
	le.PutUint32(p[codeHdrFuncs:], uint32(len(c.sites)))
	le.PutUint64(p[codeHdrSize:], c.size)
	le.PutUint64(p[codeHdrData:], uint64(c.data))
	le.PutUint64(p[codeHdrDataLen:], c.dataLen)
	le.PutUint32(p[codeHdrFrame:], c.frame)
	le.PutUint32(p[codeHdrStubs:], c.stubs)
	le.PutUint32(p[codeHdrSites:], c.sitesAt)
	le.PutUint64(p[codeHdrGadget:], uint64(c.gadget))
	copy(p[codeHeaderSize:], text)
	for i, s := range c.sites {
		at := int(c.stubs) + i*stubSize
		var g *gate
		if i < len(gates) {
			g = gates[i]
		}
		if err := c.putStub(p[at:at+stubSize], i, enter, leave, g); err != nil {
			return nil, err
		}
		q := p[int(c.sitesAt)+i*siteSize:]
		le.PutUint64(q, uint64(s.addr))
		copy(q[8:8+nopSize], s.nop[:])
	}
	return p, nil
}

// putStub writes the mark and the stub of function i (see trampoline.S).
func (c *code) putStub(p []byte, i int, enter, leave arch.GVA, g *gate) error {
	binary.LittleEndian.PutUint64(p, stubMagic)
	binary.LittleEndian.PutUint32(p[8:], uint32(i))
	binary.LittleEndian.PutUint32(p[12:], c.stubs+uint32(i*stubSize))
	a := assembler{buf: p[:stubEntry], at: c.stub(i)}
	body := c.sites[i].addr + nopSize
	a.gate(g)
	a.emit(0x48, 0x83, 0xec, byte(c.frame)) // sub $frame, %rsp
	a.emit(0xb8).imm32(uint32(i))           // mov $i, %eax
	a.rel32(enter, 0xe8)                    // call enter
	a.emit(0x85, 0xc0)                      // test %eax, %eax
	a.emit(0x75, 16)                        // jne to the last two
	a.rel32(body, 0xe8)                     // call body
	a.emit(0x41, 0xbb).imm32(uint32(i))     // mov $i, %r11d
	a.rel32(leave, 0xe9)                    // jmp leave
	a.emit(0x48, 0x83, 0xc4, byte(c.frame)) // add $frame, %rsp
	a.rel32(body, 0xe9)                     // jmp body
	for len(a.buf) < stubSize {
		a.emit(0xcc)
	}
	return a.err
}

// assembler appends machine code to buf; at is the address of buf[stubEntry].
type assembler struct {
	buf []byte
	at  arch.GVA
	err error
}

func (a *assembler) emit(b ...byte) *assembler {
	a.buf = append(a.buf, b...)
	return a
}

func (a *assembler) imm32(v uint32) { a.buf = binary.LittleEndian.AppendUint32(a.buf, v) }

func (a *assembler) imm64(v uint64) { a.buf = binary.LittleEndian.AppendUint64(a.buf, v) }

// rel32 appends op with the distance to target.
func (a *assembler) rel32(target arch.GVA, op byte) {
	a.emit(op)
	next := a.at + arch.GVA(len(a.buf)-stubEntry+4)
	d, err := distance(next, target)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.imm32(uint32(d))
}

// distance returns target-from, which must fit in 32 bits with sign.
func distance(from, target arch.GVA) (int32, error) {
	d := int64(target - from)
	if d < math.MinInt32 || d > math.MaxInt32 {
		return 0, fmt.Errorf("jump from %v to %v: %w", from, target, errRange)
	}
	return int32(d), nil
}

// jump returns the five bytes of a jump at from to target.
func jump(from, target arch.GVA) ([nopSize]byte, error) {
	b := [nopSize]byte{0xe9}
	d, err := distance(from+nopSize, target)
	binary.LittleEndian.PutUint32(b[1:], uint32(d))
	return b, err
}

// jumpTarget returns where the jump b at from leads.
func jumpTarget(from arch.GVA, b []byte) (arch.GVA, bool) {
	if len(b) < nopSize || b[0] != 0xe9 {
		return 0, false
	}
	d := int32(binary.LittleEndian.Uint32(b[1:]))
	return from + nopSize + arch.GVA(int64(d)), true
}

// The five-byte nops that kernels put where ftrace hooks in: 5.13 and later
// know only the first, earlier ones choose by processor.
var nops = [][nopSize]byte{
	{0x0f, 0x1f, 0x44, 0x00, 0x00},
	{0x66, 0x66, 0x66, 0x66, 0x90},
	{0x66, 0x66, 0x90, 0x66, 0x90},
	{0x3e, 0x8d, 0x74, 0x26, 0x00},
}

// isNop reports whether b is a nop of five bytes, and which.
func isNop(b []byte) ([nopSize]byte, bool) {
	for _, n := range nops {
		if len(b) >= nopSize && string(b[:nopSize]) == string(n[:]) {
			return n, true
		}
	}
	return [nopSize]byte{}, false
}

// landingPad is endbr64.
var landingPad = []byte{0xf3, 0x0f, 0x1e, 0xfa}
