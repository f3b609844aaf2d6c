package linux

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// bothKernels runs a test on a kernel of today and on one from before 6.1.
// bothKernels runs a test on a kernel of today and on one from before 6.1, and on
// one of today on arm64.
func bothKernels(t *testing.T, f func(*testing.T, *world)) {
	for _, old := range []bool{false, true} {
		t.Run(map[bool]string{false: "new", true: "old"}[old], func(t *testing.T) { f(t, newWorld(t, old)) })
	}
	t.Run("arm64", func(t *testing.T) { f(t, newARMWorld(t)) })
}

func TestProcessesHoldEverything(t *testing.T) {
	bothKernels(t, func(t *testing.T, w *world) {
		boot := time.Date(2026, 11, 22, 7, 0, 0, 123456789, time.UTC)
		w.clock(boot)
		kthreadd := w.process(2, "kthreadd")
		w.set("task_struct", kthreadd, "flags", pfKThread)
		sh := w.process(7, "sh")
		mm, user := w.memory(sh)
		args := "sh\x00-c\x00\x00echo\x00"
		user.Map(0x7ffd000, 0x1000, vitrinetest.User)
		user.Put(0x7ffd100, []byte(args))
		w.set("mm_struct", mm, "arg_start", 0x7ffd100)
		w.set("mm_struct", mm, "arg_end", 0x7ffd100+len(args))
		w.set("mm_struct", mm, "exe_file", w.file(w.rootFS, w.path("/usr/bin/dash", 5), 0, 0))
		w.set("task_struct", sh, "real_parent", kthreadd)
		w.set("task_struct", sh, "start_boottime", int(3*time.Second))
		cred := w.ptr("task_struct", sh, "real_cred")
		w.set("cred", cred, "uid", 1000)
		w.set("cred", cred, "gid", 100)
		w.thread(sh, 8, "worker")
		s := w.open()
		got, errs := collectErr(s.Processes(t.Context()))
		if errs != nil {
			t.Fatal(errs)
		}
		want := []osi.Process{
			{Handle: osi.Handle{Task: kthreadd}, PID: 2, Name: "kthreadd", FullName: "kthreadd", State: 'R', KThread: true, Threads: 1, StartTime: boot, ID: osi.MakeID(2, 0)},
			{Handle: osi.Handle{Task: sh, ASID: user.Root()}, PID: 7, PPID: 2, Name: "sh", FullName: "sh", Exe: "/usr/bin/dash", Args: []string{"sh", "-c", "", "echo"},
				UID: 1000, GID: 100, State: 'R', Threads: 2, StartTime: boot.Add(3 * time.Second), ID: osi.MakeID(7, 3*time.Second)},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		handles, _ := collectErr(s.ProcessHandles(t.Context()))
		if diff := cmp.Diff([]osi.Handle{want[0].Handle, want[1].Handle}, handles); diff != "" {
			t.Errorf("handles -want +got\n%s", diff)
		}
	})
}

func TestThreadsAndTheirProcess(t *testing.T) {
	w := newWorld(t, false)
	p := w.process(10, "main")
	second := w.thread(p, 12, "second")
	w.thread(p, 11, "third")
	s := w.open()
	threads, errs := collectErr(s.Threads(t.Context(), handleOf(second)))
	var tids []int
	for _, th := range threads {
		tids = append(tids, th.TID)
		if th.PID != 10 {
			t.Errorf("thread %d is of process %d", th.TID, th.PID)
		}
	}
	if errs != nil || !slices.Equal(tids, []int{10, 12, 11}) {
		t.Errorf("threads %v, %v", tids, errs)
	}
	if got, err := s.Process(t.Context(), handleOf(second)); err != nil || got.PID != 10 || got.Threads != 3 {
		t.Errorf("process of a thread = %+v, %v", got, err)
	}
	if _, err := s.ProcessByPID(t.Context(), 12); !errors.Is(err, osi.ErrNoProcess) {
		t.Errorf("process by a thread's id: %v, want ErrNoProcess", err)
	}
}

func TestEndedProcessIsNone(t *testing.T) {
	w := newWorld(t, false)
	p := w.process(10, "gone")
	s := w.open()
	if _, err := s.Process(t.Context(), handleOf(p)); err != nil {
		t.Fatal(err)
	}
	w.pull(w.field("task_struct", p, "tasks"))
	if got, err := s.Process(t.Context(), handleOf(p)); !errors.Is(err, osi.ErrNoProcess) {
		t.Errorf("ended process = %+v, %v, want ErrNoProcess", got, err)
	}
	if _, err := s.Process(t.Context(), handleOf(slab+0x100000)); !errors.Is(err, osi.ErrNoProcess) {
		t.Errorf("unmapped task: %v, want ErrNoProcess", err)
	}
}

func TestCurrentIsPerProcessor(t *testing.T) {
	w := newWorld(t, false)
	p := w.process(10, "busy")
	slot := w.alloc()
	w.s.PutUint64(slot, uint64(p))
	w.f.perCPU["current_task"] = append(w.f.perCPU["current_task"], slot)
	w.b.SetRegisters(make([]arch.Registers, 2)...)
	s := w.open()
	idle, err := s.Current(t.Context(), 0)
	if err != nil || idle.PID != 0 || idle.Name != "swapper/0" || idle.PPID != 0 {
		t.Errorf("Current(0) = %+v, %v, want the idle thread", idle, err)
	}
	busy, err := s.Current(t.Context(), 1)
	if err != nil || busy.PID != 10 || busy.VCPU != 1 {
		t.Errorf("Current(1) = %+v, %v, want process 10", busy, err)
	}
	if _, err := s.Current(t.Context(), 2); err == nil {
		t.Error("Current(2) of two: no error")
	}
}

func TestCurrentInPCPUHot(t *testing.T) {
	w := newWorld(t, false) // 6.2 to 6.14
	w.f.fields["pcpu_hot.current_task"] = member{24, 8}
	hot := w.alloc()
	w.f.perCPU = map[string][]arch.GVA{"pcpu_hot": {hot}}
	w.s.PutUint64(hot+24, uint64(w.process(10, "busy")))
	if th, err := w.open().Current(t.Context(), 0); err != nil || th.PID != 10 {
		t.Errorf("Current(0) = %+v, %v", th, err)
	}
}

func TestStateLetters(t *testing.T) {
	for _, tt := range []struct {
		state, exit uint64
		want        osi.State
	}{
		{0, 0, 'R'}, {1, 0, 'S'}, {2, 0, 'D'}, {4, 0, 'T'}, {8, 0, 't'}, {0x40, 0, 'P'},
		{0x402, 0, 'I'}, {0x102, 0, 'D'}, {0x80, 0x20, 'Z'}, {0x80, 0x10, 'X'}, {0x200, 0, 'R'},
		{0x1000, 0, 'D'}, {0x8000, 0, 'D'}, {1 << 40, 0, 'R'},
	} {
		if got := (&task{state: tt.state, exitState: tt.exit}).letter(); got != tt.want {
			t.Errorf("state %#x, exit_state %#x = %v, want %v", tt.state, tt.exit, got, tt.want)
		}
	}
}

func TestTornListIsReadAgain(t *testing.T) {
	w := newWorld(t, false)
	for pid := range 20 {
		w.process(pid+1, "p")
	}
	victim := w.process(100, "victim")
	s := w.open()
	link := w.field("task_struct", victim, "tasks")
	before := w.s.Uint64(link + 8)
	w.s.PutUint64(link+8, poison) // as in the middle of a removal
	reads := 0
	w.b.OnCall(func(c vitrinetest.Call) {
		if reads++; reads == 200 {
			w.s.PutUint64(link+8, before)
		}
	})
	got, errs := collectErr(s.ProcessHandles(t.Context()))
	if len(got) != 21 || errs != nil {
		t.Errorf("%d processes, %v, want 21 once the list is whole again", len(got), errs)
	}
	seen := map[arch.GVA]bool{}
	for _, h := range got {
		if seen[h.Task] {
			t.Errorf("task %v is listed twice", h.Task)
		}
		seen[h.Task] = true
	}
}

func TestTornListIsReportedBehindTheRest(t *testing.T) {
	w := newWorld(t, false)
	w.process(1, "whole")
	broken := w.process(2, "broken")
	w.process(3, "lost")
	w.s.PutUint64(w.field("task_struct", broken, "tasks")+8, poison)
	got, errs := collectErr(w.open().Processes(t.Context()))
	if len(got) != 1 || got[0].PID != 1 || len(errs) != 1 || !errors.Is(errs[0], osi.ErrTorn) {
		t.Errorf("%+v, %v, want process 1 and ErrTorn", got, errs)
	}
}

func TestCyclicListEnds(t *testing.T) {
	w := newWorld(t, false)
	a, b := w.process(1, "a"), w.process(2, "b")
	link := w.field("task_struct", a, "tasks")
	w.s.PutUint64(w.field("task_struct", b, "tasks"), uint64(link)) // past the head for ever
	got, errs := collectErr(w.open().ProcessHandles(t.Context()))
	if len(got) != 2 || len(errs) != 1 || !errors.Is(errs[0], osi.ErrTorn) {
		t.Errorf("%v, %v, want two handles and ErrTorn", got, errs)
	}
}

func TestListIsBounded(t *testing.T) {
	w := newWorld(t, false)
	head := w.field("task_struct", w.init, "tasks")
	for pid := range 50 {
		w.process(pid+1, "p")
	}
	s := w.open()
	got, err := s.collect(t.Context(), s.kernel, head, 0, 10)
	if len(got) != 10 || !errors.Is(err, osi.ErrCorrupt) {
		t.Errorf("%d entries, %v, want 10 and ErrCorrupt", len(got), err)
	}
}

func TestPartialProcessKeepsTheRest(t *testing.T) {
	w := newWorld(t, false)
	p := w.process(5, "swapped")
	mm, _ := w.memory(p)
	w.set("mm_struct", mm, "arg_start", 0x7000)
	w.set("mm_struct", mm, "arg_end", 0x7010)
	w.set("mm_struct", mm, "exe_file", w.file(w.rootFS, w.path("/bin/x", 1), 0, 0))
	for p, err := range w.open().Processes(t.Context()) {
		var part *osi.PartialError
		if !errors.As(err, &part) || part.Part != "args" || part.PID != 5 || p.PID != 5 || p.Exe != "/bin/x" {
			t.Errorf("%+v, %v, want all but the arguments", p, err)
		}
	}
}

func TestListEndsWhenTheGuestIsGone(t *testing.T) {
	w := newWorld(t, false)
	for pid := range 5 {
		w.process(pid+1, "p")
	}
	s := w.open()
	n := 0
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	for _, err := range s.Processes(ctx) {
		if n++; n == 2 {
			cancel()
		}
		last = err
	}
	if n != 3 || !errors.Is(last, context.Canceled) {
		t.Errorf("%d entries, the last %v, want the context's error as third", n, last)
	}
}

func TestFullNames(t *testing.T) {
	w := newWorld(t, false)
	plain := w.process(2, "rcu_tasks_trace")
	worker := w.process(3, "kworker/0:1")
	for _, p := range []arch.GVA{plain, worker} {
		w.set("task_struct", p, "flags", pfKThread)
		w.set("task_struct", p, "worker_private", w.alloc())
	}
	w.set("kthread", w.ptr("task_struct", plain, "worker_private"), "full_name", w.str("rcu_tasks_trace_kthread"))
	w.set("task_struct", worker, "flags", pfKThread|pfWQWorker)
	desc := w.alloc()
	w.set("kthread", w.ptr("task_struct", worker, "worker_private"), "data", desc)
	w.set("worker", desc, "pool", w.alloc())
	w.s.PutString(w.field("worker", desc, "desc"), "events")
	s := w.open()
	names := func() (out []string) {
		got, _ := collectErr(s.Processes(t.Context()))
		for _, p := range got {
			out = append(out, p.FullName)
		}
		return out
	}
	if got, want := names(), []string{"rcu_tasks_trace_kthread", "kworker/0:1-events"}; !slices.Equal(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
	w.set("worker", desc, "current_work", 1)
	if got := names()[1]; got != "kworker/0:1+events" {
		t.Errorf("busy worker is %q", got)
	}
	w.set("task_struct", worker, "worker_private", 0x1234) // not a pointer at all
	if got := names()[1]; got != "kworker/0:1" {
		t.Errorf("worker without its structure is %q", got)
	}
}

func TestClockNeedsToBeBelieved(t *testing.T) {
	w := newWorld(t, false)
	at := w.clock(time.Unix(1e9, 0))
	w.process(1, "p")
	if got, err := w.open().ProcessByPID(t.Context(), 1); err != nil || got.StartTime.Unix() != 1e9 {
		t.Errorf("started at %v, %v", got.StartTime, err)
	}
	w.set("timekeeper", at+8, "xtime_sec", 1)
	if got, err := w.open().ProcessByPID(t.Context(), 1); err != nil || !got.StartTime.IsZero() {
		t.Errorf("a timekeeper that contradicts itself gives %v, %v", got.StartTime, err)
	}
}

// A processor may stand in the middle of a tick for as long as its guest does.
func TestClockInTheMiddleOfATick(t *testing.T) {
	w := newWorld(t, false)
	at := w.clock(time.Unix(1e9, 0))
	w.process(1, "p")
	sys := w.open()
	w.s.PutUint32(at, 1)
	if got, err := sys.ProcessByPID(t.Context(), 1); err != nil || got.StartTime.Unix() != 1e9 {
		t.Errorf("started at %v, %v", got.StartTime, err)
	}
}

func TestSetproctitle(t *testing.T) {
	for _, tt := range []struct {
		name           string
		memory         string
		argLen, envEnd int
		want           []string
	}{
		{"plain", "a\x00b c\x00ENV=1\x00", 6, 12, []string{"a", "b c"}},
		{"title that spills into the environment", "nginx: master process\x00x\x00", 6, 23, []string{"nginx: master process"}},
		{"title without environment behind it", "title!more", 6, 0, []string{"title!"}},
		{"none", "", 0, 0, nil},
		{"empty string", "\x00", 1, 0, []string{""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, false)
			mm, user := w.memory(w.process(1, "p"))
			user.Map(0x8000, 0x1000, vitrinetest.User)
			user.Put(0x8000, []byte(tt.memory))
			w.set("mm_struct", mm, "arg_start", 0x8000)
			w.set("mm_struct", mm, "arg_end", 0x8000+tt.argLen)
			if tt.envEnd > 0 {
				w.set("mm_struct", mm, "env_start", 0x8000+tt.argLen)
				w.set("mm_struct", mm, "env_end", 0x8000+tt.envEnd)
			}
			p, err := w.open().ProcessByPID(t.Context(), 1)
			if diff := cmp.Diff(tt.want, p.Args); err != nil || diff != "" {
				t.Errorf("%v -want +got\n%s", err, diff)
			}
		})
	}
}

func TestArgsAreBounded(t *testing.T) {
	w := newWorld(t, false)
	mm, user := w.memory(w.process(1, "p"))
	page := w.b.Alloc(1)
	for i := range 100 { // one page, many times
		user.MapTo(0x100000+arch.GVA(i)*0x1000, page, vitrinetest.Page4K, vitrinetest.User)
	}
	w.b.PutPhysical(page, []byte(strings.Repeat("x", 4095)))
	w.set("mm_struct", mm, "arg_start", 0x100000)
	w.set("mm_struct", mm, "arg_end", uint64(1)<<46)
	p, err := w.open().ProcessByPID(t.Context(), 1)
	n := 0
	for _, a := range p.Args {
		n += len(a) + 1
	}
	if err != nil || n > maxArgs || n < maxArgs-4096 {
		t.Errorf("%d bytes of arguments, %v, want %d at most", n, err, maxArgs)
	}
}

func TestOpenNamesWhatIsMissing(t *testing.T) {
	w := newWorld(t, false)
	for _, f := range []string{"task_struct.pid", "file.f_pos", "mm_struct.mm_mt.ma_root"} {
		delete(w.f.fields, f)
	}
	g := w.b.Guest()
	_, err := open(t.Context(), g, w.f, g.AddressSpace(w.s.Mode(), w.s.Root()))
	for _, want := range []string{"task_struct.pid", "file.f_pos", "mm_struct.mm_mt"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("open: %v, want it to name %s", err, want)
		}
	}
}

func TestOpenRefusesAbsurdOffsets(t *testing.T) {
	w := newWorld(t, false)
	w.f.fields["task_struct.pid"] = member{1 << 40, 4}
	g := w.b.Guest()
	if _, err := open(t.Context(), g, w.f, g.AddressSpace(w.s.Mode(), w.s.Root())); err == nil || !strings.Contains(err.Error(), "task_struct.pid") {
		t.Errorf("open: %v, want it to name task_struct.pid", err)
	}
}
