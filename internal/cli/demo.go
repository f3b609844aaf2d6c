package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/app"
)

// demoName is the name of the demonstration's guest.
const demoName = "vitrine-demo"

func (e *env) demoCmd() *cobra.Command {
	var d demo
	c := &cobra.Command{
		Use:   "demo",
		Short: "Boot a throw-away guest and show all this on it",
		Long: `Boot a throw-away Linux guest under QEMU and look into it from outside: what it
runs, its processes, their libraries, its modules, and a live trace of its
system calls. Afterwards the guest is gone.

It needs a Debian host on x86-64 with qemu-system-x86 and busybox-static, and
no rights. The guest's kernel is fetched from Debian's archive the first time.`,
		Example: "  vitrine demo",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			d.env = e
			return d.run(c.Context())
		},
	}
	c.Flags().DurationVar(&d.traceFor, "trace", 5*time.Second, "how long the trace runs")
	c.Flags().BoolVar(&d.keep, "keep", false, "show nothing: keep the guest until Ctrl-C, to look at it yourself")
	return c
}

// demo is one run of the demonstration.
type demo struct {
	*env
	traceFor time.Duration
	keep     bool
	guest    *app.Demo
	session  *app.Session
}

func (d *demo) run(ctx context.Context) (err error) {
	d.tell("Booting a guest: a small Linux with a shop's server in it. Nothing of Vitrine is in it.")
	d.progress.step("booting the guest")
	log := &lineWriter{progress: d.progress}
	if d.guest, err = app.StartDemo(ctx, demoName, log); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.guest.Close()) }()
	d.progress.done()
	if d.keep {
		d.tell("The guest runs. Try 'vitrine ps " + d.guest.Name() + "' in another terminal; Ctrl-C here ends it.")
		<-ctx.Done()
		return ctx.Err()
	}
	d.tell("It runs as an ordinary QEMU with nothing but a QMP socket for us:\n  " + strings.Join(d.guest.Command(), " "))
	return d.withSystem(ctx, d.guest.Target(), func(ctx context.Context, s *app.Session) error {
		d.session = s
		return d.tour(ctx)
	})
}

// tour shows each command, as a user would type it.
func (d *demo) tour(ctx context.Context) error {
	if err := d.look(ctx); err != nil {
		return err
	}
	pid, err := d.find(ctx, "server.sh")
	if err != nil {
		return err
	}
	if err := d.lookAt(ctx, pid); err != nil {
		return err
	}
	return d.watch(ctx)
}

func (d *demo) look(ctx context.Context) error {
	d.show("info", "What is it? The kernel's own tables in its memory tell.")
	if err := d.printInfo(d.session.Info()); err != nil {
		return err
	}
	d.show("ps --tree --no-kthreads", "What runs in it? (Without the kernel's own threads.)")
	if err := d.ps(d.session.Processes(ctx, false), psFlags{tree: true, noKThreads: true}); err != nil {
		return err
	}
	d.show("modules", "Which modules has its kernel loaded?")
	return d.modules(ctx, d.session)
}

func (d *demo) lookAt(ctx context.Context, pid int) error {
	d.show(fmt.Sprintf("libs %d", pid), "The shop's server: which libraries has it loaded?")
	if err := d.libs(ctx, d.session, pid); err != nil {
		return err
	}
	d.show(fmt.Sprintf("files %d", pid), "And which files has it open?")
	return d.files(ctx, d.session, pid)
}

func (d *demo) watch(ctx context.Context) error {
	const set = "openat,execve,newfstatat,clone,exit_group"
	d.show("trace -e "+set+" --duration "+d.traceFor.String()+" --stats",
		"Its system calls, live. The shop looks for a page that is not there: see the ENOENT.")
	calls, err := callSet("-e", set)
	if err != nil {
		return err
	}
	err = d.trace(ctx, d.session, app.TraceOptions{Calls: calls, Engine: "auto", Duration: d.traceFor}, false, true)
	if err != nil {
		return err
	}
	d.tell("Done: all of ours is out of the guest, which ran on. It ends now.")
	return nil
}

// find returns the process that has the given word in its command line.
func (d *demo) find(ctx context.Context, word string) (int, error) {
	for p, err := range d.session.Processes(ctx, false) {
		if err == nil && strings.Contains(strings.Join(p.Args, " "), word) && !isShell(p) {
			return p.PID, nil
		}
	}
	return 0, fmt.Errorf("find the process %q in the demonstration's guest: it is not there", word)
}

// isShell tells the first process, a script that names the server too.
func isShell(p event.Process) bool { return p.PID == 1 }

// show announces a command.
func (d *demo) show(command, why string) {
	if err := d.out.flush(); err != nil {
		return // it will be reported by whoever writes next
	}
	name, flags, _ := strings.Cut(command, " ")
	d.tell(why)
	fmt.Fprintf(d.stderr, "$ %s\n", strings.TrimSpace(fmt.Sprintf("vitrine %s %s %s", name, d.guest.Name(), flags)))
}

func (d *demo) tell(s string) {
	d.progress.done()
	fmt.Fprintf(d.stderr, "\n%s\n", quoteLines(s))
}

// lineWriter makes the lines that are written to it steps of a progress.
type lineWriter struct{ progress *progress }

func (w *lineWriter) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" {
			w.progress.step(line)
		}
	}
	return len(b), nil
}

var _ io.Writer = (*lineWriter)(nil)
