package linux

import (
	"context"
	"fmt"
	"iter"

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
			if !osi.EachPage(ctx, user, vs[i].span, yield) {
				return
			}
		}
		if listErr != nil {
			yield(osi.Page{}, fmt.Errorf("list pages: %w", listErr))
		}
	}
}
