package implant

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/internal/nap"
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
		n, err := r.turn(ctx)
		if err != nil {
			return err
		}
		r.rest(n > 0)
		switch {
		case ctx.Err() != nil:
		case r.idle == 0:
			runtime.Gosched()
			continue
		case r.e.cfg.Sync && r.idle < napMost:
			nap.Sleep(r.idle)
			continue
		}
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

// rest sets how long to wait before the ring is looked at again.
func (r *run) rest(came bool) {
	switch {
	case r.e.cfg.Sync && came:
		r.pace.came(time.Now()) // the handler may have taken long
		r.idle = 0
	case r.e.cfg.Sync:
		r.idle = r.pace.rest(r.now)
	case came:
		r.idle = 0
	default:
		r.idle = min(max(2*r.idle, idleFirst), idleMost)
	}
}

// turn reads a batch of records.
func (r *run) turn(ctx context.Context) (int, error) {
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
	n, err := r.ring.read(batch, r.record)
	if n > 0 {
		r.account()
	}
	if err != nil {
		return n, err
	}
	return n, r.update(ctx)
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
	if r.lost != r.lostBefore {
		r.account() // before what comes behind is delivered
	}
	silent, err := r.p.m.load(hdrSilent)
	if err == nil && silent != 0 {
		r.stalls++
		err = r.p.m.store(hdrSilent, 0) // we are back
	}
	return err
}

// record delivers one record.
func (r *run) record(rec *record) error {
	r.clock.arrived(rec.tsc, r.now)
	if r.clock.due(rec.tsc) {
		if err := r.clock.look(r.p.m); err != nil {
			return err
		}
	}
	h, w := &r.hit, &r.points[rec.fn]
	h.Point, h.CPU, h.Thread, h.Return, h.Task = w.Point, int(rec.cpu), &r.thread, rec.ret, rec.task
	h.Ran, h.Time = r.clock.ran(rec.tsc), r.clock.at(rec.tsc, h.CPU)
	h.Regs, h.User, h.Skip, h.SkipValue, h.Drop = nil, nil, false, 0, false
	r.catch(rec, w)
	t := r.calls.of(rec.task)
	if rec.flags&slotSlim == 0 {
		r.thread = engine.Thread{PID: int(rec.tgid), TID: int(rec.tid), PPID: int(rec.ptgid), UID: rec.uid, Comm: t.called(&rec.comm)}
		h.Root = arch.GPA(rec.root &^ 0xfff & (1<<52 - 1))
	}
	if rec.ret {
		return r.returned(rec, t)
	}
	return r.entered(rec, w, t)
}

func (r *run) entered(rec *record, w *engine.Wanted, t *threadCalls) error {
	h := &r.hit
	r.entries++
	r.calls.prune(t, rec.regs)
	h.Result = 0
	if w.User != engine.NoUserRegs {
		r.user = rec.args
		h.Args = [6]uint64{rec.result}
		h.User = &r.user
	} else {
		h.Args = rec.args
	}
	var before arch.Registers
	if rec.flags&slotSync != 0 {
		h.Regs = r.entryRegisters(rec)
		before = *h.Regs
	}
	value, returns, err := r.h.Entered(h)
	if h.Regs != nil { // also when a handler has failed: what those before it have decided holds
		if answerErr := r.answerEntry(rec, &before, returns); answerErr != nil {
			err = errors.Join(err, answerErr)
		}
		returns = returns && !h.Skip
	}
	if err != nil {
		return err
	}
	if returns {
		r.calls.enter(t, call{index: rec.index, sp: rec.regs, who: r.thread, root: h.Root, value: value})
	}
	return nil
}

// catch takes what the record has captured.
func (r *run) catch(rec *record, w *engine.Wanted) {
	r.hit.Captured, r.hit.About = nil, nil
	if w.About != engine.AboutNone {
		if !rec.ret {
			r.hit.About = rec.about()
		}
		return
	}
	if len(w.Captures) > 0 {
		r.caught = rec.captures(r.caught, min(len(w.Captures), maxCaptures))
		r.hit.Captured = r.caught
	}
}

func (r *run) returned(rec *record, t *threadCalls) error {
	h := &r.hit
	c, ok := r.calls.leave(t, rec.call)
	h.Args, h.Result = [6]uint64{}, rec.result
	if rec.flags&slotSync != 0 {
		r.regs = arch.Registers{RAX: rec.result, RSP: uint64(rec.regs) + leaveFrame + uint64(r.p.frame), CR3: rec.root}
		h.Regs = &r.regs
	}
	var err error
	if ok {
		if rec.flags&slotSlim != 0 {
			r.thread, h.Root = c.who, c.root
		}
		r.returns++
		err = r.h.Returned(h, c.value)
	}
	if h.Regs == nil {
		return err
	}
	if answerErr := r.answerReturn(rec); answerErr != nil {
		err = errors.Join(err, answerErr)
	}
	return err
}
