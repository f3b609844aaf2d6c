package implant

import (
	"encoding/binary"
	"fmt"
)

// ring reads the records out of the data region. It belongs to one goroutine.
//
// A slot passes through these states; head counts the claims, tail the slots
// given back, and a slot between them is never claimed again:
//
//	free -> claimed (head moved past it) -> complete (seq is index+1) -> read
//	     -> free (tail moved past it); a waiting thread's slot only once seq is 0 again
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
	pageAt  uint64
	buf     [slotSize]byte
}

func newRing(m *memory, l layout, nfuncs int) *ring {
	return &ring{m: m, l: l, nfuncs: uint32(nfuncs), pageAt: ^uint64(0)}
}

// offset returns where the slot of record i lies in the region.
func (r *ring) offset(i uint64) uint64 { return r.l.ring + (i&(r.l.slots-1))*slotSize }

// pending returns how many slots have been claimed and not read.
func (r *ring) pending() (uint64, error) {
	head, err := r.m.load(hdrHead)
	if err != nil {
		return 0, err
	}
	if head-r.next > r.l.slots {
		r.forged++
		return 0, fmt.Errorf("read ring: head is %d behind %d: %w", head, r.next, errForged)
	}
	return head - r.next, nil
}

// read hands up to limit complete records to f, oldest first, and gives their
// slots back. The record is valid during the call only. f's error ends it.
func (r *ring) read(limit int, f func(*record) error) (n int, err error) {
	left, err := r.pending()
	if err != nil {
		return 0, err
	}
	for ; left > 0 && n < limit; left-- {
		p, err := r.complete(r.next)
		if err != nil || p == nil {
			break
		}
		i := r.next
		r.next++
		n++
		if r.rec.decode(p, i, r.nfuncs) != nil {
			r.forged++
			continue
		}
		if r.rec.flags&slotSync != 0 {
			r.waiting = append(r.waiting, i)
		}
		if err := f(&r.rec); err != nil {
			return n, err
		}
		if n%256 == 0 {
			if err := r.giveBack(); err != nil {
				return n, err
			}
		}
	}
	return n, r.giveBack()
}

// complete returns a copy of slot i, nil when its record is not complete.
func (r *ring) complete(i uint64) ([]byte, error) {
	off := r.offset(i)
	if w := r.m.word(off); w == nil {
		return r.unmapped(i)
	}
	seq, err := r.m.load(off)
	if err != nil || seq != i+1 {
		return nil, err
	}
	p := r.m.mapped[off/pageSize][off%pageSize:][:slotSize]
	copy(r.buf[:slotData], p)
	if n := le32(r.buf[slotLen:]); n > 0 && n <= slotSize-slotData {
		copy(r.buf[slotData:], p[slotData:slotData+n])
	}
	return r.buf[:], nil
}

// unmapped is complete for memory that has to be copied page by page.
func (r *ring) unmapped(i uint64) ([]byte, error) {
	off := r.offset(i)
	at := off % pageSize
	page := i &^ (pageSize/slotSize - 1)
	if r.pageAt == page && le64(r.page[at:]) == i+1 {
		return r.page[at : at+slotSize], nil
	}
	r.pageAt = ^uint64(0)
	if err := r.m.read(r.page[:], off-at); err != nil || le64(r.page[at:]) != i+1 {
		return nil, err
	}
	// A copy is made in no known order: only what is copied after the mark was
	// seen is known to be complete.
	var seen [pageSize / slotSize]uint64
	for k := range seen {
		seen[k] = le64(r.page[k*slotSize:])
	}
	if err := r.m.read(r.page[:], off-at); err != nil {
		return nil, err
	}
	for k, v := range seen {
		binary.LittleEndian.PutUint64(r.page[k*slotSize:], v)
	}
	r.pageAt = page
	return r.page[at : at+slotSize], nil
}

// giveBack frees the slots that were read, up to the first whose thread has not
// taken its answer yet.
func (r *ring) giveBack() error {
	to := r.next
	for len(r.waiting) > 0 {
		i := r.waiting[0]
		seq, err := r.m.load(r.offset(i))
		if err != nil {
			return err
		}
		if seq == i+1 {
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
