package btf

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// Field is where a member lies.
type Field struct {
	Offset    uint64 // bytes from the start of the outer structure
	Size      uint64 // bytes of the member's type
	BitOffset uint32 // of a bit-field: first bit, counted from Offset, 0 to 7
	BitSize   uint32 // of a bit-field: bits; 0 for other members
	Type      string // the member's type as C writes it
}

// maxDepth bounds the steps of a path and tags in a row.
const maxDepth = 32

// Field resolves a path such as "thread.sp" or "children[2].next" in the
// structure or union name. Anonymous members are looked into.
func (s *Spec) Field(name, path string) (f Field, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer rescue(&err)
	outer, err := s.composites(name)
	if err != nil {
		return Field{}, err
	}
	steps, err := parsePath(path)
	if err != nil {
		return Field{}, err
	}
	for _, t := range outer {
		f, err = resolve(t, steps)
		if err == nil {
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

func resolve(t btf.Type, steps []step) (Field, error) {
	var bits uint64
	var bitSize uint32
	budget := maxVisits
	for _, st := range steps {
		t = btf.UnderlyingType(t)
		bitSize = 0
		if st.name == "" {
			a, ok := t.(*btf.Array)
			if !ok {
				return Field{}, fmt.Errorf("[%d] of what is no array: %w", st.index, ErrNotFound)
			}
			size, err := btf.Sizeof(a.Type)
			if err != nil {
				return Field{}, err
			}
			if a.Nelems != 0 && st.index >= uint64(a.Nelems) { // 0: a flexible array
				return Field{}, fmt.Errorf("[%d] of %d elements: %w", st.index, a.Nelems, ErrNotFound)
			}
			bits += st.index * uint64(size) * 8
			t = a.Type
			continue
		}
		m, at, ok := findMember(t, st.name, &budget)
		if !ok {
			return Field{}, fmt.Errorf("no member %q: %w", st.name, ErrNotFound)
		}
		bits += at
		bitSize = uint32(m.BitfieldSize)
		t = m.Type
	}
	size, err := btf.Sizeof(t)
	if err != nil || size < 0 || bits > math.MaxUint32*8 {
		size = 0 // a flexible array, or a type that is only declared
	}
	f := Field{Offset: bits / 8, Size: uint64(size), BitSize: bitSize, Type: CName(t)}
	if bitSize != 0 {
		f.BitOffset = uint32(bits % 8)
	}
	return f, nil
}

// maxVisits bounds how many types one look-up or one name may go through: types
// that contain themselves would otherwise take exponential time. Real
// structures nest anonymous members a few deep, and at most a few dozen.
const maxVisits = 1024

// findMember looks for a member by name, also in anonymous members, and returns
// it with its bit offset from t. It takes each type visited off the budget.
func findMember(t btf.Type, name string, budget *int) (btf.Member, uint64, bool) {
	ms := members(t)
	for _, m := range ms {
		if m.Name == name {
			return m, uint64(m.Offset), true
		}
	}
	for _, m := range ms {
		if m.Name != "" {
			continue
		}
		if *budget--; *budget < 0 {
			break
		}
		if in, at, ok := findMember(btf.UnderlyingType(m.Type), name, budget); ok {
			return in, uint64(m.Offset) + at, true
		}
	}
	return btf.Member{}, 0, false
}

// CName writes a type as C does, without the name that it declares. Parts
// beyond what a name may hold are dots.
func CName(t btf.Type) string {
	n := namer{budget: maxVisits / 8}
	return n.name(t)
}

// namer writes one name.
type namer struct{ budget int }

func (n *namer) name(t btf.Type) string {
	if n.budget--; n.budget < 0 {
		return "..."
	}
	switch t := t.(type) {
	case *btf.Pointer:
		return n.pointer(t)
	case *btf.Array:
		return fmt.Sprintf("%s[%d]", n.name(t.Type), t.Nelems)
	case *btf.Const:
		if p, ok := t.Type.(*btf.Pointer); ok {
			return n.pointer(p) + " const"
		}
		return "const " + n.name(t.Type)
	case *btf.Volatile:
		return "volatile " + n.name(t.Type)
	case *btf.Restrict:
		return n.name(t.Type)
	case *btf.TypeTag:
		return n.name(t.Type)
	case *btf.Struct:
		return "struct " + named(t.Name)
	case *btf.Union:
		return "union " + named(t.Name)
	case *btf.Enum:
		return "enum " + named(t.Name)
	case *btf.Fwd:
		return t.Kind.String() + " " + named(t.Name)
	case *btf.FuncProto:
		return n.function(t, "")
	case *btf.Void:
		return "void"
	}
	return named(t.TypeName())
}

func (n *namer) pointer(p *btf.Pointer) string {
	to := p.Target
	for range maxDepth { // tags such as __user stand between a pointer and its target
		tag, ok := to.(*btf.TypeTag)
		if !ok {
			break
		}
		to = tag.Type
	}
	if f, ok := to.(*btf.FuncProto); ok {
		return n.function(f, "*")
	}
	s := n.name(to)
	if strings.HasSuffix(s, "*") {
		return s + "*"
	}
	return s + " *"
}

func (n *namer) function(f *btf.FuncProto, star string) string {
	var params []string
	for _, p := range f.Params {
		if n.budget <= 0 {
			params = append(params, "...")
			break
		}
		params = append(params, n.name(p.Type))
	}
	ret := n.name(f.Return)
	if star == "" {
		return fmt.Sprintf("%s (%s)", ret, strings.Join(params, ", "))
	}
	return fmt.Sprintf("%s (%s)(%s)", ret, star, strings.Join(params, ", "))
}

func named(s string) string {
	if s == "" {
		return "{...}"
	}
	return s
}
