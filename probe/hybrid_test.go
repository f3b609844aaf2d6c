package probe

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
	"github.com/vitrine-vmi/vitrine/probe/internal/implant"
)

// fakeImplants refuses functions by name.
type fakeImplants struct {
	fakeEngine
	refuse map[string]error
	filter engine.Filter
}

func (e *fakeImplants) Check(w engine.Wanted) error { return e.refuse[w.Name] }
func (e *fakeImplants) SetFilter(f engine.Filter) bool {
	e.filter = f
	return true
}

func names(w []engine.Wanted) (out []string) {
	for _, p := range w {
		out = append(out, p.Name)
	}
	return out
}

func wantedFor(names ...string) (out []engine.Wanted) {
	for i, n := range names {
		out = append(out, engine.Wanted{Point: &engine.Point{Name: n, Body: []engine.Range{{Start: arch.GVA(i + 1), Size: 1}}}})
	}
	return out
}

func newHybrid() (*hybrid, *fakeImplants, *fakeEngine) {
	i := &fakeImplants{refuse: map[string]error{"noinstr": errors.New("it is noinstr")}}
	t := &fakeEngine{bad: map[string]error{}}
	return &hybrid{implants: i, traps: t}, i, t
}

func TestHybridDividesFunctions(t *testing.T) {
	h, i, tr := newHybrid()
	if err := h.Change(t.Context(), wantedFor("a", "noinstr", "b")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]string{{"a", "b"}, {"noinstr"}}, [][]string{names(i.wanted), names(tr.wanted)}); diff != "" || !h.Wanted() {
		t.Errorf("implants and traps (-want +got):\n%s", diff)
	}
	name, delivery, notes := h.present(Stream)
	if name != Implant || delivery != Stream || len(notes) != 1 || !strings.Contains(notes[0], "noinstr has a breakpoint") || !strings.Contains(notes[0], "it is noinstr") {
		t.Errorf("%v %v %q", name, delivery, notes)
	}
	// What neither takes is an error for that function alone.
	tr.bad["noinstr"] = errors.New("cannot be decoded")
	err := h.Change(t.Context(), wantedFor("a", "noinstr"))
	var pe *engine.PointError
	if !errors.As(err, &pe) || pe.Point.Name != "noinstr" || len(unjoin(err)) != 1 {
		t.Errorf("Change = %v", err)
	}
	if err := h.Change(t.Context(), nil); err != nil || h.Wanted() {
		t.Errorf("Change to nothing = %v, %v", err, h.Wanted())
	}
}

func TestHybridFallsBack(t *testing.T) {
	cause := errors.New("the guest has no memory to give")
	for _, c := range []struct {
		name   string
		err    error
		strict bool
		falls  bool
	}{
		{"nothing left", &implant.NotPlantedError{Err: cause}, false, true},
		{"stream by name", &implant.NotPlantedError{Err: cause}, true, false},
		{"something left", cause, false, false},
		{"paused", vitrine.ErrPaused, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, i, tr := newHybrid()
			h.strict = c.strict
			ran := 0
			i.run = func(context.Context, engine.Handler) error { return c.err }
			tr.run = func(context.Context, engine.Handler) error { ran++; return nil }
			if err := h.Change(t.Context(), wantedFor("a", "noinstr")); err != nil {
				t.Fatal(err)
			}
			err := h.Run(t.Context(), nil)
			if !c.falls {
				if !errors.Is(err, c.err) || ran != 0 {
					t.Errorf("Run = %v, breakpoints ran %d times", err, ran)
				}
				return
			}
			if err != nil || ran != 1 || len(i.wanted) != 0 {
				t.Errorf("Run = %v, breakpoints ran %d times, implants for %q", err, ran, names(i.wanted))
			}
			if diff := cmp.Diff([]string{"a", "noinstr"}, names(tr.wanted)); diff != "" {
				t.Errorf("breakpoints (-want +got):\n%s", diff)
			}
			name, delivery, notes := h.present(Stream)
			if name != Trap || delivery != Sync || len(notes) != 1 || !strings.Contains(notes[0], cause.Error()) {
				t.Errorf("%v %v %q", name, delivery, notes)
			}
			if err := h.Run(t.Context(), nil); err != nil || ran != 2 {
				t.Errorf("second Run = %v, breakpoints ran %d times", err, ran)
			}
		})
	}
}

func TestHybridCounts(t *testing.T) {
	h, _, _ := newHybrid()
	if got := h.Stats().Returns; got != 14 {
		t.Errorf("%d returns, want those of both", got)
	}
	if !h.SetFilter(engine.Filter{PIDs: []int{7}}) {
		t.Error("what the implants vouch for is not passed on")
	}
	if got := h.implants.(*fakeImplants).filter.PIDs; len(got) != 1 {
		t.Errorf("filter %v", got)
	}
}

func TestNotesAreBounded(t *testing.T) {
	h, i, _ := newHybrid()
	var all []string
	for n := range 100 {
		all = append(all, strings.Repeat("f", n+1))
		i.refuse[all[n]] = errors.New("no")
	}
	if err := h.Change(t.Context(), wantedFor(all...)); err != nil {
		t.Fatal(err)
	}
	if _, _, notes := h.present(Stream); len(notes) != maxNotes+1 || !strings.HasPrefix(notes[maxNotes], "92 more") {
		t.Errorf("%d notes, the last %q", len(notes), notes[len(notes)-1])
	}
}

// A hybrid can be asked while it runs.
func TestHybridConcurrently(t *testing.T) {
	h, _, _ := newHybrid()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				_ = h.Change(t.Context(), wantedFor("a", "noinstr"))
				h.Wanted()
				h.present(Stream)
			}
		})
	}
	wg.Wait()
}

// What the implants have judged in the guest, breakpoints have not.
func TestTrustIsForRecordedHits(t *testing.T) {
	f := newFake(t)
	f.task(3, 1, "one", 0, 1)
	f.task(4, 1, "two", 0, 1)
	hits := 0
	filter := &Filter{PIDs: []int{3}}
	f.put("fn", 0x1000, &Probe{Filter: filter, Enter: func(*Hit) any { hits++; return nil }})
	f.trusted.Store(filter)
	for _, pid := range []int{3, 4} {
		if err := f.call(0x1000, pid); err != nil {
			t.Fatal(err)
		}
	}
	if hits != 1 {
		t.Errorf("%d hits, want that of process 3", hits)
	}
}
