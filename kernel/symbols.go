package kernel

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Symbol is a named address of the kernel.
type Symbol struct {
	Name string
	// Addr is the address; of a per-CPU symbol in kernels until 6.14, which is
	// an offset from zero, that offset. PerCPU hides the difference.
	Addr arch.GVA
	Size uint64 // bytes to the next symbol, 0 for the last one
	Type byte   // the letter that nm prints: lower case is local
	// Module is the loaded module that the symbol belongs to, "" for the kernel.
	Module string
}

// symbolTable is a decoded table, fresh from the guest or from a cache file.
type symbolTable interface {
	Len() int
	Name(i int) string
	Addr(i int) uint64
	Type(i int) byte
	Lookup(name string) (int, bool)
	At(a uint64) (int, bool)
	Next(i int) uint64
}

// Symbol returns a symbol by its name. Where several have the name, it is the
// one at the lowest address. The error wraps ErrNoSymbol and offers the nearest
// names.
func (k *Kernel) Symbol(name string) (Symbol, error) {
	i, ok := k.symbols.Lookup(name)
	if !ok {
		if a := k.inferred[name]; a != 0 {
			return Symbol{Name: name, Addr: a, Type: 'd'}, nil
		}
		return Symbol{}, k.noSymbol(name)
	}
	return k.symbolNumber(i), nil
}

// SymbolAt returns the symbol that contains address a: the last one that
// starts at or before it, within the kernel's image.
func (k *Kernel) SymbolAt(a arch.GVA) (Symbol, bool) {
	if a < k.base || a >= k.end {
		return Symbol{}, false
	}
	i, ok := k.symbols.At(uint64(a))
	if !ok || arch.GVA(k.symbols.Addr(i)) < k.base {
		return Symbol{}, false
	}
	return k.symbolNumber(i), true
}

// Symbols returns all symbols in address order.
func (k *Kernel) Symbols() iter.Seq[Symbol] {
	return func(yield func(Symbol) bool) {
		for i := range k.symbols.Len() {
			if !yield(k.symbolNumber(i)) {
				return
			}
		}
	}
}

func (k *Kernel) symbolNumber(i int) Symbol {
	s := Symbol{Name: k.symbols.Name(i), Addr: arch.GVA(k.symbols.Addr(i)), Type: k.symbols.Type(i)}
	if next := k.symbols.Next(i); next != 0 {
		s.Size = next - uint64(s.Addr)
	}
	return s
}

// noSymbol returns the error for a missing name.
func (k *Kernel) noSymbol(name string) error { return &noSymbolError{k, name} }

// noSymbolError looks for the nearest names only when it is shown: that takes
// as long as a thousand look-ups, and many names are asked for on the chance.
type noSymbolError struct {
	k    *Kernel
	name string
}

func (e *noSymbolError) Error() string {
	text := fmt.Sprintf("find symbol %q: %v", e.name, ErrNoSymbol)
	if near := e.k.nearest(e.name, 3); len(near) > 0 {
		text += "; nearest: " + strings.Join(near, ", ")
	}
	return text
}

func (e *noSymbolError) Unwrap() error { return ErrNoSymbol }

// nearest returns up to n symbols whose names resemble name.
func (k *Kernel) nearest(name string, n int) []string {
	type scored struct {
		name string
		dist int
	}
	if len(name) == 0 || len(name) > 128 {
		return nil
	}
	limit := max(1, len(name)/4)
	var best []scored
	for i := range k.symbols.Len() {
		s := k.symbols.Name(i)
		if len(s) > len(name)+limit || len(s)+limit < len(name) {
			continue
		}
		if d := distance(name, s, limit); d <= limit {
			best = append(best, scored{s, d})
		}
	}
	slices.SortFunc(best, func(a, b scored) int {
		return cmp.Or(cmp.Compare(a.dist, b.dist), strings.Compare(a.name, b.name))
	})
	best = slices.Compact(best)
	var out []string
	for _, s := range best[:min(n, len(best))] {
		out = append(out, s.name)
	}
	return out
}

// distance returns the number of insertions, deletions and replacements between
// a and b, or limit+1 when it is more than limit.
func distance(a, b string, limit int) int {
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	row := make([]int, len(b)+1)
	for i := range len(a) {
		row[0] = i + 1
		low := row[0]
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(prev[j]+cost, prev[j+1]+1, row[j]+1)
			low = min(low, row[j+1])
		}
		if low > limit {
			return limit + 1
		}
		prev, row = row, prev
	}
	return prev[len(b)]
}
