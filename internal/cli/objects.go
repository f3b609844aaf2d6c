package cli

import (
	"context"

	"github.com/spf13/cobra"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/app"
)

func (e *env) modulesCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "modules TARGET",
		Short:   "List the kernel modules of a guest",
		Long:    `List the kernel modules that a guest has loaded. Linux does not keep the path of a module's file.`,
		Example: "  vitrine modules vm1",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return e.withSystem(c.Context(), args[0], func(ctx context.Context, s *app.Session) error {
				return e.modules(ctx, s)
			})
		},
	}
}

func (e *env) modules(ctx context.Context, s *app.Session) error {
	t := newTable("BASE", ">SIZE", "NAME", "FILE")
	return show(e, s.Modules(ctx), t, func(m event.Module) {
		t.add(m.Base, m.Size, quote(m.Name), quote(m.File))
	})
}

// processCmd is a command about one process of a guest.
func (e *env) processCmd(c *cobra.Command, run func(context.Context, *app.Session, int) error) *cobra.Command {
	c.Args = cobra.ExactArgs(2)
	c.RunE = func(c *cobra.Command, args []string) error {
		pid, err := pidArg(args[1])
		if err != nil {
			return err
		}
		return e.withSystem(c.Context(), args[0], func(ctx context.Context, s *app.Session) error {
			return run(ctx, s, pid)
		})
	}
	return c
}

func (e *env) libsCmd() *cobra.Command {
	return e.processCmd(&cobra.Command{
		Use:     "libs TARGET PID",
		Short:   "List the shared libraries of a process",
		Long:    `List the shared libraries that a process of the guest has loaded, one line each, in the order of their addresses.`,
		Example: "  vitrine libs vm1 1",
	}, e.libs)
}

func (e *env) libs(ctx context.Context, s *app.Session, pid int) error {
	t := newTable("BASE", ">SIZE", "NAME", "PATH")
	return show(e, s.Libraries(ctx, pid), t, func(l event.Library) {
		t.add(l.Base, l.Size, quote(l.Name), quote(l.Path))
	})
}

func (e *env) mapsCmd() *cobra.Command {
	return e.processCmd(&cobra.Command{
		Use:     "maps TARGET PID",
		Short:   "List the memory mappings of a process",
		Long:    `List the memory mappings of a process of the guest, as its /proc/PID/maps has them.`,
		Example: "  vitrine maps vm1 1",
	}, e.maps)
}

func (e *env) maps(ctx context.Context, s *app.Session, pid int) error {
	t := newTable("START", "END", "PERMS", ">OFFSET", "NAME")
	return show(e, s.Mappings(ctx, pid), t, func(m event.Mapping) {
		t.add(m.Start, m.End, m.Perms, event.Addr(m.Offset), quote(m.Name))
	})
}

func (e *env) filesCmd() *cobra.Command {
	return e.processCmd(&cobra.Command{
		Use:   "files TARGET PID",
		Short: "List the open files of a process",
		Long: `List the open files of a process of the guest: descriptor, position, flags of
open(2), and the path or, for what has none, the name that /proc shows.

Of a Windows guest these are all handles of the process: value, position, the
access that was granted, and the object, of other types than files with its type.`,
		Example: "  vitrine files vm1 1",
	}, e.files)
}

func (e *env) files(ctx context.Context, s *app.Session, pid int) error {
	t := newTable(">FD", ">POS", "FLAGS", "PATH")
	return show(e, s.Files(ctx, pid), t, func(f event.File) {
		t.add(f.FD, f.Pos, f.Flags, object(f))
	})
}

// object is what a descriptor or handle leads to: a path, or the type of an
// object and its name.
func object(f event.File) string {
	if f.Type == "" || f.Type == "File" {
		return quote(f.Path)
	}
	return quote(f.Type) + " " + quote(f.Path)
}
