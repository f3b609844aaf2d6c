package trap

import "github.com/vitrine-vmi/vitrine/arch"

// call is a call that is under way and whose return is wanted.
type call struct {
	fn    *function
	sp    uint64   // at entry: the stack slot that holds the return address
	link  arch.GVA // that address where it is in a register (arm64), 0 where in the slot
	value any
	armed int   // how many of fn.ways.out it has been counted at
	watch *exit // at the return address, for a function that cannot be followed
}

// stack names the stack that a call runs on: a task's own, or for interrupts
// and exceptions that have one, whichever the processor uses then.
type stack struct {
	task arch.GVA // 0 for a processor's
	cpu  int      // 0 for a task's
}

// pairs holds the calls under way, per stack, innermost last.
type pairs struct {
	stacks map[stack][]call
	free   [][]call // emptied stacks, to be used again
	count  int      // of calls
	max    int      // of calls; what is beyond it is given up
	drop   func(*call)
}

func newPairs(limit int, drop func(*call)) *pairs {
	return &pairs{stacks: make(map[stack][]call), max: limit, drop: drop}
}

// enter notes a call. Calls on the same stack whose slot lies deeper have been
// unwound without a return that we saw (the thread ended in one, and its task or
// stack serves another now), and are given up. One with the same slot has
// tail-called this one if its code jumps there, or on arm64, where code is not
// followed, if both return to the same place; otherwise it is over too.
func (p *pairs) enter(s stack, c call) {
	calls := p.stacks[s]
	for n := len(calls); n > 0; n = len(calls) {
		last := &calls[n-1]
		if last.sp > c.sp || last.sp == c.sp && last.fn != c.fn && (last.fn.ways.within(c.fn.entry.addr) || last.link != 0 && last.link == c.link) {
			break
		}
		calls = p.forget(calls)
	}
	if calls == nil && len(p.free) > 0 {
		calls = p.free[len(p.free)-1]
		p.free = p.free[:len(p.free)-1]
	}
	p.stacks[s] = append(calls, c)
	if p.count++; p.count > p.max {
		p.shed(s)
	}
}

// forget gives the last of calls up.
func (p *pairs) forget(calls []call) []call {
	n := len(calls) - 1
	p.drop(&calls[n])
	calls[n] = call{}
	p.count--
	return calls[:n]
}

// shed gives up the calls of some stack other than keep: a guest that forges
// its tasks, or ends them all in calls, must not make us grow.
func (p *pairs) shed(keep stack) {
	for s, calls := range p.stacks {
		if s == keep && len(p.stacks) > 1 {
			continue
		}
		for len(calls) > 0 && (s != keep || p.count > p.max) {
			calls = p.forget(calls)
		}
		p.put(s, calls)
		return
	}
}

// leave takes the innermost call off whose slot is at sp: something returns
// through that slot now. Deeper ones have been unwound, and are given up.
func (p *pairs) leave(s stack, sp uint64) (call, bool) {
	calls := p.stacks[s]
	for len(calls) > 0 && calls[len(calls)-1].sp < sp {
		calls = p.forget(calls)
	}
	n := len(calls) - 1
	if n < 0 || calls[n].sp != sp {
		p.put(s, calls)
		return call{}, false
	}
	c := calls[n]
	calls[n] = call{}
	p.count--
	p.put(s, calls[:n])
	return c, true
}

// watched returns the slot of the call that has just come back to the address
// that x watches, when the callee has popped its arguments and the stack pointer
// does not tell the slot: the outermost one watched there whose slot lies
// deeper than sp. It is 0 when there is none.
func (p *pairs) watched(s stack, x *exit, sp uint64) (slot uint64) {
	calls := p.stacks[s]
	for i := len(calls) - 1; i >= 0 && calls[i].sp < sp; i-- {
		if calls[i].watch == x {
			slot = calls[i].sp
		}
	}
	return slot
}

// put stores what is left of a stack.
func (p *pairs) put(s stack, calls []call) {
	switch {
	case len(calls) > 0:
		p.stacks[s] = calls
	case calls != nil:
		delete(p.stacks, s)
		if len(p.free) < 256 {
			p.free = append(p.free, calls)
		}
	}
}

// innermost returns the last call on a stack if its slot is at sp.
func (p *pairs) innermost(s stack, sp uint64) *call {
	calls := p.stacks[s]
	if n := len(calls); n > 0 && calls[n-1].sp == sp {
		return &calls[n-1]
	}
	return nil
}

// clear gives all calls up.
func (p *pairs) clear() {
	for s, calls := range p.stacks {
		for len(calls) > 0 {
			calls = p.forget(calls)
		}
		delete(p.stacks, s)
	}
}
