package trace

import (
	"context"
	"fmt"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/syscalls"
)

// ntCaller turns hits on functions of an NT kernel into records.
type ntCaller struct {
	*caller
	k   *kernel.Kernel
	nt  *kernel.NT
	abi arch.Arch
	dec *syscalls.NTDecoder
}

// ntFlight is a call between its entry and its return.
type ntFlight struct {
	*inFlight
	call   syscalls.NTCall
	kernel bool
}

// ntCalls is Calls for a guest with an NT kernel.
func ntCalls(ctx context.Context, g *vitrine.Guest, k *kernel.Kernel, sys osi.System, opts *CallsOptions, emit func(*event.Call) error) (*event.Stats, error) {
	start := time.Now()
	c := &ntCaller{caller: newCaller(k, sys, opts, emit), k: k, nt: k.NT(), abi: ntABI(k), dec: syscalls.NewNTDecoder(k.PointerSize(), opts.Decoder)}
	s, err := probe.New(g, k, &probe.Options{Engine: probe.Engine(opts.Engine), Delivery: probe.Delivery(opts.Delivery)})
	if err != nil {
		return &event.Stats{}, err
	}
	defer s.Close()
	c.session = s
	fs, err := newNTNames(ctx, k, sys).chosen(opts)
	if err == nil {
		err = plantable(g, fs)
	}
	if err == nil {
		err = c.addFunctions(fs)
	}
	if err == nil {
		err = c.run(ctx, opts.Duration)
	}
	return c.stats(time.Since(start)), err
}

// ntABI is the interface by which calls are made; 32-bit programs of a 64-bit
// system call by its own too, from code that stands between (WOW64).
func ntABI(k *kernel.Kernel) arch.Arch {
	if k.NT().X64 {
		return arch.AMD64
	}
	return arch.I386
}

func (c *ntCaller) addFunctions(fs []ntFunction) error {
	probes := make([]*probe.Probe, 0, len(fs))
	for _, f := range fs {
		probes = append(probes, c.probe(f))
	}
	if _, err := c.session.AddAll(probes); err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	return nil
}

// probe makes the probe that records a function's calls.
func (c *ntCaller) probe(fn ntFunction) *probe.Probe {
	en := entry{symbol: fn.symbol, name: fn.name, abi: c.abi}
	t := &traced{entry: en}
	c.functions[en] = t
	return &probe.Probe{
		Addr: fn.addr, Name: fn.symbol, Filter: c.filter,
		Enter: func(h *probe.Hit) any {
			f := &ntFlight{inFlight: c.take(t), call: syscalls.NTCall{Name: fn.name, Args: ntArguments(h, fn.args)}, kernel: h.Thread.Kernel}
			if c.enteredNT(h, f) {
				h.DropReturn()
				return nil
			}
			return f
		},
		Return: func(h *probe.Hit, v any) {
			if f, ok := v.(*ntFlight); ok {
				c.returnedNT(h, f, fn.service)
			}
		},
	}
}

// rawArgs is how many arguments are shown of a function of which nothing is known.
const rawArgs = 4

// ntArguments reads a function's arguments at its entry, as many as can be read.
func ntArguments(h *probe.Hit, n int) []uint64 {
	if n < 0 {
		n = rawArgs
	}
	args := make([]uint64, 0, n)
	for i := range n {
		v, err := h.ArgAt(i)
		if err != nil {
			break
		}
		args = append(args, v)
	}
	return args
}

// memory returns the memory of the process at a hit, with the pages that are
// only on their way out, and what answers for its handles.
func (c *ntCaller) memory(h *probe.Hit) (syscalls.Memory, syscalls.Objects) {
	return c.nt.SoftPages(h.Process()), &ntObjects{sys: c.sys, ctx: c.ctx, task: h.Thread.Task, system: c.nt.System, x64: c.nt.X64}
}

// enteredNT makes the record of a call. It reports whether that is all there
// will be of it.
func (c *ntCaller) enteredNT(h *probe.Hit, f *ntFlight) (done bool) {
	t, th := f.fn, &h.Thread
	f.ran = h.Ran
	f.rec = event.Call{
		Time: h.Time, VCPU: h.CPU, PID: th.PID, TID: th.TID, PPID: th.PPID, Comm: th.Comm,
		Func: t.symbol, Name: t.name, Kernel: f.kernel,
	}
	m, o := c.memory(h)
	f.args = c.dec.Enter(f.args, &f.call, m, o)
	t.calls++
	final := !syscalls.NTReturns(&f.call)
	if final || c.separate {
		c.send(f.inFlight, event.Enter)
	}
	if final {
		c.give(f.inFlight)
		return true
	}
	c.open.push(f.inFlight)
	return false
}

// returnedNT completes the record of a call, and emits it.
func (c *ntCaller) returnedNT(h *probe.Hit, f *ntFlight, service bool) {
	c.open.remove(f.inFlight)
	f.rec.Duration = f.until(&moment{time: h.Time, ran: h.Ran})
	result := h.Result()
	f.rec.Ret, f.rec.RetText = int64(result), fmt.Sprintf("%#x", result)
	if service {
		f.call.Status, f.call.Returned = uint32(result), true
		m, o := c.memory(h)
		c.dec.Return(f.args, &f.call, m, o)
		res := c.dec.Result(&f.call)
		f.rec.Ret, f.rec.RetText, f.rec.Errno = int64(int32(f.call.Status)), res.Text, res.Errno
	}
	kind := event.Joined
	if c.separate {
		kind, f.rec.Time, f.rec.VCPU = event.Return, h.Time, h.CPU
	}
	c.send(f.inFlight, kind)
	c.give(f.inFlight)
}
