package implant

import (
	"context"
	"fmt"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// How often an idle ring is looked at: at once after records, then ever less.
const (
	idleFirst = 20 * time.Microsecond
	idleMost  = 4 * time.Millisecond
	batch     = 4096
)

// deliver hands records to the handler until ctx ends.
func (r *run) deliver(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		n, err := r.turn()
		if err != nil {
			return err
		}
		if n > 0 {
			r.idle = 0
			if ctx.Err() == nil {
				continue
			}
		}
		r.idle = min(max(2*r.idle, idleFirst), idleMost)
		timer.Reset(r.idle)
		select {
		case <-ctx.Done():
			return nil
		case <-r.life.done:
			return fmt.Errorf("read ring: %w", r.life.err)
		case <-timer.C:
		}
	}
}

// turn reads a batch of records.
func (r *run) turn() (int, error) {
	select {
	case <-r.life.done:
		return 0, fmt.Errorf("read ring: %w", r.life.err)
	default:
	}
	if err := r.stillOurs(); err != nil {
		return 0, err
	}
	if err := r.ring.live(); err != nil {
		return 0, err
	}
	r.now = time.Now()
	return r.ring.read(batch, r.record)
}

// stillOurs checks that the memory holds the implant: after a reset it may
// be anything, and must not be written to.
func (r *run) stillOurs() error {
	magic, err := r.p.m.load(hdrMagic)
	if err != nil {
		return err
	}
	if magic != headerMagic {
		return fmt.Errorf("read ring: its header is gone: %w", vitrine.ErrReset)
	}
	if r.lost, err = r.p.m.load(hdrLost); err != nil {
		return err
	}
	silent, err := r.p.m.load(hdrSilent)
	if err == nil && silent != 0 {
		err = r.p.m.store(hdrSilent, 0) // we are back
	}
	return err
}

// record delivers one record.
func (r *run) record(rec *record) error {
	r.clock.arrived(rec.tsc, r.now)
	h, w := &r.hit, &r.points[rec.fn]
	r.thread = engine.Thread{PID: int(rec.tgid), TID: int(rec.tid), PPID: int(rec.ptgid), UID: rec.uid, Comm: r.nameOf(rec)}
	*h = engine.Hit{
		Point: w.Point, CPU: int(rec.cpu), Thread: &r.thread, Return: rec.ret, Task: rec.task,
		Time: r.clock.at(rec.tsc), Ran: r.clock.ran(rec.tsc), Root: arch.GPA(rec.root &^ 0xfff & (1<<52 - 1)),
	}
	r.catch(rec, w)
	if rec.ret {
		return r.returned(rec)
	}
	r.entries++
	r.calls.prune(rec.task, rec.regs)
	if w.User != engine.NoUserRegs {
		r.user = rec.args
		h.Args[0], h.User = rec.result, &r.user
	} else {
		h.Args = rec.args
	}
	value, returns, err := r.h.Entered(h)
	if err != nil {
		return err
	}
	if returns {
		r.calls.enter(rec.task, call{index: rec.index, sp: rec.regs, value: value})
	}
	return nil
}

// catch takes what the record has captured.
func (r *run) catch(rec *record, w *engine.Wanted) {
	if len(w.Captures) > 0 {
		r.caught = rec.captures(r.caught, min(len(w.Captures), maxCaptures))
		r.hit.Captured = r.caught
	}
}

// maxNames bounds the thread names remembered.
const maxNames = 1 << 12

// nameOf returns the thread's name, the same string for the same bytes.
func (r *run) nameOf(rec *record) string {
	if s, ok := r.names[rec.comm]; ok {
		return s
	}
	if r.names == nil || len(r.names) >= maxNames {
		r.names = map[[16]byte]string{}
	}
	s := string(rec.name())
	r.names[rec.comm] = s
	return s
}

func (r *run) returned(rec *record) error {
	value, ok := r.calls.leave(rec.task, rec.call)
	if !ok {
		return nil
	}
	r.returns++
	r.hit.Result = rec.result
	return r.h.Returned(&r.hit, value)
}
