package probe_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/qemu"
)

func TestMain(m *testing.M) { vmtest.Main(m) }

// realGuests are the kernels and machines that probes are tried on.
var realGuests = []struct {
	name string
	vm   testvm.Options
}{
	{"6.1", testvm.Options{Kernel: "6.1-cloud", CPUs: 2, RAM: testvm.SharedMemfd}},
	{"6.12", testvm.Options{Kernel: "6.12-cloud", CPUs: 2}},
}

// session attaches to a guest and makes a session on it.
func session(t testing.TB, vm *testvm.VM) (*vitrine.Guest, *probe.Session) {
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
	s, err := probe.New(g, k, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return g, s
}

// runFor runs a session for a time, and fails the test on an error.
func runFor(t testing.TB, s *probe.Session, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := s.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestFirst(t *testing.T) {
	for _, c := range realGuests {
		t.Run(c.name, func(t *testing.T) {
			vm := vmtest.Shared(t, &c.vm)
			_, s := session(t, vm)
			vmtest.Spawn(t, vm, "open", "open")
			before := vmtest.Rate(t, vm, "open", time.Second)
			text := vmtest.SnapshotText(t, vm)
			log := map[string]int{}
			for _, f := range []string{"__x64_sys_openat", "__x64_sys_close", "__x64_sys_getppid"} {
				if _, err := s.Add(&probe.Probe{Func: f,
					Enter: func(h *probe.Hit) any { log[fmt.Sprint(h.Func, " enter ", h.Thread.Comm)]++; return h.Thread.TID },
					Return: func(h *probe.Hit, v any) {
						log[fmt.Sprint(h.Func, " leave ", h.Thread.Comm)]++
						if v != h.Thread.TID {
							t.Errorf("return in thread %d got %v", h.Thread.TID, v)
						}
					}}); err != nil {
					t.Fatal(err)
				}
			}
			runFor(t, s, 3*time.Second)
			st := s.Stats()
			t.Logf("%+v", st)
			for k, v := range log {
				t.Log(k, v)
			}
			text.Unchanged(t)
			vmtest.Healthy(t, vm)
			after := vmtest.Rate(t, vm, "open", time.Second)
			t.Log(before, after)
			_ = strings.TrimSpace
		})
	}
}
