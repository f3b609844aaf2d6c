package event

import "time"

// Record is what a sink takes: any record of this package.
type Record interface {
	// AppendJSON appends the record as one JSON object, without a newline.
	AppendJSON(b []byte) []byte
	record()
}

// Guest is one guest that runs on this host (vitrine list).
type Guest struct {
	Name        string `json:"name"`
	PID         int    `json:"pid"` // of the hypervisor's process on the host
	Accel       string `json:"accel"`
	MemoryBytes uint64 `json:"memory_bytes"`
	VCPUs       int    `json:"vcpus"`
	QMP         string `json:"qmp"` // path of the monitor's socket, empty if it has none
}

// Info is what the guest kernel says of itself (vitrine info).
type Info struct {
	OS      string            `json:"os"`
	Release string            `json:"release"`
	Banner  string            `json:"banner"`
	Arch    string            `json:"arch"`
	Paging  string            `json:"paging"`
	Slide   Addr              `json:"slide"` // of the kernel image, by KASLR
	VCPUs   int               `json:"vcpus"`
	Facts   map[string]string `json:"facts"`   // fact to provenance
	Missing []string          `json:"missing"` // facts looked for and not found
}

// Process is one process, or one thread where threads were asked for
// (vitrine ps).
type Process struct {
	PID       int       `json:"pid"` // of the thread; equal to TGID for a process
	PPID      int       `json:"ppid"`
	TGID      int       `json:"tgid"`
	Name      string    `json:"name"` // the kernel's short name (comm)
	Exe       string    `json:"exe"`  // path of the executable, empty for kernel threads
	Args      []string  `json:"args"`
	UID       uint32    `json:"uid"`
	GID       uint32    `json:"gid"`
	State     string    `json:"state"` // one letter as in /proc/PID/stat
	KThread   bool      `json:"kthread"`
	Threads   int       `json:"threads"`
	StartTime time.Time `json:"start_time"`
	ASID      Addr      `json:"asid"` // guest-physical address of the page-table root
	Task      Addr      `json:"task"` // of the task structure

	// Of Windows guests only.
	CommandLine string `json:"command_line"` // of which args are the parts
	User        string `json:"user"`         // SID: "S-1-5-18"
	Session     int    `json:"session"`
	WOW64       bool   `json:"wow64"`   // compat, by the name that it has there
	Handles     int    `json:"handles"` // open ones

	Compat bool `json:"compat"` // a 32-bit process of a 64-bit system
}

// Current is what one vCPU runs (vitrine current).
type Current struct {
	VCPU int    `json:"vcpu"`
	PID  int    `json:"pid"`
	TID  int    `json:"tid"`
	Name string `json:"name"`
	Task Addr   `json:"task"`
}

// Module is one loaded kernel module (vitrine modules).
type Module struct {
	Name string `json:"name"`
	Base Addr   `json:"base"`
	Size uint64 `json:"size"` // bytes
	File string `json:"file"` // empty where the guest does not keep it
}

// Library is one shared object of a process (vitrine libs).
type Library struct {
	Name string `json:"name"`
	Path string `json:"path"`
	Base Addr   `json:"base"`
	Size uint64 `json:"size"` // bytes, from the first mapping's start to the last one's end
}

// Mapping is one range of a process's address space (vitrine maps).
type Mapping struct {
	Start  Addr   `json:"start"`
	End    Addr   `json:"end"`    // first address behind the range
	Perms  string `json:"perms"`  // as in /proc/PID/maps: "r-xp"
	Offset uint64 `json:"offset"` // bytes into the file
	Name   string `json:"name"`   // path, "[heap]", "[stack]", ... or empty
}

// File is one open file of a process (vitrine files).
type File struct {
	FD    int    `json:"fd"`
	Path  string `json:"path"` // or "pipe:[1234]", "socket:[1234]", "anon_inode:[eventfd]"
	Pos   int64  `json:"pos"`
	Flags string `json:"flags"` // as given to open(2): "O_RDWR|O_CLOEXEC"; of a handle the access that was granted
	// Type is the type of the object that a handle leads to; Windows guests only.
	Type string `json:"type"`
}

// LifeKind says what happened to a process.
type LifeKind string

// The kinds of Life records.
const (
	Start    LifeKind = "start"    // a process or thread was made
	Exec     LifeKind = "exec"     // it runs another program now
	Exit     LifeKind = "exit"     // it ended
	Existing LifeKind = "existing" // it was there already when watching began
)

// Life is a moment in a process's life (vitrine events).
type Life struct {
	Time  time.Time `json:"time"`
	Event LifeKind  `json:"event"`
	PID   int       `json:"pid"`
	PPID  int       `json:"ppid"`
	TID   int       `json:"tid"`
	Name  string    `json:"name"`
	Exe   string    `json:"exe"`
	Args  []string  `json:"args"`
	UID   uint32    `json:"uid"`
	// ExitCode is what the process gave to exit, or minus the number of the
	// signal that ended it. It is 0 in records that are not exits.
	ExitCode int    `json:"exit_code"`
	ID       string `json:"id"` // unique in a guest's run, unlike a pid
	ParentID string `json:"parent_id"`
	VCPU     int    `json:"vcpu"`
}

// CallKind says which part of a call a Call record holds.
type CallKind string

// The kinds of Call records.
const (
	Enter  CallKind = "enter"  // the function was entered; Ret and Duration are 0
	Return CallKind = "return" // it returned
	Joined CallKind = "call"   // entry and return in one record
)

// Call is one traced call (vitrine trace).
type Call struct {
	Time  time.Time `json:"time"`
	Seq   uint64    `json:"seq"` // counts up by one per record of a trace; a gap is a loss
	VCPU  int       `json:"vcpu"`
	PID   int       `json:"pid"`
	TID   int       `json:"tid"`
	PPID  int       `json:"ppid"`
	Comm  string    `json:"comm"`
	UID   uint32    `json:"uid"`
	Event CallKind  `json:"event"`
	Func  string    `json:"func"` // the kernel function: "__x64_sys_openat"
	Name  string    `json:"name"` // the system call: "openat"; empty for other functions
	Args  []Arg     `json:"args"`
	Ret   int64     `json:"ret"`
	// RetText is the decoded return value as strace shows it: "3",
	// "0x7f0000000000", "-1 ENOENT (No such file or directory)". Empty when
	// Event is Enter.
	RetText string `json:"ret_text"`
	// Errno is the name of the error ("ENOENT"), empty and absent on success.
	Errno string `json:"errno,omitempty"`
	// Kernel says that the kernel of a Windows guest made the call itself, and no
	// program. It is absent when it is false.
	Kernel bool `json:"kernel,omitempty"`
	// Duration is the time between entry and return, 0 when not both were seen.
	Duration time.Duration `json:"duration_ns"`
}

// Arg is one argument of a call.
type Arg struct {
	Name string `json:"name"`
	// Value is the raw number as it stood in the register. In JSON it is a
	// decimal number in a string.
	Value uint64 `json:"value,string"`
	// Text is the decoded form, as strace shows it. Where the argument could
	// not be decoded it is the raw value followed by the reason as a comment:
	// "0x7ffd1000 /* page not present */".
	Text string `json:"text"`
}

// Stats is the summary at the end of a trace (vitrine trace --stats).
type Stats struct {
	Events       uint64            `json:"events"`
	Lost         uint64            `json:"lost"`
	GuestStopped time.Duration     `json:"guest_stopped_ns"`
	Planting     time.Duration     `json:"planting_ns"`    // the part of GuestStopped for putting implants in
	Removing     time.Duration     `json:"removing_ns"`    // and for taking them out
	Stalls       uint64            `json:"stalls"`         // how often the guest went on without us, who were too slow
	OutputWait   time.Duration     `json:"output_wait_ns"` // how long the trace has waited for whoever reads its output
	Notes        []string          `json:"notes"`          // what is not as one might expect, such as why an engine was chosen
	Engine       string            `json:"engine"`
	Delivery     string            `json:"delivery"`
	Duration     time.Duration     `json:"duration_ns"`
	PerFunc      map[string]uint64 `json:"per_func"`
}

// Lost stands in a stream where records are missing because the reader of this
// stream was too slow (not because the trace lost them: those Stats counts).
type Lost struct {
	Time  time.Time `json:"time"` // when the stream went on
	Count uint64    `json:"count"`
}

func (Guest) record()   {}
func (Info) record()    {}
func (Process) record() {}
func (Current) record() {}
func (Module) record()  {}
func (Library) record() {}
func (Mapping) record() {}
func (File) record()    {}
func (Life) record()    {}
func (Call) record()    {}
func (Stats) record()   {}
func (Lost) record()    {}
