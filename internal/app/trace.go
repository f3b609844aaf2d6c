package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/syscalls"
	"github.com/vitrine-vmi/vitrine/trace"
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
	Duration time.Duration // end when calls were traced for this time, 0 for no limit
}

// ErrUnknownCall is returned when the guest has no such system call.
var ErrUnknownCall = trace.ErrUnknownCall

// Trace traces system calls and hands each to emit, which must not keep it, until ctx ends, a limit of
// o is reached or emit fails. The guest is left as it was found in any case.
// The end of ctx is an error, that of the duration is not. The statistics are
// nil when the trace has not begun.
func (s *Session) Trace(ctx context.Context, o TraceOptions, emit func(*event.Call) error) (*event.Stats, error) {
	if err := s.mustRun(ctx); err != nil {
		return nil, fmt.Errorf("trace guest %q: %w", s.target.Text, err)
	}
	stats, err := trace.Calls(ctx, s.guest, s.kernel, s.sys, s.callsOptions(o), emit)
	switch {
	case errors.Is(err, trace.ErrUnknownCall):
		return nil, s.explainUnknown(o, err)
	case err != nil:
		return stats, err
	}
	return stats, context.Cause(ctx)
}

func (s *Session) callsOptions(o TraceOptions) *trace.CallsOptions {
	c := &trace.CallsOptions{
		Names: o.Calls, Ignore: o.Ignore, Follow: o.Follow, Count: o.Count, Duration: o.Duration,
		Engine: o.Engine, Delivery: o.Delivery, Reuse: true,
	}
	if o.PID != 0 {
		c.PIDs = []int{o.PID}
	}
	if o.ByComm {
		c.Comms = []string{o.Comm}
	}
	if o.ByUID {
		c.UIDs = []uint32{o.UID}
	}
	return c
}

// explainUnknown names the calls that the guest does not have and offers those
// that look like them. Of err only the kind is kept: it speaks of kernel
// functions, which is not what was asked for.
func (s *Session) explainUnknown(o TraceOptions, err error) error {
	known := syscalls.Names(s.guest.Arch())
	if s.kernel.NT() != nil {
		known = nil // what a build has of them is its own
	}
	var parts []string
	for _, n := range slices.Concat(o.Calls, o.Ignore) {
		if slices.Contains(known, n) {
			continue // the kernel may lack it nevertheless: then err says so
		}
		part := fmt.Sprintf("%q", n)
		near := syscalls.Nearest(n, known)
		if s.kernel.NT() != nil {
			near = nearestNT(n)
		}
		if len(near) > 0 {
			part += " (did you mean " + strings.Join(near, ", ") + "?)"
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 {
		return err
	}
	return fmt.Errorf("trace %s: %w", strings.Join(parts, ", "), ErrUnknownCall)
}

// nearestNT returns the names of NT calls that resemble n, which may lack the prefix.
func nearestNT(n string) []string {
	lower := map[string]string{}
	for _, name := range syscalls.NTNames() {
		lower[strings.ToLower(name)] = name
	}
	if !strings.HasPrefix(strings.ToLower(n), "nt") {
		n = "nt" + strings.TrimPrefix(strings.ToLower(n), "zw")
	}
	var near []string
	for _, name := range syscalls.Nearest(n, slices.Sorted(maps.Keys(lower))) {
		near = append(near, lower[name])
	}
	return near
}
