package osi

import (
	"errors"
	"fmt"
)

// Errors of asking for one thing.
var (
	// ErrNoProcess is returned when no process has the pid, or when the handle
	// names none (any longer).
	ErrNoProcess = errors.New("no such process")
	// ErrNoUserMemory is returned when a process has no memory of its own: a
	// kernel thread, or a process that has exited.
	ErrNoUserMemory = errors.New("no user memory")
	// ErrNoMapping is returned when no mapping holds the address.
	ErrNoMapping = errors.New("no mapping there")
	// ErrNoModule is returned when no kernel module holds the address.
	ErrNoModule = errors.New("no module there")
	// ErrNoFile is returned when the file descriptor is not open.
	ErrNoFile = errors.New("file descriptor not open")
	// ErrNotFound is returned by the searches of this package by name.
	ErrNotFound = errors.New("not found")
)

// Errors of reading a guest that runs, or that lies.
var (
	// ErrTorn is returned when a structure kept changing while it was read.
	ErrTorn = errors.New("changed while it was read")
	// ErrCorrupt is returned when a structure of the guest can't be what it
	// claims to be: a list without end, a pointer outside the kernel.
	ErrCorrupt = errors.New("corrupt structure")
)

// Errors of Open.
var (
	// ErrNoProvider is returned when no registered provider knows the guest.
	ErrNoProvider = errors.New("no provider knows this guest")
	// ErrAmbiguous is returned when more than one registered provider claims
	// the guest.
	ErrAmbiguous = errors.New("more than one provider claims this guest")
)

// PartialError is returned beside a record of which one part could not be
// read; the rest of the record holds.
type PartialError struct {
	PID  int    // of the process
	Part string // "args", "exe", ...
	Err  error
}

// Error names the part, the process and the cause.
func (e *PartialError) Error() string {
	return fmt.Sprintf("read %s of process %d: %v", e.Part, e.PID, e.Err)
}

// Unwrap returns the cause.
func (e *PartialError) Unwrap() error { return e.Err }
