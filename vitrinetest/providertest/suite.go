// Package providertest is the conformance suite of osi providers: it compares
// a system with what is known to be true of its guest, and checks what every
// provider promises whatever the guest.
//
// It is apart from package vitrinetest so that packages beneath osi can use
// the fake guests there.
package providertest

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// Truth is what the guest says of itself. It need not be complete: what is
// absent is not compared, and a system may know more.
type Truth struct {
	Processes []Process
	Modules   []osi.Module // Ranges and File are not compared
	// StartTolerance is how far a start time may be off: the guest's own
	// resolution.
	StartTolerance time.Duration
	// LibrariesOf derives the libraries of a process from its mappings by the
	// rule in the documentation of osi.Library; nil means that rule as it
	// stands, with names as the guest's /proc shows them.
	LibrariesOf func(Process) []osi.Library
	// NT says that the guest is no Linux: the first thread has an id of its own,
	// memory has no heap bounds, and arguments are not bytes.
	NT bool
}

// Process is what is true of one process that stays as it is during the test.
type Process struct {
	PID, PPID int
	Name      string // of kernel threads the full one
	Exe       string
	Args      []string
	UID, GID  uint32
	States    string // the letters that it was seen with
	KThread   bool
	Threads   int
	Start     time.Time
	TIDs      []int // ascending
	Mappings  []osi.Mapping
	Files     []osi.File
	Cwd       string
	StartBrk  arch.GVA
	Stack     arch.GVA
	Compat    bool // a 32-bit one of a 64-bit system
}

// Test runs the whole suite.
func Test(t *testing.T, sys osi.System, truth *Truth) {
	t.Helper()
	s := &suite{sys: sys, truth: truth}
	for _, c := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"processes", s.processes}, {"one process three ways", s.oneProcess}, {"no process", s.noProcess},
		{"threads", s.threads}, {"current", s.current},
		{"mappings", s.mappings}, {"mapping at", s.mappingAt}, {"libraries", s.libraries}, {"memory", s.memory}, {"pages", s.pages},
		{"files", s.files}, {"working directory", s.cwd}, {"modules", s.modules},
		{"lists stop early", s.early}, {"lists end with the context", s.cancelled}, {"concurrent use", s.concurrent},
	} {
		t.Run(c.name, c.run)
	}
}

type suite struct {
	sys   osi.System
	truth *Truth
}

// all collects a list; each entry must be whole.
func all[T any](t *testing.T, seq iter.Seq2[T, error]) []T {
	t.Helper()
	var out []T
	for v, err := range seq {
		if err != nil {
			t.Errorf("entry %d (%+v): %v", len(out), v, err)
			continue
		}
		out = append(out, v)
	}
	return out
}

func (s *suite) handle(t *testing.T, pid int) osi.Handle {
	t.Helper()
	p, err := s.sys.ProcessByPID(t.Context(), pid)
	if err != nil {
		t.Fatalf("ProcessByPID(%d): %v", pid, err)
	}
	return p.Handle
}

func (s *suite) processes(t *testing.T) {
	got := map[int]osi.Process{}
	ids := map[string]int{}
	for _, p := range all(t, s.sys.Processes(t.Context())) {
		if q, twice := got[p.PID]; twice {
			t.Errorf("pid %d is listed twice: %+v, %+v", p.PID, q, p)
		}
		if other, twice := ids[p.ID]; twice || p.ID == "" {
			t.Errorf("pids %d and %d have the id %q", other, p.PID, p.ID)
		}
		if p.Task == 0 || p.KThread != (p.ASID == 0) && p.State != 'Z' {
			t.Errorf("pid %d: task %v, asid %v, kernel thread %v", p.PID, p.Task, p.ASID, p.KThread)
		}
		got[p.PID], ids[p.ID] = p, p.PID
	}
	for i := range s.truth.Processes {
		want := &s.truth.Processes[i]
		if p, ok := got[want.PID]; ok {
			s.compare(t, want, &p)
		} else {
			t.Errorf("pid %d (%s) is not listed", want.PID, want.Name)
		}
	}
}

// seen is what process and truth have in common, for comparison.
type seen struct {
	PID, PPID, Threads int
	Name, Exe          string
	Args               []string
	UID, GID           uint32
	KThread, Compat    bool
}

func (s *suite) compare(t *testing.T, want *Process, p *osi.Process) {
	t.Helper()
	name := p.Name
	if p.KThread {
		name = p.FullName
	}
	if !strings.HasPrefix(p.FullName, p.Name) {
		t.Errorf("pid %d: full name %q does not begin with the name %q", p.PID, p.FullName, p.Name)
	}
	got := seen{p.PID, p.PPID, p.Threads, name, p.Exe, p.Args, p.UID, p.GID, p.KThread, p.Compat}
	w := seen{want.PID, want.PPID, want.Threads, want.Name, want.Exe, want.Args, want.UID, want.GID, want.KThread, want.Compat}
	if diff := cmp.Diff(w, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("pid %d (-guest +system):\n%s", want.PID, diff)
	}
	if state := s.settled(t, want, p.State); want.States != "" && !slices.Contains([]byte(want.States), byte(state)) {
		t.Errorf("pid %d (%s) has state %v, want one of %s", want.PID, want.Name, state, want.States)
	}
	if off := p.StartTime.Sub(want.Start); !want.Start.IsZero() && off.Abs() > s.truth.StartTolerance {
		t.Errorf("pid %d started at %v, want %v: %v off", want.PID, p.StartTime, want.Start, off)
	}
}

// settled asks for the state of a process again while it is not as wanted: one
// that sleeps may be woken for a moment, by a timer or by its runtime.
func (s *suite) settled(t *testing.T, want *Process, state osi.State) osi.State {
	t.Helper()
	for n := 0; n < 100 && want.States != "" && !slices.Contains([]byte(want.States), byte(state)); n++ {
		time.Sleep(10 * time.Millisecond)
		p, err := s.sys.ProcessByPID(t.Context(), want.PID)
		if err != nil {
			t.Errorf("ProcessByPID(%d): %v", want.PID, err)
			break
		}
		state = p.State
	}
	return state
}

func (s *suite) oneProcess(t *testing.T) {
	handles := map[arch.GVA]osi.Handle{}
	for _, h := range all(t, s.sys.ProcessHandles(t.Context())) {
		handles[h.Task] = h
	}
	for i := range s.truth.Processes {
		want := &s.truth.Processes[i]
		byPID, err := s.sys.ProcessByPID(t.Context(), want.PID)
		if err != nil {
			t.Errorf("ProcessByPID(%d): %v", want.PID, err)
			continue
		}
		s.compare(t, want, &byPID)
		if handles[byPID.Task] != byPID.Handle {
			t.Errorf("pid %d: handle %v is listed as %v", want.PID, byPID.Handle, handles[byPID.Task])
		}
		byHandle, err := s.sys.Process(t.Context(), byPID.Handle)
		ignore := cmpopts.IgnoreFields(osi.Process{}, "State", "FullName")
		if diff := cmp.Diff(byPID, byHandle, ignore); err != nil || diff != "" {
			t.Errorf("Process(%v): %v (-by pid +by handle):\n%s", byPID.Handle, err, diff)
		}
	}
}

func (s *suite) noProcess(t *testing.T) {
	for _, pid := range []int{-1, 0, 1 << 30} {
		if p, err := s.sys.ProcessByPID(t.Context(), pid); !errors.Is(err, osi.ErrNoProcess) {
			t.Errorf("ProcessByPID(%d) = %+v, %v, want ErrNoProcess", pid, p, err)
		}
	}
	h := osi.Handle{Task: 0x1000}
	if p, err := s.sys.Process(t.Context(), h); !errors.Is(err, osi.ErrNoProcess) {
		t.Errorf("Process(no task) = %+v, %v, want ErrNoProcess", p, err)
	}
	if _, err := s.sys.Memory(t.Context(), h); !errors.Is(err, osi.ErrNoProcess) {
		t.Errorf("Memory(no task): %v, want ErrNoProcess", err)
	}
	for m, err := range s.sys.Mappings(t.Context(), h) {
		if !errors.Is(err, osi.ErrNoProcess) {
			t.Errorf("Mappings(no task) yields %+v, %v, want ErrNoProcess", m, err)
		}
	}
	for f, err := range s.sys.Files(t.Context(), h) {
		if !errors.Is(err, osi.ErrNoProcess) {
			t.Errorf("Files(no task) yields %+v, %v, want ErrNoProcess", f, err)
		}
	}
}

func (s *suite) threads(t *testing.T) {
	for _, want := range s.truth.Processes {
		h := s.handle(t, want.PID)
		var tids []int
		for _, th := range all(t, s.sys.Threads(t.Context(), h)) {
			tids = append(tids, th.TID)
			if th.PID != want.PID || th.PPID != want.PPID || th.UID != want.UID || th.KThread != want.KThread {
				t.Errorf("thread %d of pid %d: %+v", th.TID, want.PID, th)
			}
			at, err := s.sys.ThreadAt(t.Context(), th.Task)
			if diff := cmp.Diff(th, at, cmpopts.IgnoreFields(osi.Thread{}, "State", "VCPU")); err != nil || diff != "" {
				t.Errorf("ThreadAt(%v): %v\n%s", th.Task, err, diff)
			}
			p, err := s.sys.Process(t.Context(), th.Handle)
			if err != nil || p.PID != want.PID {
				t.Errorf("process of thread %d = %d, %v, want %d", th.TID, p.PID, err, want.PID)
			}
		}
		if len(tids) > 0 && tids[0] != want.PID && !s.truth.NT {
			t.Errorf("pid %d: first thread is %d", want.PID, tids[0])
		}
		slices.Sort(tids)
		if want.TIDs != nil && !slices.Equal(tids, want.TIDs) {
			t.Errorf("pid %d has threads %v, want %v", want.PID, tids, want.TIDs)
		}
	}
}

func (s *suite) current(t *testing.T) {
	th, err := s.sys.Current(t.Context(), 0)
	if err != nil || th.VCPU != 0 || th.Task == 0 || th.Name == "" {
		t.Errorf("Current(0) = %+v, %v", th, err)
	}
	for _, cpu := range []int{-1, 1 << 20} {
		if th, err := s.sys.Current(t.Context(), cpu); err == nil {
			t.Errorf("Current(%d) = %+v, want an error", cpu, th)
		}
	}
}

func (s *suite) cwd(t *testing.T) {
	for _, want := range s.truth.Processes {
		got, err := s.sys.Cwd(t.Context(), s.handle(t, want.PID))
		if err != nil || got != want.Cwd {
			t.Errorf("pid %d (%s): cwd %q, %v, want %q", want.PID, want.Name, got, err, want.Cwd)
		}
	}
}

func (s *suite) files(t *testing.T) {
	for _, want := range s.truth.Processes {
		h := s.handle(t, want.PID)
		got := all(t, s.sys.Files(t.Context(), h))
		if want.Files == nil {
			continue
		}
		ignore := cmpopts.IgnoreFields(osi.File{}, "Inode", "FlagNames", "Object")
		if diff := cmp.Diff(want.Files, got, ignore, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("files of pid %d (%s) (-guest +system):\n%s", want.PID, want.Name, diff)
		}
		for _, f := range got {
			one, err := s.sys.FileByFD(t.Context(), h, f.FD)
			if diff := cmp.Diff(f, one); err != nil || diff != "" {
				t.Errorf("file %d of pid %d: %v (-listed +asked for):\n%s", f.FD, want.PID, err, diff)
			}
		}
		for _, fd := range []int{-1, 99999, 1 << 30} {
			if f, err := s.sys.FileByFD(t.Context(), h, fd); !errors.Is(err, osi.ErrNoFile) {
				t.Errorf("file %d of pid %d = %+v, %v, want ErrNoFile", fd, want.PID, f, err)
			}
		}
	}
}

func (s *suite) modules(t *testing.T) {
	got := all(t, s.sys.Modules(t.Context()))
	if s.truth.Modules != nil {
		byBase := cmpopts.SortSlices(func(a, b osi.Module) bool { return a.Base < b.Base })
		if diff := cmp.Diff(s.truth.Modules, got, byBase, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(osi.Module{}, "Ranges", "File")); diff != "" {
			t.Errorf("modules (-guest +system):\n%s", diff)
		}
	}
	for _, m := range got {
		for _, a := range []arch.GVA{m.Base, m.Ranges[len(m.Ranges)-1].End - 1} {
			if at, err := s.sys.ModuleAt(t.Context(), a); err != nil || at.Name != m.Name {
				t.Errorf("ModuleAt(%v) = %s, %v, want %s", a, at.Name, err, m.Name)
			}
		}
	}
	if m, err := s.sys.ModuleAt(t.Context(), 0x1000); !errors.Is(err, osi.ErrNoModule) {
		t.Errorf("ModuleAt(0x1000) = %+v, %v, want ErrNoModule", m, err)
	}
}

func (s *suite) early(t *testing.T) {
	n := 0
	for range s.sys.Processes(t.Context()) {
		n++
		break
	}
	for range s.sys.ProcessHandles(t.Context()) {
		n++
		break
	}
	for range s.sys.Modules(t.Context()) {
		n++
		break
	}
	if n != 3 && (n != 2 || len(s.truth.Modules) > 0) {
		t.Errorf("%d of 3 lists gave a first entry", n)
	}
}

func (s *suite) cancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var last error
	n := 0
	for _, err := range s.sys.Processes(ctx) {
		n, last = n+1, err
	}
	if n != 1 || !errors.Is(last, context.Canceled) {
		t.Errorf("a list with a cancelled context yields %d entries, the last with %v", n, last)
	}
	if _, err := s.sys.ProcessByPID(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("ProcessByPID with a cancelled context: %v", err)
	}
}

func (s *suite) concurrent(t *testing.T) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			n := 0
			for _, err := range s.sys.Processes(t.Context()) {
				if err == nil {
					n++
				}
			}
			if n < len(s.truth.Processes) {
				t.Errorf("%d processes, want at least %d", n, len(s.truth.Processes))
			}
		})
	}
	wg.Wait()
}
