package linux

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// leaders returns the tasks of the first threads of all processes, in the order
// in which they were made; with an error, those that could be reached.
func (s *system) leaders(ctx context.Context) ([]arch.GVA, error) {
	head := s.initTask + arch.GVA(s.l.task.tasks.off)
	all, err := s.collect(ctx, s.kernel, head, s.l.task.tasks.off, maxTasks)
	if err != nil {
		err = fmt.Errorf("list processes: %w", err)
	}
	return all, err
}

// ProcessHandles implements osi.System. It corresponds to the list
// init_task.tasks.
func (s *system) ProcessHandles(ctx context.Context) iter.Seq2[osi.Handle, error] {
	return func(yield func(osi.Handle, error) bool) {
		s.eachLeader(ctx, func(t *task, err error) bool {
			if err != nil {
				return yield(osi.Handle{}, err)
			}
			asid, err := s.asid(t.userMM())
			return yield(osi.Handle{Task: t.addr, ASID: asid}, err)
		})
	}
}

// Processes implements osi.System.
func (s *system) Processes(ctx context.Context) iter.Seq2[osi.Process, error] {
	return func(yield func(osi.Process, error) bool) {
		boot, names := s.bootTime(), s.newResolver(s.kernel)
		names.parents = map[arch.GVA]int{}
		s.eachLeader(ctx, func(t *task, err error) bool {
			if err != nil {
				return yield(osi.Process{}, err)
			}
			p, err := s.settled(t, boot, names)
			if err != nil && !s.linked(s.kernel, t.addr+arch.GVA(s.l.task.tasks.off)) {
				return true // it ended while it was read: it is no process any more
			}
			return yield(p, err)
		})
	}
}

// eachLeader calls f with each process's first task, or with the error that
// stands for one, until f returns false. Tasks that end meanwhile are passed over.
func (s *system) eachLeader(ctx context.Context, f func(*task, error) bool) {
	all, listErr := s.leaders(ctx)
	for _, addr := range all {
		if err := ctx.Err(); err != nil {
			f(nil, err)
			return
		}
		t, err := s.readTask(addr)
		if err == nil && t.leader != addr || errors.Is(err, osi.ErrNoProcess) {
			continue // ended, or its memory is another thread's by now
		}
		if !f(&t, err) || err != nil && fatal(err) {
			return
		}
	}
	if listErr != nil {
		f(nil, listErr)
	}
}

// Process implements osi.System.
func (s *system) Process(ctx context.Context, h osi.Handle) (osi.Process, error) {
	t, err := s.leaderOf(ctx, h)
	if err != nil {
		return osi.Process{}, err
	}
	return s.settled(&t, s.bootTime(), s.newResolver(s.kernel))
}

// ProcessByPID implements osi.System. It corresponds to init_pid_ns.idr; what is
// not found there, as the tree was just changing, is looked for on the list.
func (s *system) ProcessByPID(ctx context.Context, pid int) (osi.Process, error) {
	if err := ctx.Err(); err != nil {
		return osi.Process{}, err
	}
	if task, ok := s.taskByID(pid); ok {
		if p, err := s.Process(ctx, osi.Handle{Task: task}); p.PID == pid {
			return p, err
		}
	}
	all, err := s.leaders(ctx)
	for _, addr := range all {
		id, readErr := s.kernel.ReadUint32(addr + arch.GVA(s.l.task.tgid.off))
		if readErr != nil || int(int32(id)) != pid {
			continue
		}
		if p, err := s.Process(ctx, osi.Handle{Task: addr}); p.PID == pid {
			return p, err
		}
	}
	if err == nil {
		err = osi.ErrNoProcess
	}
	return osi.Process{}, fmt.Errorf("find process %d: %w", pid, err)
}

// Threads implements osi.System. It corresponds to the list
// task_struct->signal->thread_head.
func (s *system) Threads(ctx context.Context, h osi.Handle) iter.Seq2[osi.Thread, error] {
	return func(yield func(osi.Thread, error) bool) {
		leader, err := s.leaderOf(ctx, h)
		if err != nil {
			yield(osi.Thread{}, err)
			return
		}
		head := leader.signal + arch.GVA(s.l.signal.threadHead.off)
		all, listErr := s.collect(ctx, s.kernel, head, s.l.task.threadNode.off, maxTasks)
		boot, parents := s.bootTime(), map[arch.GVA]int{}
		for _, addr := range all {
			t, err := s.readTask(addr)
			if err == nil && t.tgid != leader.tgid || errors.Is(err, osi.ErrNoProcess) {
				continue // ended meanwhile
			}
			var th osi.Thread
			if err == nil {
				th, err = s.thread(&t, boot, parents)
			}
			if !yield(th, err) || err != nil && fatal(err) {
				return
			}
		}
		if listErr != nil {
			yield(osi.Thread{}, fmt.Errorf("list threads of process %d: %w", leader.tgid, listErr))
		}
	}
}

// ThreadAt implements osi.System.
func (s *system) ThreadAt(ctx context.Context, addr arch.GVA) (osi.Thread, error) {
	if err := ctx.Err(); err != nil {
		return osi.Thread{}, err
	}
	t, err := s.readTask(addr)
	if err != nil {
		return osi.Thread{}, err
	}
	return s.thread(&t, s.bootTime(), nil)
}

// Current implements osi.System. It takes the guest's number of a processor to
// be the hypervisor's. It corresponds to the per-processor variable
// current_task, from 6.2 to 6.14 a member of pcpu_hot.
func (s *system) Current(ctx context.Context, vcpu int) (osi.Thread, error) {
	// Many images don't tell how many there are; the kernel's own limit then holds.
	if vcpu < 0 || s.g.Info().Live && vcpu >= s.g.CPUs() {
		return osi.Thread{}, fmt.Errorf("find current thread: no virtual processor %d of %d", vcpu, s.g.CPUs())
	}
	at, err := s.currentSlot(ctx, vcpu)
	if err != nil {
		return osi.Thread{}, fmt.Errorf("find current thread of virtual processor %d: %w", vcpu, err)
	}
	var th osi.Thread
	err = retry(ctx, s.kernel, func() error {
		addr, err := s.kernel.ReadPointer(at)
		if err != nil {
			return err
		}
		th, err = s.ThreadAt(ctx, addr)
		return err
	})
	th.VCPU = vcpu
	return th, err
}

// currentSlot returns where a processor keeps the pointer to its task.
func (s *system) currentSlot(ctx context.Context, cpu int) (arch.GVA, error) {
	if s.arm64() {
		return s.runqueueSlot(ctx, cpu)
	}
	if s.l.pcpuHot.current.ok() {
		if hot, err := s.k.PerCPU("pcpu_hot", cpu); err == nil {
			return hot + arch.GVA(s.l.pcpuHot.current.off), nil
		}
	}
	return s.k.PerCPU("current_task", cpu)
}

// settled makes the record of a process and tries again while parts of it come
// out torn: an exec in between replaces memory descriptor, executable and
// arguments.
func (s *system) settled(t *task, boot time.Time, names *resolver) (osi.Process, error) {
	p, err := s.process(t, boot, names)
	for range attempts {
		if err == nil || !transient(err) {
			break
		}
		again, readErr := s.readTask(t.addr)
		if readErr != nil || again.mm == t.mm {
			break // nothing has moved: it is as bad as it looks
		}
		*t = again
		p, err = s.process(t, boot, names)
	}
	return p, err
}
