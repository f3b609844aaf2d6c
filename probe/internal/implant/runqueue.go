package implant

import (
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine/arch"
)

// queue is one kind of list in a processor's run queue: of the threads that
// want to run there.
//
// A thread that ends leaves the list of tasks in exit_notify, or whenever its
// parent comes by after that, and runs on to its end in do_exit. Preempted on
// that way, inside a wrapped function or in the implant itself, it is on no list
// but these. It sleeps no more on that way, where it would be on none.
type queue struct {
	heads uint64 // offset in struct rq of the first list's head
	n     int    // how many heads there are
	node  uint64 // offset in task_struct of the list's entry
}

// runqueuesVar is the per-CPU variable with the run queues.
const runqueuesVar = "runqueues"

// maxQueued bounds the threads that wait for one processor.
const maxQueued = 1 << 16

// findQueues returns the lists that the kernel has. Threads with a deadline
// (SCHED_DEADLINE) are in a tree, together with what is none; they are left out.
func findQueues(f Facts) []queue {
	if _, ok := f.Symbol(runqueuesVar); !ok {
		return nil
	}
	var all []queue
	for _, q := range []struct {
		heads string
		n     int
		node  string
	}{
		{"cfs_tasks", 1, "se.group_node"},             // all threads of the fair class
		{"rt.active.queue", 100, "rt.run_list"},       // MAX_RT_PRIO
		{"scx.runnable_list", 1, "scx.runnable_node"}, // since 6.12
	} {
		heads, err1 := f.Offset("rq", q.heads)
		node, err2 := f.Offset("task_struct", q.node)
		_, groups := f.Offset("sched_rt_entity", "my_q") // an entry may be a group of threads then
		if err1 != nil || err2 != nil || q.n > 1 && groups == nil {
			continue
		}
		all = append(all, queue{heads, q.n, node})
	}
	return all
}

// queued looks at the threads that wait for a processor. A list that is being
// changed is looked at again.
func (s *stacks) queued(cpu int, v *verdict) error {
	if len(s.queues) == 0 {
		return nil
	}
	rq, err := s.m.f.PerCPU(runqueuesVar, cpu)
	if err != nil {
		return err
	}
	for _, q := range s.queues {
		for i := range q.n {
			if err := s.queue(rq+arch.GVA(q.heads)+arch.GVA(16*i), q.node, v); err != nil {
				v.busy = append(v.busy, fmt.Sprintf("the run queue of processor %d: %v", cpu, err))
			}
		}
	}
	return nil
}

// queue looks at the threads in the list with that head.
func (s *stacks) queue(head arch.GVA, node uint64, v *verdict) error {
	next, err := s.m.as.ReadUint64(head)
	for n := 0; err == nil && next != 0 && arch.GVA(next) != head; n++ {
		if n == maxQueued {
			return errors.New("it does not end")
		}
		if err := s.thread(arch.GVA(next)-arch.GVA(node), v); err != nil {
			return err
		}
		next, err = s.m.as.ReadUint64(arch.GVA(next))
	}
	return err
}
