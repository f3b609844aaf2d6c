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
				}
			}
		}
		s.Enum("", "x")
		s.Symbols(func(string, uint32) {})
	})
}
