//go:build linux

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"golang.org/x/sys/unix"
)

// truth reads the records of processes.
func truth(a wire.TruthArgs) (wire.Truth, error) {
	t := wire.Truth{Reporter: os.Getpid(), ClockHz: 100} // USER_HZ is 100 on every x86 and arm64
	var err error
	if t.Modules, err = modules(); err != nil {
		return wire.Truth{}, err
	}
	if t.BootNS, err = bootTime(); err != nil {
		return wire.Truth{}, err
	}
	pids := a.PIDs
	if len(pids) == 0 {
		if pids, err = numbers("/proc"); err != nil {
			return wire.Truth{}, err
		}
	}
	for _, pid := range pids {
		if p, ok := readProc(pid, a.Brief); ok { // else it ended meanwhile
			t.Procs = append(t.Procs, p)
		}
	}
	return t, nil
}

// steady says whether the process is what it was when p was read. Times and counters of stat move by themselves.
func steady(p wire.Proc, dir string, brief bool) bool {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return false
	}
	now := wire.Proc{Stat: stat}
	if now.Comm() != p.Comm() || now.StartTicks() != p.StartTicks() {
		return false
	}
	if brief {
		return true
	}
	text, _ := os.ReadFile(filepath.Join(dir, "maps"))
	return bytes.Equal(text, p.Maps)
}

func readProc(pid int, brief bool) (wire.Proc, bool) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	p := wire.Proc{PID: pid}
	var err error
	if p.Stat, err = os.ReadFile(filepath.Join(dir, "stat")); err != nil {
		return wire.Proc{}, false
	}
	// What follows may fail for a kernel thread or a zombie: absent is then the truth.
	p.Status, _ = os.ReadFile(filepath.Join(dir, "status"))
	p.Cmdline, _ = os.ReadFile(filepath.Join(dir, "cmdline"))
	p.Exe = link(filepath.Join(dir, "exe"))
	p.Cwd = link(filepath.Join(dir, "cwd"))
	if !brief {
		p.Maps, _ = os.ReadFile(filepath.Join(dir, "maps"))
		p.FDs = readFDs(dir)
		p.Tasks = readTasks(dir)
	}
	p.Stable = steady(p, dir, brief)
	return p, true
}

func link(path string) []byte {
	s, err := os.Readlink(path)
	if err != nil {
		return nil
	}
	return []byte(s)
}

func readFDs(dir string) []wire.FD {
	fds, err := numbers(filepath.Join(dir, "fd"))
	if err != nil {
		return nil
	}
	all := make([]wire.FD, 0, len(fds))
	for _, n := range fds {
		f := wire.FD{FD: n, Link: link(filepath.Join(dir, "fd", strconv.Itoa(n)))}
		info, err := os.ReadFile(filepath.Join(dir, "fdinfo", strconv.Itoa(n)))
		if err != nil || f.Link == nil {
			continue // closed meanwhile
		}
		f.Pos, _ = strconv.ParseInt(value(info, "pos"), 10, 64)
		f.Flags, _ = strconv.ParseUint(value(info, "flags"), 8, 64)
		all = append(all, f)
	}
	return all
}

func value(text []byte, key string) string {
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(line, ":"); ok && k == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func readTasks(dir string) []wire.Task {
	tids, err := numbers(filepath.Join(dir, "task"))
	if err != nil {
		return nil
	}
	all := make([]wire.Task, 0, len(tids))
	for _, tid := range tids {
		comm, err := os.ReadFile(filepath.Join(dir, "task", strconv.Itoa(tid), "comm"))
		if err == nil {
			all = append(all, wire.Task{TID: tid, Comm: bytes.TrimSuffix(comm, []byte("\n"))})
		}
	}
	return all
}

// numbers lists the entries of a directory that are numbers, in order.
func numbers(dir string) ([]int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	self := int(f.Fd())
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	own := dir == fmt.Sprintf("/proc/%d/fd", os.Getpid())
	var all []int
	for _, name := range names {
		n, err := strconv.Atoi(name)
		if err == nil && !(own && n == self) {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return all, nil
}

func modules() ([]wire.Module, error) {
	text, err := os.ReadFile("/proc/modules")
	if err != nil {
		return nil, err
	}
	var all []wire.Module
	for line := range strings.Lines(string(text)) {
		m, err := parseModule(line)
		if err != nil {
			return nil, fmt.Errorf("parse /proc/modules: %w", err)
		}
		state, err := os.ReadFile(filepath.Join("/sys/module", m.Name, "initstate"))
		if err == nil {
			m.InitState = strings.TrimSpace(string(state))
		}
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b wire.Module) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// parseModule reads "name size refs users state base".
func parseModule(line string) (wire.Module, error) {
	f := strings.Fields(line)
	if len(f) < 6 {
		return wire.Module{}, fmt.Errorf("line %q has %d fields", line, len(f))
	}
	size, err := strconv.ParseUint(f[1], 10, 64)
	if err != nil {
		return wire.Module{}, err
	}
	base, err := strconv.ParseUint(strings.TrimPrefix(f[5], "0x"), 16, 64)
	if err != nil {
		return wire.Module{}, err
	}
	return wire.Module{Name: f[0], Size: size, Base: base}, nil
}

func bootTime() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read boot clock: %w", err)
	}
	return time.Now().UnixNano() - ts.Nano(), nil
}
