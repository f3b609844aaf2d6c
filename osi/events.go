package osi

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe"
)

// EventKind says what an Event tells of.
type EventKind uint8

// The kinds of events. A process begins with Existing or Start and ends with
// Exit; its events come in the order in which they happened.
const (
	// EventExisting is a process that ran already when the watch began.
	EventExisting EventKind = iota
	// EventStart is a new process, before it has run. Its name, executable and
	// arguments are those of the process that made it.
	EventStart
	// EventExec is a process that runs another program now. It is left with one
	// thread, whose id is the process's.
	EventExec
	// EventExit is the end of a process: of its last thread.
	EventExit
	// EventThreadStart is a new thread of a process; the first is not told of.
	EventThreadStart
	// EventThreadExit is the end of a thread which is not the last of its process.
	EventThreadExit
	// EventTaskChange is a virtual processor that turned to another thread.
	EventTaskChange
)

var eventKinds = [...]string{"existing", "start", "exec", "exit", "thread-start", "thread-exit", "task-change"}

// String returns the kind in lower case.
func (k EventKind) String() string {
	if int(k) < len(eventKinds) {
		return eventKinds[k]
	}
	return "EventKind(" + strconv.Itoa(int(k)) + ")"
}

// Event is a moment in the life of a process or thread, as it was then: what it
// holds is right also when the process has ended since.
type Event struct {
	Kind EventKind
	Time time.Time // by the guest's clock where it tells its time, else the host's, as of Existing, when it was found
	VCPU int       // the virtual processor that it happened on, -1 for Existing and where it is not known
	Task arch.GVA  // of the thread; of a process that starts, execs or exists its first one

	PID, PPID int
	TID       int      // the thread that started, ended or runs; of an Exit the last one, of NT a first one
	Name      string   // of the process; of thread events and task changes the thread's
	Exe       string   // path of the executable, as Process has it; empty for threads and task changes
	Args      []string // the command line; nil for threads and task changes
	UID       uint32   // real user id

	ID       string // of the process: Process.ID
	ParentID string // of its parent; empty where it has none, and for task changes
	ThreadID string // Thread.ID; of thread events and task changes only

	// Of Exit and ThreadExit:
	ExitCode int  // what it gave to exit, 0 to 255; of NT the 32 bits of the status
	Signal   int  // the signal that ended it, 0 if none did
	Core     bool // and it left a memory dump

	Previous arch.GVA // task that the processor turned away from, of a TaskChange

	// Err is not nil when a part of the record could not be had; the rest holds.
	Err error
}

// EventSource is implemented by systems that can tell of events. Programs use
// the function Events.
type EventSource interface {
	// EventProbes returns the probes that see the events of these kinds, and calls
	// emit with each, in order, from their callbacks. Events of the kind Existing
	// are not theirs. A kernel without a place to see them gives an error that
	// wraps errors.ErrUnsupported.
	EventProbes(kinds []EventKind, emit func(Event)) ([]*probe.Probe, error)
	// Alive lists the processes whose Exit is still to come, as far as probes that
	// are planted now will see it.
	Alive(ctx context.Context) iter.Seq2[Process, error]
}

// EventLooker is implemented by an EventSource whose kernel has no function for
// some of its events: it looks again and again at what there is.
type EventLooker interface {
	EventSource
	// WatchEvents is EventProbes, for which it stands. Look, which calls emit as
	// the probes do, is run from when they are planted until its context ends.
	WatchEvents(ctx context.Context, kinds []EventKind, emit func(Event)) (probes []*probe.Probe, look func(context.Context), err error)
}

// watched returns what sees a system's events.
func watched(ctx context.Context, src EventSource, kinds []EventKind, emit func(Event)) (probes []*probe.Probe, look func(context.Context), err error) {
	if l, ok := src.(EventLooker); ok {
		return l.WatchEvents(ctx, kinds, emit)
	}
	probes, err = src.EventProbes(kinds, emit)
	return probes, nil, err
}

// EventsOptions say which events to tell of. Nil means those of processes.
type EventsOptions struct {
	Threads     bool // also start and end of threads
	TaskChanges bool // also what the scheduler does; there are thousands a second
	NoExisting  bool // not the processes that are there already
}

func (o *EventsOptions) kinds() []EventKind {
	k := []EventKind{EventStart, EventExec, EventExit}
	if o.Threads {
		k = append(k, EventThreadStart, EventThreadExit)
	}
	if o.TaskChanges {
		k = append(k, EventTaskChange)
	}
	return k
}

// Events tells of the life of the guest's processes, until ctx ends or emit
// fails, whose error it returns; at the end of ctx it returns nil. First come
// the processes that are there already, as Existing, then what happens, without
// a gap or an overlap between the two, in the order in which it happened.
//
// The events come from the guest kernel's own functions, by probes that Events
// adds to s, runs together with what else s has, and takes out at the end.
// Nothing that lives shortly is missed; see the provider for NT's exceptions. Emit is called for one event at a time,
// not always on the same goroutine; under sync delivery the guest waits for it.
func Events(ctx context.Context, sys System, s *probe.Session, opts *EventsOptions, emit func(*Event) error) error {
	src, ok := sys.(EventSource)
	if !ok {
		return fmt.Errorf("watch events: the provider %q has none: %w", sys.OS(), errors.ErrUnsupported)
	}
	if opts == nil {
		opts = &EventsOptions{}
	}
	ctx, cancel := context.WithCancel(ctx)
	w := newWatch(opts.NoExisting, emit, cancel)
	probes, look, err := watched(ctx, src, opts.kinds(), w.happened)
	if err != nil {
		cancel()
		return fmt.Errorf("watch events: %w", err)
	}
	planted, err := s.AddAll(probes)
	if err == nil {
		s.WhenRunning(func() { w.begin(ctx, src, look) })
		err = s.Run(ctx)
	}
	cancel()
	w.end()
	for _, p := range planted {
		if p != nil {
			err = errors.Join(err, p.Remove())
		}
	}
	if err != nil {
		err = fmt.Errorf("watch events: %w", err)
	}
	return errors.Join(w.err, err)
}
