package cli_test

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// QEMU serves one client on a monitor. A second one gets an error that says
// who has it, in a bounded time.
func TestBusyMonitor(t *testing.T) {
	vm := guest(t)
	conn, err := net.Dial("unix", vm.QMP)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err != nil { // the greeting: we are served
		t.Fatal(err)
	}
	start := time.Now()
	r := run(t, "ps", target(vm))
	if d := time.Since(start); d > hang { // it waits for some seconds
		t.Errorf("it took %v", d)
	}
	if want := fmt.Sprintf("pid %d (", os.Getpid()); r.status != 1 || !strings.Contains(r.stderr, want) {
		t.Errorf("status %d, want 1 and %q:\n%s", r.status, want, r.stderr)
	}
	conn.Close()
	mustRun(t, "info", target(vm))
}
