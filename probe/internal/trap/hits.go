package trap

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
	"github.com/vitrine-vmi/vitrine/probe/internal/x86dec"
)

func duration(v *atomic.Int64) time.Duration { return time.Duration(v.Load()) }

// entered handles the entry of f. The program counter is on f's entry site,
// behind at most a landing pad, so the stack is as the caller left it.
func (e *Engine) entered(f *function, cpu int, r *arch.Registers) error {
	e.count.entries.Add(1)
	h := e.newHit(f.point, cpu, r)
	for i := range h.Args {
		h.Args[i] = e.arg(r, i)
	}
	value, wanted, err := e.handler.Entered(h)
	switch {
	case err != nil:
		if h.Skip && ret(e.cfg.Kernel, r, 0) {
			r.RAX = h.SkipValue // a handler before the one that failed had decided it
		}
		return err
	case h.Skip:
		return e.skip(h, r)
	case !wanted || !f.returns || h.Drop:
		return nil
	}
	c := call{fn: f, sp: uint64(r.SP()), link: arch.GVA(r.ARM64.X[30]), value: value}
	if err := e.arm(&c, f.ways.opaque); err != nil {
		return err
	}
	e.calls.enter(e.stackOf(h.Task, cpu, r), c)
	return nil
}

// newHit fills in what entries and returns have in common. The hit is reused.
func (e *Engine) newHit(p *engine.Point, cpu int, r *arch.Registers) *engine.Hit {
	at, ran := e.d.At()
	if e.cfg.Wall != nil {
		if t, ok := e.cfg.Wall(ran); ok {
			at = t
		}
	}
	task := e.current(r)
	e.hit = engine.Hit{Point: p, CPU: cpu, Task: task, Time: at, Ran: ran, Root: e.root(task, r), Regs: r}
	return &e.hit
}

// current returns the task that runs on the processor, 0 when that cannot be read.
func (e *Engine) current(r *arch.Registers) arch.GVA {
	if r.ARM64.On {
		return arch.GVA(r.ARM64.SPEL0) // while the kernel runs
	}
	if m := e.cfg.Machine; m != nil {
		return m.Task(r)
	}
	task, err := e.cfg.Kernel.ReadPointer(arch.GVA(r.GSBase) + e.cfg.Current)
	if err != nil {
		return 0
	}
	return task
}

// stackOf returns the stack that the processor uses.
func (e *Engine) stackOf(task arch.GVA, cpu int, r *arch.Registers) stack {
	if m := e.cfg.Machine; m != nil {
		return m.stackOf(task, cpu, r)
	}
	base, err := e.cfg.Kernel.ReadUint64(task + arch.GVA(e.cfg.StackField))
	if task == 0 || err != nil || uint64(r.SP())-base >= e.cfg.StackSize {
		return stack{cpu: cpu + 1}
	}
	return stack{task: task}
}

// skip makes the function return at once, and with it those that had
// tail-called it.
func (e *Engine) skip(h *engine.Hit, r *arch.Registers) error {
	sp, s := uint64(r.SP()), e.stackOf(h.Task, h.CPU, r)
	if !e.goBack(r) {
		return fmt.Errorf("skip %s: its return address cannot be read", h.Point.Name)
	}
	r.SetResult(h.SkipValue)
	_, err := e.finish(s, sp, h.CPU, r)
	return err
}

// goBack does what a return instruction does, which takes no arguments off the
// stack.
func (e *Engine) goBack(r *arch.Registers) bool {
	switch {
	case r.ARM64.On:
		r.ARM64.PC = r.ARM64.X[30]
		return true
	case e.cfg.bits32():
		return emulate32(e.cfg.Kernel, &x86dec.Inst{Kind: x86dec.Ret}, r)
	}
	return ret(e.cfg.Kernel, r, 0)
}

// arm plants the places that a call may leave by, those that it was not told
// of yet; watched adds the return address.
func (e *Engine) arm(c *call, watched bool) error {
	for ; c.armed < len(c.fn.ways.out); c.armed++ {
		x, err := e.exitAt(c.fn.ways.out[c.armed])
		if err != nil {
			return err
		}
		if err := e.use(x); err != nil {
			return err
		}
	}
	if !watched || c.watch != nil {
		return nil
	}
	to := c.link
	if to == 0 {
		slot, err := e.word(arch.GVA(c.sp))
		if err != nil {
			return nil //nolint:nilerr // a forged stack: this call's return stays unseen
		}
		to = arch.GVA(slot)
	}
	x, err := e.exitAt(way{addr: to, kind: exitWatch})
	if err != nil {
		return nil //nolint:nilerr // likewise: the address is no code
	}
	c.watch = x
	return e.use(x)
}

// use counts one more call that may leave by x, and plants x if it is not.
func (e *Engine) use(x *exit) (err error) {
	x.users++
	if x.bp != nil || x.stays {
		return nil
	}
	x.bp, err = e.d.Break(x.addr, func(cpu int, r *arch.Registers) error {
		return e.passed(x, cpu, r)
	}, x.site.over)
	return err
}

// exitAt returns the exit at w's address, the same for all functions that
// leave there.
func (e *Engine) exitAt(w way) (*exit, error) {
	key := place{w.addr, w.kind == exitWatch}
	if x := e.exits[key]; x != nil {
		return x, nil
	}
	s, err := e.cfg.site(w.addr)
	if err != nil {
		return nil, err
	}
	if w.kind != exitWatch {
		s.inst = w.inst
	}
	x := &exit{way: w, site: s}
	e.exits[key] = x
	return x, nil
}

// done takes back what arm did. What is planted stays: the next call will need
// it, and if none comes, the next stray takes it out.
func (e *Engine) done(c *call) {
	for i := range c.armed {
		if x := e.exits[place{c.fn.ways.out[i].addr, false}]; x != nil {
			x.users--
		}
	}
	if c.watch != nil {
		c.watch.users--
	}
}

// giveUp is told of calls whose return will not be seen.
func (e *Engine) giveUp(c *call) {
	e.count.unreturned.Add(1)
	e.done(c)
}

// passed handles somebody's coming by an exit: of a call that is followed, or
// of any other.
func (e *Engine) passed(x *exit, cpu int, r *arch.Registers) error {
	s := e.stackOf(e.current(r), cpu, r)
	sp := uint64(r.SP())
	switch {
	case x.kind == exitWatch && e.cfg.bits32():
		sp = e.calls.watched(s, x, r.RSP)
	case x.kind == exitWatch && !r.ARM64.On: // the slot has been popped
		sp -= 8
	}
	if x.kind == exitJump {
		return e.jumped(x, s, r)
	}
	if found, err := e.finish(s, sp, cpu, r); found || err != nil {
		return err
	}
	return e.strayed(x)
}

// finish ends the calls whose return address is at sp: the innermost one, and
// those that had tail-called their way to it.
func (e *Engine) finish(s stack, sp uint64, cpu int, r *arch.Registers) (found bool, err error) {
	for {
		c, ok := e.calls.leave(s, sp)
		if !ok {
			return found, nil
		}
		found = true
		e.done(&c)
		if err := e.returned(&c, cpu, r); err != nil {
			return true, err
		}
	}
}

// strayed handles a stop that was for nothing.
func (e *Engine) strayed(x *exit) error {
	e.count.stray.Add(1)
	if x.users > 0 && !x.stays {
		return nil
	}
	bp := x.bp
	x.bp = nil
	return e.d.Unbreak(bp)
}

// returned tells the handler that a call returns.
func (e *Engine) returned(c *call, cpu int, r *arch.Registers) error {
	if !c.fn.returns || e.planted[c.fn.point] == nil {
		return nil
	}
	e.count.returns.Add(1)
	h := e.newHit(c.fn.point, cpu, r)
	h.Return, h.Result = true, r.Result()
	return e.handler.Returned(h, c.value)
}

// jumped handles an indirect jump. With the stack as it was at entry it is a
// tail call: the ways out of its target are then ways out of the function too.
// Any other is a jump within the function, which need not stop us again.
func (e *Engine) jumped(x *exit, s stack, r *arch.Registers) error {
	c := e.calls.innermost(s, uint64(r.SP()))
	if c == nil {
		return e.strayed(x)
	}
	in := x.site.inst
	to, ok := indirect(e.cfg.Kernel, &in, r)
	if !ok || in.Kind != x86dec.JmpInd {
		return nil // the processor steps; the call ends by another way or is given up
	}
	switch {
	case c.fn.ways.followed(arch.GVA(to)):
		x.stays = true
		return e.strayed(x)
	case c.fn.ways.within(arch.GVA(to)):
		return nil // been there by this jump before
	}
	return e.extend(c, arch.GVA(to))
}

// extend adds the ways out of a tail call's target to c's function, for this
// call and all later ones. Beyond the bounds the call is watched instead.
func (e *Engine) extend(c *call, to arch.GVA) error {
	f := c.fn
	_, body, ok := e.cfg.SymbolAt(to)
	if !ok || len(f.ways.ranges) >= 2*maxRanges {
		return e.arm(c, true)
	}
	more := follow(&e.cfg, []engine.Range{body})
	f.ways.ranges = append(f.ways.ranges[:len(f.ways.ranges):len(f.ways.ranges)], more.ranges...)
	for _, w := range more.out {
		if !f.ways.leavesAt(w.addr) {
			f.ways.out = append(f.ways.out, w)
		}
	}
	f.ways.opaque = f.ways.opaque || more.opaque
	return e.arm(c, more.opaque)
}
