package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/qemu/internal/rsp"
)

// leaveTime bounds each part of leaving the guest.
const leaveTime = 2 * time.Second

// Close takes out every breakpoint, lets the guest run, and closes the stub if
// it was we who opened it. A guest that somebody else has paused stays paused.
// It does not depend on the state of the connection: where that is broken a
// second one is made.
func (c *control) Close() error {
	if c.closed {
		return nil
	}
	c.closed = true
	ctx, cancel := context.WithTimeout(context.Background(), 4*leaveTime)
	defer cancel()
	defer c.m.controlled.Store(false)
	defer c.m.life.mute(false)
	defer c.m.ctl.CompareAndSwap(c, nil)
	defer c.stands(false) // where it did not go by leave
	if err := c.undo(ctx); err != nil {
		return fmt.Errorf("leave the guest: %w", err)
	}
	return nil
}

// undo is Close without the bookkeeping.
func (c *control) undo(ctx context.Context) error {
	err := c.leave()
	if c.conn != nil {
		c.conn.Close()
	}
	if err != nil && c.m.ends() {
		_ = c.stub.discard() // nobody is left to be let run
		return nil
	}
	if err != nil {
		err = c.m.clean(ctx, c.stub, !c.foreign)
	}
	err = errors.Join(err, c.removedAll(), c.m.closeStub(ctx, c.stub))
	if !c.foreign && (c.reached || c.stub.ours) {
		err = errors.Join(err, c.m.ensureRunning(ctx))
	}
	return err
}

// leave detaches over the present connection, from whatever state it is in.
func (c *control) leave() error {
	if !c.reached && (c.conn == nil || !c.stub.ours) {
		return nil // nothing was done to the guest
	}
	if c.broken != nil && !c.foreign {
		return c.broken
	}
	c.conn.SetWriteDeadline(time.Now().Add(leaveTime))
	if err := c.halt(); err != nil {
		return err
	}
	if c.foreign {
		// To detach would resume. To ask for the reason of the stop takes all
		// breakpoints out and does nothing else.
		return c.ask("?", func(string) error { return nil })
	}
	return c.ask(c.detach, func(p string) error {
		if p != "OK" {
			return &rsp.StubError{Request: c.detach, Reply: p}
		}
		c.stands(false)
		return nil
	})
}

// halt stops a running guest and reads all that is under way, up to the stop.
func (c *control) halt() error {
	c.mu.Lock()
	running := c.running
	c.mu.Unlock()
	if running {
		if err := c.conn.Interrupt(); err != nil {
			return err
		}
	}
	until := time.Now().Add(leaveTime)
	if err := c.conn.Flush(); err != nil {
		return err
	}
	for ; len(c.pending) > 0; c.pending = c.pending[1:] {
		if _, err := c.read(until); err != nil {
			return err
		}
	}
	if !running {
		return nil
	}
	p, err := c.read(until)
	if err != nil {
		return err
	}
	c.stands(true)
	s, err := rsp.ParseStop(p)
	if err != nil {
		return err
	}
	if s.Exited {
		return vitrine.ErrGone
	}
	return nil
}

// clean takes all breakpoints out over a new connection and lets the guest run
// if resume says so.
func (m *machine) clean(ctx context.Context, s *stub, resume bool) error {
	conn, err := m.connect(ctx, s)
	if err != nil {
		return err
	}
	c := &control{m: m, stub: s, conn: rsp.NewConn(conn), regs: make([]*snapshot, len(m.cpus))}
	defer c.conn.Close()
	c.conn.SetWriteDeadline(time.Now().Add(leaveTime))
	if err := c.handshake(); err != nil || !resume {
		return err
	}
	return c.ask(c.detach, func(string) error { return nil })
}

// ensureRunning lets the guest run if it is stopped in a way that we do.
func (m *machine) ensureRunning(ctx context.Context) error {
	state, err := m.runState(ctx)
	if err == nil && (state == "paused" || state == "debug") {
		err = m.execute(ctx, "cont", nil, nil)
	}
	return err
}

// ends reports whether QEMU has ended. The gdbstub's connection may break a
// moment before the monitor's does.
func (m *machine) ends() bool {
	select {
	case <-m.mon.done():
		return true
	case <-time.After(endTime):
		return false
	}
}

// endTime is how much later than the gdbstub's end the monitor's may be seen.
const endTime = 200 * time.Millisecond
