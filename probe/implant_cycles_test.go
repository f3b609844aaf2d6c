package probe_test

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/qemu"
)

// cycles is how often implants come and go in TestImplantCycles; the
// environment can make it more.
func cycles() int {
	if n, err := strconv.Atoi(os.Getenv("VITRINE_TEST_CYCLES")); err == nil && n > 0 {
		return n
	}
	return 4
}

// regions returns the guest's vmalloc areas by size and caller, without those
// that come and go with its processes.
func regions(t *testing.T, vm *testvm.VM) string {
	t.Helper()
	b, err := vm.ReadFile(t.Context(), "/proc/vmallocinfo")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) > 2 && !strings.Contains(f[2], "stack") && !strings.Contains(f[2], "fork") && !strings.Contains(f[2], "bpf") {
			if strings.Contains(f[2], "execmem") || strings.Contains(f[2], "module_alloc") || size(f[1]) >= 1<<20 {
				out = append(out, f[1]+" "+f[2])
			}
		}
	}
	return strings.Join(out, "\n")
}

func size(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

// TestImplantCycles plants all system calls under load and takes them out, again
// and again; every fourth time the host is killed and the guest repaired.
func TestImplantCycles(t *testing.T) {
	vm := vmtest.Shared(t, &quickGuest)
	for i, kind := range []string{"blocked", "sleeper", "load"} {
		vmtest.Spawn(t, vm, kind, fmt.Sprint(kind, i))
	}
	text := vmtest.SnapshotText(t, vm)
	g, err := qemu.Attach(t.Context(), vm.QMP, nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := kernel.Describe(t.Context(), g, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { g.Close() }()
	before := regions(t, vm)
	for n := range cycles() {
		if n%4 == 3 {
			g.Close() // one client at a time
			killVictim(t, vm)
			if g, err = qemu.Attach(t.Context(), vm.QMP, nil); err != nil {
				t.Fatal(err)
			}
			if k, err = kernel.Describe(t.Context(), g, nil); err != nil {
				t.Fatal(err)
			}
			if found, err := probe.Repair(t.Context(), g, k); err != nil || len(found) != 1 {
				t.Fatalf("cycle %d: Repair = %q, %v", n, found, err)
			}
			continue
		}
		s, err := probe.New(g, k, &probe.Options{Engine: probe.Implant})
		if err != nil {
			t.Fatal(err)
		}
		w := &watcher{}
		w.probes(k, s, t)
		stop := start(t, s, func() bool { return w.total.Load() > 100 })
		time.Sleep(100 * time.Millisecond)
		stop()
		t.Logf("cycle %d: %d hits, guest stopped for %v", n, w.total.Load(), s.Stats().Stopped)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	vmtest.Healthy(t, vm)
	var answer int
	if err := vm.Tell(t.Context(), "blocked0", "hello", &answer); err != nil || answer == 0 {
		t.Errorf("the blocked thread answered %d, %v", answer, err)
	}
	text.Unchanged(t)
	if after := regions(t, vm); after != before {
		t.Errorf("memory areas before:\n%s\nafter:\n%s", before, after)
	}
}

// TestImplantStall: callbacks that hang must not hang the guest.
func TestImplantStall(t *testing.T) {
	for _, d := range []probe.Delivery{probe.Sync, probe.Stream} {
		t.Run(string(d), func(t *testing.T) {
			vm := vmtest.Shared(t, &quickGuest)
			vmtest.Spawn(t, vm, "getppid", "stalled")
			_, s := implantSession(t, vm, &probe.Options{Delivery: d})
			var hits atomic.Uint64
			release := make(chan struct{})
			addAll(t, s, &probe.Probe{Func: "__x64_sys_getppid", Enter: func(*probe.Hit) any {
				if hits.Add(1) == 100 {
					<-release
				}
				return nil
			}, Return: func(*probe.Hit, any) {}})
			stop := start(t, s, func() bool { return hits.Load() >= 100 })
			// Under stream delivery the ring takes records for a while; the wait for the host ends 2 s after it is full.
			time.Sleep(10 * time.Second)
			var rate float64
			for end := time.Now().Add(time.Minute); rate < 1000 && time.Now().Before(end); {
				rate = vmtest.Rate(t, vm, "stalled", time.Second)
			}
			close(release)
			for end := time.Now().Add(time.Minute); s.Stats().Stalls == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
			}
			n := hits.Load()
			for end := time.Now().Add(time.Minute); hits.Load() < n+1000 && time.Now().Before(end); time.Sleep(time.Millisecond) {
			}
			stop()
			st := s.Stats()
			t.Logf("the guest made %.0f calls/s with a host that hung; %+v", rate, st)
			if rate < 1000 || st.Stalls == 0 || st.Lost == 0 || hits.Load() < n+1000 {
				t.Errorf("%.0f calls/s, %d stalls, %d lost, %d hits afterwards", rate, st.Stalls, st.Lost, hits.Load()-n)
			}
		})
	}
}
