package trace

import (
	"encoding/binary"
	"errors"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/syscalls"
)

// captures says what of a call has to be copied when it is made, for decoding
// under stream delivery.
func (d *decoders) captures(en entry) []probe.Capture {
	t := d.tables[en.abi]
	if t == nil || en.dispatch || en.register() == probe.NoUserRegs {
		return nil
	}
	var out []probe.Capture
	for _, p := range t.Pointed(en.name) {
		out = append(out, probe.Capture{
			Arg: p.Arg, Max: p.Size, String: p.String, Strings: p.Strings, Pointers: p.Pointers,
			Via: p.Via, Offset: p.Offset, Length: p.Length, Unit: p.Unit, Return: p.Out,
		})
	}
	return out
}

// recorded is the memory that a record holds. The guest has run on since: what
// its memory holds now need not be what the call was about.
type recorded struct {
	hit  *probe.Hit
	what []probe.Capture
	args *[6]uint64
}

var (
	errNotRecorded = errors.New("not recorded")
	errNotThere    = errors.New("page not present")
)

var (
	_ syscalls.Memory  = (*recorded)(nil)
	_ syscalls.Vectors = (*recorded)(nil)
)

// Read implements syscalls.Memory.
func (r *recorded) Read(p []byte, a arch.GVA) (int, error) {
	for i := range r.what {
		c := &r.what[i]
		if c.Strings || c.Pointers {
			continue
		}
		b, _ := r.hit.Captured(i)
		if len(b) == 0 {
			continue
		}
		base, ok := r.base(c)
		if off := uint64(a) - base; ok && off < uint64(len(b)) {
			if n := copy(p, b[off:]); n < len(p) {
				return n, errNotRecorded
			}
			return len(p), nil
		}
	}
	return 0, errNotRecorded
}

// base returns where a capture was made.
func (r *recorded) base(c *probe.Capture) (uint64, bool) {
	if c.Via == 0 {
		return r.args[c.Arg], true
	}
	b, _ := r.hit.Captured(c.Via - 1)
	if len(b) < c.Offset+8 {
		return 0, false
	}
	return binary.LittleEndian.Uint64(b[c.Offset:]), true
}

// find returns the capture of the list of pointers at a.
func (r *recorded) find(a arch.GVA, strings bool) []byte {
	for i := range r.what {
		if c := &r.what[i]; c.Strings == strings && c.Pointers == !strings && r.args[c.Arg] == uint64(a) {
			b, _ := r.hit.Captured(i)
			return b
		}
	}
	return nil
}

// Strings implements syscalls.Vectors.
func (r *recorded) Strings(dst [][]byte, a arch.GVA) (list [][]byte, more, cut bool, err error, ok bool) {
	b := r.find(a, true)
	if b == nil {
		return dst, false, false, nil, false
	}
	list, end := probe.SplitStrings(dst, b)
	if end.Fault {
		err = errNotThere
	}
	return list, end.More, end.Cut, err, true
}

// Pointers implements syscalls.Vectors.
func (r *recorded) Pointers(a arch.GVA, limit int) (int, bool) {
	b := r.find(a, false)
	if len(b) < 4 {
		return 0, false
	}
	return int(min(uint64(binary.LittleEndian.Uint32(b)), uint64(limit))), true
}
