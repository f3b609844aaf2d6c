package trace

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/probe"
)

// OSType says which operating system a guest runs.
type OSType uint8

// Operating systems.
const (
	Unknown OSType = iota
	Linux
	Windows
)

var osNames = [...]string{"unknown", "linux", "windows"}

// String returns the name in lower case.
func (o OSType) String() string {
	if int(o) < len(osNames) {
		return osNames[o]
	}
	return osNames[Unknown]
}

// CallFunc is called when a function is entered. What it returns is handed to
// the ReturnFunc when the same call returns.
type CallFunc func(e *Event) any

// ReturnFunc is called when a function returns, with what the CallFunc of the
// same call returned.
type ReturnFunc func(e *Event, value any)

// Handler is an entry of the table that HandleAll takes.
type Handler struct {
	Name     string     // of a system call or a kernel function
	OnCall   CallFunc   // may be nil
	OnReturn ReturnFunc // may be nil: the return side is not planted
}

// Options change how a Loop works. Nil means the defaults.
type Options struct {
	Engine   probe.Engine   // "" and probe.Auto: the best that works
	Delivery probe.Delivery // "": Sync, so that handlers may change what the guest does
	Filter   *probe.Filter  // whose calls the handlers are called for; nil means everybody's
	Symbols  []string       // of a guest that the loop describes by itself: see kernel.Options
}

// Loop calls handlers when functions of a guest's kernel are entered and
// return. Its methods may be called concurrently, and by handlers.
type Loop struct {
	// Immutable fields, may be shared.
	g    *vitrine.Guest
	opts Options

	mu sync.Mutex // protects the fields below
	// k, sys and probes are nil until the guest has been understood.
	k       *kernel.Kernel
	sys     osi.System
	probes  *probe.Session
	nt      *ntNames    // of an NT guest
	planted []Handler   // in order of Handle
	past    probe.Stats // of the sessions before a reset
	running bool
	stop    context.CancelFunc // ends the present Run
	closed  bool

	ctx context.Context //nolint:containedctx // of the present Run, for what handlers ask the guest; set by Run's goroutine
}

// New returns a loop for a guest. K and sys may be nil: Run then waits until
// an operating system has started in the guest, and describes it. The guest is
// not touched before Run, and is not closed by the loop.
func New(g *vitrine.Guest, k *kernel.Kernel, sys osi.System, opts *Options) (*Loop, error) {
	l := &Loop{g: g}
	if opts != nil {
		l.opts = *opts
	}
	if k == nil {
		return l, nil
	}
	return l, l.understood(k, sys)
}

// understood takes what is known of the guest's operating system, and adds the
// handlers that came before. The caller holds mu, or is alone.
func (l *Loop) understood(k *kernel.Kernel, sys osi.System) error {
	s, err := probe.New(l.g, k, &probe.Options{Engine: l.opts.Engine, Delivery: cmp.Or(l.opts.Delivery, probe.Sync)})
	if err != nil {
		return err
	}
	l.k, l.sys, l.probes = k, sys, s
	l.understoodNT(k, sys)
	var errs []error
	for _, h := range l.planted {
		errs = append(errs, l.add(h))
	}
	if err := errors.Join(errs...); err != nil {
		l.k, l.sys, l.probes = nil, nil, nil
		return errors.Join(err, s.Close())
	}
	return nil
}

// Guest returns the guest.
func (l *Loop) Guest() *vitrine.Guest { return l.g }

// GuestName returns the guest's name.
func (l *Loop) GuestName() string { return l.g.Name() }

// Kernel returns the guest's kernel, nil while it is not known.
func (l *Loop) Kernel() *kernel.Kernel {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.k
}

// System returns the guest's operating system, nil while it is not known.
func (l *Loop) System() osi.System {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sys
}

// OSType returns which operating system the guest runs, Unknown while it is
// not known.
func (l *Loop) OSType() OSType {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.k == nil:
		return Unknown
	case l.k.OS() == kernel.Linux:
		return Linux
	case l.k.OS() == kernel.Windows:
		return Windows
	}
	return Unknown
}

// Handle has onCall called when a function is entered and onReturn when it
// returns; either may be nil, and without onReturn the return side costs
// nothing. The name is that of a system call, with or without its prefix, or of
// any kernel function; a system call's handlers also get what 32-bit programs
// call by their own interface.
//
// In a Windows guest the name is that of a service, as NtCreateFile, or of any
// function that the kernel exports or the user's symbols name.
//
// Several handlers on one function are all called, in the order of Handle. It
// may be called while the loop runs. The error wraps ErrUnknownCall and
// kernel.ErrNoSymbol for a name that the guest's kernel does not have; in a loop
// that does not know its guest yet, it is Run that returns it.
func (l *Loop) Handle(name string, onCall CallFunc, onReturn ReturnFunc) error {
	return l.HandleAll([]Handler{{name, onCall, onReturn}})
}

// HandleAll does Handle for each entry of a table. The error names every one
// that failed; the others are planted.
func (l *Loop) HandleAll(table []Handler) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("add handlers: %w", vitrine.ErrClosed)
	}
	var errs []error
	for _, h := range table {
		if l.probes != nil {
			if err := l.add(h); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		l.planted = append(l.planted, h)
	}
	return errors.Join(errs...)
}

// add plants a handler's probes. The caller holds mu.
func (l *Loop) add(h Handler) error {
	if l.nt != nil {
		return l.addNT(h)
	}
	entries, err := resolve(l.k, h.Name)
	if err != nil {
		return err
	}
	var done []*probe.Planted
	for _, s := range sites(l.k, entries) {
		p, err := l.probes.Add(l.probe(s, h))
		if err != nil {
			for _, d := range done {
				err = errors.Join(err, d.Remove())
			}
			return fmt.Errorf("trace %s: %w", h.Name, err)
		}
		done = append(done, p)
	}
	return nil
}

// probe makes the probe that calls a handler.
func (l *Loop) probe(s site, h Handler) *probe.Probe {
	p := &probe.Probe{Func: s.symbol, Filter: l.opts.Filter, User: s.user(l.k)}
	p.Enter, p.Return = h.callbacks(func(hit *probe.Hit) *pending {
		is, wanted := s.of(hit)
		if !wanted {
			return nil
		}
		c := &pending{is: is}
		c.args, c.saved = argsAt(hit)
		return c
	}, func(hit *probe.Hit, c *pending) *Event {
		return &Event{Hit: hit, Name: c.is.name, ABI: c.is.abi, loop: l, ctx: l.ctx, saved: c.saved, args: &c.args}
	})
	return p
}

// pending is what is kept of a call until it returns.
type pending struct {
	is    entry
	args  [6]uint64
	more  []uint64 // of NT: the arguments beyond the sixth
	saved arch.GVA
	value any // of OnCall
}

// callbacks returns the callbacks of a probe by which the handler is called:
// begin notes what is known of a call at its entry, nil of one that the handler
// is not for; event makes what the handler is given. A handler without OnReturn needs no return.
func (h Handler) callbacks(begin func(*probe.Hit) *pending, event func(*probe.Hit, *pending) *Event) (enter func(*probe.Hit) any, leave func(*probe.Hit, any)) {
	enter = func(hit *probe.Hit) any {
		c := begin(hit)
		if c == nil {
			hit.DropReturn()
			return nil
		}
		if h.OnCall != nil {
			c.value = h.OnCall(event(hit, c))
		}
		return c
	}
	if h.OnReturn == nil {
		return enter, nil
	}
	return enter, func(hit *probe.Hit, v any) {
		if c, ok := v.(*pending); ok {
			h.OnReturn(event(hit, c), c.value)
		}
	}
}

// Run waits until an operating system runs in the guest, if it was not known
// before, plants the handlers, and calls them until ctx ends or Quit is called,
// which takes effect at once. Then everything is taken out of the guest and Run
// returns nil. It may be called again, one at a time.
//
// A panic in a handler ends it with a *probe.PanicError, a reset or the end of
// the guest with vitrine.ErrReset or vitrine.ErrGone. After a reset the next
// Run waits for the guest's system to boot, and plants the handlers in that.
// Handlers whose names the guest does not know end it before it begins.
func (l *Loop) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := l.begin(cancel); err != nil {
		return err
	}
	defer l.end()
	if err := l.await(ctx); err != nil {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return nil
		}
		return err
	}
	l.ctx = ctx
	err := l.probes.Run(ctx)
	if errors.Is(err, vitrine.ErrReset) {
		return errors.Join(err, l.forget())
	}
	return err
}

// forget drops what was known of a system that a reset has ended: the next one
// lies elsewhere, and may be another. The handlers stay.
func (l *Loop) forget() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.probes
	l.past.Add(s.Stats())
	l.k, l.sys, l.probes = nil, nil, nil
	return s.Close()
}

func (l *Loop) begin(cancel context.CancelFunc) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return fmt.Errorf("run loop: %w", vitrine.ErrClosed)
	case l.running:
		return probe.ErrRunning
	}
	l.running, l.stop = true, cancel
	return nil
}

func (l *Loop) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running, l.stop = false, nil
}

// bootWait is for ever: it is the context that ends the wait for a boot.
const bootWait = 10 * 365 * 24 * time.Hour

// await describes the guest, if that was not done before.
func (l *Loop) await(ctx context.Context) error {
	if l.Kernel() != nil {
		return nil
	}
	k, err := kernel.Describe(ctx, l.g, &kernel.Options{Wait: bootWait, Symbols: l.opts.Symbols})
	if err != nil {
		return err
	}
	sys, err := osi.Open(ctx, l.g, k, nil)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.understood(k, sys)
}

// Quit ends the present Run, at once. Without one it does nothing. It does not
// wait for Run to return; a handler may call it.
func (l *Loop) Quit() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stop != nil {
		l.stop()
	}
}

// Close ends the present Run and makes the loop unusable.
func (l *Loop) Close() error {
	l.Quit()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.probes == nil {
		return nil
	}
	return l.probes.Close()
}

// Stats returns the counters: of calls seen in all and for each kernel
// function, of returns, and of what was lost.
func (l *Loop) Stats() probe.Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := probe.Stats{PerFunc: map[string]uint64{}}
	sum.Add(l.past)
	if l.probes != nil {
		sum.Add(l.probes.Stats())
	}
	return sum
}

// Count returns how many calls were seen since New, in all runs.
func (l *Loop) Count() uint64 { return l.Stats().Entries }
