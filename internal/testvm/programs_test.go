package testvm

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A program that was unpacked somewhere is in the guest at its own path, with the host's libraries.
func TestProgramsComeWithTheirLibraries(t *testing.T) {
	root := t.TempDir()
	text, err := os.ReadFile("/usr/bin/tail")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "opt"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "opt", "tail"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	a := newArchive()
	if err := a.addProgram(platforms[amd64], program{"/opt/tail", root}); err != nil {
		t.Fatal(err)
	}
	if _, there := a.records["opt/tail"]; !there {
		t.Error("the program is not in the archive")
	}
	libc := func(name string) bool { return filepath.Base(name) == "libc.so.6" }
	names := make([]string, 0, len(a.records))
	for name := range a.records {
		names = append(names, name)
	}
	if !slices.ContainsFunc(names, libc) {
		t.Errorf("no C library among %q", names)
	}
}

func TestLibrariesAreTheHostsFirst(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, platforms[amd64].libraries[0])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"libc.so.6", "libof-no-host.so"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := platforms[amd64].findLibrary("libc.so.6", root); err != nil || p.root != "" {
		t.Errorf("C library: %+v, %v", p, err)
	}
	if p, err := platforms[amd64].findLibrary("libof-no-host.so", root); err != nil || p != (program{platforms[amd64].libraries[0] + "/libof-no-host.so", root}) {
		t.Errorf("library of the package: %+v, %v", p, err)
	}
	if _, err := platforms[amd64].findLibrary("libof-nobody.so", root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("library of nobody: %v", err)
	}
}

func TestFindPrograms(t *testing.T) {
	if p, err := findPrograms(t.Context(), platforms[amd64], []string{"/usr/bin/tail"}, nil); err != nil || !slices.Equal(p, []program{{file: "/usr/bin/tail"}}) {
		t.Errorf("programs %+v, %v", p, err)
	}
	if _, err := findPrograms(t.Context(), platforms[amd64], []string{"/usr/bin/there-is-no-such-program"}, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a program that nobody has: %v", err)
	}
}
