package vitrine

import (
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine/arch"
)

// FaultError is returned when a guest-virtual address is not mapped. It is
// never used for a lost connection.
type FaultError = arch.FaultError

// Errors of finding and reaching a guest.
var (
	// ErrNotFound is returned when no guest answers to the target.
	ErrNotFound = errors.New("no such guest")
	// ErrPermission is returned when the host denies what is needed to look
	// into the guest; the text says which right is missing.
	ErrPermission = errors.New("not permitted")
	// ErrBusy is returned when another client holds the monitor or the
	// gdbstub of the guest.
	ErrBusy = errors.New("held by another client")
	// ErrGone is returned when the guest's hypervisor has ended or closed the
	// connection.
	ErrGone = errors.New("guest has ended")
	// ErrReset is returned when the guest was reset or rebooted during the call.
	ErrReset = errors.New("guest was reset")
	// ErrPaused is returned when a call needs a running guest and someone else
	// has paused it. It is left paused.
	ErrPaused = errors.New("guest is paused")
	// ErrClosed is returned by calls on a guest after Close.
	ErrClosed = errors.New("guest is closed")
)

// Errors of understanding a guest.
var (
	// ErrNotUnderstood is returned when the guest runs, and what runs in it is
	// not an operating system that Vitrine knows; the text says what was found.
	ErrNotUnderstood = errors.New("guest not understood")
	// ErrNotBooted is returned when the guest has not started an operating
	// system within the time given: firmware, boot loader, early boot. It
	// wraps ErrNotUnderstood.
	ErrNotBooted = fmt.Errorf("no operating system has started: %w", ErrNotUnderstood)
)

// PhysicalError is returned when guest-physical memory cannot be read: there
// is no RAM at the address, or the host could not read it.
type PhysicalError struct {
	Addr arch.GPA
	Err  error // nil when the guest has no RAM there
}

// Error describes the address and the cause.
func (e *PhysicalError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("read guest-physical %v: no RAM there", e.Addr)
	}
	return fmt.Sprintf("read guest-physical %v: %v", e.Addr, e.Err)
}

// Unwrap returns the host's error, nil where the guest has no RAM.
func (e *PhysicalError) Unwrap() error { return e.Err }

// unsupported returns the error for a capability that the backend lacks.
func unsupported(what, backend string) error {
	return fmt.Errorf("%s: backend %s cannot: %w", what, backend, errors.ErrUnsupported)
}
