package linux

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/probe"
)

var _ osi.EventSource = (*system)(nil)

// Where the kernel tells of events. Each is a function of its own in a source
// file of its own, called once for each event, in process context, with all that
// matters in place; the same from 5.10 to 7.2.
const (
	// A new task is complete and has not run. Its maker calls it.
	startFunction = "wake_up_new_task"
	// An exec has succeeded: name, executable and arguments are the new ones. It
	// is there with CONFIG_PROC_EVENTS, as in all distributions' kernels.
	execFunction = "proc_exec_connector"
	// A task ends and has been counted out; the first argument is the status that
	// it gave, the second whether it was its process's last. It still has its
	// memory. It is there with CONFIG_BSD_PROCESS_ACCT, likewise.
	exitFunction = "acct_collect"
)

// switchFunctions are where a processor has turned to another task; the first
// argument is the one before. The compiler may have taken another argument away
// and marked that in the name.
var switchFunctions = []string{"finish_task_switch", "finish_task_switch.isra.0", "finish_task_switch.constprop.0"}

// signalGroupExit in signal_struct.flags says that group_exit_code holds.
const signalGroupExit = 4

// watcher turns hits into events. Its methods run in callbacks, one at a time.
type watcher struct {
	s     *system
	wants func(osi.EventKind) bool
	emit  func(osi.Event)
	names *resolver
	named time.Time // since when names is in use
	// first is the status of first threads that have ended before others, by
	// process: that of the process, before 5.18 made it the last one's.
	first map[string]uint32
}

// EventProbes implements osi.EventSource.
func (s *system) EventProbes(kinds []osi.EventKind, emit func(osi.Event)) ([]*probe.Probe, error) {
	w := &watcher{
		s: s, emit: emit, first: map[string]uint32{},
		wants: func(k osi.EventKind) bool { return slices.Contains(kinds, k) },
	}
	var out []*probe.Probe
	add := func(name string, d probe.Describe, event func(*probe.Hit), kinds ...osi.EventKind) {
		if slices.ContainsFunc(kinds, w.wants) {
			out = append(out, &probe.Probe{Func: name, Describe: d, Enter: func(h *probe.Hit) any { event(h); return nil }})
		}
	}
	add(startFunction, probe.DescribeArg, w.started, osi.EventStart, osi.EventThreadStart)
	add(execFunction, probe.DescribeCurrent, w.executed, osi.EventExec)
	add(exitFunction, probe.DescribeCurrent, w.exited, osi.EventExit, osi.EventThreadExit)
	add(s.firstFunction(switchFunctions), probe.DescribeCurrent, w.switched, osi.EventTaskChange)
	for _, p := range out {
		if _, err := s.k.Symbol(p.Func); err != nil {
			return nil, fmt.Errorf("the kernel has no function %s: %w", p.Func, errors.ErrUnsupported)
		}
	}
	return out, nil
}

// firstFunction returns the first of the names that the kernel has, or else the
// first.
func (s *system) firstFunction(names []string) string {
	for _, n := range names {
		if _, err := s.k.Symbol(n); err == nil {
			return n
		}
	}
	return names[0]
}

// event begins an event with what all have in common.
func (w *watcher) event(kind osi.EventKind, h *probe.Hit) (osi.Event, *probe.Description) {
	e := osi.Event{Kind: kind, Time: h.Time, VCPU: h.CPU}
	d, err := h.Described()
	if err != nil {
		e.PID, e.PPID, e.TID, e.Name, e.UID, e.Task = h.Thread.PID, h.Thread.PPID, h.Thread.TID, h.Thread.Comm, h.Thread.UID, h.Thread.Task
		e.Err = fmt.Errorf("describe event: %w", err)
		return e, &probe.Description{TID: e.TID, PID: e.PID}
	}
	e.PID, e.PPID, e.TID, e.Name, e.UID, e.Task = d.PID, d.PPID, d.TID, d.Comm, d.UID, d.Task
	e.ID = osi.MakeID(d.PID, d.LeaderStart)
	if d.PPID != 0 {
		e.ParentID = osi.MakeID(d.PPID, d.ParentStart)
	}
	return e, d
}

// program adds the executable and the arguments.
func (w *watcher) program(e *osi.Event, d *probe.Description, h *probe.Hit) {
	if d.ExeEntry != 0 {
		exe, err := w.resolver(h.Time).path(pathKey{d.ExeMount, d.ExeEntry})
		e.Exe = exe
		w.note(e, "exe", err)
	}
	var err error
	e.Args, err = w.args(d)
	w.note(e, "args", err)
}

func (w *watcher) note(e *osi.Event, part string, err error) {
	if err != nil && e.Err == nil {
		e.Err = &osi.PartialError{PID: e.PID, Part: part, Err: err}
	}
}

// namesAge is how long paths are remembered: the guest renames things.
const namesAge = 100 * time.Millisecond

func (w *watcher) resolver(now time.Time) *resolver {
	if w.names == nil || now.Sub(w.named).Abs() > namesAge {
		w.names, w.named = w.s.newResolver(w.s.fresh()), now
	}
	return w.names
}

var errCut = errors.New("longer than the record, and the process has ended or changed it since")

// args returns the command line. What the record has not got whole is read from
// the process's memory, if that is still there.
func (w *watcher) args(d *probe.Description) ([]string, error) {
	if d.ArgsStart == 0 || d.ArgsSize == 0 || int64(d.ArgsSize) < 0 {
		return nil, nil
	}
	if uint64(len(d.Args)) == d.ArgsSize && d.Args[len(d.Args)-1] == 0 {
		return split(d.Args), nil
	}
	if t, err := w.s.readTask(d.Task); err == nil && t.pid == d.TID && t.startBoottime == d.Start && t.mm != 0 {
		mm, err := w.s.readMM(t.mm)
		if err == nil && mm.layout.Args.Start == d.ArgsStart && mm.layout.Args.Size() == d.ArgsSize {
			if args, err := w.s.args(&mm); err == nil && w.agrees(args, d) {
				return args, nil
			}
		}
	}
	if uint64(len(d.Args)) == d.ArgsSize {
		return []string{cString(d.Args)}, nil // a title in their place
	}
	return split(d.Args), errCut
}

// agrees reports whether arguments that were read later begin as the recorded
// ones do.
func (w *watcher) agrees(args []string, d *probe.Description) bool {
	all := strings.Join(args, "\x00") + "\x00"
	return strings.HasPrefix(all, string(d.Args)) || len(args) == 1 && strings.HasPrefix(string(d.Args), args[0])
}

func (w *watcher) started(h *probe.Hit) {
	e, d := w.event(osi.EventStart, h)
	if d.TID != d.PID {
		e.Kind, e.ThreadID = osi.EventThreadStart, osi.MakeID(d.TID, d.Start)
	} else if w.wants(e.Kind) {
		w.program(&e, d, h)
	}
	w.give(e)
}

func (w *watcher) executed(h *probe.Hit) {
	e, d := w.event(osi.EventExec, h)
	w.program(&e, d, h)
	delete(w.first, e.ID) // a first thread that has ended was replaced
	w.give(e)
}

// exited corresponds to what wait4 tells the parent.
func (w *watcher) exited(h *probe.Hit) {
	e, d := w.event(osi.EventExit, h)
	status := uint32(h.Arg(0))
	last := uint32(h.Arg(1)) != 0
	if !last {
		if d.TID == d.PID && len(w.first) < maxTasks {
			w.first[e.ID] = status
		}
		e.Kind, e.ThreadID = osi.EventThreadExit, osi.MakeID(d.TID, d.Start)
		setStatus(&e, status)
		w.give(e)
		return
	}
	if d.SignalFlags&signalGroupExit != 0 {
		status = d.SignalCode
	} else if s, ok := w.first[e.ID]; ok {
		status = s
	}
	delete(w.first, e.ID)
	setStatus(&e, status)
	if d.LeaderComm != "" {
		e.Name = d.LeaderComm
	}
	if w.wants(e.Kind) {
		w.program(&e, d, h)
	}
	w.give(e)
}

// setStatus takes a wait status apart.
func setStatus(e *osi.Event, status uint32) {
	e.ExitCode, e.Signal, e.Core = int(status>>8&0xff), int(status&0x7f), status&0x80 != 0
}

func (w *watcher) switched(h *probe.Hit) {
	e, d := w.event(osi.EventTaskChange, h)
	e.ThreadID, e.Previous, e.ParentID = osi.MakeID(d.TID, d.Start), arch.GVA(h.Arg(0)), ""
	w.give(e)
}

func (w *watcher) give(e osi.Event) {
	if w.wants(e.Kind) {
		w.emit(e)
	}
}

// Alive implements osi.EventSource: those of Processes whose last thread has not
// yet been counted out of signal_struct.live, which it is just before
// exitFunction.
func (s *system) Alive(ctx context.Context) iter.Seq2[osi.Process, error] {
	return func(yield func(osi.Process, error) bool) {
		for p, err := range s.Processes(ctx) {
			if p.Task != 0 && s.countedOut(p.Task) {
				continue
			}
			if !yield(p, err) {
				return
			}
		}
	}
}

func (s *system) countedOut(task arch.GVA) bool {
	t, err := s.readTask(task)
	if err != nil || kernelPointer(t.signal) != nil {
		return err == nil
	}
	n, err := s.kernel.ReadUint32(t.signal + arch.GVA(s.l.signal.live.off))
	return err == nil && n == 0
}
