package probe_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/probe"
)

var quickGuest = testvm.Options{Kernel: "6.1-cloud", CPUs: 2, RAM: testvm.SharedMemfd}

// addAll adds probes and fails the test on an error.
func addAll(t testing.TB, s *probe.Session, probes ...*probe.Probe) {
	t.Helper()
	for _, p := range probes {
		if _, err := s.Add(p); err != nil {
			t.Fatal(err)
		}
	}
}

func TestImplantSync(t *testing.T) {
	vm := vmtest.Shared(t, &quickGuest)
	_, s := implantSession(t, vm, &probe.Options{Delivery: probe.Sync})
	text := vmtest.SnapshotText(t, vm)
	vmtest.Spawn(t, vm, "getppid", "getppid")
	before := vmtest.Rate(t, vm, "getppid", time.Second)
	id := &probe.Filter{Comms: []string{"busybox"}}
	var ppids, skips, returned, results atomic.Uint64
	fail := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	addAll(t, s,
		&probe.Probe{Func: "__x64_sys_getppid", Enter: func(*probe.Hit) any { ppids.Add(1); return nil }},
		&probe.Probe{Func: "__x64_sys_getuid", Filter: id, Enter: func(h *probe.Hit) any {
			skips.Add(1)
			fail(h.SkipWith(1234))
			return nil
		}, Return: func(*probe.Hit, any) { returned.Add(1) }},
		&probe.Probe{Func: "__x64_sys_geteuid", Filter: id, Enter: func(h *probe.Hit) any { return h.Thread.TID },
			Return: func(h *probe.Hit, v any) {
				results.Add(1)
				// busybox has dropped the rights that it was told not to have.
				if h.Result() != 1234 || v != h.Thread.TID {
					t.Errorf("geteuid returned %d in thread %d, value %v", h.Result(), h.Thread.TID, v)
				}
				fail(h.SetResult(4321))
			}})
	stop := start(t, s, func() bool { return ppids.Load() > 0 })
	n, begin := ppids.Load(), time.Now()
	during := vmtest.Rate(t, vm, "getppid", 2*time.Second)
	rate := float64(ppids.Load()-n) / time.Since(begin).Seconds()
	out, err := vm.Run(t.Context(), "/bin/busybox", "id")
	if err != nil {
		t.Fatal(err)
	}
	stop()
	t.Logf("getppid %.0f/s untraced, %.0f/s sync, %.0f hits/s here; id: %s; %+v", before, during, rate, out, s.Stats())
	if !strings.Contains(string(out), "uid=1234") || !strings.Contains(string(out), "euid=4321") {
		t.Errorf("id says %q; want uid 1234 and euid 4321", out)
	}
	if skips.Load() == 0 || results.Load() == 0 || returned.Load() != 0 {
		t.Errorf("%d skipped, %d returned of those; %d results changed", skips.Load(), returned.Load(), results.Load())
	}
	text.Unchanged(t)
	vmtest.Healthy(t, vm)
}

func TestImplantFilters(t *testing.T) {
	vm := vmtest.Shared(t, &quickGuest)
	a, err := vm.Spawn(t.Context(), "getppid", "a") // ended below
	if err != nil {
		t.Fatal(err)
	}
	b := vmtest.Spawn(t, vm, "getppid", "b")
	before := vmtest.Rate(t, vm, "b", time.Second)
	_, s := implantSession(t, vm, nil)
	var hits, others atomic.Uint64
	addAll(t, s, &probe.Probe{Func: "__x64_sys_getppid", Filter: &probe.Filter{PIDs: []int{a.PID}}, Enter: func(h *probe.Hit) any {
		if hits.Add(1); h.Thread.PID != a.PID {
			others.Add(1)
		}
		return nil
	}, Return: func(*probe.Hit, any) {}})
	stop := start(t, s, func() bool { return hits.Load() > 0 })
	if err := vm.Kill(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	during := vmtest.Rate(t, vm, "b", 2*time.Second)
	st := s.Stats()
	// A probe of all processes takes the filter out of the guest while it is in use.
	var all atomic.Uint64
	addAll(t, s, &probe.Probe{Func: "__x64_sys_getppid", Enter: func(h *probe.Hit) any {
		if h.Thread.PID == b.PID {
			all.Add(1)
		}
		return nil
	}})
	for end := time.Now().Add(time.Minute); all.Load() == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	stop()
	if all.Load() == 0 {
		t.Error("no hit of a process that had been filtered out")
	}
	t.Logf("filtered out: %.0f calls/s, before %.0f (both ran); %d hits of %d, %+v", during, before, hits.Load(), a.PID, st)
	if others.Load() != 0 || st.Filtered > 100 {
		t.Errorf("%d hits of other processes, %d came to the host; want none of %d", others.Load(), st.Filtered, b.PID)
	}
}

// A probe can be added and taken away while a session runs.
func TestImplantChanges(t *testing.T) {
	vm := vmtest.Shared(t, &quickGuest)
	vmtest.Spawn(t, vm, "open", "open")
	text := vmtest.SnapshotText(t, vm)
	_, s := implantSession(t, vm, nil)
	var closes, opens atomic.Uint64
	count := func(n *atomic.Uint64) func(*probe.Hit) any {
		return func(*probe.Hit) any { n.Add(1); return nil }
	}
	first, err := s.Add(&probe.Probe{Func: "__x64_sys_close", Enter: count(&closes), Return: func(*probe.Hit, any) {}})
	if err != nil {
		t.Fatal(err)
	}
	stop := start(t, s, func() bool { return closes.Load() > 0 })
	addAll(t, s, &probe.Probe{Func: "__x64_sys_openat", Enter: count(&opens)})
	for end := time.Now().Add(time.Minute); opens.Load() == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if err := first.Remove(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	n, m := closes.Load(), opens.Load()
	for end := time.Now().Add(time.Minute); opens.Load() < m+100 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	stop()
	if opens.Load() < m+100 || closes.Load() != n {
		t.Errorf("%d hits of the probe that was added, %d of the one that was taken away", opens.Load()-m, closes.Load()-n)
	}
	text.Unchanged(t)
	vmtest.Healthy(t, vm)
}
