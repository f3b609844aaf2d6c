package layouts

import (
	"bytes"
	"compress/gzip"
	"io"
	"testing"
)

// Landmarks that are known from elsewhere: the facts of x86 7 SP1 as kernel
// debuggers print them, and those of the symbols of 19041.
func TestLandmarks(t *testing.T) {
	for _, tt := range []struct {
		build   int
		x64     bool
		s, m    string
		want    uint32
		wantLen int
	}{
		{7601, false, "_EPROCESS", "UniqueProcessId", 0xb4, 704},
		{7601, false, "_EPROCESS", "ActiveProcessLinks", 0xb8, 704},
		{7601, false, "_EPROCESS", "ImageFileName", 0x16c, 704},
		{7601, false, "_EPROCESS", "ThreadListHead", 0x188, 704},
		{7601, false, "_PEB", "Ldr", 0xc, 584},
		{2600, false, "_EPROCESS", "UniqueProcessId", 0x84, 608},
		{19041, true, "_EPROCESS", "UniqueProcessId", 0x440, 2624},
		{19041, true, "_EPROCESS", "ImageFileName", 0x5a8, 2624},
	} {
		l, exact := Find(tt.build, -1, tt.x64)
		s := l.Structs[tt.s]
		if !exact || s == nil || s.Members[tt.m].Offset != tt.want || int(s.Size) != tt.wantLen {
			t.Errorf("%v exact %v: %s.%s at %#x of %d bytes, want %#x of %d", l, exact, tt.s, tt.m, s.Members[tt.m].Offset, s.Size, tt.want, tt.wantLen)
		}
	}
	if n := len(All()); n != 51 {
		t.Errorf("%d layouts, want 51", n)
	}
}

func TestFind(t *testing.T) {
	for _, tt := range []struct {
		build, revision int
		x64, exact      bool
		want            string
	}{
		{19041, -1, true, true, "10.0.19041.1288-x64"},
		{19041, 600, true, true, "10.0.19041.508-x64"},
		{19041, 1, true, true, "10.0.19041.264-x64"},
		{19044, 1, true, false, "10.0.19041.1288-x64"},
		{99999, 0, true, false, "10.0.22631.2428-x64"},
		{1, 0, true, false, "5.2.3790.3959-x64"},
		{7601, 17514, false, true, "6.1.7601.17514-x86"},
		{22000, 0, false, false, "10.0.19045.2965-x86"},
	} {
		l, exact := Find(tt.build, tt.revision, tt.x64)
		if l.String() != tt.want || exact != tt.exact {
			t.Errorf("Find(%d, %d, %v) = %v, %v; want %s, %v", tt.build, tt.revision, tt.x64, l, exact, tt.want, tt.exact)
		}
	}
}

func FuzzDecode(f *testing.F) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		f.Fatal(err)
	}
	whole, err := io.ReadAll(z)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole[:4096])
	f.Add([]byte{1, 7, '1', '.', '2', '.', '3', '.', '4', 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if all, err := decode(b); (err == nil) == (all == nil) {
			t.Errorf("decode = %v, %v", all, err)
		}
	})
}
