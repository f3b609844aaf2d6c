package wire

// Operations of the ground-truth program.
const (
	OpPing     = "ping"     // nothing -> nothing
	OpResend   = "resend"   // ResendArgs -> the remembered reply, under its own ID
	OpTruth    = "truth"    // TruthArgs -> Truth
	OpSpawn    = "spawn"    // SpawnArgs -> Spawned
	OpTell     = "tell"     // TellArgs -> whatever line the workload answers with
	OpStop     = "stop"     // StopArgs -> nothing
	OpQuiet    = "quiet"    // nothing -> nothing: every workload is gone afterwards
	OpRate     = "rate"     // RateArgs -> Rate
	OpRun      = "run"      // RunArgs -> RunResult
	OpRead     = "read"     // ReadArgs -> Text
	OpInsmod   = "insmod"   // InsmodArgs -> nothing
	OpRmmod    = "rmmod"    // RmmodArgs -> nothing
	OpBaseline = "baseline" // nothing -> TextBaseline
	OpTextDiff = "textdiff" // nothing -> TextDiff
	OpPowerOff = "poweroff" // nothing -> nothing, then the machine is off
	OpReboot   = "reboot"   // nothing -> nothing, then the machine restarts
)

// Hello is what the guest says once it is up.
type Hello struct {
	Release string   `json:"release"` // uname -r
	Version string   `json:"version"` // uname -v
	Cmdline string   `json:"cmdline"` // /proc/cmdline
	CPUs    int      `json:"cpus"`    // CPUs online
	Modules []string `json:"modules"` // names of the modules that were loaded at start
	Errors  []string `json:"errors,omitempty"`
}

// ResendArgs names the reply to repeat.
type ResendArgs struct {
	ID uint64 `json:"id"`
}

// TruthArgs says which processes to report; none means all.
type TruthArgs struct {
	PIDs []int `json:"pids,omitempty"`
	// Brief leaves out maps, open files and threads, which take the guest longest.
	Brief bool `json:"brief,omitempty"`
}

// SpawnArgs starts a workload. Kind names one that is built into the ground-truth program, or is "program" for the
// program Path.
type SpawnArgs struct {
	Kind string   `json:"kind"`
	Name string   `json:"name"`           // unique; used in Tell, Stop and Rate
	Args []string `json:"args,omitempty"` // the kind's arguments

	// For Kind "program":
	Path string   `json:"path,omitempty"`
	Argv []Text   `json:"argv,omitempty"` // whole, with argv[0]; bytes, as a name need not be UTF-8
	Env  []string `json:"env,omitempty"`

	// For every kind that is built in: the program for 32-bit x86 runs it, in a guest that has it.
	Bits32 bool `json:"bits32,omitempty"`

	// For every kind:
	Dir string `json:"dir,omitempty"` // working directory, default /
	UID uint32 `json:"uid,omitempty"`
	GID uint32 `json:"gid,omitempty"`
}

// Spawned is a started workload.
type Spawned struct {
	PID  int               `json:"pid"`
	TIDs []int             `json:"tids,omitempty"` // its threads or, for "procs", its children
	Info map[string]string `json:"info,omitempty"` // facts by kind, such as the address of a mapping
}

// TellArgs sends a line to a workload that waits for one.
type TellArgs struct {
	Name string `json:"name"`
	Line string `json:"line"`
}

// StopArgs names the workload to kill.
type StopArgs struct {
	Name string `json:"name"`
}

// RateArgs measures a workload's operations for a time.
type RateArgs struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// Rate is a workload's speed as the guest measured it.
type Rate struct {
	Count   uint64  `json:"count"`   // operations done in the time
	Seconds float64 `json:"seconds"` // by the guest's monotonic clock
}

// PerSecond returns operations per second.
func (r Rate) PerSecond() float64 {
	if r.Seconds <= 0 {
		return 0
	}
	return float64(r.Count) / r.Seconds
}

// RunArgs runs a command to its end.
type RunArgs struct {
	Argv  []string `json:"argv"`
	Stdin Text     `json:"stdin,omitempty"`
}

// RunResult is a finished command.
type RunResult struct {
	Output Text `json:"output"` // stdout and stderr together
	Code   int  `json:"code"`   // exit status, -signal when a signal ended it
}

// ReadArgs names a file to read whole.
type ReadArgs struct {
	Path string `json:"path"`
}

// InsmodArgs loads a module file that is in the initramfs.
type InsmodArgs struct {
	Name   string `json:"name"` // without .ko
	Params string `json:"params,omitempty"`
}

// RmmodArgs unloads a module.
type RmmodArgs struct {
	Name string `json:"name"`
}

// TextBaseline describes the copy of the kernel's text that the guest keeps to compare with.
type TextBaseline struct {
	Start   uint64 `json:"start"`   // _stext
	End     uint64 `json:"end"`     // _etext
	Ignored int    `json:"ignored"` // places that the kernel itself may patch: jump labels, static calls
}

// TextDiff is what differs from the baseline, the places that the kernel itself may patch left out.
type TextDiff struct {
	Ranges []TextRange `json:"ranges,omitempty"` // at most 64
	Own    int         `json:"own"`              // differing places that the kernel itself may patch
}

// TextRange is one run of changed bytes.
type TextRange struct {
	Addr   uint64 `json:"addr"`
	Symbol string `json:"symbol"` // name+offset
	Old    Text   `json:"old"`
	New    Text   `json:"new"`
}

// SeqCall is one system call that a "sequence" workload made, in the order of its thread.
type SeqCall struct {
	TID  int      `json:"tid"`
	Name string   `json:"name"`           // as in openat
	Args []uint64 `json:"args"`           // raw values
	Path string   `json:"path,omitempty"` // the path that was passed, for calls that take one
	Ret  int64    `json:"ret"`            // as the kernel returned it: negative errno
}

// Init32 is the ground-truth program for 32-bit x86, in guests that have it beside their own.
const Init32 = "/init32"

// TreeMark is what "tree" and "clock" workloads add their numbers to: no process has such an id.
const TreeMark = 1 << 30

// Timed is one call of getpgid that a "clock" workload made, between two readings of the wall clock in nanoseconds
// since 1970.
type Timed struct {
	TID    int    `json:"tid"`
	Arg    uint64 `json:"arg"`
	Before int64  `json:"before"`
	After  int64  `json:"after"`
}
