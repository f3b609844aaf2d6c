package probe

import (
	"context"
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe/internal/implant"
)

// Repair takes out of a guest's kernel what runs that were killed have left in
// it: implants. What they left with the hypervisor is Guest.Repair's, which has
// to come first. It returns what it found, in words; nothing in a clean guest,
// which it does not stop.
func Repair(ctx context.Context, g *vitrine.Guest, k *kernel.Kernel) ([]string, error) {
	if g.Arch() != arch.AMD64 {
		return nil, nil // there are no implants for others
	}
	found, err := implant.Repair(ctx, g, kernelFacts{k})
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, nil // a kernel without what implants need has none
	}
	if err != nil {
		return found, fmt.Errorf("repair guest: %w", err)
	}
	return found, nil
}
