package engine

import (
	"fmt"
	"strings"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
)

// AboutOf says which task an entry hit describes.
type AboutOf uint8

// The tasks that a hit can describe.
const (
	AboutNone    AboutOf = iota
	AboutArg             // the one that the function's first argument points to
	AboutCurrent         // the one that runs
)

// About is a task at the moment of a hit.
type About struct {
	Task                            arch.GVA
	Start, LeaderStart, ParentStart time.Duration
	TID, PID, PPID                  int
	UID                             uint32
	SignalFlags, SignalCode         uint32
	Comm, LeaderComm                string
	ExeMount, ExeEntry              arch.GVA
	ArgsStart                       arch.GVA
	ArgsSize                        uint64
	Args                            []byte // the first of them
}

// AboutOffsets is where a kernel keeps what an About holds.
type AboutOffsets struct {
	PID, TGID, Parent, Leader, Start, Comm, Cred, Signal, MM uint64 // in task_struct
	UID                                                      uint64 // in cred
	SignalFlags, SignalCode                                  uint64 // in signal_struct
	Exe, Args, ArgsEnd                                       uint64 // in mm_struct
	ExePath                                                  uint64 // in file: mount, then entry
}

// FindAbout looks the offsets up, with a function that knows the kernel's types.
func FindAbout(offset func(structName, path string) (uint64, error)) (*AboutOffsets, error) {
	o := new(AboutOffsets)
	for _, m := range []struct {
		to         *uint64
		typ, paths string
	}{
		{&o.PID, "task_struct", "pid"},
		{&o.TGID, "task_struct", "tgid"},
		{&o.Parent, "task_struct", "real_parent"},
		{&o.Leader, "task_struct", "group_leader"},
		{&o.Start, "task_struct", "start_boottime|real_start_time"}, // renamed in 5.5
		{&o.Comm, "task_struct", "comm"},
		{&o.Cred, "task_struct", "cred"},
		{&o.Signal, "task_struct", "signal"},
		{&o.MM, "task_struct", "mm"},
		{&o.UID, "cred", "uid"},
		{&o.SignalFlags, "signal_struct", "flags"},
		{&o.SignalCode, "signal_struct", "group_exit_code"},
		{&o.Exe, "mm_struct", "exe_file"},
		{&o.Args, "mm_struct", "arg_start"},
		{&o.ArgsEnd, "mm_struct", "arg_end"},
		{&o.ExePath, "file", "f_path.mnt|__f_path.mnt"}, // a union since 6.17
	} {
		var err error
		for path := range strings.SplitSeq(m.paths, "|") {
			if *m.to, err = offset(m.typ, path); err == nil {
				break
			}
		}
		if err != nil {
			return nil, fmt.Errorf("describe tasks: %w", err)
		}
	}
	return o, nil
}
