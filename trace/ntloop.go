package trace

import (
	"context"

	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/probe"
)

// understoodNT learns the names of an NT guest's functions. The caller holds mu,
// or is alone.
func (l *Loop) understoodNT(k *kernel.Kernel, sys osi.System) {
	l.nt = nil
	if k.OS() == kernel.Windows {
		l.nt = newNTNames(context.Background(), k, sys)
	}
}

// addNT plants a handler's probe in an NT guest. The caller holds mu.
func (l *Loop) addNT(h Handler) error {
	fn, err := l.nt.resolve(h.Name)
	if err != nil {
		return err
	}
	_, err = l.probes.Add(l.ntProbe(fn, h))
	return err
}

// ntProbe makes the probe that calls a handler.
func (l *Loop) ntProbe(fn ntFunction, h Handler) *probe.Probe {
	abi := ntABI(l.k)
	p := &probe.Probe{Addr: fn.addr, Name: fn.symbol, Filter: l.opts.Filter}
	p.Enter, p.Return = h.callbacks(func(hit *probe.Hit) *pending {
		c := &pending{}
		all := ntArguments(hit, fn.args)
		c.more = all[copy(c.args[:], all):]
		return c
	}, func(hit *probe.Hit, c *pending) *Event {
		return &Event{Hit: hit, Name: fn.name, ABI: abi, loop: l, ctx: l.ctx, args: &c.args, more: c.more, status: fn.service}
	})
	return p
}
