package osi

import (
	"context"
	"errors"
	"iter"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
)

// fakeSystem has one process. Methods that the tests do not need are those of
// the nil System: calling one fails the test.
type fakeSystem struct {
	System
	maps []Mapping
	libs []Library
	bad  error // comes first in every list
	read int   // entries handed out
}

func seq[T any](s *fakeSystem, all []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		if s.bad != nil && !yield(zero, s.bad) {
			return
		}
		for _, v := range all {
			s.read++
			if !yield(v, nil) {
				return
			}
		}
	}
}

func (s *fakeSystem) Mappings(context.Context, Handle) iter.Seq2[Mapping, error] {
	return seq(s, s.maps)
}

func (s *fakeSystem) Libraries(context.Context, Handle) iter.Seq2[Library, error] {
	return seq(s, s.libs)
}

func (s *fakeSystem) MappingAt(_ context.Context, _ Handle, a arch.GVA) (Mapping, error) {
	for _, m := range s.maps {
		if m.Contains(a) {
			return m, nil
		}
	}
	return Mapping{}, ErrNoMapping
}

func (s *fakeSystem) Process(context.Context, Handle) (Process, error) {
	return Process{Exe: "/bin/cat"}, nil
}

func newFake() *fakeSystem {
	m := func(start, end arch.GVA, name string, k MappingKind) Mapping {
		return Mapping{Range: Range{start, end}, Name: name, Kind: k}
	}
	return &fakeSystem{
		maps: []Mapping{
			m(0x1000, 0x3000, "/bin/cat", MappingFile),
			m(0x3000, 0x4000, "", MappingUnknown),
			m(0x10000, 0x20000, "/lib/libc.so.6", MappingFile),
			m(0x20000, 0x21000, "/lib/libc.so.6", MappingFile),
			m(0x30000, 0x31000, "[stack]", MappingStack),
		},
		libs: []Library{{Name: "libc.so.6", Path: "/lib/libc.so.6", Base: 0x10000, Size: 0x11000}, {Name: "ld.so", Path: "/lib/ld.so"}},
	}
}

func TestLibraryByNameStopsEarly(t *testing.T) {
	for _, name := range []string{"libc.so.6", "/lib/libc.so.6"} {
		s := newFake()
		l, err := LibraryByName(t.Context(), s, Handle{}, name)
		if err != nil || l.Base != 0x10000 || s.read != 1 {
			t.Errorf("LibraryByName(%q) = %+v, %v after %d entries, want base 0x10000 after 1", name, l, err, s.read)
		}
	}
}

func TestSearchErrors(t *testing.T) {
	s := newFake()
	if _, err := LibraryByName(t.Context(), s, Handle{}, "libm.so"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown library: %v, want ErrNotFound", err)
	}
	if _, err := BaseByName(t.Context(), s, Handle{}, "libm.so"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown mapping: %v, want ErrNotFound", err)
	}
	s.bad = ErrTorn
	if _, err := BaseByName(t.Context(), s, Handle{}, "libm.so"); !errors.Is(err, ErrTorn) {
		t.Errorf("unknown mapping in a torn list: %v, want ErrTorn", err)
	}
	if a, err := BaseByName(t.Context(), s, Handle{}, "cat"); err != nil || a != 0x1000 {
		t.Errorf("base of cat behind a torn entry = %v, %v", a, err)
	}
}

func TestMappingByPrefix(t *testing.T) {
	s := newFake()
	m, err := MappingByPrefix(t.Context(), s, Handle{}, "libc.")
	if err != nil || m.Start != 0x10000 || s.read != 3 {
		t.Errorf("prefix libc. = %+v, %v after %d entries", m, err, s.read)
	}
	if m, err := MappingByPrefix(t.Context(), newFake(), Handle{}, "lib/"); !errors.Is(err, ErrNotFound) {
		t.Errorf("prefix lib/ = %+v, %v, want ErrNotFound", m, err)
	}
}

func TestInSharedObject(t *testing.T) {
	for a, want := range map[arch.GVA]bool{0x1000: false, 0x3000: false, 0x10000: true, 0x20fff: true, 0x30000: false} {
		if got, err := InSharedObject(t.Context(), newFake(), Handle{}, a); err != nil || got != want {
			t.Errorf("InSharedObject(%v) = %v, %v, want %v", a, got, err, want)
		}
	}
	if _, err := InSharedObject(t.Context(), newFake(), Handle{}, 0x21000); !errors.Is(err, ErrNoMapping) {
		t.Errorf("InSharedObject(unmapped): %v, want ErrNoMapping", err)
	}
}

func TestRecordText(t *testing.T) {
	if got := State('t').String() + State(0).String(); got != "t?" {
		t.Errorf("states = %q", got)
	}
	if got := MappingHeap.String() + MappingKind(9).String(); got != "heapMappingKind(9)" {
		t.Errorf("kinds = %q", got)
	}
	r := Range{0x1000, 0x3000}
	if r.Contains(0xfff) || !r.Contains(0x1000) || r.Contains(0x3000) || r.Size() != 0x2000 {
		t.Errorf("range %+v: wrong bounds or size %#x", r, r.Size())
	}
	err := &PartialError{PID: 7, Part: "args", Err: ErrTorn}
	if !errors.Is(err, ErrTorn) || err.Error() != "read args of process 7: changed while it was read" {
		t.Errorf("PartialError = %q", err)
	}
}

func TestMakeID(t *testing.T) {
	seen := map[string]bool{}
	for _, id := range []int{1, 2, 11} {
		for _, d := range []time.Duration{0, 1, time.Second} {
			s := MakeID(id, d)
			if seen[s] {
				t.Errorf("MakeID(%d, %v) = %q a second time", id, d, s)
			}
			seen[s] = true
		}
	}
}
