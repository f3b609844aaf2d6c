package probe_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/qemu"
)

func TestMain(m *testing.M) {
	if qmp := os.Getenv(traceUntilKilled); qmp != "" {
		os.Exit(childMain(qmp))
	}
	vmtest.Main(m)
}

// trapGuests are the kernels and machines that breakpoints are tried on; the
// environment can narrow them.
func trapGuests() []testvm.Options {
	all := []testvm.Options{
		{Kernel: "6.1-cloud", CPUs: 2, RAM: testvm.SharedMemfd},
		{Kernel: "6.12-cloud"},
		{Kernel: "5.10-cloud", CPUs: 1},
	}
	only := os.Getenv("VITRINE_TEST_KERNELS")
	if only == "" {
		return all
	}
	return slices.DeleteFunc(all, func(o testvm.Options) bool { return !strings.Contains(","+only+",", ","+o.Kernel+",") })
}

// trapSession attaches to a guest and makes a session with breakpoints on it.
func trapSession(t testing.TB, qmp string) (*vitrine.Guest, *probe.Session) {
	t.Helper()
	g, err := qemu.Attach(t.Context(), qmp, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	k, err := kernel.Describe(t.Context(), g, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := probe.New(g, k, &probe.Options{Engine: probe.Trap})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return g, s
}

func mustAdd(t testing.TB, s *probe.Session, probes ...*probe.Probe) {
	t.Helper()
	if _, err := s.AddAll(probes); err != nil {
		t.Fatal(err)
	}
}

// patience bounds what takes a moment on a quiet host, and may take long on a
// busy one.
const patience = 3 * time.Minute

// background runs a session and returns when the guest runs with the probes in.
// The returned function waits for the end and returns Run's error.
func background(t testing.TB, vm *testvm.VM, s *probe.Session) (end func() error) {
	t.Helper()
	n := len(vm.Events(0))
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := vm.AwaitEvent(ctx, n, "RESUME"); err != nil {
		s.Quit()
		t.Fatalf("probes did not go in: %v; Run: %v", err, <-done)
	}
	return func() error {
		t.Helper()
		select {
		case err := <-done:
			return err
		case <-time.After(patience):
			t.Fatalf("Run did not end within %v", patience)
			return nil
		}
	}
}

func TestTrapGuests(t *testing.T) {
	for i, o := range trapGuests() {
		t.Run(o.Kernel, func(t *testing.T) {
			t.Run("pairs", func(t *testing.T) { testTrapPairs(t, &o) })
			if i == 0 { // it takes minutes on 6.12; package trace follows the same sequence there
				t.Run("sequence", func(t *testing.T) { testTrapSequence(t, &o) })
			}
			t.Run("blocked", func(t *testing.T) { testTrapBlocked(t, &o) })
			t.Run("skip", func(t *testing.T) { testTrapSkip(t, &o) })
			t.Run("ends", func(t *testing.T) { testTrapEnds(t, &o) })
		})
	}
}

// spawn starts a workload that the test itself ends, by Quiet.
func spawn(t testing.TB, vm *testvm.VM, kind, name string) {
	t.Helper()
	if _, err := vm.Spawn(t.Context(), kind, name); err != nil {
		t.Fatal(err)
	}
}

// callValue goes from an entry to its return.
type callValue struct {
	fn  string
	tid int
	sp  uint64
}

// testTrapPairs traces under load: threads fork, execute, open and exit on all
// processors. Every return must belong to its entry, and the guest must be as
// it was, and as fast, afterwards.
func testTrapPairs(t *testing.T, o *testvm.Options) {
	vm := vmtest.Shared(t, o)
	_, s := trapSession(t, vm.QMP)
	text := vmtest.SnapshotText(t, vm)
	spawn(t, vm, "load", "load")
	before := vmtest.Rate(t, vm, "load", 2*time.Second)
	returned, never := 0, 0
	least := max(trapTime, streamTime(t))
	var began time.Time
	add := func(names ...string) {
		for _, n := range names {
			if _, err := s.Kernel().Symbol(n); err != nil {
				continue // do_filp_open's callers differ between kernels
			}
			mustAdd(t, s, &probe.Probe{Func: n,
				Enter: func(h *probe.Hit) any {
					if strings.Contains(h.Func, "exit") {
						never++
					}
					r, _ := h.Registers()
					return callValue{h.Func, h.Thread.TID, r.RSP}
				},
				Return: func(h *probe.Hit, v any) {
					r, _ := h.Registers()
					if got, ok := v.(callValue); !ok || got != (callValue{h.Func, h.Thread.TID, r.RSP}) {
						t.Errorf("return of thread %d from %s (sp %#x) got %+v", h.Thread.TID, h.Func, r.RSP, v)
					}
					if returned++; returned >= trapReturns && time.Since(began) > least {
						s.Quit()
					}
				}})
		}
	}
	add("__x64_sys_openat", "__x64_sys_close", "__x64_sys_execve", "__x64_sys_wait4", "__x64_sys_exit_group",
		"__x64_sys_clone", "do_filp_open", "kernel_clone", "do_exit", "begin_new_exec", "wake_up_new_task", "__x64_sys_mmap", "vm_mmap_pgoff", "handle_mm_fault")
	ctx, cancel := context.WithTimeout(t.Context(), least+patience)
	defer cancel()
	began = time.Now()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	st := s.Stats()
	t.Logf("%+v", st)
	if returned == 0 || uint64(returned) != st.Returns || st.Entries != st.Returns+st.Unreturned || st.Lost != 0 {
		t.Errorf("%d returns seen; %+v", returned, st)
	}
	// Under way at the end: at most what each thread had open.
	if open := int(st.Unreturned) - never; open > 40 {
		t.Errorf("%d calls did not return, %d of them never could", st.Unreturned, never)
	}
	vmtest.Healthy(t, vm)
	backToSpeed(t, vm, before)
	if err := vm.Quiet(t.Context()); err != nil {
		t.Fatal(err)
	}
	text.Unchanged(t)
}

// trapTime and trapReturns are for how long a loaded guest is traced at least
// (longer with VITRINE_TEST_STREAM), and how many returns that must have given.
const (
	trapTime    = 5 * time.Second
	trapReturns = 20
)

// backToSpeed waits until the guest's load goes about as fast as before. A guest
// that a debugger still steps is slower by far more than the factor; the host may
// have other things to do now.
func backToSpeed(t *testing.T, vm *testvm.VM, before float64) {
	t.Helper()
	after := 0.0
	for began := time.Now(); time.Since(began) < patience; {
		if after = vmtest.Rate(t, vm, "load", 2*time.Second); after >= before/4 {
			return
		}
	}
	t.Errorf("the guest does %.0f rounds a second after the trace, did %.0f before", after, before)
}

// testTrapSequence compares what is seen with what two threads say they did,
// while others keep the processors busy.
func testTrapSequence(t *testing.T, o *testvm.Options) {
	vm := vmtest.Shared(t, o)
	_, s := trapSession(t, vm.QMP)
	sequence := vmtest.Spawn(t, vm, "sequence", "seq", "2", "3")
	vmtest.Spawn(t, vm, "fork", "fork", "3")
	w := &watcher{tids: map[int]bool{}, calls: map[int][]*seenCall{}}
	for _, tid := range sequence.TIDs {
		w.tids[tid] = true
	}
	for name, path := range map[string]int{"openat": 1, "write": 0, "lseek": 0, "close": 0, "unlinkat": 1} {
		mustAdd(t, s, &probe.Probe{
			Func: "__x64_sys_" + name, User: probe.UserRegs64, Filter: &probe.Filter{PIDs: []int{sequence.PID}},
			Enter: func(h *probe.Hit) any {
				v := w.enter(h, name, 0)
				if c, ok := v.(*seenCall); ok && path != 0 {
					// Memory that the thread has just written is there.
					c.path, _ = h.Process().ReadString(arch.GVA(c.args[path]), 4096)
				}
				return v
			},
			Return: w.leave,
		})
	}
	end := background(t, vm, s)
	want, err := vm.Sequence(t.Context(), "seq")
	if err != nil {
		t.Fatal(err)
	}
	s.Quit()
	if err := end(); err != nil {
		t.Fatal(err)
	}
	checkSequence(t, want, w.calls)
	vmtest.Healthy(t, vm)
}

// testTrapBlocked has a thread wait in a call while others come and go.
func testTrapBlocked(t *testing.T, o *testvm.Options) {
	vm := vmtest.Shared(t, o)
	_, s := trapSession(t, vm.QMP)
	blocked := vmtest.Spawn(t, vm, "blocked", "blocked")
	awaitRead(t, vm, blocked.PID)
	var got []int64
	values := 0
	mustAdd(t, s, &probe.Probe{Func: "__x64_sys_read", Filter: &probe.Filter{PIDs: []int{blocked.PID}},
		Enter: func(h *probe.Hit) any { values++; return values },
		Return: func(h *probe.Hit, v any) {
			if v != values {
				t.Errorf("return got %v, want %d", v, values)
			}
			const restart = -512 // ERESTARTSYS: a signal came, the call will be made again
			if r := int64(h.Result()); r != restart {
				got = append(got, r)
			}
		}})
	end := background(t, vm, s)
	for _, line := range []string{"a", "four", "123456789"} {
		var n int
		if err := vm.Tell(t.Context(), "blocked", line, &n); err != nil || n != len(line)+1 {
			t.Errorf("tell: %d, %v", n, err)
		}
	}
	s.Quit()
	if err := end(); err != nil {
		t.Fatal(err)
	}
	// The first read began before the trace: nobody may be told of its return.
	if want := []int64{5, 10}; !slices.Equal(got, want) {
		t.Errorf("reads returned %v, want %v", got, want)
	}
	if st := s.Stats(); st.Unreturned != 1 {
		t.Errorf("%d calls under way at the end, want the one read: %+v", st.Unreturned, st)
	}
}

// awaitRead waits until a thread of a process is in read(2) of standard input.
func awaitRead(t *testing.T, vm *testvm.VM, pid int) {
	t.Helper()
	var now []byte
	for began := time.Now(); time.Since(began) < patience; time.Sleep(20 * time.Millisecond) {
		var err error
		if now, err = vm.Run(t.Context(), "sh", "-c", fmt.Sprintf("cat /proc/%d/task/*/syscall", pid)); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(now)) {
			if strings.HasPrefix(line, "0 0x0 ") {
				return
			}
		}
	}
	t.Fatalf("no thread of %d waits in read: %s", pid, now)
}

// testTrapSkip answers calls in the kernel's place, and changes results.
func testTrapSkip(t *testing.T, o *testvm.Options) {
	vm := vmtest.Shared(t, o)
	_, s := trapSession(t, vm.QMP)
	seq := vmtest.Spawn(t, vm, "sequence", "seq", "1", "4")
	mine := &probe.Filter{PIDs: []int{seq.PID}}
	mustAdd(t, s,
		&probe.Probe{Func: "__x64_sys_unlinkat", Filter: mine, Enter: func(h *probe.Hit) any {
			if err := h.SkipWith(uint64(0xffffffffffffffff)); err != nil {
				t.Error(err)
			}
			return nil
		}, Return: func(*probe.Hit, any) { t.Error("return of a skipped call") }},
		&probe.Probe{Func: "__x64_sys_lseek", Filter: mine, Return: func(h *probe.Hit, _ any) {
			if err := h.SetResult(1000 + h.Result()); err != nil {
				t.Error(err)
			}
		}})
	end := background(t, vm, s)
	calls, err := vm.Sequence(t.Context(), "seq")
	if err != nil {
		t.Fatal(err)
	}
	s.Quit()
	if err := end(); err != nil {
		t.Fatal(err)
	}
	seeks := int64(0)
	for _, c := range calls {
		switch {
		case c.Name == "unlinkat" && c.Ret != -1:
			t.Errorf("the guest saw unlinkat return %d, want -1", c.Ret)
		case c.Name == "lseek" && c.Ret != 1000+seeks:
			t.Errorf("the guest saw lseek return %d, want %d", c.Ret, 1000+seeks)
		case c.Name == "lseek":
			seeks++
		}
	}
	if seeks != 4 {
		t.Errorf("%d calls of lseek", seeks)
	}
	vmtest.Healthy(t, vm)
}

// testTrapEnds goes through the ways in which a run ends.
func testTrapEnds(t *testing.T, o *testvm.Options) {
	vm := vmtest.Shared(t, o)
	_, s := trapSession(t, vm.QMP)
	text := vmtest.SnapshotText(t, vm)
	never := &probe.Probe{Func: "__x64_sys_reboot", Enter: func(*probe.Hit) any { return nil }}
	mustAdd(t, s, never)

	end := background(t, vm, s) // at once, without a hit
	at := time.Now()
	s.Quit()
	if err := end(); err != nil {
		t.Errorf("Run after Quit: %v", err)
	}
	if d := time.Since(at); d > 30*time.Second { // a moment; nobody is to wait for a hit that never comes
		t.Errorf("Quit took %v", d)
	}
	vmtest.Healthy(t, vm)

	spawn(t, vm, "getppid", "gp") // a panic, with calls under way
	var calls atomic.Int64
	p, err := s.Add(&probe.Probe{Func: "__x64_sys_getppid",
		Enter:  func(*probe.Hit) any { return calls.Add(1) },
		Return: func(*probe.Hit, any) { panicAt(calls.Load(), 3) }})
	if err != nil {
		t.Fatal(err)
	}
	var pe *probe.PanicError
	if err := s.Run(t.Context()); !errors.As(err, &pe) || pe.Func != "__x64_sys_getppid" {
		t.Errorf("Run = %v, want the callback's panic", err)
	}
	vmtest.Healthy(t, vm)
	if err := p.Remove(); err != nil {
		t.Error(err)
	}

	end = background(t, vm, s) // somebody pauses the guest
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := end(); !errors.Is(err, vitrine.ErrPaused) {
		t.Errorf("Run of a guest that was paused = %v", err)
	}
	if running, err := vm.Running(t.Context()); err != nil || running {
		t.Errorf("the guest that somebody paused runs: %v, %v", running, err)
	}
	if err := vm.Cont(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := vm.Quiet(t.Context()); err != nil {
		t.Fatal(err)
	}
	text.Unchanged(t)
	vmtest.Healthy(t, vm)
}

func panicAt(n, at int64) {
	if n >= at {
		panic("enough")
	}
}
