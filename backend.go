package vitrine

import (
	"context"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Backend reaches one guest. Its methods may be called concurrently. What a
// backend can do beyond reading physical memory it says by also implementing
// the other interfaces of this file; New looks for them once.
type Backend interface {
	// ReadPhysical fills p from guest-physical address a, without stopping the
	// guest. It returns how many bytes it filled; fewer than len(p) comes with
	// an error, a *PhysicalError where the guest has no RAM.
	ReadPhysical(p []byte, a arch.GPA) (int, error)
	// Regions returns the guest's RAM, sorted by address, without overlap.
	Regions() []Region
	// Close releases the backend and undoes what it did to the guest.
	Close() error
}

// Region is a range of guest-physical addresses backed by RAM.
type Region struct {
	Start arch.GPA
	Size  uint64 // bytes
}

// End returns the first address behind the region.
func (r Region) End() arch.GPA { return r.Start + arch.GPA(r.Size) }

// PhysicalMapper is implemented by backends that have guest RAM mapped.
type PhysicalMapper interface {
	// MapPhysical returns the n bytes of guest RAM at a without copying, or
	// nil when they are not mapped in one piece. The slice stays valid until
	// Close. The guest writes to it at any time: copy, then check.
	MapPhysical(a arch.GPA, n uint64) []byte
}

// PhysicalWriter is implemented by backends that can write guest memory.
type PhysicalWriter interface {
	// WritePhysical stores p at a. It is for data only: an emulator may not
	// see code that is written this way; code goes through Control.WriteCode.
	WritePhysical(p []byte, a arch.GPA) error
}

// RegisterSource is implemented by backends that can tell registers without
// stopping the guest.
type RegisterSource interface {
	// Registers returns a snapshot of virtual processor cpu (0-based). A field
	// that the source does not offer is zero. The guest may run on meanwhile.
	Registers(ctx context.Context, cpu int) (*arch.Registers, error)
}

// Status is the run state of a guest.
type Status string

// Run states.
const (
	StatusRunning  Status = "running"
	StatusPaused   Status = "paused"   // stopped by its owner, by a debugger, or not yet started
	StatusShutdown Status = "shutdown" // has ended, or is about to
	StatusOther    Status = "other"    // migrating, suspended, internal error, ...
)

// StatusSource is implemented by backends that can tell whether the guest runs.
type StatusSource interface {
	Status(ctx context.Context) (Status, error)
}

// LifeEvent is a change of the guest's run state.
type LifeEvent string

// Life events.
const (
	LifeStop     LifeEvent = "stop"
	LifeResume   LifeEvent = "resume"
	LifeReset    LifeEvent = "reset"
	LifeShutdown LifeEvent = "shutdown"
	LifeGone     LifeEvent = "gone" // the connection to the hypervisor was lost; always the last
)

// LifeWatcher is implemented by backends that report changes of the run state.
type LifeWatcher interface {
	// WatchLife returns events from now on, until ctx ends, when the channel is
	// closed. A slow receiver loses the oldest events, never LifeGone.
	WatchLife(ctx context.Context) <-chan LifeEvent
}

// Controller is implemented by backends that can control virtual processors.
type Controller interface {
	// OpenControl takes control of all virtual processors and stops them. It
	// returns ErrBusy when a debugger already has it, ErrPaused when somebody
	// else has paused the guest (it stays paused).
	OpenControl(ctx context.Context) (Control, error)
}

// Control is exclusive control of a guest's virtual processors, all-stop: they
// all run or all stand still. It is owned by one goroutine; the one exception
// is Interrupt, which may be called from any.
//
// After an error of any method but a *FaultError the only useful call is Close.
type Control interface {
	// Registers returns the registers of a virtual processor, which must be stopped.
	Registers(cpu int) (*arch.Registers, error)
	// SetRegisters stores those general registers, RIP and RFLAGS that differ
	// from the present ones.
	SetRegisters(cpu int, r *arch.Registers) error
	// SetPC stores the program counter only: the fast path of a skipped instruction.
	SetPC(cpu int, pc arch.GVA) error
	// Insert plants breakpoints; the guest must be stopped. Many at once cost
	// little more than one. After an error some may have been planted.
	Insert(kind arch.BreakpointKind, a ...arch.GVA) error
	// Remove takes breakpoints out; the guest must be stopped. After an error
	// some may still be there.
	Remove(kind arch.BreakpointKind, a ...arch.GVA) error
	// WriteCode stores the pieces as virtual processor cpu maps them, ignoring
	// page protection, in a way that the processors see as code. Many at once cost
	// little more than one. After an error some may have been stored.
	WriteCode(cpu int, pieces ...Code) error
	// Step runs one instruction on one virtual processor with interrupts held
	// off where the hypervisor can; the others stand still.
	Step(ctx context.Context, cpu int) error
	// Resume lets all virtual processors run.
	Resume() error
	// Wait waits for the next stop. It returns ctx's error when ctx ends first:
	// the guest then still runs. It returns ErrReset, ErrGone or ErrPaused when
	// that happens to the guest.
	Wait(ctx context.Context) (Stop, error)
	// Interrupt makes a running guest stop; Wait then returns it. It does
	// nothing to a stopped guest. It may be called from any goroutine.
	Interrupt() error
	// Close takes out every breakpoint, lets the guest run, and gives control
	// back, whatever state things are in. It may be called twice.
	Close() error
}

// Code is what Control.WriteCode stores at one place.
type Code struct {
	Addr  arch.GVA
	Bytes []byte
}

// Stood is implemented by Controls that know exactly how long the guest has
// stood still under them. It may be asked after Close.
type Stood interface {
	// Stood returns that time: of all stops that have ended.
	Stood() time.Duration
}

// Timer is implemented by Controls whose guest's machine has a clock that runs
// and stands still with it, and can be read without the guest noticing.
type Timer interface {
	// Ran returns for how long the guest has run since the first call, exactly:
	// without the time from a stop until we learnt of it. It returns false where
	// there is no such clock, at the first call and at all later ones alike. The
	// guest must be stopped.
	Ran() (ran time.Duration, ok bool)
}

// Stop tells why the guest stopped.
type Stop struct {
	CPU    int        // the virtual processor that caused it, 0-based
	Reason StopReason // why
}

// StopReason says what stopped a guest.
type StopReason uint8

// Stop reasons.
const (
	StopBreakpoint StopReason = iota // a breakpoint was hit, or a step ended
	StopInterrupt                    // Interrupt, or somebody else's pause
)

// Repairer is implemented by backends that can undo at hypervisor level what
// a killed run left: breakpoints still armed, a guest left stopped by them.
type Repairer interface {
	// Repair takes out all breakpoints of the gdbstub and lets the guest run if
	// a breakpoint had stopped it. It tells what it found, in words.
	Repair(ctx context.Context) ([]string, error)
}
