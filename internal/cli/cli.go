// Package cli is the command line: commands, flags, text and JSON output,
// exit codes and signals. What the commands do is package app's.
//
// Standard output carries only what was asked for; progress, errors and notes
// go to standard error. Strings that come from a guest are quoted before they
// reach a terminal.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/vitrine-vmi/vitrine/internal/app"
)

// Main runs the program and returns its exit status.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	e := newEnv(stdin, stdout, stderr)
	ctx, sig := e.catchSignals(context.Background())
	defer sig.stop()
	err := e.run(ctx, args)
	return e.finish(err, sig.caught())
}

// env is what one run of the program shares between its parts. It is not used
// concurrently, but for its progress.
type env struct {
	stdin    io.Reader
	out      *printer
	stderr   io.Writer
	progress *progress
	entered  bool // arguments were understood and a command has begun

	// Flags of all commands.
	json    bool
	noCache bool
	wait    time.Duration
	layout  string

	symbols      []string
	symbolServer string
	flags        *pflag.FlagSet // those above
}

func newEnv(stdin io.Reader, stdout, stderr io.Writer) *env {
	e := &env{stdin: stdin, stderr: stderr}
	tty := isTerminal(stdout)
	color := tty && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	e.out = newPrinter(stdout, color, tty)
	e.progress = newProgress(stderr, isTerminal(stderr) && os.Getenv("TERM") != "dumb")
	return e
}

// run parses args and runs the command. A panic comes back as an error: what
// was open has been closed by then, so no guest stays touched.
func (e *env) run(ctx context.Context, args []string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("internal error: %v\n%s", p, stack())
		}
	}()
	defer e.progress.done()
	root := e.root()
	root.SetArgs(args)
	c, err := root.ExecuteContextC(ctx)
	var usage *usageError
	if errors.As(err, &usage) || err != nil && !e.entered {
		err = &usageError{err: err, line: c.UseLine()}
	}
	if ferr := e.out.flush(); err == nil {
		err = ferr
	}
	return err
}

// root builds the command tree.
func (e *env) root() *cobra.Command {
	c := &cobra.Command{
		Use:   "vitrine",
		Short: "Look into running virtual machines from the outside",
		Long: `Vitrine looks into a running virtual machine from the outside: its processes,
libraries, modules, memory and system calls. Nothing is installed in the guest.

TARGET names a guest:
  NAME       the -name of a running QEMU, or a libvirt domain
  qmp:PATH   the QMP socket of a QEMU
  pid:N      a QEMU process, or for reading that of any hypervisor
  PATH       a memory image: an ELF core, kdump, LiME, AVML, a Windows crash
             dump, or with --layout raw memory`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version(),
		Args:          noSuchCommand,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRun: func(*cobra.Command, []string) {
			e.entered = true
		},
	}
	c.SetOut(e.out.w)
	c.SetErr(e.stderr)
	f := c.PersistentFlags()
	f.BoolVar(&e.json, "json", false, "print one JSON object a line")
	f.BoolVar(&e.noCache, "no-cache", false, "neither read nor write the cache of kernel facts")
	f.DurationVar(&e.wait, "wait", 10*time.Second, "how long to wait for a guest that is still starting; given, also for one that does not exist yet")
	f.StringVar(&e.layout, "layout", "", "TARGET is a file of raw memory, laid out so: flat, pc, q35 (as QEMU's machines), or START+SIZE@OFFSET,...")
	f.StringSliceVar(&e.symbols, "symbols", nil, "of a Windows guest: a PDB or ISF file (.json, .json.xz) of its kernel, or a symbol store; of a Linux guest without BTF: the vmlinux with debug information of its kernel, or an ISF of it; may be given more than once")
	f.StringVar(&e.symbolServer, "symbol-server", "", "of a Windows guest: the URL of a symbol server to ask for what --symbols does not have; without it the network is not used")
	e.flags = f
	c.AddCommand(e.listCmd(), e.infoCmd(), e.psCmd(), e.currentCmd(), e.modulesCmd(), e.libsCmd(),
		e.mapsCmd(), e.filesCmd(), e.readCmd(), e.dumpCmd(), e.traceCmd(), e.eventsCmd(), e.repairCmd(), e.doctorCmd(), e.demoCmd())
	c.SuggestionsMinimumDistance = 2
	c.InitDefaultCompletionCmd()
	return c
}

// noSuchCommand is what is left when no command has the name that was given.
func noSuchCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		return fmt.Errorf("unknown command %q: did you mean %s?", args[0], strings.Join(near, ", "))
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// version is what the Go tool knows of this build.
func version() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "unknown"
}

// Command returns the command tree for generators of documentation.
func Command() *cobra.Command {
	c := newEnv(strings.NewReader(""), io.Discard, io.Discard).root()
	c.Version = "" // pages must not depend on who builds them
	return c
}

// options are the options with which guests are opened.
func (e *env) options() *app.Options {
	o := &app.Options{Wait: e.wait, Layout: e.layout, Symbols: e.symbols, SymbolServer: e.symbolServer, Progress: e.progress.step}
	if e.flags != nil && e.flags.Changed("wait") { // an unknown name is otherwise told at once
		o.WaitThere = e.wait
	}
	if !e.noCache {
		o.CacheDir = cacheDir()
	}
	return o
}

// cacheDir returns $VITRINE_CACHE or vitrine's folder in the user's cache
// directory, "" when there is no such place.
func cacheDir() string {
	if d := os.Getenv("VITRINE_CACHE"); d != "" {
		return d
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return d + "/vitrine"
}

// onGuest is what a command does with the guest that it has reached.
type onGuest func(ctx context.Context, s *app.Session) error

// withGuest reaches the guest that target names, and closes it after f.
func (e *env) withGuest(ctx context.Context, target string, f onGuest) (err error) {
	s, err := app.Attach(ctx, target, e.options())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return f(ctx, s)
}

// withSystem is withGuest for commands that need the operating system
// understood. They end when it does.
func (e *env) withSystem(ctx context.Context, target string, f onGuest) error {
	return e.withGuest(ctx, target, func(ctx context.Context, s *app.Session) error {
		if err := s.Identify(ctx); err != nil {
			return err
		}
		e.progress.done()
		return s.WhileAlive(ctx, func(ctx context.Context) error { return f(ctx, s) })
	})
}

// finish reports err and returns the exit status.
func (e *env) finish(err error, sig os.Signal) int {
	code := exitCode(err, sig)
	if err != nil && code != 0 && code < 128 {
		fmt.Fprintln(e.stderr, "vitrine:", message(err))
	}
	return code
}

// readerLeft reports whether err says that nobody reads our output any more.
func readerLeft(err error) bool { return errors.Is(err, errReaderLeft) }
