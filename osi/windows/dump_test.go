package windows

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/dump"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/tests/ntguest"
)

// reference returns a file of the reference data of NT, which this project does
// not contain, or skips the test.
func reference(t *testing.T, name string) string {
	t.Helper()
	dir, err := ntguest.DataDir()
	if err != nil {
		t.Skipf("skipped: no %s; it runs with the folder of the reference data: %v", name, err)
	}
	file := filepath.Join(dir, name)
	if _, err := os.Stat(file); err != nil {
		t.Skipf("skipped: %v; it runs with the whole of the reference data", err)
	}
	return file
}

// A real crash dump, with its exact symbols and without: the same answer.
func TestRealTriageDump(t *testing.T) {
	path := reference(t, "nt-dumps/win10-19041-x64-triage.dmp")
	symbols := reference(t, "nt-dumps/ntkrnlmp-5278AFF86C341677D7D7835C85B7B844-1.isf.json.xz")
	answers := map[string][]osi.Module{}
	systems := map[string][]osi.Process{}
	for name, opts := range map[string]*kernel.Options{"layouts": nil, "symbols": {Symbols: []string{symbols}}} {
		g, err := dump.Open(t.Context(), path, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		k, err := kernel.Describe(t.Context(), g, opts)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		sys, err := osi.Open(t.Context(), g, k, nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if by := k.Types().Source("_EPROCESS", "Token"); (opts != nil) != (by == "symbols "+filepath.Base(symbols)) {
			t.Errorf("%s: EPROCESS.Token is known by %q; missing %q", name, by, k.Missing())
		}
		if k.Release() != "10.0.19041" || k.Base() != 0xfffff8047ba00000 {
			t.Errorf("%s: %s at %v", name, k.Release(), k.Base())
		}
		if c := g.WindowsCrash(); c.BugCheck != 0x1000007e || c.Build != 19041 {
			t.Errorf("%s: bug check %#x of build %d", name, c.BugCheck, c.Build)
		}
		checkTriage(t, name, sys)
		for m, err := range sys.Modules(t.Context()) {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			answers[name] = append(answers[name], m)
		}
		for p, err := range sys.Processes(t.Context()) {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			systems[name] = append(systems[name], p)
		}
	}
	if diff := cmp.Diff(answers["layouts"], answers["symbols"]); diff != "" || len(answers["layouts"]) != 151 {
		t.Errorf("%d drivers (-by layouts +by symbols):\n%s", len(answers["layouts"]), diff)
	}
	if diff := cmp.Diff(systems["layouts"], systems["symbols"]); diff != "" {
		t.Errorf("processes (-by layouts +by symbols):\n%s", diff)
	}
}

func checkTriage(t *testing.T, name string, sys osi.System) {
	var pids []int
	for p, err := range sys.Processes(t.Context()) {
		if err != nil || p.Name != "System" || !p.KThread {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
		pids = append(pids, p.PID)
		var tids []int
		for th, err := range sys.Threads(t.Context(), p.Handle) {
			if err != nil || th.PID != 4 || th.Name != "System" {
				t.Errorf("%s: %+v, %v", name, th, err)
			}
			tids = append(tids, th.TID)
		}
		if diff := cmp.Diff([]int{264}, tids); diff != "" {
			t.Errorf("%s: threads:\n%s", name, diff)
		}
	}
	if diff := cmp.Diff([]int{4}, pids); diff != "" {
		t.Errorf("%s: processes:\n%s", name, diff)
	}
	n, kernelSize := 0, uint64(0)
	for m, err := range sys.Modules(t.Context()) {
		if n++; err != nil || m.Size == 0 || m.Base == 0 || m.Name == "" {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
		if m.Base == arch.GVA(0xfffff8047ba00000) {
			kernelSize = m.Size
		}
	}
	if n != 151 || kernelSize == 0 {
		t.Errorf("%s: %d drivers, the kernel has %#x bytes", name, n, kernelSize)
	}
}
