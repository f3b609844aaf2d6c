package trace

import (
	"errors"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/syscalls"
)

// user says how the function gets its arguments.
func (en entry) user() probe.UserRegs {
	switch {
	case en.name == "" || !syscalls.TakesRegisters(en.symbol):
		return probe.NoUserRegs
	case en.abi == arch.I386:
		return probe.UserRegs32
	}
	return probe.UserRegs64
}

// captures says what of a call has to be copied when it is made, for decoding
// under stream delivery.
func (d *decoders) captures(en entry) []probe.Capture {
	t := d.tables[en.abi]
	if t == nil || en.user() == probe.NoUserRegs {
		return nil
	}
	var out []probe.Capture
	for _, p := range t.Pointed(en.name) {
		out = append(out, probe.Capture{Arg: p.Arg, Max: p.Size, String: p.String, Length: p.Length, Return: p.Out})
	}
	return out
}

// memory returns what a decoder may read at the hit.
func (c *caller) memory(en entry, f *inFlight, h *probe.Hit) syscalls.Memory {
	if h.Sync() {
		return h.Process()
	}
	return recorded{h, h.Probe.Capture, &f.call.Args}
}

// recorded is the memory that a record holds. The guest has run on since: what
// its memory holds now need not be what the call was about.
type recorded struct {
	hit  *probe.Hit
	what []probe.Capture
	args *[6]uint64
}

var errNotRecorded = errors.New("not recorded")

// Read implements syscalls.Memory.
func (r recorded) Read(p []byte, a arch.GVA) (int, error) {
	for i, c := range r.what {
		b, _ := r.hit.Captured(i)
		if c.String && len(b) == c.Max {
			b = b[:len(b)-1] // cut: the NUL is not the string's own
		}
		if off := uint64(a) - r.args[c.Arg]; off < uint64(len(b)) {
			if n := copy(p, b[off:]); n < len(p) {
				return n, errNotRecorded
			}
			return len(p), nil
		}
	}
	return 0, errNotRecorded
}

// record takes a system call's arguments from the record, where the guest does
// not wait.
func (e *Event) record() {
	if e.args == 0 || e.Sync() {
		return
	}
	e.user = new([6]uint64)
	for i := range e.user {
		e.user[i], _ = e.UserArg(i)
	}
}
