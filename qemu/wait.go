package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/qemu/internal/rsp"
)

// event takes a run state event of the monitor, from the monitor's goroutine.
func (c *control) event(e vitrine.LifeEvent) {
	switch e {
	case vitrine.LifeReset, vitrine.LifeShutdown, vitrine.LifeGone:
	default:
		return
	}
	c.mu.Lock()
	c.life = e
	c.mu.Unlock()
	c.conn.Wake()
}

// errPowerOff is returned when the guest was shut down.
var errPowerOff = fmt.Errorf("%w: it was powered off", vitrine.ErrGone)

// lifeError returns the error for an event that ends a Wait.
func (c *control) lifeError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.life {
	case vitrine.LifeReset:
		return vitrine.ErrReset
	case vitrine.LifeShutdown:
		return errPowerOff
	case vitrine.LifeGone:
		return vitrine.ErrGone
	}
	return nil
}

// Wait waits for the next stop. It returns ErrReset when the guest is reset,
// ErrGone when it ends, and ErrPaused when somebody else pauses it: Close then
// leaves it paused.
func (c *control) Wait(ctx context.Context) (vitrine.Stop, error) {
	s, err := c.wait(ctx)
	if err != nil && ctx.Err() == nil {
		return s, fmt.Errorf("wait for a stop: %w", err)
	}
	return s, err
}

func (c *control) wait(ctx context.Context) (vitrine.Stop, error) {
	if c.broken != nil {
		return vitrine.Stop{}, c.broken
	}
	c.mu.Lock()
	running := c.running
	c.mu.Unlock()
	if !running {
		if c.takeInterrupt() {
			return vitrine.Stop{Reason: vitrine.StopInterrupt}, nil
		}
		return vitrine.Stop{}, errors.New("the guest is not running")
	}
	if err := c.drain(); err != nil {
		return vitrine.Stop{}, c.fail(err)
	}
	p, err := c.readStop(ctx)
	if err != nil {
		return vitrine.Stop{}, err
	}
	return c.stopped(p)
}

// readStop reads a packet until ctx ends or the guest's life does.
func (c *control) readStop(ctx context.Context) ([]byte, error) {
	stop := context.AfterFunc(ctx, c.conn.Wake)
	defer stop()
	for {
		c.conn.SetReadDeadline(time.Time{})
		// Wake comes after its cause is set: looking now misses none.
		if err := c.lifeError(); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p, err := c.conn.Read()
		if err == nil {
			return p, nil
		}
		if !rsp.IsTimeout(err) {
			return nil, c.fail(fmt.Errorf("read from the gdbstub: %w", err))
		}
	}
}

// stopped takes a stop reply.
func (c *control) stopped(payload []byte) (vitrine.Stop, error) {
	s, err := rsp.ParseStop(payload)
	if err != nil {
		return vitrine.Stop{}, c.fail(err)
	}
	if s.Exited {
		return vitrine.Stop{}, c.fail(vitrine.ErrGone)
	}
	c.setRunning(false)
	c.askTimer()
	out := vitrine.Stop{CPU: c.cpu(s.Thread)}
	if s.Signal == rsp.SignalTrap {
		// The stub selects the processor that stopped.
		c.selected = out.CPU
		return out, nil
	}
	out.Reason = vitrine.StopInterrupt
	switch {
	case s.Signal == rsp.SignalInt && c.takeInterrupt():
		return out, nil
	case s.Signal == rsp.SignalQuit:
		c.foreign = true
		return out, c.fail(errPowerOff)
	}
	c.foreign = true
	return out, c.fail(vitrine.ErrPaused)
}
