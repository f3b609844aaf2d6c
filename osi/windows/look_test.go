package windows

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/vitrinetest/nttest"
)

// looker is a watcher of a guest that the test changes, and what it has told.
type looker struct {
	*watcher
	g    *nttest.Guest
	told []string
	errs int
}

// processKinds and threadKinds are what the command line asks for, without and
// with threads.
var (
	processKinds = []osi.EventKind{osi.EventStart, osi.EventExec, osi.EventExit}
	threadKinds  = append(slices.Clip(processKinds), osi.EventThreadStart, osi.EventThreadExit)
)

func newLooker(t *testing.T, b build, kinds []osi.EventKind) *looker {
	t.Helper()
	l := &looker{g: nttest.New(b.config())}
	s := openFake(t, l.g)
	l.watcher = &watcher{s: s, known: map[arch.GVA]*life{}, kinds: kinds, emit: func(e osi.Event) {
		if e.Err != nil {
			l.errs++
		}
		l.told = append(l.told, fmt.Sprintf("%v %d/%d %s %#x", e.Kind, e.PID, e.TID, e.Name, uint32(e.ExitCode))) //nolint:gosec // 32 bits, and an int may have no more
	}}
	l.look(t.Context(), -1)
	return l
}

// put stores a member of a process.
func (l *looker) put(p *nttest.Process, member string, v uint64, size int) {
	l.g.Kernel.PutUint(p.Task+l.g.At("_EPROCESS", member), v, size)
}

// What has changed between two looks is told, once.
func TestLook(t *testing.T) {
	for _, b := range builds {
		lookThrough(t, b, threadKinds, "thread-exit 1234/1242 notepad.exe 0x55")
		lookThrough(t, b, processKinds)
	}
}

// lookThrough makes what happens to processes happen.
func lookThrough(t *testing.T, b build, kinds []osi.EventKind, threadEnd ...string) {
	t.Helper()
	l := newLooker(t, b, kinds)
	smss, notepad := l.g.Processes[1], l.g.Processes[2]
	check := func(what string, want ...string) {
		t.Helper()
		l.told = nil
		l.look(t.Context(), -1)
		if diff := cmp.Diff(want, l.told); diff != "" {
			t.Errorf("%s, %s (-want +told):\n%s", b.name, what, diff)
		}
	}
	check("nothing has changed")

	// A thread ends that is not the last.
	second := notepad.Threads[1].Task
	l.g.Kernel.PutUint(second+l.g.At("_KTHREAD", "State"), terminated, 1)
	l.g.Kernel.PutUint(second+l.g.At("_ETHREAD", "ExitStatus"), 0x55, 4)
	check("a thread ends", threadEnd...)

	l.put(notepad, "ExitStatus", 0xc0000005, 4)
	l.put(notepad, "ExitTime", created+1000, 8)
	check("a process ends", "exit 1234/1234 notepad.exe 0xc0000005")
	check("and is held open")

	// Another one takes the place of one that was called to end.
	l.known[smss.Task].dying, l.known[smss.Task].status = true, 7
	l.put(smss, "UniqueProcessId", 304, 4)
	l.put(smss, "CreateTime", created+2000, 8)
	check("another one in its place", "start 304/304 smss.exe 0x0", "exit 300/300 smss.exe 0x7")

	// A list that is being changed tells of no ends.
	link := l.g.Processes[0].Task + l.g.At("_EPROCESS", "ActiveProcessLinks")
	l.g.Word(link, 0)
	check("a torn list")
	check("a torn list again")
	l.g.Word(link, uint64(smss.Task+l.g.At("_EPROCESS", "ActiveProcessLinks")))
	check("the list mended")
	if l.errs != 0 {
		t.Errorf("%s: %d records were not complete", b.name, l.errs)
	}
}

// A process whose record is gone, and that nobody was seen to end, is told
// without an exit code.
func TestLookAtNothingLeft(t *testing.T) {
	for _, b := range builds {
		l := newLooker(t, b, threadKinds)
		system, notepad := l.g.Processes[0], l.g.Processes[2]
		links := l.g.At("_EPROCESS", "ActiveProcessLinks")
		w := l.g.At("_LIST_ENTRY", "Blink")
		smss := l.g.Processes[1].Task + links
		l.g.Word(smss, uint64(l.g.ProcessHead)) // notepad was the last
		l.g.Word(l.g.ProcessHead+w, uint64(smss))
		l.g.Kernel.PutUint(notepad.Task, 0, 1) // freed, and used for something else
		l.look(t.Context(), -1)
		l.look(t.Context(), -1)
		if diff := cmp.Diff([]string{"exit 1234/1234 notepad.exe 0x0"}, l.last()); diff != "" || l.errs != 1 {
			t.Errorf("%s: %d incomplete\n%s", b.name, l.errs, diff)
		}
		if len(l.known) != 2 || l.known[system.Task] == nil {
			t.Errorf("%s: %d are known", b.name, len(l.known))
		}
	}
}

// last returns the last event.
func (l *looker) last() []string { return l.told[max(0, len(l.told)-1):] }

func TestWatchOfTaskChanges(t *testing.T) {
	s := openFake(t, nttest.New(builds[5].config()))
	if _, err := s.EventProbes([]osi.EventKind{osi.EventTaskChange}, func(osi.Event) {}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("task changes: %v", err)
	}
}

// Whatever the lists are spoiled to, looking ends.
func TestLookAtGarbage(t *testing.T) {
	for _, b := range builds {
		l := newLooker(t, b, threadKinds)
		for i, p := range l.g.Processes {
			for _, m := range []string{"ThreadListHead", "ActiveProcessLinks"} {
				at := p.Task + l.g.At("_EPROCESS", m)
				l.g.Word(at, uint64(at)+uint64(i))
				l.look(t.Context(), -1)
			}
		}
		if len(l.known) > 3 {
			t.Errorf("%s: %d processes are known", b.name, len(l.known))
		}
	}
}

// BenchmarkLook is what looking costs a hundred times a second, with eleven processes.
func BenchmarkLook(b *testing.B) {
	build := builds[10]
	c := build.config()
	for i := range 8 {
		p := *c.Processes[1]
		p.PID, p.Created = 2000+4*i, created+uint64(i)
		p.Threads = []nttest.Thread{{TID: 2002 + 4*i, State: 5}}
		c.Processes = append(c.Processes, &p)
	}
	g := nttest.New(c)
	k, err := kernel.Describe(b.Context(), g.Guest(), nil)
	if err != nil {
		b.Fatal(err)
	}
	s, err := open(g.Guest(), k)
	if err != nil {
		b.Fatal(err)
	}
	w := &watcher{s: s, known: map[arch.GVA]*life{}, emit: func(osi.Event) {}}
	w.look(b.Context(), -1)
	for b.Loop() {
		w.look(b.Context(), -1)
	}
	if len(w.known) != len(c.Processes) {
		b.Errorf("%d processes are known, there are %d", len(w.known), len(c.Processes))
	}
}
