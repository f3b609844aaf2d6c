package vitrine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Dispatcher owns the control of a guest's virtual processors and is the only
// one that handles their stops: it holds breakpoints, calls their owners when
// they are hit, and lets the guest run on.
//
//	          Run                 stop
//	stopped ------> running ----------------> stopped: owners are called,
//	   ^               |                         |     then it runs on
//	   |               | Post, end of ctx        |
//	   +--- Interrupt -+                         |
//	   +-----------------------------------------+ end of ctx: Run returns
//
// A pause by somebody else ends Run with ErrPaused; the guest is left paused.
//
// One goroutine owns a Dispatcher; the exceptions are Post and Stopped, which may
// be called from any. Breakpoint owners are called on the owning goroutine,
// while the guest stands still.
type Dispatcher struct {
	// Immutable fields, may be shared.
	g      *Guest
	c      Control
	kernel *AddressSpace
	timer  Timer // nil where the control has none

	// Fields of the owning goroutine.
	kind    arch.BreakpointKind
	points  map[arch.GVA]*point
	touched map[arch.GVA]byte // first byte of each place where a breakpoint ever was
	regs    arch.Registers    // of the hit being handled, as its owners change them
	begun   time.Time
	at      time.Time // of the present stop
	owed    bool      // Interrupt was called, and a breakpoint stopped the guest before it
	lost    bool      // the guest was reset or has ended: what we touched is no more

	mu      sync.Mutex // protects the fields below
	queue   []func() error
	wake    context.CancelFunc // ends the wait of Run; nil when it does not wait
	stopped time.Duration
}

// OpenDispatcher takes control of g and stops it, until Run. Kernel is the
// address space that breakpoint addresses are in; its cached translations are
// forgotten at every stop, so that owners see memory as it is mapped now.
func (g *Guest) OpenDispatcher(ctx context.Context, kernel *AddressSpace) (*Dispatcher, error) {
	at := time.Now()
	c, err := g.OpenControl(ctx)
	if err != nil {
		return nil, err
	}
	kernel.Invalidate()
	d := &Dispatcher{g: g, c: c, kernel: kernel, at: at, begun: at,
		points: make(map[arch.GVA]*point), touched: make(map[arch.GVA]byte)}
	if t, ok := c.(Timer); ok {
		if _, ok := t.Ran(); ok {
			d.timer = t
		}
	}
	return d, nil
}

// UseHardware makes breakpoints the processors' own from now on, which no byte of
// guest memory shows under any hypervisor. KVM has four of them for each
// processor; an emulating QEMU has any number. It is called before Break.
func (d *Dispatcher) UseHardware() { d.kind = arch.BreakHardware }

// Guest returns the guest.
func (d *Dispatcher) Guest() *Guest { return d.g }

// Control returns the control itself, for what the Dispatcher does not offer.
// Only the owning goroutine may use it, while the guest is stopped; breakpoints
// are not to be changed through it.
func (d *Dispatcher) Control() Control { return d.c }

// Stopped returns for how long the guest has stood still since OpenDispatcher,
// as seen from here. It may be called from any goroutine.
func (d *Dispatcher) Stopped() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stopped
}

// At returns the host time of the present stop, and how long the guest had run
// until then since OpenDispatcher: by a clock of its machine where the control
// offers one (see Timer), else as seen from here, which is somewhat too much.
func (d *Dispatcher) At() (at time.Time, ran time.Duration) {
	if d.timer != nil {
		if ran, ok := d.timer.Ran(); ok {
			return d.at, ran
		}
	}
	return d.at, d.at.Sub(d.begun) - d.Stopped()
}

// Post has f run on the owning goroutine while the guest stands still, soon:
// before it runs on, when it is stopped. It may be called from any goroutine,
// and from a breakpoint's owner. An error of f ends Run. What is posted while
// Run does not run is done when it does next, or never.
func (d *Dispatcher) Post(f func() error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queue = append(d.queue, f)
	if d.wake != nil {
		d.wake()
	}
}

// Run lets the guest run and dispatches its stops until ctx ends, then stops
// the guest and returns nil. It returns ErrReset or ErrGone when the guest was
// reset or has ended, and the first error of a breakpoint's owner or of the
// control. The guest is then stopped, if there is one still; Run or Close follows.
func (d *Dispatcher) Run(ctx context.Context) error {
	for {
		if err := d.errands(); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		stop, woken, err := d.runOn(ctx)
		if err == nil && stop.Reason == StopBreakpoint && !woken {
			err = d.dispatch(stop.CPU)
		}
		if err != nil {
			d.lost = errors.Is(err, ErrReset) || errors.Is(err, ErrGone)
			return err
		}
	}
}

// errands does what has been posted. The guest is stopped.
func (d *Dispatcher) errands() error {
	for {
		d.mu.Lock()
		if len(d.queue) == 0 {
			d.mu.Unlock()
			return nil
		}
		f := d.queue[0]
		d.queue = d.queue[1:]
		d.mu.Unlock()
		if err := f(); err != nil {
			return err
		}
	}
}

// runOn lets the guest run until it stops, and makes it stop when ctx ends or
// something is posted. woken says that the stop needs no dispatching.
func (d *Dispatcher) runOn(ctx context.Context) (stop Stop, woken bool, err error) {
	wctx, wake := context.WithCancel(ctx)
	defer wake()
	d.mu.Lock()
	if len(d.queue) > 0 {
		d.mu.Unlock()
		return Stop{}, true, nil
	}
	d.wake = wake
	d.mu.Unlock()
	defer d.dropWake()

	if err := d.resume(); err != nil {
		return Stop{}, false, err
	}
	// What was cached before may be mapped otherwise now: kernel stacks, which
	// owners read and write, are memory that is freed and mapped again.
	defer d.kernel.Invalidate()
	stop, err = d.c.Wait(wctx)
	d.at = time.Now()
	switch {
	case err != nil && wctx.Err() != nil:
		stop, err = d.interrupt(ctx)
		return stop, false, err
	case err != nil:
		return stop, false, fmt.Errorf("wait for guest: %w", err)
	case stop.Reason == StopInterrupt && !d.owed:
		return stop, false, fmt.Errorf("wait for guest: %w", ErrPaused)
	case stop.Reason == StopInterrupt:
		d.owed = false
	}
	return stop, false, nil
}

func (d *Dispatcher) dropWake() {
	d.mu.Lock()
	d.wake = nil
	d.mu.Unlock()
}

// resume lets the guest run.
func (d *Dispatcher) resume() error {
	now := time.Now()
	if err := d.c.Resume(); err != nil {
		return fmt.Errorf("resume guest: %w", err)
	}
	d.mu.Lock()
	d.stopped += now.Sub(d.at)
	d.mu.Unlock()
	return nil
}

// interruptTimeout bounds how long a guest may take to stop when told to.
const interruptTimeout = 10 * time.Second

// interrupt stops a running guest. A breakpoint may stop it first: it is then
// that stop which is returned.
func (d *Dispatcher) interrupt(ctx context.Context) (Stop, error) {
	if err := d.c.Interrupt(); err != nil {
		return Stop{}, fmt.Errorf("interrupt guest: %w", err)
	}
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), interruptTimeout)
	defer cancel()
	stop, err := d.c.Wait(wctx)
	d.at = time.Now()
	if err != nil {
		return stop, fmt.Errorf("interrupt guest: %w", err)
	}
	d.owed = stop.Reason != StopInterrupt
	return stop, nil
}

// Close takes out every breakpoint, lets the guest run, gives control back,
// and compares the places where breakpoints were with what was there before.
func (d *Dispatcher) Close() error {
	clear(d.points)
	err := d.c.Close()
	d.mu.Lock()
	d.stopped += time.Since(d.at)
	d.mu.Unlock()
	if d.lost || errors.Is(err, ErrGone) {
		return err
	}
	return errors.Join(err, d.verify())
}

// stepContext bounds what has to be done while the guest stands still.
func stepContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), interruptTimeout)
}
