package isf

import (
	"errors"
	"testing"
)

const text = `{"metadata": {"format": "6.1.0", "windows": {"pdb": {"GUID": "5278aff86c341677d7d7835c85b7b844", "age": 1, "database": "ntkrnlmp.pdb"}}},
"base_types": {"pointer": {"size": 8}, "unsigned long": {"size": 4}, "unsigned char": {"size": 1}},
"enums": {"_MODE": {"size": 4, "constants": {"KernelMode": 0, "UserMode": 1}}},
"symbols": {"PsActiveProcessHead": {"address": 12705280}, "Far": {"address": 99999999999}},
"user_types": {
 "_EPROCESS": {"size": 2624, "fields": {
  "Pcb": {"offset": 0, "type": {"kind": "struct", "name": "_KPROCESS"}},
  "Peb": {"offset": 1360, "type": {"kind": "pointer", "subtype": {"kind": "base", "name": "void"}}},
  "ImageFileName": {"offset": 1448, "type": {"kind": "array", "count": 15, "subtype": {"kind": "base", "name": "unsigned char"}}},
  "Mode": {"offset": 8, "type": {"kind": "enum", "name": "_MODE"}},
  "Flag": {"offset": 1120, "type": {"kind": "bitfield", "bit_position": 13, "bit_length": 2, "type": {"kind": "base", "name": "unsigned long"}}}}},
 "_KPROCESS": {"size": 1080, "fields": {}}}}`

func TestFile(t *testing.T) {
	f, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if f.GUID != "5278AFF86C341677D7D7835C85B7B844" || f.Age != 1 || f.PDB != "ntkrnlmp.pdb" {
		t.Errorf("%s %d %s", f.GUID, f.Age, f.PDB)
	}
	for _, tt := range []struct {
		member       string
		offset, size uint64
		bit, bits    uint32
		typeName     string
	}{
		{"Pcb", 0, 1080, 0, 0, "_KPROCESS"}, {"Peb", 1360, 8, 0, 0, ""}, {"ImageFileName", 1448, 15, 0, 0, ""}, {"Mode", 8, 4, 0, 0, ""}, {"Flag", 1121, 4, 5, 2, ""},
	} {
		offset, size, bit, bits, name, ok := f.Member("_EPROCESS", tt.member)
		if !ok || offset != tt.offset || size != tt.size || bit != tt.bit || bits != tt.bits || name != tt.typeName {
			t.Errorf("%s: %d %d %d %d %q %v", tt.member, offset, size, bit, bits, name, ok)
		}
	}
	if n, ok := f.Size("_EPROCESS"); !ok || n != 2624 {
		t.Errorf("Size = %d, %v", n, ok)
	}
	if _, _, _, _, _, ok := f.Member("_EPROCESS", "Nothing"); ok {
		t.Error("a member that does not exist is found")
	}
	for _, enum := range []string{"_MODE", ""} {
		if v, ok := f.Enum(enum, "UserMode"); !ok || v != 1 {
			t.Errorf("Enum(%q) = %d, %v", enum, v, ok)
		}
	}
	n := 0
	f.Symbols(func(name string, rva uint32) {
		if n++; name != "PsActiveProcessHead" || rva != 12705280 {
			t.Errorf("symbol %s at %#x", name, rva)
		}
	})
	if n != 1 {
		t.Errorf("%d symbols, want 1", n)
	}
}

func TestRefused(t *testing.T) {
	for name, b := range map[string]string{"empty": "", "not JSON": "MZ", "other JSON": `{"a": 1}`, "format": `{"metadata": {"format": "2.0"}}`, "not xz": "\xfd7zXZ\x00junk"} {
		if f, err := Parse([]byte(b)); err == nil || f != nil {
			t.Errorf("%s: %+v, %v", name, f, err)
		} else if name != "not xz" && !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, want ErrFormat", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(text))
	f.Add([]byte(linuxText))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse(b)
		if (s == nil) == (err == nil) {
			t.Errorf("Parse = %v, %v", s, err)
		}
		if err != nil {
			return
		}
		for name, u := range s.doc.UserTypes {
			s.Size(name)
			if u != nil {
				for m := range u.Fields {
					s.Member(name, m)
					s.Field(name, m+"[1].next")
				}
			}
		}
		s.Enum("", "x")
		s.Banner()
		s.Symbols(func(string, uint32) {})
	})
}

// A Linux kernel's, as dwarf2json writes it.
const linuxText = `{"metadata": {"format": "6.2.0"}, "base_types": {"pointer": {"size": 8}, "int": {"size": 4}, "char": {"size": 1}},
"enums": {}, "symbols": {"linux_banner": {"address": 1, "constant_data": "TGludXggdmVyc2lvbiA2LjEKAA=="}},
"user_types": {
 "list_head": {"size": 16, "fields": {"next": {"offset": 0, "type": {"kind": "pointer", "subtype": {"kind": "struct", "name": "list_head"}}}, "prev": {"offset": 8, "type": {"kind": "pointer"}}}},
 "inner": {"size": 8, "fields": {"deep": {"offset": 4, "type": {"kind": "base", "name": "int"}}, "loop": {"anonymous": true, "offset": 0, "type": {"kind": "union", "name": "inner"}}}},
 "task": {"size": 96, "fields": {
  "unnamed_1": {"anonymous": true, "offset": 16, "type": {"kind": "union", "name": "inner"}},
  "gone": {"offset": 16, "anonymous": true, "type": null},
  "tasks": {"offset": 32, "type": {"kind": "array", "count": 2, "subtype": {"kind": "struct", "name": "list_head"}}},
  "comm": {"offset": 64, "type": {"kind": "array", "count": 16, "subtype": {"kind": "base", "name": "char"}}},
  "tail": {"offset": 96, "type": {"kind": "array", "count": 0, "subtype": {"kind": "base", "name": "int"}}},
  "far": {"offset": 18446744073709551615, "type": {"kind": "base", "name": "int"}},
  "bits": {"offset": 80, "type": {"kind": "bitfield", "bit_position": 11, "bit_length": 3, "type": {"kind": "base", "name": "int"}}}}}}}`

func TestPaths(t *testing.T) {
	f, err := Parse([]byte(linuxText))
	if err != nil {
		t.Fatal(err)
	}
	if f.Banner() != "Linux version 6.1" {
		t.Errorf("banner %q", f.Banner())
	}
	for path, want := range map[string]Place{
		"deep":          {Offset: 20, Size: 4, Type: "int"},
		"tasks[1].prev": {Offset: 56, Size: 8, Type: "... *"},
		"tasks[0].next": {Offset: 32, Size: 8, Type: "struct list_head *"},
		"tasks":         {Offset: 32, Size: 32, Type: "struct list_head[2]"},
		"comm[15]":      {Offset: 79, Size: 1, Type: "char"},
		"tail[3]":       {Offset: 108, Size: 4, Type: "int"},
		"bits":          {Offset: 81, Size: 4, BitOffset: 3, BitSize: 3, Type: "int"},
	} {
		if got, ok := f.Field("task", path); !ok || got != want {
			t.Errorf("%s: %+v, %v; want %+v", path, got, ok, want)
		}
	}
	for _, path := range []string{"", ".", "absent", "comm[16]", "comm.x", "tasks.next", "gone", "far", "bits.x", "1", "deep[0]"} {
		if got, ok := f.Field("task", path); ok {
			t.Errorf("%q: %+v, want none", path, got)
		}
	}
	if _, ok := f.Field("absent", "x"); ok {
		t.Error("a member of a structure that does not exist")
	}
}
