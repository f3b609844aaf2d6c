package cli

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progress tells on standard error what a command is doing, once it has taken
// more than a second: a line that moves on a terminal, else a line per step.
type progress struct {
	w    io.Writer
	tty  bool
	wait time.Duration // how long it stays silent

	mu      sync.Mutex // protects the fields below
	name    string     // of the present step, "" when nothing is under way
	since   time.Time  // when the first step began
	printed string     // step that was printed last
	dirty   bool       // the terminal's line has to be erased
	ticker  *time.Timer
	frame   int
}

const (
	progressWait = time.Second
	progressTick = 200 * time.Millisecond
)

func newProgress(w io.Writer, tty bool) *progress {
	return &progress{w: w, tty: tty, wait: progressWait}
}

// step says what goes on from now on. It may be called from any goroutine.
func (p *progress) step(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.name == "" {
		p.since = time.Now()
		p.ticker = time.AfterFunc(p.wait, p.tick)
	}
	p.name = quoteLines(name)
}

// tick shows the present step and comes again.
func (p *progress) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.name == "" {
		return
	}
	p.show()
	p.ticker.Reset(progressTick)
}

// show writes the present step; p.mu is held.
func (p *progress) show() {
	seconds := int(time.Since(p.since).Seconds())
	if p.tty {
		p.frame++
		fmt.Fprintf(p.w, "\r\x1b[K%c %s (%d s)", `|/-\`[p.frame%4], p.name, seconds)
		p.dirty = true
		return
	}
	if p.printed != p.name {
		fmt.Fprintf(p.w, "vitrine: %s\n", p.name)
		p.printed = p.name
	}
}

// done says that nothing is under way any more, and cleans the line. It may be
// called at any time.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.name == "" {
		return
	}
	p.ticker.Stop()
	p.name, p.printed = "", ""
	if p.dirty {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.dirty = false
	}
}
