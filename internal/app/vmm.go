package app

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/qemu"
)

// A process without a monitor: its guest's RAM is found by what the guest's
// kernel says. First its VMCOREINFO is looked for in what may be RAM; it names a
// page table by guest-physical address. Layouts are then tried until that page
// table maps a kernel, which has a list of its own of where RAM is
// (e820_table); by that the layout is made exact, and proved by reading all
// processes through it.

// Bounds of the search.
const (
	vmmBlocks  = 8  // of a process that are looked at, the largest first
	vmmNotes   = 16 // texts that are followed up
	vmmLayouts = 256
)

const (
	fourGiB  = 4 << 30
	noteSize = 64 << 10
)

// splits are how much RAM hypervisors leave below the hole under 4 GiB, the
// most common first: QEMU's pc and Cloud Hypervisor; q35; Firecracker and
// crosvm; q35 and pc with little RAM.
var splits = []uint64{0xc000_0000, 0x8000_0000, 0xd000_0000, 0xb000_0000, 0xe000_0000}

// attachVMM reaches the guest of any hypervisor's process, for reading.
func attachVMM(ctx context.Context, pid int) (*vitrine.Guest, error) {
	v := &vmm{pid: pid}
	var err error
	if v.blocks, err = qemu.ProcessBlocks(pid); err != nil {
		return nil, err
	}
	v.blocks = v.blocks[:min(len(v.blocks), vmmBlocks)]
	if err := v.findNotes(ctx); err != nil {
		return nil, err
	}
	if len(v.notes) == 0 {
		return nil, fmt.Errorf("look for a guest in process %d: %w: no kernel describes itself (VMCOREINFO) in its %d blocks of memory of 16 MiB and more",
			pid, vitrine.ErrNotFound, len(v.blocks))
	}
	last := errors.New("no layout to try")
	for _, note := range v.notes {
		for _, l := range v.layouts() {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			g, err := v.try(ctx, l, note)
			if err == nil {
				return g, nil
			}
			last = err
		}
	}
	return nil, fmt.Errorf("look for a guest in process %d: %w: a kernel's VMCOREINFO was found, and no layout of its memory fits it: %w", pid, vitrine.ErrNotUnderstood, last)
}

// vmm is a process that may run a guest.
type vmm struct {
	pid    int
	blocks []qemu.Block
	notes  [][]byte
}

type layout []qemu.Placement

// findNotes looks for VMCOREINFO in every block.
func (v *vmm) findNotes(ctx context.Context) error {
	seen := map[string]bool{}
	for i, b := range v.blocks {
		g, err := qemu.OpenProcess(v.pid, v.blocks, layout{{Block: i, Size: b.Size}}, nil)
		if err != nil {
			return err
		}
		for _, r := range g.Regions() {
			v.scan(ctx, g, r, seen)
		}
		if err := errors.Join(g.Close(), ctx.Err()); err != nil {
			return err
		}
	}
	return nil
}

// scan looks at the start of every page of a region, and behind the header of a
// note there.
func (v *vmm) scan(ctx context.Context, g *vitrine.Guest, r vitrine.Region, seen map[string]bool) {
	magic := []byte("OSRELEASE=")
	buf := make([]byte, 4<<20)
	for at := uint64(0); at < r.Size && ctx.Err() == nil; at += uint64(len(buf)) {
		n, _ := g.ReadPhysical(buf[:min(uint64(len(buf)), r.Size-at)], r.Start+arch.GPA(at))
		for p := 0; p+64 < n && len(v.notes) < vmmNotes; p += arch.PageSize {
			for _, skip := range []int{0, 24} {
				if !bytes.HasPrefix(buf[p+skip:], magic) {
					continue
				}
				text := buf[p+skip : min(n, p+noteSize)]
				if end := bytes.IndexByte(text, 0); end > 0 && !seen[string(text[:end])] {
					seen[string(text[:end])] = true
					v.notes = append(v.notes, bytes.Clone(text[:end]))
				}
			}
		}
	}
}

// layouts returns how the blocks may be laid out, the likeliest first.
func (v *vmm) layouts() []layout {
	var out []layout
	for i, b := range v.blocks {
		for _, low := range splits {
			if b.Size > low {
				out = append(out, layout{{Size: low, Block: i}, {Start: fourGiB, Size: b.Size - low, Block: i, Offset: low}})
			}
		}
		if b.Size <= fourGiB-16<<20 {
			out = append(out, layout{{Size: b.Size, Block: i}})
		}
	}
	for i, low := range v.blocks {
		for k, high := range v.blocks {
			if i != k && low.Size < fourGiB {
				out = append(out, layout{{Size: low.Size, Block: i}, {Start: fourGiB, Size: high.Size, Block: k}})
			}
		}
	}
	return out[:min(len(out), vmmLayouts)]
}

// try opens the guest by a layout, and by the one that its kernel then tells.
func (v *vmm) try(ctx context.Context, l layout, note []byte) (*vitrine.Guest, error) {
	ram, cpus, err := v.describe(ctx, l, note)
	if err != nil {
		return nil, err
	}
	last := err
	for _, exact := range v.fit(l, ram) {
		g, err := qemu.OpenProcess(v.pid, v.blocks, exact, &qemu.ProcessOptions{CPUs: cpus, Note: note})
		if err != nil {
			return nil, err
		}
		if err = prove(ctx, g); err == nil {
			return g, nil
		}
		last = errors.Join(err, g.Close())
	}
	if last == nil {
		last = fmt.Errorf("the kernel has RAM up to %#x, which no block has room for", ram.end())
	}
	return nil, last
}

// ramMap is what the guest's kernel says of where RAM is, sorted.
type ramMap []vitrine.Region

func (m ramMap) end() uint64 {
	if len(m) == 0 {
		return 0
	}
	return uint64(m[len(m)-1].End())
}

// high returns how much address space RAM from 4 GiB on takes.
func (m ramMap) high() uint64 { return max(m.end(), fourGiB) - fourGiB }

// low returns where RAM below 4 GiB ends.
func (m ramMap) low() uint64 {
	var end uint64
	for _, r := range m {
		if e := uint64(r.End()); e <= fourGiB {
			end = max(end, e)
		}
	}
	return end
}

// describe opens the guest by a layout and asks its kernel where RAM is, and
// how many processors there are.
func (v *vmm) describe(ctx context.Context, l layout, note []byte) (ramMap, int, error) {
	g, err := qemu.OpenProcess(v.pid, v.blocks, l, &qemu.ProcessOptions{Note: note})
	if err != nil {
		return nil, 0, err
	}
	defer g.Close()
	k, err := kernel.Describe(ctx, g, &kernel.Options{Wait: -1})
	if err != nil {
		return nil, 0, err
	}
	ram, err := readE820(k)
	return ram, k.CPUs(), err
}

// readE820 reads the kernel's own copy of the firmware's list of memory: a
// pointer to a number and that many packed entries of address, size and type
// (struct e820_table, arch/x86/include/asm/e820/types.h). In kernels that drop
// it after boot, its copy of what the firmware said (e820_table_firmware) stays.
func readE820(k *kernel.Kernel) (ramMap, error) {
	const entry, usable, most = 20, 1, 3200
	last := errors.New("symbol e820_table is absent")
	for _, name := range []string{"e820_table", "e820_table_firmware", "e820_table_kexec"} {
		sym, err := k.Symbol(name)
		if err != nil {
			continue
		}
		as := k.AddressSpace()
		at, err := as.ReadPointer(sym.Addr)
		if err != nil {
			last = err
			continue
		}
		n, err := as.ReadUint32(at)
		if err == nil && (n == 0 || n > most) {
			err = fmt.Errorf("%s has %d entries", name, n)
		}
		if err != nil {
			last = err
			continue
		}
		p := make([]byte, entry*n)
		if _, err := as.Read(p, at+4); err != nil {
			last = err
			continue
		}
		var ram ramMap
		for ; len(p) > 0; p = p[entry:] {
			start, size := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
			if binary.LittleEndian.Uint32(p[16:]) == usable && size > 0 && start < 1<<52 && size < 1<<52 {
				ram = append(ram, vitrine.Region{Start: arch.GPA(start), Size: size})
			}
		}
		if len(ram) > 0 {
			return ram, nil
		}
	}
	return nil, fmt.Errorf("read the kernel's list of memory: %w", last)
}

// fit returns layouts by which the blocks of l give the RAM that the kernel says
// it has, the one that led to the kernel first.
func (v *vmm) fit(l layout, ram ramMap) []layout {
	low, high := ram.low(), ram.high()
	first := l[0].Block
	size := v.blocks[first].Size
	var out []layout
	switch {
	case high == 0 && size >= low:
		out = append(out, layout{{Size: min(size, fourGiB), Block: first}})
	case high > 0 && size >= low+high: // one block: what is above 4 GiB is its end
		split := size - high
		out = append(out, layout{{Size: split, Block: first}, {Start: fourGiB, Size: high, Block: first, Offset: split}})
	}
	for i, b := range v.blocks {
		if high > 0 && i != first && size >= low && b.Size >= high {
			out = append(out, layout{{Size: size, Block: first}, {Start: fourGiB, Size: high, Block: i}})
		}
	}
	return out
}

// prove reads every process of a guest: their records lie all over its RAM, and
// point at each other.
func prove(ctx context.Context, g *vitrine.Guest) error {
	k, err := kernel.Describe(ctx, g, &kernel.Options{Wait: -1})
	if err != nil {
		return err
	}
	sys, err := osi.Open(ctx, g, k, nil)
	if err != nil {
		return err
	}
	for try := 1; ; try++ {
		err = allHandles(ctx, sys)
		if err == nil || try == proofs || ctx.Err() != nil {
			return err
		}
	}
}

// proofs is how often all processes are read for a proof: the guest runs, and a
// list that changes just then looks like a torn one.
const proofs = 3

func allHandles(ctx context.Context, sys osi.System) error {
	n := 0
	for h, err := range sys.ProcessHandles(ctx) {
		if err != nil {
			return fmt.Errorf("prove the layout of memory: %w", err)
		}
		if h.Task != 0 {
			n++
		}
	}
	if n == 0 {
		return errors.New("prove the layout of memory: no process")
	}
	return nil
}
