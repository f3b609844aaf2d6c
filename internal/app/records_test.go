package app

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// fakeSystem has the given processes, each with its threads. Methods that the
// tests do not need are those of the nil System: calling one fails the test.
type fakeSystem struct {
	osi.System
	procs   []osi.Process
	threads map[int][]osi.Thread
	torn    error // comes behind the first process, and behind the first thread
}

func (s *fakeSystem) Processes(context.Context) iter.Seq2[osi.Process, error] {
	return withTorn(s.procs, s.torn)
}

func (s *fakeSystem) Threads(_ context.Context, h osi.Handle) iter.Seq2[osi.Thread, error] {
	i := slices.IndexFunc(s.procs, func(p osi.Process) bool { return p.Task == h.Task })
	return withTorn(s.threads[s.procs[i].PID], s.torn)
}

func (s *fakeSystem) ProcessByPID(_ context.Context, pid int) (osi.Process, error) {
	for _, p := range s.procs {
		if p.PID == pid {
			return p, nil
		}
	}
	return osi.Process{}, osi.ErrNoProcess
}

func (s *fakeSystem) Files(context.Context, osi.Handle) iter.Seq2[osi.File, error] {
	return withTorn([]osi.File{{FD: 3, Path: "/x", Pos: 7, Flags: 2, FlagNames: "O_RDWR", Inode: 9}}, nil)
}

func (s *fakeSystem) Current(_ context.Context, vcpu int) (osi.Thread, error) {
	return osi.Thread{PID: 10 + vcpu, TID: 20 + vcpu, Name: "x"}, s.torn
}

func withTorn[T any](all []T, torn error) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		for i, v := range all {
			if !yield(v, nil) || i == 0 && torn != nil && !yield(zero, torn) {
				return
			}
		}
	}
}

func fakeSession(torn error) *Session {
	start := time.Date(2026, 11, 22, 7, 0, 0, 0, time.UTC)
	sys := &fakeSystem{torn: torn}
	sys.procs = []osi.Process{
		{
			Handle: osi.Handle{Task: 0x100, ASID: 0x1000}, PID: 1, Name: "init", FullName: "init", Exe: "/sbin/init",
			Args: []string{"/sbin/init"}, State: 'S', Threads: 3, StartTime: start,
		},
		{Handle: osi.Handle{Task: 0x200}, PID: 2, Name: "kworker/u4:0-ev", FullName: "kworker/u4:0-events_unbound", KThread: true, State: 'I', Threads: 1},
	}
	sys.threads = map[int][]osi.Thread{1: {
		{Handle: osi.Handle{Task: 0x100}, TID: 1, PID: 1, Name: "init"},
		{Handle: osi.Handle{Task: 0x101}, TID: 5, PID: 1, PPID: 0, Name: "t5", UID: 7, State: 'R', StartTime: start},
		{Handle: osi.Handle{Task: 0x102}, TID: 6, PID: 1, PPID: 0, Name: "t6", State: 'S', StartTime: start},
	}}
	return &Session{sys: sys, opts: &Options{}, guest: vitrinetest.New().Guest()}
}

// collect gathers a list and its errors.
func collect[T any](seq iter.Seq2[T, error]) (out []T, errs []error) {
	for v, err := range seq {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, v)
	}
	return out, errs
}

func TestProcessRecords(t *testing.T) {
	got, errs := collect(fakeSession(nil).Processes(t.Context(), false))
	start := time.Date(2026, 11, 22, 7, 0, 0, 0, time.UTC)
	want := []event.Process{
		{PID: 1, TGID: 1, Name: "init", Exe: "/sbin/init", Args: []string{"/sbin/init"}, State: "S", Threads: 3, StartTime: start, ASID: 0x1000, Task: 0x100},
		{PID: 2, TGID: 2, Name: "kworker/u4:0-events_unbound", State: "I", KThread: true, Threads: 1, Task: 0x200},
	}
	if diff := cmp.Diff(want, got); diff != "" || len(errs) > 0 {
		t.Errorf("errors %v (-want +got):\n%s", errs, diff)
	}
}

func TestThreadRecordsFollowTheirProcess(t *testing.T) {
	got, errs := collect(fakeSession(nil).Processes(t.Context(), true))
	var line []string
	for _, p := range got {
		line = append(line, p.Name)
	}
	if s := strings.Join(line, " "); s != "init t5 t6 kworker/u4:0-events_unbound" || len(errs) > 0 {
		t.Errorf("got %s, %v", s, errs)
	}
	thread := got[1]
	if thread.PID != 5 || thread.TGID != 1 || thread.UID != 7 || thread.State != "R" || thread.Task != 0x101 || thread.ASID != 0x1000 {
		t.Errorf("thread = %+v", thread)
	}
}

func TestTornEntriesComeInTheirPlace(t *testing.T) {
	got, errs := collect(fakeSession(osi.ErrTorn).Processes(t.Context(), true))
	if len(got) != 4 || len(errs) != 2 {
		t.Errorf("%d records, errors %v; want 4 and one for each list", len(got), errs)
	}
	for range fakeSession(osi.ErrTorn).Processes(t.Context(), true) {
		break // must not go on, nor panic
	}
}

func TestQuestionsAboutAProcess(t *testing.T) {
	s := fakeSession(nil)
	files, errs := collect(s.Files(t.Context(), 1))
	if diff := cmp.Diff([]event.File{{FD: 3, Path: "/x", Pos: 7, Flags: "O_RDWR"}}, files); diff != "" || len(errs) > 0 {
		t.Errorf("errors %v (-want +got):\n%s", errs, diff)
	}
	if _, errs := collect(s.Libraries(t.Context(), 99)); len(errs) != 1 || !errors.Is(errs[0], osi.ErrNoProcess) {
		t.Errorf("libraries of no process: %v", errs)
	}
	if _, errs := collect(s.Mappings(t.Context(), 99)); len(errs) != 1 || !errors.Is(errs[0], osi.ErrNoProcess) {
		t.Errorf("mappings of no process: %v", errs)
	}
}

func TestCurrentHasALineForEachProcessor(t *testing.T) {
	got, errs := collect(fakeSession(nil).Current(t.Context()))
	if diff := cmp.Diff([]event.Current{{VCPU: 0, PID: 10, TID: 20, Name: "x"}}, got); diff != "" || len(errs) > 0 {
		t.Errorf("errors %v (-want +got):\n%s", errs, diff)
	}
}

func TestPhysicalMemoryNeedsNoSystem(t *testing.T) {
	b := vitrinetest.New()
	b.PutPhysical(0x3000, []byte("hello"))
	s := &Session{guest: b.Guest(), opts: &Options{}}
	m, err := s.Memory(t.Context(), MemoryOptions{Addr: "0x3000", Physical: true})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 5)
	if n, err := m.ReadAt(p, m.Start); err != nil || string(p[:n]) != "hello" {
		t.Errorf("read %q, %v", p[:n], err)
	}
}
