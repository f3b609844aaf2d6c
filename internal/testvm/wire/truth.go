package wire

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// Truth is what the guest's own /proc and /sys say. The texts are kept as bytes, raw, since names in them need not be
// UTF-8; the methods parse them.
type Truth struct {
	Procs    []Proc   `json:"procs"` // in order of pid
	Modules  []Module `json:"modules"`
	Reporter int      `json:"reporter"` // pid of the reporting program, whose own record moves while it reports
	ClockHz  int      `json:"clock_hz"` // ticks per second in Proc.StartTicks
	BootNS   int64    `json:"boot_ns"`  // guest wall-clock time of its boot, ns since 1970
}

// Proc is one process as its /proc directory shows it.
type Proc struct {
	PID     int    `json:"pid"`
	Status  Text   `json:"status"`
	Stat    Text   `json:"stat"`
	Cmdline Text   `json:"cmdline"`
	Exe     Text   `json:"exe"` // link text; nil when there is none, as for kernel threads
	Cwd     Text   `json:"cwd"`
	Maps    Text   `json:"maps"`
	FDs     []FD   `json:"fds"`
	Tasks   []Task `json:"tasks"`
	// Stable says that mappings, name and start time were the same before and after all this was read.
	Stable bool `json:"stable"`
}

// FD is one open file of a process.
type FD struct {
	FD    int    `json:"fd"`
	Link  Text   `json:"link"`  // text of /proc/PID/fd/N
	Pos   int64  `json:"pos"`   // from fdinfo
	Flags uint64 `json:"flags"` // from fdinfo, with O_CLOEXEC
}

// Task is one thread of a process.
type Task struct {
	TID  int  `json:"tid"`
	Comm Text `json:"comm"`
}

// Module is one loaded kernel module, from /proc/modules.
type Module struct {
	Name string `json:"name"`
	Size uint64 `json:"size"`
	Base uint64 `json:"base"`
	// InitState is /sys/module/NAME/initstate: live, coming, going.
	InitState string `json:"initstate"`
}

// Mapping is one line of a maps file.
type Mapping struct {
	Start, End, Offset uint64
	Perms              string // rwxp
	Inode              uint64
	Name               string // as the kernel printed it, newlines as \012; empty for anonymous memory
}

// Find returns the process with the pid, or nil.
func (t *Truth) Find(pid int) *Proc {
	for i := range t.Procs {
		if t.Procs[i].PID == pid {
			return &t.Procs[i]
		}
	}
	return nil
}

// Status returns the value of a line of the status file, "" when it has none.
func (p *Proc) status(key string) string {
	for line := range bytes.Lines(p.Status) {
		if k, v, ok := bytes.Cut(line, []byte(":")); ok && string(k) == key {
			return strings.TrimSpace(string(v))
		}
	}
	return ""
}

func (p *Proc) number(key string, column int) int {
	f := strings.Fields(p.status(key))
	if column >= len(f) {
		return -1
	}
	n, err := strconv.Atoi(f[column])
	if err != nil {
		return -1
	}
	return n
}

// Comm returns the task name, whole and unescaped: it is taken from between the outer parentheses of stat.
func (p *Proc) Comm() string {
	open, end := bytes.IndexByte(p.Stat, '('), bytes.LastIndexByte(p.Stat, ')')
	if open < 0 || end <= open {
		return ""
	}
	return string(p.Stat[open+1 : end])
}

// PPID returns the parent's pid, -1 when status has none.
func (p *Proc) PPID() int { return p.number("PPid", 0) }

// UID returns the real user id, -1 when status has none.
func (p *Proc) UID() int { return p.number("Uid", 0) }

// GID returns the real group id, -1 when status has none.
func (p *Proc) GID() int { return p.number("Gid", 0) }

// EUID returns the effective user id, -1 when status has none.
func (p *Proc) EUID() int { return p.number("Uid", 1) }

// Threads returns the number of threads, -1 when status has none.
func (p *Proc) Threads() int { return p.number("Threads", 0) }

// State returns the one-letter state: R, S, D, T, t, Z, I.
func (p *Proc) State() string {
	s := p.status("State")
	if s == "" {
		return ""
	}
	return s[:1]
}

// Args returns argv.
func (p *Proc) Args() []string {
	if len(p.Cmdline) == 0 {
		return nil
	}
	return strings.Split(string(bytes.TrimSuffix(p.Cmdline, []byte{0})), "\x00")
}

// KThread says whether the process is a kernel thread: PF_KTHREAD (0x00200000) in the flags of stat.
func (p *Proc) KThread() bool { return p.statField(9)&0x00200000 != 0 }

// StartTicks returns the start time after boot in clock ticks (field 22 of stat).
func (p *Proc) StartTicks() uint64 { return p.statField(22) }

// StartStack returns the address of the start of the stack (field 28 of stat).
func (p *Proc) StartStack() uint64 { return p.statField(28) }

// StartBrk returns where the heap starts (field 47 of stat).
func (p *Proc) StartBrk() uint64 { return p.statField(47) }

// statField returns a field by the number that proc(5) gives it, 0 when it is not there or is no number.
func (p *Proc) statField(n int) uint64 {
	end := bytes.LastIndexByte(p.Stat, ')')
	if end < 0 {
		return 0
	}
	f := strings.Fields(string(p.Stat[end+1:])) // f[0] is field 3
	if n-3 < 0 || n-3 >= len(f) {
		return 0
	}
	v, err := strconv.ParseUint(f[n-3], 10, 64)
	if err != nil {
		return 0
	}
	return v
}

// Mappings parses the maps file.
func (p *Proc) Mappings() ([]Mapping, error) {
	var all []Mapping
	for line := range strings.Lines(string(p.Maps)) {
		m, err := parseMapping(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("parse maps of pid %d: %w", p.PID, err)
		}
		all = append(all, m)
	}
	return all, nil
}

// parseMapping reads "start-end perms offset dev inode   name".
func parseMapping(line string) (Mapping, error) {
	var m Mapping
	var dev string
	rest := line
	cut := func() (f string) {
		f, rest, _ = strings.Cut(rest, " ")
		return f
	}
	span := cut()
	if _, err := fmt.Sscanf(span, "%x-%x", &m.Start, &m.End); err != nil {
		return Mapping{}, fmt.Errorf("range of %q: %w", line, err)
	}
	m.Perms = cut()
	offset := cut()
	dev = cut()
	inode := cut()
	var err error
	if m.Offset, err = strconv.ParseUint(offset, 16, 64); err != nil {
		return Mapping{}, fmt.Errorf("offset of %q: %w", line, err)
	}
	if m.Inode, err = strconv.ParseUint(inode, 10, 64); err != nil || dev == "" {
		return Mapping{}, fmt.Errorf("inode of %q: %w", line, err)
	}
	m.Name = strings.TrimLeft(rest, " ")
	return m, nil
}
