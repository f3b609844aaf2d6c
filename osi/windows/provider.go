// Package windows is the osi provider for guests with an NT kernel: 32-bit
// from XP to 10, 64-bit from 2003 to 11. Import it for its side effect.
//
// Where the kernel keeps things is asked of package kernel when the system is
// opened; it says what each answer rests on. What a build does otherwise is
// decided by which members exist, and where bits are not told, by what lies
// there; comments give the releases.
//
// NT pages out much that a reader wants: the command line, names of libraries,
// even parts of the kernel's pool. Pages that are still in RAM, though the
// hardware would fault on them, are read; a text that is not is given as
// osi.PagedOut, and never fails a list. The package takes no lock and never
// stops the guest: lists are walked by their links back, and walked again when
// they change meanwhile.
package windows

import (
	"context"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
)

func init() {
	osi.Register(osi.Provider{Name: "windows", Detect: detect, Open: openProvider})
}

func detect(_ context.Context, _ *vitrine.Guest, k *kernel.Kernel) (string, error) {
	switch {
	case k == nil:
		return "", fmt.Errorf("no kernel was described")
	case k.OS() != kernel.Windows:
		return "", fmt.Errorf("the kernel is of the family %q", k.OS())
	case k.NT().ProcessHead == 0:
		return "", fmt.Errorf("NT %s without a list of processes", k.Release())
	}
	return fmt.Sprintf("NT %s with its list of processes at %v", k.Release(), k.NT().ProcessHead), nil
}

func openProvider(_ context.Context, g *vitrine.Guest, k *kernel.Kernel, _ *osi.Options) (osi.System, error) {
	return open(g, k)
}
