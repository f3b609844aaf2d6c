package implant

import (
	"bytes"
	"encoding/binary"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// Offsets in what a record tells of a task: struct about of object/implant.h.
const (
	aboutTask        = 0
	aboutStart       = 8
	aboutLeaderStart = 16
	aboutParentStart = 24
	aboutExeMount    = 32
	aboutExeEntry    = 40
	aboutArgsStart   = 48
	aboutArgsSize    = 56
	aboutTID         = 64
	aboutTGID        = 68
	aboutPTGID       = 72
	aboutUID         = 76
	aboutSignalFlags = 80
	aboutSignalCode  = 84
	aboutComm        = 88
	aboutLeaderComm  = 104
	aboutSize        = 120
)

// aboutCodes are the guest side's numbers.
var aboutCodes = map[engine.AboutOf]uint32{engine.AboutArg: 1, engine.AboutCurrent: 2}

// aboutConstants are the offsets that the guest side needs to describe a task,
// all zero for a kernel that does not have what is asked for: then no function
// asks it to.
func aboutConstants(f Facts) map[string]uint64 {
	o, err := engine.FindAbout(f.Offset)
	if err != nil {
		o = &engine.AboutOffsets{}
	}
	return map[string]uint64{
		"vt_task_start": o.Start, "vt_task_leader": o.Leader, "vt_task_signal": o.Signal, "vt_task_mm": o.MM,
		"vt_signal_flags": o.SignalFlags, "vt_signal_code": o.SignalCode,
		"vt_mm_exe": o.Exe, "vt_mm_args": o.Args, "vt_mm_args_end": o.ArgsEnd, "vt_file_path": o.ExePath,
	}
}

// about takes what the record tells of a task; nil where it tells nothing.
func (r *record) about() *engine.About {
	p := r.data
	if len(p) < aboutSize {
		return nil
	}
	le := binary.LittleEndian
	nanoseconds := func(at int) time.Duration { return time.Duration(le.Uint64(p[at:])) }
	address := func(at int) arch.GVA { return arch.GVA(le.Uint64(p[at:])) }
	id := func(at int) int { return int(int32(le.Uint32(p[at:]))) }
	return &engine.About{
		Task: address(aboutTask), Start: nanoseconds(aboutStart), LeaderStart: nanoseconds(aboutLeaderStart), ParentStart: nanoseconds(aboutParentStart),
		TID: id(aboutTID), PID: id(aboutTGID), PPID: id(aboutPTGID), UID: le.Uint32(p[aboutUID:]),
		SignalFlags: le.Uint32(p[aboutSignalFlags:]), SignalCode: le.Uint32(p[aboutSignalCode:]),
		Comm: untilNUL(p[aboutComm:aboutLeaderComm]), LeaderComm: untilNUL(p[aboutLeaderComm:aboutSize]),
		ExeMount: address(aboutExeMount), ExeEntry: address(aboutExeEntry),
		ArgsStart: address(aboutArgsStart), ArgsSize: le.Uint64(p[aboutArgsSize:]), Args: p[aboutSize:],
	}
}

func untilNUL(p []byte) string {
	b, _, _ := bytes.Cut(p, []byte{0})
	return string(b)
}
