package windows

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// Limits of lists of images.
const (
	maxModules   = 1 << 13
	maxLibraries = 1 << 14
)

// loaderAt is where LDR_DATA_TABLE_ENTRY has its members. They are the same in
// every build, so those for 4-byte pointers serve the second loader list of a
// 32-bit process too.
type loaderAt struct{ base, size, full, short arch.GVA }

var loader32 = loaderAt{0x18, 0x20, 0x24, 0x2c}

// loader returns the places for the kernel's own pointers.
func (s *system) loader() loaderAt {
	l := &s.l.loader
	if !l.base.ok || !l.size.ok || !l.full.ok || !l.short.ok {
		if s.w == 4 {
			return loader32
		}
		return loaderAt{0x30, 0x40, 0x48, 0x58}
	}
	return loaderAt{l.base.off, l.size.off, l.full.off, l.short.off}
}

// image is an entry of a loader list.
type image struct {
	base       arch.GVA
	size       uint64
	name, path string
}

func readImage(as *vitrine.AddressSpace, at loaderAt, entry, w arch.GVA) (image, error) {
	base, err := readWord(as, entry+at.base, w)
	if err != nil {
		return image{}, fmt.Errorf("read loader entry at %v: %w", entry, err)
	}
	size, err := as.ReadUint32(entry + at.size)
	if err != nil {
		return image{}, fmt.Errorf("read loader entry at %v: %w", entry, err)
	}
	im := image{base: base, size: uint64(size)}
	im.name = text(unicode(as, entry+at.short, w))
	im.path = text(unicode(as, entry+at.full, w))
	if im.name == "" || im.name == osi.PagedOut && im.path != osi.PagedOut && im.path != "" {
		im.name = lastElement(im.path)
	}
	return im, nil
}

// Modules implements osi.System. It corresponds to PsLoadedModuleList, which
// begins with the kernel itself; here the last loaded comes first.
func (s *system) Modules(ctx context.Context) iter.Seq2[osi.Module, error] {
	return func(yield func(osi.Module, error) bool) {
		if s.triage != nil {
			s.triageDrivers(yield)
			return
		}
		if s.nt.ModuleList == 0 {
			yield(osi.Module{}, fmt.Errorf("list modules: PsLoadedModuleList was not found: %w", osi.ErrNotFound))
			return
		}
		as, at := s.fresh(), s.loader()
		all, listErr := s.collect(ctx, as, s.nt.ModuleList, 0, s.w, maxModules)
		for _, entry := range slices.Backward(all) {
			if ctx.Err() != nil {
				yield(osi.Module{}, ctx.Err())
				return
			}
			im, err := readImage(as, at, entry, s.w)
			var m osi.Module
			if err == nil {
				m = osi.Module{Name: im.name, File: im.path, Base: im.base, Size: im.size,
					Ranges: []osi.Range{{Start: im.base, End: im.base + arch.GVA(im.size)}}}
			}
			if !yield(m, err) || err != nil && fatal(err) {
				return
			}
		}
		if listErr != nil {
			yield(osi.Module{}, fmt.Errorf("list modules: %w", listErr))
		}
	}
}

// triageDrivers yields the drivers that a triage dump lists.
func (s *system) triageDrivers(yield func(osi.Module, error) bool) {
	for _, d := range slices.Backward(s.triage.Drivers) {
		m := osi.Module{Name: lastElement(d.Name), File: d.Name, Base: d.Base, Size: d.Size, Ranges: []osi.Range{{Start: d.Base, End: d.Base + arch.GVA(d.Size)}}}
		if !yield(m, nil) {
			return
		}
	}
}

// ModuleAt implements osi.System.
func (s *system) ModuleAt(ctx context.Context, a arch.GVA) (osi.Module, error) {
	var first error
	for m, err := range s.Modules(ctx) {
		switch {
		case err != nil:
			first = cmp.Or(first, err)
		case m.Ranges[0].Contains(a):
			return m, nil
		}
	}
	if first == nil {
		first = osi.ErrNoModule
	}
	return osi.Module{}, fmt.Errorf("find module at %v: %w", a, first)
}

// Libraries implements osi.System. It puts together the three lists of the
// loader, those of the 32-bit one of a WOW64 process, and what else is mapped
// as an executable: a library may be in one and not in another.
func (s *system) Libraries(ctx context.Context, h osi.Handle) iter.Seq2[osi.Library, error] {
	return func(yield func(osi.Library, error) bool) {
		as := s.fresh()
		p, user, err := s.userProcess(ctx, as, h)
		if err != nil {
			if !noUserMemory(err) {
				yield(osi.Library{}, err)
			}
			return
		}
		found := map[arch.GVA]osi.Library{}
		listErr := s.fromLoaders(ctx, as, user, &p, found)
		s.fromMappings(ctx, as, &p, found)
		delete(found, p.ptr(s.l.process.base))
		all := make([]osi.Library, 0, len(found))
		for _, l := range found {
			all = append(all, l)
		}
		slices.SortFunc(all, func(a, b osi.Library) int { return cmp.Compare(a.Base, b.Base) })
		for _, l := range all {
			if !yield(l, nil) {
				return
			}
		}
		// A loader list that is paged out is made up for by the mappings.
		if listErr != nil && (!pagedOut(listErr) || len(all) == 0) {
			yield(osi.Library{}, fmt.Errorf("list libraries of process %d: %w", p.pid, listErr))
		}
	}
}

// fromLoaders adds what the loaders of a process list.
func (s *system) fromLoaders(ctx context.Context, as, user *vitrine.AddressSpace, p *process, found map[arch.GVA]osi.Library) error {
	var first error
	if s.l.peb.loader.ok && p.peb != 0 {
		ldr, err := s.word(user, p.peb+s.l.peb.loader.off)
		if err == nil {
			err = s.fromLoader(ctx, user, ldr, s.loader(), s.w, found)
		}
		first = err
	}
	if peb32 := s.peb32(as, p); peb32 != 0 {
		ldr, err := user.ReadUint32(peb32 + 0xc) // PEB32.Ldr
		if err == nil {
			err = s.fromLoader(ctx, user, arch.GVA(ldr), loader32, 4, found)
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// peb32 returns the second PEB of a 32-bit process of a 64-bit system: since
// 10 1511 by a structure in between, in 7 to 10 directly, before by a pointer.
func (s *system) peb32(as *vitrine.AddressSpace, p *process) arch.GVA {
	at := p.ptr(s.l.process.wow64)
	if s.w != 8 || at == 0 {
		return 0
	}
	if s.nt.KernelAddress(at) {
		var err error
		if at, err = s.word(as, at+s.l.inWow64.off); err != nil {
			return 0
		}
	}
	if at >= 1<<32 {
		return 0
	}
	return at
}

// fromLoader adds what one loader lists. PEB_LDR_DATA has its three lists one
// behind the other, in every build at 0xc or 0x10; so have the entries their
// links.
func (s *system) fromLoader(ctx context.Context, user *vitrine.AddressSpace, ldr arch.GVA, at loaderAt, w arch.GVA, found map[arch.GVA]osi.Library) error {
	if ldr == 0 {
		return nil // the loader has not begun yet
	}
	head := ldr + 8 + w
	var first error
	for list := range arch.GVA(3) {
		entries, err := s.collect(ctx, user, head+list*2*w, list*2*w, w, maxLibraries)
		if first == nil {
			first = err
		}
		for _, e := range entries {
			base, err := readWord(user, e+at.base, w)
			if l, known := found[base]; err == nil && known && l.Name != osi.PagedOut {
				continue
			}
			im, err := readImage(user, at, e, w)
			if err != nil || im.base == 0 {
				if first == nil {
					first = err
				}
				continue
			}
			found[im.base] = osi.Library{Name: im.name, Path: im.path, Base: im.base, Size: im.size}
		}
	}
	return first
}

// fromMappings adds executables that are mapped and in no list, and the names
// of those whose names are paged out.
func (s *system) fromMappings(ctx context.Context, as *vitrine.AddressSpace, p *process, found map[arch.GVA]osi.Library) {
	top, err := s.top(as, p)
	if err != nil {
		return
	}
	form := s.learnFlags(ctx, as)
	s.walk(ctx, as, top, func(v vad, err error) bool {
		if err != nil || !form.isImage(v.flags) || bitsOf(v.flags, form.private, 1) != 0 {
			return !fatal(err)
		}
		l, known := found[v.Start]
		if known && l.Path != osi.PagedOut {
			return true
		}
		if path := s.mappedFile(as, v); path != "" {
			found[v.Start] = osi.Library{Name: lastElement(path), Path: path, Base: v.Start, Size: v.Size()}
		}
		return true
	})
}
