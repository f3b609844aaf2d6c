package probe

import (
	"context"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe/internal/implant"
	"github.com/vitrine-vmi/vitrine/qemu"
)

// TestNoMemoryForImplants asks the guest's kernel for a ring that is larger than
// its memory: nothing of the implant may stay, and breakpoints do the work.
func TestNoMemoryForImplants(t *testing.T) {
	vm := vmtest.Shared(t, &testvm.Options{Kernel: "6.1-cloud", CPUs: 2, RAM: testvm.SharedMemfd})
	vmtest.Spawn(t, vm, "getppid", "g")
	text, before := vmtest.SnapshotText(t, vm), ownAreas(t, vm)
	g, err := qemu.Attach(t.Context(), vm.QMP, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	k, err := kernel.Describe(t.Context(), g, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(g, k, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h := s.engine.(*hybrid)
	h.implants, err = implant.New(implant.Config{Guest: g, Facts: kernelFacts{k}, Beside: h, Slots: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var hits atomic.Int64
	if _, err := s.Add(&Probe{Func: "__x64_sys_getppid", Enter: func(h *Hit) any {
		if !h.Sync() {
			t.Error("not a breakpoint's hit")
		}
		hits.Add(1)
		return nil
	}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for end := time.Now().Add(2 * time.Minute); hits.Load() < 10 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	}
	t.Logf("%d hits; %+v", hits.Load(), s.Stats())
	cancel()
	if err := <-done; err != nil || hits.Load() < 10 {
		t.Errorf("Run = %v after %d hits", err, hits.Load())
	}
	st := s.Stats()
	if st.Engine != Trap || st.Delivery != Sync || len(st.Notes) != 1 || !strings.Contains(st.Notes[0], "no memory") {
		t.Errorf("stats %+v", st)
	}
	text.Unchanged(t)
	if diff := cmp.Diff(before, ownAreas(t, vm)); diff != "" {
		t.Errorf("memory areas (-before +after):\n%s", diff)
	}
	vmtest.Healthy(t, vm)
}

// ownAreas returns the guest's areas of memory of such kinds as an implant asks
// for: for code, and large ones.
func ownAreas(t *testing.T, vm *testvm.VM) (lines []string) {
	t.Helper()
	b, err := vm.ReadFile(t.Context(), "/proc/vmallocinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		n, _ := strconv.Atoi(f[1])
		if strings.Contains(f[2], "execmem") || strings.Contains(f[2], "module_alloc") || n >= 1<<20 {
			lines = append(lines, strings.Join(f[:3], " "))
		}
	}
	if len(lines) == 0 {
		t.Fatal("the guest tells of no areas: the test proves nothing")
	}
	return lines
}
