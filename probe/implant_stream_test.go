package probe_test

import (
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/probe"
)

// streamTime is how long TestImplantStream traces; the environment can make it
// longer: VITRINE_TEST_STREAM=5m.
func streamTime(t *testing.T) time.Duration {
	v := os.Getenv("VITRINE_TEST_STREAM")
	if v == "" {
		return 3 * time.Second
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestImplantStream holds that lossless mode loses nothing under the densest
// load there is, by the guest's own count of its calls.
func TestImplantStream(t *testing.T) {
	vm := vmtest.Shared(t, &quickGuest)
	vmtest.Spawn(t, vm, "getppid", "dense", "256", "2") // a thread for each processor
	k, s := implantSession(t, vm, nil)
	var entries, records, results atomic.Uint64
	calls, err := k.Syscalls()
	if err != nil {
		t.Fatal(err)
	}
	var probes []*probe.Probe
	for _, c := range calls {
		p := &probe.Probe{Func: "__x64_sys_" + c.Name, User: probe.UserRegs64, Enter: func(*probe.Hit) any { records.Add(1); return nil }, Return: func(*probe.Hit, any) { records.Add(1) }}
		if c.Name == "getppid" {
			p.Enter = func(h *probe.Hit) any { entries.Add(1); records.Add(1); return h.Thread.PPID }
			p.Return = func(h *probe.Hit, v any) {
				records.Add(1)
				if v != int(h.Result()) {
					results.Add(1)
				}
			}
		}
		probes = append(probes, p)
	}
	if _, err := s.AddAll(probes); err != nil {
		t.Logf("not planted: %.300v", err)
	}
	stop := start(t, s, func() bool { return entries.Load() > 0 })
	deadline, begin, first := time.Now().Add(streamTime(t)), time.Now(), records.Load()
	counted := uint64(0)
	for time.Now().Before(deadline) {
		// The guest counts within the time that entries are counted here.
		before := entries.Load()
		r, err := vm.Rate(t.Context(), "dense", min(10, streamTime(t).Seconds()/2))
		if err != nil {
			t.Fatal(err)
		}
		counted += r.Count
		for end := time.Now().Add(time.Minute); entries.Load() < before+r.Count; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d entries of %d calls", entries.Load()-before, r.Count)
			}
		}
	}
	took, n := time.Since(begin), records.Load()-first
	stop()
	st := s.Stats()
	t.Logf("%d records in %v, %.0f/s; %d calls counted by the guest; %d lost, %d stalls", n, took.Round(time.Millisecond), float64(n)/took.Seconds(), counted, st.Lost, st.Stalls)
	if st.Lost != 0 || st.Stalls != 0 || results.Load() != 0 {
		t.Errorf("%d records lost, %d stalls, %d wrong results", st.Lost, st.Stalls, results.Load())
	}
}
