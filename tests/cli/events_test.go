package cli_test

import (
	"encoding/json"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
)

// next returns the lines of the command until one is as wanted, that one last.
func (tr *tracing) next(t *testing.T, what string, is func(event.Life) bool) (out []event.Life) {
	t.Helper()
	end := time.After(patience)
	for {
		select {
		case line, more := <-tr.lines:
			if !more {
				_ = tr.cmd.Wait()
				t.Fatalf("it ended before %s: %s", what, tr.stderr)
			}
			var e event.Life
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
			if out = append(out, e); is(e) {
				return out
			}
		case <-end:
			_ = tr.cmd.Process.Signal(syscall.SIGTERM)
			t.Fatalf("no %s within %v: %s", what, patience, tr.stderr)
		}
	}
}

// The life of processes comes out as it was: who is there first, then what
// starts, executes and ends.
func TestEventsShowTheLifeOfProcesses(t *testing.T) {
	for _, engine := range []string{"implant", "trap"} {
		t.Run(engine, func(t *testing.T) { eventsShow(t, guest(t), engine) })
	}
}

func eventsShow(t *testing.T, vm *testvm.VM, engine string) {
	text := vmtest.SnapshotText(t, vm)
	there, err := vm.Spawn(t.Context(), "sleeper", "there")
	if err != nil {
		t.Fatal(err)
	}
	tr := startLines(t, "events", target(vm), "--json", "--engine", engine)
	defer tr.cmd.Process.Signal(syscall.SIGTERM)
	existing := tr.next(t, "a process that was there", func(e event.Life) bool { return e.PID == there.PID })
	if e := existing[len(existing)-1]; e.Event != event.Existing || e.Name != "w-sleeper" || e.PPID != 1 {
		t.Errorf("a process that was there: %+v", e)
	}
	// A shell with two children: one that ends by itself, one that executes and is killed.
	out, err := vm.Run(t.Context(), "sh", "-c", `(exit 3); /bin/busybox sleep 1000 & kill -9 $!; wait; echo $$; exit 0`)
	if err != nil {
		t.Fatal(err)
	}
	var shell int
	if _, err := fmt.Sscan(string(out), &shell); err != nil {
		t.Fatal(err)
	}
	all := tr.next(t, "the end of the shell", func(e event.Life) bool { return e.PID == shell && e.Event == event.Exit })
	var ends []string
	for _, e := range all {
		if e.PPID == shell && e.Event == event.Exit {
			ends = append(ends, fmt.Sprint(e.ExitCode))
		}
	}
	vmtest.Equal(t, "how the shell's children ended", ends, []string{"3", "-9"})
	checkLife(t, all, shell)
	if err := tr.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if status := tr.wait(); status != 130 {
		t.Errorf("status %d, want 130: %s", status, tr.stderr)
	}
	leftAsFound(t, vm, text)
}

// checkLife wants a process to start, execute and end, in that order, once.
func checkLife(t *testing.T, all []event.Life, pid int) {
	t.Helper()
	var got []string
	ids := map[string]bool{}
	for _, e := range all {
		if e.PID == pid {
			got = append(got, fmt.Sprintf("%s %s", e.Event, e.Name))
			ids[e.ID] = true
		}
	}
	// The guest's ground-truth program is its parent, a thread of which it was made by.
	if len(got) != 3 || got[0][:5] != "start" || got[1] != "exec sh" || got[2] != "exit sh" || len(ids) != 1 {
		t.Errorf("the shell's life: %q, ids %v", got, ids)
	}
}
