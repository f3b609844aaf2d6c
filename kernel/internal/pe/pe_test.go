package pe

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Where the parts of the image under test lie.
const (
	testExports  = 0x1000
	testDebug    = 0x2000
	testResource = 0x3000
	testSize     = 0x5000
)

type writer []byte

func (w writer) u16(at int, v uint16)  { binary.LittleEndian.PutUint16(w[at:], v) }
func (w writer) u32(at int, v uint32)  { binary.LittleEndian.PutUint32(w[at:], v) }
func (w writer) text(at int, s string) { copy(w[at:], s+"\x00") }

// image returns a mapped image with everything that the package reads.
func image(plus bool) writer {
	w := make(writer, testSize)
	w.text(0, "MZ")
	w.u32(0x3c, 0x80)
	w.text(0x80, "PE")
	w.u16(0x84, I386)
	w.u16(0x86, 2)
	w.u32(0x88, 0x4a5bc007)
	magic, optional, dirs := uint16(0x10b), 224, 96
	if plus {
		w.u16(0x84, AMD64)
		magic, optional, dirs = 0x20b, 240, 112
	}
	w.u16(0x94, uint16(optional))
	o := 0x98
	w.u16(o, magic)
	w.u32(o+16, 0x1234)
	w.u32(o+24+map[bool]int{true: 0, false: 4}[plus], 0x400000)
	w.u32(o+56, testSize)
	w.u32(o+dirs-4, 16)
	for i, d := range map[int][2]uint32{dirExport: {testExports, 0x400}, dirDebug: {testDebug, 56}, dirResource: {testResource, 0x200}} {
		w.u32(o+dirs+8*i, d[0])
		w.u32(o+dirs+8*i+4, d[1])
	}
	s := o + optional
	w.text(s, ".text")
	w.u32(s+8, 0x2000)
	w.u32(s+12, 0x1000)
	w.u32(s+36, sectionExecute)
	w.text(s+40, "INITDATA") // no NUL within its 8 bytes
	w.u32(s+48, 0x1000)
	w.u32(s+52, 0x3000)
	w.u32(s+76, sectionWrite|sectionDiscard)
	w.exports()
	w.debug()
	w.resource()
	return w
}

func (w writer) exports() {
	e := testExports
	w.u32(e+12, uint32(e+0x100))
	w.text(e+0x100, "ntoskrnl.exe")
	w.u32(e+20, 3)
	w.u32(e+24, 3)
	w.u32(e+28, uint32(e+0x40))
	w.u32(e+32, uint32(e+0x60))
	w.u32(e+36, uint32(e+0x80))
	for i, x := range []struct {
		name string
		rva  uint32
	}{{"KeBugCheck", 0x1600}, {"NtBuildNumber", 0x3010}, {"Moved", uint32(e + 0x200)}} {
		w.u32(e+0x60+4*i, uint32(e+0x120+0x20*i))
		w.text(e+0x120+0x20*i, x.name)
		w.u16(e+0x80+2*i, uint16(2-i)) // ordinals in the opposite order
		w.u32(e+0x40+4*(2-i), x.rva)
	}
	w.text(e+0x200, "HAL.Moved")
}

func (w writer) debug() {
	w.u32(testDebug+12, 4) // a record of another type first
	w.u32(testDebug+28+12, debugCodeView)
	w.u32(testDebug+28+20, testDebug+0x100)
	w.text(testDebug+0x100, "RSDS\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x07")
	w.text(testDebug+0x118, `d:\w7rtm\ntkrnlpa.pdb`)
}

func (w writer) resource() {
	r := testResource
	w.u16(r+14, 2) // two types: the second is the version
	w.u32(r+16, 3)
	w.u32(r+24, 16)
	w.u32(r+28, 0x40|1<<31)
	w.u16(r+0x40+14, 1)
	w.u32(r+0x50, 1)
	w.u32(r+0x54, 0x60|1<<31)
	w.u16(r+0x60+14, 1)
	w.u32(r+0x70, 0x409)
	w.u32(r+0x74, 0x80)
	w.u32(r+0x80, uint32(r+0x100))
	w.u32(r+0x100+40, 0xfeef04bd)
	w.u32(r+0x100+48, 6<<16|1)
	w.u32(r+0x100+52, 7601<<16|17514)
}

// memory reads b, but for the pages in out.
func memory(b []byte, out ...uint32) Memory {
	return func(p []byte, rva uint32) int {
		n := 0
		for n < len(p) && int(rva)+n < len(b) {
			for _, page := range out {
				if (rva+uint32(n))/pageSize == page {
					return n
				}
			}
			p[n] = b[int(rva)+n]
			n++
		}
		return n
	}
}

func TestImage(t *testing.T) {
	for _, plus := range []bool{false, true} {
		im, err := Read(memory(image(plus)))
		if err != nil {
			t.Fatal(err)
		}
		if im.Plus != plus || im.Size != testSize || im.Entry != 0x1234 || im.Base != 0x400000 || im.TimeStamp != 0x4a5bc007 {
			t.Errorf("%+v", im)
		}
		want := []Section{{Name: ".text", RVA: 0x1000, Size: 0x2000, Executable: true}, {Name: "INITDATA", RVA: 0x3000, Size: 0x1000, Writable: true, Discard: true}}
		if diff := cmp.Diff(want, im.Sections); diff != "" {
			t.Error(diff)
		}
		e, err := im.Exports()
		wantExports := &Exports{Image: "ntoskrnl.exe", Exports: []Export{{Name: "KeBugCheck", RVA: 0x1600}, {Name: "NtBuildNumber", RVA: 0x3010}, {Name: "Moved", Forward: "HAL.Moved"}}}
		if diff := cmp.Diff(wantExports, e); err != nil || diff != "" {
			t.Error(err, diff)
		}
		c, err := im.CodeView()
		if want := (CodeView{Path: `d:\w7rtm\ntkrnlpa.pdb`, GUID: "04030201060508070" + "90A0B0C0D0E0F10", Age: 7}); err != nil || c != want || c.File() != "ntkrnlpa.pdb" {
			t.Errorf("%+v, %v", c, err)
		}
		v, err := im.Version()
		if want := [4]int{6, 1, 7601, 17514}; err != nil || v != want {
			t.Errorf("%v, %v", v, err)
		}
	}
}

func TestPagedOut(t *testing.T) {
	im, err := Read(memory(image(true), testDebug/pageSize, testResource/pageSize))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.CodeView(); !errors.Is(err, ErrPagedOut) {
		t.Errorf("CodeView: %v", err)
	}
	if _, err := im.Version(); !errors.Is(err, ErrPagedOut) {
		t.Errorf("Version: %v", err)
	}
	if e, err := im.Exports(); err != nil || len(e.Exports) != 3 {
		t.Errorf("Exports: %+v, %v", e, err)
	}
	// The names of two exports lie in a page that is out.
	w := image(true)
	w.u32(testExports+0x60, 0x4010)
	w.u32(testExports+0x64, 0x4020)
	im, err = Read(memory(w, 4))
	if e, err2 := im.Exports(); err != nil || err2 != nil || len(e.Exports) != 1 || e.Missing != 2 {
		t.Errorf("Exports with names paged out: %+v, %v, %v", e, err, err2)
	}
	if _, err := Read(memory(image(true), 0)); !errors.Is(err, ErrFormat) {
		t.Errorf("Read without its first page: %v", err)
	}
}

func TestRefused(t *testing.T) {
	for name, spoil := range map[string]func(w writer){
		"no MZ":             func(w writer) { w[0] = 0 },
		"header far away":   func(w writer) { w.u32(0x3c, 0x10000) },
		"no PE":             func(w writer) { w[0x80] = 0 },
		"magic":             func(w writer) { w.u16(0x98, 0x107) },
		"no size":           func(w writer) { w.u32(0x98+56, 0) },
		"optional header":   func(w writer) { w.u16(0x94, 20) },
		"too many sections": func(w writer) { w.u16(0x86, 0xffff) },
	} {
		w := image(true)
		spoil(w)
		if im, err := Read(memory(w)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %+v, %v", name, im, err)
		}
	}
	for name, spoil := range map[string]func(w writer){
		"too many names": func(w writer) { w.u32(testExports+24, 1<<30) },
		"outside":        func(w writer) { w.u32(0x98+112, 0xfffff000) },
		"absent":         func(w writer) { w.u32(0x98+112, 0) },
	} {
		w := image(true)
		spoil(w)
		im, err := Read(memory(w))
		if err != nil {
			t.Fatal(err)
		}
		if e, err := im.Exports(); err == nil {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(image(true)), uint32(9))
	f.Add([]byte(image(false)), uint32(2))
	f.Fuzz(func(t *testing.T, b []byte, out uint32) {
		im, err := Read(memory(b, out))
		if err != nil {
			return
		}
		if e, err := im.Exports(); (e == nil) == (err == nil) {
			t.Errorf("Exports = %v, %v", e, err)
		}
		if c, err := im.CodeView(); (c == CodeView{}) == (err == nil) && err != nil {
			t.Errorf("CodeView = %v, %v", c, err)
		}
		if v, err := im.Version(); err != nil && v != [4]int{} {
			t.Errorf("Version = %v, %v", v, err)
		}
	})
}
