package trap

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// run runs an engine over a machine until its threads are done.
func run(t *testing.T, m *machine, e *Engine, rec *recorder) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	m.finish = cancel
	if rec.log == nil {
		rec.log = map[int][]string{}
	}
	rec.t, rec.m = t, m
	if err := e.Run(ctx, rec); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, e *Engine, p *program, names ...string) {
	t.Helper()
	var w []engine.Wanted
	for _, n := range names {
		w = append(w, engine.Wanted{Point: p.point(n), Returns: true})
	}
	if err := e.Change(t.Context(), w); err != nil {
		t.Fatal(err)
	}
}

// pairProgram has f1, which tail-calls f2, and f3, which calls f1; their
// results are 0x11 (f2's) and 0x33.
func pairProgram(m *machine) *program {
	p := newProgram(m)
	p.begin("f2")
	p.emit(nop5...)
	p.emit(0x48, 0xc7, 0xc0, 0x11, 0, 0, 0, 0xc3)
	p.begin("f1")
	p.emit(nop5...)
	p.rel(p.addr("f2"), 0xe9)
	p.begin("f3")
	p.emit(nop5...)
	p.emit(0x53)
	p.rel(p.addr("f1"), 0xe8)
	p.emit(0x48, 0x89, 0xc3) // mov rbx, rax
	p.emit(0x5b, 0x48, 0xc7, 0xc0, 0x33, 0, 0, 0, 0xc3)
	p.end()
	return p
}

func logOf(rec *recorder, id int) string { return strings.Join(rec.log[id], "; ") }

// TestSkip skips a function that others had tail-called their way to.
func TestSkip(t *testing.T) {
	m := newMachine(t, 1, 1)
	p := pairProgram(m)
	m.addThread([]uint64{p.addr("f3")})
	e := New(p.config())
	want(t, e, p, "f1", "f2", "f3")
	rec := &recorder{entered: func(h *engine.Hit) error {
		if h.Point.Name == "f2" {
			h.Skip, h.SkipValue = true, 0x99
		}
		return nil
	}}
	var rbx uint64
	m.onExec = func(th *thread, pc uint64) {
		if pc == p.addr("f2")+5 {
			t.Error("the body of f2 ran")
		}
		if m.decode(pc).Op.String() == "POP" {
			rbx = th.regs.RBX
		}
	}
	run(t, m, e, rec)
	if got, want := logOf(rec, 0), "enter f3; enter f1; enter f2; leave f1 = 0x99; leave f3 = 0x33"; got != want {
		t.Errorf("saw %q, want %q", got, want)
	}
	if rbx != 0x99 {
		t.Errorf("f1's caller got %#x, want 0x99", rbx)
	}
}

// TestSkipHoldsWhenAHandlerFails: of two handlers of a hit the first may have
// skipped the function when the second fails.
func TestSkipHoldsWhenAHandlerFails(t *testing.T) {
	m := newMachine(t, 1, 1)
	p := pairProgram(m)
	th := m.addThread([]uint64{p.addr("f2")})
	e := New(p.config())
	want(t, e, p, "f2")
	rec := &recorder{t: t, m: m, log: map[int][]string{}, entered: func(h *engine.Hit) error {
		h.Skip, h.SkipValue = true, 0x99
		return errStop
	}}
	if err := e.Run(t.Context(), rec); !errors.Is(err, errStop) {
		t.Fatalf("Run = %v", err)
	}
	if f2 := p.addr("f2"); th.regs.RAX != 0x99 || th.regs.RIP >= f2 && th.regs.RIP < f2+13 {
		t.Errorf("the thread stands at %#x with %#x; want it behind f2 (%#x), with 0x99", th.regs.RIP, th.regs.RAX, f2)
	}
}

// TestDropAndUnwanted checks that no return is delivered for calls that do not
// want one, and nothing is planted for it.
func TestDropAndUnwanted(t *testing.T) {
	m := newMachine(t, 1, 1)
	p := pairProgram(m)
	m.addThread([]uint64{p.addr("f3")})
	e := New(p.config())
	want(t, e, p, "f2")
	rec := &recorder{entered: func(h *engine.Hit) error { h.Drop = true; return nil }}
	run(t, m, e, rec)
	if got := logOf(rec, 0); got != "enter f2" {
		t.Errorf("saw %q", got)
	}
	if len(m.ever) != 1 {
		t.Errorf("planted at %v, want the entry only", m.ever)
	}
}

// TestChangeWhileRunning adds and removes functions from a handler, and runs
// the engine a second time.
func TestChangeWhileRunning(t *testing.T) {
	m := newMachine(t, 1, 1)
	p := pairProgram(m)
	m.addThread([]uint64{p.addr("f3"), p.addr("f3"), p.addr("f3")})
	e := New(p.config())
	f2, f3 := p.point("f2"), p.point("f3")
	only := func(points ...*engine.Point) []engine.Wanted {
		var w []engine.Wanted
		for _, pt := range points {
			w = append(w, engine.Wanted{Point: pt, Returns: true})
		}
		return w
	}
	if err := e.Change(t.Context(), only(f3)); err != nil {
		t.Fatal(err)
	}
	n := 0
	rec := &recorder{entered: func(h *engine.Hit) error {
		n++
		switch n {
		case 1: // in the first f3
			return e.Change(t.Context(), only(f2, f3))
		case 3: // in the second f3
			return e.Change(t.Context(), only(f2))
		}
		return nil
	}}
	run(t, m, e, rec)
	if got, want := logOf(rec, 0), "enter f3; enter f2; leave f2 = 0x11; leave f3 = 0x33; "+
		"enter f3; enter f2; leave f2 = 0x11; enter f2; leave f2 = 0x11"; got != want {
		t.Errorf("saw %q, want %q", got, want)
	}
	m.running, m.threads = false, nil
	m.cpus[0].thread = nil
	m.addThread([]uint64{p.addr("f3")})
	rec = &recorder{}
	run(t, m, e, rec)
	if got, want := logOf(rec, 0), "enter f2; leave f2 = 0x11"; got != want {
		t.Errorf("second run saw %q, want %q", got, want)
	}
	if len(e.functions) != 1 || e.functions[f2] == nil {
		t.Errorf("%d functions are kept; want f2", len(e.functions))
	}
	if err := e.Change(t.Context(), nil); err != nil || len(e.functions) != 0 {
		t.Errorf("Change = %v; %d functions are kept of none", err, len(e.functions))
	}
}

// TestOpaqueFunctionIsWatched has a function that cannot be disassembled.
func TestOpaqueFunctionIsWatched(t *testing.T) {
	m := newMachine(t, 1, 2)
	p := newProgram(m)
	f1 := p.begin("f1")
	p.emit(nop5...)
	p.emit(0x48, 0xc7, 0xc0, 0x11, 0, 0, 0, 0xc3)
	p.emit(0x06, 0x06) // no instructions
	f2 := p.begin("f2")
	p.emit(0x53)
	p.rel(f1, 0xe8)
	p.emit(0x5b, 0xc3)
	p.begin("f3")
	p.emit(nop5...)
	p.rel(f2, 0xe8)
	p.rel(f1, 0xe9)
	p.end()
	for range 3 {
		m.addThread([]uint64{p.addr("f3"), f1, p.addr("f3")})
	}
	e := New(p.config())
	want(t, e, p, "f1", "f3")
	rec := &recorder{}
	run(t, m, e, rec)
	once := "enter f3; enter f1; leave f1 = 0x11; enter f1; leave f1 = 0x11; leave f3 = 0x11"
	for id := range 3 {
		if got, want := logOf(rec, id), once+"; enter f1; leave f1 = 0x11; "+once; got != want {
			t.Errorf("thread %d saw %q, want %q", id, got, want)
		}
	}
	if s := e.Stats(); s.Unreturned != 0 || s.Entries != s.Returns {
		t.Errorf("stats %+v", s)
	}
}

// TestThreadsThatEndInCalls has threads stop for good within a probed function,
// and others take over their tasks and stacks.
func TestThreadsThatEndInCalls(t *testing.T) {
	m := newMachine(t, 1, 1)
	p := pairProgram(m)
	th := m.addThread([]uint64{p.addr("f3")})
	e := New(p.config())
	want(t, e, p, "f1", "f2", "f3")
	lives := 0
	rec := &recorder{}
	m.onExec = func(_ *thread, pc uint64) {
		if pc != p.addr("f2")+5 || lives == 4 {
			return
		}
		lives++ // dies in f2: the next life begins at the top of the same stack
		th.regs.RSP = uint64(stackBase) + stackLen - 64
		m.push(th, exitMagic)
		th.regs.RIP = p.addr("f3")
	}
	m.onExec = skipExec(m, m.onExec)
	run(t, m, e, rec)
	s := e.Stats()
	if s.Entries != 15 || s.Returns != 3 || s.Unreturned != 12 {
		t.Errorf("stats %+v, want 15 entries, 3 returns, 12 given up", s)
	}
	if got, want := logOf(rec, 0), strings.Repeat("enter f3; enter f1; enter f2; ", 5)+"leave f2 = 0x11; leave f1 = 0x11; leave f3 = 0x33"; got != want {
		t.Errorf("saw %q, want %q", got, want)
	}
}

// skipExec wraps an onExec that moves the program counter: the instruction
// that was to run is then not run. It is told by a nop in its place.
func skipExec(m *machine, f func(*thread, uint64)) func(*thread, uint64) {
	return func(th *thread, pc uint64) {
		f(th, pc)
		if th.regs.RIP != pc {
			m.skip = true
		}
	}
}

// TestForgedTasksAreBounded has every call made by another task.
func TestForgedTasksAreBounded(t *testing.T) {
	dropped := 0
	p := newPairs(8, func(*call) { dropped++ })
	fn := &function{entry: &site{}}
	for i := range 1000 {
		p.enter(stack{task: arch.GVA(i + 1)}, call{fn: fn, sp: 100})
		if p.count > 8 || len(p.stacks) > 9 {
			t.Fatalf("%d calls on %d stacks", p.count, len(p.stacks))
		}
	}
	for i := range 1000 {
		p.enter(stack{task: 1}, call{fn: fn, sp: uint64(10000 - i)})
	}
	if p.count > 8 || dropped != 2000-p.count {
		t.Errorf("%d calls, %d dropped", p.count, dropped)
	}
	p.clear()
	if p.count != 0 || dropped != 2000 || len(p.stacks) != 0 {
		t.Errorf("after clear: %d calls, %d dropped, %d stacks", p.count, dropped, len(p.stacks))
	}
}

// TestStraysDisarm checks that ways out are taken out when only strangers use
// them.
func TestStraysDisarm(t *testing.T) {
	m := newMachine(t, 1, 1)
	p := pairProgram(m)
	work := []uint64{p.addr("f1")}
	for range 50 {
		work = append(work, p.addr("f2"))
	}
	m.addThread(work)
	e := New(p.config())
	want(t, e, p, "f1")
	run(t, m, e, &recorder{})
	if s := e.Stats(); s.Stray != 1 || s.Returns != 1 {
		t.Errorf("stats %+v, want one stray stop", s)
	}
}

func TestChangeNamesEveryFailure(t *testing.T) {
	m := newMachine(t, 1, 1)
	p := pairProgram(m)
	e := New(p.config())
	bad := []*engine.Point{{Name: "empty"}, {Name: "hole", Body: []engine.Range{{Start: 0xdead000, Size: 8}}}}
	err := e.Change(t.Context(), []engine.Wanted{{Point: bad[0]}, {Point: p.point("f1"), Returns: true}, {Point: bad[1]}})
	for _, b := range bad {
		if err == nil || !strings.Contains(err.Error(), "hook "+b.Name+": ") {
			t.Errorf("error %v does not name %s", err, b.Name)
		}
	}
	var pe *engine.PointError
	if !errors.As(err, &pe) || pe.Point != bad[0] {
		t.Errorf("error %v is no PointError of the first", err)
	}
	m.addThread([]uint64{p.addr("f1")})
	rec := &recorder{}
	run(t, m, e, rec)
	if got := fmt.Sprint(rec.log[0]); got != "[enter f1 leave f1 = 0x11]" {
		t.Errorf("the good one saw %v", got)
	}
}
