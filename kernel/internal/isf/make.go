package isf

import (
	"encoding/json"
	"io"
	"maps"
)

// New returns an empty file whose types come from more: it is called, one call at
// a time, with the name of a type that the file lacks, and adds it and what it is
// made of, if there is such a type.
func New(more func(a *Adder, name string)) *File {
	f := &File{}
	f.doc.Metadata.Format = "6.2.0"
	f.doc.BaseTypes, f.doc.UserTypes = map[string]BaseType{}, map[string]*UserType{}
	f.doc.Enums, f.doc.Symbols = map[string]*Enum{}, map[string]Symbol{}
	f.more = func(name string) { more(&Adder{f}, name) }
	return f
}

// Adder adds to a file. What was there before under a name stays.
type Adder struct{ f *File }

// Base adds a type of the language.
func (a *Adder) Base(name string, t BaseType) { add(a.f.doc.BaseTypes, name, t) }

// User adds a structure or union.
func (a *Adder) User(name string, t *UserType) { add(a.f.doc.UserTypes, name, t) }

// Enum adds an enumeration.
func (a *Adder) Enum(name string, e *Enum) { add(a.f.doc.Enums, name, e) }

// Symbol adds a symbol.
func (a *Adder) Symbol(name string, s Symbol) { add(a.f.doc.Symbols, name, s) }

// Has returns the structure or union of that name, nil if there is none yet.
func (a *Adder) Has(name string) *UserType { return a.f.doc.UserTypes[name] }

func add[T any](m map[string]T, name string, v T) {
	if _, there := m[name]; !there {
		m[name] = v
	}
}

// Add adds what is there from the beginning.
func (f *File) Add(add func(a *Adder)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	add(&Adder{f})
}

// Encode writes the file; of one that New made, with the types that were asked for.
func (f *File) Encode(w io.Writer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	return e.Encode(&f.doc)
}

// user returns a structure or union, nil if there is none.
func (f *File) user(name string) *UserType {
	if f.more == nil {
		return f.doc.UserTypes[name]
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.doc.UserTypes[name] == nil {
		f.more(name)
	}
	return f.doc.UserTypes[name]
}

// enum returns an enumeration, nil if there is none.
func (f *File) enum(name string) *Enum {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.doc.Enums[name] == nil && f.more != nil {
		f.more(name)
	}
	return f.doc.Enums[name]
}

func (f *File) base(name string) BaseType {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.doc.BaseTypes[name]
}

func (f *File) symbol(name string) Symbol {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.doc.Symbols[name]
}

// Address returns where a symbol was linked to lie.
func (f *File) Address(name string) (uint64, bool) {
	s := f.symbol(name)
	return s.Address, s.Address != 0
}

// Addresses calls yield with every symbol that has an address.
func (f *File) Addresses(yield func(name string, addr uint64)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, s := range f.doc.Symbols {
		if s.Address != 0 {
			yield(name, s.Address)
		}
	}
}

// Keep drops the symbols that keep does not want.
func (f *File) Keep(keep func(name string) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.doc.Symbols, func(name string, _ Symbol) bool { return !keep(name) })
}
