package implant

import (
	"context"
	"fmt"
	"reflect"
	"slices"

	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// SetFilter implements engine.Filterer. What does not fit in the tables of the
// guest side is left out of them.
func (e *Engine) SetFilter(f engine.Filter) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := filter{comms: slices.Clone(f.Comms), uids: slices.Clone(f.UIDs)}
	if len(t.comms) > maxComms {
		t.comms = nil
	}
	if len(t.uids) > maxUIDs {
		t.uids = nil
	}
	known := !slices.ContainsFunc(f.PIDs, func(pid int) bool { return pid < 0 || pid >= bitmapBits }) && (!f.Follow || e.canFollow())
	if known {
		for _, pid := range f.PIDs {
			t.tgids = append(t.tgids, uint32(pid))
		}
		t.follow = f.Follow && len(t.tgids) > 0
	}
	e.filter = t
	e.version++
	return known
}

// canFollow reports whether the guest side can learn of new processes. The
// caller holds mu.
func (e *Engine) canFollow() bool {
	addr, ok := e.cfg.Facts.Symbol(forkHook)
	return ok && e.checkAt(addr) == nil
}

// update brings the guest side to what is wanted now. Functions that it has no
// stub for make it leave and come again.
func (r *run) update(ctx context.Context) error {
	if err := r.besideEnded(ctx); err != nil {
		return err
	}
	wanted, filter, version := r.e.present()
	if version == r.version {
		return nil
	}
	r.startBeside(ctx)
	if (filter.follow || r.filter.follow) && !reflect.DeepEqual(filter, r.filter) || r.p.gated && len(filter.tgids) == 0 ||
		slices.ContainsFunc(wanted, func(w engine.Wanted) bool { return !r.knows(w.Point) }) {
		return r.replant(ctx)
	}
	for i := range r.points {
		p := &r.points[i]
		j := slices.IndexFunc(wanted, func(w engine.Wanted) bool { return w.Point == p.Point })
		if j < 0 {
			p.Returns = false
			if err := r.setFunction(i, function{}); err != nil {
				return err
			}
			continue
		}
		*p = wanted[j]
		if err := r.setFunction(i, r.function(*p)); err != nil {
			return err
		}
	}
	r.version = version
	if filter.follow {
		return nil // it is the same, and the guest side has more of the bitmap
	}
	return r.setFilter(filter)
}

func (r *run) knows(p *engine.Point) bool {
	return slices.ContainsFunc(r.points, func(w engine.Wanted) bool { return w.Point == p })
}

// setFunction rewrites an entry of the table; flags and number of captures go
// last and together.
func (r *run) setFunction(i int, fn function) error {
	b, at := fn.encode(), funcsOffset+uint64(i)*funcSize
	if err := r.p.m.write(b[funcAbout:], at+funcAbout); err != nil {
		return err
	}
	return r.p.m.store(at, le64(b))
}

// setFilter replaces the filter. While it changes, some threads may be judged
// by a part of the old and a part of the new one.
func (r *run) setFilter(f filter) error {
	if err := r.filter.clearBitmap(r.p.m, r.p.l.bitmap); err != nil {
		return err
	}
	r.filter = f
	if err := f.fillBitmap(r.p.m, r.p.l.bitmap); err != nil {
		return err
	}
	h := make([]byte, hdrEnd)
	mode := uint64(f.fill(h))
	if !r.e.cfg.Lossy {
		mode |= modeLossless
	}
	if err := r.p.m.write(h[hdrNUIDs:hdrClockSeq], hdrNUIDs); err != nil {
		return err
	}
	return r.p.m.store(hdrMode, mode|uint64(le32(h[hdrNComms:]))<<32)
}

// replant takes the implant out and plants it with all functions wanted now.
// Calls that are open at that time are given up.
func (r *run) replant(ctx context.Context) error {
	if err := r.stopBeside(); err != nil {
		return err
	}
	var kept []uint32
	if _, f, _ := r.e.present(); f.follow && reflect.DeepEqual(f, r.filter) {
		var err error
		if kept, err = r.p.members(); err != nil {
			return err
		}
	}
	if err := r.leave(nil); err != nil {
		return err
	}
	r.end()
	r.points, r.p, r.kept = nil, nil, kept
	if err := r.plant(ctx); err != nil {
		return fmt.Errorf("plant more functions: %w", err)
	}
	r.startBeside(ctx)
	return nil
}
