package kernel_test

import (
	"errors"
	"strings"
	"testing"

	cilium "github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// moduleTypes are the types of a module as Linux 6.4 to 7.2 have them, in
// short: list at 0, name at 16, mem at 32 (base, size), kallsyms at 96.
func moduleTypes() []cilium.Type {
	u8, u32, u64 := &cilium.Int{Name: "u8", Size: 1}, &cilium.Int{Name: "u32", Size: 4}, &cilium.Int{Name: "u64", Size: 8}
	array := func(t cilium.Type, n uint32) *cilium.Array { return &cilium.Array{Type: t, Index: u32, Nelems: n} }
	tables := &cilium.Struct{Name: "mod_kallsyms", Size: 32, Members: []cilium.Member{
		{Name: "symtab", Type: u64}, {Name: "num_symtab", Type: u32, Offset: 64}, {Name: "strtab", Type: u64, Offset: 128}, {Name: "typetab", Type: u64, Offset: 192}}}
	memory := &cilium.Struct{Name: "module_memory", Size: 16, Members: []cilium.Member{{Name: "base", Type: u64}, {Name: "size", Type: u32, Offset: 64}}}
	return []cilium.Type{tables, &cilium.Struct{Name: "module", Size: 128, Members: []cilium.Member{
		{Name: "list", Type: array(u64, 2)}, {Name: "name", Type: array(u8, 16), Offset: 128}, {Name: "mem", Type: array(memory, 4), Offset: 256},
		{Name: "kallsyms", Type: &cilium.Pointer{Target: tables}, Offset: 768},
		{Name: "state", Type: u32, Offset: 832},
		{Name: "mkobj", Type: &cilium.Struct{Name: "module_kobject", Size: 8, Members: []cilium.Member{{Name: "mod", Type: u64}}}, Offset: 896}}}}
}

const (
	modulesHead = fakeVars + 0x700
	moduleArea  = arch.GVA(0xffff_ffff_c000_0000)
)

// addModule puts a module with two functions at area page i, linked behind the
// one before it.
func (f *fake) addModule(i int, name string) arch.GVA {
	m := moduleArea + arch.GVA(i)*0x1000
	s := f.space
	s.Map(m, 0x1000, vitrinetest.Writable)
	s.PutString(m+16, name)
	s.PutUint64(m+32, uint64(m)+0x800)
	s.PutUint32(m+40, 0x800)
	s.PutUint64(m+96, uint64(m)+0x100)
	s.PutUint64(m+0x100, uint64(m)+0x200) // symtab: undefined, then two
	s.PutUint32(m+0x108, 3)
	s.PutUint64(m+0x110, uint64(m)+0x300)
	s.PutUint64(m+0x118, uint64(m)+0x380)
	s.PutString(m+0x301, name+"_first")
	s.PutString(m+0x340, name+"_second")
	s.PutString(m+0x380, "Utt")
	for n, off := range map[arch.GVA]uint32{1: 1, 2: 0x40} {
		at := m + 0x200 + 24*n
		s.PutUint32(at, off)
		s.PutUint(at+6, 1, 2)
		s.PutUint64(at+8, uint64(m)+0x700+0x100*uint64(n))
		s.PutUint64(at+16, 0x80)
	}
	before := f.base + modulesHead
	if i > 0 {
		before = m - 0x1000
	}
	s.PutUint64(before, uint64(m))
	s.PutUint64(m, uint64(f.base)+modulesHead)
	return m
}

func newFakeModules(t *testing.T) (*fake, []arch.GVA) {
	f := newFake(t, fakeOptions{})
	return f, []arch.GVA{f.addModule(0, "alpha"), f.addModule(1, "beta"), f.addModule(2, "gamma")}
}

func moduleSymbols(k *kernel.Kernel) (names []string, failed error) {
	for s, err := range k.ModuleSymbols() {
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		names = append(names, s.Name)
	}
	return names, failed
}

func TestModuleSymbols(t *testing.T) {
	f, at := newFakeModules(t)
	k := describe(t, f.guest(), nil)
	names, err := moduleSymbols(k)
	want := []string{"alpha_first", "alpha_second", "beta_first", "beta_second", "gamma_first", "gamma_second"}
	if diff := cmp.Diff(want, names); diff != "" || err != nil {
		t.Errorf("(-want +got): %s, %v", diff, err)
	}
	got, err := k.ModuleSymbol("beta_second")
	if diff := cmp.Diff(kernel.Symbol{Name: "beta_second", Addr: at[1] + 0x900, Size: 0x80, Type: 't', Module: "beta"}, got); diff != "" || err != nil {
		t.Errorf("(-want +got): %s, %v", diff, err)
	}
	if in, ok := k.ModuleSymbolAt(at[1] + 0x912); !ok || in != got {
		t.Errorf("ModuleSymbolAt: %+v, %v", in, ok)
	}
	for _, a := range []arch.GVA{0, at[1] + 0x10, at[2] + 0x1000, f.base} {
		if in, ok := k.ModuleSymbolAt(a); ok {
			t.Errorf("ModuleSymbolAt(%v): %+v", a, in)
		}
	}
}

// A torn module costs its own symbols, a torn list what lies behind; nothing hangs.
func TestModuleSymbolsHostile(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(f *fake, at []arch.GVA)
		want  string // names, then a word of the error
	}{
		"list runs into itself": {func(f *fake, at []arch.GVA) { f.space.PutUint64(at[2], uint64(at[1])) }, "alpha beta gamma, does not end"},
		"list ends nowhere":     {func(f *fake, at []arch.GVA) { f.space.PutUint64(at[1], 0x10) }, "alpha beta, not present"},
		"many symbols":          {func(f *fake, at []arch.GVA) { f.space.PutUint32(at[1]+0x108, 1<<31) }, "alpha gamma, too many"},
		"table nowhere":         {func(f *fake, at []arch.GVA) { f.space.PutUint64(at[1]+0x100, 0x10) }, "alpha gamma, not present"},
		"tables nowhere":        {func(f *fake, at []arch.GVA) { f.space.PutUint64(at[1]+96, 0) }, "alpha gamma, not present"},
		"endless name":          {func(f *fake, at []arch.GVA) { f.space.Put(at[0]+16, []byte(strings.Repeat("x", 80))) }, "beta gamma, limit"},
	} {
		t.Run(name, func(t *testing.T) {
			f, at := newFakeModules(t)
			k := describe(t, f.guest(), nil)
			c.spoil(f, at)
			names, err := moduleSymbols(k)
			var seen []string
			for _, n := range names {
				if m, ok := strings.CutSuffix(n, "_first"); ok {
					seen = append(seen, m)
				}
			}
			mods, word, _ := strings.Cut(c.want, ", ")
			if strings.Join(seen, " ") != mods || err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("modules %q, error %v, want %q", seen, err, c.want)
			}
		})
	}
}
