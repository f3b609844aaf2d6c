package cli_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
)

const (
	// detachTime is how long the program may take to leave a guest after a signal. A
	// busy host may hold it up, but not each time.
	detachTime = time.Second
	// hang is what takes so long that it hangs, on the busiest host.
	hang = 30 * time.Second
	// patience is how long a test waits for what it needs.
	patience = 5 * time.Minute
)

// tracing is a trace that has begun to deliver.
type tracing struct {
	cmd    *exec.Cmd
	lines  chan string // closed at the end of the output
	stderr *bytes.Buffer
}

// startTrace starts a trace of a busy guest and waits for its first call.
func startTrace(t *testing.T, vm *testvm.VM, args ...string) *tracing {
	t.Helper()
	tr := startLines(t, append([]string{"trace", target(vm)}, args...)...)
	select {
	case _, more := <-tr.lines:
		if !more {
			_ = tr.cmd.Wait()
			t.Fatalf("the trace ended before its first call: %s", tr.stderr)
		}
	case <-time.After(patience):
		_ = tr.cmd.Process.Signal(syscall.SIGTERM)
		t.Fatalf("no call within %v: %s", patience, tr.stderr)
	}
	return tr
}

// startLines starts a command that prints lines as things happen.
func startLines(t *testing.T, args ...string) *tracing {
	t.Helper()
	c := command(t, args...)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	tr := &tracing{cmd: c, lines: make(chan string, 1<<16), stderr: &bytes.Buffer{}}
	c.Stderr = tr.stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(tr.lines)
		s := bufio.NewScanner(out)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			tr.lines <- s.Text()
		}
	}()
	return tr
}

// wait waits for the end and returns the exit status.
func (tr *tracing) wait() int {
	for range tr.lines {
	}
	_ = tr.cmd.Wait() // the status says more
	return exitStatus(tr.cmd)
}

// spawn starts a workload that has the name of its kind. It ends with
// leftAsFound, or when the next test takes the guest.
func spawn(t *testing.T, vm *testvm.VM, kind string) {
	t.Helper()
	if _, err := vm.Spawn(t.Context(), kind, kind); err != nil {
		t.Fatal(err)
	}
}

// leftAsFound ends all workloads, so that the guest has time for us, and looks
// whether anything of ours is left in it.
func leftAsFound(t *testing.T, vm *testvm.VM, text *vmtest.TextSnapshot) {
	t.Helper()
	if err := vm.Quiet(t.Context()); err != nil {
		t.Fatal(err)
	}
	text.Unchanged(t)
	vmtest.Healthy(t, vm)
}

// The calls that a process makes come out as it made them: names, paths,
// results, in the order of each thread.
func TestTraceShowsWhatAProcessDoes(t *testing.T) {
	for engine, delivery := range map[string]string{"trap": "sync", "implant": "stream"} {
		t.Run(engine, func(t *testing.T) { traceShows(t, engine, delivery) })
	}
}

func traceShows(t *testing.T, engine, delivery string) {
	vm := guest(t)
	text := vmtest.SnapshotText(t, vm)
	s := vmtest.Spawn(t, vm, "sequence", "seq", "2", "3")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	from := len(vm.Events(0))
	c := command(t, "trace", target(vm), "--json", "--stats", "--pid", fmt.Sprint(s.PID), "-e", "openat,unlinkat,lseek", "--engine", engine)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Signal(syscall.SIGINT)
	if _, err := vm.AwaitEvent(ctx, from, "RESUME"); err != nil { // the breakpoints are in
		t.Fatalf("%v\n%s", err, &stderr)
	}
	want, err := vm.Sequence(ctx, "seq")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	if status := exitStatus(c); status != 130 {
		t.Fatalf("status %d, want 130\n%s", status, &stderr)
	}
	lines := strings.SplitAfter(strings.TrimSpace(stdout.String()), "\n")
	last := len(lines) - 1
	comparable := func(name string) bool { return name == "openat" || name == "unlinkat" || name == "lseek" }
	got, expected := map[int][]string{}, map[int][]string{}
	for _, call := range decode[event.Call](t, strings.Join(lines[:last], "")) {
		if call.PID != s.PID {
			t.Errorf("a call of process %d: %+v", call.PID, call)
		}
		got[call.TID] = append(got[call.TID], fmt.Sprintf("%s %s = %d", call.Name, path(call), call.Ret))
	}
	for _, w := range want {
		if comparable(w.Name) {
			expected[w.TID] = append(expected[w.TID], fmt.Sprintf("%s %s = %d", w.Name, w.Path, w.Ret))
		}
	}
	for tid := range expected {
		vmtest.Equal(t, fmt.Sprintf("thread %d", tid), got[tid], expected[tid])
	}
	if st := lines[last]; !strings.HasPrefix(st, `{"event":"stats","events":`) || !strings.Contains(st, fmt.Sprintf(`"engine":%q,"delivery":%q`, engine, delivery)) {
		t.Errorf("statistics: %s", st)
	}
	text.Unchanged(t)
	vmtest.Healthy(t, vm)
}

// path is the path among a call's arguments, "" if it has none.
func path(c event.Call) string {
	for _, a := range c.Args {
		if s, err := strconv.Unquote(a.Text); err == nil {
			return s
		}
	}
	return ""
}

// Whatever signal ends a trace, the guest is left as it was, soon, and the
// status tells the signal. More signals do not hurry it.
func TestTraceEndedBySignals(t *testing.T) {
	var best time.Duration // 0 where no trace by traps was ended
	for _, c := range []struct {
		engine string
		sig    syscall.Signal
		want   int
	}{
		{"trap", syscall.SIGINT, 130},
		{"trap", syscall.SIGTERM, 143},
		{"trap", syscall.SIGHUP, 129},
		// Its code leaves when the guest's own threads have left it, on a busy
		// host not as soon.
		{"implant", syscall.SIGINT, 130},
	} {
		t.Run(c.engine+" "+c.sig.String(), func(t *testing.T) {
			vm := guest(t)
			text := vmtest.SnapshotText(t, vm)
			spawn(t, vm, "load")
			tr := startTrace(t, vm, "-e", "openat,close,execve,exit_group", "--engine", c.engine)
			start := time.Now()
			for range 3 {
				if err := tr.cmd.Process.Signal(c.sig); err != nil {
					t.Fatal(err)
				}
			}
			status := tr.wait()
			d := time.Since(start)
			t.Logf("left the guest in %v", d.Round(time.Millisecond))
			if d > hang {
				t.Errorf("it took %v", d)
			}
			if c.engine == "trap" && (best == 0 || d < best) {
				best = d
			}
			if status != c.want {
				t.Errorf("status %d, want %d\n%s", status, c.want, tr.stderr)
			}
			leftAsFound(t, vm, text)
		})
	}
	if best > detachTime {
		t.Errorf("it took %v at best, want at most %v", best, detachTime)
	}
}

// A trace that was killed leaves its marks; repair takes them out.
func TestRepairAfterKill(t *testing.T) {
	for _, engine := range []string{"trap", "implant"} {
		t.Run(engine, func(t *testing.T) { repairAfterKill(t, engine) })
	}
}

func repairAfterKill(t *testing.T, engine string) {
	vm := guest(t)
	text := vmtest.SnapshotText(t, vm)
	spawn(t, vm, "open")
	before := vmtest.Rate(t, vm, "open", 2*time.Second)
	tr := startTrace(t, vm, "-e", "openat,close", "--engine", engine)
	if err := tr.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if status := tr.wait(); status != 128+int(syscall.SIGKILL) {
		t.Fatalf("status %d", status)
	}
	r := run(t, "repair", target(vm))
	if r.status != 0 || r.stdout == "" {
		t.Fatalf("repair: status %d, found %q\n%s", r.status, r.stdout, r.stderr)
	}
	t.Logf("repair found: %s", r.stdout)
	after := 0.0
	for range 30 { // a busy host holds it up too, now and then
		if after = max(after, vmtest.Rate(t, vm, "open", 2*time.Second)); after >= before/4 {
			break
		}
	}
	if after < before/4 {
		t.Errorf("the workload does %.0f/s, %.0f/s before: it is still held up", after, before)
	}
	if r := run(t, "repair", "--json", target(vm)); r.status != 0 || r.stdout != "" {
		t.Errorf("a second repair: status %d, found %q", r.status, r.stdout)
	}
	leftAsFound(t, vm, text)
}

// A reader that has had enough ends the trace, and that is success.
func TestTraceIntoHead(t *testing.T) {
	vm := guest(t)
	vmtest.Spawn(t, vm, "open", "opener")
	c := command(t, "trace", target(vm), "-e", "openat")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	c.Stderr = &stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 40)); err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	out.Close()
	_ = c.Wait()
	if s := exitStatus(c); s != 0 || strings.Contains(stderr.String(), "pipe") {
		t.Errorf("status %d, want 0\n%s", s, &stderr)
	}
	vmtest.Healthy(t, vm)
}

func TestTraceCountAndText(t *testing.T) {
	vm := guest(t)
	s := vmtest.Spawn(t, vm, "open", "opener")
	comm := vmtest.Truth(t, vm, s.PID).Find(s.PID).Comm()
	r := run(t, "trace", target(vm), "-e", "openat", "--pid", fmt.Sprint(s.PID), "--comm", comm, "--count", "5", "--duration", patience.String(), "--stats")
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if r.status != 0 || len(lines) != 5 {
		t.Fatalf("status %d, %d lines, want 0 and 5\n%s%s", r.status, len(lines), r.stdout, r.stderr)
	}
	caller := regexp.MustCompile(` \d+ ` + regexp.QuoteMeta(comm) + ` `) // the thread's id, which need not be the process's
	for _, l := range lines {
		if !caller.MatchString(l) || !strings.Contains(l, "openat(AT_FDCWD") {
			t.Errorf("line %q", l)
		}
	}
	if !strings.Contains(r.stderr, "5 events in") || !strings.Contains(r.stderr, "__x64_sys_openat") {
		t.Errorf("statistics:\n%s", r.stderr)
	}
	for _, d := range []string{"1s", "10s", "1m"} { // a busy host's guest may make no call in a second
		r = run(t, "trace", target(vm), "-e", "openat", "--duration", d, "--silent", "--stats", "--json")
		st := decode[map[string]any](t, r.stdout)
		if r.status != 0 || len(st) != 1 || st[0]["event"] != "stats" {
			t.Fatalf("silent: status %d\n%s%s", r.status, r.stdout, r.stderr)
		}
		if st[0]["events"].(float64) > 0 {
			return
		}
	}
	t.Errorf("silent: no call within a minute\n%s", r.stdout)
}

func TestTraceOfUnknownCalls(t *testing.T) {
	vm := guest(t)
	check := vmtest.NoStops(t, vm)
	for _, args := range [][]string{{"-e", "openat,opeant"}, {"--ignore", "opeant"}} {
		r := run(t, append([]string{"trace", target(vm)}, args...)...)
		if r.status != 2 || !strings.Contains(r.stderr, `"opeant" (did you mean openat`) {
			t.Errorf("%q: status %d\n%s", args, r.status, r.stderr)
		}
	}
	r := run(t, "trace", target(vm), "--engine", "trap", "--delivery", "stream")
	if r.status != 1 || !strings.Contains(r.stderr, `delivers "sync" only`) {
		t.Errorf("stream: status %d\n%s", r.status, r.stderr)
	}
	check()
}

// A guest that someone else has paused can be read, is not traced, and stays
// paused.
func TestPausedGuest(t *testing.T) {
	vm := guest(t)
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := vm.Cont(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	for _, args := range [][]string{{"info", target(vm)}, {"ps", target(vm)}, {"read", target(vm), "linux_banner", "16"}, {"doctor", target(vm)}, {"repair", target(vm)}} {
		mustRun(t, args...)
	}
	r := run(t, "trace", target(vm), "--duration", "2s")
	if r.status != 1 || !strings.Contains(r.stderr, "guest is paused") || !strings.Contains(r.stderr, "left paused") {
		t.Errorf("trace: status %d\n%s", r.status, r.stderr)
	}
	if running, err := vm.Running(t.Context()); err != nil || running {
		t.Errorf("the guest was resumed (%v)", err)
	}
}

// A guest that ends while it is traced is told as such, at once.
func TestTraceOfAGuestThatEnds(t *testing.T) {
	vm := vmtest.Boot(t, &testvm.Options{})
	if _, err := vm.Spawn(t.Context(), "open", "opener"); err != nil { // it ends with the guest
		t.Fatal(err)
	}
	tr := startTrace(t, vm, "-e", "openat")
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	if status := tr.wait(); status != 1 || !strings.Contains(tr.stderr.String(), "guest has ended") {
		t.Errorf("status %d\n%s", status, tr.stderr)
	}
}

// A busy function, records without a stop of the guest, and nothing left.
func TestTraceByImplants(t *testing.T) {
	vm := guest(t)
	text := vmtest.SnapshotText(t, vm)
	vmtest.Spawn(t, vm, "open", "implanted")
	r := run(t, "trace", target(vm), "-e", "openat", "--engine", "implant", "--count", "50", "--stats")
	if r.status != 0 || strings.Count(r.stdout, "openat(AT_FDCWD, \"/") < 40 {
		t.Errorf("status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	if !strings.Contains(r.stderr, "engine implant, delivery stream") || !strings.Contains(r.stderr, " 0 lost") {
		t.Errorf("statistics:\n%s", r.stderr)
	}
	text.Unchanged(t)
	if r := run(t, "repair", target(vm)); r.status != 0 || r.stdout != "" {
		t.Errorf("repair found something: status %d\n%s", r.status, r.stdout)
	}
}
