package kernel

import (
	"cmp"
	"slices"
)

// ntSymbols is the symbol table of an NT kernel: its exports, the publics of
// an exact symbol file, and what was found by other means.
type ntSymbols struct {
	all    []Symbol       // by address
	byName map[string]int // where several have the name, the one at the lowest address
}

func newNTSymbols(all []Symbol) *ntSymbols {
	slices.SortStableFunc(all, func(a, b Symbol) int {
		return cmp.Or(cmp.Compare(a.Addr, b.Addr), cmp.Compare(a.Name, b.Name))
	})
	all = slices.CompactFunc(all, func(a, b Symbol) bool { return a.Addr == b.Addr && a.Name == b.Name })
	t := &ntSymbols{all: all, byName: make(map[string]int, len(all))}
	for i, s := range all {
		if _, taken := t.byName[s.Name]; !taken {
			t.byName[s.Name] = i
		}
	}
	return t
}

func (t *ntSymbols) Len() int          { return len(t.all) }
func (t *ntSymbols) Name(i int) string { return t.all[i].Name }
func (t *ntSymbols) Addr(i int) uint64 { return uint64(t.all[i].Addr) }
func (t *ntSymbols) Type(i int) byte   { return t.all[i].Type }

func (t *ntSymbols) Lookup(name string) (int, bool) {
	i, ok := t.byName[name]
	return i, ok
}

// At returns the last symbol at or before a.
func (t *ntSymbols) At(a uint64) (int, bool) {
	i, exact := slices.BinarySearchFunc(t.all, a, func(s Symbol, a uint64) int { return cmp.Compare(uint64(s.Addr), a) })
	if exact {
		return i, true
	}
	return i - 1, i > 0
}

// Next returns the address of the first symbol behind that of i, 0 for none.
func (t *ntSymbols) Next(i int) uint64 {
	for _, s := range t.all[i:] {
		if s.Addr > t.all[i].Addr {
			return uint64(s.Addr)
		}
	}
	return 0
}
