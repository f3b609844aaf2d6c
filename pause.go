package vitrine

import (
	"context"

	"github.com/vitrine-vmi/vitrine/arch"
)

// DataFinder is implemented by backends that know without reading it where
// memory is zero: an image may be a file with holes.
type DataFinder interface {
	// NextData returns the first address from a on that may not be zero; at
	// most the end of the region that holds a.
	NextData(a arch.GPA) arch.GPA
}

// NextData returns the first address from a on that may not be zero, a itself
// where the backend does not know; see DataFinder.
func (g *Guest) NextData(a arch.GPA) arch.GPA {
	if f, ok := g.backend.(DataFinder); ok {
		return max(a, f.NextData(a))
	}
	return a
}

// Pauser is implemented by backends that can make the whole guest stand still
// without a debugger.
type Pauser interface {
	// Pause makes the guest stand still, and returns how to undo that: resume
	// lets it run again, unless it stood still before. resume may be called
	// more than once; it does not depend on ctx.
	Pause(ctx context.Context) (resume func() error, err error)
}

// Pause makes the guest stand still; see Pauser. An image stands still anyway.
func (g *Guest) Pause(ctx context.Context) (resume func() error, err error) {
	if p, ok := g.backend.(Pauser); ok {
		return p.Pause(ctx)
	}
	if !g.info.Live {
		return func() error { return nil }, nil
	}
	return nil, unsupported("pause", g.info.Backend)
}
