package windows

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
)

// thread is what was read of an ETHREAD at once.
type thread struct {
	record
	pid, tid int
	process  arch.GVA
}

func (s *system) readThread(as *vitrine.AddressSpace, addr arch.GVA) (thread, error) {
	r, err := s.load(as, "ETHREAD", addr, s.l.thread.size)
	if err != nil {
		if errors.Is(err, osi.ErrCorrupt) || pagedOut(err) {
			err = fmt.Errorf("%w: %w", osi.ErrNoProcess, err)
		}
		return thread{}, err
	}
	if r.buf[0] != threadObject {
		return thread{}, fmt.Errorf("object at %v has the type %d: %w", addr, r.buf[0], osi.ErrNoProcess)
	}
	l := &s.l.thread
	return thread{record: r, pid: int(r.ptr(l.pid)), tid: int(r.ptr(l.tid)), process: r.ptr(l.process)}, nil
}

// Threads implements osi.System. It corresponds to EPROCESS.ThreadListHead,
// in which threads are in the order in which they were made.
func (s *system) Threads(ctx context.Context, h osi.Handle) iter.Seq2[osi.Thread, error] {
	return func(yield func(osi.Thread, error) bool) {
		as := s.fresh()
		p, err := s.processOf(ctx, as, h)
		if err == nil && (!s.l.process.threads.ok || !s.l.thread.link.ok) {
			err = fmt.Errorf("list threads of process %d: where the kernel keeps them is not known: %w", p.pid, errors.ErrUnsupported)
		}
		if err != nil {
			yield(osi.Thread{}, err)
			return
		}
		all, listErr := s.threads(ctx, as, &p)
		for _, addr := range all {
			t, err := s.readThread(as, addr)
			if errors.Is(err, osi.ErrNoProcess) && s.g.Info().Live {
				continue // ended meanwhile
			}
			var out osi.Thread
			if err == nil {
				out = s.thread(&t, &p)
			}
			if !yield(out, err) || err != nil && fatal(err) {
				return
			}
		}
		if listErr != nil {
			yield(osi.Thread{}, fmt.Errorf("list threads of process %d: %w", p.pid, listErr))
		}
	}
}

func (s *system) threads(ctx context.Context, as *vitrine.AddressSpace, p *process) ([]arch.GVA, error) {
	if s.triage != nil {
		return []arch.GVA{s.triage.Thread}, ctx.Err()
	}
	return s.collect(ctx, as, p.addr+s.l.process.threads.off, s.l.thread.link.off, s.w, maxThreads)
}

// countThreads counts the threads on a process's list, at least one: for
// kernels of which it is not known where they keep the number.
func (s *system) countThreads(as *vitrine.AddressSpace, p *process) int {
	if !s.l.process.threads.ok || !s.l.thread.link.ok || s.triage != nil {
		return 1
	}
	all, _ := s.threads(context.Background(), as, p)
	return max(1, len(all))
}

// ThreadAt implements osi.System.
func (s *system) ThreadAt(ctx context.Context, task arch.GVA) (osi.Thread, error) {
	if err := ctx.Err(); err != nil {
		return osi.Thread{}, err
	}
	return s.threadAt(s.kernel, task)
}

func (s *system) threadAt(as *vitrine.AddressSpace, task arch.GVA) (osi.Thread, error) {
	t, err := s.readThread(as, task)
	if err != nil {
		return osi.Thread{}, err
	}
	p, err := s.readProcess(as, t.process)
	if err != nil {
		return osi.Thread{}, fmt.Errorf("read process of thread at %v: %w", task, err)
	}
	return s.thread(&t, &p), nil
}

// thread makes the record of a thread.
func (s *system) thread(t *thread, p *process) osi.Thread {
	l := &s.l.thread
	h := s.handleOf(p)
	h.Task = t.addr
	created := t.u64(l.created)
	// Until 2003 the time stands above three bits of something else.
	if kernel.Filetime(created).Year() > 2200 && kernel.Filetime(created>>3).Year() < 2200 {
		created >>= 3
	}
	return osi.Thread{Handle: h, TID: t.tid, PID: p.pid, PPID: p.parent, Name: s.name(p), State: s.state(t), KThread: p.kernelOnly,
		StartTime: kernel.Filetime(created), VCPU: int(t.uint(l.processor, 1)), ID: osi.MakeID(t.tid, time.Duration(created))}
}

// state returns the state of a thread by the letters of osi: KTHREAD_STATE is
// Initialized, Ready, Running, Standby, Terminated, Waiting, Transition,
// DeferredReady, and from 2003 on GateWait; wait reasons 5 and 12 are Suspended
// and WrSuspended.
func (s *system) state(t *thread) osi.State {
	if !s.l.thread.state.ok {
		return 0
	}
	switch t.uint(s.l.thread.state, 1) {
	case 0, 1, 2, 3, 7:
		return 'R'
	case 4:
		return 'X'
	case 5:
		if why := t.uint(s.l.thread.wait, 1); s.l.thread.wait.ok && (why == 5 || why == 12) {
			return 'T'
		}
		return 'S'
	case 6, 8:
		return 'S'
	}
	return 0
}

// Current implements osi.System. It takes the guest's number of a processor to
// be the hypervisor's. It corresponds to KPRCB.CurrentThread; an idle processor
// runs a thread of the process Idle, which has the id 0 and is on no list.
func (s *system) Current(ctx context.Context, vcpu int) (osi.Thread, error) {
	if vcpu < 0 || vcpu >= s.g.CPUs() {
		return osi.Thread{}, fmt.Errorf("find current thread: no virtual processor %d of %d", vcpu, s.g.CPUs())
	}
	if s.triage != nil {
		t, err := s.ThreadAt(ctx, s.triage.Thread)
		if err == nil && t.VCPU != vcpu {
			err = fmt.Errorf("the triage dump holds the thread of virtual processor %d only: %w", t.VCPU, osi.ErrNotFound)
		}
		return t, err
	}
	var last error
	for range attempts {
		if err := ctx.Err(); err != nil {
			return osi.Thread{}, err
		}
		at, err := s.nt.CurrentThread(ctx, vcpu)
		if err == nil {
			var t osi.Thread
			if t, err = s.threadAt(s.fresh(), at); err == nil {
				t.VCPU = vcpu
				return t, nil
			}
		}
		if last = err; fatal(err) {
			break
		}
	}
	return osi.Thread{}, fmt.Errorf("find current thread of virtual processor %d: %w", vcpu, last)
}
