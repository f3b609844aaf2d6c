package probe_test

import (
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
)

// stood adds up the times between the monitor's STOP and RESUME events.
func stood(events []testvm.Event) (d time.Duration, stops int) {
	var since time.Time
	for _, e := range events {
		switch {
		case e.Name == "STOP":
			since = e.Time
		case e.Name == "RESUME" && !since.IsZero():
			d += e.Time.Sub(since)
			since = time.Time{}
			stops++
		}
	}
	return d, stops
}

// TestImplantCost plants all system calls and takes them out; QEMU's own account
// of how long the guest stood still must bear out that of the session.
func TestImplantCost(t *testing.T) {
	vm := vmtest.Shared(t, &quickGuest)
	vmtest.Spawn(t, vm, "getppid", "g")
	vmtest.Spawn(t, vm, "load", "load")
	k, s := implantSession(t, vm, nil)
	w := &watcher{}
	w.probes(k, s, t)
	for range 3 {
		n, before := len(vm.Events(0)), s.Stats()
		w.total.Store(0)
		stop := start(t, s, func() bool { return w.total.Load() > 0 })
		planted, m := s.Stats(), len(vm.Events(0))
		stop()
		if err := vm.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		removed := s.Stats()
		in, inStops := stood(vm.Events(n)[:m-n])
		out, outStops := stood(vm.Events(m))
		planting, removing := planted.Planting-before.Planting, removed.Removing-planted.Removing
		t.Logf("planting: stood still for %v in %d stops, by the session %v; taking out: %v in %d stops, %v", in, inStops, planting, out, outStops, removing)
		if planting < in/2 || removing < out/2 || planting == 0 || removing == 0 || inStops == 0 || outStops == 0 {
			t.Error("the session does not count all of it")
		}
		if removed.Stopped != removed.Planting+removed.Removing {
			t.Errorf("%v in all, of which %v and %v", removed.Stopped, removed.Planting, removed.Removing)
		}
	}
}
