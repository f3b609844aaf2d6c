package windows

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// maxHandle bounds the value of a handle: NT has at most 2^24 of a process.
const maxHandle = 1 << 26

// pageSize is the size of a table of handles at each level.
const pageSize = arch.GVA(arch.PageSize)

// entry is a handle table entry.
type entry struct {
	value  int
	object uint64 // as it stands there
	access uint32
}

// accessMask is the part of the second word that is rights: 25 bits, from 8 on
// with flags above.
const accessMask = 1<<25 - 1

// eachEntry calls f with each used entry of a process's handle table, until it
// returns false.
func (s *system) eachEntry(ctx context.Context, as *vitrine.AddressSpace, p *process, f func(entry, error) bool) {
	table := p.ptr(s.l.process.objects)
	if !s.nt.KernelAddress(table) || !s.l.handle.code.ok {
		return // it is ending, or has none
	}
	code, err := s.word(as, table+s.l.handle.code.off)
	if err != nil {
		f(entry{}, fmt.Errorf("read handle table of process %d: %w", p.pid, err))
		return
	}
	limit := maxHandle
	if s.l.handle.limit.ok {
		if n, err := as.ReadUint32(table + s.l.handle.limit.off); err == nil && n > 0 {
			limit = min(limit, int(n))
		}
	}
	level, top := int(code&3), code&^7
	if level > 2 {
		f(entry{}, fmt.Errorf("handle table of process %d with %d levels: %w", p.pid, level, osi.ErrCorrupt))
		return
	}
	next := 0
	s.eachTable(ctx, as, top, level, &next, limit, f)
}

// eachTable goes through a table: of entries at level 0, else of tables. Next
// is the value of the next handle.
func (s *system) eachTable(ctx context.Context, as *vitrine.AddressSpace, at arch.GVA, level int, next *int, limit int, f func(entry, error) bool) bool {
	if ctx.Err() != nil {
		return f(entry{}, ctx.Err()) && false
	}
	page := make([]byte, pageSize)
	if !s.nt.KernelAddress(at) {
		return f(entry{}, fmt.Errorf("handle table at %v: %w", at, osi.ErrCorrupt)) && false
	}
	got, err := as.Read(page, at)
	if level == 0 {
		first := *next
		*next += 4 * int(pageSize/s.l.handle.entry)
		if err != nil && !f(entry{}, fmt.Errorf("read handles from %#x: %w", first, err)) {
			return false
		}
		return s.eachInPage(page[:got], first, limit, f)
	}
	for i := arch.GVA(0); i+s.w <= arch.GVA(got) && *next < limit; i += s.w {
		below := arch.GVA(s.number(page[i:]))
		if below == 0 {
			return true
		}
		if !s.eachTable(ctx, as, below, level-1, next, limit, f) {
			return false
		}
	}
	return err == nil || f(entry{}, fmt.Errorf("read handle table at %v: %w", at, err))
}

func (s *system) number(b []byte) uint64 {
	if s.w == 8 {
		return binary.LittleEndian.Uint64(b)
	}
	return uint64(binary.LittleEndian.Uint32(b))
}

// eachInPage goes through a page of entries, of which the first is none.
func (s *system) eachInPage(page []byte, first, limit int, f func(entry, error) bool) bool {
	size := int(s.l.handle.entry)
	for i := 1; (i+1)*size <= len(page) && first+4*i < limit; i++ {
		b := page[i*size:]
		e := entry{value: first + 4*i, object: s.number(b), access: binary.LittleEndian.Uint32(b[s.w:]) & accessMask}
		if e.object != 0 && s.nt.KernelAddress(s.header(e.object)) && !f(e, nil) {
			return false
		}
	}
	return true
}

// header returns the address of the object header that an entry names. Until 7
// it stands there with flags in its lowest three bits. Since 8 it is the upper
// bits of the first word: 44 of them on x64 (41 in 8.0), without the lowest
// four of the address and those above bit 47; 29 on x86.
func (s *system) header(object uint64) arch.GVA {
	h := &s.l.handle
	if h.object.ok || !h.bits.ok || h.width == 0 || h.width > 60 {
		return arch.GVA(object &^ 7)
	}
	if s.w == 4 {
		return arch.GVA(object >> (32 - min(h.width, 32)) << 3)
	}
	return arch.GVA(int64(object) >> (64 - h.width) << 4)
}

// countHandles returns how many handles a process has open.
func (s *system) countHandles(as *vitrine.AddressSpace, p *process) int {
	table := p.ptr(s.l.process.objects)
	if s.l.handle.count.ok && s.nt.KernelAddress(table) {
		if n, err := as.ReadUint32(table + s.l.handle.count.off); err == nil && n < maxHandle/4 {
			return int(n)
		}
	}
	n := 0
	s.eachEntry(context.Background(), as, p, func(_ entry, err error) bool {
		if err == nil {
			n++
		}
		return true
	})
	return n
}

// Files implements osi.System: all handles of a process, whatever they lead
// to. It corresponds to EPROCESS.ObjectTable.
func (s *system) Files(ctx context.Context, h osi.Handle) iter.Seq2[osi.File, error] {
	return func(yield func(osi.File, error) bool) {
		as := s.fresh()
		p, err := s.processOf(ctx, as, h)
		if err != nil {
			yield(osi.File{}, err)
			return
		}
		s.eachEntry(ctx, as, &p, func(e entry, err error) bool {
			if err != nil {
				return yield(osi.File{}, err)
			}
			f, err := s.file(as, e)
			return yield(f, err)
		})
	}
}

// file makes the record of a handle.
func (s *system) file(as *vitrine.AddressSpace, e entry) (osi.File, error) {
	header := s.header(e.object)
	body := header + s.l.header.body.off
	f := osi.File{FD: e.value, Flags: e.access, Object: body}
	kind, err := s.kindOf(as, header)
	if err != nil {
		if pagedOut(err) {
			f.Type, f.Path = osi.PagedOut, osi.PagedOut
			return f, nil
		}
		return f, fmt.Errorf("handle %#x: %w", e.value, err)
	}
	f.Type = kind
	f.Path = s.describe(as, kind, body)
	if kind == "File" && s.l.file.pos.ok {
		if pos, err := as.ReadUint64(body + s.l.file.pos.off); err == nil {
			f.Pos = int64(pos)
		}
	}
	f.FlagNames = accessNames(kind, e.access)
	return f, nil
}

// FileByFD implements osi.System; fd is the value of a handle.
func (s *system) FileByFD(ctx context.Context, h osi.Handle, fd int) (osi.File, error) {
	as := s.fresh()
	p, err := s.processOf(ctx, as, h)
	if err != nil {
		return osi.File{}, err
	}
	var out osi.File
	err = fmt.Errorf("handle %#x of process %d: %w", fd, p.pid, osi.ErrNoFile)
	s.eachEntry(ctx, as, &p, func(e entry, readErr error) bool {
		switch {
		case readErr != nil:
			if errors.Is(err, osi.ErrNoFile) {
				err = readErr
			}
			return true
		case e.value&^3 == fd&^3 && fd >= 0: // the two lowest bits of a handle are free for its owner
			out, err = s.file(as, e)
			return false
		}
		return e.value <= fd
	})
	return out, err
}

// Cwd implements osi.System. It corresponds to
// PEB.ProcessParameters.CurrentDirectory.
func (s *system) Cwd(ctx context.Context, h osi.Handle) (string, error) {
	p, user, err := s.userProcess(ctx, s.fresh(), h)
	if err != nil {
		if noUserMemory(err) {
			err = nil
		}
		return "", err
	}
	return text(s.parameter(user, &p, s.l.params.cwd)), nil
}

func noUserMemory(err error) bool { return errors.Is(err, osi.ErrNoUserMemory) }
