package trace

import (
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/probe"
)

// A call takes as long as the guest ran, whatever its clock was set to
// meanwhile, and calls of one thread follow each other by the times shown.
func TestDurations(t *testing.T) {
	var got []event.Call
	c := newCaller(nil, nil, &CallsOptions{}, func(r *event.Call) error { got = append(got, *r); return nil })
	c.decoders = benchCaller(nil).decoders
	fn := c.traced(entry{symbol: "__x64_sys_getppid", name: "getppid", abi: arch.AMD64})
	zero := time.Unix(1000, 0)
	at := func(wall, ran int) {
		c.moment = moment{time: zero.Add(time.Duration(wall) * time.Microsecond), ran: time.Duration(ran) * time.Microsecond, thread: &probe.Thread{TID: 7}, memory: user{}}
	}
	ran := 0
	for _, s := range []struct{ wall, took, wallThen, want int }{
		{0, 50, 50, 50},
		{60, 100, 90, 30},                     // the clock was ahead, and waits
		{100, 100, 100, 100},                  // the guest's clock did not tell
		{110, 10, 1_000_000, 10},              // a tick showed that it was behind, or it was set
		{1_000_000, 400_000, 1_000, 400_000},  // it was set back
		{1_010, 400_000, 1_010 + 99, 400_000}, // likewise, by about as much as it went on
	} {
		at(s.wall, ran)
		f := c.take(fn)
		c.entered(f)
		ran += s.took
		at(s.wallThen, ran)
		c.returned(f, 1)
		r := got[len(got)-1]
		if want := time.Duration(s.want) * time.Microsecond; r.Duration != want || r.Event != event.Joined {
			t.Errorf("from %d to %d in %d us: %+v; want %v", s.wall, s.wallThen, s.took, r, want)
		}
	}
	for i := range 2 {
		if end := got[i].Time.Add(got[i].Duration); end.After(got[i+1].Time) {
			t.Errorf("call %d ends at %v, and %d begins at %v", i, end, i+1, got[i+1].Time)
		}
	}
}
