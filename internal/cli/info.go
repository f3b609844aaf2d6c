package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/app"
)

func (e *env) infoCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "info TARGET",
		Short: "Say what runs in a guest, and how that is known",
		Long: `Say what runs in a guest: operating system, release, paging mode, where the
kernel lies. Each fact is shown with where it was found; what was looked for
and not found is listed as missing. The guest is not stopped.`,
		Example: "  vitrine info vm1",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return e.withSystem(c.Context(), args[0], func(_ context.Context, s *app.Session) error {
				info := s.Info()
				if e.json {
					return e.out.record(info)
				}
				return e.printInfo(info)
			})
		},
	}
}

func (e *env) printInfo(i event.Info) error {
	line := func(k, v string) { e.out.line(e.out.paint(bold, fmt.Sprintf("%-9s", k)) + v) }
	line("os", quote(i.OS))
	line("release", quote(i.Release))
	line("banner", printable(strings.TrimSpace(i.Banner)))
	line("arch", i.Arch)
	line("paging", i.Paging)
	line("slide", i.Slide.String())
	line("vcpus", fmt.Sprint(i.VCPUs))
	width := 0
	for name := range i.Facts {
		width = max(width, len(quote(name)))
	}
	for n, name := range slices.Sorted(maps.Keys(i.Facts)) {
		label := ""
		if n == 0 {
			label = "facts"
		}
		line(label, fmt.Sprintf("%-*s  from %s", width, quote(name), printable(i.Facts[name])))
	}
	missing := "nothing"
	if len(i.Missing) > 0 {
		missing = quoteAll(i.Missing)
	}
	line("missing", missing)
	return e.out.err
}

// printable is a guest string at the end of a line, where spaces harm nobody.
func printable(s string) string {
	if plain(strings.ReplaceAll(s, " ", "_")) {
		return s
	}
	return fmt.Sprintf("%q", s)
}

func quoteAll(ss []string) string {
	out := make([]string, len(ss))
	for i, s := range ss {
		out[i] = quoteArg(s)
	}
	return strings.Join(out, " ")
}
