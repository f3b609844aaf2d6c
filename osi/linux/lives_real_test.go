package linux_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/vitrinetest/providertest"
)

// of returns the events of a process.
func of(events []osi.Event, pid int) (out []osi.Event) {
	for _, e := range events {
		if e.PID == pid {
			out = append(out, e)
		}
	}
	return out
}

// testLives watches threads come and go, children of vfork, an exec by another
// thread than the first, ends by signals and task changes.
func testLives(t *testing.T, vm *testvm.VM, g *vitrine.Guest) {
	text := vmtest.SnapshotText(t, vm)
	r := record(t, vm, g, probe.Implant, &osi.EventsOptions{Threads: true, TaskChanges: true})
	threads := spawnAndKill(t, vm, "threads", "20")
	vforks, err := vm.Spawn(t.Context(), "exec", "vforks", "50", "/bin/busybox", "true", "one", "two")
	if err != nil {
		t.Fatal(err)
	}
	r.await(t, "a program of the workload", func(e *osi.Event) bool {
		return e.PPID == vforks.PID && e.Kind == osi.EventExit && len(e.Args) == 4
	})
	if err := vm.Kill(t.Context(), "vforks"); err != nil {
		t.Fatal(err)
	}
	other, err := vm.Spawn(t.Context(), "threadexec", "other")
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Tell(t.Context(), "other", "go", nil); err != nil {
		t.Fatal(err)
	}
	if err := vm.Kill(t.Context(), "other"); err != nil {
		t.Fatal(err)
	}
	r.await(t, "the last kill", func(e *osi.Event) bool { return e.PID == other.PID && e.Kind == osi.EventExit })
	all := r.stop(t)
	lives := slices.DeleteFunc(slices.Clone(all), func(e osi.Event) bool { return e.Kind == osi.EventTaskChange })
	t.Logf("%d events and %d task changes", len(lives), len(all)-len(lives))
	providertest.Events(t, lives)
	checkThreads(t, of(lives, threads.PID), threads.TIDs)
	checkVforks(t, lives, vforks.PID)
	checkOther(t, of(lives, other.PID))
	checkChanges(t, all, threads.TIDs)
	text.Unchanged(t)
	vmtest.Healthy(t, vm)
}

func spawnAndKill(t *testing.T, vm *testvm.VM, kind string, args ...string) (s struct {
	PID  int
	TIDs []int
}) {
	t.Helper()
	got, err := vm.Spawn(t.Context(), kind, kind, args...)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Kill(t.Context(), kind); err != nil {
		t.Fatal(err)
	}
	s.PID, s.TIDs = got.PID, got.TIDs
	return s
}

// checkThreads wants each thread to start and end once, and the process to end
// by the signal.
func checkThreads(t *testing.T, events []osi.Event, tids []int) {
	t.Helper()
	started, ended := map[int]int{}, map[int]int{}
	var last osi.Event
	for _, e := range events {
		switch e.Kind {
		case osi.EventThreadStart, osi.EventStart:
			started[e.TID]++
		case osi.EventThreadExit, osi.EventExit:
			ended[e.TID]++
		}
		last = e
	}
	for _, tid := range tids {
		if started[tid] != 1 || ended[tid] != 1 {
			t.Errorf("thread %d started %d times and ended %d times", tid, started[tid], ended[tid])
		}
	}
	if last.Kind != osi.EventExit || last.Signal != 9 || last.ExitCode != 0 {
		t.Errorf("the process with threads ends with %+v", last)
	}
}

// checkVforks wants the programs of a workload to start, exec and end.
func checkVforks(t *testing.T, events []osi.Event, parent int) {
	t.Helper()
	byID := map[string][]string{}
	for _, e := range events {
		if e.PPID == parent && e.Kind != osi.EventThreadStart && e.Kind != osi.EventThreadExit {
			byID[e.ID] = append(byID[e.ID], fmt.Sprintf("%v %s %s %q %d %d", e.Kind, e.Name, e.Exe, e.Args, e.ExitCode, e.Signal))
		}
	}
	whole := 0
	for id, got := range byID {
		if len(got) < 3 || strings.HasSuffix(got[2], " 0 9") {
			continue // the workload was killed in the middle of it
		}
		whole++
		want := []string{
			`exec busybox /bin/busybox ["/bin/busybox" "true" "one" "two"] 0 0`,
			`exit true /bin/busybox ["/bin/busybox" "true" "one" "two"] 0 0`,
		}
		got[2] = strings.Replace(got[2], "exit busybox", "exit true", 1) // it may name itself
		if diff := cmp.Diff(want, got[1:]); diff != "" || !strings.HasPrefix(got[0], "start w-exec /") {
			t.Errorf("events of %s: %q (-want +got):\n%s", id, got[0], diff)
		}
	}
	if whole == 0 {
		t.Errorf("no program of pid %d from start to end", parent)
	}
}

// checkOther wants the process whose second thread executed to stay the same.
func checkOther(t *testing.T, events []osi.Event) {
	t.Helper()
	var got []string
	ids := map[string]bool{}
	for _, e := range events {
		ids[e.ID] = true
		if e.Kind != osi.EventThreadStart && e.Kind != osi.EventThreadExit {
			got = append(got, fmt.Sprintf("%v %s %d %d", e.Kind, e.Name, e.TID-e.PID, e.Signal))
		}
	}
	want := []string{"start init 0 0", "exec w-threadexec 0 0", "exec sh 0 0", "exit sh 0 9"}
	if diff := cmp.Diff(want, got); diff != "" || len(ids) != 1 {
		t.Errorf("events of the process that a thread executed in, ids %v (-want +got):\n%s", ids, diff)
	}
}

// checkChanges wants each of some threads to have been turned to, and each
// processor's changes to follow one another.
func checkChanges(t *testing.T, events []osi.Event, tids []int) {
	t.Helper()
	seen := map[int]bool{}
	last := map[int]osi.Event{}
	broken := 0
	for _, e := range events {
		if e.Kind != osi.EventTaskChange {
			continue
		}
		seen[e.TID] = true
		if before, ok := last[e.VCPU]; ok && before.Task != e.Previous {
			broken++
		}
		last[e.VCPU] = e
	}
	for _, tid := range tids {
		if !seen[tid] {
			t.Errorf("no processor turned to thread %d", tid)
		}
	}
	if broken > 0 {
		t.Errorf("%d of the task changes do not follow the one before", broken)
	}
}

// testListsAgree lists processes again and again while others come and go, and
// compares with the events: who lives all the time must be listed.
func testListsAgree(t *testing.T, vm *testvm.VM, g *vitrine.Guest, lists int) {
	text := vmtest.SnapshotText(t, vm)
	r := record(t, vm, g, probe.Implant, nil)
	// Two shells, which make some 50 a second together on two busy CPUs.
	if _, err := vm.SpawnWith(t.Context(), shell("busy", "f() { while :; do sleep 0.3 & usleep 10000; done; }; f & f")); err != nil {
		t.Fatal(err)
	}
	r.await(t, "a child", func(e *osi.Event) bool { return e.Kind == osi.EventExit && e.Name == "sleep" })
	least := 1 << 30
	for range lists {
		before := r.living()
		listed := map[string]bool{}
		for p, err := range r.sys.Processes(t.Context()) {
			if err != nil && p.ID == "" {
				t.Errorf("list: %v", err)
			}
			listed[p.ID] = true
		}
		// All that has happened until the end of the list is told of before a process that begins now.
		mark, err := vm.SpawnWith(t.Context(), shell("mark", "sleep 60"))
		if err != nil {
			t.Fatal(err)
		}
		r.await(t, "a process that began later", func(e *osi.Event) bool { return e.PID == mark.PID && e.Kind == osi.EventStart })
		after, lived := r.living(), 0
		for id := range before {
			if !after[id] {
				continue // it ended meanwhile
			}
			if lived++; !listed[id] {
				t.Errorf("%s lived all the time and is not listed", id)
			}
		}
		least = min(least, lived)
		if err := vm.Kill(t.Context(), "mark"); err != nil {
			t.Fatal(err)
		}
	}
	if err := vm.Kill(t.Context(), "busy"); err != nil {
		t.Fatal(err)
	}
	starts := 0
	all := r.stop(t)
	for _, e := range all {
		if e.Kind == osi.EventStart {
			starts++
		}
	}
	t.Logf("%d lists of at least %d processes, while %d started in %v", lists, least, starts, all[len(all)-1].Time.Sub(all[0].Time).Round(time.Millisecond))
	providertest.Events(t, all)
	text.Unchanged(t)
	vmtest.Healthy(t, vm)
}
