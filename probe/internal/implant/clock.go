package implant

import "time"

// clock turns TSC readings of the guest into host time and into time that the
// guest has run. It is fed with readings as they arrive: none arrives before it
// was taken, so the least delay seen is the best guess of none.
type clock struct {
	perSecond uint64 // ticks
	first     uint64
	began     bool
	base      time.Time // host time of first, by the best guess
	window    time.Time // when the guess is made anew
	next      time.Time // the best guess within the window so far
}

// clockWindow is how long a guess lives: the guest's clock may drift or stop.
const clockWindow = 2 * time.Second

// arrived tells of a reading that was taken just now or a little earlier.
func (c *clock) arrived(tsc uint64, now time.Time) {
	if !c.began {
		c.began, c.first, c.base, c.window, c.next = true, tsc, now, now.Add(clockWindow), now
		return
	}
	zero := now.Add(-c.ran(tsc))
	if zero.Before(c.base) {
		c.base = zero
	}
	if zero.Before(c.next) {
		c.next = zero
	}
	if now.After(c.window) {
		c.base, c.window, c.next = c.next, now.Add(clockWindow), zero
	}
}

// ran returns how long the guest had run at a reading, since the first one.
func (c *clock) ran(tsc uint64) time.Duration {
	d := int64(tsc - c.first)
	neg := d < 0
	if neg {
		d = -d
	}
	sec, rest := uint64(d)/c.perSecond, uint64(d)%c.perSecond
	t := time.Duration(sec)*time.Second + time.Duration(float64(rest)/float64(c.perSecond)*1e9)
	if neg {
		return -t
	}
	return t
}

// at returns the host time of a reading.
func (c *clock) at(tsc uint64) time.Time { return c.base.Add(c.ran(tsc)) }
