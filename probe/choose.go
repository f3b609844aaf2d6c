package probe

import (
	"errors"
	"fmt"
	"strings"
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
	if s.facts.i386 != nil {
		return s.choose386(o)
	}
	switch a := s.g.Arch(); a {
	case arch.AMD64:
	case arch.ARM64:
		return s.chooseARM(o)
	default:
		return fmt.Errorf("probe a guest of architecture %v: %w", a, errors.ErrUnsupported)
	}
	if s.facts.nt != nil {
		return s.useNT(o)
	}
	switch o.Engine {
	case "", Auto:
		return s.useBest(o)
	case Trap:
		return s.useTrap(o)
	case Implant:
		return s.useImplant(o)
	}
	return fmt.Errorf("use engine %q: there is no such engine: %w", o.Engine, errors.ErrUnsupported)
}

// chooseARM takes breakpoints: there are no implants for arm64 yet.
func (s *Session) chooseARM(o *Options) error {
	switch {
	case o.Engine == Implant, o.Delivery == Stream:
		return fmt.Errorf("use implants in a guest of %v, which has breakpoints (engine %s) only: %w", arch.ARM64, Trap, errors.ErrUnsupported)
	case o.Engine != "" && o.Engine != Auto && o.Engine != Trap:
		return fmt.Errorf("use engine %q: there is no such engine: %w", o.Engine, errors.ErrUnsupported)
	}
	return s.useTrap(o)
}

func (s *Session) useTrap(o *Options) error {
	if o.Delivery != "" && o.Delivery != Sync {
		return fmt.Errorf("use delivery %q: engine %q delivers %q only: %w", o.Delivery, Trap, Sync, errors.ErrUnsupported)
	}
	s.name, s.delivery, s.engine = Trap, Sync, s.newTrap()
	return nil
}

func (s *Session) newTrap() engine.Engine {
	var machine *trap.Machine
	switch {
	case s.facts.nt != nil:
		machine = s.facts.nt.machine()
	case s.facts.i386 != nil:
		machine = s.facts.i386.machine()
	}
	return trap.New(trap.Config{
		Machine:    machine,
		Guest:      s.g,
		ARM64:      s.g.Arch() == arch.ARM64,
		UserRoot:   s.facts.userRoot,
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
	e, delivery, err := s.newImplant(o, nil)
	if err != nil {
		return err
	}
	s.name, s.delivery, s.engine = Implant, delivery, e
	return nil
}

// useBest takes implants where the guest's kernel lets it, with breakpoints
// beside them for functions that take none, and else only breakpoints.
func (s *Session) useBest(o *Options) error {
	h := &hybrid{traps: s.newTrap(), strict: o.Delivery == Stream}
	e, delivery, err := s.newImplant(o, h)
	switch {
	case err == nil:
		h.implants = e
		s.name, s.delivery, s.engine = Implant, delivery, h
		return nil
	case h.strict || !errors.Is(err, errors.ErrUnsupported):
		return err
	}
	s.notes = []string{"no implants, breakpoints instead: " + err.Error()}
	return s.useTrap(o)
}

func (s *Session) newImplant(o *Options, beside implant.Beside) (*implant.Engine, Delivery, error) {
	delivery := o.Delivery
	switch delivery {
	case "":
		delivery = Stream
	case Sync, Stream:
	default:
		return nil, "", fmt.Errorf("use delivery %q: there is no such delivery: %w", o.Delivery, errors.ErrUnsupported)
	}
	e, err := implant.New(implant.Config{Guest: s.g, Facts: kernelFacts{s.k}, Lossy: o.Lossy, Sync: delivery == Sync, Beside: beside})
	return e, delivery, err
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

// argRegisters is how many integer arguments the x86-64 ABI passes in registers.
const argRegisters = 6

// InRegisters goes by the prototype. Of what is passed by value in one register
// or two, only numbers and pointers are taken, and structures no larger than
// those (kuid_t, pte_t), which the ABI passes likewise if they are aligned.
func (f kernelFacts) InRegisters(name string) error {
	for _, prefix := range []string{"__x64_sys_", "__ia32_sys_", "__ia32_compat_sys_", "__x64_compat_sys_"} {
		if strings.HasPrefix(name, prefix) {
			return nil // one pointer; the types do not have those of calls without arguments
		}
	}
	p, err := f.k.Types().Func(name)
	if err != nil {
		return fmt.Errorf("the kernel's types do not tell its arguments: %w", err)
	}
	n := len(p.Params)
	if byValue(p.Return) {
		n++ // its place may be passed as an argument
	}
	for _, a := range p.Params {
		if a.Size != 8 && a.Size != 4 && a.Size != 2 && a.Size != 1 {
			return fmt.Errorf("its argument %s (%s) may be passed by the stack", a.Name, a.Type)
		}
	}
	if p.Variadic {
		return errors.New("it takes any number of arguments, some by the stack")
	}
	if n > argRegisters {
		return fmt.Errorf("it takes %d arguments, some by the stack", n)
	}
	return nil
}

// byValue reports whether a type as C writes it is a structure.
func byValue(c string) bool {
	return (strings.HasPrefix(c, "struct ") || strings.HasPrefix(c, "union ")) && !strings.Contains(c, "*")
}

func (f kernelFacts) Space() *vitrine.AddressSpace { return f.k.AddressSpace() }
