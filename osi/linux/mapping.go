package linux

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// mappedFile is the file of a mapping.
type mappedFile struct {
	inode arch.GVA // address of the struct inode, 0 for anonymous memory
	path  string
}

// namer turns mappings of one process into records.
type namer struct {
	s     *system
	as    *vitrine.AddressSpace
	mm    *mmRecord
	names *resolver
	files map[arch.GVA]mappedFile
}

func (s *system) newNamer(as *vitrine.AddressSpace, mm *mmRecord) *namer {
	return &namer{s: s, as: as, mm: mm, names: s.newResolver(as), files: map[arch.GVA]mappedFile{}}
}

// Mappings implements osi.System: what /proc/PID/maps shows, without
// "[vsyscall]", which is the same for all processes and no mapping of any. It
// corresponds to task_struct->mm->mm_mt, before 6.1 ->mmap. Names are as the
// guest stores them; /proc/PID/maps writes a newline in one as "\012".
//
// An empty heap right behind a program's data makes kernels before 6.6 show the
// data as "[heap]"; here the later rule holds.
func (s *system) Mappings(ctx context.Context, h osi.Handle) iter.Seq2[osi.Mapping, error] {
	return func(yield func(osi.Mapping, error) bool) {
		as := s.fresh()
		mm, err := s.mmOf(ctx, h)
		if err != nil {
			if !noUserMemory(err) {
				yield(osi.Mapping{}, err)
			}
			return
		}
		vs, listErr := s.vmas(ctx, as, &mm)
		n := s.newNamer(as, &mm)
		for i := range vs {
			m, err := n.mapping(&vs[i])
			if ctx.Err() != nil {
				m, err = osi.Mapping{}, ctx.Err()
			}
			if !yield(m, err) || err != nil && fatal(err) {
				return
			}
		}
		if listErr != nil {
			yield(osi.Mapping{}, fmt.Errorf("list mappings: %w", listErr))
		}
	}
}

// MappingAt implements osi.System by one descent of the tree of mappings.
func (s *system) MappingAt(ctx context.Context, h osi.Handle, a arch.GVA) (osi.Mapping, error) {
	as := s.fresh()
	var m osi.Mapping
	err := retry(ctx, as, func() error {
		mm, err := s.mmOf(ctx, h)
		if err != nil {
			return err
		}
		v, ok, err := s.vmaAt(as, &mm, a)
		if err == nil && !ok {
			err = osi.ErrNoMapping
		}
		if err == nil {
			m, err = s.newNamer(as, &mm).mapping(&v)
		}
		return err
	})
	if err != nil {
		err = fmt.Errorf("find mapping of %v: %w", a, err)
	}
	return m, err
}

// mapping makes the record of a mapping. With an error all but its name holds.
func (n *namer) mapping(v *vma) (osi.Mapping, error) {
	m := osi.Mapping{Range: v.span, Perms: v.perms()}
	if v.file != 0 {
		m.Kind, m.Offset = osi.MappingFile, v.pgoff*arch.PageSize
		f, err := n.file(v.file)
		if err != nil {
			return m, fmt.Errorf("name mapping at %v: %w", v.span.Start, err)
		}
		m.Name = f.path
		m.Inode, err = n.names.inode(f.inode)
		if v.anonName != 0 {
			m.Name = "[anon_shmem:" + n.anonName(v.anonName) + "]"
		}
		return m, err
	}
	m.Name, m.Kind = n.anonymous(v)
	return m, nil
}

// file names a mapped file, once for all its mappings.
func (n *namer) file(addr arch.GVA) (mappedFile, error) {
	if f, ok := n.files[addr]; ok {
		return f, nil
	}
	r, err := load(n.as, &n.s.l.file.shape, addr, nil)
	if err != nil {
		return mappedFile{}, err
	}
	f := mappedFile{inode: r.ptr(n.s.l.file.inode)}
	if f.path, err = n.names.mapped(r); err != nil {
		return mappedFile{}, err
	}
	n.files[addr] = f
	return f, nil
}

// anonymous names a mapping without a file.
func (n *namer) anonymous(v *vma) (string, osi.MappingKind) {
	if name := n.special(v); name != "" {
		return name, osi.MappingUnknown
	}
	p := &n.mm.layout
	switch {
	case v.span.Start < p.Brk && v.span.End > p.StartBrk:
		return "[heap]", osi.MappingHeap
	case v.span.Start <= p.StartStack && v.span.End >= p.StartStack:
		return "[stack]", osi.MappingStack
	case v.anonName != 0:
		return "[anon:" + n.anonName(v.anonName) + "]", osi.MappingUnknown
	}
	return "", osi.MappingUnknown
}

// special returns the name of a mapping that the kernel itself made, such as
// "[vdso]": the first member of the vm_special_mapping behind it.
func (n *namer) special(v *vma) string {
	l := n.s.l
	if v.ops == 0 || v.private == 0 || !l.special.name.ok() || !n.isSpecial(v.ops) {
		return ""
	}
	at, err := n.as.ReadPointer(v.private + arch.GVA(l.special.name.off))
	if err != nil || kernelPointer(at) != nil {
		return ""
	}
	name, _ := n.as.ReadString(at, 64)
	return name
}

// isSpecial tells the operations of special mappings by their address, and
// where the kernel has no symbol for them by what only they have: a name.
func (n *namer) isSpecial(ops arch.GVA) bool {
	if n.s.specialOps != 0 {
		return ops == n.s.specialOps
	}
	if !n.s.l.vmOps.name.ok() || kernelPointer(ops) != nil {
		return false
	}
	f, err := n.as.ReadPointer(ops + arch.GVA(n.s.l.vmOps.name.off))
	return err == nil && f != 0
}

// anonName reads the name that a program gave its memory by
// prctl(PR_SET_VMA), at most 80 bytes by the kernel's rules.
func (n *namer) anonName(at arch.GVA) string {
	if kernelPointer(at) != nil {
		return ""
	}
	s, _ := n.as.ReadString(at+arch.GVA(n.s.l.anonName.name.off), 80)
	return s
}

// Libraries implements osi.System.
func (s *system) Libraries(ctx context.Context, h osi.Handle) iter.Seq2[osi.Library, error] {
	return func(yield func(osi.Library, error) bool) {
		as := s.fresh()
		mm, err := s.mmOf(ctx, h)
		if err != nil {
			if !noUserMemory(err) {
				yield(osi.Library{}, err)
			}
			return
		}
		vs, first := s.vmas(ctx, as, &mm)
		n := s.newNamer(as, &mm)
		exe, err := n.exe()
		first = errors.Join(first, err)
		mapped := make([]mappedFile, len(vs))
		for i := range vs {
			if vs[i].file == 0 {
				continue
			}
			if ctx.Err() != nil {
				first = ctx.Err()
				break
			}
			if mapped[i], err = n.file(vs[i].file); err != nil {
				first = errors.Join(first, err)
			}
		}
		for _, l := range mergeLibraries(vs, mapped, exe) {
			if !yield(l, nil) {
				return
			}
		}
		if first != nil {
			yield(osi.Library{}, fmt.Errorf("list libraries: %w", first))
		}
	}
}

// exe returns the program's own file.
func (n *namer) exe() (mappedFile, error) {
	if n.mm.exeFile == 0 {
		return mappedFile{}, nil
	}
	return n.file(n.mm.exeFile)
}

// baseName returns the last element of a path, without the mark of a deleted file.
func baseName(path string) string {
	path = strings.TrimSuffix(path, " (deleted)")
	return path[strings.LastIndexByte(path, '/')+1:]
}
