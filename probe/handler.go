package probe

import (
	"runtime/debug"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// handler is the side of a session that its engine sees. Its methods run on
// the goroutine that called Run.
type handler Session

var _ engine.Handler = (*handler)(nil)

// pending is a probe that waits for a call's return, with what its Enter
// returned.
type pending struct {
	probe *Planted
	value any
}

// waiting is what an engine keeps between a call's entry and its return. Most
// calls return, and theirs are used again.
type waiting struct {
	probes []pending
	next   *waiting // in the list of those that are free
}

// hot is what makes a hit cheap: nothing is allocated or locked for it. It
// belongs to the goroutine that runs.
type hot struct {
	version uint64 // of the session that on was made for
	on      map[*engine.Point]probesOn
	hit     Hit
	thread  Thread
	free    *waiting
}

type probesOn struct {
	t      *target
	probes []*Planted
}

// Entered implements engine.Handler: it calls the probes on the function, in
// order, whose filters let the thread pass.
func (s *handler) Entered(raw *engine.Hit) (value any, returns bool, err error) {
	on := s.probesOn(raw.Point)
	if on.t == nil {
		return nil, false, nil
	}
	th := s.thread(raw)
	var w *waiting
	passed := false
	for _, p := range on.probes {
		ok, err := s.wants(p, raw, th)
		if err != nil {
			return nil, false, err
		}
		if !ok || p.gone.Load() {
			continue
		}
		passed = true
		raw.Drop = false
		v, err := s.enter(p, raw, th)
		if err != nil {
			return nil, false, err
		}
		if p.probe.Return != nil && !raw.Drop {
			if w == nil {
				w = s.newWaiting()
			}
			w.probes = append(w.probes, pending{p, v})
		}
	}
	raw.Drop = false
	s.count(on.t, passed)
	if w == nil {
		return nil, false, nil
	}
	return w, true, nil
}

// newWaiting returns an empty one.
func (s *handler) newWaiting() *waiting {
	w := s.hot.free
	if w == nil {
		return &waiting{}
	}
	s.hot.free, w.next = w.next, nil
	return w
}

func (s *handler) release(w *waiting) {
	clear(w.probes)
	w.probes, w.next = w.probes[:0], s.hot.free
	s.hot.free = w
}

func (s *handler) wants(p *Planted, raw *engine.Hit, th *Thread) (ok bool, err error) {
	if p.probe.Filter.empty() {
		return true, nil
	}
	err = guard(raw.Point.Name, func() { ok = p.wants(th, raw.Thread != nil) })
	return ok, err
}

// thread returns the hit's thread: as recorded, or else as it is in memory. It
// is valid until the next hit.
func (s *handler) thread(raw *engine.Hit) *Thread {
	if r := raw.Thread; r != nil {
		s.hot.thread = Thread{Task: raw.Task, PID: r.PID, TID: r.TID, PPID: r.PPID, Comm: r.Comm, UID: r.UID}
	} else {
		s.hot.thread = s.facts.thread(raw.Task)
	}
	return &s.hot.thread
}

func (s *handler) count(t *target, passed bool) {
	if !passed {
		s.filtered.Add(1)
		return
	}
	s.passed.Add(1)
	t.entries.Add(1)
}

// probesOn returns the probes on a function as they are now.
func (s *handler) probesOn(p *engine.Point) probesOn {
	if v := s.version.Load(); s.hot.on == nil || s.hot.version != v {
		s.mu.Lock()
		s.hot.version, s.hot.on = s.version.Load(), make(map[*engine.Point]probesOn, len(s.byPoint))
		for p, t := range s.byPoint {
			s.hot.on[p] = probesOn{t, t.probes}
		}
		s.mu.Unlock()
	}
	return s.hot.on[p]
}

func (s *handler) enter(p *Planted, raw *engine.Hit, th *Thread) (v any, err error) {
	if p.probe.Enter == nil {
		return nil, nil
	}
	h := s.newHit(p, raw, th)
	err = guard(raw.Point.Name, func() { v = p.probe.Enter(h) })
	return v, err
}

// Returned implements engine.Handler.
func (s *handler) Returned(raw *engine.Hit, value any) error {
	w, _ := value.(*waiting)
	if w == nil {
		return nil
	}
	th := s.thread(raw)
	for _, p := range w.probes {
		if p.probe.gone.Load() {
			continue
		}
		h := s.newHit(p.probe, raw, th)
		if err := guard(raw.Point.Name, func() { p.probe.probe.Return(h, p.value) }); err != nil {
			return err
		}
	}
	s.release(w)
	return nil
}

// newHit fills in the hit, which is valid until the next one.
func (s *handler) newHit(p *Planted, raw *engine.Hit, th *Thread) *Hit {
	s.spaces.stale = true
	h := &s.hot.hit
	h.Probe, h.Func, h.CPU, h.Return, h.Thread, h.Time, h.Ran = p.probe, raw.Point.Name, raw.CPU, raw.Return, *th, raw.Time, raw.Ran
	h.raw, h.captures, h.spaces, h.kern, h.kernStale, h.facts = raw, p.captures, &s.spaces, s.facts.kernel, true, s.facts
	return h
}

// guard calls a callback and turns its panic into an error.
func guard(name string, f func()) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Func: name, Value: v, Stack: debug.Stack()}
		}
	}()
	f()
	return nil
}

// spaces keeps the address space of the last process asked for: successive
// hits are often the same process's.
type spaces struct {
	g     *vitrine.Guest
	last  *vitrine.AddressSpace
	mode  arch.PagingMode
	stale bool // the guest has run since
}

func (c *spaces) at(root arch.GPA) *vitrine.AddressSpace {
	switch {
	case c.last == nil || c.last.Root() != root:
		c.last = c.g.AddressSpace(c.mode, root)
	case c.stale:
		c.last.Invalidate()
	}
	c.stale = false
	return c.last
}

var _ engine.Beginner = (*handler)(nil)

// Begin implements engine.Beginner.
func (s *handler) Begin() {
	s.mu.Lock()
	all := s.began
	s.mu.Unlock()
	for _, f := range all {
		f()
	}
}
