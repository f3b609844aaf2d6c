package kernel_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	kt "github.com/vitrine-vmi/vitrine/kernel/internal/kallsymstest"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

func TestDescribeFake(t *testing.T) {
	for _, l := range kt.Layouts {
		for _, mode := range []arch.PagingMode{arch.Paging4Level, arch.Paging5Level} {
			t.Run(string(l)+" "+mode.String(), func(t *testing.T) {
				f := newFake(t, fakeOptions{layout: l, mode: mode})
				for name, g := range map[string]*vitrine.Guest{"live": f.guest(), "image": f.image()} {
					checkFake(t, name, f, describe(t, g, nil))
				}
			})
		}
	}
}

func checkFake(t *testing.T, name string, f *fake, k *kernel.Kernel) {
	t.Helper()
	if k.OS() != kernel.Linux || k.Release() != fakeRelease || k.BuildID() != fakeID || k.Base() != f.base || k.Slide() != fakeSlide ||
		k.Paging() != f.space.Mode() || k.AddressSpace().Root() != f.space.Root() || k.PhysBase() != f.space.Phys(f.base) {
		t.Errorf("%s: %v %q %q base %v slide %#x paging %v root %v phys %v", name, k.OS(), k.Release(), k.BuildID(),
			k.Base(), k.Slide(), k.Paging(), k.AddressSpace().Root(), k.PhysBase())
	}
	if m := k.Missing(); len(m) != 0 {
		t.Errorf("%s: missing %q", name, m)
	}
	if f, err := k.Types().Field("task_struct", "wide"); err != nil || f.Offset != 8 {
		t.Errorf("%s: task_struct.wide: %+v, %v", name, f, err)
	}
	calls, err := k.Syscalls()
	want := []kernel.Syscall{{NR: 2, Name: "open", Args: []kernel.SyscallArg{{Name: "filename", Type: "const char *"}}}}
	if diff := cmp.Diff(want, calls); diff != "" || err != nil {
		t.Errorf("%s: system calls (-want +got): %s, %v", name, diff, err)
	}
	for _, fact := range []string{"release", "build_id", "base", "slide", "paging", "symbols", "types", "syscalls", "page_table", "phys_base"} {
		if k.Facts()[fact] == "" {
			t.Errorf("%s: fact %s has no provenance", name, fact)
		}
	}
}

// A guest that somebody paused is read as it stands.
func TestDescribePaused(t *testing.T) {
	f := newFake(t, fakeOptions{})
	f.SetStatus(vitrine.StatusPaused)
	checkFake(t, "paused", f, describe(t, f.guest(), nil))
}

// What a kernel lacks is named and does not keep the rest from being known.
func TestDescribeMissing(t *testing.T) {
	f := newFake(t, fakeOptions{noInfo: true, noBTF: true})
	k := describe(t, f.guest(), nil)
	if k.Release() != fakeRelease || k.Slide() != fakeSlide || k.BuildID() != "" {
		t.Errorf("release %q, slide %#x, build id %q", k.Release(), k.Slide(), k.BuildID())
	}
	if m := strings.Join(k.Missing(), "\n"); !strings.Contains(m, "VMCOREINFO") || !strings.Contains(m, "CONFIG_DEBUG_INFO_BTF") {
		t.Errorf("missing: %q", m)
	}
	if _, err := k.Types().Size("task_struct"); !errors.Is(err, kernel.ErrNoType) || k.Types().Available() {
		t.Errorf("Size without types: %v", err)
	}
	if _, err := k.Types().Func("do_exit"); !errors.Is(err, kernel.ErrNoType) {
		t.Errorf("Func without types: %v", err)
	}
	if _, err := k.Types().Enum("", "X"); !errors.Is(err, kernel.ErrNoType) {
		t.Errorf("Enum without types: %v", err)
	}
}

// A kernel with symbols of functions only is known by other ways.
func TestDescribeFunctionSymbolsOnly(t *testing.T) {
	f := newFake(t, fakeOptions{noData: true})
	k := describe(t, f.guest(), nil)
	if k.Release() != fakeRelease || k.BuildID() != fakeID || k.AddressSpace().Root() != f.space.Root() || !k.Types().Has("task_struct", "comm") {
		t.Errorf("release %q, build id %q, root %v, types %v", k.Release(), k.BuildID(), k.AddressSpace().Root(), k.Types().Available())
	}
	f = newFake(t, fakeOptions{noData: true, noInfo: true, noBTF: true})
	k = describe(t, f.guest(), nil)
	m := strings.Join(k.Missing(), "\n")
	for _, what := range []string{"VMCOREINFO", "BTF", "page table", "per-CPU", "system call", "boot state"} {
		if !strings.Contains(m, what) {
			t.Errorf("%s is not said to be missing: %q", what, m)
		}
	}
	if _, err := k.PerCPU("current_task", 0); !errors.Is(err, kernel.ErrNoSymbol) {
		t.Errorf("PerCPU: %v", err)
	}
}

// A program in the guest that holds the text of a VMCOREINFO fools nobody.
func TestDescribeForgedNote(t *testing.T) {
	f := newFake(t, fakeOptions{})
	for range 3 {
		page := f.Alloc(1)
		f.PutPhysical(page, []byte(strings.ReplaceAll(fakeNote(f.base, fakeOptions{release: "9.9.9-forged"}, int64(page)), fakeID, strings.Repeat("0", 40))))
	}
	for name, g := range map[string]*vitrine.Guest{"live": f.guest(), "image": f.image()} {
		checkFake(t, name, f, describe(t, g, nil))
	}
}

// Memory keeps the kernel of an earlier boot; the registers tell which one runs.
func TestDescribeEarlierBoot(t *testing.T) {
	f := newFake(t, fakeOptions{release: "5.5.5-earlier"})
	f.space = f.addKernel(t, fakeOptions{})
	f.runIn(f.space.Mode(), f.space.Root(), uint64(f.base))
	checkFake(t, "live", f, describe(t, f.guest(), nil))
	k, err := kernel.Describe(t.Context(), f.image(), nil)
	if k != nil || !errors.Is(err, vitrine.ErrNotUnderstood) || !strings.Contains(err.Error(), "two kernels") {
		t.Errorf("image of two kernels: %v, %v", k, err)
	}
}

// With isolated page tables a processor in a program uses a table that maps
// next to nothing of the kernel; the kernel's lies one page before it.
func TestDescribeIsolatedPageTables(t *testing.T) {
	f := &fake{Backend: vitrinetest.New(), info: vitrine.Info{Name: "fake", Backend: "fake", Arch: arch.AMD64, CPUs: 1, Live: true}}
	f.space = f.addKernel(t, fakeOptions{})
	if f.space.Root()&0x1000 != 0 {
		t.Fatalf("root %v is not the first of a pair", f.space.Root())
	}
	f.runIn(f.space.Mode(), f.space.Root()+0x1000, 0x401000) // that page is empty
	checkFake(t, "live", f, describe(t, f.guest(), nil))
}

func TestDescribeContradictions(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*fake)
		want  string
	}{
		"note of another release": {func(f *fake) { f.space.PutString(fakeInfo+24, "OSRELEASE=6.6\n") }, "vmcoreinfo says"},
		"uts of another release":  {func(f *fake) { f.space.PutString(f.base+fakeUTS+130, "6.6") }, "init_uts_ns says"},
		"page table elsewhere": {func(f *fake) {
			f.space.MapTo(f.base+fakeTop, f.Alloc(1), vitrinetest.Page4K, 0)
		}, "does not map itself"},
		"banner":      {func(f *fake) { f.space.PutString(f.base+fakeRodata, "Minix version 3") }, "Minix"},
		"text zeroed": {func(f *fake) { f.space.Put(f.base+fakeTable, make([]byte, 0x8000)) }, "kallsyms"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, fakeOptions{})
			c.spoil(f)
			k, err := kernel.Describe(t.Context(), f.guest(), &kernel.Options{Wait: -1})
			if k != nil || !errors.Is(err, vitrine.ErrNotUnderstood) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, %v, want ErrNotUnderstood with %q", k, err, c.want)
			}
		})
	}
}

func TestDescribeStages(t *testing.T) {
	real := arch.Registers{CS: 0xf000, RIP: 0xfff0}
	protected := arch.Registers{CR0: arch.CR0PE, CS: 8, RIP: 0x100000}
	for name, c := range map[string]struct {
		set  func(*fake)
		opts kernel.Options
		want string
	}{
		"reset vector":  {func(f *fake) { f.SetRegisters(real) }, kernel.Options{Wait: -1}, "F000:FFF0"},
		"32-bit":        {func(f *fake) { f.SetRegisters(protected) }, kernel.Options{Wait: -1}, "32-bit code at 0x100000"},
		"64-bit loader": {func(f *fake) { f.runIn(arch.Paging4Level, f.NewSpace(arch.Paging4Level).Root(), 0x7000) }, kernel.Options{Wait: -1}, "boot loader"},
		"early kernel":  {func(f *fake) { f.space.PutUint32(f.base+fakeVars, 1) }, kernel.Options{Wait: 20 * time.Millisecond}, "still starting"},
		"paused":        {func(f *fake) { f.SetRegisters(real); f.SetStatus(vitrine.StatusPaused) }, kernel.Options{}, "guest is paused"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, fakeOptions{})
			c.set(f)
			k, err := kernel.Describe(t.Context(), f.guest(), &c.opts)
			if k != nil || !errors.Is(err, vitrine.ErrNotBooted) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, %v, want ErrNotBooted with %q", k, err, c.want)
			}
		})
	}
}

func TestDescribeWaits(t *testing.T) {
	f := newFake(t, fakeOptions{state: 1})
	waited := false
	k := describe(t, f.guest(), &kernel.Options{Progress: func(step string) {
		if strings.HasPrefix(step, "waiting") {
			waited = true
			f.space.PutUint32(f.base+fakeVars, 3)
		}
	}})
	if !waited {
		t.Error("did not wait")
	}
	checkFake(t, "after the wait", f, k)
	f.space.PutUint32(f.base+fakeVars, 1)
	checkFake(t, "early", f, describe(t, f.guest(), &kernel.Options{Early: true}))
}

func TestDescribeEndsWithContext(t *testing.T) {
	f := newFake(t, fakeOptions{state: 1})
	// On a busy host, one look at the guest may take longer than a tenth of that.
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	start := time.Now()
	_, err := kernel.Describe(ctx, f.guest(), nil)
	if !errors.Is(err, vitrine.ErrNotBooted) || time.Since(start) > 45*time.Second {
		t.Errorf("at the deadline: %v after %v, want ErrNotBooted", err, time.Since(start))
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := kernel.Describe(gone, f.guest(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A Windows kernel is told as what it is, at once.
func TestDescribeOtherSystem(t *testing.T) {
	f := &fake{Backend: vitrinetest.New(), info: vitrine.Info{Name: "fake", Arch: arch.AMD64, CPUs: 1, Live: true}}
	s := f.NewSpace(arch.Paging4Level)
	const image, idt = arch.GVA(0xfffff80312a00000), arch.GVA(0xfffff80310000000)
	s.Map(image, 0x8000, 0)
	s.Put(image, []byte("MZ"))
	s.PutUint32(image+0x3c, 0x100)
	s.Put(image+0x100, []byte("PE\x00\x00"))
	s.Map(idt, 0x1000, vitrinetest.Writable)
	handler := uint64(image) + 0x5120
	s.PutUint64(idt+14*16, handler&0xffff|0x10<<16|0x8e00<<32|handler>>16&0xffff<<48)
	s.PutUint64(idt+14*16+8, handler>>32)
	r := arch.Registers{CR0: arch.CR0PE | arch.CR0PG, CR3: uint64(s.Root()), CR4: arch.CR4PAE, EFER: arch.EFERLMA, IDTBase: uint64(idt), RIP: handler}
	f.SetRegisters(r)
	start := time.Now()
	_, err := kernel.Describe(t.Context(), f.guest(), nil)
	if !errors.Is(err, vitrine.ErrNotUnderstood) || errors.Is(err, vitrine.ErrNotBooted) || !strings.Contains(err.Error(), image.String()) {
		t.Errorf("got %v, want ErrNotUnderstood with %v", err, image)
	}
	if time.Since(start) > 30*time.Second { // it waits a minute for one that boots
		t.Errorf("took %v", time.Since(start))
	}
}

// Reading fails now and then; nothing but an error may come of it.
func TestDescribeReadFaults(t *testing.T) {
	for n := 1; n < 400; n += 7 {
		f := newFake(t, fakeOptions{})
		f.FailNth(vitrinetest.OpRead, n, errors.New("host lost the page"))
		k, err := kernel.Describe(t.Context(), f.guest(), &kernel.Options{Wait: -1})
		if (k == nil) == (err == nil) {
			t.Fatalf("read %d fails: %v and %v, want one of them", n, k, err)
		}
	}
}

// scribble writes n random words into the memory that the fake uses.
func scribble(g *fake, seed uint64, n uint16) {
	r := rand.New(rand.NewPCG(seed, uint64(n)))
	used := g.Alloc(1)
	for range n {
		var word [8]byte
		for i := range word {
			word[i] = byte(r.Uint32())
		}
		g.PutPhysical(arch.GPA(r.Uint64N(uint64(used))), word[:1+r.IntN(8)])
	}
}

func FuzzDescribe(f *testing.F) {
	f.Add(uint64(1), uint16(1))
	f.Add(uint64(2), uint16(500))
	f.Fuzz(func(t *testing.T, seed uint64, n uint16) {
		g := newFake(t, fakeOptions{layout: kt.Layouts[seed%uint64(len(kt.Layouts))]})
		g.addModule(0, "alpha")
		g.addModule(1, "beta")
		scribble(g, seed, n)
		k, err := kernel.Describe(t.Context(), g.guest(), &kernel.Options{Wait: -1})
		if (k == nil) == (err == nil) {
			t.Fatalf("got %v and %v, want one of them", k, err)
		}
		if k == nil {
			return
		}
		k.Syscalls()
		moduleSymbols(k)
		k.ModuleSymbolAt(moduleArea)
		k.OnlineCPUs()
		k.PerCPU("current_task", 0)
		k.Types().Field("task_struct", "comm")
		k.Types().Enum("", "SYSTEM_RUNNING")
		for s := range k.Symbols() {
			k.SymbolAt(s.Addr)
		}
	})
}

// A kernel without BTF is described by the profile of its build, and by no
// other.
func TestProfile(t *testing.T) {
	f := newFake(t, fakeOptions{noBTF: true})
	k := describe(t, f.guest(), nil)
	if absent := k.Types().Absent(); k.Types().Available() || !strings.Contains(absent, "dwarf2json") || !strings.Contains(absent, k.Release()) {
		t.Errorf("without a profile: %v, %q", k.Types().Available(), absent)
	}
	dir := t.TempDir()
	write := func(name, banner string) string {
		path := filepath.Join(dir, name)
		text := fmt.Sprintf(`{"metadata": {"format": "6.2.0"}, "base_types": {"int": {"size": 4}}, "enums": {"e": {"size": 4, "constants": {"ONE": 1}}},
			"symbols": {"linux_banner": {"constant_data": %q}},
			"user_types": {"task_struct": {"size": 100, "fields": {"pid": {"offset": 40, "type": {"kind": "base", "name": "int"}}}}}}`,
			base64.StdEncoding.EncodeToString([]byte(banner)))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, banner := range map[string]string{"another build": k.Banner() + " #2", "no banner": "", "no file": "-"} {
		path := filepath.Join(dir, "absent.json")
		if banner != "-" {
			path = write("other.json", banner)
		}
		got := describe(t, f.guest(), &kernel.Options{Symbols: []string{path}})
		if m := strings.Join(got.Missing(), "\n"); got.Types().Available() || !strings.Contains(m, "profile "+path) {
			t.Errorf("%s: taken, or nothing said: %s", name, m)
		}
	}
	write("vmlinux-"+k.Release()+".json", k.Banner()+"\n\x00")
	got := describe(t, f.guest(), &kernel.Options{Symbols: []string{dir}})
	field, err := got.Types().Field("task_struct", "pid")
	if want := (kernel.Field{Offset: 40, Size: 4, TypeName: "int"}); err != nil || field != want {
		t.Errorf("task_struct.pid: %+v, %v", field, err)
	}
	if n, err := got.Types().Size("task_struct"); err != nil || n != 100 {
		t.Errorf("size %d, %v", n, err)
	}
	if v, err := got.Types().Enum("e", "ONE"); err != nil || v != 1 {
		t.Errorf("ONE is %d, %v", v, err)
	}
	for _, err := range []error{
		second(got.Types().Size("absent")), second(got.Types().Field("task_struct", "absent")), second(got.Types().Enum("e", "TWO")), second(got.Types().Func("f")),
	} {
		if !errors.Is(err, kernel.ErrNoType) {
			t.Errorf("what the profile does not have: %v", err)
		}
	}
	if by := got.Types().Source("task_struct", "pid"); !strings.HasPrefix(by, "profile vmlinux-") || got.Facts()["types"] != by {
		t.Errorf("source %q, fact %q", by, got.Facts()["types"])
	}
}

func second[T any](_ T, err error) error { return err }
