package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vitrine-vmi/vitrine/event"
)

// TraceOptions say what to trace.
type TraceOptions struct {
	Calls  []string // names of system calls without prefix; nil is all
	Ignore []string // left out of them
	PID    int      // only this process, 0 for all
	Comm   string   // only threads of this short name, if ByComm is set
	ByComm bool
	UID    uint32 // only processes of this user, if ByUID is set
	ByUID  bool
	Follow bool // also the descendants of PID

	Engine   string        // "auto", "trap", "implant"
	Delivery string        // "sync", "stream"; empty is what the engine does best
	Count    uint64        // end after this many calls, 0 for no limit
	Duration time.Duration // end after this time, 0 for no limit
}

// ErrUnknownCall is returned when the guest has no such system call.
var ErrUnknownCall = errors.New("no such system call in this guest")

// Trace traces system calls and hands each to emit, until ctx ends, a limit of
// o is reached or emit fails. The guest is left as it was found in any case.
func (s *Session) Trace(ctx context.Context, o TraceOptions, emit func(*event.Call) error) (*event.Stats, error) {
	return nil, fmt.Errorf("trace: not in this version: %w", errors.ErrUnsupported)
}
