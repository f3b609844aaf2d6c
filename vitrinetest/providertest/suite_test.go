package providertest

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

func mapping(start, end arch.GVA, perms, name string) osi.Mapping {
	return osi.Mapping{Range: osi.Range{Start: start, End: end}, Perms: perms, Name: name}
}

func TestLibrariesOf(t *testing.T) {
	p := Process{Exe: "/bin/x", Mappings: []osi.Mapping{
		mapping(0x1000, 0x2000, "r-xp", "/bin/x"),
		mapping(0x3000, 0x4000, "r--p", "/usr/share/locale"), // not executable
		mapping(0x5000, 0x6000, "r--p", "/lib/a.so"),
		mapping(0x6000, 0x7000, "r-xp", "/lib/a.so"),
		mapping(0x7000, 0x8000, "rwxp", ""),
		mapping(0x8000, 0x9000, "rw-p", "/lib/a.so"),
		mapping(0xa000, 0xb000, "r-xp", "/tmp/gone.so (deleted)"),
		mapping(0xc000, 0xd000, "r-xp", "[vdso]"),
	}}
	want := []osi.Library{
		{Name: "a.so", Path: "/lib/a.so", Base: 0x5000, Size: 0x4000},
		{Name: "gone.so", Path: "/tmp/gone.so (deleted)", Base: 0xa000, Size: 0x1000},
	}
	if diff := cmp.Diff(want, LibrariesOf(p)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestKindOf(t *testing.T) {
	for name, want := range map[string]osi.MappingKind{
		"": osi.MappingUnknown, "[heap]": osi.MappingHeap, "[stack]": osi.MappingStack, "[vdso]": osi.MappingUnknown,
		"/bin/x": osi.MappingFile, "anon_inode:[perf_event]": osi.MappingFile, "[anon:x]": osi.MappingUnknown, "[anon_shmem:x]": osi.MappingFile,
	} {
		if got := kindOf(osi.Mapping{Name: name}); got != want {
			t.Errorf("kindOf(%q) = %v, want %v", name, got, want)
		}
	}
}
