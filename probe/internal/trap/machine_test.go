package trap

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"golang.org/x/arch/x86/x86asm"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// The simulated kernel's layout.
const (
	textBase  = arch.GVA(0xffffffff81000000)
	textSize  = 1 << 20
	taskBase  = arch.GVA(0xffff888000100000)
	taskSize  = 0x1000
	stackBase = arch.GVA(0xffffc90000000000) // of tasks, then of processors
	stackLen  = 0x4000
	gsBase    = arch.GVA(0xffff888000200000)
	gsStride  = 0x1000
	currentAt = arch.GVA(0x40) // per-CPU offset of the current task pointer
	stackAt   = 0x20           // task_struct.stack

	exitMagic = uint64(0xffffffff810ff000) // where a thread's first function returns to
	irqMagic  = uint64(0xffffffff810ff010) // where an interrupt's function returns to
)

// machine is a fake guest whose processors interpret a little of x86-64: the
// instructions of program_test.go, by a decoder and semantics that have nothing
// in common with the engine's. Threads move between processors and are
// preempted at random, and interrupts run on stacks of their own.
type machine struct {
	*vitrinetest.Backend
	t     testing.TB
	g     *vitrine.Guest
	space *vitrinetest.Space
	as    *vitrine.AddressSpace
	rand  *rand.Rand

	threads []*thread
	cpus    []*processor
	irq     []uint64               // entries of functions that interrupts run
	onExec  func(*thread, uint64)  // told of each instruction before it runs
	decoded map[uint64]x86asm.Inst // by address
	bps     map[arch.GVA]bool      // planted now
	ever    map[arch.GVA]bool      // planted at some time
	fail    map[string]int         // operation: calls until it fails
	count   map[string]int         // calls of Control by operation
	status  map[string]bool        // facts for the tests: "closed"
	mu      sync.Mutex             // protects int
	intr    bool                   // Interrupt was called
	running bool
	finish  func() // called when all threads are done
	skip    bool   // see exec
}

type thread struct {
	id    int
	regs  arch.Registers
	saved []arch.Registers // of interrupted code
	work  []uint64         // entries of functions still to be called
	done  bool
}

type processor struct {
	n      int
	thread *thread // nil: idle
}

var errInjected = errors.New("injected")

func newMachine(t testing.TB, seed uint64, cpus int) *machine {
	b := vitrinetest.New()
	b.SetLog(false)
	m := &machine{Backend: b, t: t, rand: rand.New(rand.NewPCG(seed, 7)), decoded: map[uint64]x86asm.Inst{},
		bps: map[arch.GVA]bool{}, ever: map[arch.GVA]bool{}, fail: map[string]int{}, count: map[string]int{}, status: map[string]bool{}}
	m.space = b.NewSpace(arch.Paging4Level)
	m.space.Map(textBase, textSize, 0)
	m.space.Map(gsBase, gsStride*uint64(cpus), vitrinetest.Writable)
	for n := range cpus {
		m.cpus = append(m.cpus, &processor{n: n})
		m.space.Map(m.irqStack(n)-stackLen, stackLen, vitrinetest.Writable)
	}
	m.g = vitrine.New(m, vitrine.Info{Name: "sim", Backend: "sim", Arch: arch.AMD64, CPUs: cpus, Live: true})
	m.as = m.g.AddressSpace(arch.Paging4Level, m.space.Root())
	return m
}

// irqStack returns the top of a processor's interrupt stack.
func (m *machine) irqStack(cpu int) arch.GVA {
	return stackBase + 0x10000000 + arch.GVA(cpu)*0x10000 + stackLen
}

// addThread makes a thread that calls the functions at work one after the other.
func (m *machine) addThread(work []uint64) *thread {
	th := &thread{id: len(m.threads), work: work}
	task := m.taskOf(th)
	stack := stackBase + arch.GVA(th.id)*stackLen
	m.space.Map(stack, stackLen, vitrinetest.Writable)
	m.space.Map(task, taskSize, vitrinetest.Writable)
	m.space.PutUint64(task+stackAt, uint64(stack))
	th.regs = arch.Registers{RSP: uint64(stack + stackLen - 64), CR0: arch.CR0PE | arch.CR0PG, CR4: arch.CR4PAE,
		EFER: arch.EFERLMA, CR3: uint64(m.space.Root()), CS: 0x10, RIP: exitMagic, RFLAGS: 2}
	m.threads = append(m.threads, th)
	return th
}

func (m *machine) taskOf(th *thread) arch.GVA { return taskBase + arch.GVA(th.id)*taskSize }

// place puts a thread on a processor, whose current task pointer says so.
func (m *machine) place(c *processor, th *thread) {
	c.thread = th
	if th == nil {
		return
	}
	gs := gsBase + arch.GVA(c.n)*gsStride
	th.regs.GSBase = uint64(gs)
	m.space.PutUint64(gs+currentAt, uint64(m.taskOf(th)))
}

// schedule lets another thread, or the same, run on a processor.
func (m *machine) schedule(c *processor) {
	var ready []*thread
	for _, th := range m.threads {
		if !th.done && !m.isRunning(th, c) && len(th.saved) == 0 {
			ready = append(ready, th)
		}
	}
	if c.thread != nil && len(c.thread.saved) > 0 {
		return // within an interrupt
	}
	if len(ready) == 0 {
		m.place(c, nil)
		return
	}
	m.place(c, ready[m.rand.IntN(len(ready))])
}

func (m *machine) isRunning(th *thread, but *processor) bool {
	for _, c := range m.cpus {
		if c != but && c.thread == th {
			return true
		}
	}
	return false
}

// tick lets one processor do one instruction. It returns its number when a
// breakpoint stops it, -1 otherwise.
func (m *machine) tick() int {
	c := m.cpus[m.rand.IntN(len(m.cpus))]
	if c.thread == nil || c.thread.done || m.rand.IntN(20) == 0 {
		m.schedule(c)
	}
	th := c.thread
	if th == nil {
		return -1
	}
	if len(m.irq) > 0 && len(th.saved) == 0 && m.rand.IntN(40) == 0 && th.regs.RIP != exitMagic {
		m.interruptThread(c)
	}
	if m.bps[th.regs.PC()] {
		return c.n
	}
	m.exec(th)
	return -1
}

func (m *machine) interruptThread(c *processor) {
	th := c.thread
	th.saved = append(th.saved, th.regs)
	th.regs.RSP = uint64(m.irqStack(c.n)) - 64
	m.push(th, irqMagic)
	th.regs.RIP = m.irq[m.rand.IntN(len(m.irq))]
}

func (m *machine) push(th *thread, v uint64) {
	th.regs.RSP -= 8
	m.space.PutUint64(arch.GVA(th.regs.RSP), v)
}

func (m *machine) pop(th *thread) uint64 {
	v := m.space.Uint64(arch.GVA(th.regs.RSP))
	th.regs.RSP += 8
	return v
}

// exec runs one instruction of a thread.
func (m *machine) exec(th *thread) {
	r := &th.regs
	switch r.RIP {
	case exitMagic:
		if len(th.work) == 0 {
			th.done = true
			if m.finish != nil && m.finished() {
				m.finish()
			}
			return
		}
		m.push(th, exitMagic)
		r.RIP, th.work = th.work[0], th.work[1:]
		return
	case irqMagic:
		gs := r.GSBase
		th.regs = th.saved[len(th.saved)-1]
		th.regs.GSBase = gs
		th.saved = th.saved[:len(th.saved)-1]
		return
	}
	if m.onExec != nil {
		m.onExec(th, r.RIP)
	}
	if m.skip { // onExec has put the thread somewhere else
		m.skip = false
		return
	}
	m.interpret(th, m.decode(r.RIP))
}

func (m *machine) decode(pc uint64) x86asm.Inst {
	if in, ok := m.decoded[pc]; ok {
		return in
	}
	var b [15]byte
	if _, err := m.as.Read(b[:], arch.GVA(pc)); err != nil {
		m.t.Fatalf("fetch at %#x: %v", pc, err)
	}
	in, err := x86asm.Decode(b[:], 64)
	if b[0] == 0xf3 && b[1] == 0x0f && b[2] == 0x1e && b[3] == 0xfa {
		in, err = x86asm.Inst{Op: x86asm.NOP, Len: 4}, nil
	}
	if err != nil {
		m.t.Fatalf("decode at %#x: %v: % x", pc, err, b)
	}
	m.decoded[pc] = in
	return in
}

func (m *machine) reg(r *arch.Registers, a x86asm.Arg) *uint64 {
	switch a {
	case x86asm.RAX:
		return &r.RAX
	case x86asm.RBX:
		return &r.RBX
	case x86asm.RBP:
		return &r.RBP
	case x86asm.RSP:
		return &r.RSP
	case x86asm.RDI:
		return &r.RDI
	case x86asm.R11:
		return &r.R11
	case x86asm.R12:
		return &r.R12
	}
	m.t.Fatalf("simulated code uses %v", a)
	return nil
}

func (m *machine) interpret(th *thread, in x86asm.Inst) {
	r := &th.regs
	next := r.RIP + uint64(in.Len)
	r.RIP = next
	switch in.Op {
	case x86asm.NOP:
	case x86asm.PUSH:
		m.push(th, *m.reg(r, in.Args[0]))
	case x86asm.POP:
		*m.reg(r, in.Args[0]) = m.pop(th)
	case x86asm.MOV:
		if imm, ok := in.Args[1].(x86asm.Imm); ok {
			*m.reg(r, in.Args[0]) = uint64(imm)
		} else {
			*m.reg(r, in.Args[0]) = *m.reg(r, in.Args[1])
		}
	case x86asm.ADD:
		*m.reg(r, in.Args[0]) += uint64(in.Args[1].(x86asm.Imm))
	case x86asm.SUB:
		p := m.reg(r, in.Args[0])
		*p -= uint64(in.Args[1].(x86asm.Imm))
		if r.RFLAGS &^= 1 << 6; *p == 0 {
			r.RFLAGS |= 1 << 6
		}
	case x86asm.JE:
		if r.RFLAGS&(1<<6) != 0 {
			r.RIP = next + uint64(int64(in.Args[0].(x86asm.Rel)))
		}
	case x86asm.RET:
		r.RIP = m.pop(th)
	case x86asm.CALL, x86asm.JMP:
		m.branch(th, in, next)
	default:
		m.t.Fatalf("simulated code has %v at %#x", in, next-uint64(in.Len))
	}
}

func (m *machine) branch(th *thread, in x86asm.Inst, next uint64) {
	r := &th.regs
	to := uint64(0)
	switch a := in.Args[0].(type) {
	case x86asm.Rel:
		to = next + uint64(int64(a))
	case x86asm.Mem: // RIP-relative only
		to = m.space.Uint64(arch.GVA(next + uint64(a.Disp)))
	default:
		to = *m.reg(r, a)
	}
	if in.Op == x86asm.CALL {
		m.push(th, next)
	}
	r.RIP = to
}

// finished reports whether all threads have done their work.
func (m *machine) finished() bool {
	for _, th := range m.threads {
		if !th.done {
			return false
		}
	}
	return true
}

// control implements vitrine.Control over a machine.
type control machine

func (m *machine) OpenControl(context.Context) (vitrine.Control, error) {
	if err := (*control)(m).op("open"); err != nil {
		return nil, err
	}
	return (*control)(m), nil
}

// op counts a call and fails it when a test has said so.
func (c *control) op(name string) error {
	c.count[name]++
	if c.fail[name] > 0 {
		if c.fail[name]--; c.fail[name] == 0 {
			return fmt.Errorf("%s: %w", name, errInjected)
		}
	}
	return nil
}

func (c *control) stopped(what string) {
	if c.running {
		c.t.Errorf("%s while the guest runs", what)
	}
}

func (c *control) Registers(cpu int) (*arch.Registers, error) {
	c.stopped("Registers")
	r := arch.Registers{}
	if th := c.cpus[cpu].thread; th != nil {
		r = th.regs
	}
	return &r, c.op("registers")
}

func (c *control) SetRegisters(cpu int, r *arch.Registers) error {
	c.stopped("SetRegisters")
	if err := c.op("set"); err != nil {
		return err
	}
	c.cpus[cpu].thread.regs = *r
	return nil
}

func (c *control) SetPC(cpu int, pc arch.GVA) error {
	c.stopped("SetPC")
	if err := c.op("setpc"); err != nil {
		return err
	}
	c.cpus[cpu].thread.regs.RIP = uint64(pc)
	return nil
}

func (c *control) Insert(_ arch.BreakpointKind, all ...arch.GVA) error {
	c.stopped("Insert")
	for _, a := range all {
		if c.bps[a] {
			c.t.Errorf("breakpoint at %v planted twice", a)
		}
		if err := c.op("insert"); err != nil {
			return err
		}
		c.bps[a], c.ever[a] = true, true
	}
	return nil
}

func (c *control) Remove(_ arch.BreakpointKind, all ...arch.GVA) error {
	c.stopped("Remove")
	for _, a := range all {
		if !c.bps[a] {
			c.t.Errorf("breakpoint at %v taken out twice", a)
		}
		if err := c.op("remove"); err != nil {
			return err
		}
		delete(c.bps, a)
	}
	return nil
}

func (c *control) WriteCode(int, ...vitrine.Code) error { return c.op("writecode") }

func (c *control) Step(_ context.Context, cpu int) error {
	c.stopped("Step")
	if err := c.op("step"); err != nil {
		return err
	}
	th := c.cpus[cpu].thread
	if c.bps[th.regs.PC()] {
		c.t.Errorf("step onto the breakpoint at %v", th.regs.PC())
	}
	(*machine)(c).exec(th)
	return nil
}

func (c *control) Resume() error {
	c.stopped("Resume")
	if err := c.op("resume"); err != nil {
		return err
	}
	c.running = true
	return nil
}

func (c *control) Wait(ctx context.Context) (vitrine.Stop, error) {
	if !c.running {
		c.t.Error("Wait while the guest stands still")
	}
	if err := c.op("wait"); err != nil {
		return vitrine.Stop{}, err
	}
	for {
		c.mu.Lock()
		intr := c.intr
		c.intr = false
		c.mu.Unlock()
		if intr {
			c.running = false
			return vitrine.Stop{Reason: vitrine.StopInterrupt}, nil
		}
		if ctx.Err() != nil {
			return vitrine.Stop{}, ctx.Err()
		}
		if cpu := (*machine)(c).tick(); cpu >= 0 {
			c.running = false
			return vitrine.Stop{CPU: cpu, Reason: vitrine.StopBreakpoint}, nil
		}
	}
}

func (c *control) Interrupt() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.intr = true
	return nil
}

func (c *control) Close() error {
	err := c.op("close")
	clear(c.bps)
	c.running = true
	c.status["closed"] = true
	return err
}
