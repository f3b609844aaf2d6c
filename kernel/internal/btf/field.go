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

// maxDepth bounds how deep anonymous members and paths may nest.
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
			var digits string
			digits, rest, _ = strings.Cut(rest, "]")
			n, err := strconv.ParseUint(digits, 10, 31)
			if err != nil {
				return nil, fmt.Errorf("path %q is malformed: %w", path, ErrNotFound)
			}
			steps = append(steps, step{index: n})
			_, rest, indexed = strings.Cut(rest, "[")
		}
	}
	return steps, nil
}

func resolve(t btf.Type, steps []step) (Field, error) {
	var bits uint64
	var bitSize uint32
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
		m, at, ok := findMember(t, st.name, 0)
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

// findMember looks for a member by name, also in anonymous members, and returns
// it with its bit offset from t.
func findMember(t btf.Type, name string, depth int) (btf.Member, uint64, bool) {
	ms := members(t)
	for _, m := range ms {
		if m.Name == name {
			return m, uint64(m.Offset), true
		}
	}
	if depth >= maxDepth {
		return btf.Member{}, 0, false
	}
	for _, m := range ms {
		if m.Name != "" {
			continue
		}
		if in, at, ok := findMember(btf.UnderlyingType(m.Type), name, depth+1); ok {
			return in, uint64(m.Offset) + at, true
		}
	}
	return btf.Member{}, 0, false
}

// CName writes a type as C does, without the name that it declares.
func CName(t btf.Type) string { return cname(t, 0) }

func cname(t btf.Type, depth int) string {
	if depth > maxDepth {
		return "..."
	}
	switch t := t.(type) {
	case *btf.Pointer:
		return pointerName(t, depth)
	case *btf.Array:
		return fmt.Sprintf("%s[%d]", cname(t.Type, depth+1), t.Nelems)
	case *btf.Const:
		if p, ok := t.Type.(*btf.Pointer); ok {
			return pointerName(p, depth) + " const"
		}
		return "const " + cname(t.Type, depth+1)
	case *btf.Volatile:
		return "volatile " + cname(t.Type, depth+1)
	case *btf.Restrict:
		return cname(t.Type, depth+1)
	case *btf.TypeTag:
		return cname(t.Type, depth+1)
	case *btf.Struct:
		return "struct " + named(t.Name)
	case *btf.Union:
		return "union " + named(t.Name)
	case *btf.Enum:
		return "enum " + named(t.Name)
	case *btf.Fwd:
		return t.Kind.String() + " " + named(t.Name)
	case *btf.FuncProto:
		return funcName(t, "", depth)
	case *btf.Void:
		return "void"
	}
	return named(t.TypeName())
}

func named(s string) string {
	if s == "" {
		return "{...}"
	}
	return s
}

func pointerName(p *btf.Pointer, depth int) string {
	to := p.Target
	for { // qualifiers of a function type mean nothing
		tag, ok := to.(*btf.TypeTag)
		if !ok {
			break
		}
		to = tag.Type
	}
	if f, ok := to.(*btf.FuncProto); ok {
		return funcName(f, "*", depth)
	}
	s := cname(to, depth+1)
	if strings.HasSuffix(s, "*") {
		return s + "*"
	}
	return s + " *"
}

func funcName(f *btf.FuncProto, star string, depth int) string {
	var params []string
	for _, p := range f.Params {
		params = append(params, cname(p.Type, depth+1))
	}
	ret := cname(f.Return, depth+1)
	if star == "" {
		return fmt.Sprintf("%s (%s)", ret, strings.Join(params, ", "))
	}
	return fmt.Sprintf("%s (%s)(%s)", ret, star, strings.Join(params, ", "))
}
