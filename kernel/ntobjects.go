package kernel

import (
	"fmt"

	"github.com/vitrine-vmi/vitrine/arch"
)

// ObjectTypes tells how the header of an object leads to its type, from 7 on.
// Until Vista the header holds the address of the type itself.
type ObjectTypes struct {
	Table  arch.GVA // ObTypeIndexTable: addresses of OBJECT_TYPE by index; 0 when not found
	Hidden bool     // the index is mixed with a cookie and the header's address (from 10 on)
	Cookie byte     // ObHeaderCookie
}

// Index returns the index of the type of an object, given the byte TypeIndex
// of its header and the address of that header.
func (o ObjectTypes) Index(header arch.GVA, typeIndex byte) byte {
	if o.Hidden {
		return typeIndex ^ o.Cookie ^ byte(header>>8)
	}
	return typeIndex
}

// findObjectTypes finds the table of object types and the cookie by what is
// exported: the types of processes and threads.
func (b *ntBuilder) findObjectTypes() {
	if !b.k.types.Has("_OBJECT_HEADER", "TypeIndex") {
		return
	}
	process, err := b.objectType("PsProcessType")
	thread, err2 := b.objectType("PsThreadType")
	if err != nil || err2 != nil {
		b.k.lacks("object types: PsProcessType and PsThreadType are not both exported and set")
		return
	}
	o := &b.nt.Objects
	if at, err := b.k.address("ObTypeIndexTable"); err == nil && b.isTypeTable(at, process, thread) {
		o.Table = at
		b.k.fact("ObTypeIndexTable", "symbol, checked by the types of processes and threads")
	} else if o.Table = b.scanTypeTable(process, thread); o.Table != 0 {
		b.k.fact("ObTypeIndexTable", "scan of the kernel's data for the types of processes and threads")
		b.name("ObTypeIndexTable", o.Table)
	} else {
		b.k.lacks("ObTypeIndexTable: no such array in the kernel's data; handles are shown without types")
	}
	b.findCookie(process.index)
}

// typeObject is an OBJECT_TYPE.
type typeObject struct {
	at    arch.GVA
	index byte
}

func (b *ntBuilder) objectType(export string) (typeObject, error) {
	at, err := b.variable(export)
	if err != nil {
		return typeObject{}, err
	}
	index, err := b.typeIndex(at)
	return typeObject{at, index}, err
}

func (b *ntBuilder) typeIndex(at arch.GVA) (byte, error) {
	f, err := b.types.field("_OBJECT_TYPE", "Index")
	if err != nil {
		return 0, err
	}
	if !b.nt.KernelAddress(at) {
		return 0, fmt.Errorf("object type at %v: no kernel address", at)
	}
	return b.k.space.ReadUint8(at + arch.GVA(f.Offset))
}

// isTypeTable reports whether the array at table has both types at their
// indices, and the type of types at 2; the first slot is empty.
func (b *ntBuilder) isTypeTable(table arch.GVA, process, thread typeObject) bool {
	size := arch.GVA(b.k.PointerSize())
	for _, t := range []typeObject{process, thread} {
		if at, err := b.word(table + arch.GVA(t.index)*size); err != nil || at != t.at || t.index < 2 {
			return false
		}
	}
	first, err := b.word(table)
	types, err2 := b.word(table + 2*size)
	if err != nil || err2 != nil || first != 0 {
		return false
	}
	index, err := b.typeIndex(types)
	return err == nil && index == 2
}

func (b *ntBuilder) scanTypeTable(process, thread typeObject) arch.GVA {
	back := arch.GVA(process.index) * arch.GVA(b.k.PointerSize())
	at := b.eachDatum(func(at, v arch.GVA) bool {
		return v == process.at && b.isTypeTable(at-back, process, thread)
	})
	if at == 0 {
		return 0
	}
	return at - back
}

// findCookie tells from the headers of processes, whose type is known, whether
// and by what their indices are hidden.
func (b *ntBuilder) findCookie(want byte) {
	body, err := b.types.field("_OBJECT_HEADER", "Body")
	index, err2 := b.types.field("_OBJECT_HEADER", "TypeIndex")
	if err != nil || err2 != nil {
		return
	}
	all := []arch.GVA{b.nt.System}
	for _, w := range b.witnesses {
		all = append(all, w.at)
	}
	var raw []byte
	for _, at := range all {
		v, err := b.k.space.ReadUint8(at - arch.GVA(body.Offset) + arch.GVA(index.Offset))
		if err != nil {
			return
		}
		raw = append(raw, v)
	}
	header := func(i int) arch.GVA { return all[i] - arch.GVA(body.Offset) }
	o := ObjectTypes{Table: b.nt.Objects.Table}
	by := "headers of processes hold the index of their type"
	if raw[0] != want {
		o.Hidden, o.Cookie = true, raw[0]^want^byte(header(0)>>8)
		by = fmt.Sprintf("cookie %#x, from the header of System", o.Cookie)
	}
	for i := range all {
		if o.Index(header(i), raw[i]) != want {
			b.k.lacks("types of objects: the headers of processes do not agree on how they tell it")
			b.nt.Objects.Table = 0
			return
		}
	}
	b.nt.Objects = o
	b.k.fact("object types", by)
}
