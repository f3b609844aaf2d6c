package hmp

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

const mtree = `FlatView #0
 AS "cpu-smm-0", root: memory
 Root memory region: memory
  0000000000000000-00000000000bffff (prio 0, ram): pc.ram

FlatView #1
 AS "i440FX", root: bus master container
 Root memory region: (none)
  No rendered FlatView

FlatView #2
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000cafff (prio 0, rom): pc.ram @00000000000c0000 KVM
  0000000000100000-0000000003ffffff (prio 0, ram): pc.ram @0000000000100000
  00000000febf0400-00000000febf041f (prio 0, i/o): vga ioports remapped

FlatView #3
 AS "I/O", root: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan
`

func TestParseMtreeTakesTheProcessorsView(t *testing.T) {
	got, err := ParseMtree(mtree)
	if err != nil {
		t.Fatal(err)
	}
	want := []Range{
		{0, 0x9ffff, "ram", "pc.ram", 0},
		{0xa0000, 0xbffff, "i/o", "vga-lowmem", 0},
		{0xc0000, 0xcafff, "rom", "pc.ram", 0xc0000},
		{0x100000, 0x3ffffff, "ram", "pc.ram", 0x100000},
		{0xfebf0400, 0xfebf041f, "i/o", "vga ioports remapped", 0},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestFindRange(t *testing.T) {
	if r, ok := FindRange(mtree, "dma-chan"); !ok || r.Start != 0 || r.Last != 7 {
		t.Errorf("dma-chan is at %+v, %v", r, ok)
	}
	if r, ok := FindRange(mtree, "acpi-tmr"); ok {
		t.Errorf("acpi-tmr is at %+v", r)
	}
}

func TestParseMtreeRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":        "",
		"no such view":   "FlatView #0\n AS \"I/O\", root: io\n  00-07 (prio 0, i/o): x\n",
		"an empty view":  "FlatView #0\n AS \"memory\", root: system\n",
		"an unknown cmd": "unknown command: 'info mtree -f'\n",
		"overlap":        "FlatView #0\n AS \"memory\", root: system\n  00-07 (prio 0, ram): x\n  04-09 (prio 0, ram): y\n",
	} {
		if r, err := ParseMtree(text); err == nil {
			t.Errorf("%s: got %v, want an error", name, r)
		}
	}
}

func TestParseGPA2HVA(t *testing.T) {
	v, err := ParseGPA2HVA("Host virtual address for 0x100000 (pc.ram) is 0x7f2403f00000\r\n")
	if err != nil || v != 0x7f2403f00000 {
		t.Errorf("got %#x, %v", v, err)
	}
	for _, text := range []string{"", "No memory is mapped at address 0xa0000", "Memory at address 0xfd000000 is not RAM", "Host virtual address for x is 0xzz"} {
		if v, err := ParseGPA2HVA(text); err == nil {
			t.Errorf("%q: got %#x, want an error", text, v)
		}
	}
}

func TestParseXP(t *testing.T) {
	var p [12]byte
	n, err := ParseXP("0000000000001000: 0x0807060504030201 0x100f0e0d0c0b0a09\r\n", p[:])
	if err != nil || n != 12 || p != [12]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12} {
		t.Errorf("got %d, %v, %v", n, err, p)
	}
	if n, err := ParseXP("0000000000001000: Cannot access memory\r\n", p[:]); err == nil {
		t.Errorf("unreadable memory gave %d bytes and no error", n)
	}
}

func FuzzParsers(f *testing.F) {
	f.Add(mtree)
	f.Add("Host virtual address for 0x0 (pc.ram) is 0x7f2403e00000")
	f.Add("0000000000001000: 0x0807060504030201 0x100f0e0d0c0b0a09")
	f.Fuzz(func(t *testing.T, text string) {
		if rs, err := ParseMtree(text); (err == nil) == (rs == nil) {
			t.Errorf("ParseMtree: %v and %v", rs, err)
		}
		if v, err := ParseGPA2HVA(text); err != nil && v != 0 {
			t.Errorf("ParseGPA2HVA: %v and %v", v, err)
		}
		var p [64]byte
		if n, _ := ParseXP(text, p[:]); n < 0 || n > len(p) {
			t.Errorf("ParseXP: %d", n)
		}
	})
}
