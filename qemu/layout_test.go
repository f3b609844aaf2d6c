package qemu

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/qemu/internal/hmp"
)

func TestSpans(t *testing.T) {
	const gib = 1 << 30
	for _, tt := range []struct {
		name    string
		view    []hmp.Range
		memdevs []string
		want    []span
	}{
		{
			"a PC after its firmware", []hmp.Range{
				{Start: 0, Last: 0x9ffff, Type: "ram", Name: "m0"},
				{Start: 0xa0000, Last: 0xbffff, Type: "i/o", Name: "vga-lowmem"},
				{Start: 0xc0000, Last: 0xcafff, Type: "rom", Name: "m0", Offset: 0xc0000},
				{Start: 0xcb000, Last: 0xfffff, Type: "ram", Name: "m0", Offset: 0xcb000},
				{Start: 0x100000, Last: 3*gib - 1, Type: "ram", Name: "m0", Offset: 0x100000},
				{Start: 0xfd000000, Last: 0xfdffffff, Type: "ram", Name: "vga.vram"},
				{Start: 0xfffc0000, Last: 0xffffffff, Type: "rom", Name: "pc.bios"},
				{Start: 4 * gib, Last: 5*gib - 1, Type: "ram", Name: "m0", Offset: 3 * gib},
			}, []string{"m0"},
			[]span{
				{0, 0xa0000, "m0", 0, true},
				{0xc0000, 3*gib - 0xc0000, "m0", 0xc0000, true},
				{0xfd000000, 0x1000000, "vga.vram", 0, false},
				{0xfffc0000, 0x40000, "pc.bios", 0, false},
				{4 * gib, gib, "m0", 3 * gib, true},
			},
		},
		{
			"a PC in its firmware: ROM where RAM will be", []hmp.Range{
				{Start: 0, Last: 0x9ffff, Type: "ram", Name: "pc.ram"},
				{Start: 0xc0000, Last: 0xdffff, Type: "rom", Name: "pc.rom"},
				{Start: 0xe0000, Last: 0xfffff, Type: "rom", Name: "isa-bios", Offset: 0x20000},
				{Start: 0x100000, Last: 0x3ffffff, Type: "ram", Name: "pc.ram", Offset: 0x100000},
			}, []string{"pc.ram"},
			[]span{{0, 0xa0000, "pc.ram", 0, true}, {0xc0000, 0x4000000 - 0xc0000, "pc.ram", 0xc0000, true}},
		},
		{
			"an old QEMU that lists no backend", []hmp.Range{
				{Start: 0, Last: 0xfffff, Type: "ram", Name: "pc.ram"},
				{Start: 0xfd000000, Last: 0xfdffffff, Type: "ram", Name: "vga.vram"},
			}, nil,
			[]span{{0, 0x100000, "pc.ram", 0, true}, {0xfd000000, 0x1000000, "vga.vram", 0, false}},
		},
		{
			"two nodes, flash, no shadow", []hmp.Range{
				{Start: 0, Last: 0x3ffffff, Type: "romd", Name: "flash"},
				{Start: 0x40000000, Last: 0x4fffffff, Type: "ram", Name: "a"},
				{Start: 0x50000000, Last: 0x5fffffff, Type: "ram", Name: "b"},
			}, []string{"a", "b"},
			[]span{{0x40000000, 0x10000000, "a", 0, true}, {0x50000000, 0x10000000, "b", 0, true}},
		},
		{"nothing", nil, []string{"a"}, nil},
	} {
		got := spans(tt.view, tt.memdevs)
		if d := cmp.Diff(tt.want, got, cmp.AllowUnexported(span{})); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
	}
}

func TestFindPrefersTheLargest(t *testing.T) {
	mem := memory{pieces: []piece{
		{span: span{start: 0, size: 0xa0000, main: true}},
		{span: span{start: 0xfffc0000, size: 0x40000}},
		{span: span{start: 1 << 32, size: 1 << 30, main: true}},
		{span: span{start: 0xc0000, size: 3 << 30, main: true}},
	}}
	mem.sortPieces()
	if p := mem.pieces; p[0].start != 0xc0000 || p[1].start != 1<<32 || p[2].start != 0 || p[3].main {
		t.Errorf("order: %+v", p)
	}
	for a, want := range map[uint64]uint64{0: 0, 0x9ffff: 0, 0xc0000: 0xc0000, 1<<32 + 5: 1 << 32, 0xffffffff: 0xfffc0000} {
		if p := mem.find(a); p == nil || p.start != want {
			t.Errorf("find(%#x) = %+v", a, p)
		}
	}
	for _, a := range []uint64{0xa0000, 1<<32 + 1<<30, ^uint64(0)} {
		if p := mem.find(a); p != nil {
			t.Errorf("find(%#x) = %+v", a, p)
		}
	}
	if r := mem.regions(); len(r) != 3 || r[0].Start != 0 || r[2].Start != 1<<32 {
		t.Errorf("regions = %+v", r)
	}
}
