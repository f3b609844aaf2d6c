package cli_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
)

// A user without the right to read QEMU's memory is told which right is
// missing and the ways to get it.
func TestWithoutTheRightToRead(t *testing.T) {
	if os.Getuid() != 0 {
		vmtest.Skip(t, "it runs the program as another user", "as root")
	}
	vm := guest(t)
	open := func(path string, mode os.FileMode) {
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Chmod(path, before.Mode()) })
	}
	as := func() result {
		exe := copyOfProgram(t)
		c := command(t, "info", target(vm))
		c.Path, c.Args[0] = exe, exe
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		var stdout, stderr bytes.Buffer
		c.Stdout, c.Stderr = &stdout, &stderr
		if err := c.Run(); err != nil && c.ProcessState == nil {
			t.Fatal(err)
		}
		return result{stdout.String(), stderr.String(), exitStatus(c)}
	}
	r := as()
	if r.status != 1 || !strings.Contains(r.stderr, "not permitted") {
		t.Errorf("socket of another user: status %d\n%s", r.status, r.stderr)
	}
	open(vm.Dir, 0o755)
	open(vm.QMP, 0o777)
	r = as()
	if r.status != 1 || !strings.Contains(r.stderr, "not permitted") || !strings.Contains(r.stderr, "setcap cap_sys_ptrace+ep ") {
		t.Errorf("memory of another user: status %d\n%s", r.status, r.stderr)
	}
}

// copyOfProgram puts the program where any user may run it.
func copyOfProgram(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vitrine-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "vitrine")
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return exe
}

// A debugger on the gdbstub is not pushed aside.
func TestTraceBesideADebugger(t *testing.T) {
	vm := guest(t)
	stub := filepath.Join(vm.Dir, "gdb")
	if _, err := vm.HMP(t.Context(), "gdbserver unix:"+stub+",server=on,wait=off"); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", stub) // QEMU stops the guest for its debugger
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		conn.Close()
		if _, err := vm.HMP(t.Context(), "gdbserver none"); err != nil {
			t.Error(err)
		}
		if err := vm.Cont(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	if _, err := conn.Write([]byte("+$c#63")); err != nil { // the debugger lets it run
		t.Fatal(err)
	}
	for running := false; !running; {
		if running, err = vm.Running(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"trace", target(vm), "--duration", "1s"}, {"repair", target(vm)}} {
		r := run(t, args...)
		if r.status != 1 || !strings.Contains(r.stderr, "held by another client") {
			t.Errorf("%s: status %d\n%s", args[0], r.status, r.stderr)
		}
	}
	mustRun(t, "ps", target(vm)) // reading needs no stub
	if running, err := vm.Running(t.Context()); err != nil || !running {
		t.Errorf("the guest was stopped (%v)", err)
	}
}

// A guest that restarts while it is traced ends the trace, and says so.
func TestTraceOfAGuestThatRestarts(t *testing.T) {
	vm := vmtest.Boot(t, &testvm.Options{})
	if _, err := vm.Spawn(t.Context(), "open", "opener"); err != nil { // it ends with the guest
		t.Fatal(err)
	}
	tr := startTrace(t, vm, "-e", "openat")
	if _, err := vm.Execute(t.Context(), "system_reset", nil); err != nil {
		t.Fatal(err)
	}
	if status := tr.wait(); status != 1 || !strings.Contains(tr.stderr.String(), "guest was reset") {
		t.Errorf("status %d\n%s", status, tr.stderr)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if err := vm.AwaitBoot(ctx); err != nil { // nothing of ours hinders it
		t.Error(err)
	}
	mustRun(t, "info", "--wait", patience.String(), target(vm))
	t.Run("read", func(t *testing.T) { readWhileItRestarts(t, vm) })
}

// A guest that restarts while it is read fails the command: what was read
// belongs to no one system.
func readWhileItRestarts(t *testing.T, vm *testvm.VM) {
	c := command(t, "read", target(vm), "_text", "8M")
	var stderr bytes.Buffer
	c.Stderr = &stderr
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 1)); err != nil { // it now waits for us to read on
		t.Fatalf("%v\n%s", err, &stderr)
	}
	if _, err := vm.Execute(t.Context(), "system_reset", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Running(t.Context()); err != nil { // QEMU answers when the reset has been done
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, stdout)
	_ = c.Wait()
	if status := exitStatus(c); err != nil || status != 1 || !strings.Contains(stderr.String(), "guest was reset") {
		t.Errorf("status %d after %d bytes (%v)\n%s", status, n, err, &stderr)
	}
}

// Waiting for a guest to boot ends at once when it is interrupted.
func TestInterruptedWait(t *testing.T) {
	vm := vmtest.Boot(t, &testvm.Options{Firmware: true, Memory: 64})
	best := hang
	for range 5 {
		c := command(t, "info", "--wait", "10m", target(vm))
		stderr, err := c.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := stderr.Read(make([]byte, 1)); err != nil { // its progress, after a second
			t.Fatal(err)
		}
		start := time.Now()
		if err := c.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait()
		if s, d := exitStatus(c), time.Since(start); s != 130 || d > hang {
			t.Errorf("status %d after %v, want 130", s, d)
		} else if best = min(best, d); best <= detachTime {
			return
		}
	}
	t.Errorf("it ends after %v at best, want at most %v", best, detachTime)
}

// Ctrl-Z does not stop a tracer: the guest would stand still with it.
func TestTraceRefusesToStop(t *testing.T) {
	vm := guest(t)
	vmtest.Spawn(t, vm, "open", "opener")
	tr := startTrace(t, vm, "-e", "openat")
	if err := tr.cmd.Process.Signal(syscall.SIGTSTP); err != nil {
		t.Fatal(err)
	}
	for range 3 { // it goes on
		select {
		case <-tr.lines:
		case <-time.After(patience):
			t.Fatalf("no call within %v", patience)
		}
	}
	if err := tr.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	if status := tr.wait(); status != 131 || !strings.Contains(tr.stderr.String(), "not stopping") {
		t.Errorf("status %d\n%s", status, tr.stderr)
	}
	vmtest.Healthy(t, vm)
}
