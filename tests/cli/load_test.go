package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
)

// loadCalls are the calls traced under load: all that the workloads do again
// and again, those that never return and those that return twice included.
const loadCalls = "openat,close,read,write,lseek,unlinkat,clone,clone3,fork,vfork,execve,exit_group,wait4,waitid,getppid"

// The paths that the opener opens in turn: one is there, one is not.
const (
	presentPath = "/etc/hostname"
	absentPath  = "/soak/there-is-no-such-file"
)

// loadedGuest is the guest that is traced under load.
var loadedGuest = &testvm.Options{Kernel: "6.12-cloud", CPUs: 2}

// A trace of a guest in which every vCPU forks, opens, executes and exits as
// fast as it goes shows every call once, with its own result, and leaves the
// guest as it was.
func TestTraceUnderLoad(t *testing.T) {
	underLoad(t, vmtest.Shared(t, loadedGuest), time.Minute)
}

// loaded is what a traced guest was made to do.
type loaded struct {
	open, fork, exec, mixed, seq wire.Spawned
	turns                        []wire.SeqCall // what the sequence did
	cut                          bool           // the last turn ended after the trace
	much                         bool           // enough must be seen of each workload
}

func underLoad(t *testing.T, vm *testvm.VM, d time.Duration) {
	text := vmtest.SnapshotText(t, vm)
	w := &loaded{
		much:  d >= time.Minute,
		open:  vmtest.Spawn(t, vm, "open", "opener", "0", presentPath, absentPath),
		fork:  vmtest.Spawn(t, vm, "fork", "forker"),
		exec:  vmtest.Spawn(t, vm, "exec", "executor"),
		mixed: vmtest.Spawn(t, vm, "load", "mixed"),
		seq:   vmtest.Spawn(t, vm, "sequence", "seq", "3", "3"),
	}
	before := vmtest.Rate(t, vm, "opener", 4*time.Second)
	out := traceLoad(t, vm, w, d)
	vmtest.Healthy(t, vm)
	if st := mustRun(t, "list", "--json"); !strings.Contains(st, vm.Name) {
		t.Errorf("the guest is not listed:\n%s", st)
	}
	text.Unchanged(t)
	backToSpeed(t, vm, before)

	lines := strings.SplitAfter(strings.TrimSpace(out), "\n")
	last := len(lines) - 1
	calls := decode[event.Call](t, strings.Join(lines[:last], ""))
	checkStats(t, decode[event.Stats](t, lines[last])[0], calls)
	checkPairs(t, calls)
	checkOpener(t, calls, w)
	checkForker(t, calls, w)
	checkExecutor(t, calls, w)
	checkMixed(t, calls, w)
	checkSequence(t, calls, w)
}

// enough is how many calls tell of each workload. A busy host's guest makes seven traced ones a second.
const enough = 400

// traceLoad traces the guest until it has seen enough, for a limited time, and lets the sequence do a turn meanwhile.
func traceLoad(t *testing.T, vm *testvm.VM, w *loaded, d time.Duration) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d+5*time.Minute)
	defer cancel()
	from := len(vm.Events(0))
	c := command(t, "trace", target(vm), "--json", "--stats", "--count", fmt.Sprint(enough), "--duration", d.String(), "-e", loadCalls, "--engine", "trap")
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.AwaitEvent(ctx, from, "RESUME"); err != nil { // the breakpoints are in
		t.Errorf("begin to trace: %v", err)
	}
	traced := make(chan error, 1)
	go func() { traced <- c.Wait() }()
	turn, err := vm.Sequence(ctx, "seq")
	if err != nil {
		t.Errorf("sequence: %v", err)
	}
	w.turns, w.cut = turn, len(traced) > 0
	select {
	case <-traced:
	case <-ctx.Done():
		t.Fatalf("the trace did not end: %s", &stderr)
	}
	if status := exitStatus(c); status != 0 {
		t.Fatalf("status %d\n%s", status, &stderr)
	}
	return stdout.String()
}

// backToSpeed fails the test if the opener stays slower than it was. The host's
// load comes and goes: untraced it did 446/s in one run and 11852/s in another.
func backToSpeed(t *testing.T, vm *testvm.VM, before float64) {
	t.Helper()
	best := 0.0
	for range 5 {
		if best = max(best, vmtest.Rate(t, vm, "opener", 3*time.Second)); best >= before/4 {
			t.Logf("the opener does %.0f/s, %.0f/s before", best, before)
			return
		}
	}
	t.Errorf("the opener does %.0f/s at best, %.0f/s before", best, before)
}

// of returns the calls that are as wanted, in their order.
func of(calls []event.Call, wanted func(*event.Call) bool) []*event.Call {
	var out []*event.Call
	for i := range calls {
		if wanted(&calls[i]) {
			out = append(out, &calls[i])
		}
	}
	return out
}

// checkStats compares the summary with the records.
func checkStats(t *testing.T, st event.Stats, calls []event.Call) {
	t.Helper()
	perFunc := map[string]uint64{}
	for i, c := range calls {
		perFunc[c.Func]++
		if c.Seq != uint64(i) {
			t.Fatalf("record %d has the number %d", i, c.Seq)
		}
	}
	if st.Engine != "trap" || st.Lost != 0 || st.Events != uint64(len(calls)) {
		t.Errorf("statistics of %d calls: %+v", len(calls), st)
	}
	vmtest.Equal(t, "calls by function", perFunc, st.PerFunc)
	t.Logf("%d calls in %v, guest stopped for %v: %v", st.Events, st.Duration.Round(time.Millisecond), st.GuestStopped.Round(time.Millisecond), st.PerFunc)
}

// mayStay are the calls that may be under way for long: they wait for others.
// On an emulated guest whose every vCPU is busy others take a while too.
var mayStay = []string{"read", "wait4", "waitid", "clone", "execve"}

// checkPairs checks that every call has its return: a thread is in one call at
// a time, so that the next one of the same thread is entered after it.
func checkPairs(t *testing.T, calls []event.Call) {
	t.Helper()
	before := map[int]*event.Call{}
	end := calls[len(calls)-1].Time
	for i := range calls {
		c := &calls[i]
		p := before[c.TID]
		before[c.TID] = c
		if p != nil && (p.Event != event.Joined || c.Time.Before(p.Time.Add(p.Duration-time.Millisecond))) {
			t.Errorf("thread %d entered\n%+v in\n%+v", c.TID, c, p)
		}
		if c.Time.After(end) {
			end = c.Time
		}
		switch {
		case c.Event == event.Joined:
			if c.Duration <= 0 || c.Name == "exit_group" {
				t.Errorf("paired: %+v", c)
			}
		case c.Event != event.Enter:
			t.Errorf("not joined: %+v", c)
		case c.Errno != "" || c.RetText != "" || c.Duration != 0:
			t.Errorf("a result of a call that did not return: %+v", c)
		}
	}
	for _, c := range before {
		if c.Event == event.Enter && c.Name != "exit_group" && end.Sub(c.Time) > 10*time.Second && !slices.Contains(mayStay, c.Name) {
			t.Errorf("no return for %v: %+v", end.Sub(c.Time), c)
		}
	}
}

// line is what of a call can be foretold.
func line(c *event.Call) string {
	if p := path(*c); p != "" {
		return fmt.Sprintf("%s %s = %s", c.Name, p, c.RetText)
	}
	return fmt.Sprintf("%s %s = %s", c.Name, c.Args[0].Text, c.RetText)
}
