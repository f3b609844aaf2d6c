package qemu

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/bits"
	"strings"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/qemu/internal/hmp"
)

// timer tells how long the guest has run, by the ACPI power management timer of
// its machine: a counter of 24 bits that all PCs with ACPI have, which goes by
// the clock that QEMU's devices share, and stands still whenever the guest does.
// The host's clock tells less: from a stop until we learn of it, and from our
// request until the guest runs, time passes that the guest does not have, some
// 0.1 ms on a quiet host and many on a busy one.
//
// The stub's monitor command "i" reads it, on the way of the request for the
// registers. The guest notices nothing.
type timer struct {
	request string // "" where the machine has none, or until it is asked for
	on      bool   // it is read at each stop

	last  uint32        // the last reading
	ticks uint64        // from the first reading to the last
	began time.Time     // when the guest began to run, zero while it stands
	host  time.Duration // how long it has run since the last reading, as the host sees it
}

// The timer's frequency and width, of the ACPI specification. QEMU's counts 24
// bits even where its table says 32.
const (
	timerHz   = 3579545
	timerBits = 24
)

var _ vitrine.Timer = (*control)(nil)

// findTimer returns the stub's request that reads the machine's timer, "" where
// it has none: a microvm, or a PC without ACPI, or one whose firmware has not
// set it up yet.
func (m *machine) findTimer(ctx context.Context) string {
	if m.timer == "" {
		text, err := m.hmp(ctx, -1, "info mtree -f")
		if r, ok := hmp.FindRange(text, "acpi-tmr"); ok && err == nil {
			m.timer = "qRcmd," + hex.EncodeToString(fmt.Appendf(nil, "i /xw %#x", r.Start))
		}
	}
	return m.timer
}

// Ran implements vitrine.Timer.
func (c *control) Ran() (time.Duration, bool) {
	if t := &c.timer; !t.on {
		if t.request == "" {
			return 0, false
		}
		t.on = true
		c.askTimer()
		if c.sync() != nil || !t.on {
			t.on, t.request = false, ""
			return 0, false
		}
		t.ticks = 0
	}
	if len(c.pending) > 0 {
		_ = c.sync() // who controls the guest learns of it with the next request
	}
	return c.timer.ran(), c.timer.on
}

// askTimer queues the request for the present stop's reading.
func (c *control) askTimer() {
	if c.timer.on {
		c.conn.Queue(c.timer.request)
		c.pending = append(c.pending, expectation{what: c.timer.request, timer: &c.timer})
	}
}

// stands notes that the guest runs, or that it has stopped.
func (t *timer) stands(on bool) {
	switch {
	case on && !t.began.IsZero():
		t.host += time.Since(t.began)
		t.began = time.Time{}
	case !on && t.began.IsZero():
		t.began = time.Now()
	}
}

// take takes a packet of the answer: O and the command's output in hexadecimal,
// any number of times, and then OK. It reports whether there is more to come.
func (t *timer) take(p []byte) (more bool) {
	switch {
	case string(p) == "OK":
		return false
	case len(p) > 1 && p[0] == 'O':
		if text, err := hex.DecodeString(string(p[1:])); err == nil {
			t.read(string(text))
		}
		return true
	}
	t.on = false // QEMU without its human monitor
	return false
}

// read takes a reading as the monitor prints it: "portl[0x0608] = 0x00123456".
// What cannot be understood is passed over.
func (t *timer) read(text string) {
	_, value, ok := strings.Cut(text, "] = 0x")
	var now uint32
	if _, err := fmt.Sscanf(value, "%x", &now); !ok || err != nil {
		return
	}
	const turn = 1 << timerBits
	n := uint64(now-t.last) % turn
	// How often it went round meanwhile is for the host's clock to say, which has
	// seen somewhat too much.
	if seen := toTicks(t.host); seen > n {
		n += (seen - n + turn/4) / turn * turn
	}
	t.ticks += n
	t.last, t.host = now, 0
}

func toTicks(d time.Duration) uint64 {
	hi, lo := bits.Mul64(uint64(max(d, 0)), timerHz)
	n, _ := bits.Div64(hi, lo, uint64(time.Second))
	return n
}

// ran returns how long the guest has run.
func (t *timer) ran() time.Duration {
	hi, lo := bits.Mul64(t.ticks, uint64(time.Second))
	n, _ := bits.Div64(hi%timerHz, lo, timerHz)
	return time.Duration(n) + t.host //nolint:gosec // 290 years
}
