package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/qemu/internal/host"
)

// A hypervisor without a monitor still has its guest's RAM among its mappings:
// a QEMU that was started without QMP, Firecracker, Cloud Hypervisor, crosvm.
// This file finds what may be RAM and reads it. Which of it is RAM, and at which
// guest-physical address, a process does not tell: its caller finds out by what
// the guest's kernel says.

// minBlock is the least memory that is taken for a guest's RAM.
const minBlock = 16 << 20

// Block is memory of a process that may be RAM of a guest: a file, wherever the
// process has mapped it, or a piece of memory that has no file.
type Block struct {
	Name string // of the file, or the address of memory without one
	Size uint64 // bytes, holes included

	pieces []blockPiece // sorted by offset, without overlap
}

// blockPiece is a part of a block that the process has mapped.
type blockPiece struct {
	offset, size, hva uint64
}

// Placement says that RAM of a guest is a part of a block.
type Placement struct {
	Start  arch.GPA
	Size   uint64 // bytes
	Block  int    // its number in the list
	Offset uint64 // of Start in the block
}

// ProcessBlocks returns the memory of a process that may be RAM of a guest, the
// largest first. The error wraps vitrine.ErrNotFound when there is no such
// process, and vitrine.ErrPermission when it may not be looked at.
func ProcessBlocks(pid int) ([]Block, error) {
	vmas, err := host.Process(pid).Maps()
	if pid <= 0 || errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look at process %d: %w", pid, vitrine.ErrNotFound)
	}
	if err != nil {
		return nil, (&machine{}).denied(host.Process(pid), err)
	}
	if len(vmas) == 0 { // a kernel thread
		return nil, nil
	}
	return blocksOf(vmas), nil
}

// blocksOf groups mappings into blocks.
func blocksOf(vmas []host.VMA) []Block {
	files := map[string]*Block{}
	var out, anonymous []*Block
	var last *Block // without a file, to go on with
	for _, v := range vmas {
		if v.Perms[:2] != "rw" || strings.HasPrefix(v.Path, "[") && !strings.HasPrefix(v.Path, "[anon") {
			last = nil
			continue
		}
		p := blockPiece{size: v.End - v.Start, hva: v.Start}
		if v.Inode == 0 {
			if last != nil && last.pieces[0].hva+last.Size == v.Start {
				last.pieces = append(last.pieces, blockPiece{last.Size, p.size, p.hva})
				last.Size += p.size
				continue
			}
			last = &Block{Name: fmt.Sprintf("%#x", v.Start), Size: p.size, pieces: []blockPiece{p}}
			anonymous = append(anonymous, last)
			continue
		}
		last = nil
		p.offset = v.Offset
		key := fmt.Sprintf("%s %d %s", v.Dev, v.Inode, v.Path)
		b := files[key]
		if b == nil {
			b = &Block{Name: filepath.Base(v.Path)}
			files[key] = b
			out = append(out, b)
		}
		b.pieces = append(b.pieces, p)
	}
	for _, b := range anonymous {
		out = append(append(out, b), b.within()...)
	}
	return largest(out)
}

// within returns the blocks that may be RAM of a guest in one without a file: its
// largest mapping, and all from there on. What a process has mapped side by side
// need not belong together: a thread's stack may lie just below the RAM.
func (b *Block) within() []*Block {
	if len(b.pieces) < 2 {
		return nil
	}
	at := 0
	for i, p := range b.pieces {
		if p.size > b.pieces[at].size {
			at = i
		}
	}
	from := b.pieces[at]
	var out []*Block
	part := func(end int) {
		c := &Block{Name: fmt.Sprintf("%#x", from.hva)}
		for _, p := range b.pieces[at:end] {
			c.pieces = append(c.pieces, blockPiece{p.offset - from.offset, p.size, p.hva})
		}
		out = append(out, c)
	}
	if at > 0 {
		part(len(b.pieces))
	}
	if at+1 < len(b.pieces) {
		part(at + 1)
	}
	return out
}

// largest returns the blocks that are large enough, the largest first, with
// their pieces in order. What is mapped twice counts once.
func largest(all []*Block) []Block {
	var out []Block
	for _, b := range all {
		slices.SortStableFunc(b.pieces, func(x, y blockPiece) int {
			return cmp.Or(cmp.Compare(x.offset, y.offset), cmp.Compare(y.size, x.size))
		})
		var kept []blockPiece
		end := uint64(0)
		for _, p := range b.pieces {
			if p.offset < end {
				cut := min(end-p.offset, p.size)
				p.offset, p.hva, p.size = p.offset+cut, p.hva+cut, p.size-cut
			}
			if p.size > 0 {
				kept = append(kept, p)
				end = p.offset + p.size
			}
		}
		if b.pieces, b.Size = kept, end; end >= minBlock {
			out = append(out, *b)
		}
	}
	slices.SortStableFunc(out, func(x, y Block) int { return cmp.Compare(y.Size, x.Size) })
	return out
}

// ProcessOptions tell of a guest what its process does not.
type ProcessOptions struct {
	CPUs int    // virtual processors; 0 counts as 1
	Note []byte // VMCOREINFO that was found in its memory
}

// OpenProcess returns the guest whose RAM is memory of a process, laid out as
// layout says. It can be read and nothing else: there are no registers, and it
// is never paused. Nothing is believed of it: its caller knows the layout.
func OpenProcess(pid int, blocks []Block, layout []Placement, opts *ProcessOptions) (*vitrine.Guest, error) {
	if opts == nil {
		opts = &ProcessOptions{}
	}
	proc := host.Process(pid)
	m := &processGuest{note: opts.Note}
	m.mem.proc = proc
	m.mem.slow = func([]byte, uint64) (int, error) { return 0, errors.ErrUnsupported }
	vmas, err := proc.Maps()
	if err != nil {
		return nil, (&machine{}).denied(proc, err)
	}
	for _, at := range layout {
		m.place(blocks[at.Block], at, vmas)
	}
	m.mem.sortPieces()
	if err := m.probe(); err != nil {
		return nil, errors.Join((&machine{}).denied(proc, err), m.Close())
	}
	m.forget = proc.OnExit(func() { m.gone.Store(true); m.mem.fail(vitrine.ErrGone) })
	return vitrine.New(m, vitrine.Info{
		Name: filepath.Base(proc.Executable()), Backend: "process", Arch: arch.AMD64, CPUs: max(opts.CPUs, 1), Live: true,
		Access: m.mem.access() + ", no monitor",
	}), nil
}

// processGuest is a guest of which there is nothing but its memory.
type processGuest struct {
	mem    memory
	note   []byte
	gone   atomic.Bool
	forget func() // ends the waiting for the end of the process
}

var (
	_ vitrine.Backend        = (*processGuest)(nil)
	_ vitrine.PhysicalMapper = (*processGuest)(nil)
	_ vitrine.StatusSource   = (*processGuest)(nil)
	_ vitrine.NoteSource     = (*processGuest)(nil)
)

// place adds the parts of a block that a placement names.
func (m *processGuest) place(b Block, at Placement, vmas []host.VMA) {
	for _, p := range b.pieces {
		start, end := max(p.offset, at.Offset), min(p.offset+p.size, at.Offset+at.Size)
		if start >= end {
			continue
		}
		pc := piece{hva: p.hva + (start - p.offset)}
		pc.span = span{start: uint64(at.Start) + (start - at.Offset), size: end - start, block: b.Name, offset: start, main: true}
		if mp, err := m.mem.proc.MapShared(vmas, pc.hva, pc.size); err == nil {
			pc.mapping = mp
		}
		m.mem.pieces = append(m.mem.pieces, pc)
	}
}

// probe reads a byte of each piece that is not mapped here.
func (m *processGuest) probe() error {
	for _, pc := range m.mem.pieces {
		if pc.mapping != nil {
			continue
		}
		var b [1]byte
		if _, err := m.mem.proc.Read(b[:], pc.hva); err != nil {
			return err
		}
	}
	return nil
}

// ReadPhysical fills p from guest-physical address a.
func (m *processGuest) ReadPhysical(p []byte, a arch.GPA) (int, error) {
	return m.mem.read(p, uint64(a))
}

// MapPhysical returns n mapped bytes at a, nil when they are not mapped in one
// piece.
func (m *processGuest) MapPhysical(a arch.GPA, n uint64) []byte { return m.mem.slice(uint64(a), n) }

// Regions returns the guest's RAM.
func (m *processGuest) Regions() []vitrine.Region { return m.mem.regions() }

// VMCoreInfo returns the note that was found in the guest's memory.
func (m *processGuest) VMCoreInfo() []byte { return m.note }

// Status tells whether the process still is: whether its guest runs it does not
// say.
func (m *processGuest) Status(context.Context) (vitrine.Status, error) {
	if m.gone.Load() {
		return "", fmt.Errorf("process %d: %w", int(m.mem.proc), vitrine.ErrGone)
	}
	return vitrine.StatusRunning, nil
}

// Close unmaps the guest's RAM.
func (m *processGuest) Close() error {
	if m.forget != nil {
		m.forget()
	}
	return m.mem.close()
}
