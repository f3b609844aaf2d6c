package probe

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
	"github.com/vitrine-vmi/vitrine/probe/internal/implant"
)

// hybrid is what Auto is where implants work: it plants implants where a
// function takes them and holds breakpoints on the rest. The breakpoints are
// there from when the implants are in and the stub is free, until before the
// implants go; their hits are delivered one at a time.
type hybrid struct {
	// Immutable fields, may be shared.
	implants implanter
	traps    engine.Engine
	strict   bool // stream delivery was asked for by name: breakpoints cannot replace the implants

	mu      sync.Mutex // protects the fields below
	wanted  []engine.Wanted
	trapped []engine.Wanted // those of wanted that have breakpoints
	why     map[*engine.Point]error
	failed  error // why the implants could not be planted
}

// implanter is the implant engine, to a hybrid.
type implanter interface {
	engine.Engine
	engine.Filterer
	// Check returns why a function takes no implant.
	Check(w engine.Wanted) error
}

var (
	_ implanter       = (*implant.Engine)(nil)
	_ engine.Engine   = (*hybrid)(nil)
	_ engine.Filterer = (*hybrid)(nil)
	_ implant.Beside  = (*hybrid)(nil)
)

// Change implements engine.Engine.
func (e *hybrid) Change(ctx context.Context, w []engine.Wanted) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.wanted = w
	e.trapped, e.why = nil, map[*engine.Point]error{}
	var implanted []engine.Wanted
	for _, p := range w {
		err := e.failed
		if err == nil {
			err = e.implants.Check(p)
		}
		if err != nil {
			e.trapped, e.why[p.Point] = append(e.trapped, p), err
			continue
		}
		implanted = append(implanted, p)
	}
	return errors.Join(append(unjoin(e.traps.Change(ctx, e.trapped)), unjoin(e.implants.Change(ctx, implanted))...)...)
}

// SetFilter implements engine.Filterer. What it reports holds for recorded hits.
func (e *hybrid) SetFilter(f engine.Filter) bool { return e.implants.SetFilter(f) }

// Stats implements engine.Engine.
func (e *hybrid) Stats() engine.Stats {
	s := e.implants.Stats()
	s.Add(e.traps.Stats())
	return s
}

// Run implements engine.Engine.
func (e *hybrid) Run(ctx context.Context, h engine.Handler) error {
	if e.failure() != nil {
		return e.traps.Run(ctx, h)
	}
	err := e.implants.Run(ctx, h)
	var clean *implant.NotPlantedError
	if !errors.As(err, &clean) || e.strict || ctx.Err() != nil {
		return err
	}
	if err := e.giveUp(ctx, clean); err != nil {
		return fmt.Errorf("use breakpoints, as there can be no implants (%w): %w", clean, err)
	}
	return e.traps.Run(ctx, h)
}

// giveUp leaves everything to the breakpoints from now on.
func (e *hybrid) giveUp(ctx context.Context, why error) error {
	e.mu.Lock()
	e.failed = why
	w := e.wanted
	e.mu.Unlock()
	return e.Change(ctx, w)
}

func (e *hybrid) failure() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.failed
}

// Wanted implements implant.Beside.
func (e *hybrid) Wanted() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.trapped) > 0
}

// RunBeside implements implant.Beside.
func (e *hybrid) RunBeside(ctx context.Context, h engine.Handler) error { return e.traps.Run(ctx, h) }

// maxNotes bounds the functions that are named for not taking an implant.
const maxNotes = 8

// present returns what is in use now, and what should be said of that.
func (e *hybrid) present(delivery Delivery) (Engine, Delivery, []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.failed != nil {
		return Trap, Sync, []string{"no implants, breakpoints instead: " + e.failed.Error()}
	}
	var notes []string
	for i, w := range e.trapped {
		if i == maxNotes {
			notes = append(notes, fmt.Sprintf("%d more functions have breakpoints instead of implants", len(e.trapped)-i))
			break
		}
		notes = append(notes, fmt.Sprintf("%s has a breakpoint instead of an implant: %v", w.Name, e.why[w.Point]))
	}
	return Implant, delivery, notes
}
