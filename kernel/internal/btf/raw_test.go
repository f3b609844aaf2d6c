package btf

import (
	"encoding/binary"
	"errors"
	"testing"
)

// raw makes BTF of words, for what other tools do not write any more.
func raw(strings string, words ...uint32) []byte {
	le := binary.LittleEndian
	b := append(le.AppendUint16(nil, magic), 1, 0)
	for _, v := range []int{headerSize, 0, 4 * len(words), 4 * len(words), len(strings)} {
		b = le.AppendUint32(b, uint32(v))
	}
	for _, w := range words {
		b = le.AppendUint32(b, w)
	}
	return append(b, strings...)
}

func info(k kind, n int, flag bool) uint32 {
	v := uint32(k)<<24 | uint32(n)
	if flag {
		v |= 1 << 31
	}
	return v
}

const rawStrings = "\x00u32\x00s\x00bits\x00whole\x00e\x00BIG\x00NEG\x00"

func TestOldAndWideTypes(t *testing.T) {
	s, err := Load(raw(rawStrings,
		1, info(kindInt, 0, false), 4, 32, // 1: u32
		0, info(kindInt, 0, false), 4, 3|5<<16, // 2: three bits, five from its start
		5, info(kindStruct, 2, false), 8, 7, 2, 32, 12, 1, 0, // 3: s
		18, info(kindEnum64, 2, true), 8, 20, 1, 0x80, 24, 0xffffffff, 0xffffffff, // 4: e
	))
	if err != nil {
		t.Fatal(err)
	}
	if f, err := s.Field("s", "bits"); err != nil || f != (Field{Offset: 4, Size: 4, BitOffset: 5, BitSize: 3, Type: "{...}"}) {
		t.Errorf("a bit-field with a type of its own: %+v, %v", f, err)
	}
	if f, err := s.Field("s", "whole"); err != nil || f != (Field{Size: 4, Type: "u32"}) {
		t.Errorf("a member beside it: %+v, %v", f, err)
	}
	for name, want := range map[string]int64{"BIG": 0x80_0000_0001, "NEG": -1} {
		if v, err := s.Enum("e", name); err != nil || v != want {
			t.Errorf("%s is %#x, %v", name, v, err)
		}
	}
	if n, err := s.Size("e"); err != nil || n != 8 {
		t.Errorf("size of e is %d, %v", n, err)
	}
}

func TestTypesCutOff(t *testing.T) {
	for name, words := range map[string][]uint32{
		"header":       {1, info(kindInt, 0, false)},
		"members":      {5, info(kindStruct, 3, false), 8, 7, 2, 32},
		"kind 0":       {1, 0, 4},
		"unknown kind": {1, info(kindCount, 0, false), 4},
	} {
		if s, err := Load(raw(rawStrings, words...)); !errors.Is(err, ErrFormat) || s != nil {
			t.Errorf("%s: %v, %v, want ErrFormat", name, s, err)
		}
	}
}

// Arrays of arrays, and types that qualify themselves, have no size but an end.
func TestNoEnd(t *testing.T) {
	s, err := Load(raw(rawStrings,
		1, info(kindTypedef, 0, false), 1, // 1: u32 is u32
		5, info(kindTypedef, 0, false), 3, // 2: s is an array
		0, info(kindArray, 0, false), 0, 3, 3, 1<<20, // 3: of itself
		18, info(kindStruct, 1, false), 8, 7, 3, 0, // 4: e
	))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"u32", "s"} {
		if n, err := s.Size(name); !errors.Is(err, ErrNotFound) {
			t.Errorf("size of %s is %d, %v", name, n, err)
		}
	}
	if f, err := s.Field("e", "bits"); err != nil || f.Size != 0 || len(f.Type) > 4096 {
		t.Errorf("a member of it: %+v, %v", f, err)
	}
	if f, err := s.Field("e", "bits[5]"); !errors.Is(err, ErrNotFound) {
		t.Errorf("an element of it: %+v, %v", f, err)
	}
}

// As many types of one name as fit are found in time.
func TestNamesakes(t *testing.T) {
	var words []uint32
	for range 200000 {
		words = append(words, 1, info(kindStruct, 1, false), 4, 7, 0, 0)
	}
	s, err := Load(raw(rawStrings, words...))
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if _, err := s.Field("u32", "absent"); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
	}
}
