package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// The generated files are what the generator writes now.
func TestGeneratedFilesAreCurrent(t *testing.T) {
	if testing.Short() {
		t.Skip("parses golang.org/x/sys for three architectures: run without -short")
	}
	files, err := generate(".")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("..", "..", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is stale: run go generate ./syscalls", name)
		}
	}
}

func TestParseSignature(t *testing.T) {
	s, err := parseSignature("openat(int dfd, const char * filename)")
	if err != nil || s.name != "openat" || len(s.params) != 2 || s.params[1] != (param{"filename", "const char *"}) {
		t.Errorf("got %+v, %v", s, err)
	}
	for _, l := range []string{"openat", "openat(int dfd", "x(int)", "x(int a, int b, int c, int d, int e, int f, int g)"} {
		if s, err := parseSignature(l); err == nil {
			t.Errorf("%q = %+v, want an error", l, s)
		}
	}
}

func TestFamiliesRefuseTwoNamesForOneValue(t *testing.T) {
	set := &constants{values: map[string]map[string]uint64{}}
	for _, a := range arches {
		set.values[a] = map[string]uint64{"A_X": 1, "A_Y": 1, "A_Z": 2}
	}
	if _, err := parseFamily([]string{"a", "enum", "A_*"}, set); err == nil {
		t.Error("A_X and A_Y are both taken")
	}
	f, err := parseFamily([]string{"a", "flags", "A_*", "-A_Y", "A_W=3"}, set)
	if err != nil {
		t.Fatal(err)
	}
	want := []constant{{3, "A_W"}, {1, "A_X"}, {2, "A_Z"}}
	if got := f.of["386"]; len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("got %v, want %v", got, want)
	}
}
