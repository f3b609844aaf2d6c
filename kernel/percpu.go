package kernel

import (
	"fmt"
	"math/bits"

	"github.com/vitrine-vmi/vitrine/arch"
)

// CPUs returns the number of processors that the kernel had online when it was
// described.
func (k *Kernel) CPUs() int { return len(k.OnlineCPUs()) }

// OnlineCPUs returns the numbers of the processors that the kernel has online
// now, in ascending order. When the kernel does not tell, they are those of the
// guest.
func (k *Kernel) OnlineCPUs() []int {
	var cpus []int
	va, err := k.address("__cpu_online_mask")
	for word := 0; err == nil && word < maxCPUs/64; word++ {
		if word*64 >= k.possibleCPUs() {
			break
		}
		var m uint64
		if m, err = k.space.ReadUint64(va + arch.GVA(8*word)); err != nil {
			break
		}
		for ; m != 0; m &= m - 1 {
			// Behind the mask of a 32-bit kernel lies something else.
			if cpu := word*64 + bits.TrailingZeros64(m); cpu < k.possibleCPUs() {
				cpus = append(cpus, cpu)
			}
		}
	}
	if len(cpus) == 0 {
		for cpu := range k.g.CPUs() {
			cpus = append(cpus, cpu)
		}
	}
	return cpus
}

// possibleCPUs returns how many processors may ever be online.
func (k *Kernel) possibleCPUs() int {
	va, err := k.address("nr_cpu_ids")
	if err == nil {
		if n, err := k.space.ReadUint32(va); err == nil && n > 0 && n <= maxCPUs {
			return int(n)
		}
	}
	return k.g.CPUs()
}

func (k *Kernel) address(name string) (arch.GVA, error) {
	s, err := k.Symbol(name)
	return s.Addr, err
}

// PerCPU returns the address of processor cpu's instance of the per-CPU
// variable sym. The error wraps ErrNoSymbol when there is no such symbol.
func (k *Kernel) PerCPU(sym string, cpu int) (arch.GVA, error) {
	s, err := k.Symbol(sym)
	if err != nil {
		return 0, err
	}
	if err := k.isPerCPU(s); err != nil {
		return 0, err
	}
	off, err := k.perCPUOffset(cpu)
	if err != nil {
		return 0, fmt.Errorf("find per-CPU %s: %w", sym, err)
	}
	return k.wrap(s.Addr + off), nil
}

// wrap cuts a sum of addresses to the kernel's width.
func (k *Kernel) wrap(a arch.GVA) arch.GVA {
	if k.PointerSize() == 4 {
		return a & 0xffff_ffff
	}
	return a
}

// isPerCPU checks that s lies in the per-CPU section: at zero until 6.14, a
// part of the image since 6.15. The sum with the offset is right for both.
func (k *Kernel) isPerCPU(s Symbol) error {
	start, err := k.address("__per_cpu_start")
	if err != nil {
		return nil // CONFIG_KALLSYMS_ALL is off, or a kernel for one processor
	}
	end, err := k.address("__per_cpu_end")
	if err == nil && (s.Addr < start || s.Addr >= end) {
		return fmt.Errorf("find per-CPU %s: symbol at %v is not in the per-CPU section", s.Name, s.Addr)
	}
	return nil
}

// perCPUOffset returns what is added to the address of a per-CPU symbol for
// processor cpu. It corresponds to __per_cpu_offset[cpu].
func (k *Kernel) perCPUOffset(cpu int) (arch.GVA, error) {
	if n := k.possibleCPUs(); cpu < 0 || cpu >= n {
		return 0, fmt.Errorf("processor %d of %d does not exist", cpu, n)
	}
	va, err := k.address("__per_cpu_offset")
	if err != nil {
		return 0, err
	}
	off, err := k.space.ReadPointer(va + arch.GVA(k.PointerSize()*cpu))
	if err != nil {
		return 0, fmt.Errorf("read __per_cpu_offset[%d]: %w", cpu, err)
	}
	return off, nil
}
