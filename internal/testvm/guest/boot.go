//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"golang.org/x/sys/unix"
)

const (
	stateDir  = "/run/guest"    // counters of the workloads
	moduleDir = "/lib/modules"  // NAME.ko files
	loadOrder = "modules.order" // names to load at start, one a line
)

// linkDevice returns the serial port to the harness: the second of a PC; on arm64 the only one of its kind, as the
// machine's own is a ttyAMA.
func linkDevice() string {
	if runtime.GOARCH == "arm64" {
		return "/dev/ttyS0"
	}
	return "/dev/ttyS1"
}

// boot mounts the usual file systems and loads modules. It goes on after a failure: what failed is part of the hello.
func boot() (failed []string) {
	note := func(what string, err error) {
		if err != nil {
			failed = append(failed, fmt.Sprintf("%s: %v", what, err))
		}
	}
	for _, m := range []struct{ fs, dir, data string }{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"devtmpfs", "/dev", ""},
		{"tmpfs", "/run", "mode=755"}, {"tmpfs", "/tmp", "mode=1777"},
	} {
		note("make "+m.dir, os.MkdirAll(m.dir, 0o755))
		note("mount "+m.dir, unix.Mount(m.fs, m.dir, m.fs, 0, m.data))
	}
	note("make "+stateDir, os.MkdirAll(stateDir, 0o777))
	note("chmod "+stateDir, os.Chmod(stateDir, 0o777)) //nolint:gosec // workloads of any user put their counters there
	note("set PATH", os.Setenv("PATH", "/bin:/usr/bin:/sbin:/usr/sbin"))
	note("set hostname", unix.Sethostname([]byte("vitrine-guest")))
	order, err := os.ReadFile(filepath.Join(moduleDir, loadOrder))
	if err != nil && !os.IsNotExist(err) {
		note("read module list", err)
	}
	for _, name := range strings.Fields(string(order)) {
		note("load "+name, insmod(wire.InsmodArgs{Name: name}))
	}
	return failed
}

func insmod(a wire.InsmodArgs) error {
	f, err := os.Open(filepath.Join(moduleDir, filepath.Base(a.Name)+".ko"))
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), a.Params, 0)
}

func hello(failed []string) wire.Hello {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		failed = append(failed, "uname: "+err.Error())
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		failed = append(failed, err.Error())
	}
	mods, err := modules()
	if err != nil {
		failed = append(failed, err.Error())
	}
	names := make([]string, 0, len(mods))
	for _, m := range mods {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	return wire.Hello{
		Release: unix.ByteSliceToString(u.Release[:]),
		Version: unix.ByteSliceToString(u.Version[:]),
		Cmdline: strings.TrimSpace(string(cmdline)),
		CPUs:    runtime.NumCPU(),
		Modules: names,
		Errors:  failed,
	}
}

// openLink opens the serial port to the harness in raw mode.
func openLink() (*os.File, error) {
	port := linkDevice()
	fd, err := unix.Open(port, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: port, Err: err}
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("get modes of %s: %w", port, err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.B115200 | unix.CS8 | unix.CREAD | unix.CLOCAL
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("set modes of %s: %w", port, err)
	}
	return os.NewFile(uintptr(fd), port), nil
}

func powerOff() {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintln(os.Stderr, "guest: power off:", err)
	}
	select {}
}

func restart() {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		fmt.Fprintln(os.Stderr, "guest: restart:", err)
	}
	select {}
}
