package syscalls

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vitrine-vmi/vitrine/arch"
)

func TestPointed(t *testing.T) {
	table := Fallback(arch.AMD64)
	for name, want := range map[string][]Pointed{
		"openat":  {{Arg: 1, String: true, Size: pointedPath}},
		"rename":  {{Arg: 0, String: true, Size: pointedPath}, {Arg: 1, String: true, Size: pointedPath}},
		"write":   {{Arg: 1, Size: pointedString, Length: 3}},
		"read":    {{Arg: 1, Size: pointedString, Length: LengthResult, Out: true}},
		"getppid": nil,
		"no_such": nil,
		"execve":  {{Arg: 2, Pointers: true, Size: 4}, {Arg: 0, String: true, Size: pointedPath}, {Arg: 1, Strings: true, Size: pointedVector}},
		"poll":    {{Arg: 0, Size: pointedArray, Length: 2, Unit: 8}},
		"writev": {
			{Arg: 1, Size: pointedArray, Length: 3, Unit: 16},
			{Via: 1, Length: LengthNext, Size: pointedString},
			{Via: 1, Offset: 16, Length: LengthNext, Size: pointedString},
			{Via: 1, Offset: 32, Length: LengthNext, Size: pointedString},
		},
		"recvmsg": {
			{Arg: 1, Size: 56, Out: true},
			{Via: 1, Length: LengthNext, Size: pointedName, Out: true},
			{Via: 1, Offset: 16, Length: LengthNext, Unit: 16, Size: 32, Out: true},
			{Via: 3, Length: LengthNextResult, Size: pointedString, Out: true},
		},
		"newfstatat": {{Arg: 1, String: true, Size: pointedPath}, {Arg: 2, Size: 144, Out: true}},
	} {
		if diff := cmp.Diff(want, table.Pointed(name)); diff != "" {
			t.Errorf("Pointed(%s) (-want +got):\n%s", name, diff)
		}
	}
}
