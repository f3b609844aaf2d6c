package cli

import (
	"context"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/app"
)

func (e *env) psCmd() *cobra.Command {
	var f psFlags
	c := &cobra.Command{
		Use:   "ps TARGET",
		Short: "List the processes of a guest",
		Long: `List the processes of a guest, read out of its memory while it runs.

A process that could not be read, as it changed in that moment, is named on
standard error and the list goes on.`,
		Example: "  vitrine ps vm1\n  vitrine ps vm1 --tree --no-kthreads\n  vitrine ps vm1 --json | jq -r 'select(.uid == 0) | .exe'",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return e.withSystem(c.Context(), args[0], func(ctx context.Context, s *app.Session) error {
				return e.ps(s.Processes(ctx, f.threads), f)
			})
		},
	}
	c.Flags().BoolVar(&f.tree, "tree", false, "order and indent by parent")
	c.Flags().BoolVar(&f.threads, "threads", false, "list every thread, not only processes")
	c.Flags().BoolVar(&f.noKThreads, "no-kthreads", false, "leave out the kernel's own threads")
	return c
}

// psFlags choose what ps shows.
type psFlags struct{ tree, threads, noKThreads bool }

// withoutKThreads leaves out the kernel's own threads.
func withoutKThreads(seq iter.Seq2[event.Process, error]) iter.Seq2[event.Process, error] {
	return func(yield func(event.Process, error) bool) {
		for p, err := range seq {
			if !p.KThread && !yield(p, err) {
				return
			}
		}
	}
}

func (e *env) ps(seq iter.Seq2[event.Process, error], f psFlags) error {
	depth := map[int]int{}
	if f.noKThreads {
		seq = withoutKThreads(seq)
	}
	if f.tree {
		seq = inTreeOrder(seq, depth)
	}
	id := column(">PPID")
	if f.threads {
		id = ">TGID"
	}
	t := newTable(">PID", id, ">UID", "S", ">THR", "START", "COMMAND")
	now := time.Now()
	return show(e, seq, t, func(p event.Process) {
		second := p.PPID
		if f.threads {
			second = p.TGID
		}
		t.add(p.PID, second, user(p), quote(p.State), p.Threads, started(p.StartTime, now),
			branch(depth[p.PID])+command(p))
	})
}

// command is what a process runs, as ps shows it: kernel threads in brackets,
// 32-bit processes of a 64-bit system with a mark behind it.
func command(p event.Process) string {
	mark := ""
	if p.Compat {
		mark = " <32-bit>"
	}
	switch {
	case p.KThread:
		return "[" + quote(p.Name) + "]"
	case len(p.Args) > 0:
		return quoteAll(p.Args) + mark
	}
	return quoteArg(p.Name) + mark
}

func branch(depth int) string {
	if depth == 0 {
		return ""
	}
	return strings.Repeat("  ", depth-1) + `\_ `
}

// user is who a process belongs to: its uid, or of a Windows guest its SID.
func user(p event.Process) string {
	if p.User != "" {
		return quote(p.User)
	}
	return strconv.FormatUint(uint64(p.UID), 10)
}

// started is a start time: the hour for the last day, else the date.
func started(t, now time.Time) string {
	switch {
	case t.IsZero():
		return "-"
	case now.Sub(t).Abs() < 24*time.Hour:
		return t.Local().Format("15:04:05")
	}
	return t.Local().Format("2006-01-02")
}

// inTreeOrder returns the list with every process behind its parent, and fills
// depth by pid. Who has no parent in the list, or is its own ancestor, is a
// root. Entries without a record stay errors and come first.
func inTreeOrder(seq iter.Seq2[event.Process, error], depth map[int]int) iter.Seq2[event.Process, error] {
	return func(yield func(event.Process, error) bool) {
		f := forest{children: map[int][]entry{}, present: map[int]bool{}}
		for p, err := range seq {
			if err != nil && !app.Partial(err) {
				if !yield(p, err) {
					return
				}
				continue
			}
			f.add(p, err)
		}
		f.walk(depth, yield)
	}
}

type entry struct {
	p   event.Process
	err error
}

type forest struct {
	all      []entry
	children map[int][]entry // by parent
	present  map[int]bool
}

func (f *forest) add(p event.Process, err error) {
	f.all = append(f.all, entry{p, err})
	f.present[p.PID] = true
}

// parent returns where p hangs: a thread under its process.
func parent(p event.Process) int {
	if p.PID != p.TGID {
		return p.TGID
	}
	return p.PPID
}

func (f *forest) walk(depth map[int]int, yield func(event.Process, error) bool) {
	var stack []entry
	for _, en := range f.all {
		if up := parent(en.p); up != en.p.PID && f.present[up] {
			f.children[up] = append(f.children[up], en)
		} else {
			stack = append(stack, en)
		}
	}
	slices.Reverse(stack)
	seen := map[int]bool{}
	visit := func() bool {
		for len(stack) > 0 {
			en := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			if seen[en.p.PID] {
				continue
			}
			seen[en.p.PID] = true
			if !yield(en.p, en.err) {
				return false
			}
			kids := f.children[en.p.PID]
			for i := len(kids) - 1; i >= 0; i-- {
				depth[kids[i].p.PID] = depth[en.p.PID] + 1
				stack = append(stack, kids[i])
			}
		}
		return true
	}
	if !visit() {
		return
	}
	for _, en := range f.all { // what hangs in a loop of parents: a torn list, or a lie
		if stack = append(stack, en); !visit() {
			return
		}
	}
}

func (e *env) currentCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "current TARGET",
		Short:   "Say what each virtual processor runs",
		Long:    `Say which thread each virtual processor runs at this moment. The guest is not stopped, so the lines are of slightly different moments.`,
		Example: "  vitrine current vm1",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return e.withSystem(c.Context(), args[0], func(ctx context.Context, s *app.Session) error {
				t := newTable(">VCPU", ">PID", ">TID", "NAME", "TASK")
				return show(e, s.Current(ctx), t, func(r event.Current) {
					t.add(r.VCPU, r.PID, r.TID, quote(r.Name), r.Task)
				})
			})
		},
	}
}

// pidArg parses a process id of the guest.
func pidArg(s string) (int, error) {
	pid, err := strconv.Atoi(s)
	if err != nil || pid < 0 {
		return 0, usagef("%q is not a process id", s)
	}
	return pid, nil
}
