package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/spf13/cobra"
	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/app"
)

// show writes a list: records as JSON lines, or rows by row and then the table
// t. An entry that could not be read is named on standard error and the list
// goes on; show fails when the list broke off, or when nothing in it could be
// read.
func show[T event.Record](e *env, seq iter.Seq2[T, error], t *table, row func(T)) error {
	var shown int
	var first error
	for r, err := range seq {
		if err != nil {
			if endsList(err) {
				return errors.Join(printTable(e, t), err)
			}
			first = cmp.Or(first, err)
			e.note(err)
			if !app.Partial(err) {
				continue
			}
		}
		shown++
		if e.json {
			if err := e.out.record(r); err != nil {
				return err
			}
			continue
		}
		row(r)
	}
	if shown == 0 && first != nil {
		return fmt.Errorf("nothing could be read: %w", first)
	}
	return printTable(e, t)
}

func printTable(e *env, t *table) error {
	e.progress.done()
	if e.json {
		return nil
	}
	return t.print(e.out)
}

// endsList reports whether an error of a list is its end, not one entry's.
func endsList(err error) bool {
	for _, end := range []error{
		context.Canceled, context.DeadlineExceeded,
		vitrine.ErrGone, vitrine.ErrReset, vitrine.ErrClosed,
	} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// note tells about an entry that could not be read.
func (e *env) note(err error) {
	e.progress.done()
	fmt.Fprintln(e.stderr, "vitrine: note:", quoteLines(err.Error()))
}

func (e *env) listCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the guests of this host",
		Long: `List the guests of this host: running QEMU processes, and libvirt's domains
where virsh is installed. A guest without a QMP socket is listed too; it can't
be looked into.`,
		Example: "  vitrine list\n  vitrine list --json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			t := newTable("NAME", ">PID", "ACCEL", ">MEMORY", ">VCPUS", "QMP")
			return show(e, app.Guests(c.Context()), t, func(g event.Guest) {
				t.add(quote(g.Name), g.PID, dash(g.Accel), size(g.MemoryBytes), g.VCPUs, dash(quote(g.QMP)))
			})
		},
	}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// size is n bytes in the largest unit that shows them exactly, or nearly.
func size(n uint64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	u, f := 0, float64(n)/(1<<10)
	for f >= 1<<10 && u < len(units)-1 {
		u, f = u+1, f/(1<<10)
	}
	if f == float64(uint64(f)) {
		return fmt.Sprintf("%.0f %ciB", f, units[u])
	}
	return fmt.Sprintf("%.1f %ciB", f, units[u])
}
