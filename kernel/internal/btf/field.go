package btf

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Field is where a member lies.
type Field struct {
	Offset    uint64 // bytes from the start of the outer structure
	Size      uint64 // bytes of the member's type
	BitOffset uint32 // of a bit-field: first bit, counted from Offset, 0 to 7
	BitSize   uint32 // of a bit-field: bits; 0 for other members
	Type      string // the member's type as C writes it
}

// Field resolves a path such as "thread.sp" or "children[2].next" in the
// structure or union name. Anonymous members are looked into.
func (s *Spec) Field(name, path string) (Field, error) {
	outer, err := s.composites(name)
	if err != nil {
		return Field{}, err
	}
	steps, err := parsePath(path)
	if err != nil {
		return Field{}, err
	}
	budget := maxVisits
	for _, t := range outer {
		var f Field
		if f, err = s.resolve(t, steps, &budget); err == nil {
			return f, nil
		}
	}
	return Field{}, fmt.Errorf("structure %q, member %q: %w", name, path, err)
}

// step is one part of a path: a member's name or an index.
type step struct {
	name  string
	index uint64 // when name is ""
}

func parsePath(path string) ([]step, error) {
	var steps []step
	for part := range strings.SplitSeq(path, ".") {
		name, rest, indexed := strings.Cut(part, "[")
		if name == "" || len(steps) > maxDepth {
			return nil, fmt.Errorf("path %q is malformed: %w", path, ErrNotFound)
		}
		steps = append(steps, step{name: name})
		for indexed {
			digits, behind, closed := strings.Cut(rest, "]")
			n, err := strconv.ParseUint(digits, 10, 31)
			if err != nil || !closed {
				return nil, fmt.Errorf("path %q is malformed: %w", path, ErrNotFound)
			}
			steps = append(steps, step{index: n})
			_, rest, indexed = strings.Cut(behind, "[")
		}
	}
	return steps, nil
}

func (s *Spec) resolve(i id, steps []step, budget *int) (Field, error) {
	var bits uint64
	var width uint32
	for _, st := range steps {
		i, width = s.underlying(i), 0
		if st.name == "" {
			elem, at, err := s.element(i, st.index)
			if err != nil {
				return Field{}, err
			}
			bits += at
			i = elem
			continue
		}
		m, at, ok := s.member(i, st.name, budget)
		if !ok {
			return Field{}, fmt.Errorf("no member %q: %w", st.name, ErrNotFound)
		}
		bits += at
		i, width = m.typ, m.width
	}
	size, ok := s.sizeof(i)
	if !ok || bits > math.MaxUint32*8 {
		size = 0 // a type that is only declared
	}
	f := Field{Offset: bits / 8, Size: size, BitSize: width, Type: s.typeName(i)}
	if width != 0 {
		f.BitOffset = uint32(bits % 8)
	}
	return f, nil
}

// element returns the type of an array's elements and where one of them lies,
// in bits.
func (s *Spec) element(i id, index uint64) (elem id, bits uint64, err error) {
	t := s.at(i)
	if t.kind != kindArray {
		return 0, 0, fmt.Errorf("[%d] of what is no array: %w", index, ErrNotFound)
	}
	elem, n := t.array()
	size, ok := s.sizeof(elem)
	if !ok || size > math.MaxUint32 {
		return 0, 0, fmt.Errorf("[%d] of elements without a size: %w", index, ErrNotFound)
	}
	if n != 0 && index >= uint64(n) { // 0: a flexible array
		return 0, 0, fmt.Errorf("[%d] of %d elements: %w", index, n, ErrNotFound)
	}
	return elem, index * size * 8, nil // an index has 31 bits
}

// maxVisits bounds how many members one look-up may go through: types that
// contain themselves would otherwise take exponential time. Real structures have
// some hundreds and nest anonymous ones a few deep.
const maxVisits = 1 << 17

// member is one of a structure or union.
type member struct {
	name  uint32
	typ   id
	bits  uint64 // where it lies, in bits
	width uint32 // bits of a bit-field, else 0
}

// memberAt returns the n-th member of t.
func (s *Spec) memberAt(t typ, n int) member {
	m := member{name: t.word(3 * n), typ: id(t.word(3*n + 1)), bits: uint64(t.word(3*n + 2))}
	if t.flag {
		m.bits, m.width = m.bits&0xffffff, uint32(m.bits>>24)
		return m
	}
	// pahole until 1.13 has the bits in a type of their own.
	if in := s.at(m.typ); in.kind == kindInt {
		if v := in.word(0); v>>16&0xff != 0 || (v&0xff+7)/8 != in.number {
			m.bits, m.width = m.bits+uint64(v>>16&0xff), v&0xff
		}
	}
	return m
}

// member looks for a member by name, also in anonymous members, and returns it
// with its place in i, in bits. It takes each member seen off the budget.
func (s *Spec) member(i id, name string, budget *int) (m member, bits uint64, ok bool) {
	t := s.at(i)
	if !t.composite() {
		return member{}, 0, false
	}
	anonymous := false
	for n := range t.n {
		if *budget--; *budget < 0 {
			return member{}, 0, false
		}
		off := t.word(3 * n)
		if s.is(off, name) {
			m := s.memberAt(t, n)
			return m, m.bits, true
		}
		anonymous = anonymous || s.is(off, "")
	}
	for n := 0; anonymous && n < t.n && *budget > 0; n++ {
		*budget--
		in := s.memberAt(t, n)
		if !s.is(in.name, "") {
			continue
		}
		if m, at, ok := s.member(s.underlying(in.typ), name, budget); ok {
			return m, in.bits + at, true
		}
	}
	return member{}, 0, false
}
