package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/qemu/internal/rsp"
)

// control is exclusive control of the processors through the gdbstub.
//
// Requests that answer no question are queued and go out in one piece with the
// next one that does, so that a stop costs two writes: one for the registers,
// one that moves the program counter and resumes.
//
//	          Resume                  Wait
//	stopped ----------> running ----------------> stopped
//	   ^                   |  ^ (ctx ends)
//	   |                   +--+
//	   +-- Step: runs and stops within the call
type control struct {
	m    *machine
	conn *rsp.Conn
	stub *stub

	// The owner's goroutine only.
	layout   *stubLayout
	detach   string        // D, or D;1 where the stub numbers processes
	process  int           // number of the stub's process, 0 in the single-process form
	selected int           // processor that g, P and M speak of, -1 when unknown
	regs     []*snapshot   // registers of each processor at this stop, nil when not read
	pending  []expectation // replies that were not read, oldest first
	reached  bool          // the stub has answered: it is ours to leave
	foreign  bool          // somebody else has paused the guest: it is left paused
	since    time.Time     // of the present stop, zero while the guest runs
	stood    time.Duration // how long it stood still before
	broken   error         // the first error that leaves the connection useless
	closed   bool
	timer    timer

	planted map[arch.GVA]planted // what KVM has written, nil elsewhere

	mu        sync.Mutex // guards the following fields, which Interrupt and events touch
	running   bool
	stepping  bool              // it runs one instruction, which ends by itself
	interrupt bool              // Interrupt was called and its stop was not delivered
	life      vitrine.LifeEvent // an event that ends a Wait
}

// snapshot is what a processor's registers are known to be.
type snapshot struct{ regs *arch.Registers }

// expectation is a reply that is under way.
type expectation struct {
	what string    // the request, for errors
	regs *snapshot // where a g reply goes, nil when the reply is OK
	one  *stubReg  // the register of regs that a p reply tells, nil for a g
	// timer, if not nil, takes the reply, which may be several packets.
	timer *timer
}

var (
	_ vitrine.Control = (*control)(nil)
	_ vitrine.Stood   = (*control)(nil)
)

// replyTime bounds the wait for a reply. QEMU answers in microseconds; it may
// be busy writing to a slow disk.
const replyTime = 10 * time.Second

// selectCPU makes g, P and M speak of a processor.
func (c *control) selectCPU(cpu int) error {
	if cpu < 0 || cpu >= len(c.m.cpus) {
		return fmt.Errorf("no virtual processor %d, there are %d", cpu, len(c.m.cpus))
	}
	if c.selected != cpu {
		c.queue("Hg" + c.thread(cpu))
		c.selected = cpu
	}
	return nil
}

// thread returns the stub's name of a processor: it numbers them from 1.
func (c *control) thread(cpu int) string {
	return rsp.Thread{Process: c.process, ID: c.m.cpus[cpu] + 1}.String()
}

// cpu returns the processor that the stub calls t.
func (c *control) cpu(t rsp.Thread) int {
	for i, index := range c.m.cpus {
		if index+1 == t.ID {
			return i
		}
	}
	return 0
}

func (c *control) queue(request string) {
	c.conn.Queue(request)
	c.pending = append(c.pending, expectation{what: request})
}

// needRegs queues a request for a processor's registers, unless this stop's
// are known. It must come before P: under KVM a P that was not preceded by a g
// is overwritten when the processor's state is next fetched from the kernel.
func (c *control) needRegs(cpu int) (*snapshot, error) {
	if err := c.usable(); err != nil {
		return nil, err
	}
	if err := c.selectCPU(cpu); err != nil {
		return nil, err
	}
	if c.regs[cpu] == nil {
		s := new(snapshot)
		c.conn.Queue("g")
		c.pending = append(c.pending, expectation{what: "g", regs: s})
		for i := range c.layout.more {
			m := &c.layout.more[i]
			request := fmt.Sprintf("p%x", m.Number)
			c.conn.Queue(request)
			c.pending = append(c.pending, expectation{what: request, regs: s, one: m})
		}
		c.regs[cpu] = s
	}
	return c.regs[cpu], nil
}

// usable returns an error where the guest cannot be controlled now.
func (c *control) usable() error {
	c.mu.Lock()
	running := c.running
	c.mu.Unlock()
	switch {
	case c.closed:
		return vitrine.ErrClosed
	case c.broken != nil:
		return c.broken
	case running:
		return errors.New("the guest is running")
	}
	return nil
}

// fail records that the connection is of no use any more.
func (c *control) fail(err error) error {
	if err != nil && c.broken == nil {
		if c.monitorGone(err) {
			err = fmt.Errorf("%w: %w", vitrine.ErrGone, err)
		}
		c.broken = err
	}
	return err
}

// monitorGone reports whether QEMU has ended. Where the stub was closed on us
// it waits a moment for the monitor.
func (c *control) monitorGone(err error) bool {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return c.m.ends()
	}
	select {
	case <-c.m.mon.done():
		return true
	default:
		return false
	}
}

// sync sends what is queued and reads all replies that are under way.
func (c *control) sync() error {
	if err := c.flush(); err != nil {
		return err
	}
	return c.drain()
}

func (c *control) flush() error {
	if err := c.conn.Flush(); err != nil {
		return c.fail(fmt.Errorf("write to the gdbstub: %w", err))
	}
	return nil
}

// drain reads the replies that are under way. A refusal of the stub is
// returned after the rest was read, and leaves the connection in order.
func (c *control) drain() error {
	var refused error
	for len(c.pending) > 0 {
		e := c.pending[0]
		p, err := c.read(time.Now().Add(replyTime))
		if err != nil {
			return c.fail(err)
		}
		if e.timer != nil && e.timer.take(p) {
			continue
		}
		c.pending = c.pending[1:]
		if err := e.accept(p, c.layout); err != nil && refused == nil {
			refused = err
		}
	}
	c.pending = nil
	return refused
}

func (e *expectation) accept(reply []byte, l *stubLayout) (err error) {
	switch {
	case e.timer != nil:
		return nil
	case e.one != nil && e.regs.regs != nil && len(reply) > 3:
		return e.one.decode(reply, e.regs.regs)
	case e.regs != nil && e.one == nil && len(reply) > 3:
		e.regs.regs, err = l.decode(reply)
		return err
	case e.regs == nil && string(reply) == "OK":
		return nil
	}
	return &rsp.StubError{Request: e.what[:min(len(e.what), 24)], Reply: string(reply[:min(len(reply), 24)])}
}

// read returns the next packet. Wake is for Wait: here it is passed over.
func (c *control) read(until time.Time) ([]byte, error) {
	for {
		c.conn.SetReadDeadline(until)
		p, err := c.conn.Read()
		switch {
		case err == nil:
			return p, nil
		case !rsp.IsTimeout(err):
			return nil, fmt.Errorf("read from the gdbstub: %w", err)
		case !time.Now().Before(until):
			return nil, fmt.Errorf("gdbstub did not answer within %v", replyTime)
		}
	}
}

// Registers returns the registers of a stopped processor. IDTBase and GDTBase
// are zero: the gdbstub does not offer them.
func (c *control) Registers(cpu int) (*arch.Registers, error) {
	s, err := c.needRegs(cpu)
	if err == nil && s.regs == nil {
		err = c.sync()
	}
	if err != nil {
		return nil, fmt.Errorf("read registers of processor %d: %w", cpu, err)
	}
	r := *s.regs
	return &r, nil
}

// SetRegisters stores those general registers, RIP and RFLAGS that differ.
// It takes effect with the next request; Wait or that request returns the
// error, should the stub refuse.
func (c *control) SetRegisters(cpu int, r *arch.Registers) error {
	if _, err := c.Registers(cpu); err != nil {
		return err
	}
	now := c.regs[cpu].regs
	for i := range c.layout.regs {
		f := &c.layout.regs[i]
		if v := f.get(r); f.own && v != f.get(now) {
			c.queue(f.write(v))
			f.set(now, v)
		}
	}
	return nil
}

// SetPC stores the program counter only. Like SetRegisters it goes out with
// the next request.
func (c *control) SetPC(cpu int, pc arch.GVA) error {
	s, err := c.needRegs(cpu)
	if err != nil {
		return fmt.Errorf("set program counter of processor %d: %w", cpu, err)
	}
	c.queue(c.layout.regs[c.layout.pc].write(uint64(pc)))
	if s.regs != nil {
		s.regs.SetPC(pc)
	} else {
		c.regs[cpu] = nil // the g that is under way will tell the old one
	}
	return nil
}

// Insert plants breakpoints.
func (c *control) Insert(kind arch.BreakpointKind, a ...arch.GVA) error {
	return c.breakpoints("insert", 'Z', kind, a)
}

// Remove takes breakpoints out.
func (c *control) Remove(kind arch.BreakpointKind, a ...arch.GVA) error {
	return c.breakpoints("remove", 'z', kind, a)
}

func (c *control) breakpoints(verb string, op byte, kind arch.BreakpointKind, all []arch.GVA) error {
	err := c.usable()
	for i := 0; err == nil && i < len(all); i++ {
		if err = c.prepare(op, kind, all[i]); err == nil {
			c.queue(fmt.Sprintf("%c%d,%x,%d", op, kind, uint64(all[i]), c.layout.unit))
		}
	}
	if err == nil {
		err = c.sync()
	}
	for i := 0; err == nil && op == 'z' && kind == arch.BreakSoftware && i < len(all); i++ {
		err = c.removed(all[i])
	}
	switch {
	case err == nil:
		return nil
	case len(all) == 1:
		return fmt.Errorf("%s breakpoint at %v: %w", verb, all[0], err)
	}
	return fmt.Errorf("%s %d breakpoints: %w", verb, len(all), err)
}

// writeChunk is how many bytes an M request carries: two digits each, within
// the stub's 4096.
const writeChunk = 1024

// writesAhead is how many requests are sent before their replies are read, so
// that neither side's buffers fill up.
const writesAhead = 512

// WriteCode stores the pieces as processor cpu maps them. The requests go out
// together: on a busy host each round trip may take a millisecond.
func (c *control) WriteCode(cpu int, pieces ...vitrine.Code) error {
	err := c.usable()
	if err == nil {
		err = c.selectCPU(cpu)
	}
	for _, p := range pieces {
		for done := 0; err == nil && done < len(p.Bytes); done += writeChunk {
			b := p.Bytes[done:min(len(p.Bytes), done+writeChunk)]
			c.queue(fmt.Sprintf("M%x,%x:%x", uint64(p.Addr)+uint64(done), len(b), b))
			if len(c.pending) >= writesAhead {
				err = c.sync()
			}
		}
	}
	if err == nil {
		err = c.sync()
	}
	if err != nil {
		return fmt.Errorf("write code in %d places, the first at %v: %w", len(pieces), first(pieces), err)
	}
	return nil
}

func first(pieces []vitrine.Code) arch.GVA {
	if len(pieces) == 0 {
		return 0
	}
	return pieces[0].Addr
}

// setRunning says whether the guest runs as far as requests go.
func (c *control) setRunning(on bool) {
	c.mu.Lock()
	c.running = on
	c.mu.Unlock()
	c.stands(!on)
	c.timer.stands(!on)
	c.stub.mark.held(!on)
	if on {
		clear(c.regs)
		c.selected = -1
	}
}

// stands keeps account of how long the guest stands still.
func (c *control) stands(on bool) {
	switch {
	case on && c.since.IsZero():
		c.since = time.Now()
	case !on && !c.since.IsZero():
		c.stood += time.Since(c.since)
		c.since = time.Time{}
	}
}

// Stood implements vitrine.Stood.
func (c *control) Stood() time.Duration { return c.stood }

// Step runs one instruction on one processor, with interrupts and timers held
// off where QEMU can; the other processors stand still.
func (c *control) Step(ctx context.Context, cpu int) error {
	if err := c.stepOnce(ctx, cpu); err != nil {
		return fmt.Errorf("step processor %d: %w", cpu, err)
	}
	return nil
}

func (c *control) stepOnce(ctx context.Context, cpu int) error {
	if err := c.usable(); err != nil {
		return err
	}
	if cpu < 0 || cpu >= len(c.m.cpus) {
		return fmt.Errorf("no virtual processor %d, there are %d", cpu, len(c.m.cpus))
	}
	c.conn.Queue("vCont;s:" + c.thread(cpu))
	c.setRunning(true)
	c.setStepping(true)
	defer c.setStepping(false)
	if err := c.flush(); err != nil {
		return err
	}
	_, err := c.wait(ctx)
	return err
}

func (c *control) setStepping(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stepping = on
}

// Resume lets all processors run. What was queued goes out with it.
func (c *control) Resume() error {
	if err := c.usable(); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	c.mu.Lock()
	held := c.interrupt
	c.mu.Unlock()
	if held {
		// Interrupt came while the last stop was on its way, which ate it:
		// the guest stays stopped, and Wait delivers the interrupt.
		return c.sync()
	}
	c.conn.Queue("vCont;c")
	c.setRunning(true)
	return c.flush()
}

// Interrupt makes a running guest stop.
func (c *control) Interrupt() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.running {
		return nil
	}
	c.interrupt = true
	if c.stepping {
		return nil // the step ends first; the next Resume does not resume
	}
	return c.conn.Interrupt()
}

// takeInterrupt reports whether an interrupt waits to be delivered, and
// delivers it.
func (c *control) takeInterrupt() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.interrupt
	c.interrupt = false
	return was
}
