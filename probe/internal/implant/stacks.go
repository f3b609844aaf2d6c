package implant

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vitrine-vmi/vitrine/arch"
)

// stacks finds what the guest's kernel stacks hold of the implant. The guest
// must be stopped.
type stacks struct {
	m *machine
	c *code

	queues                        []queue
	size                          uint64
	tasks, signal, head, node     uint64
	stack, sp, onRunqueue, pidOff uint64
	seen                          map[arch.GVA]bool
	buf                           []byte
}

// Bounds for the guest's lists.
const (
	maxTasks     = 1 << 18
	maxStackSize = 1 << 16
)

// verdict is what a look at all stacks found.
type verdict struct {
	returns []arch.GVA // places of return addresses into stubs: replaced by the gadget they do no harm
	busy    []string   // threads that are inside the implant
	tasks   int
}

func newStacks(m *machine, c *code) (*stacks, error) {
	s := &stacks{m: m, c: c, size: stackSize(m.f), queues: findQueues(m.f)}
	for _, o := range []struct {
		to         *uint64
		name, path string
	}{
		{&s.tasks, "task_struct", "tasks"}, {&s.signal, "task_struct", "signal"}, {&s.head, "signal_struct", "thread_head"},
		{&s.node, "task_struct", "thread_node"}, {&s.stack, "task_struct", "stack"}, {&s.sp, "task_struct", "thread.sp"},
		{&s.onRunqueue, "task_struct", "on_rq"}, {&s.pidOff, "task_struct", "pid"},
	} {
		var err error
		if *o.to, err = m.f.Offset(o.name, o.path); err != nil {
			return nil, fmt.Errorf("find kernel stacks: %w", err)
		}
	}
	return s, nil
}

// stackSize returns THREAD_SIZE: what the first task's stack has, 16 KiB where
// the kernel does not tell.
func stackSize(f Facts) uint64 {
	for _, pair := range [][2]string{
		{"__start_init_stack", "__end_init_stack"}, // since 6.10
		{"__start_init_task", "__end_init_task"},
	} {
		start, ok := f.Symbol(pair[0])
		end, okEnd := f.Symbol(pair[1])
		if n := uint64(end - start); ok && okEnd && end > start && n >= pageSize && n <= maxStackSize && n&(n-1) == 0 {
			return n
		}
	}
	return 16 << 10
}

// look goes through the processors and all threads. What cannot be read counts
// as busy: it may be about to change, and is never taken for free of us.
func (s *stacks) look() (*verdict, error) {
	v := &verdict{}
	s.seen = map[arch.GVA]bool{}
	n, err := s.m.as.ReadUint64(s.c.data + hdrInside)
	if err != nil {
		return nil, fmt.Errorf("read count of threads inside: %w", err)
	}
	if n != 0 {
		v.busy = append(v.busy, fmt.Sprintf("%d threads by its own count", n)) // in kernel functions that it has called
	}
	if err := s.processors(v); err != nil {
		return nil, err
	}
	init, _, err := first(s.m.f, "init_task")
	if err != nil {
		return nil, err
	}
	err = s.list(init+arch.GVA(s.tasks), s.tasks, func(leader arch.GVA) error { return s.group(leader, v) })
	if err != nil {
		return nil, fmt.Errorf("look through kernel stacks: %w", err)
	}
	return v, nil
}

// processors looks at what runs on them, and then at their idle tasks.
func (s *stacks) processors(v *verdict) error {
	var up []int
	for cpu := range s.m.g.CPUs() {
		r, err := s.m.ctl.Registers(cpu)
		if err != nil {
			return err
		}
		if r.PagingMode() == arch.PagingOff {
			continue // the kernel never brought it up, and may not know of it
		}
		up = append(up, cpu)
		if err := s.processor(cpu, r, v); err != nil {
			return err
		}
	}
	for _, cpu := range up { // once it is known which of them run
		if err := s.idle(cpu, v); err != nil {
			return err
		}
		if err := s.queued(cpu, v); err != nil {
			return err
		}
	}
	return nil
}

// list calls f for the structure around each entry of a circular list, the one
// around the head included when it is a task.
func (s *stacks) list(head arch.GVA, off uint64, f func(arch.GVA) error) error {
	at := head
	for n := 0; n < maxTasks; n++ {
		if err := f(at - arch.GVA(off)); err != nil {
			return err
		}
		next, err := s.m.as.ReadUint64(at)
		if err != nil {
			return err
		}
		if at = arch.GVA(next); at == head {
			return nil
		}
	}
	return errors.New("the list of tasks does not end")
}

// group looks at all threads of a process.
func (s *stacks) group(leader arch.GVA, v *verdict) error {
	signal, err := s.m.as.ReadUint64(leader + arch.GVA(s.signal))
	if err != nil {
		return err
	}
	head := arch.GVA(signal) + arch.GVA(s.head)
	at, err := s.m.as.ReadUint64(head)
	for n := 0; err == nil && arch.GVA(at) != head; n++ {
		if n == maxTasks {
			return errors.New("the list of threads does not end")
		}
		if err := s.thread(arch.GVA(at)-arch.GVA(s.node), v); err != nil {
			return err
		}
		at, err = s.m.as.ReadUint64(arch.GVA(at))
	}
	if err != nil {
		return err
	}
	return s.thread(leader, v)
}

// idle looks at a processor's idle task, which is on no list. (init_task, which
// is, is the first processor's.)
func (s *stacks) idle(cpu int, v *verdict) error {
	if _, ok := s.m.f.Symbol(idleTasks); !ok {
		return nil // a kernel for one processor
	}
	at, err := s.m.f.PerCPU(idleTasks, cpu)
	if err != nil {
		return err
	}
	task, err := s.m.as.ReadUint64(at)
	if err != nil || task == 0 {
		return err
	}
	return s.thread(arch.GVA(task), v)
}

// idleTasks is the per-CPU variable that holds the idle tasks of all
// processors but the first.
const idleTasks = "idle_threads"

// thread looks at the stack of a thread that does not run.
func (s *stacks) thread(task arch.GVA, v *verdict) error {
	if s.seen[task] {
		return nil
	}
	s.seen[task] = true
	v.tasks++
	stack, err := s.m.as.ReadUint64(task + arch.GVA(s.stack))
	if err != nil {
		return err
	}
	sp, err := s.m.as.ReadUint64(task + arch.GVA(s.sp))
	if err != nil {
		return err
	}
	if stack == 0 || sp < stack || sp >= stack+s.size {
		return nil // it has ended, or was never there
	}
	on, err := s.m.as.ReadUint32(task + arch.GVA(s.onRunqueue))
	if err != nil {
		return err
	}
	// What is not on a run queue sleeps, and the implant never does. (Since 6.12
	// sleepers may stay on their queue for a while.)
	s.scan(arch.GVA(sp), arch.GVA(stack+s.size), on != 0, task, v)
	return nil
}

// processor looks at what runs on a processor.
func (s *stacks) processor(cpu int, r *arch.Registers, v *verdict) error {
	if s.c.contains(r.RIP) {
		v.busy = append(v.busy, fmt.Sprintf("processor %d at %#x", cpu, r.RIP))
	}
	at, err := perCPUCurrent.at(s.m.f, cpu)
	if err != nil {
		return err
	}
	current, err := s.m.as.ReadUint64(at)
	if err != nil {
		return err
	}
	task := arch.GVA(current)
	s.seen[task] = true
	v.tasks++
	if r.User() {
		return nil
	}
	stack, err := s.m.as.ReadUint64(task + arch.GVA(s.stack))
	if err != nil {
		return err
	}
	for _, at := range []uint64{r.RSP, r.RSP + 8} { // a return thunk may be on its way there, by a call of its own
		if w := s.m.word(arch.GVA(at)); s.c.inner(w) {
			v.busy = append(v.busy, fmt.Sprintf("processor %d returns to %#x", cpu, w))
		}
	}
	if r.RSP < stack || r.RSP >= stack+s.size {
		// On an interrupt's stack: let it finish.
		v.busy = append(v.busy, fmt.Sprintf("processor %d is on another stack", cpu))
		return nil
	}
	s.scan(arch.GVA(r.RSP), arch.GVA(stack+s.size), true, task, v)
	return nil
}

// scan looks at the words from sp to the end of a stack. Of those that point
// into the implant some are return addresses of wrapped functions; some say
// where a thread was interrupted; and all others matter only while a thread is
// inside by the implant's own count, and are leftovers otherwise.
func (s *stacks) scan(sp, end arch.GVA, mayRun bool, task arch.GVA, v *verdict) {
	sp &^= 7
	s.buf = slices.Grow(s.buf[:0], int(s.size))[:end-sp]
	n, err := s.m.as.Read(s.buf, sp)
	if err != nil {
		v.busy = append(v.busy, fmt.Sprintf("the stack of task %v cannot be read: %v", task, err))
	}
	for off := 0; off+8 <= n; off += 8 {
		w := binary.LittleEndian.Uint64(s.buf[off:])
		if s.c.returnsHere(w) {
			v.returns = append(v.returns, sp+arch.GVA(off))
		}
		if mayRun && s.insideAt(s.buf[:n], off, uint64(sp)) {
			pid, _ := s.m.as.ReadUint32(task + arch.GVA(s.pidOff))
			v.busy = append(v.busy, fmt.Sprintf("thread %d was interrupted at %#x", pid, w))
		}
	}
}

// insideAt reports whether at offset off of the stack p, which begins at sp,
// lies the frame of an interrupt that hit the implant, or a return thunk of the
// kernel on its way back into the implant.
func (s *stacks) insideAt(p []byte, off int, sp uint64) bool {
	if !interrupted(p[off:], sp+uint64(off)) {
		return false
	}
	if s.c.contains(le64(p[off:])) {
		return true
	}
	at := le64(p[off+24:]) - sp
	return at+8 <= uint64(len(p)) && s.c.inner(le64(p[at:])) || at+16 <= uint64(len(p)) && s.c.inner(le64(p[at+8:]))
}

// kernelCS is __KERNEL_CS of x86-64.
const kernelCS = 0x10

// interrupted reports whether p, which lies at address at and begins with an
// instruction's address, is what a processor pushes when it is interrupted in
// the kernel: ip, cs, flags, sp, ss. The stack pointer was aligned before that,
// to 16 bytes, or 64 with FRED, which also uses the upper half of cs.
func interrupted(p []byte, at uint64) bool {
	if len(p) < 40 {
		return false
	}
	cs, flags, sp := le64(p[8:]), le64(p[16:]), le64(p[24:])
	return cs&0xffff == kernelCS && flags&2 != 0 && sp >= at+40 && sp < at+40+64
}
