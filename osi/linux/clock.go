package linux

import (
	"context"
	"fmt"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// The kernel notes a task's creation in nanoseconds since boot, counting time
// asleep. Its timekeeper holds how far the wall clock (offs_real) and the clock
// since boot (offs_boot) are ahead of the monotonic clock, so the wall-clock
// time of boot is their difference: the kernel's own getboottime64, and "btime"
// in /proc/stat. Setting the guest's clock moves it, and with it all start times.

// findTimekeeper returns the address of the kernel's core timekeeper, 0 when it
// is not found or does not look like one.
func (s *system) findTimekeeper(ctx context.Context) arch.GVA {
	if !s.l.timekeeper.offsReal.ok() || !s.l.timekeeper.offsBoot.ok() {
		return 0
	}
	sequence, at, err := s.k.Timekeeper()
	if err != nil {
		return 0
	}
	if err := retry(ctx, s.kernel, func() error { return s.checkTimekeeper(at) }); err != nil {
		return 0
	}
	s.tkSequence = sequence
	return at
}

// checkTimekeeper fails unless the wall clock's whole seconds agree with the
// monotonic clock's plus the offset.
func (s *system) checkTimekeeper(at arch.GVA) error {
	l := &s.l.timekeeper
	r, err := load(s.kernel, &l.shape, at, nil)
	if err != nil || !l.xtimeSec.ok() || !l.ktimeSec.ok() {
		return err
	}
	diff := int64(r.uint(l.xtimeSec)-r.uint(l.ktimeSec)) - int64(r.uint(l.offsReal))/int64(time.Second)
	if diff < -1 || diff > 1 {
		return fmt.Errorf("read timekeeper at %v: its clocks are %d s apart: %w", at, diff, osi.ErrTorn)
	}
	return nil
}

// bootTime returns the guest's wall-clock time of its boot, the zero time when
// it can't be told.
func (s *system) bootTime() time.Time {
	if s.timekeeper == 0 {
		return time.Time{}
	}
	var buf [512]byte
	var offset, before int64
	loads := 0
	for range attempts {
		seq, ok := s.clockSequence()
		r, err := load(s.kernel, &s.l.timekeeper.shape, s.timekeeper, buf[:])
		if err != nil {
			continue
		}
		offset, before = int64(r.uint(s.l.timekeeper.offsReal)-r.uint(s.l.timekeeper.offsBoot)), offset
		loads++
		if again, _ := s.clockSequence(); ok && seq == again {
			return time.Unix(0, offset).UTC()
		}
	}
	// A processor that is in the middle of a tick stays there for as long as its host has no time for it, for good in a
	// paused guest. A tick leaves the offsets alone.
	if loads < 2 || offset != before {
		return time.Time{}
	}
	return time.Unix(0, offset).UTC()
}

// clockSequence reads the timekeeper's sequence count; it is odd while the
// timekeeper is being written.
func (s *system) clockSequence() (uint32, bool) {
	n, err := s.kernel.ReadUint32(s.tkSequence)
	return n, err == nil && n%2 == 0
}

// addressSpaceOf returns the memory that the page tables at root map.
func (s *system) addressSpaceOf(root arch.GPA) *vitrine.AddressSpace {
	return s.g.AddressSpace(s.kernel.Mode().User(), root)
}
