package implant

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// memory is a page-aligned range of guest-virtual memory whose pages have been
// translated once: they belong to us and do not move. Where the backend has
// guest RAM mapped, numbers are read and written in place and whole.
type memory struct {
	g      *vitrine.Guest
	frames []arch.GPA
	mapped [][]byte // per page, nil where it is not mapped
	fence  atomic.Uint64
}

// newMemory translates the size bytes at va.
func newMemory(as *vitrine.AddressSpace, va arch.GVA, size uint64) (*memory, error) {
	if va != va.Page() || size == 0 || size > 1<<30 {
		return nil, fmt.Errorf("translate %v: size %#x is not expected", va, size)
	}
	m := &memory{g: as.Guest()}
	for off := uint64(0); off < size; off += pageSize {
		w, err := as.Walk(va + arch.GVA(off))
		if err != nil {
			return nil, err
		}
		m.frames = append(m.frames, w.Addr.Page())
		m.mapped = append(m.mapped, m.g.MapPhysical(w.Addr.Page(), pageSize))
	}
	return m, nil
}

// word returns the mapped number at off, nil when its page is not mapped. off
// must be aligned and inside.
func (m *memory) word(off uint64) []byte {
	p := m.mapped[off/pageSize]
	if p == nil {
		return nil
	}
	return p[off%pageSize:][:8]
}

// load reads the number at off, and nothing behind it before it. An aligned
// number is read whole by the processors that the host side is built for; the
// operation on fence keeps the order.
func (m *memory) load(off uint64) (uint64, error) {
	if w := m.word(off); w != nil {
		v := le64(w)
		m.fence.Add(1)
		return v, nil
	}
	var b [8]byte
	_, err := m.g.ReadPhysical(b[:], m.frames[off/pageSize]+arch.GPA(off%pageSize))
	return le64(b[:]), err
}

// store writes the number at off whole, after everything before it.
func (m *memory) store(off, v uint64) error {
	if w := m.word(off); w != nil {
		m.fence.Add(1)
		binary.LittleEndian.PutUint64(w, v)
		m.fence.Add(1)
		return nil
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	return m.g.WritePhysical(b[:], m.frames[off/pageSize]+arch.GPA(off%pageSize))
}

// read fills p from off; the caller keeps within the range.
func (m *memory) read(p []byte, off uint64) error {
	return m.pieces(p, off, func(part []byte, page int, at uint64) error {
		if q := m.mapped[page]; q != nil {
			copy(part, q[at:])
			return nil
		}
		_, err := m.g.ReadPhysical(part, m.frames[page]+arch.GPA(at))
		return err
	})
}

// write stores p at off.
func (m *memory) write(p []byte, off uint64) error {
	return m.pieces(p, off, func(part []byte, page int, at uint64) error {
		if q := m.mapped[page]; q != nil {
			copy(q[at:], part)
			return nil
		}
		return m.g.WritePhysical(part, m.frames[page]+arch.GPA(at))
	})
}

func (m *memory) pieces(p []byte, off uint64, f func(part []byte, page int, at uint64) error) error {
	for len(p) > 0 {
		at := off % pageSize
		n := min(uint64(len(p)), pageSize-at)
		if err := f(p[:n], int(off/pageSize), at); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}
