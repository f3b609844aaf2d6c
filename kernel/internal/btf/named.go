package btf

import (
	"fmt"

	"github.com/cilium/ebpf/btf"
)

// Param is a parameter of a function.
type Param struct {
	Name      string
	Type      string // as C writes it
	Size      uint64 // bytes; 0 when unknown
	Aggregate bool   // a structure or union passed by value
}

// Func is a function's prototype.
type Func struct {
	Name     string
	Params   []Param // without the dots of a variadic function
	Return   string  // as C writes it
	Variadic bool
}

// Func returns the prototype of a kernel function.
func (s *Spec) Func(name string) (f *Func, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer rescue(&err)
	ts, err := s.types(name)
	if err != nil {
		return nil, err
	}
	for _, t := range ts {
		fn, ok := t.(*btf.Func)
		if !ok {
			continue
		}
		if proto, ok := fn.Type.(*btf.FuncProto); ok {
			return prototype(name, proto), nil
		}
	}
	return nil, fmt.Errorf("function %q: %w", name, ErrNotFound)
}

func prototype(name string, proto *btf.FuncProto) *Func {
	f := &Func{Name: name, Return: CName(proto.Return)}
	for i, p := range proto.Params {
		if _, void := p.Type.(*btf.Void); void && p.Name == "" && i == len(proto.Params)-1 {
			f.Variadic = true
			break
		}
		size, err := btf.Sizeof(p.Type)
		if err != nil || size < 0 {
			size = 0
		}
		agg := members(btf.UnderlyingType(p.Type)) != nil
		f.Params = append(f.Params, Param{Name: p.Name, Type: CName(p.Type), Size: uint64(size), Aggregate: agg})
	}
	return f
}

// Enum returns the value of an enumerator. With an empty enum name all enums
// are searched, the anonymous ones included, which reads every type once.
func (s *Spec) Enum(enum, name string) (v int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer rescue(&err)
	if enum == "" {
		return s.constant(name)
	}
	ts, err := s.types(enum)
	if err != nil {
		return 0, err
	}
	for _, t := range ts {
		e, ok := btf.UnderlyingType(t).(*btf.Enum)
		if !ok {
			continue
		}
		for _, ev := range e.Values {
			if ev.Name == name {
				return value(e, ev), nil
			}
		}
	}
	return 0, fmt.Errorf("enum %q, value %q: %w", enum, name, ErrNotFound)
}

// value widens an enumerator: the decoder keeps 32-bit signed ones sign-extended.
func value(e *btf.Enum, ev btf.EnumValue) int64 {
	if e.Signed && e.Size == 4 {
		return int64(int32(ev.Value))
	}
	return int64(ev.Value)
}

func (s *Spec) constant(name string) (int64, error) {
	if s.consts == nil {
		consts := map[string]int64{}
		for t, err := range s.spec.All() {
			if err != nil {
				return 0, err
			}
			if e, ok := t.(*btf.Enum); ok {
				for _, ev := range e.Values {
					consts[ev.Name] = value(e, ev)
				}
			}
		}
		s.consts = consts
	}
	if v, ok := s.consts[name]; ok {
		return v, nil
	}
	return 0, fmt.Errorf("enumerator %q: %w", name, ErrNotFound)
}
