package probe

import (
	"slices"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// Engine names the way in which probes are planted.
type Engine string

// The engines.
const (
	// Auto is Implant where the guest's kernel takes implants, with Trap for
	// functions that take none; Trap where it does not. Stats.Notes tells.
	Auto    Engine = "auto"
	Trap    Engine = "trap"    // breakpoints held by the hypervisor: any function, changes no guest byte under TCG
	Implant Engine = "implant" // code of ours in guest memory that writes records
)

// Delivery says whether the guest waits for callbacks.
type Delivery string

// The kinds of delivery.
const (
	Sync   Delivery = "sync"   // the guest thread waits until the callbacks have returned
	Stream Delivery = "stream" // a record is taken and the guest runs on
)

// Probe is a hook on one kernel function. The fields are read by Session.Add
// and not changed by it.
type Probe struct {
	// Func is the name of the kernel function, exactly as the kernel's symbol
	// table has it.
	Func string
	// Addr is the function's first instruction; used when Func is empty.
	Addr arch.GVA
	// Name is what hits call a function of an NT kernel for which it has no
	// symbol; used with Addr.
	Name string
	// Enter is called when the function is entered, before its body has run.
	// The value it returns is handed to Return when the same call returns. It
	// may be nil.
	Enter func(h *Hit) any
	// Return is called when the call returns, with what Enter returned (nil
	// without Enter). A nil Return costs nothing: the return side is not planted.
	Return func(h *Hit, value any)
	// Filter says whose calls are of interest; nil means everybody's. It is
	// checked at entry: a call that passes there is followed to its return.
	Filter *Filter
	// User says that the function is a system call's, and how it gets its
	// arguments; see Hit.UserArg.
	User UserRegs
	// Capture says what a stream engine copies when the function is entered.
	// The trap engine needs none of it: the guest stands still while Enter reads.
	Capture []Capture
	// Describe says which task Hit.Described tells of. Such a probe's function
	// can't have captures.
	Describe Describe
}

// UserRegs says where a function finds a system call's arguments.
type UserRegs = engine.UserRegs

// The kinds of functions.
const (
	// NoUserRegs is a function that is not a system call's.
	NoUserRegs = engine.NoUserRegs
	// UserRegs64 is a function whose first argument points to the saved registers
	// of a 64-bit process: all system call functions of x86-64 since Linux 4.17.
	UserRegs64 = engine.UserRegs64
	// UserRegs32 is the same for calls of 32-bit processes.
	UserRegs32 = engine.UserRegs32
	// UserRegsARM64 is a function whose first argument points to the saved
	// registers of a 64-bit process on arm64: since Linux 4.19.
	UserRegsARM64 = engine.UserRegsARM64
	// UserRegsI386 is a function whose first argument points to the saved
	// registers of a process on a 32-bit x86 kernel: since Linux 5.7.
	UserRegsI386 = engine.UserRegsI386
)

// Capture is user memory that a stream engine copies into the record at entry.
type Capture struct {
	// Arg is the number of the argument that points to the memory: of the system
	// call where Probe.User is set, else of the function.
	Arg int
	// Max is the number of bytes to copy, up to a NUL if String is set. A string
	// that is longer comes without its NUL.
	Max    int
	String bool
	// Strings copies the strings of a list of pointers that ends with NULL, as
	// argv is; see SplitStrings.
	Strings bool
	// Pointers counts the pointers of such a list, up to 4096, as four bytes,
	// little-endian.
	Pointers bool
	// Via, when not 0, is the position plus 1 of an earlier one of the probe's
	// captures that holds the pointer, at Offset; Arg is not used then.
	Via, Offset int
	// Length limits a buffer further: to the argument of that number plus 1, or
	// to one of the Length constants; 0 does not.
	Length int
	// Unit is how many bytes each one is that Length counts; 0 is 1.
	Unit int
	// Return copies when the call returns, for what the kernel writes. Without
	// it, what could not be read at entry is tried again then, of a system call.
	Return bool
}

// Values of Capture.Length.
const (
	LengthResult     = engine.LengthResult     // the function's result
	LengthNext       = engine.LengthNext       // with Via: the 32-bit number behind the pointer
	LengthNextResult = engine.LengthNextResult // the lesser of the two
)

// Filter says which threads are of interest. A list that is empty does not
// restrict; a thread must pass all of those that are not.
type Filter struct {
	PIDs  []int    // process ids (thread group ids)
	Comms []string // the kernel's short names, at most 15 bytes each
	UIDs  []uint32 // real user ids
	// Follow extends PIDs to the descendants of those processes: whoever is one
	// by its living parents when Run begins, and with the implant engine every
	// process that one of them makes from then on. With the trap engine, one whose
	// parents had all ended before its first hit is not recognised.
	Follow bool
	// Match, when set, has the last word. It runs like a callback.
	Match func(t *Thread) bool
}

// empty reports whether the filter lets everybody pass.
func (f *Filter) empty() bool {
	return f == nil || len(f.PIDs) == 0 && len(f.Comms) == 0 && len(f.UIDs) == 0 && f.Match == nil
}

// passes applies all lists but PIDs, which needs the family (see follower).
func (f *Filter) passes(t *Thread) bool {
	return (len(f.Comms) == 0 || slices.Contains(f.Comms, t.Comm)) &&
		(len(f.UIDs) == 0 || slices.Contains(f.UIDs, t.UID))
}
