package implant

import (
	"encoding/binary"
	"fmt"
)

// ring reads the records out of the data region. It belongs to one goroutine.
//
// A record takes some of the ring's units, and passes through these states. head
// counts the units claimed, tail those given back, and what lies between them
// is never claimed again:
//
//	free -> claimed (head moved past it) -> complete (it is marked) -> read
//	     -> free (tail moved past it); a waiting thread's record only once it is unmarked
type ring struct {
	m       *memory
	l       layout
	nfuncs  uint32
	next    uint64 // index of the next record to read
	tail    uint64 // what the guest was told
	beat    uint64
	waiting []uint64 // records whose threads may not have taken their answer, in order
	forged  uint64   // records that failed their checks, and positions that made no sense
	rec     record
	page    [pageSize]byte // where pages are not mapped: the page that pageAt names
	pageAt  uint64         // its offset in the region
	buf     [slotSize]byte // a record that lies in two pages
}

func newRing(m *memory, l layout, nfuncs int) *ring {
	return &ring{m: m, l: l, nfuncs: uint32(nfuncs), pageAt: ^uint64(0)}
}

// offset returns where the record of index i lies in the region.
func (r *ring) offset(i uint64) uint64 { return r.l.ring + (i&(r.l.units-1))*unitSize }

// mark returns the mark of a complete record.
func (r *ring) mark(i uint64) uint64 { return i + r.l.key }

// pending returns how many units have been claimed and not read.
func (r *ring) pending() (uint64, error) {
	head, err := r.m.load(hdrHead)
	if err != nil {
		return 0, err
	}
	if head-r.next > r.l.units {
		r.forged++
		return 0, fmt.Errorf("read ring: head is %d behind %d: %w", head, r.next, errForged)
	}
	return head - r.next, nil
}

// read hands up to limit complete records to f, oldest first, and gives their
// units back. The record is valid during the call only. f's error ends it, and
// so does a record of which not even the size makes sense.
func (r *ring) read(limit int, f func(*record) error) (n int, err error) {
	left, err := r.pending()
	if err != nil {
		return 0, err
	}
	end := r.next + left
	for ; r.next != end && n < limit; n++ {
		p, w, err := r.complete(r.next)
		if err != nil {
			return n, err
		}
		if p == nil {
			break
		}
		i := r.next
		r.next += uint64(w.units())
		if end-r.next > left { // the claims end within it
			r.forged++
			return n, fmt.Errorf("read ring: record of %d units before %d: %w", w.units(), end, errForged)
		}
		if r.rec.decode(p, w, i, r.nfuncs) != nil {
			r.forged++
			continue
		}
		if r.rec.flags&slotSync != 0 {
			r.waiting = append(r.waiting, i)
		}
		if err := f(&r.rec); err != nil {
			return n + 1, err
		}
		if n%256 == 255 {
			if err := r.giveBack(); err != nil {
				return n + 1, err
			}
		}
	}
	return n, r.giveBack()
}

// complete returns the bytes of record i, which the guest's kernel could still
// change, and the word that tells its size; nil when it is not complete.
func (r *ring) complete(i uint64) ([]byte, word, error) {
	off := r.offset(i)
	at := off % pageSize
	page := r.m.mapped[off/pageSize]
	if page == nil {
		return r.unmapped(i)
	}
	mark, err := r.m.load(off)
	if err != nil || mark != r.mark(i) {
		return nil, 0, err
	}
	return r.whole(page, off, at)
}

// whole returns the record at offset at of a page that was marked as complete.
func (r *ring) whole(page []byte, off, at uint64) ([]byte, word, error) {
	w := word(le64(page[at+slotFunc:]))
	n := uint64(w.size())
	if n == 0 {
		r.forged++
		return nil, 0, fmt.Errorf("read ring: record says %#x of itself: %w", uint64(w), errForged)
	}
	if at+n <= pageSize {
		return page[at : at+n], w, nil
	}
	k := copy(r.buf[:n], page[at:])
	return r.buf[:n], w, r.m.read(r.buf[k:n], off+uint64(k))
}

// unmapped is complete for memory that has to be copied page by page.
func (r *ring) unmapped(i uint64) ([]byte, word, error) {
	off := r.offset(i)
	at := off % pageSize
	if r.pageAt == off-at && le64(r.page[at:]) == r.mark(i) {
		return r.whole(r.page[:], off, at)
	}
	r.pageAt = ^uint64(0)
	if err := r.m.read(r.page[:], off-at); err != nil || le64(r.page[at:]) != r.mark(i) {
		return nil, 0, err
	}
	// A copy is made in no known order: only what is copied after the mark was
	// seen is known to be complete.
	var seen [pageSize / unitSize]uint64
	for k := range seen {
		seen[k] = le64(r.page[k*unitSize:])
	}
	if err := r.m.read(r.page[:], off-at); err != nil {
		return nil, 0, err
	}
	for k, v := range seen {
		binary.LittleEndian.PutUint64(r.page[k*unitSize:], v)
	}
	r.pageAt = off - at
	return r.whole(r.page[:], off, at)
}

// giveBack frees the units that were read, up to the first whose thread has not
// taken its answer yet.
func (r *ring) giveBack() error {
	to := r.next
	for len(r.waiting) > 0 {
		i := r.waiting[0]
		mark, err := r.m.load(r.offset(i))
		if err != nil {
			return err
		}
		if mark == r.mark(i) {
			to = i
			break
		}
		r.waiting = r.waiting[:copy(r.waiting, r.waiting[1:])]
	}
	if r.tail == to {
		return nil
	}
	r.tail = to
	return r.m.store(hdrTail, to)
}

// answer lets the thread go on that waits on the record read last.
func (r *ring) answer(what, value uint64) error {
	off := r.offset(r.rec.index)
	if err := r.m.store(off+slotValue, value); err != nil {
		return err
	}
	return r.m.store(off+slotAnswer, what)
}

// live tells the guest that the host lives.
func (r *ring) live() error {
	r.beat++
	return r.m.store(hdrHeartbeat, r.beat)
}
