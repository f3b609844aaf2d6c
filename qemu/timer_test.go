package qemu

import (
	"encoding/hex"
	"fmt"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
)

func reading(v uint32) string { return fmt.Sprintf("portl[0x0608] = 0x%08x\r\n", v) }

func TestTimerReadings(t *testing.T) {
	const hz, turn = timerHz, 1 << timerBits
	for _, c := range []struct {
		name  string
		first uint32
		host  time.Duration // what the host saw of the time between
		then  uint32
		want  time.Duration
	}{
		{"a second", 1000, time.Second + 30*time.Millisecond, 1000 + hz, time.Second},
		{"over the end of the counter", turn - hz/2, 3 * time.Second, hz / 2, time.Second},
		{"once round and a bit", 5, 5690 * time.Millisecond, 5 + hz, time.Second + turn*time.Second/hz},
		{"nearly once round", 5, 4690 * time.Millisecond, 4, (turn - 1) * time.Second / hz},
		{"seen a little short", 5, 4600 * time.Millisecond, 6, turn*time.Second/hz + 279*time.Nanosecond},
		{"an hour", 0, time.Hour + time.Second, 3600 * hz % turn, time.Hour},
		{"not at all", 77, 100 * time.Millisecond, 77, 0},
	} {
		tm := timer{on: true}
		tm.read(reading(c.first))
		tm.ticks, tm.host = 0, c.host
		tm.read(reading(c.then))
		if got := tm.ran(); (got - c.want).Abs() > time.Microsecond {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	tm := timer{on: true, ticks: hz, host: time.Millisecond}
	for _, text := range []string{"", "unknown command: 'i'\r\n", "portl[0x0608] = 0x", "portl[0x0608] = 0xzz"} {
		if tm.read(text); tm.ran() != time.Second+time.Millisecond {
			t.Errorf("%q was read as %v", text, tm.ran())
		}
	}
}

// The timer is read together with the registers, and a stub that has no monitor
// is not asked again.
func TestRanByTheStub(t *testing.T) {
	const request = "qRcmd,69"
	answer := "O" + hex.EncodeToString([]byte(reading(9))) + "|OK"
	s := newFakeStub(map[string]string{request: answer, "vCont;c": "T05thread:02;"})
	c, _, err := connectFake(t, s)
	do(t, err)
	if _, ok := c.Ran(); ok {
		t.Error("a machine without a timer has run")
	}
	c.timer.request = request
	if ran, ok := c.Ran(); !ok || ran != 0 {
		t.Errorf("at first: %v, %v", ran, ok)
	}
	s.mu.Lock()
	s.log = nil
	s.answers[request] = "O" + hex.EncodeToString([]byte(reading(9+timerHz/1000))) + "|OK"
	s.mu.Unlock()
	do(t, c.Resume())
	_, err = c.Wait(timeout(t, 5*time.Second))
	do(t, err)
	r, err := c.Registers(1)
	do(t, err)
	if ran, ok := c.Ran(); !ok || ran.Round(10*time.Microsecond) != time.Millisecond || r.RIP != 2 {
		t.Errorf("ran for %v, %v; %+v", ran, ok, r)
	}
	if got, want := s.requests(), "vCont;c "+request+" g"; got != want {
		t.Errorf("requests: %s, want %s", got, want)
	}
	c, _, err = connectFake(t, newFakeStub(nil)) // it does not know qRcmd
	do(t, err)
	c.timer.request = request
	for range 2 {
		if _, ok := c.Ran(); ok || c.timer.request != "" {
			t.Error("a stub without a monitor tells how long the guest ran")
		}
	}
}

// TestRanOfAMachine lets a real one run for longer than its timer takes to go
// round, and stand still.
func TestRanOfAMachine(t *testing.T) {
	_, g := startCounter(t)
	ctl, err := g.OpenControl(timeout(t, time.Minute))
	do(t, err)
	defer ctl.Close()
	tm, ok := ctl.(vitrine.Timer)
	if !ok {
		t.Fatal("the control has no timer")
	}
	if ran, ok := tm.Ran(); !ok || ran != 0 {
		t.Fatalf("at first: %v, %v", ran, ok)
	}
	var before time.Duration
	for _, d := range []time.Duration{6 * time.Second, 50 * time.Millisecond} {
		began := time.Now()
		do(t, ctl.Resume())
		time.Sleep(d)
		slept := time.Since(began)
		do(t, ctl.Interrupt())
		_, err := ctl.Wait(timeout(t, time.Minute))
		do(t, err)
		took := time.Since(began)
		time.Sleep(100 * time.Millisecond) // it stands still
		ran, ok := tm.Ran()
		if ran -= before; !ok || ran > took || ran < slept-2*time.Second || ran <= 0 {
			t.Errorf("it ran for %v, %v, while we waited for %v to %v", ran, ok, slept, took)
		}
		t.Logf("ran %v of %v", ran, took)
		before += ran
	}
}
