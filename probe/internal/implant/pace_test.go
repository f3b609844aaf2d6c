package implant

import (
	"testing"
	"time"
)

// waits plays a wait of d for a record, and returns how long it took until that
// was seen, and how much of it was spent looking.
func waits(p *pace, now *time.Time, d time.Duration) (took, looked time.Duration) {
	start := *now
	for ready := start.Add(d); now.Before(ready); {
		if rest := p.rest(*now); rest > 0 {
			*now = now.Add(rest)
			continue
		}
		const look = time.Microsecond
		*now = now.Add(look)
		looked += look
	}
	p.came(*now)
	return now.Sub(start), looked
}

func TestPace(t *testing.T) {
	p, now := &pace{}, time.Unix(1000, 0)
	p.came(now)
	for range 1000 { // answers are fast: no sleep
		if took, looked := waits(p, &now, 15*time.Microsecond); took != 15*time.Microsecond || looked != took {
			t.Fatalf("waited %v for what came in 15us, looked for %v", took, looked)
		}
	}
	for _, d := range []time.Duration{100 * time.Microsecond, time.Millisecond, 10 * time.Millisecond} {
		took, looked := waits(p, &now, d)
		if took > d+d/napPart+napFirst || looked > spinTime {
			t.Errorf("waited %v for what came in %v, looked for %v", took, d, looked)
		}
	}
	// The virtual processor cannot run while we look: looking is given up.
	var looked time.Duration
	const n = 2 * spinAgain
	for range n {
		_, l := waits(p, &now, spinTime+10*time.Microsecond)
		looked += l
	}
	if most := (maxMisses + 2) * spinTime; looked > most {
		t.Errorf("looked for %v in %d waits; want at most %v", looked, n, most)
	}
	// It comes back when that has changed.
	for range spinAgain + 1 {
		waits(p, &now, 15*time.Microsecond)
	}
	if took, _ := waits(p, &now, 15*time.Microsecond); took != 15*time.Microsecond {
		t.Errorf("waited %v for what came in 15us", took)
	}
	// An idle guest costs little.
	start, looks := now, 0
	for now.Sub(start) < time.Second {
		rest := p.rest(now)
		if rest == 0 {
			rest = time.Microsecond
		}
		now = now.Add(rest)
		looks++
	}
	if most := int(time.Second/idleMost) + int(spinTime/time.Microsecond) + 50; looks > most {
		t.Errorf("%d looks in an idle second; want at most %d", looks, most)
	}
}
