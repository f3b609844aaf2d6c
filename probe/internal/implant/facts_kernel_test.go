package implant

import (
	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
)

// kernelFacts tells the implant engine what a kernel says of itself.
type kernelFacts struct{ k *kernel.Kernel }

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

func (f kernelFacts) PerCPU(symbol string, cpu int) (arch.GVA, error) {
	return f.k.PerCPU(symbol, cpu)
}

func (f kernelFacts) Space() *vitrine.AddressSpace { return f.k.AddressSpace() }
