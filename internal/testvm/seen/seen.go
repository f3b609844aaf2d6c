// Package seen opens a test's guest as a user of Vitrine does, for tests that compare what is seen from outside with what
// the guest says. It is for the test's own goroutine and ends the test on failure; the provider of the guest's operating
// system is for the test to import.
package seen

import (
	"testing"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/qemu"
)

// Open attaches to a guest until the end of the test, describes its kernel and opens its operating system.
func Open(t testing.TB, vm *testvm.VM) (*vitrine.Guest, *kernel.Kernel, osi.System) {
	t.Helper()
	g, err := qemu.Attach(t.Context(), vm.QMP, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	k, err := kernel.Describe(t.Context(), g, &kernel.Options{Symbols: vm.Kernel.Symbols()})
	if err != nil {
		t.Fatal(err)
	}
	sys, err := osi.Open(t.Context(), g, k, nil)
	if err != nil {
		t.Fatal(err)
	}
	return g, k, sys
}
