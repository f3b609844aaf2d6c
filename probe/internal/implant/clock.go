package implant

import (
	"math/bits"
	"time"
)

// clockFunc is what the guest side reads the wall clock with: lock-free, and
// right with any clock source. It has been there since 4.1.
const clockFunc = "ktime_get_real_fast_ns"

// How often the guest side does, in times a second: the first time, and at
// least while there are records.
const (
	clockFirst = 1000
	clockMost  = 10
)

// clock turns TSC readings of the guest into the guest's wall-clock time, and
// into time that the guest has run. The guest side now and then notes the wall
// clock beside the TSC; what lies between is computed.
//
// Where the guest's kernel has no clock to call, it is host time: readings tell
// of themselves as they arrive, none arrives before it was taken, and so the
// least delay seen is the best guess of none.
type clock struct {
	perSecond uint64 // ticks, as the kernel has measured
	first     uint64
	began     bool
	pairs     []clockPair // in order, at most maxPairs
	stale     uint64      // TSC from which a newer pair is looked for
	last      []time.Time // by processor

	factor       uint64    // of perSecond, 0 until it is needed
	newest       time.Time // of the last pair
	newestFactor uint64    // around it

	base   time.Time // host time of first, by the best guess
	window time.Time // when the guess is made anew
	next   time.Time // the best guess within the window so far
}

// clockPair is what the clocks read at one moment.
type clockPair struct {
	tsc  uint64
	wall int64 // ns since 1970
}

const (
	clockWindow = 2 * time.Second // how long a guess lives: the guest's clock may drift or stop
	maxPairs    = 16
	// minSpan is the least time between pairs to measure the TSC's rate by, and
	// maxOrder the most that times of one processor are moved to stay in order.
	minSpan  = 50 * time.Millisecond
	maxOrder = 2 * time.Millisecond
	maxCPUs  = 1 << 12
)

// arrived tells of a record with the reading tsc that was taken just now or a
// little earlier.
func (c *clock) arrived(tsc uint64, now time.Time) {
	if !c.began {
		c.began, c.first, c.base, c.window, c.next = true, tsc, now, now.Add(clockWindow), now
	} else if len(c.pairs) == 0 {
		c.guess(tsc, now)
	}
}

// due reports whether there is a newer pair for a reading.
func (c *clock) due(tsc uint64) bool { return len(c.pairs) == 0 || int64(tsc-c.stale) >= 0 }

// look takes over the newest pair from where the guest side leaves it, if it is
// there whole.
func (c *clock) look(m *memory) error {
	seq, err := m.load(hdrClockSeq)
	if err != nil || seq&1 != 0 || seq == 0 {
		return err
	}
	var v [3]uint64
	for i, off := range []uint64{hdrClockTSC, hdrClockWall, hdrClockDue} {
		if v[i], err = m.load(off); err != nil {
			return err
		}
	}
	if again, err := m.load(hdrClockSeq); err != nil || again != seq {
		return err
	}
	c.paired(clockPair{v[0], int64(v[1])})
	c.stale = v[2]
	return nil
}

// paired takes a pair.
func (c *clock) paired(p clockPair) {
	if p.wall <= 0 {
		return
	}
	n := len(c.pairs)
	if n > 0 && int64(p.tsc-c.pairs[n-1].tsc) <= 0 {
		return
	}
	if n == maxPairs {
		c.pairs = c.pairs[:copy(c.pairs, c.pairs[1:])]
	}
	c.pairs = append(c.pairs, p)
	c.newest, c.newestFactor = p.time(), factorOf(c.rate(len(c.pairs)-1))
}

// guess makes the best of a reading's arrival.
func (c *clock) guess(tsc uint64, now time.Time) {
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
	if c.factor == 0 {
		c.factor = factorOf(c.perSecond)
	}
	return ticks(int64(tsc-c.first), c.factor)
}

// clockShift makes the numerator of a factor fit in 64 bits.
const clockShift = 34

// factorOf returns how many nanoseconds a tick takes, times 1<<clockShift.
func factorOf(perSecond uint64) uint64 { return 1e9 << clockShift / perSecond }

// ticks returns how long n ticks take: by a multiplication, since it is done
// for each record.
func ticks(n int64, factor uint64) time.Duration {
	if n < 0 {
		return -ticks(-n, factor)
	}
	hi, lo := bits.Mul64(uint64(n), factor)
	return time.Duration(hi<<(64-clockShift) | lo>>clockShift) //nolint:gosec // 290 years
}

// at returns the time of a reading on a processor. Times of one processor are
// in order, unless the guest's clock has been set back.
func (c *clock) at(tsc uint64, cpu int) time.Time {
	t := c.wall(tsc)
	if cpu >= maxCPUs {
		return t
	}
	for cpu >= len(c.last) {
		c.last = append(c.last, time.Time{})
	}
	if d := c.last[cpu].Sub(t); d > 0 && d < maxOrder {
		return c.last[cpu]
	}
	c.last[cpu] = t
	return t
}

// wall returns the time of a reading: by the last pair before it, and the one
// after that if there is one.
func (c *clock) wall(tsc uint64) time.Time {
	n := len(c.pairs)
	if n == 0 {
		return c.base.Add(c.ran(tsc))
	}
	if since := int64(tsc - c.pairs[n-1].tsc); since >= 0 || n == 1 {
		return c.newest.Add(ticks(since, c.newestFactor))
	}
	i := n - 2
	for i > 0 && int64(tsc-c.pairs[i].tsc) < 0 {
		i--
	}
	return c.pairs[i].time().Add(ticks(int64(tsc-c.pairs[i].tsc), factorOf(c.rate(i))))
}

func (p clockPair) time() time.Time { return time.Unix(0, p.wall).UTC() }

// rate returns the ticks of a second around pair i, as the guest's wall clock
// goes; the kernel's own figure unless pairs that lie well apart tell better.
func (c *clock) rate(i int) uint64 {
	a, b := c.pairs[max(0, i-1)], c.pairs[min(i+1, len(c.pairs)-1)]
	span := b.wall - a.wall
	n := float64(b.tsc - a.tsc)
	if span < int64(minSpan) {
		return c.perSecond
	}
	rate := n / float64(span) * 1e9
	if own := float64(c.perSecond); rate < own*0.9 || rate > own*1.1 {
		return c.perSecond // the clock was set
	}
	return uint64(rate)
}
