package vitrine_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

const code = arch.GVA(0xffffffff81000000)

// looper is a guest of one processor that runs through its code for ever, one
// byte an instruction, from code to code+0x20. It logs what is done to it.
type looper struct {
	*vitrinetest.Backend
	t     *testing.T
	space *vitrinetest.Space

	mu      sync.Mutex // protects all below
	regs    arch.Registers
	bps     map[arch.GVA]bool
	log     []string
	fail    map[string]error
	running bool
	intr    bool
	waiting chan struct{} // receives when Wait finds nothing planted to run into
	stop    error         // what the next Wait returns
	paused  bool          // somebody else pauses it during the next Wait
	stale   int           // so many steps end by another processor's stop, before anything was stepped
	forget  bool          // Close leaves breakpoint bytes, as KVM may
}

func newLooper(t *testing.T) (*looper, *vitrine.Guest, *vitrine.AddressSpace) {
	l := &looper{Backend: vitrinetest.New(), t: t, bps: map[arch.GVA]bool{}, fail: map[string]error{}, waiting: make(chan struct{}, 64)}
	l.space = l.NewSpace(arch.Paging4Level)
	l.space.Map(code, 0x1000, 0)
	l.regs = arch.Registers{RIP: uint64(code)}
	g := vitrine.New(l, vitrine.Info{Backend: "looper", Arch: arch.AMD64, CPUs: 1, Live: true})
	return l, g, g.AddressSpace(arch.Paging4Level, l.space.Root())
}

func (l *looper) OpenControl(context.Context) (vitrine.Control, error) {
	return (*loopControl)(l), l.did("open")
}

// did logs a call and returns the failure planted for it. The caller holds mu,
// or nobody else is there yet.
func (l *looper) did(format string, args ...any) error {
	s := fmt.Sprintf(format, args...)
	l.log = append(l.log, s)
	return l.fail[s]
}

func (l *looper) logged() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := slices.Clone(l.log)
	l.log = nil
	return out
}

func (l *looper) next() {
	if l.regs.RIP++; l.regs.RIP == uint64(code)+0x20 {
		l.regs.RIP = uint64(code)
	}
}

type loopControl looper

func (c *loopControl) locked(f func(l *looper) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return f((*looper)(c))
}

func (c *loopControl) Registers(int) (*arch.Registers, error) {
	r := c.regs
	return &r, c.locked(func(l *looper) error { return l.did("registers") })
}

func (c *loopControl) SetRegisters(_ int, r *arch.Registers) error {
	return c.locked(func(l *looper) error { l.regs = *r; return l.did("set rip=%v rax=%d", r.PC()-code, r.RAX) })
}

func (c *loopControl) SetPC(_ int, pc arch.GVA) error {
	return c.locked(func(l *looper) error { l.regs.RIP = uint64(pc); return l.did("setpc %v", pc-code) })
}

func (c *loopControl) Insert(_ arch.BreakpointKind, all ...arch.GVA) error {
	return c.each(all, func(l *looper, a arch.GVA) error { l.bps[a] = true; return l.did("insert %v", a-code) })
}

func (c *loopControl) Remove(_ arch.BreakpointKind, all ...arch.GVA) error {
	return c.each(all, func(l *looper, a arch.GVA) error { delete(l.bps, a); return l.did("remove %v", a-code) })
}

func (c *loopControl) each(all []arch.GVA, f func(*looper, arch.GVA) error) error {
	return c.locked(func(l *looper) error {
		for _, a := range all {
			if err := f(l, a); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *loopControl) WriteCode(_ int, pieces ...vitrine.Code) error {
	return c.locked(func(l *looper) error {
		for _, p := range pieces {
			l.space.Put(p.Addr, p.Bytes)
			if err := l.did("write %x at %v", p.Bytes, p.Addr-code); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *loopControl) Step(context.Context, int) error {
	return c.locked(func(l *looper) error {
		if l.bps[l.regs.PC()] {
			l.t.Error("step onto a breakpoint")
		}
		if l.stale--; l.stale < 0 {
			l.next()
		}
		return l.did("step")
	})
}

func (c *loopControl) Resume() error {
	return c.locked(func(l *looper) error { l.running = true; return l.did("resume") })
}

func (c *loopControl) Interrupt() error {
	return c.locked(func(l *looper) error { l.intr = l.running; return l.did("interrupt") })
}

func (c *loopControl) Close() error {
	return c.locked(func(l *looper) error {
		for a := range l.bps {
			if l.forget {
				l.space.Put(a, []byte{0xcc})
			}
		}
		clear(l.bps)
		l.running, l.forget = true, false
		return l.did("close")
	})
}

// tick runs an instruction, and reports whether the guest has stopped instead.
func (c *loopControl) tick() (stop vitrine.Stop, stopped bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.stop != nil:
		return stop, true, c.stop
	case c.paused, c.intr:
		c.paused, c.intr, c.running = false, false, false
		return vitrine.Stop{Reason: vitrine.StopInterrupt}, true, nil
	case c.bps[c.regs.PC()]:
		c.running = false
		return vitrine.Stop{}, true, nil
	}
	(*looper)(c).next()
	if len(c.bps) == 0 {
		select {
		case c.waiting <- struct{}{}:
		default:
		}
	}
	return stop, false, nil
}

func (c *loopControl) Wait(ctx context.Context) (vitrine.Stop, error) {
	for ctx.Err() == nil {
		if stop, stopped, err := c.tick(); stopped {
			return stop, err
		}
		time.Sleep(time.Microsecond)
	}
	return vitrine.Stop{}, ctx.Err()
}

func open(t *testing.T, g *vitrine.Guest, as *vitrine.AddressSpace) *vitrine.Dispatcher {
	t.Helper()
	d, err := g.OpenDispatcher(t.Context(), as)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func mustBreak(t *testing.T, d *vitrine.Dispatcher, off arch.GVA, hit vitrine.BreakFunc, over vitrine.OverFunc) *vitrine.Breakpoint {
	t.Helper()
	b, err := d.Break(code+off, hit, over)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDispatcherCallsOwnersInOrder(t *testing.T) {
	l, g, as := newLooper(t)
	d := open(t, g, as)
	ctx, cancel := context.WithCancel(t.Context())
	var got []string
	owner := func(name string, times int) vitrine.BreakFunc {
		return func(cpu int, r *arch.Registers) error {
			if r.PC() != code+4 || cpu != 0 {
				t.Errorf("hit on vcpu %d at %v", cpu, r.PC())
			}
			if got = append(got, name); len(got) == times {
				cancel()
			}
			return nil
		}
	}
	over := func(r *arch.Registers) bool { r.RIP++; return true }
	mustBreak(t, d, 4, owner("a", 0), over)
	mustBreak(t, d, 4, owner("b", 4), over)
	if n := d.Planted(); n != 1 {
		t.Errorf("%d addresses planted, want 1", n)
	}
	if err := d.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "b", "a", "b"}; !slices.Equal(got, want) {
		t.Errorf("owners called: %v, want %v", got, want)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{"open", "insert 0x4", "resume", "registers", "setpc 0x5", "resume", "registers", "setpc 0x5", "close"}
	if diff := cmp.Diff(want, l.logged()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// A kernel stack that was freed is mapped to other frames when its address is
// used again; an owner that emulates a return must not read the old ones.
func TestOwnersSeeMemoryAsItIsMappedNow(t *testing.T) {
	const stack = arch.GVA(0xffffc90000000000)
	l, g, as := newLooper(t)
	l.space.Map(stack, 0x1000, 0)
	l.space.PutUint64(stack, 0x1111)
	d := open(t, g, as)
	ctx, cancel := context.WithCancel(t.Context())
	var got []uint64
	mustBreak(t, d, 4, func(int, *arch.Registers) error {
		v, err := as.ReadUint64(stack)
		if got = append(got, v); len(got) == 2 {
			cancel()
		}
		l.space.Unmap(stack)
		l.space.Map(stack, 0x1000, 0)
		l.space.PutUint64(stack, 0x2222)
		return err
	}, func(r *arch.Registers) bool { r.RIP++; return true })
	if err := d.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if want := []uint64{0x1111, 0x2222}; !slices.Equal(got, want) {
		t.Errorf("read %#x, want %#x", got, want)
	}
}

func TestDispatcherStepsWhereNobodyCan(t *testing.T) {
	l, g, as := newLooper(t)
	d := open(t, g, as)
	ctx, cancel := context.WithCancel(t.Context())
	mustBreak(t, d, 4, func(int, *arch.Registers) error { cancel(); return nil }, func(*arch.Registers) bool { return false })
	if err := d.Run(ctx); err != nil {
		t.Fatal(err)
	}
	want := []string{"open", "insert 0x4", "resume", "registers", "remove 0x4", "step", "registers", "insert 0x4"}
	if diff := cmp.Diff(want, l.logged()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// A step that ended before the processor moved is made again, within bounds:
// with the breakpoint back in, the same call would be seen a second time.
func TestDispatcherStepsAgain(t *testing.T) {
	for stale, want := range map[int]int{1: 2, 3: 4, 100: 4} {
		l, g, as := newLooper(t)
		l.stale = stale
		d := open(t, g, as)
		ctx, cancel := context.WithCancel(t.Context())
		hits := 0
		mustBreak(t, d, 4, func(int, *arch.Registers) error { hits++; cancel(); return nil }, nil)
		if err := d.Run(ctx); err != nil {
			t.Fatal(err)
		}
		steps := 0
		for _, s := range l.logged() {
			if s == "step" {
				steps++
			}
		}
		if steps != want || hits != 1 {
			t.Errorf("%d stale stops: %d steps, %d hits, want %d steps", stale, steps, hits, want)
		}
	}
}

func TestDispatcherStoresWhatOwnersChange(t *testing.T) {
	l, g, as := newLooper(t)
	d := open(t, g, as)
	ctx, cancel := context.WithCancel(t.Context())
	mustBreak(t, d, 4, func(_ int, r *arch.Registers) error { r.RAX = 7; r.RIP = uint64(code + 9); cancel(); return nil },
		func(*arch.Registers) bool { t.Error("over called for a program counter that was moved"); return false })
	if err := d.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if got := l.logged(); !slices.Contains(got, "set rip=0x9 rax=7") {
		t.Errorf("calls: %q", got)
	}
}

func TestUnbreakKeepsOthersAndItself(t *testing.T) {
	l, g, as := newLooper(t)
	d := open(t, g, as)
	ctx, cancel := context.WithCancel(t.Context())
	var a, b *vitrine.Breakpoint
	hits := 0
	a = mustBreak(t, d, 4, func(int, *arch.Registers) error {
		hits++
		return errors.Join(d.Unbreak(a), d.Unbreak(b), d.Unbreak(a))
	}, nil)
	b = mustBreak(t, d, 4, func(int, *arch.Registers) error { t.Error("b called after it was taken out"); return nil }, nil)
	mustBreak(t, d, 8, func(_ int, r *arch.Registers) error {
		if hits == 0 {
			t.Error("passed 4 without a hit")
		}
		cancel()
		return nil
	}, nil)
	if err := d.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if hits != 1 || d.Planted() != 1 {
		t.Errorf("%d hits, %d planted, want 1 and 1", hits, d.Planted())
	}
	if got := l.logged(); slices.Contains(got[:slices.Index(got, "remove 0x4")], "step") {
		t.Errorf("stepped over a breakpoint that was gone: %q", got)
	}
}

// TestPostStopsTheGuest checks that what is posted runs while the guest stands
// still, also when nothing is ever hit.
func TestPostStopsTheGuest(t *testing.T) {
	l, g, as := newLooper(t)
	d := open(t, g, as)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	<-l.waiting
	ran := make(chan bool)
	d.Post(func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		go func(r bool) { ran <- r }(l.running)
		return nil
	})
	if <-ran {
		t.Error("posted work ran while the guest ran")
	}
	<-l.waiting
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestPostedErrorEndsRun(t *testing.T) {
	_, g, as := newLooper(t)
	d := open(t, g, as)
	bad := errors.New("bad")
	d.Post(func() error { return bad })
	if err := d.Run(t.Context()); !errors.Is(err, bad) {
		t.Errorf("Run = %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDispatcherErrors(t *testing.T) {
	bad := errors.New("bad")
	for _, what := range []string{"resume", "registers", "remove 0x4", "step", "insert 0x4"} {
		t.Run(what, func(t *testing.T) {
			l, g, as := newLooper(t)
			d := open(t, g, as)
			mustBreak(t, d, 4, func(int, *arch.Registers) error { l.fail[what] = bad; return nil }, nil)
			if what == "resume" || what == "registers" {
				l.fail[what] = bad
			}
			if err := d.Run(t.Context()); !errors.Is(err, bad) {
				t.Errorf("Run = %v", err)
			}
			if err := d.Close(); err != nil || !l.running {
				t.Errorf("Close = %v, running %v", err, l.running)
			}
		})
	}
}

func TestRunTellsWhatHappenedToTheGuest(t *testing.T) {
	for _, want := range []error{vitrine.ErrReset, vitrine.ErrGone} {
		l, g, as := newLooper(t)
		l.stop, l.forget = want, true
		d := open(t, g, as)
		mustBreak(t, d, 4, func(int, *arch.Registers) error { return nil }, nil)
		if err := d.Run(t.Context()); !errors.Is(err, want) {
			t.Errorf("Run = %v, want %v", err, want)
		}
		if err := d.Close(); err != nil {
			t.Errorf("Close looked at the text of a guest that is no more: %v", err)
		}
	}
	l, g, as := newLooper(t)
	l.paused = true
	d := open(t, g, as)
	if err := d.Run(t.Context()); !errors.Is(err, vitrine.ErrPaused) {
		t.Errorf("Run of a guest that somebody paused = %v", err)
	}
}

func TestCloseTakesOutWhatTheHypervisorForgot(t *testing.T) {
	l, g, as := newLooper(t)
	l.space.Put(code+4, []byte{0x0f})
	d := open(t, g, as)
	mustBreak(t, d, 4, func(int, *arch.Registers) error { return nil }, nil)
	mustBreak(t, d, 8, func(int, *arch.Registers) error { return nil }, nil)
	l.space.Put(code+8, []byte{0x90})
	l.forget = true
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	var b [2]byte
	_, err1 := as.Read(b[:1], code+4)
	_, err2 := as.Read(b[1:], code+8)
	if err := errors.Join(err1, err2); err != nil || b != [2]byte{0x0f, 0x00} {
		t.Errorf("code after Close: % x, %v", b, err)
	}
}

func TestStoppedLeavesOutWhatRan(t *testing.T) {
	_, g, as := newLooper(t)
	d := open(t, g, as)
	ctx, cancel := context.WithCancel(t.Context())
	begun := time.Now()
	mustBreak(t, d, 4, func(int, *arch.Registers) error {
		time.Sleep(20 * time.Millisecond)
		cancel()
		return nil
	}, nil)
	if err := d.Run(ctx); err != nil {
		t.Fatal(err)
	}
	_, ran := d.At()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if s, all := d.Stopped(), time.Since(begun); s < 20*time.Millisecond || s > all || ran > all-s+time.Millisecond {
		t.Errorf("stopped %v of %v, ran %v", s, all, ran)
	}
}
