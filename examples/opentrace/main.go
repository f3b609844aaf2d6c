// Command opentrace prints each file that any process of a guest opens, with
// the result: guestrace's example program.
//
//	opentrace QMP-SOCKET
//
// The guest may be one that is only just starting. Ctrl-C ends it, and leaves
// the guest as it was.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/vitrine-vmi/vitrine/arch"
	_ "github.com/vitrine-vmi/vitrine/osi/linux"
	"github.com/vitrine-vmi/vitrine/qemu"
	"github.com/vitrine-vmi/vitrine/syscalls"
	"github.com/vitrine-vmi/vitrine/trace"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: opentrace QMP-SOCKET")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, os.Stdout, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "opentrace:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, w io.Writer, qmp string) error {
	g, err := qemu.Attach(ctx, qmp, nil)
	if err != nil {
		return err
	}
	defer g.Close()
	loop, err := trace.New(g, nil, nil, nil) // Run waits for the guest's operating system
	if err != nil {
		return err
	}
	defer loop.Close()
	lines := make(chan string, 1024)
	printed := make(chan error, 1)
	go func() { printed <- printAll(w, lines) }()
	show := func(e *trace.Event, path any) { lines <- line(e, path) }
	err = loop.HandleAll([]trace.Handler{
		{Name: "sys_open", OnCall: path(0), OnReturn: show},
		{Name: "sys_openat", OnCall: path(1), OnReturn: show},
	})
	if err == nil {
		err = loop.Run(ctx)
	}
	close(lines)
	return errors.Join(err, <-printed)
}

// printAll writes the lines on a goroutine of its own: the guest stands still
// while a handler runs, and must not wait for a terminal. After a failure it
// takes the rest and drops it.
func printAll(w io.Writer, lines <-chan string) error {
	var err error
	for l := range lines {
		if err == nil {
			_, err = io.WriteString(w, l)
		}
	}
	return err
}

// maxPath is the longest path that Linux takes, with its NUL.
const maxPath = 4096

// path returns a handler that reads the path which argument n points to. What
// it returns, line gets when the same call returns.
func path(n int) trace.CallFunc {
	return func(e *trace.Event) any {
		s, err := e.String(arch.GVA(e.Arg(n)), maxPath)
		if err != nil {
			return fmt.Sprintf("%q... (%v)", s, err)
		}
		return fmt.Sprintf("%q", s)
	}
}

// line tells of one call. Guest strings are quoted: they may hold any byte.
func line(e *trace.Event, path any) string {
	result := fmt.Sprint(e.Result())
	if name := syscalls.Errno(-e.Result()); name != "" {
		result += " " + name
	}
	return fmt.Sprintf("%d %q %s(%v) = %s\n", e.PID(), e.Comm(), e.Name, path, result)
}
