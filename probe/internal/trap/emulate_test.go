package trap

import (
	"encoding/hex"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/x86dec"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

const dataBase = arch.GVA(0xffff888000300000)

// bench is a machine with code and a stack to emulate on.
func bench(t testing.TB, code string) (*machine, arch.Registers) {
	m := newMachine(t, 1, 1)
	m.space.Map(dataBase, 0x2000, vitrinetest.Writable)
	b, err := hex.DecodeString(code)
	if err != nil {
		t.Fatal(err)
	}
	m.space.Put(textBase, b)
	for i := range arch.GVA(0x2000 / 8) {
		m.space.PutUint64(dataBase+i*8, uint64(textBase)+0x100+uint64(i))
	}
	return m, arch.Registers{RIP: uint64(textBase), RSP: uint64(dataBase) + 0x1000, RAX: 1, RBX: 2, RDX: 3, RDI: uint64(dataBase), R11: 5, R12: 6, RFLAGS: 2, GSBase: uint64(dataBase)}
}

// TestEmulate checks single instructions against what the manual says they do.
func TestEmulate(t *testing.T) {
	base, sp := uint64(textBase), uint64(dataBase)+0x1000
	slot := func(a uint64) uint64 { return base + 0x100 + (a-uint64(dataBase))/8 }
	for _, c := range []struct {
		name, code string
		want       func(r *arch.Registers)
	}{
		{"nop", "90", func(r *arch.Registers) { r.RIP++ }},
		{"ftrace nop", "0f1f440000", func(r *arch.Registers) { r.RIP += 5 }},
		{"nop of 5.10", "6666666690", func(r *arch.Registers) { r.RIP += 5 }},
		{"jmp", "eb10", func(r *arch.Registers) { r.RIP += 0x12 }},
		{"jmp back", "ebfe", func(*arch.Registers) {}},
		{"jmp r11", "41ffe3", func(r *arch.Registers) { r.RIP = 5 }},
		{"jmp [rdi+8]", "ff6708", func(r *arch.Registers) { r.RIP = slot(uint64(dataBase) + 8) }},
		{"jmp [rdi+rax*8]", "ff24c7", func(r *arch.Registers) { r.RIP = slot(uint64(dataBase) + 8) }},
		{"call", "e80b000000", func(r *arch.Registers) { r.RSP -= 8; r.RIP += 0x10 }},
		{"ret", "c3", func(r *arch.Registers) { r.RIP = slot(sp); r.RSP += 8 }},
		{"ret 16", "c21000", func(r *arch.Registers) { r.RIP = slot(sp); r.RSP += 24 }},
		{"push rbx", "53", func(r *arch.Registers) { r.RSP -= 8; r.RIP++ }},
		{"push r12", "4154", func(r *arch.Registers) { r.RSP -= 8; r.RIP += 2 }},
		{"mov r12, rdi", "4989fc", func(r *arch.Registers) { r.R12 = r.RDI; r.RIP += 3 }},
		{"mov rbx, [rdi+8]", "488b5f08", func(r *arch.Registers) { r.RBX = slot(uint64(dataBase) + 8); r.RIP += 4 }},
		{"mov r11, gs:[8]", "654c8b1c2508000000", func(r *arch.Registers) { r.R11 = slot(uint64(dataBase) + 8); r.RIP += 9 }},
		{"mov [rdi+16], rbx", "48895f10", func(r *arch.Registers) { r.RIP += 4 }},
		{"sub rsp, 24", "4883ec18", func(r *arch.Registers) { r.RSP -= 24; r.RIP += 4 }},
	} {
		m, r := bench(t, c.code)
		want := r
		c.want(&want)
		s, err := newSite(m.as, textBase, false)
		if err != nil || !s.over(&r) {
			t.Errorf("%s: not done, %v", c.name, err)
			continue
		}
		r.RFLAGS, want.RFLAGS = 0, 0
		if diff := cmp.Diff(want, r); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestEmulatePushStores(t *testing.T) {
	for code, want := range map[string]uint64{"53": 2, "4154": 6, "54": uint64(dataBase) + 0x1000, "e800000000": uint64(textBase) + 5} {
		m, r := bench(t, code)
		s, err := newSite(m.as, textBase, false)
		if err != nil || !s.over(&r) {
			t.Fatalf("%s: not done, %v", code, err)
		}
		if got := m.space.Uint64(arch.GVA(r.RSP)); got != want {
			t.Errorf("%s stored %#x, want %#x", code, got, want)
		}
	}
}

func TestEmulateStores(t *testing.T) {
	m, r := bench(t, "48895f10") // mov [rdi+16], rbx
	s, err := newSite(m.as, textBase, false)
	if err != nil || !s.over(&r) || m.space.Uint64(dataBase+16) != 2 {
		t.Errorf("stored %#x, %v", m.space.Uint64(dataBase+16), err)
	}
	r = arch.Registers{RIP: uint64(textBase), RDI: 0x1000, RBX: 2}
	if before := r; s.over(&r) || r != before {
		t.Error("a store to what is not mapped was done, or changed registers")
	}
}

// TestEmulateLeavesAlone checks that what is not known, and what cannot be
// reached, is left for the processor with nothing changed.
func TestEmulateLeavesAlone(t *testing.T) {
	for name, code := range map[string]string{
		"endbr64": "f30f1efa", "int3": "cc", "ud2": "0f0b", "inc": "48ffc0", "hlt": "f4", "je": "7400",
		"jmp [rip+far]": "ff25ffffff7f", "call rax": "ffd0",
	} {
		m, r := bench(t, code)
		before := r
		s, err := newSite(m.as, textBase, false)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if s.over(&r) || r != before {
			t.Errorf("%s: done, or changed: %v", name, cmp.Diff(before, r))
		}
	}
	for name, code := range map[string]string{"push": "53", "ret": "c3", "call": "e800000000"} {
		m, r := bench(t, code)
		r.RSP = 0x1000 // not mapped
		before := r
		s, err := newSite(m.as, textBase, false)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if s.over(&r) || r != before {
			t.Errorf("%s on an unmapped stack: done, or changed", name)
		}
	}
}

// TestOverFollowsTheGuest changes the code under a site, as ftrace, kprobes
// and static keys do.
func TestOverFollowsTheGuest(t *testing.T) {
	m, r := bench(t, "0f1f440000")
	s, err := newSite(m.as, textBase, false)
	if err != nil {
		t.Fatal(err)
	}
	over := func(code string, want uint64) {
		t.Helper()
		b, _ := hex.DecodeString(code)
		m.space.Put(textBase, b)
		at := r
		if !s.over(&at) || at.RIP != want {
			t.Errorf("over %s went to %#x, want %#x", code, at.RIP, want)
		}
	}
	over("0f1f440000", uint64(textBase)+5)
	over("cc1f440000", uint64(textBase)+5) // our own breakpoint under KVM
	over("e8fb000000", uint64(textBase)+0x100)
	over("e9fb000000", uint64(textBase)+0x100)
	over("0f1f440000", uint64(textBase)+5)
	m.space.Put(textBase, []byte{0xcc, 0x90, 0x90})
	if at := r; s.over(&at) {
		t.Error("over did a kprobe's int3, which the processor has to")
	}
}

// TestSubtractFlags compares with flags worked out another way, by adding up
// one bit at a time.
func TestSubtractFlags(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	cases := [][2]uint64{{0, 0}, {0, 1}, {1, 0}, {1 << 63, 1}, {1<<63 - 1, 1<<64 - 1}, {8, 24}, {16, 1}}
	for range 2000 {
		cases = append(cases, [2]uint64{r.Uint64() >> r.UintN(64), r.Uint64() >> r.UintN(64)})
	}
	for _, c := range cases {
		flags := uint64(flagCF | flagPF | flagAF | flagZF | flagSF | flagOF | 1<<9)
		d := subtract(c[0], c[1], &flags)
		if want := slowFlags(c[0], c[1]) | 1<<9; flags != want || d != c[0]-c[1] {
			t.Fatalf("%#x - %#x: flags %#x, want %#x", c[0], c[1], flags, want)
		}
	}
}

func slowFlags(a, b uint64) (f uint64) {
	borrow, ones, d := uint64(0), 0, uint64(0)
	var into [65]uint64 // borrow into each bit
	for i := range 64 {
		into[i] = borrow
		x, y := a>>i&1, b>>i&1
		bit := x ^ y ^ borrow
		d |= bit << i
		if x < y+borrow {
			borrow = 1
		} else {
			borrow = 0
		}
		if i < 8 && bit == 1 {
			ones++
		}
	}
	into[64] = borrow
	f = into[64] | into[4]<<4 | d>>63<<7 | (into[64]^into[63])<<11
	if ones%2 == 0 {
		f |= flagPF
	}
	if d == 0 {
		f |= flagZF
	}
	return f
}

func TestEntrySite(t *testing.T) {
	for code, off := range map[string]arch.GVA{
		"0f1f440000c3":         0, // nop
		"f30f1efa0f1f440000c3": 4, // landing pad, nop
		"0f1f40d60f1f440000c3": 4, // sealed pad, nop
		"f30f1efa55c3":         4, // landing pad, no nop
		"55c3":                 0,
		"e80b000000c3":         0, // ftrace is on
		"f30f1efae80b000000c3": 4,
		"6666666690c3":         0,
	} {
		m, _ := bench(t, code)
		s, err := entrySite(m.as, textBase, false)
		if err != nil || s.addr != textBase+off {
			t.Errorf("entry of %s: %+v, %v, want offset %d", code, s, err, off)
		}
	}
	m, _ := bench(t, "0606")
	if s, err := entrySite(m.as, textBase, false); err == nil {
		t.Errorf("entry of what is no code: %+v", s)
	}
	if s, err := entrySite(m.as, 0xdead000, false); err == nil {
		t.Errorf("entry of what is not mapped: %+v", s)
	}
}

func FuzzEmulate(f *testing.F) {
	for _, s := range []string{"90", "53", "c3", "ff24c7", "4883ec18", "e800000000", "41ffe3"} {
		b, _ := hex.DecodeString(s)
		f.Add(b, uint64(dataBase), uint64(8))
	}
	m, r := bench(f, "")
	f.Fuzz(func(t *testing.T, code []byte, sp, rdi uint64) {
		in, err := x86dec.Decode(code, r.RIP)
		if err != nil {
			return
		}
		at := r
		at.RSP, at.RDI = sp, rdi
		before := at
		if !emulate(m.as, &in, &at) && at != before {
			t.Fatalf("% x was not done, and changed %v", code, cmp.Diff(before, at))
		}
	})
}
