package trace

import (
	"errors"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/syscalls"
)

// captures says what of a call has to be copied when it is made, for decoding
// under stream delivery.
func (d *decoders) captures(en entry) []probe.Capture {
	t := d.tables[en.abi]
	if t == nil || en.dispatch || en.user() == probe.NoUserRegs {
		return nil
	}
	var out []probe.Capture
	for _, p := range t.Pointed(en.name) {
		out = append(out, probe.Capture{Arg: p.Arg, Max: p.Size, String: p.String, Length: p.Length, Return: p.Out})
	}
	return out
}

// memory returns what a decoder may read at the hit.
func (f *inFlight) memory(h *probe.Hit) syscalls.Memory {
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
