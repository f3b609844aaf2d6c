// Package vmlinux reads the types of a Linux kernel out of its vmlinux with debug
// information, as distributions pack it.
//
// It wraps debug/elf and debug/dwarf, and is meant for files that the user names:
// never for a guest's memory. What those panic at is an error here.
package vmlinux

import (
	"bytes"
	"debug/dwarf"
	"debug/elf"
	"errors"
	"fmt"
	"os"

	"github.com/vitrine-vmi/vitrine/kernel/internal/isf"
)

// ErrFormat is returned for what is no vmlinux with debug information.
var ErrFormat = errors.New("not a vmlinux with debug information")

// Magic is what such files begin with.
const Magic = elf.ELFMAG

// file is what a vmlinux's types are read from.
type file struct {
	data  *dwarf.Data
	index map[string]dwarf.Offset // types by name, the first complete one
	names map[dwarf.Type]string   // of those without a name; guarded by isf.File's lock
}

// Open reads the names of all types of a file, which takes a few seconds; what a
// type is made of is read when it is asked for. The result has the symbols too.
func Open(name string) (out *isf.File, err error) {
	defer func() {
		if rescue(&err, recover()); err != nil {
			out = nil
		}
	}()
	r, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	e, err := elf.NewFile(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	f := &file{index: map[string]dwarf.Offset{}, names: map[dwarf.Type]string{}}
	if f.data, err = e.DWARF(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if err := f.readIndex(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if len(f.index) == 0 {
		return nil, fmt.Errorf("%w: it has no types (stripped?)", ErrFormat)
	}
	out = isf.New(f.add)
	out.Add(func(a *isf.Adder) {
		a.Base("pointer", isf.BaseType{Size: pointerSize(e)})
		a.Base("void", isf.BaseType{})
		addSymbols(a, e)
	})
	return out, nil
}

// rescue turns a panic of the decoders into an error.
func rescue(err *error, r any) {
	if r != nil {
		*err = fmt.Errorf("%w: %v", ErrFormat, r)
	}
}

func pointerSize(e *elf.File) uint64 {
	if e.Class == elf.ELFCLASS32 {
		return 4
	}
	return 8
}

// maxBanner bounds the text of linux_banner.
const maxBanner = 1024

// addSymbols adds the symbols that lie in the image and whose names are theirs
// alone, linux_banner with what it holds.
func addSymbols(a *isf.Adder, e *elf.File) {
	syms, err := e.Symbols()
	if err != nil {
		return
	}
	seen := make(map[string]int, len(syms))
	for _, s := range syms {
		seen[s.Name]++
	}
	for _, s := range syms {
		kind := elf.ST_TYPE(s.Info)
		if seen[s.Name] != 1 || s.Name == "" || s.Section == elf.SHN_UNDEF || int(s.Section) >= len(e.Sections) || kind == elf.STT_SECTION || kind == elf.STT_FILE {
			continue
		}
		out := isf.Symbol{Address: s.Value}
		if s.Name == "linux_banner" {
			out.Content = constant(e.Sections[s.Section], s.Value)
		}
		a.Symbol(s.Name, out)
	}
}

// constant reads a string of a section, with its NUL.
func constant(sec *elf.Section, at uint64) []byte {
	text := make([]byte, maxBanner)
	n, _ := sec.ReadAt(text, int64(at-sec.Addr))
	i := bytes.IndexByte(text[:n], 0)
	return text[:i+1]
}

// readIndex notes where types of each name are.
func (f *file) readIndex() error {
	r := f.data.Reader()
	for {
		e, err := r.Next()
		if err != nil {
			return err
		}
		if e == nil {
			return nil
		}
		switch e.Tag {
		case dwarf.TagCompileUnit:
			continue // into it
		case dwarf.TagStructType, dwarf.TagUnionType, dwarf.TagEnumerationType, dwarf.TagTypedef:
			name, ok := e.Val(dwarf.AttrName).(string)
			if _, have := f.index[name]; ok && !have && e.Val(dwarf.AttrDeclaration) == nil {
				f.index[name] = e.Offset
			}
		}
		if e.Children {
			r.SkipChildren()
		}
	}
}

// add adds the type of that name. What the decoder panics at is no type.
func (f *file) add(a *isf.Adder, name string) {
	defer func() { _ = recover() }()
	off, there := f.index[name]
	if !there {
		return
	}
	if t, err := f.data.Type(off); err == nil {
		f.convert(a, t, name, 0)
	}
}

// maxNesting bounds types within types.
const maxNesting = 64

// convert returns what a member of that type is, and adds what it is made of. Name
// is what a structure without a name is called.
func (f *file) convert(a *isf.Adder, t dwarf.Type, name string, depth int) *isf.Type {
	if depth > maxNesting {
		return &isf.Type{Kind: "base", Name: "void"}
	}
	switch t := t.(type) {
	case *dwarf.TypedefType:
		return f.convert(a, t.Type, t.Name, depth+1)
	case *dwarf.QualType:
		return f.convert(a, t.Type, name, depth+1)
	case *dwarf.PtrType:
		return &isf.Type{Kind: "pointer", Subtype: shallow(t.Type, depth+1)}
	case *dwarf.ArrayType:
		return &isf.Type{Kind: "array", Count: uint64(max(t.Count, 0)), Subtype: f.convert(a, t.Type, "", depth+1)}
	case *dwarf.EnumType:
		e := &isf.Enum{Size: uint64(t.ByteSize), Constants: map[string]int64{}}
		for _, v := range t.Val {
			e.Constants[v.Name] = v.Val
		}
		n := f.nameOf(t.EnumName, name, t)
		a.Enum(n, e)
		return &isf.Type{Kind: "enum", Name: n}
	case *dwarf.StructType:
		return f.structure(a, t, name, depth)
	case *dwarf.FuncType:
		return &isf.Type{Kind: "function"}
	}
	n := t.Common().Name
	if n == "" {
		n = "void"
	}
	a.Base(n, isf.BaseType{Size: uint64(max(t.Size(), 0))})
	return &isf.Type{Kind: "base", Name: n}
}

// nameOf names what may have no name of its own: by the typedef that it stands
// behind, else by a number.
func (f *file) nameOf(own, typedef string, t dwarf.Type) string {
	switch {
	case own != "":
		return own
	case typedef != "":
		return typedef
	}
	if f.names[t] == "" {
		f.names[t] = fmt.Sprintf("unnamed_%d", len(f.names)+1)
	}
	return f.names[t]
}

// shallow is convert for what a pointer points to, of which only the name is of use.
func shallow(t dwarf.Type, depth int) *isf.Type {
	if depth > maxNesting {
		return nil
	}
	switch t := t.(type) {
	case *dwarf.TypedefType:
		if s, ok := t.Type.(*dwarf.StructType); ok && s.StructName != "" {
			return shallow(s, depth+1)
		}
		return &isf.Type{Kind: "base", Name: t.Name}
	case *dwarf.QualType:
		return shallow(t.Type, depth+1)
	case *dwarf.PtrType:
		return &isf.Type{Kind: "pointer", Subtype: shallow(t.Type, depth+1)}
	case *dwarf.StructType:
		return &isf.Type{Kind: t.Kind, Name: t.StructName}
	case *dwarf.EnumType:
		return &isf.Type{Kind: "enum", Name: t.EnumName}
	case *dwarf.FuncType:
		return &isf.Type{Kind: "function"}
	}
	if n := t.Common().Name; n != "" {
		return &isf.Type{Kind: "base", Name: n}
	}
	return &isf.Type{Kind: "base", Name: "void"}
}

// structure adds a structure or union.
func (f *file) structure(a *isf.Adder, t *dwarf.StructType, name string, depth int) *isf.Type {
	kind := t.Kind
	if kind == "class" {
		kind = "struct"
	}
	n := f.nameOf(t.StructName, name, t)
	if there := a.Has(n); there != nil && there.Size != uint64(max(t.ByteSize, 0)) {
		n = f.nameOf("", "", t) // another of the same name
	}
	out := &isf.Type{Kind: kind, Name: n}
	if a.Has(n) != nil || t.Incomplete {
		return out
	}
	u := &isf.UserType{Size: uint64(max(t.ByteSize, 0)), Kind: kind, Fields: map[string]isf.Field{}}
	a.User(n, u)
	for i, m := range t.Field {
		in := isf.Field{Offset: uint64(max(m.ByteOffset, 0)), Type: f.convert(a, m.Type, "", depth+1), Anonymous: m.Name == ""}
		if m.BitSize > 0 {
			bit := uint64(max(m.DataBitOffset, 0))
			if bit == 0 && m.BitOffset > 0 { // DWARF 2 and 3 count from the other end
				bit = uint64(max(m.ByteOffset*8+m.ByteSize*8-m.BitOffset-m.BitSize, 0))
			}
			in.Offset = bit / 8
			in.Type = &isf.Type{Kind: "bitfield", Length: uint32(m.BitSize), Position: uint32(bit % 8), Type: in.Type}
		}
		key := m.Name
		if key == "" {
			key = fmt.Sprintf("unnamed_field_%d", i)
		}
		if _, twice := u.Fields[key]; !twice {
			u.Fields[key] = in
		}
	}
	return out
}
