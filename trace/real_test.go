package trace_test

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

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	_ "github.com/vitrine-vmi/vitrine/osi/linux"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/qemu"
	"github.com/vitrine-vmi/vitrine/syscalls"
	"github.com/vitrine-vmi/vitrine/trace"
)

func TestMain(m *testing.M) { vmtest.Main(m) }

// patience is how long a test waits for what it needs: a host five times as slow as usual has to do it.
const patience = 4 * time.Minute

// guests are the kernels and machines that tracing is tried on: one with a
// dispatcher of system calls, one without, and with different clocks. The
// environment can narrow them.
func guests() []testvm.Options {
	all := []testvm.Options{
		{Kernel: "6.1-cloud", CPUs: 2, RAM: testvm.SharedMemfd, Also32: true},
		{Kernel: "6.12-cloud", Also32: os.Getenv("VITRINE_TEST_TRACE") == "all", Cmdline: "clocksource=tsc tsc=reliable"}, {Kernel: "5.10-cloud", Cmdline: "clocksource=hpet"},
		{Kernel: "6.1-cloud-arm64", CPUs: 2}}
	if os.Getenv("VITRINE_TEST_ARM64") != "" {
		all = append(all, arm64Guests...)
	}
	if os.Getenv("VITRINE_TEST_I386") != "" {
		all = append(all, i386Guests...)
	}
	only := os.Getenv("VITRINE_TEST_KERNELS")
	if only == "" {
		return all
	}
	return slices.DeleteFunc(all, func(o testvm.Options) bool { return !strings.Contains(","+only+",", ","+o.Kernel+",") })
}

// arm64Guests are the others of arm64, which has no implants.
var arm64Guests = []testvm.Options{
	{Kernel: "6.12-cloud-arm64", CPUs: 2, CPU: "max,pauth-impdef=on"}, // 52 bits of address, landing pads
}

// i386Guests have no implants either, nor types of their own.
var i386Guests = []testvm.Options{{Kernel: "6.1-686-pae", CPUs: 2}}

// target is a guest that has been understood.
type target struct {
	vm  *testvm.VM
	g   *vitrine.Guest
	k   *kernel.Kernel
	sys osi.System
}

// function returns the kernel function of a system call.
func (x *target) function(call string) string {
	switch x.k.Arch() {
	case arch.ARM64:
		return "__arm64_sys_" + call
	case arch.I386:
		return "__ia32_sys_" + call
	}
	return "__x64_sys_" + call
}

func attach(t testing.TB, vm *testvm.VM) *target {
	t.Helper()
	x := &target{vm: vm}
	var err error
	if x.g, err = qemu.Attach(t.Context(), vm.QMP, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.g.Close() })
	if x.k, err = kernel.Describe(t.Context(), x.g, &kernel.Options{Symbols: vm.Kernel.Symbols()}); err != nil {
		t.Fatal(err)
	}
	if x.sys, err = osi.Open(t.Context(), x.g, x.k, nil); err != nil {
		t.Fatal(err)
	}
	return x
}

// inBackground calls run and returns when the guest runs with the probes in.
// The returned function ends it and returns its error.
func inBackground(t testing.TB, vm *testvm.VM, run func(context.Context) error) (end func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	n := len(vm.Events(0))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	wait, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	if _, err := vm.AwaitEvent(wait, n, "RESUME"); err != nil {
		cancel()
		t.Fatalf("probes did not go in: %v; run: %v", err, <-done)
	}
	return func() error { cancel(); return <-done }
}

func TestGuests(t *testing.T) {
	for i, o := range guests() {
		t.Run(o.Kernel, func(t *testing.T) {
			vm := vmtest.Shared(t, &o)
			x := attach(t, vm)
			if x.k.Arch() == arch.AMD64 {
				t.Run("implant", func(t *testing.T) { testImplant(t, x) })
			}
			if x.k.Arch() == arch.I386 || x.vm.Options.Also32 && (i == 0 || os.Getenv("VITRINE_TEST_TRACE") == "all") {
				t.Run("ia32", func(t *testing.T) { testIA32(t, x) })
			}
			if x.k.Arch() == arch.I386 { // no BTF: it takes a profile
				t.Run("loop alone", func(t *testing.T) { testLoopAlone(t, x) })
			}
			t.Run("calls", func(t *testing.T) { testCalls(t, x) })
			if x.g.Arch() != arch.ARM64 || os.Getenv("VITRINE_TEST_ARM64") != "" {
				t.Run("all", func(t *testing.T) { testAll(t, x) })
			}
			t.Run("loop auto", func(t *testing.T) { testLoop(t, x, probe.Auto) })
			if i > 0 && os.Getenv("VITRINE_TEST_TRACE") != "all" { // the rest does not depend on the kernel
				return
			}
			t.Run("limits", func(t *testing.T) { testLimits(t, x) })
			t.Run("family", func(t *testing.T) { testFamily(t, x) })
			t.Run("loop trap", func(t *testing.T) { testLoop(t, x, probe.Trap) })
			for _, engine := range []probe.Engine{probe.Trap, probe.Auto} {
				t.Run("names "+string(engine), func(t *testing.T) { testNames(t, x, engine) })
			}
		})
	}
}

// testCalls traces the calls of a process whose threads say what they do, and
// compares every one of them.
func testCalls(t *testing.T, x *target) {
	names := []string{"openat", "write", "lseek", "close", "unlinkat"}
	vmtest.Spawn(t, x.vm, "fork", "noise", "3")
	seq := vmtest.Spawn(t, x.vm, "sequence", "seq", "2", "2")
	got := map[int][]event.Call{}
	var stats *event.Stats
	next := uint64(0)
	end := inBackground(t, x.vm, func(ctx context.Context) (err error) {
		stats, err = trace.Calls(ctx, x.g, x.k, x.sys, &trace.CallsOptions{Names: names, PIDs: []int{seq.PID}, Engine: "trap"}, func(c *event.Call) error {
			if c.PID != seq.PID || c.Comm != "w-sequence" || c.PPID != 1 || c.Seq != next {
				t.Errorf("record %d of another process: %+v", next, c)
			}
			next++
			got[c.TID] = append(got[c.TID], *c)
			return nil
		})
		return err
	})
	want, err := x.vm.Sequence(t.Context(), "seq")
	if err != nil {
		t.Fatal(err)
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	for tid, calls := range got { // a thread is in one call at a time
		for i := 1; i < len(calls); i++ {
			if p, c := calls[i-1], calls[i]; p.Event == event.Joined && c.Time.Before(p.Time.Add(p.Duration)) {
				t.Errorf("thread %d: a call begins in another:\n%+v\n%+v", tid, p, c)
			}
		}
	}
	at := map[int]int{}
	for i, w := range want {
		n := at[w.TID] + slices.IndexFunc(got[w.TID][at[w.TID]:], func(c event.Call) bool { return isCall(c, w) })
		if n < at[w.TID] {
			t.Fatalf("call %d, %+v, was not seen among the thread's %d calls after %d", i, w, len(got[w.TID]), at[w.TID])
		}
		at[w.TID] = n + 1
		checkCall(t, x, got[w.TID][n], w)
	}
	if stats.Events != next || stats.Lost != 0 || stats.Engine != "trap" || stats.Delivery != "sync" || stats.GuestStopped <= 0 || stats.PerFunc[x.function("openat")] < uint64(len(want)/3) {
		t.Errorf("stats %+v after %d records", stats, next)
	}
	vmtest.Healthy(t, x.vm)
}

// testAll traces all calls of a process, which go through the kernel's one
// dispatcher where it has one, while another makes calls that are not wanted.
func testAll(t *testing.T, x *target) {
	opens := vmtest.Spawn(t, x.vm, "open", "opens")
	vmtest.Spawn(t, x.vm, "getppid", "other", "20")
	seen, closed := 0, 0
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	st, err := trace.Calls(ctx, x.g, x.k, x.sys, &trace.CallsOptions{PIDs: []int{opens.PID}, Engine: "trap"}, func(c *event.Call) error {
		// On 32-bit x86 some functions are called otherwise: clock_gettime32.
		if c.PID != opens.PID || c.Func != x.function(c.Name) && (x.k.Arch() != arch.I386 || !strings.HasPrefix(c.Func, x.function(""))) {
			t.Errorf("record %+v", c)
		}
		switch {
		case c.Event != event.Joined:
		case c.Name == "openat" && c.Args[1].Text == `"/etc/hostname"`:
			seen++
			if c.RetText != fmt.Sprintf("%d</etc/hostname>", c.Ret) || c.Args[2].Text != "O_RDONLY|O_CLOEXEC" {
				t.Errorf("openat: %+v", c)
			}
		case c.Name == "close":
			closed++
			if c.Ret != 0 || c.Args[0].Text != fmt.Sprintf("%d</etc/hostname>", c.Args[0].Value) {
				t.Errorf("close: %+v", c)
			}
		}
		if seen >= 3 && closed >= 3 {
			cancel() // which may be a few calls later
		}
		return nil
	})
	if err != nil || seen < 3 || closed < 3 || st.Events == 0 || st.PerFunc[x.function("openat")] < uint64(seen) {
		t.Errorf("%d calls of openat; %+v, %v", seen, st, err)
	}
	vmtest.Healthy(t, x.vm)
}

func isCall(c event.Call, w wire.SeqCall) bool {
	if c.Name != w.Name || c.Event != event.Joined || len(c.Args) == 0 || len(c.Args) > len(w.Args) {
		return false
	}
	for i, a := range c.Args {
		if a.Value != w.Args[i] {
			return false
		}
	}
	return w.Path == "" || c.Args[1].Text == fmt.Sprintf("%q", w.Path)
}

// checkCall checks the rest of a record.
func checkCall(t *testing.T, x *target, c event.Call, w wire.SeqCall) {
	t.Helper()
	errno := ""
	if w.Ret < 0 {
		errno = syscalls.Errno(-w.Ret)
	}
	switch {
	case c.Ret != w.Ret || c.Errno != errno || c.Func != x.function(w.Name) || c.Duration < 0 || c.Duration == 0 && x.g.Arch() != arch.ARM64: // whose machine has no timer to go by
		t.Errorf("%+v; the guest says %+v", c, w)
	case w.Name == "openat" && w.Ret >= 0 && c.RetText != fmt.Sprintf("%d<%s>", w.Ret, w.Path):
		t.Errorf("openat of %s returned %q", w.Path, c.RetText)
	case w.Name == "close" && !strings.HasPrefix(c.Args[0].Text, fmt.Sprintf("%d</tmp/seq/t", w.Args[0])):
		t.Errorf("close of %q", c.Args[0].Text)
	case w.Name == "openat" && c.Args[0].Text != "AT_FDCWD</>":
		t.Errorf("openat at %q", c.Args[0].Text)
	}
}

// testLimits checks count, duration, separate records, and an emit that fails.
func testLimits(t *testing.T, x *target) {
	vmtest.Spawn(t, x.vm, "open", "opens")
	var got []event.Call
	keep := func(c *event.Call) error { got = append(got, *c); return nil }
	run := func(o *trace.CallsOptions, emit func(*event.Call) error) (*event.Stats, error) {
		got = nil
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		o.Engine, o.Comms = "trap", []string{"w-open"}
		return trace.Calls(ctx, x.g, x.k, x.sys, o, emit)
	}
	if st, err := run(&trace.CallsOptions{Names: []string{"openat", "close"}, Ignore: []string{"close"}, Count: 3}, keep); err != nil || st.Events != 3 || len(got) != 3 {
		t.Errorf("Count 3: %+v, %v, %d records", st, err, len(got))
	}
	for _, c := range got {
		if c.Name != "openat" {
			t.Errorf("call %s in spite of the set", c.Name)
		}
	}
	if _, err := run(&trace.CallsOptions{Names: []string{"openat"}, Separate: true, Count: 4}, keep); err != nil || len(got) != 4 ||
		got[0].Event != event.Enter || got[1].Event != event.Return || got[0].RetText != "" || got[1].Duration <= 0 {
		t.Errorf("separate: %v, %+v", err, got)
	}
	bad := errors.New("bad")
	if _, err := run(&trace.CallsOptions{}, func(*event.Call) error { return bad }); !errors.Is(err, bad) {
		t.Errorf("failing emit: %v", err)
	}
	if st, err := run(&trace.CallsOptions{Names: []string{"reboot"}, Duration: time.Millisecond}, keep); err != nil || st.Events != 0 || st.Engine != "trap" {
		t.Errorf("Duration: %+v, %v", st, err) // it counts from when the probes are in
	}
	if _, err := run(&trace.CallsOptions{Names: []string{"opnat"}, Ignore: []string{"nothing_such"}}, keep); !errors.Is(err, trace.ErrUnknownCall) ||
		!strings.Contains(err.Error(), "opnat") || !strings.Contains(err.Error(), "nothing_such") {
		t.Errorf("unknown names: %v", err)
	}
	if _, err := run(&trace.CallsOptions{Names: []string{"openat"}, Ignore: []string{"openat"}}, keep); err == nil {
		t.Error("nothing left to trace is no error")
	}
	vmtest.Healthy(t, x.vm)
}

// testFamily follows a process's children, and nobody else's.
func testFamily(t *testing.T, x *target) {
	parent := vmtest.Spawn(t, x.vm, "fork", "parent", "10")
	vmtest.Spawn(t, x.vm, "fork", "other", "10")
	exits := 0
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := trace.Calls(ctx, x.g, x.k, x.sys, &trace.CallsOptions{Names: []string{"exit_group", "exit", "wait4"}, PIDs: []int{parent.PID}, Follow: true, Engine: "trap", Count: 8},
		func(c *event.Call) error {
			if c.PID != parent.PID && c.PPID != parent.PID {
				t.Errorf("call of process %d, child of %d; following %d", c.PID, c.PPID, parent.PID)
			}
			if c.Name != "wait4" {
				exits++
				if c.Event != event.Enter || c.PPID != parent.PID {
					t.Errorf("exit of a child: %+v", c)
				}
			}
			return nil
		})
	if err != nil || exits == 0 {
		t.Errorf("%d children ended, %v", exits, err)
	}
	vmtest.Healthy(t, x.vm)
}

// testLoop checks what handlers are given, and that they run in order and again.
func testLoop(t *testing.T, x *target, engine probe.Engine) {
	seq := vmtest.Spawn(t, x.vm, "sequence", "seq", "1", "2")
	loop, err := trace.New(x.g, x.k, x.sys, &trace.Options{Engine: engine})
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	if loop.OSType() != trace.Linux || loop.GuestName() != x.vm.Name || loop.Guest() != x.g || loop.Kernel() != x.k {
		t.Errorf("loop of %v %q", loop.OSType(), loop.GuestName())
	}
	var log []string
	handler := func(name string) (trace.CallFunc, trace.ReturnFunc) {
		return func(e *trace.Event) any {
				if e.PID() != seq.PID {
					return nil
				}
				checkEvent(t, loop, e)
				path, err := e.String(arch.GVA(e.Arg(1)), 4096)
				if err != nil {
					t.Error(err)
				}
				return name + " " + path
			}, func(e *trace.Event, v any) {
				if e.PID() == seq.PID {
					log = append(log, fmt.Sprint(v, " = ", e.Result(), " ", e.Arg(2)))
				}
			}
	}
	for _, name := range []string{"sys_openat", "openat", x.function("openat")} {
		call, ret := handler(name)
		if err := loop.Handle(name, call, ret); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		log = nil
		end := inBackground(t, x.vm, loop.Run)
		calls, err := x.vm.Sequence(t.Context(), "seq")
		if err != nil {
			t.Fatal(err)
		}
		loop.Quit()
		if err := end(); err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, c := range calls {
			for _, name := range []string{"sys_openat ", "openat ", x.function("openat") + " "} {
				if c.Name == "openat" {
					want = append(want, fmt.Sprint(name, c.Path, " = ", c.Ret, " ", c.Args[2]))
				}
			}
		}
		if diff := cmp.Diff(want, log); diff != "" || len(want) != 12 {
			t.Errorf("handlers saw (-truth +seen):\n%s", diff)
		}
	}
	if loop.Count() < 8 || loop.Stats().PerFunc[x.function("openat")] != loop.Count() {
		t.Errorf("count %d, stats %+v", loop.Count(), loop.Stats())
	}
	vmtest.Healthy(t, x.vm)
}

// checkEvent checks what an entry into openat tells.
func checkEvent(t *testing.T, loop *trace.Loop, e *trace.Event) {
	t.Helper()
	name, abi := "RIP", loop.Kernel().Arch()
	if abi == arch.ARM64 {
		name = "PC"
	}
	rip, err := e.Register(name)
	if sym, ok := loop.Kernel().SymbolAt(arch.GVA(rip)); err != nil || !ok || sym.Name != e.Func && sym.Addr != mustSymbol(t, loop, e.Func) {
		t.Errorf("rip %#x is in %q, %v; want %s", rip, sym.Name, err, e.Func)
	}
	if _, err := e.Register("nothing"); err == nil {
		t.Error("there is a register named nothing")
	}
	if e.Name != "openat" || e.ABI != abi || e.Comm() != "w-sequence" || e.PPID() != 1 || e.UID() != 0 || e.TID() == 0 || e.PageSize() != 4096 || e.Loop() != loop {
		t.Errorf("event %+v", e)
	}
	cwd, err := e.Path(syscalls.AtFDCWD)
	if err != nil || cwd != "/" {
		t.Errorf("working directory %q, %v", cwd, err)
	}
	b, err := e.Bytes(arch.GVA(e.Arg(1)), 9)
	if err != nil || string(b) != "/tmp/seq/" {
		t.Errorf("bytes %q, %v", b, err)
	}
	n, err := e.Uint32(arch.GVA(e.Arg(1)))
	if err != nil || n != 0x706d742f { // "/tmp"
		t.Errorf("number %#x, %v", n, err)
	}
	if b, err := e.Bytes(0x10, 8); err == nil || len(b) != 0 {
		t.Errorf("read %x of what is not mapped", b)
	}
}

func mustSymbol(t *testing.T, loop *trace.Loop, name string) arch.GVA {
	t.Helper()
	s, err := loop.Kernel().Symbol(name)
	if err != nil {
		t.Fatal(err)
	}
	return s.Addr
}

// testNames checks what a table with unknown names does, and reads argv.
func testNames(t *testing.T, x *target, engine probe.Engine) {
	loop, err := trace.New(x.g, x.k, x.sys, &trace.Options{Engine: engine})
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	var argv []string
	err = loop.HandleAll([]trace.Handler{
		{Name: "sys_opnat"},
		{Name: "sys_execve", OnCall: func(e *trace.Event) any {
			path, err := e.String(arch.GVA(e.Arg(0)), 4096)
			if err != nil || !strings.HasSuffix(path, "busybox") {
				return nil
			}
			if argv, err = e.Argv(arch.GVA(e.Arg(1))); err != nil {
				t.Errorf("argv %q, %v", argv, err)
			}
			e.Loop().Quit()
			return nil
		}},
		{Name: "no_such_function"},
	})
	if !errors.Is(err, trace.ErrUnknownCall) || !strings.Contains(err.Error(), "sys_opnat") || !strings.Contains(err.Error(), "no_such_function") {
		t.Errorf("HandleAll = %v", err)
	}
	end := inBackground(t, x.vm, loop.Run)
	want := []string{"/bin/busybox", "echo"}
	for i := range 40 {
		want = append(want, fmt.Sprint("argument ", i))
	}
	if _, err := x.vm.Run(t.Context(), want...); err != nil {
		t.Fatal(err)
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, argv); diff != "" {
		t.Errorf("argv (-want +got):\n%s", diff)
	}
	vmtest.Healthy(t, x.vm)
}

// newLoop attaches to a guest and returns a loop that does not know it yet.
func newLoop(t *testing.T, vm *testvm.VM) *trace.Loop {
	t.Helper()
	g, err := qemu.Attach(t.Context(), vm.QMP, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	loop, err := trace.New(g, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { loop.Close() })
	return loop
}

// testLoopAlone has a loop describe the guest by itself.
func testLoopAlone(t *testing.T, x *target) {
	vmtest.Spawn(t, x.vm, "getppid", "alone")
	loop, err := trace.New(x.g, nil, nil, &trace.Options{Symbols: x.vm.Kernel.Symbols()})
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	err = loop.Handle("getppid", func(e *trace.Event) any {
		if e.Comm() == "w-getppid" {
			e.Loop().Quit()
		}
		return nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := loop.Run(ctx); err != nil || ctx.Err() != nil || loop.OSType() != trace.Linux {
		t.Errorf("%v, %v; a guest of %v", err, ctx.Err(), loop.OSType())
	}
}

// A loop is given a guest that is only just starting. After a reset the kernel lies elsewhere: the same loop finds it
// again, and calls the handlers that it had.
func TestLoopOfAGuestThatBoots(t *testing.T) {
	vm := vmtest.Start(t, &testvm.Options{Kernel: "6.1-cloud"})
	loop := newLoop(t, vm)
	if loop.OSType() != trace.Unknown || loop.Count() != 0 {
		t.Errorf("%v before it runs", loop.OSType())
	}
	seen := make(chan struct{}, 1)
	var once atomic.Bool
	calls := 0
	err := loop.Handle("execve", func(e *trace.Event) any {
		select {
		case seen <- struct{}{}:
		default:
		}
		if once.Load() {
			calls++
			e.Loop().Quit()
		}
		return nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	round := func(end func()) error {
		done := make(chan error, 1)
		go func() { done <- loop.Run(ctx) }()
		if err := vm.AwaitBoot(ctx); err != nil {
			t.Fatal(err)
		}
		for {
			select {
			case err := <-done:
				if len(seen) == 0 {
					t.Fatalf("Run = %v before anything was seen", err)
				}
				return err
			case <-seen:
				end()
				return <-done
			default:
				if _, err := vm.Run(ctx, "/bin/busybox", "true"); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	err = round(func() {
		if _, err := vm.HMP(ctx, "system_reset"); err != nil {
			t.Error(err)
		}
	})
	before := loop.Count()
	if !errors.Is(err, vitrine.ErrReset) || loop.OSType() != trace.Unknown || before == 0 {
		t.Fatalf("Run of a guest that is reset = %v, then %v, %d calls", err, loop.OSType(), before)
	}
	select {
	case <-seen: // of before the reset
	default:
	}
	once.Store(true)
	if err := round(func() {}); err != nil || loop.OSType() != trace.Linux || loop.Count() != before+1 || calls != 1 {
		t.Errorf("Run after the reset = %v, %v, %d calls after %d, and %d when told to quit", err, loop.OSType(), loop.Count(), before, calls)
	}
	vmtest.Healthy(t, vm)
}
