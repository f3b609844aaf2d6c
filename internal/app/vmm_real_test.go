package app

import (
	"errors"
	"slices"
	"testing"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
)

func TestMain(m *testing.M) { vmtest.Main(m) }

// A guest is found in its hypervisor's process without a word with it, with RAM
// on both sides of 4 GiB.
func TestGuestOfAProcess(t *testing.T) {
	for name, o := range map[string]*testvm.Options{
		"private, 4 GiB": {CPUs: 2, Memory: 4096},
	} {
		t.Run(name, func(t *testing.T) {
			vm := vmtest.Boot(t, o)
			s := vmtest.Spawn(t, vm, "sleeper", "foundling")
			g, err := attachVMM(t.Context(), vm.PID)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			if got, want := g.MemoryBytes(), uint64(vm.Options.Memory)<<20; got != want || g.CPUs() != 2 {
				t.Errorf("%d MiB of RAM and %d processors, want %d MiB and 2: %v", got>>20, g.CPUs(), want>>20, g.Regions())
			}
			if !slices.Contains(pids(t, g), s.PID) {
				t.Errorf("process %d is not listed", s.PID)
			}
			if _, err := g.OpenControl(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("control: %v", err)
			}
			if _, err := g.Registers(t.Context(), 0); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("registers: %v", err)
			}
		})
	}
}

// pids lists a guest's processes.
func pids(t *testing.T, g *vitrine.Guest) []int {
	t.Helper()
	k, err := kernel.Describe(t.Context(), g, nil)
	if err != nil {
		t.Fatal(err)
	}
	sys, err := osi.Open(t.Context(), g, k, nil)
	if err != nil {
		t.Fatal(err)
	}
	var errs error
	for range 10 { // the guest runs: an entry may be torn
		var out []int
		errs = nil
		for p, err := range sys.Processes(t.Context()) {
			errs = errors.Join(errs, err)
			out = append(out, p.PID)
		}
		if errs == nil {
			return out
		}
	}
	t.Error(errs)
	return nil
}
