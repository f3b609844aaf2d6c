package linux_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/seen"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/vitrinetest/providertest"
)

// count returns how many of something to do: VITRINE_TEST_EVENTS, in percent of
// what the documentation promises to have been tested, or else few.
func count(full, few int) int {
	if percent, err := strconv.Atoi(os.Getenv("VITRINE_TEST_EVENTS")); err == nil {
		return full * percent / 100
	}
	return few
}

// recorder collects events of a guest.
type recorder struct {
	sys     osi.System
	session *probe.Session
	cancel  context.CancelFunc
	done    chan error

	mu     sync.Mutex // protects the fields below
	events []osi.Event
	alive  map[string]bool // by ID: told of, and not ended
}

// record watches events until stop.
func record(t testing.TB, vm *testvm.VM, g *vitrine.Guest, engine probe.Engine, o *osi.EventsOptions) *recorder {
	t.Helper()
	k, err := kernel.Describe(t.Context(), g, &kernel.Options{Symbols: vm.Kernel.Symbols()})
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{done: make(chan error, 1), alive: map[string]bool{}}
	if r.sys, err = osi.Open(t.Context(), g, k, nil); err != nil {
		t.Fatal(err)
	}
	if r.session, err = probe.New(g, k, &probe.Options{Engine: engine}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	running := make(chan struct{})
	r.session.WhenRunning(func() { close(running) })
	go func() {
		r.done <- osi.Events(ctx, r.sys, r.session, o, func(e *osi.Event) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, *e)
			switch e.Kind {
			case osi.EventExisting, osi.EventStart:
				r.alive[e.ID] = true
			case osi.EventExit:
				delete(r.alive, e.ID)
			}
			return nil
		})
	}()
	select {
	case <-running:
	case err := <-r.done:
		t.Fatalf("Events ended early: %v", err)
	case <-time.After(4 * time.Minute):
		t.Fatal("the probes are not in after 4 minutes")
	}
	return r
}

// living returns those that are alive as of the latest event.
func (r *recorder) living() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.alive)
}

// await waits until some event is as wanted.
func (r *recorder) await(t testing.TB, what string, is func(*osi.Event) bool) {
	t.Helper()
	seen := 0
	for end := time.Now().Add(4 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		r.mu.Lock()
		found := slices.ContainsFunc(r.events[seen:], func(e osi.Event) bool { return is(&e) })
		seen = len(r.events)
		r.mu.Unlock()
		if found {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no event of %s within 4 minutes; %d events", what, seen)
		}
	}
}

// stop ends the watch and returns all events.
func (r *recorder) stop(t testing.TB) []osi.Event {
	t.Helper()
	r.cancel()
	if err := <-r.done; err != nil {
		t.Fatalf("Events: %v", err)
	}
	if st := r.session.Stats(); st.Lost != 0 {
		t.Errorf("%d events were lost: %+v", st.Lost, st)
	}
	return r.events // nobody adds to them any more
}

// TestEvents has guests with two processors do a lot. By default that is left to
// TestRealGuests, which does less of it.
func TestEvents(t *testing.T) {
	if os.Getenv("VITRINE_TEST_EVENTS") == "" {
		vmtest.Skip(t, "TestRealGuests does the same in short", "with VITRINE_TEST_EVENTS=100, for a percentage")
	}
	for _, o := range guests() {
		if strings.HasSuffix(o.Kernel, "-arm64") {
			continue // TestRealGuests does what breakpoints alone can do in a while
		}
		o.CPUs = 2
		for _, engine := range []probe.Engine{probe.Implant, probe.Trap} {
			t.Run(o.Kernel+"/"+string(engine), func(t *testing.T) {
				vm := vmtest.Shared(t, &o)
				g, _, _ := seen.Open(t, vm)
				if engine == probe.Trap { // it takes that much longer
					testLoops(t, vm, g, engine, count(500, 0), count(50, 0))
				} else {
					testLoops(t, vm, g, engine, count(20000, 0), count(2000, 0))
				}
			})
		}
	}
}

// loop is what a shell in the guest does again and again.
type loop struct {
	script string
	n      int
	pid    int
}

// forks ends children with changing statuses; execs has them run a program first.
const (
	forks = `echo $$; i=0; while [ $i -lt %d ]; do ( exit $((i %% 200)) ); i=$((i + 1)); done; true`
	execs = `echo $$; i=0; while [ $i -lt %d ]; do /bin/busybox sh -c 'exit $1' program $((i %% 200)) $i; i=$((i + 1)); done; true`
)

// testLoops has two shells fork, and then two execute, side by side.
func testLoops(t *testing.T, vm *testvm.VM, g *vitrine.Guest, engine probe.Engine, nForks, nExecs int) {
	text := vmtest.SnapshotText(t, vm)
	r := record(t, vm, g, engine, nil)
	began := time.Now()
	loops := []*loop{{forks, nForks / 2, 0}, {forks, nForks - nForks/2, 0}, {execs, nExecs / 2, 0}, {execs, nExecs - nExecs/2, 0}}
	for at := 0; at < len(loops); at += 2 {
		var wg sync.WaitGroup
		for _, l := range loops[at : at+2] {
			wg.Go(func() {
				out, err := vm.Run(t.Context(), "sh", "-c", fmt.Sprintf(l.script, l.n))
				if err == nil {
					l.pid, err = strconv.Atoi(strings.TrimSpace(string(out)))
				}
				if err != nil {
					t.Errorf("loop: %v", err)
				}
			})
		}
		wg.Wait()
	}
	for _, l := range loops {
		r.await(t, fmt.Sprintf("the end of shell %d", l.pid), func(e *osi.Event) bool { return e.PID == l.pid && e.Kind == osi.EventExit })
	}
	took := time.Since(began)
	events := r.stop(t)
	t.Logf("%d events in %v: %+v", len(events), took, r.session.Stats())
	providertest.Events(t, events)
	for _, l := range loops {
		checkLoop(t, events, l)
	}
	text.Unchanged(t)
	vmtest.Healthy(t, vm)
}

// checkLoop checks the children of a shell: all of them, in order, with their
// statuses, names and arguments.
func checkLoop(t *testing.T, events []osi.Event, l *loop) {
	t.Helper()
	byID := map[string][]osi.Event{}
	var order []string
	var parent string
	for _, e := range events {
		if e.PID == l.pid && e.Kind == osi.EventStart {
			parent = e.ID
		}
		if e.PPID != l.pid {
			continue
		}
		if e.Kind == osi.EventStart {
			order = append(order, e.ID)
		}
		byID[e.ID] = append(byID[e.ID], e)
	}
	if len(order) != l.n || parent == "" {
		t.Errorf("shell %d (%q) made %d processes, want %d", l.pid, parent, len(order), l.n)
	}
	wrong := 0
	for i, id := range order {
		if diff := l.differs(i, byID[id], parent); diff != "" {
			if wrong++; wrong <= 3 {
				t.Errorf("child %d of shell %d: %s: %+v", i, l.pid, diff, byID[id])
			}
		}
	}
	if wrong > 3 {
		t.Errorf("%d children of shell %d in all are not as they should be", wrong, l.pid)
	}
}

// differs tells what is wrong with the events of a loop's i-th child.
func (l *loop) differs(i int, got []osi.Event, parent string) string {
	kinds := []osi.EventKind{osi.EventStart, osi.EventExit}
	name, exe, last := "sh", "/bin/busybox", ""
	if l.script == execs {
		kinds = []osi.EventKind{osi.EventStart, osi.EventExec, osi.EventExit}
		name, last = "busybox", strconv.Itoa(i)
	}
	if len(got) != len(kinds) {
		return fmt.Sprintf("%d events, want %d", len(got), len(kinds))
	}
	for j, e := range got {
		want := name
		if j == 0 {
			want = "sh"
		}
		switch {
		case e.Kind != kinds[j]:
			return fmt.Sprintf("event %d is %v, want %v", j, e.Kind, kinds[j])
		case e.Name != want || e.Exe != exe || e.ParentID != parent || e.UID != 0 || e.PID != got[0].PID:
			return fmt.Sprintf("event %d is of %q (%s), want %q (%s) with parent %s", j, e.Name, e.Exe, want, exe, parent)
		case j > 0 && last != "" && (len(e.Args) == 0 || e.Args[len(e.Args)-1] != last):
			return fmt.Sprintf("event %d has arguments %q, want the last to be %s", j, e.Args, last)
		}
	}
	if end := got[len(got)-1]; end.ExitCode != i%200 || end.Signal != 0 {
		return fmt.Sprintf("status %d, signal %d, want status %d", end.ExitCode, end.Signal, i%200)
	}
	return ""
}
