package ntguest

import (
	"os"
	"testing"
)

// Each layout builds, and a second time is served from the cache.
func TestBuild(t *testing.T) {
	need(t)
	for _, name := range Layouts() {
		first, err := Build(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		before, err := os.Stat(first)
		if err != nil {
			t.Fatal(err)
		}
		second, err := Build(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if after, err := os.Stat(second); err != nil || second != first || !after.ModTime().Equal(before.ModTime()) {
			t.Errorf("%s: built twice: %s, %s, %v", name, first, second, err)
		}
	}
	if _, err := Build(t.Context(), "1.2.3-x64"); err == nil {
		t.Error("a layout that is not there builds")
	}
}
