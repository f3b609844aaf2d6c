package osi

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/vitrine-vmi/vitrine/probe"
)

// watch puts the list of the processes that are there and the stream of what
// happens together.
//
// The list is made after the probes are planted, while events wait. What is on
// the list and was not seen to start existed. What is seen to exec or end and
// was neither on the list nor seen to start existed too: it ended before the
// list came to it. What starts though it was on the list had been put there
// before the kernel came to the function that tells of the start.
type watch struct {
	noExisting bool
	cancel     context.CancelFunc
	listing    sync.WaitGroup // and looking

	mu      sync.Mutex // protects the fields below
	room    sync.Cond  // on mu: waiting has become shorter, or the watch has ended
	emit    func(*Event) error
	listed  bool                // the list is out
	ended   bool                // nothing is emitted any more
	waiting []Event             // until the list is out
	alive   map[string]struct{} // IDs of those that were told of and have not ended
	err     error               // of emit, or of the list
}

// maxWaiting bounds the events that wait for the list.
const maxWaiting = 1 << 16

func newWatch(noExisting bool, emit func(*Event) error, cancel context.CancelFunc) *watch {
	w := &watch{noExisting: noExisting, emit: emit, cancel: cancel, alive: map[string]struct{}{}}
	w.room.L = &w.mu
	return w
}

// begin starts the list, and look if there is one: the probes are planted.
func (w *watch) begin(ctx context.Context, src EventSource, look func(context.Context)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	w.listing.Add(1)
	go func() {
		defer w.listing.Done()
		w.list(ctx, src)
	}()
	if look != nil {
		w.listing.Add(1)
		go func() {
			defer w.listing.Done()
			defer func() {
				if v := recover(); v != nil {
					w.mu.Lock()
					defer w.mu.Unlock()
					w.panicked(v)
				}
			}()
			look(ctx)
		}()
	}
}

// list makes the list and lets the events that waited go.
func (w *watch) list(ctx context.Context, src EventSource) {
	var all []Process
	var failed error
	for p, err := range src.Alive(ctx) {
		if p.ID != "" {
			all = append(all, p)
		} else if err != nil {
			failed = err // its events, if it has any, will make it known
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.room.Broadcast()
	defer w.guard()
	if len(all) == 0 && failed != nil {
		w.fail(fmt.Errorf("list processes: %w", failed))
		return
	}
	w.existing(all)
	for i := range w.waiting {
		w.deliver(&w.waiting[i])
	}
	w.waiting, w.listed = nil, true
}

// guard makes a panic of emit on this goroutine what it is on that of the
// probes: the end of the watch, with the guest left clean.
func (w *watch) guard() {
	if v := recover(); v != nil {
		w.panicked(v)
	}
}

func (w *watch) panicked(v any) {
	w.fail(&probe.PanicError{Func: "Events", Value: v, Stack: debug.Stack()})
}

// existing emits the listed processes, but for those whose start was seen.
func (w *watch) existing(all []Process) {
	started := map[string]bool{}
	for i := range w.waiting {
		if w.waiting[i].Kind == EventStart {
			started[w.waiting[i].ID] = true
		}
	}
	ids := map[int]string{}
	for i := range all {
		ids[all[i].PID] = all[i].ID
	}
	now := time.Now()
	for i := range all {
		p := &all[i]
		if started[p.ID] || w.known(p.ID) {
			continue
		}
		w.alive[p.ID] = struct{}{}
		w.tellExisting(&Event{
			Kind: EventExisting, Time: now, VCPU: -1, Task: p.Task, PID: p.PID, PPID: p.PPID, TID: p.PID,
			Name: p.Name, Exe: p.Exe, Args: p.Args, UID: p.UID, ID: p.ID, ParentID: ids[p.PPID],
		})
	}
}

func (w *watch) known(id string) bool {
	_, ok := w.alive[id]
	return ok
}

func (w *watch) tellExisting(e *Event) {
	if !w.noExisting {
		w.tell(e)
	}
}

// happened takes an event from a probe.
func (w *watch) happened(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.listed && !w.ended && len(w.waiting) >= maxWaiting {
		w.room.Wait()
	}
	if w.listed {
		w.deliver(&e)
	} else if !w.ended {
		w.waiting = append(w.waiting, e)
	}
}

// deliver emits an event in its place. The caller holds mu.
func (w *watch) deliver(e *Event) {
	known := w.known(e.ID)
	switch e.Kind {
	case EventStart:
		if known {
			return // it was on the list already
		}
		w.alive[e.ID] = struct{}{}
	case EventExec, EventExit:
		if !known {
			was := *e
			was.Kind, was.VCPU, was.TID = EventExisting, -1, e.PID
			was.ExitCode, was.Signal, was.Core = 0, 0, false
			w.alive[e.ID] = struct{}{}
			w.tellExisting(&was)
		}
		if e.Kind == EventExit {
			delete(w.alive, e.ID)
		}
	}
	w.tell(e)
}

// tell calls emit. The caller holds mu.
func (w *watch) tell(e *Event) {
	if w.ended {
		return
	}
	if err := w.emit(e); err != nil {
		w.fail(err)
	}
}

func (w *watch) fail(err error) {
	if !w.ended {
		w.ended, w.err = true, err
	}
	w.cancel()
}

// end waits for the list and sees to it that nothing is emitted any more.
func (w *watch) end() {
	w.mu.Lock()
	w.ended = true
	w.room.Broadcast()
	w.mu.Unlock()
	w.listing.Wait()
}
