package kernel

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vitrine-vmi/vitrine/kernel/internal/btf"
	"github.com/vitrine-vmi/vitrine/kernel/internal/isf"
)

// Types is the type information of a kernel. It may be used concurrently; a
// member that was resolved once is looked up without decoding.
type Types struct {
	spec    *btf.Spec // of Linux; nil without BTF
	profile *isf.File // of a Linux kernel without BTF; nil without
	by      string    // the profile's name
	absent  string    // why there is no type information, and what would help
	nt      *ntTypes  // of NT; nil for Linux

	mu     sync.RWMutex
	fields map[[2]string]resolved // guarded by mu
}

type resolved struct {
	field Field
	err   error
}

// maxFields bounds the cache of resolved members.
const maxFields = 1 << 16

func newTypes(spec *btf.Spec) *Types {
	return &Types{spec: spec, fields: map[[2]string]resolved{}}
}

// Field is where a member lies in a structure.
type Field struct {
	Offset    uint64 // bytes from the start of the structure
	Size      uint64 // bytes of the member's type; 0 for a flexible array, and where the source does not tell (layouts of NT kernels)
	BitOffset uint32 // of a bit-field: its first bit, 0 to 7, counted from Offset
	BitSize   uint32 // of a bit-field: its bits; 0 for other members
	TypeName  string // the member's type as C writes it, such as "struct mm_struct *"
}

// Bits returns the value of a bit-field from the little-endian number that was
// read at Offset; of any other member, v itself.
func (f Field) Bits(v uint64) uint64 {
	if f.BitSize == 0 || f.BitSize >= 64 {
		return v
	}
	return v >> f.BitOffset & (1<<f.BitSize - 1)
}

// Param is a parameter of a kernel function.
type Param struct {
	Name      string
	Type      string // as C writes it, such as "const char *"
	Size      uint64 // bytes; 0 when unknown
	Aggregate bool   // a structure or union passed by value
}

// FuncProto is the prototype of a kernel function.
type FuncProto struct {
	Name     string
	Params   []Param // without the dots of a variadic function
	Return   string  // the result's type as C writes it, "void" for none
	Variadic bool
}

// Available reports whether the kernel has type information.
func (t *Types) Available() bool { return t.spec != nil || t.nt != nil || t.profile != nil }

// Absent returns why there is no type information, and which profile would help
// and how to get it; "" when there is, and where that is not known.
func (t *Types) Absent() string { return t.absent }

// Size returns the size of a named type in bytes: a structure, union, enum or
// typedef, without the word struct. The error wraps ErrNoType.
func (t *Types) Size(name string) (uint64, error) {
	if t.nt != nil {
		return t.nt.size(name)
	}
	if t.profile != nil {
		if n, ok := t.profile.Size(name); ok {
			return n, nil
		}
		return 0, fmt.Errorf("find size of %s: %w", name, ErrNoType)
	}
	if t.spec == nil {
		return 0, t.none("size of " + name)
	}
	n, err := t.spec.Size(name)
	return n, typeError(err)
}

// Field resolves a member path such as "thread.sp" or "__rb[1].next" in a
// structure or union; members of anonymous members are found by their own
// names. The error wraps ErrNoType.
func (t *Types) Field(structName, path string) (Field, error) {
	if t.nt != nil {
		f, err := t.nt.field(structName, path)
		return f.Field, err
	}
	if t.spec == nil && t.profile == nil {
		return Field{}, t.none(structName + "." + path)
	}
	key := [2]string{structName, path}
	t.mu.RLock()
	r, ok := t.fields[key]
	t.mu.RUnlock()
	if ok {
		return r.field, r.err
	}
	r = t.resolve(structName, path)
	t.mu.Lock()
	if len(t.fields) < maxFields {
		t.fields[key] = r
	}
	t.mu.Unlock()
	return r.field, r.err
}

func (t *Types) resolve(structName, path string) resolved {
	if t.profile != nil {
		p, ok := t.profile.Field(structName, path)
		if !ok {
			return resolved{err: fmt.Errorf("find member %s.%s: %w", structName, path, ErrNoType)}
		}
		return resolved{field: Field{Offset: p.Offset, Size: p.Size, BitOffset: p.BitOffset, BitSize: p.BitSize, TypeName: p.Type}}
	}
	f, err := t.spec.Field(structName, path)
	if err != nil {
		return resolved{err: typeError(err)}
	}
	return resolved{field: Field{Offset: f.Offset, Size: f.Size, BitOffset: f.BitOffset, BitSize: f.BitSize, TypeName: f.Type}}
}

// Has reports whether a structure has a member; with an empty path, whether
// the type exists.
func (t *Types) Has(structName, path string) bool {
	if path == "" {
		_, err := t.Size(structName)
		return err == nil
	}
	_, err := t.Field(structName, path)
	return err == nil
}

// Source returns how it is known where a member lies, "" when it is not known:
// "btf" or a profile, or for an NT kernel the exact symbols, the layout of a build, an
// accessor's code, the member's shape, and what was checked.
func (t *Types) Source(structName, path string) string {
	if t.nt != nil {
		f, err := t.nt.field(structName, path)
		if err != nil {
			return ""
		}
		return f.by
	}
	if !t.Has(structName, path) {
		return ""
	}
	if t.profile != nil {
		return t.by
	}
	return "btf"
}

// Enum returns the value of an enumerator. An empty enum name means any,
// anonymous ones included, which takes a millisecond. The
// error wraps ErrNoType.
func (t *Types) Enum(enum, name string) (int64, error) {
	if t.nt != nil && t.nt.exact != nil {
		if v, ok := t.nt.exact.Enum(enum, name); ok {
			return v, nil
		}
		return 0, fmt.Errorf("find enumerator %s: %w", name, ErrNoType)
	}
	if t.profile != nil {
		if v, ok := t.profile.Enum(enum, name); ok {
			return v, nil
		}
		return 0, fmt.Errorf("find enumerator %s: %w", name, ErrNoType)
	}
	if t.spec == nil {
		return 0, t.none("enumerator " + name)
	}
	v, err := t.spec.Enum(enum, name)
	return v, typeError(err)
}

// Func returns the prototype of a kernel function. The error wraps ErrNoType.
func (t *Types) Func(name string) (*FuncProto, error) {
	if t.spec == nil {
		return nil, t.none("function " + name) // a profile has no prototypes
	}
	f, err := t.spec.Func(name)
	if err != nil {
		return nil, typeError(err)
	}
	p := &FuncProto{Name: f.Name, Return: f.Return, Variadic: f.Variadic}
	for _, q := range f.Params {
		p.Params = append(p.Params, Param(q))
	}
	return p, nil
}

func (t *Types) none(what string) error {
	return fmt.Errorf("find %s: %w: the kernel has no type information", what, ErrNoType)
}

// typeError makes err wrap ErrNoType when it says that something does not exist.
func typeError(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, btf.ErrNotFound) {
		return fmt.Errorf("find type: %w: %w", ErrNoType, err)
	}
	return fmt.Errorf("find type: %w", err)
}
