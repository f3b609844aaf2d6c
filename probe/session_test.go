package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// Where the fake kernel keeps things.
const (
	tasks   = arch.GVA(0xffff888000100000) // one page each
	offPID  = 0x10
	offTGID = 0x14
	offComm = 0x20
	offPar  = 0x30
	offCred = 0x38
	offLead = 0x40
	offTime = 0x48
	offUID  = 0x04 // in cred, which lies in the task's page
	credAt  = 0x100
)

// fakeEngine delivers what a test tells it to.
type fakeEngine struct {
	wanted []engine.Wanted
	bad    map[string]error
	run    func(ctx context.Context, h engine.Handler) error
}

func (e *fakeEngine) Run(ctx context.Context, h engine.Handler) error { return e.run(ctx, h) }
func (e *fakeEngine) Stats() engine.Stats                             { return engine.Stats{Returns: 7} }

func (e *fakeEngine) Change(_ context.Context, w []engine.Wanted) error {
	e.wanted = nil
	var errs []error
	for _, p := range w {
		if err := e.bad[p.Name]; err != nil {
			errs = append(errs, &engine.PointError{Point: p.Point, Err: err})
			continue
		}
		e.wanted = append(e.wanted, p)
	}
	return errors.Join(errs...)
}

// fake is a session over a fake engine, with tasks in fake memory.
type fake struct {
	*Session
	e     *fakeEngine
	space *vitrinetest.Space
	t     *testing.T
}

func newFake(t *testing.T) *fake {
	b := vitrinetest.New()
	space := b.NewSpace(arch.Paging4Level)
	space.Map(tasks, 64*arch.PageSize, vitrinetest.Writable)
	g := b.Guest()
	as := g.AddressSpace(arch.Paging4Level, space.Root())
	f := &fake{e: &fakeEngine{bad: map[string]error{}}, space: space, t: t}
	f.Session = &Session{
		g: g, engine: f.e, name: Trap,
		facts:  &facts{kernel: as, pid: offPID, tgid: offTGID, comm: offComm, parent: offPar, cred: offCred, uid: offUID, leader: offLead, start: offTime},
		byAddr: map[arch.GVA]*target{}, byPoint: map[*engine.Point]*target{}, families: map[*Filter]*family{},
	}
	f.spaces.g, f.spaces.mode = g, arch.Paging4Level
	return f
}

// task writes a process of one thread; the task's address follows from its pid.
func (f *fake) task(pid, parent int, comm string, uid uint32, start uint64) arch.GVA {
	a := taskOf(pid)
	f.space.PutUint32(a+offPID, uint32(pid))
	f.space.PutUint32(a+offTGID, uint32(pid))
	f.space.PutString(a+offComm, comm)
	f.space.PutUint64(a+offPar, uint64(taskOf(parent)))
	f.space.PutUint64(a+offCred, uint64(a+credAt))
	f.space.PutUint32(a+credAt+offUID, uid)
	f.space.PutUint64(a+offLead, uint64(a))
	f.space.PutUint64(a+offTime, start)
	return a
}

func taskOf(pid int) arch.GVA { return tasks + arch.GVA(pid)*arch.PageSize }

// put plants probes on a function without a kernel to look it up in.
func (f *fake) put(name string, addr arch.GVA, probes ...*Probe) []*Planted {
	f.t.Helper()
	t := f.byAddr[addr]
	if t == nil {
		t = &target{point: &engine.Point{Name: name, Body: []engine.Range{{Start: addr, Size: 16}}}}
		f.byAddr[addr], f.byPoint[t.point] = t, t
	}
	var out []*Planted
	for _, p := range probes {
		pl := &Planted{s: f.Session, t: t, probe: p, family: f.familyOf(p.Filter)}
		t.probes = append(slices.Clip(t.probes), pl)
		out = append(out, pl)
	}
	if _, err := f.change(); err != nil {
		f.t.Fatal(err)
	}
	return out
}

// call delivers a call of a function by a process, and its return if wanted.
func (f *fake) call(addr arch.GVA, pid int) error {
	h := (*handler)(f.Session)
	p := f.byAddr[addr].point
	regs := arch.Registers{RDI: 1, RSI: 2}
	raw := &engine.Hit{Point: p, Task: taskOf(pid), Args: [6]uint64{1, 2}, Regs: &regs, Root: f.space.Root()}
	v, returns, err := h.Entered(raw)
	if err != nil || !returns || raw.Skip {
		return err
	}
	return h.Returned(&engine.Hit{Point: p, Task: taskOf(pid), Return: true, Result: 5, Regs: &regs}, v)
}

func TestHandlersRunInOrder(t *testing.T) {
	f := newFake(t)
	f.task(3, 1, "init", 0, 1)
	var log []string
	mk := func(name string) *Probe {
		return &Probe{
			Enter:  func(h *Hit) any { log = append(log, name+" in"); return name + "'s value" },
			Return: func(h *Hit, v any) { log = append(log, fmt.Sprint(name, " out ", v)) },
		}
	}
	only := mk("c")
	only.Enter = nil
	f.put("fn", 0x1000, mk("a"), mk("b"), only)
	if err := f.call(0x1000, 3); err != nil {
		t.Fatal(err)
	}
	want := []string{"a in", "b in", "a out a's value", "b out b's value", "c out <nil>"}
	if diff := cmp.Diff(want, log); diff != "" {
		t.Errorf("callbacks (-want +got):\n%s", diff)
	}
	if st := f.Stats(); st.Entries != 1 || st.PerFunc["fn"] != 1 || st.Returns != 7 {
		t.Errorf("stats %+v", st)
	}
}

func TestReturnSideIsWantedOnlyWhereAsked(t *testing.T) {
	f := newFake(t)
	f.put("fn", 0x1000, &Probe{Enter: func(*Hit) any { return nil }})
	if len(f.e.wanted) != 1 || f.e.wanted[0].Returns {
		t.Errorf("wanted %+v", f.e.wanted)
	}
	p := f.put("fn", 0x1000, &Probe{Return: func(*Hit, any) {}})[0]
	if len(f.e.wanted) != 1 || !f.e.wanted[0].Returns {
		t.Errorf("wanted %+v", f.e.wanted)
	}
	if err := p.Remove(); err != nil || f.e.wanted[0].Returns {
		t.Errorf("after Remove: %v, %+v", err, f.e.wanted)
	}
	if err := p.Remove(); err != nil {
		t.Error(err)
	}
}

func TestHitAnswers(t *testing.T) {
	f := newFake(t)
	f.task(3, 1, "sh", 7, 1)
	dropped, reached := false, false
	f.put("fn", 0x1000,
		&Probe{
			Enter: func(h *Hit) any {
				if h.Thread != (Thread{Task: taskOf(3), PID: 3, TID: 3, Comm: "sh", UID: 7}) {
					t.Errorf("thread %+v", h.Thread)
				}
				if h.Arg(1) != 2 || h.Arg(6) != 0 || h.Arg(-1) != 0 {
					t.Errorf("args %d %d %d", h.Arg(1), h.Arg(6), h.Arg(-1))
				}
				if err := h.SetResult(1); err == nil {
					t.Error("SetResult worked at entry")
				}
				if err := h.SetArg(1, 20); err != nil || h.Arg(1) != 20 {
					t.Errorf("SetArg: %v, %d", err, h.Arg(1))
				}
				h.DropReturn()
				return nil
			},
			Return: func(*Hit, any) { dropped = true },
		},
		&Probe{
			Enter: func(h *Hit) any {
				if r, err := h.Registers(); err != nil || r.RSI != 20 {
					t.Errorf("registers %+v, %v", r, err)
				}
				return nil
			},
			Return: func(h *Hit, _ any) {
				reached = true
				if err := errors.Join(h.SetResult(9), h.SetArg(0, 1)); err == nil {
					t.Error("SetArg worked at return")
				}
				if r, _ := h.Registers(); h.Result() != 9 || r.RAX != 9 || h.SkipWith(1) == nil || h.Arg(0) != 0 {
					t.Errorf("result %d, rax %d", h.Result(), r.RAX)
				}
			},
		})
	if err := f.call(0x1000, 3); err != nil {
		t.Fatal(err)
	}
	if dropped || !reached {
		t.Errorf("dropped return called: %v, other return called: %v", dropped, reached)
	}
}

func TestFirstSkipDecides(t *testing.T) {
	f := newFake(t)
	f.put("fn", 0x1000,
		&Probe{Enter: func(h *Hit) any { return h.SkipWith(1) }},
		&Probe{Enter: func(h *Hit) any { return h.SkipWith(2) }, Return: func(*Hit, any) { t.Error("return of a skipped call") }})
	raw := &engine.Hit{Point: f.byAddr[0x1000].point, Regs: &arch.Registers{}}
	if _, _, err := (*handler)(f.Session).Entered(raw); err != nil || !raw.Skip || raw.SkipValue != 1 {
		t.Errorf("%+v, %v", raw, err)
	}
}

// TestStreamHitsCannotChangeTheGuest gives callbacks a record without registers.
func TestStreamHitsCannotChangeTheGuest(t *testing.T) {
	h := &Hit{raw: &engine.Hit{}}
	_, err := h.Registers()
	for name, err := range map[string]error{
		"Registers": err, "SkipWith": h.SkipWith(1), "SetArg": h.SetArg(0, 1), "SetResult": h.SetResult(1),
	} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPanicsEndTheRun(t *testing.T) {
	cause := errors.New("cause")
	boom := func(*Hit) any { panic(cause) }
	for name, p := range map[string]*Probe{
		"enter":  {Enter: boom},
		"return": {Return: func(h *Hit, _ any) { boom(h) }},
		"match":  {Filter: &Filter{Match: func(*Thread) bool { panic(cause) }}},
	} {
		f := newFake(t)
		f.task(3, 1, "sh", 0, 1)
		f.put("fn", 0x1000, p)
		err := f.call(0x1000, 3)
		var pe *PanicError
		if !errors.As(err, &pe) || pe.Func != "fn" || pe.Value != any(cause) || len(pe.Stack) == 0 || !errors.Is(err, cause) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFilters(t *testing.T) {
	f := newFake(t)
	f.task(1, 0, "init", 0, 1)
	f.task(10, 1, "sh", 5, 100)
	f.task(11, 10, "cat", 5, 110)
	f.task(12, 11, "cat", 0, 120)
	f.task(20, 1, "other", 6, 130)
	for _, c := range []struct {
		name   string
		filter *Filter
		want   []int
	}{
		{"none", nil, []int{1, 10, 11, 12, 20}},
		{"empty", &Filter{}, []int{1, 10, 11, 12, 20}},
		{"pid", &Filter{PIDs: []int{10}}, []int{10}},
		{"follow", &Filter{PIDs: []int{10}, Follow: true}, []int{10, 11, 12}},
		{"comm", &Filter{Comms: []string{"cat", "other"}}, []int{11, 12, 20}},
		{"uid", &Filter{UIDs: []uint32{5}}, []int{10, 11}},
		{"uid and comm", &Filter{UIDs: []uint32{5}, Comms: []string{"cat"}}, []int{11}},
		{"follow and uid", &Filter{PIDs: []int{10}, Follow: true, UIDs: []uint32{0}}, []int{12}},
		{"match", &Filter{Match: func(t *Thread) bool { return t.PPID == 1 }}, []int{10, 20}},
	} {
		var got []int
		pl := f.put("fn", 0x1000, &Probe{Filter: c.filter, Enter: func(h *Hit) any { got = append(got, h.Thread.PID); return nil }})
		for _, pid := range []int{1, 10, 11, 12, 20} {
			if err := f.call(0x1000, pid); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if err := pl[0].Remove(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFamilyOutlivesItsParents has a parent end, and its pid and its child's be
// used again.
func TestFamilyOutlivesItsParents(t *testing.T) {
	f := newFake(t)
	f.task(1, 0, "init", 0, 1)
	f.task(10, 1, "sh", 0, 100)
	f.task(11, 10, "a", 0, 110)
	filter := &Filter{PIDs: []int{10}, Follow: true}
	var got []string
	on := func(h *Hit) any { got = append(got, h.Thread.Comm); return nil }
	f.put("fn", 0x1000, &Probe{Filter: filter, Enter: on})
	f.put("gn", 0x2000, &Probe{Filter: filter, Enter: on})
	must := func(addr arch.GVA, pid int) {
		t.Helper()
		if err := f.call(addr, pid); err != nil {
			t.Fatal(err)
		}
	}
	must(0x1000, 11)
	f.task(11, 1, "orphan", 0, 110) // its parent ended; known from the other probe
	must(0x2000, 11)
	f.task(11, 1, "reused", 0, 999) // another process by the same pid
	must(0x1000, 11)
	f.task(13, 13, "cycle", 0, 5) // its own parent
	must(0x1000, 13)
	if want := []string{"a", "orphan"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestRunQuitClose(t *testing.T) {
	f := newFake(t)
	f.e.run = func(ctx context.Context, _ engine.Handler) error {
		if err := f.Run(ctx); !errors.Is(err, ErrRunning) {
			t.Errorf("second Run = %v", err)
		}
		f.Quit()
		<-ctx.Done()
		return nil
	}
	f.Quit() // before Run: nothing
	for range 2 {
		if err := f.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Run(t.Context()); !errors.Is(err, vitrine.ErrClosed) {
		t.Errorf("Run after Close = %v", err)
	}
	if _, err := f.Add(&Probe{Func: "fn"}); !errors.Is(err, vitrine.ErrClosed) {
		t.Errorf("Add after Close = %v", err)
	}
}
