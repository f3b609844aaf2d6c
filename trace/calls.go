package trace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/syscalls"
)

// CallsOptions say which system calls to trace, whose, and how. Nil means all
// calls of everybody.
type CallsOptions struct {
	// Names of system calls to trace, without prefix; kernel functions may be
	// named too. Empty means all system calls.
	Names []string
	// Ignore is taken away from Names.
	Ignore []string

	PIDs   []int    // only these processes
	Follow bool     // also their descendants
	Comms  []string // only threads of these short names
	UIDs   []uint32 // only these real users

	// Separate delivers a call's entry and its return as records of their own,
	// at once, instead of one when it has returned.
	Separate bool
	// Reuse gives emit the same record every time: it must not keep it, nor its
	// arguments.
	Reuse    bool
	Count    uint64        // end after so many records; 0 means no limit
	Duration time.Duration // end when calls have been traced for this time; 0 means no limit

	Engine   string // "auto" (also ""), "trap", "implant"
	Delivery string // "sync", "stream", "" for what the engine does best
	Decoder  *syscalls.Options
}

// Calls traces system calls until ctx ends or a limit of the options is
// reached, and gives each to emit as a record. It returns nil then, and emit's
// error when that returns one; the guest has been cleaned and runs. The
// statistics are valid with an error too.
//
// A record is emitted when the call has returned, with its entry and its result
// (event.Joined). Calls that had begun before Calls are not seen. Those that
// have not returned when it ends, those of threads that ended in them, and exit
// and exit_group, which never return, are emitted as event.Enter: exits at
// once, the others at the end, in order of their entry.
//
// Emit runs while the guest stands still, under sync delivery. The record is
// not used again, and emit may keep it, unless the options say otherwise.
func Calls(ctx context.Context, g *vitrine.Guest, k *kernel.Kernel, sys osi.System, opts *CallsOptions, emit func(*event.Call) error) (*event.Stats, error) {
	if opts == nil {
		opts = &CallsOptions{}
	}
	if k.OS() == kernel.Windows {
		return ntCalls(ctx, g, k, sys, opts, emit)
	}
	start := time.Now()
	c := newCaller(k, sys, opts, emit)
	c.decoders = decodersFor(k)
	c.decoders.limits(opts.Decoder)
	s, err := probe.New(g, k, &probe.Options{Engine: probe.Engine(opts.Engine), Delivery: probe.Delivery(opts.Delivery)})
	if err != nil {
		return &event.Stats{}, err
	}
	defer s.Close()
	c.session = s
	err = c.addAll(k, opts)
	if err == nil {
		err = c.run(ctx, opts.Duration)
	}
	return c.stats(time.Since(start)), err
}

// caller turns hits into records.
type caller struct {
	k        symbols
	sys      osi.System
	separate bool
	limit    uint64
	emit     func(*event.Call) error
	decoders *decoders
	session  *probe.Session
	filter   *probe.Filter

	// Fields of the goroutine that runs.
	ctx       context.Context //nolint:containedctx // of the run
	seq       uint64
	open      openCalls
	free      *inFlight // used before
	files     *files    // nil when nothing can be learnt
	table     tableFiles
	moment    moment
	recorded  recorded
	reuse     bool
	reused    event.Call
	functions map[entry]*traced
	params    map[string][]string // of functions that are no system calls
	names     map[entry]*traced   // what dispatched calls are of, by interface and number's name
	err       error               // of emit
}

// inFlight is a call between its entry and its return.
type inFlight struct {
	fn   *traced
	rec  event.Call
	call syscalls.Call
	args []syscalls.Arg
	ran  time.Duration

	start  uint64 // of files' clock, at the entry; likewise below
	name   fdName // what the result will stand for
	shares bool   // a child will share the files

	before, next *inFlight // in openCalls; next also of those that are free
}

// openCalls are calls that have not returned, in order of their entry.
type openCalls struct{ first, last *inFlight }

func (o *openCalls) push(f *inFlight) {
	f.before, f.next = o.last, nil
	if o.last == nil {
		o.first = f
	} else {
		o.last.next = f
	}
	o.last = f
}

func (o *openCalls) remove(f *inFlight) {
	if f.before == nil {
		o.first = f.next
	} else {
		f.before.next = f.next
	}
	if f.next == nil {
		o.last = f.before
	} else {
		f.next.before = f.before
	}
	f.before, f.next = nil, nil
}

func newCaller(k symbols, sys osi.System, o *CallsOptions, emit func(*event.Call) error) *caller {
	c := &caller{k: k, sys: sys, separate: o.Separate, limit: o.Count, emit: emit, reuse: o.Reuse,
		functions: map[entry]*traced{}, names: map[entry]*traced{}, params: map[string][]string{}}
	if len(o.PIDs)+len(o.Comms)+len(o.UIDs) > 0 {
		c.filter = &probe.Filter{PIDs: o.PIDs, Follow: o.Follow, Comms: o.Comms, UIDs: o.UIDs}
	}
	return c
}

// addAll adds a probe for each call that the options name.
func (c *caller) addAll(k *kernel.Kernel, o *CallsOptions) error {
	var entries []entry
	if len(o.Names)+len(o.Ignore) == 0 && c.session.Stats().Engine == probe.Trap {
		entries = dispatchers(k) // two breakpoints instead of some 400, each of which slows an emulated guest down
	}
	if entries == nil {
		var err error
		if entries, err = chosen(k, o); err != nil {
			return err
		}
	}
	c.follow(entries, k, o)
	probes := make([]*probe.Probe, 0, len(entries))
	for _, s := range sites(k, entries) {
		c.describe(k, &s.entry)
		probes = append(probes, c.probe(s))
	}
	if _, err := c.session.AddAll(probes); err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	return nil
}

// follow makes the caller learn from records what descriptors stand for, where
// all that is needed for that is recorded.
func (c *caller) follow(entries []entry, k symbols, o *CallsOptions) {
	if len(o.Comms)+len(o.UIDs) > 0 || c.session.Stats().Delivery != probe.Stream {
		return
	}
	own := interfaces(k)[0]
	has := func(call string) bool {
		_, ok := firstOf(k, own, call)
		return ok
	}
	if followsFiles(entries, has) {
		c.files = newFiles(c.tasks)
	}
}

// tasks returns the tasks of all processes.
func (c *caller) tasks() (map[arch.GVA]bool, error) {
	if c.sys == nil {
		return nil, nil
	}
	out := map[arch.GVA]bool{}
	for h, err := range c.sys.ProcessHandles(c.ctx) {
		if err != nil {
			return nil, err
		}
		out[h.Task] = true
	}
	return out, nil
}

// describe finds the parameters of a function that is no system call.
func (c *caller) describe(k *kernel.Kernel, e *entry) {
	if e.name != "" || e.dispatch {
		return
	}
	p, err := k.Types().Func(e.symbol)
	if err != nil {
		return // its arguments are not shown
	}
	for i := range p.Params[:min(len(p.Params), 6)] {
		c.params[e.symbol] = append(c.params[e.symbol], p.Params[i].Name)
	}
}

// chosen returns the kernel functions that the options name.
func chosen(k *kernel.Kernel, o *CallsOptions) ([]entry, error) {
	var errs []error
	var out []entry
	pick := func(names []string) []entry {
		var found []entry
		for _, n := range names {
			e, err := resolve(k, n)
			if err != nil {
				errs = append(errs, err)
			}
			found = append(found, e...)
		}
		return found
	}
	if ignore := pick(o.Ignore); len(o.Names) == 0 {
		out = without(all(k), ignore)
	} else {
		out = without(pick(o.Names), ignore)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, errors.New("trace: no system call is left to trace")
	}
	return out, nil
}

// all returns the functions of all system calls that the kernel has.
func all(k *kernel.Kernel) []entry {
	var out []entry
	own := interfaces(k)[0]
	for s := range k.Symbols() {
		abi, call, ok := syscalls.FromSymbol(own, s.Name)
		if ok && isWrapper(k, s, abi, call) {
			out = append(out, entry{symbol: s.Name, name: call, abi: abi})
		}
	}
	return out
}

// isWrapper reports whether the symbol is the function that the kernel calls
// for the call, not one of those that surround it, and not the one of all calls
// that the kernel lacks.
func isWrapper(k symbols, s kernel.Symbol, abi arch.Arch, call string) bool {
	first, ok := firstOf(k, abi, call)
	return ok && first.symbol == s.Name && call != "ni_syscall" && (s.Type == 't' || s.Type == 'T' || s.Type == 'w' || s.Type == 'W')
}

// without returns the entries that are not in ignore, each function once.
func without(entries, ignore []entry) []entry {
	seen := map[string]bool{}
	for _, e := range ignore {
		seen[e.symbol] = true
	}
	return slices.DeleteFunc(entries, func(e entry) bool {
		dup := seen[e.symbol]
		seen[e.symbol] = true
		return dup
	})
}

// run runs the session until ctx ends, or d from when the probes are in, and
// emits what is still under way.
func (c *caller) run(ctx context.Context, d time.Duration) error {
	c.ctx = ctx
	if d > 0 {
		end := time.AfterFunc(d, c.session.Quit)
		end.Stop() // until there is something to see
		defer end.Stop()
		c.session.WhenRunning(func() { end.Reset(d) })
	}
	err := c.session.Run(ctx)
	c.flush()
	return errors.Join(c.err, err)
}

// flush emits the entries of calls that have not returned.
func (c *caller) flush() {
	for f := c.open.first; f != nil; f = f.next {
		if !c.separate {
			c.send(f, event.Enter)
		}
	}
	c.open = openCalls{}
}

// stats sums the run up.
func (c *caller) stats(d time.Duration) *event.Stats {
	p := c.session.Stats()
	calls := map[string]uint64{}
	for en, t := range c.functions {
		if t.calls > 0 {
			calls[en.symbol] += t.calls
		}
	}
	return &event.Stats{
		Events: c.seq, Lost: p.Lost, GuestStopped: p.Stopped, Planting: p.Planting, Removing: p.Removing, Stalls: p.Stalls, Duration: d,
		Notes:  p.Notes,
		Engine: string(p.Engine), Delivery: string(p.Delivery), PerFunc: calls,
	}
}
