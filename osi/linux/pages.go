package linux

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// Pages implements osi.System. It walks the page tables within each mapping,
// so its cost follows what is resident, not what is mapped.
func (s *system) Pages(ctx context.Context, h osi.Handle) iter.Seq2[osi.Page, error] {
	return func(yield func(osi.Page, error) bool) {
		as := s.fresh()
		mm, err := s.mmOf(ctx, h)
		if err != nil {
			if !noUserMemory(err) {
				yield(osi.Page{}, err)
			}
			return
		}
		vs, listErr := s.vmas(ctx, as, &mm)
		root, err := s.kernel.Translate(mm.pgd)
		if err != nil {
			yield(osi.Page{}, fmt.Errorf("list pages: %w", err))
			return
		}
		user := s.addressSpaceOf(root)
		for i := range vs {
			if !eachPage(ctx, user, vs[i].span, yield) {
				return
			}
		}
		if listErr != nil {
			yield(osi.Page{}, fmt.Errorf("list pages: %w", listErr))
		}
	}
}

// eachPage yields the pages that are present in a range. A large page that
// reaches out of the range is cut to it.
func eachPage(ctx context.Context, as *vitrine.AddressSpace, r osi.Range, yield func(osi.Page, error) bool) bool {
	for at, n := r.Start, 0; at < r.End; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return yield(osi.Page{}, ctx.Err()) && false
		}
		m, err := as.Walk(at)
		step := m.Size
		if err != nil {
			var fault *vitrine.FaultError
			if !errors.As(err, &fault) || fault.Level == 0 || fault.Err != nil {
				return yield(osi.Page{}, fmt.Errorf("list pages: %w", err)) && false
			}
			step = 1 << (12 + 9*(fault.Level-1)) // nothing is mapped by the whole entry
		}
		next := at&^arch.GVA(step-1) + arch.GVA(step)
		if next <= at {
			return true // the end of the address space
		}
		if err == nil {
			end := min(next, r.End)
			if !yield(osi.Page{Start: at, Size: uint64(end - at), Addr: m.Addr, Writable: m.Writable, Exec: !m.NoExec}, nil) {
				return false
			}
		}
		at = next
	}
	return true
}
