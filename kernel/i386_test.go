package kernel_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	kt "github.com/vitrine-vmi/vitrine/kernel/internal/kallsymstest"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// The parts of a fake 32-bit kernel, as distances from its base.
const (
	rodata32 = 2 << 20 // its code is larger than anything else that is write-protected
	table32  = rodata32 + 0x1000
	data32   = rodata32 + 0x80000
	vars32   = data32 + 0x1000
	note32   = data32 + 0x2000
	end32    = data32 + 0x10000
)

// fakeI386 is a guest that runs the least that looks like a Linux kernel on 32-bit
// x86, mapped with low memory around it.
func fakeI386(t testing.TB, mode arch.PagingMode, noData bool) *fake {
	t.Helper()
	f := &fake{Backend: vitrinetest.New(), info: vitrine.Info{Name: "fake", Backend: "fake", Arch: arch.AMD64, CPUs: 1, Live: true}}
	f.SetLog(false)
	s := f.NewSpace(mode)
	f.space, f.base = s, 0xc120_0000
	const before = 1 << 20 // low memory before the image
	pa := f.Alloc((before + end32) / arch.PageSize)
	for at := arch.GVA(0); at < before+end32; at += arch.PageSize {
		perm := vitrinetest.NoExec | vitrinetest.Writable
		switch {
		case at == 0x8000: // the trampoline of the other processors
			perm = 0
		case at >= before && at < before+rodata32:
			perm = 0
		case at >= before && at < before+data32:
			perm = vitrinetest.NoExec
		}
		s.MapTo(f.base-before+at, pa+arch.GPA(at), vitrinetest.Page4K, perm)
	}
	symbols := kt.Many(kt.I386Linux61, uint64(f.base), 700)
	for _, v := range []struct {
		off  uint64
		name string
	}{{rodata32, "linux_banner"}, {vars32, "system_state"}, {vars32 + 4, "nr_cpu_ids"}, {vars32 + 8, "__cpu_online_mask"}, {vars32 + 16, "vmcoreinfo_note"},
		{vars32 + 0x20, "__per_cpu_offset"}, {vars32 + 0x40, "__per_cpu_start"}, {vars32 + 0x44, "current_task"}, {vars32 + 0x80, "__per_cpu_end"}, {end32, "_end"}} {
		if noData {
			break
		}
		symbols = append(symbols, kt.Symbol{Addr: uint64(f.base) + v.off, Type: 'D', Name: v.name})
	}
	s.PutString(f.base+rodata32, "Linux version "+fakeRelease+" (x)\n")
	s.Put(f.base+table32, kt.Build(kt.I386Linux61, uint64(f.base)+table32, uint64(f.base), symbols))
	s.PutUint32(f.base+vars32, 3)
	s.PutUint32(f.base+vars32+4, 2)
	s.PutUint64(f.base+vars32+8, 0xffff_ffff_0000_0003) // what follows the mask is none of it
	s.PutUint32(f.base+vars32+16, uint32(f.base)+note32)
	s.PutUint32(f.base+vars32+0x20, 0x1000)
	s.PutUint32(f.base+vars32+0x24, 0xfff0_0000)
	s.Put(f.base+note32, note(fmt.Sprintf("OSRELEASE=%s\nBUILD-ID=%s\nSYMBOL(_stext)=%x\nCONFIG_X86_PAE=y\n", fakeRelease, fakeID, uint64(f.base))))
	r := arch.Registers{CR0: arch.CR0PE | arch.CR0PG, CR3: uint64(s.Root()), RIP: uint64(f.base) + 0x100, CS: 0x60}
	if mode == arch.PagingPAE {
		r.CR4 = arch.CR4PAE
	}
	f.SetRegisters(r)
	return f
}

func TestI386(t *testing.T) {
	for _, mode := range []arch.PagingMode{arch.PagingPAE, arch.Paging32Bit} {
		f := fakeI386(t, mode, false)
		k := describe(t, f.guest(), nil)
		if k.Arch() != arch.I386 || k.PointerSize() != 4 || k.Paging() != mode || k.Release() != fakeRelease || k.BuildID() != fakeID {
			t.Errorf("%v: %v, pointers of %d, %v, %q, %q", mode, k.Arch(), k.PointerSize(), k.Paging(), k.Release(), k.BuildID())
		}
		if base, end := k.Image(); base != f.base || end != f.base+end32 {
			t.Errorf("%v: image from %v to %v, want %v to %v", mode, base, end, f.base, f.base+end32)
		}
		if s, err := k.Symbol("system_state"); err != nil || s.Addr != f.base+vars32 {
			t.Errorf("%v: system_state: %+v, %v", mode, s, err)
		}
		if diff := cmp.Diff([]int{0, 1}, k.OnlineCPUs()); diff != "" {
			t.Errorf("%v: %s", mode, diff)
		}
		for cpu, want := range []arch.GVA{f.base + vars32 + 0x44 + 0x1000, f.base + vars32 + 0x44 - 0x10_0000} { // which wraps around
			if a, err := k.PerCPU("current_task", cpu); a != want || err != nil {
				t.Errorf("%v: current_task of %d is at %v, %v, want %v", mode, cpu, a, err, want)
			}
		}
		if absent := k.Types().Absent(); k.Types().Available() || !strings.Contains(absent, "vmlinux") || !strings.Contains(absent, fakeRelease) || !strings.Contains(absent, fakeID) {
			t.Errorf("%v: types %v, %q", mode, k.Types().Available(), absent)
		}
	}
}

// A guest whose memory is not write-protected yet, or that has no kernel, is not
// understood.
func TestI386NotYet(t *testing.T) {
	f := fakeI386(t, arch.PagingPAE, false)
	empty := f.NewSpace(arch.PagingPAE)
	empty.Map(0xc000_0000, 8<<20, vitrinetest.Writable)
	f.SetRegisters(arch.Registers{CR0: arch.CR0PE | arch.CR0PG, CR4: arch.CR4PAE, CR3: uint64(empty.Root()), RIP: 0xc000_0100, CS: 0x60})
	if k, err := kernel.Describe(t.Context(), f.guest(), &kernel.Options{Wait: -1}); !errors.Is(err, vitrine.ErrNotBooted) {
		t.Errorf("%v, %v, want ErrNotBooted", k, err)
	}
	// A program's code in the same place is no kernel's.
	user := f.NewSpace(arch.PagingPAE)
	user.Map(0x4000_0000, 8<<20, vitrinetest.User)
	f.SetRegisters(arch.Registers{CR0: arch.CR0PE | arch.CR0PG, CR4: arch.CR4PAE, CR3: uint64(user.Root()), RIP: 0x4000_0100, CS: 0x23})
	if k, err := kernel.Describe(t.Context(), f.guest(), &kernel.Options{Wait: -1}); err == nil {
		t.Errorf("described a program: %v", k.Banner())
	}
}

// Variables that the kernel has no symbols of come from the profile, as far from
// where they were linked as the functions are; from one that disagrees, none.
func TestProfileSymbols(t *testing.T) {
	f := fakeI386(t, arch.PagingPAE, true)
	const slide = 0x20_0000
	profile := func(spoil bool) string {
		var symbols strings.Builder
		for i, s := range kt.Many(kt.I386Linux61, uint64(f.base), 700) {
			if strings.HasPrefix(s.Name, "init_function_") && s.Type|0x20 == 't' {
				addr := s.Addr - slide
				if spoil && i > 350 {
					addr += 16
				}
				fmt.Fprintf(&symbols, "%q: {\"address\": %d}, ", s.Name, addr)
			}
		}
		path := filepath.Join(t.TempDir(), "profile.json")
		text := fmt.Sprintf(`{"metadata": {"format": "6.2.0"}, "base_types": {}, "enums": {}, "user_types": {},
			"symbols": {%s "system_state": {"address": %d}, "_end": {"address": %d}, "linux_banner": {"address": 1, "constant_data": %q}}}`,
			symbols.String(), uint64(f.base)+vars32-slide, uint64(f.base)+end32-slide, base64.StdEncoding.EncodeToString([]byte("Linux version "+fakeRelease+" (x)\n\x00")))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	k := describe(t, f.guest(), &kernel.Options{Symbols: []string{profile(false)}})
	s, err := k.Symbol("system_state")
	_, end := k.Image()
	if err != nil || s.Addr != f.base+vars32 || end != f.base+end32 || !strings.Contains(k.Facts()["symbols"], "more in the profile") {
		t.Errorf("system_state %+v, %v; end %v; %q", s, err, end, k.Facts()["symbols"])
	}
	k = describe(t, f.guest(), &kernel.Options{Symbols: []string{profile(true)}, Early: true})
	if s, err := k.Symbol("system_state"); !errors.Is(err, kernel.ErrNoSymbol) || !strings.Contains(strings.Join(k.Missing(), "\n"), "lies elsewhere") {
		t.Errorf("by a profile that disagrees: %+v, %v; %q", s, err, k.Missing())
	}
}
