package linux

import (
	"context"
	"fmt"
	"slices"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// Bits of vm_area_struct.vm_flags; the first three are the kernel's PROT bits.
const (
	vmRead     = 0x01
	vmWrite    = 0x02
	vmExec     = 0x04
	vmMayShare = 0x80
)

// vma is what one read of a vm_area_struct yields.
type vma struct {
	addr       arch.GVA
	span       osi.Range
	mm         arch.GVA
	flags      uint64
	pgoff      uint64
	file       arch.GVA
	ops        arch.GVA
	private    arch.GVA
	anonName   arch.GVA
	next, prev arch.GVA
}

func (s *system) readVMA(as *vitrine.AddressSpace, addr arch.GVA) (vma, error) {
	l := &s.l.vma
	var buf [512]byte
	r, err := load(as, &l.shape, addr, buf[:])
	if err != nil {
		return vma{}, err
	}
	v := vma{
		addr: addr, span: osi.Range{Start: r.ptr(l.start), End: r.ptr(l.end)}, mm: r.ptr(l.mm),
		flags: r.uint(l.flags), pgoff: r.uint(l.pgoff), file: r.ptr(l.file),
		ops: r.ptr(l.ops), private: r.ptr(l.private), anonName: r.ptr(l.anonName),
		next: r.ptr(l.next), prev: r.ptr(l.prev),
	}
	if v.file != 0 && l.anonName.off == l.shared.off {
		v.anonName = 0 // until 6.2 it shared its place with what a file's mapping keeps
	}
	return v, nil
}

// check fails unless v is a mapping of mm that covers first to last.
func (v *vma) check(mm arch.GVA, first, last uint64) error {
	if v.mm != mm || uint64(v.span.Start) != first || uint64(v.span.End)-1 != last || v.span.End <= v.span.Start {
		return fmt.Errorf("read mapping at %#x: %w", first, osi.ErrTorn)
	}
	return nil
}

// vmas returns all mappings in address order, as one consistent picture: it is
// taken again while parts of it do not fit together. With an error it returns
// those that could be read.
func (s *system) vmas(ctx context.Context, as *vitrine.AddressSpace, mm *mmRecord) ([]vma, error) {
	var best []vma
	err := retry(ctx, as, func() error {
		now, err := s.readMM(mm.addr)
		if err != nil {
			return err
		}
		out, err := s.vmasOnce(as, &now)
		if err == nil || len(out) > len(best) {
			best = out
		}
		return err
	})
	return best, err
}

func (s *system) vmasOnce(as *vitrine.AddressSpace, mm *mmRecord) ([]vma, error) {
	if s.l.mm.maRoot.ok() {
		return s.vmaTree(as, mm)
	}
	return s.vmaList(as, mm)
}

// vmaTree reads the maple tree of 6.1 and later.
func (s *system) vmaTree(as *vitrine.AddressSpace, mm *mmRecord) ([]vma, error) {
	var out []vma
	var bad error
	err := newMapleTree(as, s.l).walk(mm.maRoot, func(e mapleEntry) bool {
		var v vma
		if v, bad = s.readVMA(as, e.value); bad == nil {
			bad = v.check(mm.addr, e.first, e.last)
		}
		if bad == nil {
			out = append(out, v)
		}
		return bad == nil && len(out) < maxVMAs
	})
	if err == nil {
		err = bad
	}
	return out, err
}

// vmaList reads the list of kernels before 6.1.
func (s *system) vmaList(as *vitrine.AddressSpace, mm *mmRecord) ([]vma, error) {
	var out []vma
	from, end := arch.GVA(0), arch.GVA(0)
	for at := mm.mmap; at != 0; {
		v, err := s.readVMA(as, at)
		if err != nil {
			return out, err
		}
		if v.prev != from && s.l.vma.prev.ok() || v.span.Start < end || v.mm != mm.addr || v.span.End <= v.span.Start || len(out) == maxVMAs {
			return out, fmt.Errorf("walk mappings: %v at %v does not follow: %w", v.span.Start, at, osi.ErrTorn)
		}
		out = append(out, v)
		from, end, at = at, v.span.End, v.next
	}
	return out, nil
}

// vmaAt returns the mapping that holds a, or false.
func (s *system) vmaAt(as *vitrine.AddressSpace, mm *mmRecord, a arch.GVA) (vma, bool, error) {
	if !s.l.mm.maRoot.ok() {
		return s.vmaInRBTree(as, mm, a)
	}
	e, ok, err := newMapleTree(as, s.l).find(mm.maRoot, uint64(a))
	if err != nil || !ok {
		return vma{}, false, err
	}
	v, err := s.readVMA(as, e.value)
	if err == nil {
		err = v.check(mm.addr, e.first, e.last)
	}
	return v, err == nil, err
}

// maxRBDepth is more than twice the binary logarithm of maxVMAs, the height
// that a red-black tree can have.
const maxRBDepth = 64

// vmaInRBTree descends the red-black tree of kernels before 6.1.
func (s *system) vmaInRBTree(as *vitrine.AddressSpace, mm *mmRecord, a arch.GVA) (vma, bool, error) {
	var buf [64]byte
	at := mm.rbNode
	for range maxRBDepth {
		if at == 0 {
			return vma{}, false, nil
		}
		v, err := s.readVMA(as, at-arch.GVA(s.l.vma.rb.off))
		if err != nil {
			return vma{}, false, err
		}
		if v.mm != mm.addr {
			return vma{}, false, fmt.Errorf("search mapping of %v: %w", a, osi.ErrTorn)
		}
		if v.span.Contains(a) {
			return v, true, nil
		}
		r, err := load(as, &s.l.rb.shape, at, buf[:])
		if err != nil {
			return vma{}, false, err
		}
		if at = r.ptr(s.l.rb.right); a < v.span.Start {
			at = r.ptr(s.l.rb.left)
		}
	}
	return vma{}, false, fmt.Errorf("search mapping of %v: tree deeper than %d: %w", a, maxRBDepth, osi.ErrCorrupt)
}

// perms returns the permissions as /proc/PID/maps shows them.
func (v *vma) perms() string {
	b := []byte("---p")
	for i, bit := range []uint64{vmRead, vmWrite, vmExec} {
		if v.flags&bit != 0 {
			b[i] = "rwx"[i]
		}
	}
	if v.flags&vmMayShare != 0 {
		b[3] = 's'
	}
	return string(b)
}

// mergeLibraries makes libraries out of the mappings of files: mapped tells
// the file of each.
func mergeLibraries(vs []vma, mapped []mappedFile, exe mappedFile) []osi.Library {
	var out []osi.Library
	seen := map[arch.GVA]int{} // inode to place in out
	exec := map[arch.GVA]bool{}
	for i, v := range vs {
		f := mapped[i]
		if f.inode == 0 || f.inode == exe.inode || f.path == exe.path {
			continue
		}
		exec[f.inode] = exec[f.inode] || v.flags&vmExec != 0
		n, ok := seen[f.inode]
		if !ok {
			n = len(out)
			seen[f.inode] = n
			out = append(out, osi.Library{Name: baseName(f.path), Path: f.path, Base: v.span.Start})
		}
		out[n].Size = uint64(v.span.End - out[n].Base)
	}
	byPath := map[int]bool{}
	for inode, n := range seen {
		byPath[n] = exec[inode]
	}
	i := -1
	return slices.DeleteFunc(out, func(osi.Library) bool { i++; return !byPath[i] })
}
