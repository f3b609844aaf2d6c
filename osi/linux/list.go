package linux

import (
	"cmp"
	"context"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// collect returns the structures on a list of the kernel: head is the address
// of the list_head, off that of the link within each structure.
//
// Each link must point back to where the walk came from. A list that a
// processor is just changing fails that test and is read again; so does a walk
// that was led onto a freed structure. It also rules out cycles that do not
// lead through the head, as a node has one predecessor only; limit bounds what
// a guest can fake by changing the list under the walk. With an error collect
// returns the longest part that it has seen.
func (s *system) collect(ctx context.Context, as *vitrine.AddressSpace, head arch.GVA, off uint64, limit int) ([]arch.GVA, error) {
	var best []arch.GVA
	var endless error
	err := retry(ctx, as, func() error {
		out, err := s.collectOnce(ctx, as, head, off, limit)
		if err == nil || len(out) > len(best) {
			best = out
		}
		if err != nil && len(out) == limit {
			endless = err
			return nil // once is enough of that
		}
		return err
	})
	return best, cmp.Or(endless, err)
}

func (s *system) collectOnce(ctx context.Context, as *vitrine.AddressSpace, head arch.GVA, off uint64, limit int) ([]arch.GVA, error) {
	var buf [64]byte
	at, err := load(as, &s.l.list.shape, head, buf[:])
	if err != nil {
		return nil, err
	}
	var out []arch.GVA
	for from, to := head, at.ptr(s.l.list.next); to != head; {
		if len(out) == limit {
			return out, fmt.Errorf("walk list at %v: more than %d entries: %w", head, limit, osi.ErrCorrupt)
		}
		if len(out)%1024 == 1023 && ctx.Err() != nil {
			return out, ctx.Err()
		}
		at, err := load(as, &s.l.list.shape, to, buf[:])
		if err != nil {
			return out, err
		}
		if back := at.ptr(s.l.list.prev); back != from {
			return out, fmt.Errorf("walk list at %v: %v points back to %v, not to %v: %w", head, to, back, from, osi.ErrTorn)
		}
		out = append(out, to-arch.GVA(off))
		from, to = to, at.ptr(s.l.list.next)
	}
	return out, nil
}

// linked reports whether the list link at addr is on a list: its predecessor
// points to it. The kernel poisons the link of what it takes off a list.
func (s *system) linked(as *vitrine.AddressSpace, addr arch.GVA) bool {
	var buf [64]byte
	at, err := load(as, &s.l.list.shape, addr, buf[:])
	if err != nil {
		return false
	}
	back, err := load(as, &s.l.list.shape, at.ptr(s.l.list.prev), buf[:])
	return err == nil && back.ptr(s.l.list.next) == addr
}
