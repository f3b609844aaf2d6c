package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/dump"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
)

// events returns the names of the guest's events since the first n.
func events(vm *testvm.VM, n int) []string {
	var out []string
	for _, e := range vm.Events(n) {
		out = append(out, e.Name)
	}
	return out
}

func wantRunning(t *testing.T, vm *testvm.VM, want bool) {
	t.Helper()
	if got, err := vm.Running(t.Context()); err != nil || got != want {
		t.Errorf("guest runs: %v, %v; want %v", got, err, want)
	}
}

// A running guest stands still for its core and runs on; a paused one stays so,
// and its core tells the same as the guest.
func TestDump(t *testing.T) {
	vm := guest(t)
	pid := vmtest.Spawn(t, vm, "sleeper", "dumped").PID
	path := filepath.Join(t.TempDir(), "core")
	n := len(vm.Events(0))
	mustRun(t, "dump", target(vm), "-o", path)
	vmtest.Equal(t, "events of a dump", events(vm, n), []string{"STOP", "RESUME"})
	wantRunning(t, vm, true)
	if r := run(t, "dump", target(vm), "-o", path); r.status != 1 || !strings.Contains(r.stderr, "file exists") {
		t.Errorf("dump over a file: status %d\n%s", r.status, r.stderr)
	}
	if !strings.Contains(mustRun(t, "ps", path), "dumped") {
		t.Error("the core lacks a process")
	}
	isSparse(t, path)
	os.Remove(path)

	n = len(vm.Events(0))
	mustRun(t, "dump", target(vm), "--live", "-o", path)
	vmtest.Equal(t, "events of a dump with --live", events(vm, n), []string(nil))
	os.Remove(path)

	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := vm.Cont(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	n = len(vm.Events(0))
	mustRun(t, "dump", vm.Name, "-o", path)
	vmtest.Equal(t, "events of a dump of a paused guest", events(vm, n), []string(nil))
	wantRunning(t, vm, false)
	for _, q := range questions(pid) {
		if got, want := ask(t, q, path), ask(t, q, target(vm)); got != want {
			t.Errorf("%v: the guest says\n%s\nits core\n%s", q, want, got)
		}
	}
	carriesNotes(t, path)
}

// isSparse checks that zeros take no disk: a guest that has just booted has used
// a part of its memory.
func isSparse(t *testing.T, path string) {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Blocks*512 > fi.Size()*3/4 {
		t.Errorf("a core of %d MiB takes %d MiB of disk", fi.Size()>>20, st.Blocks>>11)
	}
}

// A full disk ends a dump: the guest runs on, what is there does not look whole,
// and is gone on with once there is room.
func TestDumpToFullDisk(t *testing.T) {
	vm := guest(t)
	path := filepath.Join(t.TempDir(), "core")
	c := command(t, "dump", target(vm), "-o", path)
	c.Args = append([]string{"sh", "-c", `ulimit -f 8192; exec "$0" "$@"`, c.Path}, c.Args[1:]...)
	c.Path = "/bin/sh"
	var said strings.Builder
	c.Stderr = &said
	_ = c.Run()
	if status := exitStatus(c); status != 1 || !strings.Contains(said.String(), "--resume") {
		t.Errorf("status %d: %s", status, said.String())
	}
	wantRunning(t, vm, true)
	if _, err := os.Stat(path); err == nil {
		t.Error("what is not whole has the name of a core")
	}
	mustRun(t, "dump", target(vm), "--resume", "-o", path)
	if mustRun(t, "ps", path) == "" {
		t.Error("the core of a resumed dump has no process")
	}
}

// carriesNotes checks what other tools need of a core.
func carriesNotes(t *testing.T, path string) {
	t.Helper()
	g, err := dump.Open(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if g.CPUs() != 2 || !strings.Contains(string(g.VMCoreInfo()), "OSRELEASE=") {
		t.Errorf("%d processors, VMCOREINFO %.60q", g.CPUs(), g.VMCoreInfo())
	}
	for cpu := range 2 {
		if r, err := g.Registers(t.Context(), cpu); err != nil || r.CR3 == 0 || r.RIP == 0 {
			t.Errorf("registers of %d: %+v, %v", cpu, r, err)
		}
	}
}

// A dump that is broken off lets the guest run, leaves no file that looks whole,
// and is gone on with.
func TestDumpInterrupted(t *testing.T) {
	vm := guest(t)
	path := filepath.Join(t.TempDir(), "core")
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		c := command(t, "dump", target(vm), "--resume", "-o", path)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		// As soon as there is something of it; it may be over before the signal.
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if fi, err := os.Stat(path + ".part"); err == nil && fi.Size() > 0 {
				break
			}
		}
		if err := c.Process.Signal(sig); err != nil {
			t.Log(err)
		}
		_ = c.Wait()
		wantRunning(t, vm, true)
		status := exitStatus(c)
		_, err := os.Stat(path)
		if (status == 0) != (err == nil) || status != 0 && status != 128+int(sig) {
			t.Errorf("%v: status %d, file %v", sig, status, err)
		}
		if err == nil {
			os.Remove(path)
		}
	}
	mustRun(t, "dump", target(vm), "--resume", "-o", path)
	if mustRun(t, "ps", path) == "" {
		t.Error("the core of a resumed dump has no process")
	}
}
