package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// diagnoseHost checks what does not depend on a guest.
func diagnoseHost(ctx context.Context, c *checker, opts *Options) {
	if runtime.GOOS != "linux" {
		c.report("system", CheckMissing, runtime.GOOS+"/"+runtime.GOARCH, "vitrine reads guests of QEMU on Linux hosts")
	} else {
		c.ok("system", "%s/%s", runtime.GOOS, runtime.GOARCH)
	}
	diagnoseRights(c)
	diagnoseGuests(ctx, c)
	diagnoseKVM(c)
	diagnosePrograms(c)
	diagnoseCache(c, opts.CacheDir)
}

// diagnoseRights tells whose memory we may read (ptrace(2), "Ptrace access
// mode checking").
func diagnoseRights(c *checker) {
	scope, err := ptraceScope()
	yama := err == nil && scope > 0
	hints := strings.Join(permissionHints(), "; ")
	switch {
	case hasPtraceCapability():
		c.ok("right to read", "every process's memory (CAP_SYS_PTRACE)")
	case yama:
		c.report("right to read", CheckMissing, fmt.Sprintf(
			"only guests with shared memory backends: no CAP_SYS_PTRACE, and kernel.yama.ptrace_scope is %d", scope), hints)
	default:
		c.report("right to read", CheckNote, fmt.Sprintf("QEMU processes of user %d only: no CAP_SYS_PTRACE", os.Getuid()), hints)
	}
}

// hasPtraceCapability looks for CAP_SYS_PTRACE (19) in our effective set.
func hasPtraceCapability() bool {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return err == nil && set&(1<<19) != 0
		}
	}
	return false
}

func diagnoseGuests(ctx context.Context, c *checker) {
	var found, reachable int
	for g, err := range Guests(ctx) {
		if err != nil {
			c.failure("guests", err)
			continue
		}
		found++
		if g.QMP != "" {
			reachable++
			continue
		}
		c.report("guests", CheckMissing, fmt.Sprintf("%q (process %d) has no QMP socket", g.Name, g.PID),
			"start it with -qmp unix:PATH,server=on,wait=off")
	}
	if found == 0 {
		c.report("guests", CheckNote, "none visible", "start one, or try 'vitrine demo'")
		return
	}
	c.ok("guests", "%d running, %d with a QMP socket", found, reachable)
}

func diagnoseKVM(c *checker) {
	err := tryKVM()
	if err == nil {
		c.ok("/dev/kvm", "makes virtual machines")
		return
	}
	fix := "enable virtualization in the firmware, or nested virtualization where this host is a guest itself"
	if errors.Is(err, os.ErrPermission) {
		fix = "add yourself to the group that owns /dev/kvm"
	}
	c.report("/dev/kvm", CheckNote, err.Error()+": guests are emulated (TCG), slower; vitrine works the same", fix)
}

// diagnosePrograms looks for programs that only some commands need.
func diagnosePrograms(c *checker) {
	for _, p := range []struct{ name, needed, fix string }{
		{"qemu-system-x86_64", "the demonstration", "apt-get install qemu-system-x86"},
		{"busybox", "the demonstration", "apt-get install busybox-static"},
		{"virsh", "libvirt's guests by name", "apt-get install libvirt-clients"},
	} {
		if path, err := exec.LookPath(p.name); err == nil {
			c.ok(p.name, "%s", path)
		} else {
			c.report(p.name, CheckNote, "not installed; needed for "+p.needed, p.fix)
		}
	}
}

// diagnoseCache checks that the cache can be written.
func diagnoseCache(c *checker, dir string) {
	if dir == "" {
		c.report("cache", CheckNote, "off: kernels are identified anew each time", "")
		return
	}
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		var f *os.File
		if f, err = os.CreateTemp(dir, "doctor"); err == nil {
			f.Close()
			err = os.Remove(f.Name())
		}
	}
	if err != nil {
		c.report("cache", CheckNote, err.Error(), "VITRINE_CACHE names another folder, --no-cache does without")
		return
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		abs = dir
	}
	c.ok("cache", "%s", abs)
}
