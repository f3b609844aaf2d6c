package trace_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"github.com/vitrine-vmi/vitrine/syscalls"
	"github.com/vitrine-vmi/vitrine/trace"
)

// testImplant is what the guests' tests of stream traces have in common.
func testImplant(t *testing.T, x *target) {
	text := vmtest.SnapshotText(t, x.vm)
	t.Run("tree", func(t *testing.T) { testTree(t, x) })
	t.Run("time", func(t *testing.T) { testTimes(t, x, "implant") })
	t.Run("exec", func(t *testing.T) { testExecArgs(t, x) })
	if x.vm.Options.CPUs > 1 || os.Getenv("VITRINE_TEST_TRACE") == "all" { // what does not depend on the kernel
		t.Run("every", func(t *testing.T) { testEveryCall(t, x) })
		t.Run("time-trap", func(t *testing.T) { testTimes(t, x, "trap") })
		t.Run("files", func(t *testing.T) { testFiles(t, x) })
	}
	vmtest.Healthy(t, x.vm)
	text.Unchanged(t)
}

// stream is a stream trace in the background.
type stream struct {
	mu    sync.Mutex
	calls []event.Call
	stats *event.Stats
	end   func() error
	ended chan struct{}
}

func startStream(t *testing.T, x *target, o *trace.CallsOptions) *stream {
	t.Helper()
	s := &stream{ended: make(chan struct{})}
	if o.Engine == "" {
		o.Engine, o.Delivery = "implant", "stream"
	}
	if len(o.Names) == 0 {
		o.Ignore = append(o.Ignore, "perf_event_open") // compiled without ftrace's nop in 5.10
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		var err error
		s.stats, err = trace.Calls(ctx, x.g, x.k, x.sys, o, func(c *event.Call) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.calls = append(s.calls, *c)
			return nil
		})
		done <- err
		close(s.ended)
	}()
	s.end = func() error { cancel(); return <-done }
	return s
}

// await waits until ready says so of the calls seen so far.
func (s *stream) await(t *testing.T, what string, ready func([]event.Call) bool) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		select {
		case <-s.ended:
			t.Fatalf("the trace ended early: %v", s.end())
		default:
		}
		s.mu.Lock()
		ok := ready(s.calls)
		n := len(s.calls)
		s.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(end) {
			err := s.end()
			t.Fatalf("%s was not seen among %d calls: %v", what, n, err)
		}
	}
}

// awaitPlanted waits until a call of a process is seen that makes them all the time.
func (s *stream) awaitPlanted(t *testing.T) {
	t.Helper()
	s.await(t, "any call", func(c []event.Call) bool { return len(c) > 0 })
}

// finish ends the trace and returns its calls.
func (s *stream) finish(t *testing.T) []event.Call {
	t.Helper()
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	for i, c := range s.calls {
		if c.Seq != uint64(i) {
			t.Fatalf("record %d has the number %d", i, c.Seq)
		}
	}
	if s.stats.Lost != 0 || s.stats.Events != uint64(len(s.calls)) {
		t.Errorf("%d records seen; stats %+v", len(s.calls), s.stats)
	}
	return s.calls
}

// testEveryCall compares every record of threads that make known calls at full speed, among all calls of everybody.
func testEveryCall(t *testing.T, x *target) {
	vmtest.Spawn(t, x.vm, "load", "load")
	seq := vmtest.Spawn(t, x.vm, "sequence", "seq", "2", "100")
	s := startStream(t, x, &trace.CallsOptions{})
	s.awaitPlanted(t)
	var want []wire.SeqCall
	for range 2 {
		calls, err := x.vm.Sequence(t.Context(), "seq")
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, calls...)
	}
	got := map[int][]event.Call{}
	for _, c := range s.finish(t) {
		if c.PID == seq.PID {
			got[c.TID] = append(got[c.TID], c)
		}
	}
	for tid, mine := range byThread(want) {
		compareThread(t, tid, mine, got[tid])
	}
}

func byThread(calls []wire.SeqCall) map[int][]wire.SeqCall {
	out := map[int][]wire.SeqCall{}
	for _, c := range calls {
		out[c.TID] = append(out[c.TID], c)
	}
	return out
}

// compareThread compares a thread's known calls with its records: each known call has a record, in order, and each
// record of a call that only the sequence makes is that of a known one.
func compareThread(t *testing.T, tid int, want []wire.SeqCall, got []event.Call) {
	t.Helper()
	var rest []event.Call
	n := 0
	for _, c := range got {
		if n < len(want) && c.Event == event.Joined && isCall(c, want[n]) {
			compareCall(t, c, want[n])
			n++
		} else {
			rest = append(rest, c)
		}
	}
	if n < len(want) {
		t.Errorf("thread %d: call %d of %d, %+v, was not seen", tid, n, len(want), want[n])
	}
	for _, c := range rest {
		if c.Name == "lseek" || c.Name == "unlinkat" || c.Name == "openat" && strings.Contains(fmt.Sprint(c.Args), "/tmp/seq/") {
			t.Errorf("thread %d: record of a call that was not made: %+v", tid, c)
		}
	}
	if !slices.IsSortedFunc(got, func(a, b event.Call) int { return a.Time.Compare(b.Time) }) {
		t.Errorf("thread %d: times are not in order", tid)
	}
}

// compareCall checks everything in a record against what the thread says.
func compareCall(t *testing.T, c event.Call, w wire.SeqCall) {
	t.Helper()
	errno, ret := "", fmt.Sprint(w.Ret)
	if w.Ret < 0 {
		errno = syscalls.Errno(-w.Ret)
		ret = "-1 " + errno
	}
	if c.Ret != w.Ret || c.Errno != errno || !strings.HasPrefix(c.RetText, ret) || c.Func != "__x64_sys_"+w.Name || c.Duration <= 0 || c.Comm != "w-sequence" || c.PPID != 1 || c.UID != 0 {
		t.Errorf("%+v; the guest says %+v", c, w)
	}
	if w.Name == "write" && w.Args[2] > 0 {
		if want := `"` + strings.Repeat(`\0`, int(min(w.Args[2], 32))) + `"`; !strings.HasPrefix(c.Args[1].Text, want) {
			t.Errorf("write of %d bytes shows %s", w.Args[2], c.Args[1].Text)
		}
	}
}

// testTree follows a tree of processes that grows fast, beside another that is not followed.
func testTree(t *testing.T, x *target) {
	parent := vmtest.Spawn(t, x.vm, "tree", "tree")
	other := vmtest.Spawn(t, x.vm, "tree", "other")
	s := startStream(t, x, &trace.CallsOptions{PIDs: []int{parent.PID}, Follow: true})
	const depth, rounds = 5, 2
	grow := func() (nodes int) {
		t.Helper()
		var n int
		for _, name := range []string{"other", "tree"} {
			if err := x.vm.Tell(t.Context(), name, fmt.Sprint(depth), &n); err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	for planted := false; !planted; { // trees grown before that are not seen whole
		grow()
		s.mu.Lock()
		planted = len(s.calls) > 0
		s.mu.Unlock()
		select {
		case <-s.ended:
			t.Fatalf("the trace ended early: %v", s.end())
		default:
		}
	}
	marks := func(calls []event.Call) (seen map[uint64]int) {
		seen = map[uint64]int{}
		for _, c := range calls {
			if c.Name == "getpgid" && c.Args[0].Value >= wire.TreeMark {
				seen[c.Args[0].Value-wire.TreeMark]++
			}
		}
		return seen
	}
	fellTrees(t, x, parent.PID, other.PID) // what comes is of the trees that are grown from now on
	nodes := 0
	for range rounds {
		nodes = grow()
	}
	fellTrees(t, x, parent.PID, other.PID)
	var from int
	s.await(t, "all of the trees", func(calls []event.Call) bool {
		from = lastRoots(calls, parent.PID, rounds)
		n := 0
		for _, v := range marks(calls[from:]) {
			n += v
		}
		return n >= nodes*rounds
	})
	calls := s.finish(t)
	seen := marks(calls[from:])
	for id := range nodes {
		if seen[uint64(id)] != rounds {
			t.Errorf("process %d of the tree was seen %d times in %d rounds", id, seen[uint64(id)], rounds)
		}
	}
	if len(seen) != nodes {
		t.Errorf("%d different processes, want %d", len(seen), nodes)
	}
	for _, c := range calls {
		if c.PID != parent.PID && c.Comm != "w-tree" {
			t.Errorf("call of another's: %+v", c)
		}
	}
	checkLives(t, calls[from:])
}

// fellTrees waits until all trees have ended: the guest has no process of theirs but those that plant them.
func fellTrees(t *testing.T, x *target, planters ...int) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		truth, err := x.vm.BriefTruth(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(truth.Procs, func(p wire.Proc) bool { return p.Comm() == "w-tree" && !slices.Contains(planters, p.PID) }) {
			return
		}
	}
	t.Fatalf("trees still grow after %v", patience)
}

// lastRoots returns where the first of the last n trees of a process begins: with its root's mark.
func lastRoots(calls []event.Call, parent, n int) int {
	for i := len(calls) - 1; i >= 0; i-- {
		if c := &calls[i]; c.Name == "getpgid" && c.PPID == parent && c.Args[0].Value == wire.TreeMark {
			if n--; n == 0 {
				return i
			}
		}
	}
	return len(calls)
}

// checkLives checks that each process that made its mark did it with its first call, and ended with its last.
func checkLives(t *testing.T, calls []event.Call) {
	t.Helper()
	byPID := map[int][]event.Call{}
	for _, c := range calls {
		byPID[c.PID] = append(byPID[c.PID], c)
	}
	for pid, c := range byPID {
		if first := c[0]; first.Name != "getpgid" && c[len(c)-1].Name == "exit_group" {
			t.Errorf("process %d began with %s", pid, first.Name)
		}
	}
}

// testTimes checks that records have the guest's wall clock: each call lies between the readings of the clock that its
// thread took around it, to 10 ms.
func testTimes(t *testing.T, x *target, engine string) {
	w := vmtest.Spawn(t, x.vm, "clock", "clock")
	s := startStream(t, x, &trace.CallsOptions{Names: []string{"getpgid"}, PIDs: []int{w.PID}, Engine: engine})
	tell := func(line string) (truth []wire.Timed) {
		t.Helper()
		if err := x.vm.Tell(t.Context(), "clock", line, &truth); err != nil {
			t.Fatal(err)
		}
		return truth
	}
	planted := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.calls) > 0
	}
	for !planted() {
		tell("20 1ms")
		select {
		case <-s.ended:
			t.Fatalf("the trace ended early: %v", s.end())
		default:
		}
	}
	var worst time.Duration
	lines := []string{"200 0s", "50 3ms", "4 700ms", "50 20ms"}
	if engine == "trap" { // which is slow
		lines = []string{"30 0s", "2 700ms", "20 20ms"}
	}
	for _, line := range lines {
		s.mu.Lock()
		from := len(s.calls)
		s.mu.Unlock()
		truth := tell(line)
		s.await(t, "the last call", func(c []event.Call) bool {
			return len(c) > from && c[len(c)-1].Args[0].Value == truth[len(truth)-1].Arg
		})
		s.mu.Lock()
		got := slices.Clone(s.calls)
		s.mu.Unlock()
		got = got[len(got)-len(truth):]
		for i, w := range truth {
			if got[i].Args[0].Value != w.Arg || got[i].TID != w.TID {
				t.Fatalf("call %d of %s: %+v; want %+v", i, line, got[i], w)
			}
			at := got[i].Time.UnixNano()
			off := max(time.Duration(w.Before-at), time.Duration(at-w.After), 0)
			worst = max(worst, off)
			allowed := 10 * time.Millisecond
			if engine == "trap" {
				allowed += time.Duration(w.After - w.Before) // a starved guest has had no tick for about as long
			}
			if off > allowed {
				t.Errorf("call %d of %s was at %v; the guest says %v to %v", i, line, got[i].Time, time.Unix(0, w.Before).UTC(), time.Unix(0, w.After).UTC())
			}
		}
	}
	source, err := x.vm.ReadFile(t.Context(), "/sys/devices/system/clocksource/clocksource0/current_clocksource")
	t.Logf("at most %v off, with %s, %v", worst, source, err)
	last := map[int]time.Time{}
	for i, c := range s.finish(t) {
		if c.Time.Before(last[c.VCPU]) {
			t.Errorf("record %d of processor %d is at %v, the one before it at %v", i, c.VCPU, c.Time, last[c.VCPU])
		}
		last[c.VCPU] = c.Time
	}
}

// testFiles checks what descriptors are said to be, of threads that use the same numbers for other files all the time.
func testFiles(t *testing.T, x *target) {
	w := vmtest.Spawn(t, x.vm, "descriptors", "files", "2", "60")
	s := startStream(t, x, &trace.CallsOptions{PIDs: []int{w.PID}, Follow: true})
	turn := func() (want []wire.SeqCall) {
		t.Helper()
		if err := x.vm.Tell(t.Context(), "files", "go", &want); err != nil {
			t.Fatal(err)
		}
		return want
	}
	for planted := false; !planted; {
		turn()
		s.mu.Lock()
		planted = len(s.calls) > 0
		s.mu.Unlock()
		select {
		case <-s.ended:
			t.Fatalf("the trace ended early: %v", s.end())
		default:
		}
	}
	s.mu.Lock()
	from := len(s.calls)
	s.mu.Unlock()
	want := turn()
	last := want[len(want)-1]
	s.await(t, "the last call", func(calls []event.Call) bool {
		return slices.ContainsFunc(calls[from:], func(c event.Call) bool { return c.TID == last.TID && isUse(c, last) })
	})
	got := map[int][]event.Call{}
	for _, c := range s.finish(t)[from:] {
		got[c.TID] = append(got[c.TID], c)
	}
	named, unnamed := 0, 0
	for tid, mine := range byThread(want) {
		n := 0
		for _, c := range got[tid] {
			if n == len(mine) || !isUse(c, mine[n]) {
				continue
			}
			text := c.Args[0].Text
			if c.Name == "openat" {
				text = c.RetText
			}
			switch _, name, ok := strings.Cut(text, "<"); {
			case !ok:
				unnamed++
			case name != mine[n].Path+">":
				t.Errorf("thread %d, call %d: %+v; it is %q", tid, n, c, mine[n].Path)
			default:
				named++
			}
			n++
		}
		if n < len(mine) {
			t.Errorf("thread %d: call %d of %d, %+v, was not seen", tid, n, len(mine), mine[n])
		}
	}
	t.Logf("%d descriptors with names, %d without", named, unnamed)
	if named < unnamed {
		t.Errorf("%d descriptors with names, %d without", named, unnamed)
	}
}

// isUse reports whether a record is that of a call of a descriptors workload.
func isUse(c event.Call, w wire.SeqCall) bool {
	if c.Name != w.Name || c.Event != event.Joined || len(c.Args) == 0 || c.Ret != w.Ret {
		return false
	}
	for i, a := range c.Args {
		if i >= len(w.Args) || a.Value != w.Args[i] {
			return false
		}
	}
	return c.Name != "openat" || c.Args[1].Text == fmt.Sprintf("%q", w.Path)
}

// testExecArgs checks the arguments of execve.
func testExecArgs(t *testing.T, x *target) {
	vmtest.Spawn(t, x.vm, "getppid", "getppid")
	s := startStream(t, x, &trace.CallsOptions{Names: []string{"execve", "getppid"}})
	s.awaitPlanted(t)
	long := strings.Repeat("long ", 100)
	many := []string{"/bin/busybox", "echo"}
	for i := range 100 {
		many = append(many, fmt.Sprint(i))
	}
	for _, argv := range [][]string{{"/bin/busybox", "echo", "one", "", "t\"wo\n"}, many, {"/bin/busybox", "echo", long}} {
		if _, err := x.vm.Run(t.Context(), argv...); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := x.vm.Run(t.Context(), "/bin/busybox", "sh", "-c", "exec /no/such/program with arguments"); err == nil {
		t.Errorf("the shell ran what is not there: %s", out)
	}
	s.await(t, "the failed execve", func(calls []event.Call) bool {
		return slices.ContainsFunc(calls, func(c event.Call) bool { return c.Name == "execve" && c.Errno == "ENOENT" })
	})
	var got []string
	for _, c := range s.finish(t) {
		if c.Name != "execve" || strings.Contains(c.Args[1].Text, `"sh"`) {
			continue
		}
		var j struct{ Args []struct{ Text string } }
		if err := json.Unmarshal(c.AppendJSON(nil), &j); err != nil || j.Args[1].Text != c.Args[1].Text {
			t.Errorf("JSON has %q, %v", j, err)
		}
		if env := c.Args[2].Text; !strings.HasSuffix(env, " vars */") && !strings.HasSuffix(env, " var */") {
			t.Errorf("environment %q", env)
		}
		got = append(got, fmt.Sprint(c.Args[0].Text, " ", c.Args[1].Text, " = ", c.RetText))
	}
	if len(got) != 4 {
		t.Fatalf("execs: %q", got)
	}
	want := []string{`"/bin/busybox" ["/bin/busybox", "echo", "one", "", "t\"wo\n"] = 0`, got[1], got[2], `"/no/such/program" ["/no/such/program", "with", "arguments"] = -1 ENOENT (No such file or directory)`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("execs (-want +got):\n%s", diff)
	}
	if !strings.HasPrefix(got[1], `"/bin/busybox" ["/bin/busybox", "echo", "0", "1", "2", `) || !strings.HasSuffix(got[1], `"60", "61", ...] = 0`) {
		t.Errorf("100 arguments: %s", got[1])
	}
	if !strings.HasPrefix(got[2], `"/bin/busybox" ["/bin/busybox", "echo", "long long `) || !strings.Contains(got[2], `"...] = 0`) || len(got[2]) < 250 {
		t.Errorf("a long argument: %s", got[2])
	}
}
