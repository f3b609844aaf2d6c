package btf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
)

// sample is BTF with one of everything that kernels have.
func sample(t testing.TB) []byte {
	char := &btf.Int{Name: "char", Size: 1, Encoding: btf.Char}
	u32 := &btf.Int{Name: "unsigned int", Size: 4}
	u64 := &btf.Int{Name: "u64", Size: 8}
	long := &btf.Int{Name: "long", Size: 8, Encoding: btf.Signed}
	node := &btf.Struct{Name: "list_head", Size: 16}
	node.Members = []btf.Member{{Name: "next", Type: &btf.Pointer{Target: node}}, {Name: "prev", Type: &btf.Pointer{Target: node}, Offset: 64}}
	callback := &btf.Pointer{Target: &btf.FuncProto{Return: &btf.Void{}, Params: []btf.FuncParam{{Name: "work", Type: &btf.Pointer{Target: node}}, {Type: u32}}}}
	inner := &btf.Union{Size: 16, Members: []btf.Member{
		{Type: &btf.Struct{Size: 16, Members: []btf.Member{{Name: "deep", Type: u64, Offset: 64}}}},
		{Name: "flat", Type: u32},
	}}
	task := &btf.Struct{Name: "task", Size: 128, Members: []btf.Member{
		{Name: "state", Type: &btf.Volatile{Type: u32}},
		{Name: "low", Type: u32, Offset: 32, BitfieldSize: 3},
		{Name: "high", Type: u32, Offset: 35 + 8, BitfieldSize: 5},
		{Type: &btf.Typedef{Name: "inner_t", Type: inner}, Offset: 64},
		{Name: "comm", Type: &btf.Array{Type: char, Index: u32, Nelems: 16}, Offset: 192},
		{Name: "nodes", Type: &btf.Array{Type: node, Index: u32, Nelems: 2}, Offset: 320},
		{Name: "grid", Type: &btf.Array{Type: &btf.Array{Type: u32, Index: u32, Nelems: 3}, Index: u32, Nelems: 2}, Offset: 576},
		{Name: "run", Type: callback, Offset: 768},
		{Name: "name", Type: &btf.Pointer{Target: &btf.Const{Type: char}}, Offset: 832},
		{Name: "fixed", Type: &btf.Const{Type: &btf.Pointer{Target: char}}, Offset: 896},
		{Name: "tail", Type: &btf.Array{Type: u64, Index: u32, Nelems: 0}, Offset: 1024},
	}}
	proto := &btf.FuncProto{Return: long, Params: []btf.FuncParam{{Name: "fd", Type: u32}, {Name: "how", Type: inner}, {Name: "p", Type: &btf.Pointer{Target: &btf.Pointer{Target: char}}}}}
	types := []btf.Type{
		task, &btf.Typedef{Name: "task_t", Type: task},
		&btf.Func{Name: "do_it", Type: proto, Linkage: btf.StaticFunc},
		&btf.Func{Name: "printk", Type: &btf.FuncProto{Return: u32, Params: []btf.FuncParam{{Name: "fmt", Type: &btf.Pointer{Target: char}}, {Type: &btf.Void{}}}}, Linkage: btf.StaticFunc},
		&btf.Enum{Name: "colour", Size: 4, Signed: true, Values: []btf.EnumValue{{Name: "RED", Value: 1}, {Name: "NONE", Value: 0xffffffffffffffff}}},
		&btf.Enum{Size: 4, Values: []btf.EnumValue{{Name: "ANONYMOUS", Value: 7}}},
	}
	b, err := btf.NewBuilder(types, nil)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

func load(t testing.TB) *Spec {
	s, err := Load(sample(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestField(t *testing.T) {
	s := load(t)
	for path, want := range map[string]Field{
		"state":         {Offset: 0, Size: 4, Type: "volatile unsigned int"},
		"low":           {Offset: 4, Size: 4, BitSize: 3, Type: "unsigned int"},
		"high":          {Offset: 5, Size: 4, BitOffset: 3, BitSize: 5, Type: "unsigned int"},
		"flat":          {Offset: 8, Size: 4, Type: "unsigned int"},
		"deep":          {Offset: 16, Size: 8, Type: "u64"},
		"comm":          {Offset: 24, Size: 16, Type: "char[16]"},
		"comm[15]":      {Offset: 39, Size: 1, Type: "char"},
		"nodes[1].prev": {Offset: 64, Size: 8, Type: "struct list_head *"},
		"nodes[1]":      {Offset: 56, Size: 16, Type: "struct list_head"},
		"grid[1][2]":    {Offset: 92, Size: 4, Type: "unsigned int"},
		"run":           {Offset: 96, Size: 8, Type: "void (*)(struct list_head *, unsigned int)"},
		"name":          {Offset: 104, Size: 8, Type: "const char *"},
		"fixed":         {Offset: 112, Size: 8, Type: "char * const"},
		"tail":          {Offset: 128, Size: 0, Type: "u64[0]"},
		"tail[3]":       {Offset: 152, Size: 8, Type: "u64"},
	} {
		for _, outer := range []string{"task", "task_t"} {
			got, err := s.Field(outer, path)
			if err != nil {
				t.Errorf("%s.%s: %v", outer, path, err)
			} else if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s.%s (-want +got):\n%s", outer, path, diff)
			}
		}
	}
}

func TestFieldRefuses(t *testing.T) {
	s := load(t)
	for _, path := range []string{"", ".", "absent", "comm[16]", "comm[-1]", "comm[", "comm[]", "comm[1", "state.x", "state[0]",
		"run.work", "[1]", "nodes.next", "nodes[1]..next", "comm[99999999999999999999]"} {
		if f, err := s.Field("task", path); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %+v, %v, want ErrNotFound", path, f, err)
		}
	}
	for _, outer := range []string{"", "absent", "colour", "do_it", "char"} {
		if f, err := s.Field(outer, "x"); !errors.Is(err, ErrNotFound) {
			t.Errorf("structure %q: %+v, %v, want ErrNotFound", outer, f, err)
		}
	}
}

func TestSizeAndEnum(t *testing.T) {
	s := load(t)
	for name, want := range map[string]uint64{"task": 128, "task_t": 128, "list_head": 16, "char": 1, "colour": 4} {
		if got, err := s.Size(name); got != want || err != nil {
			t.Errorf("Size(%s) = %d, %v, want %d", name, got, err, want)
		}
	}
	if _, err := s.Size("absent"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Size(absent): %v", err)
	}
	for _, c := range []struct {
		enum, name string
		want       int64
	}{{"colour", "RED", 1}, {"colour", "NONE", -1}, {"", "ANONYMOUS", 7}, {"", "RED", 1}} {
		if got, err := s.Enum(c.enum, c.name); got != c.want || err != nil {
			t.Errorf("Enum(%q, %s) = %d, %v, want %d", c.enum, c.name, got, err, c.want)
		}
	}
	for _, c := range [][2]string{{"colour", "BLUE"}, {"", "BLUE"}, {"task", "RED"}, {"absent", "RED"}} {
		if _, err := s.Enum(c[0], c[1]); !errors.Is(err, ErrNotFound) {
			t.Errorf("Enum(%q, %q): %v, want ErrNotFound", c[0], c[1], err)
		}
	}
}

func TestFunc(t *testing.T) {
	s := load(t)
	got, err := s.Func("do_it")
	want := &Func{Name: "do_it", Return: "long", Params: []Param{
		{Name: "fd", Type: "unsigned int", Size: 4}, {Name: "how", Type: "union {...}", Size: 16, Aggregate: true}, {Name: "p", Type: "char **", Size: 8}}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("do_it (-want +got): %s, %v", diff, err)
	}
	if f, err := s.Func("printk"); err != nil || !f.Variadic || len(f.Params) != 1 {
		t.Errorf("printk: %+v, %v", f, err)
	}
	if _, err := s.Func("task"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Func(task): %v", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	good := sample(t)
	edit := func(at int, v uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[at:], v)
		return b
	}
	for name, b := range map[string][]byte{
		"empty": nil, "short": good[:23], "ELF": append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 100)...),
		"header length": edit(4, 1<<31), "types beyond": edit(12, 1<<30), "strings beyond": edit(20, 0xffffffff), "cut": good[:len(good)-5],
	} {
		if s, err := Load(b); !errors.Is(err, ErrFormat) || s != nil {
			t.Errorf("%s: %v, %v, want ErrFormat", name, s, err)
		}
	}
	if _, err := Load(append(bytes.Clone(good), 0, 0, 0)); err != nil {
		t.Errorf("with padding behind: %v", err)
	}
}

func TestConcurrentLookups(t *testing.T) {
	s := load(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				s.Field("task", "nodes[1].next")
				s.Enum("", "ANONYMOUS")
				s.Func("do_it")
				s.Size("task")
			}
		})
	}
	wg.Wait()
}

func FuzzBTF(f *testing.F) {
	good := sample(f)
	f.Add([]byte{}, uint64(1), uint8(3))
	f.Add(good, uint64(1), uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, seed uint64, n uint8) {
		if len(b) < 24 {
			b = bytes.Clone(good)
		}
		r := rand.New(rand.NewPCG(seed, 1))
		for range n {
			b[24+r.IntN(len(b)-23)-1] = byte(r.Uint32())
		}
		s, err := Load(b)
		if (s == nil) == (err == nil) {
			t.Fatalf("got %v and %v, want one of them", s, err)
		}
		if s == nil {
			return
		}
		for _, path := range []string{"state", "deep", "nodes[1].prev", "grid[1][2]", "run", "tail[5]", "comm"} {
			s.Field("task", path)
		}
		s.Size("task")
		s.Func("do_it")
		s.Enum("", "ANONYMOUS")
	})
}

// Types that contain themselves must not cost exponential time.
func TestHostileRecursion(t *testing.T) {
	u := &btf.Union{Name: "loop", Size: 8}
	u.Members = []btf.Member{{Type: u}, {Type: u}, {Type: u}}
	f := &btf.FuncProto{Return: &btf.Void{}}
	for range 8 {
		f.Params = append(f.Params, btf.FuncParam{Type: &btf.Pointer{Target: f}})
	}
	s := &btf.Struct{Name: "holder", Size: 8, Members: []btf.Member{{Name: "call", Type: &btf.Pointer{Target: f}}}}
	b, err := btf.NewBuilder([]btf.Type{u, s}, nil)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := Load(blob)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := spec.Field("loop", "absent"); !errors.Is(err, ErrNotFound) {
		t.Errorf("member of a loop: %v", err)
	}
	got, err := spec.Field("holder", "call")
	if err != nil || len(got.Type) > 4096 {
		t.Errorf("name of %d bytes, %v", len(got.Type), err)
	}
}
