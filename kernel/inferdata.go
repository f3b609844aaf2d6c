package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// Debian builds arm64 kernels until 6.1 without CONFIG_KALLSYMS_ALL: they have
// no symbols of variables. The few variables that all else is reached from are
// told by what they hold: each is searched for in the image's writable memory by
// marks that only it has, and is then a symbol like others.

// inferred looks for variables that the symbol table lacks.
func (k *Kernel) inferData(im *image) {
	if !k.types.Available() {
		return
	}
	k.inferred = map[string]arch.GVA{}
	for _, v := range []struct {
		name string
		find func(*image) (arch.GVA, bool)
	}{
		{"init_task", k.findInitTask},
		{"modules", k.findModules},
		{"init_pid_ns", k.findPIDNamespace},
		{"tk_core", k.findTimekeeper},
	} {
		if _, ok := k.symbols.Lookup(v.name); ok {
			continue
		}
		if a, ok := v.find(im); ok {
			k.inferred[v.name] = a
			k.fact(v.name, "inference: what it holds, in kernel memory")
		}
	}
}

// eachWritable calls f with what is writable of the image until it returns false.
func (im *image) eachWritable(f func(va arch.GVA, p []byte) bool) {
	var buf, p []byte
	for _, r := range im.runs {
		if !r.writable {
			continue
		}
		p, buf = im.bytes(r, buf)
		if !f(r.va, p) {
			return
		}
	}
}

// findInitTask looks for the first task: pid 0, named swapper or swapper/0, its
// own parent and leader.
func (k *Kernel) findInitTask(im *image) (found arch.GVA, ok bool) {
	var at struct{ comm, pid, parent, realParent, leader Field }
	for name, to := range map[string]*Field{"comm": &at.comm, "pid": &at.pid, "parent": &at.parent, "real_parent": &at.realParent, "group_leader": &at.leader} {
		f, err := k.types.Field("task_struct", name)
		if err != nil {
			return 0, false
		}
		*to = f
	}
	name := []byte("swapper")
	im.eachWritable(func(va arch.GVA, p []byte) bool {
		for i := 0; ; i += len(name) {
			n := bytes.Index(p[i:], name)
			if n < 0 {
				return true
			}
			i += n
			start := uint64(i) - at.comm.Offset
			self := func(f Field) bool {
				end := start + f.Offset + 8
				return end <= uint64(len(p)) && binary.LittleEndian.Uint64(p[end-8:]) == uint64(va)+start
			}
			if uint64(i) < at.comm.Offset || !self(at.parent) || !self(at.realParent) || !self(at.leader) || !number(p, start+at.pid.Offset, 0) {
				continue
			}
			found, ok = va+arch.GVA(start), true
			return false
		}
	})
	return found, ok
}

// number reports whether the 32-bit number at off is v.
func number(p []byte, off uint64, v uint32) bool {
	return off+4 <= uint64(len(p)) && binary.LittleEndian.Uint32(p[off:]) == v
}

// maxListHeads bounds how many list heads are followed in search of one.
const maxListHeads = 1 << 16

// findModules looks for the head of the list of modules: what follows it is
// within a struct module that names itself and lies outside of the image.
func (k *Kernel) findModules(im *image) (found arch.GVA, ok bool) {
	list, err := k.types.Field("module", "list")
	name, err2 := k.types.Field("module", "name")
	state, err3 := k.types.Field("module", "state")
	kobj, err4 := k.types.Field("module", "mkobj.mod")
	if err != nil || err2 != nil || err3 != nil || err4 != nil {
		return 0, false
	}
	left := maxListHeads
	isModule := func(link arch.GVA) bool {
		m := link - arch.GVA(list.Offset)
		if s, err := k.space.ReadUint32(m + arch.GVA(state.Offset)); err != nil || s > 3 { // MODULE_STATE_UNFORMED
			return false
		}
		// A module's kobject points back to it.
		if p, err := k.space.ReadPointer(m + arch.GVA(kobj.Offset)); err != nil || p != m {
			return false
		}
		s, err := k.space.ReadString(m+arch.GVA(name.Offset), maxModuleName)
		return err == nil && s != ""
	}
	im.eachWritable(func(va arch.GVA, p []byte) bool {
		for i := 0; i+16 <= len(p); i += 8 {
			next, prev := binary.LittleEndian.Uint64(p[i:]), binary.LittleEndian.Uint64(p[i+8:])
			if next>>63 == 0 || prev>>63 == 0 || next%8 != 0 || prev%8 != 0 || im.holds(arch.GVA(next)) || im.holds(arch.GVA(prev)) {
				continue
			}
			head := va + arch.GVA(i)
			if back, err := k.space.ReadPointer(arch.GVA(next) + 8); err != nil || back != head {
				continue
			}
			if left--; left < 0 {
				return false
			}
			if isModule(arch.GVA(next)) && isModule(arch.GVA(prev)) {
				found, ok = head, true
				return false
			}
		}
		return true
	})
	return found, ok
}

// Marks of a timekeeper: it starts a cache line after its sequence count, and the
// wall clock it shows is one of these years.
const (
	keeperAlign = 64
	year2001    = 1_000_000_000
	year2100    = 4_102_444_800
)

// findTimekeeper looks for the kernel's clock: its wall-clock seconds are its
// monotonic ones plus the offset that it keeps beside them. A shadow of it, for
// updates, is not aligned so, or lies behind it.
func (k *Kernel) findTimekeeper(im *image) (found arch.GVA, ok bool) {
	var at struct{ wall, mono, offset, clock Field }
	for name, to := range map[string]*Field{"xtime_sec": &at.wall, "ktime_sec": &at.mono, "offs_real": &at.offset, "tkr_mono.clock": &at.clock} {
		f, err := k.types.Field("timekeeper", name)
		if err != nil {
			return 0, false
		}
		*to = f
	}
	size := max(at.wall.Offset, at.mono.Offset, at.offset.Offset, at.clock.Offset) + 8
	if k.types.Has("tk_data", "timekeeper") || size > arch.PageSize {
		return 0, false
	}
	behind := k.timekeeperBehind()
	im.eachWritable(func(va arch.GVA, p []byte) bool {
		for i := uint64(0); i+behind+size <= uint64(len(p)); i += keeperAlign {
			get := func(f Field) uint64 { return binary.LittleEndian.Uint64(p[i+behind+f.Offset:]) }
			wall, mono, offset := get(at.wall), get(at.mono), get(at.offset)/1_000_000_000
			if wall < year2001 || wall > year2100 || mono > wall || get(at.clock)>>63 == 0 {
				continue
			}
			if d := wall - mono - offset; d <= 1 || d == 1<<64-1 { // both lack a fraction of a second
				found, ok = va+arch.GVA(i), true
				return false
			}
		}
		return true
	})
	return found, ok
}

// findPIDNamespace follows the first task to the namespace of its number.
func (k *Kernel) findPIDNamespace(*image) (arch.GVA, bool) {
	task, err := k.address("init_task")
	pid, err2 := k.types.Field("task_struct", "thread_pid")
	ns, err3 := k.types.Field("pid", "numbers[0].ns")
	if err != nil || err2 != nil || err3 != nil {
		return 0, false
	}
	at, err := k.space.ReadPointer(task + arch.GVA(pid.Offset))
	if err != nil || at == 0 {
		return 0, false
	}
	a, err := k.space.ReadPointer(at + arch.GVA(ns.Offset))
	return a, err == nil && a>>63 != 0
}

// checkFirstProgram is checkBooted for a kernel without the symbol system_state:
// it has started its first program when the first process has memory of its own.
func (d *describer) checkFirstProgram(k *Kernel) error {
	tasks, err := k.types.Field("task_struct", "tasks")
	mm, err2 := k.types.Field("task_struct", "mm")
	first, err3 := k.address("init_task")
	if err != nil || err2 != nil || err3 != nil {
		k.lacks("boot state: symbol system_state is absent")
		return nil
	}
	link, err := k.space.ReadPointer(first + arch.GVA(tasks.Offset))
	if err == nil {
		var memory arch.GVA
		memory, err = k.space.ReadPointer(link - arch.GVA(tasks.Offset) + arch.GVA(mm.Offset))
		if err == nil && memory>>63 != 0 && link != first+arch.GVA(tasks.Offset) {
			k.fact("boot", "memory of the first process")
			return nil
		}
	}
	return fmt.Errorf("describe guest: %w: Linux %s found at %v, still starting (its first process has no memory yet)",
		vitrine.ErrNotBooted, k.release, k.base)
}
