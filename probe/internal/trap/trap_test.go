package trap

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/arch/x86/x86asm"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// truth records what the interpreter itself sees: entries and returns of
// functions, per thread, by a shadow stack.
type truth struct {
	m      *machine
	names  map[uint64]string
	frames map[*thread][]frame
	log    map[int][]string
}

type frame struct {
	name string
	sp   uint64
}

func watch(m *machine, p *program) *truth {
	t := &truth{m: m, names: map[uint64]string{}, frames: map[*thread][]frame{}, log: map[int][]string{}}
	for _, s := range p.syms {
		if s.name[0] == 'f' && len(s.name) < 5 {
			t.names[s.addr] = s.name
		}
	}
	m.onExec = t.exec
	return t
}

func (t *truth) exec(th *thread, pc uint64) {
	if name, ok := t.names[pc]; ok {
		t.frames[th] = append(t.frames[th], frame{name, th.regs.RSP})
		t.log[th.id] = append(t.log[th.id], "enter "+name)
	}
	if t.m.decode(pc).Op != x86asm.RET {
		return
	}
	for fs := t.frames[th]; len(fs) > 0 && fs[len(fs)-1].sp == th.regs.RSP; fs = t.frames[th] {
		t.log[th.id] = append(t.log[th.id], fmt.Sprintf("leave %s = %#x", fs[len(fs)-1].name, th.regs.RAX))
		t.frames[th] = fs[:len(fs)-1]
	}
}

// recorder is a handler that logs what it is told, per thread, and checks that
// each return brings the value that its entry gave.
type recorder struct {
	t       *testing.T
	m       *machine
	log     map[int][]string
	irqs    int
	next    int
	entered func(*engine.Hit) error
	stop    context.CancelFunc
}

func (r *recorder) thread(h *engine.Hit) int {
	id := int(h.Task-taskBase) / taskSize
	if id < 0 || id >= len(r.m.threads) {
		r.t.Fatalf("hit of task %v", h.Task)
	}
	return id
}

// interrupted reports whether the hit is of an interrupt's function.
func (r *recorder) interrupted(h *engine.Hit) bool {
	return arch.GVA(h.Regs.RSP) >= r.m.irqStack(0)-stackLen
}

func (r *recorder) Entered(h *engine.Hit) (any, bool, error) {
	if r.entered != nil {
		if err := r.entered(h); err != nil {
			return nil, false, err
		}
	}
	r.next++
	if r.interrupted(h) {
		r.irqs++
		return [2]any{h.Point.Name, -1}, true, nil
	}
	id := r.thread(h)
	r.log[id] = append(r.log[id], "enter "+h.Point.Name)
	return [2]any{h.Point.Name, id}, true, nil
}

func (r *recorder) Returned(h *engine.Hit, value any) error {
	if r.interrupted(h) {
		r.irqs--
		if want := [2]any{h.Point.Name, -1}; value != want {
			r.t.Errorf("return in an interrupt from %s got %v", h.Point.Name, value)
		}
		return nil
	}
	id := r.thread(h)
	if want := [2]any{h.Point.Name, id}; value != want {
		r.t.Errorf("return of thread %d from %s got %v", id, h.Point.Name, value)
	}
	r.log[id] = append(r.log[id], fmt.Sprintf("leave %s = %#x", h.Point.Name, h.Result))
	return nil
}

func works(r *rand.Rand, p *program, threads, calls int) [][]uint64 {
	out := make([][]uint64, threads)
	for i := range out {
		for range calls {
			for {
				s := p.syms[r.IntN(len(p.syms))]
				if s.name[0] == 'f' && s.name != "f0" && len(s.name) < 5 {
					out[i] = append(out[i], s.addr)
					break
				}
			}
		}
	}
	return out
}

// simulate builds the program of a seed on a machine.
func simulate(t *testing.T, seed uint64, cpus, threads int) (*machine, *program) {
	m := newMachine(t, seed, cpus)
	r := rand.New(rand.NewPCG(seed, 1))
	p := randomProgram(m, r, 4+r.IntN(12))
	for _, w := range works(r, p, threads, 6) {
		m.addThread(w)
	}
	return m, p
}

// TestPairs runs random programs with and without the engine: each thread must
// do exactly the same, and the engine must have seen all of it.
func TestPairs(t *testing.T) {
	for seed := range uint64(150) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			cpus := 1 + int(seed%4)
			m, p := simulate(t, seed, cpus, 1+int(seed%5))
			want := watch(m, p)
			for !m.finished() {
				m.tick()
			}

			m, p = simulate(t, seed, cpus, 1+int(seed%5))
			m.irq = []uint64{p.addr("f1"), p.addr("f2")}
			got := runAll(t, m, p, New(p.config()))
			if diff := cmp.Diff(want.log, got.log); diff != "" {
				t.Errorf("what the engine saw (-truth +engine):\n%s", diff)
			}
			if got.irqs != 0 {
				t.Errorf("%d interrupts entered and not left", got.irqs)
			}
		})
	}
}

// runAll probes every function until all threads are done.
func runAll(t *testing.T, m *machine, p *program, e *Engine) *recorder {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var w []engine.Wanted
	for _, s := range p.syms {
		if s.name[0] == 'f' && len(s.name) < 5 {
			w = append(w, engine.Wanted{Point: p.point(s.name), Returns: true})
		}
	}
	if err := e.Change(ctx, w); err != nil {
		t.Fatal(err)
	}
	rec := &recorder{t: t, m: m, log: map[int][]string{}, stop: cancel}
	m.finish = cancel
	if err := e.Run(ctx, rec); err != nil {
		t.Fatal(err)
	}
	if !m.finished() || len(m.bps) > 0 || !m.status["closed"] || !m.running {
		t.Errorf("after Run: finished %v, breakpoints %v, %v, running %v", m.finished(), m.bps, m.status, m.running)
	}
	if s := e.Stats(); s.Unreturned != 0 {
		t.Errorf("%d calls were given up", s.Unreturned)
	}
	return rec
}

var errStop = errors.New("stop")

// TestHandlerErrorEndsRun checks that the guest is clean and runs when a
// handler fails.
func TestHandlerErrorEndsRun(t *testing.T) {
	m, p := simulate(t, 1, 2, 3)
	e := New(p.config())
	if err := e.Change(t.Context(), []engine.Wanted{{Point: p.point("f1"), Returns: true}, {Point: p.point("f0"), Returns: true}}); err != nil {
		t.Fatal(err)
	}
	rec := &recorder{t: t, m: m, log: map[int][]string{}, entered: func(*engine.Hit) error { return errStop }}
	if err := e.Run(t.Context(), rec); !errors.Is(err, errStop) {
		t.Fatalf("Run = %v", err)
	}
	if len(m.bps) > 0 || !m.running {
		t.Errorf("left: breakpoints %v, running %v", m.bps, m.running)
	}
}

// TestControlFailures makes every call of the hypervisor's control fail in
// turn: Run must return the error, and control must have been given back.
func TestControlFailures(t *testing.T) {
	for _, op := range []string{"open", "registers", "set", "setpc", "insert", "remove", "step", "resume", "wait", "close"} {
		for _, n := range []int{1, 2, 5, 17} {
			m, p := simulate(t, 3, 2, 3)
			m.fail[op] = n
			e := New(p.config())
			ctx, cancel := context.WithCancel(t.Context())
			m.finish = cancel
			var w []engine.Wanted
			for _, s := range p.syms {
				if s.name[0] == 'f' && len(s.name) < 5 {
					w = append(w, engine.Wanted{Point: p.point(s.name), Returns: true})
				}
			}
			if err := e.Change(ctx, w); err != nil {
				t.Fatal(err)
			}
			err := e.Run(ctx, &recorder{t: t, m: m, log: map[int][]string{}})
			cancel()
			switch {
			case m.fail[op] > 0 && err != nil:
				t.Errorf("%s never failed, Run = %v", op, err)
			case m.fail[op] == 0 && !errors.Is(err, errInjected):
				t.Errorf("%s %d failed, Run = %v", op, n, err)
			case op != "open" && !m.status["closed"]:
				t.Errorf("%s %d failed, and control was kept", op, n)
			}
		}
	}
}
