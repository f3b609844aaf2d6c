package implant

import (
	"errors"
	"fmt"
	"maps"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// Facts is what the engine has to know of the guest's kernel.
type Facts interface {
	// Symbol returns the address of a symbol.
	Symbol(name string) (arch.GVA, bool)
	// SymbolAt returns the symbol that contains a, and its address.
	SymbolAt(a arch.GVA) (string, arch.GVA, bool)
	// Offset returns where a member lies in a structure.
	Offset(structName, path string) (uint64, error)
	// Enum returns the value of an enumerator.
	Enum(enum, name string) (int64, error)
	// PerCPU returns a processor's instance of a per-CPU variable.
	PerCPU(symbol string, cpu int) (arch.GVA, error)
	// InRegisters returns why a function may get arguments by the stack, nil when
	// it is known to get all of them in registers.
	InRegisters(function string) error
	// Space returns the kernel's address space.
	Space() *vitrine.AddressSpace
}

// first returns the first of the symbols that the kernel has.
func first(f Facts, names ...string) (arch.GVA, string, error) {
	for _, n := range names {
		if a, ok := f.Symbol(n); ok {
			return a, n, nil
		}
	}
	return 0, "", fmt.Errorf("the kernel has none of %v: %w", names, errors.ErrUnsupported)
}

// perCPU names a per-CPU variable that was a member of pcpu_hot from 6.2 to
// 6.14 and has a symbol of its own before and after.
type perCPU struct{ symbol, member string }

var (
	perCPUCurrent = perCPU{"current_task", "current_task"}
	perCPUNumber  = perCPU{"cpu_number", "cpu_number"}
	perCPUPreempt = perCPU{"__preempt_count", "preempt_count"}
)

// resolve returns the symbol and the offset behind it.
func (p perCPU) resolve(f Facts) (string, arch.GVA, error) {
	if _, ok := f.Symbol("pcpu_hot"); ok {
		if off, err := f.Offset("pcpu_hot", p.member); err == nil {
			return "pcpu_hot", arch.GVA(off), nil
		}
	}
	_, name, err := first(f, p.symbol)
	return name, 0, err
}

// displacement returns the variable's address relative to a processor's GS base.
func (p perCPU) displacement(f Facts) (uint64, error) {
	name, off, err := p.resolve(f)
	if err != nil {
		return 0, err
	}
	a, _ := f.Symbol(name)
	return uint64(a + off), nil
}

// at returns the address of processor cpu's instance.
func (p perCPU) at(f Facts, cpu int) (arch.GVA, error) {
	name, off, err := p.resolve(f)
	if err != nil {
		return 0, err
	}
	a, err := f.PerCPU(name, cpu)
	return a + off, err
}

// members are the constants of the guest side that are offsets of members.
var members = map[string][2]string{
	"vt_task_pid":         {"task_struct", "pid"},
	"vt_task_tgid":        {"task_struct", "tgid"},
	"vt_task_real_parent": {"task_struct", "real_parent"},
	"vt_task_comm":        {"task_struct", "comm"},
	"vt_task_cred":        {"task_struct", "cred"},
	"vt_cred_uid":         {"cred", "uid"},
}

// constants returns the values of the object's undefined symbols that do not
// depend on where it is placed.
func constants(f Facts, l layout, frame uint32) (map[string]uint64, error) {
	v := map[string]uint64{
		"vt_nunits": l.units, "vt_key": l.key, "vt_bitmap_offset": l.bitmap, "vt_bitmap_bits": bitmapBits, "vt_ring_offset": l.ring,
		"vt_frame_size": uint64(frame),
	}
	for name, m := range members {
		off, err := f.Offset(m[0], m[1])
		if err != nil {
			return nil, fmt.Errorf("link implant: %w", err)
		}
		v[name] = off
	}
	maps.Copy(v, aboutConstants(f))
	for name, p := range map[string]perCPU{"vt_pcpu_current": perCPUCurrent, "vt_pcpu_cpu": perCPUNumber, "vt_pcpu_preempt": perCPUPreempt} {
		d, err := p.displacement(f)
		if err != nil {
			return nil, fmt.Errorf("link implant: %w", err)
		}
		v[name] = d
	}
	if a, ok := f.Symbol(clockFunc); ok {
		v[clockFunc] = uint64(a)
	}
	for _, name := range []string{"strncpy_from_user_nofault", "copy_from_user_nofault"} {
		a, _, err := first(f, name)
		if err != nil {
			return nil, fmt.Errorf("link implant: %w", err)
		}
		v[name] = uint64(a)
	}
	return v, nil
}
