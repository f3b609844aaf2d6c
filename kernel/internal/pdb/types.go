package pdb

import (
	"sync"

	"github.com/vitrine-vmi/vitrine/internal/guestio"
)

// Leaves of type records (LEAF_ENUM_e in cvinfo.h of microsoft-pdb).
const (
	leafModifier  = 0x1001
	leafPointer   = 0x1002
	leafFieldList = 0x1203
	leafBitfield  = 0x1205
	leafIndex     = 0x1404
	leafEnumerate = 0x1502
	leafArray     = 0x1503
	leafClass     = 0x1504
	leafStructure = 0x1505
	leafUnion     = 0x1506
	leafEnum      = 0x1507
	leafMember    = 0x150d
	leafNested    = 0x1510
)

// firstType is the number of the first record; lower ones are types of the
// language.
const firstType = 0x1000

// forward is the property of a type that is only announced.
const forward = 1 << 7

// types is the type stream.
type types struct {
	records [][]byte // each begins with its leaf
	structs map[string]uint32
	enums   map[string]uint32

	mu      sync.Mutex
	members map[uint32]map[string]member // protected by mu: by field list, once read
}

type member struct {
	offset uint64
	typ    uint32
	value  int64 // of an enumerator
}

func readTypes(b []byte) (*types, error) {
	c := guestio.NewCursor(b)
	c.Skip(4)
	header, first, last, size := c.Uint32(), c.Uint32(), c.Uint32(), c.Uint32()
	c.Seek(int(min(header, 1<<16)))
	if c.Err() != nil || first != firstType || last < first || uint64(size) > uint64(c.Len()) {
		return nil, malformed("type stream: types %#x to %#x in %d bytes", first, last, size)
	}
	t := &types{structs: map[string]uint32{}, enums: map[string]uint32{}, members: map[uint32]map[string]member{}}
	r := guestio.NewCursor(c.Bytes(int(size)))
	for r.Len() >= 4 {
		p := r.Bytes(int(r.Uint16()))
		if r.Err() != nil || len(p) < 2 {
			return nil, malformed("type record %#x", firstType+len(t.records))
		}
		t.note(p, firstType+uint32(len(t.records)))
		t.records = append(t.records, p)
	}
	return t, nil
}

// note remembers the number of a structure or enumeration by its name.
func (t *types) note(p []byte, n uint32) {
	h, ok := aggregate(p)
	if !ok || h.properties&forward != 0 {
		return
	}
	byName := t.structs
	if h.leaf == leafEnum {
		byName = t.enums
	}
	if _, taken := byName[h.name]; !taken {
		byName[h.name] = n
	}
}

// head is the record of a structure, union or enumeration.
type head struct {
	leaf, properties uint16
	fields           uint32
	under            uint32 // type of an enumeration
	size             uint64
	name             string
}

func aggregate(p []byte) (head, bool) {
	c := guestio.NewCursor(p)
	h := head{leaf: c.Uint16()}
	c.Skip(2)
	h.properties = c.Uint16()
	switch h.leaf {
	case leafClass, leafStructure:
		h.fields = c.Uint32()
		c.Skip(8)
		h.size = uint64(numeric(c))
	case leafUnion:
		h.fields = c.Uint32()
		h.size = uint64(numeric(c))
	case leafEnum:
		h.under, h.fields = c.Uint32(), c.Uint32()
	default:
		return head{}, false
	}
	h.name = string(c.CString(4096))
	return h, c.Err() == nil
}

// numeric reads a number: up to 0x7fff in place, or behind a leaf that tells
// its size.
func numeric(c *guestio.Cursor) int64 {
	switch n := c.Uint16(); n {
	case 0x8000:
		return int64(int8(c.Uint8()))
	case 0x8001:
		return int64(int16(c.Uint16()))
	case 0x8002:
		return int64(c.Uint16())
	case 0x8003:
		return int64(int32(c.Uint32()))
	case 0x8004:
		return int64(c.Uint32())
	case 0x8009, 0x800a:
		return int64(c.Uint64())
	default:
		if n >= 0x8000 {
			c.Fail(ErrFormat)
		}
		return int64(n)
	}
}

func (t *types) record(n uint32) []byte {
	if n < firstType || n-firstType >= uint32(len(t.records)) {
		return nil
	}
	return t.records[n-firstType]
}

// fieldsOf returns the members or enumerators of a field list.
func (t *types) fieldsOf(list uint32) map[string]member {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m, ok := t.members[list]; ok {
		return m
	}
	m := map[string]member{}
	seen := map[uint32]bool{}
	for next := list; next != 0 && !seen[next]; {
		seen[next] = true
		next = readFields(t.record(next), m)
	}
	t.members[list] = m
	return m
}

// readFields reads one record of a field list and returns the number of the
// record in which it goes on, 0 for none. What is of no use to C, such as
// methods, ends it.
func readFields(p []byte, m map[string]member) (next uint32) {
	c := guestio.NewCursor(p)
	if c.Uint16() != leafFieldList {
		return 0
	}
	for c.Len() >= 2 {
		switch leaf := c.Uint16(); leaf {
		case leafMember:
			c.Skip(2)
			f := member{typ: c.Uint32()}
			f.offset = uint64(numeric(c))
			name := string(c.CString(4096))
			if c.Err() == nil {
				m[name] = f
			}
		case leafEnumerate:
			c.Skip(2)
			f := member{value: numeric(c)}
			name := string(c.CString(4096))
			if c.Err() == nil {
				m[name] = f
			}
		case leafNested:
			c.Skip(6)
			c.CString(4096)
		case leafIndex:
			c.Skip(2)
			return c.Uint32()
		default:
			return 0
		}
		for c.Len() > 0 && p[c.Offset()] >= 0xf0 { // LF_PAD
			c.Skip(1)
		}
	}
	return 0
}

// Size returns the size of a structure or union in bytes.
func (f *File) Size(name string) (uint64, bool) {
	n, ok := f.tpi.structs[name]
	if !ok {
		return 0, false
	}
	h, ok := aggregate(f.tpi.record(n))
	return h.size, ok
}

// Member tells where a member lies: of a bit-field the byte and the bit in it
// where it begins, and its bits. TypeName is that of the structure it holds.
func (f *File) Member(structName, name string) (offset, size uint64, bit, bits uint32, typeName string, ok bool) {
	n, ok := f.tpi.structs[structName]
	if !ok {
		return 0, 0, 0, 0, "", false
	}
	h, _ := aggregate(f.tpi.record(n))
	m, ok := f.tpi.fieldsOf(h.fields)[name]
	if !ok {
		return 0, 0, 0, 0, "", false
	}
	if c := guestio.NewCursor(f.tpi.record(m.typ)); c.Uint16() == leafBitfield {
		under, length, position := c.Uint32(), uint32(c.Uint8()), uint32(c.Uint8())
		return m.offset + uint64(position/8), f.tpi.sizeOf(under, 0), position % 8, length, "", c.Err() == nil
	}
	return m.offset, f.tpi.sizeOf(m.typ, 0), 0, 0, f.tpi.nameOf(m.typ), true
}

// nameOf returns the name of a structure or union, "" for another type.
func (t *types) nameOf(n uint32) string {
	if h, ok := aggregate(t.record(n)); ok && h.leaf != leafEnum {
		return h.name
	}
	return ""
}

// maxNesting bounds types that are made of types.
const maxNesting = 16

func (t *types) sizeOf(n uint32, depth int) uint64 {
	if depth > maxNesting {
		return 0
	}
	if n < firstType {
		return simpleSize(n)
	}
	p := t.record(n)
	if h, ok := aggregate(p); ok {
		if h.leaf == leafEnum {
			return t.sizeOf(h.under, depth+1)
		}
		if full, ok := t.structs[h.name]; ok && h.properties&forward != 0 && full != n {
			return t.sizeOf(full, depth+1)
		}
		return h.size
	}
	c := guestio.NewCursor(p)
	switch c.Uint16() {
	case leafModifier:
		return t.sizeOf(c.Uint32(), depth+1)
	case leafPointer:
		c.Skip(4)
		return uint64(c.Uint32() >> 13 & 0x3f)
	case leafArray:
		c.Skip(8)
		return uint64(numeric(c))
	}
	return 0
}

// simpleSize returns the size of a type of the language: pointers by their
// mode, numbers by their kind.
func simpleSize(n uint32) uint64 {
	switch n >> 8 & 0xf {
	case 4, 5:
		return 4
	case 6:
		return 8
	case 0:
	default:
		return 0
	}
	switch n & 0xff {
	case 0x10, 0x20, 0x68, 0x69, 0x70, 0x30, 0x7c: // char, unsigned, int8, uint8, rchar, bool, char8
		return 1
	case 0x11, 0x21, 0x71, 0x72, 0x73, 0x7a:
		return 2
	case 0x12, 0x22, 0x74, 0x75, 0x40, 0x08, 0x7b: // long, ulong, int, uint, float, HRESULT
		return 4
	case 0x13, 0x23, 0x76, 0x77, 0x41:
		return 8
	}
	return 0
}

// Enum returns the value of an enumerator; an empty enum name means any.
func (f *File) Enum(enum, name string) (int64, bool) {
	look := func(n uint32) (int64, bool) {
		h, _ := aggregate(f.tpi.record(n))
		m, ok := f.tpi.fieldsOf(h.fields)[name]
		return m.value, ok
	}
	if enum != "" {
		n, ok := f.tpi.enums[enum]
		if !ok {
			return 0, false
		}
		return look(n)
	}
	for _, n := range f.tpi.enums {
		if v, ok := look(n); ok {
			return v, true
		}
	}
	return 0, false
}
