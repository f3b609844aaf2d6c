package probe_test

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vitrine-vmi/vitrine"
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

// areas returns the guest's memory areas that an implant could have left: of
// vmalloc and of executable memory, by size and caller. It leaves out those that
// come and go with processes and with what the kernel keeps for later.
func areas(t *testing.T, vm *testvm.VM) map[string]int {
	t.Helper()
	b, err := vm.ReadFile(t.Context(), "/proc/vmallocinfo")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) < 3 || strings.Contains(f[2], "stack") || strings.Contains(f[2], "fork") || strings.Contains(f[2], "bpf") {
			continue
		}
		n, _ := strconv.Atoi(f[1])
		if strings.Contains(f[2], "execmem") || strings.Contains(f[2], "module_alloc") || n >= 1<<20 {
			out[f[1]+" "+f[2]]++
		}
	}
	return out
}

// life is a guest that implants come and go in, attached to.
type life struct {
	t  *testing.T
	vm *testvm.VM
	g  *vitrine.Guest
	k  *kernel.Kernel
}

func (l *life) attach() {
	l.t.Helper()
	var err error
	if l.g, err = qemu.Attach(l.t.Context(), l.vm.QMP, nil); err != nil {
		l.t.Fatal(err)
	}
	if l.k, err = kernel.Describe(l.t.Context(), l.g, nil); err != nil {
		l.t.Fatal(err)
	}
}

// once plants all system calls, traces for a moment and takes them out.
func (l *life) once(n int) probe.Stats {
	l.t.Helper()
	s, err := probe.New(l.g, l.k, &probe.Options{Engine: probe.Implant})
	if err != nil {
		l.t.Fatal(err)
	}
	w := &watcher{}
	w.probes(l.k, s, l.t)
	stop := start(l.t, s, func() bool { return w.total.Load() > 100 })
	time.Sleep(time.Duration(n%5) * 20 * time.Millisecond)
	stop()
	if err := s.Close(); err != nil {
		l.t.Fatal(err)
	}
	return s.Stats()
}

// killed does the same with a process that is killed, and repairs the guest.
func (l *life) killed(n int) {
	l.t.Helper()
	l.g.Close() // one client at a time
	killVictim(l.t, l.vm, "all")
	l.attach()
	found, err := probe.Repair(l.t.Context(), l.g, l.k)
	if err != nil || len(found) != 1 {
		l.t.Fatalf("cycle %d: Repair = %q, %v", n, found, err)
	}
	l.t.Logf("cycle %d: killed; %s", n, found[0])
}

// answers makes the threads that were blocked the whole time go on.
func (l *life) answers() {
	l.t.Helper()
	var n int
	if err := l.vm.Tell(l.t.Context(), "blocked", "hello", &n); err != nil || n == 0 {
		l.t.Errorf("the thread in read answered %d, %v", n, err)
	}
	if err := l.vm.Tell(l.t.Context(), "waits", "wake", &n); err != nil || n != 3 {
		l.t.Errorf("of the threads in poll, futex and wait4 %d answered, %v", n, err)
	}
}

// threadsOf returns the ids of the processes' threads.
func threadsOf(t *testing.T, vm *testvm.VM, pids []int) (tids []int) {
	t.Helper()
	for _, p := range vmtest.Truth(t, vm, pids...).Procs {
		for _, task := range p.Tasks {
			tids = append(tids, task.TID)
		}
	}
	return tids
}

// isSubset reports whether b has all of a: programs may start more threads.
func isSubset(a, b []int) bool {
	return !slices.ContainsFunc(a, func(n int) bool { return !slices.Contains(b, n) })
}

// TestImplantCycles plants all system calls under load and takes them out, again
// and again; every fourth time the host is killed and the guest repaired.
func TestImplantCycles(t *testing.T) {
	vm := vmtest.Shared(t, &quickGuest)
	var pids []int
	for _, kind := range []string{"blocked", "waits", "sleeper", "load"} {
		w, err := vm.Spawn(t.Context(), kind, kind)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, w.PID)
	}
	l := &life{t: t, vm: vm}
	text := vmtest.SnapshotText(t, vm)
	before, threads := areas(t, vm), threadsOf(t, vm, pids[:3])
	l.attach()
	defer func() { l.g.Close() }()
	var planting, removing time.Duration
	for n := range cycles() {
		if n%4 == 3 {
			l.killed(n)
			continue
		}
		st := l.once(n)
		planting, removing = max(planting, st.Planting), max(removing, st.Removing)
		t.Logf("cycle %d: guest stopped for %v and %v", n, st.Planting, st.Removing)
	}
	t.Logf("the longest stops: %v to plant, %v to take out", planting, removing)
	vmtest.Healthy(t, vm)
	l.answers()
	l.answers()
	if after := threadsOf(t, vm, pids[:3]); len(threads) < 4 || !isSubset(threads, after) {
		t.Errorf("threads before: %v; after: %v", threads, after)
	}
	if err := vm.Quiet(t.Context()); err != nil {
		t.Fatal(err)
	}
	text.Unchanged(t)
	if diff := cmp.Diff(before, areas(t, vm)); diff != "" {
		t.Errorf("memory areas (-before +after):\n%s", diff)
	}
}

// stallTime is how long callbacks hang in TestImplantStall; the environment can
// make it more seconds.
func stallTime() time.Duration {
	if n, err := strconv.Atoi(os.Getenv("VITRINE_TEST_STALL")); err == nil && n > 0 {
		return time.Duration(n) * time.Second
	}
	return 8 * time.Second
}

// TestImplantStall: callbacks that hang must not hang the guest, neither one
// whose threads wait for answers nor one whose ring is full.
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
			time.Sleep(stallTime())
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
			t.Logf("the guest made %.0f calls/s with a host that hung for %v; %+v", rate, stallTime(), st)
			if rate < 1000 || st.Stalls == 0 || st.Lost == 0 || hits.Load() < n+1000 {
				t.Errorf("%.0f calls/s, %d stalls, %d lost, %d hits afterwards", rate, st.Stalls, st.Lost, hits.Load()-n)
			}
		})
	}
}
