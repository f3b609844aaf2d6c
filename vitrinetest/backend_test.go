package vitrinetest

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

const text = arch.GVA(0xffffffff81000000)

func TestReadsAcrossPages(t *testing.T) {
	b := New()
	s := b.NewSpace(arch.Paging4Level)
	s.Map(text+Page4K, Page4K, 0) // physical neighbours in the opposite order
	s.Map(text, Page4K, 0)
	s.PutString(text+Page4K-3, "across")
	as := b.Guest().AddressSpace(s.Mode(), s.Root())
	if got, err := as.ReadString(text+Page4K-3, 100); err != nil || got != "across" {
		t.Errorf("ReadString = %q, %v, want across", got, err)
	}
	s.PutUint64(text+Page4K-4, 0x1122334455667788)
	if got, err := as.ReadUint64(text + Page4K - 4); err != nil || got != 0x1122334455667788 || s.Uint64(text+Page4K-4) != got {
		t.Errorf("ReadUint64 = %#x, %v", got, err)
	}
}

func TestMapTranslates(t *testing.T) {
	for _, mode := range []arch.PagingMode{arch.Paging4Level, arch.Paging5Level} {
		b := New(vitrine.Region{Start: 0, Size: 4 << 30})
		s := b.NewSpace(mode)
		s.MapTo(0x40000000, 0x80000000, Page1G, User|Writable)
		s.MapTo(0x200000, 0x600000, Page2M, User|NoExec)
		s.MapTo(0x1000, 0x5000, Page4K, 0)
		g := b.Guest()
		for va, want := range map[arch.GVA]arch.Mapping{
			0x40000123: {Addr: 0x80000123, Size: Page1G, Writable: true, User: true},
			0x3fffff:   {Addr: 0x7fffff, Size: Page2M, User: true, NoExec: true},
			0x1fff:     {Addr: 0x5fff, Size: Page4K},
		} {
			got, err := g.AddressSpace(mode, s.Root()).Walk(va)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("%v: Walk(%v): %v (-want +got)\n%s", mode, va, err, diff)
			}
		}
		s.Unmap(0x1000)
		var fault *vitrine.FaultError
		if _, err := g.AddressSpace(mode, s.Root()).Walk(0x1000); !errors.As(err, &fault) || fault.Level != 1 {
			t.Errorf("%v: Walk of an unmapped page: %v, want a fault at level 1", mode, err)
		}
	}
}

func TestMapNarrow(t *testing.T) {
	for _, mode := range []arch.PagingMode{arch.Paging32Bit, arch.PagingPAE} {
		b := New()
		kernel, user := b.NewSpace(mode), b.NewSpace(mode)
		pa := kernel.Map(0x80400000, 2*Page4K, Writable)
		kernel.Map(0x1000, Page4K, User)
		user.Share(kernel)
		as := b.Guest().AddressSpace(mode, user.Root())
		if m, err := as.Walk(0x80401234); err != nil || m.Addr != pa+0x1234 || !m.Writable || m.User {
			t.Errorf("%v: Walk = %+v, %v; want %v", mode, m, err, pa+0x1234)
		}
		if _, err := as.Walk(0x1000); err == nil {
			t.Errorf("%v: the lower half is shared too", mode)
		}
		user.PutEntry(0x2000, 0x5800)
		var fault *vitrine.FaultError
		if _, err := as.Walk(0x2000); !errors.As(err, &fault) || fault.Level != 1 || fault.Entry != 0x5800 {
			t.Errorf("%v: Walk of a page in transition: %+v, want entry 0x5800 at level 1", mode, fault)
		}
		soft := as.WithSoftPages(func(f *vitrine.FaultError) (arch.GPA, bool) { return arch.GPA(f.Entry &^ 0xfff), f.Entry != 0 })
		if pa, err := soft.Translate(0x2345); err != nil || pa != 0x5345 {
			t.Errorf("%v: soft page at %v, %v; want 0x5345", mode, pa, err)
		}
		if _, err := soft.Translate(0x3000); !errors.As(err, &fault) {
			t.Errorf("%v: page that is nowhere: %v", mode, err)
		}
	}
}

func TestShareUpperHalf(t *testing.T) {
	b := New()
	kernel, user := b.NewSpace(arch.Paging4Level), b.NewSpace(arch.Paging4Level)
	pa := kernel.Map(text, Page4K, 0)
	kernel.Map(0x1000, Page4K, 0)
	user.Share(kernel)
	if got := user.Phys(text + 5); got != pa+5 {
		t.Errorf("shared address is at %v, want %v", got, pa+5)
	}
	if _, err := b.Guest().AddressSpace(user.Mode(), user.Root()).Walk(0x1000); err == nil {
		t.Error("the lower half is shared too")
	}
}

func TestFaultsHitTheNthCall(t *testing.T) {
	b, boom := New(), errors.New("boom")
	g := b.Guest()
	b.FailNth(OpRead, 2, boom)
	b.FailNth(OpRegisters, 1, boom)
	var p [4]byte
	for i, want := range []error{nil, boom, nil} {
		if _, err := g.ReadPhysical(p[:], 0x1000); !errors.Is(err, want) {
			t.Errorf("read %d: %v, want %v", i+1, err, want)
		}
	}
	for i, want := range []error{boom, nil} {
		if _, err := g.Registers(t.Context(), 0); !errors.Is(err, want) {
			t.Errorf("registers %d: %v, want %v", i+1, err, want)
		}
	}
	if _, err := g.Registers(t.Context(), 1); err == nil {
		t.Error("registers of a processor that does not exist: no error")
	}
}

func TestLogHoldsCalls(t *testing.T) {
	b := New(vitrine.Region{Start: 0x1000, Size: 0x1000}, vitrine.Region{Start: 0x4000, Size: 0x1000})
	g := b.Guest()
	var p [8]byte
	if n, err := g.ReadPhysical(p[:], 0x1ffc); n != 4 || err == nil {
		t.Errorf("read over the end of RAM = %d, %v, want 4 and an error", n, err)
	}
	if err := g.WritePhysical([]byte{1, 2}, 0x4000); err != nil {
		t.Error(err)
	}
	if err := g.WritePhysical([]byte{1, 2}, 0x3000); err == nil {
		t.Error("write where there is no RAM: no error")
	}
	want := []Call{{Op: OpRead, Addr: 0x1ffc, Len: 8}, {Op: OpWrite, Addr: 0x4000, Len: 2}, {Op: OpWrite, Addr: 0x3000, Len: 2}}
	if diff := cmp.Diff(want, b.Calls()); diff != "" {
		t.Errorf("log (-want +got)\n%s", diff)
	}
	b.ResetCalls()
	b.SetLog(false)
	g.Close()
	if got := b.Calls(); len(got) != 0 || b.Count(OpClose) != 1 {
		t.Errorf("log turned off holds %v, %d closes counted", got, b.Count(OpClose))
	}
}

func TestHookTearsReads(t *testing.T) {
	b := New()
	b.PutUint64Physical(0x1000, 1)
	b.OnCall(func(c Call) { b.PutUint64Physical(c.Addr, 2) })
	if v, err := b.Guest().ReadUint64Physical(0x1000); v != 2 || err != nil {
		t.Errorf("read = %d, %v, want what the hook has stored", v, err)
	}
}

func TestStatusAndRegisters(t *testing.T) {
	b := New()
	b.SetRegisters(arch.Registers{RIP: 1}, arch.Registers{RIP: 2})
	b.SetStatus(vitrine.StatusPaused)
	g := b.Guest()
	r, err := g.Registers(t.Context(), 1)
	if err != nil || r.RIP != 2 || g.CPUs() != 2 {
		t.Errorf("registers = %+v, %v of %d processors", r, err, g.CPUs())
	}
	if s, err := g.Status(t.Context()); s != vitrine.StatusPaused || err != nil {
		t.Errorf("status = %v, %v", s, err)
	}
}

func TestBuilderMistakesPanic(t *testing.T) {
	b := New(vitrine.Region{Start: 0, Size: 1 << 20})
	s := b.NewSpace(arch.Paging4Level)
	for name, f := range map[string]func(){
		"put outside RAM":    func() { b.PutPhysical(2<<20, []byte{1}) },
		"put at unmapped":    func() { s.PutUint32(0x1000, 1) },
		"out of memory":      func() { b.Alloc(1000) },
		"odd page size":      func() { s.MapTo(0, 0, 8192, 0) },
		"unaligned":          func() { s.MapTo(0x1000, 0, Page2M, 0) },
		"unknown table mode": func() { b.NewSpace(arch.PagingOff) },
		"large page of 32":   func() { b.NewSpace(arch.Paging32Bit).MapTo(0, 0, Page2M, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f()
		})
	}
}
