package probe_test

import (
	"context"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/probe"
)

// BenchmarkTrap measures stops per second on a guest of one processor: the
// cheapest call, entry only and with its return, and opening and closing files.
// Under TCG most of a stop goes into the guest translating its code anew, since
// QEMU's gdbstub throws all translations away at each breakpoint: the more code
// runs between two stops, the fewer there are. ours-us is the share that is
// spent here, with the guest standing still.
func BenchmarkTrap(b *testing.B) {
	vm := vmtest.Shared(b, &testvm.Options{Kernel: "6.1-cloud", RAM: testvm.SharedMemfd})
	none := func(*probe.Hit, any) {}
	for _, c := range []struct {
		name, workload string
		funcs          []string
		leave          func(*probe.Hit, any)
	}{
		{"getppid-entry", "getppid", []string{"__x64_sys_getppid"}, nil},
		{"getppid-entry-return", "getppid", []string{"__x64_sys_getppid"}, none},
		{"open-close-entry-return", "open", []string{"__x64_sys_openat", "__x64_sys_close"}, none},
	} {
		b.Run(c.name, func(b *testing.B) {
			_, s := trapSession(b, vm.QMP)
			spawn(b, vm, c.workload, c.workload)
			untraced := vmtest.Rate(b, vm, c.workload, time.Second)
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			n := 0
			for _, f := range c.funcs {
				mustAdd(b, s, &probe.Probe{Func: f, Return: c.leave, Enter: func(*probe.Hit) any {
					if n++; n >= b.N {
						cancel()
					}
					return nil
				}})
			}
			b.ResetTimer()
			if err := s.Run(ctx); err != nil {
				b.Fatal(err)
			}
			st := s.Stats()
			stops := float64(st.Entries + st.Returns + st.Stray)
			b.ReportMetric(stops/b.Elapsed().Seconds(), "stops/s")
			b.ReportMetric(float64(st.Stopped.Microseconds())/stops, "ours-us")
			b.ReportMetric(untraced, "untraced-calls/s")
			if err := vm.Quiet(b.Context()); err != nil {
				b.Fatal(err)
			}
		})
	}
}
