package implant

import (
	"errors"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// counter is a handler that counts.
type counter struct{ entries, returns int }

func (c *counter) Entered(h *engine.Hit) (any, bool, error) {
	c.entries++
	return c, h.Thread.TID >= 0, nil
}

func (c *counter) Returned(h *engine.Hit, value any) error {
	if value == c && h.Return {
		c.returns++
	}
	return nil
}

// fakeRun returns a run of an implant whose guest side is made up.
func fakeRun(h engine.Handler) (*run, *fakeGuest) {
	ring, g := testRing(true)
	r := &run{h: h, ring: ring, p: &planted{m: g.m}, now: time.Unix(1000, 0)}
	r.clock.perSecond = 1e9
	for range 3 {
		r.points = append(r.points, engine.Wanted{Point: &engine.Point{Name: "f"}, Returns: true, User: engine.UserRegs64})
	}
	return r, g
}

// postCall posts an entry and its slim return.
func (g *fakeGuest) postCall() bool {
	i, off, ok := g.claim(unitsFor(0))
	if !ok {
		return false
	}
	g.fill(i, off, 0, kindEnter, 0, nil)
	j, off, ok := g.claim(1)
	if ok {
		g.fill(j, off, 0, kindReturn, slotSlim, nil)
		g.put(off+slotCall, i)
	}
	return ok
}

func TestDeliverPairs(t *testing.T) {
	var c counter
	r, g := fakeRun(&c)
	for range 1000 {
		g.postCall()
		if _, err := r.ring.read(batch, r.record); err != nil {
			t.Fatal(err)
		}
	}
	if c.entries != 1000 || c.returns != 1000 || r.calls.open != 0 || r.calls.lost != 0 {
		t.Errorf("%d entries, %d returns, %d calls open, %d lost", c.entries, c.returns, r.calls.open, r.calls.lost)
	}
}

// failing decides, as one handler of a hit may, and then fails, as the next may.
type failing struct{}

var errFailing = errors.New("a handler failed")

func (failing) Entered(h *engine.Hit) (any, bool, error) {
	h.Skip, h.SkipValue = true, 42
	return nil, false, errFailing
}

func (failing) Returned(h *engine.Hit, _ any) error {
	h.Regs.RAX = 43
	return errFailing
}

// What has been decided before a handler failed holds: a thread of the guest
// waits for it.
func TestAnswersHoldWhenAHandlerFails(t *testing.T) {
	r, g := fakeRun(failing{})
	r.p.sites = make([]site, 3)
	for n, want := range []uint64{42, 43} {
		kind := byte(kindEnter + n)
		i, off, _ := g.claim(unitsFor(0))
		g.fill(i, off, 0, kind, slotSync, nil)
		if kind == kindReturn {
			r.calls.enter(r.calls.of(0), call{index: i})
		}
		if _, err := r.ring.read(batch, r.record); !errors.Is(err, errFailing) {
			t.Fatalf("read = %v", err)
		}
		answer, _ := g.m.load(off + slotAnswer)
		value, _ := g.m.load(off + slotValue)
		if answer != answerSkip || value != want {
			t.Errorf("answer %d with %d; want %d with %d", answer, value, answerSkip, want)
		}
	}
}

// BenchmarkDeliver is what a call's two records cost here, reading included,
// from the ring to the handler.
func BenchmarkDeliver(b *testing.B) {
	var c counter
	r, g := fakeRun(&c)
	var spent time.Duration // stopping the benchmark's timer takes longer than a hundred calls
	for b.Loop() {
		for n := 0; n < 100 && g.postCall(); n++ {
		}
		begin := time.Now()
		if _, err := r.ring.read(batch, r.record); err != nil {
			b.Fatal(err)
		}
		spent += time.Since(begin)
	}
	b.ReportMetric(float64(spent.Nanoseconds())/float64(c.entries+c.returns), "ns/record")
}
