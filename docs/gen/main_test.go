package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The pages in the repository are those that the sources of now make. If not:
// go generate ./internal/cli
func TestPagesAreUpToDate(t *testing.T) {
	dir := t.TempDir()
	if err := generate(dir); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"man", "commands"} {
		want, have := pages(t, filepath.Join(dir, sub)), pages(t, filepath.Join("..", sub))
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("docs/%s is not up to date, run go generate ./internal/cli (-generated +committed):\n%s", sub, diff)
		}
	}
}

func pages(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}
