package pdb

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The writer below follows LLVM's description of the format, not the reader.

func u16(v ...uint16) (b []byte) {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint16(b, x)
	}
	return b
}

func u32(v ...uint32) (b []byte) {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, x)
	}
	return b
}

func cat(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func str(s string) []byte { return append([]byte(s), 0) }

// record makes a type or symbol record, padded to four bytes.
func record(p []byte) []byte {
	for len(p)%4 != 2 {
		p = append(p, 0xf1)
	}
	return cat(u16(uint16(len(p))), p)
}

const blockSize = 512

// writeMSF puts streams into a file, the blocks of each in descending order.
func writeMSF(streams ...[]byte) []byte {
	file := make([]byte, 3*blockSize)
	add := func(p []byte) (blocks []byte) {
		n := (len(p) + blockSize - 1) / blockSize
		first := len(file) / blockSize
		file = append(file, make([]byte, n*blockSize)...)
		for i := range n {
			at := first + n - 1 - i
			copy(file[at*blockSize:(at+1)*blockSize], p[i*blockSize:])
			blocks = append(blocks, u32(uint32(at))...)
		}
		return blocks
	}
	dir := u32(uint32(len(streams)))
	var lists []byte
	for _, s := range streams {
		dir = append(dir, u32(uint32(len(s)))...)
		lists = append(lists, add(s)...)
	}
	dir = append(dir, lists...)
	dirBlocks := add(dir)
	at := len(file) / blockSize
	file = append(file, make([]byte, blockSize)...)
	copy(file[at*blockSize:], dirBlocks)
	copy(file, Magic)
	copy(file[32:], u32(blockSize, 1, uint32(len(file)/blockSize), uint32(len(dir)), 0, uint32(at)))
	return file
}

var guid = []byte{0xf8, 0xaf, 0x78, 0x52, 0x34, 0x6c, 0x77, 0x16, 0xd7, 0xd7, 0x83, 0x5c, 0x85, 0xb7, 0xb8, 0x44}

// typeStream describes struct _EPROCESS { _KPROCESS Pcb; ULONG Flag : 2 at bit
// 13; PVOID Peb; UCHAR ImageFileName[15]; }, union and enum besides.
func typeStream() []byte {
	structure := func(leaf uint16, properties uint16, fields uint32, size uint16, name string) []byte {
		return record(cat(u16(leaf, 4, properties), u32(fields, 0, 0), u16(size), str(name)))
	}
	m := func(typ uint32, offset []byte, name string) []byte {
		p := cat(u16(leafMember, 3), u32(typ), offset, str(name))
		for n := (4 - (len(p)+2)%4) % 4; n > 0; n-- {
			p = append(p, 0xf0+byte(n))
		}
		return p
	}
	more := record(cat(u16(leafFieldList), m(0x1004, u16(0x8002, 0x9000), "ImageFileName"))) // 0x1006: an offset that needs its size
	records := cat(
		structure(leafStructure, forward, 0, 0, "_KPROCESS"),           // 0x1000
		record(cat(u16(leafFieldList), m(0x22, u16(8), "Header"))),     // 0x1001
		structure(leafStructure, 0, 0x1001, 1080, "_KPROCESS"),         // 0x1002
		record(cat(u16(leafBitfield), u32(0x22), []byte{2, 13})),       // 0x1003
		record(cat(u16(leafArray), u32(0x20, 0x22), u16(15), str(""))), // 0x1004
		record(cat(u16(leafPointer), u32(0x1002, 0x1000c))),            // 0x1005: 8 bytes
		more, // 0x1006
		record(cat(u16(leafFieldList), m(0x1000, u16(0), "Pcb"), m(0x1003, u16(1120), "Flag"), m(0x1005, u16(1360), "Peb"), m(0x603, u16(1368), "Void"), u16(leafIndex, 0), u32(0x1006))), // 0x1007
		structure(leafStructure, 0, 0x1007, 2624, "_EPROCESS"),                          // 0x1008
		record(cat(u16(leafFieldList), u16(leafEnumerate, 3), u16(1), str("UserMode"))), // 0x1009
		record(cat(u16(leafEnum, 1, 0), u32(0x74, 0x1009), str("_MODE"))),               // 0x100a
		record(cat(u16(leafUnion, 1, 0), u32(0x1001), u16(8), str("_U"))),               // 0x100b
	)
	return cat(u32(20040203, 56, 0x1000, 0x100c, uint32(len(records))), make([]byte, 36), records)
}

// file makes a PDB; with omap, of an image whose code was moved after linking.
func file(omap bool) []byte {
	section := func(rva uint32) []byte {
		b := make([]byte, 40)
		copy(b[12:], u32(rva))
		return b
	}
	pub := func(section uint16, offset uint32, name string) []byte {
		return record(cat(u16(recordPublic), u32(2, offset), u16(section), str(name)))
	}
	symbols := cat(pub(2, 0x10, "PsActiveProcessHead"), record(cat(u16(0x1108), u32(1, 2), str("other"))), pub(1, 0x20, "_NtClose@4"), pub(9, 0, "Nowhere"))
	streams := []uint16{noStream, noStream, noStream, noStream, noStream, 5, noStream, noStream, noStream, noStream, noStream}
	if omap {
		streams[debugOmapFrom], streams[debugSectionsOrig] = 6, 7
	}
	optional := u16(streams...)
	debug := cat(u32(1<<32-1, 19990903, 3), u16(noStream, 0, noStream, 0, 4, 0), u32(4, 0, 0, 0, 0, 0, uint32(len(optional)), 8), u16(0, 0x8664), u32(0), make([]byte, 4+8), optional)
	return writeMSF(nil, cat(u32(20000404, 1, 1), guid), typeStream(), debug, symbols,
		cat(section(0x1000), section(0x5000)), u32(0, 0, 0x2000, 0x8000, 0x3000, 0), cat(section(0x2000), section(0x2800)))
}

func TestFile(t *testing.T) {
	f, err := Parse(file(false))
	if err != nil {
		t.Fatal(err)
	}
	if f.GUID != "5278AFF86C341677D7D7835C85B7B844" || f.Age != 3 {
		t.Errorf("%s age %d", f.GUID, f.Age)
	}
	type at struct {
		Offset, Size uint64
		Bit, Bits    uint32
		TypeName     string
	}
	for name, want := range map[string]at{
		"Pcb": {0, 1080, 0, 0, "_KPROCESS"}, "Flag": {1121, 4, 5, 2, ""}, "Peb": {1360, 8, 0, 0, ""}, "Void": {1368, 8, 0, 0, ""}, "ImageFileName": {0x9000, 15, 0, 0, ""},
	} {
		var got at
		var ok bool
		got.Offset, got.Size, got.Bit, got.Bits, got.TypeName, ok = f.Member("_EPROCESS", name)
		if diff := cmp.Diff(want, got); !ok || diff != "" {
			t.Errorf("%s: %v\n%s", name, ok, diff)
		}
	}
	for name, want := range map[string]uint64{"_EPROCESS": 2624, "_KPROCESS": 1080, "_U": 8} {
		if n, ok := f.Size(name); !ok || n != want {
			t.Errorf("Size(%s) = %d, %v", name, n, ok)
		}
	}
	if v, ok := f.Enum("_MODE", "UserMode"); !ok || v != 1 {
		t.Errorf("Enum = %d, %v", v, ok)
	}
	if _, ok := f.Enum("", "Nothing"); ok {
		t.Error("an enumerator that does not exist is found")
	}
}

func TestSymbols(t *testing.T) {
	for omap, want := range map[bool]map[string]uint32{
		false: {"PsActiveProcessHead": 0x5010, "NtClose": 0x1020},
		true:  {"PsActiveProcessHead": 0x8810, "NtClose": 0x8020},
	} {
		f, err := Parse(file(omap))
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]uint32{}
		f.Symbols(func(name string, rva uint32) { got[name] = rva })
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("moved %v:\n%s", omap, diff)
		}
	}
}

func TestUndecorate(t *testing.T) {
	for s, want := range map[string]string{"_NtClose@4": "NtClose", "@ObfDereferenceObject@4": "ObfDereferenceObject", "_KiServiceTable": "KiServiceTable", "NtClose": "NtClose",
		"?f@@YAXXZ": "?f@@YAXXZ", "": "", "_": "_", "a@": "a@"} {
		if got := undecorate(s); got != want {
			t.Errorf("undecorate(%q) = %q, want %q", s, got, want)
		}
	}
}

// Against a PDB that another program wrote.
func TestLLVM(t *testing.T) {
	tool, err := exec.LookPath("llvm-pdbutil")
	if err != nil {
		t.Skip("skipped: no llvm-pdbutil on this machine")
	}
	dir := t.TempDir()
	yaml, out := filepath.Join(dir, "x.yaml"), filepath.Join(dir, "x.pdb")
	if err := os.WriteFile(yaml, []byte(`---
PdbStream:
  Age: 2
  Guid: '{5278AFF8-6C34-1677-D7D7-835C85B7B844}'
  Signature: 1
  Version: VC70
DbiStream:
  VerHeader: V70
  Age: 2
  MachineType: x86
TpiStream:
  Version: VC80
  Records:
    - Kind: LF_FIELDLIST
      FieldList:
        - Kind: LF_MEMBER
          DataMember: { Attrs: 3, Type: 34, FieldOffset: 4, Name: UniqueProcess }
        - Kind: LF_MEMBER
          DataMember: { Attrs: 3, Type: 1027, FieldOffset: 8, Name: UniqueThread }
    - Kind: LF_STRUCTURE
      Class: { MemberCount: 2, Options: [ None ], FieldList: 4096, Name: _CLIENT_ID, UniqueName: '', DerivationList: 0, VTableShape: 0, Size: 12 }
...
`), 0o600); err != nil {
		t.Fatal(err)
	}
	if msg, err := exec.Command(tool, "yaml2pdb", "-pdb="+out, yaml).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	size, _ := f.Size("_CLIENT_ID")
	off, n, _, _, _, ok := f.Member("_CLIENT_ID", "UniqueThread")
	if f.GUID != "5278AFF86C341677D7D7835C85B7B844" || f.Age != 2 || size != 12 || !ok || off != 8 || n != 4 {
		t.Errorf("%s age %d: size %d, UniqueThread at %d of %d bytes, %v", f.GUID, f.Age, size, off, n, ok)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(file(false))
	f.Add(file(true))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if (p == nil) == (err == nil) {
			t.Fatalf("Parse = %v, %v", p, err)
		}
		if err != nil {
			return
		}
		for name := range p.tpi.structs {
			p.Size(name)
			p.Member(name, "Pcb")
		}
		p.Enum("", "x")
		p.Symbols(func(string, uint32) {})
	})
}

// Cut off anywhere and with any byte changed, Parse ends with a file or an error.
func TestDamage(t *testing.T) {
	whole := file(true)
	for i := 0; i < len(whole); i += 7 {
		b := append([]byte(nil), whole...)
		b[i] ^= 0xff
		for _, p := range [][]byte{b, whole[:i]} {
			if f, err := Parse(p); (f == nil) == (err == nil) {
				t.Fatalf("byte %d: %v, %v", i, f, err)
			}
		}
	}
}
