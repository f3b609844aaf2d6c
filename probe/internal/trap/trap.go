package trap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// Config is what the engine has to know of the guest's kernel.
type Config struct {
	Guest  *vitrine.Guest
	Kernel *vitrine.AddressSpace
	// SymbolAt returns the symbol that holds an address.
	// Wall, if not nil, returns the guest's wall-clock time when it has run for
	// ran. Without it, or where it does not know, hits have host time.
	Wall     func(ran time.Duration) (time.Time, bool)
	SymbolAt func(arch.GVA) (name string, r engine.Range, ok bool)
	// ARM64 says that the guest's processors are AArch64 ones: their kernel keeps
	// the current task in SP_EL0, and Current means nothing.
	ARM64 bool
	// UserRoot returns the top page table of a task's program, where the kernel has
	// put it away (arm64, CONFIG_ARM64_SW_TTBR0_PAN); false where it has none.
	UserRoot func(task arch.GVA) (arch.GPA, bool)
	// Current is where a processor's current task pointer is, relative to its
	// GS base.
	Current arch.GVA
	// StackField is the offset of task_struct.stack, StackSize the size of a
	// task's kernel stack in bytes.
	StackField, StackSize uint64
	// Machine, if not nil, is of a kernel that does things otherwise than Linux on
	// x86-64 does; Current, StackField and StackSize are not used then.
	Machine *Machine
	// MaxCalls bounds how many calls are followed at once; 0 means 65536.
	MaxCalls int
}

// Engine implements engine.Engine with breakpoints.
type Engine struct {
	cfg Config // immutable

	mu sync.Mutex // protects the fields below
	// functions holds what is wanted or planted, analysed once.
	functions map[*engine.Point]*function
	wanted    []engine.Wanted
	d         *vitrine.Dispatcher // nil outside Run

	// Fields of the goroutine that runs.
	handler engine.Handler
	planted map[*engine.Point]*function
	exits   map[place]*exit
	calls   *pairs
	hit     engine.Hit // of the callback under way

	count counters
}

type counters struct {
	entries, returns, unreturned, stray atomic.Uint64
	stopped                             atomic.Int64 // of earlier runs, nanoseconds
}

var _ engine.Engine = (*Engine)(nil)

// function is one point, analysed.
type function struct {
	point    *engine.Point
	entry    *site
	ways     ways
	followed bool // ways is known
	returns  bool // wanted at present
	bp       *vitrine.Breakpoint
}

// place names an exit: an address, and whether it is watched as a return
// address or is itself a way out.
type place struct {
	addr  arch.GVA
	watch bool
}

// exit is a place that calls leave by.
type exit struct {
	way
	site  *site
	bp    *vitrine.Breakpoint // nil while not planted
	users int                 // calls under way that may come by
	stays bool                // a jump that turned out to stay in its function
}

// New returns an engine that hooks nothing yet.
func New(cfg Config) *Engine {
	if cfg.MaxCalls == 0 {
		cfg.MaxCalls = 1 << 16
	}
	e := &Engine{cfg: cfg, functions: make(map[*engine.Point]*function)}
	e.calls = newPairs(cfg.MaxCalls, e.giveUp)
	return e
}

// Change implements engine.Engine.
func (e *Engine) Change(_ context.Context, w []engine.Wanted) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	e.wanted = e.wanted[:0:0]
	for _, p := range w {
		if err := e.analyse(p); err != nil {
			errs = append(errs, &engine.PointError{Point: p.Point, Err: err})
			continue
		}
		e.wanted = append(e.wanted, p)
	}
	if e.d != nil {
		e.d.Post(e.replant)
	} else {
		e.prune(nil)
	}
	return errors.Join(errs...)
}

// prune forgets functions that are neither wanted nor planted. The caller holds
// mu. Calls under way keep theirs.
func (e *Engine) prune(planted map[*engine.Point]*function) {
	want := make(map[*engine.Point]bool, len(e.wanted))
	for _, w := range e.wanted {
		want[w.Point] = true
	}
	maps.DeleteFunc(e.functions, func(p *engine.Point, _ *function) bool { return !want[p] && planted[p] == nil })
}

// analyse prepares a point. The caller holds mu.
func (e *Engine) analyse(w engine.Wanted) error {
	f := e.functions[w.Point]
	if f == nil {
		if len(w.Body) == 0 {
			return errors.New("no code")
		}
		entry, err := e.cfg.entry(w.Body[0].Start)
		if err != nil {
			return err
		}
		f = &function{point: w.Point, entry: entry}
		e.functions[w.Point] = f
	}
	if w.Returns && !f.followed {
		f.ways, f.followed = e.waysOf(w.Body), true
	}
	return nil
}

// Stats implements engine.Engine.
func (e *Engine) Stats() engine.Stats {
	s := engine.Stats{
		Entries:    e.count.entries.Load(),
		Returns:    e.count.returns.Load(),
		Unreturned: e.count.unreturned.Load(),
		Stray:      e.count.stray.Load(),
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s.Stopped = duration(&e.count.stopped)
	if e.d != nil {
		s.Stopped += e.d.Stopped()
	}
	return s
}

// Run implements engine.Engine.
func (e *Engine) Run(ctx context.Context, h engine.Handler) (err error) {
	d, err := e.cfg.Guest.OpenDispatcher(ctx, e.cfg.Kernel)
	if err != nil {
		return fmt.Errorf("take control of guest: %w", err)
	}
	if e.cfg.Machine != nil {
		d.UseHardware()
	}
	defer func() { err = errors.Join(err, e.end(d)) }()
	e.handler, e.planted, e.exits = h, make(map[*engine.Point]*function), make(map[place]*exit)
	e.mu.Lock()
	e.d = d
	e.mu.Unlock()
	if err := e.replant(); err != nil {
		return err
	}
	engine.Begin(h)
	return d.Run(ctx)
}

// end takes everything out.
func (e *Engine) end(d *vitrine.Dispatcher) error {
	e.mu.Lock()
	e.d = nil
	e.mu.Unlock()
	err := d.Close()
	e.count.stopped.Add(int64(d.Stopped()))
	e.calls.clear()
	return err
}

// replant makes what is planted what is wanted. The guest is stopped.
func (e *Engine) replant() error {
	e.mu.Lock()
	want := make(map[*engine.Point]bool, len(e.wanted))
	var add []*function
	for _, w := range e.wanted {
		f := e.functions[w.Point]
		f.returns = w.Returns
		want[w.Point] = true
		if e.planted[w.Point] == nil {
			add = append(add, f)
		}
	}
	e.mu.Unlock()
	for p, f := range e.planted {
		if !want[p] {
			if err := e.unplant(f); err != nil {
				return err
			}
		}
	}
	for _, f := range add {
		if err := e.plant(f); err != nil {
			return fmt.Errorf("hook %s: %w", f.point.Name, err)
		}
	}
	e.mu.Lock()
	e.prune(e.planted)
	e.mu.Unlock()
	return nil
}

func (e *Engine) plant(f *function) (err error) {
	f.bp, err = e.d.Break(f.entry.addr, func(cpu int, r *arch.Registers) error {
		return e.entered(f, cpu, r)
	}, f.entry.over)
	if err == nil {
		e.planted[f.point] = f
	}
	return err
}

// unplant takes a function's entry out. Calls of it that are under way are
// followed to their end, which nobody is told of.
func (e *Engine) unplant(f *function) error {
	delete(e.planted, f.point)
	return e.d.Unbreak(f.bp)
}
