package testvm_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
)

func TestMain(m *testing.M) { vmtest.Main(m) }

func TestHello(t *testing.T) {
	vm := vmtest.Shared(t, nil)
	if vm.Hello.Release != vm.Kernel.Release {
		t.Errorf("guest runs %q, want the kernel %q", vm.Hello.Release, vm.Kernel.Release)
	}
	if vm.Hello.CPUs != 1 {
		t.Errorf("guest has %d CPUs, want 1", vm.Hello.CPUs)
	}
	for _, m := range []string{"fat", "vfat", "loop"} {
		if !slices.Contains(vm.Hello.Modules, m) {
			t.Errorf("module %s is not loaded: %q", m, vm.Hello.Modules)
		}
	}
	if strings.Contains(vm.Hello.Cmdline, "nokaslr") {
		t.Errorf("KASLR is off: %s", vm.Hello.Cmdline)
	}
	vmtest.Healthy(t, vm)
}

// A shared guest waits, paused, while a test has another one, and goes on where it was.
func TestSharedGuestsWaitForTheirTurn(t *testing.T) {
	running := func(vm *testvm.VM) bool {
		t.Helper()
		r, err := vm.Running(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := vmtest.Shared(t, nil)
	if _, err := first.Spawn(t.Context(), "sleeper", "left over"); err != nil {
		t.Fatal(err)
	}
	second := vmtest.Shared(t, &testvm.Options{Firmware: true, Memory: 64})
	if running(first) || !running(second) {
		t.Errorf("the first guest runs: %v, the second: %v", running(first), running(second))
	}
	if again := vmtest.Shared(t, &testvm.Options{}); again != first || !running(first) || running(second) {
		t.Errorf("the first guest is another one: %v, runs: %v, the second: %v", again != first, running(first), running(second))
	}
	if err := first.Kill(t.Context(), "left over"); err == nil {
		t.Error("a workload outlived its test")
	}
	vmtest.Healthy(t, first)
}

// A guest whose kernel has died, or that a failed test has used, is not handed out again.
func TestSharedGuestsThatDiedAreReplaced(t *testing.T) {
	first := vmtest.Shared(t, nil)
	// The line's answer may not come any more: the kernel dies of it.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, _ = first.Run(ctx, "sh", "-c", "echo c > /proc/sysrq-trigger")
	for end := time.Now().Add(time.Minute); !strings.Contains(first.Console(), "Kernel panic"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the kernel did not panic within a minute: %s", first.Console())
		}
	}
	if running, err := first.Running(t.Context()); err != nil || !running {
		t.Errorf("the processor of a guest that has panicked runs: %v, %v", running, err)
	}
	second := vmtest.Shared(t, nil)
	if second == first {
		t.Fatal("the guest was handed out again after its kernel's panic")
	}
	vmtest.Healthy(t, second)
}

// The line must carry what a truth of thousands of processes needs, unharmed.
func TestLineCarriesBigReplies(t *testing.T) {
	vm := vmtest.Shared(t, nil)
	ctx := t.Context()
	if _, err := vm.Run(ctx, "dd", "if=/dev/urandom", "of=/tmp/noise", "bs=1M", "count=1"); err != nil {
		t.Fatal(err)
	}
	sum, err := vm.Run(ctx, "sha256sum", "/tmp/noise")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	noise, err := vm.ReadFile(ctx, "/tmp/noise")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.0f KiB/s", float64(len(noise))/1024/time.Since(begin).Seconds())
	if got := sha256Hex(noise); !strings.HasPrefix(string(sum), got) {
		t.Errorf("file arrived with sum %s, guest says %s", got, sum)
	}
}

func TestTruthOfKnownProcess(t *testing.T) {
	vm := vmtest.Shared(t, nil)
	name := []byte("odd) name (1")
	s := vmtest.SpawnWith(t, vm, wire.SpawnArgs{
		Kind: "program", Name: "tail", Path: "/usr/bin/tail", Argv: []wire.Text{name, []byte("-f"), []byte("/etc/hostname"), {0xff, 0xfe}},
		Dir: "/tmp", UID: 1234, GID: 99,
	})
	p := vmtest.Truth(t, vm, s.PID).Find(s.PID)
	if p == nil {
		t.Fatalf("no pid %d in truth", s.PID)
	}
	vmtest.Equal(t, "argv", p.Args(), []string{string(name), "-f", "/etc/hostname", "\xff\xfe"})
	if p.Comm() != "tail" || string(p.Exe) != "/usr/bin/tail" || string(p.Cwd) != "/tmp" || p.PPID() != 1 || p.UID() != 1234 || p.GID() != 99 || !p.Stable || p.KThread() {
		t.Errorf("truth of tail: comm %q exe %q cwd %q ppid %d uid %d gid %d stable %v kthread %v", p.Comm(), p.Exe, p.Cwd, p.PPID(), p.UID(), p.GID(), p.Stable, p.KThread())
	}
	maps, err := p.Mappings()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(maps, func(m wire.Mapping) bool {
		return strings.HasSuffix(m.Name, "/libc.so.6") && m.Perms == "r-xp"
	}) {
		t.Errorf("no code of libc among the mappings:\n%s", p.Maps)
	}
	if k := vmtest.Truth(t, vm, 2).Find(2); k == nil || !k.KThread() || k.Comm() != "kthreadd" || k.Exe != nil {
		t.Errorf("truth of pid 2: %+v", k)
	}
}

func TestManyProcesses(t *testing.T) {
	vm := vmtest.Shared(t, nil)
	begin := time.Now()
	s := vmtest.Spawn(t, vm, "procs", "crowd", "200")
	t.Logf("200 processes in %v", time.Since(begin))
	if len(s.TIDs) != 200 {
		t.Fatalf("%d children, want 200", len(s.TIDs))
	}
	begin = time.Now()
	truth := vmtest.Truth(t, vm)
	t.Logf("truth of %d processes in %v", len(truth.Procs), time.Since(begin))
	begin = time.Now()
	brief, err := vm.BriefTruth(t.Context())
	if err != nil || len(brief.Procs) < 200 {
		t.Fatalf("brief truth of %d processes: %v", len(brief.Procs), err)
	}
	t.Logf("brief truth of %d processes in %v", len(brief.Procs), time.Since(begin))
	for i, tid := range s.TIDs {
		p := truth.Find(tid)
		if p == nil || p.PPID() != s.PID || p.Comm() != "kid"+strconv.Itoa(i) || !p.Stable {
			t.Fatalf("child %d (pid %d): %+v", i, tid, p)
		}
	}
}

func TestWorkloadsGo(t *testing.T) {
	vm := vmtest.Shared(t, nil)
	for _, kind := range []string{"fork", "exec", "getppid", "open", "openread", "load"} {
		t.Run(kind, func(t *testing.T) {
			vmtest.Spawn(t, vm, kind, kind)
			vmtest.Goes(t, vm, kind)
		})
	}
	vmtest.Spawn(t, vm, "open", "slow", "20")
	if r := vmtest.Rate(t, vm, "slow", 2*time.Second); r > 25 {
		t.Errorf("workload of 20/s does %.0f/s", r)
	}
}

func TestHoldFiles(t *testing.T) {
	vm := vmtest.Shared(t, nil)
	s := vmtest.Spawn(t, vm, "files", "holder")
	p := vmtest.Truth(t, vm, s.PID).Find(s.PID)
	want := map[string]int64{
		"/tmp/holder/plain": 123, "/tmp/holder/with space\nand newline": 7, "/tmp/holder/append": 0,
		"/tmp/holder/sync": 1 << 33, "/tmp/holder/deep/er/file": 0, "/tmp/holder/deleted (deleted)": 5,
	}
	for _, f := range p.FDs {
		if pos, ok := want[string(f.Link)]; ok {
			delete(want, string(f.Link))
			if pos != f.Pos {
				t.Errorf("%q is at %d, want %d", f.Link, f.Pos, pos)
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("missing %v among %v", want, p.FDs)
	}
	if string(p.Cwd) != "/tmp/holder/deep" {
		t.Errorf("cwd %q", p.Cwd)
	}
}

func TestSequence(t *testing.T) {
	vm := vmtest.Shared(t, nil)
	s := vmtest.Spawn(t, vm, "sequence", "seq", "3", "10")
	for range 2 {
		calls, err := vm.Sequence(t.Context(), "seq")
		if err != nil {
			t.Fatal(err)
		}
		if len(calls) != 3*10*6 {
			t.Fatalf("%d calls, want %d", len(calls), 3*10*6)
		}
		for _, c := range calls {
			enoent := c.Name == "openat" && strings.HasSuffix(c.Path, ".absent")
			if !slices.Contains(s.TIDs, c.TID) || (c.Ret < 0) != enoent {
				t.Errorf("call %+v", c)
			}
		}
	}
}

func TestBlockedAnswers(t *testing.T) {
	vm := vmtest.Shared(t, nil)
	vmtest.Spawn(t, vm, "blocked", "reader")
	var n int
	if err := vm.Tell(t.Context(), "reader", "hello", &n); err != nil || n != 6 {
		t.Errorf("reader read %d bytes (%v), want 6", n, err)
	}
}

func TestTextUnchangedByItself(t *testing.T) {
	vm := vmtest.Shared(t, nil)
	snap := vmtest.SnapshotText(t, vm)
	if snap.Baseline.Ignored == 0 || snap.Baseline.End-snap.Baseline.Start < 1<<20 {
		t.Errorf("baseline %+v", snap.Baseline)
	}
	snap.Unchanged(t)
}

// The helper must notice patched text. The guest's own function tracer patches a function that nothing calls.
func TestTextChangeIsSeen(t *testing.T) {
	vm := vmtest.Shared(t, nil)
	ctx := t.Context()
	if _, err := vm.Run(ctx, "sh", "-c", "mount -t tracefs t /sys/kernel/tracing 2>/dev/null; test -e /sys/kernel/tracing/set_ftrace_filter || exit 3"); err != nil {
		vmtest.Skip(t, "this kernel has no function tracer: "+err.Error(), "on kernels with ftrace")
	}
	snap := vmtest.SnapshotText(t, vm)
	if _, err := vm.Run(ctx, "sh", "-c", "cd /sys/kernel/tracing && echo kernel_restart > set_ftrace_filter && echo function > current_tracer"); err != nil {
		t.Fatal(err)
	}
	if changes := snap.Changes(t); !slices.ContainsFunc(changes, func(r wire.TextRange) bool { return strings.HasPrefix(r.Symbol, "kernel_restart+") }) {
		t.Errorf("the patched function is not among the changes: %+v", changes)
	}
	if _, err := vm.Run(ctx, "sh", "-c", "cd /sys/kernel/tracing && echo nop > current_tracer"); err != nil {
		t.Fatal(err)
	}
	for _, r := range snap.Changes(t) {
		if strings.HasPrefix(r.Symbol, "kernel_restart+") {
			t.Errorf("still patched: %+v", r)
		}
	}
}

func TestStopsAreSeen(t *testing.T) {
	vm := vmtest.Shared(t, nil)
	ctx := t.Context()
	n := len(vm.Events(0))
	if err := vm.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := vm.Cont(ctx); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"STOP", "RESUME"} {
		if _, err := vm.AwaitEvent(ctx, n, name); err != nil {
			t.Error(err)
		}
	}
	vmtest.NoStops(t, vm)()
}

func TestModulesComeAndGo(t *testing.T) {
	vm := vmtest.Shared(t, nil)
	ctx := t.Context()
	loaded := func() bool {
		return slices.ContainsFunc(vmtest.Truth(t, vm, 1).Modules, func(m wire.Module) bool {
			return m.Name == "dummy" && m.Base != 0 && m.InitState == "live"
		})
	}
	if err := vm.Insmod(ctx, "dummy", "numdummies=0"); err != nil {
		t.Fatal(err)
	}
	if !loaded() {
		t.Error("dummy is not among the modules")
	}
	if err := vm.Rmmod(ctx, "dummy"); err != nil {
		t.Fatal(err)
	}
	if loaded() {
		t.Error("dummy is still among the modules")
	}
}

func TestRebootAndPowerOff(t *testing.T) {
	vm := vmtest.Boot(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := vm.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	if err := vm.AwaitBoot(ctx); err != nil {
		t.Fatal(err)
	}
	if err := vm.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestFirmwareAndPausedGuests(t *testing.T) {
	vm := vmtest.Boot(t, &testvm.Options{Firmware: true, Machine: "q35", RAM: testvm.SharedMemfd})
	if running, err := vm.Running(t.Context()); err != nil || !running {
		t.Errorf("guest in firmware: running %v, %v", running, err)
	}
	vm = vmtest.Boot(t, &testvm.Options{Paused: true, RAM: testvm.SharedFile})
	if running, err := vm.Running(t.Context()); err != nil || running {
		t.Errorf("paused guest: running %v, %v", running, err)
	}
}

func TestScriptGuest(t *testing.T) {
	vm := vmtest.Boot(t, &testvm.Options{Script: "mount -t proc proc /proc\necho " + testvm.ScriptReady + " >/dev/console\nexec sleep 1000000\n"})
	if vm.Hello.Release != "" || !strings.Contains(vm.Console(), testvm.ScriptReady) {
		t.Errorf("hello %+v, console:\n%s", vm.Hello, vm.Console())
	}
}

func TestBootFailureTells(t *testing.T) {
	if testing.Short() {
		vmtest.Skip(t, "it boots a guest", "without -short")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_, err := testvm.Boot(ctx, &testvm.Options{Cmdline: "rdinit=/nowhere init=/nowhere", Progress: t.Output()})
	if err == nil || !strings.Contains(err.Error(), "kernel panics") || !strings.Contains(err.Error(), "qemu-system-x86_64 -name") {
		t.Errorf("boot without a first process: %v", err)
	}
	if _, err := testvm.Boot(ctx, &testvm.Options{Kernel: "2.4"}); err == nil || !strings.Contains(err.Error(), "6.1-cloud") {
		t.Errorf("unknown kernel: %v", err)
	}
	if _, err := testvm.Boot(ctx, &testvm.Options{Firmware: true, Machine: "nonsense"}); err == nil || !strings.Contains(err.Error(), "unsupported machine type") {
		t.Errorf("unknown machine: %v", err)
	}
}

func sha256Hex(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}
