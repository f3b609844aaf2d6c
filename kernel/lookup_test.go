package kernel_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	kt "github.com/vitrine-vmi/vitrine/kernel/internal/kallsymstest"
)

func TestSymbolNearest(t *testing.T) {
	k := describe(t, newFake(t, fakeOptions{}).guest(), nil)
	for name, want := range map[string]string{
		"linux_baner":            "nearest: linux_banner",
		"init_function_12_tabl":  "init_function_12_table",
		"same_nam":               "nearest: same_name", // once, though many symbols have the name
		"":                       `""`,
		strings.Repeat("x", 500): "no such kernel symbol",
	} {
		_, err := k.Symbol(name)
		if !errors.Is(err, kernel.ErrNoSymbol) || !strings.Contains(err.Error(), want) {
			t.Errorf("Symbol(%.20q): %v, want ErrNoSymbol with %q", name, err, want)
		}
	}
	if _, err := k.Symbol("nothing_like_it_anywhere"); err == nil || strings.Contains(err.Error(), "nearest") {
		t.Errorf("offered something for nothing: %v", err)
	}
}

func TestSymbolAt(t *testing.T) {
	f := newFake(t, fakeOptions{})
	k := describe(t, f.guest(), nil)
	for off, want := range map[int]string{0: "_stext", 16 * 7: "init_function_7_table", 16*7 + 15: "init_function_7_table", fakeRodata + 3: "linux_banner", fakeUTS + 1: "init_uts_ns"} {
		if s, ok := k.SymbolAt(f.base + arch.GVA(off)); !ok || s.Name != want {
			t.Errorf("SymbolAt(base+%#x): %+v, %v, want %s", off, s, ok, want)
		}
	}
	for _, a := range []arch.GVA{0, 0x34000, f.base - 1, f.base + fakeDataEnd, 1<<64 - 1} {
		if s, ok := k.SymbolAt(a); ok {
			t.Errorf("SymbolAt(%v): %+v, want none outside the image", a, s)
		}
	}
	last := kernel.Symbol{}
	for s := range k.Symbols() {
		if s.Addr < last.Addr {
			t.Fatalf("%+v comes behind %+v", s, last)
		}
		last = s
	}
	for range k.Symbols() { // may be left early
		break
	}
}

func TestPerCPU(t *testing.T) {
	f := newFake(t, fakeOptions{})
	k := describe(t, f.guest(), nil)
	// Absolute per-CPU symbols are distances from the processor's area.
	if a, err := k.PerCPU("current_task", 0); err != nil || a != f.base+fakeData+0x1fb80 {
		t.Errorf("current_task of processor 0: %v, %v", a, err)
	}
	for _, c := range []struct {
		sym  string
		cpu  int
		want string
	}{{"current_task", 1, "does not exist"}, {"current_task", -1, "does not exist"}, {"linux_banner", 0, "not in the per-CPU section"}, {"current_tas", 0, "no such"}} {
		if a, err := k.PerCPU(c.sym, c.cpu); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("PerCPU(%s, %d): %v, %v, want %q", c.sym, c.cpu, a, err, c.want)
		}
	}
	// What the guest says of its processors is bounded.
	f.space.PutUint32(f.base+fakeVars+8, 1<<31)
	f.space.PutUint64(f.base+fakeVars+16, 0)
	if got := k.OnlineCPUs(); !slices.Equal(got, []int{0}) {
		t.Errorf("OnlineCPUs without a mask: %v", got)
	}
	if _, err := k.PerCPU("current_task", 1<<30); err == nil {
		t.Error("processor 1<<30 was found")
	}
	f.space.PutUint32(f.base+fakeVars+8, 6)
	f.space.PutUint64(f.base+fakeVars+16, 0b100101)
	if got := k.OnlineCPUs(); !slices.Equal(got, []int{0, 2, 5}) || k.CPUs() != 3 {
		t.Errorf("OnlineCPUs: %v", got)
	}
}

// Entries of the array of system calls that are torn are left out.
func TestSyscallsHostile(t *testing.T) {
	for name, spoil := range map[string]func(*fake){
		"another number":     func(f *fake) { f.space.PutUint32(f.base+fakeCalls+0x108, 3) },
		"no name":            func(f *fake) { f.space.PutUint64(f.base+fakeCalls+0x100, 1) },
		"other name":         func(f *fake) { f.space.PutString(f.base+fakeCalls+0x180, "do_open") },
		"many arguments":     func(f *fake) { f.space.PutUint32(f.base+fakeCalls+0x10c, 7) },
		"types nowhere":      func(f *fake) { f.space.PutUint64(f.base+fakeCalls+0x110, 8) },
		"names nowhere":      func(f *fake) { f.space.PutUint64(f.base+fakeCalls+0x118, 8) },
		"endless type":       func(f *fake) { f.space.Put(f.base+fakeCalls+0x190, []byte(strings.Repeat("x", 600))) },
		"outside the kernel": func(f *fake) { f.space.PutUint64(f.base+fakeCalls+16, 0x1000) },
		"array nowhere":      func(f *fake) { f.space.PutUint64(f.base+fakeVars+24, 0x10) },
	} {
		f := newFake(t, fakeOptions{})
		k := describe(t, f.guest(), nil)
		spoil(f)
		if calls, err := k.Syscalls(); err == nil || len(calls) != 0 {
			t.Errorf("%s: %v, %v, want an error", name, calls, err)
		}
	}
	k := describe(t, newFake(t, fakeOptions{noData: true}).guest(), nil)
	if _, err := k.Syscalls(); !errors.Is(err, kernel.ErrNoSymbol) {
		t.Errorf("without the array: %v, want ErrNoSymbol", err)
	}
}

func TestTypes(t *testing.T) {
	k := describe(t, newFake(t, fakeOptions{}).guest(), nil)
	for range 2 { // the second time from the cache
		f, err := k.Types().Field("task_struct", "comm")
		if diff := cmp.Diff(kernel.Field{Offset: 16, Size: 16, TypeName: "char[16]"}, f); diff != "" || err != nil {
			t.Errorf("comm (-want +got): %s, %v", diff, err)
		}
		if _, err := k.Types().Field("task_struct", "com"); !errors.Is(err, kernel.ErrNoType) {
			t.Errorf("com: %v", err)
		}
	}
	for what, got := range map[string]bool{
		"task_struct": k.Types().Has("task_struct", ""), "task_struct.flags": k.Types().Has("task_struct", "flags"),
		"not task_structs": !k.Types().Has("task_structs", ""), "not task_struct.x": !k.Types().Has("task_struct", "x"),
	} {
		if !got {
			t.Errorf("Has does not say that there is %s", what)
		}
	}
	if n, err := k.Types().Size("task_struct"); n != 96 || err != nil {
		t.Errorf("Size: %d, %v", n, err)
	}
	if v, err := k.Types().Enum("system_states", "SYSTEM_RUNNING"); v != 3 || err != nil {
		t.Errorf("Enum: %d, %v", v, err)
	}
	if _, err := k.Types().Func("task_struct"); !errors.Is(err, kernel.ErrNoType) {
		t.Errorf("Func: %v", err)
	}
}

func TestFieldBits(t *testing.T) {
	for _, c := range []struct {
		f    kernel.Field
		v    uint64
		want uint64
	}{
		{kernel.Field{BitOffset: 3, BitSize: 5}, 0b1010_1101, 0b10101},
		{kernel.Field{BitOffset: 0, BitSize: 1}, 0xfe, 0},
		{kernel.Field{}, 1 << 63, 1 << 63},
		{kernel.Field{BitSize: 64}, 1<<64 - 1, 1<<64 - 1},
	} {
		if got := c.f.Bits(c.v); got != c.want {
			t.Errorf("%+v of %#b: %#b, want %#b", c.f, c.v, got, c.want)
		}
	}
}

// What a caller does to the maps and lists that it gets does not show elsewhere.
func TestResultsAreCopies(t *testing.T) {
	k := describe(t, newFake(t, fakeOptions{noInfo: true, layout: kt.Linux72}).guest(), nil)
	k.Facts()["release"] = "spoilt"
	k.Missing()[0] = "spoilt"
	if k.Facts()["release"] == "spoilt" || k.Missing()[0] == "spoilt" {
		t.Error("Facts or Missing share their memory")
	}
}
