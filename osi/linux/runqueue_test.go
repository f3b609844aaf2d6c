package linux

import (
	"errors"
	"testing"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// On arm64 what a processor runs is told by its run queue, to which some task
// that it ran last leads.
func TestCurrentByRunQueue(t *testing.T) {
	w := newARMWorld(t)
	cfs, rq := w.alloc(), w.alloc()
	running, other := w.process(7, "running"), w.process(8, "other")
	idle := w.alloc() // of the second processor: on no list
	w.fillTask(idle, 0, 0, "swapper/1")
	w.set("task_struct", other, "se.cfs_rq", cfs)
	w.set("cfs_rq", cfs, "rq", rq)
	w.set("rq", rq, "cpu", 1)
	w.set("rq", rq, "curr", running)
	w.b.SetRegisters(make([]arch.Registers, 3)...)
	s := w.open()
	check := func(cpu, tid int, name string) {
		t.Helper()
		th, err := s.Current(t.Context(), cpu)
		if err != nil || th.TID != tid || th.Name != name || th.VCPU != cpu {
			t.Errorf("processor %d runs %+v, %v; want %d %s", cpu, th, err, tid, name)
		}
	}
	check(0, 0, "swapper/0")
	check(1, 7, "running")
	w.set("rq", rq, "curr", idle)
	check(1, 0, "swapper/1")
	if th, err := s.Current(t.Context(), 2); !errors.Is(err, osi.ErrNoProcess) {
		t.Errorf("a processor that no task was on runs %+v, %v", th, err)
	}
	// Pointers to nowhere are not followed.
	w.set("task_struct", w.init, "se.cfs_rq", 0x1000)
	w.set("cfs_rq", cfs, "rq", 0x2000)
	if th, err := s.Current(t.Context(), 0); err == nil {
		t.Errorf("found %+v by forged pointers", th)
	}
}

// A kernel without the members says so.
func TestCurrentWithoutRunQueues(t *testing.T) {
	w := newARMWorld(t)
	delete(w.f.fields, "task_struct.se.cfs_rq")
	if th, err := w.open().Current(t.Context(), 0); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("found %+v, %v", th, err)
	}
}
