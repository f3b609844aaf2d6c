//go:build linux

package kernel_test

import (
	"bytes"
	"testing"

	cilium "github.com/cilium/ebpf/btf"

	"github.com/vitrine-vmi/vitrine/kernel"
)

// compareTypes holds every structure, function and enum of a kernel's BTF
// against what another reader of BTF makes of it.
func compareTypes(t *testing.T, k *kernel.Kernel) {
	start, err := k.Symbol("__start_BTF")
	stop, err2 := k.Symbol("__stop_BTF")
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	blob := make([]byte, stop.Addr-start.Addr)
	if _, err := k.AddressSpace().Read(blob, start.Addr); err != nil {
		t.Fatal(err)
	}
	spec, err := cilium.LoadSpecFromReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	c := typesComparison{t: t, types: k.Types(), seen: map[string]int{}}
	var all []cilium.Type
	for typ, err := range spec.All() {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, typ)
		c.seen[typ.TypeName()]++
	}
	for _, typ := range all {
		if name := typ.TypeName(); name != "" && c.seen[name] == 1 { // of namesakes any may be meant
			c.compare(typ)
		}
	}
	t.Logf("compared: %d sizes, %d members, %d functions, %d enumerators", c.sizes, c.members, c.functions, c.enumerators)
	if c.sizes < 5000 || c.members < 20000 || c.functions < 10000 || c.enumerators < 3000 {
		t.Error("that is too little")
	}
}

// typesComparison counts what it compares.
type typesComparison struct {
	t     *testing.T
	types *kernel.Types
	seen  map[string]int // types by name

	sizes, members, functions, enumerators int
}

func (c *typesComparison) compare(typ cilium.Type) {
	switch typ := typ.(type) {
	case *cilium.Struct:
		c.compareMembers(typ.Name, typ.Members)
	case *cilium.Union:
		c.compareMembers(typ.Name, typ.Members)
	case *cilium.Func:
		c.compareFunction(typ)
	case *cilium.Enum:
		c.compareEnum(typ)
	case *cilium.Datasec, *cilium.Var: // no types of data
		return
	}
	want, err := cilium.Sizeof(typ)
	if err != nil {
		return
	}
	if got, err := c.types.Size(typ.TypeName()); err != nil || got != uint64(want) {
		c.t.Errorf("size of %s is %d (%v), want %d", typ.TypeName(), got, err, want)
	}
	c.sizes++
}

func (c *typesComparison) compareMembers(name string, members []cilium.Member) {
	for _, m := range members {
		if m.Name == "" {
			continue
		}
		size, err := cilium.Sizeof(m.Type)
		if err != nil {
			size = 0
		}
		got, err := c.types.Field(name, m.Name)
		want := kernel.Field{Offset: uint64(m.Offset) / 8, Size: uint64(size), BitSize: uint32(m.BitfieldSize), TypeName: got.TypeName}
		if m.BitfieldSize != 0 {
			want.BitOffset = uint32(m.Offset) % 8
		}
		if err != nil || got != want {
			c.t.Errorf("%s.%s is %+v (%v), want %+v", name, m.Name, got, err, want)
		}
		c.members++
	}
}

func (c *typesComparison) compareFunction(f *cilium.Func) {
	proto, ok := f.Type.(*cilium.FuncProto)
	if !ok {
		return
	}
	got, err := c.types.Func(f.Name)
	if err != nil {
		c.t.Errorf("function %s: %v", f.Name, err)
		return
	}
	want := proto.Params
	if got.Variadic {
		want = want[:len(want)-1]
	}
	if len(got.Params) != len(want) {
		c.t.Errorf("function %s has %d parameters, want %d", f.Name, len(got.Params), len(want))
		return
	}
	for i, p := range got.Params {
		if size, err := cilium.Sizeof(want[i].Type); p.Name != want[i].Name || err == nil && p.Size != uint64(size) {
			c.t.Errorf("function %s: parameter %d is %+v, want %v of %d bytes", f.Name, i, p, want[i].Name, size)
		}
	}
	c.functions++
}

func (c *typesComparison) compareEnum(e *cilium.Enum) {
	for _, v := range e.Values {
		want := int64(v.Value)
		if e.Signed && e.Size == 4 {
			want = int64(int32(v.Value))
		}
		if got, err := c.types.Enum(e.Name, v.Name); err != nil || got != want {
			c.t.Errorf("%s.%s is %d (%v), want %d", e.Name, v.Name, got, err, want)
		}
		c.enumerators++
	}
}
