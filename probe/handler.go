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

// Entered implements engine.Handler: it calls the probes on the function, in
// order, whose filters let the thread pass.
func (s *handler) Entered(raw *engine.Hit) (value any, returns bool, err error) {
	t, probes := s.probesOn(raw.Point)
	if t == nil {
		return nil, false, nil
	}
	th := s.thread(raw)
	var waiting []pending
	passed := false
	for _, p := range probes {
		ok := false
		if err := guard(raw.Point.Name, func() { ok = p.wants(&th, raw.Thread != nil) }); err != nil {
			return nil, false, err
		}
		if !ok || p.gone.Load() {
			continue
		}
		passed = true
		raw.Drop = false
		v, err := s.enter(p, raw, &th)
		if err != nil {
			return nil, false, err
		}
		if p.probe.Return != nil && !raw.Drop {
			waiting = append(waiting, pending{p, v})
		}
	}
	raw.Drop = false
	s.count(t, passed)
	return waiting, len(waiting) > 0, nil
}

// thread returns the hit's thread: as recorded, or else as it is in memory.
func (s *handler) thread(raw *engine.Hit) Thread {
	if r := raw.Thread; r != nil {
		return Thread{Task: raw.Task, PID: r.PID, TID: r.TID, PPID: r.PPID, Comm: r.Comm, UID: r.UID}
	}
	return s.facts.thread(raw.Task)
}

func (s *handler) count(t *target, passed bool) {
	if !passed {
		s.filtered.Add(1)
		return
	}
	s.passed.Add(1)
	t.entries.Add(1)
}

func (s *handler) probesOn(p *engine.Point) (*target, []*Planted) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.byPoint[p]
	if t == nil {
		return nil, nil
	}
	return t, t.probes
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
	waiting, _ := value.([]pending)
	th := s.thread(raw)
	for _, w := range waiting {
		if w.probe.gone.Load() {
			continue
		}
		h := s.newHit(w.probe, raw, &th)
		if err := guard(raw.Point.Name, func() { w.probe.probe.Return(h, w.value) }); err != nil {
			return err
		}
	}
	return nil
}

func (s *handler) newHit(p *Planted, raw *engine.Hit, th *Thread) *Hit {
	s.spaces.stale = true
	return &Hit{
		Probe: p.probe, Func: raw.Point.Name, CPU: raw.CPU, Return: raw.Return, Thread: *th,
		Time: raw.Time, Ran: raw.Ran,
		raw: raw, captures: p.captures, space: s.spaces.at, kern: s.facts.kernel, facts: s.facts,
	}
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
