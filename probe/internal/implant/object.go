package implant

import (
	"bytes"
	_ "embed" // the object
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/vitrine-vmi/vitrine/arch"
)

// objectFile is the implant's guest side: a relocatable ELF file with one
// section of code and no data.
//
//go:embed object/implant.o
var objectFile []byte

// objectCompiler names the compiler that made objectFile.
//
//go:embed object/compiler
var objectCompiler string

// object is the parsed guest side.
type object struct {
	text    []byte
	relocs  []reloc
	defined map[string]uint64 // offsets in text
}

type reloc struct {
	offset uint64
	kind   uint32
	symbol string
	addend int64
}

// Kinds of relocations (System V ABI, AMD64 supplement, table 4.10).
const (
	reloc64    = 1
	relocPC32  = 2
	relocPLT32 = 4
	reloc32S   = 11
)

// loadObject parses the embedded object.
func loadObject() (*object, error) {
	o, err := parseObject(objectFile)
	if err != nil {
		return nil, fmt.Errorf("parse implant object: %w", err)
	}
	return o, nil
}

// undefined returns the names that link must be given values for.
func (o *object) undefined() []string {
	var names []string
	seen := map[string]bool{}
	for _, r := range o.relocs {
		if _, ok := o.defined[r.symbol]; !ok && !seen[r.symbol] {
			seen[r.symbol] = true
			names = append(names, r.symbol)
		}
	}
	return names
}

// link returns the code as it must stand at base, with undefined symbols taken
// from values.
func (o *object) link(base arch.GVA, values map[string]uint64) ([]byte, error) {
	text := bytes.Clone(o.text)
	for _, r := range o.relocs {
		v, ok := values[r.symbol]
		if at, here := o.defined[r.symbol]; here {
			v, ok = uint64(base)+at, true
		}
		if !ok {
			return nil, fmt.Errorf("link implant: no value for %s", r.symbol)
		}
		if err := r.apply(text, base, v); err != nil {
			return nil, fmt.Errorf("link implant: %s at %#x: %w", r.symbol, r.offset, err)
		}
	}
	return text, nil
}

var errRange = errors.New("value out of range")

// apply writes one relocation (System V ABI, AMD64 supplement, section 4.4).
func (r reloc) apply(text []byte, base arch.GVA, symbol uint64) error {
	v := symbol + uint64(r.addend)
	size := uint64(4)
	if r.kind == reloc64 {
		size = 8
	}
	if r.offset > uint64(len(text)) || uint64(len(text))-r.offset < size {
		return errors.New("outside the section")
	}
	at := text[r.offset:]
	switch r.kind {
	case reloc64:
		binary.LittleEndian.PutUint64(at, v)
		return nil
	case relocPC32, relocPLT32:
		v -= uint64(base) + r.offset
	case reloc32S:
	default:
		return fmt.Errorf("relocation of type %d is not known", r.kind)
	}
	if s := int64(v); s < math.MinInt32 || s > math.MaxInt32 {
		return fmt.Errorf("%#x: %w", v, errRange)
	}
	binary.LittleEndian.PutUint32(at, uint32(v))
	return nil
}
