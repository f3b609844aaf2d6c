package qemu

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/qemu/internal/host"
)

// bulk is the size from which a read goes through the file instead of the
// mapping: reading a file of tmpfs or hugetlbfs does not allocate the pages that
// the guest never touched, reading through a mapping of it does.
const bulk = 64 << 10

// piece is a span and how to reach it.
type piece struct {
	span
	mapping *host.Mapping // nil where it is not mapped
	hva     uint64        // address in QEMU's own memory, 0 when unknown
}

// memory is the guest's physical memory.
type memory struct {
	proc   host.Process // QEMU, 0 when unknown
	slow   func(p []byte, gpa uint64) (int, error)
	pieces []piece // the largest RAM first, so that few compares find it

	// mu keeps the mappings in place while they are read: closing takes it for
	// writing. closed is nil until then.
	mu     sync.RWMutex
	closed error
}

// find returns the piece that holds a, nil when there is none.
func (mem *memory) find(a uint64) *piece {
	for i := range mem.pieces {
		if p := &mem.pieces[i]; a-p.start < p.size {
			return p
		}
	}
	return nil
}

// sortPieces brings them into the order that find wants.
func (mem *memory) sortPieces() {
	slices.SortStableFunc(mem.pieces, func(a, b piece) int {
		switch {
		case a.main != b.main && a.main, a.main == b.main && a.size > b.size:
			return -1
		case a.main == b.main && a.size == b.size:
			return 0
		}
		return 1
	})
}

// regions returns the guest's RAM, sorted by address.
func (mem *memory) regions() []vitrine.Region {
	var out []vitrine.Region
	for _, p := range mem.pieces {
		if p.main {
			out = append(out, vitrine.Region{Start: arch.GPA(p.start), Size: p.size})
		}
	}
	slices.SortFunc(out, func(a, b vitrine.Region) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	return out
}

// read fills p from guest-physical address a.
func (mem *memory) read(p []byte, a uint64) (int, error) {
	mem.mu.RLock()
	defer mem.mu.RUnlock()
	if mem.closed != nil {
		return 0, mem.closed
	}
	done := 0
	for done < len(p) {
		pc := mem.find(a + uint64(done))
		if pc == nil {
			return done, &vitrine.PhysicalError{Addr: arch.GPA(a) + arch.GPA(done)}
		}
		off := a + uint64(done) - pc.start
		n, err := mem.readPiece(pc, p[done:min(uint64(len(p)), uint64(done)+pc.size-off)], off)
		done += n
		if err != nil {
			return done, &vitrine.PhysicalError{Addr: arch.GPA(a) + arch.GPA(done), Err: err}
		}
	}
	return done, nil
}

// readPiece fills p from offset off of a piece, which holds all of it.
func (mem *memory) readPiece(pc *piece, p []byte, off uint64) (int, error) {
	switch {
	case pc.mapping != nil && len(p) >= bulk:
		return pc.mapping.File.ReadAt(p, pc.mapping.Offset+int64(off))
	case pc.mapping != nil:
		return copyGuarded(p, pc.mapping.Bytes[off:])
	case pc.hva != 0:
		n, err := mem.proc.Read(p, pc.hva+off)
		return n, processError(err)
	}
	return mem.slow(p, pc.start+off)
}

// errTruncated is returned when the file behind guest RAM became shorter.
var errTruncated = errors.New("the file behind guest RAM was truncated")

// copyGuarded copies between mapped memory and a buffer. A page that is gone
// from the file is a SIGBUS, which without the guard would end this process.
func copyGuarded(dst, src []byte) (n int, err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			n, err = 0, errTruncated
		}
	}()
	return copy(dst, src), nil
}

// processError explains the errors of reading another process.
func processError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ESRCH):
		return fmt.Errorf("%w: %w", vitrine.ErrGone, err)
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w: %w", vitrine.ErrPermission, err)
	}
	return err
}

// errNotRAM is returned by writes to what is no guest RAM.
var errNotRAM = errors.New("not guest RAM")

// write stores p at guest-physical address a, all of it or nothing when part
// of the range is not RAM.
func (mem *memory) write(p []byte, a uint64) error {
	mem.mu.RLock()
	defer mem.mu.RUnlock()
	if mem.closed != nil {
		return mem.closed
	}
	for done := uint64(0); done < uint64(len(p)); {
		pc := mem.find(a + done)
		if pc == nil || !pc.main {
			return fmt.Errorf("write guest-physical %#x: %w", a+done, errNotRAM)
		}
		done += min(uint64(len(p))-done, pc.end()-(a+done))
	}
	for done := uint64(0); done < uint64(len(p)); {
		pc := mem.find(a + done)
		n := min(uint64(len(p))-done, pc.end()-(a+done))
		if err := mem.writePiece(pc, p[done:done+n], a+done-pc.start); err != nil {
			return fmt.Errorf("write guest-physical %#x: %w", a+done, err)
		}
		done += n
	}
	return nil
}

func (mem *memory) writePiece(pc *piece, p []byte, off uint64) error {
	switch {
	case pc.mapping != nil && pc.mapping.Writable:
		_, err := copyGuarded(pc.mapping.Bytes[off:][:len(p)], p)
		return err
	case pc.hva != 0:
		_, err := mem.proc.Write(p, pc.hva+off)
		return processError(err)
	}
	return fmt.Errorf("guest memory is reached through the monitor only: %w", errors.ErrUnsupported)
}

// slice returns n mapped bytes at a, nil when they are not mapped in one piece.
func (mem *memory) slice(a, n uint64) []byte {
	mem.mu.RLock()
	defer mem.mu.RUnlock()
	pc := mem.find(a)
	if mem.closed != nil || pc == nil || pc.mapping == nil || n > pc.size || a-pc.start > pc.size-n {
		return nil
	}
	return pc.mapping.Bytes[a-pc.start:][:n:n]
}

// nextData returns the first address from a on that may not be zero, at most the
// end of its piece.
func (mem *memory) nextData(a uint64) uint64 {
	mem.mu.RLock()
	defer mem.mu.RUnlock()
	pc := mem.find(a)
	if mem.closed != nil || pc == nil || pc.mapping == nil {
		return a
	}
	return pc.start + pc.mapping.NextData(a-pc.start)
}

// fail makes all reads and writes from now on return err; the mappings stay.
func (mem *memory) fail(err error) {
	mem.mu.Lock()
	defer mem.mu.Unlock()
	if mem.closed == nil {
		mem.closed = err
	}
}

// close unmaps everything, once no read is under way.
func (mem *memory) close() error {
	mem.mu.Lock()
	defer mem.mu.Unlock()
	var errs []error
	for i := range mem.pieces {
		if mp := mem.pieces[i].mapping; mp != nil {
			errs = append(errs, mp.Close())
			mem.pieces[i].mapping = nil
		}
	}
	mem.closed = vitrine.ErrClosed
	return errors.Join(errs...)
}

// access says in words how memory is read.
func (mem *memory) access() string {
	mapped, process := false, false
	for _, p := range mem.pieces {
		mapped = mapped || p.main && p.mapping != nil
		process = process || p.main && p.mapping == nil && p.hva != 0
	}
	switch {
	case mapped && process:
		return "partly mapped, partly process_vm_readv"
	case mapped:
		return "mapped"
	case process:
		return "process_vm_readv"
	}
	return "monitor (slow)"
}

// reach finds the way to each span: a shared mapping, the memory of the QEMU
// process, or the monitor.
func (m *machine) reach(ctx context.Context, spans []span, proc host.Process) error {
	m.mem.slow = m.readByMonitor
	for _, s := range spans {
		m.mem.pieces = append(m.mem.pieces, piece{span: s})
	}
	defer m.mem.sortPieces()
	if proc == 0 {
		return nil
	}
	m.mem.proc = proc
	vmas, err := proc.Maps()
	if err != nil {
		return m.denied(proc, err)
	}
	for i := range m.mem.pieces {
		if err := m.reachPiece(ctx, &m.mem.pieces[i], vmas); err != nil {
			return err
		}
	}
	return nil
}

// anchor returns an address of the span that shows its block at any time: below
// 1 MiB a PC may have ROM in front of the RAM, see fillShadow.
func (s span) anchor() uint64 {
	if s.start < shadowEnd && s.end() > shadowEnd {
		return shadowEnd
	}
	return s.start
}

func (m *machine) reachPiece(ctx context.Context, pc *piece, vmas []host.VMA) error {
	hva, err := m.hostAddress(ctx, pc.anchor())
	hva -= pc.anchor() - pc.start
	if err != nil {
		if pc.main {
			return fmt.Errorf("locate guest RAM %s: %w", pc.block, err)
		}
		return nil // video memory and the like: the monitor reads it
	}
	var probe [1]byte
	if _, err := m.mem.proc.Read(probe[:], hva); err == nil {
		pc.hva = hva
	} else if !pc.main {
		return nil
	}
	if mp, err := m.mem.proc.MapShared(vmas, hva, pc.size); err == nil {
		pc.mapping = mp
	} else if pc.hva == 0 {
		return m.denied(m.mem.proc, err)
	}
	return nil
}

// denied says what to do when QEMU's memory may not be looked at.
func (m *machine) denied(proc host.Process, err error) error {
	if m.allowSlow {
		return nil
	}
	return fmt.Errorf("read memory of QEMU process %d: %w: %w; run as root, or as the user of that process with CAP_SYS_PTRACE "+
		"(setcap cap_sys_ptrace,cap_checkpoint_restore+ep on the binary, or kernel.yama.ptrace_scope=0)",
		int(proc), vitrine.ErrPermission, err)
}
