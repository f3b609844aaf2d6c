package isf

import (
	"strconv"
	"strings"
)

// Place is where a member lies.
type Place struct {
	Offset    uint64 // bytes from the start of the outer structure
	Size      uint64 // bytes
	BitOffset uint32 // of a bit-field: its first bit, 0 to 7, counted from Offset
	BitSize   uint32 // of a bit-field: bits; 0 for other members
	Type      string // about as C writes it
}

// Bounds of a path: its steps, members that are looked at, and offsets.
const (
	maxSteps  = 32
	maxVisits = 1 << 14
	maxOffset = 1 << 40
)

// Field resolves a path such as "thread.sp" or "children[2].next"; members of
// anonymous members are found by their own names.
func (f *File) Field(structName, path string) (Place, bool) {
	t := &Type{Kind: "struct", Name: structName}
	steps := strings.FieldsFunc(path, func(r rune) bool { return strings.ContainsRune(".[]", r) })
	if len(steps) == 0 || len(steps) > maxSteps {
		return Place{}, false
	}
	budget := maxVisits
	var at uint64
	for _, step := range steps {
		offset, in, ok := f.step(t, step, &budget)
		if !ok || offset > maxOffset {
			return Place{}, false
		}
		at, t = at+offset, in
	}
	p := Place{Offset: at, Size: f.sizeOf(t, 0), Type: f.typeName(t, 0)}
	if t.Kind == "bitfield" {
		p.Offset, p.BitOffset, p.BitSize = at+uint64(t.Position/8), t.Position%8, t.Length
	}
	return p, true
}

// step goes from a type to its member of that name, or of an array to the
// element of that number.
func (f *File) step(t *Type, step string, budget *int) (offset uint64, in *Type, ok bool) {
	n, err := strconv.ParseUint(step, 10, 31)
	if err != nil {
		return f.member(t, step, budget)
	}
	if t.Kind != "array" || t.Subtype == nil || t.Count != 0 && n >= t.Count { // 0: a flexible array
		return 0, nil, false
	}
	size := f.sizeOf(t.Subtype, 0)
	if size > maxOffset>>31 {
		return 0, nil, false
	}
	return n * size, t.Subtype, true
}

// member looks for a member, also in anonymous ones. It takes each member seen
// off the budget: types may contain themselves.
func (f *File) member(t *Type, name string, budget *int) (offset uint64, in *Type, ok bool) {
	if t.Kind != "struct" && t.Kind != "union" {
		return 0, nil, false
	}
	u := f.user(t.Name)
	if u == nil {
		return 0, nil, false
	}
	if m, ok := u.Fields[name]; ok && m.Type != nil {
		return m.Offset, m.Type, true
	}
	for _, m := range u.Fields {
		if *budget--; *budget < 0 {
			break
		}
		if !m.Anonymous || m.Type == nil || m.Offset > maxOffset {
			continue
		}
		if offset, in, ok := f.member(m.Type, name, budget); ok {
			return m.Offset + offset, in, true
		}
	}
	return 0, nil, false
}

// typeName writes a type about as C does.
func (f *File) typeName(t *Type, depth int) string {
	if t == nil || depth > maxNesting {
		return "..."
	}
	switch t.Kind {
	case "struct", "union", "enum":
		return t.Kind + " " + t.Name
	case "pointer":
		name := f.typeName(t.Subtype, depth+1)
		if strings.HasSuffix(name, "*") {
			return name + "*"
		}
		return name + " *"
	case "array":
		return f.typeName(t.Subtype, depth+1) + "[" + strconv.FormatUint(t.Count, 10) + "]"
	case "bitfield":
		return f.typeName(t.Type, depth+1)
	}
	return t.Name
}

// Banner returns the text of a Linux kernel's linux_banner, "" when the file
// does not tell it.
func (f *File) Banner() string {
	return strings.TrimRight(string(f.symbol("linux_banner").Content), "\x00\n")
}
