package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/vitrine-vmi/vitrine"
)

var _ vitrine.Repairer = (*machine)(nil)

// Repair takes out all breakpoints and closes the stub that a killed run left
// open. It lets the guest run when a breakpoint has stopped it, or when the
// killed run had stopped it itself, which a file beside its socket tells; a
// guest that was paused in any other way stays paused. A running guest stands
// still for some milliseconds meanwhile.
//
// It returns ErrBusy while a debugger is connected to the stub.
func (m *machine) Repair(ctx context.Context) ([]string, error) {
	if !m.controlled.CompareAndSwap(false, true) {
		return nil, fmt.Errorf("repair: %w: this process controls the guest", vitrine.ErrBusy)
	}
	defer m.controlled.Store(false)
	s, err := m.findStub(ctx)
	if err == nil {
		err = m.available(s)
	}
	var found []string
	if err == nil {
		found, err = m.repair(ctx, s)
	}
	if err != nil {
		return found, fmt.Errorf("repair: %w", err)
	}
	return found, nil
}

// repair does it, with the stub that is open now, nil when there is none. It
// says what it found and did.
func (m *machine) repair(ctx context.Context, s *stub) ([]string, error) {
	m.life.mute(true)
	defer m.life.mute(false)
	state, err := m.runState(ctx)
	if err != nil {
		return nil, err
	}
	held := false
	if s != nil && s.ours {
		held, _ = m.readMark(s)
	}
	found, resume := findings(state, s, held)
	if s == nil || s.ours {
		// The socket of a stub that was left open may be gone from the file
		// system, so it is not reused.
		if s, err = m.reopen(ctx, s); err != nil {
			return found, err
		}
		defer func() { _ = m.closeStub(context.WithoutCancel(ctx), s) }() // what was found matters more
	}
	s.mark.held(resume)
	err = m.clean(ctx, s, resume)
	if resume {
		err = errors.Join(err, m.ensureRunning(context.WithoutCancel(ctx)))
	}
	return found, err
}

// reopen closes the stub that was left open, if there is one, and opens ours.
func (m *machine) reopen(ctx context.Context, left *stub) (*stub, error) {
	if left != nil {
		if err := m.gdbserver(ctx, "none"); err != nil {
			return nil, err
		}
		os.RemoveAll(m.folder(left))
	}
	return m.openStub(ctx)
}

// findings says in words what a killed run left, and whether the guest is to
// run afterwards. held tells that the run had stopped the guest.
func findings(state string, s *stub, held bool) (found []string, resume bool) {
	if s != nil && s.ours {
		found = append(found, "a gdbstub that an interrupted run had opened: closed")
	}
	switch {
	case state == "debug":
		found = append(found, "the guest stood still at a breakpoint: breakpoints taken out, running again")
		return found, true
	case state == "paused" && held:
		found = append(found, "the guest stood still where an interrupted run had stopped it: running again")
		return found, true
	case state == "paused":
		return append(found, "somebody has paused the guest: breakpoints taken out, left paused"), false
	case len(found) > 0:
		found = append(found, "breakpoints, if there were any: taken out")
	}
	return found, state == "running"
}
