package probe

import (
	"errors"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
)

// wallClock tells the guest's wall-clock time while the guest stands still. The
// kernel's memory has the time of its last tick, which may be long past: a busy
// host lets a guest's ticks wait for a quarter of a second. How long the guest
// has run is known too, but not from when. A tick never lies ahead, so the
// greatest of (tick - ran) lately is how far the guest's clock is ahead of ran,
// short of what the most recent of those ticks was late.
//
// All that is by the guest's monotonic clock, which nobody sets. The distance of
// the wall clock from it, which changes when that is set, is added at the end.
type wallClock struct {
	as                     *vitrine.AddressSpace
	seq, keeper            arch.GVA
	sec, nsec, shift, real uint64   // offsets in struct timekeeper
	nt                     *ntTicks // in their place, of an NT kernel

	tick       reading
	ahead      [2]time.Duration // the greatest monotonic - ran: of this window, and of this and the last
	window     time.Duration    // when this window began, by ran
	began      bool
	mono, last time.Duration // the last answer by the monotonic clock, and its ran
}

// reading is what the kernel noted at a tick: its monotonic time, and what the
// wall clock is ahead of that since 1970.
type reading struct{ mono, real time.Duration }

const (
	// tickWindow is how long a tick counts: between one and two of it. The guest's
	// clocks drift apart, by some 0.01% where they are kept well.
	tickWindow = time.Second
	// slowest is by how much at least the time goes on when the guest has run: a
	// quarter of that, where it is found to be ahead.
	slowest = 4
)

// findWallClock finds where the kernel keeps the time.
func findWallClock(k *kernel.Kernel) (*wallClock, error) {
	if nt := k.NT(); nt != nil {
		return &wallClock{nt: &ntTicks{as: k.AddressSpace(), shared: nt.SharedData}}, nil
	}
	return findTimekeeper(k)
}

// findTimekeeper finds a Linux kernel's timekeeper.
func findTimekeeper(k *kernel.Kernel) (*wallClock, error) {
	c := &wallClock{as: k.AddressSpace()}
	for _, want := range []struct {
		to     *uint64
		member string
	}{{&c.sec, "xtime_sec"}, {&c.nsec, "tkr_mono.xtime_nsec"}, {&c.shift, "tkr_mono.shift"}, {&c.real, "offs_real"}} {
		f, err := k.Types().Field("timekeeper", want.member)
		if err != nil {
			return nil, err
		}
		*want.to = f.Offset
	}
	var err error
	c.seq, c.keeper, err = k.Timekeeper()
	return c, err
}

// at returns the time when the guest has run for ran, by the clock of the
// caller, and false when the guest does not tell. Unless the clock was set, the
// time goes on from one answer to the next, by no less than a quarter of what
// the guest has run.
func (c *wallClock) at(ran time.Duration) (time.Time, bool) {
	tick, ok := c.read()
	if !ok {
		return time.Time{}, false
	}
	switch {
	case !c.began || tick.mono < c.tick.mono || ran < c.last:
		// A guest that was put back to an earlier state, or another run of ours.
		d := tick.mono - ran
		c.began, c.ahead, c.window, c.mono, c.last = true, [2]time.Duration{d, d}, ran, tick.mono, ran
	case tick.mono != c.tick.mono:
		c.ticked(tick.mono-ran, ran)
	}
	c.tick = tick
	c.mono = max(c.ahead[1]+ran, c.mono+(ran-c.last)/slowest)
	c.last = ran
	return time.Unix(0, 0).Add(c.mono + tick.real).UTC(), true
}

// ticked takes a tick that was not seen before.
func (c *wallClock) ticked(ahead, ran time.Duration) {
	if ran-c.window >= tickWindow {
		c.window, c.ahead = ran, [2]time.Duration{ahead, max(c.ahead[0], ahead)}
		return
	}
	c.ahead = [2]time.Duration{max(c.ahead[0], ahead), max(c.ahead[1], ahead)}
}

// read returns the reading of the kernel's last tick, the one before in a guest
// that was stopped while it writes.
func (c *wallClock) read() (reading, bool) {
	if c.nt != nil {
		return c.nt.read()
	}
	seq, err := c.as.ReadUint32(c.seq)
	if err != nil || seq%2 != 0 {
		return c.tick, err == nil && c.began
	}
	sec, err1 := c.as.ReadUint64(c.keeper + arch.GVA(c.sec))
	nsec, err2 := c.as.ReadUint64(c.keeper + arch.GVA(c.nsec))
	shift, err3 := c.as.ReadUint32(c.keeper + arch.GVA(c.shift))
	real, err4 := c.as.ReadUint64(c.keeper + arch.GVA(c.real))
	const maxSec = 1 << 33 // the kernel's own bound (KTIME_SEC_MAX) is 292 years
	if errors.Join(err1, err2, err3, err4) != nil || shift > 63 || sec > maxSec || real > maxSec*uint64(time.Second) {
		return reading{}, false
	}
	r := reading{real: time.Duration(real)}
	r.mono = time.Duration(sec)*time.Second + time.Duration(min(nsec>>shift, uint64(10*time.Second))) - r.real
	return r, true
}
