package trace

import (
	"fmt"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/syscalls"
)

// decoders show calls made by each interface.
type decoders struct {
	tables map[arch.Arch]*syscalls.Table
	byABI  map[arch.Arch]*syscalls.Decoder
}

// decodersFor takes the signatures that the guest's own kernel states, and
// generated ones for what it does not.
func decodersFor(k *kernel.Kernel) *decoders {
	var defs []syscalls.Definition
	own, _ := k.Syscalls() // a kernel without CONFIG_FTRACE_SYSCALLS states none
	for _, s := range own {
		d := syscalls.Definition{NR: s.NR, Signature: syscalls.Signature{Name: s.Name}}
		for _, a := range s.Args {
			d.Params = append(d.Params, syscalls.Param{Name: a.Name, Type: a.Type})
		}
		defs = append(defs, d)
	}
	d := &decoders{tables: map[arch.Arch]*syscalls.Table{}}
	for i, abi := range interfaces(k) {
		if i == 0 {
			d.tables[abi] = syscalls.NewTable(abi, defs)
		} else {
			d.tables[abi] = syscalls.Fallback(abi)
		}
	}
	d.limits(nil)
	return d
}

// limits makes the decoders anew with these limits.
func (d *decoders) limits(o *syscalls.Options) {
	d.byABI = map[arch.Arch]*syscalls.Decoder{}
	for a, t := range d.tables {
		d.byABI[a] = syscalls.NewDecoder(t, o)
	}
}

// noReturn are the system calls that never return.
var noReturn = map[string]bool{"exit": true, "exit_group": true}

// traced is a function with what is known of it, and how often it was called.
type traced struct {
	entry
	dec    *syscalls.Decoder // nil for a function that is no system call
	params []string          // of such a function
	fd     fdOp
	final  bool // it never returns
	calls  uint64
}

// moment is what a hit tells of a call, and of the world at that time.
type moment struct {
	time   time.Time
	ran    time.Duration
	cpu    int
	thread *probe.Thread
	memory syscalls.Memory
	files  syscalls.Resolver // nil where none is known
}

// probe makes the probe that records a function's calls.
func (c *caller) probe(s site) *probe.Probe {
	en := s.entry
	t := c.traced(en)
	p := &probe.Probe{Func: en.symbol, Filter: c.filter, User: en.user(c.k), Capture: c.decoders.captures(en)}
	p.Enter = func(h *probe.Hit) any {
		to := t
		switch is, wanted := s.of(h); {
		case !wanted:
			h.DropReturn()
			return nil
		case t.dispatch:
			to = c.dispatched(t.entry, int(uint32(h.Arg(1))))
		case is != en:
			to = c.traced(is)
		}
		f := c.take(to)
		f.call.Args, _ = argsAt(h)
		c.at(h, f)
		if c.entered(f) {
			h.DropReturn()
			return nil
		}
		return f
	}
	if !t.final {
		p.Return = func(h *probe.Hit, v any) {
			if f, ok := v.(*inFlight); ok {
				c.at(h, f)
				c.returned(f, int64(h.Result()))
			}
		}
	}
	return p
}

// traced returns what stands for an entry.
func (c *caller) traced(en entry) *traced {
	t := c.functions[en]
	if t == nil {
		t = &traced{entry: en, dec: c.decoders.byABI[en.abi], params: c.params[en.symbol], fd: fdOpOf(en.name), final: noReturn[en.name]}
		if en.name == "" {
			t.dec = nil
		}
		c.functions[en] = t
	}
	return t
}

// at notes the moment of a hit.
func (c *caller) at(h *probe.Hit, f *inFlight) {
	m := &c.moment
	*m = moment{time: h.Time, ran: h.Ran, cpu: h.CPU, thread: &h.Thread}
	if h.Sync() && f.fn.fd > fdNew {
		c.files = nil // it comes out of the order of what is recorded
	}
	if c.files != nil {
		c.files.check(c.session.Lost())
		c.table = tableFiles{t: c.files.of(&h.Thread)}
		m.files = &c.table
	}
	if h.Sync() {
		m.memory = h.Process()
		m.files = &resolver{sys: c.sys, ctx: c.ctx, task: h.Thread.Task}
		return
	}
	c.recorded = recorded{h, h.Probe.Capture, &f.call.Args}
	m.memory = &c.recorded
}

// take returns a new call of a function.
func (c *caller) take(t *traced) *inFlight {
	f := c.free
	if f == nil {
		f = &inFlight{}
	} else {
		c.free = f.next
	}
	args := f.args[:0]
	*f = inFlight{fn: t, args: args, call: syscalls.Call{NR: -1, Name: t.name}}
	return f
}

// give takes back a call that nobody knows any more.
func (c *caller) give(f *inFlight) {
	clear(f.args)
	f.next, c.free = c.free, f
}

// entered makes the record of a call at this moment. It reports whether that is
// all there will be of it: f must not be used then.
func (c *caller) entered(f *inFlight) (done bool) {
	t, m := f.fn, &c.moment
	th := m.thread
	f.ran = m.ran
	f.rec = event.Call{
		Time: m.time, VCPU: m.cpu, PID: th.PID, TID: th.TID, PPID: th.PPID, Comm: th.Comm, UID: th.UID,
		Func: t.symbol, Name: t.name,
	}
	if t.dec != nil {
		f.args = t.dec.Enter(f.args, &f.call, m.memory, m.files)
	}
	for i, name := range t.params {
		v := f.call.Args[i]
		f.args = append(f.args, syscalls.Arg{Name: name, Value: v, Text: fmt.Sprintf("%#x", v)})
	}
	if t.fd != fdNone && c.files != nil {
		c.files.entered(f, c.table.t, m.memory)
	}
	t.calls++
	if t.final || c.separate {
		c.send(f, event.Enter)
	}
	if t.final {
		c.give(f)
		return true
	}
	c.open.push(f)
	return false
}

// dispatched returns what a call by number is of.
func (c *caller) dispatched(by entry, nr int) *traced {
	name := c.decoders.byABI[by.abi].Name(&syscalls.Call{NR: nr})
	key := entry{name: name, abi: by.abi}
	t, ok := c.names[key]
	if !ok {
		en := entry{symbol: by.symbol, name: name, abi: by.abi}
		if e, found := firstOf(c.k, by.abi, name); found {
			en.symbol = e.symbol
		}
		t = c.traced(en)
		c.names[key] = t
	}
	return t
}

// until returns how long a call has run at moment m: for how long the guest has. By the wall clock, which makes up for
// having been a little ahead, it may be less, down to a quarter; that counts then, or the thread's next call would begin
// in this one. Any less means that the clock was set back.
func (f *inFlight) until(m *moment) time.Duration {
	ran := m.ran - f.ran
	if wall := m.time.Sub(f.rec.Time); wall > 0 && wall >= ran/4 {
		return min(wall, ran)
	}
	return ran
}

// seenBy returns what a program that calls by an interface gets of a function's
// result: one of 32 bits, which is signed only if it is an error.
func seenBy(abi arch.Arch, ret int64) int64 {
	if abi != arch.I386 {
		return ret
	}
	if ret = int64(uint32(ret)); ret > 1<<32-maxErrno-1 {
		ret -= 1 << 32
	}
	return ret
}

// maxErrno is the highest number of an error (MAX_ERRNO, include/linux/err.h).
const maxErrno = 4095

// returned completes the record of a call that returns ret at this moment, and
// emits it. F must not be used any more.
func (c *caller) returned(f *inFlight, ret int64) {
	m := &c.moment
	c.open.remove(f)
	f.call.Ret, f.call.Returned = ret, true
	f.rec.Ret, f.rec.Duration = seenBy(f.fn.abi, ret), f.until(m)
	if f.fn.fd != fdNone && c.files != nil {
		c.table.fd, c.table.result = int(int32(ret)), c.files.returned(f, c.table.t, ret, m.memory)
	}
	if d := f.fn.dec; d != nil {
		d.Return(f.args, &f.call, m.memory, m.files)
		res := d.Result(&f.call, m.files)
		f.rec.RetText, f.rec.Errno = res.Text, res.Errno
	} else {
		f.rec.RetText = fmt.Sprintf("%#x", uint64(ret))
	}
	if !c.separate {
		c.send(f, event.Joined)
	} else {
		f.rec.Time, f.rec.VCPU = m.time, m.cpu
		c.send(f, event.Return)
	}
	c.give(f)
}

// send emits a record, and ends the run at the limit or at emit's first error.
func (c *caller) send(f *inFlight, kind event.CallKind) {
	if c.err != nil || c.limit > 0 && c.seq >= c.limit {
		return
	}
	rec := &c.reused
	if !c.reuse {
		rec = &event.Call{Args: make([]event.Arg, 0, len(f.args))}
	}
	args := rec.Args[:0]
	for i := range f.args {
		a := &f.args[i]
		args = append(args, event.Arg{Name: a.Name, Value: a.Value, Text: a.Text})
	}
	*rec = f.rec
	rec.Event, rec.Seq, rec.Args = kind, c.seq, args
	c.seq++
	if c.err = c.emit(rec); c.err != nil || c.seq == c.limit {
		c.session.Quit()
	}
}
