package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/app"
	"github.com/vitrine-vmi/vitrine/sink"
)

// traceFlags are the flags of trace as given.
type traceFlags struct {
	calls, ignore    string
	pid, uid         int
	comm             string
	follow           bool
	engine, delivery string
	count            uint64
	duration         time.Duration
	silent, stats    bool
}

func (e *env) traceCmd() *cobra.Command {
	var f traceFlags
	c := &cobra.Command{
		Use:   "trace TARGET",
		Short: "Show the system calls of a guest as they happen",
		Long: `Show the system calls of all processes of a guest, one line per call, with
decoded arguments and results. SET is a comma-separated list of system call
names without prefix, or 'all'.

Engines: 'implant' puts code of ours into the guest's kernel that writes records,
which are read while the guest runs on ('stream' delivery); what was not
recorded of a call says so. 'trap' plants breakpoints through the hypervisor;
the guest stands still for a moment at each call ('sync' delivery). 'auto' is
implant on x86-64 Linux, with breakpoints on functions that take no implant, and
trap where the kernel takes none at all, and on arm64; what it could not do is told
at the end. Under trap name the calls you want rather than tracing all: each costs
the guest thousands of times what it costs by itself.

In a Windows guest SET names services of its kernel, NtCreateFile or CreateFile,
or functions that it exports or that --symbols knows. The engine is trap. Calls of
the kernel itself are shown too, marked in JSON by "kernel":true. A failed call
shows its NTSTATUS, a success likewise; --uid knows no Windows user.

A trace ends at --count, at --duration, at Ctrl-C, or when the reader of its
output goes away. On every way out the breakpoints, or the implant's code, are
taken out first; after a kill -9 'vitrine repair' does it. A slow
reader makes traced threads of the guest wait; nothing is dropped.`,
		Example: "  vitrine trace vm1 -e openat,execve\n  vitrine trace vm1 -e all --comm sshd --duration 10s --stats\n  vitrine trace vm1 -e openat --json | jq -r '.args[1].text'\n  vitrine trace win1 -e NtCreateFile,NtOpenKey,NtClose",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			opts, err := f.options(c)
			if err != nil {
				return err
			}
			return e.withSystem(c.Context(), args[0], func(ctx context.Context, s *app.Session) error {
				return e.trace(ctx, s, opts, f.silent, f.stats)
			})
		},
	}
	f.register(c)
	return c
}

func (f *traceFlags) register(c *cobra.Command) {
	fs := c.Flags()
	fs.StringVarP(&f.calls, "expr", "e", "all", "trace these system calls (`SET`)")
	fs.StringVar(&f.ignore, "ignore", "", "do not trace these system calls (`SET`)")
	fs.IntVar(&f.pid, "pid", 0, "only this process")
	fs.StringVar(&f.comm, "comm", "", "only processes of this short name")
	fs.IntVar(&f.uid, "uid", 0, "only processes of this user id")
	fs.BoolVar(&f.follow, "follow", false, "with --pid: also its descendants")
	fs.StringVar(&f.engine, "engine", "auto", "how calls are caught: auto, implant or trap")
	fs.StringVar(&f.delivery, "delivery", "", "sync: the guest waits for each record; stream: it runs on (default: what the engine offers)")
	fs.Uint64Var(&f.count, "count", 0, "end after this many records (0: no limit)")
	fs.DurationVar(&f.duration, "duration", 0, "end after this time, from when the probes are in (0: no limit)")
	fs.BoolVar(&f.silent, "silent", false, "print no calls, only what --stats prints")
	fs.BoolVar(&f.stats, "stats", false, "print a summary at the end")
	oneOf(c, "engine", "auto", "implant", "trap")
	oneOf(c, "delivery", "stream", "sync")
}

// oneOf offers the values of an enumeration to shell completion.
func oneOf(c *cobra.Command, flag string, values ...string) {
	err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err)
	}
}

// options checks the flags.
func (f *traceFlags) options(c *cobra.Command) (app.TraceOptions, error) {
	set := c.Flags().Changed
	o := app.TraceOptions{
		Follow: f.follow, Engine: f.engine, Delivery: f.delivery, Count: f.count, Duration: f.duration,
		Comm: f.comm, ByComm: set("comm"),
	}
	if !slices.Contains([]string{"auto", "implant", "trap"}, f.engine) {
		return o, usagef("--engine %q: want auto, implant or trap", f.engine)
	}
	if !slices.Contains([]string{"", "stream", "sync"}, f.delivery) {
		return o, usagef("--delivery %q: want stream or sync", f.delivery)
	}
	if set("pid") {
		if f.pid <= 0 {
			return o, usagef("--pid %d is not a process id", f.pid)
		}
		o.PID = f.pid
	}
	if set("uid") {
		if f.uid < 0 || int64(f.uid) > 1<<32-1 {
			return o, usagef("--uid %d is not a user id", f.uid)
		}
		o.UID, o.ByUID = uint32(f.uid), true
	}
	if f.follow && !set("pid") {
		return o, usagef("--follow wants --pid to follow from")
	}
	if f.duration < 0 {
		return o, usagef("--duration %v is negative", f.duration)
	}
	var err error
	if o.Calls, err = callSet("-e", f.calls); err == nil && set("ignore") {
		o.Ignore, err = callSet("--ignore", f.ignore)
		if err == nil && o.Ignore == nil {
			err = usagef("--ignore all leaves nothing to trace")
		}
	}
	return o, err
}

// callSet parses a SET; all is nil.
func callSet(flag, s string) ([]string, error) {
	if s == "all" {
		return nil, nil
	}
	var names []string
	for n := range strings.SplitSeq(s, ",") {
		if n = strings.TrimSpace(n); n == "" {
			return nil, usagef("%s %q: an empty name in the list", flag, s)
		}
		names = append(names, n)
	}
	if slices.Contains(names, "all") {
		return nil, usagef("%s %q: all stands alone", flag, s)
	}
	return names, nil
}

// trace runs a trace and prints it.
func (e *env) trace(ctx context.Context, s *app.Session, o app.TraceOptions, silent, withStats bool) error {
	release := e.holdStops()
	defer release()
	ctx, out := e.newTraceOutput(ctx)
	stats, err := s.Trace(ctx, o, func(c *event.Call) error {
		if silent {
			return nil
		}
		return out.write(c)
	})
	return e.endTrace(out, stats, err, withStats)
}

// endTrace ends the output of a trace that ended with err, and prints stats if
// that is wanted and possible. A reader that left is the reason of the end,
// unless the trace failed too.
func (e *env) endTrace(out *traceOutput, stats *event.Stats, err error, withStats bool) error {
	if oerr := out.close(); err == nil || readerLeft(oerr) && endOnly(err) {
		err = oerr
	}
	if stats != nil {
		stats.OutputWait = out.stream.Stats().Blocked
	}
	if stats == nil || readerLeft(err) {
		return err
	}
	if !withStats {
		e.printNotes(stats)
		return err
	}
	if e.out.err != nil && (e.json || e.out.tty) {
		return err // the summary would go where nothing can be written
	}
	return errors.Join(err, e.printStats(*stats))
}

// printNotes says on standard error what should not be missed in the summary.
func (e *env) printNotes(stats *event.Stats) {
	for _, n := range stats.Notes {
		fmt.Fprintln(e.stderr, "vitrine: note:", quoteLines(n))
	}
	if stats.Lost > 0 || stats.Stalls > 0 {
		fmt.Fprintf(e.stderr, "vitrine: note: %d calls or returns were lost; the guest went on %d times without waiting for this program\n", stats.Lost, stats.Stalls)
	}
}

// printStats writes the summary: text to standard error.
func (e *env) printStats(st event.Stats) error {
	if e.json {
		return e.out.record(st)
	}
	text := sink.NewText(e.stderr, nil)
	return errors.Join(text.Write(st), text.Close())
}
