// Package engine is the joint between probe sessions and the engines that
// plant probes: what a session asks for and what an engine delivers. It is
// the leaf of package probe and does nothing itself.
//
// An engine runs on the goroutine that called Run and calls its Handler there;
// Change and the counters may be used from any goroutine.
package engine

import (
	"context"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Range is a part of the guest kernel's text.
type Range struct {
	Start arch.GVA
	Size  uint64
}

// Contains reports whether a lies in the range.
func (r Range) Contains(a arch.GVA) bool { return a >= r.Start && uint64(a-r.Start) < r.Size }

// Point is one kernel function to be hooked. A session makes one for each
// function, however many probes are on it, and never changes it.
type Point struct {
	Name string
	Body []Range // the function itself first, then parts that the compiler moved away
}

// Hit is one entry or return as an engine delivers it.
type Hit struct {
	Point  *Point
	CPU    int
	Return bool
	Task   arch.GVA      // the current task's task_struct
	Time   time.Time     // the guest's wall-clock time, or host time
	Ran    time.Duration // how long the guest has run since the engine began, stops left out
	Args   [6]uint64     // at entry
	Result uint64        // at return
	Root   arch.GPA      // page-table root in use
	Regs   *arch.Registers
	// Thread is what the engine recorded of the thread, nil when the session is
	// to read it from memory.
	Thread *Thread
	// User holds the arguments in the user registers that the function's first
	// argument points to, where Wanted.User asked for them and the engine records.
	User *[6]uint64
	// Captured holds what a stream engine copied, one for each of the point's
	// Captures; nil in an engine that does not capture.
	Captured [][]byte
	// About is the task that Wanted.About asked for, nil when the session is to
	// read it from memory.
	About *About

	// Answers, honoured by engines that deliver synchronously. An engine sees
	// changed registers by comparing Regs.
	Skip      bool   // do not run the function
	SkipValue uint64 // what its caller gets instead
	Drop      bool   // no return for this call
}

// Thread is a thread's identity: the fields of probe.Thread.
type Thread struct {
	PID, TID, PPID int
	UID            uint32
	Comm           string
}

// Handler receives hits. An error ends Run with that error.
type Handler interface {
	// Entered is told of an entry. It returns the value that Returned gets for
	// the same call, and whether Returned is wanted for it.
	Entered(h *Hit) (value any, returns bool, err error)
	// Returned is told of the return of a call for which Entered wanted it.
	Returned(h *Hit, value any) error
}

// Beginner is implemented by handlers that want to know when everything that
// was wanted at the beginning of Run is planted: what happens in the guest from
// now on is delivered.
type Beginner interface {
	Begin()
}

// Begin tells a handler, if it wants to know. Engines call it on Run's goroutine.
func Begin(h Handler) {
	if b, ok := h.(Beginner); ok {
		b.Begin()
	}
}

// Wanted is a point with the sides that are wanted of it.
type Wanted struct {
	*Point
	Returns bool // some probe on it wants returns
	// User says that the first argument points to saved user registers, and which
	// of them are arguments.
	User UserRegs
	// Captures is memory to copy at entry; it only ever grows while the point lives.
	Captures []Capture
	// About is the task to describe at entry; nothing is captured beside it.
	About AboutOf
}

// UserRegs says where a system call's arguments are.
type UserRegs uint8

// The kinds of system call functions.
const (
	NoUserRegs    UserRegs = iota
	UserRegs64             // rdi rsi rdx r10 r8 r9
	UserRegs32             // ebx ecx edx esi edi ebp
	UserRegsARM64          // x0 to x5
	UserRegsI386           // those of UserRegs32, saved by a 32-bit kernel: in that order from the start
)

// Capture is user memory to copy at entry.
type Capture struct {
	Arg    int // the argument that points to it: a user register's where Wanted.User is set
	Max    int // bytes
	String bool
	// Strings copies the strings of a list of pointers that ends with NULL, in the
	// form that SplitStrings takes apart.
	Strings bool
	// Pointers only counts the pointers of such a list: a number of 32 bits.
	Pointers bool
	// Via, when not 0, is the position plus 1 of an earlier capture in the same
	// list that holds the pointer, at Offset; Arg is not used then.
	Via, Offset int
	// Length limits a buffer further: to the argument of that number plus 1, or
	// to one of the Length constants; 0 does not.
	Length int
	// Unit is how many bytes each one is that Length counts; 0 is 1.
	Unit int
	// Return copies at the return instead. What could not be read at the entry is
	// tried again at the return in any case, of a system call.
	Return bool
}

// Values of Capture.Length.
const (
	LengthResult     = -1 // the function's result
	LengthNext       = -2 // with Via: the 32-bit number behind the pointer
	LengthNextResult = -3 // the lesser of the two
)

// How a list of strings ends, as bits.
const (
	VectorMore  = 1 // there are more
	VectorFault = 2 // what follows could not be read
	VectorCut   = 4 // the last one goes on
)

// Filter says which threads' hits are wanted at all. Empty lists do not restrict.
type Filter struct {
	PIDs  []int // process ids
	Comms []string
	UIDs  []uint32
	// Follow extends PIDs to the descendants of those processes.
	Follow bool
}

// Filterer is implemented by engines that can leave hits out in the guest
// already.
type Filterer interface {
	// SetFilter replaces the filter; like Change it takes effect soon. It reports
	// whether no hit of other processes than the filter's will be delivered by a
	// Run that begins with this filter.
	SetFilter(f Filter) bool
}

// Stats are counters since the engine was made.
type Stats struct {
	Entries    uint64        // entry hits
	Returns    uint64        // return hits delivered
	Unreturned uint64        // calls given up: the thread ended or unwound past them, or the engine stopped first
	Stray      uint64        // stops that belonged to no call of interest
	Lost       uint64        // records lost
	Stalls     uint64        // how often the guest's threads gave up waiting for us
	Stopped    time.Duration // how long the guest stood still for us
	Planting   time.Duration // the part of it for putting an implant in
	Removing   time.Duration // and for taking it out
}

// Add adds the counters of o to s.
func (s *Stats) Add(o Stats) {
	s.Entries += o.Entries
	s.Returns += o.Returns
	s.Unreturned += o.Unreturned
	s.Stray += o.Stray
	s.Lost += o.Lost
	s.Stalls += o.Stalls
	s.Stopped += o.Stopped
	s.Planting += o.Planting
	s.Removing += o.Removing
}

// Engine plants points and delivers hits.
type Engine interface {
	// Run plants what is wanted, delivers hits to h until ctx ends, and takes
	// everything out. It returns nil when ctx has ended and the guest is clean.
	Run(ctx context.Context, h Handler) error
	// Change replaces what is wanted. It may be called from any goroutine,
	// before and during Run, and by a Handler; during Run it takes effect
	// before the guest runs on or soon afterwards. The returned error is an
	// errors.Join of a *PointError for every point that cannot be hooked; the
	// others are.
	Change(ctx context.Context, w []Wanted) error
	// Stats returns the counters.
	Stats() Stats
}

// PointError is why a point cannot be hooked.
type PointError struct {
	Point *Point
	Err   error
}

// Error names the function and the cause.
func (e *PointError) Error() string { return "hook " + e.Point.Name + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *PointError) Unwrap() error { return e.Err }
