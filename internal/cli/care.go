package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/vitrine-vmi/vitrine/internal/app"
)

func (e *env) repairCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "repair TARGET",
		Short: "Take out what an interrupted run left in a guest",
		Long: `Take out what a run left in a guest that was killed (kill -9, power cut) before
it could do so itself: breakpoints, a guest that one of them has stopped, and
code of the implant engine.
A guest that someone else has paused stays paused. While a debugger is on the
guest's gdbstub, or another vitrine has its monitor, repair refuses.`,
		Example: "  vitrine repair vm1",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return e.withGuest(c.Context(), args[0], func(_ context.Context, s *app.Session) error {
				found, err := s.Repair(c.Context())
				if err == nil && len(found) == 0 {
					fmt.Fprintln(e.stderr, "vitrine: nothing was left in the guest")
				}
				for _, f := range found {
					err = errors.Join(err, e.say(f, struct {
						Found string `json:"found"`
					}{f}))
				}
				return err
			})
		},
	}
}

// say prints a line of text, or v as JSON.
func (e *env) say(text string, v any) error {
	if !e.json {
		e.out.line(quoteLines(text))
		return e.out.err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	e.out.line(string(b))
	return e.out.err
}

func (e *env) doctorCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor [TARGET]",
		Short: "Say what works here, and how to get what does not",
		Long: `Check this host, and a guest where one is named: what works, and for what does
not the exact missing piece and how to get it. The exit status is 0 when the
checks could be made, whatever they found; with --json each check is an object
with subject, check, status (ok, missing or note), found and fix.`,
		Example: "  vitrine doctor\n  vitrine doctor vm1",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			target := ""
			if len(args) == 1 {
				target = args[0]
			}
			for check := range app.Diagnose(c.Context(), target, e.options()) {
				e.progress.done()
				if err := e.printCheck(check); err != nil {
					return err
				}
			}
			return c.Context().Err()
		},
	}
}

func (e *env) printCheck(ch app.Check) error {
	if e.json {
		return e.say("", ch)
	}
	color := map[app.CheckStatus]string{app.CheckOK: green, app.CheckMissing: red, app.CheckNote: dim}[ch.Status]
	status := e.out.paint(color, fmt.Sprintf("%-7s", ch.Status))
	e.out.line(fmt.Sprintf("%s  %-5s  %s: %s", status, ch.Subject, ch.Name, quoteLines(ch.Found)))
	if ch.Fix != "" {
		e.out.line("                -> " + quoteLines(ch.Fix))
	}
	return e.out.flush()
}
