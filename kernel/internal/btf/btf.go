// Package btf looks up types in a BTF blob read from a guest.
//
// The decoder is github.com/cilium/ebpf/btf. This package bounds what it is
// given, turns a panic on hostile bytes into an error, and resolves paths
// through anonymous members. A Spec may be used concurrently.
package btf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf/btf"
)

// MaxSize is the largest blob that is decoded; Debian's are about 4 MiB.
const MaxSize = 64 << 20

const magic = 0xeb9f

// Errors of lookups and decoding.
var (
	// ErrFormat is returned when bytes are not BTF.
	ErrFormat = errors.New("not BTF")
	// ErrNotFound is returned when a type or a member does not exist.
	ErrNotFound = errors.New("not found")
)

// Spec is a decoded blob.
type Spec struct {
	mu     sync.Mutex // guards spec, which caches while it is read
	spec   *btf.Spec
	consts map[string]int64 // values of all enums, built at the first use
}

// Load decodes a blob. It keeps a copy of what it needs.
func Load(blob []byte) (s *Spec, err error) {
	if err := checkHeader(blob); err != nil {
		return nil, fmt.Errorf("load BTF: %w", err)
	}
	defer rescue(&err)
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(blob))
	if err != nil {
		return nil, fmt.Errorf("load BTF: %w", err)
	}
	return &Spec{spec: spec}, nil
}

// checkHeader keeps everything but BTF away from the decoder, which would try
// ELF next. Format: Documentation/bpf/btf.rst, section 2.
func checkHeader(b []byte) error {
	const size = 24
	if len(b) < size || len(b) > MaxSize {
		return fmt.Errorf("%d bytes: %w", len(b), ErrFormat)
	}
	le := binary.LittleEndian
	if le.Uint16(b) != magic || b[2] != 1 {
		return fmt.Errorf("magic %#x, version %d: %w", le.Uint16(b), b[2], ErrFormat)
	}
	if n := Extent(b); n == 0 || n > len(b) || le.Uint32(b[4:]) < size {
		return fmt.Errorf("sections end at %d of %d bytes: %w", n, len(b), ErrFormat)
	}
	return nil
}

// Extent returns how many bytes the blob at the start of b says that it has, 0
// when it is no BTF. The number may be larger than b.
func Extent(b []byte) int {
	const size = 24
	if len(b) < size || binary.LittleEndian.Uint16(b) != magic {
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

// rescue turns a panic of the decoder into an error.
func rescue(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("decode BTF: %v: %w", r, ErrFormat)
	}
}

// types returns all types of that name.
func (s *Spec) types(name string) ([]btf.Type, error) {
	ts, err := s.spec.AnyTypesByName(name)
	if errors.Is(err, btf.ErrNotFound) || (err == nil && len(ts) == 0) {
		return nil, fmt.Errorf("type %q: %w", name, ErrNotFound)
	}
	return ts, err
}

// composite returns the structures and unions of that name, those behind a
// typedef of the name last.
func (s *Spec) composites(name string) ([]btf.Type, error) {
	ts, err := s.types(name)
	if err != nil {
		return nil, err
	}
	var direct, behind []btf.Type
	for _, t := range ts {
		if members(t) != nil {
			direct = append(direct, t)
		} else if td, ok := t.(*btf.Typedef); ok && members(btf.UnderlyingType(td)) != nil {
			behind = append(behind, btf.UnderlyingType(td))
		}
	}
	if direct = append(direct, behind...); len(direct) == 0 {
		return nil, fmt.Errorf("structure %q: %w", name, ErrNotFound)
	}
	return direct, nil
}

// members returns the members of a structure or union, nil for other types.
func members(t btf.Type) []btf.Member {
	switch t := t.(type) {
	case *btf.Struct:
		return t.Members
	case *btf.Union:
		return t.Members
	}
	return nil
}

// Size returns the size of a named type in bytes.
func (s *Spec) Size(name string) (n uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer rescue(&err)
	ts, err := s.types(name)
	if err != nil {
		return 0, err
	}
	for _, t := range ts {
		if size, err := btf.Sizeof(t); err == nil {
			return uint64(size), nil
		}
	}
	return 0, fmt.Errorf("type %q has no size: %w", name, ErrNotFound)
}
