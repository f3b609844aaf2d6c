package implant

import "time"

// pace says how to wait for the next record while threads of the guest wait for
// answers.
//
// The answer to one is soon followed by the next record, so at first the ring is
// looked at again and again. That finds nothing where the host has too few
// processors for us and the virtual one: they take turns then, of some
// milliseconds each, in which the other does nothing but look. So when it has
// found nothing several times, sleeping comes first; who wakes from a sleep gets
// the processor at once.
type pace struct {
	last   time.Time // when records came
	slept  bool      // since then
	misses int       // of looking again and again, one after the other
	count  int       // of times that records came
}

const (
	spinTime  = 60 * time.Microsecond
	maxMisses = 4
	// spinAgain is how often it is tried all the same, in records.
	spinAgain = 256
	// napFirst is the first sleep. Later ones are a part of the time since the
	// last record, so that waiting takes little longer for them.
	napFirst = 20 * time.Microsecond
	napPart  = 4
	// napMost is how long nobody is in a hurry to end the session.
	napMost = time.Millisecond
)

// came is told that there were records.
func (p *pace) came(now time.Time) {
	if !p.slept {
		p.misses = 0
	}
	p.last, p.slept = now, false
	p.count++
}

// rest returns how long to sleep before the next look, 0 for not at all.
func (p *pace) rest(now time.Time) time.Duration {
	gone := now.Sub(p.last)
	spins := p.misses < maxMisses || p.count%spinAgain == 0
	if spins && !p.slept && gone < spinTime {
		return 0
	}
	if spins && !p.slept {
		p.misses++
	}
	p.slept = true
	return min(max(gone/napPart, napFirst), idleMost)
}
