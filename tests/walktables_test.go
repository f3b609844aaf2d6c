package tests

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/qemu"
)

// Bits of page-table entries (SDM 3A, 4.5).
const (
	pP, pW, pU, pBig = 1, 2, 4, 0x80
	pNX              = 1 << 63
	pRW              = pP | pW
	pAll             = pP | pW | pU
)

// tables are page tables that the test writes into a guest that then uses them.
type tables struct {
	mode     arch.PagingMode
	cr3, cr4 uint32
	efer     uint32
	entries  map[arch.GPA]uint64
	pat      arch.GVA   // a 4 KiB page with bit 7, which is PAT there
	unmapped []arch.GVA // besides the neighbours of what is mapped
	upperNX  arch.GVA   // a page on which only an upper level forbids execution
	want     []string   // kinds of pages that must be there

}

const (
	ctlPSE, ctlPAE, ctlLA57   = 0x10, 0x20, 0x1000
	eferLME, eferNXE          = 0x100, 0x800
	ctlPE, ctlWP, ctlPG       = 1, 1 << 16, 1 << 31
	pageTable                 = arch.GPA(0x200000)
	directory, upper, topmost = arch.GPA(0x201000), arch.GPA(0x202000), arch.GPA(0x203000)
	otherTable, patPage       = arch.GPA(0x204000), arch.GVA(0x1b000)
)

// lastTable fills a table of 4 KiB pages: pages of all permissions, one that is
// not there, one with the PAT bit, and the page that the guest's code is in.
func (b *tables) lastTable(nx uint64) {
	size := arch.GPA(8)
	if b.mode == arch.Paging32Bit {
		size = 4
	}
	for _, at := range []arch.GPA{pageTable, otherTable} {
		for i, flags := range []uint64{pAll, pP | pU, pRW, pP, pW | pU, pAll | nx, pP | nx} {
			b.entries[at+arch.GPA(0x10+2*i)*size] = uint64(0x300000+i*0x1000) | flags
		}
		b.entries[at+0x1b*size] = 0x311000 | pAll | pBig
		b.entries[at+0xf0*size] = 0xf0000 | pRW
	}
	b.pat = patPage
}

func twoLevelTables() *tables {
	b := &tables{mode: arch.Paging32Bit, cr3: uint32(directory) | 0x18, cr4: ctlPSE, want: []string{"4 KiB user true", "4 KiB user false", "4096 KiB user true", "4096 KiB user false"}}
	b.entries = map[arch.GPA]uint64{
		directory:             uint64(pageTable) | pAll,
		directory + 4*1:       0x800000 | pBig | pAll,
		directory + 4*2:       0xc00000 | pBig | pP,
		directory + 4*3:       uint64(otherTable) | pP | pU,
		directory + 4*5:       uint64(otherTable) | pRW,
		directory + 4*6:       0x1000000 | 1<<13 | pBig | pAll, // PSE-36: at 4 GiB and 16 MiB
		directory + 4*0x200:   0x1400000 | pBig | pRW,
		directory + 4*0x3ff:   0x1800000 | pBig | pP | pU,
		directory + 4*(0x3f0): 0x1400000 | pBig | pW, // not present
	}
	b.lastTable(0)
	b.unmapped = []arch.GVA{0x15000, 0xfc000000, 0x70000000}
	return b
}

// directories fills a page directory of 2 MiB pages and the tables below.
func (b *tables) directories(at arch.GPA) {
	b.entries[at] = uint64(pageTable) | pAll
	b.entries[at+8*1] = 0x800000 | pBig | pAll
	b.entries[at+8*2] = 0xa00000 | pBig | pP | pNX
	b.entries[at+8*3] = uint64(otherTable) | pP | pU | pNX
	b.entries[at+8*4] = uint64(otherTable) | pRW
	b.entries[at+8*6] = 0xc00000 | pBig | pW // not present
	b.entries[at+8*511] = 0x1200000 | pBig | pP | pU
	b.lastTable(pNX)
	b.upperNX = 3<<21 | 0x10000
}

func paeTables() *tables {
	const pointers = topmost + 0x20 // four entries, at any multiple of 32
	b := &tables{mode: arch.PagingPAE, cr3: uint32(pointers) | 0x18, cr4: ctlPAE, efer: eferNXE, want: []string{"4 KiB user true", "4 KiB user false", "2048 KiB user true", "2048 KiB user false"}}
	b.entries = map[arch.GPA]uint64{
		pointers:       uint64(directory) | pP,
		pointers + 8*3: uint64(upper) | pP,
		upper + 8*511:  0x1400000 | pBig | pRW,
		upper:          uint64(otherTable) | pAll,
	}
	b.directories(directory)
	b.unmapped = []arch.GVA{0x15000, 0x40000000, 0xbffff000, 0xc0300000}
	return b
}

func longTables(mode arch.PagingMode) *tables {
	b := &tables{mode: mode, cr3: uint32(topmost) | 0x18, cr4: ctlPAE, efer: eferNXE | eferLME, want: []string{
		"4 KiB user true", "4 KiB user false", "2048 KiB user true", "2048 KiB user false", "1048576 KiB user true", "1048576 KiB user false"}}
	b.entries = map[arch.GPA]uint64{
		topmost:         uint64(upper) | pAll,
		topmost + 8*1:   uint64(upper) | pP | pU | pNX,
		topmost + 8*256: uint64(upper) | pRW,
		topmost + 8*511: uint64(upper) | pP,
		upper:           uint64(directory) | pAll,
		upper + 8*1:     0x40000000 | pBig | pAll,
		upper + 8*2:     0 | pBig | pP | pNX,
		upper + 8*4:     0x80000000 | pBig | pW, // not present
		upper + 8*510:   0xc0000000 | pBig | pRW | pU,
	}
	b.directories(directory)
	b.unmapped = []arch.GVA{0x15000, 3 << 30, 4 << 30, 2 << 39, 0xffff_9000_0000_0000}
	if mode == arch.Paging5Level {
		const five = arch.GPA(0x205000)
		b.cr3, b.cr4 = uint32(five)|0x18, ctlPAE|ctlLA57
		b.entries[five] = uint64(topmost) | pAll
		b.entries[five+8*3] = uint64(topmost) | pP | pU
		b.entries[five+8*256] = uint64(topmost) | pAll | pNX
		b.entries[five+8*511] = uint64(topmost) | pRW
		b.unmapped = append(b.unmapped, 1<<48, 0xff80_0000_0000_0000)
	}
	return b
}

// firmware returns 64 KiB of firmware that turns paging on and halts. In long
// mode it stays in a 32-bit code segment, for which paging is the same.
func (b *tables) firmware() []byte {
	rom := make([]byte, 64<<10)
	imm := func(v uint32) string { return string(binary.LittleEndian.AppendUint32(nil, v)) }
	const gdt, gdtr = 0x100, 0x180
	real := "\xfa" + // cli
		"\x2e\x66\x0f\x01\x16" + imm(gdtr)[:2] + // lgdt cs:[gdtr]
		"\x0f\x20\xc0\x0c\x01\x0f\x22\xc0" // CR0.PE
	real += "\x66\xea" + imm(uint32(0xf0000+len(real)+8)) + "\x08\x00" // jump to 32-bit code, just behind
	code := real + "\x66\xb8\x10\x00\x8e\xd8\x8e\xc0\x8e\xd0" +        // mov ds, es, ss
		"\xb8" + imm(b.cr4) + "\x0f\x22\xe0" +
		"\xb9" + imm(0xc000_0080) + "\xb8" + imm(b.efer) + "\x31\xd2\x0f\x30" + // wrmsr EFER
		"\xb8" + imm(b.cr3) + "\x0f\x22\xd8" +
		"\xb8" + imm(ctlPG|ctlWP|ctlPE) + "\x0f\x22\xc0" +
		"\xf4\xeb\xfd" // hlt, for ever
	copy(rom, code)
	copy(rom[gdt+8:], "\xff\xff\x00\x00\x00\x9a\xcf\x00\xff\xff\x00\x00\x00\x92\xcf\x00")
	copy(rom[gdtr:], "\x17\x00"+imm(0xf0000+gdt))
	copy(rom[0xfff0:], "\xe9\x0d\x00") // where the processor starts: jump to the front
	return rom
}

// start returns a guest that runs on these tables, halted, and stopped.
func (b *tables) start(t *testing.T) (*testvm.VM, *vitrine.Guest) {
	t.Helper()
	rom := filepath.Join(t.TempDir(), "rom")
	if err := os.WriteFile(rom, b.firmware(), 0o600); err != nil {
		t.Fatal(err)
	}
	vm := vmtest.Start(t, &testvm.Options{Firmware: true, Paused: true, Memory: 64, Args: []string{"-bios", rom}})
	g, err := qemu.Attach(t.Context(), vm.QMP, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	width := 8
	if b.mode == arch.Paging32Bit {
		width = 4
	}
	for at, e := range b.entries {
		if err := g.WritePhysical(binary.LittleEndian.AppendUint64(nil, e)[:width], at); err != nil {
			t.Fatal(err)
		}
	}
	if err := vm.Cont(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.awaitHalt(t, vm, g)
	return vm, g
}

// awaitHalt waits until the guest has turned paging on and halted.
func (b *tables) awaitHalt(t *testing.T, vm *testvm.VM, g *vitrine.Guest) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		r, err := g.Registers(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		regs, err := vm.HMP(t.Context(), "info registers")
		if err != nil {
			t.Fatal(err)
		}
		if r.CR0&ctlPG != 0 && strings.Contains(regs, "HLT=1") {
			if r.PagingMode() != b.mode || r.Root() != arch.Root(b.mode, uint64(b.cr3)) {
				t.Fatalf("guest has paging %v at %v, want %v", r.PagingMode(), r.Root(), b.mode)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("guest has not turned paging on: %s", regs)
		}
	}
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// In each paging mode, a guest that runs on tables of the test's own making has
// each page where QEMU's walkers have it, with the same size and permissions.
func TestWalkIsWhatQEMUSays(t *testing.T) {
	for _, b := range []*tables{twoLevelTables(), paeTables(), longTables(arch.Paging4Level), longTables(arch.Paging5Level)} {
		t.Run(b.mode.String(), func(t *testing.T) {
			vm, g := b.start(t)
			root := arch.Root(b.mode, uint64(b.cr3))
			w := askEmulator(t, vm, b.mode)
			for i := range w.rows {
				if w.rows[i].va&0x1fffff == b.pat {
					w.rows[i].large = false
				}
			}
			sizes := w.compare(g, b.mode, root, 4)
			for _, want := range b.want {
				if sizes[want] == 0 {
					t.Errorf("no page of %s among %v", want, sizes)
				}
			}
			if b.mode == arch.Paging5Level {
				b.sameBelowTop(t, g, w)
			}
			for _, va := range b.unmapped {
				if _, mapped := w.translate(va); mapped {
					t.Errorf("QEMU has %v mapped: the test is wrong", va)
				}
				w.sameAddress(g, b.mode, root, va)
			}
			if m, err := arch.Walk(g, b.mode, root, b.upperNX); b.upperNX != 0 && (err != nil || !m.NoExec) {
				t.Errorf("Walk(%v) = %+v, %v, want no execution, by a level above the last", b.upperNX, m, err)
			}
		})
	}
}

// sameBelowTop checks that a page of a guest with five levels is what the four
// lower levels make of it, narrowed by what its top entry forbids.
func (b *tables) sameBelowTop(t *testing.T, g *vitrine.Guest, w *emulatorWalk) {
	t.Helper()
	for _, r := range w.rows {
		got, err := arch.Walk(g, b.mode, arch.Root(b.mode, uint64(b.cr3)), r.va)
		lower := arch.GVA(int64(r.va) << 16 >> 16)
		want, err2 := arch.Walk(g, arch.Paging4Level, topmost, lower)
		switch uint64(r.va) >> 48 & 511 {
		case 3:
			want.Writable = false
		case 256:
			want.NoExec = true
		case 511:
			want.User = false
		}
		if got != want || err != nil || err2 != nil {
			t.Errorf("Walk(%v) = %+v, %v; by four levels %+v, %v", r.va, got, err, want, err2)
		}
	}
}

// A guest that runs 32-bit code of its own, with paging on, is no operating
// system, and Describe says so and what it saw.
func TestDescribeRefusesBootCode(t *testing.T) {
	for _, b := range []*tables{twoLevelTables(), paeTables()} {
		t.Run(b.mode.String(), func(t *testing.T) {
			vm, g := b.start(t)
			if err := vm.Cont(t.Context()); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			k, err := kernel.Describe(ctx, g, &kernel.Options{Wait: -1})
			if k != nil || !errors.Is(err, vitrine.ErrNotUnderstood) || !errors.Is(err, vitrine.ErrNotBooted) {
				t.Fatalf("Describe = %v, %v; want ErrNotBooted", k, err)
			}
			if !strings.Contains(err.Error(), "paging "+b.mode.String()) {
				t.Errorf("error does not say which paging was seen: %v", err)
			}
			t.Log(err)
		})
	}
}
