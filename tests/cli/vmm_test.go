package cli_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
)

// runAsVMM tells the test binary to have a file of guest RAM mapped and nothing
// else: what every hypervisor's process has.
const runAsVMM = "VITRINE_TEST_VMM"

// actAsVMM maps the file until standard input ends.
func actAsVMM(path string) int {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fi, err := f.Stat()
	if err == nil {
		_, err = syscall.Mmap(int(f.Fd()), 0, int(fi.Size()), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	}
	f.Close()
	fmt.Println(err)
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return 1
	}
	return 0
}

// startVMM starts such a process and returns its id.
func startVMM(t *testing.T, ram string) int {
	t.Helper()
	name := filepath.Join(t.TempDir(), "firecracker")
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, name)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), name)
	c.Env = append(os.Environ(), runAsVMM+"="+ram)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = c.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "<nil>\n" {
		t.Fatalf("map %s: %q, %v", ram, line, err)
	}
	return c.Process.Pid
}

// The guest of a process that is no QEMU and has no monitor is found in its
// memory, and can be read.
func TestGuestOfAnotherHypervisor(t *testing.T) {
	vm := vmtest.Boot(t, &testvm.Options{CPUs: 2, Memory: 256, RAM: testvm.SharedFile})
	pid := vmtest.Spawn(t, vm, "sleeper", "foundling").PID
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() { // it has to answer for the workload to be ended
		if err := vm.Cont(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	other := fmt.Sprint("pid:", startVMM(t, filepath.Join(vm.Dir, "ram")))
	for _, q := range questions(pid) {
		if got, want := ask(t, q, other), ask(t, q, target(vm)); got != want {
			t.Errorf("%v: by the monitor\n%s\nby the process\n%s", q, want, got)
		}
	}
	if r := run(t, "doctor", other); !strings.Contains(r.stdout, "no monitor") || !strings.Contains(r.stdout, vm.Hello.Release) {
		t.Errorf("doctor: status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	if r := run(t, "trace", "--count", "1", other); r.status != 1 || !strings.Contains(r.stderr, "vitrine:") {
		t.Errorf("trace: status %d\n%s", r.status, r.stderr)
	}
	core := filepath.Join(t.TempDir(), "core")
	if r := run(t, "dump", other, "-o", core); r.status != 1 || !strings.Contains(r.stderr, "--live") {
		t.Errorf("dump: status %d\n%s", r.status, r.stderr)
	}
	mustRun(t, "dump", other, "--live", "-o", core)
	if got, want := mustRun(t, "ps", "--json", core), mustRun(t, "ps", "--json", target(vm)); got != want {
		t.Errorf("the guest says\n%s\nits core by the process\n%s", want, got)
	}
}
