package tests

import (
	"slices"
	"strings"
	"testing"
)

// arrow is what the package, or every package of a folder given as "folder/*", may import besides the standard library.
type arrow struct {
	pkg string
	may []string // of this module, "." being the root; "folder/*" is everything below
	ext []string // of other modules: "path" or "path/*"
}

// public is every package that others may import, but vitrinetest, which is for tests.
var public = []string{".", "arch", "event", "qemu", "dump", "kernel", "probe", "osi", "osi/linux", "osi/windows", "syscalls", "trace", "sink", "sink/*"}

// arrows is policy, as docs/architecture.md has it, in order of dependency: what is not listed is forbidden. DO NOT
// CHANGE IT TO FIX A BUILD. A package that needs what it may not import is in the wrong place, or needs an interface of
// its own.
var arrows = []arrow{
	// Leaves. One well-kept library each, where it earns its place.
	{"arch", nil, nil},
	{"event", nil, nil},
	{"internal/guestio", nil, nil},
	{"internal/nap", nil, nil},
	{"qemu/internal/*", nil, []string{"golang.org/x/sys/unix"}},

	{".", []string{"arch", "internal/guestio"}, nil},
	{"vitrinetest", []string{".", "arch"}, nil},
	{"vitrinetest/nttest", []string{".", "arch", "vitrinetest"}, nil},
	// Apart from the fake guests, which packages beneath osi use in their own tests.
	{"vitrinetest/providertest", []string{".", "arch", "osi"}, []string{"github.com/google/go-cmp/cmp", "github.com/google/go-cmp/cmp/cmpopts"}},
	{"qemu", []string{".", "arch", "qemu/internal/*"}, []string{"golang.org/x/sys/unix"}},
	{"dump", []string{".", "arch", "internal/guestio"}, []string{"github.com/klauspost/compress/*", "github.com/anchore/go-lzo", "golang.org/x/sys/unix"}},
	{"kernel/internal/*", []string{"internal/guestio"}, []string{"github.com/cilium/ebpf/btf", "golang.org/x/arch/x86/x86asm"}},
	{"kernel", []string{".", "arch", "internal/guestio", "kernel/internal/*"}, nil},
	{"probe/internal/*", []string{".", "arch", "internal/nap", "probe/internal/*"}, []string{"golang.org/x/arch/x86/x86asm"}},
	{"probe", []string{".", "arch", "kernel", "probe/internal/*"}, nil},
	{"osi", []string{".", "arch", "kernel", "probe"}, nil},
	{"osi/linux", []string{".", "arch", "kernel", "osi", "probe", "internal/guestio"}, nil},
	{"osi/windows", []string{".", "arch", "kernel", "osi", "probe", "internal/guestio"}, nil},
	{"syscalls", []string{".", "arch"}, nil},
	{"syscalls/internal/*", nil, nil},
	{"trace", []string{".", "arch", "kernel", "probe", "osi", "syscalls", "event"}, nil},
	{"sink", []string{"event"}, nil},
	{"sink/*", []string{"event", "sink"}, nil},

	// Test guests know nothing of what they test.
	{"internal/testvm/wire", nil, nil},
	{"internal/testvm/guest", []string{"internal/testvm/wire"}, []string{"golang.org/x/sys/unix"}},
	{"internal/testvm", []string{"internal/testvm/wire"}, []string{"golang.org/x/sys/unix", "github.com/u-root/u-root/pkg/cpio"}},
	{"internal/testvm/ostruth", []string{".", "arch", "osi", "vitrinetest/providertest", "internal/testvm", "internal/testvm/wire", "internal/testvm/vmtest"}, nil},
	{"internal/testvm/seen", []string{".", "kernel", "osi", "qemu", "internal/testvm"}, nil},
	{"tests/ntguest", []string{"internal/testvm", "internal/testvm/vmtest"}, nil},
	{"internal/testvm/vmtest", []string{"internal/testvm", "internal/testvm/wire"}, []string{"github.com/google/go-cmp/cmp", "github.com/google/go-cmp/cmp/cmpopts"}},

	// The composition root, alone in knowing every backend and provider, and its faces. The demonstration boots a guest.
	{"internal/app", append([]string{"internal/testvm"}, public...), []string{"golang.org/x/sys/unix"}},
	{"internal/daemon", []string{".", "osi", "trace", "event", "sink", "internal/app"}, nil},
	{"internal/cli", []string{".", "osi", "trace", "event", "sink", "internal/app", "internal/daemon"}, []string{"github.com/spf13/cobra", "github.com/spf13/cobra/doc", "github.com/spf13/pflag", "golang.org/x/term"}},
	{"cmd/vitrine", []string{"internal/cli"}, nil},
	{"docs/gen", []string{"event", "internal/cli"}, []string{"github.com/spf13/cobra", "github.com/spf13/cobra/doc", "github.com/spf13/pflag"}},
	{"docs/picture", nil, nil},

	// Users of the library: what they show must be possible from outside the module.
	{"examples/*", public, nil},
	{"bench", append([]string{"internal/testvm", "internal/testvm/wire", "tests/ntguest"}, public...), nil},
	{"bench/*", append([]string{"internal/testvm", "internal/testvm/wire"}, public...), nil},
	{"tests", nil, nil},
}

// mayUseApp lists whose tests may import internal/app: its own, its faces' and those across packages.
var mayUseApp = []string{"internal/app", "internal/cli", "internal/daemon", "cmd/vitrine", "tests"}

// testHelpers are for tests, and so may import testing.
var testHelpers = []string{"vitrinetest", "vitrinetest/*", "internal/testvm/vmtest", "internal/testvm/ostruth", "internal/testvm/seen", "tests/ntguest"}

// ruleFor returns the package's row: its own before one that has it by folder.
func ruleFor(pkg string) *arrow {
	var byFolder *arrow
	for i := range arrows {
		switch {
		case arrows[i].pkg == pkg:
			return &arrows[i]
		case covers([]string{arrows[i].pkg}, pkg):
			byFolder = &arrows[i]
		}
	}
	return byFolder
}

// violation says what is wrong with an import, "" if nothing is.
func violation(pkg, imported string) string {
	rule := ruleFor(pkg)
	if rule == nil {
		return "package is not in the table of arrows"
	}
	if isStandard(imported) && imported != "." && !strings.HasPrefix(imported, "./") {
		if imported == "testing" && !covers(testHelpers, pkg) {
			return "testing is for tests"
		}
		return ""
	}
	if imported == "." {
		if slices.Contains(rule.may, ".") {
			return ""
		}
		return "must not import the root package"
	}
	if own, ok := strings.CutPrefix(imported, "./"); ok {
		// A folder of internal packages may be layered within itself.
		sibling := strings.HasSuffix(rule.pkg, "/internal/*") && covers([]string{rule.pkg}, own)
		if covers(rule.may, own) || sibling {
			return ""
		}
		return "must not import " + own
	}
	if covers(rule.ext, imported) {
		return ""
	}
	return "must not import " + imported
}

func TestArrows(t *testing.T) {
	for _, s := range sources(t) {
		for _, imported := range s.imports(t) {
			if !s.test {
				if v := violation(s.pkg, imported); v != "" {
					t.Errorf("%s: %s", s.file, v)
				}
				continue
			}
			if imported == "./internal/app" && !slices.Contains(mayUseApp, s.pkg) {
				t.Errorf("%s: a test outside %s must not import internal/app", s.file, strings.Join(mayUseApp, ", "))
			}
		}
	}
}

// The table itself must forbid what it is there to forbid.
func TestArrowsForbid(t *testing.T) {
	for _, c := range []struct {
		pkg, imported string
		ok            bool
	}{
		{"arch", "fmt", true},
		{"arch", ".", false},
		{"arch", "testing", false},
		{"kernel", "./osi", false},
		{"kernel", "./kernel/internal/btf", true},
		{"kernel/internal/btf", "./kernel/internal/kallsyms", true},
		{"kernel/internal/btf", "./kernel", false},
		{"osi/linux", "./osi/windows", false},
		{"osi", "./trace", false},
		{"trace", "./qemu", false},
		{"syscalls", "./kernel", false},
		{"syscalls", "github.com/cilium/ebpf/btf", false},
		{"internal/testvm", "./internal/app", false},
		{"internal/testvm", "./qemu", false},
		{"internal/cli", "./qemu", false},
		{"internal/cli", "github.com/spf13/cobra", true},
		{"internal/app", "./vitrinetest", false},
		{"internal/app", "./qemu", true},
		{"nobody/knows", "fmt", false},
	} {
		if v := violation(c.pkg, c.imported); (v == "") != c.ok {
			t.Errorf("%s importing %s: %q", c.pkg, c.imported, v)
		}
	}
}

// toCome lists the rows of packages that are planned and not yet there.
var toCome = []string{"bench", "bench/*", "dump", "internal/daemon", "osi/windows", "sink/*"}

// Each row must be about something, so that a renamed package does not leave its row behind.
func TestArrowsAreUsed(t *testing.T) {
	pkgs := packages(sources(t))
	for _, a := range arrows {
		used := false
		for pkg := range pkgs {
			used = used || covers([]string{a.pkg}, pkg)
		}
		if !used && !slices.Contains(toCome, a.pkg) {
			t.Errorf("no package is left for the row %s", a.pkg)
		}
	}
}
