package trap

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// The simulated arm64 kernel's layout.
const (
	armText  = arch.GVA(0xffff_8000_0801_0000)
	armTasks = arch.GVA(0xffff_0000_0010_0000)
	armStack = arch.GVA(0xffff_8000_1000_0000)
	armDone  = armText + 0xf000 // where a thread's first function returns to
)

// Encodings of what the simulated programs consist of (Arm ARM, C6.2), written
// down without the engine's.
const (
	insNop    = 0xd503201f
	insBTI    = 0xd503245f // bti c
	insSubSP  = 0xd10043ff // sub sp, sp, #16
	insAddSP  = 0x910043ff
	insStrLR  = 0xf90003fe // str x30, [sp]
	insLdrLR  = 0xf94003fe
	insInc    = 0x91000400 // add x0, x0, #1
	insRet    = 0xd65f03c0
	insBL     = 0x94000000
	insB      = 0x14000000
	insOffset = 0x03ffffff
	insTask   = 0xd5384101 // mrs x1, sp_el0
	insMov    = 0xaa0103e2 // mov x2, x1
)

// armMachine is a fake guest whose processors interpret a little of AArch64.
// Threads move between processors at random.
type armMachine struct {
	*vitrinetest.Backend
	t       testing.TB
	space   *vitrinetest.Space
	as      *vitrine.AddressSpace
	rand    *rand.Rand
	code    []uint32
	names   map[uint64]string // functions by address
	threads []*armThread
	cpus    []*armThread // what runs on each
	bps     map[arch.GVA]bool
	running bool
	steps   int
	finish  func()
	mu      sync.Mutex // protects intr
	intr    bool
}

type armThread struct {
	id     int
	regs   arch.ARM64Registers
	work   []uint64
	done   bool
	frames []armFrame // by the interpreter's own account
	log    []string
}

type armFrame struct {
	name     string
	sp, link uint64
}

// newARMMachine makes functions that call, and some that tail-call, those before
// them, and threads that call functions at random.
func newARMMachine(t testing.TB, seed uint64) *armMachine {
	b := vitrinetest.New()
	b.SetLog(false)
	m := &armMachine{Backend: b, t: t, rand: rand.New(rand.NewPCG(seed, 3)), names: map[uint64]string{}, bps: map[arch.GVA]bool{}}
	m.space = b.NewSpace(arch.PagingARM48)
	m.space.Map(armText, 0x10000, 0)
	var functions []uint64
	for n := range 8 {
		functions = append(functions, m.function(n, functions))
	}
	for i, in := range m.code {
		m.space.PutUint32(armText+arch.GVA(4*i), in)
	}
	g := vitrine.New(m, vitrine.Info{Name: "sim", Backend: "sim", Arch: arch.ARM64, CPUs: 2, Live: true})
	m.as = g.AddressSpace(arch.PagingARM48, m.space.Root())
	for id := range 3 {
		th := &armThread{id: id}
		for range 5 {
			th.work = append(th.work, functions[m.rand.IntN(len(functions))])
		}
		task, stack := m.taskOf(th), armStack+arch.GVA(id)*stackLen
		m.space.Map(task, taskSize, vitrinetest.Writable)
		m.space.Map(stack, stackLen, vitrinetest.Writable)
		m.space.PutUint64(task+stackAt, uint64(stack))
		th.regs = arch.ARM64Registers{On: true, PC: uint64(armDone), SP: uint64(stack + stackLen - 64), SPEL0: uint64(task), PSTATE: 5,
			TTBR1: uint64(m.space.Root()), SCTLR: 1, TCR: 2<<30 | 16<<16}
		m.threads = append(m.threads, th)
	}
	m.cpus = []*armThread{m.threads[0], m.threads[1]}
	return m
}

func (m *armMachine) taskOf(th *armThread) arch.GVA { return armTasks + arch.GVA(th.id)*taskSize }

func (m *armMachine) pc() uint64 { return uint64(armText) + 4*uint64(len(m.code)) }

func (m *armMachine) emit(in ...uint32) { m.code = append(m.code, in...) }

// branch emits a jump or call.
func (m *armMachine) branch(op uint32, to uint64) {
	m.emit(op | uint32(int64(to-m.pc())/4)&insOffset)
}

// function emits a function that calls some of the others.
func (m *armMachine) function(n int, others []uint64) uint64 {
	at := m.pc()
	m.names[at] = fmt.Sprintf("f%d", n)
	if n%3 == 0 {
		m.emit(insBTI)
	}
	m.emit(insNop, insNop)
	if len(others) == 0 {
		m.emit(insInc, insRet)
		return at
	}
	m.emit(insSubSP, insStrLR)
	for range 1 + m.rand.IntN(2) {
		m.branch(insBL, others[m.rand.IntN(len(others))])
		m.emit([]uint32{insTask, insMov, insInc}[m.rand.IntN(3)])
	}
	m.emit(insLdrLR, insAddSP)
	if m.rand.IntN(3) == 0 {
		m.branch(insB, others[m.rand.IntN(len(others))])
	} else {
		m.emit(insInc, insRet)
	}
	return at
}

// exec runs one instruction and keeps the account of calls.
func (m *armMachine) exec(th *armThread) {
	r := &th.regs
	if arch.GVA(r.PC) == armDone {
		m.account(th)
		if len(th.work) == 0 {
			if th.done = true; m.finished() && m.finish != nil {
				m.finish()
			}
			return
		}
		r.X[0], r.X[30], r.PC, th.work = 0, uint64(armDone), th.work[0], th.work[1:]
		return
	}
	m.account(th)
	in, next := m.code[(r.PC-uint64(armText))/4], r.PC+4
	switch {
	case in == insNop, in == insBTI:
	case in == insSubSP:
		r.SP -= 16
	case in == insAddSP:
		r.SP += 16
	case in == insStrLR:
		m.space.PutUint64(arch.GVA(r.SP), r.X[30])
	case in == insLdrLR:
		r.X[30] = m.space.Uint64(arch.GVA(r.SP))
	case in == insInc:
		r.X[0]++
	case in == insTask:
		r.X[1] = r.SPEL0
	case in == insMov:
		r.X[2] = r.X[1]
	case in == insRet:
		next = r.X[30]
	case in&^insOffset == insBL, in&^insOffset == insB:
		if in&^insOffset == insBL {
			r.X[30] = next
		}
		next = r.PC + uint64(int64(int32(in<<6)>>4))
	default:
		m.t.Fatalf("instruction %#x at %#x", in, r.PC)
	}
	r.PC = next
}

// account notes what the thread enters and leaves before it runs an instruction.
func (m *armMachine) account(th *armThread) {
	r := &th.regs
	for n := len(th.frames) - 1; n >= 0 && th.frames[n].link == r.PC && th.frames[n].sp == r.SP; n-- {
		th.log = append(th.log, fmt.Sprintf("leave %s = %d", th.frames[n].name, r.X[0]))
		th.frames = th.frames[:n]
	}
	if name, ok := m.names[r.PC]; ok {
		th.frames = append(th.frames, armFrame{name, r.SP, r.X[30]})
		th.log = append(th.log, "enter "+name)
	}
}

// tick runs an instruction on some processor, or returns the number of the one
// that is stopped by a breakpoint.
func (m *armMachine) tick() int {
	cpu := m.rand.IntN(len(m.cpus))
	if m.steps++; m.steps%7 == 0 { // another thread's turn
		for _, th := range m.threads {
			if th != m.cpus[0] && th != m.cpus[1] {
				m.cpus[cpu] = th
				break
			}
		}
	}
	th := m.cpus[cpu]
	if th.done {
		return -1
	}
	if m.bps[arch.GVA(th.regs.PC)] {
		return cpu
	}
	m.exec(th)
	return -1
}

func (m *armMachine) finished() bool {
	for _, th := range m.threads {
		if !th.done {
			return false
		}
	}
	return true
}

// The methods of vitrine.Controller and vitrine.Control.

func (m *armMachine) OpenControl(context.Context) (vitrine.Control, error) {
	return armControl{m}, nil
}

type armControl struct{ *armMachine }

func (c armControl) Registers(cpu int) (*arch.Registers, error) {
	return &arch.Registers{ARM64: c.cpus[cpu].regs}, nil
}

func (c armControl) SetRegisters(cpu int, r *arch.Registers) error {
	if r.RIP != 0 || r.RAX != 0 || r.RSP != 0 {
		c.t.Errorf("x86 registers were set: %+v", r)
	}
	c.cpus[cpu].regs = r.ARM64
	return nil
}

func (c armControl) SetPC(cpu int, pc arch.GVA) error {
	c.cpus[cpu].regs.PC = uint64(pc)
	return nil
}

func (c armControl) Insert(_ arch.BreakpointKind, all ...arch.GVA) error {
	for _, a := range all {
		c.bps[a] = true
	}
	return nil
}

func (c armControl) Remove(_ arch.BreakpointKind, all ...arch.GVA) error {
	for _, a := range all {
		delete(c.bps, a)
	}
	return nil
}

func (c armControl) WriteCode(int, ...vitrine.Code) error { return nil }

func (c armControl) Step(_ context.Context, cpu int) error {
	c.exec(c.cpus[cpu])
	return nil
}

func (c armControl) Resume() error {
	c.running = true
	return nil
}

func (c armControl) Wait(ctx context.Context) (vitrine.Stop, error) {
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
		if cpu := c.tick(); cpu >= 0 {
			c.running = false
			return vitrine.Stop{CPU: cpu, Reason: vitrine.StopBreakpoint}, nil
		}
	}
}

func (c armControl) Interrupt() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.intr = true
	return nil
}

func (c armControl) Close() error {
	clear(c.bps)
	c.running = true
	return nil
}

// armRecorder is a handler that logs what it is told, per thread.
type armRecorder struct {
	m       *armMachine
	log     map[int][]string
	skip    string // a function whose calls are skipped
	skipped int
}

func (r *armRecorder) thread(h *engine.Hit) int {
	id := int(h.Task-armTasks) / taskSize
	if id < 0 || id >= len(r.m.threads) {
		r.m.t.Fatalf("hit of task %v", h.Task)
	}
	return id
}

func (r *armRecorder) Entered(h *engine.Hit) (any, bool, error) {
	id := r.thread(h)
	if h.Args[0] != h.Regs.ARM64.X[0] {
		r.m.t.Errorf("argument %d, x0 is %d", h.Args[0], h.Regs.ARM64.X[0])
	}
	if h.Point.Name == r.skip {
		h.Skip, h.SkipValue = true, 1000
		r.skipped++
		return nil, false, nil
	}
	r.log[id] = append(r.log[id], "enter "+h.Point.Name)
	return [2]any{h.Point.Name, id}, true, nil
}

func (r *armRecorder) Returned(h *engine.Hit, value any) error {
	id := r.thread(h)
	if want := [2]any{h.Point.Name, id}; value != want {
		r.m.t.Errorf("return of thread %d from %s got %v", id, h.Point.Name, value)
	}
	r.log[id] = append(r.log[id], fmt.Sprintf("leave %s = %d", h.Point.Name, h.Result))
	return nil
}

// run probes every function until all threads are done.
func (m *armMachine) run(t *testing.T, skip string) *armRecorder {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	e := New(Config{Guest: m.as.Guest(), Kernel: m.as, ARM64: true, StackField: stackAt, StackSize: stackLen})
	var w []engine.Wanted
	for at, name := range m.names {
		w = append(w, engine.Wanted{Point: &engine.Point{Name: name, Body: []engine.Range{{Start: arch.GVA(at), Size: 4}}}, Returns: true})
	}
	if err := e.Change(ctx, w); err != nil {
		t.Fatal(err)
	}
	m.finish = cancel
	rec := &armRecorder{m: m, log: map[int][]string{}, skip: skip}
	if err := e.Run(ctx, rec); err != nil {
		t.Fatal(err)
	}
	if s := e.Stats(); s.Unreturned != 0 || !m.finished() || len(m.bps) > 0 || !m.running {
		t.Errorf("%d calls given up; finished %v, breakpoints %v, running %v", s.Unreturned, m.finished(), m.bps, m.running)
	}
	return rec
}

// TestARMPairs runs random programs with and without the engine: each thread must
// do exactly the same, and the engine must have seen all of it.
func TestARMPairs(t *testing.T) {
	for seed := range uint64(60) {
		m := newARMMachine(t, seed)
		for !m.finished() {
			m.tick()
		}
		want := map[int][]string{}
		for _, th := range m.threads {
			want[th.id] = th.log
		}
		if got := newARMMachine(t, seed).run(t, "").log; !cmp.Equal(want, got) {
			t.Errorf("seed %d: what the engine saw (-truth +engine):\n%s", seed, cmp.Diff(want, got))
		}
	}
}

// A skipped function does not run: its caller gets the value.
func TestARMSkip(t *testing.T) {
	m := newARMMachine(t, 1)
	rec := m.run(t, "f0")
	if rec.skipped == 0 {
		t.Fatal("nothing was skipped")
	}
	for _, th := range m.threads {
		for _, l := range th.log {
			if l == "leave f0 = 1" {
				t.Errorf("thread %d ran f0", th.id)
			}
		}
	}
}

// Where the kernel has put a program's page table away, the task leads to it.
func TestARMRoot(t *testing.T) {
	r := &arch.Registers{ARM64: arch.ARM64Registers{On: true, SCTLR: 1, TCR: 2<<30 | 16<<16, TTBR0: 0x42007000, TTBR1: 0x000200004157b000}}
	e := New(Config{ARM64: true, UserRoot: func(task arch.GVA) (arch.GPA, bool) { return 0x7000, task == 1 }})
	check := func(e *Engine, task arch.GVA, want arch.GPA) {
		t.Helper()
		if got := e.root(task, r); got != want {
			t.Errorf("TTBR0 %#x, task %v: root %v, want %v", r.ARM64.TTBR0, task, got, want)
		}
	}
	check(e, 1, 0x42007000)
	r.ARM64.TTBR0 = 0x0123_0000_4157_a000
	check(e, 1, 0x7000)
	check(e, 2, 0x4157a000)
	check(New(Config{ARM64: true}), 1, 0x4157a000)
	r = &arch.Registers{CR0: arch.CR0PG, CR4: arch.CR4PAE, EFER: arch.EFERLMA, CR3: 0x1000}
	check(e, 1, 0x1000)
}

func TestEmulateARM(t *testing.T) {
	r := arch.ARM64Registers{PC: 0x1000, SPEL0: 77}
	r.X[1], r.X[30] = 0x1_0000_0001, 5
	for in, want := range map[uint32]func(*arch.ARM64Registers){
		0xd503201f: func(*arch.ARM64Registers) {},                                  // nop
		0xaa1e03e9: func(r *arch.ARM64Registers) { r.X[9] = 5 },                    // mov x9, x30
		0xaa0103e0: func(r *arch.ARM64Registers) { r.X[0] = 0x1_0000_0001 },        // mov x0, x1
		0xaa1f03e1: func(r *arch.ARM64Registers) { r.X[1] = 0 },                    // mov x1, xzr
		0x2a0103e3: func(r *arch.ARM64Registers) { r.X[3] = 1 },                    // mov w3, w1
		0xaa0103ff: func(*arch.ARM64Registers) {},                                  // mov xzr, x1
		0xd5384101: func(r *arch.ARM64Registers) { r.X[1] = 77 },                   // mrs x1, sp_el0
		0xd503245f: nil, 0xd503233f: nil, 0xa9be7bfd: nil, 0xaa010021: nil, 0: nil, // bti c, paciasp, stp, orr x1, x1, x1
	} {
		got, wanted := r, r
		if want != nil {
			want(&wanted)
			wanted.PC += 4
		}
		if did := emulateARM(in, &got); did != (want != nil) || got != wanted {
			t.Errorf("%#x: done by hand: %v (-want +got):\n%s", in, did, cmp.Diff(wanted, got))
		}
	}
}

// Where no instruction can be, nothing is hooked.
func TestARMSites(t *testing.T) {
	m := newARMMachine(t, 1)
	c := &Config{Kernel: m.as, ARM64: true}
	for _, a := range []arch.GVA{armText + 2, armText - 0x1000, 0} {
		if s, err := c.site(a); err == nil {
			t.Errorf("%v: %+v", a, s)
		}
		if s, err := c.entry(a); err == nil {
			t.Errorf("entry at %v: %+v", a, s)
		}
	}
	// A hypervisor's breakpoint in memory stands for what was there.
	s, err := c.site(armText + 4)
	if err != nil {
		t.Fatal(err)
	}
	m.space.PutUint32(armText+4, 0xd4200000)
	r := &arch.Registers{ARM64: arch.ARM64Registers{On: true, PC: uint64(armText + 4)}}
	if !s.over(r) || r.PC() != armText+8 {
		t.Errorf("a nop under a breakpoint was not done: pc %v", r.PC())
	}
	if s, err := c.entry(armText); err != nil || s.addr != armText+4 { // f0 begins with a landing pad
		t.Errorf("entry behind a landing pad: %+v, %v", s, err)
	}
}
