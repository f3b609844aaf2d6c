package probe_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/qemu"
)

// implantGuests are the kernels and machines that implants are tried on; the
// environment can narrow them.
func implantGuests() []testvm.Options {
	all := []testvm.Options{
		{Kernel: "6.1-cloud", CPUs: 2, RAM: testvm.SharedMemfd},
		{Kernel: "5.10-cloud", CPUs: 1, RAM: testvm.SharedFile, CPU: "Haswell"}, // 4-level paging and page-table isolation
		{Kernel: "6.12-cloud", CPUs: 2},
		{Kernel: "7.2-cloud", CPUs: 2, RAM: testvm.SharedMemfd},
	}
	if os.Getenv("VITRINE_TEST_MATRIX") != "" {
		all = append(all, matrix...)
	}
	only := os.Getenv("VITRINE_TEST_KERNELS")
	if only == "" {
		return all
	}
	var some []testvm.Options
	for _, o := range all {
		if strings.Contains(","+only+",", ","+o.Kernel+",") {
			some = append(some, o)
		}
	}
	return some
}

// matrix is the machines beside those of implantGuests that VITRINE_TEST_MATRIX
// adds: kernels, processors, 4- and 5-level paging ("max" has the fifth level),
// page-table isolation, RAM of each kind. KASLR is on in all but one. Each row is
// held to what it says by checkMachine.
var matrix = []testvm.Options{
	{Kernel: "5.10", CPUs: 2, RAM: testvm.SharedMemfd},
	{Kernel: "5.10-cloud", CPUs: 2, RAM: testvm.SharedMemfd},
	{Kernel: "5.10-cloud", CPUs: 4, Cmdline: "pti=on"},
	{Kernel: "6.1", CPUs: 1},
	{Kernel: "6.1-cloud", CPUs: 4, Cmdline: "pti=on"},
	{Kernel: "6.1-cloud", CPUs: 1, Cmdline: "no5lvl", NoKASLR: true},
	{Kernel: "6.1-cloud", CPUs: 2, Cmdline: "maxcpus=1"}, // one processor stays off
	{Kernel: "6.1-rt", CPUs: 2, RAM: testvm.SharedMemfd},
	{Kernel: "6.12", CPUs: 2, Cmdline: "pti=on no5lvl", RAM: testvm.SharedMemfd},
	{Kernel: "6.12-cloud", CPUs: 4, RAM: testvm.SharedMemfd},
	{Kernel: "7.2", CPUs: 2, Cmdline: "pti=on"},
	{Kernel: "7.2-cloud", CPUs: 1, Cmdline: "pti=on"},
	{Kernel: "7.2-cloud", CPUs: 4, Cmdline: "no5lvl"},
}

// checkMachine makes sure that a guest is what its row of the matrix says: a
// kernel may ignore what it is told.
func checkMachine(t *testing.T, vm *testvm.VM, k *kernel.Kernel) {
	t.Helper()
	info, err := vm.ReadFile(t.Context(), "/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	o := vm.Options
	mode, isolated := k.AddressSpace().Mode(), slices.Contains(strings.Fields(string(info)), "pti")
	cpus := strings.Count(string(info), "processor\t:")
	t.Logf("%s: %d processors, %v, page-table isolation %v", k.Release(), cpus, mode, isolated)
	wantMode, wantIsolated, wantCPUs := arch.Paging5Level, strings.Contains(o.Cmdline, "pti=on") || o.CPU == "Haswell", max(o.CPUs, 1)
	if strings.Contains(o.Cmdline, "no5lvl") || o.CPU == "Haswell" || strings.HasPrefix(o.Kernel, "5.10") { // compiled without the fifth level
		wantMode = arch.Paging4Level
	}
	if strings.Contains(o.Cmdline, "maxcpus=1") {
		wantCPUs = 1
	}
	if mode != wantMode || isolated != wantIsolated || cpus != wantCPUs {
		t.Errorf("want %d processors, %v, page-table isolation %v", wantCPUs, wantMode, wantIsolated)
	}
}

// guestName names a machine of the matrix.
func guestName(o *testvm.Options) string {
	return strings.Join(strings.Fields(fmt.Sprint(o.Kernel, " ", o.CPUs, o.RAM, " ", o.CPU, " ", o.Cmdline)), " ")
}

// implantSession returns a session with the implant engine.
func implantSession(t testing.TB, vm *testvm.VM, o *probe.Options) (*kernel.Kernel, *probe.Session) {
	t.Helper()
	if o == nil {
		o = &probe.Options{}
	}
	o.Engine = probe.Implant
	return engineSession(t, vm, o)
}

// start runs a session until the returned function is called, which fails the
// test on an error of Run.
func start(t testing.TB, s *probe.Session, ready func() bool) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for end := time.Now().Add(2 * time.Minute); !ready(); time.Sleep(10 * time.Millisecond) {
		select {
		case err := <-done:
			t.Fatalf("Run ended early: %v", err)
		default:
			if time.Now().After(end) {
				cancel()
				t.Fatalf("no hit within 2 minutes; Run: %v", <-done)
			}
		}
	}
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Fatalf("Run: %v", err)
		}
	}
}

// seen is a call as records have it.
type seen struct {
	args [6]uint64
	path string
	cap  bool
	ret  int64
	done bool
}

// watcher collects the calls of some threads, in order.
type watcher struct {
	tids  map[int]bool
	calls map[int][]*seenCall
	total atomic.Uint64
}

type seenCall struct {
	name string
	seen
}

func (w *watcher) probes(k *kernel.Kernel, s *probe.Session, t testing.TB) int {
	t.Helper()
	calls, err := k.Syscalls()
	if err != nil {
		t.Fatal(err)
	}
	var probes []*probe.Probe
	for _, c := range calls {
		path := map[string]int{"openat": 1, "unlinkat": 1}[c.Name]
		p := &probe.Probe{Func: "__x64_sys_" + c.Name, User: probe.UserRegs64, Enter: func(h *probe.Hit) any { return w.enter(h, c.Name, path) },
			Return: func(h *probe.Hit, v any) { w.leave(h, v) }}
		if path != 0 {
			p.Capture = []probe.Capture{{Arg: path, Max: 256, String: true}}
		}
		probes = append(probes, p)
	}
	n := 0
	planted, err := s.AddAll(probes)
	for _, p := range planted {
		if p != nil {
			n++
		}
	}
	t.Logf("%d system calls planted, %d refused: %.300v", n, len(probes)-n, err)
	return n
}

func (w *watcher) enter(h *probe.Hit, name string, path int) any {
	w.total.Add(1)
	if !w.tids[h.Thread.TID] {
		return nil
	}
	c := &seenCall{name: name}
	for i := range c.args {
		c.args[i], _ = h.UserArg(i)
	}
	if path != 0 {
		if b, _ := h.Captured(0); b != nil {
			c.path, c.cap = strings.TrimRight(string(b), "\x00"), true
		}
	}
	w.calls[h.Thread.TID] = append(w.calls[h.Thread.TID], c)
	return c
}

func (w *watcher) leave(h *probe.Hit, v any) {
	if c, ok := v.(*seenCall); ok && c != nil {
		c.ret, c.done = int64(h.Result()), true
	}
}

// checkSequence compares what a thread did with what was seen of it: its known
// calls in order, among others that its runtime makes.
func checkSequence(t *testing.T, want []wire.SeqCall, got map[int][]*seenCall) {
	t.Helper()
	at := map[int]int{}
	bad := 0
	for n, c := range want {
		calls := got[c.TID]
		i := at[c.TID]
		for i < len(calls) && (calls[i].name != c.Name || !cmp.Equal(calls[i].args[:len(c.Args)], c.Args) || c.Path != "" && calls[i].path != c.Path) {
			i++
		}
		if i == len(calls) {
			bad++
			if bad < 5 {
				t.Errorf("call %d of %d: %+v was not seen after %d of %d calls of the thread", n, len(want), c, at[c.TID], len(calls))
			}
			continue
		}
		if !calls[i].done || calls[i].ret != c.Ret {
			t.Errorf("call %d: %+v returned %d (%v)", n, c, calls[i].ret, calls[i].done)
		}
		at[c.TID] = i + 1
	}
	t.Logf("%d known calls, %d not seen", len(want), bad)
}

func TestImplant(t *testing.T) {
	for _, o := range implantGuests() {
		t.Run(guestName(&o), func(t *testing.T) { testImplant(t, &o) })
	}
}

func testImplant(t *testing.T, o *testvm.Options) {
	vm := vmtest.Shared(t, o)
	k, s := implantSession(t, vm, nil)
	checkMachine(t, vm, k)
	for i := range 3 {
		vmtest.Spawn(t, vm, "blocked", fmt.Sprint("blocked", i))
	}
	sequence := vmtest.Spawn(t, vm, "sequence", "seq", "2", "200")
	text := vmtest.SnapshotText(t, vm)
	if _, err := vm.Spawn(t.Context(), "load", "load"); err != nil {
		t.Fatal(err)
	}
	w := &watcher{tids: map[int]bool{}, calls: map[int][]*seenCall{}}
	for _, tid := range sequence.TIDs {
		w.tids[tid] = true
	}
	w.probes(k, s, t)
	stop := start(t, s, func() bool { return w.total.Load() > 0 })
	var want []wire.SeqCall
	for range 3 {
		calls, err := vm.Sequence(t.Context(), "seq")
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, calls...)
	}
	stop()
	st := s.Stats()
	st.PerFunc = nil
	if st.Planting == 0 || st.Removing == 0 {
		t.Error("the session does not tell how long the guest stood still")
	}
	t.Logf("%+v", st)
	checkSequence(t, want, w.calls)
	if st.Lost != 0 {
		t.Errorf("%d records were lost", st.Lost)
	}
	vmtest.Healthy(t, vm)
	for i := range 3 {
		var n int
		if err := vm.Tell(t.Context(), fmt.Sprint("blocked", i), "hello", &n); err != nil || n == 0 {
			t.Errorf("thread that was blocked the whole time answered %d, %v", n, err)
		}
	}
	if err := vm.Kill(t.Context(), "load"); err != nil {
		t.Error(err)
	}
	text.Unchanged(t)
}

// TestImplantVictim is no test of its own: TestImplantKilled runs it in a
// process that it kills.
func TestImplantVictim(t *testing.T) {
	qmp := os.Getenv("VITRINE_TEST_VICTIM")
	if qmp == "" {
		vmtest.Skip(t, "it is a part of TestImplantKilled", "when that runs it")
	}
	k, s := implantSession(t, &testvm.VM{QMP: qmp}, nil)
	functions := strings.Split(os.Getenv("VITRINE_TEST_VICTIM_HOOKS"), " ")
	if functions[0] == "all" {
		functions = nil
		calls, err := k.Syscalls()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range calls {
			functions = append(functions, "__x64_sys_"+c.Name)
		}
	}
	var seen atomic.Bool
	var probes []*probe.Probe
	for _, f := range functions {
		probes = append(probes, &probe.Probe{Func: f, Enter: func(*probe.Hit) any {
			if !seen.Swap(true) {
				fmt.Println("planted")
			}
			return nil
		}, Return: func(*probe.Hit, any) {}})
	}
	if _, err := s.AddAll(probes); err != nil {
		t.Fatal(err)
	}
	t.Fatal(s.Run(t.Context()))
}

const threeCalls = "__x64_sys_read __x64_sys_getppid __x64_sys_close"

func TestImplantKilled(t *testing.T) {
	for _, o := range implantGuests() {
		t.Run(guestName(&o), func(t *testing.T) { testImplantKilled(t, &o) })
	}
}

func testImplantKilled(t *testing.T, o *testvm.Options) {
	vm := vmtest.Shared(t, o)
	vmtest.Spawn(t, vm, "blocked", "blocked")
	vmtest.Spawn(t, vm, "getppid", "getppid")
	text := vmtest.SnapshotText(t, vm)
	killVictim(t, vm, threeCalls)
	g, err := qemu.Attach(t.Context(), vm.QMP, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	k, err := kernel.Describe(t.Context(), g, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(text.Changes(t)) == 0 {
		t.Fatal("the victim left nothing: the test proves nothing")
	}
	if rate := vmtest.Rate(t, vm, "getppid", time.Second); rate < 1000 {
		t.Errorf("with a dead host's implant in it the guest makes %.0f calls a second", rate)
	}
	found, err := probe.Repair(t.Context(), g, k)
	if err != nil || len(found) != 1 || !strings.Contains(found[0], "3 hooked functions") {
		t.Fatalf("Repair = %q, %v; want one implant with 3 functions", found, err)
	}
	text.Unchanged(t)
	if found, err := probe.Repair(t.Context(), g, k); err != nil || len(found) != 0 {
		t.Errorf("second Repair = %q, %v; want nothing", found, err)
	}
	var n int
	if err := vm.Tell(t.Context(), "blocked", "hello", &n); err != nil || n == 0 {
		t.Errorf("the blocked thread answered %d, %v", n, err)
	}
	vmtest.Healthy(t, vm)
}

// killVictim runs TestImplantVictim, which hooks the functions ("all" for all
// system calls), and kills it once it has seen a hit.
func killVictim(t *testing.T, vm *testvm.VM, functions string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestImplantVictim$", "-test.v")
	cmd.Env = append(os.Environ(), "VITRINE_TEST_VICTIM="+vm.QMP, "VITRINE_TEST_VICTIM_HOOKS="+functions)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var said []string
	for lines.Scan() && !strings.Contains(lines.Text(), "planted") {
		said = append(said, lines.Text())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Errorf("the victim ended by itself: %v: %q", err, said)
	}
	_ = cmd.Wait() // it was killed
}
