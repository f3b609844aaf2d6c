package probe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// Options says how a session works. Nil means the defaults.
type Options struct {
	Engine   Engine   // "" is Auto
	Delivery Delivery // "" is what the engine does best: Sync with Trap, Stream with Implant and Auto
	// Lossy makes a stream engine drop hits, and count them, when callbacks do not
	// keep up; otherwise the guest's threads wait for them.
	Lossy bool
}

// ErrRunning is returned by Run when the session runs already.
var ErrRunning = errors.New("session is running already")

// Session plants probes in one guest. Probes of several owners can share one;
// a guest has at most one session that runs at a time, since control of its
// processors is exclusive. The methods may be called concurrently.
type Session struct {
	// Immutable fields, may be shared.
	g        *vitrine.Guest
	k        *kernel.Kernel
	facts    *facts
	engine   engine.Engine
	name     Engine
	delivery Delivery
	notes    []string // why Auto chose the engine

	// Of the goroutine that runs.
	spaces spaces
	hot    hot

	version atomic.Uint64 // counts changes of the probes; changed with mu held

	mu sync.Mutex // protects the fields below
	// byAddr and byPoint are replaced when they change, and never changed.
	byAddr   map[arch.GVA]*target
	byPoint  map[*engine.Point]*target
	families map[*Filter]*family
	quit     context.CancelFunc // nil outside Run
	began    []func()           // see WhenRunning; only grows
	closed   bool
	vouched  *Filter // the engine delivers nothing that the family of this one does not pass

	trusted atomic.Pointer[Filter] // the same, for the present Run from its begin

	filtered, passed atomic.Uint64
}

// target is a function with the probes on it.
type target struct {
	point *engine.Point
	// captures is what all probes on it want; it only grows. Protected by the
	// session's mu.
	captures []engine.Capture
	probes   []*Planted // in order of Add; replaced, never changed
	entries  atomic.Uint64
}

// Planted is a probe that a session has taken.
type Planted struct {
	s      *Session
	t      *target
	probe  *Probe
	family *family // nil unless the filter names processes
	// captures says where in the target's captures the probe's are.
	captures []int
	gone     atomic.Bool
}

// New returns a session for a guest whose kernel has been described. It does
// not touch the guest; Run does.
func New(g *vitrine.Guest, k *kernel.Kernel, opts *Options) (*Session, error) {
	if opts == nil {
		opts = &Options{}
	}
	f, err := findFacts(k)
	if err != nil {
		return nil, fmt.Errorf("prepare probes: %w", err)
	}
	s := &Session{g: g, k: k, facts: f, byAddr: map[arch.GVA]*target{}, byPoint: map[*engine.Point]*target{}, families: map[*Filter]*family{}}
	s.spaces.g, s.spaces.mode = g, k.AddressSpace().Mode().User()
	if err := s.chooseEngine(opts); err != nil {
		return nil, err
	}
	return s, nil
}

// Add plants a probe: at once when the session runs, otherwise when it does
// next. The error says why the function cannot be hooked; kernel.ErrNoSymbol is
// wrapped where there is no such function. Nothing is left of a probe that was
// not added. Probes on one function are called in the order of Add.
func (s *Session) Add(p *Probe) (*Planted, error) {
	all, err := s.AddAll([]*Probe{p})
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// AddAll is Add for many probes at once, which is quicker. The error names
// every one that failed; the result has nil for those, and the others are
// added.
func (s *Session) AddAll(probes []*Probe) ([]*Planted, error) {
	out := make([]*Planted, len(probes))
	var errs []error
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return out, fmt.Errorf("add probe: %w", vitrine.ErrClosed)
	}
	targets := maps.Clone(s.byAddr)
	for i, p := range probes {
		sym, err := s.resolve(p)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := targets[sym.Addr].accepts(p); err != nil {
			errs = append(errs, err)
			continue
		}
		out[i] = s.put(targets, sym, p)
	}
	s.setTargets(targets)
	bad, err := s.change()
	if err == nil {
		return out, errors.Join(errs...)
	}
	for i, pl := range out {
		if pl != nil && bad[pl.t.point] {
			s.drop(pl)
			out[i] = nil
		}
	}
	_, _ = s.change() // of what could be hooked before
	return out, errors.Join(append(errs, err)...)
}

// put makes the planted probe, and its target among targets. The caller holds mu.
func (s *Session) put(targets map[arch.GVA]*target, sym kernel.Symbol, p *Probe) *Planted {
	t := targets[sym.Addr]
	if t == nil {
		t = &target{point: &engine.Point{Name: sym.Name, Body: []engine.Range{{Start: sym.Addr, Size: sym.Size}}}}
		targets[sym.Addr] = t
	}
	pl := &Planted{s: s, t: t, probe: p, family: s.familyOf(p.Filter), captures: t.capture(p.Capture)}
	t.probes = append(slices.Clip(t.probes), pl)
	return pl
}

// familyOf returns what a filter's probes share. The caller holds mu.
func (s *Session) familyOf(f *Filter) *family {
	if f == nil || len(f.PIDs) == 0 {
		return nil
	}
	if s.families[f] == nil {
		s.families[f] = newFamily(s.facts, f)
	}
	return s.families[f]
}

// capture adds what a probe wants captured and returns where it is.
func (t *target) capture(want []Capture) []int {
	var at []int
	for _, c := range want {
		raw := engine.Capture(c)
		if v := raw.Via; v > 0 && v <= len(at) {
			raw.Via = at[v-1] + 1
		} else if v != 0 {
			raw.Via = len(t.captures) + 1 // itself: it holds nothing
		}
		i := slices.Index(t.captures, raw)
		if i < 0 {
			i = len(t.captures)
			t.captures = append(slices.Clip(t.captures), raw)
		}
		at = append(at, i)
	}
	return at
}

// user returns what the probes say of the function's first argument.
func (t *target) user() UserRegs {
	for _, p := range t.probes {
		if p.probe.User != NoUserRegs {
			return p.probe.User
		}
	}
	return NoUserRegs
}

// resolve finds the function that a probe is for.
func (s *Session) resolve(p *Probe) (kernel.Symbol, error) {
	if p.Func != "" {
		sym, err := s.k.Symbol(p.Func)
		if err != nil {
			return sym, fmt.Errorf("add probe: %w", err)
		}
		return sym, isText(sym)
	}
	if s.facts.nt != nil && p.Name != "" {
		return kernel.Symbol{Name: p.Name, Addr: p.Addr, Size: 1, Type: 'T'}, nil
	}
	sym, ok := s.k.SymbolAt(p.Addr)
	if !ok || sym.Addr != p.Addr {
		return sym, fmt.Errorf("add probe: no function begins at %v: %w", p.Addr, kernel.ErrNoSymbol)
	}
	return sym, isText(sym)
}

func isText(sym kernel.Symbol) error {
	switch sym.Type {
	case 't', 'T', 'w', 'W':
		return nil
	}
	return fmt.Errorf("add probe: %s is not a function (type %c)", sym.Name, sym.Type)
}

// Remove takes the probe out. Its callbacks are not called any more once the
// guest has run on. Removing twice does nothing.
func (p *Planted) Remove() error {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.gone.Swap(true) {
		return nil
	}
	p.s.drop(p)
	_, err := p.s.change()
	return err
}

// Func returns the name of the kernel function that the probe is on.
func (p *Planted) Func() string { return p.t.point.Name }

// drop forgets a probe. The caller holds mu.
func (s *Session) drop(p *Planted) {
	p.t.probes = slices.DeleteFunc(slices.Clone(p.t.probes), func(o *Planted) bool { return o == p })
	if len(p.t.probes) == 0 {
		targets := maps.Clone(s.byAddr)
		delete(targets, p.t.point.Body[0].Start)
		s.setTargets(targets)
	}
}

// setTargets replaces the targets. The caller holds mu.
func (s *Session) setTargets(byAddr map[arch.GVA]*target) {
	byPoint := make(map[*engine.Point]*target, len(byAddr))
	for _, t := range byAddr {
		byPoint[t.point] = t
	}
	s.byAddr, s.byPoint = byAddr, byPoint
}

// change tells the engine what is wanted. With an error it returns the points
// that the engine cannot hook. The caller holds mu.
func (s *Session) change() (bad map[*engine.Point]bool, err error) {
	s.version.Add(1)
	w := make([]engine.Wanted, 0, len(s.byAddr))
	for _, t := range s.byAddr {
		returns := slices.ContainsFunc(t.probes, func(p *Planted) bool { return p.probe.Return != nil })
		w = append(w, engine.Wanted{Point: t.point, Returns: returns, User: t.user(), Captures: t.captures, About: t.describe()})
	}
	s.setFilter()
	err = s.engine.Change(context.Background(), w)
	bad = map[*engine.Point]bool{}
	for _, e := range unjoin(err) {
		var pe *engine.PointError
		if errors.As(e, &pe) {
			bad[pe.Point] = true
		}
	}
	return bad, err
}

// setFilter tells the engine what all probes' filters have in common. The
// caller holds mu.
func (s *Session) setFilter() {
	e, ok := s.engine.(engine.Filterer)
	if !ok {
		return
	}
	common := s.commonFilter()
	var raw engine.Filter
	if common != nil {
		raw = engine.Filter{PIDs: common.PIDs, Comms: common.Comms, UIDs: common.UIDs, Follow: common.Follow}
	}
	s.vouched = nil
	if e.SetFilter(raw) {
		s.vouched = common
	}
	if s.quit == nil {
		s.trusted.Store(s.vouched)
	} else if s.trusted.Load() != s.vouched {
		s.trusted.Store(nil) // hits may come that another filter let pass
	}
}

// commonFilter returns the filter of all probes, nil if they have not one. The
// caller holds mu.
func (s *Session) commonFilter() (common *Filter) {
	for _, t := range s.byAddr {
		for _, p := range t.probes {
			f := p.probe.Filter
			if f == nil || common != nil && f != common {
				return nil
			}
			common = f
		}
	}
	return common
}

// unjoin takes apart what errors.Join has joined.
func unjoin(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return []error{err}
}

// Run takes control of the guest, plants the probes and delivers hits until
// ctx ends or Quit is called; both take effect at once, not at the next hit.
// Then it takes everything out of the guest, lets it run, and returns nil. It
// may be called again.
//
// On an error (a callback's panic as *PanicError, vitrine.ErrReset,
// vitrine.ErrGone, vitrine.ErrBusy, vitrine.ErrPaused, ...) the guest has been
// cleaned in the same way, as far as there still is one.
func (s *Session) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.begin(cancel); err != nil {
		return err
	}
	defer s.end()
	return s.engine.Run(ctx, (*handler)(s))
}

func (s *Session) begin(cancel context.CancelFunc) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return fmt.Errorf("run probes: %w", vitrine.ErrClosed)
	case s.quit != nil:
		return ErrRunning
	}
	s.quit = cancel
	s.trusted.Store(s.vouched)
	return nil
}

func (s *Session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quit = nil
}

// WhenRunning has f called in each Run as soon as the probes that were added
// before are planted: from then on nothing is missed. It is called on Run's
// goroutine, before any callback of that Run.
func (s *Session) WhenRunning(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.began = append(slices.Clip(s.began), f)
}

// Quit ends the present Run. Without one it does nothing. It does not wait; a
// callback may call it.
func (s *Session) Quit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.quit != nil {
		s.quit()
	}
}

// Close ends the present Run and makes the session unusable. The guest stays
// open: it belongs to whoever opened it.
func (s *Session) Close() error {
	s.Quit()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

// Guest returns the guest.
func (s *Session) Guest() *vitrine.Guest { return s.g }

// Kernel returns the guest's kernel.
func (s *Session) Kernel() *kernel.Kernel { return s.k }

// Lost returns how many hits were lost so far. It is cheap enough to be asked at
// each hit: what was lost before that is counted.
func (s *Session) Lost() uint64 { return s.engine.Stats().Lost }

// Stats returns the counters.
func (s *Session) Stats() Stats {
	e := s.engine.Stats()
	st := Stats{
		Engine: s.name, Delivery: s.delivery,
		Entries: s.passed.Load(), Returns: e.Returns, Filtered: s.filtered.Load(),
		Unreturned: e.Unreturned, Stray: e.Stray, Lost: e.Lost, Stalls: e.Stalls, Stopped: e.Stopped, Planting: e.Planting, Removing: e.Removing,
		Notes: s.notes, PerFunc: map[string]uint64{},
	}
	if h, ok := s.engine.(*hybrid); ok {
		st.Engine, st.Delivery, st.Notes = h.present(s.delivery)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.byAddr {
		st.PerFunc[t.point.Name] += t.entries.Load()
	}
	return st
}
