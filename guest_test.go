package vitrine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/vitrine-vmi/vitrine/arch"
)

// flat is a backend of n bytes of RAM from address 0, writable and mapped.
type flat struct {
	ram    []byte
	closed int
	reads  int
}

func (f *flat) ReadPhysical(p []byte, a arch.GPA) (int, error) {
	f.reads++
	if uint64(a) >= uint64(len(f.ram)) {
		return 0, &PhysicalError{Addr: a}
	}
	n := copy(p, f.ram[a:])
	if n < len(p) {
		return n, &PhysicalError{Addr: a + arch.GPA(n)}
	}
	return n, nil
}

func (f *flat) WritePhysical(p []byte, a arch.GPA) error {
	copy(f.ram[a:], p)
	return nil
}

func (f *flat) Regions() []Region { return []Region{{0, uint64(len(f.ram))}} }
func (f *flat) Close() error      { f.closed++; return errors.New("closed") }

func (f *flat) entry(table, index, v uint64) {
	binary.LittleEndian.PutUint64(f.ram[table+index*8:], v)
}

// newMapped returns a guest in which 0xffffffff80000000 and the page behind it
// map to two frames that are not neighbours; the third page is not present.
func newMapped() (*flat, *AddressSpace) {
	f := &flat{ram: make([]byte, 0x10000)}
	f.entry(0x1000, 511, 0x2003)
	f.entry(0x2000, 510, 0x3003)
	f.entry(0x3000, 0, 0x4003)
	f.entry(0x4000, 0, 0x8003)
	f.entry(0x4000, 1, 0x6003)
	f.entry(0x4000, 3, 0xff_0003) // outside RAM
	g := New(f, Info{Backend: "flat", Arch: arch.AMD64, CPUs: 1})
	return f, g.AddressSpace(arch.Paging4Level, 0x1000)
}

const kernelBase = arch.GVA(0xffffffff80000000)

func TestAddressSpaceReadAcrossPages(t *testing.T) {
	f, as := newMapped()
	copy(f.ram[0x8ffc:], "abcd")
	copy(f.ram[0x6000:], "efgh\x00")
	got := make([]byte, 8)
	if n, err := as.Read(got, kernelBase+0xffc); n != 8 || err != nil || string(got) != "abcdefgh" {
		t.Errorf("Read = %d, %v, %q; want 8 bytes abcdefgh", n, err, got)
	}
	if s, err := as.ReadString(kernelBase+0xffc, 100); s != "abcdefgh" || err != nil {
		t.Errorf("ReadString = %q, %v; want abcdefgh", s, err)
	}
	if v, err := as.ReadUint64(kernelBase + 0xffc); v != 0x6867666564636261 || err != nil {
		t.Errorf("ReadUint64 = %#x, %v", v, err)
	}
	if v, err := as.ReadUint16(kernelBase + 0xfff); v != 0x6564 || err != nil {
		t.Errorf("ReadUint16 = %#x, %v", v, err)
	}
}

func TestAddressSpaceShortReads(t *testing.T) {
	f, as := newMapped()
	copy(f.ram[0x6ffc:], "wxyz")
	p := make([]byte, 8)
	n, err := as.Read(p, kernelBase+0x1ffc)
	var fault *FaultError
	if n != 4 || !errors.As(err, &fault) || fault.Addr != kernelBase+0x2000 || fault.Level != 1 {
		t.Errorf("Read into a hole = %d, %v; want 4 and a level 1 fault at %v", n, err, kernelBase+0x2000)
	}
	if s, err := as.ReadString(kernelBase+0x1ffc, 100); s != "wxyz" || !errors.As(err, &fault) {
		t.Errorf("ReadString into a hole = %q, %v; want wxyz and a fault", s, err)
	}
	var phys *PhysicalError
	if n, err := as.Read(p, kernelBase+0x3000); n != 0 || !errors.As(err, &phys) || phys.Addr != 0xff0000 {
		t.Errorf("Read of a page outside RAM = %d, %v; want a *PhysicalError at 0xff0000", n, err)
	}
	if errors.As(err, &phys) {
		t.Errorf("a fault is not a *PhysicalError: %v", err)
	}
}

func TestReadStringLimit(t *testing.T) {
	f, as := newMapped()
	copy(f.ram[0x8000:], bytes.Repeat([]byte("a"), 0x1000))
	for _, limit := range []int{0, 1, 255, 256, 257, 4096} {
		s, err := as.ReadString(kernelBase, limit)
		if len(s) != limit || !errors.Is(err, ErrTooLong) {
			t.Errorf("ReadString(limit %d) = %d bytes, %v; want ErrTooLong", limit, len(s), err)
		}
	}
}

func TestTranslationCache(t *testing.T) {
	f, as := newMapped()
	first, err := as.Translate(kernelBase + 5)
	if err != nil || first != 0x8005 {
		t.Fatalf("Translate = %v, %v; want 0x8005", first, err)
	}
	f.entry(0x4000, 0, 0x6003)
	before := f.reads
	if a, err := as.Translate(kernelBase + 9); a != 0x8009 || err != nil || f.reads != before {
		t.Errorf("cached Translate = %v, %v with %d reads; want 0x8009 with none", a, err, f.reads-before)
	}
	as.Invalidate()
	if a, err := as.Translate(kernelBase + 9); a != 0x6009 || err != nil {
		t.Errorf("Translate after Invalidate = %v, %v; want 0x6009", a, err)
	}
}

func TestAddressSpaceWrite(t *testing.T) {
	f, as := newMapped()
	if err := as.Write([]byte("hello"), kernelBase+0xffe); err != nil {
		t.Fatal(err)
	}
	if got := string(f.ram[0x8ffe:0x9000]) + string(f.ram[0x6000:0x6003]); got != "hello" {
		t.Errorf("wrote %q; want hello", got)
	}
	var fault *FaultError
	if err := as.Write([]byte("x"), kernelBase+0x2000); !errors.As(err, &fault) {
		t.Errorf("Write to a hole = %v; want a *FaultError", err)
	}
}

// bare implements nothing beyond Backend.
type bare struct{}

func (bare) ReadPhysical([]byte, arch.GPA) (int, error) { return 0, &PhysicalError{} }
func (bare) Regions() []Region                          { return nil }
func (bare) Close() error                               { return nil }

func TestMissingCapabilities(t *testing.T) {
	g := New(bare{}, Info{Backend: "bare", CPUs: 1})
	ctx, cancel := context.WithCancel(t.Context())
	_, errRegs := g.Registers(ctx, 0)
	_, errControl := g.OpenControl(ctx)
	_, errRepair := g.Repair(ctx)
	for _, err := range []error{errRegs, errControl, errRepair, g.WritePhysical(nil, 0)} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("error = %v; want errors.ErrUnsupported", err)
		}
	}
	if s, err := g.Status(ctx); s != StatusPaused || err != nil {
		t.Errorf("Status = %v, %v; want paused", s, err)
	}
	if p := g.MapPhysical(0, 1); p != nil {
		t.Errorf("MapPhysical = %v; want nil", p)
	}
	life := g.WatchLife(ctx)
	cancel()
	if _, open := <-life; open {
		t.Error("WatchLife sent an event; want a closed channel")
	}
}

func TestCloseOnce(t *testing.T) {
	f := &flat{}
	g := New(f, Info{})
	if first, second := g.Close(), g.Close(); first == nil || first != second || f.closed != 1 {
		t.Errorf("Close twice = %v, %v, %d calls; want the same error and one call", first, second, f.closed)
	}
}

func TestGuestMemory(t *testing.T) {
	f := &flat{ram: []byte("0123456789abcdef")}
	g := New(f, Info{})
	if g.MemoryBytes() != 16 {
		t.Errorf("MemoryBytes = %d; want 16", g.MemoryBytes())
	}
	if v, err := g.ReadUint64Physical(8); v != 0x6665646362613938 || err != nil {
		t.Errorf("ReadUint64Physical = %#x, %v", v, err)
	}
	p := make([]byte, 4)
	if n, err := g.PhysicalReaderAt(4, 6).ReadAt(p, 2); n != 4 || err != nil || string(p) != "6789" {
		t.Errorf("ReadAt = %d, %v, %q; want 6789", n, err, p)
	}
}

func BenchmarkReadUint64(b *testing.B) {
	_, as := newMapped()
	for b.Loop() {
		if _, err := as.ReadUint64(kernelBase + 0x100); err != nil {
			b.Fatal(err)
		}
	}
}
