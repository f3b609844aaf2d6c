package linux

import (
	"context"
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// An arm64 kernel keeps the current task in a register that only a debugger is
// shown. What each processor's run queue has in rq.curr is the same, but for the
// few instructions of a switch. The queues are per-CPU variables, of which
// Debian's kernels until 6.1 have no symbols; but every task points to the one
// that it was last on.

// runqueueSlot returns where the run queue of a processor has its task.
func (s *system) runqueueSlot(ctx context.Context, cpu int) (arch.GVA, error) {
	l := &s.l.runqueue
	if !l.cfs.ok() || !l.rq.ok() || !l.cpu.ok() || !l.curr.ok() {
		return 0, fmt.Errorf("the kernel's types lack run queues (built without CONFIG_FAIR_GROUP_SCHED): %w", errors.ErrUnsupported)
	}
	var slot arch.GVA
	var seen int
	err := s.eachTask(ctx, func(task arch.GVA) bool {
		seen++
		slot = s.slotOf(task, cpu)
		return slot == 0
	})
	if slot != 0 {
		return slot, nil
	}
	if err == nil {
		err = fmt.Errorf("none of %d tasks has been on it: %w", seen, osi.ErrNoProcess)
	}
	return 0, err
}

// slotOf returns the slot of the run queue that a task is on, 0 when that is not
// the processor's.
func (s *system) slotOf(task arch.GVA, cpu int) arch.GVA {
	l := &s.l.runqueue
	cfs, err := s.kernel.ReadPointer(task + arch.GVA(l.cfs.off))
	if err != nil || kernelPointer(cfs) != nil {
		return 0
	}
	rq, err := s.kernel.ReadPointer(cfs + arch.GVA(l.rq.off))
	if err != nil || kernelPointer(rq) != nil {
		return 0
	}
	if n, err := s.kernel.ReadUint32(rq + arch.GVA(l.cpu.off)); err != nil || int(n) != cpu {
		return 0
	}
	return rq + arch.GVA(l.curr.off)
}

// eachTask calls f with the first task and with the first thread of each process
// until it returns false.
func (s *system) eachTask(ctx context.Context, f func(arch.GVA) bool) error {
	if !f(s.initTask) {
		return nil
	}
	all, err := s.collect(ctx, s.kernel, s.initTask+arch.GVA(s.l.task.tasks.off), s.l.task.tasks.off, maxTasks)
	for _, t := range all {
		if !f(t) {
			return nil
		}
	}
	return err
}
