package arch

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
)

// ram is sparse physical memory of 4 KiB frames; reading a frame that was
// never written is an error.
type ram map[GFN]*[PageSize]byte

func (m ram) ReadPhysical(p []byte, a GPA) (int, error) {
	f := m[a.Frame()]
	if f == nil || int(a%PageSize)+len(p) > PageSize {
		return 0, errNoRAM
	}
	return copy(p, f[a%PageSize:]), nil
}

var errNoRAM = errors.New("no RAM")

func (m ram) put(a GPA, size int, v uint64) {
	f := m[a.Frame()]
	if f == nil {
		f = new([PageSize]byte)
		m[a.Frame()] = f
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	copy(f[a%PageSize:], b[:size])
}

// Expected values are worked out by hand from the SDM's figures, not with the
// table under test.
func TestWalk(t *testing.T) {
	const (
		p  = 1
		w  = 2
		u  = 4
		ps = 0x80
		nx = 1 << 63
	)
	m := ram{}
	// 4-level, va 0xffff888012345678: indexes 273, 0, 145, 325.
	m.put(0x1000+273*8, 8, 0x2000|p|w|u)
	m.put(0x2000+0*8, 8, 0x3000|p|w)
	m.put(0x3000+145*8, 8, 0x4000|p|w|u)
	m.put(0x4000+325*8, 8, 0x7_7777_7000|p|w|u|nx)
	m.put(0x4000+326*8, 8, 0x5000|p|u)
	m.put(0x3000+146*8, 8, 0x4060_0000|p|w|ps|1<<12) // 2 MiB with PAT: bit 12 is no address
	m.put(0x2000+1*8, 8, 0x40_c000_0000|p|w|ps)      // 1 GiB
	// PAE, root 32-byte aligned, va 0x80403008: indexes 2, 2, 3.
	m.put(0x8020+2*8, 8, 0xa000|p)
	m.put(0xa000+2*8, 8, 0xb000|p|w|u)
	m.put(0xb000+3*8, 8, 0xc000|p|u|nx)
	m.put(0xa000+5*8, 8, 0x20_0000*7|p|w|u|ps)
	// 32-bit, va 0x00c01abc: indexes 3, 1; va 0x01000000: index 4 large with PSE-36.
	m.put(0xd000+3*4, 4, 0xe000|p|w|u)
	m.put(0xe000+1*4, 4, 0xf000|p|w|u)
	m.put(0xd000+4*4, 4, 0x0840_0000|p|w|ps|0x3<<13)

	checkWalks(t, m, []walkTest{
		{"4K page", Paging4Level, 0x1000, 0xffff888012345678, Mapping{0x7_7777_7678, 1 << 12, true, false, true}},
		{"read-only leaf", Paging4Level, 0x1000, 0xffff888012346000, Mapping{0x5000, 1 << 12, false, false, false}},
		{"2M page", Paging4Level, 0x1000, 0xffff888012456789, Mapping{0x4065_6789, 1 << 21, true, false, false}},
		{"1G page", Paging4Level, 0x1000, 0xffff888052345678, Mapping{0x40_d234_5678, 1 << 30, true, false, false}},
		{"PAE 4K", PagingPAE, 0x8020, 0x80403008, Mapping{0xc008, 1 << 12, false, true, true}},
		{"PAE 2M", PagingPAE, 0x8020, 0x80a12345, Mapping{0xe1_2345, 1 << 21, true, true, false}},
		{"32-bit 4K", Paging32Bit, 0xd000, 0x00c01abc, Mapping{0xfabc, 1 << 12, true, true, false}},
		{"32-bit 4M PSE-36", Paging32Bit, 0xd000, 0x01012345, Mapping{0x3_0841_2345, 1 << 22, true, false, false}},
		{"off", PagingOff, 0, 0x1234, Mapping{0x1234, 1 << 12, true, true, false}},
	})
}

// walkTest is an address and what it translates to.
type walkTest struct {
	name string
	mode PagingMode
	root GPA
	va   GVA
	want Mapping
}

func checkWalks(t *testing.T, m ram, tests []walkTest) {
	t.Helper()
	for _, tt := range tests {
		got, err := Walk(m, tt.mode, tt.root, tt.va)
		if err != nil || got != tt.want {
			t.Errorf("%s: Walk(%v, %v, %v) = %+v, %v; want %+v", tt.name, tt.mode, tt.root, tt.va, got, err, tt.want)
		}
	}
}

func TestWalk5Level(t *testing.T) {
	m := ram{}
	// 0xff11_0000_1234_5678: bits 56..48 are 0x111 = 273, then 0, 0, 145, 325.
	m.put(0x9000+273*8, 8, 0x1000|3)
	m.put(0x1000, 8, 0x2000|3)
	m.put(0x2000, 8, 0x3000|3)
	m.put(0x3000+145*8, 8, 0x4000|3)
	m.put(0x4000+325*8, 8, 0x8000|3)
	got, err := Walk(m, Paging5Level, 0x9000, 0xff11000012345678)
	if want := (Mapping{0x8678, 1 << 12, true, false, false}); err != nil || got != want {
		t.Errorf("Walk = %+v, %v; want %+v", got, err, want)
	}
}

func TestWalkFaults(t *testing.T) {
	m := ram{}
	m.put(0x1000+511*8, 8, 0x2000|3)
	m.put(0x2000+511*8, 8, 0x3000|3)
	m.put(0x3000+0*8, 8, 0x4000) // not present
	m.put(0x3000+1*8, 8, 0xdead_0000|3)
	tests := []struct {
		name  string
		mode  PagingMode
		va    GVA
		level int
		noRAM bool
	}{
		{"not canonical", Paging4Level, 0x0000_8000_0000_0000, 0, false},
		{"top bits wrong", Paging4Level, 0xff11_0000_0000_0000, 0, false},
		{"above 32 bits", PagingPAE, 0x1_0000_0000, 0, false},
		{"unknown mode", PagingMode(77), 0, 0, false},
		{"not present at the top", Paging4Level, 0, 4, false},
		{"not present in the middle", Paging4Level, 0xffff_ffff_c000_0000, 2, false},
		{"table outside RAM", Paging4Level, 0xffff_ffff_c020_0000, 1, true},
	}
	for _, tt := range tests {
		_, err := Walk(m, tt.mode, 0x1000, tt.va)
		var f *FaultError
		if !errors.As(err, &f) {
			t.Errorf("%s: Walk = %v; want a *FaultError", tt.name, err)
			continue
		}
		if f.Addr != tt.va || f.Root != 0x1000 || f.Level != tt.level || errors.Is(err, errNoRAM) != tt.noRAM {
			t.Errorf("%s: Walk = %+v; want level %d, outside RAM %v", tt.name, f, tt.level, tt.noRAM)
		}
	}
}

// A table that points to itself must not make the walk any longer than its
// levels: that is the recursive mapping some kernels use.
func TestWalkRecursive(t *testing.T) {
	m := ram{}
	m.put(0x1000+511*8, 8, 0x1000|3)
	got, err := Walk(m, Paging4Level, 0x1000, 0xffff_ffff_ffff_f123)
	if err != nil || got.Addr != 0x1123 {
		t.Errorf("Walk = %+v, %v; want address 0x1123", got, err)
	}
}

// countingReader answers every read with bytes of a seeded generator.
type countingReader struct {
	rnd   *rand.Rand
	reads int
}

func (r *countingReader) ReadPhysical(p []byte, _ GPA) (int, error) {
	r.reads++
	for i := range p {
		p[i] = byte(r.rnd.Uint32())
	}
	return len(p), nil
}

func FuzzWalk(f *testing.F) {
	for mode := range 6 {
		f.Add(uint8(mode), uint64(0x1000), uint64(0xffffffff81000000), uint64(mode))
	}
	for mode := PagingARM39; mode <= PagingARM52User; mode++ {
		f.Add(uint8(mode), uint64(0x1000), uint64(0xffffffff81000000), uint64(mode))
		f.Add(uint8(mode), uint64(0x1040), uint64(0x3f81000000), uint64(mode))
	}
	f.Fuzz(func(t *testing.T, mode uint8, root, va, seed uint64) {
		r := &countingReader{rnd: rand.New(rand.NewPCG(seed, seed))}
		m, err := Walk(r, PagingMode(mode), GPA(root), GVA(va))
		if (err == nil) == (m == Mapping{}) {
			t.Errorf("Walk = %+v, %v; want a value or an error", m, err)
		}
		if r.reads > 5 {
			t.Errorf("Walk read %d entries; want at most 5", r.reads)
		}
	})
}

func TestRoot(t *testing.T) {
	tests := []struct {
		mode PagingMode
		cr3  uint64
		want GPA
	}{
		{Paging4Level, 0x8000_0001_2345_6fff, 0x1_2345_6000},
		{Paging5Level, 0x12345018, 0x12345000},
		{PagingPAE, 0x1_0000_8027, 0x8020},
		{Paging32Bit, 0xd018, 0xd000},
		{PagingOff, 0xd018, 0},
	}
	for _, tt := range tests {
		if got := Root(tt.mode, tt.cr3); got != tt.want {
			t.Errorf("Root(%v, %#x) = %v; want %v", tt.mode, tt.cr3, got, tt.want)
		}
	}
}

func BenchmarkWalk(b *testing.B) {
	m := ram{}
	m.put(0x1000+511*8, 8, 0x2000|3)
	m.put(0x2000+510*8, 8, 0x3000|3)
	m.put(0x3000+8*8, 8, 0x100_0000|3|0x80)
	for b.Loop() {
		if _, err := Walk(m, Paging4Level, 0x1000, 0xffff_ffff_8100_0000); err != nil {
			b.Fatal(err)
		}
	}
}
