package ntguest

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Addr is an address or another number of the guest, which it tells in hexadecimal.
type Addr uint64

// UnmarshalJSON reads "0x1f".
func (a *Addr) UnmarshalJSON(b []byte) error {
	s := strings.Trim(string(b), `"`)
	v, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 64)
	*a = Addr(v)
	return err
}

// Truth is what the guest has laid out, at one moment. It stems from the guest's own records and not from what is laid
// out.
type Truth struct {
	Kernel    Kernel
	Drivers   []Module
	Processes []Process // the Idle process first, which is in no list of NT's, then in the order of the list
	Counters  Counters
}

// Process returns the first process whose path ends in name, nil without one.
func (t *Truth) Process(name string) *Process {
	for i := range t.Processes {
		if strings.HasSuffix(t.Processes[i].Path, name) {
			return &t.Processes[i]
		}
	}
	return nil
}

// Kernel tells where the kernel and its variables are.
type Kernel struct {
	What, Layout, Arch, PDB, GUID string
	Build, Age                    int
	PAE                           bool
	Base, Size, Physical, DTB     Addr
	TextEnd                       Addr `json:"text_end"`
	PagedPage                     Addr `json:"paged_page"` // in the image, and not present
	CountersAt                    Addr `json:"counters_at"`
	TicksAt                       Addr `json:"ticks_at"` // a 32-bit number that grows 200 times a second
	KDBG                          Addr
	KDBGEncoded                   bool `json:"kdbg_encoded"`
	KdpDataBlockEncoded           Addr
	KiWaitNever, KiWaitAlways     Addr // their values
	PsActiveProcessHead           Addr
	PsLoadedModuleList            Addr
	PsInitialSystemProcess        Addr // the value
	PsIdleProcess                 Addr // the value
	PspCidTable                   Addr
	KiServiceTable                Addr
	Services                      int
	Functions                     map[string]Addr // some of the services
	CPUs                          []CPU
}

// CPU is one processor's control region and tables.
type CPU struct {
	KPCR, KPRCB, IDT, GDT Addr
	IdleThread            Addr `json:"idle_thread"`
}

// Process is a process as the guest made it.
type Process struct {
	PID, PPID, Session  int
	EPROCESS, DTB, Base Addr
	Image               string // the short name: 14 bytes at most
	Path                string
	CommandLine         string `json:"command_line"`
	Created             Addr   // FILETIME
	SID                 string
	WOW64               bool
	PEB, PEB32, Token   Addr
	Parameters          Addr
	HandleTable         Addr `json:"handle_table"`
	HandleCount         int  `json:"handle_count"`
	Rounds, Spins       int  // what its program has done
	Threads             []Thread
	Modules             []Module // of both loader lists, in order of loading
	VADs                []VAD    // in no order
	Handles             []Handle // by value
}

// Thread is a thread of a process.
type Thread struct {
	TID                 int
	ETHREAD, TEB, Start Addr
}

// Module is a driver, or an image in a loader list.
type Module struct {
	Base, Size Addr
	Path, Name string
	WOW64      bool
	Held       string // how the memory of the names is held: "" is usual, "paged out", "transition"
}

// VAD is a mapping of a process.
type VAD struct {
	Node, Start, End Addr // End is exclusive
	Protection       int  // as in MMVAD_FLAGS: 1 read, 4 read and write, 7 execute and copy on write
	Private, Image   bool
	File             string // path on the volume
}

// Handle is an entry of a handle table.
type Handle struct {
	Handle, Object, Access Addr
	Type, Name             string
}

// Call is a system call that has come to its end.
type Call struct {
	Seq, PID, TID, CPU int
	Name               string
	Kernel             bool // called from within the kernel
	Time               Addr // FILETIME, of its end
	Status, Out        Addr // Out is the handle made, or the address given
	Object             string
	Args               []Addr
}

// Counters says how many calls of each kind have ended.
type Counters map[string]int

// Current is who runs on a processor.
type Current struct {
	PID, TID          int
	ETHREAD, EPROCESS Addr
	Switches          int
}

// Line is one line of what the guest says.
type Line struct {
	Type string
	Text json.RawMessage
}

// Decode stores the line's object in v.
func (l Line) Decode(v any) error {
	if err := json.Unmarshal(l.Text, v); err != nil {
		return fmt.Errorf("decode %q: %w", l.Text, err)
	}
	return nil
}

func parseLine(b []byte) (Line, error) {
	l := Line{Text: json.RawMessage(b)}
	err := json.Unmarshal(b, &l)
	l.Text = json.RawMessage(b)
	return l, err
}

// truthOf puts together what a "ps" tells.
func truthOf(lines []Line) (*Truth, error) {
	t := &Truth{}
	for _, l := range lines {
		var v struct {
			Drivers  []Module
			Process  *Process
			Counters Counters
		}
		var err error
		switch l.Type {
		case "kernel":
			err = l.Decode(&t.Kernel)
		case "drivers", "process", "end":
			err = l.Decode(&v)
		}
		if err != nil {
			return nil, err
		}
		if v.Process != nil {
			t.Processes = append(t.Processes, *v.Process)
		}
		if v.Drivers != nil {
			t.Drivers = v.Drivers
		}
		if v.Counters != nil {
			t.Counters = v.Counters
		}
	}
	if len(t.Processes) == 0 || t.Kernel.Base == 0 {
		return nil, fmt.Errorf("read truth: %d lines without kernel or processes", len(lines))
	}
	return t, nil
}
