package implant

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
	"github.com/vitrine-vmi/vitrine/qemu"
)

// realKernels are the kernels that tests of the guest side run on; the
// environment can narrow them.
func realKernels() []string {
	if v := os.Getenv("VITRINE_TEST_KERNELS"); v != "" {
		return strings.Split(v, ",")
	}
	return []string{"5.10-cloud", "6.1-cloud", "6.12-cloud", "7.2-cloud"}
}

type target struct {
	vm *testvm.VM
	g  *vitrine.Guest
	k  *kernel.Kernel
}

// bootTarget boots and describes a guest.
func bootTarget(t *testing.T, o *testvm.Options) *target {
	t.Helper()
	vm := vmtest.Boot(t, o)
	g, err := qemu.Attach(t.Context(), vm.QMP, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	k, err := kernel.Describe(t.Context(), g, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &target{vm, g, k}
}

func (tg *target) points(t *testing.T, names ...string) []engine.Wanted {
	t.Helper()
	var w []engine.Wanted
	for _, n := range names {
		s, err := tg.k.Symbol(n)
		if err != nil {
			t.Fatal(err)
		}
		w = append(w, engine.Wanted{Point: &engine.Point{Name: n, Body: []engine.Range{{Start: s.Addr, Size: s.Size}}}, Returns: true})
	}
	return w
}

// counter is a handler that counts.
type counter struct {
	entries, returns, wrong atomic.Uint64
}

func (c *counter) Entered(h *engine.Hit) (any, bool, error) {
	c.entries.Add(1)
	return h.Point, true, nil
}

func (c *counter) Returned(h *engine.Hit, v any) error {
	c.returns.Add(1)
	if v != any(h.Point) {
		c.wrong.Add(1)
	}
	return nil
}

func TestRealStream(t *testing.T) {
	for _, name := range realKernels() {
		for _, ram := range []testvm.RAM{testvm.SharedMemfd} {
			t.Run(fmt.Sprintf("%s/%s", name, ram), func(t *testing.T) { testStream(t, &testvm.Options{Kernel: name, RAM: ram, CPUs: 1}) })
		}
	}
}

func testStream(t *testing.T, o *testvm.Options) {
	tg := bootTarget(t, o)
	ctx := t.Context()
	if _, err := tg.vm.TextBaseline(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := tg.vm.Spawn(ctx, "getppid", "gp"); err != nil {
		t.Fatal(err)
	}
	before, err := tg.vm.Rate(ctx, "gp", 1)
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(Config{Guest: tg.g, Facts: kernelFacts{tg.k}})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Change(ctx, tg.points(t, "__x64_sys_getppid", "__x64_sys_openat", "__x64_sys_close")); err != nil {
		t.Fatal(err)
	}
	var c counter
	runCtx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- e.Run(runCtx, &c) }()
	deadline := time.Now().Add(60 * time.Second)
	for c.entries.Load() == 0 && time.Now().Before(deadline) {
		select {
		case err := <-done:
			t.Fatal(err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	n0, t0 := c.entries.Load()+c.returns.Load(), time.Now()
	during, err := tg.vm.Rate(ctx, "gp", 2)
	n, d := c.entries.Load()+c.returns.Load()-n0, time.Since(t0)
	cancel()
	if runErr := <-done; runErr != nil || err != nil {
		t.Fatal(runErr, err)
	}
	st := e.Stats()
	t.Logf("before %+v during %+v: %.0f records/s, stats %+v", before, during, float64(n)/d.Seconds(), st)
	if c.entries.Load() == 0 || c.wrong.Load() != 0 {
		t.Errorf("entries %d, wrong %d", c.entries.Load(), c.wrong.Load())
	}
	after, err := tg.vm.Rate(ctx, "gp", 1)
	if err != nil {
		t.Fatal(err)
	}
	diff, err := tg.vm.TextDiff(ctx)
	t.Logf("after %+v, text %+v %v", after, diff, err)
}
