// Package isf reads symbol files in the Intermediate Symbol Format of
// Volatility 3 (version 6, as its pdbconv writes it of Windows kernels and
// dwarf2json of Linux's): JSON, or JSON in .xz.
//
// A file is as hostile as any download: its size is bounded, sizes in it
// allocate nothing, and nested types are followed so deep only. A File may be
// used concurrently.
package isf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/vitrine-vmi/vitrine/kernel/internal/xz"
)

// ErrFormat is returned for what is no such file.
var ErrFormat = errors.New("not an ISF file")

// MaxSize bounds the unpacked text. Those of kernels have about 10 MB.
const MaxSize = 128 << 20

// File is a symbol file.
type File struct {
	GUID string // of the PDB it was made of, 32 upper-case hexadecimal digits
	Age  uint32
	PDB  string // that PDB's name

	doc document
}

type document struct {
	Metadata struct {
		Format  string
		Windows struct {
			PDB struct {
				GUID     string
				Age      uint32
				Database string
			}
		}
	}
	BaseTypes map[string]struct{ Size uint64 } `json:"base_types"`
	UserTypes map[string]*userType             `json:"user_types"`
	Enums     map[string]*enum
	Symbols   map[string]struct {
		Address uint64
		Content []byte `json:"constant_data"`
	}
}

type userType struct {
	Size   uint64
	Fields map[string]field
}

type field struct {
	Offset    uint64
	Type      *fieldType
	Anonymous bool
}

type fieldType struct {
	Kind     string
	Name     string
	Count    uint64
	Subtype  *fieldType
	Type     *fieldType
	Length   uint32 `json:"bit_length"`
	Position uint32 `json:"bit_position"`
}

type enum struct {
	Size      uint64
	Constants map[string]int64
}

// Parse reads a file, packed or not.
func Parse(b []byte) (*File, error) {
	if bytes.HasPrefix(b, []byte(xz.Magic)) {
		var err error
		if b, err = xz.Unpack(b, MaxSize); err != nil {
			return nil, fmt.Errorf("read ISF: %w", err)
		}
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("read ISF of %d bytes: too large: %w", len(b), ErrFormat)
	}
	f := &File{}
	if err := json.Unmarshal(b, &f.doc); err != nil {
		return nil, fmt.Errorf("read ISF: %w: %w", ErrFormat, err)
	}
	if !strings.HasPrefix(f.doc.Metadata.Format, "6.") && !strings.HasPrefix(f.doc.Metadata.Format, "4.") {
		return nil, fmt.Errorf("read ISF of format %.20q: %w", f.doc.Metadata.Format, ErrFormat)
	}
	p := f.doc.Metadata.Windows.PDB
	f.GUID, f.Age, f.PDB = strings.ToUpper(p.GUID), p.Age, p.Database
	return f, nil
}

// Size returns the size of a structure or union in bytes.
func (f *File) Size(name string) (uint64, bool) {
	t := f.doc.UserTypes[name]
	if t == nil {
		return 0, false
	}
	return t.Size, true
}

// Member tells where a member lies: of a bit-field the byte and the bit in it
// where it begins, and its bits. TypeName is that of the structure it holds.
func (f *File) Member(structName, member string) (offset, size uint64, bit, bits uint32, typeName string, ok bool) {
	t := f.doc.UserTypes[structName]
	if t == nil {
		return 0, 0, 0, 0, "", false
	}
	m, ok := t.Fields[member]
	if !ok || m.Type == nil {
		return 0, 0, 0, 0, "", false
	}
	offset, size = m.Offset, f.sizeOf(m.Type, 0)
	switch m.Type.Kind {
	case "bitfield":
		return offset + uint64(m.Type.Position/8), size, m.Type.Position % 8, m.Type.Length, "", true
	case "struct", "union":
		typeName = m.Type.Name
	}
	return offset, size, 0, 0, typeName, true
}

// maxNesting bounds arrays of arrays.
const maxNesting = 16

func (f *File) sizeOf(t *fieldType, depth int) uint64 {
	if t == nil || depth > maxNesting {
		return 0
	}
	switch t.Kind {
	case "pointer":
		return f.doc.BaseTypes["pointer"].Size
	case "base":
		return f.doc.BaseTypes[t.Name].Size
	case "struct", "union":
		n, _ := f.Size(t.Name)
		return n
	case "enum":
		if e := f.doc.Enums[t.Name]; e != nil {
			return e.Size
		}
	case "array":
		return t.Count * f.sizeOf(t.Subtype, depth+1)
	case "bitfield":
		return f.sizeOf(t.Type, depth+1)
	}
	return 0
}

// Enum returns the value of an enumerator; an empty enum name means any.
func (f *File) Enum(name, constant string) (int64, bool) {
	if name != "" {
		if e := f.doc.Enums[name]; e != nil {
			v, ok := e.Constants[constant]
			return v, ok
		}
		return 0, false
	}
	for _, e := range f.doc.Enums {
		if e == nil {
			continue
		}
		if v, ok := e.Constants[constant]; ok {
			return v, true
		}
	}
	return 0, false
}

// Symbols calls yield with every symbol and its offset from the image's base.
func (f *File) Symbols(yield func(name string, rva uint32)) {
	for name, s := range f.doc.Symbols {
		if s.Address < 1<<32 {
			yield(name, uint32(s.Address))
		}
	}
}
