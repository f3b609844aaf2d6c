package cli_test

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
)

// finished returns the calls without the last ones if those had not returned.
func finished(calls []*event.Call) []*event.Call {
	for len(calls) > 0 && calls[len(calls)-1].Event == event.Enter {
		calls = calls[:len(calls)-1]
	}
	return calls
}

// checkOpener checks each turn: open what is there, close it, open in vain.
func checkOpener(t *testing.T, records []event.Call, w *loaded) {
	t.Helper()
	// Go's runtime in it reads, writes and starts threads as it likes.
	all := of(records, func(c *event.Call) bool { return c.PID == w.open.PID && (c.Name == "openat" || c.Name == "close") })
	calls := finished(all)
	if len(all)-len(calls) > 1 {
		t.Errorf("opener: %d calls have not returned", len(all)-len(calls))
	}
	for len(calls) > 0 && path(*calls[0]) != presentPath { // the first turn is seen from its middle
		calls = calls[1:]
	}
	if len(calls) < openerCalls {
		t.Errorf("opener: %d calls", len(calls))
	}
	if len(calls) == 0 {
		return // which was told
	}
	fd := calls[0].Ret
	turn := []string{
		fmt.Sprintf("openat %s = %d<%s>", presentPath, fd, presentPath),
		fmt.Sprintf("close %d<%s> = 0", fd, presentPath),
		fmt.Sprintf("openat %s = -1 ENOENT (No such file or directory)", absentPath),
	}
	for i, c := range calls {
		if got := line(c); got != turn[i%len(turn)] || c.Comm != "w-open" || c.TID != calls[0].TID || c.PPID != 1 {
			t.Fatalf("opener, call %d of %d: want %q, got %q: %+v", i, len(calls), turn[i%len(turn)], got, c)
		}
	}
}

// checkForker checks that forks and waits alternate, that each is of one child,
// and that each such child exits.
func checkForker(t *testing.T, calls []event.Call, w *loaded) {
	t.Helper()
	pid := w.fork.PID
	exits := map[int]*event.Call{}
	for _, c := range of(calls, func(c *event.Call) bool { return c.PPID == pid }) {
		if c.Name != "exit_group" || c.Comm != "w-fork" || exits[c.PID] != nil || c.Args[0].Value != 0 {
			t.Errorf("child of forker: %+v", c)
		}
		exits[c.PID] = c
	}
	own := finished(of(calls, func(c *event.Call) bool { // the Go runtime clones threads, too
		// By a signal of the runtime; it is called again.
		interrupted := c.Name == "wait4" && c.Errno == "ERESTARTSYS" || c.Name == "clone" && c.Errno == "ERESTARTNOINTR"
		return c.PID == pid && !interrupted && (c.Name == "clone" && c.Args[0].Value == uint64(syscall.SIGCHLD) || c.Name == "wait4")
	}))
	if len(own) > 0 && own[0].Name != "clone" {
		own = own[1:]
	}
	if len(own) < forkerCalls || len(exits) < childExits {
		t.Errorf("forker: %d calls, %d children", len(own), len(exits))
	}
	for i := 0; i+1 < len(own); i += 2 {
		fork, wait := own[i], own[i+1]
		if fork.Name != "clone" || wait.Name != "wait4" || fork.Ret <= 0 || wait.Ret != fork.Ret || wait.Args[0].Value != uint64(fork.Ret) {
			t.Fatalf("forker: %+v and then %+v", fork, wait)
		}
		if e := exits[int(fork.Ret)]; e == nil || e.Time.Before(fork.Time) {
			t.Errorf("forker: child %d was reaped, exit seen: %+v", fork.Ret, e)
		}
	}
}

// checkExecutor checks that each child is one that was cloned, executes the
// program, and then exits as that program.
func checkExecutor(t *testing.T, calls []event.Call, w *loaded) {
	t.Helper()
	pid := w.exec.PID
	cloned, executed := map[int]bool{}, map[int]bool{}
	for _, c := range of(calls, func(c *event.Call) bool { return c.PID == pid && c.Event == event.Joined }) {
		if (c.Name == "clone" || c.Name == "vfork" || c.Name == "clone3") && c.Ret > 0 {
			cloned[int(c.Ret)] = true
		}
	}
	exits := 0
	for _, c := range of(calls, func(c *event.Call) bool { return c.PPID == pid }) {
		switch c.Name {
		case "execve":
			if c.Comm != "w-exec" || c.Event == event.Joined && line(c) != "execve /bin/true = 0" {
				t.Errorf("child of executor: %+v", c)
			}
			executed[c.PID] = true
		case "exit_group":
			exits++
			if c.Comm != "true" {
				t.Errorf("child of executor: %+v", c)
			}
		}
		if c.Name == "exit_group" && !executed[c.PID] && cloned[c.PID] {
			t.Errorf("child %d of executor exited before it executed anything: %+v", c.PID, c)
		}
	}
	missing := 0
	for child := range executed {
		if !cloned[child] {
			missing++
		}
	}
	// Of the first the clone may be from before the trace, of the last still under way.
	if missing > 2 || len(executed) < executions || exits < 1 {
		t.Errorf("executor: %d children cloned, %d executed, %d of others, %d exited", len(cloned), len(executed), missing, exits)
	}
}

// checkMixed checks the files that a process of several threads opens: each
// thread closes what it opened, and nothing but the known path is seen.
func checkMixed(t *testing.T, calls []event.Call, w *loaded) {
	t.Helper()
	pid := w.mixed.PID
	opened := map[int]*event.Call{}
	n := 0
	for _, c := range of(calls, func(c *event.Call) bool { return c.PID == pid && c.Event == event.Joined }) {
		want := fmt.Sprintf("openat %s = %d<%s>", presentPath, c.Ret, presentPath)
		if c.Comm != "w-load" || c.PPID != 1 || c.Name == "openat" && (c.Ret < 0 || line(c) != want) {
			t.Errorf("mixed: %+v", c)
		}
		if o := opened[c.TID]; o != nil {
			if want := fmt.Sprintf("close %d<%s> = 0", o.Ret, presentPath); line(c) != want {
				t.Errorf("mixed: want %q, got %q: %+v", want, line(c), c)
			}
			delete(opened, c.TID)
			n++
		}
		if c.Name == "openat" {
			opened[c.TID] = c
		}
	}
	if n < mixedFiles {
		t.Errorf("mixed: %d files opened", n)
	}
}

// checkSequence checks that what the sequence did was seen, all of it, in order
// of each thread, with the paths and the results that it had.
func checkSequence(t *testing.T, calls []event.Call, w *loaded) {
	t.Helper()
	// The guest states four arguments of each call; these have fewer. Openat has
	// a fourth only where it may make a file.
	counts := map[string]int{"openat": 3, "write": 3, "lseek": 3, "close": 1, "unlinkat": 3}
	got, want := map[int][]string{}, map[int][]string{}
	for _, c := range of(calls, func(c *event.Call) bool {
		return c.PID == w.seq.PID && slices.Contains(w.seq.TIDs, c.TID) && c.Event == event.Joined
	}) {
		// The Go runtime writes to descriptors of its own.
		if c.Name == "write" && !strings.Contains(c.Args[0].Text, "</tmp/seq/t") {
			continue
		}
		if c.Comm != "w-sequence" || c.PPID != 1 {
			t.Errorf("sequence: %+v", c)
		}
		values := make([]uint64, 0, 4)
		for _, a := range c.Args[:min(len(c.Args), counts[c.Name])] {
			values = append(values, a.Value)
		}
		p := ""
		if c.Name == "openat" || c.Name == "unlinkat" {
			p = path(*c)
		}
		got[c.TID] = append(got[c.TID], fmt.Sprintf("%s %s %x = %d", c.Name, p, values, c.Ret))
	}
	for _, c := range w.turns {
		want[c.TID] = append(want[c.TID], fmt.Sprintf("%s %s %x = %d", c.Name, c.Path, c.Args[:counts[c.Name]], c.Ret))
	}
	if len(want) != len(w.seq.TIDs) {
		t.Errorf("sequence: %d threads of %d did something", len(want), len(w.seq.TIDs))
	}
	for tid := range want {
		vmtest.Equal(t, fmt.Sprintf("sequence, thread %d", tid), got[tid], want[tid])
	}
}
