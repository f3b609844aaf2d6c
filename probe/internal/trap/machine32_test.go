package trap

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/x86dec"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// space32 is memory of a 32-bit kernel, code at its start and a stack behind.
func space32(t testing.TB, code string) (*vitrine.AddressSpace, arch.Registers) {
	t.Helper()
	const base = arch.GVA(0x80400000)
	b := vitrinetest.New()
	s := b.NewSpace(arch.Paging32Bit)
	s.Map(base, 2*arch.PageSize, vitrinetest.Writable)
	s.Put(base, []byte(code))
	s.PutUint32(base+0x1800, 0x80412345) // a return address
	r := arch.Registers{RIP: uint64(base), RSP: uint64(base + 0x1800), RBP: 0x1111, RSI: 0x2222, RAX: 0x3333, RFLAGS: 2}
	return b.Guest().AddressSpace(arch.Paging32Bit, s.Root()), r
}

// What 32-bit functions begin with and end by is done as the processor does it.
func TestEmulate32(t *testing.T) {
	for _, c := range []struct {
		name, code string
		want       func(r *arch.Registers) // changes r to what it has to be; nil: the processor has to step
		pushed     uint32
	}{
		{"mov edi, edi", "\x8b\xff", func(r *arch.Registers) { r.RIP += 2 }, 0},
		{"push ebp", "\x55", func(r *arch.Registers) { r.RIP++; r.RSP -= 4 }, 0x1111},
		{"mov ebp, esp", "\x8b\xec", func(r *arch.Registers) { r.RIP += 2; r.RBP = r.RSP }, 0},
		{"mov eax, imm", "\xb8\x02\x00\x00\xc0", func(r *arch.Registers) { r.RIP += 5; r.RAX = 0xc0000002 }, 0},
		{"ret", "\xc3", func(r *arch.Registers) { r.RIP = 0x80412345; r.RSP += 4 }, 0},
		{"ret 2ch", "\xc2\x2c\x00", func(r *arch.Registers) { r.RIP = 0x80412345; r.RSP += 4 + 0x2c }, 0},
		{"jmp", "\xe9\x00\x01\x00\x00", func(r *arch.Registers) { r.RIP += 0x105 }, 0},
		{"nop", "\x90", func(r *arch.Registers) { r.RIP++ }, 0},
		{"sub esp, 10h", "\x83\xec\x10", func(r *arch.Registers) { r.RIP += 3; r.RSP -= 0x10; r.RFLAGS = 2 | flagSF | flagPF }, 0},
		{"sub eax, 3333h", "\x2d\x33\x33\x00\x00", func(r *arch.Registers) { r.RIP += 5; r.RAX = 0; r.RFLAGS = 2 | flagZF | flagPF }, 0},
		{"sub eax, 10000h", "\x2d\x00\x00\x01\x00", func(r *arch.Registers) { r.RIP += 5; r.RAX = 0xffff3333; r.RFLAGS = 2 | flagSF | flagCF | flagPF }, 0},
		{"sub esp, eax", "\x2b\xe0", nil, 0},
		{"push 18h", "\x6a\x18", nil, 0},
		{"mov ax, si", "\x66\x8b\xc6", nil, 0},
		{"int3", "\xcc", nil, 0},
		{"call", "\xe8\x00\x00\x00\x00", nil, 0},
	} {
		as, r := space32(t, c.code)
		s, err := newSite(as, r.PC(), true)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		want := r
		if c.want != nil {
			c.want(&want)
		}
		if did := s.over(&r); did != (c.want != nil) {
			t.Errorf("%s: done by hand: %v", c.name, did)
		}
		if d := cmp.Diff(want, r); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
		if v, err := as.ReadUint32(r.SP()); c.pushed != 0 && (err != nil || v != c.pushed) {
			t.Errorf("%s: pushed %#x, %v", c.name, v, err)
		}
	}
}

// A call whose callee takes its arguments off the stack is told by where it
// came back to: the outermost one that is gone.
func TestWatched(t *testing.T) {
	var dropped []uint64
	p := newPairs(100, func(c *call) { dropped = append(dropped, c.sp) })
	s, other := stack{task: 1}, stack{task: 2}
	a, b := &exit{}, &exit{}
	p.enter(s, call{fn: &function{entry: &site{}}, sp: 0x1000, watch: a})
	p.enter(s, call{fn: &function{entry: &site{}}, sp: 0x0f00, watch: b})
	p.enter(s, call{fn: &function{entry: &site{}}, sp: 0x0e00, watch: a})
	for _, c := range []struct {
		s    stack
		x    *exit
		sp   uint64
		want uint64
	}{
		{s, a, 0x0e00, 0}, {s, a, 0x0e04, 0x0e00}, {s, a, 0x0e30, 0x0e00}, {s, a, 0x1000, 0x0e00}, {s, a, 0x1010, 0x1000},
		{s, b, 0x0e30, 0}, {s, b, 0x0f04, 0x0f00}, {other, a, 0x2000, 0},
	} {
		if got := p.watched(c.s, c.x, c.sp); got != c.want {
			t.Errorf("back at stack %#x: slot %#x, want %#x", c.sp, got, c.want)
		}
	}
	if c, ok := p.leave(s, p.watched(s, a, 0x1010)); !ok || c.sp != 0x1000 || len(dropped) != 2 {
		t.Errorf("call at %#x, %v, dropped %#x", c.sp, ok, dropped)
	}
	if _, ok := p.leave(s, p.watched(s, a, 0x1010)); ok {
		t.Error("it returned twice")
	}
}

// A machine's conventions are used instead of Linux's.
func TestMachine(t *testing.T) {
	as, r := space32(t, "\x8b\xff")
	m := &Machine{Bits32: true, Task: func(*arch.Registers) arch.GVA { return 0x77 },
		Stack: func(task arch.GVA, sp uint64) (arch.GVA, bool) { return 0x88, task == 0x77 && sp == r.RSP },
		Arg:   func(_ *arch.Registers, i int) uint64 { return uint64(10 * i) }}
	e := New(Config{Kernel: as, Machine: m})
	if got := e.current(&r); got != 0x77 {
		t.Errorf("task %v", got)
	}
	if got := e.stackOf(0x77, 3, &r); got != (stack{task: 0x88}) {
		t.Errorf("stack %+v", got)
	}
	if got := e.stackOf(0, 3, &r); got != (stack{cpu: 4}) {
		t.Errorf("stack of nobody %+v", got)
	}
	if v, err := e.word(r.SP()); v != 0x80412345 || err != nil || e.arg(&r, 5) != 50 {
		t.Errorf("word %#x, %v, argument %d", v, err, e.arg(&r, 5))
	}
	if w := e.waysOf(nil); !w.opaque {
		t.Error("the function is followed")
	}
	if _, err := newSite(as, 0x90000000, true); err == nil {
		t.Error("code where nothing is")
	}
}

// FuzzEmulate32 does by hand whatever instruction is there: it says so only when
// it has moved on, and writes nothing but what it pushes.
func FuzzEmulate32(f *testing.F) {
	for _, code := range []string{"\x8b\xff", "\x55", "\xc2\x2c\x00", "\xe9\x00\x01\x00\x00", "\x54", "\xb8\x01\x00\x00\x00"} {
		f.Add([]byte(code), uint32(0x80401800))
	}
	f.Fuzz(func(t *testing.T, code []byte, sp uint32) {
		in, err := x86dec.Decode32(code, 0x80400000)
		if err != nil {
			return
		}
		if in.Len <= 0 || in.Len > len(code) || in.Len > x86dec.MaxLen {
			t.Fatalf("% x has %d bytes", code, in.Len)
		}
		as, r := space32(t, string(code[:min(len(code), 64)]))
		r.RSP = uint64(sp)
		before := r
		if !emulate32(as, &in, &r) && r != before {
			t.Errorf("% x: registers changed though it was not done", code)
		}
		if r.RSP > 1<<32-1 || r.RIP > 1<<32-1 {
			t.Errorf("% x: %#x %#x", code, r.RSP, r.RIP)
		}
	})
}
