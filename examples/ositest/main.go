// Command ositest prints, each time a virtual processor turns to another
// process, that process, its libraries, all processes and all kernel modules.
// It is PANDA's osi_test on this library.
//
//	ositest [-n SWITCHES] [-every PERIOD] QMP-SOCKET
//
// It looks at the guest by its memory every now and then and never stops it, so
// it misses switches between two looks. To be told of every single one, use
// osi.Events with EventsOptions.TaskChanges, which hooks the guest's scheduler.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	_ "github.com/vitrine-vmi/vitrine/osi/linux"
	"github.com/vitrine-vmi/vitrine/qemu"
)

func main() {
	switches := flag.Int("n", 3, "how many switches to print")
	every := flag.Duration("every", 10*time.Millisecond, "time between two looks")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: ositest [-n SWITCHES] [-every PERIOD] QMP-SOCKET")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, flag.Arg(0), *switches, *every)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "ositest:", err)
		os.Exit(1)
	}
}

// run attaches to a guest and prints until it has seen so many switches.
func run(ctx context.Context, w io.Writer, socket string, switches int, every time.Duration) error {
	g, err := qemu.Attach(ctx, socket, nil)
	if err != nil {
		return err
	}
	defer g.Close()
	k, err := kernel.Describe(ctx, g, nil)
	if err != nil {
		return err
	}
	sys, err := osi.Open(ctx, g, k, nil)
	if err != nil {
		return err
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := make([]arch.GVA, g.CPUs())
	for {
		for vcpu := range last {
			th, err := sys.Current(ctx, vcpu)
			if err != nil {
				return err
			}
			if th.Task == last[vcpu] {
				continue
			}
			last[vcpu] = th.Task
			if err := show(ctx, w, sys, th); err != nil {
				return err
			}
			if switches--; switches == 0 {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// show prints what osi_test prints. Entries that could not be read, because the
// guest was just changing them, are said to be so.
func show(ctx context.Context, w io.Writer, sys osi.System, th osi.Thread) error {
	fmt.Fprintf(w, "vcpu %d: pid %d, tid %d, %q\n", th.VCPU, th.PID, th.TID, th.Name)
	if th.PID != 0 { // an idle processor runs no process
		fmt.Fprintln(w, "\nLibraries:")
		for l, err := range sys.Libraries(ctx, th.Handle) {
			line(w, err, "\t%v\t%#x\t%q\t%q", l.Base, l.Size, l.Name, l.Path)
		}
	}
	fmt.Fprintln(w, "\nProcesses:")
	for p, err := range sys.Processes(ctx) {
		line(w, err, "\t%d\t%d\t%v\t%q\t%q", p.PID, p.PPID, p.ASID, p.Name, strings.Join(p.Args, " "))
	}
	fmt.Fprintln(w, "\nModules:")
	for m, err := range sys.Modules(ctx) {
		line(w, err, "\t%v\t%#x\t%q", m.Base, m.Size, m.Name)
	}
	_, err := fmt.Fprintln(w)
	return err
}

func line(w io.Writer, err error, format string, args ...any) {
	fmt.Fprintf(w, format, args...)
	if err != nil {
		fmt.Fprintf(w, "\t(%v)", err)
	}
	fmt.Fprintln(w)
}
