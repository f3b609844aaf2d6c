package linux

import "github.com/vitrine-vmi/vitrine/arch"

// The xarray's way of telling its own nodes from what is stored (xarray.h).
const (
	xaInternal = 2 // in the lowest two bits of a pointer to a node
	xaTag      = 3
	xaMaxShift = 60
	xaMaxSlots = 64
)

// taskByID returns the thread with this id in the initial pid namespace, without
// going through the list: by init_pid_ns.idr, whose tree holds struct pid by
// number, and the task that hangs in that. False also means that the kernel
// keeps it otherwise, or that the tree was just changing.
func (s *system) taskByID(id int) (arch.GVA, bool) {
	l := &s.l.confine
	if s.pidNS == 0 || !l.xaHead.ok() || !l.xaSlots.ok() || !l.pidTasks.ok() || !s.l.task.pidLinks.ok() || id <= 0 || id > maxTasks {
		return 0, false
	}
	pid, ok := s.xaLoad(s.pidNS+arch.GVA(l.xaHead.off), uint64(id))
	if !ok {
		return 0, false
	}
	node, err := s.kernel.ReadPointer(pid + arch.GVA(l.pidTasks.off)) // the first of them: PIDTYPE_PID
	if err != nil || kernelPointer(node) != nil {
		return 0, false
	}
	task := node - arch.GVA(s.l.task.pidLinks.off)
	t, err := s.readTask(task)
	return task, err == nil && t.pid == id && t.leader == task
}

// xaLoad returns what an xarray holds at an index; head is the address of its
// xa_head. Each step's shift is less than the one before, so it ends.
func (s *system) xaLoad(head arch.GVA, index uint64) (arch.GVA, bool) {
	l := &s.l.confine
	slots := l.xaSlots.size / uint64(s.word)
	if slots == 0 || slots > xaMaxSlots {
		return 0, false
	}
	at, err := s.kernel.ReadPointer(head)
	for last := uint8(xaMaxShift + 1); err == nil && at&xaTag == xaInternal; {
		node := at &^ xaTag
		if kernelPointer(node) != nil {
			return 0, false
		}
		shift, readErr := s.kernel.ReadUint8(node + arch.GVA(l.xaShift.off))
		if readErr != nil || shift >= last || index>>shift >= slots {
			return 0, false // beyond what the tree holds, or no tree
		}
		at, err = s.kernel.ReadPointer(node + arch.GVA(l.xaSlots.off) + s.words(int(index>>shift)))
		index, last = index&(1<<shift-1), shift
	}
	return at, err == nil && index == 0 && kernelPointer(at) == nil && at&xaTag == 0
}
