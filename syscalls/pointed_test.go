package syscalls

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vitrine-vmi/vitrine/arch"
)

func TestPointed(t *testing.T) {
	table := Fallback(arch.AMD64)
	for name, want := range map[string][]Pointed{
		"openat":     {{Arg: 1, String: true, Size: pointedPath}},
		"rename":     {{Arg: 0, String: true, Size: pointedPath}, {Arg: 1, String: true, Size: pointedPath}},
		"write":      {{Arg: 1, Size: pointedString, Length: 3}},
		"read":       {{Arg: 1, Size: pointedString, Length: LengthResult, Out: true}},
		"getppid":    nil,
		"no_such":    nil,
		"newfstatat": {{Arg: 1, String: true, Size: pointedPath}, {Arg: 2, Size: 144, Out: true}},
	} {
		if diff := cmp.Diff(want, table.Pointed(name)); diff != "" {
			t.Errorf("Pointed(%s) (-want +got):\n%s", name, diff)
		}
	}
}
