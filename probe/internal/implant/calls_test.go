package implant

import (
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
)

func TestCallsNest(t *testing.T) {
	var c calls
	c.enter(c.of(1), call{index: 10, sp: 0x900, value: "outer"})
	c.prune(c.of(1), 0x800)
	c.enter(c.of(1), call{index: 11, sp: 0x800, value: "inner"})
	c.enter(c.of(2), call{index: 12, sp: 0x900, value: "other"})
	if k, ok := c.leave(c.of(1), 11); !ok || k.value != "inner" {
		t.Errorf("leave = %v, %v; want inner", k, ok)
	}
	if k, ok := c.leave(c.of(2), 12); !ok || k.value != "other" {
		t.Errorf("leave = %v, %v; want other", k, ok)
	}
	if k, ok := c.leave(c.of(1), 10); !ok || k.value != "outer" || c.open != 0 || c.lost != 0 {
		t.Errorf("leave = %v, %v, %d open, %d lost; want outer", k, ok, c.open, c.lost)
	}
	if _, ok := c.leave(c.of(1), 10); ok {
		t.Error("leave found a call twice")
	}
}

func TestCallsGivenUp(t *testing.T) {
	var c calls
	c.enter(c.of(1), call{index: 1, sp: 0x900}) // never returns
	c.prune(c.of(1), 0x900)
	c.enter(c.of(1), call{index: 2, sp: 0x900})
	c.enter(c.of(1), call{index: 3, sp: 0x800}) // its return is lost
	if _, ok := c.leave(c.of(1), 2); !ok || c.lost != 2 || c.open != 0 {
		t.Errorf("leave found %v, %d lost, %d open; want 2 lost", ok, c.lost, c.open)
	}
}

func TestCallsAreBounded(t *testing.T) {
	var c calls
	for i := range uint64(maxOpen + 10) {
		c.enter(c.of(arch.GVA(i)), call{index: i})
	}
	if c.open > maxOpen || uint64(c.open)+c.lost != maxOpen+10 {
		t.Errorf("%d open, %d lost of %d", c.open, c.lost, maxOpen+10)
	}
}

func TestClock(t *testing.T) {
	c := clock{perSecond: 1e9}
	start := time.Unix(1000, 0)
	c.arrived(5e9, start.Add(3*time.Millisecond)) // seen late
	c.arrived(6e9, start.Add(time.Second))        // seen at once
	if got := c.at(5e9, 0); !got.Equal(start) {
		t.Errorf("at = %v; want %v", got, start)
	}
	if got := c.ran(6.5e9); got != 1500*time.Millisecond {
		t.Errorf("ran = %v; want 1.5s", got)
	}
	if got := c.ran(4e9); got != -time.Second {
		t.Errorf("ran before the first = %v; want -1s", got)
	}
	// The guest stood still for 5 s: its TSC did too.
	for i := range uint64(400) {
		c.arrived(7e9+i*1e7, start.Add(7*time.Second+time.Duration(i)*10*time.Millisecond))
	}
	if got, want := c.at(11e9, 0), start.Add(11*time.Second); got.Sub(want).Abs() > 10*time.Millisecond {
		t.Errorf("at after a pause = %v; want %v", got, want)
	}
}

func TestClockPairs(t *testing.T) {
	c := clock{perSecond: 1e9} // in truth it is 1 % more
	host := time.Unix(5000, 0)
	start := time.Unix(1000, 0).UTC()
	c.arrived(1e9, host)
	c.paired(clockPair{1e9, start.UnixNano()})
	if got := c.at(1e9+1000, 0); !got.Equal(start.Add(1000)) {
		t.Errorf("behind the first pair: %v; want %v", got, start.Add(1000))
	}
	for i := range uint64(40) {
		c.paired(clockPair{1e9 + (i+1)*101e6, start.Add(time.Duration(i+1) * 100 * time.Millisecond).UnixNano()})
		c.paired(clockPair{1e9, 5})     // an older one
		c.paired(clockPair{1 << 50, 0}) // no clock
	}
	if len(c.pairs) != maxPairs {
		t.Errorf("%d pairs kept", len(c.pairs))
	}
	for _, ms := range []int{3900, 3950, 3999, 4000, 4090} {
		got, want := c.wall(1e9+uint64(ms)*1010000), start.Add(time.Duration(ms)*time.Millisecond)
		if d := got.Sub(want).Abs(); d > 10*time.Microsecond {
			t.Errorf("after %d ms: %v off", ms, d)
		}
	}
	last := c.at(1e9+4e9, 1)
	c.paired(clockPair{1e9 + 4.2e9, last.UnixNano() + 1}) // it had gone too fast
	if got := c.at(1e9+4.2e9, 1); got.Before(last) {
		t.Errorf("%v is before %v", got, last)
	}
	c.paired(clockPair{1e9 + 5e9, start.Add(-100 * time.Second).UnixNano()}) // set back
	if got := c.at(1e9+5.1e9, 1); got.After(start) {
		t.Errorf("after the clock was set back it is %v", got)
	}
	if got := c.at(1e9+5.1e9, 1<<15); got.After(start) {
		t.Errorf("on a processor that cannot be it is %v", got)
	}
}

func TestFilterTables(t *testing.T) {
	_, g := testRing(true)
	f := filter{tgids: []uint32{1, 63, 64, bitmapBits - 1}, comms: []string{"sh"}, uids: []uint32{0, 1000}}
	if err := f.check(); err != nil {
		t.Fatal(err)
	}
	h := make([]byte, hdrEnd)
	if mode := f.fill(h); mode != modeTGID|modeComm|modeUID {
		t.Errorf("mode = %#x", mode)
	}
	if string(h[hdrComms:hdrComms+3]) != "sh\x00" || le32(h[hdrUIDs+4:]) != 1000 || le32(h[hdrNUIDs:]) != 2 {
		t.Errorf("header = % x", h[hdrMode:])
	}
	if err := f.fillBitmap(g.m, g.l.bitmap); err != nil {
		t.Fatal(err)
	}
	w0, _ := g.m.load(g.l.bitmap)
	w1, _ := g.m.load(g.l.bitmap + 8)
	last, _ := g.m.load(g.l.bitmap + bitmapBytes - 8)
	if w0 != 1<<1|1<<63 || w1 != 1 || last != 1<<63 {
		t.Errorf("bitmap = %#x %#x ... %#x", w0, w1, last)
	}
	for _, bad := range []filter{{tgids: []uint32{bitmapBits}}, {comms: make([]string, 9)}, {uids: make([]uint32, 13)}} {
		if err := bad.check(); err == nil {
			t.Errorf("check(%+v) = nil; want an error", bad)
		}
	}
}
