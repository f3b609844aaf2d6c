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
	"sync"

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

	mu   sync.Mutex        // guards doc, where more is set
	more func(name string) // adds the type of that name, if there is one; nil for a file that is all there
}

type document struct {
	Metadata struct {
		Format  string `json:"format"`
		Windows struct {
			PDB struct {
				GUID     string
				Age      uint32
				Database string
			}
		} `json:"windows,omitzero"`
	} `json:"metadata"`
	BaseTypes map[string]BaseType  `json:"base_types"`
	UserTypes map[string]*UserType `json:"user_types"`
	Enums     map[string]*Enum     `json:"enums"`
	Symbols   map[string]Symbol    `json:"symbols"`
}

// BaseType is a type of the language.
type BaseType struct {
	Size uint64 `json:"size"`
}

// UserType is a structure or a union.
type UserType struct {
	Size   uint64           `json:"size"`
	Fields map[string]Field `json:"fields"`
	Kind   string           `json:"kind,omitempty"`
}

// Field is a member of a structure.
type Field struct {
	Offset    uint64 `json:"offset"`
	Type      *Type  `json:"type"`
	Anonymous bool   `json:"anonymous,omitempty"` // its members are the structure's own
}

// Type is what a member is.
type Type struct {
	Kind     string `json:"kind"`
	Name     string `json:"name,omitempty"`
	Count    uint64 `json:"count,omitempty"`
	Subtype  *Type  `json:"subtype,omitempty"`
	Type     *Type  `json:"type,omitempty"`
	Length   uint32 `json:"bit_length,omitempty"`
	Position uint32 `json:"bit_position,omitempty"`
}

// Enum is an enumeration.
type Enum struct {
	Size      uint64           `json:"size"`
	Constants map[string]int64 `json:"constants"`
}

// Symbol is a variable or a function.
type Symbol struct {
	Address uint64 `json:"address"`
	Content []byte `json:"constant_data,omitempty"` // what a constant holds
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
	t := f.user(name)
	if t == nil {
		return 0, false
	}
	return t.Size, true
}

// Member tells where a member lies: of a bit-field the byte and the bit in it
// where it begins, and its bits. TypeName is that of the structure it holds.
func (f *File) Member(structName, member string) (offset, size uint64, bit, bits uint32, typeName string, ok bool) {
	t := f.user(structName)
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

func (f *File) sizeOf(t *Type, depth int) uint64 {
	if t == nil || depth > maxNesting {
		return 0
	}
	switch t.Kind {
	case "pointer":
		return f.base("pointer").Size
	case "base":
		return f.base(t.Name).Size
	case "struct", "union":
		n, _ := f.Size(t.Name)
		return n
	case "enum":
		if e := f.enum(t.Name); e != nil {
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
		if e := f.enum(name); e != nil {
			v, ok := e.Constants[constant]
			return v, ok
		}
		return 0, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
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
