// Package btf looks up types in a BTF blob read from a guest
// (Documentation/bpf/btf.rst).
//
// It decodes nothing before it is asked for: a kernel has some 100,000 types,
// and who lists processes asks for fifty. So a blob is gone through once, for
// where each type starts and what its name is, and members are read where they
// lie. Every read is bounded and every walk has a budget. A Spec may be used
// concurrently. What it says is held against github.com/cilium/ebpf/btf by a
// test.
package btf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// MaxSize is the largest blob that is decoded; Debian's are about 4 MiB.
const MaxSize = 64 << 20

const (
	magic      = 0xeb9f
	headerSize = 24
)

// Errors of lookups and decoding.
var (
	// ErrFormat is returned when bytes are not BTF.
	ErrFormat = errors.New("not BTF")
	// ErrNotFound is returned when a type or a member does not exist.
	ErrNotFound = errors.New("not found")
)

// Spec is a blob whose types are known by number and by name.
type Spec struct {
	// Immutable after Load.
	types   []byte   // section of types
	strings []byte   // section of strings
	starts  []uint32 // where each type starts in types, by number; 0 is void
	data    *index   // of types that data has

	functions func() *index // of functions, made at its first use
}

// Load takes a blob, which nobody may change afterwards.
func Load(blob []byte) (*Spec, error) {
	if err := checkHeader(blob); err != nil {
		return nil, fmt.Errorf("load BTF: %w", err)
	}
	le := binary.LittleEndian
	body := blob[le.Uint32(blob[4:]):]
	section := func(at int) []byte { return body[le.Uint32(blob[at:]):][:le.Uint32(blob[at+4:])] }
	s := &Spec{types: section(8), strings: section(16)}
	if err := s.findTypes(); err != nil {
		return nil, fmt.Errorf("load BTF: %w", err)
	}
	s.data = s.index(kind.namesData)
	s.functions = sync.OnceValue(func() *index { return s.index(func(k kind) bool { return k == kindFunc }) })
	return s, nil
}

// checkHeader checks that the sections lie within the blob.
func checkHeader(b []byte) error {
	if len(b) < headerSize || len(b) > MaxSize {
		return fmt.Errorf("%d bytes: %w", len(b), ErrFormat)
	}
	le := binary.LittleEndian
	if le.Uint16(b) != magic || b[2] != 1 {
		return fmt.Errorf("magic %#x, version %d: %w", le.Uint16(b), b[2], ErrFormat)
	}
	if n := Extent(b); n == 0 || n > len(b) || le.Uint32(b[4:]) < headerSize {
		return fmt.Errorf("sections end at %d of %d bytes: %w", n, len(b), ErrFormat)
	}
	return nil
}

// Extent returns how many bytes the blob at the start of b says that it has, 0
// when it is no BTF. The number may be larger than b.
func Extent(b []byte) int {
	if len(b) < headerSize || binary.LittleEndian.Uint16(b) != magic {
		return 0
	}
	le := binary.LittleEndian
	head := uint64(le.Uint32(b[4:]))
	types := uint64(le.Uint32(b[8:])) + uint64(le.Uint32(b[12:]))
	strs := uint64(le.Uint32(b[16:])) + uint64(le.Uint32(b[20:]))
	if n := head + max(types, strs); n <= MaxSize {
		return int(n)
	}
	return 0
}

// findTypes notes where each type starts.
func (s *Spec) findTypes() error {
	s.starts = make([]uint32, 1, 1+len(s.types)/20) // about what kernels have
	for at := 0; at < len(s.types); {
		if len(s.types)-at < typeSize {
			return fmt.Errorf("type %d is cut off: %w", len(s.starts), ErrFormat)
		}
		info := binary.LittleEndian.Uint32(s.types[at+4:])
		k := kindOf(info)
		if k == 0 || k >= kindCount {
			return fmt.Errorf("type %d is of kind %d: %w", len(s.starts), k, ErrFormat)
		}
		s.starts = append(s.starts, uint32(at))
		at += typeSize + trailing[k].once + int(info&maxMembers)*trailing[k].each
		if at > len(s.types) {
			return fmt.Errorf("type %d is cut off: %w", len(s.starts)-1, ErrFormat)
		}
	}
	return nil
}
