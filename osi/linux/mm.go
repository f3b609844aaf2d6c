package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// mmRecord is what one read of an mm_struct yields.
type mmRecord struct {
	addr    arch.GVA
	pgd     arch.GVA
	exeFile arch.GVA
	maRoot  arch.GVA
	mmap    arch.GVA
	rbNode  arch.GVA
	layout  osi.ProcMem
	compat  bool // a 32-bit process of a 64-bit system
}

func (s *system) readMM(addr arch.GVA) (mmRecord, error) {
	l := &s.l.mm
	r, err := load(s.kernel, &l.shape, addr, nil)
	if err != nil {
		return mmRecord{}, err
	}
	span := func(start, end member) osi.Range { return osi.Range{Start: r.ptr(start), End: r.ptr(end)} }
	return mmRecord{
		addr: addr, pgd: r.ptr(l.pgd), exeFile: r.ptr(l.exeFile),
		maRoot: r.ptr(l.maRoot), mmap: r.ptr(l.mmap), rbNode: r.ptr(l.rbNode),
		compat: s.compat(r.uint(l.taskSize)),
		layout: osi.ProcMem{
			Code: span(l.startCode, l.endCode), Data: span(l.startData, l.endData),
			Args: span(l.argStart, l.argEnd), Env: span(l.envStart, l.envEnd),
			StartBrk: r.ptr(l.startBrk), Brk: r.ptr(l.brk), StartStack: r.ptr(l.startStack),
		},
	}, nil
}

// compat tells by where a process's addresses end (TASK_SIZE as of its exec)
// that it is a 32-bit one of a 64-bit kernel: below 4 GiB, both for x86 and arm64.
func (s *system) compat(taskSize uint64) bool {
	return s.word == 8 && taskSize > 0 && taskSize <= 1<<32
}

// mmOf returns the memory descriptor of the process that a handle names, or
// ErrNoUserMemory.
func (s *system) mmOf(ctx context.Context, h osi.Handle) (mmRecord, error) {
	t, err := s.leaderOf(ctx, h)
	if err != nil {
		return mmRecord{}, err
	}
	if t.userMM() == 0 {
		return mmRecord{}, fmt.Errorf("read memory of process %d: %w", t.tgid, osi.ErrNoUserMemory)
	}
	mm, err := s.readMM(t.mm)
	if err != nil {
		return mmRecord{}, fmt.Errorf("read memory of process %d: %w", t.tgid, err)
	}
	return mm, nil
}

// Memory implements osi.System. It corresponds to the members start_code to
// env_end of task_struct->mm.
func (s *system) Memory(ctx context.Context, h osi.Handle) (osi.ProcMem, error) {
	mm, err := s.mmOf(ctx, h)
	return mm.layout, err
}

// AddressSpace implements osi.System.
func (s *system) AddressSpace(ctx context.Context, h osi.Handle) (*vitrine.AddressSpace, error) {
	mm, err := s.mmOf(ctx, h)
	if err != nil {
		return nil, err
	}
	root, err := s.kernel.Translate(mm.pgd)
	if err != nil {
		return nil, fmt.Errorf("find page tables: %w", err)
	}
	return s.addressSpaceOf(root), nil
}

// Bounds of a command line: the kernel's own (ARG_MAX for one string), and the
// page that setproctitle may spill over.
const (
	maxArgs  = 128 << 10
	maxTitle = arch.PageSize
)

// args reads the command line from the process's own stack, as
// /proc/PID/cmdline does: the strings between arg_start and arg_end; or, when
// the process has overwritten the last NUL (setproctitle), the one string that
// begins there.
func (s *system) args(mm *mmRecord) ([]string, error) {
	a := mm.layout.Args
	if a.Start == 0 || a.End <= a.Start {
		return nil, nil
	}
	root, err := s.kernel.Translate(mm.pgd)
	if err != nil {
		return nil, err
	}
	b, err := s.readUser(root, a.Start, min(a.Size(), maxArgs))
	if len(b) == 0 || b[len(b)-1] == 0 || uint64(len(b)) < a.Size() {
		return split(b), err
	}
	limit := a.Size()
	if env := mm.layout.Env; env.Start == a.End && env.End > env.Start {
		limit = uint64(env.End - a.Start) // the environment was overwritten too
	}
	title, err := s.readUser(root, a.Start, min(limit, maxTitle))
	if len(title) > 0 {
		err = nil // the page behind may well not exist
	}
	return []string{cString(title)}, err
}

// split takes a command line apart at its NULs.
func split(b []byte) []string {
	if len(b) == 0 {
		return nil
	}
	b = bytes.TrimSuffix(b, []byte{0})
	var out []string
	for part := range bytes.SplitSeq(b, []byte{0}) {
		out = append(out, string(part))
	}
	return out
}

// readUser reads n bytes of user memory, without a cache: for a few bytes of
// each of many processes. With an error it returns what it could read.
func (s *system) readUser(root arch.GPA, va arch.GVA, n uint64) ([]byte, error) {
	out := make([]byte, 0, min(n, maxArgs))
	for uint64(len(out)) < n {
		at := va + arch.GVA(len(out))
		m, err := arch.Walk(s.g, s.kernel.Mode().User(), root, at)
		if err != nil {
			return out, err
		}
		part := min(n-uint64(len(out)), uint64(arch.PageSize-at%arch.PageSize))
		out = slices.Grow(out, int(part))
		got, err := s.g.ReadPhysical(out[len(out):len(out)+int(part)], m.Addr)
		out = out[:len(out)+got]
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

// noUserMemory tells the one error of mmOf that means an empty list.
func noUserMemory(err error) bool { return errors.Is(err, osi.ErrNoUserMemory) }
