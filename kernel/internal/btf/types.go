package btf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
)

// kind is what a type is.
type kind uint8

// The kinds of types, as btf.h numbers them.
const (
	kindInt       kind = 1
	kindPointer   kind = 2
	kindArray     kind = 3
	kindStruct    kind = 4
	kindUnion     kind = 5
	kindEnum      kind = 6
	kindForward   kind = 7
	kindTypedef   kind = 8
	kindVolatile  kind = 9
	kindConst     kind = 10
	kindRestrict  kind = 11
	kindFunc      kind = 12
	kindFuncProto kind = 13
	kindVar       kind = 14
	kindDataSec   kind = 15
	kindFloat     kind = 16
	kindDeclTag   kind = 17
	kindTypeTag   kind = 18
	kindEnum64    kind = 19
	kindCount     kind = 20
)

// trailing is what follows a type of each kind, in bytes: once, and for each of
// its members.
var trailing = [kindCount]struct{ once, each int }{
	kindInt: {once: 4}, kindArray: {once: 12}, kindStruct: {each: 12}, kindUnion: {each: 12}, kindEnum: {each: 8},
	kindFuncProto: {each: 8}, kindVar: {once: 4}, kindDataSec: {each: 12}, kindDeclTag: {once: 4}, kindEnum64: {each: 12},
}

const (
	typeSize    = 12     // of struct btf_type
	maxMembers  = 0xffff // members of one type
	pointerSize = 8
	// maxDepth bounds the steps of a path, and types that only name or qualify
	// another in a row.
	maxDepth = 32
)

func kindOf(info uint32) kind { return kind(info >> 24 & 0x1f) }

// namesData says whether data may have such a type, and it has a name.
func (k kind) namesData() bool {
	switch k {
	case kindInt, kindStruct, kindUnion, kindEnum, kindForward, kindTypedef, kindFloat, kindEnum64:
		return true
	}
	return false
}

// id is the number of a type; 0 is void.
type id uint32

// typ is a type: its header, and where what follows it is.
type typ struct {
	kind kind
	flag bool // kind_flag
	n    int  // members
	name uint32
	// number is the size of those that have one, else the type that this one
	// is made of.
	number uint32
	rest   []byte
}

// at returns a type; void is one of kind 0, and so is what does not exist.
func (s *Spec) at(i id) typ {
	if i == 0 || int(i) >= len(s.starts) {
		return typ{}
	}
	p := s.types[s.starts[i]:]
	le := binary.LittleEndian
	info := le.Uint32(p[4:])
	return typ{kind: kindOf(info), flag: info>>31 != 0, n: int(info & maxMembers),
		name: le.Uint32(p), number: le.Uint32(p[8:]), rest: p[typeSize:]}
}

// to is the type that a pointer, typedef, qualifier or function is made of.
func (t typ) to() id { return id(t.number) }

// composite reports whether t has members: a structure or a union.
func (t typ) composite() bool { return t.kind == kindStruct || t.kind == kindUnion }

// word returns the n-th number of what follows the header.
func (t typ) word(n int) uint32 { return binary.LittleEndian.Uint32(t.rest[4*n:]) }

// array returns the elements' type and number.
func (t typ) array() (elem id, n uint32) { return id(t.word(0)), t.word(2) }

// maxText bounds a name: that of a symbol has 512 bytes at most.
const maxText = 1024

// text returns a string of the section, "" when there is none.
func (s *Spec) text(off uint32) []byte {
	if uint64(off) >= uint64(len(s.strings)) {
		return nil
	}
	p := s.strings[off:]
	return p[:max(bytes.IndexByte(p[:min(len(p), maxText)], 0), 0)]
}

// is reports whether the string at off is the one given, which has no NUL.
func (s *Spec) is(off uint32, name string) bool {
	if uint64(off)+uint64(len(name)) >= uint64(len(s.strings)) {
		return false
	}
	p := s.strings[off:]
	return string(p[:len(name)]) == name && p[len(name)] == 0
}

// qualifies reports whether a type is another one under a name or with a word.
func (k kind) qualifies() bool {
	switch k {
	case kindTypedef, kindVolatile, kindConst, kindRestrict, kindTypeTag:
		return true
	}
	return false
}

// underlying returns what is behind typedefs and qualifiers, void when there is
// no end to them.
func (s *Spec) underlying(i id) id {
	for range maxDepth {
		t := s.at(i)
		if !t.kind.qualifies() {
			return i
		}
		i = t.to()
	}
	return 0
}

// sizeof returns the size of a type in bytes; false when it has none, as
// functions and what is only declared.
func (s *Spec) sizeof(i id) (uint64, bool) {
	n := uint64(1)
	for range maxDepth {
		t := s.at(i)
		var size uint64
		switch {
		case t.kind == kindArray:
			elem, count := t.array()
			if n *= uint64(count); n > math.MaxUint32 {
				return 0, false
			}
			i = elem
			continue
		case t.kind.qualifies():
			i = t.to()
			continue
		case t.kind == kindPointer:
			size = pointerSize
		case t.kind == kindForward || t.kind == kindFunc || t.kind == kindFuncProto || t.kind == kindVar || t.kind == kindDeclTag:
			return 0, false
		case t.kind != 0: // void is of no size, which is one
			size = uint64(t.number)
		}
		return n * size, true // both fit into 32 bits
	}
	return 0, false
}

// Size returns the size of a named type in bytes.
func (s *Spec) Size(name string) (uint64, error) {
	ts, err := s.named(name)
	if err != nil {
		return 0, err
	}
	for _, t := range ts {
		if size, ok := s.sizeof(t); ok {
			return size, nil
		}
	}
	return 0, fmt.Errorf("type %q has no size: %w", name, ErrNotFound)
}
