package implant

import (
	"fmt"
	"math/bits"
	"slices"

	"github.com/vitrine-vmi/vitrine/arch"
)

// forkHook is called with each new task before it can run (kernel_clone, _do_fork
// until 5.9, create_io_thread).
const forkHook = "wake_up_new_task"

// hookFork makes fns follow the children of processes: it adds the hook, or its
// flag where the function is probed anyway.
func hookFork(f Facts, fns []function) ([]function, error) {
	addr, ok := f.Symbol(forkHook)
	if !ok {
		return nil, fmt.Errorf("follow children: the kernel has no %s", forkHook)
	}
	if i := slices.IndexFunc(fns, func(fn function) bool { return fn.addr == addr }); i >= 0 {
		fns[i].flags |= funcFork
		return fns, nil
	}
	return append(fns, function{name: forkHook, addr: addr, flags: funcFork}), nil
}

// livingFamily returns the ids of the processes among ids that there are, and of
// their living descendants. The guest stands still.
func livingFamily(m *machine, ids []uint32) ([]uint32, error) {
	parents, err := parentsOf(m)
	if err != nil {
		return nil, fmt.Errorf("find descendants: %w", err)
	}
	in := map[uint32]bool{}
	for _, id := range ids {
		if _, ok := parents[id]; ok {
			in[id] = true
		}
	}
	for more := true; more; {
		more = false
		for id, parent := range parents {
			if in[parent] && !in[id] {
				in[id], more = true, true
			}
		}
	}
	out := make([]uint32, 0, len(in))
	for id := range in {
		if id < bitmapBits {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out, nil
}

// parentsOf returns the parent's id of every process, by its id.
func parentsOf(m *machine) (map[uint32]uint32, error) {
	var tasks, tgid, parent uint64
	for _, o := range []struct {
		to   *uint64
		name string
	}{{&tasks, "tasks"}, {&tgid, "tgid"}, {&parent, "real_parent"}} {
		var err error
		if *o.to, err = m.f.Offset("task_struct", o.name); err != nil {
			return nil, err
		}
	}
	init, _, err := first(m.f, "init_task")
	if err != nil {
		return nil, err
	}
	out := map[uint32]uint32{}
	err = (&stacks{m: m}).list(init+arch.GVA(tasks), tasks, func(leader arch.GVA) error {
		id, err := m.as.ReadUint32(leader + arch.GVA(tgid))
		if err != nil {
			return err
		}
		by, err := m.as.ReadUint32(arch.GVA(m.word(leader+arch.GVA(parent))) + arch.GVA(tgid))
		if err != nil {
			return err
		}
		if id != 0 { // the idle task is no process's root
			out[id] = by
		}
		return nil
	})
	return out, err
}

// members returns the ids whose bits are set.
func (p *planted) members() ([]uint32, error) {
	b := make([]byte, bitmapBytes)
	if err := p.m.read(b, p.l.bitmap); err != nil {
		return nil, err
	}
	var out []uint32
	for i, v := range b {
		for ; v != 0; v &= v - 1 {
			out = append(out, uint32(i*8+bits.TrailingZeros8(v)))
		}
	}
	return out, nil
}
