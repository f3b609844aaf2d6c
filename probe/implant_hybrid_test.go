package probe_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/qemu"
)

// engineSession returns a session with the options given.
func engineSession(t testing.TB, vm *testvm.VM, o *probe.Options) (*kernel.Kernel, *probe.Session) {
	t.Helper()
	g, err := qemu.Attach(t.Context(), vm.QMP, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	k, err := kernel.Describe(t.Context(), g, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := probe.New(g, k, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return k, s
}

// stackArgs is a function with eight arguments or more, in all kernels since 4.0.
const stackArgs = "do_mmap"

func both(name string) *probe.Probe {
	return &probe.Probe{Func: name, Enter: func(*probe.Hit) any { return nil }, Return: func(*probe.Hit, any) {}}
}

// TestImplantRefusals: what takes no implant is refused with its reason.
func TestImplantRefusals(t *testing.T) {
	vm := vmtest.Shared(t, &quickGuest)
	_, s := engineSession(t, vm, &probe.Options{Engine: probe.Implant})
	check := vmtest.NoStops(t, vm)
	for name, reason := range map[string]string{
		"do_syscall_64":      "noinstr",
		"clear_page_rep":     "the kernel has no ftrace nop there",
		stackArgs:            "some by the stack",
		"vfs_read":           "",
		"scnprintf":          "any number of arguments",
		"no_such_function_x": "no such kernel symbol",
		"fdget":              "no such kernel symbol", // inlined wherever it is called, in all kernels
	} {
		p, err := s.Add(both(name))
		switch {
		case reason == "" && err != nil:
			t.Errorf("%s is refused: %v", name, err)
		case reason != "" && (err == nil || !strings.Contains(err.Error(), reason)):
			t.Errorf("%s: %v, want %q", name, err, reason)
		case err == nil:
			if err := p.Remove(); err != nil {
				t.Error(err)
			}
		}
	}
	// Without a return side nothing is wrapped.
	p, err := s.Add(&probe.Probe{Func: stackArgs, Enter: func(*probe.Hit) any { return nil }})
	if err != nil {
		t.Errorf("entries of %s: %v", stackArgs, err)
	}
	if _, err := s.Add(both(stackArgs)); err == nil {
		t.Errorf("returns of %s are taken once its entries are", stackArgs)
	}
	if err := p.Remove(); err != nil {
		t.Error(err)
	}
	check()
}

// TestHybrid: under Auto they get breakpoints, beside the implants.
func TestHybrid(t *testing.T) {
	for _, d := range []probe.Delivery{probe.Stream, probe.Sync} {
		t.Run(string(d), func(t *testing.T) {
			vm := vmtest.Shared(t, &quickGuest)
			text := vmtest.SnapshotText(t, vm)
			spawn(t, vm, "getppid", "g")
			_, s := engineSession(t, vm, &probe.Options{Delivery: d})
			var inside, implants, calls, returns, late atomic.Int64
			one := func(n *atomic.Int64) func() {
				return func() {
					if inside.Add(1) != 1 {
						t.Error("two callbacks at a time")
					}
					n.Add(1)
					inside.Add(-1)
				}
			}
			hit := one(&implants)
			mustAdd(t, s, &probe.Probe{Func: "__x64_sys_getppid", Enter: func(*probe.Hit) any { hit(); return nil }, Return: func(*probe.Hit, any) { hit() }},
				&probe.Probe{Func: stackArgs, Enter: func(h *probe.Hit) any { one(&calls)(); return h.Arg(2) }, Return: func(h *probe.Hit, length any) {
					one(&returns)()
					if length.(uint64) == 0 || h.Result() == 0 {
						t.Errorf("mapped %d bytes at %#x", length, h.Result())
					}
				}})
			stop := start(t, s, func() bool { return implants.Load() > 0 })
			run := func(until func() bool) {
				for end := time.Now().Add(2 * time.Minute); !until() && time.Now().Before(end); {
					if _, err := vm.Run(t.Context(), "/bin/busybox", "true"); err != nil {
						t.Fatal(err)
					}
				}
			}
			run(func() bool { return returns.Load() > 0 })
			n := implants.Load()
			// One more of each kind while it runs: the implants go and come again, with the breakpoints out meanwhile.
			mustAdd(t, s, &probe.Probe{Func: "begin_new_exec", Enter: func(*probe.Hit) any { one(&late)(); return nil }},
				&probe.Probe{Func: "mmap_region", Enter: func(*probe.Hit) any { return nil }, Return: func(*probe.Hit, any) {}})
			run(func() bool { return late.Load() > 0 && implants.Load() > n })
			stop()
			st := s.Stats()
			t.Logf("%d implant hits, %d calls and %d returns of %s, %d of begin_new_exec; %q", implants.Load(), calls.Load(), returns.Load(), stackArgs, late.Load(), st.Notes)
			if returns.Load() == 0 || late.Load() == 0 || implants.Load() == n || st.Engine != probe.Implant || st.Delivery != d {
				t.Errorf("stats %+v", st)
			}
			if len(st.Notes) == 0 || !strings.Contains(st.Notes[0]+st.Notes[len(st.Notes)-1], stackArgs) {
				t.Errorf("notes %q", st.Notes)
			}
			if err := vm.Quiet(t.Context()); err != nil {
				t.Error(err)
			}
			text.Unchanged(t)
			vmtest.Healthy(t, vm)
		})
	}
}

// TestImplantBesideGuestTracing: a nop that the guest's own kprobe or ftrace has
// taken is left alone, and the function gets a breakpoint.
//
// Nobody may call that function while the guest puts its kprobe in or takes it
// out. QEMU 7.2 with two vCPUs can translate an instruction while the kernel
// patches it and keep that translation; then a processor runs the int3 of the
// patching once it is over, kprobes takes it for its own, for which this kprobe
// has no instruction, and the kernel jumps to 0. It happens within ten rounds of
// this script and a busy getppid, without anything of ours.
func TestImplantBesideGuestTracing(t *testing.T) {
	// (A system call without arguments has several names, of which ftrace knows one.)
	for name, script := range map[string][2]string{
		"kprobe": {"echo 'p:vt __x64_sys_getppid' > kprobe_events && echo 1 > events/kprobes/vt/enable", "echo 0 > events/kprobes/vt/enable && echo > kprobe_events"},
		"ftrace": {"echo '*_sys_getppid' > set_ftrace_filter && echo function > current_tracer", "echo nop > current_tracer && echo > set_ftrace_filter"},
	} {
		t.Run(name, func(t *testing.T) { testBesideGuestTracing(t, script[0], script[1]) })
	}
}

func testBesideGuestTracing(t *testing.T, begin, end string) {
	vm := vmtest.Shared(t, &quickGuest)
	sh := func(script string) {
		t.Helper()
		if out, err := vm.Run(t.Context(), "/bin/busybox", "sh", "-c", "cd /sys/kernel/tracing && "+script); err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
	}
	sh("{ [ -e kprobe_events ] || mount -t tracefs tracefs .; } && cd /sys/kernel/tracing && " + begin)
	defer sh(end)
	if _, err := vm.Spawn(t.Context(), "getppid", "g"); err != nil {
		t.Fatal(err)
	}
	defer func() { // before the guest's own goes
		if err := vm.Kill(t.Context(), "g"); err != nil {
			t.Error(err)
		}
	}()
	text := vmtest.SnapshotText(t, vm)
	_, s := engineSession(t, vm, &probe.Options{Engine: probe.Implant})
	if _, err := s.Add(both("__x64_sys_getppid")); err == nil || !strings.Contains(err.Error(), "in use already") {
		t.Errorf("Add = %v", err)
	}
	s.Guest().Close()
	_, s = engineSession(t, vm, nil)
	var hits atomic.Int64
	mustAdd(t, s, &probe.Probe{Func: "__x64_sys_getppid", Enter: func(*probe.Hit) any { hits.Add(1); return nil }}, both("__x64_sys_getpgrp"))
	stop := start(t, s, func() bool { return hits.Load() > 10 })
	stop()
	if st := s.Stats(); len(st.Notes) != 1 || !strings.Contains(st.Notes[0], "in use already") {
		t.Errorf("notes %q", st.Notes)
	}
	text.Unchanged(t)
	vmtest.Healthy(t, vm)
}

// TestImplantSiteTakenLate: the guest hooks a function after it was found free and
// before it is planted: nothing is planted, and the guest's own hook stays.
func TestImplantSiteTakenLate(t *testing.T) {
	vm := vmtest.Shared(t, &quickGuest)
	sh := func(script string) {
		t.Helper()
		if out, err := vm.Run(t.Context(), "/bin/busybox", "sh", "-c", script); err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
	}
	_, s := implantSession(t, vm, nil)
	mustAdd(t, s, both("__x64_sys_getppid"), both("__x64_sys_getpgrp"))
	sh("cd /sys/kernel/tracing; [ -e kprobe_events ] || mount -t tracefs tracefs .; cd /sys/kernel/tracing && echo '*_sys_getppid' > set_ftrace_filter && echo function > current_tracer")
	defer sh("cd /sys/kernel/tracing && echo nop > current_tracer && echo > set_ftrace_filter")
	text := vmtest.SnapshotText(t, vm)
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "in use already") {
		t.Errorf("Run = %v", err)
	}
	text.Unchanged(t)
	vmtest.Healthy(t, vm)
}

// TestImplantOfAnotherRun: none is planted beside one of another run.
func TestImplantOfAnotherRun(t *testing.T) {
	vm := vmtest.Shared(t, &quickGuest)
	spawn(t, vm, "getppid", "g")
	text := vmtest.SnapshotText(t, vm)
	killVictim(t, vm, threeCalls)
	for _, e := range []probe.Engine{probe.Auto, probe.Implant} {
		k, s := engineSession(t, vm, &probe.Options{Engine: e})
		mustAdd(t, s, both("__x64_sys_getppid")) // the victim has hooked it
		if _, err := s.Add(both("__x64_sys_openat")); err != nil {
			t.Error(err)
		}
		err := s.Run(t.Context())
		if !errors.Is(err, vitrine.ErrBusy) || !strings.Contains(err.Error(), "vitrine repair") {
			t.Errorf("%s: Run = %v", e, err)
		}
		if e == probe.Implant {
			found, err := probe.Repair(t.Context(), s.Guest(), k)
			if err != nil || len(found) != 1 {
				t.Fatalf("Repair = %q, %v", found, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := s.Run(ctx); err != nil {
				t.Errorf("Run after the repair: %v", err)
			}
			cancel()
		}
		s.Guest().Close()
	}
	if err := vm.Quiet(t.Context()); err != nil {
		t.Fatal(err)
	}
	text.Unchanged(t)
	vmtest.Healthy(t, vm)
}
