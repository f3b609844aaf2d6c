package implant

import (
	"encoding/binary"
	"fmt"
)

// filter says which threads the guest side records; empty lists do not
// restrict. It is evaluated in the guest.
type filter struct {
	tgids  []uint32
	follow bool // those processes' descendants too
	comms  []string
	uids   []uint32
}

// check refuses what does not fit in the tables.
func (f *filter) check() error {
	switch {
	case len(f.comms) > maxComms:
		return fmt.Errorf("filter by %d names: at most %d", len(f.comms), maxComms)
	case len(f.uids) > maxUIDs:
		return fmt.Errorf("filter by %d user ids: at most %d", len(f.uids), maxUIDs)
	}
	for _, id := range f.tgids {
		if id >= bitmapBits {
			return fmt.Errorf("filter by id %d: not less than %d", id, bitmapBits)
		}
	}
	return nil
}

// fill writes the lists into a header and returns the bits of its mode.
func (f *filter) fill(h []byte) uint32 {
	var mode uint32
	if len(f.tgids) > 0 {
		mode |= modeTGID
	}
	if n := min(len(f.comms), maxComms); n > 0 {
		mode |= modeComm
		binary.LittleEndian.PutUint32(h[hdrNComms:], uint32(n))
		for i, c := range f.comms[:n] {
			copy(h[hdrComms+16*i:hdrComms+16*i+16], make([]byte, 16))
			copy(h[hdrComms+16*i:hdrComms+16*i+15], c)
		}
	}
	if n := min(len(f.uids), maxUIDs); n > 0 {
		mode |= modeUID
		binary.LittleEndian.PutUint32(h[hdrNUIDs:], uint32(n))
		for i, u := range f.uids[:n] {
			binary.LittleEndian.PutUint32(h[hdrUIDs+4*i:], u)
		}
	}
	return mode
}

// fillBitmap sets the bits of the processes.
func (f *filter) fillBitmap(m *memory, at uint64) error {
	return f.eachBit(m, at, func(w, bit uint64) uint64 { return w | bit })
}

// clearBitmap clears them.
func (f *filter) clearBitmap(m *memory, at uint64) error {
	return f.eachBit(m, at, func(w, bit uint64) uint64 { return w &^ bit })
}

func (f *filter) eachBit(m *memory, at uint64, change func(word, bit uint64) uint64) error {
	for _, id := range f.tgids {
		off := at + uint64(id)/64*8
		w, err := m.load(off)
		if err != nil {
			return err
		}
		if err := m.store(off, change(w, 1<<(id%64))); err != nil {
			return err
		}
	}
	return nil
}
