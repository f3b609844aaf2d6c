// Package vmtest has the helpers by which tests use guests of package testvm: guests that end with the test, guests
// shared by the tests of a package, the proof that a guest was left as it was found, and the one way to skip.
//
// The helpers end the test on failure and are for the test's own goroutine.
package vmtest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
)

// bootTime bounds waiting for other packages' guests to end, which takes as long as their tests, fetching, building and
// booting. A guest boots in 4 s on a quiet machine; attemptTime bounds that.
const bootTime = 30 * time.Minute

// Skip ends the test, saying why and on which condition it would run. Tests of real guests skip by it, so
// that both are always told.
func Skip(t testing.TB, reason, condition string) {
	t.Helper()
	t.Skipf("skipped: %s; it runs %s", reason, condition)
}

// Boot boots a guest that ends with the test. If the test fails, its console is printed.
func Boot(t testing.TB, o *testvm.Options) *testvm.VM {
	t.Helper()
	vm := begin(t, o, bootPatiently(t))
	t.Cleanup(func() { finish(t, vm) })
	return vm
}

// Start is Boot that does not wait for the guest to be up.
func Start(t testing.TB, o *testvm.Options) *testvm.VM {
	t.Helper()
	vm := begin(t, o, testvm.Start)
	t.Cleanup(func() { finish(t, vm) })
	return vm
}

// attempts and attemptTime bound how often, and for how long each time, a guest may fail to come up.
const (
	attempts    = 3
	attemptTime = 3 * time.Minute
)

// bootPatiently returns a testvm.Boot that tries again. QEMU 7.2's TCG makes a booting kernel of two processors crash or
// hang now and then (seen twice in some hundred boots of 6.12, before anything of ours looked at the guest); a test
// that boots a guest is not about that. Every failure is logged.
func bootPatiently(t testing.TB) func(context.Context, *testvm.Options) (*testvm.VM, error) {
	return func(ctx context.Context, o *testvm.Options) (*testvm.VM, error) {
		for n := 1; ; n++ {
			vm, err := testvm.Start(ctx, o)
			if err != nil || vm.Options.Firmware || vm.Options.Paused {
				return vm, err
			}
			bctx, cancel := context.WithTimeout(ctx, attemptTime)
			err = vm.AwaitBoot(bctx)
			cancel()
			if err == nil {
				return vm, nil
			}
			err = errors.Join(err, vm.Close())
			if n == attempts || ctx.Err() != nil {
				return nil, err
			}
			t.Logf("attempt %d of %d: %v", n, attempts, err)
		}
	}
}

func begin(t testing.TB, o *testvm.Options, how func(context.Context, *testvm.Options) (*testvm.VM, error)) *testvm.VM {
	t.Helper()
	if testing.Short() {
		Skip(t, "it boots a guest", "without -short")
	}
	var c testvm.Options
	if o != nil {
		c = *o
	}
	if c.Progress == nil {
		c.Progress = t.Output()
	}
	ctx, cancel := context.WithTimeout(context.Background(), bootTime)
	defer cancel()
	vm, err := how(ctx, &c)
	if err != nil {
		t.Fatalf("%v\n(make test installs what is needed)", err)
	}
	return vm
}

func finish(t testing.TB, vm *testvm.VM) {
	t.Helper()
	if t.Failed() {
		t.Logf("console of %s (%s):\n%s", vm.Name, vm.Dir, vm.Console())
	}
	if err := vm.Close(); err != nil {
		t.Errorf("end guest: %v", err)
	}
}

// Truth returns what the guest says of itself.
func Truth(t testing.TB, vm *testvm.VM, pids ...int) *wire.Truth {
	t.Helper()
	truth, err := vm.Truth(t.Context(), pids...)
	if err != nil {
		t.Fatal(err)
	}
	return truth
}

// Spawn starts a workload, ended with the test.
func Spawn(t testing.TB, vm *testvm.VM, kind, name string, args ...string) wire.Spawned {
	t.Helper()
	return SpawnWith(t, vm, wire.SpawnArgs{Kind: kind, Name: name, Args: args})
}

// SpawnWith starts a workload, ended with the test.
func SpawnWith(t testing.TB, vm *testvm.VM, a wire.SpawnArgs) wire.Spawned {
	t.Helper()
	s, err := vm.SpawnWith(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
		defer cancel()
		if err := vm.Kill(ctx, a.Name); err != nil {
			t.Errorf("end workload: %v", err)
		}
	})
	return s
}

// Rate measures a workload for a time, in operations per second of the guest's clock.
func Rate(t testing.TB, vm *testvm.VM, name string, d time.Duration) float64 {
	t.Helper()
	r, err := vm.Rate(t.Context(), name, d.Seconds())
	if err != nil {
		t.Fatal(err)
	}
	return r.PerSecond()
}

// Goes fails the test unless a workload does something within minutes.
func Goes(t testing.TB, vm *testvm.VM, name string) {
	t.Helper()
	for range 120 {
		if Rate(t, vm, name, time.Second) > 0 {
			return
		}
	}
	t.Errorf("workload %s does nothing", name)
}

// NoStops returns a function that fails the test if QEMU has reported that the guest stopped since NoStops was called.
// Events come in order, so the function first makes the monitor answer once more.
func NoStops(t testing.TB, vm *testvm.VM) func() {
	t.Helper()
	from := len(vm.Events(0))
	return func() {
		t.Helper()
		if _, err := vm.Running(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, e := range vm.Events(from) {
			if slices.Contains([]string{"STOP", "RESUME", "RESET", "SHUTDOWN"}, e.Name) {
				t.Errorf("guest had the event %s at %s", e.Name, e.Time.Format("15:04:05.000000"))
			}
		}
	}
}

// TextSnapshot is the kernel text of a guest at one time, kept in the guest.
type TextSnapshot struct {
	vm       *testvm.VM
	Baseline wire.TextBaseline
}

// SnapshotText makes the guest remember its kernel's text, as its own kernel reads it (/proc/kcore). Take it in a
// quiet guest before anything is planted.
func SnapshotText(t testing.TB, vm *testvm.VM) *TextSnapshot {
	t.Helper()
	b, err := vm.TextBaseline(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &TextSnapshot{vm: vm, Baseline: b}
}

// Changes returns what differs now; see wire.TextDiff for what is left out.
func (s *TextSnapshot) Changes(t testing.TB) []wire.TextRange {
	t.Helper()
	d, err := s.vm.TextDiff(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return d.Ranges
}

// Unchanged fails the test if the kernel's text differs from the snapshot.
func (s *TextSnapshot) Unchanged(t testing.TB) {
	t.Helper()
	for _, r := range s.Changes(t) {
		t.Errorf("kernel text changed at %#x (%s): was % x, is % x", r.Addr, r.Symbol, r.Old, r.New)
	}
}

// alarms are texts by which a Linux kernel says on its console that something is badly wrong.
var alarms = []string{"Kernel panic", "BUG:", "Oops", "general protection fault", "WARNING: CPU", "self-detected stall", "blocked for more than", "segfault at", "unable to handle"}

// Healthy fails the test unless the guest runs, its user space answers and its console shows no alarm.
func Healthy(t testing.TB, vm *testvm.VM) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if running, err := vm.Running(ctx); err != nil || !running {
		t.Errorf("guest is not running (%v)", err)
		return
	}
	if err := vm.Ping(ctx); err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(vm.Console()) {
		if slices.ContainsFunc(alarms, func(a string) bool { return strings.Contains(line, a) }) {
			t.Errorf("console: %s", strings.TrimSpace(line))
		}
	}
}

// Equal compares what was seen from outside with what the guest says, an empty list being the same as none.
func Equal(t testing.TB, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s differs (-guest +vitrine):\n%s", what, diff)
	}
}
