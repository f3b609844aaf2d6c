package windows

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// Limits of the tree of mappings.
const (
	maxVADs  = 1 << 18
	maxDepth = 128 // an AVL tree of all addresses has less
)

// vad is one node.
type vad struct {
	addr        arch.GVA
	osi.Range   // of addresses
	flags       uint64
	left, right arch.GVA
}

func (s *system) readVAD(as *vitrine.AddressSpace, addr arch.GVA) (vad, error) {
	l := &s.l.vad
	r, err := s.load(as, "MMVAD", addr, 0x48)
	if err != nil {
		return vad{}, err
	}
	v := vad{addr: addr, left: r.ptr(member{l.left, true}), right: r.ptr(member{l.right, true}), flags: r.uint(l.flags, l.flagBytes)}
	size := 4
	if l.wide {
		size = 8
	}
	start, end := r.uint(l.start, size), r.uint(l.end, size)
	if l.startHigh.ok && s.w == 8 {
		start |= r.uint(l.startHigh, 1) << 32
		end |= r.uint(l.endHigh, 1) << 32
	}
	if start > end || end >= 1<<(8*uint(s.w)-12) {
		return vad{}, fmt.Errorf("mapping at %v from page %#x to %#x: %w", addr, start, end, osi.ErrCorrupt)
	}
	v.Range = osi.Range{Start: arch.GVA(start << 12), End: arch.GVA((end + 1) << 12)}
	return v, nil
}

// top returns the top node of a process's tree, 0 when it is empty.
func (s *system) top(as *vitrine.AddressSpace, p *process) (arch.GVA, error) {
	if !s.l.process.vads.ok || !s.l.vad.start.ok {
		return 0, fmt.Errorf("list mappings of process %d: where the kernel keeps them is not known: %w", p.pid, errors.ErrUnsupported)
	}
	at := p.addr + s.l.process.vads.off
	if s.l.vad.inline {
		at += s.l.vad.right
	}
	return s.word(as, at)
}

// walk calls f with each node in address order until it returns false. A node
// that can't be read is passed to f as an error and cuts off what is below.
func (s *system) walk(ctx context.Context, as *vitrine.AddressSpace, top arch.GVA, f func(vad, error) bool) {
	var path []vad
	seen := map[arch.GVA]bool{}
	for next := top; next != 0 || len(path) > 0; {
		for next != 0 {
			var err error
			switch {
			case ctx.Err() != nil:
				f(vad{}, ctx.Err())
				return
			case seen[next] || len(seen) == maxVADs || len(path) == maxDepth:
				err = fmt.Errorf("tree of mappings: node %v comes twice, or there are too many: %w", next, osi.ErrCorrupt)
			}
			seen[next] = true
			var v vad
			if err == nil {
				v, err = s.readVAD(as, next)
			}
			if err != nil {
				if !f(vad{}, err) || fatal(err) {
					return
				}
				break
			}
			path = append(path, v)
			next = v.left
		}
		if len(path) == 0 {
			return
		}
		v := path[len(path)-1]
		path = path[:len(path)-1]
		if !f(v, nil) {
			return
		}
		next = v.right
	}
}

// vadAt returns the node that holds a, or ErrNoMapping.
func (s *system) vadAt(as *vitrine.AddressSpace, p *process, a arch.GVA) (vad, error) {
	next, err := s.top(as, p)
	for depth := 0; err == nil && next != 0; depth++ {
		var v vad
		if v, err = s.readVAD(as, next); err != nil {
			break
		}
		switch {
		case depth > maxDepth:
			return vad{}, fmt.Errorf("tree of mappings of process %d has no end: %w", p.pid, osi.ErrCorrupt)
		case v.Contains(a):
			return v, nil
		case a < v.Start:
			next = v.left
		default:
			next = v.right
		}
	}
	if err == nil {
		err = fmt.Errorf("address %v of process %d: %w", a, p.pid, osi.ErrNoMapping)
	}
	return vad{}, err
}

// permissions by the lowest three bits of MM_PROTECTION_MASK: none, read,
// execute, both, write, copy on write, the last two with execute.
var permissions = [8]string{"---", "r--", "--x", "r-x", "rw-", "rw-", "rwx", "rwx"}

// landmarks are the places in a process by which mappings get their names.
type landmarks struct {
	heap, stack arch.GVA
	// images are what the process's loaders list, by address; for mappings that
	// no file is found behind.
	images func() map[arch.GVA]osi.Library
}

// image returns the path of the image that an address lies in, "" for none.
func (l landmarks) image(a arch.GVA) string {
	for _, im := range l.images() {
		if a >= im.Base && uint64(a-im.Base) < im.Size {
			return im.Path
		}
	}
	return ""
}

// mapping makes the record of a node.
func (s *system) mapping(as *vitrine.AddressSpace, v vad, form vadFlags, at landmarks) osi.Mapping {
	protection := bitsOf(v.flags, form.protection, 5) & 7
	m := osi.Mapping{Range: v.Range, Perms: permissions[protection] + "p"}
	image := form.isImage(v.flags)
	if bitsOf(v.flags, form.private, 1) == 0 {
		if m.Name = s.mappedFile(as, v); m.Name == "" {
			m.Name = at.image(v.Start)
			image = image || m.Name != ""
		}
		if !image && protection != 5 && protection != 7 {
			m.Perms = permissions[protection] + "s"
		}
	}
	switch {
	case m.Name != "":
		m.Kind = osi.MappingFile
	case at.heap != 0 && v.Contains(at.heap):
		m.Kind, m.Name = osi.MappingHeap, "[heap]"
	case at.stack != 0 && v.Contains(at.stack-1):
		m.Kind, m.Name = osi.MappingStack, "[stack]"
	}
	return m
}

// mappedFile returns the path of the file behind a mapping, "" when there is
// none: subsection, control area, file object. A control area is one when its
// segment leads back to it, in every build by its first member.
func (s *system) mappedFile(as *vitrine.AddressSpace, v vad) string {
	area := s.controlArea(as, v)
	if !s.nt.KernelAddress(area) || !s.l.area.file.ok {
		return ""
	}
	segment, err := s.word(as, area)
	if err != nil || !s.nt.KernelAddress(segment) {
		return ""
	}
	if back, err := s.word(as, segment); err != nil || back != area {
		return ""
	}
	file, err := s.word(as, area+s.l.area.file.off)
	file &^= 2*s.w - 1 // EX_FAST_REF since Vista: its lowest bits count
	if err != nil || !s.nt.KernelAddress(file) {
		return ""
	}
	return s.filePath(as, file)
}

func (s *system) controlArea(as *vitrine.AddressSpace, v vad) arch.GVA {
	if !s.l.vad.subsection.ok {
		if !s.l.vad.area.ok {
			return 0
		}
		area, _ := s.word(as, v.addr+s.l.vad.area.off)
		return area
	}
	sub, err := s.word(as, v.addr+s.l.vad.subsection.off)
	if err != nil || !s.nt.KernelAddress(sub) {
		return 0
	}
	area, _ := s.word(as, sub+s.l.area.viaSubsection.off)
	return area
}

// userProcess returns a process that has memory of its own, or ErrNoUserMemory.
func (s *system) userProcess(ctx context.Context, as *vitrine.AddressSpace, h osi.Handle) (process, *vitrine.AddressSpace, error) {
	p, err := s.processOf(ctx, as, h)
	if err != nil {
		return p, nil, err
	}
	user := s.userSpace(&p)
	if user == nil {
		return p, nil, fmt.Errorf("process %d: %w", p.pid, osi.ErrNoUserMemory)
	}
	return p, user, nil
}

// landmarks reads the heap's address from the PEB and the stack's from the TEB
// of the first thread; what is paged out is 0.
func (s *system) landmarks(ctx context.Context, as, user *vitrine.AddressSpace, p *process) landmarks {
	at := landmarks{images: sync.OnceValue(func() map[arch.GVA]osi.Library {
		found := map[arch.GVA]osi.Library{}
		_ = s.fromLoaders(ctx, as, user, p, found) // what can't be read gives no name
		return found
	})}
	if s.l.peb.heap.ok && p.peb != 0 {
		at.heap, _ = s.word(user, p.peb+s.l.peb.heap.off)
	}
	if !s.l.process.threads.ok || !s.l.thread.link.ok || !s.l.thread.teb.ok {
		return at
	}
	first, err := s.word(as, p.addr+s.l.process.threads.off)
	if err != nil || ctx.Err() != nil {
		return at
	}
	t, err := s.readThread(as, first-s.l.thread.link.off)
	if teb := t.ptr(s.l.thread.teb); err == nil && teb != 0 {
		at.stack, _ = s.word(user, teb+s.w) // NT_TIB.StackBase
	}
	return at
}

// Mappings implements osi.System. It corresponds to EPROCESS.VadRoot.
func (s *system) Mappings(ctx context.Context, h osi.Handle) iter.Seq2[osi.Mapping, error] {
	return func(yield func(osi.Mapping, error) bool) {
		as := s.fresh()
		p, user, err := s.userProcess(ctx, as, h)
		if err != nil {
			if !errors.Is(err, osi.ErrNoUserMemory) {
				yield(osi.Mapping{}, err)
			}
			return
		}
		top, err := s.top(as, &p)
		if err != nil {
			yield(osi.Mapping{}, err)
			return
		}
		form, at := s.learnFlags(ctx, as), s.landmarks(ctx, as, user, &p)
		s.walk(ctx, as, top, func(v vad, err error) bool {
			if err != nil {
				return yield(osi.Mapping{}, fmt.Errorf("list mappings of process %d: %w", p.pid, err))
			}
			return yield(s.mapping(as, v, form, at), nil)
		})
	}
}

// MappingAt implements osi.System.
func (s *system) MappingAt(ctx context.Context, h osi.Handle, a arch.GVA) (osi.Mapping, error) {
	as := s.fresh()
	p, user, err := s.userProcess(ctx, as, h)
	if err != nil {
		return osi.Mapping{}, err
	}
	v, err := s.vadAt(as, &p, a)
	if err != nil {
		return osi.Mapping{}, err
	}
	return s.mapping(as, v, s.learnFlags(ctx, as), s.landmarks(ctx, as, user, &p)), nil
}

// Pages implements osi.System. It walks the page tables within each mapping.
func (s *system) Pages(ctx context.Context, h osi.Handle) iter.Seq2[osi.Page, error] {
	return func(yield func(osi.Page, error) bool) {
		as := s.fresh()
		p, user, err := s.userProcess(ctx, as, h)
		if err != nil {
			if !errors.Is(err, osi.ErrNoUserMemory) {
				yield(osi.Page{}, err)
			}
			return
		}
		top, err := s.top(as, &p)
		if err != nil {
			yield(osi.Page{}, err)
			return
		}
		s.walk(ctx, as, top, func(v vad, err error) bool {
			if err != nil {
				return yield(osi.Page{}, fmt.Errorf("list pages of process %d: %w", p.pid, err))
			}
			return osi.EachPage(ctx, user, v.Range, yield)
		})
	}
}

// Memory implements osi.System: the executable's mapping, and where the stack
// of the first thread begins. NT has no heap that grows from one place.
func (s *system) Memory(ctx context.Context, h osi.Handle) (osi.ProcMem, error) {
	as := s.fresh()
	p, user, err := s.userProcess(ctx, as, h)
	if err != nil {
		return osi.ProcMem{}, err
	}
	m := osi.ProcMem{StartStack: s.landmarks(ctx, as, user, &p).stack}
	if v, err := s.vadAt(as, &p, p.ptr(s.l.process.base)); err == nil {
		m.Code = v.Range
	}
	return m, nil
}

// AddressSpace implements osi.System. It reads pages in transition as well.
func (s *system) AddressSpace(ctx context.Context, h osi.Handle) (*vitrine.AddressSpace, error) {
	_, user, err := s.userProcess(ctx, s.fresh(), h)
	return user, err
}
