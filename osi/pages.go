package osi

import (
	"context"
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// EachPage yields the pages that the page tables of as map within r, in order. A
// large page that reaches out of r is cut to it. It is what providers make Pages
// of: its cost follows what is resident, not how large r is. It returns false
// when yield did, when ctx ended or when the page tables cannot be read, which
// is yielded as an error.
func EachPage(ctx context.Context, as *vitrine.AddressSpace, r Range, yield func(Page, error) bool) bool {
	for at, n := r.Start, 0; at < r.End; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return yield(Page{}, ctx.Err()) && false
		}
		m, err := as.Walk(at)
		step := m.Size
		if err != nil {
			var fault *vitrine.FaultError
			if !errors.As(err, &fault) || fault.Level == 0 || fault.Err != nil {
				return yield(Page{}, fmt.Errorf("list pages: %w", err)) && false
			}
			step = entrySpan(as.Mode(), fault.Level)
		}
		next := at&^arch.GVA(step-1) + arch.GVA(step)
		if next <= at {
			return true // the end of the address space
		}
		if err == nil {
			end := min(next, r.End)
			if !yield(Page{Start: at, Size: uint64(end - at), Addr: m.Addr, Writable: m.Writable, Exec: !m.NoExec}, nil) {
				return false
			}
		}
		at = next
	}
	return true
}

// entrySpan returns how many bytes an entry at a level of the page tables maps.
func entrySpan(mode arch.PagingMode, level int) uint64 {
	bits := 9
	if mode == arch.Paging32Bit {
		bits = 10
	}
	return 1 << (12 + bits*(level-1))
}
