package trace_test

import (
	"context"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"github.com/vitrine-vmi/vitrine/syscalls"
	"github.com/vitrine-vmi/vitrine/trace"
)

// ia32Names are the calls of the workload "ia32" that the Go runtime does not make all the time.
var ia32Names = []string{"openat", "_llseek", "lseek", "pread64", "getuid32", "getppid", "clock_gettime64", "mmap2", "close", "getpgid"}

// testIA32 traces what programs call by the interface of 32-bit x86: a 32-bit program by int 0x80 and by the vDSO, and a
// 64-bit one by int 0x80.
func testIA32(t *testing.T, x *target) {
	native := x.k.Arch() == arch.I386 // a 32-bit kernel, which takes no implants
	every := os.Getenv("VITRINE_TEST_TRACE") == "all"
	_, err := x.k.Symbol("ia32_sys_call")
	dispatched := err == nil
	for _, c := range []struct {
		name, engine string
		names        []string
		run, exact   bool
	}{
		{"trap", "trap", ia32Names, true, false},
		{"trap all", "trap", nil, every || native, dispatched},
		{"implant", "implant", ia32Names, every && !native, false},
		{"implant all", "implant", nil, !native, false},
	} {
		if c.run {
			t.Run(c.name, func(t *testing.T) { traceIA32(t, x, c.engine, c.names, c.exact) })
		}
	}
	vmtest.Healthy(t, x.vm)
}

func traceIA32(t *testing.T, x *target, engine string, names []string, exact bool) {
	pids := map[string]int{}
	programs := map[string]bool{"ia32": true, "ia32-64": false}
	if x.k.Arch() == arch.I386 {
		programs = map[string]bool{"ia32": false} // its own programs are such
	}
	for name, bits32 := range programs {
		pids[name] = vmtest.SpawnWith(t, x.vm, wire.SpawnArgs{Kind: "ia32", Name: name, Bits32: bits32}).PID
	}
	got := map[int][]event.Call{}
	o := &trace.CallsOptions{Names: names, PIDs: slices.Collect(maps.Values(pids)), Engine: engine}
	if names == nil && engine == "implant" {
		o.Ignore = []string{"perf_event_open"} // compiled without ftrace's nop in 5.10
	}
	end := inBackground(t, x.vm, func(ctx context.Context) error {
		st, err := trace.Calls(ctx, x.g, x.k, x.sys, o, func(c *event.Call) error {
			got[c.TID] = append(got[c.TID], *c)
			return nil
		})
		if err == nil && (st.Lost != 0 || st.Engine != engine) {
			t.Errorf("stats %+v", st)
		}
		return err
	})
	want := map[string][]wire.SeqCall{}
	for name := range pids {
		var calls []wire.SeqCall
		if err := x.vm.Tell(t.Context(), name, "go", &calls); err != nil {
			t.Fatal(err)
		}
		want[name] = calls
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	for name, calls := range want {
		exact := exact || engine == "trap"
		t.Run(name, func(t *testing.T) { compareIA32(t, calls, got, names, exact) })
	}
}

// compareIA32 looks for each call of a workload among the records of its thread: in order, and once.
func compareIA32(t *testing.T, want []wire.SeqCall, got map[int][]event.Call, names []string, exact bool) {
	if len(want) < 20 {
		t.Fatalf("the guest made %d calls", len(want))
	}
	at := map[int]int{}
	for i, w := range want {
		if names != nil && !slices.Contains(names, w.Name) {
			continue
		}
		all := got[w.TID]
		rest := all[at[w.TID]:]
		is := func(c event.Call) bool { return isIA32(c, w, exact) }
		n := slices.IndexFunc(rest, is)
		if n < 0 {
			t.Errorf("call %d, %+v, was not seen behind the one before, among %+v", i, w, rest[:min(3, len(rest))])
			continue
		}
		if slices.ContainsFunc(rest[n+1:], func(c event.Call) bool { return c.Time.Equal(rest[n].Time) && is(c) }) {
			t.Errorf("call %d, %+v, was seen twice", i, w)
		}
		at[w.TID] += n + 1
	}
}

// sharedCalls are those for which the kernel has one function for both interfaces, with the name of the 64-bit one.
var sharedCalls = map[string]string{"getuid32": "getuid"}

// isIA32 compares all that the workload knows of a call.
func isIA32(c event.Call, w wire.SeqCall, exact bool) bool {
	same := c.Name == w.Name || !exact && c.Name == sharedCalls[w.Name]
	if !same || c.Event != event.Joined || c.Ret != w.Ret || len(w.Args) > 0 && len(c.Args) == 0 {
		return false
	}
	for i, a := range c.Args[:min(len(c.Args), len(w.Args))] { // of the sixth the workload knows nothing
		if a.Value != w.Args[i] {
			return false
		}
	}
	errno := ""
	if w.Ret < 0 {
		errno = syscalls.Errno(-w.Ret)
	}
	return c.Errno == errno && (w.Path == "" || c.Args[1].Text == `"`+w.Path+`"`)
}
