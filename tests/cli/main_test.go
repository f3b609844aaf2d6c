// Package cli_test runs the program on real guests and compares what it prints
// with what the guest says of itself.
package cli_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vitrine-vmi/vitrine/internal/cli"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
)

// runAsProgram tells the test binary to be the program.
const runAsProgram = "VITRINE_TEST_RUN"

func TestMain(m *testing.M) {
	if os.Getenv(runAsProgram) != "" {
		os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	if ram := os.Getenv(runAsVMM); ram != "" {
		os.Exit(actAsVMM(ram))
	}
	vmtest.Main(m)
}

// options are those of the guest that most tests share.
var options = &testvm.Options{CPUs: 2}

func guest(t *testing.T) *testvm.VM {
	t.Helper()
	return vmtest.Shared(t, options)
}

// result is what one run of the program came to.
type result struct {
	stdout, stderr string
	status         int
}

// command is the program with these arguments, not yet started.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0], args...)
	c.Env = append(os.Environ(), runAsProgram+"=1", "VITRINE_CACHE="+cacheDir(t))
	c.WaitDelay = 10 * time.Second
	// A failed test must not kill the program in the middle of a trace.
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	return c
}

// cacheDir is one for all tests of a run, so that kernels are looked at once.
func cacheDir(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("VITRINE_CACHE"); dir != "" {
		return dir
	}
	dir, err := testvm.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func run(t *testing.T, args ...string) result {
	t.Helper()
	c := command(t, args...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	if err != nil && c.ProcessState == nil {
		t.Fatalf("run %q: %v", args, err)
	}
	return result{stdout.String(), stderr.String(), exitStatus(c)}
}

// exitStatus is the status as a shell tells it.
func exitStatus(c *exec.Cmd) int {
	if ws, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return c.ProcessState.ExitCode()
}

// mustRun is run that wants status 0 and nothing on standard error.
func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	r := run(t, args...)
	if r.status != 0 {
		t.Fatalf("vitrine %s: status %d\n%s", strings.Join(args, " "), r.status, r.stderr)
	}
	if r.stderr != "" {
		t.Logf("vitrine %s: %s", strings.Join(args, " "), r.stderr)
	}
	return r.stdout
}

// agree compares what the program says with what the guest says of itself, each
// a map or list, and looks at both again while they differ: a guest changes by
// itself between the two looks (a kernel worker is called after what it does,
// Go's runtime starts a thread), but not each time.
func agree[T any](t *testing.T, what string, look func() (vitrine, guest T)) {
	t.Helper()
	var diff string
	for wait := 50 * time.Millisecond; wait < 30*time.Second; wait *= 2 { // ten times, in a minute
		got, want := look()
		if diff = cmp.Diff(want, got, cmpopts.EquateEmpty()); diff == "" {
			return
		}
		time.Sleep(wait)
	}
	t.Errorf("%s differs each time (-guest +vitrine):\n%s", what, diff)
}

// decode parses JSON lines.
func decode[T any](t *testing.T, text string) []T {
	t.Helper()
	var out []T
	for line := range strings.Lines(text) {
		var v T
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		out = append(out, v)
	}
	return out
}

// target names the guest by its monitor.
func target(vm *testvm.VM) string { return "qmp:" + vm.QMP }
