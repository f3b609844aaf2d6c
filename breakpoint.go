package vitrine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
)

// BreakFunc is called when a virtual processor is about to run the instruction
// that a breakpoint is on. It may change the registers: what it leaves in r is
// what the processor goes on with. An error ends Dispatcher.Run; what it has left
// in r by then holds.
type BreakFunc func(cpu int, r *arch.Registers) error

// OverFunc does in r (and in guest data) what the instruction at r.PC does,
// and reports whether it could. It spares a step, and the time in which the
// breakpoint has to be out for it.
type OverFunc func(r *arch.Registers) bool

// Breakpoint is one owner's interest in an address. Several may be on the same
// address; they know nothing of each other.
type Breakpoint struct {
	addr arch.GVA
	hit  BreakFunc
	over OverFunc
	dead bool // taken out while its own hit was being handled
}

// Addr returns the address.
func (b *Breakpoint) Addr() arch.GVA { return b.addr }

// point is what the hypervisor holds: one for each address, however many
// breakpoints there are on it.
type point struct {
	owners []*Breakpoint // in order of Break; replaced, never changed
}

// Break plants a breakpoint on the instruction at a. When a hit's owners leave
// the program counter where it was, over does the instruction's work, else the
// processor steps over it alone; over may be nil. The guest must be stopped.
func (d *Dispatcher) Break(a arch.GVA, hit BreakFunc, over OverFunc) (*Breakpoint, error) {
	p := d.points[a]
	if p == nil {
		if err := d.insert(a); err != nil {
			return nil, err
		}
		p = &point{}
		d.points[a] = p
	}
	b := &Breakpoint{addr: a, hit: hit, over: over}
	p.owners = append(p.owners[:len(p.owners):len(p.owners)], b)
	return b, nil
}

func (d *Dispatcher) insert(a arch.GVA) error {
	if _, ok := d.touched[a]; !ok {
		first, err := d.kernel.ReadUint8(a)
		if err != nil {
			return fmt.Errorf("plant breakpoint: %w", err)
		}
		d.touched[a] = first
	}
	if err := d.c.Insert(d.kind, a); err != nil {
		return fmt.Errorf("plant breakpoint at %v: %w", a, err)
	}
	return nil
}

// Unbreak takes a breakpoint out. The guest must be stopped. Taking one out
// twice does nothing.
func (d *Dispatcher) Unbreak(b *Breakpoint) error {
	p := d.points[b.addr]
	if b.dead || p == nil {
		return nil
	}
	b.dead = true
	var rest []*Breakpoint
	for _, o := range p.owners {
		if o != b {
			rest = append(rest, o)
		}
	}
	p.owners = rest
	if len(rest) > 0 {
		return nil
	}
	delete(d.points, b.addr)
	if err := d.c.Remove(d.kind, b.addr); err != nil {
		return fmt.Errorf("take out breakpoint at %v: %w", b.addr, err)
	}
	return nil
}

// Planted returns how many addresses hold a breakpoint.
func (d *Dispatcher) Planted() int { return len(d.points) }

// dispatch hands a stop to the owners of the breakpoint that was hit, and
// readies the processor to run on. A stop at no breakpoint of ours is nobody's.
func (d *Dispatcher) dispatch(cpu int) error {
	now, err := d.c.Registers(cpu)
	if err != nil {
		return fmt.Errorf("read registers of vcpu %d: %w", cpu, err)
	}
	before := *now
	a := before.PC()
	p := d.points[a]
	if p == nil {
		return nil
	}
	d.regs = before
	owners := p.owners
	for _, b := range owners {
		if b.dead {
			continue
		}
		if err := b.hit(cpu, &d.regs); err != nil {
			return errors.Join(err, d.store(cpu, &before)) // what has been decided holds
		}
	}
	return d.proceed(cpu, &before, owners)
}

// proceed brings a processor past the breakpoint that it was stopped at.
func (d *Dispatcher) proceed(cpu int, before *arch.Registers, owners []*Breakpoint) error {
	a := before.PC()
	planted := d.points[a] != nil
	if planted && d.regs.PC() == a && !overAny(owners, &d.regs) {
		if err := d.store(cpu, before); err != nil {
			return err
		}
		return d.stepOver(cpu, a)
	}
	return d.store(cpu, before)
}

func overAny(owners []*Breakpoint, r *arch.Registers) bool {
	for _, b := range owners {
		if b.over != nil {
			return b.over(r)
		}
	}
	return false
}

// store writes the registers that differ from before.
func (d *Dispatcher) store(cpu int, before *arch.Registers) error {
	want := d.regs
	if want == *before {
		return nil
	}
	rest := want
	rest.SetPC(before.PC())
	var err error
	if rest == *before {
		err = d.c.SetPC(cpu, want.PC())
	} else {
		err = d.c.SetRegisters(cpu, &want)
	}
	if err != nil {
		return fmt.Errorf("write registers of vcpu %d: %w", cpu, err)
	}
	return nil
}

// stepOver runs the one instruction under a breakpoint. All other processors
// stand still meanwhile, so no hit is missed while the breakpoint is out.
func (d *Dispatcher) stepOver(cpu int, a arch.GVA) error {
	if err := d.c.Remove(d.kind, a); err != nil {
		return fmt.Errorf("step over %v: %w", a, err)
	}
	ctx, cancel := stepContext()
	defer cancel()
	if err := d.stepFrom(ctx, cpu, a); err != nil {
		return fmt.Errorf("step over %v: %w", a, err)
	}
	if err := d.c.Insert(d.kind, a); err != nil {
		return fmt.Errorf("step over %v: %w", a, err)
	}
	return nil
}

// maxSteps bounds how often a step is tried that did not leave its instruction.
const maxSteps = 4

// stepFrom steps until the processor has left a. Another one that ran into a
// breakpoint at the same time as this may have its stop told only now, when
// nothing has been stepped yet: the breakpoint would be hit a second time.
func (d *Dispatcher) stepFrom(ctx context.Context, cpu int, a arch.GVA) error {
	for range maxSteps {
		if err := d.c.Step(ctx, cpu); err != nil {
			return err
		}
		r, err := d.c.Registers(cpu)
		if err != nil {
			return err
		}
		if r.PC() != a {
			return nil
		}
	}
	return nil // a repeated string instruction, or a jump to itself
}

// int3 is the byte by which a hypervisor that holds breakpoints in guest
// memory shows itself.
const int3 = 0xcc

// verify looks for breakpoints that were left behind, and takes them out. The
// guest may have changed its own text meanwhile; that is not ours to judge, and
// as it does so by a passing int3 (text_poke), only one that stays counts.
func (d *Dispatcher) verify() error {
	left := d.remains()
	for i := 0; len(left) > 0 && i < 5; i++ {
		time.Sleep(10 * time.Millisecond)
		left = d.remains()
	}
	if len(left) == 0 {
		return nil
	}
	if err := d.restore(left); err != nil {
		return fmt.Errorf("guest has %d breakpoint bytes left in its code, the first at %v: %w", len(left), left[0], err)
	}
	return nil
}

// remains returns the places where a breakpoint's byte stands that was not
// there before.
func (d *Dispatcher) remains() []arch.GVA {
	d.kernel.Invalidate()
	var left []arch.GVA
	for a, first := range d.touched {
		if now, err := d.kernel.ReadUint8(a); err == nil && now == int3 && first != int3 {
			left = append(left, a)
		}
	}
	return left
}

// restore writes back the first bytes of places where a breakpoint was left.
func (d *Dispatcher) restore(left []arch.GVA) error {
	ctx, cancel := stepContext()
	defer cancel()
	c, err := d.g.OpenControl(ctx)
	if err != nil {
		return err
	}
	for _, a := range left {
		if err := c.WriteCode(0, Code{a, []byte{d.touched[a]}}); err != nil {
			_ = c.Close()
			return err
		}
	}
	return c.Close()
}
