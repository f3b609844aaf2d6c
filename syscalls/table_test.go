package syscalls

import (
	"strings"
	"testing"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Every word of the specifications is known, belongs to an argument, and
// refers to one.
func TestSpecs(t *testing.T) {
	for _, list := range []struct {
		specs  map[string]string
		arches []arch.Arch
	}{
		{specs, []arch.Arch{arch.AMD64, arch.ARM64}}, {specsI386, []arch.Arch{arch.I386}},
	} {
		for name, s := range list.specs {
			words, found := strings.Fields(s), false
			for _, a := range list.arches {
				sig, ok := Fallback(a).Signature(name)
				if !ok {
					continue
				}
				found = true
				if len(words) > len(sig.Params) {
					t.Errorf("%v %s: %d words for %d arguments", a, name, len(words), len(sig.Params))
				}
			}
			if _, i386 := Number(arch.I386, name); !found && !i386 {
				t.Errorf("%s: no such call", name)
			}
			for _, w := range words {
				if k, ok := parseKind(w); w != "-" && (!ok || int(k.ref) >= len(words)) {
					t.Errorf("%s: bad word %q", name, w)
				}
			}
		}
	}
}

// Pointers are followed only where the C type is a pointer: a number shown as
// a string would read memory for nothing.
func TestSpecsMatchTypes(t *testing.T) {
	for _, a := range allArches {
		for name, e := range Fallback(a).byName {
			for i, k := range e.kinds {
				if p := e.params[i]; k.id >= kindPath && !strings.Contains(p.Type, "*") {
					t.Errorf("%v %s: argument %d is followed as kind %d and is %q", a, name, i, k.id, p.Type)
				}
			}
		}
	}
}

func TestGuestDefinitionsWin(t *testing.T) {
	def := func(nr int, name string, params ...Param) Definition { return Definition{nr, Signature{name, params}} }
	table := NewTable(arch.AMD64, []Definition{
		def(257, "sys_openat", Param{"renamed", "int"}, Param{"filename", "const char *"}),
		def(5, "sys_newfstat", Param{"fd", "unsigned int"}, Param{"statbuf", "struct stat *"}),
		def(900, "sys_brandnew", Param{"newfd", "int"}, Param{"path", "const char *"}, Param{"len", "size_t"}, Param{"u", "struct new *"}),
		def(-1, "do_unlinkat", Param{"dfd", "int"}, Param{"name", "struct filename *"}),
		def(1, "sys_evil\x1b[2J"),
		def(2, "open", Param{"a", "int"}, Param{"b", "int"}, Param{"c", "int"}, Param{"d", "int"}, Param{"e", "int"}, Param{"f", "int"}, Param{"g", "int"}),
		def(3, "close", Param{"fd", "in\nt"}),
		def(4, "stat", Param{strings.Repeat("x", 65), "int"}),
		def(1<<30, "toolarge"),
		def(-7, "toosmall"),
		def(45, "sys_recvfrom", Param{"fd", "int"}, Param{"ubuf", "void *"}), // fewer than its buffer's length refers to
	})
	for name, want := range map[string]string{
		"openat": "renamed int, filename const char *", "fstat": "fd unsigned int, statbuf struct stat *",
		"brandnew": "newfd int, path const char *, len size_t, u struct new *", "do_unlinkat": "dfd int, name struct filename *",
		"write": "fd unsigned int, buf const char *, count size_t", "open": "filename const char *, flags int, mode umode_t",
		"close": "fd unsigned int", "toolarge": "", "toosmall": "", "newfstat": "",
	} {
		sig, _ := table.Signature(name)
		var got []string
		for _, p := range sig.Params {
			got = append(got, p.Name+" "+p.Type)
		}
		if s := strings.Join(got, ", "); s != want {
			t.Errorf("%s(%s), want (%s)", name, s, want)
		}
	}
	m := fakeMemory{}
	m.str(at, "/x")
	d := NewDecoder(table, nil)
	for _, tc := range []struct {
		c    Call
		want string
	}{
		{Call{NR: 900, Args: [6]uint64{0xffffffff, at, 9, 0}}, `brandnew(-1, "/x", 9, NULL) = ?`},
		{Call{NR: 5, Args: [6]uint64{1, at}}, `fstat(1, 0x7ffc0000) = ?`},
		{Call{Name: "do_unlinkat", Args: [6]uint64{minus100, at}}, `do_unlinkat(AT_FDCWD, 0x7ffc0000) = ?`},
		{Call{Name: "recvfrom", Args: [6]uint64{3, at}, Ret: 2, Returned: true}, `recvfrom(3, "/x") = 2`},
	} {
		if got := line(d, &tc.c, m, nil); got != tc.want {
			t.Errorf("got %s, want %s", got, tc.want)
		}
	}
	if names := table.Names(); len(names) != len(Names(arch.AMD64))+1 {
		t.Errorf("%d names", len(names))
	}
}

func TestFallbackSharesNothing(t *testing.T) {
	before, _ := Fallback(arch.AMD64).Signature("openat")
	NewTable(arch.AMD64, []Definition{{257, Signature{"openat", []Param{{"x", "int"}}}}})
	after, _ := Fallback(arch.AMD64).Signature("openat")
	if len(before.Params) != 4 || len(after.Params) != 4 {
		t.Errorf("openat had %d arguments and has %d", len(before.Params), len(after.Params))
	}
}

func FuzzTable(f *testing.F) {
	f.Add(257, "sys_openat", "dfd", "int", uint8(4))
	f.Add(-1, "x", "fd", "const char *", uint8(1))
	f.Fuzz(func(t *testing.T, nr int, name, param, typ string, n uint8) {
		s := Signature{Name: name}
		for range n {
			s.Params = append(s.Params, Param{param, typ})
		}
		table := NewTable(arch.AMD64, []Definition{{nr, s}})
		d := NewDecoder(table, nil)
		args := d.Enter(nil, &Call{NR: nr, Args: [6]uint64{1, 2, 3, 4, 5, 6}}, nil, nil)
		for _, a := range args {
			if strings.ContainsFunc(a.Name+a.Type, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("argument %q %q", a.Name, a.Type)
			}
		}
	})
}
