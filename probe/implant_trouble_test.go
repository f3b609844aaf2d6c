package probe_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/probe"
)

// await waits for something that comes about, for two minutes at most: what
// follows judges.
func await(ready func() bool) {
	for end := time.Now().Add(2 * time.Minute); !ready() && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
}

// counted returns a probe of entries and returns that counts the former.
func counted(name string, hits *atomic.Uint64) *probe.Probe {
	return &probe.Probe{Func: name, Enter: func(*probe.Hit) any { hits.Add(1); return nil }, Return: func(*probe.Hit, any) {}}
}

func execute(vm *testvm.VM, command string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := vm.Execute(ctx, command, nil)
		return err
	}
}

// TestImplantPaused: a guest that somebody pauses while implants are in it stays
// paused, and its threads do not take that for the host's end. Implants cannot
// leave then, and do when it runs again.
func TestImplantPaused(t *testing.T) {
	for _, d := range []probe.Delivery{probe.Stream, probe.Sync} {
		t.Run(string(d), func(t *testing.T) { testImplantPaused(t, d) })
	}
}

func testImplantPaused(t *testing.T, d probe.Delivery) {
	vm := vmtest.Shared(t, &quickGuest)
	spawn(t, vm, "getppid", "g")
	text := vmtest.SnapshotText(t, vm)
	k, s := implantSession(t, vm, &probe.Options{Delivery: d})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var hits atomic.Uint64
	mustAdd(t, s, counted("__x64_sys_getppid", &hits))
	stop := start(t, s, func() bool { return hits.Load() > 100 })
	must(vm.Stop(t.Context()))
	time.Sleep(pausedFor) // longer than threads wait for a host that gives no sign of life
	n := hits.Load()
	must(vm.Cont(t.Context()))
	await(func() bool { return hits.Load() > n+10_000 })
	stop()
	if st := s.Stats(); hits.Load() <= n+10_000 || st.Lost != 0 || st.Stalls != 0 {
		t.Errorf("%d hits, %d when the guest was let run again; %+v", hits.Load(), n, st)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	n = hits.Load()
	go func() { done <- s.Run(ctx) }()
	await(func() bool { return hits.Load() > n })
	must(vm.Stop(t.Context()))
	cancel()
	if err := <-done; !errors.Is(err, vitrine.ErrPaused) {
		t.Errorf("Run on a guest that is paused at the end = %v", err)
	}
	if err := s.Run(t.Context()); !errors.Is(err, vitrine.ErrPaused) && !errors.Is(err, vitrine.ErrBusy) {
		t.Errorf("Run on a paused guest = %v", err)
	}
	if running, err := vm.Running(t.Context()); err != nil || running {
		t.Errorf("the guest runs: %v, %v", running, err)
	}
	must(vm.Cont(t.Context()))
	if found, err := probe.Repair(t.Context(), s.Guest(), k); err != nil || len(found) != 1 {
		t.Errorf("Repair = %q, %v", found, err)
	}
	must(vm.Quiet(t.Context()))
	text.Unchanged(t)
	vmtest.Healthy(t, vm)
}

// pausedFor is more than the two seconds without a sign of life of the host after
// which threads of the guest go on without it.
const pausedFor = 3 * time.Second

// TestImplantReset has the guest reboot with implants in it, resets it, and then
// ends it.
func TestImplantReset(t *testing.T) {
	vm := vmtest.Boot(t, &testvm.Options{})
	for _, c := range []struct {
		name string
		do   func(context.Context) error
		want error
	}{
		{"reboot", vm.Reboot, vitrine.ErrReset},
		{"reset", execute(vm, "system_reset"), vitrine.ErrReset},
		{"quit", execute(vm, "quit"), vitrine.ErrGone},
	} {
		if c.name == "reset" && os.Getenv("VITRINE_TEST_MATRIX") == "" {
			continue // it is no other than a reboot to those outside
		}
		if _, err := vm.Spawn(t.Context(), "getppid", "g"); err != nil {
			t.Fatal(err)
		}
		_, s := implantSession(t, vm, nil)
		var hits atomic.Uint64
		mustAdd(t, s, counted("__x64_sys_getppid", &hits))
		done := make(chan error, 1)
		go func() { done <- s.Run(t.Context()) }()
		await(func() bool { return hits.Load() >= 100 })
		err := c.do(t.Context())
		if got := <-done; !errors.Is(got, c.want) {
			t.Errorf("%s: Run = %v after %d hits, want %v", c.name, got, hits.Load(), c.want)
		}
		s.Guest().Close()
		if c.want == vitrine.ErrGone {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		if err := vm.AwaitBoot(ctx); err != nil { // nothing of ours hinders it
			t.Fatal(err)
		}
		cancel()
	}
}

// TestImplantDying takes implants out while threads end in functions that are
// hooked. From some point on they are on no list of the kernel but their
// processor's; children of a parent that ignores SIGCHLD reap themselves there.
func TestImplantDying(t *testing.T) {
	vm := vmtest.Shared(t, &testvm.Options{Kernel: "6.1-cloud", CPUs: 2, RAM: testvm.SharedMemfd, Cmdline: "preempt=full"})
	const churn = "trap '' CHLD; while :; do (:)& (:)& (:)& (:)& wait; done"
	for i := range 3 {
		if _, err := vm.SpawnProgram(t.Context(), fmt.Sprint("churn", i), "/bin/busybox", "sh", "-c", churn); err != nil {
			t.Fatal(err)
		}
	}
	text := vmtest.SnapshotText(t, vm)
	k, s := implantSession(t, vm, nil)
	var hits atomic.Uint64
	n := 0
	// What runs on the way from exit_notify to the end, in one kernel or another.
	for _, name := range []string{
		"exit_notify", "release_task", "proc_flush_pid", "put_pid", "release_thread", "put_task_struct_rcu_user", "proc_exit_connector",
		"mpol_put_task_policy", "exit_io_context", "free_pipe_info", "__put_task_struct", "call_rcu", "dput", "d_invalidate",
	} {
		if _, err := k.Symbol(name); err != nil {
			continue
		}
		if _, err := s.Add(counted(name, &hits)); err != nil {
			t.Logf("%s: %v", name, err)
			continue
		}
		n++
	}
	if n < 5 {
		t.Fatalf("only %d functions could be hooked", n)
	}
	for range cycles() {
		before := hits.Load()
		start(t, s, func() bool { return hits.Load() > before+100 })()
	}
	t.Logf("%d functions, %d hits, %+v", n, hits.Load(), s.Stats().Removing)
	vmtest.Healthy(t, vm)
	if err := vm.Quiet(t.Context()); err != nil {
		t.Fatal(err)
	}
	text.Unchanged(t)
}
