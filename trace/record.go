package trace

import (
	"fmt"

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
	d := &decoders{tables: map[arch.Arch]*syscalls.Table{
		arch.AMD64: syscalls.NewTable(arch.AMD64, defs),
		arch.I386:  syscalls.Fallback(arch.I386),
	}}
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

// probe makes the probe that records a function's calls.
func (c *caller) probe(en entry) *probe.Probe {
	p := &probe.Probe{Func: en.symbol, Filter: c.filter, User: en.user(), Capture: c.decoders.captures(en)}
	p.Enter = func(h *probe.Hit) any { return c.entered(en, h) }
	if !noReturn[en.name] {
		p.Return = func(h *probe.Hit, v any) {
			if f, ok := v.(*inFlight); ok {
				c.returned(f, h)
			}
		}
	}
	return p
}

// entered makes the record of a call.
func (c *caller) entered(en entry, h *probe.Hit) *inFlight {
	if en.dispatch {
		en = c.dispatched(en, int(uint32(h.Arg(1))))
	}
	th := &h.Thread
	f := &inFlight{ran: h.Ran, dec: c.decoders.byABI[en.abi]}
	f.rec = event.Call{
		Time: h.Time, VCPU: h.CPU, PID: th.PID, TID: th.TID, PPID: th.PPID, Comm: th.Comm, UID: th.UID,
		Func: en.symbol, Name: en.name,
	}
	f.call = syscalls.Call{NR: -1, Name: en.name}
	f.call.Args, _ = argsAt(h)
	if f.dec != nil {
		f.args = f.dec.Enter(nil, &f.call, f.memory(h), c.resolver(h))
	}
	for i, name := range c.params[en.symbol] {
		v := f.call.Args[i]
		f.args = append(f.args, syscalls.Arg{Name: name, Value: v, Text: fmt.Sprintf("%#x", v)})
	}
	c.calls[en.symbol]++
	switch {
	case noReturn[en.name]:
		h.DropReturn()
		c.send(f, event.Enter)
	case c.separate:
		c.send(f, event.Enter)
	default:
		c.open[f] = struct{}{}
	}
	return f
}

// dispatched returns what a call by number is of.
func (c *caller) dispatched(by entry, nr int) entry {
	name := c.decoders.byABI[by.abi].Name(&syscalls.Call{NR: nr})
	key := entry{name: name, abi: by.abi}
	en, ok := c.names[key]
	if !ok {
		en = entry{symbol: by.symbol, name: name, abi: by.abi}
		if e, found := firstOf(c.k, by.abi, name); found {
			en.symbol = e.symbol
		}
		c.names[key] = en
	}
	return en
}

// returned completes the record of a call and emits it.
func (c *caller) returned(f *inFlight, h *probe.Hit) {
	delete(c.open, f)
	f.call.Ret, f.call.Returned = int64(h.Result()), true
	f.rec.Ret, f.rec.Duration = f.call.Ret, h.Ran-f.ran
	f.rec.RetText = fmt.Sprintf("%#x", h.Result())
	if f.dec != nil {
		r := c.resolver(h)
		f.dec.Return(f.args, &f.call, f.memory(h), r)
		res := f.dec.Result(&f.call, r)
		f.rec.RetText, f.rec.Errno = res.Text, res.Errno
	}
	if !c.separate {
		c.send(f, event.Joined)
		return
	}
	f.rec.Time, f.rec.VCPU = h.Time, h.CPU
	c.send(f, event.Return)
}

// resolver returns what knows the process's files. Under stream delivery the
// process has run on since the hit, and a descriptor may mean another file by
// now: better a number than a wrong path.
func (c *caller) resolver(h *probe.Hit) syscalls.Resolver {
	if !h.Sync() {
		return nil
	}
	return &resolver{sys: c.sys, ctx: c.ctx, task: h.Thread.Task}
}

// send emits a record, and ends the run at the limit or at emit's first error.
func (c *caller) send(f *inFlight, kind event.CallKind) {
	if c.err != nil || c.limit > 0 && c.seq >= c.limit {
		return
	}
	rec := f.rec
	rec.Event, rec.Seq = kind, c.seq
	rec.Args = make([]event.Arg, len(f.args))
	for i, a := range f.args {
		rec.Args[i] = event.Arg{Name: a.Name, Value: a.Value, Text: a.Text}
	}
	c.seq++
	if c.err = c.emit(&rec); c.err != nil || c.seq == c.limit {
		c.session.Quit()
	}
}
