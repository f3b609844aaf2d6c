package app

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/dump"
	"github.com/vitrine-vmi/vitrine/osi"
)

// Hints returns what a user can do about err, a line each, none where we do
// not know.
func Hints(err error) []string {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, dump.ErrFormat):
		return []string{"raw memory has no mark of its own: --layout says how it is laid out, as in --layout flat"}
	case errors.Is(err, vitrine.ErrNotFound):
		return []string{"'vitrine list' shows the guests of this host; qmp:PATH and pid:N name one too"}
	case errors.Is(err, vitrine.ErrPermission):
		return permissionHints()
	case errors.Is(err, vitrine.ErrBusy):
		return []string{
			"a QMP socket, and a gdbstub, serve one client at a time: end the other one, or give QEMU a second -qmp socket",
			"'vitrine doctor TARGET' says who holds what",
		}
	case errors.Is(err, vitrine.ErrPaused):
		return []string{
			"it was left paused; let it run ('cont' in its monitor, 'virsh resume'), then try again",
			"commands that only read work on a paused guest",
		}
	case errors.Is(err, vitrine.ErrNotBooted):
		return []string{"if it is still starting, --wait 60s waits longer; 'vitrine read --physical' works without an operating system"}
	case errors.Is(err, vitrine.ErrReset), errors.Is(err, vitrine.ErrGone):
		return []string{"nothing of ours is left in it: what was planted went with it"}
	case errors.Is(err, osi.ErrNoProcess):
		return []string{"'vitrine ps TARGET' lists the processes; they may have ended since"}
	}
	return nil
}

// permissionHints are the ways to the right to read another process's memory.
func permissionHints() []string {
	self, err := os.Executable()
	if err != nil {
		self = "vitrine"
	}
	hints := []string{
		"run it as the user that QEMU runs as, or with sudo",
		"or once: sudo setcap cap_sys_ptrace+ep " + self,
	}
	if n, err := ptraceScope(); err == nil && n > 0 {
		hints = append(hints, fmt.Sprintf(
			"the host's kernel.yama.ptrace_scope is %d: the same user is not enough; sudo sysctl kernel.yama.ptrace_scope=0 makes it so", n))
	}
	return hints
}

// ptraceScope returns kernel.yama.ptrace_scope; an error means that the host's
// kernel has no Yama, which is as 0.
func ptraceScope() (int, error) {
	b, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	if err != nil {
		return 0, err
	}
	var n int
	_, err = fmt.Sscan(strings.TrimSpace(string(b)), &n)
	return n, err
}
