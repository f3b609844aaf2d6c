// Package linux is the osi provider for Linux guests.
// Import it for its side effect.
//
// Where the kernel keeps things is learnt from the guest itself (package
// kernel) when the system is opened, all at once, so that a kernel which lacks
// something is refused with the list of what it lacks. Forks between kernel
// releases are decided by which members exist; comments give the releases.
//
// What a method returns agrees with what /proc in the guest shows a root user
// outside of any container; the documentation of each says where it comes from.
// The package takes no lock of the guest and never stops it, so it finds lists
// and trees in the middle of a change. Such places are noticed, by the links
// back that the kernel's structures have, and read again.
package linux

import (
	"context"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
)

func init() {
	osi.Register(osi.Provider{Name: "linux", Detect: detect, Open: openProvider})
}

func detect(_ context.Context, _ *vitrine.Guest, k *kernel.Kernel) (string, error) {
	switch {
	case k == nil:
		return "", fmt.Errorf("no kernel was described")
	case k.OS() != kernel.Linux:
		return "", fmt.Errorf("the kernel is of the family %q", k.OS())
	}
	if !k.Types().Available() {
		return "", fmt.Errorf("a Linux kernel, release %q, whose structures are not known: %s", k.Release(), k.Types().Absent())
	}
	s, err := k.Symbol("init_task")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("release %q with init_task at %v", k.Release(), s.Addr), nil
}

func openProvider(ctx context.Context, g *vitrine.Guest, k *kernel.Kernel, _ *osi.Options) (osi.System, error) {
	return open(ctx, g, described{k}, k.AddressSpace())
}

// described makes facts of a kernel's description.
type described struct{ k *kernel.Kernel }

func (d described) Field(structName, path string) (member, error) {
	f, err := d.k.Types().Field(structName, path)
	return member{f.Offset, f.Size}, err
}

func (d described) Symbol(name string) (arch.GVA, error) {
	s, err := d.k.Symbol(name)
	return s.Addr, err
}

func (d described) PerCPU(name string, cpu int) (arch.GVA, error) { return d.k.PerCPU(name, cpu) }
func (d described) Timekeeper() (arch.GVA, arch.GVA, error)       { return d.k.Timekeeper() }
