package btf

import (
	"fmt"
	"hash/maphash"
)

// index finds types by their names: a hash table of chains. The seed is random,
// so that a guest cannot make names collide.
type index struct {
	seed  maphash.Seed
	heads []uint32 // by hash: the chain's first type, 0 for none
	ids   []uint32 // of the types that are in it
	next  []uint32 // by place in ids plus 1: the next of the chain, as place plus 1
}

// index makes an index of the types of some kinds that have names.
func (s *Spec) index(of func(kind) bool) *index {
	x := &index{seed: maphash.MakeSeed()}
	for i := range s.starts {
		if t := s.at(id(i)); t.name != 0 && of(t.kind) {
			x.ids = append(x.ids, uint32(i))
		}
	}
	size := 1
	for size < len(x.ids) {
		size *= 2
	}
	x.heads, x.next = make([]uint32, size), make([]uint32, len(x.ids)+1)
	for k := len(x.ids); k > 0; k-- { // backwards: chains are in the order of the types
		slot := maphash.Bytes(x.seed, s.text(s.at(id(x.ids[k-1])).name)) & uint64(size-1)
		x.next[k], x.heads[slot] = x.heads[slot], uint32(k)
	}
	return x
}

// maxNamesakes bounds how many types of one name are looked at. Kernels have a
// few: a structure, a typedef, and those that two files define differently.
const maxNamesakes = 256

// find returns the types of that name, by number.
func (s *Spec) find(x *index, name string) []id {
	var out []id
	slot := maphash.String(x.seed, name) & uint64(len(x.heads)-1)
	for k := x.heads[slot]; k != 0 && len(out) < maxNamesakes; k = x.next[k] {
		if i := id(x.ids[k-1]); s.is(s.at(i).name, name) {
			out = append(out, i)
		}
	}
	return out
}

// named returns all types of that name that data may have.
func (s *Spec) named(name string) ([]id, error) {
	ts := s.find(s.data, name)
	if len(ts) == 0 {
		return nil, fmt.Errorf("type %q: %w", name, ErrNotFound)
	}
	return ts, nil
}

// composites returns the structures and unions of that name, those behind a
// typedef of the name last.
func (s *Spec) composites(name string) ([]id, error) {
	ts, err := s.named(name)
	if err != nil {
		return nil, err
	}
	var direct, behind []id
	for _, t := range ts {
		if s.at(t).composite() {
			direct = append(direct, t)
		} else if in := s.underlying(t); s.at(t).kind == kindTypedef && s.at(in).composite() {
			behind = append(behind, in)
		}
	}
	if direct = append(direct, behind...); len(direct) == 0 {
		return nil, fmt.Errorf("structure %q: %w", name, ErrNotFound)
	}
	return direct, nil
}
