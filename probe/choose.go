package probe

import (
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
	"github.com/vitrine-vmi/vitrine/probe/internal/trap"
)

// chooseEngine returns the engine that the options ask for.
func chooseEngine(g *vitrine.Guest, k *kernel.Kernel, f *facts, o *Options) (engine.Engine, Engine, error) {
	switch {
	case g.Arch() != arch.AMD64:
		return nil, "", fmt.Errorf("probe a guest of architecture %v: %w", g.Arch(), errors.ErrUnsupported)
	case o.Engine != "" && o.Engine != Auto && o.Engine != Trap:
		return nil, "", fmt.Errorf("use engine %q: not built yet, use %q: %w", o.Engine, Trap, errors.ErrUnsupported)
	case o.Delivery != "" && o.Delivery != Sync:
		return nil, "", fmt.Errorf("use delivery %q: engine %q delivers %q only: %w", o.Delivery, Trap, Sync, errors.ErrUnsupported)
	}
	return trap.New(trap.Config{
		Guest:      g,
		Kernel:     k.AddressSpace(),
		Current:    f.current,
		StackField: f.stack,
		StackSize:  f.stackSize,
		SymbolAt: func(a arch.GVA) (string, engine.Range, bool) {
			s, ok := k.SymbolAt(a)
			return s.Name, engine.Range{Start: s.Addr, Size: s.Size}, ok
		},
	}), Trap, nil
}
