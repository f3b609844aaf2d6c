package kernel_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	kt "github.com/vitrine-vmi/vitrine/kernel/internal/kallsymstest"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// Where a fake arm64 kernel and its direct map are.
const (
	armBase   = arch.GVA(0xffff_dbd1_e060_0000) // _text, which is not mapped; _stext lies armHead behind it
	armHead   = 0x10000
	armDirect = arch.GVA(0xffff_3027_c000_0000)
	armModule = 0x1000 // of the direct map
	armFirst  = 0x1800 // the first process
	armNote   = 0x2000
	// Variables of a kernel without symbols of them.
	armTask    = fakeVars + 0x2000
	armPID     = fakeVars + 0x3000
	armSpace   = fakeVars + 0x3800 // of process numbers
	armModules = fakeVars + 0x4000
	// What is mapped to the lowest address: with it physical address 0 is at
	// 0xffff302780000000.
	armPhysOffset = uint64(0xffff_cfd8_8000_0000)
	armRunning    = 0x4000_00c5 // PSTATE of EL1h
)

// addARMKernel puts an arm64 kernel into the guest's memory: one piece of
// physical memory, its page table in the middle, and a direct map. It has symbols
// of functions only.
func (f *fake) addARMKernel(t testing.TB, o fakeOptions) *vitrinetest.Space {
	return f.addARMKernelAt(t, o, armBase)
}

func (f *fake) addARMKernelAt(t testing.TB, o fakeOptions, base arch.GVA) *vitrinetest.Space {
	at := f.Alloc((armHead + fakeTop) / arch.PageSize)
	s := f.NewSpace(arch.PagingARM48)
	f.Alloc((fakeDataEnd-fakeTop)/arch.PageSize - 1)
	f.info.Arch, f.base = arch.ARM64, base+armHead
	for va := f.base; va < f.base+fakeDataEnd; va += arch.PageSize {
		perm := vitrinetest.NoExec | vitrinetest.Writable
		switch {
		case va < f.base+fakeRodata:
			perm = 0
		case va < f.base+fakeData+arch.PageSize:
			perm = vitrinetest.NoExec
		}
		s.MapTo(va, at+arch.GPA(va-base), vitrinetest.Page4K, perm)
	}
	s.PutString(f.base+fakeRodata, "Linux version %s (%s)\n\x00Linux version "+o.release+" (debian-kernel@lists.debian.org) # SMP Debian\n\x00"+armBanner(o)+"\n")
	s.Put(f.base+fakeBTF, fakeTypes(t))
	symbols := append([]kt.Symbol{{Addr: uint64(base), Type: 'T', Name: "_text"}, {Addr: uint64(f.base), Type: 'T', Name: "_stext"}},
		kt.Many(kt.Linux72, uint64(f.base), 700)[2:]...)
	s.Put(f.base+fakeTable, kt.Build(o.layout, uint64(f.base)+fakeTable, uint64(base), symbols))
	s.PutString(f.base+fakeUTS+2*65, o.release)
	s.Map(armDirect, 0x4000, vitrinetest.NoExec|vitrinetest.Writable)
	s.PutUint64(f.base+fakeVars+32, uint64(armDirect+armNote)) // vmcoreinfo_data
	s.PutString(armDirect+armNote, f.armNote(o, uint64(base)-uint64(at)))
	f.putARMVariables(s)
	return s
}

// armBanner returns the second banner of the image, which has the build's number.
func armBanner(o fakeOptions) string {
	return "Linux version " + o.release + " (debian-kernel@lists.debian.org) #1 SMP Debian"
}

// armNote returns the VMCOREINFO of an arm64 kernel.
func (f *fake) armNote(o fakeOptions, off uint64) string {
	return fmt.Sprintf("OSRELEASE=%s\nBUILD-ID=%s\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=%x\nOFFSET(uts_namespace.name)=0\n"+
		"SYMBOL(swapper_pg_dir)=%x\nSYMBOL(_stext)=%x\nNUMBER(VA_BITS)=48\nNUMBER(kimage_voffset)=0x%x\nNUMBER(PHYS_OFFSET)=0x%x\nNUMBER(TCR_EL1_T1SZ)=0x10\nKERNELOFFSET=%x\n",
		o.release, fakeID, uint64(f.base)+fakeUTS, uint64(f.base)+fakeTop, uint64(f.base), off, armPhysOffset, fakeSlide)
}

// putARMVariables puts the first task, and a list of one module, which have to be
// told by what they hold; and what resembles them and is not.
func (f *fake) putARMVariables(s *vitrinetest.Space) {
	s.PutString(f.base+armTask-0x80, "swapper") // a text
	task := f.base + armTask
	s.PutString(task+16, "swapper/0")
	for _, off := range []arch.GVA{32, 40, 48} {
		s.PutUint64(task+off, uint64(task))
	}
	s.PutUint64(task+56, uint64(f.base)+armPID)
	s.PutUint64(f.base+armPID+16+8, uint64(f.base)+armSpace)
	s.PutUint64(task+64, uint64(armDirect)+armFirst+64)
	s.PutUint64(armDirect+armFirst+80, uint64(armDirect)+0x3800)
	module, head := armDirect+armModule, f.base+armModules
	other := armDirect + 0x3000 // a list of something else
	for _, l := range [][2]arch.GVA{{head - 0x100, other}, {head, module}} {
		for i, at := range l {
			s.PutUint64(at, uint64(l[1-i]))
			s.PutUint64(at+8, uint64(l[1-i]))
		}
	}
	s.PutString(module+16, "vfat")
	s.PutUint64(module+112, uint64(module))
}

func newARMFake(t testing.TB, o fakeOptions) *fake {
	o.mode = arch.PagingARM48
	f := newFake(t, o)
	// All that QEMU's monitor tells.
	f.SetRegisters(arch.Registers{ARM64: arch.ARM64Registers{On: true, PC: uint64(f.base) + 0x100, SP: uint64(armDirect) + 0xf00, PSTATE: armRunning}})
	return f
}

func TestDescribeARM(t *testing.T) {
	for _, l := range []kt.Layout{kt.Linux62, kt.Linux615, kt.Linux72} {
		f := newARMFake(t, fakeOptions{layout: l})
		images := map[string]*vitrine.Guest{"live": f.guest(), "image": f.image()}
		f.info.Arch = arch.AMD64 // what an image is taken for that does not tell
		images["nameless image"] = f.image()
		for name, g := range images {
			checkARM(t, string(l)+" "+name, f, describe(t, g, nil))
		}
	}
}

func checkARM(t *testing.T, name string, f *fake, k *kernel.Kernel) {
	t.Helper()
	if k.Release() != fakeRelease || k.BuildID() != fakeID || k.Base() != armBase || k.Slide() != fakeSlide || k.Paging() != arch.PagingARM48 || k.Arch() != arch.ARM64 ||
		k.AddressSpace().Root() != f.space.Root() || k.PhysBase() != f.space.Phys(f.base)-armHead || !k.Types().Has("task_struct", "comm") {
		t.Errorf("%s: %q %q base %v slide %#x paging %v root %v phys %v types %v", name, k.Release(), k.BuildID(), k.Base(), k.Slide(),
			k.Paging(), k.AddressSpace().Root(), k.PhysBase(), k.Types().Available())
	}
	if want := armBanner(fakeOptions{release: fakeRelease}); k.Banner() != want || !strings.Contains(k.Facts()["banner"], "search") {
		t.Errorf("%s: banner %q from %q, want %q", name, k.Banner(), k.Facts()["banner"], want)
	}
	for symbol, at := range map[string]arch.GVA{"init_task": armTask, "modules": armModules, "init_pid_ns": armSpace} {
		if s, err := k.Symbol(symbol); err != nil || s.Addr != f.base+at || s.Name != symbol {
			t.Errorf("%s: %s is %+v, %v; want it at %v", name, symbol, s, err, f.base+at)
		}
		if !strings.Contains(k.Facts()[symbol], "inference") {
			t.Errorf("%s: %s comes from %q", name, symbol, k.Facts()[symbol])
		}
	}
	if direct, ok := k.DirectMap(); !ok || direct != 0xffff_3027_8000_0000 {
		t.Errorf("%s: all memory is mapped from %v on, %v", name, direct, ok)
	}
	if _, err := k.Symbol("runqueues"); !errors.Is(err, kernel.ErrNoSymbol) {
		t.Errorf("%s: a symbol out of nothing: %v", name, err)
	}
	if s, ok := k.SymbolAt(f.base + 16*7 + 3); !ok || s.Name != "init_function_7_table" {
		t.Errorf("%s: SymbolAt: %+v, %v", name, s, ok)
	}
}

// A kernel without the symbol system_state runs when its first process has memory.
func TestDescribeARMBoots(t *testing.T) {
	f := newARMFake(t, fakeOptions{})
	if k := describe(t, f.guest(), nil); k.Facts()["boot"] == "" {
		t.Errorf("nothing told that it runs: %q", k.Missing())
	}
	f.space.PutUint64(armDirect+armFirst+80, 0)
	for name, next := range map[string]arch.GVA{"no program": armDirect + armFirst + 64, "no process": f.base + armTask + 64, "nowhere": 0} {
		f.space.PutUint64(f.base+armTask+64, uint64(next))
		k, err := kernel.Describe(t.Context(), f.guest(), &kernel.Options{Wait: -1})
		if k != nil || !errors.Is(err, vitrine.ErrNotBooted) || !strings.Contains(err.Error(), "still starting") {
			t.Errorf("%s: got %v, %v, want ErrNotBooted", name, k, err)
		}
		describe(t, f.guest(), &kernel.Options{Early: true})
		describe(t, f.image(), nil)
	}
}

// A kernel that has symbols of variables is not guessed at.
func TestDescribeARMInfersOnlyWhatIsMissing(t *testing.T) {
	f := newARMFake(t, fakeOptions{})
	f.space.PutString(f.base+armTask+16, "systemd")
	f.space.PutUint64(f.base+armModules, 0)
	k := describe(t, f.guest(), nil)
	for _, name := range []string{"init_task", "modules", "init_pid_ns"} {
		if s, err := k.Symbol(name); !errors.Is(err, kernel.ErrNoSymbol) {
			t.Errorf("%s was found where there is none: %+v, %v", name, s, err)
		}
	}
}

// Notes that lead nowhere, of a kernel that ran before or made up by a program,
// fool nobody.
func TestDescribeARMForgedNotes(t *testing.T) {
	f := newARMFake(t, fakeOptions{})
	o := fakeOptions{release: "9.9.9-forged"}
	off := uint64(f.base) - uint64(f.space.Phys(f.base))
	for _, note := range []string{
		f.armNote(o, off), // all right but for the release
		strings.ReplaceAll(f.armNote(o, off), "T1SZ)=0x10", "T1SZ)=0x63"),
		strings.ReplaceAll(f.armNote(o, off), "_stext)=ffff", "_stext)=0000"),
		strings.ReplaceAll(f.armNote(o, off), "_stext)=ffffdb", "_stext)=ffffdc"),
		f.armNote(fakeOptions{release: fakeRelease}, off+0x1000),
		f.armNote(fakeOptions{release: fakeRelease}, 1),
	} {
		f.PutPhysical(f.Alloc(1), append([]byte(note), 0))
	}
	for name, g := range map[string]*vitrine.Guest{"live": f.guest(), "image": f.image()} {
		checkARM(t, name, f, describe(t, g, nil))
	}
}

// Of two kernels in memory, that of an earlier boot among them, it is the one that
// a processor runs; where none was seen in a kernel that cannot be told.
func TestDescribeARMEarlierBoot(t *testing.T) {
	f := newARMFake(t, fakeOptions{})
	g := &fake{Backend: f.Backend, info: f.info}
	g.space = g.addARMKernelAt(t, fakeOptions{mode: arch.PagingARM48}.withDefaults(), armBase+0x2000_0000)
	for _, k := range []*fake{f, g} {
		f.SetRegisters(arch.Registers{ARM64: arch.ARM64Registers{On: true, PC: uint64(k.base) + 0x40, PSTATE: armRunning}})
		got := describe(t, f.guest(), nil)
		if got.AddressSpace().Root() != k.space.Root() || got.Base() != k.base-armHead {
			t.Errorf("base %v, root %v; want %v, %v", got.Base(), got.AddressSpace().Root(), k.base-armHead, k.space.Root())
		}
	}
	f.SetRegisters(arch.Registers{ARM64: arch.ARM64Registers{On: true, PC: 0x40000}})
	if k, err := kernel.Describe(t.Context(), f.guest(), &kernel.Options{Wait: -1}); k != nil || !errors.Is(err, vitrine.ErrNotUnderstood) {
		t.Errorf("two kernels and no telling which: %v, %v", k, err)
	}
}

func TestDescribeARMStages(t *testing.T) {
	f := newARMFake(t, fakeOptions{})
	f.space.PutString(armDirect+armNote, "nothing yet")
	for want, r := range map[string]arch.ARM64Registers{
		"in kernel code at 0xffff": {On: true, PC: uint64(f.base), PSTATE: armRunning},
		"user program at 0xaaaa":   {On: true, PC: 0xaaaa0000},
		"firmware or boot loader":  {On: true, PC: 0x40001000, PSTATE: armRunning},
	} {
		f.SetRegisters(arch.Registers{ARM64: r})
		k, err := kernel.Describe(t.Context(), f.guest(), &kernel.Options{Wait: -1})
		if k != nil || !errors.Is(err, vitrine.ErrNotBooted) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, %v, want ErrNotBooted with %q", k, err, want)
		}
	}
}

func FuzzDescribeARM(f *testing.F) {
	f.Add(uint64(1), uint16(1))
	f.Add(uint64(2), uint16(500))
	f.Fuzz(func(t *testing.T, seed uint64, n uint16) {
		g := newARMFake(t, fakeOptions{})
		scribble(g, seed, n)
		k, err := kernel.Describe(t.Context(), g.guest(), &kernel.Options{Wait: -1})
		if (k == nil) == (err == nil) {
			t.Fatalf("got %v and %v, want one of them", k, err)
		}
	})
}
