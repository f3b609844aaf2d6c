package kdbg

import (
	"encoding/binary"
	"math/bits"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func block() []byte {
	b := make([]byte, 0x340)
	copy(b[0x10:], Tag)
	binary.LittleEndian.PutUint32(b[0x14:], 0x340)
	for at, v := range map[int]uint64{0x18: 0xfffff80012300000, 0x48: 0xfffff80012345678, 0x50: 0xfffff80012340000, 0x58: 0xfffff80012350000, 0x218: 0xfffff80012360000} {
		binary.LittleEndian.PutUint64(b[at:], v)
	}
	return b
}

func TestParse(t *testing.T) {
	want := &Block{Size: 0x340, Base: 0xfffff80012300000, PsLoadedModuleList: 0xfffff80012345678, PsActiveProcessHead: 0xfffff80012340000, PspCidTable: 0xfffff80012350000, KiProcessorBlock: 0xfffff80012360000}
	got, err := Parse(block(), true)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if got, err := Parse(block(), false); err != nil || got.Base != 0x12300000 {
		t.Errorf("32-bit: %+v, %v", got, err)
	}
	small := block()
	small[0x15] = 0
	for name, b := range map[string][]byte{"short": block()[:100], "no tag": make([]byte, 0x340), "too small": small} {
		if got, err := Parse(b, true); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// The encoding is the inverse of the decoding, written out the other way round.
func TestDecode(t *testing.T) {
	k := Key{Never: 0x8f3c_1122_3344_55a7, Always: 0x0123_4567_89ab_cdef, Address: 0xfffff800_1234_5000}
	plain := block()
	var coded []byte
	for at := 0; at < len(plain); at += 8 {
		v := bits.ReverseBytes64(binary.LittleEndian.Uint64(plain[at:]) ^ k.Always)
		v = bits.RotateLeft64(v^k.Address, -int(k.Never&0xff)) ^ k.Never
		coded = binary.LittleEndian.AppendUint64(coded, v)
	}
	if diff := cmp.Diff(plain, Decode(coded, k)); diff != "" {
		t.Error(diff)
	}
}

func TestFind(t *testing.T) {
	b := append([]byte("KDBGxx"), make([]byte, 26)...)
	b = append(b, block()...)
	b = append(b, "xKDBG"...)
	if diff := cmp.Diff([]int{32}, Find(b)); diff != "" {
		t.Error(diff)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(block(), true)
	f.Add([]byte(Tag), false)
	f.Fuzz(func(t *testing.T, b []byte, x64 bool) {
		for _, at := range Find(b) {
			got, err := Parse(b[at:], x64)
			if (got == nil) == (err == nil) {
				t.Errorf("Parse = %v, %v", got, err)
			}
		}
	})
}
