package probe

import (
	"errors"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
)

// wallClock tells the guest's wall-clock time while the guest stands still: the
// kernel's own as of its last tick, and how long the guest has run since, but no
// more than a tick is long: that is measured with some error at each stop, which
// adds up. In a guest that gets so little of the host's processors that it has
// no ticks, the time is behind by what it misses.
type wallClock struct {
	as               *vitrine.AddressSpace
	seq, keeper      arch.GVA
	sec, nsec, shift uint64 // offsets in struct timekeeper

	tick, now time.Time // the last tick and the last answer
	ran       time.Duration
}

// tickMost is how far the kernel's last tick may lie back: a tick of HZ=100.
const tickMost = 10 * time.Millisecond

// findWallClock finds the kernel's timekeeper. Until 6.12 it lies behind a
// sequence count of 32 bits in tk_core; 6.13 gave the pair a type of its own, and
// 6.17 made it the first of an array.
func findWallClock(k *kernel.Kernel) (*wallClock, error) {
	c := &wallClock{as: k.AddressSpace()}
	for _, want := range []struct {
		to     *uint64
		member string
	}{{&c.sec, "xtime_sec"}, {&c.nsec, "tkr_mono.xtime_nsec"}, {&c.shift, "tkr_mono.shift"}} {
		f, err := k.Types().Field("timekeeper", want.member)
		if err != nil {
			return nil, err
		}
		*want.to = f.Offset
	}
	behind := arch.GVA(8)
	if f, err := k.Types().Field("tk_data", "timekeeper"); err == nil {
		behind = arch.GVA(f.Offset)
	}
	for _, name := range []string{"tk_core", "timekeeper_data"} {
		if s, err := k.Symbol(name); err == nil {
			c.seq, c.keeper = s.Addr, s.Addr+behind
			return c, nil
		}
	}
	return nil, errors.New("find timekeeper: the kernel has none of the known names")
}

// at returns the time when the guest has run for ran, by the clock of the
// caller, and false when the guest does not tell.
func (c *wallClock) at(ran time.Duration) (time.Time, bool) {
	tick, ok := c.read()
	if !ok {
		return time.Time{}, false
	}
	t := c.now.Add(max(ran-c.ran, 0))
	switch {
	case tick.Before(c.tick) || t.Before(tick):
		t = tick // it was set, or we were slow
	case t.Sub(tick) > tickMost:
		t = tick.Add(tickMost)
	}
	if !tick.Before(c.tick) && t.Before(c.now) {
		t = c.now
	}
	c.tick, c.now, c.ran = tick, t, ran
	return t, true
}

// read returns the time of the kernel's last tick, that of the one before in a
// guest that was stopped while it writes the time.
func (c *wallClock) read() (time.Time, bool) {
	seq, err := c.as.ReadUint32(c.seq)
	if err != nil || seq%2 != 0 {
		return c.tick, err == nil && !c.tick.IsZero()
	}
	sec, err1 := c.as.ReadUint64(c.keeper + arch.GVA(c.sec))
	nsec, err2 := c.as.ReadUint64(c.keeper + arch.GVA(c.nsec))
	shift, err3 := c.as.ReadUint32(c.keeper + arch.GVA(c.shift))
	if errors.Join(err1, err2, err3) != nil || shift > 63 || sec > 1<<40 {
		return time.Time{}, false
	}
	return time.Unix(int64(sec), int64(min(nsec>>shift, uint64(10*time.Second)))).UTC(), true
}
