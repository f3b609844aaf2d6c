package dump

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// Windows crash dumps. Headers are those of wdm's DUMP_HEADER and
// DUMP_HEADER64; places of fields were checked against a real dump of build
// 19041 and against those that QEMU writes.

// winLayout says where the fields of a header are.
type winLayout struct {
	size     uint64 // of the header
	pointer  int    // bytes
	dtb      int    // the following ones are as wide as a pointer, one behind the other
	machine  int
	cpus     int
	bugCheck int
	params   int
	debugger int
	runs     int // PHYSICAL_MEMORY_DESCRIPTOR: number of runs, of pages, runs
	context  int
	kind     int
}

var (
	win64 = winLayout{size: 0x2000, pointer: 8, dtb: 0x10, machine: 0x30, cpus: 0x34, bugCheck: 0x38, params: 0x40,
		debugger: 0x80, runs: 0x88, context: 0x348, kind: 0xf98}
	win32 = winLayout{size: 0x1000, pointer: 4, dtb: 0x10, machine: 0x20, cpus: 0x24, bugCheck: 0x28, params: 0x2c,
		debugger: 0x60, runs: 0x64, context: 0x320, kind: 0xf88}
)

// winPAE is where a 32-bit header says whether PAE is on.
const winPAE = 0x5c

// Machines, as PE files number them.
const (
	peI386  = 0x14c
	peAMD64 = 0x8664
	peARM64 = 0xaa64
)

// maxRuns bounds the runs of memory: their list has to fit into a header.
const maxRuns = 42

// winHeader is a header's bytes.
type winHeader struct {
	winLayout
	p []byte
}

func (h *winHeader) u16(at int) uint16 { return binary.LittleEndian.Uint16(h.p[at:]) }
func (h *winHeader) u32(at int) uint32 { return binary.LittleEndian.Uint32(h.p[at:]) }

// word reads a number as wide as a pointer.
func (h *winHeader) word(at int) uint64 {
	if h.pointer == 4 {
		return uint64(h.u32(at))
	}
	return binary.LittleEndian.Uint64(h.p[at:])
}

// address reads a pointer; those of 32 bits are not extended.
func (h *winHeader) address(at int) arch.GVA { return arch.GVA(h.word(at)) }

func (im *image) loadWindows(_ context.Context, b blob) error {
	im.format = Windows
	h, err := readWinHeader(b)
	if err != nil {
		return fmt.Errorf("%s: %w", Windows, err)
	}
	switch machine := h.u32(h.machine); machine {
	case peAMD64:
		im.arch = arch.AMD64
	case peI386:
		im.arch = arch.I386
	case peARM64:
		im.arch = arch.ARM64
	default:
		return fmt.Errorf("%s: %w", Windows, malformed("of a processor that is not known (machine %#x)", machine))
	}
	im.cpus = int(min(h.u32(h.cpus), maxCPUs))
	im.crash = h.crash()
	if err := im.loadWinMemory(b, h); err != nil {
		return fmt.Errorf("%s: %w", Windows, err)
	}
	if im.arch != arch.ARM64 {
		im.regs = []registerState{{regs: h.registers(im.crash), control: true}}
	}
	return nil
}

func readWinHeader(b blob) (*winHeader, error) {
	h := &winHeader{winLayout: win64}
	var magic [8]byte
	if _, err := b.readAt(magic[:], 0); err != nil {
		return nil, malformed("the file ends within its signature")
	}
	if string(magic[4:]) == "DUMP" {
		h.winLayout = win32
	}
	if b.size() < h.size {
		return nil, malformed("the file ends within its header, at %d bytes", b.size())
	}
	h.p = make([]byte, h.size)
	_, err := b.readAt(h.p, 0)
	return h, err
}

// crash returns what callers are told of the header.
func (h *winHeader) crash() *vitrine.WindowsCrash {
	w := h.pointer
	c := &vitrine.WindowsCrash{
		Type: vitrine.WindowsDumpType(h.u32(h.kind)), Bits: 8 * w, Major: h.u32(8), Build: h.u32(12),
		DirectoryTableBase:  arch.GPA(h.word(h.dtb)),
		PfnDatabase:         h.address(h.dtb + w),
		PsLoadedModuleList:  h.address(h.dtb + 2*w),
		PsActiveProcessHead: h.address(h.dtb + 3*w),
		KdDebuggerDataBlock: h.address(h.debugger),
		BugCheck:            h.u32(h.bugCheck),
		Paging:              arch.Paging4Level,
	}
	for i := range c.BugCheckParameters {
		c.BugCheckParameters[i] = h.word(h.params + i*w)
	}
	if w == 4 {
		c.Paging = arch.Paging32Bit
		if h.p[winPAE] == 1 {
			c.Paging = arch.PagingPAE
		}
	}
	c.DirectoryTableBase = arch.Root(c.Paging, uint64(c.DirectoryTableBase))
	return c
}

// registers returns those of the processor that crashed, as far as its CONTEXT
// record (winnt.h) and the kind of paging tell them.
func (h *winHeader) registers(c *vitrine.WindowsCrash) arch.Registers {
	r := arch.Registers{CR0: arch.CR0PE | arch.CR0PG, CR3: uint64(c.DirectoryTableBase)}
	at := h.context
	if h.pointer == 4 {
		if c.Paging == arch.PagingPAE {
			r.CR4 = arch.CR4PAE
		}
		for i, v := range []*uint64{&r.RDI, &r.RSI, &r.RBX, &r.RDX, &r.RCX, &r.RAX, &r.RBP, &r.RIP} {
			*v = h.word(at + 0x9c + 4*i)
		}
		r.RSP, r.RFLAGS = h.word(at+0xc4), h.word(at+0xc0)
		for i, v := range []*uint16{&r.GS, &r.FS, &r.ES, &r.DS} {
			*v = h.u16(at + 0x8c + 4*i)
		}
		r.CS, r.SS = h.u16(at+0xbc), h.u16(at+0xc8)
		return r
	}
	r.CR4, r.EFER = arch.CR4PAE, arch.EFERLMA
	for i, v := range []*uint16{&r.CS, &r.DS, &r.ES, &r.FS, &r.GS, &r.SS} {
		*v = h.u16(at + 0x38 + 2*i)
	}
	r.RFLAGS = uint64(h.u32(at + 0x44))
	for i, v := range []*uint64{
		&r.RAX, &r.RCX, &r.RDX, &r.RBX, &r.RSP, &r.RBP, &r.RSI, &r.RDI,
		&r.R8, &r.R9, &r.R10, &r.R11, &r.R12, &r.R13, &r.R14, &r.R15, &r.RIP,
	} {
		*v = h.word(at + 0x78 + 8*i)
	}
	return r
}

// loadWinMemory finds the memory by the kind of the dump.
func (im *image) loadWinMemory(b blob, h *winHeader) error {
	switch im.crash.Type {
	case vitrine.WindowsFull:
		im.detail = "full"
		im.setLinear(b, h.fullSpans())
	case vitrine.WindowsKernel, vitrine.WindowsBitmapFull, vitrine.WindowsBitmapKernel:
		im.detail = "bitmap"
		m, err := h.bitmapMemory(b)
		if err != nil {
			return err
		}
		im.mem = m
	case vitrine.WindowsTriage:
		im.detail = "triage"
		m, err := h.triageMemory(b, im.crash)
		if err != nil {
			return err
		}
		im.mem = m
	default:
		return malformed("dump type %d is not known", im.crash.Type)
	}
	return nil
}

// runs returns the runs of RAM that the header lists, in frames. There are none
// where the list makes no sense: kernels fill an unused one with "PAGE".
func (h *winHeader) runs() [][2]uint64 {
	w := h.pointer
	n := h.u32(h.winLayout.runs)
	if n == 0 || n > maxRuns {
		return nil
	}
	var out [][2]uint64
	for i := range int(n) {
		at := h.winLayout.runs + 2*w + i*2*w
		first, count := h.word(at), h.word(at+w)
		if first >= maxAddress>>12 || count > maxAddress>>12 {
			return nil
		}
		out = append(out, [2]uint64{first, count})
	}
	return out
}

// fullSpans is the memory of a full dump: the runs, one behind the other.
func (h *winHeader) fullSpans() []span {
	var spans []span
	off := h.size
	for _, r := range h.runs() {
		spans = append(spans, span{start: r[0] << 12, size: r[1] << 12, off: off})
		off += r[1] << 12
	}
	return spans
}

// winBitmap is memory of which a bitmap tells the pages, which lie one behind
// the other.
type winBitmap struct {
	file  blob
	here  *bitmap
	first uint64 // where in the file the pages begin
	ram   []vitrine.Region
}

// bitmapMemory is that of a dump with a bitmap: behind the header another one,
// "SDMP" or "FDMP" and "DUMP". There are three layouts of it, told apart by
// which one's numbers agree with each other.
func (h *winHeader) bitmapMemory(b blob) (*winBitmap, error) {
	sum := make([]byte, 0x38)
	if _, err := b.readAt(sum, h.size); err != nil {
		return nil, malformed("summary header: %v", err)
	}
	if magic := string(sum[:8]); magic != "SDMPDUMP" && magic != "FDMPDUMP" {
		return nil, malformed("summary header: it starts with % x", sum[:8])
	}
	u32 := func(at int) uint64 { return uint64(binary.LittleEndian.Uint32(sum[at:])) }
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(sum[at:]) }
	for _, l := range []struct{ first, pages, frames, bits uint64 }{
		{u64(0x20), u64(0x28), u64(0x30), 0x38}, // 64-bit since 8
		{u32(0xc), u32(0x14), u32(0x10), 0x28},  // 64-bit until 7
		{u32(0xc), u32(0x14), u32(0x10), 0x20},  // 32-bit
	} {
		m := &winBitmap{file: b, first: l.first}
		size := (l.frames + 7) / 8
		if l.frames == 0 || l.frames > maxAddress>>12 || l.first < h.size+l.bits+size || l.first > b.size() {
			continue
		}
		p, err := bytesOf(b, h.size+l.bits, size, maxBitmap)
		if err != nil {
			continue
		}
		m.here = newBitmap(p, l.frames)
		if n := m.here.count(); n != l.pages && differs(n, l.pages) {
			continue
		}
		m.setRAM(h.runs())
		return m, nil
	}
	return nil, malformed("summary header: bitmap and numbers of pages do not agree")
}

// differs reports whether two counts are further apart than a damaged bit or
// two of a bitmap bring them.
func differs(a, b uint64) bool {
	d := max(a, b) - min(a, b)
	return d > 8 && bits.Len64(d)+6 > bits.Len64(b)
}

// setRAM notes the RAM: what the header lists, as far as the bitmap reaches,
// or where it lists nothing what is here.
func (m *winBitmap) setRAM(runs [][2]uint64) {
	var ram regionList
	end := uint64(0)
	for _, r := range runs {
		last := min(r[0]+r[1], m.here.n)
		if r[0] < end || r[0] >= last { // not ascending: not to be believed
			ram = nil
			break
		}
		ram.add(r[0]<<12, (last-r[0])<<12)
		end = last
	}
	if len(ram) == 0 {
		m.here.ranges(func(first, n uint64) { ram.add(first<<12, n<<12) })
	}
	m.ram = ram
}

func (m *winBitmap) read(p []byte, a uint64) (int, error) {
	done := 0
	for done < len(p) {
		at := a + uint64(done)
		if !m.here.has(at >> 12) {
			return done, missing(at, "Windows left the page out")
		}
		n := int(min(arch.PageSize-at%arch.PageSize, uint64(len(p)-done)))
		k, err := m.file.readAt(p[done:done+n], m.place(at))
		done += k
		if err != nil {
			return done, missing(at, err.Error())
		}
	}
	return done, nil
}

// place returns where in the file the byte at a is, whose page is here.
func (m *winBitmap) place(a uint64) uint64 {
	return m.first + m.here.rank(a>>12)<<12 + a%arch.PageSize
}

func (m *winBitmap) slice(a, n uint64) []byte {
	last := a + n - 1
	if !m.here.has(a>>12) || !m.here.has(last>>12) || m.here.rank(last>>12)-m.here.rank(a>>12) != last>>12-a>>12 {
		return nil
	}
	return m.file.slice(m.place(a), n)
}

func (m *winBitmap) regions() []vitrine.Region { return m.ram }
