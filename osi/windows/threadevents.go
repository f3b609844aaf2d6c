package windows

import (
	"slices"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
)

// strand is what is known of a thread.
type strand struct {
	rec  osi.Thread
	over bool
}

// terminated is the state of a thread that has ended and is still held
// (KTHREAD_STATE).
const terminated = 4

// seeThreads compares the threads of a process with those that are known. When
// none is left, their ends are those of the process, which come when it says so.
func (w *watcher) seeThreads(l *life, p *process, all []arch.GVA, listErr error) {
	var ended []*thread
	alive := false
	for _, addr := range all {
		t, err := w.s.readThread(w.as, addr)
		if err != nil {
			continue
		}
		w.seeThread(l, p, &t)
		if w.s.l.thread.state.ok && t.uint(w.s.l.thread.state, 1) == terminated {
			ended = append(ended, &t)
		} else {
			alive = true
		}
	}
	if !alive || p.exited {
		return
	}
	for _, t := range ended {
		w.threadExit(l, l.threads[t.addr], t)
	}
	if listErr != nil {
		return
	}
	for addr, st := range l.threads {
		if !slices.Contains(all, addr) {
			w.threadExit(l, st, nil)
			delete(l.threads, addr)
		}
	}
}

// seeThread makes a thread known, and tells of it when it is new.
func (w *watcher) seeThread(l *life, p *process, t *thread) {
	rec := w.s.thread(t, p)
	st := l.threads[t.addr]
	if st != nil && st.rec.ID == rec.ID {
		return
	}
	if st != nil { // another one in the same place
		w.threadExit(l, st, nil)
	}
	tell := w.began && len(l.threads) > 0 // the first one of a process is not told of
	st = &strand{rec: rec}
	l.threads[t.addr] = st
	if tell {
		w.out = append(w.out, w.threadEvent(osi.EventThreadStart, l, st, rec.StartTime))
	}
}

func (w *watcher) threadEvent(kind osi.EventKind, l *life, st *strand, at time.Time) osi.Event {
	e := w.event(kind, l, at)
	e.Exe, e.Args, e.Task, e.TID, e.ThreadID, e.VCPU = "", nil, st.rec.Task, st.rec.TID, st.rec.ID, -1
	return e
}

// threadExit tells of a thread's end. T is its record, nil when that is gone.
func (w *watcher) threadExit(l *life, st *strand, t *thread) {
	if st.over {
		return
	}
	st.over = true
	at := w.s.now()
	e := w.threadEvent(osi.EventThreadExit, l, st, at)
	if t != nil {
		// Its place is that of a list until the thread ends.
		if exited := kernel.Filetime(t.u64(w.s.l.thread.exited)); !exited.After(at) && !exited.Before(st.rec.StartTime) {
			e.Time = exited
		}
		e.ExitCode = int(t.u32(w.s.l.thread.exitStatus))
	} else {
		e.Err = &osi.PartialError{PID: l.rec.PID, Part: "exit code", Err: errUnseen}
	}
	w.out = append(w.out, e)
}

// endThreads tells of the threads that end with their process, but for the one
// that is taken for the last.
func (w *watcher) endThreads(l *life, at time.Time, status uint32) {
	var left []*strand
	for _, st := range l.threads {
		if !st.over {
			left = append(left, st)
		}
	}
	slices.SortFunc(left, func(a, b *strand) int { return a.rec.StartTime.Compare(b.rec.StartTime) })
	for i, st := range left {
		if st.over = true; i > 0 {
			e := w.threadEvent(osi.EventThreadExit, l, st, at)
			e.ExitCode = int(status)
			w.out = append(w.out, e)
		}
	}
}
