package dump

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// Builders of tiny images of every format, all of the same memory: two pieces
// of RAM with a hole between them.

var le = binary.LittleEndian

// ramPieces is the RAM of the synthetic guest, in pages.
var ramPieces = [][2]uint64{{0, 24}, {32, 8}}

// info is the VMCOREINFO text of the synthetic guest.
const info = "OSRELEASE=6.1.0-test\nPAGESIZE=4096\n"

// page returns what page number i of the synthetic guest holds: a mixture of
// what compresses and what does not.
func page(i uint64) []byte {
	p := make([]byte, arch.PageSize)
	switch r := rand.New(rand.NewPCG(i, 1)); i % 4 {
	case 0: // zeros
	case 1:
		copy(p, bytes.Repeat([]byte("vitrine "), 512))
		le.PutUint64(p[64:], i)
	case 2:
		for k := range p[:2048] {
			p[k] = byte(r.Uint32())
		}
	case 3:
		for k := range p {
			p[k] = byte(r.Uint32())
		}
	}
	return p
}

// piece returns the content of a piece of RAM.
func piece(r [2]uint64) []byte {
	var out []byte
	for i := range r[1] {
		out = append(out, page(r[0]+i)...)
	}
	return out
}

// qemuState is QEMU's note of a processor.
func qemuState(cr3 uint64) []byte {
	p := make([]byte, qemuStateWithGS)
	le.PutUint32(p, 1)
	le.PutUint32(p[4:], qemuStateWithGS)
	for i := range 18 {
		le.PutUint64(p[8+8*i:], uint64(100+i))
	}
	le.PutUint32(p[152:], 0x10)
	le.PutUint64(p[152+4*24+16:], 0xffff888000001000) // base of GS
	le.PutUint64(p[392:], arch.CR0PE|arch.CR0PG)
	le.PutUint64(p[392+24:], cr3)
	le.PutUint64(p[392+32:], arch.CR4PAE)
	le.PutUint64(p[432:], 77)
	return p
}

func note(name string, kind uint32, desc []byte) []byte {
	pad := func(p []byte) []byte { return append(p, make([]byte, -len(p)&3)...) }
	out := le.AppendUint32(nil, uint32(len(name)+1))
	out = le.AppendUint32(out, uint32(len(desc)))
	out = le.AppendUint32(out, kind)
	return append(append(out, pad(append([]byte(name), 0))...), pad(bytes.Clone(desc))...)
}

// notes are those of a guest with two processors.
func notes() []byte {
	return slicesConcat(note("CORE", 1, make([]byte, 336)), note("CORE", 1, make([]byte, 336)),
		note("QEMU", 0, qemuState(0x1000)), note("QEMU", 0, qemuState(0x2000)), note("VMCOREINFO", 0, []byte(info)))
}

func slicesConcat(ps ...[]byte) []byte { return bytes.Join(ps, nil) }

// buildELF makes an ELF core of either class.
func buildELF(wide bool) []byte {
	headSize, entry, machine := 52, 32, uint16(machine386)
	if wide {
		headSize, entry, machine = 64, 56, machineAMD64
	}
	word := func(p []byte, v uint64) []byte {
		if wide {
			return le.AppendUint64(p, v)
		}
		return le.AppendUint32(p, uint32(v))
	}
	class := byte(elfClass32)
	if wide {
		class = elfClass64
	}
	h := append([]byte("\x7fELF"), class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	h = le.AppendUint16(h, elfCore)
	h = le.AppendUint16(h, machine)
	h = le.AppendUint32(h, 1)
	h = word(word(word(h, 0), uint64(headSize)), 0)
	h = le.AppendUint32(h, 0)
	for _, v := range []int{headSize, entry, 1 + len(ramPieces), 0, 0, 0} {
		h = le.AppendUint16(h, uint16(v))
	}
	n := notes()
	off := uint64(headSize + entry*(1+len(ramPieces)))
	segment := func(kind uint32, off, paddr, size uint64) {
		h = le.AppendUint32(h, kind)
		if wide {
			h = le.AppendUint32(h, 0)
		}
		h = word(word(word(word(word(h, off), 0), paddr), size), size)
		if !wide {
			h = le.AppendUint32(h, 0)
		}
		h = word(h, 0)
	}
	segment(elfNote, off, 0, uint64(len(n)))
	data := n
	for _, r := range ramPieces {
		segment(elfLoad, off+uint64(len(data)), r[0]*arch.PageSize, r[1]*arch.PageSize)
		data = append(data, piece(r)...)
	}
	return append(h, data...)
}

// pack compresses a page; nil means that it is stored.
type pack func(p []byte) []byte

func packZlib(p []byte) []byte {
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	_, _ = z.Write(p)
	_ = z.Close()
	return b.Bytes()
}

func packSnappy(p []byte) []byte { return snappy.Encode(nil, p) }

func packZstd(p []byte) []byte {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	return z.EncodeAll(p, nil)
}

// packLZO makes a valid LZO1X stream that compresses nothing: one run of
// literals and the end mark.
func packLZO(p []byte) []byte {
	n := len(p)
	out := []byte{0}
	for n -= 3 + 15; n > 255; n -= 255 {
		out = append(out, 0)
	}
	out = append(out, byte(n))
	out = append(out, p...)
	return append(out, 0x11, 0, 0)
}

var packers = map[string]struct {
	flag uint32
	pack pack
}{
	"stored": {0, nil}, "zlib": {pageZlib, packZlib}, "lzo": {pageLZO, packLZO},
	"snappy": {pageSnappy, packSnappy}, "zstd": {pageZstd, packZstd},
}

// buildKDump makes a kdump file. Frames that skip says are left out.
func buildKDump(wide bool, flag uint32, how pack, level uint32, skip func(frame uint64) bool) []byte {
	const block, frames = 4096, 40
	head := make([]byte, block)
	copy(head, "KDUMP   ")
	le.PutUint32(head[8:], 6)
	machine, status := "x86_64", 424
	if !wide {
		machine, status = "i686", 412
	}
	copy(head[12+4*65:], machine)
	for i, v := range []uint32{0, block, 1, 2, frames, 0, 0, 0, 0, 2} {
		le.PutUint32(head[status+4*i:], v)
	}
	long := func(p []byte, v uint64) []byte {
		if wide {
			return le.AppendUint64(p, v)
		}
		return le.AppendUint32(p, uint32(v))
	}
	n := notes()
	sub := le.AppendUint32(long(nil, 0), level)
	sub = long(long(le.AppendUint32(sub, 0), 0), 0)
	sub = long(le.AppendUint64(sub, 0), 0)
	sub = long(le.AppendUint64(sub, block+512), uint64(len(n)))
	sub = long(le.AppendUint64(sub, 0), 0)
	sub = le.AppendUint64(le.AppendUint64(le.AppendUint64(sub, 0), 0), frames)
	sub = append(sub, make([]byte, 512-len(sub))...)
	sub = append(sub, n...)
	sub = append(sub, make([]byte, block-len(sub))...)
	maps := make([]byte, 2*block)
	var descs, data []byte
	count := 0
	for _, r := range ramPieces {
		for f := r[0]; f < r[0]+r[1]; f++ {
			maps[f/8] |= 1 << (f % 8)
			if skip == nil || !skip(f) {
				maps[block+f/8] |= 1 << (f % 8)
				count++
			}
		}
	}
	base := uint64(4*block + pageDesc*count)
	for _, r := range ramPieces {
		for f := r[0]; f < r[0]+r[1]; f++ {
			if skip != nil && skip(f) {
				continue
			}
			p, used := page(f), uint32(0)
			if how != nil {
				p, used = how(p), flag
			}
			descs = le.AppendUint64(descs, base+uint64(len(data)))
			descs = le.AppendUint32(descs, uint32(len(p)))
			descs = le.AppendUint64(le.AppendUint32(descs, used), 0)
			data = append(data, p...)
		}
	}
	return slicesConcat(head, sub, maps, descs, data)
}

// flatten puts a file into flattened form, in records of a few thousand bytes,
// the first of them once more at the end as makedumpfile does.
func flatten(p []byte) []byte {
	out := make([]byte, flatHeader)
	copy(out, flatMagic)
	record := func(at, n int) {
		out = binary.BigEndian.AppendUint64(out, uint64(at))
		out = binary.BigEndian.AppendUint64(out, uint64(n))
		out = append(out, p[at:at+n]...)
	}
	record(0, 100)
	for at := 0; at < len(p); at += 3000 {
		record(at, min(3000, len(p)-at))
	}
	record(0, 1000)
	return append(out, bytes.Repeat([]byte{0xff}, 16)...)
}

func limeHead(magic string, version uint32, start, size uint64) []byte {
	p := le.AppendUint32([]byte(magic), version)
	return le.AppendUint64(le.AppendUint64(le.AppendUint64(p, start), start+size-1), 0)
}

func buildLiME() []byte {
	var out []byte
	for _, r := range ramPieces {
		out = append(out, limeHead(limeMagic, 1, r[0]*arch.PageSize, r[1]*arch.PageSize)...)
		out = append(out, piece(r)...)
	}
	return out
}

func buildAVML() []byte {
	var out []byte
	for _, r := range ramPieces {
		out = append(out, limeHead(avmlMagic, 2, r[0]*arch.PageSize, r[1]*arch.PageSize)...)
		var b bytes.Buffer
		w := snappy.NewBufferedWriter(&b)
		_, _ = w.Write(piece(r))
		_ = w.Close()
		out = append(out, b.Bytes()...)
		out = le.AppendUint64(out, uint64(b.Len()))
	}
	return out
}

func buildRaw() []byte { return slicesConcat(piece(ramPieces[0]), piece(ramPieces[1])) }

var rawLayout = Layout{
	{Start: 0, Size: ramPieces[0][1] * arch.PageSize},
	{Start: arch.GPA(ramPieces[1][0] * arch.PageSize), Offset: ramPieces[0][1] * arch.PageSize},
}

// winHead makes the header of a Windows crash dump of the synthetic guest.
func winHead(wide bool, kind vitrine.WindowsDumpType) []byte {
	l, machine, magic := win32, uint32(peI386), "PAGEDUMP"
	if wide {
		l, machine, magic = win64, peAMD64, "PAGEDU64"
	}
	p := bytes.Repeat([]byte("PAGE"), int(l.size/4))
	word := func(at int, v uint64) {
		if wide {
			le.PutUint64(p[at:], v)
			return
		}
		le.PutUint32(p[at:], uint32(v))
	}
	copy(p, magic)
	le.PutUint32(p[8:], 15)
	le.PutUint32(p[12:], 19041)
	word(l.dtb, 0x3000)
	word(l.dtb+2*l.pointer, 0x1234)
	le.PutUint32(p[l.machine:], machine)
	le.PutUint32(p[l.cpus:], 2)
	le.PutUint32(p[l.bugCheck:], 0xe2)
	word(l.debugger, 0xfffff80000001000&(1<<(8*l.pointer-1)<<1-1))
	p[winPAE] = 1
	le.PutUint32(p[l.runs:], uint32(len(ramPieces)))
	for i, r := range ramPieces {
		word(l.runs+2*l.pointer+2*i*l.pointer, r[0])
		word(l.runs+2*l.pointer+(2*i+1)*l.pointer, r[1])
	}
	le.PutUint32(p[l.kind:], uint32(kind))
	if wide {
		le.PutUint64(p[l.context+0xf8:], 0xfffff80000002000)
	}
	return p
}

func buildWinFull(wide bool) []byte {
	return append(winHead(wide, vitrine.WindowsFull), buildRaw()...)
}

// buildWinBitmap makes a dump with a bitmap, in one of its three layouts.
func buildWinBitmap(wide, old bool, skip func(frame uint64) bool) []byte {
	kind := vitrine.WindowsBitmapFull
	if old || !wide {
		kind = vitrine.WindowsKernel
	}
	p := winHead(wide, kind)
	sum := make([]byte, 0x38)
	if old || !wide {
		sum = make([]byte, 0x28)
	}
	if !wide {
		sum = make([]byte, 0x20)
	}
	copy(sum, "SDMPDUMP")
	maps := make([]byte, 8)
	var data []byte
	count := uint64(0)
	for _, r := range ramPieces {
		for f := r[0]; f < r[0]+r[1]; f++ {
			if skip == nil || !skip(f) {
				maps[f/8] |= 1 << (f % 8)
				data = append(data, page(f)...)
				count++
			}
		}
	}
	first := (len(p) + len(sum) + len(maps) + 4095) &^ 4095
	if old || !wide {
		le.PutUint32(sum[0xc:], uint32(first))
		le.PutUint32(sum[0x10:], 64)
		le.PutUint32(sum[0x14:], uint32(count))
	} else {
		le.PutUint64(sum[0x20:], uint64(first))
		le.PutUint64(sum[0x28:], count)
		le.PutUint64(sum[0x30:], 64)
	}
	p = slicesConcat(p, sum, maps)
	return slicesConcat(p, make([]byte, first-len(p)), data)
}

// triageBase is where the blocks of the synthetic triage dump begin: RAM
// address a is at triageBase+a.
const triageBase = 0xfffff80000000000

// buildTriage makes a triage dump with a block for each page, cut short by 96
// bytes, so that no two of them touch.
func buildTriage(wide bool) []byte {
	p := winHead(wide, vitrine.WindowsTriage)
	base, pointer, rest := uint64(triageBase), 8, 0x60
	if !wide {
		base, pointer, rest = 0x80000000, 4, 0x4c
	}
	t := make([]byte, 0x80)
	start := len(p)
	var list, data []byte
	n := uint64(0)
	each := pointer + 8
	pages := ramPieces[0][1] + ramPieces[1][1]
	at := start + len(t) + each*int(pages)
	for _, r := range ramPieces {
		for f := r[0]; f < r[0]+r[1]; f++ {
			if wide {
				list = le.AppendUint64(list, base+f*arch.PageSize)
			} else {
				list = le.AppendUint32(list, uint32(base+f*arch.PageSize))
			}
			list = le.AppendUint32(list, uint32(at+len(data)))
			list = le.AppendUint32(list, triageBlock)
			data = append(data, page(f)[:triageBlock]...)
			n++
		}
	}
	le.PutUint32(t[rest+pointer+16:], uint32(start+len(t)))
	le.PutUint32(t[rest+pointer+20:], uint32(n))
	return slicesConcat(p, t, list, data)
}

const triageBlock = arch.PageSize - 96

// samples are images of every format, by name.
func samples() map[string][]byte {
	out := map[string][]byte{
		"elf64": buildELF(true), "elf32": buildELF(false), "lime": buildLiME(), "avml": buildAVML(), "raw": buildRaw(),
		"kdump-32bit":    buildKDump(false, pageZlib, packZlib, 0, nil),
		"kdump-flat":     flatten(buildKDump(true, pageZlib, packZlib, 0, nil)),
		"windows-full":   buildWinFull(true),
		"windows-full32": buildWinFull(false), "windows-bitmap": buildWinBitmap(true, false, nil),
		"windows-kernel": buildWinBitmap(true, true, nil), "windows-kernel32": buildWinBitmap(false, true, nil),
		"windows-triage": buildTriage(true), "windows-triage32": buildTriage(false),
	}
	for name, c := range packers {
		out["kdump-"+name] = buildKDump(true, c.flag, c.pack, 0, nil)
	}
	return out
}

// optionsFor returns the options that a sample is to be opened with.
func optionsFor(name string) *Options {
	if name == "raw" {
		return &Options{Layout: rawLayout}
	}
	return nil
}

// write puts an image into a file.
func write(t testing.TB, p []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
