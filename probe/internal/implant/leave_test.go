package implant

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// forged is a guest that an implant leaves. Two of its processors run init_task in
// user mode, the third was never brought up; a second thread was preempted, and
// so was the second processor's idle task, which is on no list.
type forged struct {
	*vitrinetest.Backend
	space *vitrinetest.Space
	as    *vitrine.AddressSpace
	p     planted
	m     *machine
}

// Where things are in it.
const (
	forgedInit   = arch.GVA(0xffff888000000000)
	forgedThread = forgedInit + 0x400
	forgedIdle   = forgedInit + 0x800
	forgedPerCPU = forgedInit + 0xc00 // 64 bytes of each processor
	initStack    = arch.GVA(0xffffc90000000000)
	threadStack  = arch.GVA(0xffffc90000010000)
	idleStack    = arch.GVA(0xffffc90000020000)
	forgedSP     = arch.GVA(0x1f80) // in a stack
	forgedBack   = arch.GVA(0x2ff0) // in a stack, the return address
)

var forgedMembers = map[string]arch.GVA{
	"tasks": 0, "signal": 16, "thread_node": 24, "stack": 40, "thread.sp": 48, "on_rq": 56, "pid": 60, "thread_head": 0,
	"cfs_tasks": 8, "se.group_node": 64, "rt.active.queue": 0x400, "rt.run_list": 80,
}

func newForged(t *testing.T) *forged {
	t.Helper()
	f := &forged{Backend: vitrinetest.New()}
	f.space = f.NewSpace(arch.Paging4Level)
	user := arch.Registers{CS: 0x33, CR0: arch.CR0PG, CR3: uint64(f.space.Root()), CR4: arch.CR4PAE, EFER: arch.EFERLMA}
	f.SetRegisters(user, user, arch.Registers{RIP: 0xfff0, CS: 0xf000})
	g := vitrine.New(forgedGuest{f}, vitrine.Info{Backend: "forged", Arch: arch.AMD64, CPUs: 3, Live: true})
	f.as = g.AddressSpace(arch.Paging4Level, f.space.Root())
	f.p.code = *testCode(3)
	f.space.Map(f.p.data, arch.PageSize, vitrinetest.Writable)
	f.space.Map(forgedInit, 2*arch.PageSize, vitrinetest.Writable)
	f.task(forgedInit, forgedThread, initStack)
	f.task(forgedThread, forgedInit, threadStack)
	f.task(forgedIdle, forgedIdle, idleStack)
	for cpu := range arch.GVA(2) {
		f.space.PutUint64(forgedPerCPU+64*cpu, uint64(forgedInit))
	}
	f.space.PutUint64(forgedPerCPU+64+8, uint64(forgedIdle))
	var err error
	if f.m, err = take(t.Context(), g, f); err != nil {
		t.Fatal(err)
	}
	return f
}

// task makes a process of one thread, with next behind it in the list.
func (f *forged) task(at, next, stack arch.GVA) {
	f.space.Map(stack, 16<<10, vitrinetest.Writable)
	for name, v := range map[string]arch.GVA{
		"tasks": next, "signal": at + 0x100, "stack": stack, "thread.sp": stack + forgedSP, "on_rq": 1,
	} {
		f.space.PutUint64(at+forgedMembers[name], uint64(v))
	}
	f.space.PutUint64(at+0x100, uint64(at+forgedMembers["thread_node"]))
	f.space.PutUint64(at+forgedMembers["thread_node"], uint64(at+0x100))
}

// back is where wrapped calls of the implant return to.
func (f *forged) back() uint64 { return uint64(f.p.stub(1)) - stubEntry + stubBack }

func (f *forged) Space() *vitrine.AddressSpace               { return f.as }
func (f *forged) SymbolAt(arch.GVA) (string, arch.GVA, bool) { return "", 0, false }
func (f *forged) Enum(string, string) (int64, error)         { return 0, errors.ErrUnsupported }
func (f *forged) InRegisters(string) error                   { return nil }

func (f *forged) Symbol(name string) (arch.GVA, bool) {
	a, ok := map[string]arch.GVA{"init_task": forgedInit, "current_task": 0, idleTasks: 8, runqueuesVar: 16}[name]
	return a, ok
}

func (f *forged) PerCPU(symbol string, cpu int) (arch.GVA, error) {
	if cpu > 1 {
		return 0, errors.New("the kernel has no such processor")
	}
	a, _ := f.Symbol(symbol)
	return forgedPerCPU + a + arch.GVA(64*cpu), nil
}

func (f *forged) Offset(_, path string) (uint64, error) {
	off, ok := forgedMembers[path]
	if !ok {
		return 0, errors.New("no member " + path)
	}
	return uint64(off), nil
}

// forgedGuest is the backend, whose methods have names that Facts has too.
type forgedGuest struct{ *forged }

func (g forgedGuest) OpenControl(context.Context) (vitrine.Control, error) {
	return &forgedControl{f: g.forged}, nil
}

// forgedControl is control of it. Each time that the guest is let run, the next
// of runs happens.
type forgedControl struct {
	vitrine.Control
	f           *forged
	runs        []func()
	interrupted bool
}

func (c *forgedControl) Registers(cpu int) (*arch.Registers, error) {
	return c.f.Registers(context.Background(), cpu)
}

func (c *forgedControl) Resume() error {
	if len(c.runs) > 0 {
		c.runs[0]()
		c.runs = c.runs[1:]
	}
	return nil
}

func (c *forgedControl) Interrupt() error {
	c.interrupted = true
	return nil
}

func (c *forgedControl) Wait(ctx context.Context) (vitrine.Stop, error) {
	if c.interrupted {
		c.interrupted = false
		return vitrine.Stop{Reason: vitrine.StopInterrupt}, nil
	}
	<-ctx.Done()
	return vitrine.Stop{}, ctx.Err()
}

// drained lets the implant leave while runs happen, and checks that the return
// address at a leads past it then.
func (f *forged) drained(t *testing.T, a arch.GVA, runs ...func()) {
	t.Helper()
	ctl := f.m.ctl.(*forgedControl)
	ctl.runs = runs
	if err := f.p.drain(f.m); err != nil {
		t.Fatal(err)
	}
	if len(ctl.runs) > 0 {
		t.Errorf("the guest was not let run %d times more", len(ctl.runs))
	}
	if got := f.space.Uint64(a); got != uint64(f.p.gadget) {
		t.Errorf("the return address at %v is %#x; want the gadget %v", a, got, f.p.gadget)
	}
}

func TestLeaveBlockedThread(t *testing.T) {
	f := newForged(t)
	f.space.PutUint64(threadStack+forgedBack, f.back())
	f.drained(t, threadStack+forgedBack)
}

// While a thread comes out, another ends, and a new one's stack comes to the same
// address with other pages.
func TestLeaveSeesStacksAsTheyAreMapped(t *testing.T) {
	f := newForged(t)
	inside := f.p.data + hdrInside
	f.space.PutUint64(inside, 1)
	before := f.space.Phys(threadStack + forgedBack)
	const other = 0x1234
	f.drained(t, threadStack+forgedBack, func() {
		f.space.Map(threadStack, 16<<10, vitrinetest.Writable)
		f.space.PutUint64(threadStack+forgedBack, f.back())
		f.PutUint64Physical(before, other)
		f.space.PutUint64(inside, 0)
	})
	var b [8]byte
	if _, err := f.ReadPhysical(b[:], before); err != nil || le64(b[:]) != other {
		t.Errorf("the page of the earlier stack holds %#x, %v; want %#x", le64(b[:]), err, other)
	}
}

// The same, where the earlier stack was looked at before the guest was stopped.
func TestTakeForgetsTranslations(t *testing.T) {
	f := newForged(t)
	if _, err := f.as.ReadUint64(threadStack + forgedBack); err != nil {
		t.Fatal(err)
	}
	f.space.Map(threadStack, 16<<10, vitrinetest.Writable)
	f.space.PutUint64(threadStack+forgedBack, f.back())
	var err error
	if f.m, err = take(t.Context(), f.m.g, f); err != nil {
		t.Fatal(err)
	}
	f.drained(t, threadStack+forgedBack)
}

// What cannot be read is not taken for free of the implant.
func TestLeaveWaitsForUnreadableStack(t *testing.T) {
	f := newForged(t)
	page := threadStack + forgedBack.Page()
	f.space.PutUint64(threadStack+forgedBack, f.back())
	at := f.space.Phys(page)
	f.space.Unmap(page)
	f.drained(t, threadStack+forgedBack, func() { f.space.MapTo(page, at, arch.PageSize, vitrinetest.Writable) })
}

// queue puts tasks into a list of a processor's run queue.
func (f *forged) queue(cpu int, list, entry string, tasks ...arch.GVA) {
	head := forgedPerCPU + arch.GVA(64*cpu) + 16 + forgedMembers[list]
	at := head
	for _, task := range tasks {
		node := task + forgedMembers[entry]
		f.space.PutUint64(at, uint64(node))
		at = node
	}
	f.space.PutUint64(at, uint64(head))
}

// A thread that was preempted on its way through do_exit is off the list of
// tasks, and waits for its processor.
func TestLeaveDyingThread(t *testing.T) {
	for list, entry := range map[string]string{"cfs_tasks": "se.group_node", "rt.active.queue": "rt.run_list"} {
		t.Run(list, func(t *testing.T) {
			f := newForged(t)
			dying, stack := forgedInit+0xd00, arch.GVA(0xffffc90000030000)
			f.task(dying, dying, stack)
			f.space.PutUint64(stack+forgedBack, f.back())
			f.queue(0, list, entry)
			f.queue(1, list, entry, forgedThread, dying)
			f.drained(t, stack+forgedBack)
		})
	}
}

// A run queue that is just being changed is looked at again.
func TestLeaveTornRunQueue(t *testing.T) {
	f := newForged(t)
	f.space.PutUint64(threadStack+forgedBack, f.back())
	f.queue(0, "cfs_tasks", "se.group_node", forgedThread)
	node := forgedThread + forgedMembers["se.group_node"]
	f.space.PutUint64(node, uint64(node)) // on a list that a load balancer has, of which this is not the head
	f.drained(t, threadStack+forgedBack, func() { f.queue(0, "cfs_tasks", "se.group_node") })
}

func TestLeaveIdleTask(t *testing.T) {
	f := newForged(t)
	f.space.PutUint64(idleStack+forgedBack, f.back())
	f.drained(t, idleStack+forgedBack)
}

// A thread that was preempted inside the implant, or in a function that returns
// into it, is waited for, and so is a processor on a stack that is not its thread's.
func TestLeaveWaitsForThreadsInside(t *testing.T) {
	for name, tt := range map[string]struct{ ip, top uint64 }{
		"inside":        {uint64(testCode(3).stub(1)), 0},
		"return thunk":  {0xffffffff81000000, uint64(testCode(3).stub(1)) + 9},
		"its own calls": {0xffffffff81000000, uint64(testCode(3).base) + codeHeaderSize},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForged(t)
			frame := threadStack + forgedSP + 0x40
			put := func(ip uint64) {
				for i, v := range []uint64{ip, kernelCS, 0x246, uint64(frame) + 40, 0x18, tt.top} {
					f.space.PutUint64(frame+arch.GVA(8*i), v)
				}
			}
			put(tt.ip)
			f.space.PutUint64(threadStack+forgedBack, f.back())
			f.drained(t, threadStack+forgedBack, func() {}, func() {
				tt.top = 0
				put(0xffffffff81000000)
			})
		})
	}
}

func TestLeaveWaitsForProcessorOnAnotherStack(t *testing.T) {
	f := newForged(t)
	regs, err := f.Registers(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	user, kernel := *regs, *regs
	kernel.CS, kernel.RSP, kernel.RIP = kernelCS, uint64(idleStack+0x1000), 0xffffffff81000000
	f.SetRegisters(kernel, user, arch.Registers{})
	f.space.PutUint64(initStack+forgedBack, f.back())
	f.drained(t, initStack+forgedBack, func() {
		kernel.RSP = uint64(initStack + forgedSP)
		f.SetRegisters(kernel, user, arch.Registers{})
	})
}

func TestWriteFresh(t *testing.T) {
	f := newForged(t)
	a := threadStack + forgedBack
	if _, err := f.as.ReadUint64(a); err != nil {
		t.Fatal(err)
	}
	f.space.Map(threadStack, 16<<10, vitrinetest.Writable)
	if err := writeFresh(f.as, []byte{7, 0, 0, 0, 0, 0, 0, 0}, a); err != nil {
		t.Fatal(err)
	}
	if got := f.space.Uint64(a); got != 7 {
		t.Errorf("%v holds %#x; want 7", a, got)
	}
	if err := writeFresh(f.as, make([]byte, 8), a+1); err == nil || !strings.Contains(err.Error(), "aligned") {
		t.Errorf("an address across pages: %v", err)
	}
	if err := writeFresh(f.as, make([]byte, 8), 0x1000); err == nil {
		t.Error("an address that is not mapped is written")
	}
}
