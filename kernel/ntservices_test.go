package kernel_test

import (
	"errors"
	"testing"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/vitrinetest/nttest"
)

var someServices = map[string]int{"NtClose": 12, "NtCreateFile": 85, "NtOpenKey": 0, "NtReadFile": 6, "NtAllocateVirtualMemory": 129}

// The service table is found by its name and by its shape, and names what the
// kernel has stubs of.
func TestServices(t *testing.T) {
	for _, b := range ntBuilds {
		for _, hidden := range []bool{false, true} {
			c := b.config()
			c.Services, c.NoServiceName = someServices, hidden
			g := nttest.New(c)
			nt := describe(t, g.Guest(), nil).NT()
			s, err := nt.Services()
			if err != nil {
				t.Errorf("%s: %v", b.name, err)
				continue
			}
			if byName := s.From == "KeServiceDescriptorTable"; s.Table != g.ServiceTable || len(s.All) != nttest.ServiceCount || byName != (!hidden && !b.x64()) {
				t.Errorf("%s: %d services at %v by %s, want %d at %v", b.name, len(s.All), s.Table, s.From, nttest.ServiceCount, g.ServiceTable)
			}
			for name, nr := range someServices {
				if e := s.All[nr]; e.Name != name || e.Addr != g.Exports[name] || e.Number != nr || e.Args != 6 {
					t.Errorf("%s: service %#x is %+v, want %s at %v", b.name, nr, e, name, g.Exports[name])
				}
			}
			if n := s.Unnamed(); n != nttest.ServiceCount-len(someServices) || len(s.Named()) != len(someServices) || s.Named()[0].Name != "NtAllocateVirtualMemory" {
				t.Errorf("%s: %d without a name, %+v", b.name, n, s.Named())
			}
		}
	}
}

// A table that says otherwise than the exported functions is none; one with an
// entry that leads elsewhere is, and the entry is told as it is.
func TestServicesThatDisagree(t *testing.T) {
	for _, b := range ntBuilds {
		c := b.config()
		c.Services = someServices
		g := nttest.New(c)
		nt := describe(t, g.Guest(), nil).NT()
		elsewhere := g.Base + 0x2000
		put := func(name string) {
			v := uint32(elsewhere)
			if b.x64() {
				v = uint32(int64(elsewhere)-int64(g.ServiceTable)) << 4
			}
			g.Kernel.PutUint32(g.ServiceTable+arch.GVA(4*someServices[name]), v)
		}
		put("NtClose")
		s, err := nt.Services()
		if err != nil || s.All[someServices["NtClose"]].Addr != elsewhere || s.All[someServices["NtClose"]].Name != "NtClose" {
			t.Errorf("%s: one entry leads elsewhere: %v", b.name, err)
		}
		put("NtOpenKey")
		if _, err := nt.Services(); !errors.Is(err, kernel.ErrNoServices) {
			t.Errorf("%s: two of five lead elsewhere: %v", b.name, err)
		}
	}
}

func TestNoServices(t *testing.T) {
	for _, b := range ntBuilds {
		g := nttest.New(b.config())
		if _, err := describe(t, g.Guest(), nil).NT().Services(); !errors.Is(err, kernel.ErrNoServices) {
			t.Errorf("%s: %v", b.name, err)
		}
	}
}

// What is no ntdll.dll names nothing.
func TestNameByHostileImage(t *testing.T) {
	c := ntBuilds[3].config()
	c.Services = someServices
	g := nttest.New(c)
	k := describe(t, g.Guest(), nil)
	s, err := k.NT().Services()
	if err != nil {
		t.Fatal(err)
	}
	before := s.Unnamed()
	for _, base := range []arch.GVA{0, 0x10000, g.PCR, g.ProcessHead &^ 0xfff} {
		if n, err := s.NameBy(k.AddressSpace(), base); err == nil || n != before {
			t.Errorf("image at %v: %d without a name, %v", base, n, err)
		}
	}
	if n, err := s.NameBy(k.AddressSpace(), g.Base); err != nil || n != before { // functions, not stubs
		t.Errorf("the kernel as ntdll: %d without a name, %v", n, err)
	}
}
