package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/qemu/internal/rsp"
)

var _ vitrine.Controller = (*machine)(nil)

// handshakeTime bounds the handshake: a stub that has another client lets us
// connect and never answers.
const handshakeTime = 3 * time.Second

// OpenControl opens the gdbstub and connects to it, which stops the guest.
// It returns ErrBusy when a debugger is connected to the stub, ErrPaused when
// the guest is paused. A stub that QEMU was started with (-s, -gdb) and that
// nobody uses is used, and left open at the end.
func (m *machine) OpenControl(ctx context.Context) (vitrine.Control, error) {
	c, err := m.openControl(ctx)
	if err != nil {
		return nil, fmt.Errorf("take control of the guest: %w", err)
	}
	return c, nil
}

func (m *machine) openControl(ctx context.Context) (*control, error) {
	if !m.controlled.CompareAndSwap(false, true) {
		return nil, fmt.Errorf("%w: this process controls it already", vitrine.ErrBusy)
	}
	s, err := m.freeStub(ctx)
	if err != nil {
		m.controlled.Store(false)
		return nil, err
	}
	c := &control{m: m, stub: s, selected: -1, regs: make([]*snapshot, len(m.cpus)), timer: timer{request: m.findTimer(ctx)}}
	m.life.mute(true)
	if err := c.open(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// freeStub returns a stub that we may connect to, with the guest running.
func (m *machine) freeStub(ctx context.Context) (*stub, error) {
	s, err := m.findStub(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.available(s); err != nil {
		return nil, err
	}
	if s != nil && s.ours {
		// A run that was killed left it; what else it left goes first.
		if _, err := m.repair(ctx, s); err != nil {
			return nil, err
		}
		s = nil
	}
	state, err := m.runState(ctx)
	if err != nil {
		return nil, err
	}
	if state != "running" {
		return nil, fmt.Errorf("%w (QEMU says %q)", vitrine.ErrPaused, state)
	}
	if s != nil {
		return s, nil
	}
	return m.openStub(ctx)
}

// open connects and makes the stub ready for use. From the connection on the
// guest is stopped; after an error it is for Close to let it run.
func (c *control) open(ctx context.Context) error {
	c.stub.mark.held(true)
	c.stands(true)
	conn, err := c.m.connect(ctx, c.stub)
	if err != nil {
		return err
	}
	if c.m.wrap != nil {
		conn = c.m.wrap(conn)
	}
	c.conn = rsp.NewConn(conn)
	c.m.ctl.Store(c)
	stop := context.AfterFunc(ctx, func() { c.conn.SetReadDeadline(time.Unix(1, 0)); conn.Close() })
	defer stop()
	if err := c.handshake(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return c.fail(err)
	}
	if !stop() {
		return c.fail(ctx.Err())
	}
	return nil
}

// handshake agrees on the protocol and learns the register layout. The first
// answer tells whether anybody is there.
func (c *control) handshake() error {
	until := time.Now().Add(handshakeTime)
	features, err := c.greet(until)
	if err != nil {
		return err
	}
	c.reached = true
	if err := c.ask("QStartNoAckMode", func(p string) error { c.conn.NoAck = p == "OK"; return nil }); err != nil {
		return err
	}
	c.detach = "D"
	if strings.Contains(features, "multiprocess+") {
		c.process, c.detach = 1, "D;1"
	}
	if err := c.describe(); err != nil {
		return err
	}
	// Asking why the guest stopped also takes all breakpoints out that an
	// earlier client left, and tells the number of the stub's process.
	if err := c.ask("?", func(p string) error {
		s, err := rsp.ParseStop([]byte(p))
		if err == nil && s.Thread.Process != 0 {
			c.process, c.detach = s.Thread.Process, fmt.Sprintf("D;%x", s.Thread.Process)
		}
		return err
	}); err != nil {
		return err
	}
	return c.stepFlags()
}

// greet asks for the stub's features. On connecting, the stub may tell that the
// guest stopped before it answers anything: that is passed over.
func (c *control) greet(until time.Time) (string, error) {
	c.conn.Queue("qSupported:multiprocess+;swbreak+;hwbreak+")
	if err := c.flush(); err != nil {
		return "", err
	}
	for {
		p, err := c.read(until)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(until) {
				return "", c.stub.busy()
			}
			return "", err
		}
		if _, err := rsp.ParseStop(p); err != nil {
			return string(p), nil
		}
	}
}

// ask sends a request and hands the answer to f.
func (c *control) ask(request string, f func(answer string) error) error {
	c.conn.Queue(request)
	if err := c.flush(); err != nil {
		return err
	}
	p, err := c.read(time.Now().Add(replyTime))
	if err != nil {
		return err
	}
	if err := f(string(p)); err != nil {
		return fmt.Errorf("%s: %w", request, err)
	}
	return nil
}

// describe fetches the target description. Besides telling the layout that is
// what makes the stub answer p and P at all.
func (c *control) describe() error {
	regs, err := rsp.ParseTarget(c.fetch)
	if err != nil {
		return err
	}
	c.layout, err = newStubLayout(regs)
	return err
}

// fetch reads a file of the target description, which comes in pages: m and
// more to come, l and the last.
func (c *control) fetch(name string) ([]byte, error) {
	const page = 0x7ff
	var out []byte
	for len(out) < 1<<20 {
		var last bool
		err := c.ask(fmt.Sprintf("qXfer:features:read:%s:%x,%x", name, len(out), page), func(p string) error {
			if p == "" || p[0] != 'm' && p[0] != 'l' || p == "m" {
				return &rsp.StubError{Request: "qXfer", Reply: p[:min(len(p), 24)]}
			}
			last = p[0] == 'l'
			out = append(out, p[1:]...)
			return nil
		})
		if err != nil || last {
			return out, err
		}
	}
	return nil, fmt.Errorf("target description: %s does not end", name)
}

// stepFlags makes single steps hold off all that the stub can hold off, or a
// step would land in an interrupt handler. The stub tells what it can as
// "ENABLE=1,NOIRQ=2,NOTIMER=4"; KVM has NOIRQ from Linux 5.15 on.
func (c *control) stepFlags() error {
	flags := 0
	if err := c.ask("qqemu.sstepbits", func(p string) error {
		for f := range strings.SplitSeq(p, ",") {
			var bit int
			if _, v, ok := strings.Cut(f, "="); ok {
				if _, err := fmt.Sscanf(v, "%x", &bit); err == nil {
					flags |= bit
				}
			}
		}
		return nil
	}); err != nil || flags == 0 {
		return err
	}
	return c.ask(fmt.Sprintf("Qqemu.sstep=%x", flags), func(string) error { return nil })
}
