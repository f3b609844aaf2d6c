package implant

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
)

// thread is a thread of the guest that runs functions for us. It was caught at
// the first instruction of a function that it was about to run, in process
// context, with interrupts on and no lock held.
type thread struct {
	m    *machine
	cpu  int            // where it stands now
	at   arch.GVA       // where it was caught, and where calls return to
	regs arch.Registers // as it was caught
	lost bool           // it is in a call that has not returned
}

// Functions in which a thread may be caught: system calls that programs make
// all the time, and for a guest that is idle, the kernel's own deferred work.
var lent = []string{
	"read", "write", "openat", "close", "newfstat", "newfstatat", "poll", "ppoll", "select", "pselect6", "epoll_wait",
	"epoll_pwait", "futex", "nanosleep", "clock_nanosleep", "wait4", "waitid", "getpid", "getppid", "ioctl", "mmap", "munmap",
	"brk", "rt_sigaction", "rt_sigprocmask", "recvmsg", "recvfrom", "sendto", "sched_yield", "access", "getdents64", "fcntl",
	"lseek", "pread64", "newstat", "newlstat", "clone", "execve", "pipe2", "kill", "times", "sysinfo",
}

const workFunction = "process_one_work"

// lentTime is how long a guest may take to lend a thread.
const lentTime = 60 * time.Second

// callTime is how long a borrowed call may take. A thread in a call cannot be
// given back, so this is not the caller's deadline.
const callTime = 60 * time.Second

var errNoThread = errors.New("no thread of the guest came by that could be borrowed")

// borrow catches a thread, lets f make calls on it, and sends it on its way as
// if nothing had happened. The guest is stopped before and after. Between
// calls f finds it stopped, with the thread on processor t.cpu.
func (m *machine) borrow(ctx context.Context, f func(t *thread) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, lentTime, errNoThread)
	defer cancel()
	t, err := m.catch(ctx)
	if err != nil {
		return fmt.Errorf("borrow thread: %w", err)
	}
	err = f(t)
	if backErr := t.giveBack(); backErr != nil {
		return errors.Join(err, left(fmt.Errorf("give thread back: %w", backErr)))
	}
	return err
}

// findPlaces returns the addresses to catch threads at: each is a nop, so that a
// thread which is not wanted can pass it by moving its program counter.
func (m *machine) findPlaces() []arch.GVA {
	var places []arch.GVA
	for _, name := range lent {
		a, ok := m.f.Symbol("__x64_sys_" + name)
		if !ok {
			continue
		}
		if p, err := m.nopAt(a); err == nil {
			places = append(places, p)
		}
	}
	return places
}

// nopAt returns the address of the nop at a function's start.
func (m *machine) nopAt(a arch.GVA) (arch.GVA, error) {
	var b [9]byte
	if _, err := m.as.Read(b[:], a); err != nil {
		return 0, err
	}
	if string(b[:4]) == string(landingPad) {
		if _, ok := isNop(b[4:]); ok {
			return a + 4, nil
		}
	}
	if _, ok := isNop(b[:]); ok {
		return a, nil
	}
	return 0, fmt.Errorf("%v does not start with a nop (% x)", a, b)
}

// catcher waits for a thread that can be borrowed.
type catcher struct {
	m    *machine
	work arch.GVA // the nop of process_one_work, 0 when it has none
	fn   uint64   // offset of work_struct.func
	set  map[arch.GVA]bool
}

// maxPlaces bounds the breakpoints on functions that the guest's work names.
const maxPlaces = 256

func (m *machine) catch(ctx context.Context) (*thread, error) {
	c := &catcher{m: m, set: map[arch.GVA]bool{}}
	defer c.clear()
	if a, ok := m.f.Symbol(workFunction); ok {
		fn, err := m.f.Offset("work_struct", "func")
		if p, nopErr := m.nopAt(a); err == nil && nopErr == nil {
			c.work, c.fn = p, fn
		}
	}
	places := m.places
	if c.work != 0 {
		places = append(places, c.work)
	}
	if err := c.plant(places...); err != nil {
		return nil, err
	}
	for {
		s, err := m.next(ctx)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return nil, err
		}
		if t, err := c.consider(s.CPU); t != nil || err != nil {
			return t, err
		}
	}
}

func (c *catcher) plant(places ...arch.GVA) error {
	var more []arch.GVA
	for _, a := range places {
		if !c.set[a] && len(c.set) < maxPlaces {
			c.set[a] = true
			more = append(more, a)
		}
	}
	return c.m.ctl.Insert(arch.BreakSoftware, more...)
}

// clear takes out all breakpoints. A failure shows again at the next use of
// the connection.
func (c *catcher) clear() {
	_ = c.m.ctl.Remove(arch.BreakSoftware, slices.Collect(maps.Keys(c.set))...)
}

// consider looks at a stop: it returns the thread if it will do, else brings it
// past the breakpoint.
func (c *catcher) consider(cpu int) (*thread, error) {
	r, err := c.m.ctl.Registers(cpu)
	if err != nil {
		return nil, err
	}
	at := r.PC()
	if !c.set[at] {
		return nil, nil
	}
	if at == c.work {
		if err := c.follow(r.RSI); err != nil {
			return nil, err
		}
	} else if c.m.lendable(r) {
		return &thread{m: c.m, cpu: cpu, at: at, regs: *r}, nil
	}
	return nil, c.m.ctl.SetPC(cpu, at+nopSize)
}

// follow sets a breakpoint on the function of a work item: process_one_work
// itself is entered with its pool's lock held.
func (c *catcher) follow(work uint64) error {
	fn := arch.GVA(c.m.word(arch.GVA(work + c.fn)))
	p, err := c.m.nopAt(fn)
	if err != nil {
		return nil // that work cannot be used; there will be other
	}
	return c.plant(p)
}

// lendable reports whether the thread at r may be made to sleep.
func (m *machine) lendable(r *arch.Registers) bool {
	return !r.User() && r.RFLAGS&arch.RFLAGSIF != 0 && m.preemptCount(r) == 0
}

// preemptCount returns the preemption count of the processor with the registers
// r; the top bit is another flag.
func (m *machine) preemptCount(r *arch.Registers) uint32 {
	d, err := perCPUPreempt.displacement(m.f)
	if err != nil {
		return 1
	}
	v, err := m.as.ReadUint32(arch.GVA(r.GSBase + d))
	if err != nil {
		return 1
	}
	return v &^ (1 << 31)
}

// call runs fn on the thread and returns its result. Other threads run too.
func (t *thread) call(fn arch.GVA, args ...uint64) (uint64, error) {
	r := t.regs
	r.RSP = (r.RSP-256)&^15 - 8
	r.RIP, r.RAX = uint64(fn), 0
	for i, a := range args {
		r.SetArg(i, a)
	}
	var back [8]byte
	binary.LittleEndian.PutUint64(back[:], uint64(t.at))
	if err := t.m.as.Write(back[:], arch.GVA(r.RSP)); err != nil {
		return 0, err
	}
	if err := t.m.ctl.SetRegisters(t.cpu, &r); err != nil {
		return 0, err
	}
	if err := t.m.ctl.Insert(arch.BreakSoftware, t.at); err != nil {
		return 0, err
	}
	t.lost = true
	result, err := t.await(r.RSP + 8)
	if removeErr := t.m.ctl.Remove(arch.BreakSoftware, t.at); err == nil {
		err = removeErr
	}
	return result, err
}

// await lets the guest run until the call has returned with the stack at sp.
func (t *thread) await(sp uint64) (uint64, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), callTime, errors.New("borrowed call does not return"))
	defer cancel()
	for {
		s, err := t.m.next(ctx)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return 0, err
		}
		r, err := t.m.ctl.Registers(s.CPU)
		if err != nil {
			return 0, err
		}
		if r.PC() != t.at {
			continue
		}
		if r.RSP == sp {
			t.cpu, t.lost = s.CPU, false
			return r.RAX, nil
		}
		if err := t.m.ctl.SetPC(s.CPU, t.at+nopSize); err != nil {
			return 0, err
		}
	}
}

// giveBack restores the thread's registers.
func (t *thread) giveBack() error {
	if t.lost {
		return errors.New("it has not come back from a call")
	}
	return t.m.ctl.SetRegisters(t.cpu, &t.regs)
}
