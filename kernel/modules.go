package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Limits on what the guest's list of modules may ask for.
const (
	maxModules       = 4096
	maxModuleSymbols = 1 << 17 // the largest module of Debian has about 20,000
	maxModuleName    = 64
	maxModuleRegions = 16
)

// moduleLayout is where the members of a loaded module lie.
type moduleLayout struct {
	list, name, kallsyms           Field
	symtab, count, strtab, typetab Field
	bases, sizes                   []Field
}

// moduleLayout resolves the members by what the kernel has: struct
// module_memory since 6.4, struct module_layout before.
func (k *Kernel) moduleLayout() (moduleLayout, error) {
	var l moduleLayout
	for _, m := range []struct {
		outer, path string
		to          *Field
	}{
		{"module", "list", &l.list}, {"module", "name", &l.name}, {"module", "kallsyms", &l.kallsyms},
		{"mod_kallsyms", "symtab", &l.symtab}, {"mod_kallsyms", "num_symtab", &l.count},
		{"mod_kallsyms", "strtab", &l.strtab}, {"mod_kallsyms", "typetab", &l.typetab},
	} {
		f, err := k.types.Field(m.outer, m.path)
		if err != nil {
			return l, err
		}
		*m.to = f
	}
	for i := range maxModuleRegions {
		base, err := k.types.Field("module", fmt.Sprintf("mem[%d].base", i))
		if err != nil {
			break
		}
		size, err := k.types.Field("module", fmt.Sprintf("mem[%d].size", i))
		if err != nil {
			break
		}
		l.bases, l.sizes = append(l.bases, base), append(l.sizes, size)
	}
	if len(l.bases) == 0 {
		base, err := k.types.Field("module", "core_layout.base")
		size, err2 := k.types.Field("module", "core_layout.size")
		if err := errors.Join(err, err2); err != nil {
			return l, err
		}
		l.bases, l.sizes = []Field{base}, []Field{size}
	}
	return l, nil
}

// modules walks the list of loaded modules and yields the address of each
// struct module.
func (k *Kernel) modules(l moduleLayout) iter.Seq2[arch.GVA, error] {
	return func(yield func(arch.GVA, error) bool) {
		head, err := k.address("modules")
		if err != nil {
			yield(0, err)
			return
		}
		// The memory of modules is mapped anew when they come and go.
		k.space.Invalidate()
		seen := map[arch.GVA]bool{}
		for at := head; ; {
			next, err := k.space.ReadPointer(at) // list_head.next is the first member
			if err == nil && next != head && (seen[next] || len(seen) >= maxModules) {
				err = errors.New("list of modules does not end")
			}
			if err != nil {
				yield(0, fmt.Errorf("walk modules: %w", err))
				return
			}
			if next == head || !yield(next-arch.GVA(l.list.Offset), nil) {
				return
			}
			seen[next], at = true, next
		}
	}
}

// ModuleSymbols returns the symbols of the modules that are loaded now, module
// by module, with Symbol.Module set; their sizes are those that the compiler
// gave. A module that cannot be read yields an error and the rest goes on. It
// corresponds to struct mod_kallsyms.
func (k *Kernel) ModuleSymbols() iter.Seq2[Symbol, error] {
	return func(yield func(Symbol, error) bool) {
		l, err := k.moduleLayout()
		if err != nil {
			yield(Symbol{}, fmt.Errorf("list module symbols: %w", err))
			return
		}
		for m, err := range k.modules(l) {
			if err != nil {
				yield(Symbol{}, err)
				return
			}
			if !k.symbolsOf(m, l, yield) {
				return
			}
		}
	}
}

// symbolsOf yields the symbols of the module at m and reports whether to go on.
func (k *Kernel) symbolsOf(m arch.GVA, l moduleLayout, yield func(Symbol, error) bool) bool {
	name, table, strings, letters, err := k.moduleTables(m, l)
	if err != nil {
		return yield(Symbol{}, fmt.Errorf("read symbols of module at %v: %w", m, err))
	}
	size := k.elfSymSize()
	for i := 0; len(table) >= size; i, table = i+1, table[size:] {
		s, at, defined := elfSymbol(table[:size])
		s.Module, s.Type = name, '?'
		if s.Addr == 0 || !defined {
			continue
		}
		s.Name, err = k.space.ReadString(strings+at, maxArgText*2)
		if err == nil && s.Name == "" {
			continue
		}
		if err != nil {
			err = fmt.Errorf("read symbol %d of module %q: %w", i, name, err)
		}
		if c, err := k.space.ReadUint8(letters + arch.GVA(i)); err == nil {
			s.Type = c
		}
		if !yield(s, err) {
			return false
		}
	}
	return true
}

// Sizes of an Elf64_Sym (name, info, other, section, value, size) and of an
// Elf32_Sym (name, value, size, info, other, section).
const (
	elf64SymSize = 24
	elf32SymSize = 16
)

func (k *Kernel) elfSymSize() int {
	if k.PointerSize() == 4 {
		return elf32SymSize
	}
	return elf64SymSize
}

// elfSymbol decodes an entry of an ELF symbol table, of either size: address and
// size, where its name is in the table of strings, and whether it is defined.
func elfSymbol(b []byte) (s Symbol, name arch.GVA, defined bool) {
	le := binary.LittleEndian
	if len(b) == elf32SymSize {
		s.Addr, s.Size = arch.GVA(le.Uint32(b[4:])), uint64(le.Uint32(b[8:]))
		return s, arch.GVA(le.Uint32(b)), le.Uint16(b[14:]) != 0
	}
	s.Addr, s.Size = arch.GVA(le.Uint64(b[8:])), le.Uint64(b[16:])
	return s, arch.GVA(le.Uint32(b)), le.Uint16(b[6:]) != 0
}

// moduleTables reads what a module tells of its symbols.
func (k *Kernel) moduleTables(m arch.GVA, l moduleLayout) (name string, table []byte, strings, letters arch.GVA, err error) {
	if name, err = k.space.ReadString(m+arch.GVA(l.name.Offset), maxModuleName); err != nil {
		return
	}
	at, err := k.space.ReadPointer(m + arch.GVA(l.kallsyms.Offset))
	if err != nil {
		return
	}
	symtab, err := k.space.ReadPointer(at + arch.GVA(l.symtab.Offset))
	if err != nil {
		return
	}
	count, err := k.readField(at, l.count)
	if err != nil {
		return
	}
	if count > maxModuleSymbols {
		err = fmt.Errorf("%d symbols are too many", count)
		return
	}
	if strings, err = k.space.ReadPointer(at + arch.GVA(l.strtab.Offset)); err != nil {
		return
	}
	if letters, err = k.space.ReadPointer(at + arch.GVA(l.typetab.Offset)); err != nil {
		return
	}
	table = make([]byte, count*uint64(k.elfSymSize()))
	n, err := k.space.Read(table, symtab)
	return name, table[:n], strings, letters, err
}

// ModuleSymbol returns a symbol of a loaded module by its name. It reads the
// modules anew each time, since they come and go. The error wraps ErrNoSymbol.
func (k *Kernel) ModuleSymbol(name string) (Symbol, error) {
	var failed error // the first; a guest can make as many as it likes
	for s, err := range k.ModuleSymbols() {
		if err != nil && failed == nil {
			failed = err
		} else if err == nil && s.Name == name {
			return s, nil
		}
	}
	return Symbol{}, errors.Join(fmt.Errorf("find symbol %q in modules: %w", name, ErrNoSymbol), failed)
}

// ModuleSymbolAt returns the symbol of a loaded module that contains address a:
// the nearest one at or before it in the module whose memory holds it.
func (k *Kernel) ModuleSymbolAt(a arch.GVA) (Symbol, bool) {
	l, err := k.moduleLayout()
	if err != nil {
		return Symbol{}, false
	}
	for m, err := range k.modules(l) {
		if err != nil {
			return Symbol{}, false
		}
		if k.moduleHolds(m, l, a) {
			return k.nearestIn(m, l, a)
		}
	}
	return Symbol{}, false
}

func (k *Kernel) moduleHolds(m arch.GVA, l moduleLayout, a arch.GVA) bool {
	for i := range l.bases {
		base, err := k.readField(m, l.bases[i])
		if err != nil {
			return false
		}
		size, err := k.readField(m, l.sizes[i])
		if err == nil && uint64(a) >= base && uint64(a)-base < size {
			return true
		}
	}
	return false
}

func (k *Kernel) nearestIn(m arch.GVA, l moduleLayout, a arch.GVA) (best Symbol, ok bool) {
	k.symbolsOf(m, l, func(s Symbol, err error) bool {
		if err == nil && s.Addr <= a && (!ok || s.Addr > best.Addr) {
			best, ok = s, true
		}
		return true
	})
	return best, ok
}
