package osi

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/probe"
)

// madeUp is a source whose list waits until the test lets it go.
type madeUp struct {
	procs []Process
	err   error
	hold  chan struct{}
}

func (m *madeUp) EventProbes([]EventKind, func(Event)) ([]*probe.Probe, error) { return nil, nil }

func (m *madeUp) Alive(context.Context) iter.Seq2[Process, error] {
	return func(yield func(Process, error) bool) {
		<-m.hold
		for _, p := range m.procs {
			if !yield(p, nil) {
				return
			}
		}
		if m.err != nil {
			yield(Process{}, m.err)
		}
	}
}

// told is what a watch emits, in short.
type told struct {
	mu  sync.Mutex
	out []string
}

func (o *told) emit(e *Event) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.out = append(o.out, fmt.Sprintf("%v %s", e.Kind, e.ID))
	return nil
}

func (o *told) told() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.out)
}

func TestWatchPutsListAndStreamTogether(t *testing.T) {
	ev := func(k EventKind, id string) Event { return Event{Kind: k, ID: id} }
	for _, tt := range []struct {
		name   string
		listed string  // IDs
		before []Event // the list is out
		after  []Event
		want   string
	}{
		{"list only", "a b", nil, nil, "existing a, existing b"},
		{"started before the list", "a b", []Event{ev(EventStart, "b")}, nil, "existing a, start b"},
		{"on the list before its start is told", "a b", nil, []Event{ev(EventStart, "b"), ev(EventExit, "b")}, "existing a, existing b, exit b"},
		{"ended before the list", "a", []Event{ev(EventExit, "x")}, nil, "existing a, existing x, exit x"},
		{"lived shortly", "a", []Event{ev(EventStart, "s"), ev(EventExec, "s"), ev(EventExit, "s")}, nil, "existing a, start s, exec s, exit s"},
		{"not on a torn list", "a", nil, []Event{ev(EventExec, "x"), ev(EventExit, "x")}, "existing a, existing x, exec x, exit x"},
		{"the same process twice on the list", "a a", nil, nil, "existing a"},
		{"threads and switches pass", "a", []Event{ev(EventThreadStart, "a")}, []Event{ev(EventTaskChange, "0"), ev(EventThreadExit, "a")}, "existing a, thread-start a, task-change 0, thread-exit a"},
		{"an id again", "a", nil, []Event{ev(EventExit, "a"), ev(EventStart, "a"), ev(EventExit, "a")}, "existing a, exit a, start a, exit a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := &madeUp{hold: make(chan struct{})}
			for _, id := range strings.Fields(tt.listed) {
				src.procs = append(src.procs, Process{ID: id})
			}
			var o told
			w := newWatch(false, o.emit, func() {})
			w.begin(t.Context(), src, nil)
			for _, e := range tt.before {
				w.happened(e)
			}
			close(src.hold)
			w.listing.Wait()
			for _, e := range tt.after {
				w.happened(e)
			}
			w.end()
			w.happened(ev(EventStart, "late"))
			if diff := cmp.Diff(tt.want, strings.Join(o.out, ", ")); diff != "" || w.err != nil {
				t.Errorf("told (-want +got), error %v:\n%s", w.err, diff)
			}
		})
	}
}

func TestWatchWithoutExisting(t *testing.T) {
	src := &madeUp{hold: make(chan struct{}), procs: []Process{{ID: "a"}}}
	close(src.hold)
	var o told
	w := newWatch(true, o.emit, func() {})
	w.begin(t.Context(), src, nil)
	w.listing.Wait()
	w.happened(Event{Kind: EventExit, ID: "a"})
	if diff := cmp.Diff([]string{"exit a"}, o.out); diff != "" {
		t.Error(diff)
	}
}

func TestWatchFails(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name string
		src  *madeUp
		emit func(*Event) error
		want string
	}{
		{"emit", &madeUp{procs: []Process{{ID: "a"}, {ID: "b"}}}, func(*Event) error { return broken }, "broken"},
		{"emit panics", &madeUp{procs: []Process{{ID: "a"}}}, func(*Event) error { panic("enough") }, "enough"},
		{"list", &madeUp{err: broken}, func(*Event) error { return nil }, "list processes: broken"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.src.hold = make(chan struct{})
			close(tt.src.hold)
			ctx, cancel := context.WithCancel(t.Context())
			w := newWatch(false, tt.emit, cancel)
			w.begin(ctx, tt.src, nil)
			<-ctx.Done()
			w.end()
			if w.err == nil || !strings.Contains(w.err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", w.err, tt.want)
			}
		})
	}
}

// What a source sees by looking goes where the probes' events go, until the end.
func TestWatchLooks(t *testing.T) {
	src := &madeUp{hold: make(chan struct{}), procs: []Process{{ID: "a"}}}
	close(src.hold)
	ctx, cancel := context.WithCancel(t.Context())
	var o told
	w := newWatch(false, o.emit, cancel)
	w.begin(ctx, src, func(ctx context.Context) {
		w.happened(Event{Kind: EventStart, ID: "b"})
		<-ctx.Done()
		w.happened(Event{Kind: EventExit, ID: "b"})
	})
	for len(o.told()) < 2 {
		runtime.Gosched()
	}
	cancel()
	w.end()
	got := o.told()
	slices.Sort(got[:2]) // the list is made meanwhile
	if diff := cmp.Diff([]string{"existing a", "start b"}, got[:2]); diff != "" || w.err != nil {
		t.Errorf("%v\n%s", w.err, diff)
	}
}

// A panic of emit while looking ends the watch as one in a callback does.
func TestWatchLookPanics(t *testing.T) {
	src := &madeUp{hold: make(chan struct{})}
	close(src.hold)
	ctx, cancel := context.WithCancel(t.Context())
	w := newWatch(false, func(*Event) error { panic("enough") }, cancel)
	w.begin(ctx, src, func(context.Context) { panic("of its own") })
	<-ctx.Done()
	w.end()
	var p *probe.PanicError
	if !errors.As(w.err, &p) {
		t.Errorf("error %v", w.err)
	}
}

// watching is a source that looks.
type watching struct{ madeUp }

func (w *watching) WatchEvents(context.Context, []EventKind, func(Event)) ([]*probe.Probe, func(context.Context), error) {
	return []*probe.Probe{{Func: "f"}}, func(context.Context) {}, nil
}

func TestWatched(t *testing.T) {
	probes, look, err := watched(t.Context(), &watching{}, nil, nil)
	if len(probes) != 1 || look == nil || err != nil {
		t.Errorf("%d probes, %v", len(probes), err)
	}
	if probes, look, err = watched(t.Context(), &madeUp{}, nil, nil); len(probes) != 0 || look != nil || err != nil {
		t.Errorf("%d probes, %v, of one that does not look", len(probes), err)
	}
}

// TestWatchBoundsWhatWaits has more events than may wait for the list.
func TestWatchBoundsWhatWaits(t *testing.T) {
	src := &madeUp{hold: make(chan struct{}), procs: []Process{{ID: "a"}}}
	n := 0
	w := newWatch(false, func(*Event) error { n++; return nil }, func() {})
	w.begin(t.Context(), src, nil)
	for range maxWaiting {
		w.happened(Event{Kind: EventTaskChange})
	}
	passed := make(chan struct{})
	go func() {
		w.happened(Event{Kind: EventTaskChange})
		close(passed)
	}()
	close(src.hold)
	<-passed
	w.end()
	if n != maxWaiting+2 {
		t.Errorf("%d events, want %d", n, maxWaiting+2)
	}
}

func TestEventKindString(t *testing.T) {
	if s := EventTaskChange.String() + " " + EventKind(99).String(); s != "task-change EventKind(99)" {
		t.Error(s)
	}
}
