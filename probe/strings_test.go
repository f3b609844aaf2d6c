package probe

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSplitStrings(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want []string
		end  StringsEnd
	}{
		{"", nil, StringsEnd{Fault: true}},
		{"\x00", nil, StringsEnd{Fault: true}},
		{"\x00\x00", nil, StringsEnd{}},
		{"\x00\x00ls\x00\x00-l\x00", []string{"ls", "", "-l"}, StringsEnd{}},
		{"\x01\x00ls\x00", []string{"ls"}, StringsEnd{More: true}},
		{"\x02\x00ls\x00", []string{"ls"}, StringsEnd{Fault: true}},
		{"\x04\x00ls\x00", []string{"ls"}, StringsEnd{Cut: true}},
		{"\x00\x00ls", []string{"ls"}, StringsEnd{Fault: true}},
	} {
		got, end := SplitStrings(nil, []byte(tt.in))
		var s []string
		for _, b := range got {
			s = append(s, string(b))
		}
		if diff := cmp.Diff(tt.want, s); diff != "" || end != tt.end {
			t.Errorf("SplitStrings(%q) = %q, %+v; want %+v", tt.in, s, end, tt.end)
		}
	}
}

func FuzzSplitStrings(f *testing.F) {
	f.Add([]byte("\x01\x00ls\x00-l\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, end := SplitStrings(nil, in)
		n := 2
		for _, s := range got {
			if bytes.IndexByte(s, 0) >= 0 {
				t.Errorf("string %q has a NUL", s)
			}
			n += len(s) + 1
		}
		if !end.Fault && n != len(in) {
			t.Errorf("%d of %d bytes, without a fault", n, len(in))
		}
	})
}
