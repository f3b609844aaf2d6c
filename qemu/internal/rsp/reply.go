package rsp

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// StubError is returned when the stub answers a request with an error.
type StubError struct {
	Request string // the request's first characters
	Reply   string // "E22", or "" for a request that the stub does not know
}

// Error describes the request and the answer.
func (e *StubError) Error() string {
	if e.Reply == "" {
		return fmt.Sprintf("gdbstub does not know %q", e.Request)
	}
	return fmt.Sprintf("gdbstub answered %s to %q", e.Reply, e.Request)
}

// Signals that QEMU reports, with the numbers of the protocol (not the host's).
const (
	SignalInt  = 2 // somebody paused the guest, or asked the stub to
	SignalQuit = 3 // the guest was shut down
	SignalTrap = 5 // a breakpoint or the end of a step
)

// Stop is a stop reply.
type Stop struct {
	Signal int
	Thread Thread // zero when the reply names none
	Exited bool   // W or X: QEMU ends
}

// Thread names a virtual processor: QEMU numbers processes and threads from 1.
type Thread struct {
	Process int // 0 in the single-process form
	ID      int
}

// String returns the form that requests use.
func (t Thread) String() string {
	if t.Process == 0 {
		return strconv.FormatInt(int64(t.ID), 16)
	}
	return "p" + strconv.FormatInt(int64(t.Process), 16) + "." + strconv.FormatInt(int64(t.ID), 16)
}

// errNotStop is returned for a payload that is no stop reply.
var errNotStop = errors.New("not a stop reply")

// ParseStop decodes a stop reply: T05thread:p01.01;..., S05, W00.
func ParseStop(payload []byte) (Stop, error) {
	p := string(payload)
	if len(p) < 3 {
		return Stop{}, fmt.Errorf("%w: %.40q", errNotStop, p)
	}
	switch p[0] {
	case 'W', 'X':
		return Stop{Exited: true}, nil
	case 'T', 'S':
	default:
		return Stop{}, fmt.Errorf("%w: %.40q", errNotStop, p)
	}
	sig, err := strconv.ParseUint(p[1:3], 16, 8)
	if err != nil {
		return Stop{}, fmt.Errorf("%w: %.40q", errNotStop, p)
	}
	s := Stop{Signal: int(sig)}
	for f := range strings.SplitSeq(p[3:], ";") {
		if id, ok := strings.CutPrefix(f, "thread:"); ok {
			if s.Thread, err = ParseThread(id); err != nil {
				return Stop{}, err
			}
		}
	}
	return s, nil
}

// ParseThread decodes a thread id: "1", "p1.1".
func ParseThread(id string) (Thread, error) {
	var t Thread
	rest, multi := strings.CutPrefix(id, "p")
	if multi {
		process, thread, _ := strings.Cut(rest, ".")
		n, err := strconv.ParseUint(process, 16, 31)
		if err != nil {
			return Thread{}, fmt.Errorf("parse thread id %.40q", id)
		}
		t.Process, rest = int(n), thread
	}
	n, err := strconv.ParseUint(rest, 16, 31)
	if err != nil {
		return Thread{}, fmt.Errorf("parse thread id %.40q", id)
	}
	t.ID = int(n)
	return t, nil
}
