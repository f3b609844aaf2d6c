package probe_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/qemu"
)

// traceUntilKilled names the environment variable that makes this test binary
// trace the guest behind a monitor's socket until it is killed.
const traceUntilKilled = "VITRINE_TEST_TRACE_UNTIL_KILLED"

func childMain(qmp string) int {
	ctx := context.Background()
	g, err := qemu.Attach(ctx, qmp, nil)
	if err != nil {
		return fail(err)
	}
	k, err := kernel.Describe(ctx, g, nil)
	if err != nil {
		return fail(err)
	}
	s, err := probe.New(g, k, &probe.Options{Engine: probe.Trap})
	if err != nil {
		return fail(err)
	}
	_, err = s.Add(&probe.Probe{Func: "__x64_sys_getppid",
		Enter: func(*probe.Hit) any { os.Stdout.WriteString("hit\n"); return nil }, Return: func(*probe.Hit, any) {}})
	if err != nil {
		return fail(err)
	}
	return fail(s.Run(ctx))
}

func fail(err error) int {
	os.Stderr.WriteString(err.Error() + "\n")
	return 1
}

// TestTrapKilled kills a tracing process in mid-trace; Repair must bring the
// guest back as it was.
func TestTrapKilled(t *testing.T) {
	vm := vmtest.Shared(t, &testvm.Options{Kernel: "6.1-cloud", CPUs: 2, RAM: testvm.SharedMemfd})
	text := vmtest.SnapshotText(t, vm)
	spawn(t, vm, "getppid", "gp")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), traceUntilKilled+"="+vm.QMP)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4)
	for range 20 { // in the midst of it
		if _, err := out.Read(buf); err != nil {
			t.Fatalf("the child ended: %v", err)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	g, err := qemu.Attach(t.Context(), vm.QMP, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	did, err := g.Repair(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("repair: %q", did)
	vmtest.Healthy(t, vm)
	if err := vm.Quiet(t.Context()); err != nil {
		t.Fatal(err)
	}
	text.Unchanged(t)
}

// TestTrapReset resets the guest in mid-trace, and then ends it.
func TestTrapReset(t *testing.T) {
	vm := vmtest.Boot(t, &testvm.Options{Kernel: "6.1-cloud"})
	_, s := trapSession(t, vm.QMP)
	mustAdd(t, s, &probe.Probe{Func: "__x64_sys_getppid", Enter: func(*probe.Hit) any { return nil }})
	end := background(t, vm, s)
	if _, err := vm.Execute(t.Context(), "system_reset", nil); err != nil {
		t.Fatal(err)
	}
	if err := end(); !errors.Is(err, vitrine.ErrReset) {
		t.Errorf("Run of a guest that was reset = %v", err)
	}
	if err := vm.AwaitBoot(t.Context()); err != nil {
		t.Fatal(err)
	}
	vmtest.Healthy(t, vm)

	end = background(t, vm, s) // its breakpoints lie in a kernel that is no more: harmless
	if _, err := vm.Execute(t.Context(), "quit", nil); err != nil {
		t.Fatal(err)
	}
	if err := end(); !errors.Is(err, vitrine.ErrGone) {
		t.Errorf("Run of a guest that ended = %v", err)
	}
}
