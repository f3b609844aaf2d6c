package windows

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/tests/ntguest"
)

// eventLog keeps what a watch tells.
type eventLog struct {
	mu   sync.Mutex
	all  []osi.Event
	done chan error
}

func (l *eventLog) since(n int) []osi.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all[n:])
}

// watchGuest watches until the returned function is called.
func watchGuest(t *testing.T, v *vitrine.Guest, k *kernel.Kernel, sys osi.System) (*eventLog, func()) {
	t.Helper()
	s, err := probe.New(v, k, nil)
	if err != nil {
		t.Fatal(err)
	}
	l := &eventLog{done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		l.done <- osi.Events(ctx, sys, s, &osi.EventsOptions{Threads: true}, func(e *osi.Event) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.all = append(l.all, *e)
			return nil
		})
	}()
	return l, func() {
		cancel()
		if err := <-l.done; err != nil {
			t.Errorf("events: %v", err)
		}
		s.Close()
	}
}

// waitFor waits until a check holds.
func (l *eventLog) waitFor(t *testing.T, what string, check func([]osi.Event) bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !check(l.since(0)); time.Sleep(5 * time.Millisecond) {
		select {
		case err := <-l.done:
			l.done <- err
			t.Fatalf("wait for %s: the watch has ended: %v", what, err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("wait for %s: %+v", what, l.since(0))
		}
	}
}

func countKind(all []osi.Event, kind osi.EventKind) (n int) {
	for _, e := range all {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// said is what the guest tells of a start or an end.
type said struct {
	Time    ntguest.Addr
	Status  uint32
	PID     int
	TID     int
	Process ntguest.Process
}

// lives returns what the guest has said of starts and ends after its first n lines, by kind.
func lives(t *testing.T, g *ntguest.Guest, n int) map[string][]said {
	t.Helper()
	out := map[string][]said{}
	for _, l := range g.Lines(n) {
		switch l.Type {
		case "start", "exit", "thread-start", "thread-exit":
			var v said
			if err := l.Decode(&v); err != nil {
				t.Fatal(err)
			}
			out[l.Type] = append(out[l.Type], v)
		}
	}
	return out
}

// guestEvents compares events with what the guest tells: of processes that its
// kernel makes and that its programs make, some of them gone at once.
func guestEvents(t *testing.T, g *ntguest.Guest, v *vitrine.Guest, k *kernel.Kernel, sys osi.System, truth *ntguest.Truth) {
	t.Helper()
	log, stop := watchGuest(t, v, k, sys)
	log.waitFor(t, "those that exist", func(all []osi.Event) bool { return countKind(all, osi.EventExisting) >= len(truth.Processes)-1 })
	mark := len(g.Lines(0))
	p, err := g.Spawn(t.Context())
	if err == nil {
		err = g.Exit(t.Context(), p.PID)
	}
	const births = 4
	if err == nil {
		err = g.Births(t.Context(), births)
	}
	if err != nil {
		t.Fatal(err)
	}
	log.waitFor(t, "all ends", func(all []osi.Event) bool {
		return countKind(all, osi.EventExit) >= 1+births && countKind(all, osi.EventThreadExit) >= 2
	})
	stop()
	// The kernel notes an end before it tells of it.
	told := lives(t, g, mark)
	for deadline := time.Now().Add(2 * time.Minute); len(told["exit"]) < 1+births || len(told["thread-exit"]) < 2; told = lives(t, g, mark) {
		if time.Now().After(deadline) {
			t.Fatalf("the guest tells of %d ends, of threads %d", len(told["exit"]), len(told["thread-exit"]))
		}
		time.Sleep(5 * time.Millisecond)
	}
	if n := len(told["start"]); n != 1+births || len(told["exit"]) != n || len(told["thread-start"]) != 2 || len(told["thread-exit"]) != 2 {
		t.Errorf("the guest tells of %d starts, %d ends, of threads %d and %d", n, len(told["exit"]), len(told["thread-start"]), len(told["thread-exit"]))
	}
	sameStarts(t, log.since(0), told["start"], truth)
	sameEnds(t, log.since(0), told["exit"], told["thread-exit"])
	sameThreads(t, log.since(0), told["thread-start"])
}

// pick returns the events of a kind.
func pick(all []osi.Event, kind osi.EventKind) (out []osi.Event) {
	for _, e := range all {
		if e.Kind == kind {
			out = append(out, e)
		}
	}
	return out
}

func sameStarts(t *testing.T, all []osi.Event, told []said, truth *ntguest.Truth) {
	t.Helper()
	type seen struct {
		PID, PPID, TID  int
		Name, Exe, Args string
		Time            time.Time
		Parent          string
	}
	ids := map[int]string{}
	for _, e := range pick(all, osi.EventExisting) {
		ids[e.PID] = e.ID
	}
	if len(ids) != len(truth.Processes)-1 {
		t.Errorf("%d processes existed, the guest has %d", len(ids), len(truth.Processes)-1)
	}
	var got, want []seen
	for _, e := range pick(all, osi.EventStart) {
		if e.Err != nil {
			t.Errorf("%+v: %v", e, e.Err)
		}
		got = append(got, seen{e.PID, e.PPID, e.TID, e.Name, e.Exe, strings.Join(e.Args, " "), e.Time, e.ParentID})
	}
	for _, s := range told {
		p := &s.Process
		exe := strings.Replace(p.Path, "C:", volume, 1)
		tid := 0
		for _, e := range pick(all, osi.EventStart) {
			if e.PID == p.PID {
				tid = e.TID // until 2003 the guest tells of the process before it has a thread
			}
		}
		if len(p.Threads) > 0 {
			tid = p.Threads[0].TID
		}
		want = append(want, seen{p.PID, p.PPID, tid, p.Image, exe, strings.Join(splitCommand(p.CommandLine), " "), kernel.Filetime(uint64(p.Created)), ids[p.PPID]})
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("starts (-guest +events):\n%s", diff)
	}
}

func sameEnds(t *testing.T, all []osi.Event, told, threads []said) {
	t.Helper()
	for _, s := range told {
		s.PID = s.Process.PID
		checkEnd(t, all, osi.EventExit, s)
	}
	for _, s := range threads {
		checkEnd(t, all, osi.EventThreadExit, s)
	}
	if n := countKind(all, osi.EventExit) + countKind(all, osi.EventThreadExit); n != len(told)+len(threads) {
		t.Errorf("%d ends, the guest tells of %d", n, len(told)+len(threads))
	}
}

// checkEnd looks for the event of an end. Where nothing was left to read when it
// was looked at, the time is that of looking.
func checkEnd(t *testing.T, all []osi.Event, kind osi.EventKind, s said) {
	t.Helper()
	for _, e := range pick(all, kind) {
		if e.PID != s.PID || s.TID != 0 && e.TID != s.TID {
			continue
		}
		if late := e.Time.Sub(kernel.Filetime(uint64(s.Time))); late < 0 || late > time.Minute {
			t.Errorf("%v of %d at %v, %v after the guest", kind, e.PID, e.Time, late)
		}
		if e.Err == nil && e.ExitCode != int(s.Status) || e.Err != nil && kind == osi.EventExit {
			t.Errorf("%v of %d with %#x, %v, want %#x", kind, e.PID, e.ExitCode, e.Err, s.Status)
		}
		return
	}
	t.Errorf("%v of %+v is not told", kind, s)
}

func sameThreads(t *testing.T, all []osi.Event, told []said) {
	t.Helper()
	var got, want []int
	for _, e := range pick(all, osi.EventThreadStart) {
		got = append(got, e.TID)
	}
	for _, s := range told {
		want = append(want, s.TID)
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("threads that began (-guest +events):\n%s", diff)
	}
}
