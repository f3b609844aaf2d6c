package implant

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// Config says what to work with.
type Config struct {
	Guest *vitrine.Guest
	Facts Facts
	// Sync makes guest threads wait for the handler's answer.
	Sync bool
	// Lossy drops records while the ring is full, where threads would wait.
	Lossy bool
	// Slots is the size of the ring in records of 512 bytes; 0 is the default.
	Slots int
	// Beside hooks what this engine cannot, nil for nothing.
	Beside Beside
}

// NotPlantedError is returned by Run when the implants could not be planted and
// nothing of them is in the guest.
type NotPlantedError struct{ Err error }

// Error tells the cause.
func (e *NotPlantedError) Error() string { return e.Err.Error() }

// Unwrap returns it.
func (e *NotPlantedError) Unwrap() error { return e.Err }

// Engine plants probes that write records. It implements engine.Engine.
type Engine struct {
	// Immutable fields, may be shared.
	cfg Config

	mu      sync.Mutex // protects the fields below
	wanted  []engine.Wanted
	filter  filter
	version int // counts changes of wanted and filter
	sites   *ftraceSites
	stats   engine.Stats
}

var _ engine.Engine = (*Engine)(nil)

// New returns an engine. It does not touch the guest. The error wraps
// errors.ErrUnsupported where the guest's kernel has not what implants need.
func New(cfg Config) (*Engine, error) {
	if cfg.Guest.Arch() != arch.AMD64 {
		return nil, fmt.Errorf("use implants: guest is %v: %w", cfg.Guest.Arch(), errors.ErrUnsupported)
	}
	e := &Engine{cfg: cfg}
	_, err := newSeed(cfg.Facts, nil, &settings{})
	if err == nil {
		err = canAllocate(cfg.Facts)
	}
	if err != nil {
		return nil, fmt.Errorf("use implants: %w: %w", err, errors.ErrUnsupported)
	}
	return e, nil
}

// Stats implements engine.Engine.
func (e *Engine) Stats() engine.Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stats
}

// Change implements engine.Engine. Points are checked against the guest's own
// list of places that can be patched.
func (e *Engine) Change(_ context.Context, w []engine.Wanted) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	var keep []engine.Wanted
	for _, p := range w {
		if err := e.check(p); err != nil {
			errs = append(errs, &engine.PointError{Point: p.Point, Err: err})
			continue
		}
		keep = append(keep, p)
	}
	e.wanted = keep
	e.version++
	return errors.Join(errs...)
}

func (e *Engine) has(p *engine.Point) bool {
	return slices.ContainsFunc(e.wanted, func(w engine.Wanted) bool { return w.Point == p })
}

// Check returns why a function cannot be hooked, nil when it can.
func (e *Engine) Check(w engine.Wanted) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.check(w)
}

// check is Check. What is hooked already holds a jump of ours and not a nop.
// The caller holds mu.
func (e *Engine) check(w engine.Wanted) error {
	if w.Returns && w.User == engine.NoUserRegs {
		// A wrapped call would find its stack arguments elsewhere. Without a
		// return side nothing is wrapped.
		if err := e.cfg.Facts.InRegisters(w.Name); err != nil {
			return err
		}
	}
	if e.has(w.Point) {
		return nil
	}
	if err := e.checkAt(w.Body[0].Start); err != nil || w.About == engine.AboutNone {
		return err
	}
	_, err := engine.FindAbout(e.cfg.Facts.Offset)
	return err
}

// checkAt reports whether the function at addr can be patched. The caller holds
// mu.
func (e *Engine) checkAt(addr arch.GVA) error {
	if e.sites == nil {
		s, err := readFtraceSites(e.cfg.Facts)
		if err != nil {
			return err
		}
		e.sites = s
	}
	_, err := siteOf(e.cfg.Facts, e.sites, addr)
	if errors.Is(err, errOther) {
		return nil // Run says so once, if it is still there then
	}
	return err
}

// present returns what is wanted now, of whom, and the version of that.
func (e *Engine) present() ([]engine.Wanted, filter, int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.wanted, e.filter, e.version
}

// Run implements engine.Engine.
func (e *Engine) Run(ctx context.Context, h engine.Handler) error {
	r := &run{e: e, h: h, life: lifeOf(ctx, e.cfg.Guest)}
	r.clock.perSecond = staleTicks(e.cfg.Facts) / staleSeconds
	defer r.end()
	if err := r.plant(ctx); err != nil {
		return notPlanted(ctx, err)
	}
	if r.startBeside(ctx); r.beside == nil {
		engine.Begin(h)
	}
	r.begun = true
	err := r.deliver(ctx)
	err = errors.Join(err, r.stopBeside())
	if r.p == nil {
		return err // it was out, and could not come back
	}
	return errors.Join(err, r.leave(err))
}

// notPlanted tells errors of planting apart.
func notPlanted(ctx context.Context, err error) error {
	var left *leftError
	switch {
	case errors.As(err, &left):
		return err
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, vitrine.ErrReset), errors.Is(err, vitrine.ErrGone), errors.Is(err, vitrine.ErrBusy), errors.Is(err, vitrine.ErrPaused):
		return err
	}
	return &NotPlantedError{err}
}

// leftError says that something of ours has stayed in the guest.
type leftError struct{ err error }

func (e *leftError) Error() string { return e.err.Error() }
func (e *leftError) Unwrap() error { return e.err }

// left marks an error as one that leaves something behind.
func left(err error) error {
	if err == nil {
		return nil
	}
	return &leftError{err}
}

// lifeOf returns a channel that is closed when the guest is reset or gone, with
// what happened.
func lifeOf(ctx context.Context, g *vitrine.Guest) *life {
	l := &life{done: make(chan struct{})}
	events := g.WatchLife(ctx)
	go func() {
		for ev := range events {
			switch ev {
			case vitrine.LifeReset:
				l.err = vitrine.ErrReset
			case vitrine.LifeGone, vitrine.LifeShutdown:
				l.err = vitrine.ErrGone
			default:
				continue
			}
			close(l.done)
			return
		}
	}()
	return l
}

type life struct {
	done chan struct{}
	err  error // set before done is closed
}

// run is one Run of an engine.
type run struct {
	e       *Engine
	h       engine.Handler
	alone   engine.Handler // h, while beside shares it
	beside  *beside
	begun   bool // the handler was told, or will be by beside
	life    *life
	p       *planted
	ring    *ring
	points  []engine.Wanted // by function number
	filter  filter
	kept    []uint32 // processes in the family that only the implant before this one knew of
	regs    arch.Registers
	version int // of what is wanted
	calls   calls
	clock   clock
	hit     engine.Hit
	thread  engine.Thread
	user    [6]uint64
	caught  [][]byte
	now     time.Time
	idle    time.Duration
	pace    pace // under sync delivery

	entries, returns uint64
	planting         time.Duration // the guest stood still for it
	removing         time.Duration
	lost, lostBefore uint64 // as the guest counts, since it was planted
	stalls           uint64
}

// account adds the run's counters to the engine's.
func (r *run) account() {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	s := &r.e.stats
	s.Entries += r.entries
	s.Returns += r.returns
	s.Stopped += r.planting + r.removing
	s.Planting += r.planting
	s.Removing += r.removing
	s.Unreturned += r.calls.lost
	s.Lost += r.lost - r.lostBefore
	s.Stalls += r.stalls
	r.lostBefore = r.lost
	r.entries, r.returns, r.calls.lost, r.stalls = 0, 0, 0, 0
	r.planting, r.removing = 0, 0
}

// end does the same for the last time.
func (r *run) end() {
	r.calls.giveUp()
	r.account()
}

func (r *run) plant(ctx context.Context) error {
	if err := noOther(r.e.cfg.Facts); err != nil {
		return err
	}
	wanted, filter, version := r.e.present()
	var fns []function
	for _, w := range wanted {
		fns = append(fns, r.function(w))
		r.points = append(r.points, w)
	}
	if filter.follow {
		var err error
		if fns, err = hookFork(r.e.cfg.Facts, fns); err != nil {
			return err
		}
	}
	seed, err := newSeed(r.e.cfg.Facts, fns, &settings{
		slots: cmp.Or(r.e.cfg.Slots, defaultSlots), lossless: !r.e.cfg.Lossy, filter: filter, kept: r.kept,
	})
	if err != nil {
		return err
	}
	m, err := take(ctx, r.e.cfg.Guest, r.e.cfg.Facts)
	if err != nil {
		return err
	}
	r.p, err = seed.plant(ctx, m)
	err = errors.Join(err, left(m.release()))
	r.planting += m.stood
	r.version, r.filter = version, filter
	r.lost, r.lostBefore = 0, 0
	if r.p == nil {
		return err
	}
	if err == nil {
		err = r.p.translate(r.e.cfg.Facts.Space())
	}
	if err != nil {
		err = errors.Join(err, left(r.leave(err)))
		r.p = nil
		return err
	}
	r.ring = newRing(r.p.m, r.p.l, len(r.points))
	r.account() // records, which bring the counters up to date, may not come for long
	return nil
}

func (r *run) function(w engine.Wanted) function {
	fn := function{name: w.Name, addr: w.Body[0].Start, flags: r.flags(w), about: aboutCodes[w.About]}
	for _, c := range w.Captures {
		fn.captures = append(fn.captures, captureOf(c))
		if c.Return {
			fn.flags |= funcReturnData
		}
	}
	return fn
}

func captureOf(c engine.Capture) capture {
	out := capture{arg: uint8(c.Arg), kind: capBuffer, lenArg: lenMax, when: phaseEnter, max: uint16(min(c.Max, slotSize)), unit: uint8(c.Unit), off: uint8(c.Offset)}
	switch {
	case c.String:
		out.kind = capString
	case c.Strings:
		out.kind = capVector
	case c.Pointers:
		out.kind = capCount
	case c.Via > 0:
		out.kind, out.arg = capVia, uint8(c.Via-1)
	}
	switch c.Length {
	case 0:
	case engine.LengthResult:
		out.lenArg = lenResult
	case engine.LengthNext:
		out.lenArg = lenNext
	case engine.LengthNextResult:
		out.lenArg = lenBoth
	default:
		out.lenArg = uint8(c.Length - 1)
	}
	if c.Return {
		out.when = phaseReturn
	}
	return out
}

func (r *run) flags(w engine.Wanted) uint32 {
	flags := uint32(funcEnter)
	if w.Returns {
		flags |= funcReturn
	}
	if r.e.cfg.Sync {
		flags |= funcSync
	}
	if strings.Contains(w.Name, "exec") { // another program: new page tables, name and ids
		flags |= funcWhole
	}
	switch w.User {
	case engine.UserRegs64:
		flags |= funcSyscall
	case engine.UserRegs32:
		flags |= funcSyscall | funcCompat
	}
	return flags
}

// leave takes the implant out, whatever ended the run. When the guest was reset
// or is gone there is nothing to take out.
func (r *run) leave(cause error) error {
	if errors.Is(cause, vitrine.ErrReset) || errors.Is(cause, vitrine.ErrGone) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*lentTime)
	defer cancel()
	m, err := take(ctx, r.e.cfg.Guest, r.e.cfg.Facts)
	if err != nil {
		return fmt.Errorf("take out implant: %w; 'vitrine repair' does it later", err)
	}
	err = r.p.leave(ctx, m)
	err = errors.Join(err, m.release())
	r.removing += m.stood
	return err
}
