package dump

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/tests/ntguest"
)

// openBytes opens an image of these bytes until the end of the test.
func openBytes(t testing.TB, p []byte, o *Options) *vitrine.Guest {
	t.Helper()
	g, err := Open(t.Context(), write(t, p), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

var wantRegions = []vitrine.Region{
	{Start: 0, Size: ramPieces[0][1] * arch.PageSize},
	{Start: arch.GPA(ramPieces[1][0] * arch.PageSize), Size: ramPieces[1][1] * arch.PageSize},
}

func TestEveryFormatReadsTheSame(t *testing.T) {
	for name, p := range samples() {
		if strings.HasPrefix(name, "windows-triage") {
			continue // by virtual address: TestTriage
		}
		t.Run(name, func(t *testing.T) {
			g := openBytes(t, p, optionsFor(name))
			if diff := cmp.Diff(wantRegions, g.Regions()); diff != "" {
				t.Fatal(diff)
			}
			for _, r := range ramPieces {
				want, got := piece(r), make([]byte, r[1]*arch.PageSize)
				if n, err := g.ReadPhysical(got, arch.GPA(r[0]*arch.PageSize)); err != nil || n != len(got) || !bytes.Equal(got, want) {
					t.Fatalf("read of frame %d on: %d of %d bytes, %v, equal %v", r[0], n, len(got), err, bytes.Equal(got, want))
				}
				// Across pages and in the midst of them.
				start := r[0]*arch.PageSize + 4000
				n, err := g.ReadPhysical(got[:200], arch.GPA(start))
				if err != nil || n != 200 || !bytes.Equal(got[:200], want[4000:4200]) {
					t.Errorf("read at %#x: %d, %v", start, n, err)
				}
				if s := g.MapPhysical(arch.GPA(start), 200); s != nil && !bytes.Equal(s, want[4000:4200]) {
					t.Errorf("slice at %#x differs", start)
				}
			}
			holds(t, g)
		})
	}
}

// holds checks what is true of every image: its edges, and that it is read-only.
func holds(t *testing.T, g *vitrine.Guest) {
	t.Helper()
	first := wantRegions[0]
	n, err := g.ReadPhysical(make([]byte, 32), first.End()-16)
	var perr *vitrine.PhysicalError
	if n != 16 || !errors.As(err, &perr) || perr.Addr != first.End() {
		t.Errorf("read across the end of RAM: %d, %v", n, err)
	}
	if _, err := g.ReadPhysical(make([]byte, 1), 1<<60); !errors.As(err, &perr) {
		t.Errorf("read at 1<<60: %v", err)
	}
	if err := g.WritePhysical([]byte{1}, 0); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("write: %v", err)
	}
	if st, err := g.Status(t.Context()); st != vitrine.StatusPaused || err != nil {
		t.Errorf("status %v, %v", st, err)
	}
	if g.Info().Live {
		t.Error("an image is said to be live")
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if _, err := g.ReadPhysical(make([]byte, 1), 0); !errors.Is(err, vitrine.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if g.MapPhysical(0, 1) != nil || g.Regions() != nil {
		t.Error("memory after Close")
	}
}

func TestRegistersAndNotes(t *testing.T) {
	for _, name := range []string{"elf64", "kdump-zlib", "kdump-flat"} {
		g := openBytes(t, samples()[name], nil)
		if g.CPUs() != 2 || string(g.VMCoreInfo()) != info {
			t.Errorf("%s: %d processors, VMCOREINFO %q", name, g.CPUs(), g.VMCoreInfo())
		}
		r, err := g.Registers(t.Context(), 1)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if r.Root() != 0x2000 || r.PagingMode() != arch.Paging4Level || r.RAX != 100 || r.RIP != 116 ||
			r.GSBase != 0xffff888000001000 || r.KernelGSBase != 77 || r.CS != 0x10 {
			t.Errorf("%s: registers %+v", name, r)
		}
		if _, err := g.Registers(t.Context(), 2); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: registers of processor 2: %v", name, err)
		}
	}
	g := openBytes(t, buildLiME(), nil)
	if _, err := g.Registers(t.Context(), 0); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("registers of LiME: %v", err)
	}
}

func TestLeftOutPages(t *testing.T) {
	zero := func(f uint64) bool { return f%4 == 0 }
	var got [16]byte
	for name, p := range map[string][]byte{
		"kdump":   buildKDump(true, pageZlib, packZlib, 31, zero),
		"windows": buildWinBitmap(true, false, zero),
	} {
		g := openBytes(t, p, nil)
		if _, err := g.ReadPhysical(got[:], 0x4000); !errors.Is(err, ErrMissing) {
			t.Errorf("%s: page that was left out: %v", name, err)
		}
		if n, err := g.ReadPhysical(make([]byte, 4096), 0x3800); n != 2048 || !errors.Is(err, ErrMissing) {
			t.Errorf("%s: read into a page that was left out: %d, %v", name, n, err)
		}
		if _, err := g.ReadPhysical(got[:], 0x5000); err != nil || string(got[:7]) != "vitrine" {
			t.Errorf("%s: page behind it: %q, %v", name, got, err)
		}
	}
	g := openBytes(t, buildKDump(true, pageZlib, packZlib, zeroExcluded, zero), nil)
	got[0] = 1
	if _, err := g.ReadPhysical(got[:], 0x4000); err != nil || got != [16]byte{} {
		t.Errorf("page of zeros that was left out as such: %x, %v", got, err)
	}
}

// A filter of cores makes segments that have less in the file than in memory:
// that file is not cut off.
func TestLeftOutOfSegments(t *testing.T) {
	p := buildELF(true)
	const last = 64 + 2*56 // the header of the second piece of RAM
	le.PutUint64(p[last+32:], le.Uint64(p[last+32:])-2*arch.PageSize)
	g := openBytes(t, p, nil)
	if access := g.Info().Access; strings.Contains(access, "cut off") || !strings.Contains(access, "without 8 KiB") {
		t.Errorf("access %q", access)
	}
	_, err := g.ReadPhysical(make([]byte, 8), wantRegions[1].End()-arch.PageSize)
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "left out") {
		t.Errorf("read of what was left out: %v", err)
	}
	if _, err := g.ReadPhysical(make([]byte, 8), wantRegions[1].Start); err != nil {
		t.Errorf("read of what was not: %v", err)
	}
}

func TestTruncated(t *testing.T) {
	for name, p := range samples() {
		for _, cut := range []int{1, 8, 20, 60, 500, 5000, len(p) / 2, len(p) - 5} {
			g, err := Open(t.Context(), write(t, p[:min(cut, len(p))]), optionsFor(name))
			if err != nil {
				if !errors.Is(err, ErrFormat) && !strings.Contains(err.Error(), "EOF") {
					t.Errorf("%s cut at %d: %v", name, cut, err)
				}
				continue
			}
			touch(g)
			g.Close()
		}
	}
	p := buildELF(true)
	g := openBytes(t, p[:len(p)-3*arch.PageSize], nil)
	last := wantRegions[1].End() - arch.PageSize
	if _, err := g.ReadPhysical(make([]byte, 8), last); !errors.Is(err, ErrMissing) {
		t.Errorf("read of what was cut off: %v", err)
	}
	if _, err := g.ReadPhysical(make([]byte, 8), wantRegions[1].Start); err != nil {
		t.Errorf("read of what was not: %v", err)
	}
}

// touch reads all that a damaged image may offer, within reason.
func touch(g *vitrine.Guest) {
	buf := make([]byte, 8192)
	for i, r := range g.Regions() {
		if i == 64 {
			break
		}
		for _, a := range []arch.GPA{r.Start, r.Start + 5000, r.End() - 100, r.End() - 1} {
			_, _ = g.ReadPhysical(buf, a)
			_ = g.MapPhysical(a, 4096)
		}
		for off := uint64(0); off < min(r.Size, 1<<20); off += arch.PageSize {
			_, _ = g.ReadPhysical(buf[:64], r.Start+arch.GPA(off))
		}
	}
	for cpu := range min(g.CPUs(), 8) {
		if r, err := g.Registers(context.Background(), cpu); err == nil {
			as := g.AddressSpace(r.PagingMode(), r.Root())
			_, _ = as.Read(buf[:64], triageBase)
			_, _ = as.Read(buf, 0x80000000)
		}
	}
}

// QEMU writes less of notes for some AArch64 processors than its header says, and
// memory right behind.
func TestNotesShorterThanTold(t *testing.T) {
	const lacks = 1632
	p := buildELF(true)
	le.PutUint16(p[18:], machineARM64)
	told := func(p []byte) []byte { // what such a header tells
		p = bytes.Clone(p)
		le.PutUint64(p[64+32:], le.Uint64(p[64+32:])+lacks) // size of the notes
		for i := range ramPieces {
			at := 64 + 56*(1+i) + 8
			le.PutUint64(p[at:], le.Uint64(p[at:])+lacks)
		}
		return p
	}
	for name, c := range map[string]struct {
		image []byte
		cut   bool
	}{
		"as it should be": {p, false},
		"as QEMU writes":  {append(told(p), "\x00.shstrtab\x00"...), false},
		"cut off":         {p[:len(p)-lacks], true},
		"both":            {told(p)[:len(p)-lacks], true},
	} {
		g := openBytes(t, c.image, nil)
		for i, r := range ramPieces {
			got := make([]byte, r[1]*arch.PageSize)
			_, err := g.ReadPhysical(got, arch.GPA(r[0]*arch.PageSize))
			if cut := c.cut && i == len(ramPieces)-1; cut != (err != nil) || !cut && !bytes.Equal(got, piece(r)) {
				if name != "both" { // there nothing can be told
					t.Errorf("%s: frames from %d on: %v", name, r[0], err)
				}
			}
		}
	}
}

func TestNotAnImage(t *testing.T) {
	for name, c := range map[string]struct{ content, want string }{
		"empty":   {"", "empty"},
		"text":    {"hello world, hello world", "ELF core, kdump, flattened kdump, LiME, AVML, Windows crash dump"},
		"gzip":    {"\x1f\x8b\x08\x00\x00", "unpack"},
		"qemu":    {"QEVM\x00\x00\x00\x03", "savevm"},
		"program": {string(buildELF(true)[:16]) + "\x02\x00" + string(buildELF(true)[18:]), "type 2"},
		"short":   {"\x7fELF", "header"},
		"dmp":     {"PAGEDU64", "header"},
	} {
		_, err := Open(t.Context(), write(t, []byte(c.content)), nil)
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(t.Context(), filepath.Join(t.TempDir(), "none"), nil); !errors.Is(err, vitrine.ErrNotFound) {
		t.Errorf("no such file: %v", err)
	}
	if _, err := Open(t.Context(), t.TempDir(), nil); !errors.Is(err, ErrFormat) {
		t.Errorf("a folder: %v", err)
	}
}

func TestLayouts(t *testing.T) {
	for s, want := range map[string]Layout{
		"flat":                      {{}},
		"pc":                        {{}},
		"0x1000+4096,0x3000@0x1000": {{Start: 0x1000, Size: 4096}, {Start: 0x3000, Offset: 0x1000}},
	} {
		got, err := ParseLayout(s, 1<<30)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	got, err := ParseLayout("q35", 4<<30)
	if want := (Layout{{Size: q35Below}, {Start: fourGiB, Offset: q35Below}}); err != nil || !slices.Equal(got, want) {
		t.Errorf("q35: %v, %v", got, err)
	}
	for _, s := range []string{"", "x", "1+", "1+2+3", "1@", "0x10000000000000+1"} {
		if l, err := ParseLayout(s, 0); err == nil {
			t.Errorf("%q: %v", s, l)
		}
	}
}

// Of records that were written one over the other the last one counts.
func TestOverlay(t *testing.T) {
	head := make([]byte, flatHeader)
	copy(head, flatMagic)
	rec := func(at int, s string) {
		head = append(head, 0, 0, 0, 0, 0, 0, 0, byte(at), 0, 0, 0, 0, 0, 0, 0, byte(len(s)))
		head = append(head, s...)
	}
	rec(0, "aaaaaaaaaa")
	rec(20, "bbbbb")
	rec(2, "cccc")
	rec(4, "dd")
	rec(23, "eeeeeee")
	f, err := openFile(write(t, head))
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	b, err := readFlat(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, b.size())
	if _, err := b.readAt(got, 0); err != nil || string(got) != "aaccddaaaa\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00bbbeeeeeee" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestTriage(t *testing.T) {
	for name, base := range map[string]uint64{"windows-triage": triageBase, "windows-triage32": 0x80000000} {
		g := openBytes(t, samples()[name], nil)
		c := g.WindowsCrash()
		if c == nil || c.Type != vitrine.WindowsTriage || c.Build != 19041 || c.DirectoryTableBase != 0x3000 {
			t.Fatalf("%s: %+v", name, c)
		}
		as := g.AddressSpace(c.Paging, c.DirectoryTableBase)
		got := make([]byte, triageBlock)
		for _, r := range ramPieces {
			for f := r[0]; f < r[0]+r[1]; f++ {
				va := arch.GVA(base + f*arch.PageSize)
				if _, err := as.Read(got, va); err != nil || !bytes.Equal(got, page(f)[:triageBlock]) {
					t.Fatalf("%s: page %d: %v", name, f, err)
				}
				if n, err := as.Read(make([]byte, 200), va+triageBlock-100); n != 100 || !errors.Is(err, ErrMissing) {
					t.Errorf("%s: behind the block of page %d: %d, %v", name, f, n, err)
				}
			}
		}
		var fault *vitrine.FaultError
		if _, err := as.Read(got, arch.GVA(base+28*arch.PageSize)); !errors.As(err, &fault) {
			t.Errorf("%s: where there is no block: %v", name, err)
		}
	}
}

// A crash dump of Windows 10, which this project does not contain.
func TestRealTriage(t *testing.T) {
	data, err := ntguest.DataDir()
	if err != nil {
		t.Skipf("skipped: no crash dump; it runs with the folder of the reference data: %v", err)
	}
	g, err := Open(t.Context(), filepath.Join(data, "nt-dumps", "win10-19041-x64-triage.dmp"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	c := g.WindowsCrash()
	if c.Build != 19041 || c.BugCheck != 0x1000007e || g.CPUs() != 16 || len(c.Drivers) != 151 || c.Drivers[0].Base != 0xfffff8047ba00000 {
		t.Errorf("%d processors, %+v", g.CPUs(), c)
	}
	as := g.AddressSpace(c.Paging, c.DirectoryTableBase)
	name, err := as.ReadString(c.Process+0x5a8, 15)
	if pid, perr := as.ReadUint64(c.Process + 0x440); name != "System" || pid != 4 || err != nil || perr != nil {
		t.Errorf("process %q, pid %d: %v, %v", name, pid, err, perr)
	}
}

// A core does not tell EFER: a 32-bit system is known by where its interrupt table
// lies, unless 64-bit code runs.
func TestQEMUStateOf32Bits(t *testing.T) {
	for _, c := range []struct {
		idt  uint64
		code uint32 // flags of CS
		want arch.PagingMode
	}{
		{0xff40_0000, 0, arch.PagingPAE}, {0xff40_0000, 1 << 21, arch.Paging4Level}, {0xffff_fe00_0000_0000, 0, arch.Paging4Level}, {0, 0, arch.Paging4Level},
	} {
		p := qemuState(0x1000)
		le.PutUint64(p[152+9*24+16:], c.idt)
		le.PutUint32(p[152+8:], c.code)
		r, ok := parseQEMUState(p, arch.AMD64)
		if !ok || r.PagingMode() != c.want || r.IDTBase != c.idt {
			t.Errorf("IDT at %#x, flags %#x: %v, %v, want %v", c.idt, c.code, r.PagingMode(), ok, c.want)
		}
	}
}
