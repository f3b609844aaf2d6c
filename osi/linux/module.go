package linux

import (
	"context"
	"fmt"
	"iter"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// Bounds of modules: their number, and the regions of one (7 kinds in 6.4).
const (
	maxModules = 64 << 10
	maxRegions = 32
)

// moduleUnformed is the state of a module whose structure is still being
// filled; /proc/modules leaves it out too.
const moduleUnformed = 3

// Modules implements osi.System. It corresponds to the list modules; Size is
// what /proc/modules shows, init sections included while they exist.
func (s *system) Modules(ctx context.Context) iter.Seq2[osi.Module, error] {
	return func(yield func(osi.Module, error) bool) {
		if s.modules == 0 {
			_, err := s.k.Symbol("modules")
			yield(osi.Module{}, fmt.Errorf("list modules: %w", err))
			return
		}
		as := s.fresh()
		all, listErr := s.collect(ctx, as, s.modules, s.l.module.list.off, maxModules)
		for _, addr := range all {
			m, there, err := s.module(as, addr)
			if (there || err != nil) && (!yield(m, err) || err != nil && fatal(err)) {
				return
			}
		}
		if listErr != nil {
			yield(osi.Module{}, fmt.Errorf("list modules: %w", listErr))
		}
	}
}

// ModuleAt implements osi.System.
func (s *system) ModuleAt(ctx context.Context, a arch.GVA) (osi.Module, error) {
	var first error
	for m, err := range s.Modules(ctx) {
		if err != nil {
			first = err
			continue
		}
		for _, r := range m.Ranges {
			if r.Contains(a) {
				return m, nil
			}
		}
	}
	if first == nil {
		first = osi.ErrNoModule
	}
	return osi.Module{}, fmt.Errorf("find module of %v: %w", a, first)
}

// module reads one struct module; false when it is not formed yet.
func (s *system) module(as *vitrine.AddressSpace, addr arch.GVA) (osi.Module, bool, error) {
	l := &s.l.module
	r, err := load(as, &l.shape, addr, nil)
	if err != nil {
		return osi.Module{}, false, err
	}
	if r.uint(l.state)&0xffffffff == moduleUnformed {
		return osi.Module{}, false, nil
	}
	m := osi.Module{Name: r.str(l.name)}
	add := func(base, size member) {
		start, n := r.ptr(base), r.uint(size)&0xffffffff
		if start == 0 || n == 0 {
			return
		}
		m.Ranges = append(m.Ranges, osi.Range{Start: start, End: start + arch.GVA(n)})
		m.Size += n
	}
	if !l.memBase.ok() {
		add(l.coreBase, l.coreSize)
		add(l.initBase, l.initSize)
		m.Base = r.ptr(l.coreBase)
		return m, true, nil
	}
	stride := l.memSecond.off - l.memBase.off
	for i := range min(l.mem.size/stride, maxRegions) {
		add(member{l.memBase.off + i*stride, l.memBase.size}, member{l.memSize.off + i*stride, l.memSize.size})
	}
	m.Base = r.ptr(l.memBase)
	return m, true, nil
}
