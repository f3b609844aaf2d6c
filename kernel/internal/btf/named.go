package btf

import "fmt"

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

// maxParams bounds the parameters of a function: a kernel's have a dozen at most.
const maxParams = 255

// Func returns the prototype of a kernel function.
func (s *Spec) Func(name string) (*Func, error) {
	for _, i := range s.find(s.functions(), name) {
		if proto := s.at(s.at(i).to()); proto.kind == kindFuncProto && proto.n <= maxParams {
			return s.prototype(name, proto), nil
		}
	}
	return nil, fmt.Errorf("function %q: %w", name, ErrNotFound)
}

func (s *Spec) prototype(name string, proto typ) *Func {
	f := &Func{Name: name, Return: s.typeName(proto.to())}
	for i := range proto.n {
		p, t := string(s.text(proto.word(2*i))), id(proto.word(2*i+1))
		if t == 0 && p == "" && i == proto.n-1 {
			f.Variadic = true
			break
		}
		size, _ := s.sizeof(t)
		f.Params = append(f.Params, Param{Name: p, Type: s.typeName(t), Size: size, Aggregate: s.at(s.underlying(t)).composite()})
	}
	return f
}

// Enum returns the value of an enumerator. With an empty enum name all enums
// are searched, the anonymous ones included, which takes a millisecond; of
// several that have it the last one counts.
func (s *Spec) Enum(enum, name string) (int64, error) {
	if enum == "" {
		return s.constant(name)
	}
	ts, err := s.named(enum)
	if err != nil {
		return 0, err
	}
	for _, i := range ts {
		if v, ok := s.enumerator(s.at(s.underlying(i)), name); ok {
			return v, nil
		}
	}
	return 0, fmt.Errorf("enum %q, value %q: %w", enum, name, ErrNotFound)
}

func (s *Spec) constant(name string) (int64, error) {
	for i := len(s.starts) - 1; i > 0; i-- {
		if v, ok := s.enumerator(s.at(id(i)), name); ok {
			return v, nil
		}
	}
	return 0, fmt.Errorf("enumerator %q: %w", name, ErrNotFound)
}

// enumerator returns the value of that name in t.
func (s *Spec) enumerator(t typ, name string) (int64, bool) {
	for n := range t.values() {
		if off, v := t.value(n); s.is(off, name) {
			return v, true
		}
	}
	return 0, false
}

// values is the number of enumerators of t.
func (t typ) values() int {
	if t.kind == kindEnum || t.kind == kindEnum64 {
		return t.n
	}
	return 0
}

// value returns where the name of the n-th enumerator is, and its value. Of
// unsigned ones those of 32 bits are not sign-extended.
func (t typ) value(n int) (name uint32, v int64) {
	if t.kind == kindEnum64 {
		return t.word(3 * n), int64(uint64(t.word(3*n+2))<<32 | uint64(t.word(3*n+1)))
	}
	v = int64(t.word(2*n + 1))
	if t.flag {
		v = int64(int32(v))
	}
	return t.word(2 * n), v
}
