package kernel

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/isf"
)

// minCommon is how many functions a profile and the kernel must have in common for
// the profile's other symbols to be believed.
const minCommon = 32

// takeSymbols adds the symbols that the profile has and the kernel lacks: those of
// variables, where it was built without CONFIG_KALLSYMS_ALL. They lie where KASLR
// moved the functions that both have.
func (k *Kernel) takeSymbols(p *isf.File) {
	slide, ok := k.profileSlide(p)
	if !ok {
		return
	}
	if k.inferred == nil {
		k.inferred = map[string]arch.GVA{}
	}
	n := 0
	p.Addresses(func(name string, addr uint64) {
		if _, have := k.symbols.Lookup(name); have {
			return
		}
		k.inferred[name] = k.wrap(arch.GVA(addr + slide))
		n++
	})
	if n == 0 {
		return
	}
	k.fact("symbols", fmt.Sprintf("%s, %d more in the %s", k.facts["symbols"], n, k.types.by))
	if end := k.inferred["_end"]; end > k.base {
		k.end = min(k.end, end)
	}
	k.takePageTable()
}

// profileSlide returns how far the kernel lies from where the profile's was
// linked, and false unless all functions say the same.
func (k *Kernel) profileSlide(p *isf.File) (slide uint64, ok bool) {
	common, differ := 0, ""
	p.Addresses(func(name string, addr uint64) {
		i, have := k.symbols.Lookup(name)
		if !have {
			return
		}
		if t := k.symbols.Type(i); t != 't' && t != 'T' || strings.HasPrefix(name, "_text") {
			return
		}
		off := k.symbols.Addr(i) - addr
		if common++; common == 1 {
			slide = off
		} else if off != slide {
			differ = name
		}
	})
	if differ != "" {
		k.lacks(fmt.Sprintf("symbols of the %s: %q lies elsewhere in the kernel", k.types.by, differ))
	}
	return slide, differ == "" && common >= minCommon
}

// takePageTable makes the kernel's own page table its address space, where that of
// a program was used for want of its symbol.
func (k *Kernel) takePageTable() {
	for _, name := range []string{"init_top_pgt", "swapper_pg_dir"} {
		va := k.inferred[name]
		if va == 0 {
			continue
		}
		pa, err := k.space.Translate(va)
		if err != nil {
			return
		}
		own := k.g.AddressSpace(k.space.Mode(), pa)
		if again, err := own.Translate(va); err != nil || again != pa {
			return
		}
		k.space = own
		k.fact("page_table", k.types.by+" "+name)
		k.missing = slices.DeleteFunc(k.missing, func(m string) bool { return strings.HasPrefix(m, "page table:") })
		return
	}
}
