package cli

import (
	"context"
	"slices"

	"github.com/spf13/cobra"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/app"
)

func (e *env) eventsCmd() *cobra.Command {
	var o app.EventsOptions
	c := &cobra.Command{
		Use:   "events TARGET",
		Short: "Show how processes of a guest start, execute and end",
		Long: `Show the life of a guest's processes as it happens, one line per event. First
come the processes that are there already (existing), then those that start,
execute another program (exec) and exit, in the order in which it happens.
However shortly a process lives, it is not missed.

A process that starts has the name and the program of the one that made it,
until it executes another. The exit of a process shows what it gave to exit, or
the signal that ended it: in JSON, exit_code is then minus the signal's number.
The id tells a process from later ones that get the same pid.

The events come from the guest kernel's own functions; see 'vitrine trace --help'
for the engines. On every way out the guest is left as it was found.`,
		Example: "  vitrine events vm1\n  vitrine events vm1 --no-existing --duration 10s\n  vitrine events vm1 --json | jq -r 'select(.event == \"exec\") | .args | join(\" \")'",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if !slices.Contains([]string{"auto", "implant", "trap"}, o.Engine) {
				return usagef("--engine %q: want auto, implant or trap", o.Engine)
			}
			if o.Duration < 0 {
				return usagef("--duration %v is negative", o.Duration)
			}
			return e.withSystem(c.Context(), args[0], func(ctx context.Context, s *app.Session) error {
				return e.events(ctx, s, o)
			})
		},
	}
	fs := c.Flags()
	fs.BoolVar(&o.Threads, "threads", false, "also start and end of the other threads of each process")
	fs.BoolVar(&o.NoExisting, "no-existing", false, "leave out the processes that are there already")
	fs.StringVar(&o.Engine, "engine", "auto", "how events are caught: auto, implant or trap")
	fs.Uint64Var(&o.Count, "count", 0, "end after this many records (0: no limit)")
	fs.DurationVar(&o.Duration, "duration", 0, "end after this time, from when the probes are in (0: no limit)")
	oneOf(c, "engine", "auto", "implant", "trap")
	return c
}

// events watches a guest and prints what happens.
func (e *env) events(ctx context.Context, s *app.Session, o app.EventsOptions) error {
	release := e.holdStops()
	defer release()
	ctx, out := e.newTraceOutput(ctx)
	err := s.Events(ctx, o, func(r *event.Life, err error) error {
		if err != nil {
			e.note(err)
		}
		return out.write(r)
	})
	return e.endTrace(out, nil, err, false)
}
