package windows

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/probe"
)

// NT calls no function for what happens to processes and threads that is known
// without symbols and the same in all builds. So events come of looking at the
// kernel's lists and comparing them with what they were: by probes on the calls
// that make and end processes and threads, when they happen, and for what the
// kernel does by itself many times a second. The moments are those that the
// kernel noted (CreateTime, ExitTime), whenever they are seen.
//
// No process is missed that a program makes: its maker has it open when the call
// returns. One that the kernel makes and that is gone within the interval of
// looking is missed, as is such a thread. A process is told of when it has its
// first thread, which on XP and 2003 is made by a call of its own: the command
// line is in place then.

var _ osi.EventLooker = (*system)(nil)

// How often is looked.
const (
	lookInterval = 10 * time.Millisecond
	hurry        = time.Millisecond // when something is about to end,
	hurryFor     = 200 * time.Millisecond
)

// looksOfTables is for how many looks the page tables are remembered: what is
// looked at hardly ever moves.
const looksOfTables = 32

// debugRegisters is how many breakpoints KVM holds for functions outside of the
// guest's memory: a processor has four, and one is for returns.
const debugRegisters = 3

// watcher tells events apart.
type watcher struct {
	s     *system
	kinds []osi.EventKind
	emit  func(osi.Event)

	mu sync.Mutex
	// Protected by mu.
	known map[arch.GVA]*life    // by EPROCESS
	began bool                  // known is what was there
	soon  time.Time             // until then something may end
	as    *vitrine.AddressSpace // for this look and some more
	out   []osi.Event           // of the look that is on
	looks int
}

// life is what is known of a process.
type life struct {
	rec     osi.Process // as it was seen last before its end
	created uint64
	told    bool // that it is there
	over    bool // and that it has ended
	absent  int  // looks in a row that did not find it
	dying   bool // it was called to end
	status  uint32
	threads map[arch.GVA]*strand
	cpu     int // where it was made, or called to end; -1 where that was not seen
}

func (w *watcher) wants(k osi.EventKind) bool { return slices.Contains(w.kinds, k) }

func (w *watcher) threads() bool {
	return w.wants(osi.EventThreadStart) || w.wants(osi.EventThreadExit)
}

// EventProbes implements osi.EventSource; alone, it sees what programs do only.
func (s *system) EventProbes(kinds []osi.EventKind, emit func(osi.Event)) ([]*probe.Probe, error) {
	probes, _, err := s.WatchEvents(context.Background(), kinds, emit)
	return probes, err
}

// WatchEvents implements osi.EventLooker.
func (s *system) WatchEvents(ctx context.Context, kinds []osi.EventKind, emit func(osi.Event)) ([]*probe.Probe, func(context.Context), error) {
	if slices.Contains(kinds, osi.EventTaskChange) {
		return nil, nil, fmt.Errorf("task changes of an NT kernel: no function that tells of them is known: %w", errors.ErrUnsupported)
	}
	if !s.l.process.exited.ok || !s.l.process.created.ok {
		return nil, nil, fmt.Errorf("where the kernel keeps the times of processes is not known: %w", errors.ErrUnsupported)
	}
	w := &watcher{s: s, kinds: kinds, emit: emit, known: map[arch.GVA]*life{}}
	w.look(ctx, -1)
	return w.probes(ctx), w.run, nil
}

// probes returns those on the calls that matter, as far as they are found.
func (w *watcher) probes(ctx context.Context) []*probe.Probe {
	at := w.s.serviceAddresses(ctx)
	made := func(h *probe.Hit, _ any) { w.look(ctx, h.CPU) }
	plans := []*probe.Probe{
		{Name: "NtCreateUserProcess", Return: made}, // since Vista
		{Name: "NtTerminateProcess", Enter: func(h *probe.Hit) any { w.terminates(ctx, h); return nil }},
		{Name: "NtCreateThread", Return: made}, // until 2003 the first one's too
	}
	if w.threads() {
		plans = append(plans, &probe.Probe{Name: "NtCreateThreadEx", Return: made}, // since Vista
			&probe.Probe{Name: "NtTerminateThread", Enter: func(*probe.Hit) any { w.expect(); return nil }})
	}
	var out []*probe.Probe
	for _, p := range plans {
		_, vista := at["NtCreateUserProcess"]
		if p.Addr = at[p.Name]; p.Addr != 0 && (p.Name != "NtCreateThread" || !vista) {
			out = append(out, p)
		}
	}
	if w.s.g.Info().Accel == "kvm" && len(out) > debugRegisters {
		out = out[:debugRegisters]
	}
	return out
}

// serviceAddresses returns where the kernel serves its calls, by name.
func (s *system) serviceAddresses(ctx context.Context) map[string]arch.GVA {
	at := map[string]arch.GVA{}
	services, err := s.nt.Services()
	if err != nil {
		return at
	}
	osi.NameServices(ctx, s, services)
	for _, e := range services.Named() {
		at[e.Name] = e.Addr
	}
	return at
}

// run looks until ctx ends.
func (w *watcher) run(ctx context.Context) {
	timer := time.NewTimer(lookInterval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		w.look(ctx, -1)
		wait := lookInterval
		if w.hurries() {
			wait = hurry
		}
		timer.Reset(wait)
	}
}

func (w *watcher) hurries() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Before(w.soon)
}

// expect makes looks come fast for a while.
func (w *watcher) expect() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.soon = time.Now().Add(hurryFor)
}

// Handles that mean something else than an entry of the table.
const currentProcess = -1

// terminates notes which process a call of NtTerminateProcess ends, and with
// what. Without a handle it means the other threads of the caller. It looks
// first: what began just before still has its command line.
func (w *watcher) terminates(ctx context.Context, h *probe.Hit) {
	w.look(ctx, -1)
	handle := int64(h.Arg(0))
	if !w.s.nt.X64 {
		handle = int64(int32(handle))
	}
	if handle == 0 {
		w.expect()
		return
	}
	at := w.s.target(ctx, h.Thread.Task, handle)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.soon = time.Now().Add(hurryFor)
	if l := w.known[at]; l != nil && !l.over {
		l.dying, l.status, l.cpu = true, uint32(h.Arg(1)), h.CPU
	}
}

// target returns the EPROCESS that a handle of a thread's process leads to, 0
// when that is not known.
func (s *system) target(ctx context.Context, task arch.GVA, handle int64) arch.GVA {
	if handle == currentProcess {
		t, err := s.readThread(s.kernel, task)
		if err != nil {
			return 0
		}
		return t.process
	}
	owner := osi.Handle{Task: task}
	if handle < 0 { // of the kernel's own table
		owner.Task, handle = s.nt.System, handle&(1<<31-1)
	}
	f, err := s.FileByFD(ctx, owner, int(handle))
	if err != nil || f.Type != "Process" {
		return 0
	}
	return f.Object
}

// look compares what there is with what there was, and emits the difference in
// the order of its times. Cpu is where it was made, or -1.
func (w *watcher) look(ctx context.Context, cpu int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = w.out[:0]
	w.compare(ctx, cpu)
	w.began = true
	slices.SortStableFunc(w.out, func(a, b osi.Event) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(rank[a.Kind], rank[b.Kind]))
	})
	for _, e := range w.out {
		if w.wants(e.Kind) {
			w.emit(e)
		}
	}
}

// rank orders events of the same moment.
var rank = map[osi.EventKind]int{osi.EventThreadStart: 1, osi.EventThreadExit: 2, osi.EventExit: 3}

func (w *watcher) compare(ctx context.Context, cpu int) {
	if w.looks%looksOfTables == 0 {
		w.as = w.s.fresh()
	}
	w.looks++
	all, listErr := w.s.list(ctx, w.as)
	present := make(map[arch.GVA]bool, len(all))
	for _, addr := range all {
		present[addr] = true
		if l := w.known[addr]; l != nil && !w.threads() && w.unchanged(addr, l) {
			continue
		}
		if p, err := w.s.readProcess(w.as, addr); err == nil {
			w.see(ctx, &p, cpu)
		}
	}
	if listErr != nil {
		return // it says nothing of what it lacks
	}
	for addr, l := range w.known {
		if !present[addr] {
			w.missed(ctx, addr, l)
		}
	}
}

// unchanged reports whether a process is the one that is known and runs, if that
// has been told.
func (w *watcher) unchanged(addr arch.GVA, l *life) bool {
	m := &w.s.l.process
	exited, err := w.as.ReadUint64(addr + m.exited.off)
	created, err2 := w.as.ReadUint64(addr + m.created.off)
	pid, err3 := w.s.word(w.as, addr+m.pid.off)
	if err != nil || err2 != nil || err3 != nil || !l.told || l.over || exited != 0 || created != l.created || int(pid) != l.rec.PID {
		return false
	}
	l.absent = 0
	return true
}

// missed deals with a process that is off the list. Its record is often still
// there, and tells its end; otherwise it is asked twice, as the list may have
// been read just when it was being changed.
func (w *watcher) missed(ctx context.Context, addr arch.GVA, l *life) {
	p, err := w.s.readProcess(w.as, addr)
	if err == nil && p.exited && l.is(w.s, &p) {
		w.see(ctx, &p, -1)
		delete(w.known, addr)
		return
	}
	if l.absent++; l.absent > 1 {
		w.vanished(l)
		delete(w.known, addr)
	}
}

func (l *life) is(s *system, p *process) bool {
	return l.rec.PID == p.pid && l.created == p.u64(s.l.process.created)
}

// see compares one process with what is known of it.
func (w *watcher) see(ctx context.Context, p *process, cpu int) {
	l := w.known[p.addr]
	if l != nil && !l.is(w.s, p) { // another one in the same place
		w.vanished(l)
		l = nil
	}
	if l == nil {
		l = &life{rec: w.s.process(w.as, p), created: p.u64(w.s.l.process.created), told: !w.began, cpu: -1, threads: map[arch.GVA]*strand{}}
		l.over = l.told && p.exited
		w.known[p.addr] = l
	}
	l.absent = 0
	if l.over {
		return
	}
	var threads []arch.GVA
	var err error
	if !l.told || w.threads() {
		threads, err = w.s.threads(ctx, w.as, p)
	}
	if !l.told && (len(threads) > 0 || p.exited) {
		w.start(l, p, threads, cpu)
	}
	if w.threads() && l.told {
		w.seeThreads(l, p, threads, err)
	}
	if p.exited {
		w.exit(l, kernel.Filetime(p.u64(w.s.l.process.exited)), p.u32(w.s.l.process.exitStatus), nil)
	}
}

// event makes what all events of a process have.
func (w *watcher) event(kind osi.EventKind, l *life, at time.Time) osi.Event {
	r := &l.rec
	e := osi.Event{Kind: kind, Time: at, VCPU: l.cpu, Task: r.Task, PID: r.PID, PPID: r.PPID, TID: r.PID, Name: r.Name, Exe: r.Exe, Args: r.Args, ID: r.ID}
	for _, other := range w.known { // the parent has had its id before this one was made
		if other.rec.PID == r.PPID && other.created <= l.created && other != l {
			e.ParentID = other.rec.ID
		}
	}
	return e
}

// start tells of a new process.
func (w *watcher) start(l *life, p *process, threads []arch.GVA, cpu int) {
	if !p.exited {
		l.rec = w.s.process(w.as, p)
	}
	l.told, l.cpu = true, cpu
	e := w.event(osi.EventStart, l, l.rec.StartTime)
	if len(threads) > 0 {
		if t, err := w.s.readThread(w.as, threads[0]); err == nil {
			e.TID = t.tid
		}
	}
	w.out = append(w.out, e)
	l.cpu = -1
}

func (w *watcher) exit(l *life, at time.Time, status uint32, err error) {
	if w.threads() {
		w.endThreads(l, at, status)
	}
	l.over = true
	e := w.event(osi.EventExit, l, at)
	e.ExitCode, e.Err = int(status), err
	w.out = append(w.out, e)
}

// errUnseen says that a process has ended and left nothing to read.
var errUnseen = errors.New("its record was gone when it was looked for")

// vanished tells of a process that has ended and left nothing to read.
func (w *watcher) vanished(l *life) {
	if l.over || !l.told {
		return
	}
	err := error(&osi.PartialError{PID: l.rec.PID, Part: "exit code", Err: errUnseen})
	if l.dying {
		err = nil
	}
	w.exit(l, w.s.now(), l.status, err)
}

// now returns the guest's time, the host's where that can't be read.
func (s *system) now() time.Time {
	if _, v, err := kernel.NTTimes(s.kernel, s.nt.SharedData); err == nil && v != 0 {
		return kernel.Filetime(v)
	}
	return time.Now()
}

// Alive implements osi.EventSource.
func (s *system) Alive(ctx context.Context) iter.Seq2[osi.Process, error] {
	return func(yield func(osi.Process, error) bool) {
		for p, err := range s.Processes(ctx) {
			if p.State == 'Z' {
				continue
			}
			if !yield(p, err) {
				return
			}
		}
	}
}
