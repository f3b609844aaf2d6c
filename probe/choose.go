package probe

import (
	"errors"
	"fmt"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
	"github.com/vitrine-vmi/vitrine/probe/internal/implant"
	"github.com/vitrine-vmi/vitrine/probe/internal/trap"
)

// chooseEngine makes the engine that the options ask for.
func (s *Session) chooseEngine(o *Options) error {
	if a := s.g.Arch(); a != arch.AMD64 {
		return fmt.Errorf("probe a guest of architecture %v: %w", a, errors.ErrUnsupported)
	}
	switch o.Engine {
	case "", Auto, Trap:
		return s.useTrap(o)
	case Implant:
		return s.useImplant(o)
	}
	return fmt.Errorf("use engine %q: there is no such engine: %w", o.Engine, errors.ErrUnsupported)
}

func (s *Session) useTrap(o *Options) error {
	if o.Delivery != "" && o.Delivery != Sync {
		return fmt.Errorf("use delivery %q: engine %q delivers %q only: %w", o.Delivery, Trap, Sync, errors.ErrUnsupported)
	}
	s.name, s.delivery = Trap, Sync
	s.engine = trap.New(trap.Config{
		Guest:      s.g,
		Kernel:     s.k.AddressSpace(),
		Current:    s.facts.current,
		StackField: s.facts.stack,
		StackSize:  s.facts.stackSize,
		Wall:       s.wallClock(),
		SymbolAt: func(a arch.GVA) (string, engine.Range, bool) {
			sym, ok := s.k.SymbolAt(a)
			return sym.Name, engine.Range{Start: sym.Addr, Size: sym.Size}, ok
		},
	})
	return nil
}

// wallClock returns the guest's, nil where it is not found.
func (s *Session) wallClock() func(time.Duration) (time.Time, bool) {
	c, err := findWallClock(s.k)
	if err != nil {
		return nil
	}
	return c.at
}

func (s *Session) useImplant(o *Options) error {
	delivery := o.Delivery
	switch delivery {
	case "":
		delivery = Stream
	case Sync, Stream:
	default:
		return fmt.Errorf("use delivery %q: there is no such delivery: %w", o.Delivery, errors.ErrUnsupported)
	}
	e, err := implant.New(implant.Config{Guest: s.g, Facts: kernelFacts{s.k}, Lossy: o.Lossy, Sync: delivery == Sync})
	if err != nil {
		return err
	}
	s.name, s.delivery, s.engine = Implant, delivery, e
	return nil
}

// kernelFacts tells the implant engine what a kernel says of itself.
type kernelFacts struct{ k *kernel.Kernel }

var _ implant.Facts = kernelFacts{}

func (f kernelFacts) Symbol(name string) (arch.GVA, bool) {
	s, err := f.k.Symbol(name)
	return s.Addr, err == nil
}

func (f kernelFacts) SymbolAt(a arch.GVA) (string, arch.GVA, bool) {
	s, ok := f.k.SymbolAt(a)
	return s.Name, s.Addr, ok
}

func (f kernelFacts) Offset(structName, path string) (uint64, error) {
	field, err := f.k.Types().Field(structName, path)
	return field.Offset, err
}

func (f kernelFacts) Enum(enum, name string) (int64, error) { return f.k.Types().Enum(enum, name) }

func (f kernelFacts) PerCPU(symbol string, cpu int) (arch.GVA, error) { return f.k.PerCPU(symbol, cpu) }

func (f kernelFacts) Space() *vitrine.AddressSpace { return f.k.AddressSpace() }
